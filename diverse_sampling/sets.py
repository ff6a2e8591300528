"""The front door: diverse sets from anyone's denoiser in one call."""

from __future__ import annotations

import torch
from torch import Tensor

from diverse_sampling.decisions import Decisions, measure
from diverse_sampling.defaults import CALLS, FACTOR, PILOT_LEVELS, SIGMA_MAX, SIGMA_MIN
from diverse_sampling.denoiser import Denoiser
from diverse_sampling.guidance import default_guidance
from diverse_sampling.steps import integrate, karras_sigmas, window_schedule

PILOT_PARTICLES = 8  # in each set, of the pilot that finds the window


@torch.no_grad()
def sample(
    denoise: Denoiser,
    noise: Tensor,
    calls: int = CALLS,
    *,
    factor: float = FACTOR,
    sigma_min: float | None = None,
    sigma_max: float = SIGMA_MAX,
    decisions: Decisions | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Sets whose particles repel each other while the model commits to a mode.

    A pilot of unguided particles of the same sets measures at which noise levels that is, unless
    `decisions` of an earlier one are given: it costs 15 calls for each of 8 particles a set.
    Nothing is differentiated.

    Arguments:
        denoise: denoise(x, sigma) -> x0, see `Denoiser`; `from_epsilon`, `from_velocity` and
            `from_flow` make one of networks that predict something else
        noise: (G, B, C, H, W), standard normal: the start of B particles in each of G sets
        calls: calls of the denoiser for each particle, at least 3
        factor: strength of the repulsion; 0 samples independently
        sigma_min: last noise level before 0, in the units of x. None: where 99.8% of the variance
            is decided; a small one for exact denoisers, whose finest details are right
        sigma_max: first noise level
        decisions: what `measure` returned for this denoiser
        generator: source of the noise that is added while sampling, and of the pilot's; on the
            device of `noise`. None: torch's global one

    Returns the samples, like `noise`. Raises ValueError if the samples of the pilot are all alike.
    """

    def fresh(particles: int) -> Tensor:
        shape = (noise.shape[0], particles, *noise.shape[2:])
        return torch.randn(shape, generator=generator, dtype=noise.dtype, device=noise.device)

    if decisions is None:
        sigmas = karras_sigmas(PILOT_LEVELS, sigma_min=sigma_min or SIGMA_MIN, sigma_max=sigma_max)
        decisions = measure(denoise, fresh(PILOT_PARTICLES) * sigma_max, sigmas)
    window = decisions.window()
    end = sigma_min or decisions.end
    schedule = window_schedule(window, calls, sigma_min=end, sigma_max=sigma_max)
    guided = default_guidance(denoise, decisions, factor=factor, window=window)
    return integrate(guided, noise * sigma_max, schedule, noise=lambda: fresh(noise.shape[1]))
