"""The front door: diverse sets from anyone's denoiser in one call."""

from __future__ import annotations

import functools
from typing import Callable

import torch
from torch import Tensor

from diverse_sampling.decisions import EARLY, WIDE, Decisions, measure
from diverse_sampling.defaults import CALLS, FACTOR, PILOT_LEVELS, SIGMA_MAX, SIGMA_MIN
from diverse_sampling.denoiser import Denoiser
from diverse_sampling.errors import reject
from diverse_sampling.guidance import ClassGuidance, default_guidance
from diverse_sampling.guidance.classes import FACTOR as CLASS_FACTOR
from diverse_sampling.guidance.classes import LogPosterior
from diverse_sampling.potentials import LogDet, Potential
from diverse_sampling.steps import Window, integrate, karras_sigmas, window_schedule

Guide = Callable[[Denoiser], Denoiser]

PILOT_PARTICLES = 8  # in each set, of the pilot that finds the window


def measured_guide(
    decisions: Decisions,
    window: Window,
    *,
    factor: float | None = None,
    potential: Potential = LogDet(),
    log_posterior: LogPosterior | None = None,
    counts: Tensor | None = None,
    clean: bool = False,
    memory: Tensor | None = None,
) -> Guide:
    """The guidance that a pilot's measurements make, denoiser -> guided denoiser.

    Arguments:
        decisions: where it is decided what a sample shows
        window: inside which noise is added anew
        factor, log_posterior, counts, clean, memory: as in `sample`
        potential: how particles repel, as in `ParticleGuidance`; without `log_posterior`

    Raises SettingError for `counts` or `clean` without `log_posterior`, and for `memory` with it.
    """
    if log_posterior is None:
        for key, value in dict(counts=counts, clean=clean or None).items():
            if value is not None:
                reject(key, value, "with log_posterior, which knows the classes")
        return functools.partial(
            default_guidance,
            decisions=decisions,
            window=window,
            factor=FACTOR if factor is None else factor,
            potential=potential,
            memory=memory,
        )
    if memory is not None:
        reject(
            "memory", list(memory.shape), "None with log_posterior, which counts no other sample"
        )
    return functools.partial(
        ClassGuidance,
        log_posterior=log_posterior,
        counts=counts,
        factor=CLASS_FACTOR if factor is None else factor,
        decisions=decisions if clean else None,
    )


@torch.no_grad()
def sample(
    denoise: Denoiser,
    noise: Tensor,
    calls: int = CALLS,
    *,
    factor: float | None = None,
    log_posterior: LogPosterior | None = None,
    counts: Tensor | None = None,
    clean: bool = False,
    memory: Tensor | None = None,
    sigma_min: float | None = None,
    sigma_max: float = SIGMA_MAX,
    decisions: Decisions | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Sets whose particles repel each other while the model commits to a mode.

    A pilot of unguided particles of the same sets measures at which noise levels that is, unless
    `decisions` of an earlier one are given: it costs 15 calls for each of 8 particles a set.
    Nothing is differentiated, except `log_posterior`.

    Arguments:
        denoise: denoise(x, sigma) -> x0, see `Denoiser`; `from_epsilon`, `from_velocity` and
            `from_flow` make one of networks that predict something else
        noise: (G, B, C, H, W), standard normal: the start of B particles in each of G sets
        calls: calls of the denoiser for each particle, at least 3
        factor: strength; None: 5, or 8 with `log_posterior`. 0 samples independently
        log_posterior: (x (G, B, C, H, W), sigma) -> log p(class | x), (G, B, k), differentiable in
            x. The sets then show every class, or `counts`, instead of repelling (`ClassGuidance`)
        counts: (k,) or (G, k) int64, how many particles show each class, B in all. None: as many
            different classes as there can be
        clean: whether `log_posterior` knows images without noise alone: it is asked of D(x)
        memory: (G, M, C, H, W), or (1, M, C, H, W) for all sets: images that repel the particles
            and do not move, such as earlier samples. One particle beside them is guided too
        sigma_min: last noise level before 0, in the units of x. None: where 99.8% of the variance
            is decided; a small one for exact denoisers, whose finest details are right
        sigma_max: first noise level
        decisions: what `measure` returned for this denoiser
        generator: source of the noise that is added while sampling, and of the pilot's; on the
            device of `noise`. None: torch's global one

    Returns the samples, like `noise`. Raises ValueError if the samples of the pilot are all alike,
    and its subclass SettingError for classes that do not fit.
    """

    def fresh(particles: int) -> Tensor:
        shape = (noise.shape[0], particles, *noise.shape[2:])
        return torch.randn(shape, generator=generator, dtype=noise.dtype, device=noise.device)

    if decisions is None:
        sigmas = karras_sigmas(PILOT_LEVELS, sigma_min=sigma_min or SIGMA_MIN, sigma_max=sigma_max)
        decisions = measure(denoise, fresh(PILOT_PARTICLES) * sigma_max, sigmas)
    window = decisions.window(EARLY if log_posterior is None else WIDE)
    end = sigma_min or decisions.end
    schedule = window_schedule(window, calls, sigma_min=end, sigma_max=sigma_max)
    guide = measured_guide(
        decisions,
        window,
        factor=factor,
        log_posterior=log_posterior,
        counts=counts,
        clean=clean,
        memory=memory,
    )
    return integrate(
        guide(denoise), noise * sigma_max, schedule, noise=lambda: fresh(noise.shape[1])
    )
