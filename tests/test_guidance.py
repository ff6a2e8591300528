import math

import pytest
import torch
from hypothesis import given, settings, strategies as st

from guidance import POTENTIALS, ParticleGuidance
from metrics import modes_found
from model import posterior_mean
from sampler import SetNoise, edm_sampler, karras_sigmas

KERNELS = sorted(POTENTIALS)


def images_of(case: str, B: int, d: int = 12) -> torch.Tensor:
    """(2, B, d) float64: two sets, unlike each other."""
    y = torch.rand(2, B, d, dtype=torch.float64, generator=torch.Generator().manual_seed(B)) * 1.8 - 0.9
    if case == "duplicates" and B > 1:
        y[:, 1] = y[:, 0]
    if case == "ties":
        y[:, :, ::2] = y[:, :1, ::2]
    return y


@pytest.mark.parametrize("bandwidth", [None, 0.7])
@pytest.mark.parametrize("B", [1, 2, 3, 64])
@pytest.mark.parametrize("kernel", KERNELS)
def test_gradient_is_that_of_the_energy(kernel, B, bandwidth):
    potential, y = POTENTIALS[kernel](bandwidth), images_of("random", B).requires_grad_()
    expected, = torch.autograd.grad(potential.energy(y).sum(), y)
    torch.testing.assert_close(potential.grad(y.detach()), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("case", ["duplicates", "ties"])
@pytest.mark.parametrize("B", [2, 3, 64])
@pytest.mark.parametrize("kernel", sorted(set(KERNELS) - {"iou"}))
def test_gradient_at_ties_and_duplicates_is_that_of_central_differences(kernel, B, case):
    potential, y = POTENTIALS[kernel](0.7), images_of(case, B)
    grad, eps = potential.grad(y), 1e-6
    for index in ((0, 0, 0), (1, B - 1, 4), (0, 1, 7)):
        up, down = y.clone(), y.clone()
        up[index] += eps
        down[index] -= eps
        central = (potential.energy(up) - potential.energy(down))[index[0]] / (2 * eps)
        assert grad[index].item() == pytest.approx(central.item(), rel=1e-4, abs=1e-6)


def test_iou_has_subgradient_zero_at_ties():
    grad = POTENTIALS["iou"](0.7).grad(images_of("ties", 2))
    assert not grad[:, :, ::2].any() and grad[:, :, 1::2].all()
    assert not POTENTIALS["iou"](0.7).grad(images_of("duplicates", 2)).any()


@pytest.mark.parametrize("kernel", KERNELS)
def test_going_down_the_gradient_moves_particles_apart(kernel):
    potential, y = POTENTIALS[kernel](), images_of("random", 6)
    step = 1e-3 * potential.grad(y)
    moved = y - step / step.norm()
    apart = lambda y: torch.stack([torch.pdist(each).mean() for each in y])
    assert (apart(moved) > apart(y)).all() and (potential.energy(moved) < potential.energy(y)).all()


@pytest.mark.parametrize("kernel", KERNELS)
def test_sets_do_not_feel_each_other_and_order_does_not_matter(kernel):
    potential, y = POTENTIALS[kernel](), images_of("random", 5)
    torch.testing.assert_close(potential.grad(y)[1:], potential.grad(y[1:]))
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(potential.grad(y[:, order]), potential.grad(y)[:, order])


@pytest.mark.parametrize("kernel", KERNELS)
@settings(max_examples=60, deadline=None)
@given(B=st.integers(1, 5), scale=st.sampled_from([0.0, 1e-30, 1e-8, 1.0, 1e8, 1e30]), duplicate=st.booleans(),
       seed=st.integers(0, 1000))
def test_never_nan(kernel, B, scale, duplicate, seed):
    y = scale * torch.randn(2, B, 9, generator=torch.Generator().manual_seed(seed))
    if duplicate:
        y[:, -1] = y[:, 0]
    assert torch.isfinite(POTENTIALS[kernel]().grad(y)).all()


# ---------------------------------------------------------------- the wrapped denoiser

def exact(k: int = 8, d: int = 6, seed: int = 0):
    """An exact denoiser of k images (1, k, 1, d, d), and the images."""
    images = torch.rand(1, k, 1, d, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1
    return (lambda x, sigma: posterior_mean(x, sigma, images.expand(len(x), -1, -1, -1, -1))), images


def pg(denoise, kernel="rbf", **settings):
    defaults = dict(factor=1.0, space="denoised", strength="sigma")
    return ParticleGuidance(denoise, POTENTIALS[kernel](), **(defaults | settings))


def test_factor_zero_one_particle_and_other_noise_levels_leave_the_denoiser_alone():
    denoise, _ = exact()
    x, sigma = torch.randn(2, 4, 1, 6, 6, dtype=torch.float64), torch.tensor(2.0, dtype=torch.float64)
    plain = denoise(x, sigma)
    assert torch.equal(pg(denoise, factor=0.0)(x, sigma), plain)
    assert torch.equal(pg(denoise, sigma_min=3.0)(x, sigma), plain)
    assert torch.equal(pg(denoise, sigma_max=1.0)(x, sigma), plain)
    assert torch.equal(pg(denoise)(x[:, :1], sigma), denoise(x[:, :1], sigma))
    assert not torch.allclose(pg(denoise)(x, sigma), plain)


@pytest.mark.parametrize("kernel", KERNELS)
def test_jacobian_space_is_autograd_of_the_energy_of_the_denoised_set(kernel):
    denoise, _ = exact()
    sigma = torch.tensor(1.5, dtype=torch.float64)
    x = (1.5 * torch.randn(2, 4, 1, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2)))
    x.requires_grad_()
    potential = POTENTIALS[kernel]()
    force, = torch.autograd.grad(potential.energy(denoise(x, sigma).flatten(2)).sum(), x)
    guided = pg(denoise, kernel, space="jacobian", factor=0.3)(x.detach(), sigma)
    torch.testing.assert_close(guided, (denoise(x, sigma) - sigma**2 * 0.3 * force).detach(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("space", ["x", "denoised", "jacobian"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_drift_strength_is_the_stated_share_of_the_drift(kernel, space):
    denoise, _ = exact()
    x, sigma = 5 * torch.randn(2, 4, 1, 6, 6, dtype=torch.float64), torch.tensor(5.0, dtype=torch.float64)
    guided = pg(denoise, kernel, space=space, strength="drift", factor=0.5)(x, sigma)
    push = (guided - denoise(x, sigma)) / sigma
    drift = (x - denoise(x, sigma)) / sigma
    size = push.flatten(2).square().sum(-1).mean(1).sqrt()
    torch.testing.assert_close(size, 0.5 * drift.square().mean((1, 2, 3, 4)).sqrt())


@pytest.mark.parametrize("space", ["x", "denoised", "jacobian"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_guided_sampling_ends_finite_from_identical_particles(kernel, space):
    denoise, _ = exact()
    x = torch.zeros(2, 3, 1, 6, 6, dtype=torch.float64)
    out = edm_sampler(pg(denoise, kernel, space=space, strength="drift", factor=1e3), x,
                      karras_sigmas(8, 0.002, 80.0, 7.0))
    assert torch.isfinite(out).all()


def test_the_plus_sign_covers_modes_and_the_minus_sign_does_not():
    """The thesis's sign error, shown where the truth is known."""
    k, sets = 6, 40
    denoise, images = exact(k)
    noise = SetNoise(0, range(sets), (k, 1, 6, 6))
    x, sigmas = 80 * noise().double(), karras_sigmas(22, 0.002, 80.0, 7.0)

    def found(guided):
        out = edm_sampler(guided, x, sigmas).flatten(2)
        return modes_found(torch.cdist(out, images.flatten(2)).argmin(-1), k).double().mean().item()

    apart = pg(denoise, "logdet", strength="drift", factor=1.7)
    def together(x, sigma):
        return 2 * denoise(x, sigma) - apart(x, sigma)
    iid = k * (1 - (1 - 1 / k) ** k)
    assert found(denoise) == pytest.approx(iid, abs=0.45)
    assert found(apart) > iid + 1.0
    assert found(together) < iid - 1.0
