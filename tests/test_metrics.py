import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lab import metrics
from lab.metrics import (
    BACKWARD,
    centroid,
    class_coverage,
    composition_met,
    cosine_kernel,
    cost_metrics,
    displacement,
    drawn_answers_ged,
    energy_score,
    equivalent_draws,
    expected_frequency_distance,
    expected_modes_iid,
    frequency_distance,
    generalised_energy_distance,
    hm_iou,
    iou,
    iou_distance,
    mean_interval,
    mixture_modes,
    mode_metrics,
    motion_metrics,
    nearest_direction,
    nearest_in_class,
    pairwise_l2,
    proportion,
    quality_score,
    rke_score,
    share_metrics,
    vendi_score,
    without_background,
)
from worlds.moving_digits import DIRECTIONS


def test_centroid_of_one_pixel_and_of_nothing():
    image = torch.zeros(2, 9, 9)
    image[0, 2, 5] = 0.7
    assert centroid(image).tolist() == [[2.0, 5.0], [4.0, 4.0]]


@pytest.mark.parametrize("index", range(8))
def test_every_direction_of_every_digit_is_recognised(world, generator, index):
    circle = world()
    batch = circle.windows(64, generator)
    cond, _ = batch.split(1)
    frames = circle.futures(batch)[:, index : index + 1]  # (64, 1, 32, 32)
    moved = displacement(frames, cond)
    expected = torch.tensor(DIRECTIONS[index], dtype=torch.float64)
    torch.testing.assert_close(moved[:, 0], expected.expand(64, 2))
    assert (nearest_direction(moved, circle.offsets) == index).all()
    assert quality_score(frames, cond).max() == 0


def test_quality_is_the_distance_from_the_translated_digit(world, generator):
    circle = world()
    batch = circle.windows(8, generator)
    cond, target = batch.split(1)
    spoiled = target.clone()
    middle = spoiled[:, 0, 15:17, 15:17]
    middle.copy_(1 - middle)  # four pixels, not enough to move the centre by 1
    expected = (spoiled - target).flatten(1).norm(dim=1)[:, None]
    kept = displacement(spoiled, cond).round() == displacement(target, cond).round()
    kept = kept.all(-1)
    assert kept.any()
    torch.testing.assert_close(quality_score(spoiled, cond)[kept], expected[kept])


def test_modes_found_counts_different_ones_and_no_junk():
    modes = torch.tensor([[0, 0, 3], [1, 2, 3], [5, -1, -1]])
    metrics = mode_metrics(modes, torch.full((8,), 1 / 8))
    assert metrics["modes_found"]["per_set"] == [2, 3, 1]


def masks(*pixels):
    """One set of 1 x 4 frames, lit at these pixels."""
    frames = torch.zeros(1, len(pixels), 1, 4)
    for index, lit in enumerate(pixels):
        frames[0, index, 0, list(lit)] = 1.0
    return frames


def test_iou_of_known_masks():
    a, b = masks([0, 1], []), masks([1, 2], [], [0, 1])
    assert iou(a, b)[0].tolist() == [pytest.approx([1 / 3, 0, 1]), pytest.approx([0, 1, 0])]


@pytest.mark.parametrize("part", [1, 10**9])
def test_agreement_of_many_sets_is_that_of_each(part, monkeypatch):
    """Against masks as sets of pixels and a search of all matchings, however sets are split."""
    monkeypatch.setattr(metrics, "PART", part)
    generator = torch.Generator().manual_seed(2)
    samples = (torch.rand(6, 3, 2, 3, generator=generator) > 0.5).float()
    answers = (torch.rand(6, 4, 2, 3, generator=generator) > 0.5).float()
    answers[::2, 3] = answers[::2, 1]  # one answer twice: it counts once for the matching
    priors = torch.tensor([0.4, 0.3, 0.2, 0.1])

    def pixels(images):
        return [frozenset(np.flatnonzero(image)) for image in images.flatten(1).numpy()]

    def similarity(a, b):
        return len(a & b) / len(a | b) if a | b else 1.0

    matched = []
    distances = []
    for own, right in zip(map(pixels, samples), map(pixels, answers)):
        distinct = sorted(set(right), key=sorted)
        small, large = sorted([distinct, own], key=len)
        matchings = itertools.permutations(large, len(small))
        matched.append(max(np.mean([*map(similarity, small, m)]) for m in matchings))
        apart = lambda a, b, p, q: sum(
            x * y * (1 - similarity(s, t)) for s, x in zip(a, p) for t, y in zip(b, q)
        )
        same, p = [1 / 3] * 3, priors.tolist()
        distances.append(
            2 * apart(own, right, same, p) - apart(own, own, same, same) - apart(right, right, p, p)
        )
    assert hm_iou(samples, answers).tolist() == pytest.approx(matched)
    found = generalised_energy_distance(samples, answers, priors)
    assert found.tolist() == pytest.approx(distances, abs=1e-6)


def test_distances_of_hand_made_sets():
    all_on_one = generalised_energy_distance(masks([0], [0]), masks([0], [1]), torch.ones(2) / 2)
    assert all_on_one.item() == pytest.approx(2 * 1 / 2 - 0 - 1 / 2)
    assert hm_iou(masks([0], [0], [0]), masks([0], [1], [2])).item() == pytest.approx(1 / 3)
    assert iou_distance(masks([0], [1], [2])).item() == pytest.approx(1)
    assert iou_distance(masks([0], [0])).item() == pytest.approx(0)
    assert iou_distance(masks([0])).item() == 0


def test_mixture_modes_know_where_no_mode_is():
    centres = torch.tensor([[0.0, 0.0], [4.0, 0.0]])
    points = torch.tensor([[[0.5, 0.0], [3.0, 0.0], [2.0, 9.0]]])
    modes, distance = mixture_modes(points, centres, within=2.0)
    assert modes.tolist() == [[0, 1, -1]] and distance[0, :2].tolist() == [0.5, 1.0]


@pytest.mark.parametrize("probabilities", [[1 / 8] * 8, [0.5] + [0.5 / 7] * 7, [0.7, 0.3]])
def test_iid_expectation_agrees_with_simulation(probabilities, generator):
    p = torch.tensor(probabilities, dtype=torch.float64)
    draws = torch.multinomial(p, 8 * 4000, replacement=True, generator=generator).view(-1, 8)
    found = np.asarray(mode_metrics(draws, p)["modes_found"]["per_set"])
    error = found.std() / math.sqrt(len(found))
    assert expected_modes_iid(p, 8) == pytest.approx(found.mean(), abs=4 * error)


@pytest.mark.parametrize("sets, within", [(8, 0.05), (32, 0.035)])
@pytest.mark.parametrize(
    "draw, mean",
    [
        (lambda rng, n: rng.normal(2.0, 1.0, n), 2.0),
        (lambda rng, n: rng.choice([5, 6, 7, 8], n, p=[0.05, 0.1, 0.25, 0.6]), 7.4),
        (lambda rng, n: rng.beta(9, 1, n), 0.9),
    ],
    ids=["normal", "mode counts", "near a bound"],
)
def test_interval_of_a_mean_covers_it_95_times_in_100(draw, mean, sets, within):
    rng = np.random.default_rng(0)
    intervals = [mean_interval(draw(rng, sets))["ci95"] for _ in range(300)]
    covered = np.mean([low <= mean <= high for low, high in intervals])
    assert covered == pytest.approx(0.95, abs=within)


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.floats(0, 1) | st.sampled_from([0.0, 0.1, 1.0]), min_size=2, max_size=40),
    scale=st.sampled_from([1.0, 8.0, 1e-30, 1e8]),
)
def test_an_interval_never_leaves_the_range_of_its_values(values, scale):
    values = scale * np.asarray(values)
    result = mean_interval(values)
    low, high = result["ci95"]
    assert values.min() <= low <= high <= values.max()
    assert low - 1e-9 * scale <= result["mean"] <= high + 1e-9 * scale


def test_the_interval_of_many_values_is_narrow_and_always_the_same():
    values = np.random.default_rng(3).normal(size=1000)
    first = mean_interval(values)
    low, high = first["ci95"]
    assert high - low == pytest.approx(2 * 1.96 / math.sqrt(1000), rel=0.1)
    np.random.seed(1)
    assert mean_interval(torch.as_tensor(values)) == first


def test_interval_of_constants_and_of_one_value():
    assert mean_interval([3, 3, 3])["ci95"] == [3, 3]
    assert mean_interval([0.1] * 7)["ci95"] == [0.1, 0.1]
    assert mean_interval([5.0]) == dict(mean=5.0, ci95=None, per_set=[5.0])
    for other in (math.inf, math.nan):
        assert mean_interval([1.0, other])["ci95"] is None


def measured_answers(circle, sets: int, generator):
    """The metrics of sets that are the answers themselves, and their modes."""
    batch = circle.windows(sets, generator, at_choice=True)
    cond, _ = batch.split(1)
    answers = circle.futures(batch)
    undetermined = batch.choices[:, -1]
    known = dict(offsets=circle.offsets, probabilities=circle.mode_probabilities)
    return motion_metrics(answers, cond, undetermined=undetermined, answers=answers, **known)


def test_a_run_of_one_set_says_that_it_has_no_intervals(world, generator):
    result, _ = measured_answers(world(), 1, generator)
    means = {key: each for key, each in result.items() if isinstance(each, dict)}
    assert {"modes_found", "quality", "hm_iou", "ged"} <= means.keys()
    assert all(each["ci95"] is None for each in means.values())
    # Shares of particles have one: particles are many, even in one set.
    assert all(each["ci95"] is not None for each in result["mode_frequencies"])


def test_proportion_knows_its_prior():
    fair, unfair = proportion(50, 100, 0.5), proportion(80, 100, 0.5)
    assert fair["p_value"] == pytest.approx(1) and unfair["p_value"] < 1e-6
    lo, hi = unfair["ci95"]
    assert lo < 0.8 < hi


def test_pairwise_distance_of_copies_and_of_one_particle():
    image = torch.rand(1, 1, 8, 8)
    assert pairwise_l2(image).item() == 0
    assert pairwise_l2(image.expand(1, 4, 8, 8)).item() == pytest.approx(0, abs=1e-3)
    black_and_white = torch.stack([torch.zeros(8, 8), torch.ones(8, 8)])[None]
    assert pairwise_l2(black_and_white).item() == pytest.approx(8)


def test_metrics_of_a_perfect_run(world, generator):
    result, modes = measured_answers(world(), 5, generator)
    assert result["modes_found"]["mean"] == 8 and result["quality"]["mean"] == 0
    assert modes.tolist() == [list(range(8))] * 5
    assert result["hm_iou"]["mean"] == 1 and result["ged"]["mean"] == pytest.approx(0, abs=1e-6)
    assert result["modes_expected_iid"] == pytest.approx(8 * (1 - (7 / 8) ** 8))


# ---------------------------------------------------------------- the audit


@pytest.mark.parametrize("k, draws", [(8, 8), (8, 50), (2, 1), (10, 3)])
def test_equivalent_draws_are_those_that_find_as_many(k, draws):
    p = torch.arange(1.0, k + 1) / (k * (k + 1) / 2)
    found = expected_modes_iid(p, draws)
    assert equivalent_draws(found, p) == pytest.approx(draws, rel=1e-6)
    wider = torch.cat([p, torch.zeros(3)])  # modes that cannot be found change nothing
    assert equivalent_draws(found, wider) == pytest.approx(draws, rel=1e-6)
    assert equivalent_draws(float(k), p) == math.inf


@pytest.mark.parametrize("draws", [5, 64, 1600])
def test_the_distance_of_frequencies_by_chance_agrees_with_simulation(draws):
    p = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
    counts = torch.from_numpy(np.random.default_rng(0).multinomial(draws, p.numpy(), 20000))
    distances = ((counts / draws - p).abs().sum(1) / 2).numpy()
    error = distances.std() / len(distances) ** 0.5
    assert expected_frequency_distance(p, draws) == pytest.approx(distances.mean(), abs=4 * error)


def test_the_distance_of_frequencies_counts_what_is_in_no_mode():
    p = torch.tensor([0.5, 0.5])
    assert frequency_distance(p, p) == 0
    assert frequency_distance(torch.tensor([1.0, 0.0]), p) == pytest.approx(0.5)
    assert frequency_distance(torch.tensor([0.4, 0.4]), p) == pytest.approx(0.2)


def test_variance_of_counts_against_binomial(generator):
    p = torch.tensor([0.7, 0.3])
    draws = 1 - (torch.rand(4000, 10, generator=generator) < 0.7).long()
    assert mode_metrics(draws, p)["count_variance_ratio"] == pytest.approx(1, abs=0.08)
    ideal = torch.tensor([[0] * 7 + [1] * 3] * 50)
    assert mode_metrics(ideal, p)["count_variance_ratio"] == 0


def test_dispersion_of_counts_is_one_for_independent_draws(generator):
    p = torch.tensor([0.6, 0.3, 0.1, 0.0])
    draws = torch.multinomial(p, 4000 * 5, replacement=True, generator=generator).view(4000, 5)
    assert mode_metrics(draws, p)["count_dispersion"] == pytest.approx(1, abs=0.06)
    assert mode_metrics(draws.sort(0).values, p)["count_dispersion"] > 3  # clustered in sets
    even = torch.tensor([[0, 1], [1, 0]])
    assert mode_metrics(even, torch.tensor([0.5, 0.5]))["count_dispersion"] == 0
    assert mode_metrics(even[:1], torch.tensor([0.5, 0.5]))["count_dispersion"] is None


def test_the_audit_of_sets_that_hold_all_modes_is_finite():
    sets = torch.arange(4).repeat(10, 1)
    metrics = mode_metrics(sets, torch.full((4,), 0.25))
    one_missed = equivalent_draws(4 - 1 / 10, torch.full((4,), 0.25))
    assert metrics["equivalent_draws"] == pytest.approx(one_missed)
    assert metrics["frequency_tv"] == 0 < metrics["frequency_tv_iid"]
    assert math.isfinite(metrics["equivalent_draws"])


def test_vendi_and_rke_agree_with_another_implementation():
    """That of the authors of the Vendi score, for order 1 and order 2."""
    from vendi_score import vendi

    features = torch.rand(6, 9, 4, generator=torch.Generator().manual_seed(0)).double()
    kernel = cosine_kernel(features)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        expected = [[vendi.score_K(K.numpy(), q=q) for q in (1, 2)] for K in kernel]
    ours = torch.stack([vendi_score(kernel), rke_score(kernel)], 1)
    torch.testing.assert_close(ours, torch.tensor(expected).double(), atol=1e-6, rtol=0)


def test_a_backward_pass_counts_as_measured():
    cost = cost_metrics(43, 30, 8.0, 8)
    assert cost["price"] == pytest.approx(43 + 30 * BACKWARD)
    assert cost["modes_per_100_calls"] == pytest.approx(100 / cost["price"])
    assert cost_metrics(43, 0, None, 8)["modes_per_100_calls"] is None


def test_thresholds_of_many_images_are_scikit_images(generator):
    from skimage.filters import threshold_otsu

    images = torch.rand(40, 9, 11, generator=generator) ** 3
    images[0] = 0.3  # of one grey value, it stays as it is
    images[1] = (images[1] > 0.5).float()
    images[2] *= 1e-3
    images[3] = torch.linspace(0, 1, 99).view(9, 11).round(decimals=1)
    cleaned = without_background(images)
    for image, clean in zip(images[1:], cleaned[1:]):
        expected = torch.where(image > threshold_otsu(image.numpy()), image, 0.0)
        torch.testing.assert_close(clean, expected)
    assert torch.equal(cleaned[0], images[0])


# ---------------------------------------------------------------- sets of classes

# Three sets of two, each with its own likely classes.
POSTERIORS = torch.tensor([[0.5, 0.46, 0.04, 0.0], [0.97, 0.01, 0.01, 0.01], [0.25] * 4])


def drawn_classes(repeats: int, B: int) -> torch.Tensor:
    """Independent draws from POSTERIORS, (3 repeats, B)."""
    generator = torch.Generator().manual_seed(0)
    return torch.multinomial(POSTERIORS.repeat(repeats, 1), B, True, generator=generator)


def test_coverage_counts_likely_classes_alone():
    modes = torch.tensor([[0, 2], [0, 0], [3, -1]])
    result = class_coverage(modes, POSTERIORS)
    assert result["classes_covered"]["per_set"] == [1, 1, 1]
    assert result["coverage"]["per_set"] == [0.5, 1, 0.25]
    assert result["classes_likely"] == pytest.approx((2 + 1 + 4) / 3)
    assert class_coverage(modes, POSTERIORS[2], least=0.3) is None
    one = class_coverage(modes[2:], POSTERIORS[2])
    assert one["coverage"]["per_set"] == [0.25]


def test_coverage_of_independent_draws_is_as_expected():
    result = class_coverage(drawn_classes(4000, 2), POSTERIORS.repeat(4000, 1))
    assert result["coverage"]["mean"] == pytest.approx(result["coverage_iid"], abs=0.01)
    assert result["classes_covered"]["mean"] == pytest.approx(result["covered_iid"], abs=0.02)


def test_shares_are_compared_with_the_mean_posterior():
    """The expectation is that of draws, and of equal posteriors the binomial's closed form."""
    modes = drawn_classes(4000, 2).view(4000, 3, 2)
    distances = [share_metrics(each, POSTERIORS)["frequency_tv"] for each in modes]
    expected = share_metrics(modes[0], POSTERIORS)["frequency_tv_iid"]
    assert np.mean(distances) == pytest.approx(expected, abs=0.01)
    p = POSTERIORS[0]
    equal = expected_frequency_distance(p.expand(40, -1), 10)
    assert equal == pytest.approx(expected_frequency_distance(p, 400), rel=1e-9)
    exact = share_metrics(torch.tensor([[0, 1], [2, 3]]), torch.full((4,), 0.25))
    assert exact["frequency_tv"] == 0


def test_a_composition_is_met_by_its_counts_in_any_order():
    modes = torch.tensor([[0, 0, 2], [2, 0, 0], [0, 2, 2], [0, -1, 2]])
    result = composition_met(modes, torch.tensor([2, 0, 1]))
    assert result["composition_met"]["mean"] == 0.5
    low, high = result["composition_met"]["ci95"]
    assert low == pytest.approx(0.150, abs=1e-3) and high == pytest.approx(0.850, abs=1e-3)
    assert result["shares"] == pytest.approx([6 / 12, 0, 5 / 12])
    assert result["shares_asked"] == pytest.approx([2 / 3, 0, 1 / 3])
    assert result["shares_error"] == pytest.approx(1 / 6)
    each = torch.tensor([[2, 0, 1], [2, 0, 1], [1, 0, 2], [1, 1, 1]])
    assert composition_met(modes, each)["composition_met"]["mean"] == 0.75


def test_the_energy_score_is_the_double_sum(monkeypatch):
    monkeypatch.setattr(metrics, "PART", 100)  # several parts
    generator = torch.Generator().manual_seed(0)
    samples = torch.rand(2, 3, 4, 5, generator=generator)
    answers = torch.rand(7, 4, 5, generator=generator)
    weights = torch.rand(2, 7, generator=generator).softmax(1)
    for g in range(2):
        between = sum(
            weights[g, m] * (samples[g, b] - answers[m]).norm() / 3
            for b in range(3)
            for m in range(7)
        )
        within = sum((a - b).norm() for a in samples[g] for b in samples[g]) / 9
        score = energy_score(samples, answers, weights)[g]
        assert float(score) == pytest.approx(float(between - within / 2), rel=1e-5)


def test_the_energy_score_prefers_the_truth():
    """The answers themselves score better than one of them, and than draws of another share."""
    answers = torch.eye(4).view(4, 2, 2)
    weights = torch.tensor([[0.5, 0.25, 0.25, 0.0]])
    best, *worse = (
        float(energy_score(answers[torch.tensor([which])], answers, weights))
        for which in ([0, 0, 1, 2], [0, 0, 0, 0], [0, 1, 2, 3], [0, 0, 0, 1])
    )
    assert best < min(worse)


def test_drawn_answers_give_the_distance_to_all_of_them(digits):
    """Of few answers the draws hold each by its weight, so that the distance is the exact one."""
    answers = digits.images[:5]
    weights = torch.tensor([[0.5, 0.0, 0.25, 0.125, 0.125], [0.0, 0.0, 0.0, 1.0, 0.0]])
    samples = digits.images[5:13].view(2, 4, 16, 16)
    exact = generalised_energy_distance(samples, answers.expand(2, -1, -1, -1), weights)
    drawn = drawn_answers_ged(samples, answers, weights)
    torch.testing.assert_close(drawn, exact, rtol=1e-4, atol=1e-5)
    assert torch.equal(drawn[1:], drawn_answers_ged(samples[1:], answers, weights[1:]))


def test_the_nearest_picture_is_sought_in_the_own_class(digits, monkeypatch):
    monkeypatch.setattr(metrics, "PART", 1000)
    bank, labels = digits.images[:200], digits.labels[:200]
    some = digits.images[200:230]
    asked = torch.arange(30) % 10
    distance = nearest_in_class(some, asked, bank, labels)
    for image, label, d in zip(some, asked, distance):
        each = [float((image - known).norm()) for known in bank[labels == label]]
        assert float(d) == pytest.approx(min(each), rel=1e-5)
    assert nearest_in_class(bank, labels, bank, labels).max() == 0
    assert nearest_in_class(some[:1], torch.tensor([11]), bank, labels).isinf().all()
