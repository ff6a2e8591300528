"""EDDY: repulsion along a field that leaves the distribution of each particle as it is.

    f_i = sum_j [div_i A_ij + A_ij s_i],   A_ij = r v^T - v r^T,

with the score s_i = (D_i - x_i) / s^2. A_ij is antisymmetric, so that div_i(p f_i) = 0 for every
p with that score: the exact field moves particles along the level sets of the flow and keeps the
product of their densities. Here r = -grad_i k sqrt(h) / 2 = k (x_i - x_j) / sqrt(h) for the kernel
k = exp(-|x_i - x_j|^2 / h), and v = s_j / |s_j|, which does not depend on x_i; f then repels two
particles wherever their scores agree. h = 2 d (s^2 + 0.5^2) / ln B is what the median heuristic
gives in d dimensions, without depending on any particle. All of it is in closed form and needs no
backward pass.

Source: Vinograd et al. 2026, "Diverse sampling in diffusion models with marginal preserving
particle guidance", arXiv 2605.06553.

Uncertain: v and h, of which the argument asks only that they do not depend on x_i, and the
strength over noise levels; the field here is `factor` times s^2 f_i at all of them. For embeddings
the authors approximate the field, and it is then no longer exactly free of divergence.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from diverse_sampling.guidance.base import Pushed
from diverse_sampling.method import STRENGTH, Method
from diverse_sampling.potentials import squared_distances, weighted_differences

SIGMA_DATA = 0.5  # standard deviation of images in [-1, 1], as in EDM


class Eddy(Pushed):
    """A denoiser of sets with a divergence-free push, the field above."""

    def denoised_and_push(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """D(x) and the field f, both like x."""
        denoised = self.denoise(x, sigma)
        return denoised, self.field(x.flatten(2), denoised.flatten(2), float(sigma)).view_as(x)

    def field(self, x: Tensor, denoised: Tensor, sigma: float) -> Tensor:
        """f of particles x (G, B, d) and D(x), in the same shape."""
        _, B, d = x.shape
        h = 2 * d * (sigma**2 + SIGMA_DATA**2) / math.log(B)
        y = x.double()
        score = (denoised.double() - y) / sigma**2
        v = torch.nn.functional.normalize(score, dim=-1)
        d2 = squared_distances(y)
        k = (-d2 / h).exp() / math.sqrt(h)
        k = k - torch.diag_embed(k.diagonal(dim1=1, dim2=2))  # without j = i
        # Inner products of v_j and s_i with x_i - x_j.
        v_apart = y @ v.transpose(1, 2) - (v * y).sum(-1)[:, None]
        s_apart = (score * y).sum(-1)[:, :, None] - score @ y.transpose(1, 2)
        along_v = k * (1 - d + 2 * d2 / h - s_apart)
        along_difference = k * (score @ v.transpose(1, 2) - 2 / h * v_apart)
        return (along_v @ v + weighted_differences(along_difference, y)).to(x)


METHOD = Method(
    "EDDY",
    lambda sets: Eddy(sets.denoise, factor=sets.settings.pg_factor, **sets.levels),
    needs=(STRENGTH,),
    frequencies="kept, from independent noise",
    shown=dict(pg_factor=", factor {:g}"),
    only=dict(sequential=1),
)
