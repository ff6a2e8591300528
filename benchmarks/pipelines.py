"""Guidance in the pipelines of diffusers: every scheduler, what it costs, and the two examples.

    pip install -e ".[dev]"
    python benchmarks/pipelines.py

Tables of an exact network: modes that sets show with every scheduler, without and with guidance,
and with more and fewer steps, also of its exact student; how often one image that is drawn anew
beside seven shows the eighth; how often new noise alone draws an image that is likelier than the
others. Tables of trained ones: how long a guided pipeline takes over the same pipeline without;
what `examples/diffusers_pipeline.py` and `examples/digits_pipeline.py` find. The price is calls of
the network for each sample that is drawn, with those of the pilot apart. A finished part is kept in
--outdir and not measured again.
"""

from __future__ import annotations

import functools
import inspect
import math
import statistics
import sys
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any, Callable

import measure
import numpy
import torch
from torch import Tensor, nn

from config import Count, Seed
from diverse_sampling.coupling.away import away
from diverse_sampling.decisions import Decisions
from diverse_sampling.decisions import measure as decided
from diverse_sampling.defaults import FACTOR, PILOT_LEVELS
from diverse_sampling.denoiser import Denoiser
from diverse_sampling.exact import posterior_mean
from diverse_sampling.few_calls import exact_student
from diverse_sampling.guidance import default_guidance
from diverse_sampling.pipelines import guided_window, repel, repelling
from diverse_sampling.steps import Window, karras_sigmas
from lab.experiments import interval
from lab.metrics import wilson_interval
from lab.pilot import PILOT

STABLE = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
UNCLIPPED = STABLE | dict(clip_sample=False)
TRAILING = UNCLIPPED | dict(timestep_spacing="trailing")
FLOW = dict(prediction_type="flow_prediction", use_flow_sigmas=True)
V = dict(prediction_type="v_prediction")
Y = dict(prediction_type="sample")
SDE = dict(algorithm_type="sde-dpmsolver++")

# Every scheduler that docs/pipelines.md names, in each of its parametrizations.
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "DDIM": ("DDIMScheduler", TRAILING),
    "DDIM v": ("DDIMScheduler", TRAILING | V),
    "DDIM sample": ("DDIMScheduler", TRAILING | Y),
    "DDIM zero SNR": ("DDIMScheduler", TRAILING | V | dict(rescale_betas_zero_snr=True)),
    "DDIM parallel": ("DDIMParallelScheduler", TRAILING),
    "DDPM": ("DDPMScheduler", UNCLIPPED),
    "DDPM parallel": ("DDPMParallelScheduler", UNCLIPPED),
    "LCM": ("LCMScheduler", UNCLIPPED),
    "TCD": ("TCDScheduler", UNCLIPPED),
    "DPM++ 2M": ("DPMSolverMultistepScheduler", STABLE),
    "DPM++ 2M v": ("DPMSolverMultistepScheduler", STABLE | V),
    "DPM++ 2M sample": ("DPMSolverMultistepScheduler", STABLE | Y),
    "DPM++ 2M flow": ("DPMSolverMultistepScheduler", FLOW),
    "DPM++ 2M Karras": ("DPMSolverMultistepScheduler", STABLE | dict(use_karras_sigmas=True)),
    "DPM++ 2M SDE": ("DPMSolverMultistepScheduler", STABLE | SDE),
    "DPM++ 2S": ("DPMSolverSinglestepScheduler", STABLE | dict(lower_order_final=True)),
    "DEIS": ("DEISMultistepScheduler", STABLE),
    "UniPC": ("UniPCMultistepScheduler", STABLE),
    "UniPC flow": ("UniPCMultistepScheduler", FLOW),
    "SA-Solver": ("SASolverScheduler", STABLE),
    "Euler": ("EulerDiscreteScheduler", STABLE),
    "Euler v": ("EulerDiscreteScheduler", STABLE | V),
    "Euler ancestral": ("EulerAncestralDiscreteScheduler", STABLE),
    "Heun": ("HeunDiscreteScheduler", STABLE),
    "KDPM2": ("KDPM2DiscreteScheduler", STABLE),
    "KDPM2 ancestral": ("KDPM2AncestralDiscreteScheduler", STABLE),
    "Flow Euler": ("FlowMatchEulerDiscreteScheduler", dict(shift=3.0)),
    "Flow Euler stochastic": (
        "FlowMatchEulerDiscreteScheduler",
        dict(shift=3.0, stochastic_sampling=True),
    ),
    "Flow Euler inverted": ("FlowMatchEulerDiscreteScheduler", dict(shift=3.0, invert_sigmas=True)),
    "Flow Heun": ("FlowMatchHeunDiscreteScheduler", {}),
    "Flow LCM": ("FlowMatchLCMScheduler", {}),
    "EDM Euler": ("EDMEulerScheduler", {}),
    "EDM Euler v": ("EDMEulerScheduler", V),
    "EDM DPM++": ("EDMDPMSolverMultistepScheduler", {}),
    "EDM DPM++ v": ("EDMDPMSolverMultistepScheduler", V),
}
COSTED = 4  # steps of the pipeline whose time is measured
# Steps, and schedulers with them; those with which images of unequal probability are counted.
STEPS = (4, 8, 15, 28, 50, 100)
STEPPED = ("DDIM", "UniPC", "Flow Euler", "Flow Heun", "Flow LCM", "EDM Euler")
STUDENT_STEPS = (4, 8)
OF_STUDENT = ("LCM", "Flow LCM", "Flow Euler")
# One image drawn anew beside seven: by what network and scheduler, and how.
REDRAWN = {
    "exact": ("DDIM", "Flow Euler", "Flow LCM", "EDM Euler"),
    "student": OF_STUDENT,
}
REDRAWN_STEPS = {"exact": (4, 8, 30), "student": STUDENT_STEPS}
BESIDE = 104  # images for each that is missing
WAYS = ("independent", "start away", "memory", "both")
OF_THE_MEAN = 4  # independent sets of 8, whose mean stands for that of all answers
COUNTED = ("DDIM", "UniPC", "Heun", "Flow Euler", "Flow Heun", "EDM Euler", "LCM")
HALF = torch.tensor([1 / 2] + 7 * [1 / 14])  # probabilities of the images


@dataclass
class PipelineBenchmarkSettings:
    """Pipelines"""

    scheduler_sets: Count = 200
    """sets of 8 with every scheduler, whose exact network costs little"""
    num_sets: Count = 40
    """sets of either example"""
    num_steps: Count = 30
    """steps of every scheduler"""
    repetitions: Count = 9
    """of everything that is timed, interleaved"""
    iterations: Count = 1200
    """updates of the example's network"""
    seed: Seed = 1
    """seed of the examples; their settings were chosen on seed 0"""


# ---------------------------------------------------------------- a network that is exact


def example(name: str):
    """A module of examples/."""
    sys.path.append(str(measure.ROOT / "examples"))
    return __import__(name)


@functools.cache
def images() -> Tensor:
    """The data, (8, 1, 8, 8) in [-1, 1]: a Gaussian blob at eight places on a circle."""
    return example("diffusers_pipeline").blobs()


def exact(x: Tensor, sigma: Tensor, prior: Tensor | None = None) -> Tensor:
    """E[y | x] of the eight images, for sets (G, B, 1, 8, 8); `prior` are their probabilities."""
    log_prior = None if prior is None else prior.log()
    return posterior_mean(x, sigma, images().to(x).expand(len(x), -1, -1, -1, -1), log_prior)


def scheduler(name: str):
    """A new scheduler of SCHEDULERS."""
    import diffusers

    kind, settings = SCHEDULERS[name]
    return getattr(diffusers, kind)(**settings)


class Network(nn.Module):
    """A perfectly trained network: it sees what a pipeline gives to one, and t, and nothing else.

    Its noise level is that of t in training: it knows nothing of how `pipelines.py` reads it.

    Arguments:
        schedule: whose parametrization it has
        prior: probabilities of the images; None: equal ones
        student: whether it is distilled: its D is a sample, not a mean
    """

    config = SimpleNamespace(sample_size=8, in_channels=1)
    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, schedule, prior: Tensor | None = None, student: bool = False):
        super().__init__()
        self.prior = prior
        self.denoise: Denoiser = partial(exact, prior=prior)
        self.largest = 1.0  # of a flow's s; a mean is known where no image is left
        if student:
            self.denoise, self.largest = exact_student(self.denoise), 0.999
        self.kind = schedule.config.get("prediction_type", "flow_prediction")
        self.data = schedule.config.get("sigma_data")
        self.inverted = schedule.config.get("invert_sigmas")
        self.calls = 0  # for all samples together
        if hasattr(schedule, "alphas_cumprod"):
            abar = schedule.alphas_cumprod.double()
            self.log_sigmas = ((1 - abar) / abar.clamp_min(1e-12)).log() / 2

    def forward(self, sample, t):
        self.calls += len(sample)
        t, dtype = float(t), sample.dtype
        sample = sample.double()[None]  # one set
        if self.data is not None:
            sigma = math.exp(4 * t)
            x = sample * math.hypot(sigma, self.data)
            out = sigma * self.data / math.hypot(sigma, self.data)
            if self.kind == "v_prediction":
                out = -out
            skip = self.data**2 / (sigma**2 + self.data**2)
            return SimpleNamespace(sample=((self.clean(x, sigma) - skip * x) / out)[0].to(dtype))
        if self.kind == "flow_prediction":
            s = min(1 - t / 1000 if self.inverted else t / 1000, self.largest)
            prior = torch.full((8,), 1 / 8) if self.prior is None else self.prior
            mean = torch.tensordot(prior, images(), 1).to(sample)
            clean = mean if s == 1 else self.clean(sample / (1 - s), s / (1 - s))
            velocity = (sample - clean) / s
            return SimpleNamespace(sample=(-velocity if self.inverted else velocity)[0].to(dtype))
        sigma = math.exp(numpy.interp(t, range(len(self.log_sigmas)), self.log_sigmas))
        alpha = 1 / math.hypot(1, sigma)
        clean = self.clean(sample / alpha, sigma)
        noise = (sample / alpha - clean) / sigma
        predictions = {"sample": clean, "epsilon": noise}
        predictions["v_prediction"] = alpha * noise - alpha * sigma * clean
        return SimpleNamespace(sample=predictions[self.kind][0].to(dtype))

    def clean(self, x: Tensor, sigma: float) -> Tensor:
        """E[y | x] for x (1, N, 1, 8, 8)."""
        return self.denoise(x, torch.tensor(sigma, dtype=torch.float64))


def draw(
    schedule,
    sets: int = 16,
    steps: int = 30,
    dtype=torch.float32,
    noise: Tensor | None = None,
    network: Network | None = None,
) -> Tensor:
    """What a pipeline does, with the exact network: sets of 8, (sets, 8, 1, 8, 8)."""
    generator = torch.Generator().manual_seed(0)
    network = network or Network(schedule)
    if noise is None:
        noise = torch.randn(8 * sets, *images().shape[1:], generator=generator, dtype=dtype)
    schedule.set_timesteps(steps, device=noise.device)
    sample = noise * getattr(schedule, "init_noise_sigma", 1.0)
    arguments = inspect.signature(schedule.step).parameters
    extra = dict(generator=generator) if "generator" in arguments else {}
    for t in schedule.timesteps:
        scale = getattr(schedule, "scale_model_input", lambda sample, t: sample)
        prediction = network(scale(sample, t), t).sample
        sample = schedule.step(prediction, t, sample, **extra, return_dict=False)[0]
    return sample.unflatten(0, (-1, 8))


@functools.cache
def exact_decisions(prior: Tensor | None = None, student: bool = False) -> Decisions:
    """What a pilot of evaluate.py's size measures of the exact network, for every scheduler."""
    denoise: Denoiser = partial(exact, prior=prior)
    denoise = exact_student(denoise) if student else denoise
    sigmas = karras_sigmas(PILOT_LEVELS, 0.03, 80)
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(*PILOT, *images().shape[1:], generator=generator)
    return decided(denoise, noise * sigmas[0], sigmas)


def guided(schedule, factor: float = FACTOR, seed: int = 2, student: bool = False, **others):
    """The context in which the sets that a scheduler draws repel each other, as `repel` has it."""
    return repel(
        SimpleNamespace(scheduler=schedule),
        factor=factor,
        decisions=exact_decisions(student=student),
        generator=torch.Generator().manual_seed(seed),
        **dict(particles=8) | others,
    )


# ---------------------------------------------------------------- parts


def shown_by(sets: Tensor) -> dict[str, Any]:
    """How many places sets (G, 8, 1, 8, 8) show, {places: {mean, ci95}, shown}, as the example."""
    figures = example("diffusers_pipeline").figures(sets.float())
    del figures["places"]["per_set"]
    return figures


def schedulers(args) -> dict[str, Any]:
    """What sets show with every scheduler and the exact network.

    Returns {name: {independent, guided: figures, calls of the network for a sample}}.
    """
    result = {}
    for name in SCHEDULERS:
        schedule = scheduler(name)
        independent = shown_by(draw(schedule, args.scheduler_sets, args.num_steps))
        network = Network(schedule)
        with guided(schedule):
            sets = draw(schedule, args.scheduler_sets, args.num_steps, network=network)
        calls = network.calls / (8 * args.scheduler_sets)
        result[name] = dict(independent=independent, guided=shown_by(sets), calls=calls)
    return result


def steps(args) -> dict[str, Any]:
    """Figures of guided sets with more and fewer steps: {name: {steps: figures}}."""
    result: dict[str, Any] = {name: {} for name in STEPPED}
    for name in STEPPED:
        for num_steps in STEPS:
            schedule = scheduler(name)
            with guided(schedule):
                sets = draw(schedule, args.scheduler_sets, num_steps)
            result[name][str(num_steps)] = shown_by(sets)
    return result


def students(args) -> dict[str, Any]:
    """Figures of sets of the exact student: {name: {steps: {independent, guided}}}."""
    result: dict[str, Any] = {name: {} for name in OF_STUDENT}
    for name in OF_STUDENT:
        for num_steps in STUDENT_STEPS:
            figures = {}
            for way, factor in dict(independent=0, guided=FACTOR).items():
                schedule = scheduler(name)
                network = Network(schedule, student=True)
                with guided(schedule, factor, student=True):
                    sets = draw(schedule, args.scheduler_sets, num_steps, network=network)
                figures[way] = shown_by(sets)
            result[name][str(num_steps)] = figures
    return result


def missing_shown(
    name: str, num_steps: int, way: str, missing: int, count: int, student: bool = False
) -> Tensor:
    """Whether each of `count` images, a multiple of 8, shows the one of the eight that is missing.

    Each is a set of one, drawn beside the seven others in a way of WAYS. Returns (count,) bool.
    """
    schedule = scheduler(name)
    kept = torch.cat([images()[:missing], images()[missing + 1 :]])
    generator = torch.Generator().manual_seed(missing)
    noise = torch.randn(1, count, *images().shape[1:], generator=generator)
    if way in ("start away", "both"):
        network = Network(schedule, student=student)
        independent = draw(schedule, OF_THE_MEAN, num_steps, network=network).flatten(0, 1)
        noise = away(noise, kept[None], independent.mean(0)[None, None])
    factor = FACTOR if way in ("memory", "both") else 0.0
    with guided(schedule, factor, student=student, particles=1, memory=kept):
        network = Network(schedule, student=student)
        drawn = draw(schedule, steps=num_steps, noise=noise[0], network=network)
    modes = example("diffusers_pipeline").modes_of(drawn.float(), images())
    return (modes == missing).flatten()


def redrawn(args) -> list[dict[str, Any]]:
    """How often one image drawn anew beside seven kept ones shows the eighth.

    Returns rows {network, scheduler, steps, shown: {way: {mean, ci95}}}, over the eight images.
    """
    rows = []
    for kind, names in REDRAWN.items():
        for name in names:
            for num_steps in REDRAWN_STEPS[kind]:
                shown = {}
                for way in WAYS:
                    found = torch.cat(
                        [
                            missing_shown(name, num_steps, way, k, BESIDE, kind == "student")
                            for k in range(8)
                        ]
                    )
                    hits, n = int(found.sum()), len(found)
                    shown[way] = dict(mean=hits / n, ci95=wilson_interval(hits, n))
                rows.append(dict(network=kind, scheduler=name, steps=num_steps, shown=shown))
    return rows


def frequencies(args) -> dict[str, Any]:
    """How often an image of probability 1/2 is drawn, without and with new noise, unguided.

    Returns {name: {before, after}}, shares of 40 times as many samples as there are sets.
    """
    modes_of = example("diffusers_pipeline").modes_of
    window = guided_window(exact_decisions(HALF))

    def share(name: str, window: Window | None) -> float:
        schedule, unguided = scheduler(name), lambda denoise: denoise
        generator = torch.Generator().manual_seed(2)
        network = Network(schedule, HALF)
        with repelling(schedule, unguided, particles=8, window=window, generator=generator):
            sets = draw(schedule, 5 * args.scheduler_sets, args.num_steps, network=network)
        return float((modes_of(sets.float(), images()) == 0).double().mean())

    return {name: dict(before=share(name, None), after=share(name, window)) for name in COUNTED}


def network(side: int):
    """A UNet2DModel of latents (4, side, side), of random weights."""
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=side,
        in_channels=4,
        out_channels=4,
        block_out_channels=(64, 128, 192),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    )
    return unet.eval().requires_grad_(False)


def cost(args, side: int = 32) -> dict[str, Any]:
    """Seconds of a pipeline that draws a set of 8, guided at every step, over those without.

    The second ratio is what `repelling` adds alone: a guided step of the scheduler less one without
    guidance, in units of a step of the pipeline. It is small beside what pipelines differ by.
    """
    from diffusers import DDIMPipeline

    unet = network(side)
    pipe = DDIMPipeline(unet, scheduler("DDIM"))
    pipe.set_progress_bar_config(disable=True)
    sample = torch.randn(8, 4, side, side, generator=torch.Generator().manual_seed(0))
    pipe.scheduler.set_timesteps(COSTED)
    times = pipe.scheduler.timesteps
    everywhere: dict[str, Any] = dict(sigma_min=0.0, sigma_max=math.inf)
    guide = partial(default_guidance, decisions=exact_decisions(), **everywhere)

    def plain() -> None:
        pipe(batch_size=8, num_inference_steps=COSTED, output_type="np")

    def steps() -> None:
        for t in times:
            pipe.scheduler.step(sample, t, sample)

    def repelled(run: Callable[[], None]) -> None:
        with repelling(pipe.scheduler, guide, particles=8, window=Window(0, math.inf, 1.0)):
            run()

    runs: dict[Any, Callable[[], Any]] = {"plain": plain, "guided": partial(repelled, plain)}
    runs |= {"steps": steps, "guided steps": partial(repelled, steps)}
    seconds = measure.interleaved(runs, args.repetitions)
    each = zip(seconds["guided steps"], seconds["steps"], seconds["plain"])
    return dict(
        parameters=sum(each.numel() for each in unet.parameters()),
        step=statistics.median(seconds["plain"]) / COSTED,
        ratio=measure.ratio(seconds, "guided", "plain"),
        added=measure.spread([(a - b) / c for a, b, c in each]),
        machine=measure.machine(),
    )


def places(args) -> dict[str, Any]:
    """What examples/diffusers_pipeline.py finds. Its trained pipeline is kept in --outdir."""
    module = example("diffusers_pipeline")
    settings = module.ExampleSettings(
        iterations=args.iterations, num_sets=args.num_sets, seed=args.seed
    )
    folder = args.outdir / "places"
    if not (folder / "model_index.json").is_file():
        torch.manual_seed(settings.seed)
        module.train(module.blobs(), settings.iterations).save_pretrained(folder)
    return found(module, settings, module.load(folder))


def digits(args) -> dict[str, Any]:
    """What examples/digits_pipeline.py finds."""
    module = example("digits_pipeline")
    settings = module.DigitsSettings(num_sets=args.num_sets, seed=args.seed)
    folder = args.outdir / "digits"
    module.convert().save_pretrained(folder)
    return found(module, settings, module.load(folder))


def found(module, settings, pipe) -> dict[str, Any]:
    """What an example finds by every route, its price, and its settings.

    Returns {settings, pilot: calls of the network for a sample, routes: {name: its figures, and
    calls}}.
    """
    called: list[int] = []  # samples of each call
    pipe.unet.register_forward_pre_hook(lambda unet, inputs: called.append(len(inputs[0])))

    def calls() -> float:
        """For each sample, since the last time."""
        total = sum(called)
        called.clear()
        return total / (settings.num_sets * settings.particles)

    routes = module.routes(settings, pipe)
    result: dict[str, Any] = dict(settings=vars(settings), pilot=calls(), routes={})
    for name, drawn in routes.items():
        result["routes"][name] = module.figures(drawn()) | dict(calls=calls())
    return result


# ---------------------------------------------------------------- tables


def percent(share: float) -> str:
    """A share in percent, rounded down, so that 100% means all."""
    return f"{math.floor(1000 * share) / 10:.1f}%"


def on_places(figures: dict[str, Any]) -> list[str]:
    """How many places sets show, and the share of samples on one."""
    return [interval(figures["places"]), percent(figures["shown"])]


def scheduler_table(rows: dict[str, dict], args) -> str:
    """Places and the share of samples on one, for every scheduler, and what it costs."""
    lines = [
        [
            f"{SCHEDULERS[name][0]}, {name}",
            *on_places(row["independent"]),
            *on_places(row["guided"]),
            f"{row['calls']:g}",
        ]
        for name, row in rows.items()
    ]
    header = "scheduler | independent | on an image | guided | on an image | calls"
    pilot = PILOT_LEVELS * math.prod(PILOT) / (8 * args.scheduler_sets)
    return (
        f"Places of 8, exact network, {args.scheduler_sets} sets of 8, {args.num_steps} steps, "
        f"factor {FACTOR:g}; calls for each sample, and {pilot:.1f} of one pilot for all:\n\n"
        f"{measure.table(header, lines)}"
    )


def steps_table(rows: dict[str, dict], args) -> str:
    """Places, by scheduler and number of steps."""
    lines = [
        [name, *(f"{figures['places']['mean']:.2f}" for figures in row.values())]
        for name, row in rows.items()
    ]
    header = " | ".join(["scheduler", *(f"{num_steps} steps" for num_steps in STEPS)])
    return f"Guided, {args.scheduler_sets} sets of 8:\n\n{measure.table(header, lines)}"


def students_table(rows: dict[str, dict], args) -> str:
    """Places that sets of a student show, by scheduler and number of steps."""
    lines = [
        [f"{name}, {num_steps} steps", *on_places(ways["independent"]), *on_places(ways["guided"])]
        for name, row in rows.items()
        for num_steps, ways in row.items()
    ]
    header = "scheduler | independent | on an image | guided | on an image"
    return (
        f"Places of 8, exact student, {args.scheduler_sets} sets of 8, factor {FACTOR:g}:\n\n"
        f"{measure.table(header, lines)}"
    )


def redrawn_table(rows: list[dict[str, Any]]) -> str:
    """How often an image drawn anew shows what is missing, by network, scheduler and steps."""
    lines = [
        [
            f"{row['network']}, {row['scheduler']}",
            row["steps"],
            *(interval(row["shown"][way]) for way in WAYS),
        ]
        for row in rows
    ]
    header = " | ".join(["network, scheduler", "steps", *WAYS])
    return (
        f"Share of {8 * BESIDE} images that show the missing one of eight:\n\n"
        f"{measure.table(header, lines)}"
    )


def frequency_table(rows: dict[str, dict], args) -> str:
    """How often an image of probability 1/2 is drawn."""
    lines = [[name, percent(row["before"]), percent(row["after"])] for name, row in rows.items()]
    table = measure.table("scheduler | as it is | new noise", lines)
    count = 40 * args.scheduler_sets
    return f"Share of {count} unguided samples, {args.num_steps} steps:\n\n{table}"


def cost_table(row: dict[str, Any]) -> str:
    """How much time guidance takes."""
    added = measure.shown({key: 100 * value for key, value in row["added"].items()})
    line = [f"{row['parameters'] / 1e6:.1f} M", f"{row['step']:.2f}"]
    line += [measure.shown(row["ratio"], 3), f"{added}% of a step"]
    header = "parameters | s a step, set of 8 | guided over plain | added by guidance"
    where = "{device}, {threads} threads, torch {torch}, diffusers {diffusers}"
    return f"{measure.table(header, [line])}\n\nMeasured on {where.format(**row['machine'])}."


def example_table(part: dict[str, Any], header: str, entries: Callable[[dict], list[str]]) -> str:
    """What an example finds by every route."""
    what = "{num_sets} sets of {particles}, seed {seed}".format(**part["settings"])
    what += f"; calls for each sample, and {part['pilot']:.1f} of one pilot for all guided routes"
    rows = [
        [name, *entries(figures), f"{figures['calls']:g}"]
        for name, figures in part["routes"].items()
    ]
    return f"{what}:\n\n{measure.table(f'route | {header} | calls', rows)}"


def main(argv: list[str] | None = None) -> None:
    """Measure what is not finished, and write the tables."""
    args = measure.arguments(PipelineBenchmarkSettings, argv)
    parts = dict(
        schedulers=schedulers,
        steps=steps,
        students=students,
        redrawn=redrawn,
        frequencies=frequencies,
        places=places,
        digits=digits,
        cost=cost,
    )
    results = {
        name: measure.kept(args.outdir / "cells" / f"{name}.json", partial(part, args))
        for name, part in parts.items()
    }
    of_digits = lambda figures: [interval(figures[key]) for key in ("digits", "confidence")]
    tables = dict(
        schedulers=scheduler_table(results["schedulers"], args),
        steps=steps_table(results["steps"], args),
        students=students_table(results["students"], args),
        redrawn=redrawn_table(results["redrawn"]),
        frequencies=frequency_table(results["frequencies"], args),
        places=example_table(results["places"], "places of 8 | on a place", on_places),
        digits=example_table(results["digits"], "digits of 10 | confidence", of_digits),
        cost=cost_table(results["cost"]),
    )
    text = "\n\n".join(tables.values())
    measure.write(args.outdir, "pipelines", text, samples=True, tables=tables, **results)


if __name__ == "__main__":
    main()
