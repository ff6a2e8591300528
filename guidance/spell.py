"""SPELL: sparse repellency."""

from __future__ import annotations

import torch
from torch import Tensor

from guidance.base import Denoiser, finite
from potentials import squared_distances, weighted_differences


class Spell:
    """Sparse repellency (SPELL, Kirchhof et al. 2024, arXiv 2410.06025): D_i moves by

        sum_j relu(r / |d_ij| - 1) d_ij,   d_ij = D_i - D_j,

    j over the rest of the set and over `memory` (G, M, C, H, W). `radius` r is an L2 distance of
    images in [-1, 1]. Copies do not feel each other: their direction is undefined."""

    def __init__(self, denoise: Denoiser, *, radius: float, memory: Tensor | None = None):
        self.denoise, self.radius, self.memory = denoise, radius, memory

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        denoised = self.denoise(x, sigma)
        everyone = denoised if self.memory is None else torch.cat([denoised, self.memory.to(x)], 1)
        y = everyone.flatten(2)
        d = squared_distances(y).sqrt()
        weights = torch.where(d > 0, (self.radius / d - 1).clamp_min(0), 0.0)
        return finite(denoised + weighted_differences(weights, y)[:, : x.shape[1]].view_as(x))
