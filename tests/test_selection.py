import torch

from metrics import iou
from selection import kmedoids, redraw_faulty


def test_kmedoids_keeps_one_of_each_cluster():
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    near = 0.1 * torch.randn(12, 2, generator=torch.Generator().manual_seed(0))
    points = (centres.repeat(4, 1) + near).view(1, 12, 1, 2)
    kept = points[0, kmedoids(points, 3)[0]].flatten(1)
    assert sorted(torch.cdist(kept, centres).argmin(1).tolist()) == [0, 1, 2]


def test_kmedoids_keeps_as_many_as_asked_for_where_fewer_are_different():
    assert kmedoids(torch.zeros(2, 6, 1, 2), 4).shape == (2, 4)


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
    # The second set has no repeats, and one round was enough.
    assert asked == [([0], 0, 2)] and redrawn == 1
    assert sorted(out[0].flatten(1).argmax(1).tolist()) == [0, 1, 6]
    assert torch.equal(out[1], samples[1])


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
