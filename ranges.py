"""Pixel ranges: [0, 1] in files, worlds and metrics; [-1, 1] in networks and guidance."""

from torch import Tensor


def to_model_range(images: Tensor) -> Tensor:
    """Images of any shape, from [0, 1] to [-1, 1]. Values outside stay outside."""
    return images * 2 - 1


def to_unit_range(images: Tensor) -> Tensor:
    """Images of any shape, from [-1, 1] to [0, 1]. Values outside stay outside."""
    return (images + 1) / 2
