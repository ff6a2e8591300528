"""Draw what train.py and evaluate.py work with.

    python visualize.py samples runs/NAME                  # the sets of an evaluation
    python visualize.py trajectory runs/NAME --set 0       # x_n and D(x_n) over its denoising steps
    python visualize.py dataset --dataset horizontal       # what a world looks like
    python visualize.py schedule --rho [3,4,7]             # noise levels over the steps

Each command writes one PNG, to --out or where it says.
"""
from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import List, Optional

from jsonargparse import Namespace
from jsonargparse.typing import NonNegativeInt, PositiveInt

from config import (DigitSettings, Parser, Positive, SamplerSettings, SettingError, WorldSettings, build, fail,
                    make_parser, reject)


@dataclass
class Output:
    """Output"""

    out: Optional[str] = None
    """picture to write (null: a name that says what it is, in the run's folder or here)"""


@dataclass
class Rows:
    """Rows"""

    num_sequences: PositiveInt = 6
    """sequences to draw"""
    seed: NonNegativeInt = 0
    """seed of everything random"""


@dataclass
class Particles:
    """Particles"""

    set: NonNegativeInt = 0
    """which set of the run"""
    num_particles: PositiveInt = 3
    """how many of its particles, from the first"""


@dataclass
class Schedules:
    """Schedules"""

    rho: List[Positive] = (3.0, 4.0, 7.0)
    """exponents to compare"""
    num_steps: PositiveInt = SamplerSettings.num_steps
    """steps from sigma_max to 0"""
    sigma_min: Positive = SamplerSettings.sigma_min
    """last noise level before 0"""
    sigma_max: Positive = SamplerSettings.sigma_max
    """first noise level"""


def run_file(run: str, name: str) -> Path:
    """A file of a run. Raises SettingError where there is none."""
    path = Path(run) / name
    if not path.is_file():
        reject("run", run, f"a folder with the {name} that evaluate.py writes")
    return path


def samples(args: Namespace):
    """samples.png again, from samples.npz and metrics.json"""
    import numpy as np
    import torch

    from figures import result_sheet

    with np.load(run_file(args.run, "samples.npz"), allow_pickle=False) as file:
        arrays = {key: torch.from_numpy(file[key]) for key in file.files}
    result = json.loads(run_file(args.run, "metrics.json").read_text())
    return (result_sheet(arrays["cond"], arrays["samples"], arrays.get("modes"), result),
            Path(args.run) / "samples.png")


def trajectory(args: Namespace):
    """x_n and D(x_n) of one set over the denoising steps, sampled again as the run did"""
    import torch

    from evaluate import setup
    from figures import trajectory as draw

    job = setup(["--config", str(run_file(args.run, "config.yaml"))])
    if job.world.dataset == "mixture":
        reject("run", args.run, "a run in a world of frames; particles in the plane have none")
    if args.set >= job.evaluate.num_sets:
        reject("set", args.set, f"0 to {job.evaluate.num_sets - 1}, the sets of {args.run}")
    steps: list[dict] = []
    job.sample(torch.tensor([args.set]), callback=steps.append)
    shown = slice(0, args.num_particles)
    x, denoised = (torch.stack([step[key][0, shown, 0] for step in steps]).cpu() for key in ("x_hat", "denoised"))
    sigmas = torch.stack([step["sigma_hat"] for step in steps])
    return (draw(x, denoised, sigmas, title=f"set {args.set} of {args.run}"),
            Path(args.run) / f"trajectory-{args.set}.png")


def dataset(args: Namespace):
    """sequences of a world, with the way of each digit and the frames of random choices"""
    from data_loader import load_digits, make_world
    from figures import world_sheet
    from sampler import set_generator

    settings, digits = build(WorldSettings, args), build(DigitSettings, args)
    if digits.digits == "both":
        reject("digits", "both", "auto, mnist or embedded for a picture")
    bank = load_digits(digits.digits, "train", size=settings.digit_size, data_root=digits.data_root,
                       timeout=digits.download_timeout)
    batch = make_world(settings, bank).sequences(args.num_sequences, set_generator(args.seed, 0))
    figure = world_sheet(batch.frames, batch.positions, batch.choices, digit_size=settings.digit_size,
                         title=f"{settings.dataset} ({bank.source} digits); orange: a random choice")
    return figure, Path(f"dataset-{settings.dataset}.png")


def schedule(args: Namespace):
    """noise levels over the steps for several rho"""
    from figures import schedules
    from sampler import karras_sigmas

    curves = {}
    for rho in args.rho:
        s = SamplerSettings(args.num_steps, args.sigma_min, args.sigma_max, rho)
        curves[rf"$\rho$ = {rho:g}"] = karras_sigmas(s.num_steps, s.sigma_min, s.sigma_max, s.rho)
    return schedules(curves), Path("schedule.png")


COMMANDS = {samples: (Output,), trajectory: (Particles, Output),
            dataset: (WorldSettings, DigitSettings, Rows, Output), schedule: (Schedules, Output)}

OF_A_RUN = (samples, trajectory)


def parse(argv: list[str] | None) -> tuple[str, Namespace]:
    """(the command's name, its settings)."""
    parser = Parser(description=__doc__.split("\n")[0], default_env=False, allow_abbrev=False)
    commands = parser.add_subcommands(required=True, dest="command")
    for function, groups in COMMANDS.items():
        command = make_parser(*groups, description=function.__doc__)
        if function in OF_A_RUN:
            command.add_argument("run", type=str, help="folder that evaluate.py wrote")
        commands.add_subcommand(function.__name__, command, help=function.__doc__)
    args = parser.parse_args(argv)
    return args.command, args[args.command]


def main(argv: list[str] | None = None) -> None:
    name, args = parse(argv)
    try:
        figure, path = next(function for function in COMMANDS if function.__name__ == name)(args)
        path = Path(args.out or path)
        from figures import save

        save(figure, path)
    except (SettingError, FileNotFoundError, ValueError, OSError) as error:
        fail(str(error), prog=f"visualize.py {name}")
    print(f"written to {path}")


if __name__ == "__main__":
    main()
