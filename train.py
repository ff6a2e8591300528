#!/usr/bin/env python3
"""Train an EDM denoiser on a MovingMNIST world.

    python train.py --config configs/circle_jumping_small.yaml
    torchrun --nproc_per_node 4 train.py --config configs/circle_jumping.yaml
    python train.py --resume runs/NAME

Writes to --outdir: config.yaml, metrics.jsonl, samples-*.png, model.safetensors (the
EMA weights, what evaluate.py reads) and state.safetensors (what --resume reads, and the one before it). SIGTERM and
Ctrl-C save first.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

import tracking
from command_line import claim, fail, make_parser, run_folder, run_program, silent
from config import (
    DigitSettings,
    ModelSettings,
    RunSettings,
    SettingError,
    TrackingSettings,
    OptimizationSettings,
    WorldSettings,
    as_yaml,
    build,
    record,
    reject,
)

GROUPS: tuple[type, ...] = (
    WorldSettings,
    DigitSettings,
    ModelSettings,
    OptimizationSettings,
    RunSettings,
    TrackingSettings,
)


def sample_sheet(training, path: Path) -> None:
    """Four i.i.d. sets of eight from the EMA weights: a glance at how far the training is."""
    import torch

    from drawing import save
    from noise import SetNoise, set_generator
    from sampler import edm_sampler, karras_sigmas
    from sheets import sample_sheet as draw

    windows = training.world.windows(4, set_generator(training.seed, 0, device=training.device))
    cond, _ = windows.split(training.world.num_cond_frames)
    noise = SetNoise(training.seed, range(4), (8, 1, *training.world.frame_shape), training.device)
    sigmas = karras_sigmas(18, 0.002, 80.0, 7.0)
    with torch.no_grad():
        denoise = training.ema.bind(cond * 2 - 1 if cond.shape[1] else None)
        images = edm_sampler(denoise, noise() * sigmas[0], sigmas)
    save(
        draw(
            cond, (images[:, :, 0] + 1) / 2, title=f"iteration {training.iteration}, i.i.d. samples"
        ),
        path,
    )


class Interruption:
    """While it is entered, SIGTERM and Ctrl-C are noted in `signal` instead of ending the process. Processes of
    torchrun other than the `main` one ignore them: they end with the one that saves."""

    def __init__(self, main: bool):
        self.main = main
        self.signal: int | None = None

    def note(self, number: int, frame) -> None:
        """The signal handler."""
        self.signal = number

    def __enter__(self):
        self.before = {
            number: signal.signal(number, self.note if self.main else signal.SIG_IGN)
            for number in (signal.SIGTERM, signal.SIGINT)
        }
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


def run(training, outdir: Path, interruption: Interruption, tracker: tracking.Tracker) -> None:
    """The loop around the loop: progress, records, sheets, checkpoints."""
    settings, mean = training.settings, None
    main = training.rank == 0
    images, clock = 0, time.perf_counter()
    with (
        open(outdir / "metrics.jsonl", "a") as log,
        tqdm(
            total=settings.iterations,
            initial=training.iteration,
            unit="it",
            disable=None if main else True,
        ) as bar,
    ):
        for step in training:
            bar.update()
            images += settings.batch_size
            i, last = step["iteration"], step["iteration"] == settings.iterations
            if i % settings.log_every == 0 or last:
                loss = float(step["loss"])
                mean = loss if mean is None else 0.9 * mean + 0.1 * loss
                rate = images / (time.perf_counter() - clock)
                images, clock = 0, time.perf_counter()
                bar.set_postfix_str(f"loss {mean:.4f}, {rate:.0f} img/s")
                if main:
                    line = dict(
                        iteration=i,
                        loss=loss,
                        grad_norm=float(step["grad_norm"]),
                        lr_scale=step["lr_scale"],
                        images_per_second=round(rate, 1),
                    )
                    log.write(json.dumps(line) + "\n")
                    log.flush()
                    tracker.curve(line, step=i)
            if main and (i % settings.save_every == 0 or last or interruption.signal):
                training.save(outdir)
            if interruption.signal and not last:
                bar.close()  # so that the message has a line of its own
                print(
                    f"stopped by {signal.Signals(interruption.signal).name} after {i} of {settings.iterations} "
                    f"updates; go on with --resume {outdir}",
                    file=sys.stderr,
                )
                sys.exit(128 + interruption.signal)
            if main and (settings.sample_every and i % settings.sample_every == 0 or last):
                path = outdir / f"samples-{i:07d}.png"
                sample_sheet(training, path)
                tracker.picture(path, step=i)
            if main and last:
                tracker.results(line)
                tracker.model(outdir / "model.safetensors", training.metadata())


def load_bank(digits: DigitSettings, world: WorldSettings):
    """Training digits: one source, or "both" mixed one to one."""
    from data_loader import load_digits

    def bank(source):
        return load_digits(
            source,
            "train",
            size=world.digit_size,
            data_root=digits.data_root,
            timeout=digits.download_timeout,
        )

    return (
        bank("mnist").mixed_with(bank("embedded"))
        if digits.digits == "both"
        else bank(digits.digits)
    )


def last_state(folder: Path) -> Path | None:
    """The newest state of a run that is whole, None before its first; says so if it is not the last one.
    Raises SettingError."""
    import checkpoint
    from training_loop import PREVIOUS, STATE

    states = [folder / name for name in (STATE, PREVIOUS) if (folder / name).exists()]
    if not states and not (folder / "config.yaml").is_file():
        reject("resume", str(folder), "the folder of a training")
    problem = "there is no checkpoint yet"
    for state in states:
        try:
            checkpoint.read_tensors(state)
        except SettingError as error:
            problem = str(error)
            if state == states[-1]:
                raise
        else:
            if state.name != STATE:
                print(f"WARNING: {problem}; going on from {state.name}", file=sys.stderr)
            return state
    print(f"WARNING: {problem} in {folder}; starting from the beginning", file=sys.stderr)
    return None


def parse(argv: list[str] | None) -> tuple[tuple, Path | None]:
    """One object per settings class, and the state to go on from. Raises SettingError."""
    parser = make_parser(*GROUPS, description=__doc__.split("\n")[0], usage="%(prog)s [options]")
    args, state = parser.parse_args(silent(argv)), None
    if args.resume:
        import checkpoint

        state = last_state(Path(args.resume))
        before = (
            yaml.safe_load(Path(args.resume, "config.yaml").read_text())
            if state is None
            else checkpoint.read_metadata(state)["settings"]
        )
        parser.set_defaults(before | dict(resume=None, outdir=None))
    elif args.frames is not None:
        parser.set_defaults(dataset="frames")
    args = parser.parse_args(argv)
    groups: tuple[Any, ...] = tuple(build(group, args) for group in GROUPS)
    world, _, model, settings, _, _ = groups
    if world.dataset == "mixture":
        reject(
            "dataset",
            "mixture",
            "a world of frames; the mixture's denoiser is exact and needs no training",
        )
    if settings.target == "posterior" and (
        world.dataset != "circle_jumping" or world.num_digits > 1
    ):
        reject(
            "target",
            "posterior",
            "drawn in this world; posterior needs circle_jumping with one digit",
        )
    if model.class_labels and world.dataset == "frames":
        reject("class_labels", True, "false with frames, which have none")
    return groups, state


def setup(argv: list[str] | None):
    """(the Training, its folder, the record of its settings); continues the run that --resume names."""
    groups, state = parse(argv)
    import torch
    import torch.distributed as dist

    from data_loader import make_world
    from training_loop import STATE, Training

    world_settings, digits, model, settings, run_settings, _ = groups
    everything = record(*groups)
    from devices import pick_device

    device = pick_device(run_settings.device)
    if "RANK" in os.environ:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(device)
    world: Any
    if world_settings.dataset == "frames":
        from frame_files import load_frames

        world = load_frames(world_settings, "train").to(device)
    else:
        world = make_world(world_settings, load_bank(digits, world_settings).to(device))
    if any(side % model.multiple for side in world.frame_shape):
        reject(
            "frames" if world.dataset == "frames" else "image_size",
            "x".join(map(str, world.frame_shape)),
            f"multiples of {model.multiple} px, which a patch_size of {model.patch_size} and {len(model.channels)} "
            "resolutions ask for",
        )
    training = Training(everything, device, world)
    if settings.batch_size % (training.ranks * settings.accumulate):
        reject(
            "batch_size",
            settings.batch_size,
            f"a multiple of {training.ranks} processes times accumulate = {settings.accumulate}",
        )
    if state is not None:
        training.load(state)
    if settings.resume:
        return training, Path(settings.resume), everything
    outdir = run_folder(run_settings.outdir, f"train-{world.dataset}")
    if (outdir / STATE).exists():
        reject(
            "outdir",
            str(outdir),
            f"a folder without a training in it; --resume {outdir} goes on with this one",
        )
    return training, outdir, everything


def cut_log(path: Path, iteration: int) -> int:
    """Forget what was logged after `iteration`: it is about to be done again. Returns how far the log went."""
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    whole = [(json.loads(line)["iteration"], line) for line in lines if line.endswith("\n")]
    if lines:
        path.write_text("".join(line for i, line in whole if i <= iteration))
    return max((i for i, _ in whole), default=0)


def begin(training, outdir: Path, everything: dict) -> tracking.Tracker:
    """Write down what is trained, and start to track it. Raises SettingError."""
    (outdir / "config.yaml").write_text(as_yaml(everything))
    told = cut_log(outdir / "metrics.jsonl", training.iteration)
    tracker = tracking.start(
        build(TrackingSettings, everything),
        outdir,
        everything,
        continued=everything["resume"] is not None,
        begin=training.iteration + 1,
        told=told,
    )
    meta = training.metadata()
    print(
        f"{meta['parameters']:,} parameters, sigma_data {meta['sigma_data']:.3f}, digits: "
        f"{meta['digits_source']}, on {meta['machine']}, writing to {outdir}",
        file=sys.stderr,
    )
    return tracker


def train(training, outdir: Path, tracker: tracking.Tracker) -> None:
    """Run it to its end, or to what stops it: exit codes 128 + signal, and 1 for a full disk or divergence."""
    from training_loop import STATE, Diverged

    try:
        with Interruption(training.rank == 0) as interruption:
            run(training, outdir, interruption, tracker)
    except (OSError, Diverged) as error:
        kept = f"; the checkpoint in {outdir} is as it was" if (outdir / STATE).is_file() else ""
        print(
            f"train.py: stopped after {training.iteration} updates: {' '.join(str(error).split())}{kept}",
            file=sys.stderr,
        )
        sys.exit(1)
    if training.ranks > 1:
        import torch.distributed as dist

        dist.destroy_process_group()


def main(argv: list[str] | None = None) -> None:
    """Train or go on training; a mistake ends with one line and exit code 2."""
    try:
        training, outdir, everything = setup(argv)
        first = training.rank == 0
        lock = claim(outdir) if first else nullcontext()
        tracker = begin(training, outdir, everything) if first else tracking.Tracker()
    except (SettingError, FileNotFoundError, ValueError) as error:
        fail(str(error))
    with lock, tracker:
        train(training, outdir, tracker)


if __name__ == "__main__":
    run_program(main)
