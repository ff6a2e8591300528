"""Guidance in pipelines of diffusers: every scheduler with an exact network, and tiny pipelines."""

import copy
import functools
import inspect
import math
import re
import warnings

import numpy
import pytest
import torch
from conftest import ROOT, slow_but
from scipy.stats import binomtest
from test_benchmarks import load
from torch import nn

from diverse_sampling.decisions import Decisions, measure
from diverse_sampling.errors import SettingError
from diverse_sampling.exact import log_weights
from diverse_sampling.guidance import ParticleGuidance
from diverse_sampling.pipelines import (
    as_memory,
    denoiser_of,
    guided_window,
    pilot,
    repel,
    repelling,
)
from diverse_sampling.potentials import LogDet
from diverse_sampling.sets import measured_guide
from diverse_sampling.steps import Window, karras_sigmas
from lab.metrics import wilson_interval

diffusers = pytest.importorskip("diffusers")
# Of numpy, about how two schedulers call it.
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")

SIDE = 8
# What the benchmark measures with is what is tested here.
benchmark = load("pipelines")
SCHEDULERS, STABLE, UNCLIPPED = benchmark.SCHEDULERS, benchmark.STABLE, benchmark.UNCLIPPED
Network, draw = benchmark.Network, benchmark.draw
exact, scheduler = benchmark.exact, benchmark.scheduler
BLOBS = benchmark.images()
HERE = benchmark.exact_decisions()
every_scheduler = pytest.mark.parametrize("name", SCHEDULERS)
QUICK = ("DDIM v", "DPM++ 2M flow", "UniPC", "Euler v", "Heun", "Flow Euler", "EDM Euler v")
quick_schedulers = pytest.mark.parametrize("name", slow_but(QUICK, SCHEDULERS))


def places(sets):
    """How many of the 8 places a set shows, and the share of samples that show one."""
    distance, mode = torch.cdist(sets.float().flatten(2), BLOBS.flatten(1)).min(-1)
    shown = distance < torch.pdist(BLOBS.flatten(1)).min() / 3
    mode = torch.where(shown, mode, -1)
    found = torch.stack([(mode == k).any(1) for k in range(8)]).sum(0)
    return float(found.float().mean()), float(shown.float().mean())


def normal(*shape, seed=0):
    """Standard normal noise."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def watching(seen):
    """A guide that changes nothing, and adds each x, sigma and D(x) that it meets to `seen`."""
    return lambda denoise: (
        lambda x, sigma: seen.append((x, sigma, denoise(x, sigma))) or seen[-1][-1]
    )


@pytest.fixture(scope="module")
def guide():
    """Measured on the exact denoiser, whose noise levels are those of every scheduler."""
    decisions = benchmark.exact_decisions()
    return measured_guide(decisions, guided_window(decisions))


# ---------------------------------------------------------------- schedulers


@every_scheduler
def test_guidance_finds_more_places_with_every_scheduler(name):
    schedule = scheduler(name)
    plain, shown = places(draw(schedule))
    assert 4.6 < plain < 5.9 and shown >= 0.95  # 5.25 is expected of independent draws
    with benchmark.guided(schedule):
        guided, shown = places(draw(schedule))
    # EDM's levels are further apart: few of them lie where it is decided what a sample shows.
    assert guided >= (7.3 if name.startswith("EDM") else 7.5) and shown == 1


@every_scheduler
def test_guidance_sees_the_denoised_images_at_their_noise_level(name):
    """What it is given is E[y | x], which a wrong reading of any scheduler is not."""
    schedule, seen = scheduler(name), []
    with repelling(schedule, watching(seen), particles=8):
        draw(schedule, sets=1, steps=15)
    levels = [float(sigma) for _, sigma, _ in seen]
    assert len(seen) >= len(schedule.timesteps) - 1
    # A sigma between two timesteps of training reaches the network as the nearer one.
    rounded = 0.1 if "Karras" in name else 0.02
    for x, sigma, denoised in seen:
        torch.testing.assert_close(denoised, exact(x, sigma), rtol=rounded, atol=rounded)
    assert levels[0] > 9 and min(levels) < 0.3


@quick_schedulers
def test_the_scheduler_goes_where_guidance_points(name):
    """A guide that wants one image everywhere gets it, whatever the network predicts."""
    schedule = scheduler(name)
    with repelling(schedule, lambda denoise: lambda x, sigma: BLOBS[0].expand_as(x), particles=8):
        sets = draw(schedule, sets=1)
    # The last sample of those that end at a noise level above 0 has its noise.
    assert (sets - BLOBS[0]).square().mean().sqrt() < 0.05


@quick_schedulers
def test_a_guide_that_does_nothing_changes_no_bit(name):
    schedule = scheduler(name)
    plain = draw(schedule, sets=2, steps=15)
    with repelling(schedule, lambda denoise: denoise, particles=8):
        assert torch.equal(draw(schedule, sets=2, steps=15), plain)


@pytest.mark.parametrize("name", ["DDIM", "DPM++ 2M", "Euler", "Flow Euler", "EDM Euler"])
def test_half_precision_stays_finite(name):
    schedule = scheduler(name)
    plain = draw(schedule, dtype=torch.bfloat16)
    with benchmark.guided(schedule):
        guided = draw(schedule, dtype=torch.bfloat16)
    assert guided.dtype == plain.dtype == torch.bfloat16 and guided.isfinite().all()
    assert places(guided)[0] > places(plain)[0] + 1


@pytest.mark.slow
@every_scheduler
def test_a_scheduler_on_a_gpu_is_guided_there(name, gpu):
    """As on the CPU."""
    noise = normal(8, *BLOBS.shape[1:])

    def guided(schedule, noise):
        with benchmark.guided(schedule):
            return draw(schedule, noise=noise, steps=6)

    expected = guided(scheduler(name), noise)
    sets = guided(scheduler(name), noise.to("cuda"))
    assert sets.is_cuda and torch.equal(sets.cpu(), expected) and gpu.errors == []


def test_a_push_beyond_half_precision_is_bounded():
    schedule, given = scheduler("DDIM"), []
    schedule.set_timesteps(30)
    schedule.step = lambda prediction, timestep, sample: given.append(prediction)
    far = lambda denoise: lambda x, sigma: denoise(x, sigma) + 1e8
    with repelling(schedule, far, particles=8):
        half = torch.ones(8, 1, SIDE, SIDE, dtype=torch.float16)
        schedule.step(half, 100, half)
    assert given[0].dtype == torch.float16 and given[0].isfinite().all()
    assert given[0].max() == torch.finfo(torch.float16).min


def test_leaving_restores_the_scheduler(guide):
    schedule = scheduler("DDIM")
    before, kind, state = inspect.signature(schedule.step), type(schedule), {*vars(schedule)}
    with repelling(schedule, guide, particles=8):
        assert inspect.signature(schedule.step) == before  # pipelines look at it
        assert isinstance(schedule, kind) and type(schedule).__name__ == kind.__name__
        schedule.set_timesteps(30)
        schedule.step(normal(8, 1, SIDE, SIDE), 100, normal(8, 1, SIDE, SIDE))
    assert type(schedule) is kind and {*vars(schedule)} == state
    with pytest.raises(KeyError), repelling(schedule, guide, particles=8):
        raise KeyError
    assert type(schedule) is kind


COPIES = dict(deep=copy.deepcopy, shallow=copy.copy, config=lambda one: one.from_config(one.config))


@pytest.mark.parametrize("copied", COPIES)
@pytest.mark.parametrize("name", ["DDIM", "Euler", "Heun", "UniPC"])
def test_a_copy_of_the_scheduler_is_guided_like_it_and_no_longer_than_it(name, copied, guide):
    """Some pipelines copy their scheduler in each call."""
    drawn = []
    for make in (lambda one: one, COPIES[copied]):
        schedule = scheduler(name)
        noise = torch.Generator().manual_seed(0)
        with repelling(schedule, guide, particles=8, window=Window(0.1, 10, 0.5), generator=noise):
            used = make(schedule)
            drawn.append(draw(used, sets=2))
    assert torch.equal(drawn[0], drawn[1])
    plain = scheduler(name)
    assert torch.equal(draw(used, sets=2), draw(plain, sets=2))


def test_a_scheduler_that_is_not_the_guided_one_is_refused(guide, exact_pipe):
    """Its pictures would be those without guidance, and nobody would know."""
    other = scheduler("Euler")
    with (
        pytest.raises(SettingError, match="^scheduler: got 'DDIMScheduler'.*took no step"),
        repelling(scheduler("DDIM"), guide, particles=8),
    ):
        draw(other, sets=1)
    before = exact_pipe.scheduler
    decided = pilot(denoiser_of(exact_pipe), particles=16)
    with (
        pytest.raises(SettingError, match="^scheduler: got 'EulerDiscreteScheduler'.*not guided"),
        repel(exact_pipe, particles=8, decisions=decided),
    ):
        exact_pipe.scheduler = other
    exact_pipe.scheduler = before


def test_contexts_nest(guide):
    """The outer guide sees what the inner one left of the prediction."""
    schedule, seen = scheduler("DDIM"), []
    wanted = lambda denoise: lambda x, sigma: BLOBS[3].expand_as(x)
    with (
        repelling(schedule, watching(seen), particles=8),
        repelling(schedule, wanted, particles=8),
    ):
        draw(schedule, sets=1)
    denoised = seen[20][-1]
    torch.testing.assert_close(denoised, BLOBS[3].expand_as(denoised), atol=1e-3, rtol=0)
    assert type(schedule) is type(scheduler("DDIM"))


def test_sets_of_several_prompts_do_not_mix(guide):
    noise = normal(16, 1, SIDE, SIDE)
    other = torch.cat([noise[:8], normal(8, 1, SIDE, SIDE, seed=1)])
    schedule = scheduler("DDIM")
    with repelling(schedule, guide, particles=8):
        (first, second), (same, changed) = draw(schedule, noise=noise), draw(schedule, noise=other)
    torch.testing.assert_close(first, same, atol=1e-4, rtol=0)
    assert not torch.allclose(second, changed, atol=0.1)


# ---------------------------------------------------------------- new noise

RENEWED = ("DDIM", "DDIM v", "UniPC", "UniPC flow", "DEIS", "Euler", "Flow Euler", "EDM Euler")


@pytest.mark.parametrize("churn", [0.5, 2.0])
@pytest.mark.parametrize("name", RENEWED)
def test_a_share_of_the_noise_is_drawn_anew(name, churn):
    """After a step what is held still has the noise of the next level, a part of it new."""
    schedule, noise = scheduler(name), normal(4000, 1, SIDE, SIDE)

    def left(window):
        """The noise at the second level that guidance sees, of samples that go to one image."""
        seen = []
        aim = lambda denoise: lambda x, sigma: seen.append((x, sigma)) or BLOBS[0].expand_as(x)
        generator = torch.Generator().manual_seed(1)
        with repelling(schedule, aim, particles=8, window=window, generator=generator):
            draw(schedule, noise=noise, steps=4)
        x, sigma = seen[1]
        return (x - BLOBS[0]) / sigma

    before, after = left(None), left(Window(0, math.inf, churn))
    kept = float((after * before).mean() / before.square().mean())
    assert kept == pytest.approx(1 / (1 + churn), abs=0.01)
    new = float((after - kept * before).std())
    assert new == pytest.approx((1 - kept**2) ** 0.5, abs=0.01)


@quick_schedulers
def test_new_noise_alone_changes_no_distribution(name):
    """At every level a sample is y + sigma n, and each of the images is as frequent as it was."""
    schedule, seen = scheduler(name), []
    window = guided_window(benchmark.exact_decisions())
    generator = torch.Generator().manual_seed(1)
    with repelling(schedule, watching(seen), particles=8, window=window, generator=generator):
        sets = draw(schedule, sets=100)
    of_images = float(BLOBS.flatten(1).var(0, correction=0).sum())
    for x, sigma, _ in seen:
        if window.low < sigma < window.high:
            variance = float(x.flatten(0, 1).flatten(1).var(0).sum())
            assert variance == pytest.approx(of_images + SIDE**2 * float(sigma) ** 2, rel=0.06)
    distance, mode = torch.cdist(sets.flatten(2), BLOBS.flatten(1)).min(-1)
    assert distance.max() < 0.5
    counts = mode.flatten().bincount(minlength=8)
    assert (counts - 100).abs().max() < 4.5 * (800 * 7 / 64) ** 0.5


FLOWS = [name for name in SCHEDULERS if name.startswith("Flow")]


@pytest.mark.parametrize("steps", [8, 28])
@pytest.mark.parametrize("name", FLOWS)
def test_new_noise_of_a_flow_keeps_the_images_and_their_pixels(name, steps):
    """Its noise is y + v. The moments of pixels and the shares of images are those of the data."""
    schedule, generator = scheduler(name), torch.Generator().manual_seed(1)
    window = guided_window(benchmark.exact_decisions())
    with repelling(
        schedule, lambda denoise: denoise, particles=8, window=window, generator=generator
    ):
        drawn = draw(schedule, sets=250, steps=steps).flatten(0, 1)
    n, images = len(drawn), BLOBS.flatten(1)
    distance, mode = torch.cdist(drawn.flatten(1), images).min(-1)
    assert distance.max() < 0.1
    # Five standard errors of shares, and of means and second moments of each pixel.
    assert (mode.bincount(minlength=8) / n - 1 / 8).abs().max() < 5 * (7 / 64 / n) ** 0.5
    for power in (1, 2):
        of_images, found = images**power, drawn.flatten(1) ** power
        error = of_images.std(0, correction=0) / n**0.5
        assert ((found.mean(0) - of_images.mean(0)).abs() < 5 * error + 0.01).all()


def test_inverted_noise_levels_give_what_the_others_do():
    """Mochi's network sees 1 - s, and predicts y - n: the same samples but for rounding."""
    drawn = []
    for name in ("Flow Euler", "Flow Euler inverted"):
        schedule = scheduler(name)
        with benchmark.guided(schedule):
            drawn.append(draw(schedule, sets=20))
    torch.testing.assert_close(*drawn, atol=2e-3, rtol=0)


@pytest.mark.parametrize("steps, least", [(8, 7.25), (28, 7.75)])
def test_a_flow_of_few_steps_finds_most_places(steps, least):
    """The figures of many sets are 7.4 and 7.9, less four standard errors."""
    schedule = scheduler("Flow Euler")
    with benchmark.guided(schedule):
        found, shown = places(draw(schedule, sets=200, steps=steps))
    assert found >= least and shown == 1


def test_steps_that_nothing_would_mend_are_not_guided():
    """Those that end where samples are settled: the scheduler gets what the network predicts."""
    schedule, predicted, given = scheduler("Flow Euler"), [], []
    network, plain = Network(schedule), schedule.step
    network.register_forward_hook(lambda network, inputs, output: predicted.append(output.sample))
    schedule.step = lambda prediction, *others, **more: (
        given.append(prediction) or plain(prediction, *others, **more)
    )
    with benchmark.guided(schedule):
        draw(schedule, sets=1, steps=8, network=network)
    guided = [not torch.equal(*each) for each in zip(predicted, given)]
    ends = [float(s / (1 - s)) for s in schedule.sigmas[1:]]
    starts_with_an_image = [False] + 7 * [True]
    settled = benchmark.exact_decisions().sigma(0.99)
    assert guided == [start and end > settled for start, end in zip(starts_with_an_image, ends)]
    assert sum(guided) == 5


def test_no_noise_is_new_outside_of_the_window():
    schedule = scheduler("DDIM")
    plain = draw(schedule, sets=1, steps=15)

    def renewed(window):
        with repelling(schedule, lambda denoise: denoise, particles=8, window=window):
            return draw(schedule, sets=1, steps=15)

    assert torch.equal(renewed(Window(20.0, 30.0, 1.0)), plain)
    assert not torch.allclose(renewed(Window(0.0, math.inf, 1.0)), plain, atol=0.1)
    assert torch.equal(draw(schedule, sets=1, steps=15), plain)


@pytest.mark.parametrize("name", ["DDIM", "UniPC"])
def test_new_noise_comes_from_the_generator_that_is_given(name):
    """Or from the pipeline's, if its scheduler takes one; lists of them as in pipelines."""
    schedule = scheduler(name)

    def drawn(generator):
        decisions = benchmark.exact_decisions()
        pipe = benchmark.SimpleNamespace(scheduler=schedule)
        with repel(pipe, particles=8, decisions=decisions, generator=generator):
            return draw(schedule, sets=1, steps=15)

    seeded = [torch.Generator().manual_seed(seed) for seed in (1, 1, 2)]
    first, same, other = (drawn(generator) for generator in seeded)
    assert torch.equal(first, same) and not torch.allclose(first, other, atol=0.1)
    each = drawn([torch.Generator().manual_seed(seed) for seed in range(8)])
    assert each.isfinite().all()
    torch.manual_seed(0)
    assert torch.equal(drawn(None), drawn(None)) == (name == "DDIM")


def test_new_noise_lets_guidance_find_more(guide):
    schedule = scheduler("DDIM")
    with repelling(schedule, guide, particles=8):
        without, _ = places(draw(schedule, sets=40))
    with benchmark.guided(schedule):
        guided, shown = places(draw(schedule, sets=40))
    assert guided > without + 0.2 and guided > 7.7 and shown == 1
    assert "step" not in vars(schedule)


def test_no_strength_changes_no_bit():
    schedule = scheduler("DDIM")
    plain = draw(schedule, sets=1, steps=15)
    with benchmark.guided(schedule, factor=0.0):
        assert torch.equal(draw(schedule, sets=1, steps=15), plain)


# ---------------------------------------------------------------- classes


def posterior(x, sigma):
    """log p(image | x) of the eight images, which are a class each: exact."""
    images = BLOBS.to(x).expand(len(x), -1, -1, -1, -1)
    return log_weights(x, sigma, images).log_softmax(-1)


def of_clean(x, sigma):
    """The same for a classifier that knows images without noise, but is not quite sure of them."""
    return posterior(x, torch.tensor(0.3))


def asked(schedule, **classes):
    """The context in which sets show the classes that are asked for."""
    return repel(
        benchmark.SimpleNamespace(scheduler=schedule),
        particles=8,
        decisions=benchmark.exact_decisions(),
        generator=torch.Generator().manual_seed(2),
        **classes,
    )


def shown(sets):
    """How many particles show each place, (G, 8)."""
    mode = torch.cdist(sets.flatten(2), BLOBS.flatten(1)).argmin(-1)
    return nn.functional.one_hot(mode, 8).sum(1)


SOME, ONE_EACH = torch.tensor([5, 0, 0, 2, 0, 1, 0, 0]), torch.ones(8, dtype=torch.int64)


@pytest.mark.parametrize("clean", [False, True], ids=["noisy", "clean"])
@quick_schedulers
def test_sets_have_the_composition_that_is_asked_for(name, clean):
    log_posterior = of_clean if clean else posterior
    for counts, expected in ((SOME, SOME), (None, ONE_EACH)):
        schedule = scheduler(name)
        with asked(schedule, log_posterior=log_posterior, counts=counts, clean=clean):
            sets = draw(schedule, sets=20)
        least = 0.8 if clean and name == "Flow LCM" else 0.9
        assert (shown(sets) == expected).all(1).float().mean() >= least
        assert places(sets)[1] >= 0.98


def test_each_set_may_have_a_composition_of_its_own():
    counts = torch.stack([SOME, ONE_EACH, SOME.flip(0), 8 * nn.functional.one_hot(SOME[5], 8)])
    schedule = scheduler("DDIM")
    with asked(schedule, log_posterior=posterior, counts=counts):
        assert torch.equal(shown(draw(schedule, sets=4)), counts)


@pytest.mark.parametrize("clean", [False, True], ids=["noisy", "clean"])
def test_classes_at_no_strength_change_no_bit(clean):
    schedule = scheduler("DDIM")
    plain = draw(schedule, sets=1, steps=15)
    with asked(schedule, log_posterior=posterior, counts=SOME, clean=clean, factor=0):
        assert torch.equal(draw(schedule, sets=1, steps=15), plain)


@pytest.mark.parametrize(
    "classes, line",
    [
        (
            dict(log_posterior=lambda x, sigma: posterior(x, sigma)[0]),
            r"of log_posterior: got \[8, 8\]; accepted: \[1, 8, k\] for samples \[1, 8, 1, 8, 8\]",
        ),
        (
            dict(counts=SOME[:5]),
            r"shape of counts: got \[5\]; accepted: \[8\] or \[1, 8\], k = 8 cl",
        ),
        (dict(counts=2 * SOME), r"counts: got \[16\] in all; accepted: 8, one per particle"),
        (dict(log_posterior=None, counts=SOME), "counts: got .*; accepted: with log_posterior"),
        (dict(log_posterior=None, clean=True), "clean: got True; accepted: with log_posterior"),
    ],
)
def test_classes_that_do_not_fit_are_refused_in_one_line(classes, line):
    schedule = scheduler("DDIM")
    with pytest.raises(ValueError, match=line) as refused:
        with asked(schedule, **dict(log_posterior=posterior) | classes):
            draw(schedule, sets=1)
    assert "\n" not in str(refused.value) and "step" not in vars(schedule)


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    "kind, settings, line",
    [
        ("LMSDiscreteScheduler", {}, "scheduler: got 'LMSDiscreteScheduler'; accepted: Euler"),
        ("PNDMScheduler", {}, "scheduler: got 'PNDMScheduler'; accepted: DDIMScheduler or UniPC"),
        ("IPNDMScheduler", {}, "scheduler: got 'IPNDMScheduler'; accepted: DEIS"),
        ("VQDiffusionScheduler", dict(num_vec_classes=3), "'VQDiffusionScheduler'; accepted: DDIM"),
        ("DDIMScheduler", {}, "clip_sample: got True; accepted: .* clip_sample=False"),
        ("DDPMScheduler", {}, "clip_sample: got True"),
        ("UniPCMultistepScheduler", dict(thresholding=True), "thresholding: got True"),
        (
            "FlowMatchEulerDiscreteScheduler",
            dict(invert_sigmas=True, stochastic_sampling=True),
            "invert_sigmas: got True; accepted: FlowMatchEulerDiscreteScheduler, stochastic_s",
        ),
        ("FlowMatchLCMScheduler", dict(invert_sigmas=True), "invert_sigmas: got True"),
        ("FlowMatchLCMScheduler", dict(scale_factors=[0.5, 1.0]), "scale_factors: got .0.5, 1.0."),
    ],
)
def test_schedulers_that_cannot_be_guided_are_refused(kind, settings, line, guide):
    schedule = getattr(diffusers, kind)(**settings)
    with pytest.raises(SettingError, match=line), repelling(schedule, guide, particles=8):
        pass
    assert "step" not in vars(schedule)


JACOBIAN = functools.partial(ParticleGuidance, potential=LogDet(), factor=3)


def hidden(denoise):
    guided = JACOBIAN(denoise)
    return lambda x, sigma: guided(x, sigma)


def elsewhere(denoise):
    return lambda x, sigma: denoise(x + 1, sigma)


@pytest.mark.parametrize(
    "guide, particles, line",
    [
        (JACOBIAN, 8, r"space: got 'jacobian'; accepted: .*denoiser_of\(pipe\)"),
        (hidden, 8, r"space: got 'jacobian'; accepted: .*denoiser_of\(pipe\)"),
        (elsewhere, 8, "guide: got 'a call of the denoiser at another x'"),
        (lambda denoise: denoise, 3, "particles: got 3; accepted: a divisor of the 8 samples"),
        (lambda denoise: denoise, 0, "particles: got 0; accepted"),
    ],
)
def test_guidance_that_cannot_work_in_a_scheduler_is_refused(guide, particles, line):
    schedule = scheduler("DDIM")
    with pytest.raises(SettingError, match=line):
        with repelling(schedule, guide, particles=particles):
            draw(schedule, sets=1)


def test_a_noise_level_for_each_token_is_refused(guide):
    schedule, sample = scheduler("Flow Euler"), normal(8, 1, SIDE, SIDE)
    schedule.set_timesteps(4)
    with pytest.raises(SettingError, match="per_token_timesteps: got 'a noise level for each"):
        with repelling(schedule, guide, particles=8):
            times = torch.ones(8, 1)
            schedule.step(sample, schedule.timesteps[0], sample, per_token_timesteps=times)


def test_a_learned_variance_is_refused(guide):
    schedule = diffusers.DDPMScheduler(**UNCLIPPED, variance_type="learned")
    sample = torch.zeros(8, 1, SIDE, SIDE)
    with pytest.raises(SettingError, match=r"got \[8, 2, 8, 8\]; accepted: .*\[8, 1, 8, 8\]"):
        with repelling(schedule, guide, particles=8):
            schedule.step(torch.zeros(8, 2, SIDE, SIDE), 500, sample)


# ---------------------------------------------------------------- tiny pipelines


def unet(**settings):
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=4,
        **settings,
    )


def vae(**settings):
    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        sample_size=16,
        **settings,
    )


def without(*names):
    """Parts of a pipeline that it does without where prompts are embedded already."""
    return dict.fromkeys(names)


def stable_diffusion():
    return diffusers.StableDiffusionPipeline(
        unet=unet(),
        vae=vae(),
        scheduler=diffusers.DDIMScheduler(**UNCLIPPED, steps_offset=1),
        requires_safety_checker=False,
        **without("text_encoder", "tokenizer", "safety_checker", "feature_extractor"),
    )


def stable_diffusion_xl():
    network = unet(
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 16,
        transformer_layers_per_block=1,
    )
    return diffusers.StableDiffusionXLPipeline(
        unet=network,
        vae=vae(),
        scheduler=diffusers.EulerDiscreteScheduler(**STABLE),
        **without("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"),
    )


TRANSFORMER = dict(
    num_layers=1, num_attention_heads=2, joint_attention_dim=16, pooled_projection_dim=16
)


def stable_diffusion_3():
    network = diffusers.SD3Transformer2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        attention_head_dim=8,
        caption_projection_dim=16,
        pos_embed_max_size=8,
        **TRANSFORMER,
    )
    names = [f"{part}{n}" for part in ("text_encoder", "tokenizer") for n in ("", "_2", "_3")]
    return diffusers.StableDiffusion3Pipeline(
        transformer=network,
        vae=vae(shift_factor=0.1),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        **without(*names),
    )


def flux():
    network = diffusers.FluxTransformer2DModel(
        in_channels=16,
        num_single_layers=1,
        attention_head_dim=16,
        axes_dims_rope=[4, 4, 8],
        guidance_embeds=True,
        **TRANSFORMER,
    )
    return diffusers.FluxPipeline(
        transformer=network,
        vae=vae(shift_factor=0.1),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        **without("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"),
    )


PIPELINES = {
    "SD": stable_diffusion,
    "SDXL": stable_diffusion_xl,
    "SD3": stable_diffusion_3,
    "Flux": flux,
}
B = 3
REPULSION = functools.partial(
    ParticleGuidance, potential=LogDet(), factor=3, space="denoised", strength="drift"
)


@functools.cache
def pipeline(name):
    pytest.importorskip("transformers")  # without it diffusers has no such pipelines
    torch.manual_seed(0)
    pipe = PIPELINES[name]()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def conditions(name, guided=True):
    """Two prompts, embedded, and whether classifier-free guidance is used: what is asked for."""
    generator = torch.Generator().manual_seed(1)
    shapes = dict(prompt_embeds=(2, 5, 16), negative_prompt_embeds=(2, 5, 16))
    if name != "SD":
        shapes |= dict(pooled_prompt_embeds=(2, 16), negative_pooled_prompt_embeds=(2, 16))
    embedded = {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}
    strength = dict(true_cfg_scale=4.0) if name == "Flux" else dict(guidance_scale=5.0)
    if not guided:
        strength = {key: 1.0 for key in strength}
    return embedded | strength | dict(height=16, width=16)


def latents(name, **given):
    """Two sets of B, as the pipeline has them."""
    settings = conditions(name) | given
    for key in settings:
        if "embeds" in key:
            settings[key] = settings[key].repeat_interleave(B, 0)
    few = dict(num_inference_steps=4, generator=torch.Generator().manual_seed(0))
    return pipeline(name)(**settings, **few, output_type="latent").images


every_pipeline = pytest.mark.parametrize("name", PIPELINES)


@every_pipeline
@pytest.mark.parametrize("guided", [True, False], ids=["cfg", "plain"])
def test_an_identity_guide_changes_no_bit_of_a_pipeline(name, guided):
    pipe, settings = pipeline(name), conditions(name, guided)
    plain = latents(name, **settings)
    with repelling(pipe.scheduler, lambda denoise: denoise, particles=B):
        assert torch.equal(latents(name, **settings), plain)
    assert plain.isfinite().all() and plain.std() > 0


def apart(images):
    return torch.stack(
        [torch.pdist(each.flatten(1)).mean() for each in images.unflatten(0, (2, B))]
    )


@every_pipeline
def test_a_guided_pipeline_spreads_and_is_itself_again_after(name):
    pipe, plain = pipeline(name), latents(name)
    with repelling(pipe.scheduler, REPULSION, particles=B):
        spread = latents(name)
    assert (apart(spread) > 1.03 * apart(plain)).all()
    assert torch.equal(latents(name), plain)


@every_pipeline
@pytest.mark.parametrize("guided", [True, False], ids=["cfg", "plain"])
def test_a_pipeline_as_a_denoiser_is_what_its_scheduler_sees(name, guided):
    """D with conditioning, classifier-free guidance and noise levels, by two independent ways."""
    pipe, settings, seen = pipeline(name), conditions(name, guided), []
    with repelling(pipe.scheduler, watching(seen), particles=B):
        latents(name, **settings)
    denoise = denoiser_of(pipe, **settings)
    before = pipe.scheduler
    for x, sigma, expected in seen[1:]:
        with torch.no_grad():
            torch.testing.assert_close(denoise(x, sigma), expected, rtol=1e-3, atol=2e-3)
    assert pipe.scheduler is before and x.shape[2:] == denoise.shape


def test_a_denoiser_has_gradients_and_leaves_its_pipeline_as_it_was():
    pipe = pipeline("SD")
    denoise = denoiser_of(pipe, **conditions("SD"))
    x = torch.randn(2, B, *denoise.shape).requires_grad_()
    guided = ParticleGuidance(denoise, LogDet(), factor=1)
    sigma = torch.tensor(2.0, dtype=torch.float64)
    assert not torch.equal(guided(x, sigma), denoise(x, sigma))
    assert "encode_prompt" not in vars(pipe)
    with pytest.raises(SettingError, match="prompt: got '2 for 3 particles'"):
        denoise(x[:1], sigma)


@pytest.mark.slow
@every_pipeline
def test_a_pipeline_on_a_gpu_is_guided_there(name, gpu):
    """By both routes as on the CPU, with gradients too."""

    def both(device):
        pipe = pipeline(name).to(device)
        settings = {
            key: value.to(device) if isinstance(value, torch.Tensor) else value
            for key, value in conditions(name).items()
        }
        with repelling(pipe.scheduler, REPULSION, particles=B):
            spread = latents(name, **settings)
        denoise = denoiser_of(pipe, **settings)
        x = normal(2, B, *denoise.shape, seed=2).to(device)
        sigma = torch.tensor(2.0, dtype=torch.float64)
        guided = ParticleGuidance(denoise, LogDet(), factor=1)
        return spread, guided(x, sigma)

    expected = both("cpu")
    try:
        sets = both("cuda")
    finally:
        pipeline(name).to("cpu")
    assert all(each.is_cuda for each in sets) and gpu.errors == []
    assert all(torch.equal(each.cpu(), other) for each, other in zip(sets, expected))


# ---------------------------------------------------------------- an exact pipeline


@pytest.fixture
def exact_pipe():
    schedule = scheduler("DDIM")
    pipe = diffusers.DDIMPipeline(Network(schedule), schedule)
    pipe.set_progress_bar_config(disable=True)
    return pipe


STARTS = normal(1, 64, 1, SIDE, SIDE, seed=3)


def test_a_pilot_through_the_pipeline_finds_the_window_of_its_data(exact_pipe):
    denoise = denoiser_of(exact_pipe)
    decisions = pilot(denoise, particles=64)
    sigmas = karras_sigmas(22, denoise.sigma_min, denoise.sigma_max, rho=7)
    expected = measure(exact, STARTS * sigmas[0], sigmas)
    assert decisions.window()[:2] == pytest.approx(expected.window()[:2], rel=0.25)
    assert decisions.variance == pytest.approx(expected.variance, rel=0.1)
    low, high, churn = guided_window(decisions)
    assert 0.3 < low < 1.2 and 5 < high < 11 and 0.2 < churn < 1.2


def test_the_error_of_a_network_that_predicts_noise_is_not_taken_for_a_decision():
    """It grows with sigma: D = x - sigma (eps + error) differ most where nothing is decided."""
    generator = torch.Generator().manual_seed(0)

    def inexact(x, sigma):
        return exact(x, sigma) + 0.07 * sigma * torch.randn(x.shape, generator=generator)

    sigmas = karras_sigmas(22, 0.03, 14.6, rho=7)
    low, high, _ = measure(exact, STARTS * sigmas[0], sigmas).window()
    found = measure(inexact, STARTS * sigmas[0], sigmas, from_lowest=True).window()
    assert found[0] == pytest.approx(low, rel=0.5) and high / 3 < found[1] < high * 1.1
    unaware = measure(inexact, STARTS * sigmas[0], sigmas).window()
    assert unaware[1] < found[1] / 1.5


class Unconditional:
    """A pipeline without latents, with any scheduler."""

    def __init__(self, schedule):
        self.scheduler, self.unet = schedule, Network(schedule)

    def __call__(self, batch_size=1):
        raise NotImplementedError


@pytest.mark.parametrize(
    "name",
    "DDIM,DDIM v,DDIM sample,Euler v,UniPC flow,Flow Euler,EDM Euler,EDM Euler v".split(","),
)
def test_a_pipeline_is_the_denoiser_of_its_data(name):
    denoise = denoiser_of(Unconditional(scheduler(name)))
    for sigma in torch.tensor([0.03, 0.2, 1.0, 4.4, 14.6], dtype=torch.float64):
        x = BLOBS[:6].view(2, 3, 1, SIDE, SIDE) + sigma.float() * torch.randn(2, 3, 1, SIDE, SIDE)
        torch.testing.assert_close(denoise(x, sigma), exact(x, sigma), rtol=2e-3, atol=2e-3)


def test_a_measured_guide_finds_more_places_through_a_real_pipeline(exact_pipe):
    """Nothing is told but the pipeline: neither a noise level nor a strength of its latents."""
    decided = pilot(denoiser_of(exact_pipe), particles=16)

    def sets():
        settings = dict(num_inference_steps=30, generator=torch.Generator().manual_seed(0))
        images = exact_pipe(batch_size=160, **settings, output_type="np").images
        return 2 * torch.as_tensor(images).permute(0, 3, 1, 2).unflatten(0, (-1, 8)) - 1

    plain, _ = places(sets())
    with repel(exact_pipe, particles=8, decisions=decided):
        guided, shown = places(sets())
    assert guided > plain + 1.5 and shown >= 0.97
    with repel(exact_pipe, particles=16) as measured:  # by a pilot of its own
        assert measured == decided
    assert "step" not in vars(exact_pipe.scheduler)


# ---------------------------------------------------------------- earlier pictures


@pytest.mark.parametrize("name", ["DDIM", "UniPC", "Heun", "Flow Euler", "Flow LCM", "EDM Euler"])
def test_a_picture_drawn_anew_beside_seven_shows_the_eighth(name):
    """Independent ones do in 1 of 8."""
    memory, alone = (
        sum(int(benchmark.missing_shown(name, 15, way, k, 16).sum()) for k in range(8))
        for way in ("memory", "independent")
    )
    assert wilson_interval(memory, 128)[0] > 0.8
    assert binomtest(alone, 128, 1 / 8).pvalue > 0.001


def test_of_a_student_starts_away_help_and_memory_alone_hardly_does():
    """Its D is a finished picture, which a push does not change."""
    shown = {
        way: int(benchmark.missing_shown("Flow Euler", 4, way, 3, 160, student=True).sum())
        for way in ("independent", "start away", "memory")
    }
    assert wilson_interval(shown["start away"], 160)[0] > 0.8
    assert abs(shown["memory"] - shown["independent"]) <= 8


def test_memory_without_strength_changes_no_bit():
    schedule = scheduler("DDIM")
    plain = draw(schedule, sets=1, steps=15)
    with benchmark.guided(schedule, factor=0.0, memory=BLOBS):
        assert torch.equal(draw(schedule, sets=1, steps=15), plain)


IMG2IMG = dict(SD="StableDiffusion", SDXL="StableDiffusionXL", SD3="StableDiffusion3", Flux="Flux")


@pytest.mark.parametrize("name", IMG2IMG)
def test_pictures_are_encoded_as_for_img2img(name, monkeypatch):
    """diffusers' own pipelines are the truth, with a VAE that is certain."""
    pipe = pipeline(name)
    with torch.no_grad():
        log_variance = pipe.vae.quant_conv.weight[4:], pipe.vae.quant_conv.bias[4:]
        log_variance[0].zero_(), log_variance[1].fill_(-30)
    pictures = torch.rand(2, 16, 16, 3, generator=torch.Generator().manual_seed(3)).numpy()
    other = getattr(diffusers, f"{IMG2IMG[name]}Img2ImgPipeline").from_pipe(pipe)
    unnoised = dict(
        add_noise=lambda latents, noise, timestep: latents,
        scale_noise=lambda latents, timestep, noise: latents,
    )
    for key, function in unnoised.items():
        monkeypatch.setattr(other.scheduler, key, function, raising=False)
    settings = dict(
        image=other.image_processor.preprocess(pictures),
        timestep=torch.tensor([1.0]),
        batch_size=2,
        num_images_per_prompt=1,
        num_channels_latents=4,
        height=16,
        width=16,
        dtype=torch.float32,
        device="cpu",
        generator=None,
    )
    accepted = inspect.signature(other.prepare_latents).parameters
    theirs = other.prepare_latents(**{key: settings[key] for key in accepted if key in settings})
    theirs = theirs[0] if isinstance(theirs, tuple) else theirs
    ours = as_memory(pipe, pictures)
    torch.testing.assert_close(ours.reshape(theirs.shape), theirs, atol=1e-4, rtol=1e-4)
    # As the pipeline has them, and what it says it returns.
    assert ours.shape[2:] == denoiser_of(pipe, **conditions(name)).shape
    torch.testing.assert_close(as_memory(pipe, theirs), ours, atol=1e-4, rtol=1e-4)
    try:  # in half precision, the VAE of SDXL gives no numbers
        pipe.vae.half()
        torch.testing.assert_close(as_memory(pipe, pictures), ours, atol=0.02, rtol=0.02)
        assert pipe.vae.dtype == torch.float16
    finally:
        pipe.vae.float()


def test_pictures_may_come_as_any_pipeline_returns_them(exact_pipe):
    pictures = numpy.rint(255 * (BLOBS.permute(0, 2, 3, 1).numpy() + 1) / 2) / 255
    expected = as_memory(exact_pipe, pictures)
    torch.testing.assert_close(expected[0], BLOBS, atol=0.005, rtol=0)
    images = exact_pipe.numpy_to_pil(pictures)
    for given in (images, list(pictures), list(expected[0]), expected[0]):
        torch.testing.assert_close(as_memory(exact_pipe, given), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(as_memory(exact_pipe, images[2])[0, 0], expected[0, 2])


@pytest.mark.parametrize(
    "memory, line",
    [
        ([], "^memory: got 'list'"),
        ("a.png", "^memory: got 'str'"),
        (255 * numpy.ones((2, 8, 8, 1)), "^memory: got 'ndarray'"),
        (torch.zeros(8, 8), r"^shape of memory: got \[8, 8\]"),
        (torch.zeros(2, 3, 8, 8), r"^shape of memory: got \[1, 2, 3, 8, 8\].*\[2, M, 1, 8, 8\]"),
    ],
    ids=str,
)
def test_memory_that_does_not_fit_is_refused_in_one_line(memory, line, exact_pipe):
    with pytest.raises(SettingError, match=line) as refused:
        with repel(exact_pipe, particles=2, memory=memory, decisions=HERE):
            exact_pipe(batch_size=4, num_inference_steps=4)
    assert "\n" not in str(refused.value)


def test_memory_with_classes_is_refused(exact_pipe):
    with pytest.raises(SettingError, match="^memory"):
        with repel(exact_pipe, particles=2, memory=BLOBS, decisions=HERE, log_posterior=posterior):
            pass


def test_one_picture_of_a_pipeline_is_drawn_again_beside_the_others(exact_pipe):
    """As pictures of PIL, which are all that a user has. A set of one is guided, without a word."""
    kept = exact_pipe.numpy_to_pil((BLOBS[1:].permute(0, 2, 3, 1).numpy() + 1) / 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with repel(exact_pipe, particles=1, memory=kept, decisions=HERE):
            images = exact_pipe(
                batch_size=20,
                num_inference_steps=15,
                generator=torch.Generator().manual_seed(0),
                output_type="np",
            ).images
    drawn = 2 * torch.as_tensor(images).permute(0, 3, 1, 2) - 1
    nearest = torch.cdist(drawn.flatten(1), BLOBS.flatten(1)).argmin(1)
    assert (nearest == 0).sum() >= 17


@pytest.fixture
def told():
    """A pipeline of Stable Diffusion, of random weights, that takes prompts."""
    pytest.importorskip("transformers")

    class Told(diffusers.StableDiffusionPipeline):
        """One that knows what every prompt means."""

        def encode_prompt(self, prompt, device, num_images_per_prompt, *args, **others):
            return normal(2 * num_images_per_prompt, 5, 16, seed=1).chunk(2)

    torch.manual_seed(0)
    pipe = Told(**stable_diffusion().components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_the_pages_draw_a_set_and_one_picture_again_in_a_real_pipeline(told):
    """Without a warning, and others than without guidance."""
    names = dict(pipe=told, prompt="a house")
    for page, code in (
        ("from-cads.md", "instead"),
        ("pipelines.md", "again"),
        ("pipelines.md", "start away"),
    ):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.manual_seed(1)
            exec(snippet(code, page), names)
        assert not [each for each in caught if "guided" in str(each.message)]
        if code == "again":
            torch.manual_seed(1)
            assert names["image"] != told("a house").images[0]
    assert len(names["images"]) == 4 and names["image"].size == (16, 16)


# ---------------------------------------------------------------- nothing is silently unguided


def change(make):
    """Another scheduler for the pipeline, made of its own."""
    return lambda pipe: setattr(pipe, "scheduler", make(pipe.scheduler))


def bind(pipe):
    pipe.step = pipe.scheduler.step


def step_as_before(pipe):
    pipe.scheduler.step = pipe.step


def of_its_kind(one):
    return diffusers.DDIMScheduler.from_config(one.config)


def euler(one):
    return diffusers.EulerDiscreteScheduler.from_config(one.config)


FAR = Decisions([8e4, 8e3, 8e2], [0.0, 0.5, 1.0], 1.0)  # of a model with other latents
# What is done: before the context and in it, the arguments of `repel`, and of the pipeline's call.
Way = functools.partial(dict, before=None, inside=None, repel={}, call={}, out=False)
WAYS = {
    "as it should be": (Way(), "guided"),
    "scheduler changed before": (
        Way(before=change(euler)),
        "guided",
    ),
    "deep copy": (Way(inside=change(copy.deepcopy)), "guided"),
    "shallow copy": (Way(inside=change(copy.copy)), "guided"),
    "copy by its configuration": (
        Way(inside=change(lambda one: one.from_config(one.config))),
        "guided",
    ),
    "another of its kind": (Way(inside=change(of_its_kind)), "^scheduler: got 'DDIMScheduler'"),
    "another kind": (
        Way(inside=change(euler)),
        "^scheduler: got 'EulerDiscrete",
    ),
    "called after the context": (Way(out=True), "^nothing was guided: DDIMScheduler took no step"),
    "step bound before": (Way(before=bind, inside=step_as_before), "took no step"),
    "one step": (Way(call=dict(num_inference_steps=1)), "^nothing was guided: of the steps"),
    "late steps alone": (
        Way(call=dict(sigmas=[0.2, 0.1, 0.05]), before=change(euler), repel=dict(decisions=HERE)),
        "^nothing was guided: of the steps",
    ),
    "decisions of another model": (Way(repel=dict(decisions=FAR)), "decisions of this model$"),
    "a set of one": (Way(repel=dict(particles=1)), "^nothing is guided: particles is 1"),
    "CFG at 1": (Way(repel=dict(guidance_scale=1.0), call=dict(guidance_scale=1.0)), "guided"),
    "CFG at 1 in the call alone": (
        Way(call=dict(guidance_scale=1.0)),
        "guidance_scale 5, but drawn at 1",
    ),
    "sets that are not in the batch": (Way(repel=dict(particles=4)), "^particles: got 4"),
}


@pytest.mark.parametrize("name", WAYS)
def test_no_way_to_call_it_is_silently_unguided(name):
    """Sets are guided, or one line says what to do."""
    pytest.importorskip("transformers")
    way, expected = WAYS[name]
    torch.manual_seed(0)
    pipe = stable_diffusion()
    pipe.set_progress_bar_config(disable=True)

    def drawn():
        settings = conditions("SD") | dict(num_inference_steps=10) | way["call"]
        for key in settings:
            if "embeds" in key:
                settings[key] = settings[key].repeat_interleave(B, 0)
        generator = torch.Generator().manual_seed(0)
        return pipe(**settings, generator=generator, output_type="latent").images

    if way["before"]:
        way["before"](pipe)
    plain, lines = drawn(), []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            with repel(pipe, **dict(particles=B) | conditions("SD") | way["repel"]):
                if way["inside"]:
                    way["inside"](pipe)
                if not way["out"]:
                    images = drawn()
            if way["out"]:
                images = drawn()
        except SettingError as refused:
            lines.append(str(refused))
    lines += [str(each.message) for each in caught if "guided" in str(each.message)]
    if expected == "guided":
        assert lines == [] and (apart(images) > apart(plain)).all()
    else:
        (line,) = lines
        assert re.search(expected, line) and "\n" not in line


# ---------------------------------------------------------------- other libraries


def snippet(name, page="pipelines.md"):
    """Code of a page."""
    page = (ROOT / "docs" / page).read_text()
    return re.search(rf"```python\n(# {name}\n.*?)```", page, flags=re.S)[1]


def wrapper(name):
    """A function that docs/pipelines.md defines."""
    names: dict = {}
    exec(snippet(name), names)
    return names[name]


LEVELS = torch.tensor([0.05, 0.7, 3.0, 12.0], dtype=torch.float64)


def test_a_denoiser_of_k_diffusion_is_one_of_ours():
    """Theirs takes a batch, with a noise level for each image of it."""

    def theirs(x, sigma):
        assert x.shape == (6, 1, SIDE, SIDE) and sigma.shape == (6,) and sigma.dtype == x.dtype
        return exact(x[None], sigma[0].double())[0]

    denoise = wrapper("of_k_diffusion")(theirs)
    for sigma in LEVELS:
        x = sigma.float() * torch.randn(2, 3, 1, SIDE, SIDE)
        torch.testing.assert_close(denoise(x, sigma), exact(x, sigma), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("schedule", ["VPSchedule", "VESchedule", "RectifiedSchedule"])
def test_a_denoiser_of_azula_is_one_of_ours(schedule):
    """Whatever the scale of the signal in their schedule."""
    azula = pytest.importorskip("azula.noise")
    from azula.denoise import DiracPosterior

    class Exact(nn.Module):
        def __init__(self):
            super().__init__()
            self.schedule = getattr(azula, schedule)()

        def forward(self, x, t):
            alpha, sigma = self.schedule(t.double())
            return DiracPosterior(exact((x / alpha)[None], sigma / alpha)[0].to(x))

    denoise = wrapper("of_azula")(Exact())
    for sigma in LEVELS:
        x = sigma.float() * torch.randn(2, 3, 1, SIDE, SIDE)
        torch.testing.assert_close(denoise(x, sigma), exact(x, sigma), rtol=1e-2, atol=5e-3)
