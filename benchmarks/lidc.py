"""Sets of outlines by four radiologists: bounds, the included network, and guidance.

    python examples/lidc.py --out lidc.npz
    python benchmarks/lidc.py --frames lidc.npz

An evaluation that is finished is kept in --outdir and not run again. Writes lidc.json, lidc.md and
lidc.png there.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import measure
import torch

import evaluate
from config import Count, WorldSettings
from diverse_sampling.defaults import SAMPLES_VERSION
from diverse_sampling.denoiser import to_model_range, to_unit_range
from diverse_sampling.errors import SettingError
from examples.lidc import READERS, bounds
from figures.drawing import Figure, save
from figures.gallery import outlines
from lab import assemble, checkpoint
from lab.command_line import fail
from lab.experiments import interval
from lab.files import read_json
from lab.names import METRICS
from lab.records import finished
from lab.tasks import FramesTask
from worlds.own_data import load_frames

# A name, which is that of a folder too, and flags of evaluate.py.
METHODS = {
    "independent": "",
    "default": "--pg_factor 5",
    "guided": "--pg_factor 5 --pg_only_if_needed false",
}
KEYS = ("hm_iou", "ged", "mean_iou", "iou_distance", "distance_to_answers")
DRAWN = (0, 1, 2, 3)  # sets in the picture
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


def mean_of_network(path: Path, frames: str, num_sets: int) -> dict[str, Any]:
    """The metrics of sets that hold the network's posterior mean four times, binarised: of noise
    without a trace of an image it makes the mean of all outlines that it holds for possible."""
    world = load_frames(WorldSettings(dataset="frames", frames=frames), "test")
    task = FramesTask(world, min(num_sets, len(world)), seed=0)
    net, _ = checkpoint.load_denoiser(path)
    assert task.answers is not None
    means = []
    with torch.no_grad():
        for cond in to_model_range(task.cond).split(64):
            x = torch.zeros(len(cond), 1, *task.answers.shape[2:])
            means.append(net(x, torch.tensor(80.0), cond))
    mean = to_unit_range(torch.cat(means))  # (G, 1, H, W)
    return task.measure((mean > 0.5).float().repeat(1, READERS, 1, 1))[0]


def run(flags: str, outdir: Path) -> dict[str, Any]:
    """The metrics.json of an evaluation, which is run unless it is finished, in this version."""
    path = outdir / "metrics.json"
    if not path.is_file() or read_json(path).get("version") != SAMPLES_VERSION:
        evaluate.main([*flags.split(), "--outdir", str(outdir)])
    return finished(str(outdir))[1]


def said_of_data(frames: str, num_sets: int) -> str:
    """A line about the sequences, and about the sets of the table."""
    data = load_frames(WorldSettings(dataset="frames", frames=frames), "test").data
    parts = {split: data.splits.count(split) for split in ("train", "validation", "test")}
    of_each = ", ".join(f"{split} {count:,}" for split, count in parts.items())
    patients = len(set(data.cases.groups))
    sets = min(num_sets, parts["test"])
    return (
        f"{len(data.splits):,} sequences of {patients} patients: {of_each}. The table has {sets} "
        f"sets of {READERS}, each for another test sequence. Brackets are 95% intervals."
    )


def main(argv: list[str] | None = None) -> None:
    args = measure.arguments(BenchmarkSettings, argv)
    flags = f"--checkpoint {args.checkpoint} --frames {args.frames} --batch_size {READERS}"
    flags += f" --num_sets {args.num_sets} --device cpu"
    try:
        measured = bounds(args.frames, args.num_sets)
        path = assemble.checkpoint_of(dict(checkpoint=args.checkpoint, dataset="frames"))
        assert path is not None  # of a trained denoiser
        measured["the network's mean, copied"] = mean_of_network(path, args.frames, args.num_sets)
    except SettingError as error:
        fail(str(error))
    for name, method in METHODS.items():
        label = f"`{method}`" if method else name
        measured[label] = run(f"{flags} {method}", args.outdir / name)
    rows, lines = [], []
    for name, metrics in measured.items():
        kept = {key: {k: metrics[key][k] for k in ("mean", "ci95")} for key in KEYS}
        rows.append(dict(name=name, metrics=kept))
        lines.append([name, *map(interval, kept.values())])
    titles = " | ".join(METRICS[key].title for key in KEYS)
    table = measure.table(f"set of {READERS} | {titles}", lines)
    text = f"{said_of_data(args.frames, args.num_sets)}\n\n{table}\n"
    text_and_flags = f"{text}\n    python evaluate.py {flags}\n"
    measure.save(args.outdir, "lidc", text_and_flags, dict(rows=rows))
    print(text)
    figure, _ = outlines([str(args.outdir / name) for name in COLUMNS], list(DRAWN))
    assert isinstance(figure, Figure)
    save(figure, args.outdir / "lidc.png", dpi=80)


if __name__ == "__main__":
    main()
