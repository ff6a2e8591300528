import torch

from selection import kmedoids


def test_kmedoids_keeps_one_of_each_cluster():
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    near = 0.1 * torch.randn(12, 2, generator=torch.Generator().manual_seed(0))
    points = (centres.repeat(4, 1) + near).view(1, 12, 1, 2)
    kept = points[0, kmedoids(points, 3)[0]].flatten(1)
    assert sorted(torch.cdist(kept, centres).argmin(1).tolist()) == [0, 1, 2]


def test_kmedoids_keeps_as_many_as_asked_for_where_fewer_are_different():
    assert kmedoids(torch.zeros(2, 6, 1, 2), 4).shape == (2, 4)
