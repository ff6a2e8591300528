"""Guidance by classes: what it makes of posteriors, and the compositions that somebody asks for."""

import pytest
import torch

import evaluate
from diverse_sampling.decisions import Decisions
from diverse_sampling.errors import SettingError
from diverse_sampling.exact import Bank, posterior_mean
from diverse_sampling.guidance import joint_weights
from diverse_sampling.guidance.classes import (
    ClassGuidance,
    asked_counts,
    composition_of,
    drawn_counts,
)
from diverse_sampling.noise import evenly
from lab import assemble

EXACT = "--denoiser exact --guidance classes --digits embedded --device cpu".split()
NAMES = ["cat", "dog", "3", "a:b"]
SIGMA = torch.tensor(0.7, dtype=torch.float64)


def pictures(M=12, colours=2, side=3):
    """Pictures of three classes, in no order, the margin alike in all: images, labels."""
    generator = torch.Generator().manual_seed(0)
    images = 2 * torch.rand(M, colours, side, side, generator=generator, dtype=torch.float64) - 1
    images[:, :, 0] = -1
    return images, torch.tensor([2, 0, 1, 0] * (M // 4))


def noisy(G=2, B=4, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(G, B, 2, 3, 3, generator=generator, dtype=torch.float64)


def priors(G=2, M=12):
    generator = torch.Generator().manual_seed(2)
    return torch.randn(G, M, generator=generator, dtype=torch.float64).log_softmax(-1)


# ---------------------------------------------------------------- exact posteriors of pictures


@pytest.mark.parametrize("log_prior", [None, priors()], ids=["equal", "of each set"])
def test_a_bank_is_the_posterior_mean_over_all_its_pictures(log_prior):
    images, labels = pictures()
    bank = Bank(images, labels, 3, log_prior)
    expected = posterior_mean(noisy(), SIGMA, images.expand(2, -1, -1, -1, -1), log_prior)
    torch.testing.assert_close(bank.denoiser()(noisy(), SIGMA), expected)
    posteriors = bank.denoiser(lambda log_p: log_p.exp())  # of the classes: nothing is changed
    torch.testing.assert_close(posteriors(noisy(), SIGMA), expected)


def test_the_gradient_of_a_posterior_is_the_mean_of_the_class_less_that_of_all():
    """grad log p(c | x) = (E[y | x, c] - E[y | x]) / s^2; a class of no picture cannot be."""
    images, labels = pictures()
    bank = Bank(images, labels, 4, priors())
    x = noisy().requires_grad_()
    log_p = bank.log_posterior(x, SIGMA)
    assert log_p.shape == (2, 4, 4) and log_p[..., 3].isneginf().all()
    torch.testing.assert_close(log_p.exp().sum(-1), torch.ones(2, 4, dtype=torch.float64))
    mean = bank.denoiser()(x, SIGMA)
    for c in range(3):
        of_class = posterior_mean(
            x, SIGMA, images[labels == c].expand(2, -1, -1, -1, -1), priors()[:, labels == c]
        )
        (grad,) = torch.autograd.grad(log_p[..., c].sum(), x, retain_graph=True)
        torch.testing.assert_close(grad, (of_class - mean) / SIGMA**2)


# ---------------------------------------------------------------- the guided denoiser

ASKED = {
    "all": {},
    "counts": dict(counts=torch.tensor([1, 3, 0])),
    "counts of each set": dict(counts=torch.tensor([[1, 3, 0], [2, 0, 2]])),
    "wanted": dict(wanted=torch.tensor([[True, False, True], [False, False, True]])),
}


@pytest.mark.parametrize("asked", ASKED)
def test_with_exact_posteriors_and_factor_1_it_is_the_exact_joint_denoiser(asked):
    bank = Bank(*pictures(), 3, priors())
    guided = ClassGuidance(bank.denoiser(), bank.log_posterior, factor=1.0, **ASKED[asked])

    def weights(log_p):
        composition = dict(ASKED[asked])
        if "counts" in composition:
            composition["counts"] = composition["counts"].expand(2, -1)
        return joint_weights(log_p, **composition)

    joint = bank.denoiser(weights)(noisy(), SIGMA)
    assert (joint - bank.denoiser()(noisy(), SIGMA)).abs().max() > 0.01
    torch.testing.assert_close(guided(noisy(), SIGMA), joint)


def test_with_targets_each_particle_is_guided_to_its_own_class():
    """Whatever the others show: the mean of its class, from exact posteriors and factor 1."""
    images, labels = pictures()
    bank = Bank(images, labels, 3)
    targets = torch.tensor([[0, 0, 2, 1], [1, 1, 1, 1]])
    guided = ClassGuidance(bank.denoiser(), bank.log_posterior, targets=targets, factor=1.0)
    found = guided(noisy(), SIGMA)
    for g, b in ((0, 0), (0, 2), (0, 3), (1, 1)):
        of_class = images[labels == targets[g, b]][None]
        alone = noisy()[g : g + 1, b : b + 1]
        torch.testing.assert_close(found[g, b], posterior_mean(alone, SIGMA, of_class)[0, 0])
    others = noisy(seed=5)
    others[:, 0] = noisy()[:, 0]
    torch.testing.assert_close(guided(others, SIGMA)[:, 0], found[:, 0])


def test_a_classifier_of_clean_images_is_asked_of_d():
    """Its gradient there, times the variance that is undecided; none of it goes through D."""
    decisions = Decisions([10.0, 1.0, 0.1], [0.0, 0.4, 1.0], variance=3.0)
    bank = Bank(*pictures(), 3)
    denoised = bank.denoiser()(noisy(), SIGMA).requires_grad_()
    scorer = torch.randn(18, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def log_posterior(y, sigma):
        return (y.flatten(2) @ scorer).log_softmax(-1)

    log_p = log_posterior(denoised, SIGMA)
    objective = (joint_weights(log_p.detach()) * log_p).sum()
    (grad,) = torch.autograd.grad(objective, denoised)
    undecided = 3.0 * (1 - decisions.share(0.7))

    def moves(factor):
        guided = ClassGuidance(bank.denoiser(), log_posterior, factor=factor, decisions=decisions)
        return guided(noisy().requires_grad_(), SIGMA) - denoised.detach()

    torch.testing.assert_close(moves(1e-4) / 1e-4, undecided * grad, rtol=1e-5, atol=1e-6)
    # However strong: in the same direction, by 4 standard deviations at most.
    far = moves(1e3).flatten(2)
    assert (far.norm(dim=-1) <= 4.001 * undecided**0.5).all()
    cosine = torch.cosine_similarity(far, grad.flatten(2), dim=-1)
    torch.testing.assert_close(cosine, torch.ones(2, 4).double())


def test_no_strength_changes_no_bit_and_asks_nobody():
    bank = Bank(*pictures(), 3)
    guided = ClassGuidance(bank.denoiser(), None, factor=0.0)
    assert torch.equal(guided(noisy(), SIGMA), bank.denoiser()(noisy(), SIGMA))
    outside = ClassGuidance(bank.denoiser(), None, sigma_max=0.5)
    assert torch.equal(outside(noisy(), SIGMA), bank.denoiser()(noisy(), SIGMA))


def test_counts_of_another_number_of_particles_are_refused():
    bank = Bank(*pictures(), 3)
    guided = ClassGuidance(bank.denoiser(), bank.log_posterior, counts=torch.tensor([1, 1, 1]))
    with pytest.raises(ValueError, match=r"^counts: got \[3, 3\] in all; accepted: 4, one per"):
        guided(noisy(), SIGMA)


# ---------------------------------------------------------------- what somebody asks for


@pytest.mark.parametrize("text", ["all", "independent"])
def test_no_composition(text):
    assert composition_of(text, NAMES, 4) is None
    assert asked_counts(text, NAMES, 4, torch.rand(3)) is None


@pytest.mark.parametrize(
    "text, expected",
    [
        ("cat:3,dog:1", [3, 1, 0, 0]),
        ("3:4", [0, 0, 4, 0]),
        (" a:b:1 , cat:3 ", [3, 0, 0, 1]),
        ("dog:4.0", [0, 4, 0, 0]),
    ],
)
def test_numbers_are_counts(text, expected):
    found = composition_of(text, NAMES, 4)
    assert found.dtype == torch.int64 and found.tolist() == expected
    assert asked_counts(text, NAMES, 4, torch.rand(3)).tolist() == [expected] * 3


def test_percentages_are_shares():
    found = composition_of("3:62.5%,cat:37.5%", NAMES, 4)
    assert found.dtype == torch.float64 and found.tolist() == [0.375, 0, 0.625, 0]


@pytest.mark.parametrize(
    "text, accepted",
    [
        ("", "all, independent, numbers such as cat:4, or shares such as cat:100%"),
        ("cat", "all, independent, numbers such as"),
        ("cat:2,", "all, independent, numbers such as"),
        ("cat:-4", "all, independent, numbers such as"),
        ("cat:2,dog:50%", "all, independent, numbers such as"),
        ("ALL", "all, independent, numbers such as"),
        ("bird:4", "each of the classes cat, dog, 3, a:b once"),
        ("cat:2,cat:2", "each of the classes cat, dog, 3, a:b once"),
        ("cat:0,cat:4", "each of the classes cat, dog, 3, a:b once"),
        ("cat:3", "whole numbers of batch_size = 4 particles in all"),
        ("cat:2.5,dog:1.5", "whole numbers of batch_size = 4 particles in all"),
        ("cat:50%,dog:49%", "shares of 100% in all; these are 99%"),
    ],
)
def test_other_texts_are_refused(text, accepted):
    with pytest.raises(SettingError) as error:
        composition_of(text, NAMES, 4)
    assert str(error.value).startswith(f"classes: got {text!r}; accepted: {accepted}")
    assert "\n" not in str(error.value)


SHARES = [[0.7, 0.3], [0.005, 0.5, 0.245, 0.25], [0.1] * 10, [0.0, 1.0, 0.0]]


@pytest.mark.parametrize("seed", [0, 1, 7])
@pytest.mark.parametrize("shares", SHARES, ids=str)
def test_shares_hold_in_the_mean_and_each_set_is_within_one(shares, seed):
    """Over 40 sets of 10, whichever 40 of a run they are."""
    shares = torch.tensor(shares, dtype=torch.float64)
    for first in (0, 1000):
        counts = drawn_counts(shares, 10, evenly(seed, torch.arange(first, first + 40)))
        assert counts.dtype == torch.int64 and (counts.sum(1) == 10).all()
        assert ((counts - 10 * shares).abs() < 1).all()
        assert (counts.double().mean(0) / 10 - shares).abs().max() < 0.01


def test_counts_follow_from_the_seed_and_the_number_of_the_set_alone():
    text = "cat:35%,dog:25%,3:40%"
    sets = torch.tensor([3, 0, 8])
    all_of_them = asked_counts(text, NAMES, 5, evenly(4, torch.arange(10)))
    assert torch.equal(asked_counts(text, NAMES, 5, evenly(4, sets)), all_of_them[sets])
    other_seed = asked_counts(text, NAMES, 5, evenly(5, torch.arange(10)))
    assert not torch.equal(all_of_them, other_seed)


# ---------------------------------------------------------------- sets


def sampled(flags):
    """The modes (G, B) and the record of sets with guidance by classes."""
    return assemble.evaluation([*EXACT, *flags.split()]).run(False)[1:]


@pytest.mark.parametrize("factor", [1, 8])
def test_the_exact_answers_of_a_rule_tell_the_classes(factor):
    _, result = sampled(f"--num_sets 6 --num_steps 8 --class_factor {factor}")
    assert result["modes_found"]["per_set"] == [8] * 6 and result["quality"]["mean"] < 1e-3
    assert result["network_calls"] == 15 and result["backward_calls"] == 0


def test_sets_have_the_directions_that_were_asked_for():
    modes, result = sampled("--num_sets 6 --num_steps 8 --classes 3:5,0:3")
    assert (modes.sort().values == torch.tensor([0] * 3 + [3] * 5)).all()
    assert result["composition_met"]["mean"] == 1 and result["shares_error"] == 0
    modes, result = sampled("--num_sets 40 --num_steps 6 --classes 3:70%,0:30%")
    assert result["composition_met"]["mean"] == 1 and set(modes.unique().tolist()) == {0, 3}
    assert (modes == 3).double().mean().item() == pytest.approx(0.7, abs=0.01)


def test_independent_targets_find_as_many_directions_as_independent_draws():
    """The control: one of 8 classes for each of 8 particles by itself, 5.25 of them in the mean."""
    modes, result = sampled("--num_sets 100 --num_steps 6 --classes independent --class_factor 1")
    expected = 8 * (1 - (7 / 8) ** 8)
    # The number found has a standard deviation of 0.85; this is four standard errors.
    assert result["modes_found"]["mean"] == pytest.approx(expected, abs=4 * 0.85 / 100**0.5)


REFUSED = {
    "--classes 3:9": "classes: got '3:9'; accepted: whole numbers of batch_size = 8 particles",
    "--classes 8:8": "classes: got '8:8'; accepted: each of the classes 0, 1, 2, 3, 4, 5, 6, 7",
    "--class_factor -1": "class_factor: got -1.0; accepted: a number >= 0",
    "--classifier x": "classifier: got 'x'; accepted: null in a world whose rule tells",
    "--dataset mixture": "guidance: got 'classes'; accepted: any other in a world without classes",
    "--sequential 2": "sequential: got 2; accepted: 1 with guidance classes",
}


@pytest.mark.parametrize("flags", REFUSED)
def test_what_cannot_be_asked_for_is_refused(flags, refused):
    assert REFUSED[flags] in refused(evaluate.main, [*EXACT, *flags.split()])
