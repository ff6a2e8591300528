"""World `halves` and the task of classes: what is known of them, and what their sets show."""

import json

import numpy as np
import pytest
import torch
from conftest import draw_nothing
from scipy import stats

import evaluate
from data_loader import load_digits
from lab import assemble
from lab.metrics import share_metrics
from lab.tasks import LEAST, ClassTask
from worlds.moving_digits import Halves

EXACT = "--denoiser exact --digits embedded --device cpu --num_steps 8".split()
HALVES = [*EXACT, "--dataset", "halves", "--batch_size", "10"]
UPPER = np.s_[..., 8:16, 8:24]  # of a digit of 16 px in a frame of 32


@pytest.fixture
def halves(world):
    return world(dataset="halves")


@pytest.fixture
def task(halves):
    """A task whose conditions are noisy halves of the very digits that are its right answers."""
    halves.digits = halves.training
    return ClassTask(halves, num_sets=len(halves.training.labels), seed=0)


# ---------------------------------------------------------------- the world


def test_noise_is_in_the_upper_half_alone_and_normal(halves, generator):
    windows = halves.windows(400, generator)
    given, shown = windows.frames.unbind(1)
    assert windows.frames.shape == (400, 2, 32, 32)
    noise = (given[UPPER] - shown[UPPER]) / Halves.NOISE
    assert stats.kstest(noise.flatten(), "norm").pvalue > 1e-3
    given[UPPER] = 0
    assert not given.any()
    assert torch.equal(shown, halves.digits.centred(32)[windows.which[:, 0]])


def test_the_likelihood_of_a_picture_is_a_gaussian_density(halves, generator):
    conditions = halves.windows(5, generator).frames[:, 0]
    upper = halves.known()[0][UPPER]
    density = stats.norm.logpdf(conditions[UPPER][:, None], upper[None], Halves.NOISE).sum((2, 3))
    found = halves.log_likelihood(conditions).double().numpy()
    np.testing.assert_allclose(found - found[:, :1], density - density[:, :1], atol=1e-3)


# ---------------------------------------------------------------- the task


def test_class_priors_are_the_share_of_conditions_that_come_of_each_class(task):
    """Of all conditions that make a class about so likely, that share was made of such a digit."""
    priors = task.class_priors
    assert priors.shape == (task.num_sets, 10) and priors.dtype == torch.float64
    torch.testing.assert_close(priors.sum(1), torch.ones(task.num_sets).double(), atol=1e-6, rtol=0)
    came = torch.nn.functional.one_hot(task.labels, 10).double()
    for low, high in ((0.02, 0.1), (0.1, 0.3), (0.3, 0.7), (0.7, 0.95)):
        inside = (priors >= low) & (priors < high)
        p = priors[inside]
        assert len(p) > 100
        z = (came[inside] - p).sum() / (p * (1 - p)).sum().sqrt()
        assert abs(float(z)) < 4


def test_without_a_condition_priors_are_the_shares_of_the_classes(world):
    task = ClassTask(world(dataset="centered"), num_sets=3, seed=0)
    labels = load_digits("embedded", "train", size=16, data_root="data").labels
    shares = labels.bincount(minlength=10).double() / len(labels)
    torch.testing.assert_close(task.class_priors, shares.expand(3, -1))


# ---------------------------------------------------------------- sets


def classes_of(flags):
    """The task of an evaluation, and the classes of its samples: of the known picture that each
    is, (G, B)."""
    evaluation = assemble.evaluation([*HALVES, *flags.split()])
    samples = evaluation.sample(progress=False)
    known = evaluation.task.known.flatten(1)
    distance, nearest = torch.cdist(samples.flatten(2), known).min(-1)
    assert distance.median() < 1e-3
    return evaluation.task, evaluation.task.known_labels[nearest]


def test_exact_independent_sets_have_the_shares_of_independent_draws():
    task, classes = classes_of("--num_sets 100")
    off = share_metrics(classes, task.class_priors)
    assert off["frequency_tv"] < 2 * off["frequency_tv_iid"]
    # Each set by itself, beside the mean over draws from its own priors.
    priors = task.class_priors
    draws = torch.multinomial(
        priors.repeat(50, 1), 10, replacement=True, generator=torch.Generator().manual_seed(0)
    ).view(50, 100, 10)

    def variation(each):
        counts = torch.nn.functional.one_hot(each, 10).double().mean(-2)
        return (counts - priors).abs().sum(-1) / 2  # (..., G)

    by_chance = variation(draws).mean(1)  # (50,)
    assert abs(variation(classes).mean() - by_chance.mean()) < 4 * by_chance.std()


def test_joint_sets_show_every_likely_class():
    task, classes = classes_of("--num_sets 15 --guidance joint")
    likely = task.class_priors >= LEAST
    assert likely.sum(1).max() >= 4
    shown = torch.nn.functional.one_hot(classes, 10).any(1)
    assert (shown | ~likely).all()
    _, independent = classes_of("--num_sets 15")
    missed = likely & ~torch.nn.functional.one_hot(independent, 10).any(1)
    assert missed.any()


@pytest.mark.parametrize(
    "flags", ["--dataset halves", "--task unconditional", "--dataset halves --guidance classes"]
)
def test_an_evaluation_measures_sets_of_classes(flags, tmp_path, monkeypatch, capsys):
    draw_nothing(monkeypatch)
    argv = [*EXACT, *flags.split(), *"--num_sets 3 --batch_size 10".split()]
    evaluate.main([*argv, "--outdir", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "modes found, of 10" in printed
    assert ("likely classes shown" in printed) == ("halves" in flags)
    result = json.loads((tmp_path / "metrics.json").read_text())
    assert 0 < result["coverage"]["mean"] <= 1 and 0 <= result["agreement"]["mean"] <= 1
    if "classes" not in flags:  # samples are pictures that are known
        assert result["nearest_in_class"]["mean"] < 1.0
    assert ("energy_score" in result) == ("halves" in flags)
    with np.load(tmp_path / "samples.npz") as file:
        assert file["samples"].shape == (3, 10, 32, 32)
