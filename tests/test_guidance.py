import itertools
import math
from functools import partial

import pytest
import torch

from diverse_sampling.denoiser import to_model_range
from diverse_sampling.decisions import Decisions
from diverse_sampling.exact import posterior_mean
from diverse_sampling.guidance import (
    Guided,
    ParticleGuidance,
    Spell,
    default_guidance,
    never_down,
)
from diverse_sampling.guidance.rivals.cads import Cads
from diverse_sampling.guidance.rivals.eddy import Eddy
from diverse_sampling.guidance.rivals.oscar import Volume, across
from diverse_sampling.guidance.rivals.oscar_noise import with_noise
from diverse_sampling.guidance.rivals.published import Published
from diverse_sampling.guidance.rivals.reference import Reference, StageHere
from diverse_sampling.guidance.rivals.variance import Variance
from diverse_sampling.noise import ParticleNoise
from diverse_sampling.potentials import POTENTIALS, RBF, Bandwidth
from diverse_sampling.steps import Window, edm_sampler, karras_sigmas
from lab.metrics import mixture_modes, mode_metrics

KERNELS = sorted(POTENTIALS)
TWO = torch.tensor(2.0, dtype=torch.float64)
THREE = torch.tensor(3.0, dtype=torch.float64)


def exact(k: int = 8, d: int = 6, seed: int = 0):
    """An exact denoiser of k images (1, k, 1, d, d), and the images."""
    generator = torch.Generator().manual_seed(seed)
    images = to_model_range(torch.rand(1, k, 1, d, d, generator=generator, dtype=torch.float64))

    def denoise(x, sigma):
        return posterior_mean(x, sigma, images.expand(len(x), -1, -1, -1, -1))

    return denoise, images


def sets_of(B: int, sets: int = 2) -> torch.Tensor:
    """Standard normal noise (sets, B, 1, 6, 6)."""
    generator = torch.Generator().manual_seed(B)
    return torch.randn(sets, B, 1, 6, 6, dtype=torch.float64, generator=generator)


def pg(denoise, kernel="rbf", **settings):
    defaults = dict(factor=1.0, space="denoised", strength="sigma")
    return ParticleGuidance(denoise, POTENTIALS[kernel](Bandwidth()), **(defaults | settings))


@pytest.mark.parametrize("kernel", KERNELS)
def test_jacobian_space_is_autograd_of_the_energy_of_the_denoised_set(kernel):
    denoise, _ = exact()
    sigma = torch.tensor(1.5, dtype=torch.float64)
    x = (1.5 * sets_of(4)).requires_grad_()
    potential = POTENTIALS[kernel](Bandwidth())
    (force,) = torch.autograd.grad(potential.energy(denoise(x, sigma).flatten(2)).sum(), x)
    guided = pg(denoise, kernel, space="jacobian", factor=0.3)(x.detach(), sigma)
    expected = (denoise(x, sigma) - sigma**2 * 0.3 * force).detach()
    torch.testing.assert_close(guided, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("space", ["x", "denoised", "jacobian"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_drift_strength_is_the_stated_share_of_the_drift(kernel, space):
    denoise, _ = exact()
    x = 5 * sets_of(4)
    sigma = torch.tensor(5.0, dtype=torch.float64)
    guided = pg(denoise, kernel, space=space, strength="drift", factor=0.5)(x, sigma)
    push = (guided - denoise(x, sigma)) / sigma
    drift = (x - denoise(x, sigma)) / sigma
    size = push.flatten(2).square().sum(-1).mean(1).sqrt()
    torch.testing.assert_close(size, 0.5 * math.sqrt(2) * drift.square().mean((1, 2, 3, 4)).sqrt())


def test_the_plus_sign_covers_modes_and_the_minus_sign_does_not():
    """The thesis's sign error, shown where the truth is known."""
    k, sets = 6, 40
    denoise, images = exact(k)
    noise = ParticleNoise(0, range(sets), range(k), (1, 6, 6))
    x, sigmas = 80 * noise().double(), karras_sigmas(22, 0.002, 80.0, 7.0)

    def found(guided):
        out = edm_sampler(guided, x, sigmas).flatten(2)
        modes, _ = mixture_modes(out, images[0].flatten(1), within=1e9)
        return mode_metrics(modes, torch.full((k,), 1 / k))["modes_found"]["mean"]

    apart = pg(denoise, "logdet", strength="drift", factor=1.7)

    def together(x, sigma):
        return 2 * denoise(x, sigma) - apart(x, sigma)

    iid = k * (1 - (1 - 1 / k) ** k)
    assert found(denoise) == pytest.approx(iid, abs=0.45)
    assert found(apart) > iid + 1.0
    assert found(together) < iid - 1.0


def test_joint_strength_is_a_power_of_the_potential():
    """B factor times the drift of "sigma", with memory counted in B."""
    denoise, images = exact()
    for B, memory in ((2, None), (5, None), (2, images[:, :3].expand(2, -1, -1, -1, -1))):
        x = 3 * sets_of(B)
        everyone = B if memory is None else B + 3
        joint = pg(denoise, strength="joint", factor=0.3, memory=memory)(x, THREE)
        alpha = pg(denoise, strength="sigma", factor=0.3 * everyone, memory=memory)(x, THREE)
        torch.testing.assert_close(joint, alpha)


def test_a_measured_push_is_bounded_by_what_is_undecided():
    """p = factor T (1 - V) grad U at D(x), moved by p / sqrt(1 + |p|^2 / 64 T (1 - V))."""
    denoise, _ = exact()
    x = 3 * sets_of(4)
    plain = denoise(x, THREE)
    grad = RBF().grad(plain.flatten(2)).view_as(x)
    undecided = 20 * 0.75
    decisions = Decisions([12.0, 3.0, 0.75], [0.0, 0.25, 1.0], 20.0)
    for factor in (0.1, 5.0, 1e6):
        guided = pg(denoise, factor=factor, strength="measured", decisions=decisions)
        p = (factor * undecided * grad).flatten(2)
        moved = p / (1 + p.square().sum(-1, keepdim=True) / (64 * undecided)).sqrt()
        with torch.no_grad():
            found = guided(x, THREE)
        torch.testing.assert_close(found, plain - moved.view_as(x))
        assert (found - plain).flatten(2).norm(dim=-1).max() <= 8 * undecided**0.5 * (1 + 1e-6)


def test_the_default_guidance_needs_no_gradient_of_the_denoiser_and_ends_above_its_window():
    denoise, _ = exact()

    def opaque(x, sigma):
        if torch.is_grad_enabled() or x.requires_grad:
            raise RuntimeError("no gradients here")
        return denoise(x, sigma)

    decisions = Decisions([12.0, 3.0, 0.75], [0.0, 0.25, 1.0], 20.0)
    window = Window(2.0, 6.0, 0.5)
    guided = default_guidance(opaque, decisions, window=window)
    anytime = default_guidance(opaque, decisions)
    unguided = default_guidance(opaque, decisions, factor=0.0)
    for level in (1.0, 2.0, 2.001, 6.0, 6.001):
        sigma = torch.tensor(level, dtype=torch.float64)
        x = level * sets_of(4)
        with torch.no_grad():
            plain = opaque(x, sigma)
            assert torch.equal(unguided(x, sigma), plain)
            assert torch.equal(guided(x, sigma), plain) == (not 2 < level <= 6)
            acts = decisions.settled <= level <= decisions.window().high
            assert torch.equal(anytime(x, sigma), plain) != acts


@pytest.mark.parametrize("level", [1.5, 3.0, 6.0])
def test_a_difference_is_the_product_with_the_jacobian(level):
    denoise, _ = exact()
    sigma = torch.tensor(level, dtype=torch.float64)
    x = level * sets_of(4)
    through, by = (
        pg(denoise, "logdet", space=space)(x, sigma) - denoise(x, sigma)
        for space in ("jacobian", "difference")
    )
    assert (through - by).norm() < 0.05 * through.norm()


def test_annealed_guidance_is_that_share_of_it():
    denoise, _ = exact()
    x = 3 * sets_of(4)
    plain, whole = denoise(x, THREE), pg(denoise)(x, THREE)
    annealed = pg(denoise, anneal=True, sigma_min=0.3, sigma_max=30.0)(x, THREE)
    torch.testing.assert_close(annealed - plain, (whole - plain) / 2)  # half way in ln sigma


def test_memory_repels_like_particles_that_do_not_move():
    denoise, images = exact()
    x = 3 * sets_of(2, sets=1)
    memory = images[:, :3]
    everyone = torch.cat([denoise(x, THREE), memory], 1).flatten(2)
    expected = denoise(x, THREE) - THREE**2 * RBF().grad(everyone)[:, :2].view_as(x)
    torch.testing.assert_close(pg(denoise, memory=memory)(x, THREE), expected)
    one = pg(denoise, memory=memory)(x[:, :1], THREE)  # a single particle feels the memory
    assert not torch.allclose(one, denoise(x[:, :1], THREE))


def test_features_are_differentiated_and_come_with_the_denoised_images():
    denoise, _ = exact()
    x = (3 * sets_of(3)).requires_grad_()
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.Tanh()).double()
    called = []

    def with_features(x, sigma):
        called.append(x.requires_grad)
        return denoise(x, sigma), net(x.flatten(0, 1)).unflatten(0, x.shape[:2])

    (force,) = torch.autograd.grad(RBF().energy(with_features(x, THREE)[1].flatten(2)).sum(), x)
    called.clear()
    guided = ParticleGuidance(
        None, RBF(), factor=0.5, strength="sigma", features=with_features, sigma_min=1.0
    )
    expected = denoise(x, THREE) - THREE**2 * 0.5 * force
    torch.testing.assert_close(guided(x.detach(), THREE), expected.detach())
    assert called == [True]


# ---------------------------------------------------------------- other methods


def test_spell_pushes_pairs_just_out_of_each_others_radius():
    """One step moves two particles within r apart by their whole shortfall each (equation 4)."""
    points = [[0.0, 0.0], [1.0, 0.0], [0.0, 100.0]]
    x = torch.tensor(points, dtype=torch.float64).view(1, 3, 1, 1, 2)
    moved = Spell(lambda x, sigma: x, radius=3.0)(x, torch.tensor(1.0))
    assert moved[0, :2, 0, 0].tolist() == [[-2.0, 0.0], [3.0, 0.0]]
    assert torch.equal(moved[0, 2], x[0, 2])


def test_spell_memory_repels_and_stays():
    memory = torch.ones(1, 1, 1, 1, 2)
    spell = Spell(lambda x, sigma: x, radius=5.0, memory=memory)
    moved = spell(torch.zeros(1, 1, 1, 1, 2), torch.tensor(1.0))
    assert moved.shape == (1, 1, 1, 1, 2) and (moved < 0).all()
    copies = Spell(lambda x, sigma: x, radius=5.0)(torch.zeros(1, 2, 1, 1, 2), torch.tensor(1.0))
    assert not copies.any()


def test_cads_noises_the_condition_only_early():
    cond = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    seen = []

    def bind(c):
        seen.append(c)
        return lambda x, sigma: x

    noise = ParticleNoise(0, range(2), range(3), (1, 4, 4))
    annealed = dict(tau1=0.3, tau2=0.8, scale=0.5, mixing=1.0)
    cads = Cads(None, bind, cond, noise, lambda sigma: sigma / 80, **annealed)
    for sigma in (10.0, 40.0, 80.0):
        cads(torch.zeros(2, 3, 1, 4, 4), torch.tensor(sigma))
    late, middle, early = seen
    assert torch.equal(late, cond[:, None].expand(2, 3, 1, 4, 4))
    assert not torch.allclose(middle[:, 0], middle[:, 1])
    for each in (middle, early):  # mixing 1 brings mean and deviation back
        torch.testing.assert_close(each.mean((2, 3, 4)), cond.mean((1, 2, 3))[:, None].expand(2, 3))
        torch.testing.assert_close(each.std((2, 3, 4)), cond.std((1, 2, 3))[:, None].expand(2, 3))
    correlation = torch.corrcoef(torch.stack([early[0, 0].flatten(), cond[0].flatten()]))[0, 1]
    assert abs(correlation) < 0.6  # at the noisy end nothing of the condition is left


def test_an_interval_of_noise_levels():
    class OneMore(Guided):
        def guided(self, x, sigma):
            return self.denoise(x, sigma) + 1

    levels = [torch.tensor(sigma) for sigma in (0.5, 1.0, 2.0, 3.0)]
    for bounds, changed in (
        (dict(sigma_min=1.0, sigma_max=2.0), [0, 1, 1, 0]),
        (dict(sigma_min=1.0), [0, 1, 1, 1]),
        ({}, [1, 1, 1, 1]),
    ):
        guided = OneMore(lambda x, sigma: x, **bounds)
        assert [float(guided(torch.zeros(1), sigma)) for sigma in levels] == changed


@pytest.mark.parametrize("sigma", [0.001, 1.0, 20.0])
def test_sriw_lowers_the_density_by_no_more_than_its_share(sigma):
    """And its push on each particle is factor sqrt(s / (1 + s)) of the drift."""
    denoise, images = exact()
    sigma = torch.tensor(sigma, dtype=torch.float64)
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(4, 5, 1, 6, 6, dtype=torch.float64, generator=generator)
    x = images[:, :5] + sigma * noise
    share = float(sigma / (1 + sigma))
    plain = denoise(x, sigma)
    guided = pg(denoise, factor=0.1, strength=never_down)
    push = (guided(x, sigma) - plain) / sigma
    drift = (x - plain) / sigma
    size = push.flatten(2).norm(dim=-1)
    torch.testing.assert_close(size, 0.1 * share**0.5 * drift.flatten(2).norm(dim=-1))
    up = -(push * drift).flatten(2).sum(-1) / (size * drift.flatten(2).norm(dim=-1))  # a cosine
    kernel = -RBF().grad(plain.flatten(2))
    along = -(kernel * drift.flatten(2)).sum(-1) / drift.flatten(2).norm(dim=-1)
    down = along < 0
    assert down.any()
    across = (kernel.norm(dim=-1).square() - along.square()).sqrt()
    expected = torch.where(down, share, 1.0) * along
    torch.testing.assert_close(up, expected / (across.square() + expected.square()).sqrt())


def test_oscar_runs_across_the_drift_and_is_capped():
    denoise, _ = exact()
    sigma = TWO
    x = 2 * sets_of(4)
    plain = denoise(x, sigma)
    drift = ((x - plain) / sigma).flatten(2)

    def push(factor):
        settings = dict(space="denoised", strength=across("sigma"))
        guided = ParticleGuidance(denoise, Volume(), factor=factor, **settings)
        return ((plain - guided(x, sigma)) / sigma).flatten(2)

    small = 1e-3 * float(sigma) * Volume().grad(plain.flatten(2))
    unit = torch.nn.functional.normalize(drift, dim=-1)
    along = lambda v: (v * unit).sum(-1)
    torch.testing.assert_close(along(push(1e-3)), 0.05 * along(small))
    torch.testing.assert_close(
        push(1e-3) - along(push(1e-3))[..., None] * unit, small - along(small)[..., None] * unit
    )
    torch.testing.assert_close(push(1e6).norm(dim=-1), 0.3 * drift.norm(dim=-1))


@pytest.mark.parametrize("B", [2, 4, 8])
def test_the_published_push_is_autograd_of_each_particles_kernel(B):
    """Of exp(-d^2 / h) with h from the median of a particle's distances, held fixed."""
    denoise, _ = exact()
    x = 2 * sets_of(B)
    moved = x.clone().requires_grad_()
    energy = 0.0
    for i in range(B):
        others = [j for j in range(B) if j != i]
        at = lambda own: (own[:, i, None] - x[:, others]).square().flatten(2).sum(-1)  # (G, B - 1)
        h = at(x).median(-1, keepdim=True).values / math.log(max(B - 1, 2))
        energy = energy + (-at(moved) / h).exp().sum()
    (force,) = torch.autograd.grad(energy, moved)
    guided = Published(denoise, factor=0.3)(x, TWO)
    torch.testing.assert_close(guided, denoise(x, TWO) - TWO**2 * 0.3 * force)


def test_oscars_noise_is_across_the_drift_beside_its_push():
    """It is as long as is asked for, and in the mean over draws it leaves the push alone."""
    denoise, _ = exact()
    x = 2 * sets_of(4)
    G, B = x.shape[:2]
    noise = ParticleNoise(0, range(G), range(B), x.shape[2:])
    guided = lambda strength: ParticleGuidance(
        denoise, Volume(), factor=1.0, space="denoised", strength=strength
    )
    pushed = guided(across("sigma"))(x, TWO)
    noised = guided(with_noise(across("sigma"), noise, 0.2))
    drift = (x - denoise(x, TWO)).flatten(2)  # of a step of length 1 in units of the noise level
    moves = torch.stack([(pushed - noised(x, TWO)).flatten(2) for _ in range(2000)])
    along = (moves * torch.nn.functional.normalize(drift, dim=-1)).sum(-1)
    torch.testing.assert_close(along, torch.zeros_like(along))
    lengths = moves.norm(dim=-1)
    torch.testing.assert_close(lengths, (0.2 * drift.norm(dim=-1)).expand_as(lengths))
    assert (moves.mean(0).norm(dim=-1) < 0.05 * lengths[0]).all()


def test_variance_expects_that_of_the_posterior():
    """h is, on average over directions, the mean variance of sets drawn from the posterior."""
    denoise, images = exact(4, d=2)
    sigma = torch.tensor(1.0, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 3, 1, 2, 2, dtype=torch.float64, generator=generator)
    v = torch.randn(20000, 3, 1, 2, 2, dtype=torch.float64, generator=generator)
    variance = Variance(denoise, factor=1.0, directions=lambda: v)
    denoised = denoise(x.expand_as(v), sigma)
    beside = denoise(x + 0.1 * sigma * v, sigma)
    h = variance.expected_variance(denoised, beside, v, sigma).mean()

    logits = -(x.flatten(2)[0, :, None] - images.flatten(2)).square().sum(-1) / 2
    modes = torch.multinomial(logits.softmax(-1), 20000, replacement=True, generator=generator)
    drawn = images.flatten(2)[0][modes.T]  # (20000, 3, 4)
    expected = (drawn - drawn.mean(1, keepdim=True)).square().sum((1, 2)).mean() / 3
    assert float(h) == pytest.approx(float(expected), rel=0.03)


def test_two_particles_with_two_modes_tilted_by_their_variance_always_differ():
    """Copies have none, so that the tilted density of sets is 0 where both are in one mode."""
    sets = 50
    points = torch.tensor([[-1.0], [1.0]], dtype=torch.float64).view(1, 2, 1, 1, 1)
    denoise = lambda x, sigma: posterior_mean(x, sigma, points.expand(len(x), -1, -1, -1, -1))
    noise = ParticleNoise(0, range(sets), range(2), (1, 1, 1))
    signs = lambda: 1.0 - 2.0 * (noise() < 0)  # in one dimension they give the trace exactly
    sigmas = karras_sigmas(40, 0.01, 80.0, 7.0)
    alone = edm_sampler(denoise, 80 * noise().double(), sigmas)
    guided = Variance(denoise, factor=1.0, directions=signs)
    tilted = edm_sampler(guided, 80 * noise().double(), sigmas)
    differ = lambda x: float((x[:, 0] * x[:, 1] < 0).double().mean())
    assert differ(alone) < 0.75 and differ(tilted) == 1


@pytest.mark.parametrize(
    "method", [pg, Eddy, partial(Variance, directions=None), Reference, Published]
)
def test_no_strength_and_one_particle_leave_the_denoiser_alone(method):
    denoise, _ = exact()
    x = sets_of(5)
    assert torch.equal(method(denoise, factor=0.0)(x, TWO), denoise(x, TWO))
    one = x[:, :1]
    assert torch.equal(method(denoise, factor=3.0)(one, TWO), denoise(one, TWO))


@pytest.mark.parametrize("copies", [True, False])
@pytest.mark.parametrize(
    "method",
    [
        partial(ParticleGuidance, potential=RBF(), space="denoised", strength=never_down),
        partial(ParticleGuidance, potential=Volume(), strength=across("joint")),
        partial(
            ParticleGuidance,
            potential=Volume(),
            strength=with_noise(across("joint"), lambda: torch.ones(2, 3, 1, 6, 6), 0.3),
        ),
        Eddy,
        Published,
        partial(Variance, directions=lambda: torch.ones(2, 3, 1, 6, 6)),
        Reference,
        *(
            partial(pg, kernel=kernel, space=space, strength="drift")
            for kernel, space in itertools.product(KERNELS, ("x", "denoised", "jacobian"))
        ),
    ],
)
def test_methods_end_finite_whatever_their_strength(method, copies):
    denoise, _ = exact()
    x = torch.zeros_like(sets_of(3)) if copies else 80 * sets_of(3)
    sigmas = karras_sigmas(8, 0.002, 80.0, 7.0)
    assert torch.isfinite(edm_sampler(method(denoise, factor=1e300), x, sigmas)).all()


def thesis_potential(y: torch.Tensor) -> torch.Tensor:
    """U of one set y (B, d), as the thesis's code has it: not squared, over a squared median."""
    pairs = torch.pdist(y)
    return (-pairs / (pairs.median() ** 2 / math.log(len(y)))).exp().sum()


def moved_by_the_reference(B: int, factor: float, sets: int = 40, d: int = 36):
    """Sets (sets, B, d) in [0, 1], and what one step of the thesis's guidance makes of them."""
    y = torch.rand(sets, B, d, dtype=torch.float64, generator=torch.Generator().manual_seed(B))
    images = to_model_range(y).view(sets, B, 1, 6, 6)
    moved = Reference(lambda x, sigma: x, factor=factor)(images, TWO)
    return y, y + (moved - images).view_as(y) / (TWO**2 * factor)


@pytest.mark.parametrize("B", [2, 3, 4, 8])
def test_the_references_form_is_autograd_of_its_formula_with_a_plus(B):
    """Through the median too: of all B (B - 1) / 2 distances, the lower one of an even number."""
    y, moved = moved_by_the_reference(B, 0.3)
    for each, to in zip(y, moved):
        each = each.clone().requires_grad_()
        (grad,) = torch.autograd.grad(thesis_potential(each), each)
        torch.testing.assert_close(to - each, grad, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("B", [2, 3, 4, 8])
def test_the_references_form_spreads_sets_but_draws_close_pairs_together(B):
    """The median that it is divided by grows with the set, whose spread therefore always grows.

    All other pairs attract: two particles only move apart, and of three the closest pair is drawn
    together.
    """
    y, moved = moved_by_the_reference(B, 0.3)
    along = (moved - y) * 1e-6
    spread = lambda sets: (sets - sets.mean(1, keepdim=True)).square().sum((1, 2))
    assert (spread(y + along) > spread(y)).all()
    before, after = (torch.stack([torch.pdist(each) for each in sets]) for sets in (y, y + along))
    closer = (after < before).gather(1, before.argsort(1))  # of pairs, the closest first
    median = (closer.shape[1] - 1) // 2
    assert not closer[:, median].any()
    if B == 2:
        torch.testing.assert_close(moved.sum(1), y.sum(1))  # apart, and not aside
    elif B == 3:
        assert closer[:, 0].all()
    elif B == 8:
        assert closer.double().mean() > 0.5


def test_the_thesiss_second_stage_is_not_guided_and_is_where_the_step_began():
    """The steps of EDM's sampler, written out with it."""
    denoise, _ = exact()
    sigmas = karras_sigmas(6, 0.01, 80.0, 7.0)
    start = 80 * ParticleNoise(0, range(2), range(4), (1, 6, 6))().double()
    guided = Reference(denoise, factor=3.0)
    x = start
    for sigma, sigma_next in zip(sigmas, sigmas[1:]):
        d = (x - guided(x, sigma)) / sigma
        after = x + (sigma_next - sigma) * d
        if sigma_next:
            d_next = (after - denoise(x, sigma_next)) / sigma_next
            after = x + (sigma_next - sigma) * (d + d_next) / 2
        x = after
    torch.testing.assert_close(edm_sampler(StageHere(guided, denoise), start, sigmas), x)
