"""Pictures in classes for `--num_cond_frames 0`: circles, squares, triangles and crosses.

    python examples/shapes.py --out shapes

Writes a folder of grey pictures for each class. The classes are not equally frequent (SHARES), so
that the rarest is missing from most small sets of independent samples. Size, place and brightness
of each shape are random.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from config import Count, Seed  # noqa: E402
from diverse_sampling.errors import SettingError, reject  # noqa: E402
from lab.command_line import fail, make_parser  # noqa: E402

SHARES = dict(circle=0.5, square=0.3, triangle=0.15, cross=0.05)


@dataclass
class ShapeSettings:
    """Shapes"""

    out: str = "shapes"
    """directory to write, with a subdirectory for each class"""
    num_pictures: Count = 2000
    """pictures of all classes together"""
    image_size: Count = 16
    """side of a picture, px"""
    seed: Seed = 0
    """seed of everything random"""


def depth(name: str, y: np.ndarray, x: np.ndarray, radius: float) -> np.ndarray:
    """How deep inside a shape points (y, x) relative to its centre lie, px; negative outside.

    Arguments:
        name: one of SHARES
        y, x: (S, S), px, y downwards
        radius: of the circle, or about that of one around the shape, px
    """
    if name == "circle":
        return radius - np.hypot(y, x)
    if name == "square":
        return 0.85 * radius - np.maximum(abs(y), abs(x))
    if name == "triangle":
        sides = [y, 0.866 * x - 0.5 * y, -0.866 * x - 0.5 * y]  # distances along their normals
        return 0.52 * radius - np.maximum.reduce(sides)
    arms = [np.minimum(radius - abs(a), 0.3 * radius - abs(b)) for a, b in ((y, x), (x, y))]
    return np.maximum(*arms)


def picture(name: str, rng: np.random.Generator, size: int) -> np.ndarray:
    """One picture of a class, (S, S) uint8, its border one pixel wide."""
    radius = rng.uniform(0.22, 0.34) * size
    centre = size / 2 - 0.5 + rng.uniform(-0.1, 0.1, 2) * size
    y, x = np.meshgrid(*(np.arange(size) - each for each in centre), indexing="ij")
    shape = np.clip(0.5 + depth(name, y, x, radius), 0, 1)
    return np.round(255 * rng.uniform(0.6, 1) * shape).astype(np.uint8)


def write(out: Path, num_pictures: int, image_size: int, seed: int) -> None:
    """Draw all pictures into new folders. Raises SettingError if `out` holds something."""
    from PIL import Image

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        reject("out", str(out), "a directory that is empty or not there yet")
    rng = np.random.default_rng(seed)
    for name, share in SHARES.items():
        (out / name).mkdir(parents=True)
        for i in range(round(share * num_pictures)):
            Image.fromarray(picture(name, rng, image_size)).save(out / name / f"{i}.png")


def main(argv: list[str] | None = None) -> None:
    """Write the folders; a mistake ends with one line and exit code 2."""
    args = make_parser(ShapeSettings, description=__doc__.split("\n")[0]).parse_args(argv)
    try:
        write(Path(args.out), args.num_pictures, args.image_size, args.seed)
    except SettingError as error:
        fail(str(error))
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
