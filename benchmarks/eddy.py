"""Is the gain of a divergence-free field one of discretisation? EDDY over the number of steps.

    python benchmarks/eddy.py                   # 400 sets in the plane, 100 on the exact circle
    python benchmarks/eddy.py --num_sets 50     # a first look

The exact field keeps the distribution of each particle, and of independent particles their joint
distribution too: from independent noise it then finds as many modes as independent draws. Modes
and frequencies are measured at 15, 60 and 300 steps of EDM's sampler, from independent and from
simplex noise, with the exact denoisers of ten Gaussians in the plane (ten particles) and of the
circle (eight directions, eight particles). A finished cell stays in --outdir. Writes eddy.json,
eddy.md and eddy.png there.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import measure

from config import Count
from figures.charts import over_steps
from figures.drawing import save
from lab import assemble, experiments
from lab.metrics import mean_interval

# Flags of each world, and the strength of the field. Ten times that leaves the data.
WORLDS = {
    "Gaussians in the plane": ("--dataset mixture --batch_size 10", 1.0),
    "exact circle": ("--dataset circle_jumping --batch_size 8", 1.0),
}
STEPS = (15, 60, 300)
NOISES = ("iid", "simplex")
FEWER = 4  # on the circle: a quarter of the sets, which take longer


@dataclass
class BenchmarkSettings:
    """Benchmark"""

    num_sets: Count = 400
    """sets in the plane; a quarter of them on the circle"""
    data_root: str = "data"
    """folder of torchvision's MNIST"""


def cells(num_sets: int, data_root: str, outdir: Path) -> list[dict[str, Any]]:
    """{world, noise, steps, alone, field: results of metrics.json, gain} of every combination.

    `gain` is the mean over sets of how many modes more the field finds from the same noise.
    """
    rows = []
    for world, (flags, factor) in WORLDS.items():
        sets = num_sets if world == next(iter(WORLDS)) else max(2, num_sets // FEWER)
        for noise in NOISES:
            for steps in STEPS:
                common = f"--denoiser exact {flags} --noise {noise} --num_steps {steps}"
                common += f" --num_sets {sets} --data_root {data_root} --device cpu"
                row: dict[str, Any] = dict(world=world, noise=noise, steps=steps, factor=factor)
                methods = dict(alone="none", field=f"eddy --pg_factor {factor}")
                for name, method in methods.items():
                    argv = [*common.split(), "--guidance", *method.split()]
                    row[name] = experiments.run_cell(*assemble.parse(argv), outdir)
                found = [row[name]["modes_found"]["per_set"] for name in methods]
                settings = row["alone"]["settings"]
                most = min(row["alone"]["modes_total"], settings["batch_size"])
                gains = [b - a for a, b in zip(*found)]
                row["gain"] = mean_interval(gains, (-most, most), step=1)
                rows.append(row)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Modes and frequencies without and with the field."""
    header = (
        "world | noise | steps | modes alone | with the field | gain"
        " | frequencies off by (chance) | with the field | within 3 sd or quality"
    )
    lines = []
    for row in rows:
        results = [row["alone"], row["field"]]
        fit = [result.get("within_3_sd", result["quality"]) for result in results]
        fit = [each if isinstance(each, float) else each["mean"] for each in fit]
        low, high = row["gain"]["ci95"]
        lines.append(
            [
                *(row[key] for key in ("world", "noise", "steps")),
                *(experiments.interval(result["modes_found"]) for result in results),
                f"{row['gain']['mean']:+.2f} [{low:+.2f}, {high:+.2f}]",
                *(experiments.audit_entry(result, "frequency_tv") for result in results),
                f"{fit[0]:.3f}, {fit[1]:.3f}",
            ]
        )
    return measure.table(header, lines)


def main(argv: list[str] | None = None) -> None:
    args = measure.arguments(BenchmarkSettings, argv)
    rows = cells(args.num_sets, args.data_root, args.outdir)
    counts = {row["world"]: row["alone"]["num_sets"] for row in rows}
    sets = ", ".join(f"{count} in each cell of {world}" for world, count in counts.items())
    note = f"Sets: {sets}. Brackets are 95% intervals; a gain is of pairs with the same noise."
    text = f"{table(rows)}\n\n{note}"
    measure.write(args.outdir, "eddy", text, samples=True, rows=experiments.brief(rows))
    save(over_steps(rows), args.outdir / "eddy.png")


if __name__ == "__main__":
    main()
