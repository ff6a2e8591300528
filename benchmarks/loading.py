"""Seconds to load many small sequences of your data, over those of decoding their files alone.

    python benchmarks/loading.py

Each sequence is one frame with one mask, of 32 x 32 px. Its files lie in a folder of their own, or
in images/ and masks/. Loading includes listing the files, giving each a place, decoding, finding
out what the numbers mean, and hashing them; decoding opens one file after the other with Pillow.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import measure

from config import Count, WorldSettings

LAYOUTS = {
    "a folder each": ("s{i}/0.png", "s{i}/masks/0.png"),
    "images/ and masks/": ("images/{i}.png", "masks/{i}.png"),
}
SIDE = 32


@dataclass
class LoadingSettings:
    """Loading"""

    sequences: Count = 10_000
    """in a data set"""
    repetitions: Count = 5
    """of everything, interleaved"""


def write(folder: Path, layout: tuple[str, str], number: int) -> None:
    """A data set of random pictures and masks."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for i in range(number):
        frame = rng.integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
        for pattern, pixels in zip(layout, (frame, (frame > 127) * np.uint8(255))):
            path = folder / pattern.format(i=i)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)


def load(folder: Path) -> None:
    """Load a data set, which nothing has kept from the last time."""
    from worlds import own_data

    own_data._understood.cache_clear()
    own_data.load_frames(WorldSettings(dataset="frames", frames=str(folder)), "train")


def decode(folder: Path) -> None:
    """Decode all files, one after the other."""
    import numpy as np
    from PIL import Image

    for path in folder.rglob("*.png"):
        with Image.open(path) as image:
            np.asarray(image)


def main(argv: list[str] | None = None) -> None:
    args = measure.arguments(LoadingSettings, argv)
    results: dict[str, Any] = {}
    rows = []
    with tempfile.TemporaryDirectory() as place:
        for name, layout in LAYOUTS.items():
            folder = Path(place) / name.partition(" ")[0].strip("/")
            write(folder, layout, args.sequences)
            runs = dict(load=lambda: load(folder), decode=lambda: decode(folder))
            times = measure.interleaved(runs, args.repetitions, "cpu")
            ratio = measure.ratio(times, "load", "decode")
            results[name] = dict(seconds=min(times["load"]), ratio=ratio)
            rows.append([name, f"{min(times['load']):.1f}", measure.shown(ratio, 2)])
    text = measure.table("layout | s, fastest | loading / decoding", rows)
    measure.write(args.outdir, "loading", text, "cpu", sequences=args.sequences, results=results)


if __name__ == "__main__":
    main()
