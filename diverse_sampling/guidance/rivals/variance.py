"""Variance guidance: the density of a set tilted by how much its samples vary.

    h = E[(1/B) sum_i |y_i - mean y|^2 | x_1..x_B]
      = (1/B) sum_i |D_i - mean D|^2 + (B - 1) / B^2 sum_i tr S_i,
    D_i' = D_i + s^2 factor grad_i log h,

with the posterior covariance S_i = s^2 dD_i/dx_i. For factor 1 this is no
approximation: h is E[Phi | x] of Phi = the variance of the set, so that an exact denoiser samples
p(x_1) ... p(x_B) Phi. The trace is estimated along one random direction v per particle,

    tr S = E <v, S v>,   S v = s^2 (D(x + e v) - D(x)) / e,

so that it costs twice the calls of particle guidance through the Jacobian. Marginals shift as the
tilt says.

Source: "Variance-tilted diffusion models for diverse sampling", 2026, arXiv 2606.22239.

Uncertain: how many directions, and whether finite differences, are used there.
"""

from __future__ import annotations

from typing import Callable

import torch
from torch import Tensor

from diverse_sampling.denoiser import Denoiser
from diverse_sampling.guidance.base import Pushed
from diverse_sampling.method import BACKWARD, STRENGTH, Method, Sets
from diverse_sampling.noise import Stream

STEP = 0.1  # e, in units of the noise level


class Variance(Pushed):
    """A denoiser of sets tilted by their variance.

    Arguments:
        denoise, factor, levels: as in `Pushed`; the factor is the exponent of h
        directions: draws v (G, B or more, C, H, W), entries of mean 0 and variance 1
    """

    def __init__(
        self,
        denoise: Denoiser,
        *,
        factor: float,
        directions: Callable[[], Tensor],
        **levels: float | None,
    ):
        super().__init__(denoise, factor=factor, **levels)
        self.directions = directions

    def denoised_and_push(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """D(x) and grad log h, both like x."""
        B = x.shape[1]
        v = self.directions()[:, :B].to(x)
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            both = self.denoise(torch.cat([x, x + STEP * sigma * v], 1), sigma)
            log_h = self.expected_variance(both[:, :B], both[:, B:], v, sigma).log().sum()
            (grad,) = torch.autograd.grad(log_h, x)
        return both[:, :B].detach(), grad

    def expected_variance(
        self, denoised: Tensor, beside: Tensor, v: Tensor, sigma: Tensor
    ) -> Tensor:
        """h (G,) of D(x) and D(x + e v), both (G, B, C, H, W)."""
        B = denoised.shape[1]
        change = (beside - denoised) * (sigma / STEP)  # S v
        posterior = (v * change).sum((1, 2, 3, 4))
        spread = (denoised - denoised.mean(1, keepdim=True)).square().sum((1, 2, 3, 4))
        h = spread / B + (B - 1) / B**2 * posterior
        # One direction may find less than no variance where the denoiser is not exact.
        return h.clamp_min(torch.finfo(h.dtype).tiny ** 0.5)


def _make(sets: Sets) -> Variance:
    return Variance(
        sets.denoise,
        factor=sets.settings.pg_factor,
        directions=sets.noise(Stream.PROBES, None),
        **sets.levels,
    )


METHOD = Method(
    "variance",
    _make,
    needs=(STRENGTH, "twice the calls", BACKWARD),
    frequencies="tilted, known",
    beside=lambda settings: (1, 2),
    shown=dict(pg_factor=", factor {:g}"),
    only=dict(sequential=1),
)
