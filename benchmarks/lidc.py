"""Sets of outlines by four radiologists: bounds, the included networks, and guidance.

    python examples/lidc.py --out lidc.npz
    python benchmarks/lidc.py --frames lidc.npz
    python examples/lidc.py --given others --out lidc_others.npz
    python benchmarks/lidc.py --frames lidc_others.npz --checkpoint lidc_others \\
        --outdir runs/benchmark-lidc_others

An evaluation that is finished is kept in --outdir and not run again. Writes lidc.json, lidc.md and
lidc.png there; lidc_others.json and so on if the outlines of three others are given.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import measure
import torch

import evaluate
from config import Count
from diverse_sampling.defaults import SAMPLES_VERSION
from diverse_sampling.denoiser import to_model_range, to_unit_range
from diverse_sampling.errors import SettingError
from examples.lidc import READERS, bounds, test_task
from figures.drawing import save
from figures.sheets import outline_sheet
from lab import assemble, checkpoint
from lab.command_line import fail
from lab.experiments import interval
from lab.files import read_json
from lab.names import METRICS
from lab.records import finished
from lab.tasks import FramesTask

# A name, which is that of a folder too, and flags of evaluate.py.
METHODS = {
    "independent": "",
    "default": "--pg_factor 5",
    "guided": "--pg_factor 5 --pg_only_if_needed false",
}
KEYS = ("hm_iou", "ged", "ci_score", "d_max", "mean_iou", "iou_distance", "distance_to_answers")
# The same if there is one answer, of which no training measures whether guidance is needed.
METHODS_OF_ONE = {"independent": "", "many": "--batch_size 16", "guided": "--pg_factor 5"}
KEYS_OF_ONE = (
    *("mean_iou", "hm_iou", "energy_score", "fair_energy_score", "spread_skill"),
    *("iou_distance", "distance_to_answers"),
)
DRAWN = 4  # sets in the picture, the first ones
COLUMNS = ("independent", "guided")  # of the picture


@dataclass
class BenchmarkSettings:
    """Benchmark"""

    frames: str = "lidc.npz"
    """the file that examples/lidc.py wrote"""
    checkpoint: str = "lidc"
    """trained network: a file that train.py wrote, or the name of an included one"""
    num_sets: Count = 603
    """test sequences"""


def mean_of_network(path: Path, task: FramesTask, particles: int) -> dict[str, Any]:
    """The metrics of sets of one mask, the network's posterior mean, binarised: of noise without a
    trace of an image it makes the mean of all outlines that it holds for possible."""
    net, _ = checkpoint.load_denoiser(path)
    means = []
    with torch.no_grad():
        for cond in to_model_range(task.cond).split(64):
            x = torch.zeros(len(cond), 1, *cond.shape[2:])
            means.append(net(x, torch.tensor(80.0), cond))
    mean = to_unit_range(torch.cat(means))  # (G, 1, H, W)
    return task.measure((mean > 0.5).float().repeat(1, particles, 1, 1))[0]


def run(flags: str, outdir: Path) -> dict[str, Any]:
    """The metrics.json of an evaluation, which is run unless it is finished, in this version."""
    path = outdir / "metrics.json"
    if not path.is_file() or read_json(path).get("version") != SAMPLES_VERSION:
        evaluate.main([*flags.split(), "--outdir", str(outdir)])
    return finished(str(outdir))[1]


def said_of_data(task: FramesTask, particles: int) -> str:
    """A line about the sequences, and about the sets of the table."""
    data = task.world.data
    parts = {split: data.splits.count(split) for split in ("train", "validation", "test")}
    of_each = ", ".join(f"{split} {count:,}" for split, count in parts.items())
    patients = len(set(data.cases.groups))
    return (
        f"{len(data.splits):,} sequences of {patients} patients: {of_each}. The table has "
        f"{task.num_sets} sets of {particles}, each for another test sequence. Brackets are 95% "
        "intervals."
    )


def main(argv: list[str] | None = None) -> None:
    args = measure.arguments(BenchmarkSettings, argv)
    try:
        measured = bounds(args.frames, args.num_sets)
        task = test_task(args.frames, args.num_sets)
        others = task.cond.shape[1] > 1
        particles = READERS - others
        path = assemble.checkpoint_of(dict(checkpoint=args.checkpoint, dataset="frames"))
        assert path is not None  # of a trained denoiser
        measured["the network's mean, copied"] = mean_of_network(path, task, particles)
    except SettingError as error:
        fail(str(error))
    flags = f"--checkpoint {args.checkpoint} --frames {args.frames} --batch_size {particles}"
    flags += f" --num_sets {args.num_sets} --device cpu"
    for name, method in (METHODS_OF_ONE if others else METHODS).items():
        label = f"`{method}`" if method else name
        measured[label] = run(f"{flags} {method}", args.outdir / name)
    keys = KEYS_OF_ONE if others else KEYS
    rows, lines = [], []
    for name, metrics in measured.items():
        kept = {key: {k: metrics[key][k] for k in ("mean", "ci95")} for key in keys}
        rows.append(dict(name=name, metrics=kept))
        lines.append([name, *map(interval, kept.values())])
    titles = " | ".join(METRICS[key].title for key in keys)
    table = measure.table(f"set of {particles} | {titles}", lines)
    text = f"{said_of_data(task, particles)}\n\n{table}\n"
    text_and_flags = f"{text}\n    python evaluate.py {flags}\n"
    record = "lidc_others" if others else "lidc"
    measure.save(args.outdir, record, text_and_flags, dict(rows=rows))
    print(text)
    columns = {name: finished(str(args.outdir / name))[0] for name in COLUMNS}
    first = columns[COLUMNS[0]]
    figure = outline_sheet(
        first["cond"][:DRAWN].mean(1),
        first["answers"][:DRAWN],
        [(name, arrays["samples"][:DRAWN]) for name, arrays in columns.items()],
    )
    save(figure, args.outdir / f"{record}.png", dpi=80)


if __name__ == "__main__":
    main()
