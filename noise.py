"""Every stream of random numbers, and the noise of sets: independent, or coupled inside a set."""

from __future__ import annotations

import math
from enum import IntEnum
from typing import Callable, Sequence

import torch
from scipy import stats
from torch import Tensor


class Stream(IntEnum):
    """What a stream of random numbers is for. Streams of one (seed, index) do not overlap."""

    WORLD = 0  # sequences, and the digits in them
    SAMPLING = 1  # starting noise and churn
    TRAINING = 2  # batches
    DATA_SCALE = 3  # windows on which sigma_data and the crop are measured
    CONDITIONING = 4  # CADS's noise on the conditioning
    QUANTILES = 5  # stratified noise: shifts and permutations
    DIRECTIONS = 6  # stratified noise: where the leading directions are measured
    DOUBT = 7  # noise at which a sample is doubted

    def turn(self, turn: int) -> int:
        """The same stream of a later draw for the same set; turn 0 is the first."""
        return self + LATER_DRAW * turn


LATER_DRAW = 16  # more than there are streams


def set_generator(
    seed: int, index: int, stream: int = Stream.WORLD, device="cpu"
) -> torch.Generator:
    """The generator of set (or training iteration) `index` under `seed`, for one `Stream`."""
    # splitmix64's multipliers keep neighbouring (seed, index, stream) far apart.
    mixed = (
        seed * 0x9E3779B97F4A7C15 + index * 0xBF58476D1CE4E5B9 + stream * 0x94D049BB133111EB
    ) % 2**63
    return torch.Generator(device).manual_seed(mixed)


class SetNoise:
    """Standard normal noise in which every set has its own stream: what set g gets depends
    on (seed, its index) alone, not on its neighbours, the chunks, or the device.

    Call: () -> (G, B, C, H, W) float32 on `device`.
    """

    def __init__(
        self,
        seed: int,
        sets: Sequence[int],
        shape: tuple[int, ...],
        device="cpu",
        stream: int = Stream.SAMPLING,
    ):
        self.generators = [set_generator(seed, int(index), stream) for index in sets]
        self.shape, self.device = shape, device

    def __call__(self) -> Tensor:
        noise = torch.stack([torch.randn(self.shape, generator=g) for g in self.generators])
        return noise.to(self.device, non_blocking=True)


def antithetic(noise: Tensor) -> Tensor:
    """Pairs (z, -z): the second half of each set is the first one's mirror image (an odd one out
    stays as it is). (G, B, ...) -> same; every particle's marginal stays standard normal."""
    half = noise.shape[1] // 2
    return torch.cat([noise[:, :half], -noise[:, :half], noise[:, 2 * half :]], 1)


def simplex(noise: Tensor) -> Tensor:
    """z_i = sqrt(B / (B - 1)) (e_i - mean_j e_j): pairwise correlation -1 / (B - 1), the least that
    B exchangeable particles can have. (G, B, ...) -> same; marginals stay standard normal."""
    B = noise.shape[1]
    return noise if B == 1 else (noise - noise.mean(1, keepdim=True)) * math.sqrt(B / (B - 1))


def stratified(noise: Tensor, directions: Tensor, generators: list[torch.Generator]) -> Tensor:
    """The components of a set's noise along a few orthonormal directions, spread evenly.

    Along each direction the B components become Phi^-1((pi(i) + u) / B) with one uniform shift u
    and one permutation pi per set: systematic sampling (Madow & Madow 1944), and for several
    directions a Latin hypercube with a common shift per axis. Each particle's component is exactly
    standard normal, and so is the particle, as long as the directions do not depend on the noise;
    but a set holds as many particles below any quantile as it should, give or take one.

    noise (G, B, ...), directions (G, r, ...) orthonormal over the last axes, one generator per set.
    """
    G, B = noise.shape[:2]
    flat, axes = noise.flatten(2), directions.flatten(2).to(noise)
    r = axes.shape[1]
    shift = torch.stack([torch.rand(1, r, generator=g, dtype=torch.float64) for g in generators])
    order = torch.stack([torch.rand(B, r, generator=g).argsort(0) for g in generators])
    quantiles = ((order + shift) / B).clamp(1e-9, 1 - 1e-9)  # (G, B, r)
    wanted = torch.as_tensor(stats.norm.ppf(quantiles.numpy())).to(noise)
    return (flat + (wanted - flat @ axes.transpose(1, 2)) @ axes).view_as(noise)


def leading_directions(
    denoise: Callable[[Tensor, Tensor], Tensor],
    sigma: Tensor,
    shape: tuple[int, ...],
    rank: int,
    generators: list[torch.Generator],
    iterations: int = 2,
    device="cpu",
) -> Tensor:
    """Orthonormal directions along which the posterior at `sigma` varies most: (G, rank, *shape).

    The Jacobian of a denoiser is Cov[y | x] / sigma^2, symmetric, so a few rounds of block power iteration
    with vector-Jacobian products, at noise drawn for this alone, find its leading eigenvectors.
    shape is that of one particle; one generator per set.
    """
    G = len(generators)
    draw = lambda: torch.stack([torch.randn((rank, *shape), generator=g) for g in generators]).to(
        device
    )
    v, x = draw(), float(sigma) * draw()[:, :1].expand(G, rank, *shape)
    for _ in range(iterations):
        with torch.enable_grad():
            at = x.detach().clone().requires_grad_()
            (v,) = torch.autograd.grad(denoise(at, sigma), at, v)
        v = (
            torch.linalg.qr(v.flatten(2).transpose(1, 2).double())
            .Q.transpose(1, 2)
            .to(x)
            .view(G, rank, *shape)
        )
    return v
