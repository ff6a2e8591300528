"""A world from a user's own files: frames, and what may come after them.

    DATA.npz             frames (N, T, H, W) and, where there are any, answers (N, A, H, W)
    DATA/*/*.png         or a directory with one subdirectory of PNGs per sequence, in the order of
                         their names,
    DATA/*/answers/*.png and its answers, equally many for each sequence

Without answers the network draws the frame that follows `num_cond_frames` others. With them it
draws one of the answers to the last frames of a sequence: a segmentation mask, for example, where
several experts drew one each and all are correct. Integers are grey levels, out of 255 (8 bit) or
65,535 (16 bit), or out of 1 where no value is larger; floats lie in [0, 1]. Every fifth sequence is
in the test split and never trained on.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from pathlib import Path
from typing import Sequence

import numpy as np
import torch
from torch import Tensor

from config import WorldSettings, reject
from worlds import Sequences

TEST_EVERY = 5  # one sequence out of this many is in the test split
ACCEPTED = "an .npz file, or a directory with one subdirectory of PNGs per sequence"


class OwnFrames:
    """A world of a user's frames, which follows the protocol `worlds.World`.

    A window is num_cond_frames frames and one answer.

    Arguments:
        sequences: one (T, H, W) float32 in [0, 1] per sequence, each with its own T
        answers: (N, A, H, W) float32 in [0, 1], the correct answers to the last frames of each of
            the N sequences; None: the answer is the next frame, anywhere in a sequence
        num_cond_frames: c, frames before an answer
        source: where they come from
    """

    dataset = "frames"
    directed = False
    modes_total = None
    num_digits = 1

    def __init__(
        self,
        sequences: Sequence[Tensor],
        answers: Tensor | None,
        num_cond_frames: int,
        source: str,
    ):
        starts: list[int] = []  # of each window, an index into all frames
        end = 0
        for sequence in sequences:
            start, end = end, end + len(sequence)
            if answers is None:
                starts += range(start, end - num_cond_frames)
            else:
                starts.append(end - num_cond_frames)
        self.frames = torch.cat(list(sequences))  # (all frames, H, W)
        self.starts = torch.tensor(starts)
        self.answers = answers
        self.num_cond_frames = num_cond_frames
        self.source = source

    def __len__(self) -> int:
        """The number of windows, W."""
        return len(self.starts)

    @property
    def frame_shape(self) -> tuple[int, int]:
        """(height, width) of a frame, px."""
        return self.frames.shape[1], self.frames.shape[2]

    @property
    def mode_probabilities(self) -> Tensor:
        """(A,) float64, the prior of each answer to a window: all are equal."""
        count = 1 if self.answers is None else self.answers.shape[1]
        return torch.full((count,), 1 / count, dtype=torch.float64)

    def to(self, device: torch.device | str) -> OwnFrames:
        """Move all frames and answers to `device`; returns the world itself."""
        self.frames = self.frames.to(device)
        self.starts = self.starts.to(device)
        if self.answers is not None:
            self.answers = self.answers.to(device)
        return self

    def right_answers(self, which: Tensor) -> Tensor:
        """All correct answers to the windows `which` (n,) int64: (n, A, H, W)."""
        if self.answers is None:
            return self.frames[self.starts[which] + self.num_cond_frames][:, None]
        return self.answers[which]

    def windows(
        self, n: int, generator: torch.Generator, *, which: Tensor | None = None
    ) -> Sequences:
        """Draw n windows, each with one of its correct answers.

        `which` (n,) int64 picks the windows; without it they are drawn too. Frames and answers must
        be on the generator's device. There are no digits: labels are 0, positions have K = 0.
        """
        device = generator.device
        if which is None:
            which = torch.randint(len(self), (n,), generator=generator, device=device)
        rows = self.starts[which][:, None] + torch.arange(self.num_cond_frames, device=which.device)
        answers = self.right_answers(which)  # (n, A, H, W)
        drawn = torch.randint(answers.shape[1], (n,), generator=generator, device=device)
        answer = answers[torch.arange(n, device=which.device), drawn]  # (n, H, W)
        choices = torch.zeros(n, rows.shape[1] + 1, dtype=torch.bool, device=which.device)
        choices[:, -1] = answers.shape[1] > 1
        return Sequences(
            torch.cat([self.frames[rows], answer[:, None]], 1),
            labels=which.new_zeros(n, 1),
            positions=which.new_zeros(*choices.shape, 0, 2),
            choices=choices,
        )

    def sequences(self, n: int, generator: torch.Generator) -> Sequences:
        """Draw n windows: sequences of a file may differ in length, windows do not."""
        return self.windows(n, generator)


def to_grey(arrays: Sequence[np.ndarray], key: str, path: Path) -> list[Tensor]:
    """Arrays of one kind of number as float32 in [0, 1].

    Raises SettingError, which names the setting `key` and the file, for numbers that are no grey
    levels.
    """
    for array in arrays:
        found = None
        if array.dtype.kind not in "buif":
            found = f"values of type {array.dtype}"
        elif not np.isfinite(array).all():
            found = "NaN or infinite values"
        elif array.min() < 0:
            found = f"{array.min():g}"
        if found is not None:
            reject(key, str(path), f"integers >= 0, or floats from 0 to 1; found {found}")
    largest = max(float(array.max()) for array in arrays)
    if largest <= 1:
        white = 1.0
    elif largest <= 255:
        white = 255.0
    else:
        white = 65535.0
    tensors = []
    for array in arrays:
        if array.dtype.kind == "f" and largest > 1:
            reject(key, str(path), f"floats from 0 to 1; the largest here is {largest:g}")
        tensors.append(torch.from_numpy(array.astype(np.float32) / np.float32(white)))
    return tensors


def read_npz(path: Path, key: str) -> dict[str, np.ndarray]:
    """The arrays of an .npz file; nothing is unpickled.

    Raises SettingError, which names the setting `key` and the file, for a file that is damaged or
    no .npz.
    """
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


def _read_archive(path: Path) -> tuple[list[np.ndarray], np.ndarray | None]:
    """The sequences (T, H, W) of an .npz file, and its answers (N, A, H, W) or None."""
    arrays = read_npz(path, "frames")
    frames = arrays.get("frames")
    answers = arrays.get("answers")
    if frames is None:
        found = ", ".join(f"`{name}`" for name in arrays) or "none"
        reject(
            "frames",
            str(path),
            f"an .npz with an array `frames` (N, T, H, W); the arrays found are {found}",
        )
    for name, array in (("frames", frames), ("answers", answers)):
        if array is None:
            continue
        if array.ndim != 4 or array.size == 0 or len(array) != len(frames):
            reject(
                "frames",
                str(path),
                f"`{name}` of shape (N, ., H, W), N = {len(frames)} sequences; it has shape "
                f"{array.shape}",
            )
    return list(frames), answers


def _read_pngs(directory: Path) -> list[np.ndarray]:
    """The PNGs of a directory in the order of their names, (H, W) each; none is an empty list."""
    from PIL import Image

    images = []
    for file in sorted(directory.glob("*.png")):
        try:
            with Image.open(file) as image:
                # Modes of one channel keep their depth, others become 8-bit grey.
                grey = image if image.mode in ("1", "L", "I;16", "I") else image.convert("L")
                images.append(np.asarray(grey))
        except (OSError, SyntaxError, ValueError) as error:  # SyntaxError: a broken PNG, in Pillow
            reject("frames", str(file), f"a PNG that can be read ({error})")
    sizes = sorted({image.shape for image in images})
    if len(sizes) > 1:
        reject("frames", str(directory), f"PNGs of one size; found {_sizes(sizes)}")
    return images


def _read_directory(path: Path) -> tuple[list[np.ndarray], np.ndarray | None]:
    """The sequences (T, H, W) of a directory, and their answers (N, A, H, W) or None."""
    directories = [each for each in path.iterdir() if each.is_dir() and any(each.glob("*.png"))]
    sequences = []
    answers = []
    for directory in sorted(directories):
        sequences.append(np.stack(_read_pngs(directory)))
        answers.append(_read_pngs(directory / "answers"))
    counts = sorted({len(each) for each in answers})
    if len(counts) > 1:
        found = " and ".join(map(str, counts))
        reject(
            "frames",
            str(path),
            f"equally many PNGs in the subdirectory `answers` of each sequence; found {found}",
        )
    if not answers or not answers[0]:
        return sequences, None
    return sequences, np.stack([np.stack(each) for each in answers])


def _sizes(shapes: Sequence[tuple[int, ...]]) -> str:
    """Sizes in words, such as `32 x 32 and 32 x 16 px`."""
    return " and ".join(" x ".join(map(str, shape)) for shape in shapes) + " px"


def find(given: str) -> Path:
    """The absolute path of a user's frames.

    A relative path is taken from the current directory or, for what comes with this software, from
    the directory of the code. Raises SettingError, with the paths that were tried, if it is in
    neither.
    """
    expanded = os.path.expanduser(given)
    candidates = [Path.cwd() / expanded, Path(__file__).resolve().parent / expanded]
    for path in candidates:
        if path.exists():
            return path
    tried = ", ".join(dict.fromkeys(map(str, candidates)))
    reject("frames", given, f"{ACCEPTED}; not found: {tried}")


def load_frames(settings: WorldSettings, split: str) -> OwnFrames:
    """The world of `split` ("train" or "test") of the user's frames at `settings.frames`.

    Raises SettingError for whatever the head of this module does not describe.
    """
    given = settings.frames or ""
    num_cond_frames = settings.num_cond_frames or 0
    path = find(given)
    sequences, answers = _read_directory(path) if path.is_dir() else _read_archive(path)
    if len(sequences) < TEST_EVERY:
        reject("frames", str(path), f"{TEST_EVERY} sequences or more; found {len(sequences)}")
    arrays = sequences if answers is None else [*sequences, answers]
    sizes = sorted({array.shape[-2:] for array in arrays})
    if len(sizes) > 1:
        reject("frames", str(path), f"frames and answers of one size; found {_sizes(sizes)}")
    # A window without answers takes one more frame, which is its answer.
    needed = num_cond_frames + 1 if answers is None else num_cond_frames
    shortest = min(len(sequence) for sequence in sequences)
    if shortest < needed:
        reject(
            "num_cond_frames",
            num_cond_frames,
            f"at most {num_cond_frames - (needed - shortest)}; the shortest sequence in {path} has "
            f"{shortest} frames",
        )
    in_test = [i % TEST_EVERY == TEST_EVERY - 1 for i in range(len(sequences))]
    kept = [i for i, test in enumerate(in_test) if test == (split == "test")]
    grey = to_grey(sequences, "frames", path)
    if answers is None:
        kept_answers = None
    else:
        kept_answers = to_grey([answers], "frames", path)[0][kept]
    return OwnFrames([grey[i] for i in kept], kept_answers, num_cond_frames, given)
