"""Files that programs write: strict JSON, whole or not at all, under names that differ."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Mapping, Sequence

from diverse_sampling.errors import reject

if TYPE_CHECKING:
    from torch import Tensor


def as_json(record: Any, **options: Any) -> str:
    """The text of a record; JSON has no NaN and no infinity, they become null.

    `options` are those of `json.dumps`. Every record is written by this.
    """

    def finite(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: finite(each) for key, each in value.items()}
        if isinstance(value, (list, tuple)):
            return [finite(each) for each in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(finite(record), allow_nan=False, **options)


def _with_nan(record: dict[str, Any]) -> dict[str, Any]:
    """The same; in a metric, {mean, ...}, null was a number."""
    if "mean" not in record:
        return record
    numbers = {
        key: [math.nan if each is None else each for each in value]
        for key, value in record.items()
        if isinstance(value, list)
    }
    return record | numbers | (dict(mean=math.nan) if record["mean"] is None else {})


def read_json(path: Path, key: str = "record") -> Any:
    """What a record says; numbers of its metrics that were not finite are NaN.

    Raises SettingError, with that key, if the file holds no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"), object_hook=_with_nan)
    except ValueError as error:
        reject(key, str(path), f"a record in JSON; this file is empty or broken ({error})")


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file, all of it or nothing. Raises OSError, with the file as it was."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def packed(arrays: Mapping[str, Tensor]) -> bytes:
    """The content of an .npz file of some tensors."""
    import numpy as np

    as_numpy: dict[str, Any] = {name: tensor.numpy() for name, tensor in arrays.items()}
    content = io.BytesIO()
    np.savez_compressed(content, **as_numpy)
    return content.getvalue()


def sha256_of(path: Path) -> str:
    """The hash of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def unused(path: Path) -> Path:
    """The path or, if there is something already, the first of NAME-2, NAME-3, ... without."""
    numbered = (path.with_stem(f"{path.stem}-{number}") for number in itertools.count(2))
    return next(each for each in itertools.chain([path], numbered) if not each.exists())


def distinct(names: Sequence[str]) -> list[str]:
    """Names of folders, of which those that a file system may hold for the same have a number."""
    taken: set[str] = {name.casefold() for name in names}
    seen: set[str] = set()
    different = []
    for name in names:
        unique, number = name, 1
        if name.casefold() in seen:
            while unique.casefold() in taken:
                number += 1
                unique = f"{name}-{number}"
        taken.add(unique.casefold())
        seen.add(unique.casefold())
        different.append(unique)
    return different
