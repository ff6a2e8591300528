"""Guidance in modular pipelines of diffusers, tiny ones of random weights."""

import dataclasses
import functools
import importlib

import pytest
import torch
from test_pipelines import apart, benchmark, stable_diffusion_3, stable_diffusion_xl

from diverse_sampling.errors import SettingError
from diverse_sampling.pipelines import guided_window, repel, repelling

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")
modular = pytest.importorskip("diverse_sampling.modular")

B, N, STEPS = 3, 6, 8  # particles of a set, in all, and calls of the network


def normal(*shape, seed=0):
    """Standard normal noise."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def prompts(**shapes):
    """Two prompts, embedded, for two sets of B; negative ones too."""
    held = {}
    for seed, (name, shape) in enumerate(shapes.items()):
        for sign in ("", "negative_"):
            held[sign + name] = normal(2, *shape, seed=seed + len(sign)).repeat_interleave(B, 0)
    return held


def sdxl():
    times = torch.tensor([[16.0, 16, 0, 0, 16, 16]]).expand(N, -1)
    fields = prompts(prompt_embeds=(5, 16), pooled_prompt_embeds=(16,))
    fields |= dict(add_time_ids=times, negative_add_time_ids=times)
    network = stable_diffusion_xl().unet
    scheduler = diffusers.EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012)
    given = dict(latents=14 * normal(N, 4, 8, 8), denoiser_input_fields=fields)
    return "stable_diffusion_xl", dict(unet=network, scheduler=scheduler), given


def sd3():
    network = stable_diffusion_3().transformer
    given = dict(latents=normal(N, 4, 8, 8))
    given |= prompts(prompt_embeds=(5, 16), pooled_prompt_embeds=(16,))
    return "stable_diffusion_3", dict(transformer=network, scheduler=flow()), given


def qwen():
    network = diffusers.QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(8, 4, 4),
    )
    fields = prompts(prompt_embeds=(5, 16))
    fields |= dict.fromkeys(
        ("prompt_embeds_mask", "negative_prompt_embeds_mask"), torch.ones(N, 5, dtype=torch.int64)
    )
    shapes = N * [[(1, 4, 4)]]
    fields["img_shapes"] = shapes
    given = dict(latents=normal(N, 16, 16), img_shapes=shapes, denoiser_input_fields=fields)
    return "qwenimage", dict(transformer=network, scheduler=flow()), given


def wan():
    network = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=16,
        ffn_dim=16,
        num_layers=1,
        rope_max_seq_len=32,
    )
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    given = dict(latents=normal(N, 4, 2, 8, 8), dtype=torch.float32)
    given |= prompts(prompt_embeds=(5, 16))
    return "wan", dict(transformer=network, scheduler=scheduler), given


def flow():
    return diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)


FAMILIES = dict(
    SDXL=(sdxl, "StableDiffusionXLDenoiseStep"),
    SD3=(sd3, "StableDiffusion3DenoiseStep"),
    Qwen=(qwen, "QwenImageDenoiseStep"),
    Wan=(wan, "WanDenoiseStep"),
)
every_family = pytest.mark.parametrize("name", FAMILIES)


@functools.cache
def parts(name):
    """(the block with the denoising loop, its components, its inputs) of a family."""
    torch.manual_seed(0)
    make, step = FAMILIES[name]
    package, components, given = make()
    module = importlib.import_module(f"diffusers.modular_pipelines.{package}.denoise")
    return getattr(module, step)(), components, given


def pipeline(name, around=lambda block: block):
    """A modular pipeline of the denoising loop."""
    block, components, _ = parts(name)
    pipe = around(block).init_pipeline()
    guider = diffusers.ClassifierFreeGuidance(guidance_scale=3.0)
    pipe.update_components(guider=guider, **components)
    return pipe


def drawn(name, pipe):
    """The latents that a pipeline draws, always from the same noise."""
    _, components, given = parts(name)
    torch.manual_seed(0)
    components["scheduler"].set_timesteps(STEPS)
    timesteps = components["scheduler"].timesteps
    run = given | dict(timesteps=timesteps, num_inference_steps=STEPS)
    with torch.no_grad():
        return pipe(**run, output="latents")


@every_family
def test_repel_spreads_what_a_modular_pipeline_draws(name):
    """Factor 0 changes no bit; the block around the loop does what the context does."""
    pipe = pipeline(name)
    plain = drawn(name, pipe)
    variance = float(plain.unflatten(0, (2, B)).var(1).mean(0).sum())  # of these latents
    decisions = dataclasses.replace(benchmark.exact_decisions(), variance=variance)
    assert plain.isfinite().all() and torch.equal(plain, drawn(name, pipe))
    how = dict(particles=B, decisions=decisions)
    with repel(pipe, factor=0, **how):
        assert torch.equal(drawn(name, pipe), plain)
    with repel(pipe, factor=1.5, **how):
        spread = drawn(name, pipe)
    unguided, window = lambda denoise: denoise, guided_window(decisions)
    with repelling(pipe.scheduler, unguided, particles=B, window=window):
        renewed = drawn(name, pipe)  # the same new noise
    assert (apart(spread) > 1.02 * apart(renewed)).all()
    around = lambda block: modular.ParticleGuidanceBlock(block, factor=1.5, **how)
    assert torch.equal(drawn(name, pipeline(name, around)), spread)
    assert torch.equal(drawn(name, pipe), plain)


@every_family
def test_earlier_latents_repel_what_a_modular_pipeline_draws(name):
    """As the pipeline returns them, of pictures and videos alike."""
    pipe = pipeline(name)
    plain = drawn(name, pipe)
    variance = float(plain.unflatten(0, (2, B)).var(1).mean(0).sum())
    decisions = dataclasses.replace(benchmark.exact_decisions(), variance=variance)
    unguided, window = lambda denoise: denoise, guided_window(decisions)
    with repelling(pipe.scheduler, unguided, particles=1, window=window):
        renewed = drawn(name, pipe)
    with repel(pipe, factor=1.5, particles=1, memory=renewed, decisions=decisions):
        away = drawn(name, pipe)
    others = ~torch.eye(len(renewed), dtype=torch.bool)  # than a picture's own unguided one
    distance = lambda new: torch.cdist(new.flatten(1), renewed.flatten(1))[others].mean()
    assert distance(away) > 1.02 * distance(renewed)


def test_a_pilot_through_a_modular_pipeline_is_refused():
    line = "pipe: got 'StableDiffusion3ModularPipeline'; accepted: one that is not modular"
    with pytest.raises(SettingError, match=line), repel(pipeline("SD3"), particles=B):
        pass
