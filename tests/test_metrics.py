import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lab import metrics
from lab.metrics import (
    BACKWARD,
    centroid,
    class_coverage,
    combination_metrics,
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
    modes_shown,
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


def covered(draw, mean: float, sets: int, repeats: int, **about) -> float:
    """The share of `repeats` simulations whose interval holds the mean that is known."""
    rng = np.random.default_rng(0)
    ends = [mean_interval(draw(rng, sets), **about)["ci95"] for _ in range(repeats)]
    return np.mean([low - 1e-9 <= mean <= high + 1e-9 for low, high in ends])


def found_of(p: list[float], B: int):
    """How many modes sets of B independent draws find, and how to tell `mean_interval`."""

    def draw(rng, sets):
        counts = rng.multinomial(B, p, sets)
        return (counts > 0).sum(1)

    mean = expected_modes_iid(torch.tensor(p, dtype=torch.float64), B)
    return draw, mean, dict(bounds=(1, min(B, len(p))), step=1)


def missed_by(q: float):
    """Modes found by sets of which a share q misses one of 8."""
    return lambda rng, sets: 8 - rng.binomial(1, q, sets), 8 - q, dict(bounds=(1, 8), step=1)


POSITIVE = dict(bounds=(0, math.inf))
LIKE_QUALITY = (lambda rng, n: rng.lognormal(1, 0.3, n), math.exp(1.045), POSITIVE)
# A draw of values, their mean, what mean_interval is told, and from how many sets on it holds.
SIMULATED = dict(
    normal=(lambda rng, n: rng.normal(2.0, 1.0, n), 2.0, {}, 4),
    quality=(*LIKE_QUALITY, 12),
    skewed=(lambda rng, n: 2.5 + rng.exponential(0.4, n), 2.9, POSITIVE, 60),
    near_one=(lambda rng, n: rng.beta(9, 1, n), 0.9, dict(bounds=(0, 1)), 60),
    modes_8_of_8=(*found_of([1 / 8] * 8, 8), 12),
    modes_24_of_8=(*found_of([1 / 8] * 8, 24), 60),
    modes_half=(*found_of([0.5] + [0.5 / 7] * 7, 8), 12),
    modes_two=(*found_of([0.9, 0.1], 8), 60),
    missed_5=(*missed_by(0.05), 200),
    missed_10=(*missed_by(0.1), 60),
)


@pytest.mark.parametrize("name", SIMULATED)
def test_interval_of_a_mean_covers_it_95_times_in_100(name):
    draw, mean, about, sets = SIMULATED[name]
    share = covered(draw, mean, max(sets, 12), 400, **about)
    assert share == pytest.approx(0.95, abs=0.02 + 2 * math.sqrt(0.95 * 0.05 / 400))


@pytest.mark.slow
@pytest.mark.parametrize("sets", [4, 12, 60, 200])
@pytest.mark.parametrize("name", SIMULATED)
def test_interval_of_a_mean_covers_it_in_many_simulations(name, sets):
    """Of few sets that rarely differ, more of the simulations than 97 in 100 cannot be avoided:
    all of those without a miss, or none, hold the mean."""
    draw, mean, about, least = SIMULATED[name]
    share = covered(draw, mean, sets, 4000, **about)
    assert share >= (0.925 if sets >= least else 0.88)
    assert share <= 0.98 or sets < least


@pytest.mark.parametrize("sets", [4, 12, 60, 200])
@pytest.mark.parametrize("q", [0.01, 0.02, 0.05])
def test_interval_of_sets_that_hardly_miss_covers_exactly_often_enough(q, sets):
    """The coverage, summed over how many sets miss: by a lattice at least 93 in 100, and never as
    much more as the interval of a mean that is certain."""
    values = np.full(sets, 8)
    coverage = 0.0
    for missing in range(min(sets, 40) + 1):
        values[:missing] = 7
        low, high = mean_interval(values, (1, 8), 1)["ci95"]
        coverage += (low <= 8 - q <= high) * stats.binom.pmf(missing, sets, q)
    assert coverage >= 0.93
    assert coverage <= 0.985 or q * sets < 2


@pytest.mark.parametrize("sets, low", [(4, 7.398), (12, 7.735), (60, 7.940), (200, 7.982)])
def test_a_mean_at_its_bound_gets_the_end_that_its_sets_allow(sets, low):
    at_most = mean_interval([8] * sets, (1, 8), 1)["ci95"]
    assert at_most == [pytest.approx(low, abs=2e-3), 8]
    # If sets miss one as often as that, all of them hold all modes in 2.5 of 100 runs.
    assert (1 - (8 - at_most[0])) ** sets == pytest.approx(0.025)
    assert mean_interval([0] * sets, (0, 8), 1)["ci95"] == [0, pytest.approx(8 - low, abs=2e-3)]
    share = mean_interval([1.0] * sets, (0, 1), 1 / 8)["ci95"]
    assert share == [pytest.approx(1 - (8 - low) / 8, abs=1e-3), 1]
    one_missed = mean_interval([8] * (sets - 1) + [7], (1, 8), 1)["ci95"]
    assert one_missed[0] < at_most[0] and one_missed[1] < 8
    inside = mean_interval([7] * sets, (1, 8), 1)["ci95"]
    assert inside == [pytest.approx(low - 1, abs=2e-3), pytest.approx(15 - low, abs=2e-3)]


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.floats(0, 1) | st.sampled_from([0.0, 0.1, 1.0]), min_size=2, max_size=40),
    scale=st.sampled_from([1.0, 8.0, 1e-30, 1e8]),
    bounded=st.booleans(),
)
def test_an_interval_never_leaves_the_bounds_of_its_values(values, scale, bounded):
    values = scale * np.asarray(values)
    most = scale if bounded else math.inf
    result = mean_interval(values, (0, most))
    low, high = result["ci95"]
    assert 0 <= low <= high <= most
    assert low - 1e-6 * scale <= result["mean"] <= high + 1e-6 * scale


def test_values_outside_their_bounds_are_refused():
    with pytest.raises(ValueError, match="values: got 1 to 9; accepted: 1 to 8"):
        mean_interval([1, 9], (1, 8))


def test_the_interval_of_many_values_is_narrow_and_scales_with_them():
    values = np.random.default_rng(3).normal(size=1000)
    low, high = mean_interval(values)["ci95"]
    assert high - low == pytest.approx(2 * 1.96 / math.sqrt(1000), rel=0.1)
    assert mean_interval(torch.as_tensor(values)) == mean_interval(values)
    assert mean_interval(5 - 1e3 * values)["ci95"] == pytest.approx([5 - 1e3 * high, 5 - 1e3 * low])
    # A share's interval is the same from above and from below, and Student's if it is in no way
    # near a bound.
    share = values.clip(-4, 4) / 1e5 + 0.5
    low, high = mean_interval(share, (0, 1))["ci95"]
    assert mean_interval(1 - share, (0, 1))["ci95"] == pytest.approx([1 - high, 1 - low])
    half = stats.t.ppf(0.975, 999) * share.std(ddof=1) / math.sqrt(1000)
    assert [low, high] == pytest.approx([share.mean() - half, share.mean() + half], abs=half / 50)


def test_interval_of_constants_and_of_one_value():
    assert mean_interval([3, 3, 3])["ci95"] == [3, 3]
    assert mean_interval([0.1] * 7)["ci95"] == [0.1, 0.1]
    assert mean_interval([5.0]) == dict(mean=5.0, ci95=None, per_set=[5.0])
    assert mean_interval([8], (1, 8), 1)["ci95"] is None
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
    means = {key: each for key, each in result.items() if "per_set" in str(each)}
    assert {"modes_found", "modes_shown", "quality", "hm_iou", "ged"} <= means.keys()
    assert all(each["ci95"] is None for each in means.values())
    # Nor have shares of particles, which are not independent in a set.
    assert all(each["ci95"] is None for each in result["mode_frequencies"])


def independent_sets(rng, p, sets: int, B: int) -> np.ndarray:
    """Counts (sets, k) of independent draws."""
    return rng.multinomial(B, p, sets)


def spread_sets(rng, p, sets: int, B: int) -> np.ndarray:
    """Counts (sets, k) of particles at equal distances on the line of shares: each mode as often as
    it should be, in each set but for less than one particle."""
    at = (rng.random((sets, 1)) + np.arange(B)) / B
    which = np.searchsorted(np.cumsum(p)[:-1], at, side="right")
    return (which[..., None] == np.arange(len(p))).sum(1)


def torn_sets(rng, p, sets: int, B: int) -> np.ndarray:
    """Counts (sets, k) of sets each with shares of its own, as of a network that is unsure."""
    return rng.multinomial(B, rng.dirichlet(4 * np.asarray(p), sets))


UNEQUAL = ([0.5] + [0.5 / 7] * 7, [0.9, 0.1])


@pytest.mark.parametrize("p", UNEQUAL, ids=["half", "nine tenths"])
@pytest.mark.parametrize("draw", [independent_sets, spread_sets, torn_sets])
@pytest.mark.parametrize("repeats", [400, pytest.param(4000, marks=pytest.mark.slow)])
def test_interval_of_a_share_is_of_sets_however_they_depend(draw, p, repeats):
    rng = np.random.default_rng(1)
    sets, B = 60, 12
    inside = []
    for _ in range(repeats):
        low, high = proportion(torch.from_numpy(draw(rng, p, sets, B)[:, 0]), B, p[0])["ci95"]
        inside.append(low - 1e-9 <= p[0] <= high + 1e-9)
    every_set_alike = draw is spread_sets and p[0] == 0.5  # 6 of 12 in each: nothing to estimate
    expected = 1 if every_set_alike else 0.95
    noise = 2 * math.sqrt(0.95 * 0.05 / repeats)
    assert np.mean(inside) == pytest.approx(expected, abs=0.02 + noise)


@pytest.mark.parametrize("p", UNEQUAL, ids=["half", "nine tenths"])
@pytest.mark.parametrize("draw", [independent_sets, spread_sets, torn_sets])
def test_what_chance_gives_for_frequencies_is_that_of_sets_that_vary_so(draw, p):
    rng = np.random.default_rng(2)
    probabilities = torch.tensor(p, dtype=torch.float64)
    found, chance = [], []
    for _ in range(100):
        counts = draw(rng, p, 60, 12)
        modes = np.stack([np.repeat(np.arange(len(p)), row) for row in counts])
        result = share_metrics(torch.from_numpy(modes), probabilities)
        found.append(result["frequency_tv"])
        chance.append(result["frequency_tv_iid"])
    error = np.std(found) / math.sqrt(len(found))
    assert np.mean(chance) == pytest.approx(np.mean(found), abs=0.03 * np.mean(found) + 3 * error)


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
    lower_end = equivalent_draws(metrics["modes_found"]["ci95"][0], torch.full((4,), 0.25))
    assert metrics["equivalent_draws"] == dict(mean=pytest.approx(lower_end), at_least=True)
    assert metrics["frequency_tv"] == 0 == metrics["frequency_tv_iid"]  # all sets are alike
    sets[3, 0] = 1
    metrics = mode_metrics(sets, torch.full((4,), 0.25))
    one_missed = equivalent_draws(4 - 1 / 10, torch.full((4,), 0.25))
    assert metrics["equivalent_draws"] == dict(mean=pytest.approx(one_missed), at_least=False)
    alone = mode_metrics(torch.arange(4)[None], torch.full((4,), 0.25))["equivalent_draws"]
    assert alone["at_least"] and math.isfinite(alone["mean"])
    # A mode that cannot be found is none that a set misses.
    certain = mode_metrics(torch.zeros(10, 4).long(), torch.tensor([1.0, 0.0]))
    assert certain["equivalent_draws"]["at_least"]


def test_a_mode_is_shown_by_an_image_of_it_alone(world, generator):
    """Noise has a centroid, and with it a direction, but no image; an answer that is hardly spoiled
    counts, a blank image does not."""
    circle = world()
    batch = circle.windows(12, generator, at_choice=True)
    cond, _ = batch.split(1)
    answers = circle.futures(batch)
    known = dict(offsets=circle.offsets, probabilities=circle.mode_probabilities, answers=answers)
    known |= dict(undetermined=torch.ones(12, dtype=torch.bool))
    noise = torch.rand(answers.shape, generator=generator)
    for junk in (noise, 3 * noise - 1, (noise > 0.98).float()):
        result, _ = motion_metrics(junk, cond, **known)
        assert result["modes_shown"]["mean"] == 0
    assert result["modes_found"]["mean"] > 4
    result, _ = motion_metrics(torch.zeros_like(answers), cond, **known)
    assert result["modes_shown"]["mean"] == 0
    spoiled = answers + 0.1 * torch.randn(answers.shape, generator=generator)
    spoiled[:, 3] = noise[:, 3]
    _, modes = motion_metrics(answers, cond, **known)
    assert modes_shown(answers, answers, modes)["per_set"] == [8] * 12
    assert modes_shown(spoiled, answers, modes)["per_set"] == [7] * 12
    assert modes_shown(answers, answers, modes.roll(1, 1))["mean"] < 4  # images of other modes
    result, _ = combination_metrics(spoiled, answers, circle.mode_probabilities)
    assert result["modes_shown"]["per_set"] == [7] * 12
    assert modes_shown(answers, answers, torch.full_like(modes, -1))["mean"] == 0


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
    modes = drawn_classes(4000, 2)
    frequencies = torch.stack([(modes == k).double().view(4000, 6).mean(1) for k in range(4)], 1)
    distances = [frequency_distance(each, POSTERIORS.mean(0)) for each in frequencies]
    expected = expected_frequency_distance(POSTERIORS, 2)
    assert np.mean(distances) == pytest.approx(expected, abs=0.01)
    of_many = [share_metrics(each, POSTERIORS.repeat(20, 1)) for each in modes.view(200, 60, 2)]
    distance, chance = (
        np.mean([each[key] for each in of_many]) for key in ("frequency_tv", "frequency_tv_iid")
    )
    assert distance == pytest.approx(chance, rel=0.1)
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


def random_masks(*shape: int, seed: int = 0) -> torch.Tensor:
    """Masks of blocks of 2 x 2 px, some of them empty."""
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.rand(*shape[:-2], shape[-2] // 2, shape[-1] // 2, generator=generator)
    level = torch.rand(*shape[:-2], 1, 1, generator=generator)
    return (blocks > level).float().repeat_interleave(2, -1).repeat_interleave(2, -2)


def test_collective_insight_is_counted_pixel_by_pixel(monkeypatch):
    monkeypatch.setattr(metrics, "PART", 200)  # several parts
    samples, answers = random_masks(6, 3, 4, 6), random_masks(6, 4, 4, 6, seed=1)
    samples[0], answers[1], answers[2] = 0, 0, answers[2, :1]
    samples[3] = answers[3, :3]
    counts = [4, 4, 4, 4, 2, 1]
    priors = torch.tensor([[1 / n] * n + [0.0] * (4 - n) for n in counts], dtype=torch.float64)
    scores, best = metrics.collective_insight(samples, answers, priors)

    def pixels(masks) -> list[set[int]]:
        return [set(torch.nonzero(mask.flatten()).flatten().tolist()) for mask in masks]

    def extremes(sets: list[set[int]]) -> tuple[float, float]:
        variances = []
        for a, b in itertools.combinations(sets, 2):
            difference = [(i in a) - (i in b) for i in range(24)]
            variances.append(np.var(difference))
        return min(variances), max(variances)

    for g, n in enumerate(counts):
        s, y = pixels(samples[g]), pixels(answers[g, :n])
        union = set().union(*y)
        sensitivity = len(union & set().union(*s)) / len(union) if union else 1.0
        dice = [max(2 * len(a & b) / (len(a) + len(b)) if a | b else 1.0 for b in s) for a in y]
        assert float(best[g]) == pytest.approx(np.mean(dice))
        if n == 1:
            assert scores[g].isnan()
            continue
        apart = [abs(a - b) for a, b in zip(extremes(s), extremes(y))]
        parts = [sensitivity, np.mean(dice), 1 - sum(apart) / 2]
        assert float(scores[g]) == pytest.approx(3 * math.prod(parts) / sum(parts))
    perfect, all_found = metrics.collective_insight(answers, answers, priors)
    assert perfect[:4].tolist() == pytest.approx([1] * 4)
    assert all_found.tolist() == pytest.approx([1] * 6)


@pytest.mark.parametrize("classes", [0, 3])
def test_consensus_and_disagreement_are_counted_pixel_by_pixel(classes):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(classes or 2, (5, 4, 7), generator=generator)
    samples = labels.byte() if classes else labels * 0.9 + 0.05
    agreed = metrics.consensus(samples, classes)
    apart = metrics.disagreement(samples, classes)
    for y, x in itertools.product(range(4), range(7)):
        votes = labels[:, y, x].tolist()
        assert agreed[y, x] == max(range(classes or 2), key=votes.count)  # the first of several
        shares = [votes.count(c) / 5 for c in range(classes or 2)]
        entropy = stats.entropy(shares, base=classes or 2)
        assert float(apart[y, x]) == pytest.approx(entropy, abs=1e-6)
    tie = torch.tensor([0.0, 1.0]).view(2, 1, 1)
    assert metrics.consensus(tie).item() == 0 and metrics.disagreement(tie).item() == 1
    assert metrics.consensus(samples[None], classes).shape == (1, 4, 7)


def ensembles(sets: int, members: int, narrower: float = 1.0, seed: int = 0):
    """Sets and truths from the same Gaussian, with another mean and width in every set, in the
    middle of [0, 1]; the sets `narrower` than the truth."""
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(sets, 1, 2, 3, generator=generator)
    width = (torch.randn(sets, 1, 1, 1, generator=generator) / 4).exp()
    drawn = mean + width * torch.randn(sets, members, 2, 3, generator=generator) * narrower
    truth = mean + width * torch.randn(sets, 1, 2, 3, generator=generator)
    return 0.5 + drawn / 1000, 0.5 + truth[:, 0] / 1000


@pytest.mark.parametrize("members", [2, 3, 16])
def test_calibrated_sets_of_any_size_spread_as_they_err(members):
    calibrated = metrics.spread_skill(*ensembles(20000, members))
    assert calibrated["mean"] == pytest.approx(1, abs=0.02)
    narrow = metrics.spread_skill(*ensembles(20000, members, narrower=0.5))
    # The variance is a quarter; the mean errs by the truth's variance and 1/M of a quarter.
    ratio = math.sqrt((1 + 1 / members) * 0.25 / (1 + 0.25 / members))
    assert narrow["mean"] == pytest.approx(ratio, rel=0.02) and narrow["ci95"][1] < 0.75
    held = []
    for seed in range(300):
        low, high = metrics.spread_skill(*ensembles(40, members, seed=seed))["ci95"]
        held.append(low <= 1 <= high)
    assert 0.9 <= np.mean(held) <= 0.98


def test_spread_over_error_has_no_value_without_error():
    truth = torch.rand(4, 3, 3)
    assert metrics.spread_skill(truth[:, None].expand(-1, 3, -1, -1), truth) is None
    alone = metrics.spread_skill(torch.rand(1, 3, 3, 3), truth[:1])
    assert alone["mean"] > 0 and alone["ci95"] is None
    copies = metrics.spread_skill(torch.rand(9, 1, 3, 3).expand(-1, 3, -1, -1), torch.rand(9, 3, 3))
    assert copies["mean"] == 0 and copies["ci95"] == [0, 0]


def test_the_fair_energy_score_is_that_of_a_set_without_end():
    """In one dimension E |s - y| - 1/2 E |s - s'| of N(0, 1) is 1 / sqrt(pi) on average over y."""
    expected = 1 / math.sqrt(math.pi)
    one = torch.ones(1, 1)
    for members in (2, 3, 12):
        generator = torch.Generator().manual_seed(members)
        drawn = 0.5 + torch.randn(40000, members + 1, 1, 1, generator=generator) / 100
        samples, truth = drawn[:, :-1], drawn[:, -1:]
        weights = one.expand(len(drawn), 1)
        fair = 100 * energy_score(samples, truth, weights, fair=True)
        plain = 100 * energy_score(samples, truth, weights)
        assert float(fair.mean()) == pytest.approx(expected, abs=0.02)
        assert float(plain.mean()) == pytest.approx(expected * (1 + 1 / members), abs=0.02)


def test_own_answers_score_as_those_that_all_sets_share():
    generator = torch.Generator().manual_seed(0)
    samples = torch.rand(2, 3, 4, 5, generator=generator)
    answers = torch.rand(7, 4, 5, generator=generator)
    weights = torch.rand(2, 7, generator=generator).softmax(1)
    shared = energy_score(samples, answers, weights)
    own = energy_score(samples, answers.expand(2, -1, -1, -1), weights)
    torch.testing.assert_close(own, shared, rtol=1e-5, atol=1e-6)
