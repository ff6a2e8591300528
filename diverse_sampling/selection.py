"""Selection: a set out of a larger one.

kmedoids        the samples that represent the larger set best
most_distant    the samples that are farthest apart, for a pool that shrinks while it is sampled
"""

from __future__ import annotations

import torch
from torch import Tensor


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


def most_distant(samples: Tensor, keep: int) -> Tensor:
    """Indices of the samples of each set that are farthest apart.

    They have the largest sum of pairwise L2 distances that is found by adding one after the other
    to the most distant pair, and then by swaps as long as one helps. A pool of M that keeps the
    better half at every step of the sampler, down to B, is group inference (Parmar et al. 2025,
    "Scaling group inference for diverse and high-quality generation", arXiv 2508.15773). Its
    network calls are about M for each of the first steps and B for the others. Uncertain: the
    published objective also weighs the quality of single samples, and is solved exactly.

    samples (G, M, ...) -> (G, keep) int64.
    """
    flat = samples.flatten(2)
    return torch.stack([_most_distant(d, keep) for d in torch.cdist(flat, flat).double().cpu()])


def _most_distant(distances: Tensor, keep: int) -> Tensor:
    """The indices for one set, distances (M, M)."""
    first, second = divmod(int(distances.argmax()), len(distances))
    if first == second:  # all are copies
        return torch.arange(keep)
    chosen = [first, second][:keep]
    while len(chosen) < keep:
        gain = distances[chosen].sum(0)
        gain[chosen] = -1
        chosen.append(int(gain.argmax()))
    while True:
        to_chosen = distances[:, chosen].sum(1)  # (M,)
        # What it changes to put i in the place of the chosen c.
        change = to_chosen[:, None] - distances[:, chosen] - to_chosen[chosen]
        change[chosen] = -1
        best = int(change.argmax())
        i, place = divmod(best, keep)
        if change[i, place] <= 1e-9 * distances.max():
            return torch.tensor(chosen)
        chosen[place] = i
