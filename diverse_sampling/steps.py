"""The sampler, on sets of particles: schedules, and integration of the reverse ODE or SDE.

    dx / dsigma = (x - D(x; sigma)) / sigma

with a *denoiser* D (`denoiser.py`) of G independent sets of B particles. The sampler knows neither
the network nor the guidance: both are denoisers. A `Schedule` says at which noise levels D is
called, how much noise is added back at each, and where a step is corrected to second order:

    edm_schedule      EDM's: sigma_i = (sigma_max^(1/rho) + i / (N - 1) (sigma_min^(1/rho) -
                      sigma_max^(1/rho)))^rho, every step corrected
    noised_schedule   the same, with noise added back at some of the noise levels
    euler_schedule    the ODE, no step corrected
    window_schedule   most calls in a window of noise levels, each right after new noise

Karras et al. 2022, arXiv 2206.00364: noise levels, equation 5; sampler, algorithm 2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Callable, NamedTuple

import torch
from torch import Tensor

from diverse_sampling.defaults import CALLS, NUM_STEPS, RHO, SIGMA_MAX, SIGMA_MIN
from diverse_sampling.denoiser import Denoiser


@dataclass(frozen=True)
class Schedule:
    """What the sampler does at each of N steps.

    Arguments:
        sigmas: (N + 1,) float64 on the CPU, decreasing, the last one 0
        churn: (N,) float64, gamma of each step: noise is added back until the noise level is
            (1 + gamma) sigma
        corrected: (N,) bool, which steps have Heun's correction
    """

    sigmas: Tensor
    churn: Tensor
    corrected: Tensor

    @property
    def num_steps(self) -> int:
        """N."""
        return len(self.churn)

    @property
    def calls(self) -> int:
        """Calls of the denoiser, per particle."""
        return self.num_steps + int(self.corrected.sum())

    def part(self, start: int, stop: int) -> Schedule:
        """The steps from `start` up to `stop` alone."""
        return Schedule(
            self.sigmas[start : stop + 1], self.churn[start:stop], self.corrected[start:stop]
        )


def append_zero(sigmas: Tensor) -> Tensor:
    """Noise levels (N,) -> (N + 1,), the last one 0."""
    return torch.cat([sigmas, sigmas.new_zeros(1)])


def to_d(x: Tensor, sigma: Tensor, denoised: Tensor) -> Tensor:
    """dx/dsigma of the probability-flow ODE with sigma(t) = t (EDM, equation 3).

    x and denoised have the same shape, any; sigma is a scalar > 0. Returns a tensor like x.
    """
    return (x - denoised) / sigma


def karras_sigmas(
    num_steps: int = NUM_STEPS,
    sigma_min: float = SIGMA_MIN,
    sigma_max: float = SIGMA_MAX,
    rho: float = RHO,
) -> Tensor:
    """Noise levels from sigma_max down to sigma_min, then 0 (EDM, equation 5).

    Returns (num_steps + 1,) float64 on the CPU.
    """
    ramp = torch.linspace(0, 1, num_steps, dtype=torch.float64)
    top = sigma_max ** (1 / rho)
    bottom = sigma_min ** (1 / rho)
    return append_zero((top + ramp * (bottom - top)) ** rho)


def edm_schedule(
    sigmas: Tensor, s_churn: float = 0.0, s_min: float = 0.0, s_max: float = math.inf
) -> Schedule:
    """EDM's stochastic sampler (algorithm 2). s_churn = 0 solves the ODE.

    Arguments:
        sigmas: (N + 1,) float64 on the CPU, decreasing, the last one 0
        s_churn: how much noise is added back, in total over all steps
        s_min: smallest noise level at which noise is added back
        s_max: largest noise level at which noise is added back
    """
    num_steps = len(sigmas) - 1
    inside = (s_min <= sigmas[:-1]) & (sigmas[:-1] <= s_max)
    corrected = torch.ones(num_steps, dtype=torch.bool)
    corrected[-1] = False  # D is not defined at 0
    return Schedule(sigmas, inside * min(s_churn / num_steps, math.sqrt(2) - 1), corrected)


def euler_schedule(sigmas: Tensor) -> Schedule:
    """The ODE by Euler's steps: one call at each noise level; sigmas as in `edm_schedule`."""
    num_steps = len(sigmas) - 1
    return Schedule(
        sigmas,
        torch.zeros(num_steps, dtype=torch.float64),
        torch.zeros(num_steps, dtype=torch.bool),
    )


def noised_schedule(sigmas: Tensor, window: Window) -> Schedule:
    """EDM's steps, with noise added back as a window does: at each step whose first call is in it.

    What `edm_schedule` calls S_churn is spread over all steps, and bounded; here gamma is the
    window's, whatever it is. sigmas as in `edm_schedule`.
    """
    schedule = edm_schedule(sigmas)
    called = sigmas[:-1] * (1 + window.churn)
    inside = (window.low <= called) & (called <= window.high)
    return Schedule(sigmas, inside * window.churn, schedule.corrected)


class Window(NamedTuple):
    """Between which noise levels a sampler goes back and forth.

    Arguments:
        low: the smallest noise level at which D is called right after new noise
        high: the largest one
        churn: gamma: noise is added from sigma / (1 + gamma) up to each sigma
    """

    low: float
    high: float
    churn: float


# Of window_schedule: one call below the window for so many calls in all.
CALLS_PER_CALL_BELOW = 10


def window_schedule(
    window: Window,
    calls: int = CALLS,
    *,
    sigma_min: float = SIGMA_MIN,
    sigma_max: float = SIGMA_MAX,
) -> Schedule:
    """Most calls between two noise levels, those between which it is decided what a sample shows.

    One call is at sigma_max. In the window calls are at geometric noise levels, from its largest to
    its smallest, and before each of them noise is added back. A tenth of the calls follow below, at
    geometric levels down to sigma_min. No step is corrected: it is of second order in a step whose
    error is that of the noise.

    Arguments:
        window: where noise is added back, and how much
        calls: of the denoiser, per particle; at least 3
        sigma_min: last noise level before 0, below window.low / (1 + window.churn)
        sigma_max: first noise level, above window.high / (1 + window.churn)
    """
    below = max(1, round(calls / CALLS_PER_CALL_BELOW))
    inside = calls - 1 - below
    low, high, churn = window
    settled = low / (1 + churn)
    across = torch.arange(inside, dtype=torch.float64) / max(inside - 1, 1)
    down = torch.arange(1, below + 1, dtype=torch.float64) / below
    first = torch.tensor([sigma_max], dtype=torch.float64)
    noised = high * (low / high) ** across / (1 + churn)
    sigmas = torch.cat([first, noised, settled * (sigma_min / settled) ** down])
    gammas = torch.zeros(calls, dtype=torch.float64)
    gammas[1 : 1 + inside] = churn
    return Schedule(append_zero(sigmas), gammas, torch.zeros(calls, dtype=torch.bool))


@torch.no_grad()
def integrate(
    denoise: Denoiser,
    x: Tensor,
    schedule: Schedule,
    *,
    s_noise: float = 1.0,
    noise: Callable[[], Tensor] | None = None,
    callback: Callable[[dict], None] | None = None,
) -> Tensor:
    """Samples by EDM's algorithm 2, with the steps that a schedule names.

    Arguments:
        denoise: the denoiser D
        x: (G, B, C, H, W), noise of standard deviation schedule.sigmas[0]
        schedule: the steps
        s_noise: factor on the standard deviation of the noise that is added back
        noise: draws standard normal noise like x; needed where the schedule adds noise back
        callback: called after each step with {i, sigma, sigma_hat, x_hat, denoised, d, x}

    Returns the samples, like x. Raises ValueError where noise is added back and there is none.
    """
    if noise is None and bool((schedule.churn > 0).any()):
        largest = float(schedule.churn.max())
        raise ValueError(f"churn: {largest} needs a source of noise; accepted: 0, or pass noise=")
    for i in range(schedule.num_steps):
        sigma, sigma_next = schedule.sigmas[i], schedule.sigmas[i + 1]
        gamma = schedule.churn[i]
        sigma_hat = sigma * (1 + gamma)
        x_hat = x
        if gamma > 0:
            assert noise is not None  # or the ValueError above
            x_hat = x + (sigma_hat**2 - sigma**2).sqrt() * s_noise * noise()
        denoised = denoise(x_hat, sigma_hat)
        d = to_d(x_hat, sigma_hat, denoised)
        x = x_hat + (sigma_next - sigma_hat) * d  # Euler
        if schedule.corrected[i]:
            d_next = to_d(x, sigma_next, denoise(x, sigma_next))
            x = x_hat + (sigma_next - sigma_hat) * (d + d_next) / 2  # Heun
        if callback is not None:
            step = dict(i=i, sigma=sigma, sigma_hat=sigma_hat)
            callback(step | dict(x_hat=x_hat, denoised=denoised, d=d, x=x))
    return x


def edm_sampler(
    denoise: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    *,
    s_churn: float = 0.0,
    s_min: float = 0.0,
    s_max: float = math.inf,
    s_noise: float = 1.0,
    noise: Callable[[], Tensor] | None = None,
    callback: Callable[[dict], None] | None = None,
) -> Tensor:
    """EDM's stochastic sampler: `integrate` with `edm_schedule`, whose arguments it takes."""
    schedule = edm_schedule(sigmas, s_churn, s_min, s_max)
    return integrate(denoise, x, schedule, s_noise=s_noise, noise=noise, callback=callback)
