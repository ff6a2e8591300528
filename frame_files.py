"""A world of one's own: frames from files, and what may come after them.

    DATA.npz             frames (N, T, H, W) and, where there are any, answers (N, A, H, W)
    DATA/*/*.png         or a folder for each sequence, its frames in the order of their names,
    DATA/*/answers/*.png and its answers, as many for each sequence

Without answers the model draws the frame that follows on `num_cond_frames` others. With them it draws one of the
answers to the last of a sequence's frames: a mask, say, where several experts drew one each and all are right. Whole
numbers are grey levels, of 255 (8 bit) or 65,535 (16 bit), or of 1 where nothing is larger; floats lie in [0, 1].
Every fifth sequence is for testing and never trained on.
"""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Sequence

import numpy as np
import torch
from torch import Tensor

from config import WorldSettings, reject
from worlds import Sequences

EVERY = 5  # one sequence of so many is for testing


class Frames:
    """sequences         one (T, H, W) in [0, 1] for each sequence, T of its own
    answers           (N, A, H, W) in [0, 1], or None: the next frame is the answer
    num_cond_frames   c, frames before an answer
    source            where they come from

    A window is c frames and one answer. It offers what a `World` does."""

    dataset, directed, modes_total, num_digits = "frames", False, None, 1

    def __init__(
        self, sequences: Sequence[Tensor], answers: Tensor | None, num_cond_frames: int, source: str
    ):
        c, ends = num_cond_frames, 0
        starts: list[int] = []
        for sequence in sequences:
            ends += len(sequence)
            starts += [ends - c] if answers is not None else range(ends - len(sequence), ends - c)
        self.frames, self.starts = torch.cat(list(sequences)), torch.tensor(starts)
        self.answers, self.num_cond_frames, self.source = answers, c, source

    def __len__(self) -> int:
        """Windows that there are, W."""
        return len(self.starts)

    @property
    def frame_shape(self) -> tuple[int, int]:
        """(height, width), px."""
        return self.frames.shape[1], self.frames.shape[2]

    @property
    def mode_probabilities(self) -> Tensor:
        """(A,): all answers to a window are alike."""
        count = 1 if self.answers is None else self.answers.shape[1]
        return torch.full((count,), 1 / count, dtype=torch.float64)

    def to(self, device) -> Frames:
        """Move everything to a device."""
        self.frames, self.starts = self.frames.to(device), self.starts.to(device)
        self.answers = None if self.answers is None else self.answers.to(device)
        return self

    def right_answers(self, which: Tensor) -> Tensor:
        """Every answer to some windows: which (n,) int64 -> (n, A, H, W)."""
        if self.answers is None:
            return self.frames[self.starts[which] + self.num_cond_frames][:, None]
        return self.answers[which]

    def windows(
        self, n: int, generator: torch.Generator, *, which: Tensor | None = None
    ) -> Sequences:
        """n windows, each with an answer drawn from those that are right. `which` (n,) picks them, else they are
        drawn too. Everything must be on the generator's device."""

        def draw(below: int) -> Tensor:
            return torch.randint(below, (n,), generator=generator, device=generator.device)

        which = draw(len(self)) if which is None else which
        rows = self.starts[which][:, None] + torch.arange(self.num_cond_frames, device=which.device)
        answers = self.right_answers(which)
        chosen = answers[torch.arange(n, device=which.device), draw(answers.shape[1])]
        choices = torch.zeros(n, rows.shape[1] + 1, dtype=torch.bool, device=which.device)
        choices[:, -1] = answers.shape[1] > 1
        return Sequences(
            torch.cat([self.frames[rows], chosen[:, None]], 1),
            labels=which.new_zeros(n, 1),
            positions=which.new_zeros(*choices.shape, 0, 2),
            choices=choices,
        )

    sequences = windows


def _grey(arrays: Sequence[np.ndarray], path: str) -> list[Tensor]:
    """Arrays of one kind of number -> float32 in [0, 1]."""
    if any(
        array.dtype.kind not in "buif" or not np.isfinite(array).all() or array.min() < 0
        for array in arrays
    ):
        reject("frames", path, "whole numbers >= 0, or floats from 0 to 1")
    tensors = []
    largest = max(float(array.max()) for array in arrays)
    for array in arrays:
        if array.dtype.kind == "f" and largest > 1:
            reject("frames", path, f"floats from 0 to 1; the largest here is {largest:g}")
        most = 1.0 if largest <= 1 else 255.0 if largest <= 255 else 65535.0
        tensors.append(torch.from_numpy(array.astype(np.float32) / np.float32(most)))
    return tensors


def read_npz(path: Path, key: str) -> dict[str, np.ndarray]:
    """The arrays of an .npz file; nothing is unpickled. Raises SettingError, which names the setting `key`, for a file
    that is damaged or no .npz."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (
        OSError,
        EOFError,
        ValueError,
        TypeError,
        AttributeError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        reject(key, str(path), f"an .npz that can be read ({error})")


def _read_npz(path: Path) -> tuple[list[np.ndarray], np.ndarray | None]:
    arrays = read_npz(path, "frames")
    frames, answers = arrays.get("frames"), arrays.get("answers")
    if frames is None:
        reject("frames", str(path), "an .npz with an array `frames` (N, T, H, W)")
    for name, array in (("frames", frames), ("answers", answers)):
        if array is not None and (array.ndim != 4 or not array.size or len(array) != len(frames)):
            reject(
                "frames",
                str(path),
                f"`{name}` of shape (N, ., H, W), N = {len(frames)} sequences; it has "
                f"{array.shape}",
            )
    return list(frames), answers


def _read_folder(path: Path) -> tuple[list[np.ndarray], np.ndarray | None]:
    from PIL import Image

    def images(folder: Path) -> list[np.ndarray]:
        read = []
        for file in sorted(folder.glob("*.png")):
            try:
                with Image.open(file) as image:
                    read.append(
                        np.asarray(
                            image if image.mode in ("1", "L", "I;16", "I") else image.convert("L")
                        )
                    )
            except (
                OSError,
                SyntaxError,
                ValueError,
            ) as error:  # SyntaxError: Pillow's word for a broken PNG
                reject("frames", str(file), f"a PNG that can be read ({error})")
        if len({image.shape for image in read}) > 1:
            reject("frames", str(folder), "PNGs of one size")
        return read

    folders = sorted(
        folder for folder in path.iterdir() if folder.is_dir() and any(folder.glob("*.png"))
    )
    sequences, answers = (
        [images(folder) for folder in folders],
        [images(folder / "answers") for folder in folders],
    )
    if len({len(each) for each in answers}) > 1:
        reject("frames", str(path), "as many PNGs in the folder `answers` of each sequence")
    stacked = [np.stack(sequence) for sequence in sequences]
    return stacked, np.stack([np.stack(each) for each in answers]) if folders and answers[
        0
    ] else None


def load_frames(settings: WorldSettings, split: str) -> Frames:
    """The sequences of `split` ("train" or "test") in the file or folder `settings.frames`, which is relative to here
    or, for what comes with this software, to this file. Raises SettingError for anything that the head of this module
    does not describe."""
    given, c = settings.frames or "", settings.num_cond_frames or 0
    path = next(
        (
            each
            for each in (Path(given).expanduser(), Path(__file__).parent / given)
            if each.exists()
        ),
        None,
    )
    if path is None:
        reject("frames", given, "an .npz file, or a folder with a folder of PNGs for each sequence")
    sequences, answers = _read_folder(path) if path.is_dir() else _read_npz(path)
    if len(sequences) < EVERY:
        reject("frames", given, f"{EVERY} sequences or more; here are {len(sequences)}")
    if (
        len({array.shape[-2:] for array in (*sequences, *([] if answers is None else [answers]))})
        > 1
    ):
        reject("frames", given, "frames and answers of one size")
    if (shortest := min(map(len, sequences))) < (least := c + (answers is None)):
        reject(
            "num_cond_frames",
            c,
            f"at most {shortest - least + c}; the shortest sequence in {given} has {shortest} "
            "frames",
        )
    mine = [i for i in range(len(sequences)) if (i % EVERY == EVERY - 1) == (split == "test")]
    grey = _grey(sequences, given)
    right = None if answers is None else _grey([answers], given)[0][mine]
    return Frames([grey[i] for i in mine], right, c, given)
