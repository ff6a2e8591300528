"""What every method claims: one step raises the diversity it states, or marginals are kept."""

import itertools
from functools import partial

import pytest
import torch
from conftest import slow_but
from scipy import stats

from diverse_sampling.coupling.antithetic import antithetic
from diverse_sampling.coupling.balanced import balanced_draw
from diverse_sampling.coupling.rivals.contrastive import contrastive
from diverse_sampling.coupling.simplex import simplex
from diverse_sampling.coupling.stratified import stratified
from diverse_sampling.decisions import Decisions
from diverse_sampling.denoiser import to_unit_range
from diverse_sampling.exact import posterior_mean
from diverse_sampling.guidance import ParticleGuidance, Spell, never_down
from diverse_sampling.guidance.classes import ClassGuidance
from diverse_sampling.guidance.rivals.diverseflow import DiverseFlow
from diverse_sampling.guidance.rivals.eddy import Eddy
from diverse_sampling.guidance.rivals.oscar import Volume, across
from diverse_sampling.guidance.rivals.published import Published
from diverse_sampling.guidance.rivals.reference import Reference
from diverse_sampling.guidance.rivals.rke import RKE
from diverse_sampling.guidance.rivals.variance import Variance
from diverse_sampling.method import KEPT, find, names
from diverse_sampling.noise import set_generator
from diverse_sampling.potentials import POTENTIALS, RBF, Bandwidth, UnsquaredRBF
from diverse_sampling.steps import edm_schedule, integrate, karras_sigmas

SIGMA = torch.tensor(1.0, dtype=torch.float64)
D = 6  # numbers in a particle


def of_a_gaussian(x, sigma):
    """The exact denoiser of a standard normal distribution."""
    return x / (1 + sigma**2)


# ---------------------------------------------------------------- a step apart


def random_sets(B, sets=20):
    generator = torch.Generator().manual_seed(B)
    return 0.4 * torch.randn(sets, B, 1, 1, D, generator=generator, dtype=torch.float64)


def near_duplicates(B):
    """Sets whose first two particles are alike up to a thousandth."""
    x = random_sets(B)
    x[:, 1] = x[:, 0] + 1e-3 * x[:, 1]
    return x


def median_held(potential, y):
    """A potential with the bandwidth that the median heuristic gives for one set (1, B, d)."""
    order = 1 if potential is UnsquaredRBF else 2
    distances = torch.cdist(y, y) ** order
    if potential is POTENTIALS["iou"]:
        return potential(Bandwidth("fixed", 0.5))
    return potential(Bandwidth("fixed", float(Bandwidth()(distances, 1.0, order))))


def by_potential(make, **settings):
    """A method of particle guidance, and its diversity -U with the bandwidth held fixed."""

    def method(y):
        potential = median_held(make, y)
        guided = ParticleGuidance(of_a_gaussian, potential, factor=0.3, **settings)
        return guided, lambda moved: -potential.energy(moved)

    return method


def spell(y):
    """Its moves are the gradient of the shortfalls squared, over all pairs within the radius."""
    radius = 1.5 * float(torch.pdist(y[0]).median())

    def diversity(moved):
        return -(radius - torch.pdist(moved[0])).clamp_min(0).square().sum()[None]

    return Spell(of_a_gaussian, radius=radius), diversity


def reference(y):
    def diversity(moved):
        distances = torch.pdist(to_unit_range(y[0]))
        h = distances.median() ** 2 / torch.tensor(float(y.shape[1])).log()
        return -(-torch.pdist(to_unit_range(moved[0])) / h).exp().sum()[None]

    return Reference(of_a_gaussian, factor=0.3), diversity


def variance(y):
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(1, y.shape[1], 1, 1, D, generator=generator, dtype=torch.float64)
    guided = Variance(of_a_gaussian, factor=0.3, directions=lambda: v)

    def diversity(moved):
        denoised = moved[:, :, None, None]
        step = 0.1 * SIGMA * v
        beside = of_a_gaussian(denoised * (1 + SIGMA**2) + step, SIGMA)
        return guided.expected_variance(denoised, beside, v, SIGMA)

    return guided, diversity


def published(y):
    """The kernel of each particle has a bandwidth of its own, from the median of its distances."""
    B = y.shape[1]
    others = ~torch.eye(B, dtype=torch.bool)
    d2 = torch.cdist(y[0], y[0]).square()
    median = d2[others].view(B, B - 1).median(-1, keepdim=True).values
    h = median / torch.tensor(max(B - 1.0, 2.0)).log()

    def diversity(moved):
        return -(-torch.cdist(moved[0], moved[0]).square() / h).exp()[others].sum()[None]

    return Published(of_a_gaussian, factor=0.3), diversity


def dispersion(y):
    """-U of features of x, as the first layers of a network make them."""
    generator = torch.Generator().manual_seed(5)
    layer = torch.randn(D, 4, generator=generator, dtype=torch.float64)
    noisy = lambda denoised: denoised * (1 + SIGMA**2)
    features = lambda x: (x.flatten(2) @ layer).tanh()
    potential = median_held(POTENTIALS["logdet"], features(noisy(y)))
    both = lambda x, sigma: (of_a_gaussian(x, sigma), features(x))
    settings = dict(factor=0.3, strength="drift", features=both)
    guided = ParticleGuidance(of_a_gaussian, potential, **settings)
    return guided, lambda moved: -potential.energy(features(noisy(moved)))


def log_composition(log_p, makes_it):
    """ln P of all assignments of classes that make the composition, of one set (B, k)."""
    B, k = log_p.shape
    modes = torch.tensor([a for a in itertools.product(range(k), repeat=B) if makes_it(a)])
    return log_p[torch.arange(B), modes].sum(1).logsumexp(0)


def by_classes(counts=None, decisions=None):
    """A method of guidance by three classes, and ln P(the composition): of x, or of D(x).

    Arguments:
        counts: B -> how many particles show each class; None: as many classes as there can be
        decisions: as in `ClassGuidance`
    """
    generator = torch.Generator().manual_seed(3)
    scorer = torch.randn(D, 3, generator=generator, dtype=torch.float64)

    def log_posterior(x, sigma):
        return (2 * x.flatten(2) @ scorer).log_softmax(-1)

    def method(y):
        B = y.shape[1]
        asked = None if counts is None else torch.tensor(counts(B))
        guided = ClassGuidance(of_a_gaussian, log_posterior, counts=asked, decisions=decisions)

        def makes_it(modes):
            if asked is None:
                return len(set(modes)) == min(B, 3)
            return [modes.count(m) for m in range(3)] == asked.tolist()

        def diversity(moved):
            seen = moved * (1 + SIGMA**2) if decisions is None else moved
            return log_composition(log_posterior(seen, SIGMA)[0], makes_it)[None]

        return guided, diversity

    return method


REPELLING = {
    **{f"pg, {name}": by_potential(kernel) for name, kernel in POTENTIALS.items()},
    "pg on D(x)": by_potential(POTENTIALS["logdet"], space="denoised"),
    "pg, relative to the drift": by_potential(POTENTIALS["logdet"], strength="drift"),
    "diverseflow": by_potential(DiverseFlow),
    "rke": by_potential(RKE),
    "sriw": by_potential(RBF, space="denoised", strength=never_down),
    "oscar": by_potential(Volume, strength=across("joint")),
    "published": published,
    "dispersion": dispersion,
    "spell": spell,
    "variance": variance,
    "classes": by_classes(),
    "classes, in numbers": by_classes(lambda B: [B // 2, 0, B - B // 2]),
    "classes, of D(x)": by_classes(decisions=Decisions([2.0, 0.5], [0.0, 1.0], variance=1.0)),
}


def raised(method, x):
    """Whether one small step raises the diversity of each of the sets x (G, B, 1, 1, d), (G,)."""
    rose = []
    for each in x[:, None]:
        y = of_a_gaussian(each, SIGMA)
        guided, diversity = method(y.flatten(2))
        push = guided(each, SIGMA) - y
        small = 1e-5 * torch.pdist(y[0].flatten(1)).min() / push.abs().max()
        before = diversity(y.flatten(2))
        rose.append(diversity((y + small * push).flatten(2)) > before)
    return torch.cat(rose)


@pytest.mark.parametrize("sets", [random_sets, near_duplicates])
@pytest.mark.parametrize("B", [2, 3, 8])
@pytest.mark.parametrize("name", REPELLING)
def test_a_small_step_raises_the_diversity_that_the_method_states(name, B, sets):
    if name == "oscar" and B == 2:  # centred and scaled, they are opposite whatever they are
        guided = ParticleGuidance(of_a_gaussian, Volume(), factor=1.0, strength=across("joint"))
        torch.testing.assert_close(guided(sets(B), SIGMA), of_a_gaussian(sets(B), SIGMA))
    else:
        assert raised(REPELLING[name], sets(B)).all()


@pytest.mark.parametrize("name", [each for each in REPELLING if each != "variance"])
def test_particles_have_no_order(name):
    """Other than what is drawn for each of them, as the directions of variance guidance."""
    order = torch.tensor([3, 0, 4, 1, 2])
    for each in random_sets(5, sets=4)[:, None]:
        guided, _ = REPELLING[name](of_a_gaussian(each, SIGMA).flatten(2))
        moved = guided(each, SIGMA)
        torch.testing.assert_close(guided(each[:, order], SIGMA), moved[:, order])


def test_the_references_form_draws_near_duplicates_together_without_exception():
    assert not raised(reference, near_duplicates(8)).any()


def test_a_step_of_contrastive_noise_makes_images_tell_themselves_from_the_others():
    """The cross-entropy of finding an image's former self among the rest of its set."""
    z = standard_normal(20, 5)
    sigma = torch.tensor(3.0, dtype=torch.float64)

    def images(z):
        denoised = in_the_plane(z * sigma, sigma).flatten(2)
        return torch.nn.functional.normalize(denoised, dim=-1)

    def loss(u):
        former = torch.diag_embed(((images(z) - u) * u).sum(-1))
        logits = (u @ u.transpose(1, 2) + former) / 0.1
        targets = torch.arange(5).expand(20, 5)
        return torch.nn.functional.cross_entropy(logits.mT, targets, reduction="none").sum(-1)

    moved = contrastive(in_the_plane, z, sigma, rate=1e-4, steps=1)
    assert (loss(images(moved)) < loss(images(z))).all()
    assert float((moved - z).abs().amax()) == pytest.approx(1e-4, rel=1e-3)


# ---------------------------------------------------------------- kept marginals

# Three Gaussians in the plane, not equally likely.
CENTRES = torch.tensor([[1.0, 0.0], [-0.6, 0.7], [-0.3, -0.9]], dtype=torch.float64)
PRIORS = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
SD = 0.1


def in_the_plane(x, sigma):
    centres = CENTRES.view(1, 3, 1, 1, 2).expand(len(x), -1, -1, -1, -1)
    return posterior_mean(x, sigma, centres, PRIORS.log(), SD)


def standard_normal(sets, B, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(sets, B, 1, 1, 2, generator=generator, dtype=torch.float64)


def sampled(z, denoise=in_the_plane, steps=60, churn=0.0, coupled=lambda z: z):
    """Sets from starting noise z. From 300, where the start is that of the true distribution."""
    noise = (standard_normal(*z.shape[:2], seed=100 + i) for i in range(10000))
    schedule = edm_schedule(karras_sigmas(steps, 0.002, 300.0, 7.0), churn)
    return integrate(denoise, 300 * z, schedule, noise=lambda: coupled(next(noise)))


def stratified_in_the_plane(z):
    axes = torch.eye(2, dtype=torch.float64)[:1].view(1, 1, 1, 1, 2)
    generators = [set_generator(0, g, 5) for g in range(len(z))]
    return stratified(z, axes.expand(len(z), -1, -1, -1, -1), generators)


def balanced_in_the_plane(z):
    """One of each of B groups of four candidates, by previews at noise level 1."""
    B = z.shape[1]
    pool = torch.cat([z, *(standard_normal(len(z), B, seed=i) for i in (1, 2, 3))], 1)
    previews = sampled(pool, steps=4)
    generators = [set_generator(0, g, 5) for g in range(len(z))]
    drawn = balanced_draw(previews, B, generators)
    return pool[torch.arange(len(pool))[:, None], drawn]


KEEPING = {
    "independent": sampled,
    "antithetic noise": lambda z: sampled(antithetic(z)),
    "simplex noise": lambda z: sampled(simplex(z)),
    "stratified noise": lambda z: sampled(stratified_in_the_plane(z)),
    "balanced draw": lambda z: sampled(balanced_in_the_plane(z)),
    "churn": partial(sampled, churn=20.0),
    "simplex churn": partial(sampled, churn=20.0, coupled=simplex),
    "antithetic churn": partial(sampled, churn=20.0, coupled=antithetic),
    "eddy": lambda z: sampled(z, Eddy(in_the_plane, factor=1.0), steps=100),
}


def p_values(samples):
    """Of each particle of a set, over all sets: is it in each mode as often as it should be, and
    does its first coordinate have the distribution that it should have?"""
    weights = PRIORS.numpy()
    first = CENTRES[:, 0].numpy()

    def distribution(at):
        return sum(w * stats.norm.cdf(at, c, SD) for w, c in zip(weights, first))

    for particle in samples.flatten(2).unbind(1):
        modes = torch.cdist(particle, CENTRES).argmin(1)
        yield stats.chisquare(modes.bincount(minlength=3), len(modes) * weights).pvalue
        yield stats.kstest(particle[:, 0].numpy(), distribution).pvalue


def test_sets_of_independent_particles_are_what_is_tested():
    """The test itself: 8 p-values of samples of the truth, and of slightly different priors."""
    generator = torch.Generator().manual_seed(0)

    def drawn(priors):
        modes = torch.multinomial(priors, 2000 * 4, replacement=True, generator=generator)
        points = CENTRES[modes] + SD * standard_normal(2000, 4).view(-1, 2)
        return points.view(2000, 4, 1, 1, 2)

    assert min(p_values(drawn(PRIORS))) > 1e-3
    assert min(p_values(drawn(torch.tensor([0.44, 0.33, 0.23])))) < 1e-4


# Whose claim is tested with them: an optimum, a condition with noise, the sign of the thesis, noise
# across a push, a choice, and noise that needs earlier samples.
ELSEWHERE = {"joint", "cads", "reference", "contrastive", "oscar_noise", "group", "away"}


@pytest.mark.parametrize(
    "flag, name", [(flag, name) for flag in ("guidance", "noise") for name in names(flag)[1:]]
)
def test_every_method_has_a_claim_that_is_tested(flag, name):
    method = find(flag, name)
    keeps = name in KEEPING or method.title in KEEPING
    repels = name in {each.split(",")[0] for each in REPELLING}
    assert keeps + repels + (name in ELSEWHERE) == 1
    assert keeps == method.frequencies.startswith(KEPT)


@pytest.mark.parametrize("name", slow_but([n for n in KEEPING if n != "eddy"], KEEPING))
def test_marginals_are_kept(name):
    """Each particle has the true distribution, whatever the others are like."""
    sets = 1000 if name == "balanced draw" else 2000
    assert min(p_values(KEEPING[name](standard_normal(sets, 4)))) > 1e-4


@pytest.mark.parametrize("name", ["balanced draw", "stratified noise", "simplex noise"])
def test_kept_marginals_come_with_sets_that_are_spread(name):
    """Counts of the first mode in a set vary less than independent ones."""
    z = standard_normal(500, 4)
    spread = {}
    for each in ("independent", name):
        modes = torch.cdist(KEEPING[each](z).flatten(2), CENTRES.expand(500, -1, -1)).argmin(-1)
        spread[each] = float((modes == 0).double().sum(1).var())
    assert spread["independent"] == pytest.approx(4 * 0.5 * 0.5, rel=0.15)
    assert spread[name] < 0.85 * spread["independent"]


def test_repulsion_does_not_keep_them():
    guided = ParticleGuidance(in_the_plane, RBF(), factor=0.3)
    assert min(p_values(sampled(standard_normal(500, 4), guided))) < 1e-4


def test_eddys_field_has_no_divergence_under_the_density():
    """div_i f_i + <f_i, s_i> = 0, where s_i is the score that the field is made with."""
    x = 1.3 * standard_normal(3, 4)
    eddy = Eddy(in_the_plane, factor=1.0)

    def field_of_first(own):
        moved = torch.cat([own.view(3, 1, 1, 1, 2), x[:, 1:]], 1)
        denoised = in_the_plane(moved, SIGMA)
        return eddy.field(moved.flatten(2), denoised.flatten(2), float(SIGMA))[:, 0]

    own = x[:, 0].flatten(1)
    jacobian = torch.autograd.functional.jacobian(field_of_first, own)  # (3, 2, 3, 2)
    divergence = torch.einsum("gaga->g", jacobian)
    score = (in_the_plane(x, SIGMA) - x)[:, 0].flatten(1) / SIGMA**2
    along = (field_of_first(own) * score).sum(-1)
    assert along.abs().min() > 1e-3
    torch.testing.assert_close(divergence + along, torch.zeros(3, dtype=torch.float64))


def test_eddys_field_does_not_lower_the_kernel_of_independent_particles_on_average():
    """It repels some sets and attracts others: the joint law of independent particles stays."""
    sets = 4000
    generator = torch.Generator().manual_seed(0)
    drawn = torch.multinomial(PRIORS, sets * 4, replacement=True, generator=generator)
    spread = (SD**2 + float(SIGMA) ** 2) ** 0.5
    x = CENTRES[drawn].view(sets, 4, 1, 1, 2) + spread * standard_normal(sets, 4)
    field = Eddy(in_the_plane, factor=1.0)(x, SIGMA) - in_the_plane(x, SIGMA)
    h = 2 * 2 * (float(SIGMA) ** 2 + 0.25) / torch.tensor(4.0).log()
    change = (RBF(Bandwidth("fixed", float(h))).grad(x.flatten(2)) * field.flatten(2)).sum((1, 2))
    assert (change > 0).double().mean() > 0.1 and (change < 0).double().mean() > 0.1
    assert abs(change.mean()) < 4 * change.std() / sets**0.5
