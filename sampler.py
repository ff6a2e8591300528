"""The EDM sampler, on sets of particles.

A *denoiser* is any function denoise(x, sigma) -> x0 with x, x0 (G, B, C, H, W) and
sigma a float64 scalar tensor on the CPU, so that comparing it never waits for a GPU.
G independent sets of B particles go through one call. The sampler knows neither the
network nor the guidance: both are denoisers.

Karras et al. 2022, arXiv 2206.00364: schedule, equation 5; sampler, algorithm 2.
"""

from __future__ import annotations

import math
from typing import Callable

import torch
from torch import Tensor

Denoiser = Callable[[Tensor, Tensor], Tensor]


def append_zero(sigmas: Tensor) -> Tensor:
    """(N,) noise levels -> (N + 1,), the last one 0."""
    return torch.cat([sigmas, sigmas.new_zeros(1)])


def to_d(x: Tensor, sigma: Tensor, denoised: Tensor) -> Tensor:
    """dx/dsigma of the probability-flow ODE with sigma(t) = t (EDM, equation 3), like x and denoised (any shape);
    sigma scalar, > 0."""
    return (x - denoised) / sigma


def karras_sigmas(num_steps: int, sigma_min: float, sigma_max: float, rho: float) -> Tensor:
    """(num_steps + 1,) float64 on the CPU: from sigma_max down to sigma_min, then 0 (EDM, equation 5)."""
    ramp = torch.linspace(0, 1, num_steps, dtype=torch.float64)
    top, bottom = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
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
    """EDM's stochastic sampler with Heun's correction (algorithm 2). s_churn 0 is the ODE.

    x        (G, B, C, H, W), noise of standard deviation sigmas[0]
    sigmas   (N + 1,) float64 on the CPU, falling, the last one 0
    s_churn, s_min, s_max, s_noise   EDM's churn: total amount, window in sigma, noise scale
    noise    draws standard normal noise like x; needed when s_churn > 0
    callback gets {i, sigma, sigma_hat, x_hat, denoised, d, x} after each step

    Returns (G, B, C, H, W). Raises ValueError if churn has no noise to draw from.
    """
    if s_churn > 0 and noise is None:
        raise ValueError(f"s_churn: {s_churn} needs a source of noise; accepted: 0, or pass noise=")
    num_steps = len(sigmas) - 1
    churn = min(s_churn / num_steps, math.sqrt(2) - 1)
    for i, (sigma, sigma_next) in enumerate(zip(sigmas[:-1], sigmas[1:])):
        gamma = churn if s_min <= sigma <= s_max else 0.0
        sigma_hat, x_hat = sigma * (1 + gamma), x
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
            callback(
                dict(
                    i=i, sigma=sigma, sigma_hat=sigma_hat, x_hat=x_hat, denoised=denoised, d=d, x=x
                )
            )
    return x
