"""A world from a user's own frames, and which of them are for training.

The splits are those that the files give; else every fifth sequence or group is for testing, and
every tenth of the others for validation; of pictures without a condition, those of each class.
`files.py` says where frames and answers may lie, `levels.py` what their numbers mean, and
`description.py` what a user can say of both.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import torch
from torch import Tensor

from config import WorldSettings
from diverse_sampling.errors import reject
from worlds.channels import as_images, in_colours
from worlds.decoders import refuse
from worlds.description import Description, described, text_of
from worlds.files import SPLITS, Cases, find, natural, read_cases, tree
from worlds.levels import Levels, Numbers, Pictures, answer_levels, grey_levels, parts
from worlds.moving_digits import Sequences, World

TEST_EVERY = 5  # one sequence or group out of this many is in the test split
VALIDATION_EVERY = 10  # one out of this many of the others is in the validation split


# ---------------------------------------------------------------- a data set


@dataclass
class OwnData:
    """All cases of a data set, of all splits, and what was understood of them.

    Arguments:
        cases: where they lie; its arrays are replaced by the pictures below
        frames: of all sequences, one after the other
        answers: of all sequences, one after the other, or None
        splits: train, validation or test for each sequence
        sha256: a hash of all numbers and of how they are divided into sequences
        notices: what a user should know, a sentence each
        path: absolute
        single: whether each picture is a sample of its own, without a condition
        class_names: of these pictures, in natural order; empty without classes
        description: all that was understood, as data.yaml says it
    """

    cases: Cases
    frames: Pictures
    answers: Pictures | None
    splits: list[str]
    sha256: str
    notices: list[str]
    path: Path
    single: bool
    class_names: list[str]
    description: Description

    def describe(self) -> str:
        """What was understood: one line, and the lines of data.yaml."""
        n = len(self.cases.lengths)
        height, width = self.frames.pixels.shape[1:3]
        texts = [
            f"{self.path}: {n:,} {'picture' if self.single else 'sequence'}{'s' * (n != 1)}",
            f"{len(self.frames):,} frames of {height} x {width} px ({self.frames.levels})",
        ]
        if self.single:
            counts = Counter(self.cases.classes)
            named = [f"{name} {counts[name]:,}" for name in self.class_names]
            number = len(named) or "no"
            texts += ["no condition", f"{number} classes{': ' * bool(named)}{', '.join(named)}"]
        elif self.answers is None:
            texts.append("no answers, so the next frame is the answer")
        else:
            many = " to ".join(map(str, sorted({min(self.cases.counts), max(self.cases.counts)})))
            texts.append(f"{many} answer{'s' * (many != '1')} each ({self.answers.levels})")
        if self.cases.groups:
            texts.append(f"{len(set(self.cases.groups)):,} groups")
        each = " of each class" * bool(self.class_names)
        source = "given" if self.cases.splits else f"every {TEST_EVERY}th{each} is for testing"
        numbers = ", ".join(f"{split} {self.splits.count(split):,}" for split in SPLITS)
        texts.append(f"{numbers} ({source})")
        return "\n    ".join(["; ".join(texts), *self.description.as_yaml().splitlines()])

    def record(self) -> dict[str, Any]:
        """What checkpoints and results hold of it."""
        return dict(
            name=self.path.name,
            sha256=self.sha256,
            sequences=len(self.cases.lengths),
            shape=list(self.frames.pixels.shape),
            frames=str(self.frames.levels),
            answers=None if self.answers is None else str(self.answers.levels),
            classes=len(self.answers.levels.values) if self.answers is not None else 0,
            class_names=self.class_names,
        )


def _hash(cases: Cases) -> str:
    """A hash of the numbers, shapes and types of cases, and of their order."""
    sha = hashlib.sha256()
    for array in (cases.frames, cases.answers):
        if array is not None:
            sha.update(f"{array.shape} {array.dtype.newbyteorder('=')}".encode())
            for part in parts(array):
                sha.update(np.ascontiguousarray(part).data)
    sha.update(repr((cases.lengths, cases.counts, cases.groups, cases.splits)).encode())
    if cases.classes:
        sha.update(repr(cases.classes).encode())
    return sha.hexdigest()


def _split(cases: Cases, path: Path) -> list[str]:
    """The split of each sequence; whole groups go to one, and each class to all of them.

    Raises SettingError.
    """
    groups = cases.groups or [str(i) for i in range(len(cases.lengths))]
    splits = cases.splits
    of_class: dict[str, list[str]] = {}  # the groups of each class; without classes all are alike
    for group, name in dict(zip(groups, cases.classes or [""] * len(groups))).items():
        of_class.setdefault(name, []).append(group)
    if splits:
        split_of = dict(zip(groups, splits))
        for group, split in zip(groups, splits):
            if split != split_of[group]:
                both = " and ".join(sorted({split, split_of[group]}))
                refuse(path, f"groups that lie in one split; group {group} is in {both}")
        if "test" not in splits or "train" not in splits:
            refuse(path, f"splits train and test; found {sorted(set(splits))}")
    else:
        split_of = {
            name: "test" if i % TEST_EVERY == TEST_EVERY - 1 else "train"
            for names in of_class.values()
            for i, name in enumerate(names)
        }
    for name, names in of_class.items():
        missing = [split for split in ("train", "test") if split not in map(split_of.get, names)]
        if missing:
            fewest = "" if splits else f", {TEST_EVERY} or more"
            refuse(
                path,
                f"pictures of each class in the splits train and test{fewest}; class {name} has "
                f"{len(names)}, none for {missing[-1]}",
            )
    if "validation" not in split_of.values():
        for names in of_class.values():
            training = [name for name in names if split_of[name] == "train"]
            for name in training[VALIDATION_EVERY - 1 :: VALIDATION_EVERY]:
                split_of[name] = "validation"
    return [split_of[group] for group in groups]


@lru_cache(maxsize=1)  # all splits of one data set
def _understood(
    path: Path, state: frozenset, said_text: str, unlabelled: bool, single: bool
) -> OwnData:
    """The data set at a path; `state` is what `_state_of` says of it. Raises SettingError."""
    said = Description.of(said_text)
    cases = read_cases(path, said, not single, unlabelled)
    notices = cases.notices
    if not unlabelled and len(set(cases.groups) or cases.lengths) < TEST_EVERY and not cases.splits:
        what = "groups" if cases.groups else "pictures" if single else "sequences"
        count = len(set(cases.groups)) if cases.groups else len(cases.lengths)
        hint = " (a subdirectory of pictures is a sequence)"
        of_folder = path.is_dir() and not single
        refuse(path, f"{TEST_EVERY} {what} or more; found {count}{hint * of_folder}")
    if cases.answers is not None and cases.answers.shape[1:3] != cases.frames.shape[1:3]:
        a, b = (" x ".join(map(str, each.shape[1:3])) for each in (cases.answers, cases.frames))
        refuse(path, f"frames and answers of one size; found {a} and {b} px")
    sha256 = _hash(cases)
    if said.channels == "colour" and cases.frames.ndim == 3:
        cases.frames = np.repeat(cases.frames[..., None], 3, -1)
    elif said.channels == "grey" and cases.frames.ndim == 4:
        refuse(
            path, "frames in grey, as data.yaml or the training of the network says; these are not"
        )
    numbers = Numbers(cases.frames, cases.frame_types, "frames", path)
    frames = Pictures(numbers, grey_levels(numbers, said, notices))
    answers = None
    if cases.answers is not None:
        numbers = Numbers(cases.answers, cases.answer_types, "answers", path, cases.lossy)
        answers = Pictures(numbers, answer_levels(numbers, said, notices))
        _note_empty(answers, cases, path, notices)
    elif not unlabelled:
        low, high = numbers.extent()
        if low == high:
            refuse(path, f"frames that differ; every value is {low:g}")
    description = _in_full(cases, said, frames.levels, None if answers is None else answers.levels)
    splits = ["test"] * len(cases.lengths) if unlabelled else _split(cases, path)
    cases.frames = np.empty(0)  # what was not converted in place is freed
    cases.answers = None
    names = sorted(set(cases.classes), key=lambda name: (natural(name), name))
    return OwnData(
        cases, frames, answers, splits, sha256, notices, path, single, names, description
    )


def _in_full(
    cases: Cases, said: Description, frames: Levels, answers: Levels | None
) -> Description:
    """What was understood, as a description by which other data are read alike."""
    by_type = said.range is None and all(each.kind in "bu" for each in cases.frame_types)
    found = replace(
        cases.description,
        range=None if by_type else (float(frames.low), float(frames.high)),
        channels="colour" if frames.colours == 3 else "grey",
    )
    if answers is not None:
        found = replace(found, answers_are=answers.kind)
    if answers is not None and answers.label_classes and said.classes is None:
        found = replace(found, classes={text_of(value): value for value in answers.values})
    return found


def _note_empty(answers: Pictures, cases: Cases, path: Path, notices: list[str]) -> None:
    """Note cases whose answers are all empty, and refuse a data set that has only these."""
    if answers.levels.colours == 3:
        return
    filled = np.concatenate([part.any((1, 2)) for part in parts(answers.pixels.numpy())])
    owner = np.repeat(np.arange(len(cases.counts)), cases.counts)
    has_any = np.bincount(owner, filled, len(cases.counts)) > 0
    empty = int((~has_any).sum())
    if empty == len(has_any):
        refuse(path, "answers that hold something; all answers are empty")
    if empty:
        notices.append(
            f"{empty} of {len(has_any)} cases have only empty answers, which an empty sample "
            "matches with IoU 1"
        )


# ---------------------------------------------------------------- the world


class OwnFrames(World):
    """A world of a user's frames.

    A window is num_cond_frames frames and one answer.

    Arguments:
        data: the data set
        split: "train", "validation" or "test"
        num_cond_frames: c, frames before an answer
        source: how the user named it
        unlabelled: whether nothing follows on the last frames of a sequence
    """

    dataset = "frames"
    source: str

    def __init__(
        self, data: OwnData, split: str, num_cond_frames: int, source: str, unlabelled: bool = False
    ):
        starts: list[int] = []  # of each window, an index into all frames
        names: list[str] = []
        first: list[int] = []  # its first answer, an index into all answers
        end = answers_end = 0
        counts = data.cases.counts or [0] * len(data.cases.lengths)
        for i, (length, count) in enumerate(zip(data.cases.lengths, counts)):
            start, end = end, end + length
            answers_start, answers_end = answers_end, answers_end + count
            if data.splits[i] != split:
                continue
            if data.answers is None and not unlabelled:
                windows = range(start, end - num_cond_frames)
            else:
                windows = range(end - num_cond_frames, end - num_cond_frames + 1)
            starts += windows
            names += [data.cases.names[i]] * len(windows)
            if data.answers is not None:
                first.append(answers_start)
        self.data = data
        self.names = names
        self.starts = torch.tensor(starts, dtype=torch.int64)
        self.num_cond_frames = num_cond_frames
        self.source = source
        self.unlabelled = unlabelled
        self.frames = data.frames
        height, width = self.frames.pixels.shape[1:3]
        self.frame_shape = (height, width)
        self.cond_channels = num_cond_frames * self.frames.levels.channels
        self.drawn_from = data.frames if data.answers is None else data.answers
        self.answer_levels = self.drawn_from.levels
        if data.answers is None:
            self.first_answer = self.starts + num_cond_frames
            self.counts = torch.ones_like(self.starts)
        else:
            of_split = [count for count, each in zip(counts, data.splits) if each == split]
            self.first_answer = torch.tensor(first, dtype=torch.int64)
            self.counts = torch.tensor(of_split, dtype=torch.int64)
        # Known here, so that no draw has to ask a GPU.
        self.most_answers = max(self.counts.tolist(), default=0)
        self.ragged = self.counts.unique().numel() > 1

    def __len__(self) -> int:
        """The number of windows, W."""
        return len(self.starts)

    @property
    def answer_channels(self) -> int:
        """Channels of an answer as the network draws it."""
        return self.answer_levels.channels

    @property
    def label_classes(self) -> int:
        """How many classes the answers are made of; 0 for masks and for grey or colour answers."""
        return self.answer_levels.label_classes

    @property
    def mode_probabilities(self) -> Tensor | None:
        """(A,) float64, the prior of each answer to a window that has the most: all are equal."""
        count = self.most_answers
        return torch.full((count,), 1 / count, dtype=torch.float64)

    def answer_probabilities(self, which: Tensor) -> Tensor:
        """(n, A) float64, the prior of each answer to windows `which` (n,); 0 after the last."""
        counts = self.counts[which][:, None]
        each = torch.arange(self.most_answers, device=counts.device)
        return (each < counts) / counts.double()

    def to(self, device: torch.device | str) -> OwnFrames:
        """Draw on `device` from now on; returns the world itself. Pictures move when they are first
        drawn there, once for all splits."""
        for name in ("starts", "first_answer", "counts"):
            setattr(self, name, getattr(self, name).to(device))
        return self

    def given(self, which: Tensor) -> Tensor:
        """The conditioning frames of windows (n,): (n, c, H, W) grey or (n, c, 3, H, W) colour."""
        rows = self.starts[which][:, None] + torch.arange(self.num_cond_frames, device=which.device)
        return as_images(self.frames[rows])

    def right_answers(self, which: Tensor) -> Tensor:
        """All correct answers to the windows `which` (n,) int64: (n, A, C, H, W) in [0, 1].

        A is the largest number of answers to any window; one with fewer has its last one again.
        """
        each = torch.arange(self.most_answers, device=which.device)
        each = torch.minimum(each[None], self.counts[which][:, None] - 1)
        return self.drawn_from[self.first_answer[which][:, None] + each]

    def windows(
        self, n: int, generator: torch.Generator, *, which: Tensor | None = None
    ) -> Sequences:
        """Draw n windows, each with one of its correct answers.

        `which` (n,) int64 picks the windows; without it they are drawn too. Frames and answers must
        be on the generator's device. Channels of frames follow each other in `Sequences.frames`.
        There are no digits: labels are 0, positions have K = 0.
        """
        device = generator.device
        if which is None:
            which = torch.randint(len(self), (n,), generator=generator, device=device)
        counts = self.counts[which]
        if not self.ragged:
            drawn = torch.randint(self.most_answers, (n,), generator=generator, device=device)
        else:
            uniform = torch.rand(n, generator=generator, device=device)
            drawn = torch.minimum((uniform * counts).long(), counts - 1)
        answer = self.drawn_from[self.first_answer[which] + drawn]  # (n, C, H, W)
        choices = torch.zeros(n, self.num_cond_frames + 1, dtype=torch.bool, device=device)
        choices[:, -1] = counts > 1
        cond = self.given(which)
        if cond.ndim == 5:
            cond = cond.flatten(1, 2)
        return Sequences(
            torch.cat([cond, answer], 1),
            labels=which.new_zeros(n, 1),
            positions=which.new_zeros(*choices.shape, 0, 2),
            choices=choices,
            which=which[:, None],
        )

    def pictures(self, which: Tensor) -> tuple[Tensor, Tensor, list[int]]:
        """Windows (n,) as they are drawn: frames given (n, c, H, W), right answers (n, A, H, W),
        and how many answers each has. Colours and classes have an axis of 3 before H."""
        cond = self.given(which)
        if self.unlabelled:
            return cond, cond[:, :0], [0] * len(which)
        answers = as_images(self.right_answers(which), self.label_classes)
        return cond, in_colours(answers, self.label_classes), self.counts[which].tolist()


class OwnPictures(OwnFrames):
    """A world of a user's pictures without a condition: each is a sample, its class a mode.

    Arguments:
        data: the data set
        split: "train", "validation" or "test"
        source: how the user named it
    """

    def __init__(self, data: OwnData, split: str, source: str):
        super().__init__(data, split, 0, source)
        self.class_names = data.class_names
        index = {name: i for i, name in enumerate(data.class_names)}
        classes = data.cases.classes or [""] * len(data.splits)
        of_split = [index.get(name, 0) for name, each in zip(classes, data.splits) if each == split]
        self.labels = torch.tensor(of_split, dtype=torch.int64)

    def known(self) -> tuple[Tensor, Tensor]:
        """The pictures for training and their classes, as `bank` has them."""
        return OwnPictures(self.data, "train", self.source).bank

    @property
    def bank(self) -> tuple[Tensor, Tensor]:
        """All pictures of the split, (M, H, W) or, in colour, (M, 3, H, W) in [0, 1], and their
        classes (M,) int64, indices of `class_names`; 0 without classes."""
        return as_images(self.frames[self.starts]), self.labels

    @property
    def modes_total(self) -> int | None:
        """The number of classes; None without classes."""
        return len(self.class_names) or None

    @property
    def mode_probabilities(self) -> Tensor | None:
        """(classes,) float64, the share of each class in the split; None without classes."""
        if not self.class_names:
            return None
        counts = torch.bincount(self.labels, minlength=len(self.class_names))
        return counts.double() / len(self)

    def to(self, device: torch.device | str) -> OwnPictures:
        super().to(device)
        self.labels = self.labels.to(device)
        return self

    def windows(
        self, n: int, generator: torch.Generator, *, which: Tensor | None = None
    ) -> Sequences:
        """Draw n pictures, labelled with their classes; `which` (n,) int64 picks them."""
        batch = super().windows(n, generator, which=which)
        return replace(
            batch, labels=self.labels[batch.which], choices=torch.ones_like(batch.choices)
        )


def _state_of(path: Path) -> frozenset[tuple[str, int, int]]:
    """What differs once a file, or anything in a folder, has been changed, added or removed.

    Names, times (ns) and sizes: a time alone is too coarse for what follows at once.
    """
    states = tree(path) if path.is_dir() else {str(path): path.stat()}
    return frozenset((name, state.st_mtime_ns, state.st_size) for name, state in states.items())


@overload
def load_frames(settings: WorldSettings, split: Literal["train", "test"]) -> OwnFrames: ...
@overload
def load_frames(settings: WorldSettings, split: Literal["validation"]) -> OwnFrames | None: ...
def load_frames(settings, split):
    """The world of `split` ("train", "validation" or "test") of the frames at `settings.frames`.

    None for a validation split without a sequence. Raises SettingError for what `files` and
    `levels` do not describe.
    """
    name = settings.frames or ""
    num_cond_frames = settings.num_cond_frames or 0
    path = find(name)
    unlabelled = settings.answers == "none"
    said = described(path, settings.data).as_yaml()
    data = _understood(path, _state_of(path), said, unlabelled, single=num_cond_frames == 0)
    if data.single:
        pictures = OwnPictures(data, split, name)
        return pictures if len(pictures) else None
    # A window without answers takes one more frame, which is its answer.
    needed = num_cond_frames + (data.answers is None and not unlabelled)
    shortest = min(data.cases.lengths)
    if shortest < needed:
        most = num_cond_frames - (needed - shortest)
        case = data.cases.names[data.cases.lengths.index(shortest)]
        reject(
            "num_cond_frames",
            num_cond_frames,
            f"1 to {most}; sequence {case} in {path} has {shortest} frames"
            if most > 0
            else f"sequences of {needed} frames or more; {case} in {path} has {shortest}",
        )
    world = OwnFrames(data, split, num_cond_frames, name, unlabelled)
    if len(world) == 0 and split != "validation":
        refuse(path, f"sequences in the split {split}; it has none")
    return world if len(world) else None
