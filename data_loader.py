"""Digits, from MNIST or scikit-learn, and the one door by which settings become a world."""

from __future__ import annotations

import gzip
import inspect
import io
import socket
import sys
from contextlib import nullcontext, redirect_stderr
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from worlds import Digits, World


def _resize(images: Tensor, size: int) -> Tensor:
    """(M, h, w) in [0, 1] -> (M, size, size), antialiased bilinear."""
    if images.shape[-1] == size:
        return images
    return F.interpolate(
        images[:, None], size=(size, size), mode="bilinear", align_corners=False, antialias=True
    )[:, 0].clamp(0, 1)


@lru_cache(maxsize=8)
def _embedded(split: str, size: int) -> Digits:
    from sklearn.datasets import load_digits

    raw = load_digits()
    images = torch.as_tensor(raw.images, dtype=torch.float32) / 16
    labels = torch.as_tensor(raw.target, dtype=torch.int64)
    test = torch.arange(len(labels)) % 5 == 4  # every fifth of 1,797, never trained on
    mask = test if split == "test" else ~test
    return Digits(_resize(images[mask], size), labels[mask], "embedded")


@lru_cache(maxsize=8)
def _mnist(split: str, size: int, data_root: str, timeout: float) -> Digits:
    from torchvision.datasets import MNIST

    train = split == "train"
    try:
        data = MNIST(data_root, train=train, download=False)
    except RuntimeError:  # not there yet
        before = socket.getdefaulttimeout()
        socket.setdefaulttimeout(timeout)
        try:
            print(
                f"MNIST is not in {data_root}: downloading it (at most {timeout:g} s of silence) ...",
                file=sys.stderr,
            )
            # torchvision's bars do not ask whether there is a terminal.
            with nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO()):
                data = MNIST(data_root, train=train, download=True)
        finally:
            socket.setdefaulttimeout(before)
    return Digits(_resize(data.data.float() / 255, size), data.targets.long(), "mnist")


def load_digits(
    source: str, split: str, *, size: int, data_root: str, timeout: float = 10.0
) -> Digits:
    """Digits of `split` ("train" or "test"), resized once to `size` px and cached.

    `source`: "mnist" (torchvision's, from `data_root`, downloaded when missing; no
    answer for `timeout` seconds counts as no network), "embedded" (the 1,797 8x8
    digits that scikit-learn bundles, upsampled; every fifth is test), or "auto":
    MNIST if it can be had, else embedded with a warning on stderr.

    Raises FileNotFoundError if MNIST was asked for and cannot be had.
    """
    if source == "embedded":
        return _embedded(split, size)
    try:
        return _mnist(split, size, str(Path(data_root).expanduser()), timeout)
    except (OSError, RuntimeError, ValueError, EOFError, gzip.BadGzipFile) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if source == "mnist":
            raise FileNotFoundError(
                f"digits: mnist cannot be had ({reason}); put the four MNIST files into "
                f"{data_root}/MNIST/raw, point --data_root at a folder that has them, or use "
                "--digits embedded"
            ) from None
        print(
            f"WARNING: MNIST cannot be had ({reason}).\n"
            "WARNING: using the embedded digits instead (scikit-learn's 8x8 digits, upsampled).",
            file=sys.stderr,
        )
        return _embedded(split, size)


def make_world(settings, digits: Digits) -> World:
    """The world that `settings` (the fields of World and `classes`) describes, over `digits`."""
    names = list(inspect.signature(World).parameters)[1:]
    if settings.classes is not None:
        digits = digits.keep(settings.classes)
    return World(digits, **{name: getattr(settings, name) for name in names})
