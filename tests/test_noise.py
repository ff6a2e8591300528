import itertools
import math

import numpy
import pytest
import torch
from scipy import stats

from diverse_sampling.coupling.antithetic import antithetic
from diverse_sampling.coupling.balanced import balanced_draw
from diverse_sampling.coupling.simplex import simplex
from diverse_sampling.coupling.stratified import leading_directions, stratified
from diverse_sampling.exact import posterior_mean
from diverse_sampling.guidance.rivals.group import Options, affordable, remaining
from diverse_sampling.noise import ParticleNoise, Stream, set_generator
from diverse_sampling.selection import THINNING, farthest, kmedoids, prune, thin
from diverse_sampling.steps import euler_schedule, integrate, karras_sigmas


@pytest.mark.parametrize(
    "sets, particles, chosen",
    [([3], range(3), (3, slice(3))), (range(5), [1], (slice(5), slice(1, 2))), ([2], [2, 0], None)],
    ids=["one set", "one particle", "in another order"],
)
def test_noise_of_a_particle_depends_on_its_set_and_number_alone(sets, particles, chosen):
    """Not on the sets or particles beside it, on their order, or on how many draws went before."""
    together = ParticleNoise(7, range(5), range(3), (1, 4, 4))
    some = ParticleNoise(7, sets, particles, (1, 4, 4))
    for _ in range(3):
        everyone, few = together(), some()
        expected = everyone[2, [2, 0]] if chosen is None else everyone[chosen]
        assert torch.equal(few.flatten(0, 1), expected.reshape(few.flatten(0, 1).shape))


def test_noise_of_all_particles_differs_and_is_standard_normal():
    draws = [
        ParticleNoise(seed, range(6), range(5), (1, 16, 16), stream=stream)
        for seed in range(2)
        for stream in (Stream.SAMPLING, Stream.PILOT)
    ]
    noise = torch.stack([draw() for draw in draws for _ in range(2)]).flatten(0, 2).flatten(1)
    assert noise.dtype == torch.float32 and noise.shape == (240, 256)
    correlation = noise.double().corrcoef() - torch.eye(240, dtype=torch.float64)
    # Of 28,680 pairs the largest is about 4.1 / sqrt(256) = 0.26 by chance.
    assert correlation.abs().max() < 0.4
    assert stats.kstest(noise.flatten().numpy(), "norm").pvalue > 1e-3


@pytest.mark.parametrize("seed", [0, 7, 2**32 - 1, 2**40 + 3, 2**70])
def test_a_particles_noise_is_that_of_numpys_generator_of_its_key(seed):
    stream = Stream.SAMPLING.turn(3)
    source = ParticleNoise(seed, [0, 5, 2**32 - 1], [1, 2], (1, 2, 2), stream=stream)
    keys = [[seed, stream, g, i] for g in (0, 5, 2**32 - 1) for i in (1, 2)]
    expected = [
        numpy.random.default_rng(key).standard_normal((1, 2, 2), dtype=numpy.float32)
        for key in keys
    ]
    assert (source().flatten(0, 1).numpy() == numpy.stack(expected)).all()


def test_streams_differ():
    """All streams, and what later draws for the same set take of them."""
    streams = [stream.turn(turn) for stream in Stream for turn in range(4)]
    draws = [
        torch.randn(8, generator=set_generator(seed, index, stream))
        for seed in range(3)
        for index in range(3)
        for stream in streams
    ]
    assert len({tuple(draw.tolist()) for draw in draws}) == len(draws) == 9 * 4 * len(Stream)
    assert all(stream.turn(0) == stream for stream in Stream)


# ---------------------------------------------------------------- coupled noise


def generators(sets: int) -> list[torch.Generator]:
    return [set_generator(0, g, Stream.QUANTILES) for g in range(sets)]


def axis_of(d: int) -> torch.Tensor:
    v = torch.randn(d, generator=torch.Generator().manual_seed(3))
    return v / v.norm()


@pytest.mark.parametrize("B", [2, 5, 8])
@pytest.mark.parametrize("coupling", ["antithetic", "simplex", "stratified"])
def test_every_particle_of_coupled_noise_is_standard_normal(coupling, B):
    """Coupling leaves marginals as they are: moments and a Kolmogorov-Smirnov test of each."""
    G = 20000
    d = 3
    noise = torch.randn(G, B, 1, 1, d, generator=torch.Generator().manual_seed(1))
    u = axis_of(d)
    if coupling == "stratified":
        out = stratified(noise, u.view(1, 1, 1, 1, d).expand(G, 1, 1, 1, d), generators(G))
    else:
        out = {"antithetic": antithetic, "simplex": simplex}[coupling](noise)
    assert out.shape == noise.shape
    for b in range(B):
        particle = out[:, b].flatten(1).double()
        assert particle.mean(0).abs().max() < 0.04
        assert (particle.T.cov() - torch.eye(d)).abs().max() < 0.05
        assert stats.kstest((particle @ u.double()).numpy(), "norm").pvalue > 1e-4


def test_simplex_particles_are_as_anticorrelated_as_they_can_be():
    out = simplex(torch.randn(4000, 5, 1, 4, 4, generator=torch.Generator().manual_seed(1)))
    correlation = (out[:, 0] * out[:, 1]).mean().item()
    assert correlation == pytest.approx(-1 / 4, abs=0.01)
    assert out.sum(1).abs().max() < 1e-4


def test_antithetic_pairs_cancel_and_an_odd_one_stays():
    noise = torch.randn(2, 5, 1, 2, 2)
    out = antithetic(noise)
    assert torch.equal(out[:, :2], -out[:, 2:4]) and torch.equal(out[:, 4], noise[:, 4])


def test_stratified_sets_hold_the_right_share_below_every_quantile():
    G = 50
    B = 10
    d = 6
    axis = axis_of(d)
    directions = axis.view(1, 1, 1, 1, d).expand(G, 1, 1, 1, d)
    noise = torch.randn(G, B, 1, 1, d, generator=torch.Generator().manual_seed(1))
    out = stratified(noise, directions, generators(G))
    component = (out.flatten(2) @ axis).numpy()
    for quantile, numbers in ((0.1, {1}), (0.33, {3, 4}), (0.7, {7})):
        below = (component < stats.norm.ppf(quantile)).sum(1)
        assert set(below) == numbers

    def across(x):
        """x (G, B, 1, 1, d) without its component along the axis."""
        return x - (x @ axis)[..., None] * axis

    torch.testing.assert_close(across(out), across(noise), atol=1e-5, rtol=0)


def test_leading_direction_of_two_answers_is_the_line_between_them():
    images = torch.rand(3, 2, 1, 4, 4, generator=torch.Generator().manual_seed(2))
    denoise = lambda x, sigma: posterior_mean(x, sigma, images)
    v = leading_directions(denoise, torch.tensor(10.0), (1, 4, 4), 1, generators(3))
    line = torch.nn.functional.normalize((images[:, 0] - images[:, 1]).flatten(1), dim=1)
    cosine = (v[:, 0].flatten(1) * line).sum(1)
    torch.testing.assert_close(cosine.abs(), torch.ones(3), atol=1e-4, rtol=0)


# ---------------------------------------------------------------- selection


def three_clusters(G: int) -> torch.Tensor:
    """Sets (G, 12, 1, 2) of four points around each of three centres, which take turns."""
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    near = 0.1 * torch.randn(G, 12, 2, generator=torch.Generator().manual_seed(0))
    return (centres.repeat(4, 1) + near)[:, :, None]


def test_kmedoids_keeps_one_of_each_cluster():
    assert sorted((kmedoids(three_clusters(1), 3)[0] % 3).tolist()) == [0, 1, 2]


def test_as_many_are_kept_as_asked_for_even_of_copies():
    assert kmedoids(torch.zeros(2, 6, 1, 2), 4).shape == (2, 4)
    assert kmedoids(torch.randn(2, 6, 1, 2), 1).shape == (2, 1)


def test_a_pool_that_is_thinned_has_every_answer():
    answers = torch.tensor([[8.0, 1.0], [8.0, -1.0], [-8.0, 1.0], [-8.0, -1.0]]).view(4, 1, 1, 2)
    called = []

    def denoise(x, sigma):
        called.append((float(sigma), x.shape[1]))
        return posterior_mean(x, sigma, answers.expand(len(x), -1, -1, -1, -1))

    x = 80 * torch.randn(20, 60, 1, 1, 2, generator=torch.Generator().manual_seed(0))
    kept = thin(denoise, x, 80.0, 0.2, 4)
    assert kept.shape == (20, 4, 1, 1, 2)
    assert [size for _, size in called] == THINNING * [60]
    assert called[0][0] == pytest.approx(80) and called[-1][0] == pytest.approx(0.2)
    shown = denoise(kept, torch.tensor(0.2)).round().flatten(2)
    assert all(len(each.unique(dim=0)) == 4 for each in shown)


def test_the_farthest_samples_are_those_of_all_subsets_in_any_order():
    """Up to exchanges: never better than the best subset, which they nearly always are."""
    x = torch.rand(40, 9, 1, 3, generator=torch.Generator().manual_seed(0)).double() * 2 - 1
    unit = torch.nn.functional.normalize((x[:, :, 0] + 1) / 2, dim=-1)
    apart = 1 - unit @ unit.transpose(1, 2)

    def total(sets):  # (G, keep) -> (G,)
        G = torch.arange(len(apart))[:, None, None]
        return apart[G, sets[:, :, None], sets[:, None]].sum((1, 2)) / 2

    for keep in (1, 2, 4, 9):
        chosen = farthest(x, keep)
        subsets = torch.tensor(list(itertools.combinations(range(9), keep)))
        best = torch.stack([total(each.expand(40, -1)) for each in subsets]).amax(0)
        reached = total(chosen) >= best - 1e-9
        assert (total(chosen) <= best + 1e-9).all() and reached.double().mean() > 0.9
        order = torch.randperm(9, generator=torch.Generator().manual_seed(keep))
        torch.testing.assert_close(total(order[farthest(x[:, order], keep)]), total(chosen))


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.85, 0.99])
@pytest.mark.parametrize("steps", [2, 3, 8, 21, 40])
def test_pruned_candidates_cost_no_more_calls_than_the_samples(steps, keep):
    for particles in (1, 3, 8):
        sizes = affordable(Options(keep), particles, steps)
        cost = lambda sizes: sum(sizes) - particles * len(sizes)
        assert sizes and len(sizes) < steps and cost(sizes) <= steps * particles
        assert all(a > b for a, b in zip(sizes, [*sizes[1:], particles]))
        for a, b in zip(sizes, sizes[1:]):
            assert b == min(math.ceil(keep * a), a - 1)
        more = remaining(sizes[0] + 1, particles, keep)
        assert cost(more) > steps * particles or len(more) >= steps


def test_a_set_that_is_pruned_has_every_answer_and_each_candidate_its_own_path():
    answers = (2 * torch.eye(3) - 1).view(3, 1, 1, 3)
    called = []

    def denoise(x, sigma):
        called.append(x.shape[1])
        return posterior_mean(x, sigma, answers.expand(len(x), -1, -1, -1, -1))

    x = 20 * torch.randn(20, 24, 1, 1, 3, generator=torch.Generator().manual_seed(0))
    schedule = euler_schedule(karras_sigmas(12, 0.05, 20.0))
    sizes = [20, 16, 12, 8, 6, 5, 4, 3]
    kept = prune(denoise, x, schedule, sizes)
    assert called == [24, *sizes[:-1]]
    alone = integrate(denoise, x, schedule.part(0, len(sizes)))
    assert (torch.cdist(kept.flatten(2), alone.flatten(2)).amin(-1) < 1e-5).all()
    ended = integrate(denoise, kept, schedule.part(len(sizes), 12)).flatten(2)
    modes = torch.cdist(ended, answers.flatten(1).expand(20, -1, -1)).argmin(-1)
    assert numpy.mean([len(each.unique()) for each in modes]) > 2.8


def test_a_balanced_draw_takes_one_of_each_of_equal_groups():
    drawn = balanced_draw(three_clusters(300), 3, generators(300))
    assert ((drawn % 3).sort(1).values == torch.arange(3)).all()
    # Every candidate as often as any other, at every place of a set.
    for place in drawn.unbind(1):
        assert place.bincount(minlength=12).min() > 300 / 12 / 3


def test_a_balanced_draw_of_one_candidate_each_keeps_all():
    drawn = balanced_draw(torch.randn(4, 5, 1, 3), 5, generators(4))
    assert (drawn.sort(1).values == torch.arange(5)).all()
