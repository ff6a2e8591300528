#!/usr/bin/env python3
"""Train an EDM denoiser on a MovingMNIST world or on your data.

    python train.py --config configs/circle_jumping_small.yaml
    torchrun --nproc_per_node 4 train.py --config configs/circle_jumping.yaml
    python train.py --resume runs/NAME

Writes to --outdir: config.yaml, metrics.jsonl, samples-*.png, model.safetensors (the averaged
weights, which evaluate.py reads; on your data those with the lowest held-out loss),
state.safetensors (which --resume reads) and the state before it.
SIGTERM and Ctrl-C save before they end the training.
"""

from __future__ import annotations

import json
import math
import os
import shlex
import signal
import statistics
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Sequence

from tqdm import tqdm

from config import DigitSettings, TrainingSettings
from diverse_sampling.errors import SettingError, reject
from lab import records, tracking
from lab.command_line import (
    Parser,
    asks_for_config,
    claim,
    fail,
    make_parser,
    print_config,
    run_folder,
    run_program,
    this_process,
)
from lab.files import as_json, write_whole
from lab.processes import join, of_first, part

if TYPE_CHECKING:
    from lab.training import Training
    from worlds.own_data import OwnFrames

CODE = Path(__file__).resolve().parent
SPREAD_SETS, SPREAD_PARTICLES = 32, 4  # of held-out sequences, when a training has ended
AVERAGED_RECORDS = 10  # of metrics.jsonl, over which the loss of the last line is averaged


# ---------------------------------------------------------------- settings


def command_line() -> Parser:
    """The parser of train.py."""
    return make_parser(
        *TrainingSettings.groups(),
        description=__doc__.split("\n")[0],
    )


def parse(argv: Sequence[str] | None = None) -> tuple[TrainingSettings, Path | None]:
    """The settings of a command line, and the state to continue from (None: from the beginning).

    Precedence, weakest first: the defaults, the settings of the training that --resume names, those
    given by --config files, those given by flags. Raises SettingError.
    """
    parser = command_line()
    chosen = parser.given(argv)
    state = None
    before: dict[str, Any] = {}
    if chosen.get("resume") is not None:
        folder = Path(chosen["resume"])
        state = last_state(folder)
        before = settings_before(parser, folder, state)
    elif chosen.get("frames") is not None:
        before = dict(dataset="frames")
    if asks_for_config(argv):
        print_config(parser, before | chosen)
    settings = TrainingSettings.from_values(before | chosen)
    check(settings)
    if state is not None:
        from lab import checkpoint

        updates = checkpoint.read_metadata(state)["iteration"]
        if settings.train.iterations < updates:
            reject(
                "iterations",
                settings.train.iterations,
                f"{updates} or more; the training in {state.parent} has had {updates} updates",
            )
    return settings, state


def last_state(folder: Path) -> Path | None:
    """The newest intact state of a training, None before its first one.

    Warns where it is not the last one. Raises SettingError if all are damaged, and for a folder
    that holds no training.
    """
    from lab import checkpoint
    from lab.training import PREVIOUS, STATE

    states = [folder / name for name in (STATE, PREVIOUS) if (folder / name).exists()]
    if not states and not (folder / "config.yaml").is_file():
        problem = "has no config.yaml" if folder.is_dir() else "not found"
        reject("resume", str(folder), f"the folder of a training; {folder.absolute()} {problem}")
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
                print(f"WARNING: {problem}; continuing from {state.name}", file=sys.stderr)
            return state
    print(f"WARNING: {problem} in {folder}; starting from the beginning", file=sys.stderr)
    return None


def settings_before(parser: Parser, folder: Path, state: Path | None) -> dict[str, Any]:
    """The settings of a training to continue: those in its state or, before its first one, in its
    config.yaml. Raises SettingError."""
    from lab import checkpoint

    if state is None:
        recorded = parser.given(["--config", str(folder / "config.yaml")])
    else:
        recorded = checkpoint.read_metadata(state)["settings"]
    keys = TrainingSettings().record()
    return {key: value for key, value in recorded.items() if key in keys} | dict(
        resume=None, outdir=None
    )


def check(settings: TrainingSettings) -> None:
    """Refuse what no single group of settings can know. Raises SettingError."""
    world = settings.world
    if world.dataset == "mixture":
        reject(
            "dataset",
            "mixture",
            "a world of frames; the mixture's denoiser is exact and needs no training",
        )
    if settings.train.teacher is not None and (
        settings.train.target == "posterior" or world.dataset == "frames"
    ):
        reject(
            "teacher",
            settings.train.teacher,
            "none with target posterior or dataset frames; a student learns from a world of digits "
            "and from its teacher's samples alone",
        )
    countable = world.dataset == "circle_jumping" and world.num_digits == 1
    own = world.dataset == "frames" and world.num_cond_frames
    if settings.train.target == "posterior" and not (countable or own):
        reject(
            "target",
            "posterior",
            "drawn in this world; posterior needs circle_jumping with one digit, or dataset frames "
            "with conditioning frames",
        )
    if settings.model.motion and world.num_cond_frames == 0:
        reject("motion", settings.model.motion, "0 without conditioning frames to move")
    if world.answers == "none":
        reject("answers", "none", "given for a training, which learns from answers or next frames")
    if settings.train.augment not in (None, "none") and world.dataset != "frames":
        reject("augment", settings.train.augment, "none, or dataset frames; digits never run out")
    if settings.model.class_labels and world.dataset == "frames":
        reject("class_labels", True, "false with dataset frames, which has no digits")


def check_sides(settings: TrainingSettings, frame_shape: tuple[int, int]) -> None:
    """Refuse frames (height, width) in px that the network cannot halve as often as it has to, or
    that cannot be augmented."""
    model = settings.model
    augment = settings.train.augment
    height, width = frame_shape
    if augment not in (None, "none", "flips") and height != width:
        reject("augment", augment, f"none or flips for frames of {height} x {width} px, no squares")
    if any(side % model.multiple for side in frame_shape):
        reject(
            "frames" if settings.world.dataset == "frames" else "image_size",
            "x".join(map(str, frame_shape)),
            f"multiples of {model.multiple} px, which a patch_size of {model.patch_size} and "
            f"{len(model.channels)} resolutions need",
        )


def check_frames(settings: TrainingSettings, world: OwnFrames) -> None:
    """Refuse a user's frames that the network cannot take. Raises SettingError."""
    frames, answers = world.frames.levels.channels, world.answer_channels
    if settings.model.motion and frames != answers:
        reject(
            "motion",
            settings.model.motion,
            f"0 if a frame has {frames} channels and an answer {answers}",
        )


def check_memory(training: Training) -> None:
    """Refuse a batch whose parts do not fit into memory. Raises SettingError."""
    from diverse_sampling.devices import free_memory

    settings = training.settings.train
    part = settings.batch_size // training.ranks // settings.accumulate
    needed = part * training.bytes_per_image()
    free = free_memory(training.device)
    if needed > free:
        fits = part * free // needed
        reject(
            "batch_size",
            settings.batch_size,
            f"at most {max(1, fits) * training.ranks * settings.accumulate}, or accumulate = "
            f"{settings.accumulate * math.ceil(part / max(1, fits))}; {part} images of "
            f"{' x '.join(map(str, training.world.frame_shape))} px at a time need "
            f"{needed / 2**30:.0f} GiB, {free / 2**30:.0f} GiB are free",
        )


# ---------------------------------------------------------------- set-up


def setup(argv: Sequence[str] | None = None) -> tuple[Training, Path]:
    """The training that a command line describes, and its folder. Raises SettingError,
    FileNotFoundError or ValueError."""
    settings, state = parse(argv)
    from data_loader import load_world
    from diverse_sampling.devices import pick_device, set_precision, set_reproducible
    from lab.training import STATE, Training
    from worlds.own_data import OwnFrames

    device = pick_device(settings.run.device)
    set_precision(settings.run.precision)
    set_reproducible(settings.run.reproducible)
    join("nccl" if device.type == "cuda" else "gloo")
    world = load_world(settings.world, settings.digits, "train").to(device)
    settings = settings.made_with(records.origin(settings, world))
    check_sides(settings, world.frame_shape)
    if isinstance(world, OwnFrames):
        check_frames(settings, world)
    held_out = load_world(settings.world, settings.digits, "validation")
    if held_out is not None:
        held_out = held_out.to(device)
    if settings.train.teacher is None:
        training = Training(settings, device, world, held_out)
    else:
        from lab import assemble, checkpoint
        from lab.distil import Distillation

        path = assemble.named_checkpoint(settings.train.teacher)
        teacher, _ = checkpoint.load_denoiser(path, device)
        training = Distillation(settings, device, world, teacher)
    accumulate = settings.train.accumulate
    if settings.train.batch_size % (training.ranks * accumulate):
        reject(
            "batch_size",
            settings.train.batch_size,
            f"a multiple of {training.ranks} processes times accumulate = {accumulate}",
        )
    check_memory(training)
    if state is not None:
        training.load(state)
    if settings.train.resume is not None:
        return training, Path(settings.train.resume)
    outdir = None
    if this_process()[0] == 0:
        outdir = run_folder(settings.run.outdir, f"train-{world.dataset}")
        if (outdir / STATE).exists():
            reject(
                "outdir",
                str(outdir),
                f"a folder without a training in it; --resume {outdir} continues this one",
            )
        records.refuse_other_run(outdir, recorded(training))
    return training, of_first(outdir)


def recorded(training: Training) -> dict[str, Any]:
    """The record of a training's settings, wherever it lies and for however long it has run."""
    return training.settings.record() | dict(outdir=None, resume=None)


def begin(training: Training, outdir: Path) -> tracking.Tracker:
    """Record what is trained, and start to track it. Raises SettingError."""
    from figures.drawing import attempt, save
    from figures.sheets import examples_sheet
    from worlds.own_data import OwnFrames

    settings = training.settings
    record = recorded(training)
    records.begin(outdir, record)
    tracked = cut_log(outdir / "metrics.jsonl", training.iteration)
    tracker = tracking.start(
        settings.tracking,
        outdir,
        record,
        continued=settings.train.resume is not None,
        begin=training.iteration + 1,
        told=tracked,
    )
    meta = training.metadata()
    if isinstance(training.world, OwnFrames):
        world = training.world
        for line in (world.data.describe(), *world.data.notices):
            print(f"train.py: {line}", file=sys.stderr)
        attempt(lambda path: save(examples_sheet(world), path), outdir / "examples.png")
    print(
        f"{meta['parameters']:,} parameters, sigma_data {meta['sigma_data']:.3f}, digits: "
        f"{meta['digits_source']}, on {meta['machine']}, writing to {outdir}",
        file=sys.stderr,
    )
    return tracker


# ---------------------------------------------------------------- metrics.jsonl


def read_log(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl, without a last line that was cut off. Raises SettingError."""
    if not path.is_file():
        return []
    lines = path.read_text().splitlines(keepends=True)
    try:
        return [json.loads(line) for line in lines if line.endswith("\n")]
    except ValueError as error:
        reject("log", str(path), f"a line of JSON for each record ({error})")


def cut_log(path: Path, iteration: int) -> int:
    """Remove what was logged after `iteration`, which is about to be computed again.

    Returns the last iteration that had been logged, 0 where there is no log.
    """
    log = read_log(path)
    if path.is_file():
        before = [record for record in log if record["iteration"] <= iteration]
        write_whole(path, "".join(as_json(record) + "\n" for record in before))
    return max((record["iteration"] for record in log), default=0)


# ---------------------------------------------------------------- the training


class Interruption:
    """A context in which SIGTERM and Ctrl-C do not end the process; `signal` is the last one.

    Arguments:
        main: whether this process saves; the other processes of torchrun ignore the signals, they
            end with the one that saves
    """

    def __init__(self, main: bool):
        self.main = main
        self.signal: int | None = None

    def note(self, number: int, frame: Any) -> None:
        """The signal handler."""
        self.signal = number

    def __enter__(self) -> Interruption:
        handler = self.note if self.main else signal.SIG_IGN
        self.before = {
            number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)
        }
        return self

    def __exit__(self, *error: Any) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


class Progress:
    """The progress bar and the log of a training, metrics.jsonl.

    Arguments:
        training: what is trained
        outdir: its folder
        tracker: is told every record
    """

    def __init__(self, training: Training, outdir: Path, tracker: tracking.Tracker):
        self.main = training.rank == 0
        self.batch_size = training.settings.train.batch_size
        self.tracker = tracker
        self.log = open(outdir / "metrics.jsonl" if self.main else os.devnull, "a")
        self.bar = tqdm(
            total=training.settings.train.iterations,
            initial=training.iteration,
            unit="it",
            disable=None if self.main else True,
        )
        self.loss: float | None = None  # an exponential mean of the finite losses
        self.images = 0  # since the last record
        self.start = time.perf_counter()
        self.last: dict[str, Any] = {}  # the last record

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: Any) -> None:
        self.bar.close()
        self.log.close()

    def count(self) -> None:
        """One more update."""
        self.bar.update()
        self.images += self.batch_size

    def record(self, step: dict[str, Any]) -> None:
        """Show and log an update, a value that `Training` yields."""
        loss = float(step["loss"])
        held_out = step["held_out_loss"]
        if math.isfinite(loss):
            self.loss = loss if self.loss is None else 0.9 * self.loss + 0.1 * loss
        rate = self.images / (time.perf_counter() - self.start)
        self.images = 0
        self.start = time.perf_counter()
        shown = "-" if self.loss is None else f"{self.loss:.4f}"
        if held_out is not None:
            shown += f", held out {held_out:.4f}"
        self.bar.set_postfix_str(f"loss {shown}, {rate:.0f} img/s")
        self.last = dict(
            iteration=step["iteration"],
            loss=loss,
            grad_norm=float(step["grad_norm"]),
            lr_scale=step["lr_scale"],
            images_per_second=round(rate, 1),
        )
        if held_out is not None:
            self.last["held_out_loss"] = held_out
        if self.main:
            self.log.write(as_json(self.last) + "\n")
            self.log.flush()
            self.tracker.curve(self.last, step=step["iteration"])


def run(
    training: Training, outdir: Path, interruption: Interruption, tracker: tracking.Tracker
) -> None:
    """Make all updates; log, save and draw samples as often as the settings say.

    Checkpoints are written before pictures. Ends the program with exit code 128 + signal where it
    is interrupted.
    """
    from figures.drawing import attempt
    from worlds.own_data import OwnFrames

    settings = training.settings.train
    main = training.rank == 0
    held_out = training.held_out and training.held_out.world
    has_answers = isinstance(held_out, OwnFrames) and held_out.data.answers is not None
    with Progress(training, outdir, tracker) as progress:
        for step in training:
            progress.count()
            i = step["iteration"]
            last = i == settings.iterations
            if i % settings.log_every == 0 or last:
                loss = training.measure_held_out() if main else None
                progress.record(step | dict(held_out_loss=loss))
            if main and (i % settings.save_every == 0 or last or interruption.signal):
                training.save(outdir)
            if interruption.signal and not last:
                progress.bar.close()  # so that the message has a line of its own
                print(
                    f"stopped by {signal.Signals(interruption.signal).name} after {i} of "
                    f"{settings.iterations} updates; continue with --resume {outdir}",
                    file=sys.stderr,
                )
                sys.exit(128 + interruption.signal)
            if main and (last or settings.sample_every and i % settings.sample_every == 0):
                path = outdir / f"samples-{i:07d}.png"
                if attempt(lambda path: draw_samples(training, path), path):
                    tracker.picture(path, step=i)
            if main and last and has_answers:
                try:
                    training.spread = held_out_spread(training, outdir)
                    training.save_model(outdir)
                except SettingError as error:  # frames that are gone, or no room for a set
                    print(f"WARNING: the spread is not measured ({error})", file=sys.stderr)
            if main and last:
                tracker.results(progress.last)
                tracker.model(outdir / "model.safetensors", training.model_metadata())


def held_out_spread(training: Training, outdir: Path) -> dict[str, Any]:
    """How far samples are apart on held-out sequences, and how far their answers are, or the mean
    of the samples and the answer if there is one.

    The network is the one that was written to `outdir`. Returns some of the metrics of
    `metrics.answer_metrics`, without their values per set.
    """
    from lab import assemble
    from lab.experiments import brief
    from lab.training import MODEL

    run = training.settings.run
    values = dict(checkpoint=str(outdir / MODEL), num_sets=SPREAD_SETS, seed=run.seed)
    values |= dict(batch_size=SPREAD_PARTICLES, device=run.device, precision=run.precision)
    evaluation = assemble.set_up(*assemble.complete(values), split="validation")
    result = brief(evaluation.run(progress=False)[2])
    several = ("iou_distance", "answers_iou_distance", "distance_to_answers", "excess_spread")
    keys = (*several, "spread_skill", "num_sets")  # those of several answers a case, or of one
    return {key: result[key] for key in keys if key in result}


def draw_samples(training: Training, path: Path) -> None:
    """Write a sheet of four independent sets of eight samples from the averaged weights."""
    import torch

    from diverse_sampling.denoiser import to_model_range, to_unit_range
    from diverse_sampling.noise import ParticleNoise, set_generator
    from diverse_sampling.defaults import SIGMA_MAX
    from diverse_sampling.few_calls import renewed_schedule
    from diverse_sampling.steps import edm_schedule, integrate, karras_sigmas
    from figures.drawing import save
    from figures.sheets import sample_sheet
    from worlds.channels import as_images, in_colours

    world = training.world
    windows = world.windows(4, set_generator(training.seed, 0, device=training.device))
    cond, _ = windows.split(world.cond_channels, world.answer_channels)
    shape = (world.answer_channels, *world.frame_shape)
    noise = ParticleNoise(training.seed, range(4), range(8), shape, training.device)
    if training.settings.train.teacher is None:
        schedule = edm_schedule(karras_sigmas(18))
    else:  # one call of a student
        schedule = renewed_schedule(torch.tensor([SIGMA_MAX], dtype=torch.float64))
    with torch.no_grad():
        denoise = training.ema.bind(to_model_range(cond) if world.num_cond_frames else None)
        x = integrate(denoise, noise() * schedule.sigmas[0], schedule)
    samples = in_colours(as_images(to_unit_range(x), world.label_classes), world.label_classes)
    if world.num_cond_frames:
        cond = as_images(cond.unflatten(1, (world.num_cond_frames, -1)))
    title = f"iteration {training.iteration}, independent samples"
    save(sample_sheet(cond.cpu(), samples.cpu(), title=title), path)


def train(training: Training, outdir: Path, tracker: tracking.Tracker) -> None:
    """Run a training to its end, or to what stops it.

    Exit codes: 128 + signal where it is interrupted, 1 for a full disk or divergence.
    """
    from diverse_sampling.devices import out_of_memory
    from lab.training import STATE, Diverged

    try:
        with Interruption(training.rank == 0) as interruption:
            run(training, outdir, interruption, tracker)
    except (OSError, Diverged, MemoryError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        if out_of_memory(error):
            reason = "out of memory; a larger --accumulate or a smaller --batch_size needs less"
        elif not isinstance(error, (OSError, Diverged)):
            raise
        state = f"; the checkpoint in {outdir} is as it was" if (outdir / STATE).is_file() else ""
        print(
            f"train.py: stopped after {training.iteration} updates: {reason}{state}",
            file=sys.stderr,
        )
        sys.exit(1)
    part()


# ---------------------------------------------------------------- the last line


def summary(settings: TrainingSettings, outdir: Path) -> str:
    """What a finished training says: where it was written, its loss, and how to sample from it."""
    log = read_log(outdir / "metrics.jsonl")
    losses = [record["loss"] for record in log]
    finite = [loss for loss in losses if loss is not None][-AVERAGED_RECORDS:]
    parts = [f"written to {outdir}"]
    if finite:
        averaged = f" (mean of the last {len(finite)} records)" if len(finite) > 1 else ""
        parts.append(f"loss {statistics.fmean(finite):.4f}{averaged}")
    held_out = [
        (record["held_out_loss"], record["iteration"])
        for record in log
        if record.get("held_out_loss") is not None
    ]
    if held_out:
        lowest, iteration = min(held_out)
        parts.append(
            f"held-out loss {lowest:.4f} after {iteration} updates, whose weights are kept"
        )
    command = sampling_command(settings, outdir)
    if command is not None:
        parts.append(f"sample with: {command}")
    return "; ".join(parts)


def sampling_command(settings: TrainingSettings, outdir: Path) -> str | None:
    """The command that samples from a trained network; None where evaluate.py has no task for it.

    The checkpoint holds the settings of its world, but not where test digits come from.
    """
    world = settings.world
    if world.num_cond_frames == 0 and world.dataset not in ("centered", "frames"):
        return None
    script = CODE / "evaluate.py"
    words = ["python", script.name if Path(script.name).is_file() else str(script)]
    words += ["--checkpoint", str(outdir / "model.safetensors")]
    if world.dataset != "frames":
        if settings.digits.digits in ("mnist", "embedded"):
            words += ["--digits", settings.digits.digits]
        if settings.digits.data_root != DigitSettings.data_root:
            words += ["--data_root", settings.digits.data_root]
    return shlex.join(words)


def main(argv: list[str] | None = None) -> None:
    """Start or continue a training; a mistake ends with one line and exit code 2."""
    try:
        training, outdir = setup(argv)
        first = training.rank == 0
        lock = claim(outdir) if first else nullcontext()
        tracker = begin(training, outdir) if first else tracking.Tracker()
    except (SettingError, FileNotFoundError, ValueError) as error:
        fail(str(error))
    with lock, tracker:
        train(training, outdir, tracker)
    if first:
        print(summary(training.settings, outdir))


if __name__ == "__main__":
    run_program(main)
