"""The exact joint denoiser: against all assignments, and in worlds whose modes are known."""

import itertools

import pytest
import torch
from scipy import stats

import evaluate
from diverse_sampling.guidance import joint_weights
from lab import assemble

EXACT = "--denoiser exact --guidance joint --digits embedded --device cpu".split()


def by_brute_force(log_posteriors):
    """Q (B, k) of one set, by all k^B assignments."""
    B, k = log_posteriors.shape
    w = log_posteriors.softmax(-1)
    q = torch.zeros_like(w)
    for modes in itertools.product(range(k), repeat=B):
        if len(set(modes)) == min(B, k):
            weight = torch.stack([w[i, m] for i, m in enumerate(modes)]).prod()
            for i, m in enumerate(modes):
                q[i, m] += weight
    return q / q.sum(-1, keepdim=True)


@pytest.mark.parametrize("B, k", [(1, 3), (2, 2), (3, 3), (3, 5), (4, 3), (5, 2), (3, 1)])
def test_the_weights_are_those_of_all_assignments(B, k):
    generator = torch.Generator().manual_seed(B)
    logits = 3 * torch.randn(4, B, k, generator=generator, dtype=torch.float64)
    expected = torch.stack([by_brute_force(each) for each in logits])
    torch.testing.assert_close(joint_weights(logits), expected)
    torch.testing.assert_close(joint_weights(logits + 7), expected)  # up to a constant


def test_one_particle_is_left_alone_and_a_decided_set_stays():
    logits = torch.randn(2, 1, 4, dtype=torch.float64)
    torch.testing.assert_close(joint_weights(logits), logits.softmax(-1))
    decided = 1e6 * torch.eye(4, dtype=torch.float64)[[2, 0, 3]]
    torch.testing.assert_close(joint_weights(decided[None])[0], decided.softmax(-1))


def test_particles_that_want_the_same_mode_share_it_evenly():
    """At the smallest noise level too, where all other assignments weigh e^-1e6 or less."""
    logits = torch.tensor([[[0.0, -1e6, -3e6], [0.0, -1e6, -3e6]]], dtype=torch.float64)
    half = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64)
    torch.testing.assert_close(joint_weights(logits), half.expand(1, 2, 3))


def test_a_mode_that_cannot_be_does_not_count():
    logits = torch.randn(3, 4, 3, dtype=torch.float64)
    wider = torch.cat([logits, torch.full((3, 4, 1), -torch.inf)], -1)
    weights = joint_weights(wider)
    torch.testing.assert_close(weights[:, :, :3], joint_weights(logits))
    assert not weights[:, :, 3].any()


def test_too_many_modes_are_refused():
    with pytest.raises(ValueError, match="^modes: got 11; accepted: at most 10$"):
        joint_weights(torch.zeros(1, 2, 11))


def frequencies(result):
    """(how often each mode was found among all particles, the priors)."""
    modes = result["mode_frequencies"]
    pairs = [(m["mean"], m["prior"]) for m in modes]
    return torch.tensor(pairs, dtype=torch.float64).T


@pytest.mark.parametrize(
    "world, calls",
    [
        ("--num_steps 8", 15),
        ("--num_steps 8 --p 0.5", 15),
        ("--num_steps 8 --num_directions 2 --batch_size 5 --p 0.7", 15),
        ("--num_steps 8 --dataset mixture --batch_size 4", 15),
        ("--num_steps 8 --dataset horizontal --batch_size 2 --p 0.9", 15),
    ],
)
def test_every_set_is_as_diverse_as_it_can_be_for_few_calls(world, calls):
    _, _, result = assemble.evaluation([*EXACT, "--num_sets", "12", *world.split()]).run(False)
    most = min(result["batch_size"], result["modes_total"])
    assert result["modes_found"]["per_set"] == [most] * 12
    assert result["network_calls"] == calls and result["backward_calls"] == 0


@pytest.mark.parametrize(
    "world",
    [
        "--num_directions 4 --batch_size 3 --p 0.5",
        "--num_directions 2 --batch_size 3 --p 0.9",
    ],
)
def test_frequencies_shift_as_computed(world):
    """Those of noise whose level hides everything: the weights of the priors themselves."""
    few_steps = ["--num_sets", "150", "--num_steps", "8"]
    _, _, result = assemble.evaluation([*EXACT, *few_steps, *world.split()]).run(False)
    found, priors = frequencies(result)
    B = result["batch_size"]
    shifted = joint_weights(priors.log().expand(1, B, -1))[0, 0]
    assert (shifted - priors).abs().max() > 0.05
    # The particles of a set repel, so that counts vary less than independent ones: the test is lax.
    assert stats.chisquare(150 * B * found, 150 * B * shifted).pvalue > 1e-3
    assert stats.chisquare(150 * B * found, 150 * B * priors).pvalue < 1e-3


@pytest.mark.parametrize(
    "flags, line",
    [
        ("--guidance joint --digits embedded", "guidance: got 'joint'; accepted: any other, or"),
        (
            "--guidance joint --digits embedded --denoiser exact --num_digits 2",
            "guidance: got 'joint'; accepted: any other in a world of more than 10 answers",
        ),
        (
            "--guidance joint --digits embedded --denoiser exact --sequential 2",
            "sequential: got 2; accepted: 1 with guidance joint",
        ),
    ],
    ids=["trained", "64 modes", "memory"],
)
def test_where_the_optimum_is_not_known_one_line_says_so(flags, line, refused):
    assert line in refused(evaluate.main, flags.split())
