import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diverse_sampling.guidance.rivals.diverseflow import DiverseFlow
from diverse_sampling.guidance.rivals.oscar import Volume
from diverse_sampling.guidance.rivals.rke import RKE
from diverse_sampling.potentials import POTENTIALS, Bandwidth, cosine_share, squared_distances

# Those of other methods too.
EVERY = POTENTIALS | dict(diverseflow=DiverseFlow, rke=RKE, volume=Volume)
KERNELS = sorted(EVERY)


def images_of(case: str, B: int, d: int = 12) -> torch.Tensor:
    """Two sets of images in (-1, 1) that differ from each other, (2, B, d) float64."""
    generator = torch.Generator().manual_seed(B)
    y = torch.rand(2, B, d, dtype=torch.float64, generator=generator) * 1.8 - 0.9
    if case == "duplicates" and B > 1:
        y[:, 1] = y[:, 0]
    if case == "ties":
        y[:, :, ::2] = y[:, :1, ::2]
    return y


BANDWIDTHS = [
    Bandwidth(),
    Bandwidth("fixed", 0.7),
    Bandwidth("sigma", 0.5),
    Bandwidth(anneal=(0.1, 10.0)),
]


@pytest.mark.parametrize("bandwidth", BANDWIDTHS, ids=str)
@pytest.mark.parametrize("B", [1, 2, 3, 64])
@pytest.mark.parametrize("kernel", KERNELS)
def test_gradient_is_that_of_the_energy(kernel, B, bandwidth):
    potential = EVERY[kernel](bandwidth)
    y = images_of("random", B).requires_grad_()
    (expected,) = torch.autograd.grad(potential.energy(y, 1.7).sum(), y)
    torch.testing.assert_close(potential.grad(y.detach(), 1.7), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("case", ["duplicates", "ties"])
@pytest.mark.parametrize("B", [2, 3, 64])
@pytest.mark.parametrize("kernel", sorted(set(KERNELS) - {"iou", "rbf_unsquared"}))
def test_gradient_at_ties_and_duplicates_is_that_of_central_differences(kernel, B, case):
    potential = EVERY[kernel](Bandwidth("fixed", 0.7))
    y = images_of(case, B)
    grad = potential.grad(y)
    eps = 1e-6
    for index in ((0, 0, 0), (1, B - 1, 4), (0, 1, 7)):
        up, down = y.clone(), y.clone()
        up[index] += eps
        down[index] -= eps
        central = (potential.energy(up) - potential.energy(down))[index[0]] / (2 * eps)
        assert grad[index].item() == pytest.approx(central.item(), rel=1e-4, abs=1e-6)


def test_iou_has_subgradient_zero_at_ties():
    grad = POTENTIALS["iou"](Bandwidth("fixed", 0.7)).grad(images_of("ties", 2))
    assert not grad[:, :, ::2].any() and grad[:, :, 1::2].all()
    assert not POTENTIALS["iou"](Bandwidth("fixed", 0.7)).grad(images_of("duplicates", 2)).any()


@pytest.mark.parametrize("kernel", sorted(set(KERNELS) - {"volume"}))  # which counts angles only
def test_going_down_the_gradient_moves_particles_apart(kernel):
    potential = EVERY[kernel](Bandwidth("fixed", 0.7))
    y = images_of("random", 6)
    step = potential.grad(y)
    moved = y - 1e-2 * step / step.norm()
    apart = lambda y: torch.stack([torch.pdist(each).mean() for each in y])
    assert (apart(moved) > apart(y)).all() and (potential.energy(moved) < potential.energy(y)).all()


@pytest.mark.parametrize("kernel", KERNELS)
def test_sets_do_not_feel_each_other_and_order_does_not_matter(kernel):
    potential = EVERY[kernel]()
    y = images_of("random", 5)
    torch.testing.assert_close(potential.grad(y)[1:], potential.grad(y[1:]))
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(potential.grad(y[:, order]), potential.grad(y)[:, order])


@pytest.mark.parametrize("kernel", KERNELS)
@settings(max_examples=30, deadline=None)
@given(
    B=st.integers(1, 5),
    scale=st.sampled_from([0.0, 1e-30, 1e-8, 1.0, 1e8, 1e30]),
    duplicate=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_never_nan(kernel, B, scale, duplicate, seed):
    y = scale * torch.randn(2, B, 9, generator=torch.Generator().manual_seed(seed))
    if duplicate:
        y[:, -1] = y[:, 0]
    assert torch.isfinite(EVERY[kernel]().grad(y)).all()


def test_bandwidth_rules():
    y = images_of("random", 5)
    d2 = squared_distances(y)
    expected = torch.stack([torch.pdist(each).square().median() for each in y]) / math.log(5)
    torch.testing.assert_close(Bandwidth("median", 2.0)(d2, 1.0, 2).flatten(), 2 * expected)
    assert Bandwidth("fixed", 0.3)(d2, 5.0, 2).flatten().tolist() == pytest.approx([0.3, 0.3])
    assert Bandwidth("sigma", 0.3)(d2, 5.0, 2).flatten().tolist() == pytest.approx([7.5, 7.5])
    assert Bandwidth("sigma", 0.3)(d2, 5.0, 1).flatten().tolist() == pytest.approx([1.5, 1.5])


def test_annealing_falls_from_all_to_nothing():
    shares = [cosine_share(sigma, 1.0, 100.0) for sigma in (200.0, 100.0, 10.0, 1.0, 0.5)]
    assert shares == pytest.approx([1, 1, 0.5, 0, 0])


def test_squared_distances_agree_with_pdist():
    y = images_of("random", 7) + 1000
    expected = torch.stack([torch.cdist(each, each) for each in y]).square()
    torch.testing.assert_close(squared_distances(y), expected, rtol=1e-6, atol=1e-9)
