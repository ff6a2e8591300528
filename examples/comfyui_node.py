"""Diverse sets in ComfyUI: nodes in one file, which needs the library `diverse_sampling` alone.

    pip install .                                         # with the Python that runs ComfyUI
    cp examples/comfyui_node.py ComfyUI/custom_nodes/diverse_sampling_nodes.py

The images of a batch are a set, and repel each other while it is decided what they show.

    pilot      (model, conditioning, latent) -> the noise levels at which that is, measured once for
               a model, and how far its samples differ
    repel      (model, pilot) -> a model for any sampler, guided after classifier-free guidance
    new noise  (sampler, pilot) -> a sampler of ComfyUI's, with noise added anew after each of its
               steps that ends in the window, for the nodes that take a sampler

An x of ComfyUI's is y + sigma n, or, of flow models, (1 - s) y + s n times a scale; it is read as
alpha (y + sigma n), and the library sees y + sigma n. Equations and sources: `pipelines.py` of the
library for new noise, `guidance/pg.py` for guidance, `decisions.py` for the pilot.

Nothing of ComfyUI is imported before a node runs.
"""

from __future__ import annotations

import logging
import math
from typing import Any, Callable, NamedTuple

import torch
from torch import Tensor

from diverse_sampling.decisions import Decisions, measure
from diverse_sampling.defaults import FACTOR, PILOT_LEVELS
from diverse_sampling.errors import reject
from diverse_sampling.noise import ParticleNoise, Stream
from diverse_sampling.pipelines import guided_window
from diverse_sampling.sets import measured_guide
from diverse_sampling.steps import karras_sigmas

PILOT = "DIVERSE_SAMPLING_PILOT"  # the type of a pilot's output
CATEGORY = "sampling/diverse sets"
# Of a flow model's s, which a pilot starts from: at 1 there is no image.
LARGEST_FLOW = 0.99
SEEDS = 2**64 - 1  # of ComfyUI's, whose samplers may add one
# Two noise levels that differ by less are one: ComfyUI keeps them in single precision.
ROUNDING = 1e-5

# ---------------------------------------------------------------- noise levels


class Level(NamedTuple):
    """A noise level: ComfyUI's number for it, and x = alpha (y + sigma n)."""

    number: float
    alpha: float
    sigma: float


def is_flow(sampling) -> bool:
    """Whether x = (1 - s) y + s n. Raises SettingError for models that do not start from noise."""
    from comfy import model_sampling

    if isinstance(sampling, (model_sampling.IMG_TO_IMG, model_sampling.IMG_TO_IMG_FLOW)):
        reject("model", type(sampling).__bases__[-1].__name__, "one that makes images of noise")
    return isinstance(sampling, model_sampling.CONST)


def level_of(sampling, number: float) -> Level:
    """The level that ComfyUI gives a number; sigma is infinite if x holds no image.

    `sampling` is a model's `model_sampling`.
    """
    if not is_flow(sampling):
        return Level(number, 1.0, number)
    alpha = 1 - number
    noise = getattr(sampling, "noise_scale", 1.0) * number
    return Level(number, alpha, noise / alpha if alpha > 0 else math.inf)


def level_at(sampling, sigma: float) -> Level:
    """The level at a sigma, the inverse of `level_of`."""
    if not is_flow(sampling):
        return Level(sigma, 1.0, sigma)
    scale = getattr(sampling, "noise_scale", 1.0)
    return Level(sigma / (sigma + scale), scale / (sigma + scale), sigma)


def as_set(samples: Tensor) -> Tensor:
    """A batch (B, ...) of latents of any shape as one set (1, B, 1, 1, d), float32."""
    return samples.float().reshape(1, len(samples), 1, 1, -1)


# ---------------------------------------------------------------- what the nodes make


class Repelling:
    """What ComfyUI calls after classifier-free guidance: moves the D(x) of a batch apart.

    Arguments:
        decisions: what the pilot measured
        factor: strength; 0 changes no bit
        memory: latents (M, ...) that repel the batch and do not move, such as earlier images; None
    """

    def __init__(self, decisions: Decisions, factor: float, memory: Tensor | None):
        self.decisions = decisions
        self.factor = factor
        self.memory = memory
        self.low = guided_window(decisions).low
        self.schedule: Tensor | None = None  # of the run that was looked at last
        self.ends: list[Level] = []  # of it: those above where samples are settled

    def __call__(self, args: dict[str, Any]) -> Tensor:
        """The D' that guidance makes of `args["denoised"]`, like it."""
        denoised, sampling = args["denoised"], args["model"].model_sampling
        numbers = args["sigma"].tolist()
        if len(set(numbers)) > 1:
            reject("sigma", numbers, "the same noise level for all images of a batch")
        level = level_of(sampling, numbers[0])
        schedule = args["model_options"]["transformer_options"]["sample_sigmas"]
        if schedule is not self.schedule:
            self.schedule = schedule
            levels = [level_of(sampling, number) for number in schedule.tolist()]
            self.ends = [each for each in levels if each.sigma >= self.low]
            self._warn(levels, len(denoised))
        # A step that ends where samples are settled is not guided: no later one would mend it.
        ends_above = any(each.number < level.number * (1 - ROUNDING) for each in self.ends)
        if level.sigma == math.inf or not ends_above:
            return denoised
        clean = as_set(denoised)
        guide = measured_guide(
            self.decisions,
            guided_window(self.decisions)._replace(high=math.inf),
            factor=self.factor,
            memory=self._memory(args["model"], denoised),
        )
        guided = guide(lambda x, sigma: clean)
        x = as_set(args["input"]) / level.alpha
        target = guided(x, torch.tensor(level.sigma, dtype=torch.float64))
        return target.view_as(denoised).to(denoised)

    def _memory(self, model, like: Tensor) -> Tensor | None:
        """The memory as a set, in the units of the model."""
        if self.memory is None:
            return None
        if self.memory.shape[1:] != like.shape[1:]:
            accepted = f"latents of shape {list(like.shape[1:])}, as those that are drawn"
            reject("memory", list(self.memory.shape[1:]), accepted)
        return as_set(model.process_latent_in(self.memory)).to(like.device)

    def _warn(self, levels: list[Level], particles: int) -> None:
        """Say, once for a run, why nothing will be guided."""
        if self.factor == 0:
            return
        if particles == 1 and self.memory is None:
            logging.warning(
                "diverse sampling: nothing repels a single image; draw a batch, or connect memory"
            )
        first = max(each.number for each in levels if each.sigma < math.inf)
        if not any(each.number < first for each in self.ends):
            logging.warning(
                "diverse sampling: none of the %d steps ends at a sigma of %.3g or above, so that "
                "nothing is guided; use more steps, or a scheduler with more at high noise",
                *(len(levels) - 1, self.low),
            )


def renewing(sample: Callable, decisions: Decisions) -> Callable:
    """A sampler function of ComfyUI's, with new noise after each step that ends in the window.

    It draws each of these steps alone, so that a solver that keeps former steps starts anew; x then
    goes on towards D' down to s / (1 + churn), and noise takes it back up to s.
    """
    window = guided_window(decisions)

    def sample_renewing(model, x, sigmas, extra_args=None, callback=None, disable=None, **options):
        sampling = model.inner_model.inner_model.model_sampling
        seed = (extra_args or {}).get("seed") or 0
        noise = ParticleNoise(seed, [0], range(len(x)), x.shape[1:], x.device)
        levels = [level_of(sampling, number) for number in sigmas.tolist()]
        inside = [
            start.sigma < math.inf and window.low <= end.sigma <= window.high
            for start, end in zip(levels, levels[1:])
        ]
        start = 0
        while start < len(inside):
            stop = start + 1
            while not inside[start] and stop < len(inside) and not inside[stop]:
                stop += 1
            denoised: list[Tensor] = []

            def called(step: dict[str, Any]) -> None:
                denoised[:] = [step["denoised"]]
                if callback is not None:
                    callback(step | dict(i=step["i"] + start))

            # Noise of the sampler's own would repeat with the same seed.
            own = (extra_args or {}) | dict(seed=(seed + start) % SEEDS)
            part = sigmas[start : stop + 1]
            x = sample(model, x, part, extra_args=own, callback=called, disable=True, **options)
            if inside[start]:
                if not denoised:
                    reject("sampler", sample.__name__, "one that reports its denoised images")
                x = renewed(x, denoised[0], levels[stop], window.churn, noise()[0])
            start = stop
        return x

    return sample_renewing


def renewed(x: Tensor, target: Tensor, level: Level, churn: float, noise: Tensor) -> Tensor:
    """x (B, ...) at a level, taken to sigma / (1 + churn) towards its D', and back by new noise."""
    down = 1 / (1 + churn)
    settled = target + down * (x / level.alpha - target)
    return level.alpha * (settled + level.sigma * math.sqrt(1 - down**2) * noise)


# ---------------------------------------------------------------- nodes


class DiversePilot:
    """Measures where it is decided what a model's samples show, on unguided ones."""

    CATEGORY = CATEGORY
    FUNCTION = "run"
    RETURN_TYPES = (PILOT, "FLOAT", "FLOAT", "FLOAT")
    RETURN_NAMES = ("pilot", "window_low", "window_high", "size")
    OUTPUT_TOOLTIPS = (
        "for the other two nodes",
        "smallest noise level of the window, in the model's own unit",
        "largest noise level of the window",
        "standard deviation of a sample: root of the variance summed over its latent",
    )
    DESCRIPTION = "Costs 15 calls of the network for each particle; once for a model will do."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """What ComfyUI connects."""
        return dict(
            required=dict(
                model=("MODEL",),
                positive=("CONDITIONING",),
                negative=("CONDITIONING",),
                latent=("LATENT", dict(tooltip="whose shape is that of the samples")),
                cfg=("FLOAT", dict(default=8.0, min=0.0, max=100.0, step=0.1)),
                particles=("INT", dict(default=8, min=2, max=64)),
                seed=("INT", dict(default=0, min=0, max=SEEDS)),
            )
        )

    def run(
        self, model, positive, negative, latent: dict, cfg: float, particles: int, seed: int
    ) -> tuple[Decisions, float, float, float]:
        """The decisions, the window's two noise levels in the model's unit, and the size.

        Raises SettingError for a model that is guided already, and ValueError if samples are alike.
        """
        import comfy.sample
        import comfy.samplers

        hooks = model.model_options.get("sampler_post_cfg_function", [])
        if any(isinstance(hook, Repelling) for hook in hooks):
            reject("model", "a guided one", "the model before `repel`")
        if latent["samples"].is_nested:
            reject("latent", "several parts", "one tensor of latents")
        sampling = model.get_model_object("model_sampling")
        like = comfy.sample.fix_empty_latent_channels(
            model,
            latent["samples"],
            latent.get("downscale_ratio_spacial"),
            latent.get("downscale_ratio_temporal"),
        )
        empty = torch.zeros(particles, *like.shape[1:])
        top = float(sampling.sigma_max)
        if is_flow(sampling):
            top = min(top, LARGEST_FLOW)
        lowest, highest = (level_of(sampling, n).sigma for n in (float(sampling.sigma_min), top))
        sigmas = karras_sigmas(PILOT_LEVELS, lowest, highest)
        found: list[Decisions] = []

        def sample(model, x, sigmas_of_comfyui, extra_args=None, callback=None, disable=None):
            """In the place of a sampler: measures, and draws nothing."""
            shape = as_set(x).shape[2:]
            noise = ParticleNoise(seed, [0], range(particles), shape, x.device, Stream.PILOT)

            def denoise(x_set: Tensor, sigma: Tensor) -> Tensor:
                level = level_at(sampling, float(sigma))
                number = x.new_full((particles,), level.number)
                return as_set(model((level.alpha * x_set).view_as(x), number, **extra_args))

            found.append(measure(denoise, noise() * sigmas[0], sigmas, from_lowest=True))
            return x

        numbers = torch.tensor([level_at(sampling, sigma).number for sigma in sigmas.tolist()])
        comfy.sample.sample_custom(
            *(model, empty, cfg, comfy.samplers.KSAMPLER(sample), numbers, positive, negative),
            empty,
            disable_pbar=True,
            seed=seed,
        )
        decisions = found[0]
        window = guided_window(decisions)
        low, high = (level_at(sampling, sigma).number for sigma in (window.low, window.high))
        return decisions, low, high, math.sqrt(decisions.variance)


class DiverseSets:
    """A model whose batches repel, with any sampler."""

    CATEGORY = CATEGORY
    FUNCTION = "run"
    RETURN_TYPES = ("MODEL",)
    DESCRIPTION = "The images of a batch repel each other while it is decided what they show."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """What ComfyUI connects."""
        return dict(
            required=dict(
                model=("MODEL",),
                pilot=(PILOT,),
                factor=("FLOAT", dict(default=FACTOR, min=0.0, max=1000.0, step=0.1)),
            ),
            optional=dict(memory=("LATENT", dict(tooltip="earlier images, which repel too"))),
        )

    def run(self, model, pilot: Decisions, factor: float, memory: dict | None = None) -> tuple:
        """A guided copy of the model."""
        guided = model.clone()
        samples = None if memory is None else memory["samples"]
        guided.set_model_sampler_post_cfg_function(Repelling(pilot, factor, samples))
        return (guided,)


class DiverseNewNoise:
    """A sampler that adds noise anew in the window."""

    CATEGORY = CATEGORY
    FUNCTION = "run"
    RETURN_TYPES = ("SAMPLER",)
    DESCRIPTION = "New noise in the window covers what guidance did."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """What ComfyUI connects."""
        return dict(required=dict(sampler=("SAMPLER",), pilot=(PILOT,)))

    def run(self, sampler, pilot: Decisions) -> tuple:
        """The sampler with new noise. Raises SettingError for one that is no k-diffusion's."""
        import comfy.samplers

        if not isinstance(sampler, comfy.samplers.KSAMPLER):
            reject("sampler", type(sampler).__name__, "one of KSamplerSelect")
        function = renewing(sampler.sampler_function, pilot)
        options = sampler.extra_options, sampler.inpaint_options
        return (comfy.samplers.KSAMPLER(function, *options),)


NODE_CLASS_MAPPINGS = dict(
    DiversePilot=DiversePilot, DiverseSets=DiverseSets, DiverseNewNoise=DiverseNewNoise
)
NODE_DISPLAY_NAME_MAPPINGS = dict(
    DiversePilot="Diverse sets: pilot",
    DiverseSets="Diverse sets: repel",
    DiverseNewNoise="Diverse sets: new noise",
)
