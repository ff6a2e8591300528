"""Did a set cover the modes, and at what cost in quality?

Samples are sets (G, B, H, W) in [0, 1] (values outside are clamped). Every mean comes
with a 95% interval, every mode count with what independent samples would give.
"""
from __future__ import annotations

import numpy as np
import torch
from scipy import stats
from torch import Tensor


def centroid(images: Tensor) -> Tensor:
    """Centre of brightness, (..., H, W) -> (..., 2) as (y, x) in px. The middle for an empty image."""
    images = images.clamp(0, 1).double()
    H, W = images.shape[-2:]
    mass = images.sum((-2, -1))
    y = (images.sum(-1) * torch.arange(H, device=images.device)).sum(-1)
    x = (images.sum(-2) * torch.arange(W, device=images.device)).sum(-1)
    middle = torch.tensor([(H - 1) / 2, (W - 1) / 2], dtype=images.dtype, device=images.device)
    centre = torch.stack([y, x], -1) / mass[..., None].clamp_min(1e-12)
    return torch.where(mass[..., None] > 1e-6, centre, middle)


def displacement(samples: Tensor, cond: Tensor) -> Tensor:
    """Centroid of each sample minus that of its set's last conditioning frame, px.
    samples (G, B, H, W), cond (G, Cc, H, W) -> (G, B, 2)."""
    return centroid(samples) - centroid(cond[:, -1])[:, None]


def nearest_direction(moved: Tensor, offsets: Tensor) -> Tensor:
    """Index of the offset with the largest cosine similarity to each displacement.
    moved (G, B, 2), offsets (k, 2) -> (G, B) int64."""
    unit = torch.nn.functional.normalize(offsets.to(moved), dim=-1)
    return (moved @ unit.T).argmax(-1)


def modes_found(modes: Tensor, total: int) -> Tensor:
    """How many different modes each set holds: (G, B) int64 in [0, total) -> (G,) int64."""
    return torch.nn.functional.one_hot(modes, total).any(1).sum(-1)


def expected_modes_iid(probabilities: Tensor, batch_size: int) -> float:
    """Mean number of different modes in `batch_size` independent draws: sum_m 1 - (1 - p_m)^B."""
    return float((1 - (1 - probabilities.double()) ** batch_size).sum())


def _translate(images: Tensor, shift: Tensor) -> Tensor:
    """Each image moved by its own whole number of px, empty where nothing came from.
    images (N, H, W), shift (N, 2) int64."""
    N, H, W = images.shape
    y = torch.arange(H, device=images.device) - shift[:, :1]                        # (N, H) source rows
    x = torch.arange(W, device=images.device) - shift[:, 1:]
    rows, cols = y.clamp(0, H - 1)[:, :, None], x.clamp(0, W - 1)[:, None, :]
    inside = ((y >= 0) & (y < H))[:, :, None] & ((x >= 0) & (x < W))[:, None, :]
    return images[torch.arange(N, device=images.device)[:, None, None], rows, cols] * inside


def quality_score(samples: Tensor, cond: Tensor) -> Tensor:
    """L2 distance between each sample and its last conditioning frame translated by the measured
    displacement, rounded to whole px. Lower is better, 0 is a perfect copy; the reference thesis
    has 2.9 without guidance and calls more than 7 to 8 unreadable.
    samples (G, B, H, W), cond (G, Cc, H, W) -> (G, B)."""
    G, B, H, W = samples.shape
    shift = displacement(samples, cond).round().long().flatten(0, 1)
    moved = _translate(cond[:, -1].repeat_interleave(B, 0), shift)
    return (samples.clamp(0, 1).flatten(0, 1) - moved).flatten(1).norm(dim=1).view(G, B)


def mean_interval(values: Tensor) -> dict:
    """{mean, ci95: [lo, hi], per_set}: Student's t interval over sets (equal ends for one set)."""
    array = np.asarray(values, dtype=np.float64)
    mean, error = array.mean(), stats.sem(array) if len(array) > 1 else 0.0
    lo, hi = stats.t.interval(0.95, len(array) - 1, mean, error) if error > 0 else (mean, mean)
    return dict(mean=float(mean), ci95=[float(lo), float(hi)], per_set=array.tolist())


def proportion(successes: int, trials: int, prior: float) -> dict:
    """{mean, ci95, prior, p_value}: Wilson's interval, and the two-sided binomial test of `prior`."""
    test = stats.binomtest(successes, trials, prior)
    interval = test.proportion_ci(0.95, method="wilson")
    return dict(mean=successes / trials, ci95=[float(interval.low), float(interval.high)], prior=prior,
                p_value=float(test.pvalue))


def pairwise_l2(samples: Tensor) -> Tensor:
    """Mean L2 distance between the particles of each set: (G, B, H, W) -> (G,); 0 for B = 1."""
    flat = samples.clamp(0, 1).flatten(2)
    B = flat.shape[1]
    return torch.cdist(flat, flat).sum((1, 2)) / max(1, B * (B - 1))


def centroid_spread(samples: Tensor) -> Tensor:
    """Root mean square distance of the particles' centroids from their set's mean, px: -> (G,)."""
    centres = centroid(samples)
    return (centres - centres.mean(1, keepdim=True)).square().sum(-1).mean(1).sqrt()


def judge(samples: Tensor, cond: Tensor, *, offsets: Tensor | None, probabilities: Tensor | None,
          undetermined: Tensor) -> tuple[dict, Tensor | None]:
    """All metrics of a conditional run, and the mode (G, B) of each particle (None without modes).

    samples (G, B, H, W); cond (G, Cc, H, W); offsets (k, 2) and probabilities (k,) of the world's
    directions, None where the answers are a continuum; undetermined (G,) bool: sets whose frame
    is a random choice.
    """
    G, B = samples.shape[:2]
    result = dict(modes_total=None, modes_expected_iid=None, modes_found=None)
    modes = None
    if offsets is not None:
        modes = nearest_direction(displacement(samples, cond), offsets)
        result = dict(modes_total=len(offsets), modes_expected_iid=expected_modes_iid(probabilities, B),
                      modes_found=mean_interval(modes_found(modes, len(offsets))))
        counts = torch.bincount(modes.flatten(), minlength=len(offsets)).tolist()
        result["mode_frequencies"] = [proportion(c, G * B, float(p)) for c, p in zip(counts, probabilities)]
    result["quality"] = mean_interval(quality_score(samples, cond).mean(1))
    result["pairwise_l2"] = mean_interval(pairwise_l2(samples))
    result["centroid_spread"] = mean_interval(centroid_spread(samples))
    if offsets is None:
        for name, mask in (("unimode", ~undetermined), ("multimode", undetermined)):
            result[name] = dict(num_sets=int(mask.sum()))
            if mask.any():
                result[name] |= {key: mean_interval(np.asarray(result[key]["per_set"])[mask.numpy()])
                                 for key in ("quality", "pairwise_l2", "centroid_spread")}
    return result, modes
