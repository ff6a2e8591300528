"""The methods that settings name: their own settings, what they refuse, and what they make.

A method is a file with a `method.METHOD`; here it meets the settings of an evaluation.
"""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any, Callable, Literal, Mapping

import torch
from torch import Tensor

from config import EvaluationSettings, GuidanceSettings, SamplerSettings, build, record
from diverse_sampling.decisions import EARLY, LATE, WIDE, Decisions, Shares
from diverse_sampling.denoiser import Denoiser
from diverse_sampling.errors import reject
from diverse_sampling.few_calls import renewed_schedule, student_levels
from diverse_sampling.guidance.pg import default_levels
from diverse_sampling.method import (
    ANSWERS,
    CLASSES,
    CONDITION,
    EARLIER,
    FOLDERS,
    NETWORK,
    PILOT,
    STRENGTH,
    Method,
    Sets,
    acting,
    find,
)
from diverse_sampling.selection import THINNING
from diverse_sampling.steps import (
    Schedule,
    Window,
    edm_schedule,
    euler_schedule,
    karras_sigmas,
    noised_schedule,
    window_schedule,
)
from lab.metrics import BACKWARD


def named(settings: Mapping[str, Any]) -> dict[str, Method]:
    """{flag: method} of the flat settings of an evaluation, those that name none left out."""
    found = {flag: find(flag, settings[flag]) for flag in FOLDERS}
    return {flag: method for flag, method in found.items() if method is not None}


def options_of(settings: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The flat {option: value} of the methods that settings name, out of what was given.

    Raises SettingError for a value that a method refuses.
    """
    options = (method.options for method in named(settings).values())
    return record(*(build(each, values) for each in options if each is not None))


def check(settings: EvaluationSettings) -> None:
    """Refuse what the methods that settings name cannot be combined with. Raises SettingError."""
    no_churn = settings.sampler.sampler == "edm" and settings.sampler.s_churn == 0
    if settings.guidance.churn_noise != "iid" and no_churn:
        reject(
            "churn_noise",
            settings.guidance.churn_noise,
            "iid, or a sampler that adds noise back: --s_churn or --sampler window",
        )
    alone = settings.guidance.guidance in ("pg", "none") and settings.guidance.pg_factor == 0
    if settings.sampler.sampler == "student" and not (alone and settings.guidance.pool == 1):
        reject("sampler", "student", "another with guidance or pool; --medoids_of thins a student")
    if settings.guidance.pool > 1 and not (
        alone and settings.sampler.sampler == "edm" and settings.sampler.s_churn == 0
    ):
        reject(
            "pool", settings.guidance.pool, "1 with guidance or churn; a pool is thinned instead"
        )
    values = settings.record()
    exact = settings.evaluate.denoiser == "exact"
    redraws = settings.evaluate.redraw is not None
    for key in ("sequential", "medoids_of", "pool") if redraws else ():
        if values[key] != 1:
            reject(key, values[key], "1 with redraw, which draws single particles")
    for flag, method in named(values).items():
        name = values[flag]
        if redraws and method.only.get("sequential") == 1:
            reject(flag, name, "one with a memory with redraw, such as pg or spell")
        for key, only in method.only.items():
            if values[key] != only:
                reject(key, values[key], f"{only} with {flag} {name}")
        if STRENGTH in method.needs and settings.guidance.pg_factor == 0:
            reject("pg_factor", 0.0, f"more than 0 with {flag} {name}")
        if CONDITION in method.needs and (exact or settings.evaluate.task == "unconditional"):
            reject(
                flag,
                name,
                "any other with --denoiser exact or --task unconditional, where there is no "
                "conditioning to add noise to",
            )
        if EARLIER in method.needs and settings.guidance.sequential == 1 and not redraws:
            reject(flag, name, "any other, or --sequential or --redraw: no samples are earlier")
        if EARLIER in method.needs and settings.sampler.sampler == "student":
            reject(flag, name, "any other with a student, which does not return the mean it needs")
        if NETWORK in method.needs and exact:
            reject(flag, name, "any other with --denoiser exact, which has no features")
        if ANSWERS in method.needs and not exact:
            reject(flag, name, "any other, or --denoiser exact, whose modes are known")


def measures(guidance: GuidanceSettings) -> bool:
    """Whether guidance acts whose noise levels and strength a pilot measures."""
    method = find("guidance", guidance.guidance)
    if method is None or PILOT not in method.needs:
        return False
    return CLASSES in method.needs or guidance.pg_factor > 0


def is_early(guidance: GuidanceSettings) -> bool:
    """Whether pushes have one size in all directions, so that guidance has to end early."""
    return guidance.guidance == "pg" and measures(guidance) and guidance.pg_strength == "measured"


def shares_of(guidance: GuidanceSettings) -> Shares:
    """Between which shares of what is decided the sampler adds noise back."""
    if is_early(guidance):
        return EARLY
    method = find("guidance", guidance.guidance)
    return WIDE if method is not None and CLASSES in method.needs else LATE


def needs_pilot(settings: EvaluationSettings) -> bool:
    """Whether something is left to a pilot: where it is decided what a sample shows."""
    s, g = settings.sampler, settings.guidance
    window = s.sampler in ("edm_noised", "window") and None in (
        s.window_min,
        s.window_max,
        s.window_churn,
    )
    guided = None in (g.pg_sigma_min, g.pg_sigma_max) or g.pg_strength == "measured"
    guided = guided and g.guidance == "pg" and measures(g)
    return s.sigma_min is None or g.pool > 1 or s.sampler == "student" or window or guided


def sampler_of(settings: EvaluationSettings) -> Literal["edm", "edm_noised", "window", "student"]:
    """The sampler: the one that was given, else the window if guidance that fades acts on sets."""
    s, g = settings.sampler, settings.guidance
    if s.sampler is not None:
        return s.sampler
    together = settings.evaluate.batch_size * g.medoids_of * g.sequential > 1
    return "window" if s.s_churn == 0 and together and measures(g) else "edm"


class Methods:
    """The methods of an evaluation: its steps, guided denoisers and starting noise.

    Arguments:
        settings: of the evaluation
        decisions: where it is decided what a sample shows; None if nobody asks (`needs_pilot`)

    Attributes:
        schedule: the steps of the sampler
        remaining: how many candidates of a set each of its first steps takes, if they are pruned
        window: between which noise levels it adds noise back; None with EDM's
        acting_window: the same if guidance acts between these; None with other samplers
        candidates: how many starting noises are drawn for each particle
        differentiates: whether a gradient runs through the denoiser
    """

    def __init__(self, settings: EvaluationSettings, decisions: Decisions | None = None):
        guidance = settings.guidance
        self.settings = settings
        self.decisions = decisions
        self.named = named(settings.record())
        self.churned = find("noise", guidance.churn_noise)
        self.window = window(settings, decisions)
        self.acting_window = acting_window(settings, decisions)
        self.schedule = make_schedule(settings, decisions)
        self.remaining = remaining(settings, self.schedule.num_steps)
        self.candidates = math.prod(each.candidates(guidance) for each in self.named.values())
        acts = self.named.get("guidance") if guidance.pg_factor > 0 else None
        self.differentiates = acts is not None and acts.beside(guidance)[1] > 0

    def guided(self, sets: Sets) -> Denoiser:
        """The denoiser of some sets with guidance."""
        method = self.named.get("guidance")
        return sets.denoise if method is None else method.make(self._with_options(sets, method))

    def start(self, sets: Sets, noise: Callable[[], Tensor], particles: int) -> Tensor:
        """Starting noise of some sets, (G, particles, C, H, W), of deviation sigma_max.

        `noise` is a source of independent noise for them.
        """
        method = self.named.get("noise")
        if method is None or not _couples(method, particles):
            z = noise()
        else:
            z = method.make(self._with_options(sets, method), noise)
        scale = sets.sigma_max
        for method in self.named.values():
            scale = scale * method.start(self._with_options(sets, method).options)
        return z * scale

    def churn(self, sets: Sets, noise: Callable[[], Tensor]) -> Tensor:
        """The noise that is added back at a step, (G, B, C, H, W), of deviation 1."""
        return noise() if self.churned is None else self.churned.make(sets, noise)

    def position(self, sigma: float) -> float:
        """Where a noise level lies in the schedule: 0 at its smallest, 1 at sigma_max."""
        s = self.settings.sampler
        low = end(s, self.decisions) ** (1 / s.rho)
        high = s.sigma_max ** (1 / s.rho)
        return min(max((sigma ** (1 / s.rho) - low) / (high - low), 0.0), 1.0)

    def _with_options(self, sets: Sets, method: Method) -> Sets:
        """The same with the method's own settings."""
        return replace(sets, options=_options(method, self.settings))


def _couples(method: Method, particles: int) -> bool:
    """Whether noise depends on other particles: on those of its batch, or on earlier ones."""
    return particles > 1 or EARLIER in method.needs


def _options(method: Method, settings: EvaluationSettings) -> Any:
    """A method's own settings, None if it has none."""
    if method.options is None:
        return None
    keys = {f.name for f in fields(method.options)} & set(settings.options)
    return method.options(**{key: settings.options[key] for key in keys})


# ---------------------------------------------------------------- what settings say about steps


def make_schedule(settings: EvaluationSettings, decisions: Decisions | None) -> Schedule:
    """The steps that settings ask for; of a pool, those that follow once it is thinned.

    Raises SettingError for a price that not even the fewest steps keep.
    """
    s = settings.sampler
    if s.price is None:
        return _schedule(settings, decisions, s.num_steps)
    dearest: Schedule | None = None
    fewest = 1 if s.sampler == "student" else 2
    for num_steps in range(fewest, int(s.price) + 2):
        schedule = _schedule(settings, decisions, num_steps)
        if price(settings, decisions, schedule) > s.price:
            break
        dearest = schedule
    if dearest is None:
        least = price(settings, decisions, _schedule(settings, decisions, fewest))
        reject("price", s.price, f"{least:g} or more with these settings")
    return dearest


def _schedule(
    settings: EvaluationSettings, decisions: Decisions | None, num_steps: int
) -> Schedule:
    s = settings.sampler
    if s.sampler == "student":
        assert decisions is not None  # needs_pilot says so
        return renewed_schedule(student_levels(decisions, num_steps, s.sigma_max))
    last = end(s, decisions)
    between = window(settings, decisions)
    if between is not None and s.sampler == "window":
        return window_schedule(between, 2 * num_steps - 1, sigma_min=last, sigma_max=s.sigma_max)
    if between is not None:
        return noised_schedule(karras_sigmas(num_steps, last, s.sigma_max, s.rho), between)
    first = s.sigma_max
    if settings.guidance.pool > 1:
        assert decisions is not None  # needs_pilot says so
        first = decisions.settled
    most = math.inf if s.s_max is None else s.s_max
    sigmas = karras_sigmas(num_steps, last, first, s.rho)
    if remaining(settings, num_steps):
        return euler_schedule(sigmas)
    return edm_schedule(sigmas, s.s_churn, s.s_min, most)


def remaining(settings: EvaluationSettings, num_steps: int) -> list[int]:
    """How many candidates of a set each of the first steps takes, if they are pruned; else none."""
    particles = settings.evaluate.batch_size
    return [
        size
        for method in named(settings.record()).values()
        for size in method.remaining(_options(method, settings), particles, num_steps)
    ]


def price(settings: EvaluationSettings, decisions: Decisions | None, schedule: Schedule) -> float:
    """Calls of the denoiser for each sample that is kept, a backward pass as BACKWARD of them."""
    g = settings.guidance
    drawn = g.medoids_of * g.pool
    particles = settings.evaluate.batch_size * drawn
    chosen = named(settings.record())
    start = 0.0
    if "noise" in chosen and _couples(chosen["noise"], particles):
        start = _calls(*chosen["noise"].before(g, particles))
    pruned = sum(size - particles for size in remaining(settings, schedule.num_steps))
    cost = schedule.calls + pruned / particles
    guidance = chosen.get("guidance")
    dearer = _calls(*guidance.beside(g)) if guidance is not None else 0.0
    # A particle alone is not guided before it has those of an earlier turn beside it.
    turns = (g.sequential - (particles == 1)) / g.sequential
    if dearer and g.pg_factor > 0 and turns > 0:
        levels = acting(g, acting_window(settings, decisions))
        if g.guidance == "pg" and None in levels.values():
            assert decisions is not None  # needs_pilot says so
            measured = default_levels(decisions, None)
            levels = {key: level or measured[key] for key, level in levels.items()}
        low, high = levels["sigma_min"] or 0.0, levels["sigma_max"] or math.inf
        noised = schedule.sigmas[:-1] * (1 + schedule.churn)
        called = torch.cat([noised, schedule.sigmas[1:][schedule.corrected]])
        cost += turns * dearer * int(((low <= called) & (called <= high)).sum())
    return start * drawn + cost * g.medoids_of + THINNING * (g.pool if g.pool > 1 else 0)


def _calls(forward: float, backward: float) -> float:
    """The price of calls of both kinds."""
    return forward + BACKWARD * backward


def end(s: SamplerSettings, decisions: Decisions | None) -> float:
    """The last noise level before 0: given, or measured."""
    if s.sigma_min is not None:
        return s.sigma_min
    assert decisions is not None  # needs_pilot says so
    return min(decisions.end, 0.5 * s.sigma_max)


def window(settings: EvaluationSettings, decisions: Decisions | None) -> Window | None:
    """Between which noise levels the sampler adds noise back: given or measured.

    None of EDM's sampler, and of a student's.
    """
    s = settings.sampler
    if s.sampler in ("edm", "student"):
        return None
    low, high, churn = s.window_min, s.window_max, s.window_churn
    if low is None or high is None or churn is None:
        assert decisions is not None  # needs_pilot says so
        measured = decisions.window(shares_of(settings.guidance))
        churn = measured.churn if churn is None else churn
        high = high or min(measured.high, 0.99 * s.sigma_max)
        low = min(low or measured.low, 0.99 * high)
    # Steps go down to where new noise is added from, and on to the end.
    return Window(low, high, min(churn, max(low / (1.01 * end(s, decisions)) - 1, 0.0)))


def acting_window(settings: EvaluationSettings, decisions: Decisions | None) -> Window | None:
    """The window between whose noise levels guidance acts, that of the sampler of this name."""
    return window(settings, decisions) if settings.sampler.sampler == "window" else None
