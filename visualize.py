#!/usr/bin/env python3
"""Draw what evaluate.py found, worlds, and schedules.

    python visualize.py figure runs/NAME                   # the sets of an evaluation
    python visualize.py figure runs/e5-quick               # the figure of an experiment
    python visualize.py figure runs/e5-quick --value quality     # another metric over its grid
    python visualize.py report runs/NAME runs/OTHER        # settings, metrics and sets, as HTML
    python visualize.py outlines runs/NAME runs/OTHER      # masks: outlines, correct and sampled
    python visualize.py trajectory runs/NAME --set 0       # x_n and D(x_n) over the denoising steps
    python visualize.py animation runs/NAME runs/OTHER     # one set of each over the steps, a GIF
    python visualize.py decisions runs/NAME runs/OTHER     # where it is decided what samples show
    python visualize.py dataset --dataset horizontal       # sequences of a world
    python visualize.py schedule --rho 3,4,7               # noise levels over the steps

Each command writes one file, a PNG unless stated otherwise, and prints its path; --out chooses
another path.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from dataclasses import dataclass
from os.path import expanduser
from pathlib import Path
from typing import Any, Literal, Optional, Sequence

from config import (
    Count,
    CountOrZero,
    DigitSettings,
    PathText,
    Positive,
    SamplerSettings,
    Seed,
    WorldSettings,
    build,
)
from diverse_sampling.defaults import SIGMA_MIN
from diverse_sampling.errors import SettingError
from lab.command_line import Parser, fail, make_parser, run_program
from lab.files import unused

# ---------------------------------------------------------------- settings


@dataclass
class Output:
    """Output"""

    out: Optional[PathText] = None
    """file to write (null: a name that says what it shows, in the folder of the run; for several
    runs, or for none, in the working directory, where no file is replaced)"""


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
class Grid:
    """Grid"""

    value: Optional[Literal["modes_found", "quality", "confidence", "hm_iou"]] = None
    """metric to draw over the grid of an experiment (null: the figure that its recipe names)"""


@dataclass
class Schedules:
    """Schedules"""

    rho: Sequence[Positive] = (3.0, 4.0, 7.0)
    """exponents to compare"""
    num_steps: Count = SamplerSettings.num_steps
    """steps from sigma_max to 0"""
    sigma_min: Positive = SIGMA_MIN
    """last noise level before 0, the standard deviation of the noise on images in [-1, 1]"""
    sigma_max: Positive = SamplerSettings.sigma_max
    """first noise level, the standard deviation of the noise on images in [-1, 1]"""
    p_mean: Sequence[float] = (-1.2, 0.8)
    """means of ln sigma in training to compare"""
    p_std: Positive = 1.2
    """standard deviation of ln sigma in training"""


# ---------------------------------------------------------------- commands


@dataclass(frozen=True)
class Command:
    """A command: what --help says of it, its settings, and how many runs it takes.

    runs: 1, "+" for one or several, 0 for none
    """

    help: str
    settings: tuple[type, ...] = ()
    runs: int | str = 1


COMMANDS = dict(
    figure=Command(
        "draw what a run is for: the sets of an evaluation, the figure of an experiment", (Grid,)
    ),
    report=Command(
        "write an HTML report of each run: settings, metrics, all sets, the steps of one",
        (OneSet,),
        "+",
    ),
    outlines=Command(
        "draw the outlines of correct masks and of the samples of each run, for the same sets",
        (SomeSets,),
        "+",
    ),
    trajectory=Command(
        "draw x_n and D(x_n) of one set over the denoising steps; samples the set again", (OneSet,)
    ),
    animation=Command(
        "animate x_n and D(x_n) of one set of each run, a GIF; samples again", (OneSet,), "+"
    ),
    decisions=Command(
        "draw the share of what is decided over the noise levels, and the window, of each run",
        runs="+",
    ),
    dataset=Command(
        "draw sequences of a world, with the steps of each digit and the frames of random choices",
        (WorldSettings, DigitSettings, Rows),
        0,
    ),
    schedule=Command(
        "draw the noise levels over the steps for several rho, and their densities in training",
        (Schedules,),
        0,
    ),
)


def picture_of(command: str, args: Namespace) -> tuple[Any, Path]:
    """What a command draws: (the picture, the path of its file unless --out names another)."""
    from figures import (
        charts,  # only now, so that --help and mistakes answer at once
        gallery,
    )

    match command:
        case "figure":
            return gallery.figure(args.run, args.value)
        case "report":
            return gallery.report_page(args.run, args.set)
        case "outlines":
            return gallery.outlines(args.run, list(args.sets))
        case "trajectory":
            return gallery.trajectory(args.run, args.set)
        case "animation":
            return gallery.animation(args.run, args.set)
        case "decisions":
            return gallery.decisions(args.run)
        case "dataset":
            world = build(WorldSettings, args)
            return gallery.dataset(world, build(DigitSettings, args), args.num_sequences, args.seed)
    samplers = [
        SamplerSettings(
            num_steps=args.num_steps, sigma_min=args.sigma_min, sigma_max=args.sigma_max, rho=rho
        )
        for rho in args.rho
    ]
    return charts.schedules(samplers, args.p_mean, args.p_std), Path("schedule.png")


# ---------------------------------------------------------------- command line


def command_parser(name: str, **options) -> Parser:
    """The parser of one command; `options` are argparse's."""
    command = COMMANDS[name]
    parser = make_parser(*command.settings, Output, description=command.help, **options)
    if command.runs == "+":
        parser.add_argument(
            "run", type=expanduser, nargs="+", help="folders that evaluate.py wrote"
        )
    elif command.runs:
        parser.add_argument("run", type=expanduser, help="folder that evaluate.py wrote")
    return parser


def whole_parser() -> Parser:
    """The list of all commands, for --help and mistakes."""
    parser = Parser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(required=True, dest="command", metavar="COMMAND")
    for name, command in COMMANDS.items():
        commands.add_parser(name, help=command.help)
    return parser


def parse(argv: list[str] | None) -> tuple[str, Namespace]:
    """(the command's name, its settings)."""
    argv = sys.argv[1:] if argv is None else argv
    whole_parser().given(argv[:1])
    name = argv[0]
    prog = f"{Path(sys.argv[0]).name} {name}"
    return name, command_parser(name, prog=prog).parse_args(argv[1:])


def main(argv: list[str] | None = None) -> None:
    """Write one file and print its path; a mistake ends with one line and exit code 2."""
    command, args = parse(argv)
    try:
        picture, path = picture_of(command, args)
        if args.out:
            path = Path(args.out)
        elif path.parent == Path():  # of several runs or of none: the last one may be of others
            path = unused(path)

        from figures.drawing import save

        save(picture, path)
    except (SettingError, FileNotFoundError, ValueError, OSError) as error:
        fail(str(error), prog=f"visualize.py {command}")
    print(f"written to {path}")


if __name__ == "__main__":
    run_program(main)
