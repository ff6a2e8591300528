"""The methods that settings name: their own settings, what they refuse, and what they make.

A method is a file with a `method.METHOD`; here it meets the settings of an evaluation.
"""

from __future__ import annotations

import math
from dataclasses import fields, replace
from functools import partial
from typing import Any, Callable, Literal, Mapping

import torch
from torch import Tensor

from config import EvaluationSettings, GuidanceSettings, SamplerSettings, build, record
from diverse_sampling.decisions import Decisions
from diverse_sampling.denoiser import Denoiser, to_unit_range
from diverse_sampling.errors import reject
from diverse_sampling.method import (
    ANSWERS,
    CONDITION,
    FOLDERS,
    PILOT,
    STRENGTH,
    Method,
    Sets,
    find,
)
from diverse_sampling.steps import Schedule, edm_schedule, karras_sigmas, window_schedule
from lab.classifier import Classifier


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
    values = settings.record()
    exact = settings.evaluate.denoiser == "exact"
    for flag, method in named(values).items():
        name = values[flag]
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
        if ANSWERS in method.needs and not exact:
            reject(flag, name, "any other, or --denoiser exact, whose modes are known")


def fades(guidance: GuidanceSettings) -> bool:
    """Whether guidance acts that fades as decisions are made, which a pilot measures."""
    method = find("guidance", guidance.guidance)
    return method is not None and PILOT in method.needs and guidance.pg_factor > 0


def needs_pilot(settings: EvaluationSettings) -> bool:
    """Whether something is left to a pilot: where it is decided what a sample shows."""
    s, g = settings.sampler, settings.guidance
    window = s.sampler == "window" and None in (s.window_min, s.window_max)
    return window or (fades(g) and None in (g.pg_sigma_min, g.pg_sigma_max))


def sampler_of(settings: EvaluationSettings) -> Literal["edm", "window"]:
    """The sampler: the one that was given, else the window if guidance that fades acts on sets."""
    s, g = settings.sampler, settings.guidance
    if s.sampler is not None:
        return s.sampler
    together = settings.evaluate.batch_size * g.medoids_of * g.group_of * g.sequential > 1
    return "window" if s.s_churn == 0 and together and fades(g) else "edm"


class Methods:
    """The methods of an evaluation: its steps, guided denoisers and starting noise.

    Arguments:
        settings: of the evaluation
        decisions: where it is decided what a sample shows; None if nobody asks (`needs_pilot`)
        classifier: the one whose features are compared, None for pixels

    Attributes:
        schedule: the steps of the sampler
        features: what particles are compared by, as `Sets` has it
        candidates: how many starting noises are drawn for each particle
    """

    def __init__(
        self,
        settings: EvaluationSettings,
        decisions: Decisions | None = None,
        classifier: Classifier | None = None,
    ):
        guidance = settings.guidance
        self.settings = settings
        self.decisions = decisions
        self.named = named(settings.record())
        self.churned = find("noise", guidance.churn_noise)
        self.schedule = make_schedule(settings.sampler, decisions)
        self.features = features(guidance.pg_pool, classifier)
        self.candidates = math.prod(each.candidates(guidance) for each in self.named.values())

    def guided(self, sets: Sets) -> Denoiser:
        """The denoiser of some sets with guidance."""
        method = self.named.get("guidance")
        return sets.denoise if method is None else method.make(self._with_options(sets, method))

    def start(self, sets: Sets, noise: Callable[[], Tensor], particles: int) -> Tensor:
        """Starting noise of some sets, (G, particles, C, H, W), of deviation sigma_max.

        `noise` is a source of independent noise for them.
        """
        method = self.named.get("noise")
        if method is None or particles == 1:
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
        """Where a noise level lies in the schedule: 0 at sigma_min, 1 at sigma_max."""
        s = self.settings.sampler
        low = s.sigma_min ** (1 / s.rho)
        high = s.sigma_max ** (1 / s.rho)
        return min(max((sigma ** (1 / s.rho) - low) / (high - low), 0.0), 1.0)

    def _with_options(self, sets: Sets, method: Method) -> Sets:
        """The same with the method's own settings."""
        if method.options is None:
            return sets
        keys = {f.name for f in fields(method.options)} & set(self.settings.options)
        own = {key: self.settings.options[key] for key in keys}
        return replace(sets, options=method.options(**own))


# ---------------------------------------------------------------- what settings say about steps


def make_schedule(s: SamplerSettings, decisions: Decisions | None) -> Schedule:
    """The steps that the settings of the sampler ask for."""
    if s.sampler == "window":
        return window_schedule(
            window(s, decisions),
            2 * s.num_steps - 1,
            s.window_churn,
            sigma_min=s.sigma_min,
            sigma_max=s.sigma_max,
            rho=s.rho,
        )
    sigmas = karras_sigmas(s.num_steps, s.sigma_min, s.sigma_max, s.rho)
    return edm_schedule(sigmas, s.s_churn, s.s_min, s.s_max)


def window(s: SamplerSettings, decisions: Decisions | None) -> tuple[float, float]:
    """The (smallest, largest) noise level of the window: given, or measured."""
    low, high = s.window_min, s.window_max
    if low is None or high is None:
        assert decisions is not None  # needs_pilot says so
        measured_low, measured_high = decisions.window()
        high = high or min(measured_high, 0.99 * s.sigma_max)
        low = low or max(measured_low, 1.01 * s.sigma_min)
        low = min(low, 0.99 * high)
    return low, high


def features(pool: int, classifier: Classifier | None) -> Callable[[Tensor], Tensor] | None:
    """What particles are compared by: images (N, C, H, W) in [-1, 1] -> (N, ...).

    None stands for the pixels themselves.

    Arguments:
        pool: side of the squares over which images are averaged, px
        classifier: whose features are compared; None for pixels
    """
    if classifier is not None:
        return lambda images: classifier.features(to_unit_range(images[:, 0]))
    if pool > 1:
        return partial(torch.nn.functional.avg_pool2d, kernel_size=pool)
    return None
