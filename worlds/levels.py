"""What the numbers in a user's pictures mean, and the pictures as a network takes them.

    Frames     grey levels or colours. The type of a file's numbers says what white is: 255 (8 bit),
               65,535 (16 bit), 1 (floats). Floats from -1 to 1, and whole floats up to 255, are
               taken for what they are; `value_range` says everything else.
    Answers    the same, or labels: whole numbers of which there are few. Two are a mask, more are
               classes, as are a few colours. A network draws one channel for each class.

Numbers stay as they are in the files until they are drawn, so a data set needs the memory of its
files, once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from diverse_sampling.errors import reject
from worlds.channels import one_hot
from worlds.decoders import refuse

MOST_CLASSES = 32  # answers with more different values are grey levels
PART = 2**18  # bytes of a large array that are looked at together


@dataclass(frozen=True)
class Levels:
    """What the numbers of stored pictures mean.

    Arguments:
        low, high: the numbers that are black and white
        values: of labels, in the order of their classes; empty for grey levels and colours
        colours: 3 for colour, else 1
    """

    low: float
    high: float
    values: tuple[float, ...] = ()
    colours: int = 1

    @property
    def channels(self) -> int:
        """Channels of a picture: its colours, or its classes where they are three or more."""
        return len(self.values) if len(self.values) > 2 else self.colours

    def __str__(self) -> str:
        if len(self.values) > 2:
            return f"{len(self.values)} classes ({', '.join(f'{v:g}' for v in self.values)})"
        kind = "colour" if self.colours == 3 else "mask" if self.values else "grey"
        return f"{kind}, {self.low:g} to {self.high:g}"


def parts(array: np.ndarray) -> Iterator[np.ndarray]:
    """An array (n, ...) part by part."""
    step = max(1, PART // max(1, array[0].nbytes))
    for start in range(0, len(array), step):
        yield array[start : start + step]


def _as_labels(pictures: np.ndarray) -> np.ndarray:
    """Pictures (n, H, W) as they are, colours (n, H, W, 3) as one whole number a pixel."""
    if pictures.ndim == 3:
        return pictures
    wide = pictures.astype(np.int64)
    return (wide[..., 0] << 32) | (wide[..., 1] << 16) | wide[..., 2]


def distinct(array: np.ndarray, most: int) -> list[float] | None:
    """The different numbers in pictures, ascending; None where there are more than `most`."""
    numbers: set[float] = set()
    for part in parts(array):
        if part.dtype == np.uint8 and part.ndim == 3:  # counting is faster than sorting
            numbers.update(np.flatnonzero(np.bincount(part.ravel(), minlength=256)).tolist())
        else:
            numbers.update(np.unique(_as_labels(part)).tolist())
        if len(numbers) > most:
            return None
    return sorted(numbers)


def extent(array: np.ndarray, name: str, path: Path) -> tuple[float, float]:
    """The smallest and the largest number. Raises SettingError for NaN and infinity."""
    low, high = math.inf, -math.inf
    for part in parts(array):
        if part.dtype.kind == "f" and not np.isfinite(part).all():
            refuse(path, f"finite numbers in {name}; found NaN or infinite values")
        low, high = min(low, float(part.min())), max(high, float(part.max()))
    return low, high


def _all_whole(array: np.ndarray) -> bool:
    return all((part == np.rint(part)).all() for part in parts(array))


def grey_levels(
    array: np.ndarray, given: Sequence[float] | None, name: str, path: Path, notices: list[str]
) -> Levels:
    """What is black and what is white in frames, or in answers that are no labels.

    Arguments:
        array: (n, H, W) or (n, H, W, 3)
        given: the setting value_range
        name: what the array holds, for messages
        path: where it comes from
        notices: is told what looks odd

    Raises SettingError where the type of the numbers does not say it.
    """
    colours = 3 if array.ndim == 4 else 1
    smallest, largest = extent(array, name, path)
    what = f"{name} in {path} hold {array.dtype} from {smallest:g} to {largest:g}"
    if given is not None:
        low, high = map(float, given)
        if smallest < low or largest > high:
            reject("value_range", list(given), f"a range that holds all values; {what}")
        return Levels(low, high, colours=colours)
    kind = array.dtype.kind
    if kind == "f":
        if 0 <= smallest and largest <= 1:
            return Levels(0, 1, colours=colours)
        if -1 <= smallest < 0 and largest <= 1:
            notices.append(f"{what}: -1 is taken for black; --value_range 0,1 says otherwise")
            return Levels(-1, 1, colours=colours)
        if 0 <= smallest and largest <= 255 and _all_whole(array):
            notices.append(f"{what}, all whole: 255 is taken for white")
            return Levels(0, 255, colours=colours)
        reject("value_range", None, f"[black, white], because {what}")
    if smallest < 0:
        reject("value_range", None, f"[black, white], because {what}")
    if largest <= 1:
        return Levels(0, 1, colours=colours)  # a mask; as grey levels it would be black
    white = {1: 255.0, 2: 65535.0}.get(array.dtype.itemsize, 255.0)
    if array.dtype.itemsize > 2 and largest > 255:
        reject("value_range", None, f"[black, white], because {what}")
    values = distinct(array, MOST_CLASSES) if largest < MOST_CLASSES else None
    if values is not None and colours == 1:
        reject(
            "value_range",
            None,
            f"[black, white], such as 0,{largest:g}, because {what}, which look like class labels",
        )
    if largest < white / 2:
        notices.append(
            f"WARNING: {what}, though {white:g} is white; --value_range 0,{largest:g} if "
            f"{largest:g} is"
        )
    return Levels(0, white, colours=colours)


def answer_levels(
    array: np.ndarray,
    given: Sequence[float] | None,
    known: Sequence[float] | None,
    lossy: bool,
    name_of: Callable[[int], str],
    path: Path,
    notices: list[str],
) -> Levels:
    """Whether answers are masks, classes or grey levels, and what their numbers mean.

    Arguments:
        array: (n, H, W) or (n, H, W, 3)
        given: the setting value_range, with which they are grey levels
        known: the values of the classes that a network was trained with
        lossy: whether compression has changed the numbers, so that they are no labels
        name_of: the index of an answer -> what it is called in messages
        path: where they come from
        notices: is told what looks odd

    Raises SettingError where they are none of these.
    """
    if given is not None or lossy:
        return grey_levels(array, given, "answers", path, notices)
    extent(array, "answers", path)
    if known is not None:
        here = distinct(array, 10**5)
        others = [value for value in here or [] if value not in known]
        if here is None or others:
            reject(
                "answer_classes",
                list(known),
                f"all values of the answers in {path}, which also hold "
                + ", ".join(f"{value:g}" for value in others[:5]),
            )
        return Levels(0, 1, values=tuple(known))
    values = distinct(array, MOST_CLASSES)
    if values is None or any(value != round(value) for value in values):
        return grey_levels(array, None, "answers", path, notices)
    _refuse_mixed(array, values, name_of, path)
    if len(values) == 1:
        white = 1.0 if values[0] in (0, 1) else values[0]
        return Levels(0, white, values=(0.0, white))
    return Levels(values[0], values[1], values=tuple(map(float, values)))


def _refuse_mixed(
    array: np.ndarray, values: list[float], name_of: Callable[[int], str], path: Path
) -> None:
    """Raises SettingError where some masks reach 1 and others 255, so that 1 is white in the ones
    and nearly black in the others."""
    largest = values[-1]
    if array.ndim == 4 or largest not in (255, 65535) or 1 not in values:
        return
    tops = np.concatenate([part.max((1, 2)) for part in parts(array)])
    ones = np.flatnonzero(tops == 1)
    full = np.flatnonzero(tops == largest)
    both = any(
        ((part == 1).any((1, 2)) & (part == largest).any((1, 2))).any() for part in parts(array)
    )
    if len(ones) and len(full) and not both:
        refuse(
            path,
            f"answers of one scale; {name_of(int(ones[0]))} reaches 1, {name_of(int(full[0]))} "
            f"{largest:g}",
        )


class Pictures:
    """Pictures as they are stored, and as numbers in [0, 1] when they are drawn.

    Arguments:
        pixels: (n, H, W) or (n, H, W, 3), of the files' type
        levels: what the numbers mean
    """

    def __init__(self, pixels: np.ndarray, levels: Levels):
        self.levels = levels
        if levels.values:
            # Labels of one byte are replaced where they are: a copy would need the memory twice.
            in_place = pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.flags.writeable
            stored = pixels if in_place else np.empty(pixels.shape[:3], np.uint8)
            values = np.asarray(levels.values)
            done = 0
            for part in parts(pixels):
                stored[done : done + len(part)] = np.searchsorted(values, _as_labels(part))
                done += len(part)
            pixels = stored
        elif pixels.dtype == np.float64:
            pixels = pixels.astype(np.float32)
        elif pixels.dtype.kind in "iu" and pixels.dtype.itemsize > 2:
            pixels = pixels.astype(np.int32)
        elif pixels.dtype == np.bool_:
            pixels = pixels.view(np.uint8)
        self.pixels = torch.from_numpy(np.ascontiguousarray(pixels))
        self.elsewhere: dict[torch.device, Tensor] = {}  # the same on other devices

    def __len__(self) -> int:
        return len(self.pixels)

    def on(self, device: torch.device) -> Tensor:
        """The stored pictures on `device`, where all worlds of a data set share them."""
        if device == self.pixels.device:
            return self.pixels
        if device not in self.elsewhere:
            # Few operations know uint16 on a GPU.
            pixels = self.pixels.int() if self.pixels.dtype == torch.uint16 else self.pixels
            self.elsewhere[device] = pixels.to(device)
        return self.elsewhere[device]

    def __getitem__(self, which: Tensor) -> Tensor:
        """Some pictures, which (...) int64 -> (..., C, H, W) float32 in [0, 1]; a channel per class
        for labels."""
        stored = self.on(which.device)[which]
        levels = self.levels
        if len(levels.values) > 2:
            return one_hot(stored, len(levels.values))
        if levels.values:
            return stored.float()[..., None, :, :]
        # With 32-bit constants, so that whole numbers give the same on every machine.
        scaled = (stored.float() - levels.low) / np.float32(levels.high - levels.low).item()
        return scaled.movedim(-1, -3) if levels.colours == 3 else scaled[..., None, :, :]
