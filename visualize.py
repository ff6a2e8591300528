#!/usr/bin/env python3
"""Draw what train.py and evaluate.py work with.

    python visualize.py samples runs/NAME                  # the sets of an evaluation
    python visualize.py trajectory runs/NAME --set 0       # x_n and D(x_n) over its denoising steps
    python visualize.py animation runs/NAME runs/OTHER     # one set of each as a film, a GIF
    python visualize.py dataset --dataset horizontal       # what a world looks like
    python visualize.py schedule --rho [3,4,7]             # noise levels over the steps
    python visualize.py heatmap runs/e5-quick --threshold 7.5    # what an experiment found; also prior, frontier
    python visualize.py norms runs/e3-quick                # its sets, sampled again; also strip, mean, umap
    python visualize.py report runs/NAME runs/OTHER        # all of one or several evaluations, an HTML file

Each command writes one file, a PNG where nothing else is said, to --out or where it says.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Optional

from jsonargparse import Namespace
from tqdm import tqdm

from command_line import HelpFormatter, Parser, fail, make_parser, run_program
from config import (
    Count,
    CountOrZero,
    DigitSettings,
    Many,
    Positive,
    SamplerSettings,
    Seed,
    SettingError,
    WorldSettings,
    build,
    reject,
)
from records import experiment_of, finished, label, named, rows_of, run_file


@dataclass
class Output:
    """Output"""

    out: Optional[str] = None
    """file to write (null: a name that says what it is, in the run's folder or here)"""


@dataclass
class Rows:
    """Rows"""

    num_sequences: Count = 6
    """sequences to draw"""
    seed: Seed = 0
    """seed of everything random"""


@dataclass
class OneSet:
    """One set"""

    set: CountOrZero = 0
    """which set of the run, from 0"""


@dataclass
class Cells:
    """Cells"""

    value: Literal["modes_found", "quality", "confidence", "hm_iou"] = "modes_found"
    """what to show"""
    threshold: Optional[float] = None
    """frame the cells that are this good or better, in units of value"""


@dataclass
class Sets:
    """Sets"""

    num_each: Count = 3
    """sets of each kind"""


@dataclass
class Map:
    """Map"""

    num_digits: Count = 2000
    """real test digits to fit it on"""


@dataclass
class Particles:
    """Particles"""

    num_particles: Count = 3
    """how many of its particles, from the first"""


@dataclass
class Schedules:
    """Schedules"""

    rho: Many[Positive] = (3.0, 4.0, 7.0)
    """exponents to compare"""
    num_steps: Count = SamplerSettings.num_steps
    """steps from sigma_max to 0"""
    sigma_min: Positive = SamplerSettings.sigma_min
    """last noise level before 0: a standard deviation, of images in [-1, 1]"""
    sigma_max: Positive = SamplerSettings.sigma_max
    """first noise level, likewise"""
    p_mean: Many[float] = (-1.2, 0.8)
    """means of ln sigma in training to compare"""
    p_std: Positive = 1.2
    """standard deviation of ln sigma in training"""


def samples(args: Namespace):
    """samples.png again, from samples.npz and metrics.json"""
    from sheets import result_sheet

    return result_sheet(*finished(args.run)), Path(args.run) / "samples.png"


def trajectory(args: Namespace):
    """x_n and D(x_n) of one set over the denoising steps, sampled again as the run did"""
    import torch

    from sheets import trajectory as draw

    job = again(args.run, args.set)
    if job.world.dataset == "mixture":
        reject("run", args.run, "a run in a world of frames; particles in the plane have none")
    steps: list[dict] = []
    job.sample_all(sets=torch.tensor([args.set]), callback=steps.append)
    shown = slice(0, args.num_particles)
    x, denoised = (
        torch.stack([step[key][0, shown, 0] for step in steps]).cpu()
        for key in ("x_hat", "denoised")
    )
    sigmas = torch.stack([step["sigma_hat"] for step in steps])
    return (
        draw(x, denoised, sigmas, title=f"set {args.set} of {args.run}"),
        Path(args.run) / f"trajectory-{args.set}.png",
    )


def animation(args: Namespace):
    """x_n and D(x_n) of one set of each evaluation over the denoising steps, a GIF (sampled again, without redraws)"""
    import torch

    from sheets import DenoisedSet, denoising

    sets = []
    for run in args.run:
        job = again(run, args.set)
        if job.world.dataset == "mixture":
            reject("run", run, "a run in a world of frames; particles in the plane have none")
        trace = job.trace(torch.tensor([args.set]))
        alike = trace["samples"].expand(
            job.evaluate.num_sets, -1, -1, -1
        )  # a judge wants a sample of every set
        modes = job.judge(alike)[1]
        found = (
            "" if modes is None else f": {len(modes[args.set].unique())} of {job.world.modes_total}"
        )
        given = job.cond[args.set, -1] if job.cond.shape[1] else None
        own = None if modes is None else modes[args.set]
        sets.append(DenoisedSet(Path(run).resolve().name + found, given, trace, own))
    return denoising(sets), Path(args.run[0] if len(args.run) == 1 else "") / "animation.gif"


def dataset(args: Namespace):
    """sequences of a world, with the way of each digit and the frames of random choices"""
    from data_loader import load_digits, make_world
    from frame_files import Frames, load_frames
    from noise import set_generator
    from sheets import world_sheet
    from worlds import World

    settings, digits = build(WorldSettings, args), build(DigitSettings, args)
    if digits.digits == "both":
        reject("digits", "both", "auto, mnist or embedded for a picture")
    if settings.dataset == "mixture":
        reject("dataset", "mixture", "a world of frames")
    world: World | Frames = (
        load_frames(settings, "train")
        if settings.dataset == "frames"
        else make_world(
            settings,
            load_digits(
                digits.digits,
                "train",
                size=settings.digit_size,
                data_root=digits.data_root,
                timeout=digits.download_timeout,
            ),
        )
    )
    batch = world.sequences(args.num_sequences, set_generator(args.seed, 0))
    figure = world_sheet(
        batch.frames,
        batch.positions,
        batch.choices,
        digit_size=settings.digit_size,
        title=f"{settings.dataset} ({named(settings.dataset, world.source)}); orange: a random choice",
    )
    return figure, Path(f"dataset-{settings.dataset}.png")


def schedule(args: Namespace):
    """noise levels over the steps for several rho, and those of the training"""
    from charts import schedules
    from sampler import karras_sigmas

    curves = {}
    for rho in args.rho:
        s = SamplerSettings(args.num_steps, args.sigma_min, args.sigma_max, rho)
        curves[rf"$\rho$ = {rho:g}"] = karras_sigmas(s.num_steps, s.sigma_min, s.sigma_max, s.rho)
    densities = {f"N({mean:g}, {args.p_std:g}²)": (mean, args.p_std) for mean in args.p_mean}
    return schedules(curves, densities), Path("schedule.png")


def heatmap(args: Namespace):
    """a number over the grid of an experiment, one panel per kernel or model"""
    from charts import heatmap as draw

    rows, title = experiment_of(args.run)
    if len(rows[0]["cell"]) < 2:
        reject("run", args.run, "an experiment with two axes or more")
    if not all(row["result"].get(args.value) for row in rows):
        reject("value", args.value, "a number that every cell of this experiment has")
    return draw(rows, args.value, args.threshold, title), Path(
        args.run
    ) / f"heatmap-{args.value}.png"


def prior(args: Namespace):
    """shares of samples that go right against the priors of the training (e8)"""
    from charts import prior as draw

    rows, title = experiment_of(args.run)
    if rows[0]["result"]["dataset"] != "horizontal" or "sampler" not in rows[0]["cell"]:
        reject("run", args.run, "an experiment in horizontal with an axis sampler, such as e8")
    return draw(rows, title), Path(args.run) / "prior.png"


def frontier(args: Namespace):
    """modes found against quality, a curve per method (e10)"""
    from charts import frontier as draw

    rows, title = experiment_of(args.run)
    if "method" not in rows[0]["cell"] or not rows[0]["result"]["quality"]:
        reject("run", args.run, "an experiment with an axis method and a quality, such as e10")
    return draw(rows, title), Path(args.run) / "frontier.png"


def norms(args: Namespace):
    """distances inside a set and its drifts per step, sampled again"""
    import torch

    from charts import norms as draw
    from evaluate import setup

    traces = {}
    for row in tqdm(rows_of(args.run), unit="cell", disable=None):
        job = setup(row["flags"])
        check_set(args.set, args.run, job)
        traces[label(row) or args.run] = job.trace(torch.tensor([args.set]))
    return draw(traces), Path(args.run) / "norms.png"


def strip(args: Namespace):
    """the first set in every cell of an experiment, sampled again, with what the whole cell reached"""
    import torch

    from evaluate import setup
    from sheets import sample_sheet

    rows, given, sets, modes, notes = rows_of(args.run), [], [], [], []
    for row in tqdm(rows, unit="cell", disable=None):
        job = setup([*row["flags"], "--num_sets", "1"])
        sets.append(job.sample_all(progress=False))
        given.append(job.cond)
        found = row["result"]["modes_found"]
        modes.append(job.judge(sets[-1])[1])
        judged = row["result"]["quality"] or row["result"]["confidence"]
        notes.append((f"{found['mean']:.2f} found, " if found else "") + f"{judged['mean']:.2f}")
    figure = sample_sheet(
        torch.cat(given),
        torch.cat(sets),
        modes=None if modes[0] is None else torch.cat(modes),
        notes=notes,
        labels=[label(row) for row in rows],
        max_sets=len(rows),
    )
    return figure, Path(args.run) / "strip.png"


def mean(args: Namespace):
    """means of large sets, determined and not (e4), sampled again"""
    import torch

    from evaluate import setup
    from sheets import mean_sheet

    row = rows_of(args.run)[0]
    job, result = setup(row["flags"]), row["result"]
    if not job.world.num_cond_frames:
        reject("run", args.run, "a run whose samples are conditioned on frames")
    choices = job.sequences.choices[:, -1]
    chosen: list[int] = []
    names: list[str] = []
    for name, mask in (("determined", ~choices), ("random", choices)):
        some = mask.nonzero()[: args.num_each, 0].tolist()
        chosen, names = chosen + some, names + [name] * len(some)
    samples = job.sample_all(sets=torch.tensor(chosen))
    notes = [
        f"L2 {result['pairwise_l2']['per_set'][g]:.2f}, spread {result['centroid_spread']['per_set'][g]:.2f} px"
        for g in chosen
    ]
    return mean_sheet(job.cond[chosen], samples, names, notes), Path(args.run) / "mean.png"


def umap(args: Namespace):
    """digits found, on a map of what the judging classifier sees in real ones (e1)"""
    import numpy as np
    import torch

    from charts import umap_map
    from evaluate import setup

    rows, kept = rows_of(args.run), Path(args.run) / "umap.npz"
    if rows[0]["result"]["task"] != "unconditional":
        reject("run", args.run, "an unconditional run, such as e1")
    if not kept.is_file():
        from umap import UMAP

        import checkpoint
        from metrics import recognise, without_background
        from train_classifier import centred

        judge, sets, modes = checkpoint.load_classifier("judge"), [], []
        for row in tqdm(rows, unit="cell", desc="sets", disable=None):
            job = setup(row["flags"])
            check_set(args.set, args.run, job)
            sets.append(without_background(job.sample(torch.tensor([args.set])))[0])
            modes.append(recognise(sets[-1][None], judge)[0][0])
        digits = job.world.digits
        some = torch.randperm(len(digits.labels), generator=torch.Generator().manual_seed(0))[
            : args.num_digits
        ]
        frames = torch.cat([centred(digits, job.world.image_size)[some], *sets])
        with torch.no_grad():
            features = torch.cat([judge.features(part) for part in frames.split(500)]).numpy()
        fitted = UMAP(random_state=0, n_jobs=1, tqdm_kwds=dict(disable=None, bar_format=None)).fit(
            features[: len(some)]
        )
        points = fitted.transform(features[len(some) :])
        np.savez(
            kept,
            digits=fitted.embedding_,
            labels=digits.labels[some].numpy(),
            particles=points.reshape(len(rows), -1, 2),
            found=torch.stack(modes).numpy(),
        )
    with np.load(kept, allow_pickle=False) as file:
        digits, labels, particles, found = (
            torch.from_numpy(file[key]) for key in ("digits", "labels", "particles", "found")
        )
    names = [f"{label(row)}\n{len(modes.unique())} of 10" for row, modes in zip(rows, found)]
    return umap_map(digits, labels, particles, found, names), Path(args.run) / "umap.png"


def report(args: Namespace):
    """an HTML file of one or several evaluations: settings, metrics, all sets, the steps of one (sampled again)"""
    import torch

    from report import gather, page

    runs = []
    for run in args.run:
        arrays, result = finished(run)
        job = again(run, args.set)
        runs.append(gather(run, result, arrays, job, args.set, job.trace(torch.tensor([args.set]))))
    return page(runs), Path(args.run[0] if len(args.run) == 1 else "") / "report.html"


def again(run: str, number: int):
    """The evaluation in a folder, set up again to sample its set `number`. Raises SettingError."""
    from evaluate import setup

    job = setup(["--config", str(run_file(run, "config.yaml"))])
    check_set(number, run, job)
    return job


def check_set(number: int, run: str, job) -> None:
    """Raises SettingError if the run has no set of this number."""
    if number >= job.evaluate.num_sets:
        reject("set", number, f"0 to {job.evaluate.num_sets - 1}, the sets of {run}")


COMMANDS = {
    samples: (Output,),
    heatmap: (Cells, Output),
    prior: (Output,),
    frontier: (Output,),
    norms: (OneSet, Output),
    strip: (Output,),
    mean: (Sets, Output),
    umap: (Map, OneSet, Output),
    trajectory: (OneSet, Particles, Output),
    animation: (OneSet, Output),
    report: (OneSet, Output),
    dataset: (WorldSettings, DigitSettings, Rows, Output),
    schedule: (Schedules, Output),
}

OF_RUNS = (animation, report)  # one or several
OF_A_RUN = (samples, trajectory, heatmap, prior, frontier, norms, strip, mean, umap, *OF_RUNS)


def parse(argv: list[str] | None) -> tuple[str, Namespace]:
    """(the command's name, its settings)."""
    parser = Parser(
        description=__doc__.split("\n")[0],
        default_env=False,
        allow_abbrev=False,
        formatter_class=HelpFormatter,
    )
    commands = parser.add_subcommands(required=True, dest="command")
    for function, groups in COMMANDS.items():
        command = make_parser(*groups, description=function.__doc__)
        if function in OF_A_RUN:
            command.add_argument(
                "run",
                type=str,
                nargs="+" if function in OF_RUNS else None,
                help="folder that evaluate.py wrote",
            )
        commands.add_subcommand(function.__name__, command, help=function.__doc__)
    args = parser.parse_args(argv)
    return args.command, args[args.command]


def draw(argv: list[str] | None) -> Path:
    """Do what a command line asks for; returns the picture's file."""
    name, args = parse(argv)
    try:
        drawn, path = next(function for function in COMMANDS if function.__name__ == name)(args)
        path = Path(args.out or path)
        if isinstance(drawn, str):
            path.write_text(drawn, encoding="utf-8")
        else:
            from drawing import save

            save(drawn, path)
    except (SettingError, FileNotFoundError, ValueError, OSError) as error:
        fail(str(error), prog=f"visualize.py {name}")
    return path


def main(argv: list[str] | None = None) -> None:
    """Write one file and say where; a mistake ends with one line and exit code 2."""
    print(f"written to {draw(argv)}")


if __name__ == "__main__":
    run_program(main)
