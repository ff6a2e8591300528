"""Selection: a set out of a larger one.

kmedoids        the samples that represent the larger set best
most_distant    the samples that are farthest apart, for a pool that shrinks while it is sampled
balanced_draw   one of each of B equal groups, at random: every sample keeps its distribution
"""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

LLOYD_ROUNDS = 5  # of balanced k-means; more change few of the groups


def kmedoids(samples: Tensor, keep: int) -> Tensor:
    """Indices of the `keep` medoids of each set: the samples that represent the set best.

    They are those with the smallest sum of L2 distances of all samples to their nearest medoid, as
    found by FasterPAM (Schubert & Rousseeuw 2021). samples (G, B, ...) -> (G, keep) int64.
    """
    import kmedoids as library

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
