import torch

from diverse_sampling.coupling.balanced import balanced_draw
from diverse_sampling.noise import set_generator
from diverse_sampling.selection import kmedoids, most_distant


def test_kmedoids_keeps_one_of_each_cluster():
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    near = 0.1 * torch.randn(12, 2, generator=torch.Generator().manual_seed(0))
    points = (centres.repeat(4, 1) + near).view(1, 12, 1, 2)
    kept = points[0, kmedoids(points, 3)[0]].flatten(1)
    assert sorted(torch.cdist(kept, centres).argmin(1).tolist()) == [0, 1, 2]


def test_kmedoids_keeps_as_many_as_asked_for_where_fewer_are_different():
    assert kmedoids(torch.zeros(2, 6, 1, 2), 4).shape == (2, 4)


def test_the_most_distant_of_copies_are_any():
    assert most_distant(torch.zeros(2, 6, 1, 2), 4).shape == (2, 4)
    assert most_distant(torch.randn(2, 6, 1, 2), 1).shape == (2, 1)


def test_a_balanced_draw_takes_one_of_each_of_equal_groups():
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    near = 0.1 * torch.randn(300, 12, 2, generator=torch.Generator().manual_seed(0))
    points = centres.repeat(4, 1) + near
    generators = [set_generator(0, g, 5) for g in range(300)]
    drawn = balanced_draw(points[:, :, None], 3, generators)
    group = drawn % 3
    assert (group.sort(1).values == torch.arange(3)).all()
    # Every candidate as often as any other, at every place of a set.
    for place in drawn.unbind(1):
        assert place.bincount(minlength=12).min() > 300 / 12 / 3


def test_a_balanced_draw_of_one_candidate_each_keeps_all():
    generators = [set_generator(0, g, 5) for g in range(4)]
    drawn = balanced_draw(torch.randn(4, 5, 1, 3), 5, generators)
    assert (drawn.sort(1).values == torch.arange(5)).all()
