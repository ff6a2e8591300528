"""Where a user's frames and answers lie, as `Cases`. Three layouts are known:

    DATA/images/CASE.png         a picture for each case (also `frames`, `pictures`). Its answers:
    DATA/masks/CASE.png          of the same name (also `answers`, `labels`, or `masks_1`, ...),
    DATA/masks/CASE/*.png        in a folder of its name, or
    DATA/masks/PERSON/CASE.png   in a folder for each of several people
    DATA/SEQUENCE/*.png          a folder for each sequence, frames numbered, or
    DATA/GROUP/SEQUENCE/*.png    in folders of patients or videos, which no split divides;
    DATA/SEQUENCE.gif, .mp4      or a video for each sequence. Answers, if there are any, lie in
    DATA/SEQUENCE/masks/*.png    a folder in each sequence (also `answers`, `labels`)
    DATA.npz                     arrays `frames` (N, T, H, W), or (N, H, W) with answers; colour in
                                 a last or third axis of 3; `answers` (N, A, H, W) or (N, H, W);
                                 `groups` (N,), `split` (N,)
    DATA.npy                     frames alone

Without conditioning frames, each picture is a sample of its own:

    DATA/CLASS/*.png, DATA/*.png     a folder for each class, or no classes
    DATA.npz                         `frames` (N, H, W), or (N, H, W, 3) or (N, 3, H, W) in colour;
                                     `labels` or `classes` (N,), `split` (N,)

With `--answers none`, DATA/*.png are cases of one frame. All folders may lie in train/,
validation/ and test/: then the split is given. Anything else is said by the user, in a data.yaml or
with --data (`description.py`). Every file is read, or named as ignored, or an error.
"""

from __future__ import annotations

import os
import re
import stat
import tokenize
import zipfile
import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Iterable, Iterator

import numpy as np

from diverse_sampling.errors import reject
from worlds.decoders import LOSSY, PICTURES, VIDEOS, Stack, read_file, refuse, short
from worlds.description import Description, compiled, filled

SPLITS = ("train", "validation", "test")
SPLIT_NAMES = {name: name for name in SPLITS}
SPLIT_NAMES |= dict(training="train", val="validation", valid="validation", testing="test")
IMAGES, MASKS = "(images|frames|pictures)", "(masks|answers|labels)"
# Patterns of frames and of answers; all files of a folder have a place in one of these.
Layout = tuple[str, str | None]
PAIRS: list[Layout] = [
    (f"{IMAGES}/{{case}}.*", answers and f"{MASKS}{answers}.*")
    for answers in (None, "*/{case}", "*/{case}/*", "*/{person}/{case}")
]
SEQUENCES: list[Layout] = [
    (f"{place}/*", answers and f"{place}/{answers}/*")
    for place in ("{sequence}", "{group}/{sequence}")
    for answers in (None, MASKS)
]
VIDEO_FILES: Layout = ("{sequence}.*", None)
UNCONDITIONAL: list[Layout] = [("{case}.*", None), ("{class}/{case}.*", None)]
LAYOUTS = {
    True: "images/ and masks/, a folder of numbered pictures for each sequence, or videos",
    False: "a folder of pictures for each class, or pictures alone",
}
# No name of a sequence or class, and no part of the name of a frame, unless the user says so.
RESERVED = re.compile(f"{IMAGES}|{MASKS}|({'|'.join(SPLIT_NAMES)})", re.IGNORECASE)
OF_ANSWERS = re.compile(r"mask|label|seg|annot|answer|(?<![a-z])gt(?![a-z])", re.IGNORECASE)
READ = "pictures (PNG, JPEG, TIFF, BMP, WebP), videos, or arrays in .npz and .npy"
# Files that hold no pictures, masks or arrays.
TEXTS = (*".txt .md .rst .csv .tsv .json .jsonl .yaml .yml .xml .html .pdf .log .py".split(), "")
OF_SYSTEMS = ("Thumbs.db", "desktop.ini", "data.yaml")
DAMAGED = (  # what decoders of arrays raise for damaged files and for sizes that no memory holds
    *(OSError, EOFError, ValueError, TypeError, AttributeError, KeyError, NotImplementedError),
    *(RuntimeError, SyntaxError, MemoryError, tokenize.TokenError, zipfile.BadZipFile, zlib.error),
)


@dataclass
class Cases:
    """N sequences and their answers, as they lie in files.

    Arguments:
        frames: (F, H, W) or (F, H, W, 3), all sequences one after the other
        lengths: frames of each sequence
        description: where they lie, and what was said of them
        answers: (A, H, W) or (A, H, W, 3), those of all sequences one after the other, or None
        counts: answers of each sequence; empty without answers
        names: of the sequences, each another one
        groups: the group of each sequence, which no split divides; empty: each is its own
        classes: the class of each picture without a condition; empty if there are none
        splits: train, validation or test for each sequence; empty if the files do not say
        frame_types, answer_types: the number type of each picture's file; one for an array
        notices: what was ignored, a sentence each
        lossy: whether an answer was compressed in a way that changes its values
    """

    frames: np.ndarray
    lengths: list[int]
    description: Description
    answers: np.ndarray | None = None
    counts: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    splits: list[str] = field(default_factory=list)
    frame_types: list[np.dtype] = field(default_factory=list)
    answer_types: list[np.dtype] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    lossy: bool = False


def natural(name: str) -> list[tuple[int, int, str]]:
    """A sort key of names by which frame 2 comes before frame 10; 2 and 02, a and A are alike."""
    parts = re.split(r"(\d+)", name.lower())
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts if part]


def find(name: str) -> Path:
    """The absolute path of a user's data.

    A relative path is taken from the current directory or, for what comes with this software, from
    the directory of the code. Raises SettingError, with the paths that were tried, if it is in
    neither.
    """
    expanded = os.path.expanduser(name)
    candidates = [Path.cwd() / expanded, Path(__file__).resolve().parent.parent / expanded]
    for path in candidates:
        if path.exists():
            return path
    paths = ", ".join(dict.fromkeys(map(str, candidates)))
    reject("frames", name, f"an .npz or .npy file, or a directory; not found: {paths}")


def read_cases(path: Path, said: Description, conditional: bool, unlabelled: bool) -> Cases:
    """The cases in a file or folder.

    Arguments:
        path: absolute
        said: by the user
        conditional: whether frames are given; else each picture is a case, with its class
        unlabelled: whether answers are not read

    Raises SettingError for what neither the user nor the head of this module describes.
    """
    if path.is_dir():
        cases = _from_folder(path, said, conditional, unlabelled)
    else:
        cases = (_sequences if conditional else _pictures)(_Arrays(path, said), unlabelled)
    if len(set(cases.groups)) == len(cases.groups):
        cases.groups = []
    unknown = sorted(set(cases.splits) - {*SPLITS})
    if unknown:
        refuse(path, f"splits {', '.join(SPLITS)}; found {', '.join(unknown[:3])}")
    if len(set(cases.classes)) == 1:
        refuse(path, f"two classes or more, or pictures alone; {cases.classes[0]} is the only one")
    return cases


# ---------------------------------------------------------------- folders


def tree(folder: Path) -> dict[str, os.stat_result]:
    """{path below a folder: its state} of all visible files, also of linked folders.

    Raises SettingError for what cannot be opened.
    """
    found: dict[str, os.stat_result] = {}

    def walk(place: str, below: str, above: tuple[tuple[int, int], ...]) -> None:
        with os.scandir(place) as entries:
            for entry in entries:
                if entry.name.startswith((".", "__MACOSX")) or entry.name in OF_SYSTEMS:
                    continue
                state = entry.stat()
                inode = (state.st_dev, state.st_ino)
                if not stat.S_ISDIR(state.st_mode):
                    found[below + entry.name] = state
                elif inode in above:
                    refuse(Path(entry.path), "folders without a link to one above")
                else:
                    walk(entry.path, f"{below}{entry.name}/", (*above, inode))

    top = folder.stat()
    try:
        walk(str(folder), "", ((top.st_dev, top.st_ino),))
    except OSError as error:
        refuse(Path(error.filename or folder), f"files that can be opened ({error.strerror})")
    return found


@dataclass
class _Arrangement:
    """The files of a folder by the patterns of a description.

    Arguments:
        description: with its patterns
        frames, answers: {values of the fields of a sequence: its files}
        fields: their names
        complaint: why this is not what lies there, None if it is
        taken: how many files had a place before that
    """

    description: Description
    frames: dict[tuple[str, ...], list[str]]
    answers: dict[tuple[str, ...], list[str]]
    fields: list[str]
    complaint: str | None
    taken: int


def _arranged(data: list[str], description: Description, known: bool) -> _Arrangement:
    """Files, paths below a folder, arranged by a description.

    `known` is whether it is a known layout, not said by the user.
    """
    assert description.frames is not None
    of_frames, of_answers = compiled(description.frames), compiled(description.answers or "")
    fields = list(of_frames.groupindex)
    shared = [name for name in fields if name in of_answers.groupindex]
    frames: dict[tuple[str, ...], list[str]] = {}
    answers: dict[tuple[str, ...], list[str]] = {}
    taken = 0

    def complaints() -> Iterator[str]:
        nonlocal taken
        for name in data:
            answer, frame = of_answers.fullmatch(name), of_frames.fullmatch(name)
            if answer:  # also if it is named like a frame: x_mask.png beside x.png
                answers.setdefault(tuple(answer[each] for each in shared), []).append(name)
            elif frame:
                frames.setdefault(tuple(frame[each] for each in fields), []).append(name)
            else:
                yield f"{name} is neither frame nor answer"
            taken += 1
        owner = {tuple(key[fields.index(each)] for each in shared): key for key in frames}
        if not frames or bool(answers) != bool(description.answers):
            yield f"there are no {'answers' if frames else 'frames'}"
        elif description.answers:
            if len(owner) < len(frames):
                yield f"{description.answers} does not say to which frames answers belong"
            yield from (
                f"{answers[key][0]} is an answer to no frame" for key in answers.keys() - owner
            )
            bare = ["/".join(owner[key]) for key in owner if key not in answers]
            if bare:
                yield f"{len(bare)} of {len(frames)} have no answer, such as {bare[0]}"
            for key, sequence in owner.items():
                answers[sequence] = answers.pop(key)
        if known:
            yield from _improbable(frames, fields)

    complaint = next(complaints(), None)
    return _Arrangement(description, frames, answers, fields, complaint, taken)


def _improbable(frames: dict[tuple[str, ...], list[str]], fields: list[str]) -> Iterator[str]:
    """Why files are hardly the frames that a known layout makes of them."""
    for key, files in frames.items():
        values = dict(zip(fields, key))
        if values.pop("split", "train").lower() not in SPLIT_NAMES:
            yield f"{files[0]} lies in no split"
        for name, value in values.items():
            if RESERVED.fullmatch(value):
                yield f"{value} is no name of a {name}"
        if any(map(OF_ANSWERS.search, (*values.values(), *files))):
            yield f"{next(filter(OF_ANSWERS.search, files))} looks like an answer"
        if len({re.sub(r"\d+", "0", Path(name).stem) for name in files}) > 1:
            yield f"{files[0]} and {files[-1]} are not numbered frames"
        if fields == ["sequence"] and "/" not in files[0] and not _is_video(files[0]):
            yield f"{files[0]} is no video"


def _known_layout(
    folder: Path, data: list[str], conditional: bool, unlabelled: bool
) -> _Arrangement:
    """A folder's files in the one known layout in which all of them have a place.

    Raises SettingError for others, and if there are several.
    """
    layouts = UNCONDITIONAL
    if conditional:
        layouts = [*PAIRS, *SEQUENCES, UNCONDITIONAL[0] if unlabelled else VIDEO_FILES]
    tried = [
        _arranged(data, Description(prefix + frames, answers and prefix + answers), known=True)
        for prefix in ("", "{split}/")
        for frames, answers in layouts
    ]
    fits = [each for each in tried if each.complaint is None]
    if len(fits) == 1:
        return fits[0]
    if fits:
        why = " or ".join(each.description.as_yaml().strip() for each in fits) + "?"
    else:
        nearest = max(tried, key=lambda each: each.taken)
        nothing = "no pictures there" if any(folder.iterdir()) else "an empty directory"
        why = nearest.complaint or "" if data else nothing
    refuse(
        folder,
        f"{LAYOUTS[conditional]}; {why}. A data.yaml there says anything else, such as frames: "
        '"ct/{case}/*.png", answers: "seg/{person}/{case}.png", ignore: "preview/*"',
    )


def _from_folder(folder: Path, said: Description, conditional: bool, unlabelled: bool) -> Cases:
    """The cases in a folder. Raises SettingError."""
    order = {name: [natural(part) for part in name.split("/")] for name in tree(folder)}
    names = sorted(order, key=lambda name: (order[name], name))
    skipped = compiled(f"({'|'.join(said.ignore)})")
    ignored = [
        name for name in names if _suffix(name) in TEXTS or said.ignore and skipped.fullmatch(name)
    ]
    known = {*ignored}
    data = [name for name in names if name not in known]
    places: dict[str, str] = {}
    for name in data:
        if _suffix(name) not in (*PICTURES, *VIDEOS):
            refuse(folder / name, f"{READ}, or `ignore` in a data.yaml")
        place = str([*order[name][:-1], natural(os.path.splitext(name)[0].rpartition("/")[2])])
        if place in places:
            refuse(folder / name, f"other names than {places[place]}, which is there too")
        places[place] = name
    if said.frames is None:
        files = _known_layout(folder, data, conditional, unlabelled)
    else:
        files = _arranged(data, said, known=False)
        if files.complaint:
            refuse(folder, f"files that are {said.frames} or {said.answers}; {files.complaint}")
    cases = Cases(np.empty(0), [], files.description.over(said))
    if ignored:
        cases.notices.append(f"{folder}: not read: {_some(ignored)}")
    if unlabelled:
        files.answers = {}
    _read(files, cases, folder, known=said.frames is None)
    return cases


def _read(files: _Arrangement, cases: Cases, folder: Path, known: bool) -> None:
    """Read the pictures of sequences and answers into `cases`. Raises SettingError.

    Pages of a TIFF are frames only if the user says where these lie, not if a layout is `known`.
    """
    said = cases.description
    frames, answers = (
        Stack(sum(map(len, each.values()))) for each in (files.frames, files.answers)
    )
    for sequence, names in files.frames.items():
        before = len(frames.types)
        for name in names:
            pictures = read_file(folder / name)
            if len(pictures) > 1 and (len(names) > 1 or known and not _is_video(name)):
                refuse(folder / name, f"one picture a file; it holds {len(pictures)}")
            for picture in pictures:
                frames.add(picture, folder / name)
        values = dict(zip(files.fields, sequence))
        cases.lengths.append(len(frames.types) - before)
        cases.names.append("/".join(sequence))
        if "class" in values:
            cases.classes.append(values["class"])
        if said.split or "split" in values:
            split = filled(said.split or "{split}", values)
            cases.splits.append(SPLIT_NAMES.get(split.lower(), split))
        # Without a group, each is its own.
        group = said.groups or "{group}" * ("group" in values)
        cases.groups.append(filled(group, values) if group else cases.names[-1])
        of_sequence = files.answers.get(sequence, [])
        for name in of_sequence:
            pictures = read_file(folder / name)
            if len(pictures) > 1:
                refuse(folder / name, f"one answer a file; it holds {len(pictures)}")
            answers.add(pictures[0], folder / name)
            cases.lossy |= _suffix(name) in LOSSY
        cases.counts += [len(of_sequence)] * bool(of_sequence)
    cases.frames, cases.frame_types = frames.pixels(), frames.types
    if answers.types:
        cases.answers, cases.answer_types = answers.pixels(), answers.types


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _is_video(name: str) -> bool:
    return _suffix(name) in VIDEOS


def _some(names: Iterable[str]) -> str:
    """The first of some names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


# ---------------------------------------------------------------- arrays


def read_npz(path: Path, key: str) -> dict[str, np.ndarray]:
    """The arrays of an .npz file; nothing is unpickled.

    Raises SettingError, which names the setting `key` and the file, for a file that is damaged or
    no .npz.
    """
    name = ""
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("it is no .npz archive")
        arrays = {}
        with np.load(path, allow_pickle=False) as file:
            for name in file.files:
                arrays[name] = file[name]
                if not isinstance(arrays[name], np.ndarray):
                    raise ValueError("it is no array")
        return arrays
    except DAMAGED as error:
        of = f"; {name}" * bool(name)
        reject(key, str(path), f"an .npz that can be read ({short(error)}{of})")


class _Arrays:
    """The arrays of a file, each of which is used, ignored or an error.

    Arguments:
        path: an .npz or .npy file
        said: by the user
    """

    def __init__(self, path: Path, said: Description):
        self.path = path
        self.said = said
        self.used: set[str] = set()
        if path.suffix.lower() == ".npy":
            self.arrays = {said.frames or "frames": self._read_npy()}
        elif path.suffix.lower() == ".npz":
            self.arrays = read_npz(path, "frames")
        else:
            refuse(path, f"{READ}, pictures in a directory; np.savez writes an .npz")

    def _read_npy(self) -> np.ndarray:
        """The array, mapped from the file; nothing is unpickled. Raises SettingError."""
        try:
            with open(self.path, "rb") as file:
                if file.read(6) != b"\x93NUMPY":
                    raise ValueError("it is no .npy file")
            # Copy on write: the file stays as it is.
            return np.load(self.path, allow_pickle=False, mmap_mode="c")
        except DAMAGED as error:
            refuse(self.path, f"an .npy that can be read ({short(error)})")

    def pictures(self, name: str, shape: str) -> np.ndarray | None:
        """An array of pictures with H, W or H, W, 3 last; None if there is none.

        One channel is dropped, wherever it is. Raises SettingError for arrays that are none.
        """
        array = self.arrays.get(name)
        if array is None:
            return None
        self.used.add(name)
        if array.dtype.kind not in "buif":
            refuse(self.path, f"integers or floats in `{name}`; found values of type {array.dtype}")
        array = array.astype(array.dtype.newbyteorder("="), copy=False)
        if array.ndim < 3 or array.ndim > 5 or array.size == 0:
            refuse(self.path, f"`{name}` of shape {shape}; it has shape {array.shape}")
        if array.ndim >= 4 and array.shape[-1] == 1:
            return array[..., 0]
        if array.ndim == 5 and array.shape[2] in (1, 3):  # channels first
            return array[:, :, 0] if array.shape[2] == 1 else np.moveaxis(array, 2, -1)
        if array.ndim == 5 and array.shape[-1] != 3:
            refuse(
                self.path,
                f"`{name}` {shape}, or with an axis of 3 colours; it has shape {array.shape}",
            )
        return array

    def frames(self, shape: str) -> np.ndarray:
        """The array of frames. Raises SettingError if there is none."""
        frames = self.pictures(self.said.frames or "frames", shape)
        if frames is None:
            shapes = ", ".join(f"`{k}` {v.shape}" for k, v in self.arrays.items()) or "none"
            refuse(self.path, f"an array `frames` {shape}; the arrays found are {shapes}")
        return frames

    def texts(self, name: str, number: int) -> list[str]:
        """A text for each sequence, from an array (N,); empty if there is none.

        Raises SettingError.
        """
        array = self.arrays.get(name)
        if array is None:
            return []
        self.used.add(name)
        if array.shape != (number,) or array.dtype.kind not in "buiU":
            refuse(
                self.path,
                f"`{name}` of shape ({number},), whole numbers or texts; it has shape "
                f"{array.shape} and type {array.dtype}",
            )
        return [str(value) for value in array.tolist()]

    def account(self) -> list[str]:
        """Notices of small arrays that are not used. Raises SettingError for unused pictures."""
        unused = sorted(set(self.arrays) - self.used - {*self.said.ignore})
        for name in unused:
            if self.arrays[name].ndim > 2 or name in ("groups", "split"):
                refuse(
                    self.path,
                    f"arrays that are read here; `{name}` {self.arrays[name].shape} is not (--data "
                    f"'answers: {name}' or 'ignore: {name}' says what it is)",
                )
        return [f"{self.path.name}: not used: {_some(unused)}"] if unused else []


def _colours(array: np.ndarray) -> int:
    """1 if the last axis of pictures is that of their colours, else 0."""
    return int(array.shape[-1] == 3 and array.ndim >= 4)


def _sequences(arrays: _Arrays, unlabelled: bool) -> Cases:
    """Sequences in named arrays. Raises SettingError."""
    path, said = arrays.path, arrays.said
    frames = arrays.frames("(N, T, H, W)")
    answers = arrays.pictures(said.answers or "answers", "(N, A, H, W)")
    if said.answers and answers is None:
        refuse(path, f"an array `{said.answers}`")
    order = said.order
    if frames.ndim - _colours(frames) == 3:  # one picture per case
        if answers is None and not unlabelled and len(frames) > 1:
            refuse(
                path,
                f"an array `frames` (N, T, H, W); it has shape {frames.shape}, which may be one "
                "video or N pictures: add an axis, frames[None] or frames[:, None]",
            )
        frames = frames[:, None]
    elif order is None and answers is None and _may_be_time_first(frames):
        reject(
            "data",
            "order: null",
            f"nt or tn (time first) for {path}, whose frames of shape {frames.shape} follow each "
            "other along the first axis as well",
        )
    if order == "tn":
        frames = frames.swapaxes(0, 1)
    number = len(frames)
    description = replace(said, order=order or "nt", frames=said.frames or "frames")
    cases = Cases(_joined(frames), [frames.shape[1]] * number, description)
    cases.names = [str(i) for i in range(number)]
    if answers is not None:
        if (
            _colours(answers)
            and answers.ndim == 4
            and said.answers_are not in ("colours", "classes")
        ):
            reject(
                "data",
                "answers_are: null",
                f"colours or classes for `answers` {answers.shape} in {path}, if the last axis is "
                "that of colours; several answers are (N, A, H, W)",
            )
        if answers.ndim - _colours(answers) == 3:
            answers = answers[:, None]
        if len(answers) != number:
            refuse(path, f"`answers` of N = {number} sequences; it has shape {answers.shape}")
        if not unlabelled:
            cases.answers, cases.counts = _joined(answers), [answers.shape[1]] * number
            cases.answer_types = [answers.dtype]
            cases.description = replace(description, answers=said.answers or "answers")
    cases.frame_types = [frames.dtype]
    cases.groups = arrays.texts(said.groups or "groups", number)
    cases.splits = arrays.texts(said.split or "split", number)
    cases.notices += arrays.account()
    return cases


def _pictures(arrays: _Arrays, unlabelled: bool) -> Cases:
    """Pictures without a condition in named arrays. Raises SettingError."""
    path, said = arrays.path, arrays.said
    frames = arrays.frames("(N, H, W)")
    if frames.ndim == 4 and frames.shape[1] == 3 and not _colours(frames):
        frames = np.moveaxis(frames, 1, -1)
    elif frames.ndim - _colours(frames) == 4 and frames.shape[1] == 1:
        frames = frames[:, 0]
    if frames.ndim - _colours(frames) != 3:
        refuse(
            path,
            "`frames` (N, H, W), or with an axis of 3 colours, for pictures without a condition; "
            f"it has shape {frames.shape}",
        )
    names = [name for name in ("labels", "classes") if name in arrays.arrays]
    if len(names) == 2:
        refuse(path, "`labels` or `classes` of pictures; found both")
    description = replace(said, frames=said.frames or "frames")
    cases = Cases(
        frames, [1] * len(frames), description, names=[str(i) for i in range(len(frames))]
    )
    cases.frame_types = [frames.dtype]
    if names:
        cases.classes = arrays.texts(names[0], len(frames))
    cases.splits = arrays.texts(said.split or "split", len(frames))
    cases.notices += arrays.account()
    return cases


def _joined(array: np.ndarray) -> np.ndarray:
    """(N, T, ...) -> (N T, ...), without a copy if none is needed."""
    return array.reshape(-1, *array.shape[2:])


def _may_be_time_first(frames: np.ndarray) -> bool:
    """Whether pictures (a, b, H, W) that follow each other along the first axis are as alike as
    along the second, or more."""
    if min(frames.shape[:2]) < 2:
        return False
    start = frames[:20, :20].astype(np.float32)
    first, second = (np.abs(np.diff(start, axis=axis)).mean() for axis in (0, 1))
    longer = frames.shape[1] > 5 * frames.shape[0]
    return bool(first < (1.25 if longer else 0.8) * second)
