"""Selection: a set out of a larger one.

kmedoids    the samples that represent the larger set best
farthest    those that differ most from each other
thin        medoids in the middle of sampling, as soon as modes are decided
prune       the most different ones of each of the first steps
"""

from __future__ import annotations

from typing import Sequence

import numpy as np
import torch
from torch import Tensor

from diverse_sampling.denoiser import Denoiser, to_unit_range
from diverse_sampling.steps import Schedule, edm_schedule, integrate, karras_sigmas

THINNING = 5  # calls of the denoiser for each particle of a pool, until it is thinned


def kmedoids(samples: Tensor, keep: int) -> Tensor:
    """Indices of the `keep` medoids of each set: the samples that represent the set best.

    They are those with the smallest sum of L2 distances of all samples to their nearest medoid, as
    found by FasterPAM (Schubert & Rousseeuw 2021). samples (G, B, ...) -> (G, keep) int64.
    """
    try:
        import kmedoids as library
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("medoids need FasterPAM: pip install kmedoids") from error

    flat = samples.flatten(2)
    chosen = []
    for distances in torch.cdist(flat, flat).double().cpu().numpy():
        medoids = library.fasterpam(distances, keep, init="build", random_state=0).medoids.tolist()
        # Where a set has fewer than `keep` different samples, any others do as well.
        spare = [index for index in range(len(distances)) if index not in medoids]
        chosen.append(torch.tensor((medoids + spare)[:keep]))
    return torch.stack(chosen)


def farthest(samples: Tensor, keep: int) -> Tensor:
    """Indices of the `keep` samples of each set that differ most from each other.

    They have the largest sum over pairs of 1 - the cosine of two images in [0, 1], up to exchanges
    of one that is kept for another: from all samples, those that add least are dropped one by one,
    and then exchanged as long as that gains. samples (G, B, ...) in [-1, 1] -> (G, keep) int64.
    """
    unit = torch.nn.functional.normalize(to_unit_range(samples).flatten(2).double(), dim=-1)
    chosen = []
    for apart in (1 - unit @ unit.transpose(1, 2)).cpu().numpy():
        np.fill_diagonal(apart, 0.0)
        inside = np.ones(len(apart), dtype=bool)
        gains = apart.sum(1)  # what each sample adds to, or would add to, those that are kept
        for _ in range(len(apart) - keep):
            dropped = np.where(inside, gains, np.inf).argmin()
            inside[dropped] = False
            gains = gains - apart[dropped]
        while not inside.all():
            gained = gains[None] - gains[:, None] - apart  # by a row's sample for a column's
            gained[~inside] = gained[:, inside] = -np.inf
            out, into = np.unravel_index(gained.argmax(), gained.shape)
            if gained[out, into] <= 1e-9:
                break
            inside[out], inside[into] = False, True
            gains = gains - apart[out] + apart[into]
        chosen.append(torch.from_numpy(inside.nonzero()[0]))
    return torch.stack(chosen)


def _only(x: Tensor, chosen: Tensor) -> Tensor:
    """The chosen (G, keep) particles of sets x (G, M, C, H, W)."""
    return x[torch.arange(len(x), device=x.device)[:, None], chosen.to(x.device)]


@torch.no_grad()
def prune(denoise: Denoiser, x: Tensor, schedule: Schedule, sizes: Sequence[int]) -> Tensor:
    """Steps after each of which fewer particles go on, those whose D(x) differ most.

    Arguments:
        denoise: the unguided denoiser
        x: (G, M, C, H, W), noise of standard deviation schedule.sigmas[0]
        schedule: the steps, which add no noise
        sizes: how many particles of each set are kept after each of the first steps

    Returns the particles that are kept, (G, sizes[-1], C, H, W), after len(sizes) steps.
    """
    for step, keep in enumerate(sizes):
        seen: dict[str, Tensor] = {}
        x = integrate(denoise, x, schedule.part(step, step + 1), callback=seen.update)
        x = _only(x, farthest(seen["denoised"], keep))
    return x


@torch.no_grad()
def thin(denoise: Denoiser, x: Tensor, sigma_max: float, sigma: float, keep: int) -> Tensor:
    """A pool of particles, reduced to those that represent it best once modes are decided.

    Two of Heun's steps go from sigma_max to sigma, and the medoids of the D there are kept: a
    particle of the pool takes THINNING calls, instead of all that a sample needs.

    Arguments:
        denoise: the unguided denoiser
        x: (G, M, C, H, W), noise of standard deviation sigma_max
        sigma_max: the largest noise level
        sigma: the level at which particles are compared, such as `Decisions.settled`
        keep: how many particles of each set are kept, at most M

    Returns the particles that are kept, (G, keep, C, H, W), at noise level sigma.
    """
    sigmas = karras_sigmas(3, sigma, sigma_max)
    x = integrate(denoise, x, edm_schedule(sigmas).part(0, 2))
    return _only(x, kmedoids(denoise(x, sigmas[2]), keep))
