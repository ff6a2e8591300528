"""The one error for values that cannot be used."""

from __future__ import annotations

from typing import Any, NoReturn


class SettingError(ValueError):
    """A setting that cannot be used. The message names the key, the value and what is accepted."""


def reject(key: str, value: Any, accepted: str) -> NoReturn:
    """Raises SettingError: which key, which value, what is accepted."""
    raise SettingError(f"{key}: got {value!r}; accepted: {accepted}")
