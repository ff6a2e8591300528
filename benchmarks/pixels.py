"""How many digit classes the most diverse ten of many real test digits show, in pixel space.

    python benchmarks/pixels.py --data_root data

There is no sampler and no network: this bounds what a method that makes ten samples as different as
possible in their pixels can find. Three ways to choose, on raw and on pooled pixels: greedily by
the determinant of the RBF kernel (what `--pg_kernel logdet` descends), by farthest points, and
medoids.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Sequence

import measure

from config import Count, WorldSettings
from lab.experiments import interval


@dataclass
class PixelBenchmarkSettings:
    """Pixels"""

    pools: Sequence[Count] = (40, 100, 400)
    """real digits to choose ten from"""
    num_sets: Count = 100
    """choices"""
    digits: Literal["mnist", "embedded"] = "mnist"
    """where digits come from"""
    data_root: str = "data"
    """folder of torchvision's MNIST"""


def determinant(images, count: int) -> list[int]:
    """Greedily the largest determinant of the RBF kernel, bandwidth as for `count`."""
    import torch

    from diverse_sampling.potentials import RBF, Bandwidth

    bandwidth = Bandwidth(value=math.log(len(images)) / math.log(count))
    k, _ = RBF(bandwidth).matrices(images[None], sigma=1.0)
    left = k[0] + 1e-3 * torch.eye(len(images))
    chosen: list[int] = []
    for _ in range(count):
        gain = left.diagonal().clone()
        gain[chosen] = -1
        best = int(gain.argmax())
        chosen.append(best)
        left = left - torch.outer(left[best], left[best]) / left[best, best]
    return chosen


def farthest(images, count: int) -> list[int]:
    """Each time the one that is farthest from all chosen ones, from the most central one on."""
    import torch

    distances = torch.cdist(images, images)
    chosen = [int(distances.sum(1).argmin())]
    while len(chosen) < count:
        chosen.append(int(distances[chosen].amin(0).argmax()))
    return chosen


def medoids(images, count: int) -> list[int]:
    from diverse_sampling.selection import kmedoids

    return kmedoids(images[None], count)[0].tolist()


def main(argv: list[str] | None = None) -> None:
    args = measure.arguments(PixelBenchmarkSettings, argv)
    import torch

    from data_loader import load_digits
    from lab.metrics import mean_interval

    size = WorldSettings().digit_size
    bank = load_digits(args.digits, "test", size=size, data_root=args.data_root)
    generator, rows, result = torch.Generator().manual_seed(0), [], []
    for pool in args.pools:
        shuffled = lambda: torch.randperm(len(bank.labels), generator=generator)
        picks = [shuffled()[:pool] for _ in range(args.num_sets)]
        for name, side in {"raw": 1, "pooled 2 x 2": 2, "pooled 4 x 4": 4}.items():
            images = torch.nn.functional.avg_pool2d(bank.images[:, None], side).flatten(1)
            found = {}
            for choose in (determinant, farthest, medoids):
                chosen = (bank.labels[which][choose(images[which], 10)] for which in picks)
                counts = [len(set(labels.tolist())) for labels in chosen]
                found[choose.__name__] = mean_interval(counts, (1, 10), step=1)
            result.append(dict(pool=pool, pixels=name, found=found))
            rows.append([pool, name, *map(interval, found.values())])
    text = measure.table(
        "real digits to choose ten from | pixels | largest determinant | farthest points | medoids",
        rows,
    )
    about = dict(num_sets=args.num_sets, digits=args.digits)
    measure.write(args.outdir, "pixels", text, results=result, **about)


if __name__ == "__main__":
    main()
