"""Particle guidance as its authors run it on images: a fixed kernel on the noisy particles.

    f_i = sum_j 2 k_ij (x_i - x_j) / h_i,   k_ij = exp(-|x_i - x_j|^2 / h_i),
    h_i = median_j |x_i - x_j|^2 / ln(B - 1),

added to D as factor s^2 f_i: a drift of factor s, which is alpha in the paper. It needs no backward
pass, and nothing that a pilot measures. Marginals shift.

Source: Corso et al. 2023, "Particle guidance: non-IID diverse sampling with diffusion models",
arXiv 2310.13102, and the authors' code for Stable Diffusion without features of DINO.

Uncertain: the median is that of each particle's own distances, and the logarithm of B - 1, as in
that code. For sets of two and three, where that is 0 or less than ln 2, it is ln 2. The code guides
above noise level 1, one standard deviation of its latents; `pg_sigma_min` says where here. Its
steps are those of an Euler solver or of DDIM, with latents that are scaled by 1 / sqrt(1 + s^2).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from diverse_sampling.guidance.base import Pushed
from diverse_sampling.method import STRENGTH, Method
from diverse_sampling.potentials import squared_distances, weighted_differences


class Published(Pushed):
    """A denoiser of sets with the push f above."""

    def denoised_and_push(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """D(x) and f, both like x."""
        return self.denoise(x, sigma), self.field(x.flatten(2)).view_as(x)

    def field(self, x: Tensor) -> Tensor:
        """f of particles x (G, B, d), in the same shape."""
        B = x.shape[1]
        d2 = squared_distances(x)
        others = d2.flatten(1)[:, 1:].unflatten(1, (B - 1, B + 1))[:, :, :-1]
        h = others.reshape(len(x), B, B - 1).median(-1, keepdim=True).values
        h = (h / math.log(max(B - 1, 2))).clamp_min(torch.finfo(h.dtype).tiny ** 0.5)
        return weighted_differences(2 * (d2 / -h).exp() / h, x)


METHOD = Method(
    "particle guidance as published",
    lambda sets: Published(sets.denoise, factor=sets.settings.pg_factor, **sets.levels),
    needs=(STRENGTH,),
    shown=dict(pg_factor=", factor {:g}"),
    only=dict(sequential=1),
)
