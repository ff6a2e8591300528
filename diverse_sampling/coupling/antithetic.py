"""Antithetic noise: pairs (z, -z)."""

from __future__ import annotations

import torch
from torch import Tensor

from diverse_sampling.method import KEPT, NO_CHURN, Method


def antithetic(noise: Tensor) -> Tensor:
    """Pairs (z, -z): the second half of each set becomes the negative of the first half.

    Of an odd number of particles the last one stays as it is. noise (G, B, ...) -> same shape; the
    marginal of every particle stays standard normal.
    """
    half = noise.shape[1] // 2
    return torch.cat([noise[:, :half], -noise[:, :half], noise[:, 2 * half :]], 1)


METHOD = Method(
    "antithetic noise",
    lambda sets, noise: antithetic(noise()),
    needs=(NO_CHURN,),
    frequencies=KEPT,
)
