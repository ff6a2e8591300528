import math

import pytest
import torch
from scipy import stats

from metrics import iou
from model import posterior_mean
from noise import antithetic, leading_directions, set_generator, simplex, stratified
from selection import kmedoids, redraw_faulty


def streams(n: int) -> list[torch.Generator]:
    return [set_generator(0, g, stream=9) for g in range(n)]


def axis_of(d: int) -> torch.Tensor:
    v = torch.randn(d, generator=torch.Generator().manual_seed(3))
    return v / v.norm()


@pytest.mark.parametrize("B", [2, 5, 8])
@pytest.mark.parametrize("coupling", ["antithetic", "simplex", "stratified"])
def test_every_particle_of_coupled_noise_is_standard_normal(coupling, B):
    """The promise of coupled noise: the marginals do not change. 20,000 sets, moments and a KS test."""
    G, d = 20000, 3
    noise = torch.randn(G, B, 1, 1, d, generator=torch.Generator().manual_seed(1))
    u = axis_of(d)
    if coupling == "stratified":
        out = stratified(noise, u.view(1, 1, 1, 1, d).expand(G, 1, 1, 1, d), streams(G))
    else:
        out = {"antithetic": antithetic, "simplex": simplex}[coupling](noise)
    assert out.shape == noise.shape
    for b in range(B):
        particle = out[:, b].flatten(1).double()
        torch.testing.assert_close(
            particle.mean(0), torch.zeros(d, dtype=torch.float64), atol=0.04, rtol=0
        )
        torch.testing.assert_close(
            particle.T.cov(), torch.eye(d, dtype=torch.float64), atol=0.05, rtol=0
        )
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
    G, B, d = 50, 10, 6
    u = axis_of(d).view(1, 1, 1, 1, d).expand(G, 1, 1, 1, d)
    noise = torch.randn(G, B, 1, 1, d, generator=torch.Generator().manual_seed(1))
    out = stratified(noise, u, streams(G))
    component = (out.flatten(2) @ axis_of(d)).numpy()
    for quantile in (0.1, 0.33, 0.7):
        below = (component < stats.norm.ppf(quantile)).sum(1)
        assert set(below) <= {math.floor(10 * quantile), math.ceil(10 * quantile)} | {
            round(10 * quantile)
        }
    across = out - (out.flatten(2) @ axis_of(d))[..., None].view(G, B, 1, 1, 1) * axis_of(d)
    before = noise - (noise.flatten(2) @ axis_of(d))[..., None].view(G, B, 1, 1, 1) * axis_of(d)
    torch.testing.assert_close(across, before, atol=1e-5, rtol=0)  # nothing else has moved


def test_leading_direction_of_two_answers_is_the_line_between_them():
    images = torch.rand(3, 2, 1, 4, 4, generator=torch.Generator().manual_seed(2))
    denoise = lambda x, sigma: posterior_mean(x, sigma, images)
    v = leading_directions(denoise, torch.tensor(10.0), (1, 4, 4), 1, streams(3))
    line = torch.nn.functional.normalize((images[:, 0] - images[:, 1]).flatten(1), dim=1)
    torch.testing.assert_close(
        (v[:, 0].flatten(1) * line).sum(1).abs(), torch.ones(3), atol=1e-4, rtol=0
    )


def test_kmedoids_keeps_one_of_each_cluster():
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    near = 0.1 * torch.randn(12, 2, generator=torch.Generator().manual_seed(0))
    points = (centres.repeat(4, 1) + near).view(1, 12, 1, 2)
    kept = points[0, kmedoids(points, 3)[0]].flatten(1)
    assert sorted(torch.cdist(kept, centres).argmin(1).tolist()) == [0, 1, 2]
    assert kmedoids(torch.zeros(2, 6, 1, 2), 4).shape == (
        2,
        4,
    )  # fewer different samples than medoids


def frames(*columns: int) -> torch.Tensor:
    out = torch.zeros(1, len(columns), 1, 8)
    for b, column in enumerate(columns):
        out[0, b, 0, column] = 1.0
    return out


def no_doubt(sets, samples):
    return torch.zeros(samples.shape[:2])


def redraw(samples, draw, doubt=no_doubt, rounds=3):
    return redraw_faulty(
        samples, draw, doubt, alike=iou, rounds=rounds, most_alike=0.3, most_doubt=2.0
    )


def test_redraw_replaces_repeats_and_nothing_else():
    asked = []

    def draw(sets, turn, others):
        asked.append((sets.tolist(), turn, others.shape[1]))
        return frames(6)[:, 0].expand(len(sets), 1, 8)

    samples = torch.cat([frames(0, 1, 1), frames(2, 3, 4)])
    out, redrawn = redraw(samples, draw)
    assert (
        asked == [([0], 0, 2)] and redrawn == 1
    )  # the second set has no repeats, and one round was enough
    assert sorted(out[0].flatten(1).argmax(1).tolist()) == [0, 1, 6] and torch.equal(
        out[1], samples[1]
    )


def test_redraw_keeps_the_old_particle_where_the_new_one_is_no_better():
    samples = frames(0, 1, 1)
    out, redrawn = redraw(samples, lambda sets, turn, others: frames(0)[:, 0], rounds=2)
    assert torch.equal(out, samples) and redrawn == 2


def test_redraw_replaces_what_the_denoiser_doubts():
    """A particle in column 7 is doubted three times as much as the others are."""
    doubt = lambda sets, samples: 1 + 2 * samples[:, :, 0, 7]
    out, redrawn = redraw(frames(0, 7, 2), lambda sets, turn, others: frames(5)[:, 0], doubt)
    assert out[0].flatten(1).argmax(1).tolist() == [0, 5, 2] and redrawn == 1
    _, redrawn = redraw(frames(0, 1, 2), None, doubt)
    assert redrawn == 0


def test_redraw_of_single_particles_or_in_no_rounds_does_nothing():
    assert torch.equal(redraw(frames(0), None)[0], frames(0))
    assert redraw(frames(1, 1), None, rounds=0)[1] == 0
