"""What a user says of their data: a `data.yaml` beside it, or --data.

    frames: "ct/{case}/*.tif"            where frames lie, or the name of an array
    answers: "seg/{person}/{case}.png"   where answers lie, or the name of an array
    groups: "{case[:4]}"                 sequences that no split may divide, or the name of an array
    split: "{part}"                      train, validation or test, or the name of an array
    ignore: ["preview/*"]                files, or arrays, that are not meant
    order: tn                            first axes of an array: nt (sequences first) or tn
    range: [-1000, 400]                  the numbers of frames that are black and white
    channels: grey                       of frames: grey or colour
    answers_are: mask                    mask, classes, colours or grey
    classes: {background: 0, liver: 1}   the value of each class in the answers

In a pattern, `*` is any text within one name, `(a|b)` is a or b, and `{case}` is any text that is
the same in the frames and in the answers that belong together. Frames whose fields agree are one
sequence, in natural order. A file that fits both patterns is an answer. `{split}`, `{group}` and
`{class}` stand for what they say.
"""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Callable, Mapping, Sequence

import yaml

from diverse_sampling.errors import reject

Value = float | Sequence[float]  # of a class: a number, or one for each colour
MOST_CLASSES = 255
# What holds for other data that the same network is given.
OF_NUMBERS = ("range", "channels", "answers_are", "classes")


@dataclass(frozen=True)
class Description:
    """What is said of a data set, as in the head of this module; None where nothing is said."""

    frames: str | None = None
    answers: str | None = None
    groups: str | None = None
    split: str | None = None
    ignore: tuple[str, ...] = ()
    order: str | None = None
    range: tuple[float, float] | None = None
    channels: str | None = None
    answers_are: str | None = None
    classes: dict[str, Value] | None = None

    @classmethod
    def of(cls, text: str | None, source: str = "--data") -> Description:
        """The description that YAML holds; in one line, keys may follow each other after commas.

        Raises SettingError, which names `source`.
        """
        text = (text or "").strip()
        if text and "\n" not in text and not text.startswith("{"):
            text = f"{{{text}}}"
        try:
            values = yaml.safe_load(text)
        except yaml.YAMLError as error:
            reject("data", source, f"YAML ({' '.join(str(error).split())[:200]})")
        values = {} if values is None else values
        if not isinstance(values, dict):
            reject("data", source, f"keys and values; keys are {', '.join(READERS)}")
        for key in values:
            if key not in READERS:
                reject("data", f"{key} ({source})", f"keys {', '.join(READERS)}")
        return cls(**{key: _read(key, value, source) for key, value in values.items()})

    def over(self, below: Description) -> Description:
        """This description, with what it leaves open from the one below."""
        return replace(below, **{key: value for key, value in asdict(self).items() if value})

    def of_numbers(self) -> Description:
        """What holds for other data too."""
        return Description(**{key: getattr(self, key) for key in OF_NUMBERS})

    def as_yaml(self) -> str:
        """What data.yaml holds; "" if nothing is said."""
        lines = []
        for key, value in asdict(self).items():
            if value:
                text = yaml.safe_dump(_plain(value), default_flow_style=True, width=math.inf)
                lines.append(f"{key}: {text.removesuffix('...' + chr(10))}")
        return "".join(lines)


def described(path: Path, said: str | None) -> Description:
    """What is said of the data at a path: in `said`, and in the data.yaml beside it.

    That of a folder lies in it, that of DATA.npz is DATA.yaml. Raises SettingError.
    """
    beside = path / "data.yaml" if path.is_dir() else path.with_suffix(".yaml")
    there = Description()
    if beside.is_file():
        there = Description.of(beside.read_text(), str(beside))
    return Description.of(said).over(there)


def text_of(value: Value) -> str:
    """The value of a class as text: a number, or #rrggbb."""
    if not isinstance(value, Sequence):
        return f"{value:g}"
    digits = 4 if max(value) > 255 else 2
    return "#" + "".join(f"{int(colour):0{digits}x}" for colour in value)


def _plain(value: Any) -> Any:
    """A value as YAML writes it: lists, and whole numbers without a point."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _need(fits: bool) -> None:
    """Raise ValueError unless something fits."""
    if not fits:
        raise ValueError


def _number(value: Any) -> float:
    if isinstance(value, str):
        value = float(value)  # YAML 1.1 takes 1e-05, without a point, for text
    _need(type(value) in (int, float) and math.isfinite(value))
    return float(value)


def _pattern(value: Any) -> str:
    _need(isinstance(value, str) and value != "" and value[0] != "/" and ".." not in value)
    return value


def _patterns(value: Any) -> tuple[str, ...]:
    return tuple(map(_pattern, [value] if isinstance(value, str) else value))


def _range(value: Any) -> tuple[float, float]:
    _need(isinstance(value, list))
    black, white = map(_number, value)
    _need(black < white)
    return black, white


def _classes(value: Any) -> dict[str, Value]:
    values: dict[str, Value] = {
        str(name): tuple(map(_number, each)) if isinstance(each, list) else _number(each)
        for name, each in value.items()
    }
    sizes = {len(each) if isinstance(each, tuple) else 1 for each in values.values()}
    _need(2 <= len(values) <= MOST_CLASSES and sizes in ({1}, {3}))
    _need(len({*values.values()}) == len(values))
    return values


def _one_of(*choices: str) -> tuple[Callable[[Any], str], str]:
    def read(value: Any) -> str:
        _need(value in choices)
        return value

    return read, " or ".join(choices)


PATTERN = (_pattern, "a pattern such as '{case}/*.png', below the folder of the data, or a name")
# Of each key: what reads its value, and what is accepted.
READERS: dict[str, tuple[Callable[[Any], Any], str]] = {
    **dict.fromkeys(("frames", "answers", "groups", "split"), PATTERN),
    "ignore": (_patterns, "patterns of files, or names of arrays"),
    "order": _one_of("nt", "tn"),
    "range": (_range, "two numbers, [black, white]"),
    "channels": _one_of("grey", "colour"),
    "answers_are": _one_of("mask", "classes", "colours", "grey"),
    "classes": (_classes, f"2 to {MOST_CLASSES} names, each with its value, a number or [r, g, b]"),
}


def _read(key: str, value: Any, source: str) -> Any:
    """The value of a key. Raises SettingError."""
    reader, accepted = READERS[key]
    try:
        return reader(value)
    except (ValueError, TypeError, AttributeError):
        reject("data", f"{key}: {value}", f"{accepted} ({source})")


# ---------------------------------------------------------------- patterns

_FIELD = re.compile(r"\{(\w+)\}")


def compiled(pattern: str) -> re.Pattern[str]:
    """The paths that a pattern stands for, with a group for each of its fields.

    Letters count alike, small or capital, but not in fields. Raises SettingError.
    """
    parts, seen = [], set()
    for i, piece in enumerate(_FIELD.split(pattern)):
        if i % 2 == 0:
            text = re.escape(piece).replace(r"\*", "[^/]*")
            parts.append(re.sub(r"\\([()|])", r"\1", text))
        else:
            parts.append(f"(?P={piece})" if piece in seen else f"(?P<{piece}>[^/]+)")
            seen.add(piece)
    try:
        if re.search("[{}]", _FIELD.sub("", pattern)):
            raise ValueError
        return re.compile("".join(parts), re.IGNORECASE)
    except (re.error, ValueError):
        reject("data", pattern, "a pattern with fields such as {case}")


def filled(template: str, values: Mapping[str, str]) -> str:
    """A text such as '{case[:4]}' with the values of its fields. Raises SettingError."""

    def part(match: re.Match[str]) -> str:
        field, _, bounds = match[1].partition("[")
        start, colon, end = bounds.rstrip("]").partition(":")
        value = values[field]
        if not bounds:
            return value
        if not colon:
            return value[int(start)]
        return value[int(start) if start else None : int(end) if end else None]

    try:
        return re.sub(r"\{([^}]*)\}", part, template)
    except (KeyError, ValueError, IndexError):
        reject("data", template, f"fields of the pattern of frames: {', '.join(values) or 'none'}")
