"""Training speed, where the time of an update goes, and that splitting a batch changes nothing.

    python benchmarks/training.py
    python benchmarks/training.py --network configs/circle_jumping.yaml --device cuda

The first measures the included circle_jumping network, the second one of the thesis's size.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import measure

from config import Count
from diverse_sampling.devices import pick_device

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
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """where to run"""


def start(config: str, device: str, *flags: str):
    """A training on embedded digits that writes nothing."""
    import train

    argv = ["--config", config, "--digits", "embedded", "--device", device]
    with tempfile.TemporaryDirectory() as folder:
        return train.setup([*argv, "--outdir", folder, *flags])[0]


def speed(args) -> tuple[str, dict]:
    """Images per second of every precision, compiled or not."""
    variants = {}
    for precision in ("float32", "bfloat16"):
        variants[precision] = ["--precision", precision]
    if args.compile:
        for precision, flags in list(variants.items()):
            variants[f"{precision}, compiled"] = [*flags, "--compile", "true"]
    trainings = {name: start(args.network, args.device, *flags) for name, flags in variants.items()}
    steps = {name: iter(training) for name, training in trainings.items()}

    def updates(name):
        return lambda: [next(steps[name]) for _ in range(args.updates)]

    runs = {name: updates(name) for name in variants}
    times = measure.interleaved(runs, args.repetitions, args.device)
    n, result, rows = args.updates * trainings["float32"].settings.train.batch_size, {}, []
    for name in variants:
        rate, faster = measure.rate(times[name], n), measure.ratio(times, "float32", name)
        result[name] = dict(images_per_second=rate, times_as_fast_as_float32=faster)
        rows.append([name, measure.shown(rate, 0), measure.shown(faster)])
    return measure.table("update | images/s | times as fast as float32", rows), result


def profile(args) -> tuple[str, dict]:
    """The operations that an update spends most of its time in."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    training = start(args.network, args.device)
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
    rows = [[f"`{name}`", f"{100 * share:.1f}%"] for name, share in shares.items()]
    return measure.table("operation | share of an update's time", rows), shares


WORKER = """
import sys, train
from lab import checkpoint
training, outdir = train.setup(sys.argv[1:])
losses = [float(step["loss"]) for step in training]
if training.rank == 0:
    training.save(outdir)
    (outdir / "losses.txt").write_text(" ".join(map(repr, losses)))
if training.ranks > 1:
    import torch.distributed as dist
    dist.destroy_process_group()
"""


def same_batch(args) -> tuple[str, dict]:
    """Weights and losses after 20 updates on the same batches, whole in one process or split."""
    from lab import checkpoint

    flags = f"--config {args.network} --digits embedded --optimizer adam --iterations 20"
    environment = dict(PYTHONPATH=str(measure.ROOT), OMP_NUM_THREADS="1")

    def train(ranks: int, split: list[str]) -> tuple[dict, list[float]]:
        with tempfile.TemporaryDirectory() as folder:
            script, out = Path(folder, "worker.py"), Path(folder, "run")
            script.write_text(WORKER)
            command = [*measure.launch(script, ranks), *flags.split(), *split, "--device", "cpu"]
            subprocess.run(
                [*command, "--outdir", str(out)],
                check=True,
                cwd=measure.ROOT,
                capture_output=True,
                env=os.environ | environment,
            )
            weights = checkpoint.read_tensors(out / "state.safetensors")
            losses = [float(loss) for loss in (out / "losses.txt").read_text().split()]
        return {key: value for key, value in weights.items() if key.startswith("net.")}, losses

    weights, losses = train(1, [])
    result, rows = {}, []
    for name, how in SAME_BATCH.items():
        other, others = train(*how)
        largest = max(float((weights[key] - other[key]).abs().max()) for key in weights)
        of_loss = max(abs(a - b) for a, b in zip(losses, others))
        result[name] = dict(weights=largest, losses=of_loss)
        rows.append([name, f"{largest:.1e}", f"{of_loss:.1e}"])
    header = "the same batch | largest difference of a weight after 20 updates | of a loss"
    return measure.table(header, rows), result


def main(argv: list[str] | None = None) -> None:
    args = measure.arguments(TrainingBenchmarkSettings, argv)
    args.device = pick_device(args.device).type
    parts = {part.__name__: part(args) for part in (speed, profile, same_batch)}
    about = dict(network=args.network, repetitions=args.repetitions)
    measure.write_parts(args.outdir, "training", parts, args.device, **about)


if __name__ == "__main__":
    main()
