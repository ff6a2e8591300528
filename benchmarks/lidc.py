"""Sets of outlines by four radiologists: bounds, the included network, and guidance.

    python examples/lidc.py --out lidc.npz
    python benchmarks/lidc.py --frames lidc.npz

An evaluation that is finished is kept in --outdir and not run again. Writes lidc.json, lidc.md and
lidc.png there.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch  # noqa: E402

import assemble  # noqa: E402
import checkpoint  # noqa: E402
import evaluate  # noqa: E402
from command_line import fail, make_parser  # noqa: E402
from config import Count, SettingError, WorldSettings  # noqa: E402
from drawing import Figure, save  # noqa: E402
from examples.lidc import READERS, bounds  # noqa: E402
from gallery import outlines  # noqa: E402
from names import METRICS  # noqa: E402
from own_frames import load_frames  # noqa: E402
from ranges import to_model_range, to_unit_range  # noqa: E402
from records import finished  # noqa: E402
from tasks import FramesTask  # noqa: E402

# A name, which is that of a folder too, and flags of evaluate.py.
METHODS = {
    "independent": "",
    "default": "--pg_factor 3",
    "guided": "--pg_factor 3 --pg_only_if_needed false",
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
    outdir: str = "runs/benchmark-lidc"
    """folder for evaluations and results"""


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
    """The metrics.json of an evaluation, which is run unless it is finished."""
    if not (outdir / "metrics.json").is_file():
        evaluate.main([*flags.split(), "--outdir", str(outdir)])
    return finished(str(outdir))[1]


def show(metric: dict[str, Any]) -> str:
    """A mean and its interval."""
    mean = f"{metric['mean']:.3f}"
    if metric["ci95"] is None:
        return mean
    low, high = metric["ci95"]
    return f"{mean} [{low:.3f}, {high:.3f}]"


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


def markdown(rows: list[dict[str, Any]], command: str, said: str) -> str:
    """The table under a line about it, and the command of the rows that were sampled."""
    titles = [METRICS[key].title for key in KEYS]
    lines = [f"| set of {READERS} | {' | '.join(titles)} |", "|---" * (1 + len(KEYS)) + "|"]
    for row in rows:
        values = [show(row["metrics"][key]) for key in KEYS]
        lines.append(f"| {row['name']} | {' | '.join(values)} |")
    table = "\n".join(lines)
    return f"{said}\n\n{table}\n\n    {command}\n"


def main(argv: list[str] | None = None) -> None:
    args = make_parser(BenchmarkSettings, description=__doc__.split("\n")[0]).parse_args(argv)
    outdir = Path(args.outdir)
    outdir.mkdir(parents=True, exist_ok=True)
    flags = f"--checkpoint {args.checkpoint} --frames {args.frames} --batch_size {READERS}"
    flags += f" --num_sets {args.num_sets} --device cpu"
    try:
        measured = bounds(args.frames, args.num_sets)
        path = assemble.find_checkpoint(args.checkpoint, "frames", None)
        measured["the network's mean, copied"] = mean_of_network(path, args.frames, args.num_sets)
    except SettingError as error:
        fail(str(error))
    for name, method in METHODS.items():
        measured[name] = run(f"{flags} {method}", outdir / name)
    rows = []
    for name, metrics in measured.items():
        kept = {key: {k: metrics[key][k] for k in ("mean", "ci95")} for key in KEYS}
        flags_of_row = METHODS.get(name, "")
        label = f"`{flags_of_row}`" if flags_of_row else name
        rows.append(dict(name=label, metrics=kept))
        print(f"{name:32} {', '.join(show(metrics[key]) for key in KEYS)}", flush=True)
    (outdir / "lidc.json").write_text(json.dumps(rows, indent=1))
    command = f"python evaluate.py {flags}"
    said = said_of_data(args.frames, args.num_sets)
    (outdir / "lidc.md").write_text(markdown(rows, command, said))
    figure, _ = outlines([str(outdir / name) for name in COLUMNS], list(DRAWN))
    assert isinstance(figure, Figure)
    save(figure, outdir / "lidc.png", dpi=80)
    print(f"written to {outdir}")


if __name__ == "__main__":
    main()
