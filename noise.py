"""Every stream of random numbers, and the starting noise of sets: independent, or coupled in a set.

Coupled noise makes the particles of a set differ from the start. Each particle's own distribution
stays exactly standard normal; only the joint distribution of a set changes:

    antithetic    pairs (z, -z)
    simplex       pairwise correlation -1 / (B - 1), the smallest that B exchangeable particles have
    stratified    evenly spread quantiles along the directions in which the posterior varies most

`contrastive` noise, which gives up that distribution, is there to be compared with. A balanced draw
of starting noise is in `selection.py`.
"""

from __future__ import annotations

import math
from enum import IntEnum
from typing import Sequence

import numpy
import torch
from scipy import stats
from torch import Tensor

from denoiser import Denoiser

# Distance between the streams of two batches of the same set: more than there are streams.
LATER_BATCH = 16


class Stream(IntEnum):
    """What a stream of random numbers is for. Streams of one (seed, index) do not overlap."""

    WORLD = 0  # sequences, and the digits in them
    SAMPLING = 1  # starting noise and churn
    TRAINING = 2  # batches
    DATA_SCALE = 3  # windows on which sigma_data and the crop are measured
    CONDITIONING = 4  # CADS's noise on the conditioning
    QUANTILES = 5  # stratified noise: shifts and permutations; balanced draws
    DIRECTIONS = 6  # stratified noise: starting points of the power iteration
    PILOT = 7  # starting noise of the sets on which `decisions` are measured
    PROBES = 8  # directions in which `guidance.Variance` measures the posterior
    HELD_OUT = 9  # windows and noise of the held-out loss

    def turn(self, turn: int) -> int:
        """The number of this stream in a later batch of the same set; turn 0 is the first."""
        return self + LATER_BATCH * turn


def set_generator(
    seed: int, index: int, stream: int = Stream.WORLD, device: torch.device | str = "cpu"
) -> torch.Generator:
    """The random generator of one set, or of one training iteration.

    Arguments:
        seed: the seed of the run
        index: number of the set or of the iteration
        stream: what the numbers are for: a `Stream`, or `Stream.X.turn(n)` for a later batch
        device: where the generator lives
    """
    # splitmix64's multipliers keep neighbouring (seed, index, stream) far apart.
    mixed = seed * 0x9E3779B97F4A7C15 + index * 0xBF58476D1CE4E5B9 + stream * 0x94D049BB133111EB
    return torch.Generator(device).manual_seed(mixed % 2**63)


class ParticleNoise:
    """A source of standard normal noise in which every particle of every set has its own stream.

    What a particle gets depends on the seed, its set and its number in the set alone: not on how
    many particles or sets there are beside it, on how they are split into chunks, or on the device.
    A call draws the next noise, (G, B, *shape) float32 on `device`.

    Arguments:
        seed: the seed of the run
        sets: numbers of the G sets
        particles: numbers of the B particles of each set
        shape: shape of one particle's noise, (C, H, W)
        device: where the noise is returned; it is always drawn on the CPU
        stream: what the numbers are for
    """

    def __init__(
        self,
        seed: int,
        sets: Sequence[int],
        particles: Sequence[int],
        shape: tuple[int, ...],
        device: torch.device | str = "cpu",
        stream: int = Stream.SAMPLING,
    ):
        # torch's CPU generator would take 32 bits of the key, too few for so many streams.
        self.generators = [
            numpy.random.default_rng([seed, stream, g, particle])
            for g in sets
            for particle in particles
        ]
        self.shape = (len(sets), len(particles), *shape)
        self.device = torch.device(device)

    def __call__(self) -> Tensor:
        noise = torch.empty(self.shape)
        for generator, out in zip(self.generators, noise.flatten(0, 1).numpy()):
            generator.standard_normal(dtype=numpy.float32, out=out)
        return noise.to(self.device)


def antithetic(noise: Tensor) -> Tensor:
    """Pairs (z, -z): the second half of each set becomes the negative of the first half.

    Of an odd number of particles the last one stays as it is. noise (G, B, ...) -> same shape; the
    marginal of every particle stays standard normal.
    """
    half = noise.shape[1] // 2
    return torch.cat([noise[:, :half], -noise[:, :half], noise[:, 2 * half :]], 1)


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


def stratified(noise: Tensor, directions: Tensor, generators: list[torch.Generator]) -> Tensor:
    """Noise whose components along a few directions are spread evenly inside each set.

    Along each direction the B components become Phi^-1((pi(i) + u) / B) with one uniform shift u
    and one permutation pi per set: systematic sampling (Madow & Madow 1944), and for several
    directions a Latin hypercube with a common shift per axis. Each particle's component is exactly
    standard normal, and so is the particle, as long as the directions do not depend on the noise.
    A set holds as many particles below any quantile as that quantile asks for, give or take one.

    Arguments:
        noise: (G, B, ...), standard normal
        directions: (G, r, ...), orthonormal over the last axes
        generators: one per set, for shifts and permutations

    Returns noise like `noise`, changed along the directions only.
    """
    B = noise.shape[1]
    flat = noise.flatten(2)  # (G, B, d)
    axes = directions.flatten(2).to(noise)  # (G, r, d)
    r = axes.shape[1]
    shift = torch.stack([torch.rand(1, r, generator=g, dtype=torch.float64) for g in generators])
    order = torch.stack([torch.rand(B, r, generator=g).argsort(0) for g in generators])
    quantiles = ((order + shift) / B).clamp(1e-9, 1 - 1e-9)  # (G, B, r)
    wanted = torch.as_tensor(stats.norm.ppf(quantiles.numpy()), dtype=noise.dtype)
    components = flat @ axes.transpose(1, 2)  # (G, B, r)
    missing = wanted.to(noise.device) - components
    # A GPU's kernel for products of inner size 1 is compiled when it is first used.
    change = missing * axes if r == 1 else missing @ axes
    return (flat + change).view_as(noise)


def contrastive(
    denoise: Denoiser,
    noise: Tensor,
    sigma: Tensor,
    *,
    rate: float,
    steps: int = 3,
    temperature: float = 0.1,
) -> Tensor:
    """Starting noise moved by a few steps of Adam to where the first D(x) of a set differ (CNO).

        loss = -sum_i log(e_ii / sum_j e_ij),
        e_ij = exp(<u_i, u_j> / t),   e_ii = exp(<u_i, p_i> / t)

    with u_i = D(sigma z_i) scaled to unit length and p_i what it was before the first step: an
    InfoNCE loss whose negatives are the rest of the set. It costs steps + 1 calls and `steps`
    backward passes to the input. The noise is no longer standard normal, and marginals shift.

    Source: arXiv 2510.03813. Uncertain: learning rate, temperature and number of steps, which were
    chosen there for latents of text-to-image models.

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


def leading_directions(
    denoise: Denoiser,
    sigma: Tensor,
    shape: tuple[int, ...],
    rank: int,
    generators: list[torch.Generator],
    iterations: int = 2,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Orthonormal directions along which the posterior at noise level `sigma` varies most.

    The Jacobian of an exact denoiser is Cov[y | x] / sigma^2, a symmetric matrix. A few rounds of
    block power iteration with vector-Jacobian products, at noise drawn for this purpose alone, find
    its leading eigenvectors.

    Arguments:
        denoise: a denoiser of G sets
        sigma: noise level, a scalar tensor
        shape: shape of one particle, (C, H, W)
        rank: number of directions r
        generators: one per set
        iterations: rounds of the power iteration
        device: where the denoiser computes

    Returns (G, rank, *shape).
    """
    G = len(generators)

    def draw() -> Tensor:
        noise = torch.stack([torch.randn((rank, *shape), generator=g) for g in generators])
        return noise.to(device)

    v = draw()
    x = float(sigma) * draw()[:, :1].expand(G, rank, *shape)
    for _ in range(iterations):
        with torch.enable_grad():
            at = x.detach().clone().requires_grad_()
            (v,) = torch.autograd.grad(denoise(at, sigma), at, v)
        columns = v.flatten(2).transpose(1, 2).double()  # (G, d, r)
        basis = torch.linalg.qr(columns).Q
        v = basis.transpose(1, 2).to(x).view(G, rank, *shape)
    return v
