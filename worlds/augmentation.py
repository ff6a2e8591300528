"""Augmentation: the same random transformation for all frames of a window, its answer included.

    flips             along each axis
    dihedral          flips and quarter turns: all eight symmetries of a square
    dihedral_shifts   these, and whole-pixel shifts of up to an eighth of a side along each axis

It helps where a transformed window could as well have been drawn from the world: a mask that
somebody drew fits its picture after a flip too. It harms where left and right, or up and down, mean
different things: where things fall, or where a left lung is not called a right one.
"""

from __future__ import annotations

import torch
from torch import Tensor

SHIFT = 8  # the largest shift is a side divided by this


def augment(frames: Tensor, kind: str, generator: torch.Generator) -> Tensor:
    """Frames (N, T, H, W), each of the N windows transformed at random.

    Arguments:
        frames: on the generator's device; H = W for all kinds but flips
        kind: "flips", "dihedral" or "dihedral_shifts"
        generator: draws all random numbers
    """
    n, device = len(frames), frames.device
    coins = torch.rand(n, 3, generator=generator, device=device) < 0.5
    horizontal, vertical, diagonal = coins[:, :, None, None, None].unbind(1)  # (N, 1, 1, 1) each
    frames = torch.where(horizontal, frames.flip(-1), frames)
    frames = torch.where(vertical, frames.flip(-2), frames)
    if kind == "flips":
        return frames
    # Flips along both axes and the diagonal generate the dihedral group of the square.
    frames = torch.where(diagonal, frames.transpose(-1, -2), frames)
    return shift(frames, generator) if kind == "dihedral_shifts" else frames


def shift(frames: Tensor, generator: torch.Generator) -> Tensor:
    """Frames (N, T, H, W), each window shifted at random; what moves in repeats the border."""
    n, _, H, W = frames.shape
    device = frames.device
    places = []
    for side in (H, W):
        reach = side // SHIFT
        by = torch.randint(-reach, reach + 1, (n, 1), generator=generator, device=device)
        places.append((torch.arange(side, device=device) + by).clamp(0, side - 1))  # (N, side)
    rows, columns = places
    window = torch.arange(n, device=device)[:, None, None]
    # Indices on both sides of a slice put the slice last: (N, H, W, T).
    return frames[window, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
