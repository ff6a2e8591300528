"""Did a set cover the modes, and at what cost in quality?

Samples are sets (G, B, H, W) in [0, 1] (values outside are clamped). Every mean comes
with a 95% interval, every mode count with what independent samples would give.
"""

from __future__ import annotations

from typing import Any, Callable

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy import stats
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from potentials import overlap


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


def expected_modes_iid(probabilities: Tensor, batch_size: int) -> float:
    """Mean number of different modes in `batch_size` independent draws: sum_m 1 - (1 - p_m)^B."""
    return float((1 - (1 - probabilities.double()) ** batch_size).sum())


def _translate(images: Tensor, shift: Tensor) -> Tensor:
    """Each image moved by its own whole number of px, empty where nothing came from.
    images (N, H, W), shift (N, 2) int64."""
    N, H, W = images.shape
    y = torch.arange(H, device=images.device) - shift[:, :1]  # (N, H) source rows
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


def mean_interval(values: Tensor | ArrayLike) -> dict:
    """{mean, ci95: [lo, hi], per_set}: Student's t interval over sets (equal ends for one set)."""
    array = np.asarray(values, dtype=np.float64)
    mean, error = array.mean(), stats.sem(array) if len(array) > 1 else 0.0
    lo, hi = stats.t.interval(0.95, len(array) - 1, mean, error) if error > 0 else (mean, mean)
    return dict(mean=float(mean), ci95=[float(lo), float(hi)], per_set=array.tolist())


def proportion(successes: int, trials: int, prior: float) -> dict:
    """{mean, ci95, prior, p_value}: Wilson's interval, and the two-sided binomial test of `prior`."""
    test = stats.binomtest(successes, trials, prior)
    interval = test.proportion_ci(0.95, method="wilson")
    return dict(
        mean=successes / trials,
        ci95=[float(interval.low), float(interval.high)],
        prior=prior,
        p_value=float(test.pvalue),
    )


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of images in [0, 1] (clamped), sums of min over sums of max; of masks it is
    the usual one. Two empty images have IoU 1. a (G, A, H, W), b (G, B, H, W) -> (G, A, B)."""
    low, high = overlap(a.clamp(0, 1).flatten(2), b.clamp(0, 1).flatten(2))
    return torch.where(high > 1e-6, low / high.clamp_min(1e-6), 1.0)


def binarise(images: Tensor) -> Tensor:
    """Images in [0, 1], of any shape -> masks of what is brighter than 1/2, 0.0 or 1.0."""
    return (images > 0.5).float()


def hm_iou(samples: Tensor, answers: Tensor) -> Tensor:
    """HM IoU*: the Hungarian matching of the distinct right answers to the samples that makes the mean
    IoU of the matched pairs, binarised, largest, and that mean (Gerard & Sullivan 2026, arXiv 2603.20188).
    samples (G, B, H, W), answers (G, k, H, W) -> (G,) in [0, 1]; with B != k the smaller number is matched."""
    masks = binarise(answers)
    pairs = iou(masks, binarise(samples)).double().numpy()  # (G, k, B)
    again = (
        (masks.flatten(2)[:, :, None] == masks.flatten(2)[:, None]).all(-1).tril(-1).any(-1).numpy()
    )  # (G, k)
    distinct = [each[~repeated] for each, repeated in zip(pairs, again)]
    return torch.tensor(
        [each[linear_sum_assignment(each, maximize=True)].mean() for each in distinct]
    )


def generalised_energy_distance(samples: Tensor, answers: Tensor, probabilities: Tensor) -> Tensor:
    """GED^2 = 2 E d(s, y) - E d(s, s') - E d(y, y') with d = 1 - IoU of binarised frames, s, s' of the set
    and y, y' of the true distribution (Szekely & Rizzo 2013; Kohl et al. 2018, arXiv 1806.05034).
    samples (G, B, H, W), answers (G, k, H, W) with probabilities (k,) -> (G,); 0 is perfect."""
    s, y, p = binarise(samples), binarise(answers), probabilities.float()
    between = (1 - iou(s, y)).mean(1) @ p
    return 2 * between - (1 - iou(s, s)).mean((1, 2)) - (1 - iou(y, y)) @ p @ p


def nearest_answer(samples: Tensor, answers: Tensor) -> tuple[Tensor, Tensor]:
    """How good each sample is by the right answer that it is closest to: the largest IoU, binarised, and the smallest
    L2 distance. samples (G, B, H, W), answers (G, k, H, W) -> (G, B), (G, B)."""
    distance = torch.cdist(samples.clamp(0, 1).flatten(2), answers.flatten(2))
    return iou(binarise(samples), binarise(answers)).amax(2), distance.amin(2)


def iou_distance(samples: Tensor) -> Tensor:
    """Mean 1 - IoU between the particles of each set, binarised: (G, B, H, W) -> (G,); 0 for B = 1."""
    masks, B = binarise(samples), samples.shape[1]
    return (1 - iou(masks, masks)).sum((1, 2)) / max(1, B * (B - 1))


def pairwise_l2(samples: Tensor) -> Tensor:
    """Mean L2 distance between the particles of each set: (G, B, H, W) -> (G,); 0 for B = 1."""
    flat = samples.clamp(0, 1).flatten(2)
    B = flat.shape[1]
    return torch.cdist(flat, flat).sum((1, 2)) / max(1, B * (B - 1))


def centroid_spread(samples: Tensor) -> Tensor:
    """Root mean square distance of the particles' centroids from their set's mean, px: (G, B, H, W) -> (G,)."""
    centres = centroid(samples)
    return (centres - centres.mean(1, keepdim=True)).square().sum(-1).mean(1).sqrt()


def mode_metrics(modes: Tensor, probabilities: Tensor) -> dict:
    """How sets cover modes of known probabilities (k,): modes (G, B) int64, -1 for no mode at all.

    `count_variance_ratio`: the variance over sets of how often the first mode comes up, over that of
    independent draws, B p (1 - p); 1 for those, 0 for sets that all hold the same number.
    """
    G, B = modes.shape
    k = len(probabilities)
    counts = torch.nn.functional.one_hot(modes + 1, k + 1)[:, :, 1:].sum(1)  # (G, k)
    first = float(probabilities[0])
    binomial = B * first * (1 - first)
    return dict(
        modes_total=k,
        modes_expected_iid=expected_modes_iid(probabilities, B),
        modes_found=mean_interval((counts > 0).sum(1)),
        mode_frequencies=[
            proportion(count, G * B, float(p))
            for count, p in zip(counts.sum(0).tolist(), probabilities)
        ],
        count_variance_ratio=float(counts[:, 0].double().var()) / binomial
        if G > 1 and binomial > 0
        else None,
    )


def without_background(images: Tensor) -> Tensor:
    """Images in [0, 1] (..., H, W), each with what is darker than its Otsu threshold (Otsu 1979) set to 0.
    An image of one grey value stays as it is."""
    from skimage.filters import threshold_otsu

    flat = images.clamp(0, 1).flatten(0, -3)
    levels = torch.tensor(
        [threshold_otsu(image) if image.min() < image.max() else 0.0 for image in flat.numpy()]
    )
    return (flat * (flat > levels[:, None, None])).view_as(images)


def recognise(samples: Tensor, classifier: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """The digit in each sample, its background removed, and the classifier's confidence in it, the largest
    softmax probability: (G, B, H, W), frames (N, H, W) -> logits (N, k)  =>  (G, B) int64, (G, B)."""
    with torch.no_grad():
        confidence, digits = (
            classifier(without_background(samples).flatten(0, 1)).softmax(-1).max(-1)
        )
    return digits.view(samples.shape[:2]), confidence.view(samples.shape[:2])


def mixture_modes(points: Tensor, centres: Tensor, within: float) -> tuple[Tensor, Tensor]:
    """The nearest centre of each point, -1 if it is farther than `within`, and how far it is:
    points (G, B, d), centres (k, d) -> (G, B) int64, (G, B)."""
    distance, nearest = torch.cdist(points.double(), centres.double()[None]).min(-1)
    return torch.where(distance <= within, nearest, -1), distance


def _agreement(samples: Tensor, answers: Tensor, probabilities: Tensor) -> dict:
    """How well sets hold the right answers, each with its interval."""
    return dict(
        hm_iou=mean_interval(hm_iou(samples, answers)),
        ged=mean_interval(generalised_energy_distance(samples, answers, probabilities)),
    )


def _spread(samples: Tensor) -> dict:
    """How far the particles of sets are apart, each with its interval."""
    return dict(
        iou_distance=mean_interval(iou_distance(samples)),
        pairwise_l2=mean_interval(pairwise_l2(samples)),
        centroid_spread=mean_interval(centroid_spread(samples)),
    )


def motion_metrics(
    samples: Tensor,
    cond: Tensor,
    *,
    offsets: Tensor | None,
    probabilities: Tensor | None,
    undetermined: Tensor,
    answers: Tensor | None = None,
) -> tuple[dict, Tensor | None]:
    """All metrics of a conditional run, and the mode (G, B) of each particle (None without modes).

    samples (G, B, H, W); cond (G, Cc, H, W); offsets (k, 2) and probabilities (k,) of the world's
    directions, None where the answers are a continuum; undetermined (G,) bool: sets whose frame
    is a random choice; answers (G, k, H, W): the right frames, where they are known.
    """
    result: dict[str, Any] = dict(modes_total=None, modes_expected_iid=None, modes_found=None)
    modes = None
    if offsets is not None:
        assert probabilities is not None  # they come with the offsets
        modes = nearest_direction(displacement(samples, cond), offsets)
        result = mode_metrics(modes, probabilities)
    if answers is not None:
        assert probabilities is not None  # only directions have answers that are known
        result |= _agreement(samples, answers, probabilities)
    result |= _spread(samples) | dict(quality=mean_interval(quality_score(samples, cond).mean(1)))
    if offsets is None:
        for name, mask in (("unimode", ~undetermined), ("multimode", undetermined)):
            result[name] = dict(num_sets=int(mask.sum()))
            if mask.any():
                result[name] |= {
                    key: mean_interval(np.asarray(result[key]["per_set"])[mask.numpy()])
                    for key in ("quality", "pairwise_l2", "centroid_spread")
                }
    return result, modes


def answer_metrics(samples: Tensor, answers: Tensor, probabilities: Tensor) -> dict:
    """All metrics of sets whose right answers are given and have nothing else in common: samples (G, B, H, W), answers
    (G, k, H, W) with probabilities (k,). `quality` is the mean L2 distance to the nearest answer, `mean_iou` the mean
    IoU with the most alike one."""
    alike, distance = nearest_answer(samples, answers)
    return (
        dict(
            modes_total=None,
            modes_expected_iid=None,
            modes_found=None,
            mean_iou=mean_interval(alike.mean(1)),
            quality=mean_interval(distance.mean(1)),
        )
        | _agreement(samples, answers, probabilities)
        | _spread(samples)
    )
