"""Sparse repellency (SPELL).

The denoised image D_i of each particle moves away from every other one within a radius r, by just
as much as it takes to leave that radius:

    D_i + sum_j relu(r / |d_ij| - 1) d_ij,   d_ij = D_i - D_j,

with j over the rest of the set and over images that are held in memory. Particles that are farther
apart than r do not influence each other.

Source: Kirchhof et al. 2024, "Shielded diffusion: generating novel and diverse images using sparse
repellency", arXiv 2410.06025, equation 4.
"""

from __future__ import annotations

import torch
from torch import Tensor

from diverse_sampling.denoiser import Denoiser
from diverse_sampling.guidance.base import Guided, finite
from diverse_sampling.method import Method
from diverse_sampling.potentials import squared_distances, weighted_differences


class Spell(Guided):
    """A denoiser of sets whose particles repel inside a radius; wraps any denoiser of sets.

    Copies do not repel: the direction in which they should move is undefined.

    Arguments:
        denoise, levels: as in `Guided`
        radius: r, an L2 distance of images in [-1, 1]
        memory: (G, M, C, H, W) images in [-1, 1] that repel and do not move, or None
    """

    def __init__(
        self,
        denoise: Denoiser,
        *,
        radius: float,
        memory: Tensor | None = None,
        **levels: float | None,
    ):
        super().__init__(denoise, **levels)
        self.radius = radius
        self.memory = memory

    def guided(self, x: Tensor, sigma: Tensor) -> Tensor:
        """D(x), moved apart, like x."""
        denoised = self.denoise(x, sigma)
        everyone = denoised
        if self.memory is not None:
            everyone = torch.cat([denoised, self.memory.to(x)], 1)
        y = everyone.flatten(2)  # (G, B + M, d)
        distances = squared_distances(y).sqrt()  # (G, B + M, B + M)
        shortfall = (self.radius / distances - 1).clamp_min(0)
        weights = torch.where(distances > 0, shortfall, 0.0)
        moves = weighted_differences(weights, y)[:, : x.shape[1]].view_as(x)
        return finite(denoised + moves)


METHOD = Method(
    "SPELL",
    lambda sets: Spell(
        sets.denoise, radius=sets.settings.spell_radius, memory=sets.memory, **sets.levels
    ),
    needs=("a radius",),
    shown=dict(spell_radius=", radius {:g}"),
)
