"""The optimum of particle guidance: the modes of a set given its composition, and its samples."""

import itertools

import pytest
import torch
from scipy import stats

import evaluate
from diverse_sampling.guidance import joint, joint_weights
from lab import assemble

EXACT = "--denoiser exact --guidance joint --digits embedded --device cpu".split()


# ---------------------------------------------------------------- up to ten modes: all assignments


def by_brute_force(log_posteriors, makes_it):
    """Q (B, k) of one set, by those of all k^B assignments that make the composition."""
    B, k = log_posteriors.shape
    w = log_posteriors.softmax(-1)
    q = torch.zeros_like(w)
    for modes in itertools.product(range(k), repeat=B):
        if makes_it(modes):
            weight = torch.stack([w[i, m] for i, m in enumerate(modes)]).prod()
            for i, m in enumerate(modes):
                q[i, m] += weight
    return q / q.sum(-1, keepdim=True)


def random_logits(sets, B, k, scale=3.0):
    generator = torch.Generator().manual_seed(B + 100 * k)
    return scale * torch.randn(sets, B, k, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("B, k", [(1, 3), (2, 2), (3, 3), (3, 5), (4, 3), (5, 2), (3, 1)])
def test_the_weights_are_those_of_all_assignments(B, k):
    logits = random_logits(4, B, k)

    def as_diverse_as_can_be(modes):
        return len(set(modes)) == min(B, k)

    expected = torch.stack([by_brute_force(each, as_diverse_as_can_be) for each in logits])
    torch.testing.assert_close(joint_weights(logits), expected)
    torch.testing.assert_close(joint_weights(logits + 7), expected)  # up to a constant


COUNTS = [[[2, 2, 0], [1, 0, 3]], [[1, 1, 2], [4, 0, 0]], [[0, 0, 0, 4], [1, 1, 1, 1]]]


@pytest.mark.parametrize("counts", COUNTS, ids=str)
def test_weights_given_counts_are_those_of_all_assignments(counts):
    """Each set has its own."""
    counts = torch.tensor(counts)
    k = counts.shape[1]
    logits = random_logits(2, 4, k)
    expected = [
        by_brute_force(each, lambda modes: [modes.count(m) for m in range(k)] == asked.tolist())
        for each, asked in zip(logits, counts)
    ]
    weights = joint_weights(logits, counts)
    torch.testing.assert_close(weights, torch.stack(expected))
    torch.testing.assert_close(weights.sum(1), counts.double())


@pytest.mark.parametrize("B", [2, 3, 5])
def test_weights_given_wanted_modes_are_those_of_all_assignments(B):
    """Sets that want two modes, one, and none: then each particle is by itself."""
    wanted = torch.tensor([[True, False, True, False], [False, True, False, False], 4 * [False]])
    logits = random_logits(3, B, 4)
    expected = [
        by_brute_force(each, lambda modes: set(asked.nonzero()[:, 0].tolist()) <= set(modes))
        for each, asked in zip(logits, wanted)
    ]
    weights = joint_weights(logits, wanted=wanted)
    torch.testing.assert_close(weights, torch.stack(expected))
    torch.testing.assert_close(weights[2], logits[2].softmax(-1))


@pytest.mark.parametrize("counts", [[2, 2], [4, -1], [0, 0]])
def test_counts_that_are_not_one_per_particle_are_refused(counts):
    with pytest.raises(ValueError, match="^counts: got .* in all; accepted: 3, one per particle$"):
        joint_weights(torch.zeros(1, 3, 2), torch.tensor([counts]))


def test_more_wanted_modes_than_particles_are_refused():
    wanted = torch.ones(1, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match="^wanted: got 4 modes; accepted: at most 3, one for"):
        joint_weights(torch.zeros(1, 3, 4), wanted=wanted)


def test_a_decided_set_stays_and_particles_that_want_the_same_mode_share_it_evenly():
    """At the smallest noise level too, where all other assignments weigh e^-1e6 or less."""
    decided = 1e6 * torch.eye(4, dtype=torch.float64)[[2, 0, 3]]
    torch.testing.assert_close(joint_weights(decided[None])[0], decided.softmax(-1))
    logits = torch.tensor([[[0.0, -1e6, -3e6], [0.0, -1e6, -3e6]]], dtype=torch.float64)
    half = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64)
    torch.testing.assert_close(joint_weights(logits), half.expand(1, 2, 3))


def test_a_mode_that_cannot_be_does_not_count():
    logits = torch.randn(3, 4, 3, dtype=torch.float64)
    wider = torch.cat([logits, torch.full((3, 4, 1), -torch.inf)], -1)
    weights = joint_weights(wider)
    torch.testing.assert_close(weights[:, :, :3], joint_weights(logits))
    assert not weights[:, :, 3].any()


# ---------------------------------------------------------------- more: belief propagation


def both_ways(logits, monkeypatch, **composition):
    """Q by all assignments, and as it is for more modes and particles than those allow."""
    exact = joint_weights(logits, **composition)
    monkeypatch.setattr(joint, "MOST_EXACT", 0)
    return exact, joint_weights(logits, **composition)


SETS_OF = [(8, 8), (5, 9), (9, 5)]
# Standard deviation of log posteriors -> the largest mean total variation from all assignments.
# In between many assignments are about as likely as the best one, and propagation favours few.
DEVIATION = {0.1: 0.002, 1.0: 0.02, 3.0: 0.1, 10.0: 0.1, 300.0: 0.02}


@pytest.mark.parametrize("scale", DEVIATION)
@pytest.mark.parametrize("B, k", SETS_OF)
def test_propagation_agrees_with_all_assignments(B, k, scale, monkeypatch):
    """Of soft posteriors, and of those near one-to-one; in the middle it is a little sharper."""
    exact, found = both_ways(random_logits(20, B, k, scale), monkeypatch)
    torch.testing.assert_close(found.sum(-1), torch.ones(20, B, dtype=torch.float64))
    assert (exact - found).abs().sum(-1).mean() / 2 < DEVIATION[scale]


@pytest.mark.parametrize("scale", [0.1, 1.0])
def test_propagation_keeps_counts_and_wanted_modes(scale, monkeypatch):
    counts = torch.tensor([[5, 0, 3, 1], [2, 3, 2, 2]]).repeat(5, 1)
    logits = random_logits(10, 9, 4, scale)
    exact, found = both_ways(logits, monkeypatch, counts=counts)
    assert (exact - found).abs().max() < 0.1 * scale
    torch.testing.assert_close(found.sum(1), counts.double(), atol=0.02, rtol=0)
    assert not found[::2, :, 1].any()
    monkeypatch.undo()
    wanted = counts > 2
    exact, found = both_ways(logits, monkeypatch, wanted=wanted)
    assert (exact - found).abs().max() < 0.05 * scale


def test_columns_of_many_modes_are_within_their_bounds():
    """Modes hold one particle, one at most, one at least, and as many as were asked for."""
    for B, k in ((12, 12), (12, 30)):
        columns = joint_weights(random_logits(5, B, k, 2.0)).sum(1)
        assert columns.max() < 1.02 and (B < k or columns.min() > 0.98)
    columns = joint_weights(random_logits(5, 40, 12, 2.0)).sum(1)
    assert columns.min() > 0.99 and columns.max() > 2
    counts = torch.tensor([[20, 0, 15, 5]])
    columns = joint_weights(random_logits(1, 40, 4, 2.0), counts).sum(1)
    torch.testing.assert_close(columns, counts.double(), atol=0.1, rtol=0)


@pytest.mark.parametrize("particles", [12, 5])
def test_many_modes_that_are_decided_stay(particles):
    """At the smallest noise level; and who wants a mode that is taken shares what is next."""
    places = torch.randperm(12, generator=torch.Generator().manual_seed(0))[:particles]
    decided = 1e6 * torch.eye(12, dtype=torch.float64)[places]
    assert torch.equal(joint_weights(decided[None])[0], decided.softmax(-1))
    decided[1] = decided[0]
    weights = joint_weights(decided[None])[0]
    torch.testing.assert_close(
        weights[:2, places[0]], torch.full((2,), 0.5).double(), atol=1e-3, rtol=0
    )
    torch.testing.assert_close(weights[2:], decided[2:].softmax(-1))


def test_many_modes_and_a_single_particle():
    logits = random_logits(3, 1, 12)
    torch.testing.assert_close(joint_weights(logits), logits.softmax(-1))
    one = torch.arange(12)[None] == torch.tensor([[4], [0], [7]])
    assert (joint_weights(logits, wanted=one)[:, 0][one] > 1 - 1e-6).all()
    torch.testing.assert_close(joint_weights(logits, one.long())[:, 0], one.double())


@pytest.mark.parametrize("sampler", ["edm", "window"])
def test_all_of_64_modes_are_found_for_15_calls(sampler):
    flags = f"--num_digits 2 --batch_size 64 --num_sets 4 --num_steps 8 --sampler {sampler}"
    _, _, result = assemble.evaluation([*EXACT, *flags.split()]).run(False)
    assert result["modes_found"]["per_set"] == [64] * 4
    assert result["network_calls"] == 15 and result["quality"]["mean"] < 1e-3


# ---------------------------------------------------------------- sets

WORLDS = (
    "",
    "--p 0.5",
    "--num_directions 2 --batch_size 5 --p 0.7",
    "--dataset mixture --batch_size 4",
    "--dataset horizontal --batch_size 2 --p 0.9",
)


@pytest.mark.parametrize("world", WORLDS)
def test_every_set_is_as_diverse_as_it_can_be_for_few_calls(world):
    few = "--num_sets 12 --num_steps 8"
    _, _, result = assemble.evaluation([*EXACT, *few.split(), *world.split()]).run(False)
    most = min(result["batch_size"], result["modes_total"])
    assert result["modes_found"]["per_set"] == [most] * 12
    assert result["network_calls"] == 15 and result["backward_calls"] == 0


@pytest.mark.parametrize("world", ["--num_directions 4 --p 0.5", "--num_directions 2 --p 0.9"])
def test_frequencies_shift_as_computed(world):
    """Those of noise whose level hides everything: the weights of the priors themselves."""
    few_steps = "--num_sets 150 --num_steps 8 --batch_size 3"
    _, _, result = assemble.evaluation([*EXACT, *few_steps.split(), *world.split()]).run(False)
    pairs = [(mode["mean"], mode["prior"]) for mode in result["mode_frequencies"]]
    found, priors = torch.tensor(pairs, dtype=torch.float64).T
    B = result["batch_size"]
    shifted = joint_weights(priors.log().expand(1, B, -1))[0, 0]
    assert (shifted - priors).abs().max() > 0.05
    # The particles of a set repel, so that counts vary less than independent ones: the test is lax.
    assert stats.chisquare(150 * B * found, 150 * B * shifted).pvalue > 1e-3
    assert stats.chisquare(150 * B * found, 150 * B * priors).pvalue < 1e-3


UNKNOWN = {
    "--denoiser trained": "guidance: got 'joint'; accepted: any other, or",
    "--sequential 2": "sequential: got 2; accepted: 1 with guidance joint",
}


@pytest.mark.parametrize("flags", UNKNOWN)
def test_where_the_optimum_is_not_known_one_line_says_so(flags, refused):
    assert UNKNOWN[flags] in refused(evaluate.main, [*EXACT, *flags.split()])
