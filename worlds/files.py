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
    DATA.npy                     frames alone; `order` says which axis is time

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
COLOURED = ("colours", "classes")  # kinds of answers that may have an axis of colours
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
    read = _from_folder if path.is_dir() else _from_arrays
    cases = read(path, said, conditional, unlabelled)
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


def _read_npy(path: Path) -> np.ndarray:
    """The array in an .npy file, mapped from it; nothing is unpickled. Raises SettingError."""
    try:
        with open(path, "rb") as file:
            if file.read(6) != b"\x93NUMPY":
                raise ValueError("it is no .npy file")
        # Copy on write: the file stays as it is.
        return np.load(path, allow_pickle=False, mmap_mode="c")
    except DAMAGED as error:
        refuse(path, f"an .npy that can be read ({short(error)})")


def _from_arrays(path: Path, said: Description, conditional: bool, unlabelled: bool) -> Cases:
    """The cases in named arrays. Raises SettingError."""
    name, wanted = said.frames or "frames", "(N, T, H, W)" if conditional else "(N, H, W)"
    if path.suffix.lower() == ".npy":
        arrays = {name: _read_npy(path)}
    elif path.suffix.lower() == ".npz":
        arrays = read_npz(path, "frames")
    else:
        refuse(path, f"{READ}, pictures in a directory; np.savez writes an .npz")
    shapes = ", ".join(f"`{name}` {array.shape}" for name, array in arrays.items()) or "none"
    frames = _pictures(arrays.pop(name, None), name, wanted, path)
    if frames is None:
        refuse(path, f"an array `{name}` {wanted}; the arrays found are {shapes}")
    name = said.answers or "answers"
    answers = _pictures(arrays.pop(name, None), name, "(N, A, H, W)", path) if conditional else None
    if said.answers and answers is None:
        refuse(path, f"an array `{name}`; the arrays found are {shapes}")
    if conditional:
        frames, order = _sequences(frames, said.order, answers is None and not unlabelled, path)
    else:
        frames, order = _single(frames, path), None
    number, length = frames.shape[:2]
    said = replace(said, frames=said.frames or "frames", order=order)
    cases = Cases(_joined(frames), [length] * number, said, frame_types=[frames.dtype])
    cases.names = [str(i) for i in range(number)]
    if answers is not None and not unlabelled:
        if answers.ndim == 4 and _colours(answers) and said.answers_are not in COLOURED:
            reject(
                "data",
                "answers_are: null",
                f"colours or classes for `{name}` {answers.shape} in {path}, if the last axis is "
                "that of colours; several answers are (N, A, H, W)",
            )
        if answers.ndim - _colours(answers) == 3:
            answers = answers[:, None]
        if len(answers) != number:
            refuse(path, f"`{name}` of N = {number} sequences; it has shape {answers.shape}")
        cases.answers, cases.counts = _joined(answers), [answers.shape[1]] * number
        cases.answer_types = [answers.dtype]
        cases.description = replace(said, answers=name)

    def texts(name: str) -> list[str]:
        return _texts(arrays.pop(name, None), name, number, path)

    cases.splits = texts(said.split or "split")
    if conditional:
        cases.groups = texts(said.groups or "groups")
    elif "labels" in arrays and "classes" in arrays:
        refuse(path, "`labels` or `classes` of pictures; found both")
    else:
        cases.classes = texts("labels") or texts("classes")
    unused = [name for name in arrays if name not in said.ignore]
    for name in unused:
        if arrays[name].ndim > 2 or name == "groups":
            refuse(
                path,
                f"arrays that are read here; `{name}` {arrays[name].shape} is not (--data "
                f"'answers: {name}' or 'ignore: {name}' says what it is)",
            )
    if unused:
        cases.notices.append(f"{path.name}: not read: {_some(unused)}")
    return cases


def _pictures(array: np.ndarray | None, name: str, shape: str, path: Path) -> np.ndarray | None:
    """An array of pictures with H, W or H, W, 3 last; one channel is dropped, wherever it is.

    Raises SettingError for arrays that are none.
    """
    if array is None:
        return None
    if array.dtype.kind not in "buif":
        refuse(path, f"integers or floats in `{name}`; found values of type {array.dtype}")
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if array.ndim == 5 and array.shape[2] in (1, 3) and array.shape[-1] not in (1, 3):
        array = np.moveaxis(array, 2, -1)  # channels first
    if array.ndim >= 4 and array.shape[-1] == 1:
        array = array[..., 0]
    if not 3 <= array.ndim - _colours(array) <= 4 or array.size == 0:
        refuse(path, f"`{name}` {shape}, or with an axis of 3 colours; it has shape {array.shape}")
    return array


def _single(frames: np.ndarray, path: Path) -> np.ndarray:
    """Pictures without a condition, as sequences of one (N, 1, H, W) or (N, 1, H, W, 3).

    Raises SettingError.
    """
    if frames.ndim == 4 and frames.shape[1] == 3 and not _colours(frames):
        frames = np.moveaxis(frames, 1, -1)
    if frames.ndim - _colours(frames) == 3:
        frames = frames[:, None]
    if frames.shape[1] != 1:
        refuse(
            path,
            "pictures without a condition (N, H, W), or with an axis of 3 colours; their "
            f"array has shape {frames.shape}",
        )
    return frames


def _sequences(
    frames: np.ndarray, order: str | None, alone: bool, path: Path
) -> tuple[np.ndarray, str]:
    """Frames (N, T, H, W), also in colour, and the order of their axes in the file.

    `alone` is whether there are no answers. Raises SettingError if they may be ordered otherwise.
    """
    if frames.ndim - _colours(frames) == 3:  # one picture per case
        if alone and len(frames) > 1:
            refuse(
                path,
                f"frames (N, T, H, W); their array has shape {frames.shape}, which may be one "
                "video or N pictures: add an axis, frames[None] or frames[:, None]",
            )
        return frames[:, None], "nt"
    if order is None and alone and path.suffix.lower() == ".npy" and 1 not in frames.shape[:2]:
        reject("data", "order: null", f"nt, or tn (time first), for {path} {frames.shape}")
    return frames.swapaxes(0, 1) if order == "tn" else frames, order or "nt"


def _texts(array: np.ndarray | None, name: str, number: int, path: Path) -> list[str]:
    """A text for each sequence, from an array (N,); empty if there is none. Raises SettingError."""
    if array is None:
        return []
    if array.shape != (number,) or array.dtype.kind not in "buiU":
        refuse(
            path,
            f"`{name}` of shape ({number},), whole numbers or texts; it has shape {array.shape}, "
            f"type {array.dtype}",
        )
    return [str(value) for value in array.tolist()]


def _colours(array: np.ndarray) -> int:
    """1 if the last axis of pictures is that of their colours, else 0."""
    return int(array.shape[-1] == 3 and array.ndim >= 4)


def _joined(array: np.ndarray) -> np.ndarray:
    """(N, T, ...) -> (N T, ...), without a copy if none is needed."""
    return array.reshape(-1, *array.shape[2:])
