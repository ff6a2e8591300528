"""Stratified noise: evenly spread along the directions in which the posterior varies most."""

from __future__ import annotations

from typing import Callable

import torch
from scipy import stats
from torch import Tensor

from diverse_sampling.denoiser import Denoiser
from diverse_sampling.method import KEPT, Method, Sets
from diverse_sampling.noise import Stream

ITERATIONS = 2  # of the power iteration


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


def leading_directions(
    denoise: Denoiser,
    sigma: Tensor,
    shape: tuple[int, ...],
    rank: int,
    generators: list[torch.Generator],
    iterations: int = ITERATIONS,
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


def _make(sets: Sets, noise: Callable[[], Tensor]) -> Tensor:
    z = noise()
    axes = leading_directions(
        sets.denoise,
        torch.tensor(sets.settings.stratified_sigma),
        tuple(z.shape[2:]),
        sets.settings.stratified_rank,
        sets.generators(Stream.DIRECTIONS),
        device=z.device,
    )
    return stratified(z, axes, sets.generators(Stream.QUANTILES))


METHOD = Method(
    "stratified noise",
    _make,
    needs=("backward passes at first", "no churn"),
    frequencies=KEPT,
    before=lambda settings, particles: 2 * (ITERATIONS * settings.stratified_rank / particles,),
)
