"""The EDM sampler, on sets of particles: noise schedule and integration of the reverse ODE or SDE.

    sigma_i = (sigma_max^(1/rho) + i / (N - 1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho
    dx / dsigma = (x - D(x; sigma)) / sigma

with a *denoiser* D (`denoiser.py`) of G independent sets of B particles. The sampler knows neither
the network nor the guidance: both are denoisers.

Karras et al. 2022, arXiv 2206.00364: schedule, equation 5; sampler, algorithm 2.
"""

from __future__ import annotations

import math
from typing import Callable

import torch
from torch import Tensor

from denoiser import Denoiser


def append_zero(sigmas: Tensor) -> Tensor:
    """Noise levels (N,) -> (N + 1,), the last one 0."""
    return torch.cat([sigmas, sigmas.new_zeros(1)])


def to_d(x: Tensor, sigma: Tensor, denoised: Tensor) -> Tensor:
    """dx/dsigma of the probability-flow ODE with sigma(t) = t (EDM, equation 3).

    x and denoised have the same shape, any; sigma is a scalar > 0. Returns a tensor like x.
    """
    return (x - denoised) / sigma


def karras_sigmas(num_steps: int, sigma_min: float, sigma_max: float, rho: float) -> Tensor:
    """Noise levels from sigma_max down to sigma_min, then 0 (EDM, equation 5).

    Returns (num_steps + 1,) float64 on the CPU.
    """
    ramp = torch.linspace(0, 1, num_steps, dtype=torch.float64)
    top = sigma_max ** (1 / rho)
    bottom = sigma_min ** (1 / rho)
    return append_zero((top + ramp * (bottom - top)) ** rho)


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
    """EDM's stochastic sampler with Heun's correction (algorithm 2). s_churn = 0 solves the ODE.

    Arguments:
        denoise: the denoiser D
        x: (G, B, C, H, W), noise of standard deviation sigmas[0]
        sigmas: (N + 1,) float64 on the CPU, decreasing, the last one 0
        s_churn: how much noise is added back, in total over all steps
        s_min: smallest noise level at which noise is added back
        s_max: largest noise level at which noise is added back
        s_noise: factor on the standard deviation of the noise that is added back
        noise: draws standard normal noise like x; needed where s_churn > 0
        callback: called after each step with {i, sigma, sigma_hat, x_hat, denoised, d, x}

    Returns the samples, like x. Raises ValueError where s_churn > 0 and there is no `noise`.
    """
    if s_churn > 0 and noise is None:
        raise ValueError(f"s_churn: {s_churn} needs a source of noise; accepted: 0, or pass noise=")
    num_steps = len(sigmas) - 1
    churn = min(s_churn / num_steps, math.sqrt(2) - 1)
    for i, (sigma, sigma_next) in enumerate(zip(sigmas[:-1], sigmas[1:])):
        gamma = churn if s_min <= sigma <= s_max else 0.0
        sigma_hat = sigma * (1 + gamma)
        x_hat = x
        if gamma > 0:
            assert noise is not None  # or the ValueError above
            x_hat = x + (sigma_hat**2 - sigma**2).sqrt() * s_noise * noise()
        denoised = denoise(x_hat, sigma_hat)
        d = to_d(x_hat, sigma_hat, denoised)
        x = x_hat + (sigma_next - sigma_hat) * d  # Euler
        if i < num_steps - 1:
            d_next = to_d(x, sigma_next, denoise(x, sigma_next))
            x = x_hat + (sigma_next - sigma_hat) * (d + d_next) / 2  # Heun
        if callback is not None:
            step = dict(i=i, sigma=sigma, sigma_hat=sigma_hat)
            callback(step | dict(x_hat=x_hat, denoised=denoised, d=d, x=x))
    return x
