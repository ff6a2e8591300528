"""Metrics of sets: do they cover the modes or the right answers, and at what cost in quality?

Samples are sets (G, B, H, W) in [0, 1]; values outside are clamped. Channels, such as a mask for
each class, are an axis before H where a function says so. Every mean over sets comes with
a 95% confidence interval, every number of modes with what independent samples would give.
"""

from __future__ import annotations

import math
from typing import Any, Callable, Iterator

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy import special, stats
from scipy.optimize import brentq, linear_sum_assignment
from torch import Tensor

from diverse_sampling.potentials import overlap
from worlds.channels import foreground

PART = 2**20  # numbers of images, or of their pairs, that are compared at a time: they fit a cache
NEAR = 2.9  # L2 distance within which an image is its answer, as in independent sampling
LEAST = 0.05  # the probability of the classes that a diverse set has to show
EXACT = "donot_use_mm_for_euclid_dist"  # of torch.cdist: keeps the small distances of near copies
# A backward pass to the input in units of a forward pass, median of the included networks on a CPU.
BACKWARD = 1.3


def centroid(images: Tensor) -> Tensor:
    """Centre of brightness of images (..., H, W) -> (..., 2) as (y, x) in px.

    For an empty image it is the middle of the frame.
    """
    images = images.clamp(0, 1).double()
    H, W = images.shape[-2:]
    mass = images.sum((-2, -1))
    y = (images.sum(-1) * torch.arange(H, device=images.device)).sum(-1)
    x = (images.sum(-2) * torch.arange(W, device=images.device)).sum(-1)
    middle = torch.tensor([(H - 1) / 2, (W - 1) / 2], dtype=images.dtype, device=images.device)
    centre = torch.stack([y, x], -1) / mass[..., None].clamp_min(1e-12)
    return torch.where(mass[..., None] > 1e-6, centre, middle)


def displacement(samples: Tensor, cond: Tensor) -> Tensor:
    """Centroid of each sample minus that of its set's last conditioning frame, in px.

    samples (G, B, H, W), cond (G, Cc, H, W) -> (G, B, 2) as (y, x).
    """
    return centroid(samples) - centroid(cond[:, -1])[:, None]


def nearest_direction(moved: Tensor, offsets: Tensor) -> Tensor:
    """Index of the offset with the largest cosine similarity to each displacement.

    moved (G, B, 2), offsets (k, 2) -> (G, B) int64.
    """
    unit = torch.nn.functional.normalize(offsets.to(moved), dim=-1)
    return (moved @ unit.T).argmax(-1)


def expected_modes_iid(probabilities: Tensor, batch_size: int) -> float:
    """Expected number of different modes in B independent draws, sum_m 1 - (1 - p_m)^B.

    probabilities (k,) of the modes, or (G, k), over whose rows it is the mean; batch_size is B.
    """
    return float((1 - (1 - probabilities.double()) ** batch_size).sum(-1).mean())


def equivalent_draws(found: float, probabilities: Tensor) -> float:
    """The number of independent draws that find as many modes: N of sum_m 1 - (1 - p_m)^N = found.

    probabilities (k,) of the modes. It grows without bound as `found` reaches the number of modes
    that can be found; from there on it is inf.
    """
    p = probabilities.double()
    p = p[p > 0]
    if found >= len(p) * (1 - 1e-12):
        return math.inf
    most = 1.0
    while float((1 - (1 - p) ** most).sum()) < found:
        most *= 2
    return float(brentq(lambda draws: float((1 - (1 - p) ** draws).sum()) - found, 0, most))


def frequency_distance(frequencies: Tensor, probabilities: Tensor) -> float:
    """Total variation 1/2 sum_k |f_k - p_k| of frequencies from probabilities, both (k,).

    What the frequencies lack to 1 are particles in no mode, which have probability 0.
    """
    outside = 1 - frequencies.double().sum()
    apart = (frequencies.double() - probabilities.double()).abs().sum()
    return float((apart + outside.abs()) / 2)


def expected_frequency_distance(
    probabilities: Tensor, draws: int, dispersion: Tensor | None = None
) -> float:
    """The mean of `frequency_distance` over independent draws, or over sets.

    Arguments:
        probabilities: (k,), from which `draws` are drawn; or (G, k), from each row of which `draws`
            are drawn, pooled and compared with the mean of the rows
        draws: their number
        dispersion: (k,), the variance of each mode's counts over that of independent draws, if the
            draws are particles of sets

    Half the sum of the mean absolute deviations of binomials, in de Moivre's closed form; or of
    sums of binomials, whose distribution is the inverse Fourier transform of the product of their
    characteristic functions. A frequency is a mean over sets, so nearly normal, and the mean
    absolute deviation of a normal variable goes with the root of its variance: that of each mode
    is multiplied by the root of its dispersion.
    """
    p = probabilities.double().numpy()
    if p.ndim == 1:
        total = draws
        above = np.floor(draws * p) + 1
        deviations = 2 * above * (1 - p) * stats.binom.pmf(above, draws, p)
    else:
        total = draws * len(p)
        numbers = np.arange(total + 1)
        turn = np.exp(-2j * np.pi * numbers / (total + 1))
        deviations = np.zeros(p.shape[1])
        for mode, of_sets in enumerate(p.T):  # (G,)
            pmf = np.fft.ifft(np.prod(1 + of_sets[:, None] * (turn - 1), axis=0) ** draws).real
            deviations[mode] = pmf @ abs(numbers - draws * of_sets.sum())
    if dispersion is not None:
        deviations = deviations * dispersion.double().sqrt().numpy()
    return float(deviations.sum() / total / 2)


def mode_dispersion(counts: Tensor, probabilities: Tensor, batch_size: int) -> Tensor | None:
    """The variance over sets of each mode's count, over that of independent draws, (k,).

    counts (G, k) of sets of batch_size; probabilities (k,) of the modes, or (G, k) where sets
    differ, and what varies is the count minus its expectation. It is 1 for a mode whose probability
    is 0 or 1 in all sets. None for a single set.
    """
    if len(counts) < 2:
        return None
    p = probabilities.double().expand(len(counts), -1)
    binomial = (batch_size * p * (1 - p)).mean(0)
    variance = (counts.double() - batch_size * p).var(0)
    return torch.where(binomial > 0, variance / binomial, 1.0)


def count_dispersion(counts: Tensor, probabilities: Tensor, batch_size: int) -> float | None:
    """The mean of `mode_dispersion` over the modes whose probability is neither 0 nor 1.

    1 for independent draws, less for sets that spread. counts (G, k) of sets of batch_size,
    probabilities (k,) of the modes. None for a single set.
    """
    open_modes = (probabilities > 0) & (probabilities < 1)
    dispersion = mode_dispersion(counts, probabilities, batch_size)
    if dispersion is None or not open_modes.any():
        return None
    return float(dispersion[open_modes].mean())


def vendi_score(kernel: Tensor) -> Tensor:
    """The effective number of different particles in each set: exp(-sum_i l_i ln l_i), (G,).

    l are the eigenvalues of K / B, K (G, B, B) the similarities of the particles, 1 on the
    diagonal. It is 1 where all are alike and B where all differ (Friedman & Dieng 2022, arXiv
    2210.02410).
    """
    eigenvalues = torch.linalg.eigvalsh(kernel.double() / kernel.shape[1]).clamp_min(0)
    return torch.special.entr(eigenvalues).sum(-1).exp()


def rke_score(kernel: Tensor) -> Tensor:
    """The same by the Renyi entropy of order 2: 1 / sum_i l_i^2 = B^2 / |K|_F^2, (G, B, B) -> (G,).

    It weighs frequent kinds of particles more than `vendi_score` does.
    """
    return kernel.shape[1] ** 2 / kernel.double().square().sum((1, 2))


def cosine_kernel(features: Tensor) -> Tensor:
    """Cosines between the features of the particles of each set, (G, B, d) -> (G, B, B)."""
    unit = torch.nn.functional.normalize(features.double(), dim=-1)
    return unit @ unit.transpose(1, 2)


def diversity_metrics(kernel: Tensor) -> dict:
    """How many different particles a kernel (G, B, B) sees in a set, each with its interval."""
    return dict(
        vendi=mean_interval(vendi_score(kernel), (1, math.inf)),
        rke=mean_interval(rke_score(kernel), (1, math.inf)),
    )


def cost_metrics(forward: float, backward: float, found: float | None, batch_size: int) -> dict:
    """What sampling costs in calls of the network, and how many modes a set finds for 100 of them.

    Arguments:
        forward, backward: calls of the network and backward passes to its input, per particle
        found: mean number of modes in a set, None without modes
        batch_size: particles in a set
    """
    calls = forward + BACKWARD * backward
    per_call = None if found is None else 100 * found / (batch_size * calls)
    return dict(price=calls, modes_per_100_calls=per_call)


def _translate(images: Tensor, shift: Tensor) -> Tensor:
    """Each image moved by its own whole number of px, black where nothing moves in.

    images (N, H, W), shift (N, 2) int64 as (y, x) -> (N, H, W).
    """
    N, H, W = images.shape
    y = torch.arange(H, device=images.device) - shift[:, :1]  # (N, H) source rows
    x = torch.arange(W, device=images.device) - shift[:, 1:]  # (N, W) source columns
    inside_y = (y >= 0) & (y < H)
    inside_x = (x >= 0) & (x < W)
    each = torch.arange(N, device=images.device)[:, None, None]
    moved = images[each, y.clamp(0, H - 1)[:, :, None], x.clamp(0, W - 1)[:, None, :]]
    return moved * (inside_y[:, :, None] & inside_x[:, None, :])


def quality_score(samples: Tensor, cond: Tensor) -> Tensor:
    """L2 distance of each sample from its last conditioning frame, translated to where it is.

    The frame is translated by the measured displacement, rounded to whole px. Lower is better; 0 is
    a perfect copy. The reference thesis reports 2.9 without guidance and calls more than 7 to 8
    unreadable. samples (G, B, H, W), cond (G, Cc, H, W) -> (G, B).
    """
    G, B = samples.shape[:2]
    shift = displacement(samples, cond).round().long().flatten(0, 1)
    moved = _translate(cond[:, -1].repeat_interleave(B, 0), shift)
    return (samples.clamp(0, 1).flatten(0, 1) - moved).flatten(1).norm(dim=1).view(G, B)


def mean_interval(
    values: Tensor | ArrayLike,
    bounds: tuple[float, float] = (-math.inf, math.inf),
    step: float | None = None,
) -> dict:
    """The mean over sets with a 95% confidence interval: {mean, ci95: [low, high], per_set}.

    Arguments:
        values: (G,), one number per set
        bounds: the least and the largest value that a set can have; the interval stays inside
        step: of values that are counts, the unit; None for others

    Of values between two finite bounds it is the interval of a share, its number of trials the one
    that explains the variance over sets (Korn & Graubard 1998, Survey Methodology 24), with
    Jeffreys' ends (Brown, Cai & DasGupta 2001, 10.1214/ss/1009213286). If a few of many sets miss
    a mode it is that of the share of sets that miss one. Of other values it is Student's t on a
    scale without skewness (Hall 1992, 10.1111/j.2517-6161.1992.tb01876.x).

    Counts that are all equal have an interval too: if the share of sets that differ by one step
    were above its upper limit (Clopper & Pearson 1934), all of G sets would be equal in fewer than
    2.5 of 100 runs. Sets that all find 8 of 8 modes give [7.94, 8.00] if they are 60, [7.40, 8.00]
    if they are 4. Equal values without a step give equal ends.

    `ci95` is None for a single set and for values that are not finite. Of fewer than about eight
    values that are very skewed the interval is too narrow: it covers it about 90 times in 100.
    Raises ValueError for values outside two finite bounds.
    """
    array = np.asarray(values, dtype=np.float64)
    return dict(
        mean=float(array.mean()), ci95=_interval(array, bounds, step), per_set=array.tolist()
    )


def ratio_interval(above: Tensor, below: Tensor) -> dict:
    """The mean of `above` over that of `below`, with a 95% interval: {mean, ci95: [low, high]}.

    above, below (G,) >= 0, pairs of one set each. The interval holds the ratios r for which the
    interval of the mean of above - r below holds 0 (Fieller 1954, Journal of the Royal Statistical
    Society B 16); `ci95` is None if it has no end, or for a single set. It covers the ratio less
    often if few sets have most of the sum: if a set's standard deviation varies by a factor of e
    from set to set, in 85 of 100 runs.
    """
    a, b = (np.asarray(each, dtype=np.float64) for each in (above, below))
    ratio = float(a.mean() / b.mean())

    def off(r: float, end: int) -> float:
        return (_interval(a - r * b, (-math.inf, math.inf), None) or [math.nan] * 2)[end]

    if ratio == 0:
        return dict(mean=ratio, ci95=[0.0, 0.0])
    most = 64 * ratio
    if not off(most, 1) < 0:
        return dict(mean=ratio, ci95=None)
    low = float(brentq(off, 0, ratio, args=(0,))) if off(0, 0) > 0 else 0.0
    return dict(mean=ratio, ci95=[low, float(brentq(off, ratio, most, args=(1,)))])


def _interval(
    values: np.ndarray, bounds: tuple[float, float], step: float | None
) -> list[float] | None:
    """[low, high], the 95% interval of the mean of values (G,), or None if there is none."""
    sets = len(values)
    if sets < 2 or not np.isfinite(values).all():
        return None
    low, high = float(values.min()), float(values.max())
    least, most = bounds
    width = most - least
    rounding = 1e-6 * width if math.isfinite(width) else 0.0
    if rounding and (low < least - rounding or high > most + rounding):
        raise ValueError(f"values: got {low:g} to {high:g}; accepted: {least:g} to {most:g}")
    if high - low <= rounding:
        differ = (step or 0.0) * (1 - 0.025 ** (1 / sets))
        ends = np.array([low - differ, high + differ])
    elif rounding:
        ends = least + width * _share_ends((values - least) / width)
    else:
        ends = low + (high - low) * _skewed_ends((values - low) / (high - low))
    return np.clip(ends, least, most).tolist()


def _share_ends(values: np.ndarray) -> np.ndarray:
    """The interval's ends (2,) of the mean of values (G,) in [0, 1] that are not all equal."""
    sets = len(values)
    mean = values.mean().clip(0, 1)
    student = special.stdtrit(sets - 1, 0.975)
    trials = mean * (1 - mean) / (values.var(ddof=1) / sets)
    trials *= (special.ndtri(0.975) / student) ** 2
    if trials > 1e8:  # normal, and too many for the quantiles of the beta distribution
        return mean + student * values.std(ddof=1) / math.sqrt(sets) * np.array([-1, 1])
    levels = np.array([0.025, 0.975])
    return special.betaincinv(trials * mean + 0.5, trials * (1 - mean) + 0.5, levels)


def _skewed_ends(values: np.ndarray) -> np.ndarray:
    """The interval's ends (2,) of the mean of values (G,), from 0 to 1, without other bounds."""
    sets = len(values)
    t = special.stdtrit(sets - 1, 0.975) * np.array([1, -1]) / math.sqrt(sets)
    skewness = ((values - values.mean()) ** 3).mean() / values.std() ** 3
    if abs(skewness) > 1e-6:  # below, it changes nothing
        t = 3 / skewness * (np.cbrt(1 + skewness * (t - skewness / (6 * sets))) - 1)
    return values.mean() - values.std(ddof=1) * t


def wilson_interval(successes: int, trials: int) -> list[float]:
    """Wilson's 95% interval [low, high] of a share of independent trials, within [0, 1]."""
    interval = stats.binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    return [float(interval.low), float(interval.high)]


def proportion(counts: Tensor, batch_size: int, prior: float) -> dict:
    """The share of particles in a mode, {mean, ci95: [low, high] within [0, 1], prior}.

    counts (G,) of sets of batch_size. Particles of a set are not independent, so the interval is of
    the mean over sets: narrower than a binomial one if sets spread, wider if they agree.
    """
    interval = mean_interval(counts.double() / batch_size, (0, 1), step=1 / batch_size)
    return dict(mean=interval["mean"], ci95=interval["ci95"], prior=prior)


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of images in [0, 1] (clamped): sum of min over sum of max.

    Of masks it is the usual one. Two empty images have IoU 1.
    a (G, A, H, W), b (G, B, H, W) -> (G, A, B) in [0, 1].
    """
    low, high = overlap(a.clamp(0, 1).flatten(2), b.clamp(0, 1).flatten(2))
    return torch.where(high > 1e-6, low / high.clamp_min(1e-6), 1.0)


def binarise(images: Tensor) -> Tensor:
    """Masks, 0.0 or 1.0, of what is brighter than 1/2 in images in [0, 1] of any shape."""
    return (images > 0.5).float()


def mask_iou(a: Tensor, b: Tensor) -> Tensor:
    """`iou` of masks, which only hold 0.0 and 1.0: the same, from one matrix product.

    Of masks with channels, such as one per class, it is the mean over those that either mask has
    something in. a (G, A, H, W) or (G, A, C, H, W), b (G, B, ...) -> (G, A, B) in [0, 1].
    """
    if a.ndim == 5:
        each, present = channel_iou(a, b)
        mean = (each * present).sum(1) / present.sum(1).clamp_min(1)
        return torch.where(present.any(1), mean, 1.0)
    u = a.flatten(2)
    v = b.flatten(2)
    both = u @ v.transpose(1, 2)  # whole numbers, which float32 holds exactly
    either = u.sum(-1)[:, :, None] + v.sum(-1)[:, None, :] - both
    return torch.where(either > 0, both / either.clamp_min(1), 1.0)


def channel_iou(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """`mask_iou` of each channel, and whether either mask has something in it.

    a (G, A, C, H, W), b (G, B, C, H, W) -> (G, C, A, B) in [0, 1], (G, C, A, B) bool.
    """
    G, A, C = a.shape[:3]
    u, v = (masks.transpose(1, 2).flatten(0, 1) for masks in (a, b))  # (G C, A, H, W)
    present = u.flatten(2).any(2)[:, :, None] | v.flatten(2).any(2)[:, None]
    return mask_iou(u, v).view(G, C, A, -1), present.view(G, C, A, -1)


def _parts(samples: Tensor, answers: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Sets in parts of which PART numbers are enough for all pairs of answers, and for the images.

    samples (G, B, ...), answers (G, k, ...), others (G, ...) -> the same of some sets at a time.
    """
    k = answers.shape[1]
    one = max(k * k, samples[0].numel(), answers[0].numel(), 1)
    return zip(*(each.split(max(1, PART // one)) for each in (samples, answers, *others)))


def hm_iou(samples: Tensor, answers: Tensor) -> Tensor:
    """HM IoU*: the mean IoU of the distinct right answers and the samples matched to them.

    Answers and samples are binarised, and the Hungarian matching is the one with the largest mean
    IoU (Gerard & Sullivan 2026, arXiv 2603.20188). Of B samples and k answers, the smaller number
    is matched. samples (G, B, H, W), answers (G, k, H, W) -> (G,) in [0, 1].
    """
    means = []
    for some, right in _parts(samples, answers):
        masks = binarise(right)
        ious = mask_iou(masks, binarise(some)).double().numpy()  # (G', k, B)
        # A mask as a string of bits, without comparing all pairs, of which there may be millions.
        bits = np.packbits(masks.flatten(2).numpy().astype(bool), axis=2)
        for each, strings in zip(ious, bits):
            first = {string.tobytes(): i for i, string in reversed(list(enumerate(strings)))}
            distinct = each[[first[string] for string in sorted(first)]]
            means.append(distinct[linear_sum_assignment(distinct, maximize=True)].mean())
    return torch.tensor(means)


def generalised_energy_distance(samples: Tensor, answers: Tensor, probabilities: Tensor) -> Tensor:
    """The squared generalised energy distance of a set from the true distribution; 0 is perfect.

        GED^2 = 2 E d(s, y) - E d(s, s') - E d(y, y'),   d = 1 - IoU of binarised frames,

    with s, s' from the set and y, y' from the true distribution (Szekely & Rizzo 2013; Kohl et al.
    2018, arXiv 1806.05034). samples (G, B, H, W), answers (G, k, H, W) with probabilities (k,), or
    (G, k) where sets differ -> (G,) in [0, 2].
    """
    priors = probabilities.float().expand(len(samples), -1)
    squared = []
    for some, right, p in _parts(samples, answers, priors):
        s, y = binarise(some), binarise(right)
        between = ((1 - mask_iou(s, y)).mean(1) * p).sum(1)
        within_set = (1 - mask_iou(s, s)).mean((1, 2))
        within_truth = ((1 - mask_iou(y, y)) * p[:, None] * p[:, :, None]).sum((1, 2))
        squared.append(2 * between - within_set - within_truth)
    # It is a squared distance, so rounding alone takes it below 0.
    return torch.cat(squared).clamp_min(0)


def collective_insight(
    samples: Tensor, answers: Tensor, probabilities: Tensor
) -> tuple[Tensor, Tensor]:
    """The CI score ("collective insight") of each set of masks, and its part D_max.

        CI = 3 S_c D_max D_a / (S_c + D_max + D_a)

    (Rahman et al. 2023, CVPR, arXiv 2304.04745). S_c is the share of the answers' union that the
    samples' union holds. D_max is the mean over answers of the largest Dice of a sample with it.
    D_a = 1 - (|least v - least v'| + |largest v - largest v'|) / 2 compares the variances v over
    the pixels of the difference of two answers with those v' of two samples. All are in [0, 1], and
    so is CI; 1 is perfect. Every set holds an empty union; the Dice of two empty masks is 1.

    Uncertain: the paper calls CI the harmonic mean of the three, which this formula is not. It and
    v are what most reimplementations compute; the authors' repository has neither.

    Arguments:
        samples: (G, B, H, W), binarised
        answers: (G, k, H, W), binarised
        probabilities: (G, k) of the answers, 0 for those that do not count

    Returns CI (G,), NaN where two answers or two samples are missing, and D_max (G,); float64.
    """
    scores = []
    for some, right, p in _parts(samples, answers, probabilities):
        s, y = binarise(some), binarise(right)
        held, union = s.amax(1) * y.amax(1), y.amax(1)  # (G', H, W)
        size = union.sum((1, 2)).double()
        sensitivity = torch.where(size > 0, held.sum((1, 2)) / size.clamp_min(1), 1.0)
        overlaps = mask_iou(y, s).double()
        best = ((2 * overlaps / (1 + overlaps)).amax(2) * p).sum(1)
        of_samples = _difference_variances(s, torch.ones(s.shape[:2], dtype=torch.bool))
        of_answers = _difference_variances(y, p > 0)
        agreement = 1 - (of_samples - of_answers).abs().mean(1)
        product = sensitivity * best * agreement
        scores.append(torch.stack([3 * product / (sensitivity + best + agreement), best], 1))
    score, best = torch.cat(scores).unbind(1)
    return score, best


def _difference_variances(masks: Tensor, counted: Tensor) -> Tensor:
    """The least and the largest variance over pixels of the difference of two masks of a set.

    masks (G, A, H, W) of 0.0 and 1.0, counted (G, A) bool -> (G, 2) float64, NaN for less than two.
    """
    flat = masks.flatten(2).double()
    area = flat.sum(2)
    pixels = flat.shape[2]
    differ = area[:, :, None] + area[:, None] - 2 * flat @ flat.transpose(1, 2)
    variance = differ / pixels - ((area[:, :, None] - area[:, None]) / pixels).square()
    pairs = (counted[:, :, None] & counted[:, None]).triu(1)
    least = variance.where(pairs, math.inf).amin((1, 2))
    largest = variance.where(pairs, -math.inf).amax((1, 2))
    return torch.stack([least, largest], 1).where(pairs.any(2).any(1)[:, None], math.nan)


def drawn_answers_ged(
    samples: Tensor, answers: Tensor, weights: Tensor, draws: int = 256
) -> Tensor:
    """`generalised_energy_distance` of sets that share too many answers for all their pairs.

    `draws` answers are drawn for each set by its weights, the same ones whenever the weights are
    the same: one at random from each of `draws` parts of equal weight, in the order of the bank. A
    draw is paired with itself too, which adds up to E d(y, y') / draws.
    samples (G, B, H, W), answers (M, H, W), weights (G, M) >= 0 -> (G,) in [0, 2].
    """
    uniform = torch.rand(draws, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    levels = (torch.arange(draws) + uniform) / draws
    equal = torch.full((draws,), 1 / draws)
    squared = []
    for some, w in zip(samples, weights):
        total = w.double().cumsum(0)
        which = torch.searchsorted(total, levels * total[-1], right=True)
        squared.append(generalised_energy_distance(some[None], answers[which][None], equal))
    return torch.cat(squared)


def energy_score(
    samples: Tensor, answers: Tensor, weights: Tensor, *, fair: bool = False
) -> Tensor:
    """The energy score of each set as a forecast of the truth: lowest for the truth itself.

        ES = E |s - y| - 1/2 E |s - s'|,

    with s, s' from the set, y from the answers by their weights, |.| the L2 norm of images
    (Gneiting & Raftery 2007, 10.1198/016214506000001437). A particle is paired with itself too,
    which makes small sets worse than large ones of the same distribution. With `fair` it is not:
    the expectation is then that of a set without end, whatever the number of particles, of which
    there must be two or more (Ferro 2014, 10.1002/qj.2270). It is exact: all answers take part.

    Arguments:
        samples: (G, B, H, W), or with channels before H
        answers: (M, H, W) that all sets share, compared some at a time; or (G, k, H, W), those of
            each set
        weights: (G, M) or (G, k) that sum to 1
        fair: whether different particles alone are paired

    Returns (G,) float64.
    """
    G, B = samples.shape[:2]
    flat = samples.clamp(0, 1).flatten(2)
    if answers.ndim == samples.ndim:
        distance = torch.cdist(flat, answers.flatten(2), compute_mode=EXACT).mean(1)  # (G, k)
        between = (distance.double() * weights).sum(1)
    else:
        pixels = flat.flatten(0, 1)
        between = torch.zeros(G, dtype=torch.float64)
        several = max(1, PART // max(1, G * B, answers[0].numel()))
        for some, w in zip(answers.flatten(1).split(several), weights.split(several, dim=1)):
            distance = torch.cdist(pixels, some).view(G, B, -1).mean(1)  # (G, M')
            between += (distance.double() * w).sum(1)
    within = torch.cdist(flat, flat).double().mean((1, 2))
    return between - within * (B / (B - 1) if fair else 1) / 2


def spread_skill(samples: Tensor, truth: Tensor) -> dict | None:
    """The spread of sets over the error of their mean: 1 if they are as unsure as they should be.

        ratio = sqrt((B + 1) / B * mean v / mean e),

    with v the variance of a set's B particles (over B - 1), e the squared error of their mean, both
    summed over pixels, and means over sets (Fortin et al. 2014, 10.1175/JHM-D-14-0008.1). The
    factor corrects for the finite set: if the truth could as well be one of the particles, e is
    (B + 1) / B of v. Below 1 sets are too narrow, or their mean is off; above 1 they are too wide.

    Arguments:
        samples: (G, B, H, W), or with channels before H; B of two or more
        truth: (G, H, W), alike: the one true answer to each set

    Returns {mean: the ratio, ci95} as `ratio_interval` has them, or None if no mean errs.
    """
    B = samples.shape[1]
    flat = samples.clamp(0, 1).flatten(2).double()
    spread = (1 + 1 / B) * flat.var(1).sum(1)
    error = (flat.mean(1) - truth.flatten(1)).square().sum(1)
    if not error.any():
        return None
    squared = ratio_interval(spread, error)
    ends = squared["ci95"]
    return dict(mean=math.sqrt(squared["mean"]), ci95=ends and [math.sqrt(end) for end in ends])


def nearest_in_class(images: Tensor, labels: Tensor, bank: Tensor, bank_labels: Tensor) -> Tensor:
    """The L2 distance of each image to the nearest known picture of its class.

    Arguments:
        images: (N, H, W) in [0, 1]
        labels: (N,) int64
        bank: (M, H, W) in [0, 1], the known pictures, and bank_labels (M,) int64

    Returns (N,), inf for classes of which no picture is known. Beside it belongs the distance of
    real pictures that are not in the bank.
    """
    pixels, known = images.clamp(0, 1).flatten(1), bank.flatten(1)
    distance = torch.full((len(images),), math.inf)
    for label in labels.unique():
        which = torch.nonzero(labels == label)[:, 0]
        own = known[bank_labels == label]
        if not len(own):
            continue
        squares = own.square().sum(1)
        for some in which.split(max(1, PART // len(own))):
            # The matrix product finds the nearest one. It loses small distances to rounding, so
            # that one is measured anew.
            nearest = (squares - 2 * pixels[some] @ own.T).argmin(1)
            distance[some] = (pixels[some] - own[nearest]).norm(dim=1)
    return distance


def nearest_image(samples: Tensor, answers: Tensor) -> tuple[Tensor, Tensor]:
    """The answer with the smallest L2 distance to each sample, and that distance.

    samples (G, B, H, W), answers (G, k, H, W) in [0, 1] -> (G, B) int64, (G, B). Samples that are
    not finite are nearest to answer 0, at a distance that is not finite.
    """
    pixels = samples.clamp(0, 1).flatten(2)
    distance, nearest = torch.cdist(pixels, answers.flatten(2), compute_mode=EXACT).min(-1)
    return nearest, distance


def class_shares(samples: Tensor, label_classes: int = 0) -> Tensor:
    """The share of a set's particles in each class at each pixel.

    samples (..., B, H, W), masks or, with `label_classes`, class labels -> (..., K, H, W), K of 2
    for masks: outside and inside.
    """
    labels = samples if label_classes else binarise(samples)
    shares = [(labels == c).float().mean(-3) for c in range(label_classes or 2)]
    return torch.stack(shares, -3)


def consensus(samples: Tensor, label_classes: int = 0) -> Tensor:
    """The class that most particles of a set have at each pixel; of equally many, the first one.

    So a mask holds what more than half of the particles hold (majority voting, as in Heckemann et
    al. 2006, 10.1016/j.neuroimage.2006.05.061). samples as in `class_shares` -> (..., H, W) int64.
    """
    return class_shares(samples, label_classes).argmax(-3)


def disagreement(samples: Tensor, label_classes: int = 0) -> Tensor:
    """The entropy of a set's classes at each pixel, over its largest value: 0 where all particles
    agree, 1 where all classes are equally frequent.

        H = -sum_c p_c ln p_c / ln K,

    with p_c the share of class c of K; of masks it is in bits. samples as in `class_shares` ->
    (..., H, W) in [0, 1].
    """
    shares = class_shares(samples, label_classes)
    return torch.special.entr(shares).sum(-3) / math.log(shares.shape[-3])


def iou_distance(samples: Tensor) -> Tensor:
    """Mean 1 - IoU, binarised, between the particles of each set; 0 for B = 1.

    samples (G, B, H, W) -> (G,) in [0, 1].
    """
    masks = binarise(samples)
    B = samples.shape[1]
    return (1 - mask_iou(masks, masks)).sum((1, 2)) / max(1, B * (B - 1))


def pairwise_l2(samples: Tensor) -> Tensor:
    """Mean L2 distance between the particles of each set; 0 for B = 1. (G, B, H, W) -> (G,)."""
    flat = samples.clamp(0, 1).flatten(2)
    B = flat.shape[1]
    return torch.cdist(flat, flat).sum((1, 2)) / max(1, B * (B - 1))


def centroid_spread(samples: Tensor) -> Tensor:
    """Root mean square distance of the particles' centroids from their set's mean, in px.

    samples (G, B, H, W) -> (G,).
    """
    centres = centroid(samples)
    return (centres - centres.mean(1, keepdim=True)).square().sum(-1).mean(1).sqrt()


def mode_counts(modes: Tensor, k: int) -> Tensor:
    """How many particles of each set are in each of k modes.

    modes (G, B) int64, -1 for none -> (G, k) int64.
    """
    # Class 0 of the one-hot encoding is "no mode", which is left out.
    return torch.nn.functional.one_hot(modes + 1, k + 1)[:, :, 1:].sum(1)


def mode_metrics(modes: Tensor, probabilities: Tensor) -> dict:
    """How sets cover modes of known probabilities.

    modes (G, B) int64 is the mode of each particle, -1 for none; probabilities (k,).

    `count_variance_ratio` is the variance over sets of how often the first mode comes up, over that
    of independent draws, B p (1 - p): 1 for these, 0 for sets that all hold the same number; None
    where it is undefined. `count_dispersion` is its mean over all modes. `frequency_tv` says how
    far the frequencies over all sets are from the probabilities, `frequency_tv_iid` what chance
    gives: as many independent sets, of the right frequencies, whose counts vary as these do.

    `equivalent_draws` {mean, at_least} are the independent draws that find as many modes. If every
    set holds all modes, `at_least` is True and they are a lower bound: those that find as many as
    the lower end of the interval of `modes_found` does.
    """
    G, B = modes.shape
    k = len(probabilities)
    counts = mode_counts(modes, k)
    found = (counts > 0).sum(1)
    possible = (counts[:, probabilities > 0] > 0).sum(1).double()
    most = int((probabilities > 0).sum())
    at_least = bool((possible == most).all())
    draws = most - (1 - 0.025 ** (1 / G)) if at_least else float(possible.mean())
    return dict(
        modes_total=k,
        modes_expected_iid=expected_modes_iid(probabilities, B),
        modes_found=mean_interval(found, (int((modes >= 0).all()), min(k, B)), step=1),
        equivalent_draws=dict(mean=equivalent_draws(draws, probabilities), at_least=at_least),
        **share_metrics(modes, probabilities),
        count_dispersion=count_dispersion(counts, probabilities, B),
        mode_frequencies=[
            proportion(count, B, float(p)) for count, p in zip(counts.T, probabilities)
        ],
        count_variance_ratio=count_dispersion(counts[:, :1], probabilities[:1], B),
    )


def modes_shown(samples: Tensor, answers: Tensor, modes: Tensor) -> dict:
    """How many modes a set shows: those that a particle is in whose image is the mode's answer.

    It is if their IoU, of binarised images, is above 0.5; or, if both are empty, so that it is not
    defined, if they are less than 2.9 apart in L2. Without that any image is in some mode, noise
    too. samples (G, B, H, W), answers (G, k, H, W), modes (G, B) int64, -1 for none.
    """
    G, B, k = *modes.shape, answers.shape[1]
    samples = samples.clamp(0, 1)
    own = answers[torch.arange(G)[:, None], modes.clamp_min(0)]  # (G, B, H, W)
    a, b = binarise(samples).bool(), binarise(own).bool()
    both, either = ((each.flatten(2).sum(-1)) for each in (a & b, a | b))
    near = (samples - own).flatten(2).norm(dim=-1) < NEAR
    is_answer = torch.where(either > 0, both > 0.5 * either, near)
    counts = mode_counts(torch.where(is_answer, modes, -1), k)
    return mean_interval((counts > 0).sum(1), (0, min(k, B)), step=1)


def class_coverage(modes: Tensor, probabilities: Tensor, least: float = LEAST) -> dict | None:
    """How many of the classes that are likely for a set it shows.

    Arguments:
        modes: (G, B) int64, the class of each particle, -1 for none
        probabilities: (k,) of the classes, or (G, k) where sets differ
        least: the probability from which on a class counts as likely

    `coverage` is the share of a set's likely classes that it shows, `classes_covered` their number;
    `coverage_iid` and `covered_iid` are what B independent draws give in expectation, and
    `classes_likely` is the mean number of likely classes. Sets without any are left out; None if
    no set has one.
    """
    G, B = modes.shape
    p = probabilities.double().expand(G, -1)
    likely = p >= least
    number = likely.sum(1)
    sets = number > 0
    if not sets.any():
        return None
    number = number[sets]
    shown = (likely & (mode_counts(modes, p.shape[1]) > 0)).sum(1)[sets]
    drawn = (likely * (1 - (1 - p) ** B)).sum(1)[sets]
    return dict(
        coverage=mean_interval(shown / number, (0, 1), step=1 / int(number.min())),
        coverage_iid=float((drawn / number).mean()),
        classes_covered=mean_interval(shown, (0, int(number.max())), step=1),
        covered_iid=float(drawn.mean()),
        classes_likely=float(number.double().mean()),
    )


def share_metrics(modes: Tensor, probabilities: Tensor) -> dict:
    """How far the shares of the classes over all sets are from their mean probabilities.

    modes (G, B) int64, -1 for none; probabilities (k,), or (G, k) where sets differ. `frequency_tv`
    is the total variation. It has no interval, since it is 0 for the right shares and above 0 in
    every sample of them. Beside it stands what chance gives, `frequency_tv_iid`: its mean for the
    right shares, over sets whose counts vary as these do; of a single set, over independent draws.
    """
    G, B = modes.shape
    k = probabilities.shape[-1]
    counts = mode_counts(modes, k)
    dispersion = mode_dispersion(counts, probabilities, B)
    draws = G * B if probabilities.ndim == 1 else B
    mean = probabilities.double().view(-1, k).mean(0)
    return dict(
        frequency_tv=frequency_distance(counts.sum(0) / (G * B), mean),
        frequency_tv_iid=expected_frequency_distance(probabilities, draws, dispersion),
    )


def composition_met(modes: Tensor, counts: Tensor) -> dict:
    """Do sets hold the classes that were asked for, each as often as it was asked for?

    modes (G, B) int64, -1 for none; counts (k,) of the classes, or (G, k) where sets differ.

    `composition_met` is the share of the sets that hold exactly what was asked for, with Wilson's
    95% interval. `shares` (k,) are those of the classes over all sets, `shares_asked` those that
    were asked for, and `shares_error` the largest difference between the two.
    """
    G, B = modes.shape
    asked = counts.expand(G, -1)
    held = mode_counts(modes, asked.shape[1])
    met = int((held == asked).all(1).sum())
    shares, shares_asked = (each.double().mean(0) / B for each in (held, asked))
    return dict(
        composition_met=dict(mean=met / G, ci95=wilson_interval(met, G)),
        shares=shares.tolist(),
        shares_asked=shares_asked.tolist(),
        shares_error=float((shares - shares_asked).abs().max()),
    )


def without_background(images: Tensor) -> Tensor:
    """Images with everything darker than their Otsu threshold (Otsu 1979) set to 0.

    images (..., H, W) in [0, 1] -> the same shape. An image of one grey value stays as it is.
    """
    flat = images.clamp(0, 1).flatten(0, -3)  # (N, H, W)
    levels = torch.cat([_otsu(part.flatten(1)) for part in flat.split(4096)])
    return (flat * (flat > levels[:, None, None])).view_as(images)


def _otsu(pixels: Tensor, bins: int = 256) -> Tensor:
    """Otsu's threshold of each image (N, P), 0 for one of a single grey value: (N,).

    The threshold is the centre of a histogram's bin, as in scikit-image, whose function takes one
    image at a time.
    """
    pixels = pixels.double()
    low, high = pixels.aminmax(dim=1, keepdim=True)
    width = (high - low).clamp_min(1e-300)
    index = ((pixels - low) / width * bins).long().clamp_max(bins - 1)
    counts = torch.zeros(len(pixels), bins, dtype=pixels.dtype, device=pixels.device)
    counts.scatter_add_(1, index, torch.ones_like(pixels))
    centres = low + width * (torch.arange(bins, device=pixels.device) + 0.5) / bins
    below = counts.cumsum(1)
    above = counts.flip(1).cumsum(1).flip(1)
    sums = counts * centres
    mean_below = sums.cumsum(1) / below.clamp_min(1)
    mean_above = sums.flip(1).cumsum(1).flip(1) / above.clamp_min(1)
    between = below[:, :-1] * above[:, 1:] * (mean_below[:, :-1] - mean_above[:, 1:]) ** 2
    best = centres.gather(1, between.argmax(1, keepdim=True))
    return torch.where(high > low, best, 0.0)[:, 0].float()


def recognise(samples: Tensor, classifier: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """The digit that a classifier recognises in each sample, and its confidence in it.

    Arguments:
        samples: (G, B, H, W); their background is removed first
        classifier: frames (N, H, W) in [0, 1] -> logits (N, k)

    Returns the digits (G, B) int64 and the largest softmax probabilities (G, B).
    """
    frames = without_background(samples).flatten(0, 1)
    with torch.no_grad():
        confidence, digits = classifier(frames).softmax(-1).max(-1)
    return digits.view(samples.shape[:2]), confidence.view(samples.shape[:2])


def mixture_modes(points: Tensor, centres: Tensor, within: float) -> tuple[Tensor, Tensor]:
    """The nearest centre of each point, -1 where it is farther away than `within`; its distance.

    points (G, B, d), centres (k, d) -> (G, B) int64, (G, B).
    """
    distance, nearest = torch.cdist(points.double(), centres.double()[None]).min(-1)
    return torch.where(distance <= within, nearest, -1), distance


def _agreement(samples: Tensor, answers: Tensor, probabilities: Tensor) -> dict:
    """How well sets hold the right answers, each metric with its interval."""
    matched = min(samples.shape[1], answers.shape[1])
    return dict(
        hm_iou=mean_interval(hm_iou(samples, answers), (0, 1), step=1 / matched),
        ged=mean_interval(generalised_energy_distance(samples, answers, probabilities), (0, 2)),
    )


def _spread(samples: Tensor) -> dict:
    """How far the particles of a set are apart, each metric with its interval.

    Channels (G, B, C, H, W) count together; the centre is that of their mean.
    """
    grey = samples if samples.ndim == 4 else samples.float().mean(2)
    masks = binarise(samples)
    return dict(
        iou_distance=mean_interval(iou_distance(samples), (0, 1)),
        pairwise_l2=mean_interval(pairwise_l2(samples), (0, math.inf)),
        centroid_spread=mean_interval(centroid_spread(grey), (0, math.inf)),
        **diversity_metrics(mask_iou(masks, masks)),
    )


def motion_metrics(
    samples: Tensor,
    cond: Tensor,
    *,
    offsets: Tensor | None,
    probabilities: Tensor | None,
    undetermined: Tensor,
    answers: Tensor | None = None,
    future: Tensor | None = None,
) -> tuple[dict, Tensor | None]:
    """All metrics of next frames in a world of moving digits, and the mode of each particle.

    Arguments:
        samples: (G, B, H, W)
        cond: (G, Cc, H, W) conditioning frames
        offsets: (k, 2) displacements of the world's directions in px, None where the answers are a
            continuum
        probabilities: (k,) of the directions; needed with offsets or answers
        undetermined: (G,) bool, sets whose next frame is a random choice
        answers: (G, k, H, W), the right next frames where they are known
        future: (G, H, W), the next frame that was drawn; needed in a continuum

    Returns the metrics, and the direction (G, B) int64 of each particle (None without offsets). In
    a continuum, `unimode` and `multimode` repeat some metrics over the sets whose next frame is
    determined and over the others.
    """
    result: dict[str, Any] = dict(modes_total=None, modes_expected_iid=None, modes_found=None)
    modes = None
    if offsets is not None:
        assert probabilities is not None  # they come with the offsets
        modes = nearest_direction(displacement(samples, cond), offsets)
        result = mode_metrics(modes, probabilities)
    if answers is not None:
        assert modes is not None and probabilities is not None  # only directions have answers
        result["modes_shown"] = modes_shown(samples, answers, modes)
        result |= _agreement(samples, answers, probabilities)
    result |= _spread(samples)
    result["quality"] = mean_interval(quality_score(samples, cond).mean(1), (0, math.inf))
    if offsets is None:
        assert future is not None
        result |= forecast_metrics(samples, future)
        for name, which in (("unimode", ~undetermined), ("multimode", undetermined)):
            part: dict[str, Any] = dict(num_sets=int(which.sum()))
            if which.any():
                for key in ("quality", "pairwise_l2", "centroid_spread"):
                    per_set = np.asarray(result[key]["per_set"])
                    part[key] = mean_interval(per_set[which.numpy()], (0, math.inf))
            result[name] = part
    return result, modes


def combination_metrics(
    samples: Tensor, answers: Tensor, probabilities: Tensor
) -> tuple[dict, Tensor]:
    """All metrics of next frames whose modes are the right answers themselves, and the modes.

    So it is with several digits, whose answers are the combinations of their directions. The mode
    of a particle is the answer nearest to it in L2 distance of images in [0, 1], and `quality` the
    mean of that distance; 0 is a perfect copy. With one digit, `motion_metrics` judges.

    Arguments:
        samples: (G, B, H, W)
        answers: (G, k, H, W), the right next frames
        probabilities: (k,) of the answers

    Returns the metrics, and the answer (G, B) int64 of each particle.
    """
    modes, distance = nearest_image(samples, answers)
    result = mode_metrics(modes, probabilities)
    result["modes_shown"] = modes_shown(samples, answers, modes)
    result |= _agreement(samples, answers, probabilities)
    result |= _spread(samples)
    result["quality"] = mean_interval(distance.mean(1), (0, math.inf))
    return result, modes


def forecast_metrics(samples: Tensor, truth: Tensor) -> dict:
    """How sets forecast the one truth that came: energy scores, and spread over error.

    samples (G, B, H, W), truth (G, H, W) in [0, 1], or with channels before H.
    """
    one = torch.ones(len(samples), 1, dtype=torch.float64)
    plain = energy_score(samples, truth[:, None], one)
    result: dict[str, Any] = dict(energy_score=mean_interval(plain))
    if samples.shape[1] > 1:
        fair = energy_score(samples, truth[:, None], one, fair=True)
        result["fair_energy_score"] = mean_interval(fair)
        result["spread_skill"] = spread_skill(samples, truth)
    return result


def answer_metrics(
    samples: Tensor,
    answers: Tensor,
    probabilities: Tensor,
    label_classes: int = 0,
    masks: bool = False,
) -> dict:
    """All metrics of sets of which nothing is known but their right answers.

    Arguments:
        samples: (G, B, H, W), (G, B, 3, H, W) in colour, or class labels (G, B, H, W)
        answers: (G, k, ...), alike; where a set has fewer, one of them is repeated
        probabilities: (k,), or (G, k) where sets differ, 0 for the repeated ones
        label_classes: classes of the labels, 0 for images
        masks: whether answers are masks, for which `ci_score` and `d_max` are defined

    `quality` is the mean L2 distance of a sample to the nearest answer, `mean_iou` the mean IoU
    with the most similar one. Of class labels, an IoU is the mean over the classes but the first
    that either side has, and `class_iou` is that of each class with the most similar answer.

    `answers_iou_distance` is how far two answers to the same case are apart, `distance_to_answers`
    how far a sample and an answer are: of samples that are drawn as the answers are, both equal
    `iou_distance` (the spread-skill relation of ensemble forecasts, Fortin et al. 2014,
    10.1175/JHM-D-14-0008.1, for pairs). `excess_spread` is the samples' distance minus the
    answers'. If there is one answer to every case, `forecast_metrics` takes its place.
    """
    samples = foreground(samples, label_classes)
    answers = foreground(answers, label_classes)
    if masks:
        samples = binarise(samples)
    _, distance = nearest_image(samples, answers)
    priors = probabilities.expand(len(samples), -1)
    right = binarise(answers)
    similarity = mask_iou(binarise(samples), right)  # (G, B, k)
    between = 1 - similarity.double()
    result = dict(
        modes_total=None,
        modes_expected_iid=None,
        modes_found=None,
        mean_iou=mean_interval(similarity.amax(2).mean(1), (0, 1)),
        quality=mean_interval(distance.mean(1), (0, math.inf)),
        **_agreement(samples, answers, probabilities),
        **_spread(samples),
        distance_to_answers=mean_interval((between.mean(1) * priors).sum(1), (0, 1)),
    )
    if masks:
        score, best = collective_insight(samples, answers, priors)
        result["d_max"] = mean_interval(best, (0, 1))
        if score.isfinite().any():
            result["ci_score"] = mean_interval(score[score.isfinite()], (0, 1))
    if answers.shape[1] == 1:
        result |= forecast_metrics(samples, answers[:, 0])
    elif samples.shape[1] > 1:
        apart = 1 - mask_iou(right, right).double()
        pairs = priors[:, :, None] * priors[:, None] * (1 - torch.eye(priors.shape[1]))
        several = pairs.sum((1, 2)) > 0  # two answers or more
        if several.any():
            spread = ((apart * pairs).sum((1, 2)) / pairs.sum((1, 2)))[several]
            result["answers_iou_distance"] = mean_interval(spread, (0, 1))
            of_samples = torch.tensor(result["iou_distance"]["per_set"])[several]
            result["excess_spread"] = mean_interval(of_samples - spread, (-1, 1))
    if label_classes:
        result["class_iou"] = _class_iou(samples, answers)
    return result


def _class_iou(samples: Tensor, answers: Tensor) -> list[dict | None]:
    """For each class but the background, the mean IoU of samples with the most similar answer, over
    those in which either has the class; None where none has.

    samples (G, B, K, H, W), answers (G, k, K, H, W), masks.
    """
    nearest = mask_iou(samples, answers).argmax(2)  # (G, B)
    each, present = channel_iou(samples, answers)  # (G, K, B, k)
    index = nearest[:, None, :, None].expand(-1, each.shape[1], -1, 1)
    values = each.gather(3, index)[..., 0]  # (G, K, B)
    there = present.gather(3, index)[..., 0]
    metrics: list[dict | None] = []
    for c in range(values.shape[1]):
        count = there[:, c].sum(1)
        sets = count > 0
        mean = (values[:, c] * there[:, c]).sum(1)[sets] / count[sets]
        metrics.append(mean_interval(mean, (0, 1)) if sets.any() else None)
    return metrics


def spread_metrics(samples: Tensor, label_classes: int = 0) -> dict:
    """The metrics of sets whose right answers are not known: how far their particles are apart."""
    spread = _spread(foreground(samples, label_classes))
    return dict(modes_total=None, modes_expected_iid=None, modes_found=None, **spread)
