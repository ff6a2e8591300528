"""Frames per second that the worlds draw, and their share of a training step.

    python benchmarks/worlds.py

The loader that is compared with builds every sequence by itself, frame by frame, in Python.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Callable, Literal

import measure
import training

from config import Count, Dataset, DigitSettings, WorldSettings
from diverse_sampling.devices import pick_device

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
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """where to run"""


def one_by_one(world, n: int, generator) -> None:
    """The same sequences, but each for itself and frame by frame."""
    import torch

    for _ in range(n):
        which = torch.randint(len(world.digits.labels), (1,), generator=generator)
        image = world.digits.images[which].cpu()
        positions, _ = world.motion(1, generator)
        frames = torch.zeros(world.seq_len, world.image_size, world.image_size)
        for t, (y, x) in enumerate(positions[0, :, 0].tolist()):
            frames[t, y : y + world.digit_size, x : x + world.digit_size] = image[0]


def share_of_a_step(config: str, device: str, repetitions: int) -> dict[str, float]:
    """Time to draw a training batch over the whole update."""
    import torch

    started = training.start(f"configs/{config}.yaml", device)
    steps, generator = iter(started), torch.Generator(started.device)
    draw = partial(started.world.windows, started.settings.train.batch_size, generator)
    runs = dict(update=lambda: next(steps), world=draw)
    return measure.ratio(measure.interleaved(runs, repetitions, device), "world", "update")


def main(argv: list[str] | None = None) -> None:
    args = measure.arguments(WorldBenchmarkSettings, argv)
    import torch

    from data_loader import load_world

    device = pick_device(args.device)
    generator, n = torch.Generator(device).manual_seed(0), args.sequences
    few = n // 16
    runs: dict[Any, Callable[[], Any]] = {}
    length = {}
    for name in CONFIGS:
        settings = WorldSettings(dataset=name, deterministic=False)
        world: Any = load_world(settings, DigitSettings("embedded"), "train").to(device)
        runs[name] = partial(world.sequences, n, generator)
        runs[name, "one by one"] = partial(one_by_one, world, few, generator)
        length[name] = world.seq_len
    times = measure.interleaved(runs, args.repetitions, device.type)
    result, rows = {}, []
    for name, config in CONFIGS.items():
        rate = measure.rate(times[name], n * length[name])
        slow = measure.rate(times[name, "one by one"], few * length[name])
        share = share_of_a_step(config, device.type, args.repetitions)
        result[name] = dict(frames_per_second=rate, one_by_one=slow, share_of_a_training_step=share)
        percent = f"{100 * share['median']:.1f}%"
        rows.append([name, measure.shown(rate, 0), f"{slow['median']:,.0f}", percent])
    header = "world | frames/s | one by one in Python | share of a training step"
    text = measure.table(header, rows)
    about = dict(sequences=n, digits="embedded")
    measure.write(args.outdir, "worlds", text, device.type, **about, results=result)


if __name__ == "__main__":
    main()
