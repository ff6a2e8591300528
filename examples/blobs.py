"""Ambiguous blobs: pictures in which experts disagree on what belongs to the blob, for `--dataset frames`.

    python examples/blobs.py --out examples/blobs.npz

A bright ellipse belongs to it without doubt; two paler ones that touch it may or may not, so that there are four
right masks, one for each of the four annotators. Which annotator draws which mask is chance: nothing but the picture
tells them apart. The file holds `frames` (N, 1, S, S), the pictures, and `answers` (N, 4, S, S), the masks, as uint8.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from command_line import make_parser  # noqa: E402
from config import Count, Seed  # noqa: E402


@dataclass
class BlobSettings:
    """Blobs"""

    out: str = "blobs.npz"
    """file to write"""
    num_pictures: Count = 3000
    """pictures, each with four masks"""
    image_size: Count = 32
    """side of a picture, px"""
    seed: Seed = 0
    """seed of everything random"""


def ellipse(grid: np.ndarray, centre: np.ndarray, radii: np.ndarray, angle: float) -> np.ndarray:
    """How deep inside an ellipse each point of a grid (S, S, 2) lies, 1 at its centre and 0 on its border: (S, S)."""
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return 1 - np.linalg.norm((grid - centre) @ turn / radii, axis=-1)


def picture(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """(picture (S, S) in [0, 1], masks (4, S, S) bool in random order)."""
    grid = np.stack(np.meshgrid(np.arange(size), np.arange(size), indexing="ij"), -1) / size
    centre, angle = 0.5 + rng.uniform(-0.08, 0.08, 2), rng.uniform(0, 2 * np.pi)
    core = ellipse(grid, centre, rng.uniform(0.12, 0.18, 2), angle)
    first = rng.uniform(0, 2 * np.pi)
    sides = [
        ellipse(
            grid,
            centre + 0.24 * np.array([np.sin(a), np.cos(a)]),
            rng.uniform(0.10, 0.15, 2),
            angle,
        )
        for a in (first, first + rng.uniform(0.6, 1.4) * np.pi)
    ]
    # Borders one pixel wide, so that masks and pictures fit.
    soft = [np.clip(0.5 + each * size * 0.13, 0, 1) for each in (core, *sides)]
    shown = np.maximum(0.9 * soft[0], rng.uniform(0.35, 0.55) * np.maximum(*soft[1:]))
    masks = np.stack(
        [(core > 0) | a * (sides[0] > 0) | b * (sides[1] > 0) for a in (0, 1) for b in (0, 1)]
    )
    return shown, rng.permutation(masks)


def main(argv: list[str] | None = None) -> None:
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
