"""Pixel ranges: files, worlds and metrics hold images in [0, 1]; networks and guidance see [-1, 1]."""

from torch import Tensor


def to_model_range(images: Tensor) -> Tensor:
    """[0, 1] -> [-1, 1], any shape."""
    return images * 2 - 1


def to_unit_range(images: Tensor) -> Tensor:
    """[-1, 1] -> [0, 1], any shape; what lies outside stays outside."""
    return (images + 1) / 2
