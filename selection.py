"""Selection inside a set: pruning a larger set, and resampling particles that repeat an answer.

Sets are (G, B, H, W) in [0, 1] unless stated otherwise.
"""

from __future__ import annotations

from typing import Callable

import torch
from torch import Tensor

# The scale of doubts is at least this share of the range per pixel: where the denoiser hardly moves
# anything, ratios of its movements mean nothing.
SMALLEST_DOUBT = 1e-2


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
    """Resample particles that repeat an answer of their set, or that the denoiser would change.

    The fault of a particle is the larger of two ratios: its likeness to the most similar particle
    of its set over `most_alike`, and its doubt, relative to the median of its set, over
    `most_doubt`. Each round takes the particle with the largest fault in every set, if that fault
    is above 1, draws it again with the others as memory, and keeps whichever of the two has the
    smaller fault. The cost is the trajectory of one particle per set and round.

    Arguments:
        samples: (G, B, H, W)
        draw: (sets (M,) int64, round, others (M, B - 1, H, W)) -> new particles (M, H, W)
        doubt: (sets (M,) int64, samples (M, P, H, W)) -> (M, P), how far the denoiser would move
            them
        alike: (G, A, H, W), (G, B, H, W) -> likeness (G, A, B) in [0, 1], 1 for copies
        rounds: at most so many
        most_alike: likeness from which on it is a fault
        most_doubt: doubt over the median from which on it is a fault

    Returns the samples, a new tensor, and how many particles were drawn again.
    """
    samples = samples.clone()
    redrawn = 0
    if samples.shape[1] == 1 or rounds == 0:
        return samples, redrawn
    doubts = doubt(torch.arange(len(samples)), samples)  # (G, B)
    smallest = SMALLEST_DOUBT * samples[0, 0].numel() ** 0.5
    scale = doubts.median(1).values.clamp_min(smallest)  # (G,)
    for turn in range(rounds):
        likeness = alike(samples, samples)  # (G, B, B)
        likeness.diagonal(dim1=1, dim2=2).zero_()
        fault = torch.maximum(likeness.amax(2) / most_alike, doubts / scale[:, None] / most_doubt)
        sets = (fault.amax(1) > 1).nonzero()[:, 0]  # (M,)
        if len(sets) == 0:
            break
        # Of two particles that are alike, take the one that is more like the rest of the set too.
        which = (fault + 1e-3 * likeness.sum(2)).argmax(1)[sets]  # (M,)
        others = torch.stack(
            [torch.cat([samples[g, :b], samples[g, b + 1 :]]) for g, b in zip(sets, which)]
        )
        new = draw(sets, turn, others)
        redrawn += len(sets)
        new_doubt = doubt(sets, new[:, None])[:, 0]
        new_likeness = alike(new[:, None], others)[:, 0].amax(1)
        new_fault = torch.maximum(new_likeness / most_alike, new_doubt / scale[sets] / most_doubt)
        better = new_fault < fault[sets, which]
        samples[sets[better], which[better]] = new[better]
        doubts[sets[better], which[better]] = new_doubt[better]
    return samples, redrawn
