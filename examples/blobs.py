"""Ambiguous blobs for `--dataset frames`: images in which experts disagree on the blob's outline.

    python examples/blobs.py --out examples/blobs.npz

A bright ellipse certainly belongs to the blob; each of two paler ones that touch it may or may not,
so there are four correct masks, one per annotator. Which annotator draws which mask is random. The
file holds `frames` (N, 1, S, S), the images, and `answers` (N, 4, S, S), the masks, as uint8.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from config import Count, Seed  # noqa: E402
from lab.command_line import make_parser  # noqa: E402


@dataclass
class BlobSettings:
    """Blobs"""

    out: str = "blobs.npz"
    """file to write"""
    num_pictures: Count = 3000
    """images, each with four masks"""
    image_size: Count = 32
    """side of an image, px"""
    seed: Seed = 0
    """seed of everything random"""


def ellipse(grid: np.ndarray, centre: np.ndarray, radii: np.ndarray, angle: float) -> np.ndarray:
    """How deep inside an ellipse points lie: 1 at its centre, 0 on its border, negative outside.

    Arguments:
        grid: the points, (S, S, 2)
        centre: (2,)
        radii: (2,), along the axes of the ellipse
        angle: by which it is rotated, in radians

    Returns (S, S).
    """
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return 1 - np.linalg.norm((grid - centre) @ turn / radii, axis=-1)


def picture(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """One image, (S, S) in [0, 1], and its four masks, (4, S, S) bool in random order."""
    grid = np.stack(np.meshgrid(np.arange(size), np.arange(size), indexing="ij"), -1) / size
    centre = 0.5 + rng.uniform(-0.08, 0.08, 2)
    angle = rng.uniform(0, 2 * np.pi)
    core = ellipse(grid, centre, rng.uniform(0.12, 0.18, 2), angle)
    first = rng.uniform(0, 2 * np.pi)
    second = first + rng.uniform(0.6, 1.4) * np.pi
    sides = []
    for direction in (first, second):
        towards = np.array([np.sin(direction), np.cos(direction)])
        radii = rng.uniform(0.10, 0.15, 2)
        sides.append(ellipse(grid, centre + 0.24 * towards, radii, angle))
    # Borders one pixel wide, so that masks and images agree.
    soft_core, *soft_sides = (np.clip(0.5 + each * size * 0.13, 0, 1) for each in (core, *sides))
    shown = np.maximum(0.9 * soft_core, rng.uniform(0.35, 0.55) * np.maximum(*soft_sides))
    masks = [
        (core > 0) | with_first * (sides[0] > 0) | with_second * (sides[1] > 0)
        for with_first in (0, 1)
        for with_second in (0, 1)
    ]
    return shown, rng.permutation(np.stack(masks))


def main(argv: list[str] | None = None) -> None:
    """Draw all images and masks, and write them to --out."""
    args = make_parser(BlobSettings, description=__doc__.split("\n")[0]).parse_args(argv)
    rng = np.random.default_rng(args.seed)
    pictures, masks = zip(*(picture(rng, args.image_size) for _ in range(args.num_pictures)))
    np.savez_compressed(
        args.out,
        frames=np.round(255 * np.stack(pictures)[:, None]).astype(np.uint8),
        answers=255 * np.stack(masks).astype(np.uint8),
    )
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
