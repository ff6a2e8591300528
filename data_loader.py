"""Digits, from MNIST or scikit-learn, and the one function that makes a world from settings."""

from __future__ import annotations

import gzip
import hashlib
import io
import socket
import sys
from contextlib import nullcontext, redirect_stderr
from functools import lru_cache
from pathlib import Path
from typing import Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from config import DigitSettings, WorldSettings
from worlds.moving_digits import (
    Centered,
    CircleJumping,
    Digits,
    Free,
    Halves,
    Horizontal,
    Mixture,
    MovingDigits,
    World,
)
from worlds.own_data import load_frames

CLASS_WORLDS = dict(centered=Centered, halves=Halves)
MNIST_FILES = [
    f"{split}-{content}"
    for split in ("train", "t10k")
    for content in ("images-idx3-ubyte", "labels-idx1-ubyte")
]
EMBEDDED_TEST_EVERY = 5  # one of this many embedded digits is in the test split, never trained on


def _resize(images: Tensor, size: int) -> Tensor:
    """Images (M, h, w) in [0, 1] at another size, (M, size, size): antialiased bilinear."""
    if images.shape[-1] == size:
        return images
    resized = F.interpolate(
        images[:, None], size=(size, size), mode="bilinear", align_corners=False, antialias=True
    )
    return resized[:, 0].clamp(0, 1)


@lru_cache(maxsize=8)
def _embedded(split: str, size: int) -> Digits:
    """The 1,797 digits of 8 x 8 px that scikit-learn bundles, resized to `size` px."""
    from sklearn.datasets import load_digits

    bundled = load_digits()
    images = torch.as_tensor(bundled.images, dtype=torch.float32) / 16
    labels = torch.as_tensor(bundled.target, dtype=torch.int64)
    test = torch.arange(len(labels)) % EMBEDDED_TEST_EVERY == EMBEDDED_TEST_EVERY - 1
    mask = test if split == "test" else ~test
    return Digits(_resize(images[mask], size), labels[mask], "embedded")


@lru_cache(maxsize=8)
def _mnist(split: str, size: int, data_root: str, timeout: float) -> Digits:
    """MNIST from `data_root`, downloaded there when missing, resized to `size` px."""
    from torchvision.datasets import MNIST

    train = split == "train"
    try:
        data = MNIST(data_root, train=train, download=False)
    except RuntimeError:  # not there yet
        timeout_before = socket.getdefaulttimeout()
        socket.setdefaulttimeout(timeout)
        try:
            print(
                f"MNIST is not in {data_root}: downloading it (gives up after {timeout:g} s "
                "without an answer) ...",
                file=sys.stderr,
            )
            # torchvision draws progress bars even where there is no terminal.
            with nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO()):
                data = MNIST(data_root, train=train, download=True)
        finally:
            socket.setdefaulttimeout(timeout_before)
    return Digits(_resize(data.data.float() / 255, size), data.targets.long(), "mnist")


@lru_cache
def digits_sha256(source: str, data_root: str) -> str:
    """The hash of all digits of a source, for training and for testing, of any size.

    `source` is as of `Digits`: "mnist", "embedded" or "mnist+embedded".
    """
    sha = hashlib.sha256()
    for each in source.split("+"):
        if each == "embedded":
            from sklearn.datasets import load_digits

            sha.update(load_digits().images.astype("uint8").tobytes())
            continue
        for name in MNIST_FILES:
            sha.update((Path(data_root).expanduser() / "MNIST" / "raw" / name).read_bytes())
    return sha.hexdigest()


def load_digits(
    source: str, split: str, *, size: int, data_root: str, timeout: float = 10.0
) -> Digits:
    """The digits of one split, resized to `size` px; repeated calls return the same object.

    Arguments:
        source: "mnist" (torchvision's, downloaded when missing); "embedded" (scikit-learn's, of
            which every fifth is in the test split); "auto", MNIST if available, else the embedded
            digits with a warning on stderr; "both", MNIST and the embedded digits mixed one to one
            for training, and as with "auto" for testing
        split: "train" or "test"
        size: side of a digit, px
        data_root: directory of torchvision's MNIST
        timeout: seconds without an answer after which the network counts as unavailable

    Raises FileNotFoundError if MNIST is asked for and not available.
    """
    if source == "both" and split == "train":
        mnist, embedded = (
            load_digits(each, split, size=size, data_root=data_root, timeout=timeout)
            for each in ("mnist", "embedded")
        )
        return mnist.mixed_with(embedded)
    if source == "embedded":
        return _embedded(split, size)
    root = Path(data_root).expanduser()
    try:
        return _mnist(split, size, str(root), timeout)
    except (OSError, RuntimeError, ValueError, EOFError, gzip.BadGzipFile) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if source == "mnist":
            raise FileNotFoundError(
                f"digits: MNIST not found in {root.absolute()}, and downloading it failed "
                f"({reason}); put its four files into {root.absolute()}/MNIST/raw, name another "
                "directory with --data_root, or use --digits embedded"
            ) from None
        print(
            f"WARNING: MNIST is not available ({reason}).\n"
            "WARNING: using the embedded digits instead (scikit-learn's 8x8 digits, upsampled).",
            file=sys.stderr,
        )
        return _embedded(split, size)


def _moving_digits(
    settings: WorldSettings, digits: Digits, training: Digits | None
) -> MovingDigits:
    """The world of moving digits that `settings` describe, over a bank of digits.

    `training` are those for training, in a world of classes; None in the others.
    """
    assert settings.seq_len is not None and settings.num_cond_frames is not None
    common = dict(
        seq_len=settings.seq_len,
        num_cond_frames=settings.num_cond_frames,
        num_digits=settings.num_digits,
        image_size=settings.image_size,
    )
    if training is not None:
        return CLASS_WORLDS[settings.dataset](digits, training=training, **common)
    if settings.dataset == "circle_jumping":
        return CircleJumping(digits, num_directions=settings.num_directions, p=settings.p, **common)
    if settings.dataset == "horizontal":
        return Horizontal(digits, p=settings.p, end_at_choice=settings.end_at_choice, **common)
    return Free(digits, deterministic=settings.deterministic, **common)


@overload
def load_world(
    settings: WorldSettings, digits: DigitSettings, split: Literal["train", "test"]
) -> World: ...
@overload
def load_world(
    settings: WorldSettings, digits: DigitSettings, split: Literal["validation"]
) -> World | None: ...
def load_world(settings, digits, split):
    """The world that settings describe, with the digits or frames of `split` ("train" or "test").

    Everything that trains, samples or draws a world gets it here. The split "validation" is for own
    frames; it is None for other worlds, which never run out of sequences, and where own frames are
    too few. Raises SettingError for frames
    that cannot be used, FileNotFoundError for MNIST that is asked for and not available, and
    ValueError if no digit of `digit_classes` is left.
    """
    if split == "validation" and settings.dataset != "frames":
        return None
    if settings.dataset == "mixture":
        return Mixture()
    if settings.dataset == "frames":
        return load_frames(settings, split)

    def bank(of: str) -> Digits:
        digits_of = load_digits(
            digits.digits,
            of,
            size=settings.digit_size,
            data_root=digits.data_root,
            timeout=digits.download_timeout,
        )
        return (
            digits_of if settings.digit_classes is None else digits_of.keep(settings.digit_classes)
        )

    training = bank("train") if settings.dataset in CLASS_WORLDS else None
    return _moving_digits(settings, bank(split), training)
