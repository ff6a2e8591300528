"""Training speed, where the time of an update goes, and that splitting a batch changes nothing.

    python benchmarks/training.py
    python benchmarks/training.py --network configs/circle_jumping.yaml --device cuda

The first measures the included circle_jumping network, the second one of the thesis's size.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import measure  # noqa: E402

from command_line import make_parser  # noqa: E402
from config import Count  # noqa: E402
from devices import pick_device  # noqa: E402

SAME_BATCH = {
    "accumulate 4": (1, ["--accumulate", "4"]),
    "2 processes, gloo": (2, []),
    "2 processes, accumulate 2": (2, ["--accumulate", "2"]),
}


@dataclass
class TrainingBenchmarkSettings:
    """Training"""

    network: str = "configs/circle_jumping_small.yaml"
    """the training config"""
    updates: Count = 5
    """in a repetition"""
    repetitions: Count = 5
    """of everything, interleaved"""
    compile: bool = True
    """measure torch.compile too"""
    digits: Literal["mnist", "embedded"] = "embedded"
    """where digits come from"""
    data_root: str = "data"
    """folder of torchvision's MNIST"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """where to run"""
    outdir: str = "runs/benchmark-training"
    """folder for the results"""


def start(args, outdir: str, *flags: str):
    import train

    argv = [
        "--config",
        args.network,
        "--digits",
        args.digits,
        "--data_root",
        args.data_root,
        "--device",
        args.device,
        "--outdir",
        outdir,
        *flags,
    ]
    return train.setup(argv)[0]


def speed(args, outdir: str) -> tuple[str, dict]:
    """Images per second of every precision, compiled or not."""
    variants = {"float32": [], "bfloat16": ["--precision", "bfloat16"]}
    if args.compile:
        variants |= {
            f"{name}, compiled": [*flags, "--compile", "true"] for name, flags in variants.items()
        }
    trainings = {
        name: start(args, outdir, "--precision", "float32", *flags)
        for name, flags in variants.items()
    }
    steps = {name: iter(training) for name, training in trainings.items()}

    def updates(name):
        return lambda: [next(steps[name]) for _ in range(args.updates)]

    times = measure.interleaved(
        {name: updates(name) for name in variants}, args.repetitions, args.device
    )
    n, result, rows = args.updates * trainings["float32"].settings.train.batch_size, {}, []
    for name in variants:
        rate = measure.spread([n / t for t in times[name]])
        faster = measure.ratio(times, "float32", name)
        result[name] = dict(images_per_second=rate, times_as_fast_as_float32=faster)
        rows.append(
            [
                name,
                f"{rate['median']:.0f} ({rate['lowest']:.0f} to {rate['highest']:.0f})",
                measure.shown(faster),
            ]
        )
    return measure.table(["update", "images/s", "times as fast as float32"], rows), result


def profile(args, outdir: str) -> tuple[str, dict]:
    """The operations that an update spends most of its time in."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    training = start(args, outdir)
    steps = iter(training)
    next(steps)
    cuda = training.device.type == "cuda"
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if cuda else [])
    with profiler(activities=activities) as record:
        for _ in range(args.updates):
            next(steps)
    own = lambda event: event.self_device_time_total if cuda else event.self_cpu_time_total
    events = sorted(record.key_averages(), key=own, reverse=True)
    total = sum(map(own, events))
    shares = {event.key: own(event) / total for event in events[:12]}
    return measure.table(
        ["operation", "share of an update's time"],
        [[f"`{name}`", f"{100 * share:.1f}%"] for name, share in shares.items()],
    ), shares


WORKER = """
import sys, train, checkpoint
training, outdir = train.setup(sys.argv[1:])
losses = [float(step["loss"]) for step in training]
if training.rank == 0:
    training.save(outdir)
    (outdir / "losses.txt").write_text(" ".join(map(repr, losses)))
if training.ranks > 1:
    import torch.distributed as dist
    dist.destroy_process_group()
"""


def same_batch(args, outdir: str) -> tuple[str, dict]:
    """Weights and losses after 20 updates on the same batches, whole in one process or split."""
    import checkpoint

    def train(name: str, ranks: int, flags: list[str]) -> tuple[dict, list[float]]:
        folder = Path(outdir, name.replace(" ", "-").replace(",", ""))
        script = Path(outdir, "worker.py")
        script.write_text(WORKER)
        subprocess.run(
            [
                *measure.launch(script, ranks),
                "--config",
                args.network,
                "--digits",
                "embedded",
                "--optimizer",
                "adam",
                "--device",
                "cpu",
                "--iterations",
                "20",
                "--outdir",
                str(folder),
                *flags,
            ],
            check=True,
            cwd=ROOT,
            capture_output=True,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )
        weights = checkpoint.read_tensors(folder / "state.safetensors")
        return (
            {key: value for key, value in weights.items() if key.startswith("net.")},
            [float(loss) for loss in (folder / "losses.txt").read_text().split()],
        )

    weights, losses = train("whole", 1, [])
    result = {}
    for name, (ranks, flags) in SAME_BATCH.items():
        other, others = train(name, ranks, flags)
        result[name] = dict(
            weights=max(float((weights[key] - other[key]).abs().max()) for key in weights),
            losses=max(abs(a - b) for a, b in zip(losses, others)),
        )
    return measure.table(
        ["the same batch", "largest difference of a weight after 20 updates", "of a loss"],
        [[name, f"{r['weights']:.1e}", f"{r['losses']:.1e}"] for name, r in result.items()],
    ), result


def main(argv: list[str] | None = None) -> None:
    args = make_parser(TrainingBenchmarkSettings, description=__doc__.split("\n")[0]).parse_args(
        argv
    )
    args.device = pick_device(args.device).type
    with tempfile.TemporaryDirectory() as outdir:
        parts = {part.__name__: part(args, outdir) for part in (speed, profile, same_batch)}
    measure.write(
        args.outdir,
        "training",
        "\n\n".join(text for text, _ in parts.values()),
        args.device,
        network=args.network,
        repetitions=args.repetitions,
        **{name: result for name, (_, result) in parts.items()},
    )


if __name__ == "__main__":
    main()
