"""What the numbers in a user's pictures mean, and the pictures as a network takes them.

    Frames     grey levels or colours. The type of a file's numbers says what white is: 255 (8 bit),
               65,535 (16 bit), 1 (1 bit and floats). Floats from -1 to 1, and whole floats up to
               255, are taken for what they are; `range` says everything else.
    Answers    two different values are a mask, the larger one the object; up to 32 whole numbers or
               colours are classes, each a channel of a network. Fractions, more than 255 values of
               8 bits, and JPEGs, are grey: a soft mask. What may be either is asked: `answers_are`.

One decision holds for all files of a data set. Numbers stay as they are in the files until they are
drawn, so a data set needs the memory of its files, once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, NoReturn

import numpy as np
import torch
from torch import Tensor

from diverse_sampling.errors import reject
from worlds.channels import one_hot
from worlds.decoders import refuse
from worlds.description import MOST_CLASSES, Description, Value, text_of

FEW = 32  # whole values that are classes without a word of the user
PLACES = (1 << 32, 1 << 16, 1)  # of red, green and blue in the code of a colour
PART = 2**18  # bytes of a large array that are looked at together
WHITE = {np.dtype(bool): 1, np.dtype(np.uint8): 255, np.dtype(np.uint16): 65535}


@dataclass(frozen=True)
class Levels:
    """What the numbers of stored pictures mean.

    Arguments:
        kind: grey or colours, for which low is black and high is white; mask or classes
        low, high: see there
        values: of a mask (outside, object), or of classes; empty otherwise
    """

    kind: str
    low: float = 0
    high: float = 1
    values: tuple[Value, ...] = ()

    @property
    def colours(self) -> int:
        """3 for colours, else 1."""
        return 3 if self.kind == "colours" else 1

    @property
    def label_classes(self) -> int:
        """The number of classes, 0 for all else."""
        return len(self.values) if self.kind == "classes" else 0

    @property
    def channels(self) -> int:
        """Channels of a picture: its colours, or its classes."""
        return self.label_classes or self.colours

    def __str__(self) -> str:
        values = ", ".join(map(text_of, self.values)) or f"{self.low:g} to {self.high:g}"
        return f"{self.label_classes or ''} {self.kind}, {values}".strip()


@dataclass
class Numbers:
    """The numbers of many pictures, as they are in files.

    Arguments:
        pixels: (n, H, W) or (n, H, W, 3)
        types: of each picture's file, or one for all
        what: they are, with the path, for messages
        path: where they come from
        lossy: whether compression has changed them
    """

    pixels: np.ndarray
    types: list[np.dtype]
    what: str
    path: Path
    lossy: bool = False

    def codes(self) -> Iterator[np.ndarray]:
        """The pixels part by part, a colour as one whole number."""
        for part in parts(self.pixels):
            yield part if part.ndim == 3 else part.astype(np.int64) @ PLACES

    def distinct(self) -> dict[np.dtype, list[float] | None]:
        """The different codes, ascending, of the pictures of each type; None if these are too many
        for classes."""
        found: dict[np.dtype, set[float] | None] = {each: set() for each in self.types}
        of = np.array([list(found).index(each) for each in self.types])
        done = 0
        for part in self.codes():
            types, done = of[done : done + len(part)], done + len(part)
            for i, (each, numbers) in enumerate(found.items()):
                some = part if len(found) == 1 else part[types == i]
                if numbers is None or len(some) == 0:
                    continue
                if some.dtype == np.uint8:  # counting is faster than sorting
                    numbers.update(
                        np.flatnonzero(np.bincount(some.ravel(), minlength=256)).tolist()
                    )
                else:
                    numbers.update(np.unique(some).tolist())
                if len(numbers) > MOST_CLASSES:
                    found[each] = None
            if not any(numbers is not None for numbers in found.values()):
                break
        return {
            each: sorted(map(float, numbers)) if numbers else None
            for each, numbers in found.items()
        }

    def extent(self) -> tuple[float, float]:
        """The smallest and the largest number. Raises SettingError for NaN and infinity."""
        low, high = math.inf, -math.inf
        for part in parts(self.pixels):
            if part.dtype.kind == "f" and not np.isfinite(part).all():
                refuse(self.path, f"finite numbers in {self.what}; found NaN or infinite values")
            low, high = min(low, float(part.min())), max(high, float(part.max()))
        return low, high


def parts(array: np.ndarray) -> Iterator[np.ndarray]:
    """An array (n, ...) part by part."""
    step = max(1, PART // max(1, array[0].nbytes))
    for start in range(0, len(array), step):
        yield array[start : start + step]


def grey_levels(numbers: Numbers, said: Description, notices: list[str]) -> Levels:
    """What is black and what is white in frames, or in answers that are pictures like these.

    `notices` is told what looks odd. Raises SettingError if the numbers' type does not say it.
    """
    pixels = numbers.pixels
    kind = "colours" if pixels.ndim == 4 else "grey"
    smallest, largest = numbers.extent()
    what = f"{numbers.what} in {numbers.path} hold {pixels.dtype} from {smallest:g} to {largest:g}"

    def asked(accepted: str) -> NoReturn:
        value = "null" if said.range is None else list(said.range)
        reject("data", f"range: {value}", f"{accepted} {what}")

    if len({*numbers.types}) > 1 and (said.range or not {*numbers.types} <= WHITE.keys()):
        asked("files of one number type;")
    if said.range is not None:
        if smallest < said.range[0] or largest > said.range[1]:
            asked("a range that holds all values;")
        return Levels(kind, *said.range)
    whole = pixels.dtype.kind in "bui" or all(
        (part == np.rint(part)).all() for part in parts(pixels)
    )
    if pixels.dtype.kind == "f" and -1 <= smallest < 0 and largest <= 1:
        notices.append(f"{what}: -1 is taken for black; range: [0, 1] in data.yaml says otherwise")
        return Levels(kind, -1, 1)
    if smallest < 0:
        asked("[black, white], because")
    if largest <= 1:
        return Levels(kind)  # a mask too; as grey levels it would be black
    if pixels.dtype.kind == "f" and largest <= 255 and whole:
        notices.append(f"{what}, all whole: 255 is taken for white")
        return Levels(kind, 0, 255)
    white = WHITE.get(pixels.dtype, 255)
    if largest > white or not whole:
        asked("[black, white], because")
    if largest < FEW and kind == "grey" and numbers.what == "frames":
        asked(f"[black, white], such as [0, {largest:g}], because they look like class labels;")
    if largest < white / 2:
        notices.append(
            f"WARNING: {what}, though {white:g} is white; if {largest:g} is, --data "
            f"'range: [0, {largest:g}]' says so"
        )
    return Levels(kind, 0, white)


def answer_levels(numbers: Numbers, said: Description, notices: list[str]) -> Levels:
    """Whether answers are masks, classes, colours or grey, and what their numbers mean.

    Arguments:
        numbers: of the answers
        said: by the user, or by what a network was trained with
        notices: is told what looks odd

    Raises SettingError if they may be several of these, or none.
    """
    pixels, path = numbers.pixels, numbers.path
    grey, dtype = pixels.ndim == 3, pixels.dtype
    numbers.extent()
    if said.answers_are in ("grey", "colours"):
        return grey_levels(numbers, said, notices)
    by_type = numbers.distinct()
    codes: list[float] | None = None
    if None not in by_type.values():
        codes = sorted({code for each in by_type.values() for code in each or ()})

    def values(of: list[float]) -> tuple[Value, ...]:
        return tuple(
            of if grey else (tuple(c // place % (1 << 16) for place in PLACES) for c in of)
        )

    def asked(may_be: str) -> NoReturn:
        many = f"more than {MOST_CLASSES}" if codes is None else len(codes)
        some = ", ".join(map(text_of, values(codes or [])[:5]))
        reject(
            "data",
            f"answers_are: {said.answers_are or 'null'}",
            f"{may_be}, because answers in {path} hold {many} values of {dtype} {some}".strip(),
        )

    if said.classes is not None:
        known = tuple(said.classes.values())
        others = [value for value in values(codes or []) if value not in known]
        if codes is None or others:
            asked(f"only {', '.join(map(text_of, known))}, which are known")
        return Levels("mask" if len(known) == 2 else "classes", values=known)
    if grey and codes is not None and len(by_type) > 1 and len(codes) > 2:
        whites = [{*(found or ())} <= {0, WHITE.get(each)} for each, found in by_type.items()]
        if all(whites):  # 8-bit masks beside 16-bit ones
            return Levels("mask", values=(0, codes[-1]))
        if any(whites) or said.answers_are == "mask":
            asked("files of one number type")
    if codes is not None and grey and len(codes) == 1:
        codes = [0.0, codes[0] or 1.0]
    if codes is not None and len(codes) == 2:
        return Levels("mask", values=values(codes))
    whole = dtype.kind in "bui" or all((part == np.rint(part)).all() for part in parts(pixels))
    many = codes is None and grey and dtype == np.uint8
    if said.answers_are == "mask" and grey:
        soft = grey_levels(numbers, Description(), notices)
        return Levels("mask", values=((soft.low + soft.high) / 2,))
    if said.answers_are is None and (numbers.lossy or not whole or many):
        if numbers.lossy:
            notices.append(f"answers in {path} are JPEG or WebP, so soft; answers_are: mask cuts")
        return grey_levels(numbers, said, notices)
    if codes is None or not whole:
        asked("mask or grey" if grey else "colours")
    if said.answers_are is None:
        ids = [code for code in codes if code not in (255, 65535)]
        labels = len(ids) > 2 and ids[-1] - ids[0] == len(ids) - 1  # 255 may stand for none of them
        white = codes[0] == 0 and codes[-1] in (255, 65535)
        if len(codes) > FEW or grey and white and not labels:
            asked("mask (of soft borders), classes or grey" if grey else "classes or colours")
    elif said.answers_are == "mask":
        asked("classes or colours")
    return Levels("classes", values=values(codes))


class Pictures:
    """Pictures as they are stored, and as numbers in [0, 1] when they are drawn.

    Arguments:
        numbers: of the files
        levels: what they mean
    """

    def __init__(self, numbers: Numbers, levels: Levels):
        self.levels = levels
        self.black, self.white = levels.low, levels.high
        pixels = numbers.pixels
        if levels.values:
            # Labels of one byte are replaced where they are: a copy would need the memory twice.
            in_place = pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.flags.writeable
            stored = pixels if in_place else np.empty(pixels.shape[:3], np.uint8)
            done = 0
            for part in numbers.codes():
                stored[done : done + len(part)] = _indices(part, levels, numbers)
                done += len(part)
            pixels = stored
        elif len({*numbers.types}) > 1:
            for i, each in enumerate(numbers.types):
                pixels[i] *= WHITE[pixels.dtype] // WHITE[each]
        elif pixels.dtype.kind == "b":
            pixels = pixels.view(np.uint8)
        elif pixels.dtype.kind == "f" and pixels.dtype.itemsize > 4:
            pixels = pixels.astype(np.float32)
        elif pixels.dtype.kind in "iu" and pixels.dtype.itemsize > 2:  # more than a float32 holds
            span = levels.high - levels.low
            self.black, self.white = 0, 1
            pixels = np.concatenate(
                [((part - levels.low) / span).astype(np.float32) for part in parts(pixels)]
            )
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
        if levels.label_classes:
            return one_hot(stored, levels.label_classes)
        if levels.values:
            return stored.float()[..., None, :, :]
        # With 32-bit constants, so that whole numbers give the same on every machine.
        scaled = (stored.float() - self.black) / np.float32(self.white - self.black).item()
        return scaled.movedim(-1, -3) if levels.colours == 3 else scaled[..., None, :, :]


def _indices(part: np.ndarray, levels: Levels, numbers: Numbers) -> np.ndarray:
    """The class of each pixel, of a mask 0 or 1."""
    if len(levels.values) == 1:  # the threshold of a soft mask
        return part > levels.values[0]
    if levels.kind == "mask" and numbers.pixels.ndim == 3 and levels.values[0] == 0:
        return part != 0
    values = np.array(levels.values)
    codes = values if values.ndim == 1 else values.astype(np.int64) @ PLACES
    order = np.argsort(codes)
    return order[np.searchsorted(codes, part, sorter=order)]
