"""Contrastive noise (CNO): starting noise moved to where the first D(x) of a set differ."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from diverse_sampling.denoiser import Denoiser
from diverse_sampling.errors import reject
from diverse_sampling.method import Method


STEPS = 3  # of Adam


@dataclass(frozen=True)
class Options:
    """Contrastive noise"""

    contrastive_rate: float = 0.1
    """learning rate of the starting noise"""

    def __post_init__(self):
        if not 0 < self.contrastive_rate < math.inf:
            reject("contrastive_rate", self.contrastive_rate, "a number > 0")


def contrastive(
    denoise: Denoiser,
    noise: Tensor,
    sigma: Tensor,
    *,
    rate: float,
    steps: int = STEPS,
    temperature: float = 0.1,
) -> Tensor:
    """Starting noise moved by a few steps of Adam to where the first D(x) of a set differ (CNO).

        loss = -sum_i log(e_ii / sum_j e_ij),
        e_ij = exp(<u_i, u_j> / t),   e_ii = exp(<u_i, p_i> / t)

    with u_i = D(sigma z_i) scaled to unit length and p_i what it was before the first step: an
    InfoNCE loss whose negatives are the rest of the set. It costs steps + 1 calls and `steps`
    backward passes to the input. The noise is no longer standard normal, and marginals shift.

    Source: Kim et al. 2025, "Diverse text-to-image generation via contrastive noise optimization",
    arXiv 2510.03813. Uncertain: learning rate, temperature and number of steps, which were chosen
    there for latents of text-to-image models.

    Arguments:
        denoise: a denoiser of sets
        noise: z (G, B, C, H, W), standard normal
        sigma: the largest noise level
        rate: learning rate of Adam, about the change of each entry of z in a step
        steps: number of steps
        temperature: t

    Returns the noise, like `noise`.
    """
    off_diagonal = ~torch.eye(noise.shape[1], dtype=torch.bool, device=noise.device)

    def directions(z: Tensor) -> Tensor:
        return torch.nn.functional.normalize(denoise(z * sigma, sigma).flatten(2).double(), dim=-1)

    with torch.no_grad():
        positive = directions(noise)
    z = noise.detach().clone().requires_grad_()
    adam = torch.optim.Adam([z], lr=rate)
    with torch.enable_grad():
        for _ in range(steps):
            u = directions(z)
            alike = (u * positive).sum(-1) / temperature  # (G, B)
            others = (u @ u.transpose(1, 2) / temperature).masked_fill(~off_diagonal, -math.inf)
            everyone = torch.cat([alike[:, :, None], others], -1)
            loss = (everyone.logsumexp(-1) - alike).sum()
            (z.grad,) = torch.autograd.grad(loss, z)
            adam.step()
    return z.detach()


METHOD = Method(
    "contrastive noise",
    lambda sets, noise: contrastive(
        sets.denoise, noise(), sets.sigma_max, rate=sets.options.contrastive_rate
    ),
    needs=("3 backward passes",),
    before=lambda settings, particles: (STEPS + 1, STEPS),
    options=Options,
)
