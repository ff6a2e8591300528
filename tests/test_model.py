import itertools
import math

import pytest
import torch
from conftest import slow_but

from config import ModelSettings
from diverse_sampling.denoiser import to_model_range, to_unit_range
from diverse_sampling.exact import posterior_mean
from lab.checkpoint import make_denoiser
from model import (
    Attention,
    EDMDenoiser,
    Motion,
    Pointwise,
    edm_loss,
    largest_divisor,
    lit_box,
    sigma_data_of,
)


def network(**settings) -> EDMDenoiser:
    torch.manual_seed(0)
    small = dict(channels=[16, 16], blocks=1, attention=[1], head_channels=8) | settings
    net = make_denoiser((1, 1), ModelSettings(**small), 0.4).eval()
    for parameter in net.parameters():  # zero-initialised layers would hide mistakes
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return net.requires_grad_(False)


def three_frames():
    """Noisy frames, the noise level of each, and their conditions."""
    return torch.randn(3, 1, 32, 32), torch.tensor([0.1, 1.0, 10.0]), torch.rand(3, 1, 32, 32)


BOTH_KINDS = pytest.mark.parametrize("settings", [{}, dict(patch_size=4, motion=4)])
WIDTHS = [[1], [2], [5, 7], [48, 96], [37, 53], [12, 20, 36], [66, 130], [144, 24], [1, 2, 3, 4]]


@pytest.mark.parametrize("channels", slow_but(WIDTHS[:6], WIDTHS), ids=str)
@pytest.mark.parametrize("head_channels", slow_but([20], [1, 20, 64]))
def test_networks_of_any_widths_can_be_trained(channels, head_channels):
    """Every layer has a finite gradient, and the noise level and the condition reach the output."""
    attention = list(range(len(channels)))
    settings = dict(channels=channels, attention=attention, head_channels=head_channels)
    net = network(**settings, patch_size=4, class_labels=True).requires_grad_()
    x = torch.randn(2, 1, 32, 32)
    cond = torch.rand(2, 1, 32, 32)
    labels = torch.tensor([1, 2])
    out = net(x, torch.tensor([0.1, 10.0]), cond, labels)
    assert out.shape == x.shape and out.isfinite().all()
    out.square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    with torch.no_grad():
        inputs = torch.cat([x, cond], 1)
        low, *_ = net.unet(inputs, torch.full((2,), -1.0), labels)
        high, *_ = net.unet(inputs, torch.full((2,), 1.0), labels)
        assert not torch.allclose(low, high)


@pytest.mark.parametrize("head_channels", [1, 8, 64, 100])
def test_groups_and_heads_divide_every_width_and_stay_where_they_did(head_channels):
    """Networks of widths that the former rules could divide keep their groups and heads."""
    for channels in (*range(1, 65), 66, 96, 100, 128, 144, 192, 256, 384):
        with torch.device("meta"):
            layer = Attention(channels, head_channels)
        groups = layer.norm.num_groups
        assert channels % groups == 0 and groups <= max(1, channels // 4)
        former = min(32, channels // 4)
        if former and channels % former == 0:
            assert groups == former
        assert channels % layer.heads == 0
        assert layer.heads == 1 or channels // layer.heads >= head_channels
        former = max(1, channels // head_channels)
        if channels % former == 0:
            assert layer.heads == former


def test_the_largest_divisor_is_the_largest():
    for number in range(1, 60):
        for limit in range(-1, 70):
            divisors = [d for d in range(1, limit + 1) if number % d == 0]
            assert largest_divisor(number, limit) == max(divisors, default=1)


def test_a_pointwise_convolution_is_a_convolution():
    x = torch.randn(2, 6, 5, 4).contiguous(memory_format=torch.channels_last)
    layer = Pointwise(6, 3)
    torch.testing.assert_close(layer(x), torch.nn.functional.conv2d(x, layer.weight, layer.bias))


def test_the_box_is_where_any_frame_is_lit():
    frames = torch.zeros(3, 2, 16, 24)
    frames[0, 0, 5, 9], frames[2, 1, 7, 17] = 0.1, 1.0
    assert lit_box(frames, 1) == (5, 8, 9, 18)
    assert lit_box(frames, 4) == (4, 8, 8, 20)
    assert lit_box(frames, 16) == (0, 16, 0, 24)
    assert lit_box(torch.zeros(1, 16, 24), 4) == (0, 16, 0, 24)


@BOTH_KINDS
def test_a_cropped_network_works_in_its_box_and_leaves_the_rest_black(settings):
    net = network(**settings)
    x, sigma, cond = three_frames()
    inside = (..., slice(8, 24), slice(0, 16))
    expected = net(x[inside], sigma, cond[inside])
    net.box = (8, 24, 0, 16)
    cropped = net(x, sigma, cond)
    bound = net.bind(cond)(x[:, None], torch.tensor(1.0))[:, 0]
    torch.testing.assert_close(cropped[inside], expected)
    torch.testing.assert_close(bound[1], cropped[1], rtol=1e-4, atol=1e-5)
    outside = torch.ones(32, 32, dtype=torch.bool)
    outside[inside] = False
    assert (cropped[..., outside] == -1).all()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        dict(patch_size=4, motion=4),
        dict(channels=[16], attention=[]),
        dict(channels=[16, 24, 32], attention=[0, 2], blocks=2),
    ],
)
def test_single_precision_agrees_with_double(settings):
    net = network(**settings)
    x, sigma, cond = three_frames()
    single = net(x, sigma, cond)
    double = net.double()(x, sigma, cond)
    assert double.dtype == torch.float64 and double.shape == x.shape
    torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-5)


@BOTH_KINDS
def test_features_come_from_the_call_and_depend_on_the_particle_alone(settings):
    net = network(**settings)
    x, sigma, cond = three_frames()
    denoised, features = net.bind(cond, with_features=True)(x[:, None], sigma[0])
    torch.testing.assert_close(denoised, net.bind(cond)(x[:, None], sigma[0]))
    assert features.shape[:2] == (3, 1) and features[0].std() > 0
    moved = x.clone()
    moved[1] += 1
    _, after = net.bind(cond, with_features=True)(moved[:, None], sigma[0])
    changed = (after - features).abs().amax((1, 2, 3, 4))
    assert changed[1] > 1e-3 > 1e-5 > changed[[0, 2]].max()
    # Layers after the bottleneck have no part in them.
    with torch.no_grad():
        net.unet.up[0].conv1.weight.add_(1)
    torch.testing.assert_close(
        net.bind(cond, with_features=True)(x[:, None], sigma[0])[1], features
    )


def test_untrained_network_is_the_best_guess_without_one():
    """With F = 0, D = c_skip x: the posterior mean of N(0, sigma_data^2) data."""
    net = make_denoiser((1, 1), ModelSettings(channels=[16], attention=[]), 0.4)
    x = torch.randn(2, 1, 32, 32)
    for sigma in (0.01, 1.0, 50.0):
        expected = x * 0.4**2 / (0.4**2 + sigma**2)
        denoised = net(x, torch.tensor(sigma), torch.zeros_like(x)).detach()
        torch.testing.assert_close(denoised, expected)


@BOTH_KINDS
def test_bound_denoiser_gives_every_particle_its_sets_condition(settings):
    net = network(**settings)
    x, cond = torch.randn(2, 3, 1, 32, 32), torch.rand(2, 1, 32, 32)
    together = net.bind(cond)(x, torch.tensor(2.0, dtype=torch.float64))
    for g in range(2):
        for b in range(3):
            alone = net(x[g, b : b + 1], torch.tensor(2.0), cond[g : g + 1])
            torch.testing.assert_close(together[g, b : b + 1], alone, rtol=1e-4, atol=1e-5)


def test_class_labels_matter_and_may_be_missing():
    net = network(class_labels=True)
    x, cond = torch.randn(2, 1, 32, 32), torch.rand(2, 1, 32, 32)
    each = [torch.tensor([label, label]) for label in (1, 2, 10)]
    outs = [net(x, torch.tensor(1.0), cond, labels) for labels in (*each, None)]
    assert not torch.allclose(outs[0], outs[1]) and torch.equal(outs[2], outs[3])


def test_loss_of_the_untrained_network_is_one_at_every_noise_level():
    """EDM's weight makes the loss of the best linear guess 1 for data of deviation sigma_data."""
    generator = torch.Generator().manual_seed(0)
    y = 0.4 * torch.randn(4000, 1, 4, 4, generator=generator)
    for level in (0.01, 0.5, 20.0):
        sigma = torch.full((4000,), level)
        x = y + level * torch.randn(y.shape, generator=generator)
        guess = lambda x, sigma: x * 0.4**2 / (0.4**2 + level**2)
        loss = edm_loss(guess, x, sigma, y, torch.tensor(0.4)).mean()
        assert loss.item() == pytest.approx(1, rel=0.02)


@pytest.mark.parametrize("sd", [0.0, 0.3])
def test_posterior_mean_is_the_score_of_the_mixture(sd):
    """Tweedie's formula with autograd, D = x + sigma^2 grad log p(x; sigma), for sets, a prior."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 5, 1, 3, 3, generator=generator, dtype=torch.float64)
    prior = torch.tensor([0.5, 0.2, 0.1, 0.1, 0.1], dtype=torch.float64)
    x = torch.randn(2, 4, 1, 3, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    sigma = torch.tensor(0.9, dtype=torch.float64)
    d2 = (x[:, :, None] - images[:, None]).square().flatten(3).sum(-1)  # (G, B, k)
    density = (prior.log() - d2 / 2 / (sigma**2 + sd**2)).logsumexp(-1)
    (score,) = torch.autograd.grad(density.sum(), x)
    found = posterior_mean(x, sigma, images, prior.log(), sd).detach()
    torch.testing.assert_close(found, (x + sigma**2 * score).detach())


def test_posterior_mean_takes_a_sigma_per_row():
    images = torch.randn(3, 4, 1, 3, 3)
    x, sigma = torch.randn(3, 2, 1, 3, 3), torch.tensor([0.3, 1.0, 5.0])
    rows = posterior_mean(x, sigma, images)
    for n in range(3):
        alone = posterior_mean(x[n : n + 1], sigma[n], images[n : n + 1])
        torch.testing.assert_close(rows[n : n + 1], alone)


def test_posterior_mean_at_the_ends_of_the_schedule():
    images = to_model_range(torch.rand(1, 3, 1, 8, 8))
    near = images[:, 1:2] + 0.002 * torch.randn(1, 1, 1, 8, 8)
    torch.testing.assert_close(posterior_mean(near, torch.tensor(0.002), images), images[:, 1:2])
    far = 1e6 * torch.randn(1, 1, 1, 8, 8)
    guess = posterior_mean(far, torch.tensor(1e8), images)[:, 0]
    torch.testing.assert_close(guess, images.mean(1), rtol=1e-3, atol=1e-3)


def test_sigma_data_is_measured_in_the_models_range():
    assert sigma_data_of(torch.tensor([0.0, 1.0])) == pytest.approx(math.sqrt(2))


# ---------------------------------------------------------------- motion


@pytest.fixture
def motion():
    return Motion(reach=2, patch_size=4, channels=8)


def shifted(frame, dy, dx):
    """frame (H, W) in [-1, 1] moved by (dy, dx), black where nothing came from."""
    H, W = frame.shape
    out = torch.full_like(frame, -1)
    out[max(dy, 0) : H + min(dy, 0), max(dx, 0) : W + min(dx, 0)] = frame[
        max(-dy, 0) : H - max(dy, 0), max(-dx, 0) : W - max(dx, 0)
    ]
    return out


def test_one_weight_per_displacement_moves_the_frame(motion):
    """Logits that single out one displacement everywhere give the frame moved by it, each once."""
    frame = to_model_range(torch.rand(1, 1, 16, 16))
    moved = motion.moved(frame)
    places = list(itertools.product(range(-2, 3), repeat=2))
    seen = []
    for d in range(motion.displacements):
        torch.nn.init.zeros_(motion.logits.weight)
        motion.logits.bias.data = torch.where(torch.arange(motion.displacements) == d, 100.0, 0.0)
        out = motion(moved, torch.zeros(1, 8, 4, 4))[0, 0]
        seen += [at for at in places if torch.allclose(out, shifted(frame[0, 0], *at), atol=1e-5)]
    assert sorted(seen) == places


def test_fit_is_largest_where_the_frame_went(motion):
    """The sum over patches is the inner product with the moved frame, largest for the true one."""
    generator = torch.Generator().manual_seed(0)
    frame = torch.full((1, 1, 16, 16), -1.0)
    frame[0, 0, 4:12, 4:12] = to_model_range(torch.rand(8, 8, generator=generator))
    moved = motion.moved(frame)
    displacements = [motion_of(d, moved, frame) for d in range(motion.displacements)]
    everywhere = torch.stack([shifted(frame[0, 0], *each) for each in displacements])
    for dy, dx in ((0, 0), (2, -1), (-2, 2)):
        there = shifted(frame[0, 0], dy, dx)
        fit = motion.fit(moved, there[None, None]).sum((2, 3))[0]
        inner = (to_unit_range(everywhere) * there).sum((1, 2))
        torch.testing.assert_close(fit * motion.patch_size, inner, rtol=1e-4, atol=1e-4)
        assert displacements[int(fit.argmax())] == (dy, dx)


def motion_of(d, moved, frame):
    """The displacement that is the d-th of `moved` (N, T, D, P), read off the frame itself."""
    patches = moved[0, :, d].reshape(4, 4, 4, 4).permute(0, 2, 1, 3).reshape(16, 16)
    patches = to_model_range(patches)
    places = itertools.product(range(-2, 3), repeat=2)
    near = lambda at: torch.allclose(patches, shifted(frame[0, 0], *at), atol=1e-5)
    return next(filter(near, places))


def test_gradients_reach_the_noisy_frame_through_motion():
    net = network(patch_size=4, motion=4)
    x = torch.randn(2, 1, 32, 32, requires_grad=True)
    cond = to_model_range(torch.rand(2, 1, 32, 32))
    (grad,) = torch.autograd.grad(net(x, torch.tensor(2.0), cond).square().sum(), x)
    assert grad.isfinite().all() and (grad != 0).float().mean() > 0.9


@pytest.mark.slow
def test_a_network_is_compiled_once_for_all_sizes():
    """Whatever other size the number of images is equal to. The graph is traced, not translated."""
    net = network(channels=[8], attention=[], patch_size=2, motion=1)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    plain, outputs = [], []
    for outs in (plain, outputs):
        if outs is outputs:
            net.compile_for_any_size(backend="eager")
        for G, B in ((4, 4), (9, 2), (3, 11)):  # 4 numbers a patch, 9 displacements
            denoise = net.bind(torch.linspace(-1, 1, G * 64).view(G, 1, 8, 8))
            with torch.no_grad():
                outs.append(denoise(torch.linspace(-2, 2, G * B * 64).view(G, B, 1, 8, 8), SIGMA))
    torch.testing.assert_close(outputs, plain)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    torch._dynamo.reset()


SIGMA = torch.tensor(1.5, dtype=torch.float64)
