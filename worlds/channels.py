"""Channels of images: grey, colour and classes, in networks and elsewhere.

in networks           (..., C, H, W): one channel of grey, three of colour, or one per class
as images             (..., H, W) grey; (..., 3, H, W) colour; (..., H, W) uint8 class labels
"""

from __future__ import annotations

import torch
from torch import Tensor

# Of classes, in pictures: black, then colours that differ in brightness too (Okabe & Ito 2008).
PALETTE = torch.tensor(
    [
        (0, 0, 0),
        (230, 159, 0),
        (86, 180, 233),
        (0, 158, 115),
        (240, 228, 66),
        (0, 114, 178),
        (213, 94, 0),
        (204, 121, 167),
    ]
)


def as_images(planes: Tensor, label_classes: int = 0) -> Tensor:
    """Channels (..., C, H, W) in [0, 1] as images.

    With `label_classes` they are one channel per class, of which each pixel takes the largest.
    """
    if label_classes:
        return planes.argmax(-3).to(torch.uint8)
    return planes[..., 0, :, :] if planes.shape[-3] == 1 else planes


def as_planes(images: Tensor, label_classes: int = 0, colours: bool = False) -> Tensor:
    """The inverse of `as_images`: images as channels (..., C, H, W) in [0, 1]."""
    if label_classes:
        return one_hot(images, label_classes)
    return images if colours else images[..., None, :, :]


def one_hot(labels: Tensor, label_classes: int) -> Tensor:
    """Class labels (..., H, W) as one channel per class, (..., K, H, W) float32."""
    return torch.nn.functional.one_hot(labels.long(), label_classes).movedim(-1, -3).float()


def foreground(images: Tensor, label_classes: int = 0) -> Tensor:
    """What masks are compared by: class labels as a channel for each class but the first, which is
    the background; other images as they are."""
    return one_hot(images, label_classes)[..., 1:, :, :] if label_classes else images


def _palette(label_classes: int) -> Tensor:
    """A colour in [0, 1] for each class, (K, 3). After the last colour of PALETTE they begin again,
    darker; class 0 alone is black."""
    labels = torch.arange(label_classes)
    after_black = (labels - 1).clamp_min(0)
    colours = PALETTE[after_black % (len(PALETTE) - 1) + 1] / 255
    colours = colours * 0.6 ** (after_black // (len(PALETTE) - 1))[:, None]
    colours[0] = 0
    return colours


def in_colours(images: Tensor, label_classes: int = 0) -> Tensor:
    """Class labels (..., H, W) as pictures (..., 3, H, W) in [0, 1]; other images as they are."""
    if not label_classes:
        return images
    return _palette(label_classes)[images.long()].movedim(-1, -3)


def mixed(planes: Tensor, label_classes: int = 0) -> Tensor:
    """Channels (..., C, H, W) in [0, 1] up to noise as pictures (..., H, W) or (..., 3, H, W); the
    colours of classes add up."""
    if not label_classes:
        return as_images(planes)
    return torch.einsum("...khw,kc->...chw", planes, _palette(label_classes).to(planes))
