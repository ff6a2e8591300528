"""Selection inside a set: pruning a larger one, and resampling duplicates.

Sets are (G, B, H, W) in [0, 1] unless stated otherwise.
"""

from __future__ import annotations

from typing import Callable

import torch
from torch import Tensor


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
