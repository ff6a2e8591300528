"""What is done to a set as a whole: starting noise that is coupled inside it, pruning of a
larger one, and drawing again what came out twice or is in doubt.

Sets are (G, B, C, H, W), images in [-1, 1], or (G, B, H, W) in [0, 1] where said so.
"""

from __future__ import annotations

import math
from typing import Callable

import torch
from scipy import stats
from torch import Tensor


# ---------------------------------------------------------------- coupled noise


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


# ---------------------------------------------------------------- pruning


def kmedoids(samples: Tensor, keep: int) -> Tensor:
    """Indices of the `keep` medoids of each set by L2 distance (FasterPAM, Schubert & Rousseeuw 2021):
    the samples that best stand for all. (G, B, ...) -> (G, keep) int64."""
    import kmedoids as library

    flat, chosen = samples.flatten(2), []
    for distances in torch.cdist(flat, flat).double().cpu().numpy():
        medoids = library.fasterpam(distances, keep, init="build", random_state=0).medoids.tolist()
        # Where a set has fewer than `keep` different samples, any others do as well.
        spare = [i for i in range(len(distances)) if i not in medoids]
        chosen.append(torch.tensor((medoids + spare)[:keep]))
    return torch.stack(chosen)


# ---------------------------------------------------------------- drawing again


def redraw_faulty(
    samples: Tensor,
    draw: Callable[[Tensor, int, Tensor], Tensor],
    doubt: Callable[[Tensor, Tensor], Tensor],
    *,
    alike: Callable[[Tensor, Tensor], Tensor],
    rounds: int,
    most_alike: float,
    most_doubt: float,
) -> tuple[Tensor, int]:
    """Draw particles again that share an answer with another one of their set, or that the denoiser doubts.

    A particle's fault is the larger of its likeness to its nearest neighbour over `most_alike` and its
    doubt, relative to its set's median, over `most_doubt`. Each round takes the most faulty particle of
    every set, if its fault is above 1, draws it anew with the others as memory, and keeps whichever is less
    faulty. The cost is one particle's trajectory per set and round, not a set's.

    samples   (G, B, H, W)
    draw      (sets (M,) int64, round, others (M, B - 1, H, W)) -> (M, H, W)
    doubt     (sets (M,), samples (M, P, H, W)) -> (M, P), how far the denoiser would move them
    alike     likeness: (G, A, H, W), (G, B, H, W) -> (G, A, B) in [0, 1], 1 for copies

    Returns the samples and how many particles were drawn again.
    """
    samples, redrawn = samples.clone(), 0
    if samples.shape[1] == 1 or rounds == 0:
        return samples, redrawn
    everyone = torch.arange(len(samples))
    doubts = doubt(everyone, samples)  # (G, B)
    # Where hardly anything is in doubt, a hundredth of the range per pixel, the least of it would weigh.
    scale = doubts.median(1).values.clamp_min(1e-2 * samples[0, 0].numel() ** 0.5)  # (G,)
    for turn in range(rounds):
        likeness = alike(samples, samples)
        likeness.diagonal(dim1=1, dim2=2).zero_()
        fault = torch.maximum(likeness.amax(2) / most_alike, doubts / scale[:, None] / most_doubt)
        sets = (fault.amax(1) > 1).nonzero()[:, 0]
        if len(sets) == 0:
            break
        # Of two that are alike, the one that is more like the rest too.
        which = (fault + 1e-3 * likeness.sum(2)).argmax(1)[sets]
        others = torch.stack(
            [torch.cat([samples[g, :b], samples[g, b + 1 :]]) for g, b in zip(sets, which)]
        )
        new = draw(sets, turn, others)
        redrawn += len(sets)
        new_doubt = doubt(sets, new[:, None])[:, 0]
        new_fault = torch.maximum(
            alike(new[:, None], others)[:, 0].amax(1) / most_alike,
            new_doubt / scale[sets] / most_doubt,
        )
        better = new_fault < fault[sets, which]
        samples[sets[better], which[better]] = new[better]
        doubts[sets[better], which[better]] = new_doubt[better]
    return samples, redrawn
