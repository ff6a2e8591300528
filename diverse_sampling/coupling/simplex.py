"""Simplex noise: as negatively correlated as the particles of a set can be."""

from __future__ import annotations

import math

from torch import Tensor

from diverse_sampling.method import KEPT, NO_CHURN, Method


def simplex(noise: Tensor) -> Tensor:
    """Noise whose particles are as negatively correlated as B exchangeable particles can be.

        z_i = sqrt(B / (B - 1)) (e_i - mean_j e_j),   correlation of z_i and z_j: -1 / (B - 1)

    noise e (G, B, ...) -> z of the same shape; the marginal of every particle stays standard
    normal. A set of one particle is returned as it is.
    """
    B = noise.shape[1]
    if B == 1:
        return noise
    return (noise - noise.mean(1, keepdim=True)) * math.sqrt(B / (B - 1))


METHOD = Method(
    "simplex noise",
    lambda sets, noise: simplex(noise()),
    needs=(NO_CHURN,),
    frequencies=KEPT,
)
