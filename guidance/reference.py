"""Particle guidance as the reference thesis has it.

    D_i + s^2 factor grad_i U,   U = sum_{i < j} exp(-|y_i - y_j| / h),   y = (D + 1) / 2,
    h = median(|y_i - y_j|)^2 / ln B,

with a plus in front of the gradient where particle guidance has a minus (the thesis's algorithm 2,
line 10, has the opposite sign of the drift), and the gradient, with respect to y, is taken through
the median bandwidth h as well. Of three or more particles it climbs U where it should descend. For
two, |y_1 - y_2| / h = ln 2 / |y_1 - y_2|, so that climbing U moves them apart. The formula is that
of the thesis's code, which differs from its text: the thesis prints the squared distance.

It is here to be compared with; `particle.py` has the form of the paper (Corso et al. 2023, arXiv
2310.13102). As the thesis ran it, sampling starts from noise of a tenth of the deviation, and only
the Euler stage is guided (`--initial_scale 0.1 --second_stage here`).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from guidance.base import Pushed
from ranges import to_unit_range


class Reference(Pushed):
    """A denoiser of sets in the thesis's form of particle guidance, the push above."""

    def denoised_and_push(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """D(x) and grad U, both like x."""
        denoised = self.denoise(x, sigma)
        return denoised, self._gradient(denoised).to(x)

    def _gradient(self, denoised: Tensor) -> Tensor:
        """grad U with respect to y, float64, like denoised (G, B, C, H, W)."""
        G, B = denoised.shape[:2]
        with torch.enable_grad():
            y = to_unit_range(denoised.detach()).flatten(2).double().requires_grad_()
            differences = y[:, :, None] - y[:, None, :]
            # All but the diagonal, (G, B (B - 1)), without a mask, which would make a GPU wait.
            d2 = differences.square().sum(-1).flatten(1)[:, 1:].unflatten(1, (B - 1, B + 1))
            d2 = d2[:, :, :-1].reshape(G, -1)
            # The square root of a zero has no gradient; two copies then do not feel each other.
            d = torch.where(d2 > 0, d2, 1.0).sqrt() * (d2 > 0)
            h = (d.median(-1, keepdim=True).values ** 2 / math.log(max(B, 2))).clamp_min(1e-12)
            energy = (-d / h).exp().sum() / 2
            (grad,) = torch.autograd.grad(energy, y)
        return grad.view_as(denoised)
