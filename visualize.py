#!/usr/bin/env python3
"""Draw worlds, schedules, and what evaluate.py found.

    python visualize.py samples runs/NAME                  # the sets of an evaluation
    python visualize.py trajectory runs/NAME --set 0       # x_n and D(x_n) over the denoising steps
    python visualize.py animation runs/NAME runs/OTHER     # one set of each over the steps, a GIF
    python visualize.py outlines runs/NAME runs/OTHER      # masks: outlines, correct and sampled
    python visualize.py report runs/NAME runs/OTHER        # settings, metrics and sets, as HTML
    python visualize.py decisions runs/NAME runs/OTHER     # where it is decided what samples show
    python visualize.py dataset --dataset horizontal       # sequences of a world
    python visualize.py schedule --rho 3,4,7               # noise levels over the steps
    python visualize.py heatmap runs/e5-quick --threshold 7.5    # a metric over an experiment

`prior`, `frontier` and `scaling` draw the results of other experiments; `norms`, `strip`, `mean`
and `umap` sample their sets again. Each command writes one file, a PNG unless stated otherwise, and
prints its path; --out chooses another path.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Literal, Optional, Sequence

from command_line import Parser, fail, make_parser, run_program
from config import (
    Count,
    CountOrZero,
    DigitSettings,
    Positive,
    SamplerSettings,
    Seed,
    SettingError,
    WorldSettings,
    build,
    reject,
)
from names import named

if TYPE_CHECKING:
    from gallery import Picture

# ---------------------------------------------------------------- settings


@dataclass
class Output:
    """Output"""

    out: Optional[str] = None
    """file to write (null: a name that says what it shows, in the folder of the run; for several
    runs, or for none, in the working directory)"""


@dataclass
class Rows:
    """Rows"""

    num_sequences: Count = 6
    """number of sequences to draw"""
    seed: Seed = 0
    """seed of everything random"""


@dataclass
class OneSet:
    """One set"""

    set: CountOrZero = 0
    """number of the set within its run, from 0"""


@dataclass
class SomeSets:
    """Sets"""

    sets: Sequence[CountOrZero] = (0, 1, 2)
    """numbers of the sets to draw, from 0"""


@dataclass
class Cells:
    """Cells"""

    value: Literal["modes_found", "quality", "confidence", "hm_iou"] = "modes_found"
    """metric to show"""
    threshold: Optional[float] = None
    """draw a frame around cells that are at least this good, in the unit of value (null: none)"""


@dataclass
class Sets:
    """Sets"""

    num_each: Count = 3
    """number of sets of each kind"""


@dataclass
class Map:
    """Map"""

    num_digits: Count = 2000
    """number of real test digits to which the map is fitted, 16 or more"""


@dataclass
class Particles:
    """Particles"""

    num_particles: Count = 3
    """number of particles of the set to draw, from the first"""


@dataclass
class Schedules:
    """Schedules"""

    rho: Sequence[Positive] = (3.0, 4.0, 7.0)
    """exponents to compare"""
    num_steps: Count = SamplerSettings.num_steps
    """steps from sigma_max to 0"""
    sigma_min: Positive = SamplerSettings.sigma_min
    """last noise level before 0, the standard deviation of the noise on images in [-1, 1]"""
    sigma_max: Positive = SamplerSettings.sigma_max
    """first noise level, the standard deviation of the noise on images in [-1, 1]"""
    p_mean: Sequence[float] = (-1.2, 0.8)
    """means of ln sigma in training to compare"""
    p_std: Positive = 1.2
    """standard deviation of ln sigma in training"""


# ---------------------------------------------------------------- commands

# A docstring is what --help says of a command. What draws is imported only once it is needed, so
# that --help and mistakes answer at once.


def samples(args: Namespace) -> Picture:
    """draw samples.png again, from samples.npz and metrics.json"""
    import gallery

    return gallery.samples(args.run)


def trajectory(args: Namespace) -> Picture:
    """draw x_n and D(x_n) of one set over the denoising steps; samples the set again"""
    import gallery

    return gallery.trajectory(args.run, args.set, args.num_particles)


def animation(args: Namespace) -> Picture:
    """animate x_n and D(x_n) of one set of each run, a GIF; samples again"""
    import gallery

    return gallery.animation(args.run, args.set)


def outlines(args: Namespace) -> Picture:
    """draw the outlines of correct masks and of the samples of each run, for the same sets"""
    import gallery

    return gallery.outlines(args.run, list(args.sets))


def report(args: Namespace) -> Picture:
    """write an HTML report of one or several runs: settings, metrics, all sets, the steps of one"""
    import gallery

    return gallery.report_page(args.run, args.set)


def decisions(args: Namespace) -> Picture:
    """draw the share of what is decided over the noise levels, and the window, of each run"""
    import gallery

    return gallery.decisions(args.run)


def dataset(args: Namespace) -> Picture:
    """draw sequences of a world, with the steps of each digit and the frames of random choices"""
    from data_loader import load_world
    from noise import set_generator
    from own_frames import OwnFrames
    from sheets import examples_sheet, world_sheet

    settings = build(WorldSettings, args)
    digits = build(DigitSettings, args)
    if digits.digits == "both":
        reject("digits", "both", "auto, mnist or embedded for a picture")
    if settings.dataset == "mixture":
        reject("dataset", "mixture", "a world of frames")
    world = load_world(settings, digits, "train")
    if isinstance(world, OwnFrames):
        return examples_sheet(world, args.num_sequences), Path("dataset-frames.png")
    batch = world.sequences(args.num_sequences, set_generator(args.seed, 0))
    source = named(settings.dataset, world.source or "")
    figure = world_sheet(
        batch.frames,
        batch.positions,
        batch.choices,
        digit_size=settings.digit_size,
        title=f"{settings.dataset} ({source}); orange: a random choice",
    )
    return figure, Path(f"dataset-{settings.dataset}.png")


def schedule(args: Namespace) -> Picture:
    """draw the noise levels over the steps for several rho, and their densities in training"""
    from charts import schedules
    from sampler import karras_sigmas

    curves = {}
    for rho in args.rho:
        s = SamplerSettings(None, args.num_steps, args.sigma_min, args.sigma_max, rho)
        curves[rf"$\rho$ = {rho:g}"] = karras_sigmas(s.num_steps, s.sigma_min, s.sigma_max, s.rho)
    densities = {f"N({mean:g}, {args.p_std:g}²)": (mean, args.p_std) for mean in args.p_mean}
    return schedules(curves, densities), Path("schedule.png")


def heatmap(args: Namespace) -> Picture:
    """draw a metric over the grid of an experiment, a panel per kernel or model"""
    import gallery

    return gallery.heatmap(args.run, args.value, args.threshold)


def prior(args: Namespace) -> Picture:
    """draw the shares of samples that go right against the priors of the training (e8)"""
    import gallery

    return gallery.prior(args.run)


def frontier(args: Namespace) -> Picture:
    """draw modes found against quality, a curve per method (e10)"""
    import gallery

    return gallery.frontier(args.run)


def scaling(args: Namespace) -> Picture:
    """draw modes found against the number of particles (e12)"""
    import gallery

    return gallery.scaling(args.run)


def norms(args: Namespace) -> Picture:
    """draw the distances inside a set and its drifts per step (e3); samples the sets again"""
    import gallery

    return gallery.norms(args.run, args.set)


def strip(args: Namespace) -> Picture:
    """draw the first set of every cell of an experiment (e6); samples the sets again"""
    import gallery

    return gallery.strip(args.run)


def mean(args: Namespace) -> Picture:
    """draw means of large sets whose frame is determined, and is not (e4); samples again"""
    import gallery

    return gallery.mean(args.run, args.num_each)


def umap(args: Namespace) -> Picture:
    """draw the digits found on a UMAP of real ones (e1); samples the sets again, keeps the map"""
    import gallery

    return gallery.umap(args.run, args.num_digits, args.set)


COMMANDS: dict[Callable[[Namespace], Picture], tuple[type, ...]] = {
    samples: (Output,),
    trajectory: (OneSet, Particles, Output),
    animation: (OneSet, Output),
    outlines: (SomeSets, Output),
    report: (OneSet, Output),
    decisions: (Output,),
    dataset: (WorldSettings, DigitSettings, Rows, Output),
    schedule: (Schedules, Output),
    heatmap: (Cells, Output),
    prior: (Output,),
    frontier: (Output,),
    scaling: (Output,),
    norms: (OneSet, Output),
    strip: (Output,),
    mean: (Sets, Output),
    umap: (Map, OneSet, Output),
}
OF_RUNS = (animation, outlines, report, decisions)  # take one or several runs
OF_NO_RUN = (dataset, schedule)

# ---------------------------------------------------------------- command line


def command_parser(function: Callable, **options) -> Parser:
    """The parser of one command; `options` are argparse's."""
    parser = make_parser(*COMMANDS[function], description=function.__doc__, **options)
    if function in OF_RUNS:
        parser.add_argument("run", type=str, nargs="+", help="folders that evaluate.py wrote")
    elif function not in OF_NO_RUN:
        parser.add_argument("run", type=str, help="folder that evaluate.py wrote")
    return parser


def whole_parser() -> Parser:
    """The list of all commands, for --help and mistakes."""
    parser = Parser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(required=True, dest="command", metavar="COMMAND")
    for function in COMMANDS:
        commands.add_parser(function.__name__, help=function.__doc__)
    return parser


def parse(argv: list[str] | None) -> tuple[str, Namespace]:
    """(the command's name, its settings)."""
    argv = sys.argv[1:] if argv is None else argv
    whole_parser().given(argv[:1])
    name = argv[0]
    function = next(function for function in COMMANDS if function.__name__ == name)
    prog = f"{Path(sys.argv[0]).name} {name}"
    return name, command_parser(function, prog=prog).parse_args(argv[1:])


def draw(argv: list[str] | None) -> Path:
    """Do what a command line asks for; returns the path of the picture."""
    name, args = parse(argv)
    try:
        function = next(function for function in COMMANDS if function.__name__ == name)
        picture, path = function(args)
        if args.out is not None:
            path = Path(args.out)

        from drawing import write

        write(picture, path)
    except (SettingError, FileNotFoundError, ValueError, OSError) as error:
        fail(str(error), prog=f"visualize.py {name}")
    return path


def main(argv: list[str] | None = None) -> None:
    """Write one file and print its path; a mistake ends with one line and exit code 2."""
    print(f"written to {draw(argv)}")


if __name__ == "__main__":
    run_program(main)
