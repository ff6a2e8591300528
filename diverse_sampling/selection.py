"""Selection: a set out of a larger one.

kmedoids    the samples that represent the larger set best
thin        the same in the middle of sampling, as soon as modes are decided
"""

from __future__ import annotations

import torch
from torch import Tensor

from diverse_sampling.denoiser import Denoiser
from diverse_sampling.steps import edm_schedule, integrate, karras_sigmas


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
    chosen = kmedoids(denoise(x, sigmas[2]), keep).to(x.device)
    return x[torch.arange(len(x), device=x.device)[:, None], chosen]
