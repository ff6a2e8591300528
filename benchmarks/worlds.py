"""Frames per second that the worlds draw, and their share of a training step.

    python benchmarks/worlds.py

The loader that is compared with builds every sequence by itself, frame by frame, in Python.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Callable, Literal

sys.path.insert(0, str(Path(__file__).parent.parent))

import measure  # noqa: E402

from command_line import make_parser  # noqa: E402
from config import Count, Dataset, DigitSettings, WorldSettings  # noqa: E402
from devices import pick_device  # noqa: E402

CONFIGS: dict[Dataset, str] = {
    "circle_jumping": "circle_jumping_small",
    "horizontal": "horizontal_p50",
    "free": "free",
}


@dataclass
class WorldBenchmarkSettings:
    """Worlds"""

    sequences: Count = 512
    """in a batch"""
    repetitions: Count = 10
    """of everything, interleaved"""
    digits: Literal["mnist", "embedded"] = "embedded"
    """where digits come from"""
    data_root: str = "data"
    """folder of torchvision's MNIST"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """where to run"""
    outdir: str = "runs/benchmark-worlds"
    """folder for the results"""


def one_by_one(world, n: int, generator) -> None:
    """The same sequences, but each for itself and frame by frame."""
    import torch

    for _ in range(n):
        images, _ = world.draw_digits(1, generator)
        positions, _ = world.motion(1, generator)
        frames = torch.zeros(world.seq_len, world.image_size, world.image_size)
        for t, (y, x) in enumerate(positions[0, :, 0].tolist()):
            frames[t, y : y + world.digit_size, x : x + world.digit_size] = images[0, 0].cpu()


def share_of_a_step(name: Dataset, args) -> dict:
    """Time to draw a training batch over the whole update, with the included network's config."""
    import torch

    import train

    with tempfile.TemporaryDirectory() as outdir:
        training, _ = train.setup(
            [
                "--config",
                f"configs/{CONFIGS[name]}.yaml",
                "--digits",
                args.digits,
                "--data_root",
                args.data_root,
                "--device",
                args.device,
                "--outdir",
                outdir,
            ]
        )
    steps, n, generator = (
        iter(training),
        training.settings.train.batch_size,
        torch.Generator(training.device),
    )
    times = measure.interleaved(
        dict(update=lambda: next(steps), world=lambda: training.world.windows(n, generator)),
        args.repetitions,
        training.device.type,
    )
    return measure.ratio(times, "world", "update")


def main(argv: list[str] | None = None) -> None:
    args = make_parser(WorldBenchmarkSettings, description=__doc__.split("\n")[0]).parse_args(argv)
    import torch

    from data_loader import load_world

    device = pick_device(args.device)
    digits = DigitSettings(args.digits, args.data_root)
    generator, n = torch.Generator(device).manual_seed(0), args.sequences
    runs: dict[str, Callable[[], Any]] = {}
    frames: dict[str, int] = {}
    for name in CONFIGS:
        settings = WorldSettings(dataset=name, deterministic=False)
        world: Any = load_world(settings, digits, "train").to(device)
        runs |= {
            name: partial(world.sequences, n, generator),
            f"{name}, one by one": partial(one_by_one, world, n // 16, generator),
        }
        frames |= {name: n * world.seq_len, f"{name}, one by one": n // 16 * world.seq_len}
    times = measure.interleaved(runs, args.repetitions, device.type)
    result, rows = {}, []
    for name in CONFIGS:
        rate = measure.spread([frames[name] / t for t in times[name]])
        slow = measure.spread(
            [frames[f"{name}, one by one"] / t for t in times[f"{name}, one by one"]]
        )
        share = share_of_a_step(name, args)
        result[name] = dict(frames_per_second=rate, one_by_one=slow, share_of_a_training_step=share)
        rows.append(
            [
                name,
                f"{rate['median']:,.0f} ({rate['lowest']:,.0f} to {rate['highest']:,.0f})",
                f"{slow['median']:,.0f}",
                f"{100 * share['median']:.1f}%",
            ]
        )
    text = measure.table(
        ["world", "frames/s", "one by one in Python", "share of a training step"], rows
    )
    measure.write(
        args.outdir, "worlds", text, device.type, sequences=n, digits=args.digits, results=result
    )


if __name__ == "__main__":
    main()
