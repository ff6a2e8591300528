"""Tasks that nothing was tuned on: what the default finds, beside what was predicted before.

    python benchmarks/predictions.py

The predictions, and the rules by which they count as met, are those of docs/predictions.md. A
finished task is kept in --outdir. Writes predictions.json and predictions.md there.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable
from unittest.mock import patch

import measure
import numpy as np
import torch
from torch import Tensor

import data_loader
from examples.blobs import ellipse
from lab import assemble
from lab.experiments import brief
from lab.metrics import energy_score, mean_interval
from lab.names import METRICS
from lab.tasks import Task
from worlds.moving_digits import Free, Halves, render

SEED = 70001
SEEDED = f"--seed {SEED}"
GUIDED = "--pg_factor 5"
HALVES = f"--dataset halves --batch_size 10 --num_sets 40 {SEEDED}"
FREE = f"--dataset free --num_sets 300 {SEEDED}"
BLOBS = f"--dataset frames --batch_size 3 --num_sets 200 {SEEDED}"
DRAWN = 200  # futures after a random choice
PICTURES = 2000  # of new blobs, of which every fifth is for testing


@dataclass
class PredictionSettings:
    """Predictions"""

    data_root: str = "data"
    """folder of torchvision's MNIST"""


# ---------------------------------------------------------------- what is new


class LeftHalves(Halves):
    """World `halves` with the left half of a digit in place of the upper one."""

    @property
    def seen(self) -> tuple[slice, slice]:
        return slice(self.digit_size), slice(self.digit_size // 2)


def new_blob(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """An image (S, S) in [0, 1] of an elongated core and two sides, and its masks (3, S, S) bool:
    the core alone, or with either side."""
    grid = np.stack(np.meshgrid(np.arange(size), np.arange(size), indexing="ij"), -1) / size
    centre = 0.5 + rng.uniform(-0.05, 0.05, 2)
    angle = rng.uniform(0, 2 * np.pi)
    along = np.array([np.cos(angle), np.sin(angle)])
    core = ellipse(grid, centre, np.array([0.26, 0.09]) * rng.uniform(0.9, 1.1, 2), angle)
    sides = [
        ellipse(
            grid,
            centre + sign * rng.uniform(0.16, 0.22) * along[::-1] * np.array([-1, 1]),
            np.array([0.18, 0.08]) * rng.uniform(0.9, 1.1, 2),
            angle + rng.uniform(-0.3, 0.3),
        )
        for sign in (-1, 1)
    ]
    soft_core, *soft_sides = (np.clip(0.5 + each * size * 0.13, 0, 1) for each in (core, *sides))
    shown = np.maximum(0.9 * soft_core, rng.uniform(0.35, 0.55) * np.maximum(*soft_sides))
    masks = np.stack([core > 0, *((core > 0) | (side > 0) for side in sides)])
    return shown, rng.permutation(masks)


def write_blobs(path: Path) -> None:
    """Write the images and masks of new blobs as `examples/blobs.py` does."""
    rng = np.random.default_rng(SEED)
    pictures, masks = zip(*(new_blob(rng, 32) for _ in range(PICTURES)))
    np.savez_compressed(
        path,
        frames=np.round(255 * np.stack(pictures)[:, None]).astype(np.uint8),
        answers=255 * np.stack(masks).astype(np.uint8),
    )


def futures(task: Task, which: int) -> Tensor:
    """Next frames (DRAWN, H, W) of a set whose digit has just been given a new velocity at a wall,
    drawn by the rule of world `free`. A coordinate at the wall counts as one that hit it."""
    world = task.world
    assert isinstance(world, Free)
    generator = torch.Generator().manual_seed(SEED + which)
    at = task.sequences.positions[which, -2].expand(DRAWN, 2)
    beyond = at - (at == 0).long() + (at == world.room).long()
    _, velocity, _ = world._released(beyond, torch.zeros_like(beyond), generator)
    after = (at + velocity).clamp(0, world.room)
    image = world.digits.images[task.sequences.which[which]]  # (1, S, S)
    return render(image[None], after[None, :, None], world.image_size)[0]


# ---------------------------------------------------------------- measuring


def evaluated(flags: str, data_root: str) -> tuple[Tensor, dict[str, Any], Task]:
    """Samples, record and task of an evaluation."""
    evaluation = assemble.evaluation([*flags.split(), "--data_root", data_root])
    samples, _, result = evaluation.run(progress=False)
    return samples, result, evaluation.task


def of_free(flags: str, data_root: str) -> dict[str, Any]:
    """The record in world `free`, with the energy score of the sets after a random choice and the
    spread of the centroids, in px, of the others."""
    samples, result, task = evaluated(flags, data_root)
    chosen = task.sequences.choices[:, -1]
    scores = [
        energy_score(samples[g : g + 1], futures(task, g), torch.full((1, DRAWN), 1 / DRAWN))
        for g in chosen.nonzero()[:, 0].tolist()
    ]
    spread = np.asarray(result["centroid_spread"]["per_set"])[~chosen.numpy()]
    return result | dict(
        energy_score=mean_interval(torch.cat(scores)), centroid_spread=mean_interval(spread)
    )


def both(flags: str, args: Any, run: Callable[[str, str], dict], name: str) -> list[dict]:
    """The records of independent and of guided sets, kept in the folder."""
    return [
        measure.kept(args.outdir / f"{name}-{kind}.json", lambda: run(own, args.data_root))
        for kind, own in (("independent", flags), ("guided", f"{flags} {GUIDED}"))
    ]


def measured(args: Any) -> dict[str, list[dict]]:
    """{task: the records of independent and guided sets}."""

    def usual(flags: str, data_root: str) -> dict:
        return evaluated(flags, data_root)[1]

    blobs = args.outdir / "blobs-new.npz"
    write_blobs(blobs)
    own = f"{BLOBS} --frames {blobs}"
    with patch.dict(data_loader.CLASS_WORLDS, halves=LeftHalves):
        left = both(f"{HALVES} --denoiser exact --digits mnist", args, usual, "left-half")
    return {
        "left half, exact": left,
        "other digits, network": both(f"{HALVES} --digits embedded", args, usual, "embedded"),
        "free, network": both(FREE, args, of_free, "free"),
        "new blobs, exact": both(f"{own} --denoiser exact", args, usual, "blobs-exact"),
        "new blobs, network": both(f"{own} --checkpoint blobs", args, usual, "blobs-network"),
    }


# ---------------------------------------------------------------- judging


@dataclass(frozen=True)
class Compared:
    """A number of independent and of guided sets, and the interval of their difference."""

    independent: float
    guided: float
    low: float
    high: float

    @property
    def ratio(self) -> float:
        return self.guided / self.independent


# Number of the prediction, task, key of the record, and whether what was measured meets it.
RULES: list[tuple[int, str, str, Callable[[Compared], bool]]] = [
    (1, "left half, exact", "coverage", lambda c: c.guided >= 0.93 and c.low > 0),
    (2, "left half, exact", "frequency_tv", lambda c: c.guided > c.independent),
    (3, "left half, exact", "energy_score", lambda c: 1 <= c.ratio <= 1.1),
    (4, "other digits, network", "coverage", lambda c: c.low > 0),
    (5, "other digits, network", "nearest_in_class", lambda c: c.ratio <= 1.1),
    (6, "free, network", "energy_score", lambda c: 0.89 <= c.ratio <= 0.98 and c.high < 0),
    (7, "free, network", "centroid_spread", lambda c: c.guided - c.independent < 0.25),
    (8, "new blobs, exact", "hm_iou", lambda c: c.guided >= 0.98 and c.low > 0),
    (9, "new blobs, network", "hm_iou", lambda c: c.guided - c.independent >= 0.03 and c.low > 0),
    (10, "new blobs, network", "mean_iou", lambda c: c.guided - c.independent >= -0.02),
]


def judge(results: dict[str, list[dict]]) -> list[dict]:
    """What was measured for each prediction, and whether it was met."""
    rows = []
    for number, task, key, met in RULES:
        values = [result[key] for result in results[task]]
        difference = None
        if isinstance(values[0], dict):
            apart = np.subtract(values[1]["per_set"], values[0]["per_set"])
            difference = brief(mean_interval(apart))
            values = brief(values)
        independent, guided = (
            value["mean"] if isinstance(value, dict) else value for value in values
        )
        low, high = difference["ci95"] if difference else (np.nan, np.nan)
        rows.append(
            dict(
                number=number,
                task=task,
                metric=key,
                independent=values[0],
                guided=values[1],
                difference=difference,
                met=bool(met(Compared(independent, guided, low, high))),
            )
        )
    return rows


def main(argv: list[str] | None = None) -> None:
    args = measure.arguments(PredictionSettings, argv)
    rows = judge(measured(args))
    lines = [
        [
            row["number"],
            row["task"],
            METRICS[row["metric"]].label,
            *(measure.number(row[key]) for key in ("independent", "guided", "difference")),
            "yes" if row["met"] else "**no**",
        ]
        for row in rows
    ]
    header = " | task | metric | independent | guided | difference | met"
    text = measure.table(header, lines)
    print(text)
    measure.save(args.outdir, "predictions", text + "\n", dict(rows=rows))


if __name__ == "__main__":
    main()
