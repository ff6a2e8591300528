"""A balanced draw: one of each of B equal groups of starting noises, by what they will become."""

from __future__ import annotations

from typing import Callable

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from diverse_sampling.denoiser import Denoiser
from diverse_sampling.method import KEPT, Method, Sets
from diverse_sampling.noise import Stream
from diverse_sampling.selection import kmedoids
from diverse_sampling.steps import Schedule, integrate

LLOYD_ROUNDS = 5  # of balanced k-means; more change few of the groups
PREVIEW_CALLS = 3  # of the denoiser for each candidate
PREVIEWED = 2.0  # the noise level at which these say how alike candidates are


def balanced_draw(previews: Tensor, groups: int, generators: list[torch.Generator]) -> Tensor:
    """One sample of each of several equal groups of each set, drawn at random, in random order.

    The samples of a set are divided into `groups` of m by how alike their previews are. Of
    independent samples, each that is drawn then has their distribution, whatever the partition: it
    is a uniform draw of all of them. What the draws have in common is only that no two are of one
    group. Network calls are those of the previews, m per sample that is kept.

    Arguments:
        previews: (G, m groups, ...), what is known of the samples
        groups: how many of each set to keep
        generators: one per set

    Returns indices (G, groups) int64.
    """
    G, M = previews.shape[:2]
    m = M // groups
    flat = previews.flatten(2).double().cpu()
    centres = flat[torch.arange(G)[:, None], kmedoids(flat, groups)]
    drawn = []
    for points, middle, generator in zip(flat, centres, generators):
        for _ in range(LLOYD_ROUNDS):
            # Each centre has m places, and every point takes one.
            cost = torch.cdist(points, middle).square().repeat_interleave(m, 1)
            _, place = linear_sum_assignment(cost.numpy())
            members = torch.from_numpy(place).argsort().view(groups, m)
            middle = points[members].mean(1)
        which = torch.randint(m, (groups, 1), generator=generator)
        order = torch.randperm(groups, generator=generator)
        drawn.append(members.gather(1, which)[:, 0][order])
    return torch.stack(drawn)


@torch.no_grad()
def previews(denoise: Denoiser, x: Tensor, first: float, last: float) -> Tensor:
    """D at noise level `last`, which a few steps of Euler's lead to from the noise level `first`.

    Starting noise x (G, B, C, H, W) -> like x, for PREVIEW_CALLS a particle.
    """
    ramp = torch.linspace(0, 1, PREVIEW_CALLS, dtype=torch.float64)
    sigmas = first * (last / first) ** ramp
    steps = PREVIEW_CALLS - 1
    euler = Schedule(
        sigmas, torch.zeros(steps, dtype=torch.float64), torch.zeros(steps, dtype=torch.bool)
    )
    return denoise(integrate(denoise, x, euler), sigmas[-1])


def _make(sets: Sets, noise: Callable[[], Tensor]) -> Tensor:
    g = sets.settings
    draws = [noise() for _ in range(g.balanced_of)]
    z = torch.cat(draws, 1)
    seen = previews(sets.denoise, z * sets.sigma_max, float(sets.sigma_max), PREVIEWED)
    drawn = balanced_draw(seen, draws[0].shape[1], sets.generators(Stream.QUANTILES))
    return z[torch.arange(len(z), device=z.device)[:, None], drawn.to(z.device)]


METHOD = Method(
    "balanced draw",
    _make,
    needs=("a noise level", "no churn"),
    frequencies=KEPT,
    shown=dict(balanced_of=" from {} times as many"),
    candidates=lambda settings: settings.balanced_of,
    before=lambda settings, particles: (PREVIEW_CALLS * settings.balanced_of, 0),
)
