import math

import numpy as np
import pytest
import torch

from metrics import (
    centroid,
    displacement,
    expected_modes_iid,
    generalised_energy_distance,
    hm_iou,
    iou,
    iou_distance,
    mean_interval,
    mixture_modes,
    mode_metrics,
    motion_metrics,
    nearest_direction,
    pairwise_l2,
    proportion,
    quality_score,
)
from worlds import DIRECTIONS


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
    torch.testing.assert_close(
        moved[:, 0], torch.tensor(DIRECTIONS[index], dtype=torch.float64).expand(64, 2)
    )
    assert (nearest_direction(moved, circle.offsets) == index).all()
    assert quality_score(frames, cond).max() == 0


def test_quality_is_the_distance_from_the_translated_digit(world, generator):
    circle = world()
    batch = circle.windows(8, generator)
    cond, target = batch.split(1)
    spoiled = target.clone()
    spoiled[:, 0, 15:17, 15:17] = (
        1 - spoiled[:, 0, 15:17, 15:17]
    )  # four pixels, not enough to move the centre by 1
    expected = (spoiled - target).flatten(1).norm(dim=1)
    kept = displacement(spoiled, cond).round() == displacement(target, cond).round()
    assert kept.all(-1).any()
    torch.testing.assert_close(
        quality_score(spoiled, cond)[kept.all(-1)], expected[:, None][kept.all(-1)]
    )


def test_modes_found_counts_different_ones_and_no_junk():
    metrics = mode_metrics(
        torch.tensor([[0, 0, 3], [1, 2, 3], [5, -1, -1]]), torch.full((8,), 1 / 8)
    )
    assert metrics["modes_found"]["per_set"] == [2, 3, 1]


def test_variance_of_counts_against_binomial(generator):
    p = torch.tensor([0.7, 0.3])
    draws = 1 - (torch.rand(4000, 10, generator=generator) < 0.7).long()
    assert mode_metrics(draws, p)["count_variance_ratio"] == pytest.approx(1, abs=0.08)
    ideal = torch.tensor([[0] * 7 + [1] * 3] * 50)
    assert mode_metrics(ideal, p)["count_variance_ratio"] == 0


def masks(*pixels):
    """One set of 1 x 4 frames, lit at these pixels."""
    frames = torch.zeros(1, len(pixels), 1, 4)
    for index, lit in enumerate(pixels):
        frames[0, index, 0, list(lit)] = 1.0
    return frames


def test_iou_of_known_masks():
    a, b = masks([0, 1], []), masks([1, 2], [], [0, 1])
    assert iou(a, b)[0].tolist() == [pytest.approx([1 / 3, 0, 1]), pytest.approx([0, 1, 0])]


def test_hm_iou_of_hand_made_sets():
    answers = masks([0], [1], [2])
    assert hm_iou(masks([2], [0], [1]), answers).item() == 1  # any order will do
    assert hm_iou(masks([0], [0], [0]), answers).item() == pytest.approx(1 / 3)
    assert hm_iou(masks([0, 1], [1], [2, 3]), answers).item() == pytest.approx(
        (1 / 2 + 1 + 1 / 2) / 3
    )
    assert hm_iou(masks([2]), answers).item() == 1  # one sample can match one answer only


def test_ged_of_hand_made_sets():
    answers, p = masks([0], [1]), torch.tensor([0.5, 0.5])
    assert generalised_energy_distance(masks([0], [1]), answers, p).item() == pytest.approx(0)
    # all samples on one answer: 2 * 1/2 - 0 - 1/2
    assert generalised_energy_distance(masks([0], [0]), answers, p).item() == pytest.approx(0.5)
    # all samples nowhere right: 2 * 1 - 0 - 1/2
    assert generalised_energy_distance(masks([3], [3]), answers, p).item() == pytest.approx(1.5)
    uneven = torch.tensor([0.75, 0.25])
    assert generalised_energy_distance(
        masks([0], [0], [0], [1]), answers, uneven
    ).item() == pytest.approx(0)


def test_iou_distance_inside_a_set():
    assert iou_distance(masks([0], [1], [2])).item() == pytest.approx(1)
    assert iou_distance(masks([0], [0])).item() == pytest.approx(0)
    assert iou_distance(masks([0])).item() == 0


def test_mixture_modes_know_where_no_mode_is():
    centres = torch.tensor([[0.0, 0.0], [4.0, 0.0]])
    modes, distance = mixture_modes(
        torch.tensor([[[0.5, 0.0], [3.0, 0.0], [2.0, 9.0]]]), centres, within=2.0
    )
    assert modes.tolist() == [[0, 1, -1]] and distance[0, :2].tolist() == [0.5, 1.0]


@pytest.mark.parametrize("probabilities", [[1 / 8] * 8, [0.5] + [0.5 / 7] * 7, [0.7, 0.3]])
def test_iid_expectation_agrees_with_simulation(probabilities, generator):
    p = torch.tensor(probabilities, dtype=torch.float64)
    draws = torch.multinomial(p, 8 * 20000, replacement=True, generator=generator).view(-1, 8)
    found = np.asarray(mode_metrics(draws, p)["modes_found"]["per_set"])
    assert expected_modes_iid(p, 8) == pytest.approx(
        found.mean(), abs=4 * found.std() / math.sqrt(len(found))
    )


def test_interval_of_a_mean_covers_it_95_times_in_100():
    rng = np.random.default_rng(0)
    intervals = [mean_interval(rng.normal(2.0, 1.0, 12))["ci95"] for _ in range(4000)]
    covered = np.mean([lo <= 2.0 <= hi for lo, hi in intervals])
    assert covered == pytest.approx(0.95, abs=0.012)


def test_interval_of_constants_and_of_one_value():
    assert mean_interval([3, 3, 3])["ci95"] == [3, 3]
    assert mean_interval([5.0]) == dict(mean=5.0, ci95=[5.0, 5.0], per_set=[5.0])


def test_proportion_knows_its_prior():
    fair, unfair = proportion(50, 100, 0.5), proportion(80, 100, 0.5)
    assert fair["p_value"] == pytest.approx(1) and unfair["p_value"] < 1e-6
    lo, hi = unfair["ci95"]
    assert lo < 0.8 < hi


def test_pairwise_distance_of_copies_and_of_one_particle():
    image = torch.rand(1, 1, 8, 8)
    assert pairwise_l2(image).item() == 0
    assert pairwise_l2(image.expand(1, 4, 8, 8)).item() == pytest.approx(0, abs=1e-3)
    assert pairwise_l2(
        torch.stack([torch.zeros(8, 8), torch.ones(8, 8)])[None]
    ).item() == pytest.approx(8)


def test_metrics_of_a_perfect_run(world, generator):
    circle = world()
    batch = circle.windows(5, generator, at_choice=True)
    cond, _ = batch.split(1)
    result, modes = motion_metrics(
        circle.futures(batch),
        cond,
        offsets=circle.offsets,
        probabilities=circle.mode_probabilities,
        undetermined=batch.choices[:, -1],
        answers=circle.futures(batch),
    )
    assert result["modes_found"]["mean"] == 8 and result["quality"]["mean"] == 0
    assert modes.tolist() == [list(range(8))] * 5
    assert result["hm_iou"]["mean"] == 1 and result["ged"]["mean"] == pytest.approx(0, abs=1e-6)
    assert result["modes_expected_iid"] == pytest.approx(8 * (1 - (7 / 8) ** 8))
