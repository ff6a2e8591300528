"""Several jumping digits: 64 right answers and more, who is in which, and how that is drawn."""

import itertools

import pytest
import torch
from matplotlib.image import imread

import evaluate
import visualize
from figures import charts
from lab import assemble, experiments
from lab.metrics import combination_metrics, iou, mask_iou, nearest_image
from worlds.moving_digits import MOST_ANSWERS

EXACT = "--denoiser exact --digits embedded --device cpu".split()
TWO = [*EXACT, "--num_digits", "2"]


# ---------------------------------------------------------------- answers and their probabilities


@pytest.mark.parametrize("settings", [dict(), dict(num_directions=2, num_digits=3, p=0.8)], ids=str)
def test_the_answers_are_the_frames_that_can_come(world, generator, settings):
    """The last frame is the answer whose directions the positions tell, in the order of the
    product; every answer comes up as often as its probability says."""
    circle = world(**dict(num_digits=2) | settings)
    K, offsets = circle.num_digits, circle.offsets.tolist()
    batch = circle.windows(400, generator, at_choice=True)
    answers = circle.futures(batch)
    combinations = list(itertools.product(range(len(offsets)), repeat=K))
    assert answers.shape[1] == circle.modes_total == len(combinations) == len(offsets) ** K
    moved = (batch.positions[:, -1] - circle.centre).tolist()
    came = [combinations.index(tuple(map(offsets.index, each))) for each in moved]
    assert torch.equal(answers[torch.arange(400), came], batch.frames[:, -1])

    prior = circle.mode_probabilities
    assert prior.sum().item() == pytest.approx(1)
    if circle.p is not None:
        for combination, probability in zip(combinations, prior.tolist()):
            rights = combination.count(0)
            assert probability == pytest.approx(0.8**rights * 0.2 ** (K - rights))
        share = circle.motion(4000, generator)[0][:, 1] - circle.centre
        first = (share == circle.offsets[0]).all(-1).all(-1).float().mean().item()
        assert first == pytest.approx(prior[0].item(), abs=0.03)


@pytest.mark.parametrize("flags", [["--num_digits", "5"], ["--num_digits", "999999999"]])
def test_more_answers_than_can_be_counted_are_refused(flags, refused, world):
    assert "denoiser: got 'exact'" in refused(evaluate.main, [*EXACT, *flags])
    uncounted = world(num_digits=int(flags[1]))
    assert not uncounted.directed
    assert uncounted.modes_total is None and uncounted.mode_probabilities is None


def test_the_largest_number_of_answers_is_counted(world):
    settings, _ = assemble.parse([*EXACT, "--num_digits", "4"])
    largest = world(num_digits=settings.world.num_digits)
    assert largest.modes_total == len(largest.mode_probabilities) == MOST_ANSWERS


def test_horizontal_counts_the_directions_of_one_digit_only(refused, world):
    argv = [*EXACT, "--dataset", "horizontal", "--num_digits", "2"]
    assert "horizontal with one digit" in refused(evaluate.main, argv)
    two = world(dataset="horizontal", num_digits=2)
    assert not two.directed and two.modes_total is None


# ---------------------------------------------------------------- who judges


def test_a_sample_is_in_the_mode_of_the_nearest_answer_at_that_distance():
    task = assemble.evaluation([*TWO, "--num_sets", "3"]).task
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    samples = task.answers[:, order].clone()
    corner = samples[:, :, 0, 0]
    assert (corner == 0).all()
    samples[:, :, 0, 0] = 0.25
    result, modes = task.measure(samples)
    same = (task.answers[:, modes[0]] == task.answers[:, order]).flatten(2).all(-1)
    assert same[0].all()  # the very answer, or another one that is the same picture
    assert torch.equal(task.modes(samples[1:], torch.tensor([1, 2])), modes[1:])
    assert result["quality"]["mean"] == pytest.approx(0.25, abs=1e-6)
    assert result["modes_total"] == 64
    assert result["modes_expected_iid"] == pytest.approx(64 * (1 - (63 / 64) ** 64))
    assert len(result["mode_frequencies"]) == 64


def test_near_copies_are_at_their_small_distance():
    """Where |a|^2 + |b|^2 - 2 a b would have lost it to rounding."""
    answers = torch.rand(1, 40, 32, 32)
    samples = answers.clone()
    samples[..., 0] = (samples[..., 0] - 1e-5).abs()
    nearest, distance = nearest_image(samples, answers)
    assert torch.equal(nearest[0], torch.arange(40))
    assert distance.allclose(torch.tensor(1e-5 * 32**0.5), rtol=0.05, atol=0)


def test_samples_that_are_not_finite_are_measured():
    answers = torch.rand(2, 5, 4, 4)
    samples = torch.full((2, 3, 4, 4), float("nan"))
    result, modes = combination_metrics(samples, answers, torch.full((5,), 0.2).double())
    assert modes.shape == (2, 3) and (modes >= 0).all()
    assert not torch.tensor(result["quality"]["mean"]).isfinite()


def test_iou_of_masks_is_that_of_images(generator):
    masks = (torch.rand(3, 6, 8, 8, generator=generator) > 0.6).float()
    masks[0, :2] = 0  # two that are empty
    masks[1, 0] = 1
    assert mask_iou(masks, masks[:, :4]).allclose(iou(masks, masks[:, :4]))


# ---------------------------------------------------------------- sets


def modes_found(*argv) -> dict:
    return assemble.evaluation([*TWO, *map(str, argv)]).run(progress=False)[2]


def test_independent_draws_find_as_many_of_64_as_theory_says():
    result = modes_found("--num_sets", 12, "--batch_size", 64, "--num_steps", 6)
    expected = result["modes_expected_iid"]
    assert expected == pytest.approx(40.64, abs=0.01)
    # The number found by 64 draws has a standard deviation of 2.4; this is four standard errors.
    assert result["modes_found"]["mean"] == pytest.approx(expected, abs=4 * 2.4 / 12**0.5)
    assert result["quality"]["mean"] < 0.01


@pytest.mark.parametrize("batch_size, least", [(16, 15.5), (64, 57)])
def test_guided_particles_find_nearly_as_many_of_64_as_they_are(batch_size, least):
    result = modes_found("--num_sets", 1, "--batch_size", batch_size, "--pg_factor", 3)
    assert result["modes_found"]["mean"] >= least
    assert result["quality"]["mean"] < 0.01
    assert result["network_calls"] == 43


# ---------------------------------------------------------------- the experiment and its chart


def row(world: str, method: str, batch_size: int, total: int, found: float) -> dict:
    """A cell in which `found` of `total` equally likely modes were found."""
    interval = dict(mean=found, ci95=[found - 0.5, found + 0.2])
    priors = [dict(prior=1 / total)] * total
    result = dict(modes_total=total, modes_found=interval, mode_frequencies=priors)
    return dict(cell=dict(world=world, method=method, batch_size=batch_size), result=result)


ROWS = [
    row(world, method, batch_size, total, share * min(batch_size, total))
    for world, total in (("one digit", 8), ("two digits", 64))
    for method, share in (("independent", 0.7), ("guided", 0.95))
    for batch_size in (16, 8, 64)
]


def test_the_chart_of_scaling_has_a_panel_per_world_and_both_bounds():
    figure = charts.scaling(ROWS)
    assert [axis.get_title() for axis in figure.axes] == ["8 modes", "64 modes"]
    for axis, total in zip(figure.axes, (8, 64)):
        assert axis.get_xlabel() == "particles in a set, B"
        lines = {line.get_label(): line for line in axis.get_lines()}
        dashed = dict(zip(*lines["the most that can be found"].get_data()))
        assert dashed[8] == 8 and dashed[64] == total
        theory = dict(zip(*lines["independent draws, in theory"].get_data()))
        assert theory[64] == pytest.approx(total * (1 - (1 - 1 / total) ** 64))
        names = axis.get_legend_handles_labels()[1]
        assert {"independent", "guided"} < set(names)
        measured = axis.containers[0].lines[0].get_xydata()
        assert measured[:, 0].tolist() == [8, 16, 64]  # in their order, not the rows'
        assert measured[:, 1] == pytest.approx(0.7 * torch.tensor([8, 16, 64]).clamp(max=total))
    assert figure.axes[0].get_ylabel() == "modes found"


def test_lines_are_named_after_the_axes_on_which_they_differ():
    assert list(charts.lines_of(ROWS[:6])) == ["independent", "guided"]
    assert list(charts.lines_of(ROWS[:3])) == ["modes found"]
    strengths = [dict(cell=dict(batch_size=8, pg_factor=factor)) for factor in (0, 3)]
    assert list(charts.lines_of(strengths)) == ["strength (pg_factor) 0", "strength (pg_factor) 3"]


def test_the_experiment_ends_with_its_picture(tmp_path, monkeypatch, capsys, refused):
    recipe = experiments.load("e12")
    recipe["grid"] |= dict(batch_size=[2, 4], method=dict(guided=dict(pg_factor=3)))
    monkeypatch.setattr(experiments, "load", lambda name: recipe)
    small = "--digits embedded --num_sets 1 --num_steps 3 --device cpu".split()
    evaluate.main(["--experiment", "e12", "--outdir", str(tmp_path), *small])
    assert (imread(tmp_path / "scaling.png")[..., :3].min(-1) < 0.98).mean() > 0.02
    capsys.readouterr()
    results = tmp_path / "results.json"
    results.write_text(results.read_text().replace('"batch_size": 2', '"other": 2'))
    line = refused(visualize.main, ["figure", str(tmp_path)])
    assert "an axis batch_size" in line
