"""Where a user's frames and answers lie: files and folders as people have them, as `Cases`.

    DATA.npz                        arrays frames (N, T, H, W) or (N, H, W), colour in a last or
                                    third axis of 3; answers (N, A, H, W) or (N, H, W), groups (N,)
                                    and split (N,) where there are any
    DATA.npy                        frames alone, also with time first (mnist_test_seq.npy)
    DATA/SEQUENCE/*.png             a folder per sequence, in natural order: frame 2 before frame 10
    DATA/SEQUENCE/answers/*.png     its answers, one or more; `masks` or `labels` do as well
    DATA/GROUP/SEQUENCE/*.png       sequences of one patient or video, which stay together
    DATA/*.gif, *.mp4               a file per sequence, also TIFFs of several pages
    DATA/images/*.png, DATA/masks/  a picture per case; its answer has the same name, and answers of
                                    several people lie in masks/NAME/ or in folders masks_1, masks_2
    DATA/train/, DATA/test/         each laid out in one of these ways: the split is given

Pictures without a condition (`read_pictures`), of which each is a sample of its own:

    DATA/CLASS/*.png                a folder per class
    DATA/*.png                      without classes
    DATA/train/, DATA/test/         each laid out in one of these ways
    DATA.npz, DATA.npy              arrays frames (N, H, W), or (N, H, W, 3) or (N, 3, H, W) in
                                    colour; labels or classes (N,) and split (N,) if there are any

Pictures are PNG, JPEG, TIFF, BMP or WebP (`decoders.py`). Hidden files and those of systems are
skipped. What is not understood is an error, or a notice, that names it.
"""

from __future__ import annotations

import os
import tokenize
import zipfile
import zlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from diverse_sampling.errors import reject
from worlds.decoders import (
    LOSSY,
    PICTURES,
    VIDEOS,
    Stack,
    files_in,
    folders_in,
    is_hidden,
    is_stack,
    read_picture,
    read_video,
    refuse,
)

ANSWERS = ("answers", "masks", "labels")  # folders of answers, whatever their case
IMAGES = ("images", "frames", "pictures")  # folders of one picture per case
SPLITS = ("train", "validation", "test")
SPLIT_NAMES = dict(train="train", training="train", val="validation", valid="validation")
SPLIT_NAMES |= dict(validation="validation", test="test", testing="test")
ACCEPTED = (
    "an .npz or .npy file, or a directory with a subdirectory of pictures per sequence, with "
    "videos, or with images/ and masks/"
)
ACCEPTED_PICTURES = (
    "an .npz or .npy file, or a directory with a subdirectory of pictures per class or with "
    "pictures alone, for pictures without a condition"
)
# What decoders of arrays raise for damaged files and for sizes that no memory holds.
DAMAGED = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    AttributeError,
    KeyError,
    NotImplementedError,
    RuntimeError,
    SyntaxError,
    tokenize.TokenError,
    MemoryError,
    zipfile.BadZipFile,
    zlib.error,
)


@dataclass
class Cases:
    """N sequences and their answers, as they lie in files.

    Arguments:
        frames: (F, H, W) or (F, H, W, 3), all sequences one after the other
        lengths: frames of each sequence
        answers: (A, H, W) or (A, H, W, 3), those of all sequences one after the other, or None
        counts: answers of each sequence; empty without answers
        names: of the sequences
        groups: the group of each sequence, which no split divides; empty: each is its own
        classes: the class of each picture without a condition; empty where there are none
        splits: train, validation or test for each sequence; empty where the files do not say
        notices: what was not used, a sentence each
        lossy: whether an answer was compressed in a way that changes its values
    """

    frames: np.ndarray
    lengths: list[int]
    answers: np.ndarray | None = None
    counts: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    splits: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    lossy: bool = False


def find(name: str) -> Path:
    """The absolute path of a user's frames.

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
    reject("frames", name, f"{ACCEPTED}; not found: {paths}")


def read_cases(path: Path, axes: str | None = None) -> Cases:
    """The cases in a file or folder.

    Arguments:
        path: absolute
        axes: order of the first axes of an array, "nt" or "tn" with time first; None: recognised

    Raises SettingError for what the head of this module does not describe.
    """
    if path.is_dir():
        return _Folder(path).cases()
    return _from_arrays(_read_arrays(path, ACCEPTED), path, axes)


def read_pictures(path: Path) -> Cases:
    """The pictures in a file or folder, each a case of one frame, and their classes.

    `path` is absolute. Raises SettingError for what the head of this module does not describe.
    """
    if path.is_dir():
        return _ClassFolders(path).cases()
    return _pictures_from_arrays(_read_arrays(path, ACCEPTED_PICTURES), path)


def _read_arrays(path: Path, accepted: str) -> dict[str, np.ndarray]:
    """The named arrays of a file. Raises SettingError for one that is no file of arrays."""
    if path.suffix.lower() == ".npy":
        return dict(frames=_read_npy(path))
    if path.suffix.lower() == ".npz":
        return read_npz(path, "frames")
    refuse(path, accepted + _what_it_is(path))


def _what_it_is(path: Path) -> str:
    """What a user can do with a file that is not read, to be added to an error."""
    suffix = path.suffix.lower()
    if suffix in (*PICTURES, *VIDEOS):
        return f"; put the {suffix} files into a directory and name that"
    if suffix in (".h5", ".hdf5", ".pt", ".pkl", ".mat", ".zip"):
        return f"; {suffix} files are not read, np.savez writes an .npz"
    return ""


# ---------------------------------------------------------------- arrays


def read_npz(path: Path, key: str) -> dict[str, np.ndarray]:
    """The arrays of an .npz file; nothing is unpickled.

    Raises SettingError, which names the setting `key` and the file, for a file that is damaged or
    no .npz.
    """
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("it is no .npz archive")
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except DAMAGED as error:
        reject(key, str(path), f"an .npz that can be read ({_short(error)})")


def _read_npy(path: Path) -> np.ndarray:
    """The array in an .npy file, mapped from it; nothing is unpickled. Raises SettingError."""
    try:
        with open(path, "rb") as file:
            if file.read(6) != b"\x93NUMPY":
                raise ValueError("it is no .npy file")
        # Copy on write: the file stays as it is.
        return np.load(path, allow_pickle=False, mmap_mode="c")
    except DAMAGED as error:
        refuse(path, f"an .npy that can be read ({_short(error)})")


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text.replace("allow_pickle=False", "nothing is unpickled")[:200]


def _from_arrays(arrays: dict[str, np.ndarray], path: Path, axes: str | None) -> Cases:
    """Cases in named arrays. Raises SettingError."""
    notices = []
    frames = _frames_of(arrays, "(N, T, H, W)", path)
    answers = arrays.get("answers")
    if frames.ndim - _colours(frames) == 3:  # one picture per case
        if answers is None and len(frames) > 1 and axes is None and not _looks_unordered(frames):
            refuse(
                path,
                f"an array `frames` (N, T, H, W); it has shape {frames.shape}, which may be one "
                "video or N pictures: add an axis, frames[None] or frames[:, None]",
            )
        frames = frames[:, None]
    elif axes == "tn" or (axes is None and answers is None and _time_is_first(frames, path)):
        if axes is None:
            notices.append(
                f"{path.name} has shape {frames.shape}: time comes first there (frames that follow "
                "each other differ less along that axis); --frame_axes nt says otherwise"
            )
        frames = frames.swapaxes(0, 1)
    lengths = [frames.shape[1]] * len(frames)
    cases = Cases(_joined(frames), lengths, notices=notices)
    cases.names = [str(i) for i in range(len(lengths))]
    if answers is not None:
        answers = _pictures_last(answers, "answers", path)
        if answers.ndim - _colours(answers) == 3:
            answers = answers[:, None]
        if len(answers) != len(lengths):
            refuse(path, f"`answers` of N = {len(lengths)} sequences; it has shape {answers.shape}")
        cases.answers = _joined(answers)
        cases.counts = [answers.shape[1]] * len(answers)
    cases.groups = _per_case(arrays, "groups", cases, path)
    _read_split(arrays, {"frames", "answers", "groups"}, cases, path)
    return cases


def _pictures_from_arrays(arrays: dict[str, np.ndarray], path: Path) -> Cases:
    """Pictures without a condition in named arrays. Raises SettingError."""
    frames = _frames_of(arrays, "(N, H, W)", path)
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
    for name in ("answers", "groups"):
        if name in arrays:
            refuse(
                path,
                f"no array `{name}` with num_cond_frames 0, for pictures without a condition, only "
                "`labels` and `split`",
            )
    cases = Cases(frames, [1] * len(frames), names=[str(i) for i in range(len(frames))])
    names = [name for name in ("labels", "classes") if name in arrays]
    if len(names) == 2:
        refuse(path, "`labels` or `classes` of pictures; found both")
    if names:
        if arrays[names[0]].dtype.kind not in "buiU":
            refuse(
                path,
                f"whole numbers or texts in `{names[0]}`; found values of type "
                f"{arrays[names[0]].dtype}",
            )
        cases.classes = _per_case(arrays, names[0], cases, path)
        if len(set(cases.classes)) == 1:
            refuse(path, f"two classes or more in `{names[0]}`, or no such array")
    _read_split(arrays, {"frames", *names}, cases, path)
    return cases


def _frames_of(arrays: dict[str, np.ndarray], shape: str, path: Path) -> np.ndarray:
    """The array `frames`, with H, W or H, W, 3 last. Raises SettingError where there is none."""
    if "frames" not in arrays:
        shapes = ", ".join(f"`{name}` {value.shape}" for name, value in arrays.items()) or "none"
        refuse(path, f"an .npz with an array `frames` {shape}; the arrays found are {shapes}")
    return _pictures_last(arrays["frames"], "frames", path)


def _read_split(arrays: dict[str, np.ndarray], used: set[str], cases: Cases, path: Path) -> None:
    """Read the array `split`, if there is one, and note the arrays that are neither it nor used."""
    cases.splits = _per_case(arrays, "split", cases, path)
    unknown = sorted(set(cases.splits) - set(SPLITS))
    if unknown:
        refuse(path, f"`split` of {', '.join(SPLITS)}; found {', '.join(unknown[:3])}")
    unused = sorted(set(arrays) - used - {"split"})
    if unused:
        cases.notices.append(f"{path.name}: the arrays {', '.join(unused)} are not used")


def _per_case(arrays: dict[str, np.ndarray], name: str, cases: Cases, path: Path) -> list[str]:
    """A text for each sequence, from an array (N,); empty where there is none."""
    array = arrays.get(name)
    if array is None:
        return []
    if array.shape != (len(cases.lengths),):
        refuse(path, f"`{name}` of shape ({len(cases.lengths)},); it has shape {array.shape}")
    return [str(value) for value in array.tolist()]


def _colours(array: np.ndarray) -> int:
    """1 where the last axis of pictures is that of their colours, else 0."""
    return int(array.shape[-1] == 3 and array.ndim >= 4)


def _pictures_last(array: np.ndarray, name: str, path: Path) -> np.ndarray:
    """An array of pictures with H, W or H, W, 3 last; one channel is dropped, wherever it is.

    Raises SettingError for arrays that are none.
    """
    if array.dtype.kind not in "buif":
        refuse(path, f"integers or floats in `{name}`; found values of type {array.dtype}")
    if array.ndim < 3 or array.ndim > 5 or array.size == 0:
        refuse(path, f"`{name}` of shape (N, ., H, W), N sequences; it has shape {array.shape}")
    if array.ndim >= 4 and array.shape[-1] == 1:
        return array[..., 0]
    if array.ndim == 5 and array.shape[2] in (1, 3):  # channels first
        return array[:, :, 0] if array.shape[2] == 1 else np.moveaxis(array, 2, -1)
    if array.ndim == 4 and array.shape[1] == 3 and array.shape[-1] not in (1, 3):
        return array  # three grey frames; colour has a fifth axis
    if array.ndim == 5 and array.shape[-1] != 3:
        refuse(
            path,
            f"`{name}` (N, T, H, W), or with an axis of 3 colours last; it has shape {array.shape}",
        )
    return array


def _joined(array: np.ndarray) -> np.ndarray:
    """(N, T, ...) -> (N T, ...), without a copy where none is needed."""
    return array.reshape(-1, *array.shape[2:])


def _steps(array: np.ndarray) -> tuple[float, float]:
    """Mean difference between neighbours along the first and along the second axis."""
    start = array[:20, :20].astype(np.float32)
    along = [float(np.abs(np.diff(start, axis=axis)).mean()) for axis in (0, 1)]
    return along[0], along[1]


def _looks_unordered(frames: np.ndarray) -> bool:
    """Whether pictures (n, H, W) that follow each other differ as much as any two of them."""
    some = frames[:40].astype(np.float32)
    near = np.abs(some[1:] - some[:-1]).mean()
    far = np.abs(some - some[::-1]).mean()
    return bool(near > 0.8 * far)


def _time_is_first(frames: np.ndarray, path: Path) -> bool:
    """Whether the first axis of (a, b, H, W) is time. Raises SettingError where it may be."""
    if min(frames.shape[:2]) < 2 or frames.shape[0] >= frames.shape[1]:
        return False
    first, second = _steps(frames)
    if first < 0.8 * second:
        return True
    if first < 1.25 * second and frames.shape[1] > 5 * frames.shape[0]:
        reject(
            "frame_axes",
            None,
            f"nt or tn (time first) for {path}, whose shape {frames.shape} may be either",
        )
    return False


# ---------------------------------------------------------------- folders


class _Folder:
    """Reads one directory of a user's frames, picture by picture.

    Arguments:
        path: the directory
    """

    accepted = ACCEPTED

    def __init__(self, path: Path):
        self.path = path
        self.frames = Stack()
        self.answers = Stack()
        self.cases_read = Cases(np.empty(0), [])

    def cases(self) -> Cases:
        """All cases. Raises SettingError."""
        parts = {SPLIT_NAMES.get(p.name.lower()): p for p in folders_in(self.path)}
        parts.pop(None, None)
        if "train" in parts or "test" in parts:
            for split in SPLITS:
                if split in parts:
                    before = len(self.cases_read.lengths)
                    self._read(parts[split])
                    added = len(self.cases_read.lengths) - before
                    self.cases_read.splits += [split] * added
            self._note_others(self.path, [p.name for p in parts.values()])
        else:
            self._read(self.path)
        cases = self.cases_read
        if self.frames.pixels is None:
            refuse(self.path, f"{self.accepted}; found {_listing(self.path)}")
        cases.frames = self.frames.pixels
        cases.answers = self.answers.pixels
        if cases.answers is not None and 0 in cases.counts:
            bare = cases.names[cases.counts.index(0)]
            refuse(
                self.path,
                f"answers to every sequence, or to none; {cases.counts.count(0)} of "
                f"{len(cases.counts)} have none, such as {bare}",
            )
        if cases.answers is None:
            cases.counts = []
        if len(set(cases.groups)) == len(cases.groups):
            cases.groups = []
        return cases

    def _read(self, folder: Path) -> None:
        """Add what one folder holds, in whichever layout it has."""
        subfolders = folders_in(folder)
        by_name = {p.name.lower(): p for p in subfolders}
        images = next((by_name[name] for name in IMAGES if name in by_name), None)
        if images is not None and files_in(images, PICTURES):
            self._read_pairs(folder, images)
            return
        pictures = files_in(folder, PICTURES)
        stacks = [p for p in pictures if is_stack(p)]
        videos = [*files_in(folder, VIDEOS), *stacks]
        sequences = [p for p in subfolders if files_in(p, PICTURES)]
        groups = [p for p in subfolders if p not in sequences and self._holds_sequences(p)]
        for video in videos:
            self._add_case(folder, video.stem, list(read_video(video)), video, [], "")
        for sequence in sequences:
            self._read_sequence(sequence, group="")
        for group in groups:
            for sequence in folders_in(group):
                if files_in(sequence, PICTURES):
                    self._read_sequence(sequence, group=group.name)
        if pictures and not (videos or sequences or groups):
            for picture in pictures:  # each a case of its own, without an answer
                self._add_case(folder, picture.stem, [read_picture(picture)], picture, [], "")
            return
        used = [p.name for p in (*videos, *sequences, *groups)]
        self._note_others(folder, used)

    def _holds_sequences(self, folder: Path) -> bool:
        return any(files_in(p, PICTURES) for p in folders_in(folder))

    def _read_sequence(self, folder: Path, group: str) -> None:
        """A folder of pictures, with its answers in a subfolder."""
        answers = []
        for sub in folders_in(folder):
            if sub.name.lower() not in ANSWERS:
                if files_in(sub, PICTURES):
                    refuse(sub, f"{', '.join(ANSWERS)} as the name of a folder of answers")
                self.cases_read.notices.append(f"{sub} is not used")
                continue
            self._note_others(sub, [p.name for p in files_in(sub, PICTURES)])
            answers += files_in(sub, PICTURES)
        files = files_in(folder, PICTURES)
        self._note_others(folder, [p.name for p in (*files, *folders_in(folder))])
        name = f"{group}/{folder.name}" if group else folder.name
        self._add_case(folder, name, [read_picture(p) for p in files], folder, answers, group)

    def _read_pairs(self, folder: Path, images: Path) -> None:
        """Folders images/ and masks/: a picture per case, its answers by the same name."""
        answers = [p for p in folders_in(folder) if p.name.lower().startswith(ANSWERS)]
        self._note_others(folder, [images.name, *(p.name for p in answers)])
        by_name: dict[str, list[Path]] = {}
        for place in answers:
            for file in files_in(place, PICTURES):
                by_name.setdefault(file.stem, []).append(file)
            for sub in folders_in(place):
                by_name.setdefault(sub.name, []).extend(files_in(sub, PICTURES))
        for file in files_in(images, PICTURES):
            masks = by_name.pop(file.stem, [])
            if answers and not masks:
                refuse(file, f"a picture with an answer {file.stem} in {answers[0]}")
            self._add_case(images, file.stem, [read_picture(file)], file, masks, "")
        if by_name:
            left = [file for files in by_name.values() for file in files]
            refuse(left[0] if left else folder, f"answers to pictures in {images}")

    def _add_case(
        self,
        folder: Path,
        name: str,
        frames: list[np.ndarray],
        source: Path,
        answers: list[Path],
        group: str,
    ) -> None:
        for frame in frames:
            self.frames.add(frame, source)
        for file in answers:
            self.answers.add(read_picture(file, labels=True), file)
        cases = self.cases_read
        cases.lossy |= any(file.suffix.lower() in LOSSY for file in answers)
        cases.lengths.append(len(frames))
        cases.counts.append(len(answers))
        cases.names.append(name)
        cases.groups.append(group or f"{folder}/{name}")

    def _note_others(self, folder: Path, used: list[str]) -> None:
        """Note the visible entries of a folder that are not used."""
        others = [p for p in folder.iterdir() if p.name not in used and not is_hidden(p)]
        if others:
            self.cases_read.notices.append(f"{folder}: not used: {_names(others)}")


class _ClassFolders(_Folder):
    """Reads one directory of pictures without a condition: a folder for each class, or none."""

    accepted = ACCEPTED_PICTURES

    def _read(self, folder: Path) -> None:
        """Add the pictures of one folder, each a case of its own."""
        pictures = files_in(folder, PICTURES)
        classes = [p for p in folders_in(folder) if files_in(p, PICTURES)]
        for below in folders_in(folder):
            for deeper in folders_in(below):
                if files_in(deeper, PICTURES):
                    refuse(deeper, f"pictures in {below} itself; {self.accepted}")
        names = [p.name.lower() for p in classes]
        if set(names) & set(IMAGES) and any(name.startswith(ANSWERS) for name in names):
            refuse(folder, f"a directory per class; {_names(classes)} hold pictures and answers")
        read = self.cases_read
        without_class = pictures or len(read.lengths) > len(read.classes)
        if without_class and (classes or read.classes):
            refuse(folder, "all pictures in directories of their classes, or none")
        if len(classes) == 1:
            refuse(folder, f"two classes or more, or the pictures alone, {classes[0]}")
        self._note_others(folder, [p.name for p in (*pictures, *classes)])
        for each in classes:
            files = files_in(each, PICTURES)
            self._note_others(each, [p.name for p in files])
            for file in files:
                self._add_picture(file, f"{each.name}/{file.name}")
            read.classes += [each.name] * len(files)
        for file in pictures:
            self._add_picture(file, file.name)

    def _add_picture(self, file: Path, name: str) -> None:
        self._add_case(file.parent, name, [read_picture(file)], file, [], "")


def _listing(folder: Path) -> str:
    """What is in a folder, in words."""
    entries = [p for p in folder.iterdir() if not is_hidden(p)]
    if not entries:
        return "an empty directory"
    kinds = Counter(p.suffix.lower() or "no extension" for p in entries if p.is_file())
    parts = [f"{count} files ({kind})" for kind, count in kinds.most_common(3)]
    below = [p.name for p in entries if p.is_dir()]
    if below:
        parts.append("directories without pictures: " + _names([Path(name) for name in below]))
    return ", ".join(parts)


def _names(paths: list[Path]) -> str:
    """The first names of some paths, and how many more there are."""
    names = sorted(p.name for p in paths)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
