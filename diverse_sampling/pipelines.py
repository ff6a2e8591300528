"""Guidance in the pipelines of diffusers, and those pipelines as denoisers.

    with repel(pipe, prompt=prompt, particles=4):
        images = pipe(prompt, num_images_per_prompt=4).images

Every pipeline hands its prediction, after classifier-free guidance, to `scheduler.step`. What a
scheduler holds is a sample alpha (y + sigma n), and any prediction is linear in the clean image,

    D = skip * sample + out * prediction

(`predictions.py`; with EDM's preconditioning, skip and out are its c_skip and c_out),
so a guided D' around D becomes the prediction + (D' - D) / out. Where guidance changes nothing, the
pipeline computes what it computes without it, bit for bit. The samples of one prompt are a set:
`particles` consecutive ones repel each other, and never those of another set.

`repel` is a pilot through the pipeline (`pilot`), its guide (`measured_guide` of `sets.py`) and
`repelling`, each of which can be had alone.

A guided D' lies where no image may lie, and a solver of the ODE passes each noise level once. So
new noise follows a guided step: after the scheduler has gone to the next level s with a sample x, x
goes on towards D' down to s / (1 + churn), and noise takes it back up to s. The noise in x is
(x - D') / s, of a flow D' + v, and a share of it is drawn anew. That is linear in what is held too,
keeps the distribution of x, and leaves the scheduler's noise levels and the number of its calls as
they are. What a solver keeps of former steps belongs to former noise, so that it starts anew. A
step that ends where samples are settled is not guided: no later step would mend what it did.

`denoiser_of` goes the other way: a pipeline with its conditioning as `denoise(x, sigma)`, for the
sampler, for the window that a pilot measures, and for gradients through the network.

Noise levels are those of x = sample / alpha = y + sigma n, in units of the latents y.

Predictions: Karras et al. 2022, arXiv 2206.00364, Table 1; Salimans & Ho 2022, arXiv 2202.00512;
Lipman et al. 2022, arXiv 2210.02747. New noise: Karras et al., algorithm 2. Guidance:
`guidance/pg.py`.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import math
import warnings
from contextlib import contextmanager
from typing import Any, Callable, Iterator, NamedTuple

import numpy
import torch
from torch import Tensor

from diverse_sampling.decisions import WIDE, Decisions, measure
from diverse_sampling.defaults import PILOT_LEVELS
from diverse_sampling.errors import reject
from diverse_sampling.guidance.classes import LogPosterior
from diverse_sampling.noise import ParticleNoise, Stream
from diverse_sampling.predictions import log_sigmas_of, skip_and_out, timestep_of
from diverse_sampling.sets import PILOT_PARTICLES, Guide, measured_guide
from diverse_sampling.steps import Window, karras_sigmas

# Where a scheduler keeps the noise level of its next step.
TIMESTEP = "alphas_cumprod[timestep], sample scaled to variance 1"
PRESERVING = "sigmas[step_index], sample scaled to variance 1"
EXPLODING = "sigmas[step_index], sample = y + sigma n"
FLOW = "sigmas[step_index], sample = (1 - s) y + s n"
EDM = "sigmas[step_index], network preconditioned as in EDM"

SCHEDULERS = {
    "DDIMScheduler": TIMESTEP,
    "DDIMParallelScheduler": TIMESTEP,
    "DDPMScheduler": TIMESTEP,
    "DDPMParallelScheduler": TIMESTEP,
    "LCMScheduler": TIMESTEP,
    "TCDScheduler": TIMESTEP,
    "DPMSolverMultistepScheduler": PRESERVING,
    "DPMSolverSinglestepScheduler": PRESERVING,
    "DEISMultistepScheduler": PRESERVING,
    "UniPCMultistepScheduler": PRESERVING,
    "SASolverScheduler": PRESERVING,
    "EulerDiscreteScheduler": EXPLODING,
    "EulerAncestralDiscreteScheduler": EXPLODING,
    "HeunDiscreteScheduler": EXPLODING,
    "KDPM2DiscreteScheduler": EXPLODING,
    "KDPM2AncestralDiscreteScheduler": EXPLODING,
    "FlowMatchEulerDiscreteScheduler": FLOW,
    "FlowMatchHeunDiscreteScheduler": FLOW,
    "FlowMatchLCMScheduler": FLOW,
    "EDMEulerScheduler": EDM,
    "EDMDPMSolverMultistepScheduler": EDM,
}

# Schedulers that keep raw predictions of several steps, or call one of them twice.
INSTEAD = {
    "LMSDiscreteScheduler": "EulerDiscreteScheduler",
    "PNDMScheduler": "DDIMScheduler or UniPCMultistepScheduler",
    "IPNDMScheduler": "DEISMultistepScheduler",
}


class Level(NamedTuple):
    """What is held: sample = alpha (y + sigma n), and D = skip * sample + out * prediction."""

    alpha: float
    sigma: float
    skip: float
    out: float


# ---------------------------------------------------------------- schedulers


def _family(scheduler) -> str:
    """Where a scheduler keeps its noise levels. Raises SettingError for those not supported."""
    names = [kind.__name__ for kind in type(scheduler).__mro__]
    for name in names:
        if name in INSTEAD:
            reject("scheduler", names[0], f"{INSTEAD[name]}, by from_config(pipe.scheduler.config)")
    family = next((SCHEDULERS[name] for name in names if name in SCHEDULERS), None)
    if family is None:
        reject("scheduler", names[0], ", ".join(SCHEDULERS))
    config = scheduler.config
    for clips in ("clip_sample", "thresholding"):
        # A guided D is no image on the way, and a clipped one would lose the push.
        if config.get(clips):
            accepted = f"a scheduler with {clips}=False, by from_config(..., {clips}=False)"
            reject(clips, True, accepted)
    if _inverted(scheduler) and (
        "FlowMatchLCMScheduler" in names or config.get("stochastic_sampling")
    ):
        # diffusers' own step then adds noise as if it counted from the image: it ends in noise.
        reject("invert_sigmas", True, "FlowMatchEulerDiscreteScheduler, stochastic_sampling=False")
    if getattr(scheduler, "_scale_factors", None):
        reject("scale_factors", scheduler._scale_factors, "None: samples of one size")
    return FLOW if config.get("use_flow_sigmas") else family


def _index(scheduler, family: str, timestep) -> int:
    """The place of a scheduler's next step in its schedule."""
    if family == TIMESTEP:
        return sum(earlier > int(timestep) for earlier in scheduler.timesteps.tolist())
    if scheduler.step_index is None:
        scheduler._init_step_index(timestep)  # as `step` does it
    return scheduler.step_index


def _level(scheduler, family: str, index: int, timestep) -> Level | None:
    """The level of a scheduler's next step; None where a sample holds no image or no noise."""
    if family == TIMESTEP:
        return _level_of(scheduler, family, scheduler.alphas_cumprod[int(timestep)])
    if hasattr(scheduler, "sigmas_interpol") and not scheduler.state_in_first_order:
        # The midpoint of DPM-Solver-2, which the ancestral one stores a place earlier.
        ancestral = hasattr(scheduler, "sigmas_up")
        index = index - 1 if ancestral else index
        return _level_of(scheduler, family, scheduler.sigmas_interpol[index])
    return _level_at(scheduler, family, index)


def _level_at(scheduler, family: str, index: int) -> Level | None:
    """The level at a place of the schedule; None as in `_level`, and after the last step."""
    if index >= len(scheduler.timesteps):
        return None
    if family == TIMESTEP:
        return _level(scheduler, family, index, scheduler.timesteps[index])
    return _level_of(scheduler, family, scheduler.sigmas[index])


def _level_of(scheduler, family: str, stored: Tensor) -> Level | None:
    """The level that an entry of `alphas_cumprod`, or of `sigmas`, means."""
    value = float(stored.double())
    if family == TIMESTEP:
        alpha, s = math.sqrt(value), math.sqrt(1 - value)
        sigma = s / alpha if alpha > 0 else math.inf
    elif family == FLOW:
        s = 1 - value if _inverted(scheduler) else value
        alpha = 1 - s
        sigma = s / alpha if alpha > 0 else math.inf
    else:
        sigma = value
        alpha = 1 / math.sqrt(1 + sigma**2) if family == PRESERVING else 1.0
    if not 0 < sigma < math.inf:
        return None
    return Level(alpha, sigma, *_prediction(scheduler, family, alpha, sigma))


def _inverted(scheduler) -> bool:
    """Whether a flow scheduler counts from noise, 0, to the image, 1, and its network predicts
    y - n: as Mochi's."""
    return bool(scheduler.config.get("invert_sigmas"))


def _prediction(scheduler, family: str, alpha: float, sigma: float) -> tuple[float, float]:
    """(skip, out) of D = skip * sample + out * prediction."""
    if family == FLOW and not scheduler.config.get("use_flow_sigmas"):
        kind = "flow_prediction"
    else:
        kind = scheduler.config.prediction_type
    if family == EDM:
        data = scheduler.config.sigma_data
        out = sigma * data / math.hypot(sigma, data)
        return data**2 / (sigma**2 + data**2), out if kind == "epsilon" else -out
    skip, out = skip_and_out(kind, alpha, sigma)
    return skip, -out if family == FLOW and _inverted(scheduler) else out


# ---------------------------------------------------------------- sets in a pipeline


def _as_sets(flat: Tensor, particles: int) -> Tensor:
    """Samples (N, ...) of a pipeline as sets (G, particles, C, H, W), N = G * particles.

    Images (C, H, W) stay as they are. Packed latents (L, C) become (1, L, C) and videos
    (C, T, H, W) become (C, T H, W).
    """
    return flat.reshape(-1, particles, *_frame(flat.shape[1:]))


def _frame(shape: tuple[int, ...]) -> tuple[int, ...]:
    """(C, H, W) of the particles that samples of this shape are."""
    if len(shape) == 2:
        return (1, *shape)
    return (shape[0], math.prod(shape[1:-1]), shape[-1])


@contextmanager
def repelling(
    scheduler,
    guide: Guide,
    *,
    particles: int,
    window: Window | None = None,
    generator: torch.Generator | list[torch.Generator] | None = None,
) -> Iterator[None]:
    """Within this context, the sets that a pipeline draws with `scheduler` are guided.

    Arguments:
        scheduler: that of the pipeline, one of SCHEDULERS
        guide: denoiser -> guided denoiser, such as a `measured_guide`, or
            `functools.partial(Spell, radius=10)`. It may call its denoiser at the x that it is
            given alone
        particles: samples in a set, consecutive in the batch: `num_images_per_prompt`
        window: noise is added anew after each step that ends inside it; None: after none
        generator: source of that noise, or a list of one for each sample. None: what the pipeline
            hands to its scheduler, or else PyTorch's global one

    A copy of the scheduler that is made within the context is guided like the scheduler.

    Raises SettingError for a scheduler that cannot be guided, for guidance that needs the network
    itself, within the context for a batch that is not a number of sets, and at its end if neither
    the scheduler nor a copy of it took a step, since then nothing was guided.
    """
    with _guiding(scheduler, guide, particles, window, generator) as steps:
        yield
        if not steps:
            accepted = "the scheduler that the pipeline steps; this one took no step in the context"
            reject("scheduler", type(scheduler).__name__, accepted)


class _Run:
    """Whether a run of a scheduler, from its first noise level to its last, was guided at all.

    Arguments:
        lowest: steps that end below this noise level are not guided
    """

    def __init__(self, lowest: float):
        self.lowest = lowest
        self.index = -1
        self.sigmas: list[float] = []
        self.guided = False

    def step(self, index: int, sigma: float, guided: bool) -> None:
        """It takes a step of the schedule, from a noise level."""
        if index <= self.index:
            self.end()  # that was another run
        self.index = index
        self.sigmas.append(sigma)
        self.guided = self.guided or guided

    def end(self) -> None:
        """Warn if no step of the run was guided."""
        if self.sigmas and not self.guided:
            levels = ", ".join(f"{sigma:.3g}" for sigma in self.sigmas)
            warnings.warn(
                f"nothing was guided: of the steps from noise levels {levels} none ends at "
                f"{self.lowest:.3g} or above, where samples can still change; use more steps, a "
                "schedule with more of them at high noise, or decisions of this model",
                stacklevel=2,
            )
        self.sigmas, self.guided = [], False


@contextmanager
def _guiding(
    scheduler,
    guide: Guide,
    particles: int,
    window: Window | None,
    generator: torch.Generator | list[torch.Generator] | None,
    lowest: float | None = None,
) -> Iterator[list]:
    """`repelling`, whatever is stepped: gives a list that has an item for each step.

    Steps that end below the noise level `lowest`, or at the image, are not guided; None: all are.
    """
    family = _family(scheduler)
    if particles < 1:
        reject("particles", particles, "a whole number from 1")
    at: list[Tensor] = []  # [x, D(x)] of the step
    run = _Run(lowest or 0.0)

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        if x.requires_grad:
            _reject_jacobian()
        if x is not at[0] and not torch.equal(x, at[0]):
            accepted = "one at the x it is given; for other guidance denoiser_of(pipe)"
            reject("guide", "a call of the denoiser at another x", accepted)
        return at[1]

    guided = guide(denoise)
    if getattr(guided, "space", None) == "jacobian":
        _reject_jacobian()

    def step(
        scheduler,  # the one that is asked, which may be a copy
        plain: Callable,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        *args,
        **kwargs,
    ):
        if kwargs.get("per_token_timesteps") is not None:
            reject("per_token_timesteps", "a noise level for each token", "one for all")
        index = _index(scheduler, family, timestep)
        level = _level(scheduler, family, index, timestep)
        following = _level_at(scheduler, family, index + 1)
        acts = level is not None
        if lowest is not None:
            acts = acts and following is not None and following.sigma >= lowest
            run.step(index, math.inf if level is None else level.sigma, acts)
        if level is None or not acts:
            return plain(model_output, timestep, sample, *args, **kwargs)
        _check_batch(model_output, sample, particles)
        precise = torch.promote_types(sample.dtype, torch.float32)
        held, predicted = sample.to(precise), model_output.to(precise)
        x = _as_sets(held / level.alpha, particles)
        clean = _as_sets(level.skip * held + level.out * predicted, particles)
        at[:] = x, clean
        target = guided(x, torch.tensor(level.sigma, dtype=torch.float64))
        limit = torch.finfo(model_output.dtype).max
        predicted = predicted + (target - clean).view_as(predicted) / level.out
        model_output = predicted.clamp(-limit, limit).to(model_output.dtype)
        result = plain(model_output, timestep, sample, *args, **kwargs)
        if window is None or following is None:
            return result
        if not window.low <= following.sigma <= window.high:
            return result
        if not getattr(scheduler, "state_in_first_order", True):
            return result  # a step of second order is not done after its first half
        _start_anew(scheduler)
        source = generator or kwargs.get("generator")
        renew = functools.partial(
            _renewed, following, target.view_as(held), window.churn, generator=source
        )
        if isinstance(result, tuple):
            return (renew(result[0]), *result[1:])
        result.prev_sample = renew(result.prev_sample)
        return result

    with _in_place_of_step(scheduler, step) as steps:
        yield steps
        run.end()


def _renewed(level: Level, target: Tensor, churn: float, sample: Tensor, generator) -> Tensor:
    """A sample (N, ...) taken to sigma / (1 + churn) towards its D', and back up by new noise."""
    from diffusers.utils.torch_utils import randn_tensor

    noise = randn_tensor(sample.shape, generator, sample.device, target.dtype)
    down = 1 / (1 + churn)
    settled = target + down * (sample.to(target.dtype) / level.alpha - target)
    renewed = settled + level.sigma * math.sqrt(1 - down**2) * noise
    return (level.alpha * renewed).to(sample.dtype)


def _start_anew(scheduler) -> None:
    """Have a solver forget its former steps, as at its first one: their noise is gone."""
    if hasattr(scheduler, "lower_order_nums"):  # those of several steps
        scheduler.lower_order_nums = 0
    if hasattr(scheduler, "last_sample"):  # from which UniPC and SA-Solver correct
        scheduler.last_sample = None
    if hasattr(scheduler, "order_list"):  # DPM++ 2S
        scheduler.order_list[scheduler.step_index] = 1


@contextmanager
def _in_place_of_step(scheduler, step: Callable) -> Iterator[list]:
    """A scheduler with another `step(scheduler, its own step, ...)` within this context.

    Its class has it, and so have copies that are made meanwhile, and schedulers that `from_config`
    of this class makes; after the context they step as before. Gives a list of all steps.
    """
    kind = type(scheduler)
    own = vars(scheduler).pop("step", None)  # of this one scheduler
    ended = False
    steps: list = []

    @functools.wraps(kind.step)  # pipelines look at its signature
    def guided_step(self, *args, **kwargs):
        plain = own or functools.partial(kind.step, self)
        if ended:
            return plain(*args, **kwargs)
        steps.append(self)
        return step(self, plain, *args, **kwargs)

    scheduler.__class__ = type(kind.__name__, (kind,), dict(step=guided_step))
    try:
        yield steps
    finally:
        ended = True
        scheduler.__class__ = kind
        if own is not None:
            scheduler.step = own


def _check_batch(prediction: Tensor, sample: Tensor, particles: int) -> None:
    if len(sample) % particles:
        reject("particles", particles, f"a divisor of the {len(sample)} samples of the batch")
    if prediction.shape != sample.shape:
        accepted = f"that of the sample, {list(sample.shape)}: a network that learns no variance"
        reject("shape of the prediction", list(prediction.shape), accepted)


def _reject_jacobian() -> None:
    accepted = "'denoised', 'x'; through the network, denoiser_of(pipe) and the sampler"
    reject("space", "jacobian", accepted)


# ---------------------------------------------------------------- a pipeline as a denoiser


class _OneLevel:
    """Stands in for a pipeline's scheduler: one call of the network, whose prediction it keeps.

    Arguments:
        scheduler: whose other attributes it has
        timestep: what the network is told
    """

    init_noise_sigma = 1.0
    order = 1

    def __init__(self, scheduler, timestep: float):
        self.scheduler = scheduler
        self.timestep = timestep
        self.sample: Tensor | None = None
        self.prediction: Tensor | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.scheduler, name)

    def set_timesteps(self, *args, device=None, timesteps=None, sigmas=None, **kwargs) -> None:
        """One timestep, whatever the pipeline asks for."""
        self.timesteps = torch.full((1,), self.timestep, device=device)  # a GPU does not wait

    def set_begin_index(self, begin_index: int = 0) -> None:
        """There is one step."""

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """The sample is scaled already."""
        return sample

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, *args, **kwargs):
        """Keep what the network predicted for a sample, and return that sample."""
        self.prediction, self.sample = model_output, sample
        return (sample,)


class PipelineDenoiser:
    """A pipeline of diffusers, with its prompts and classifier-free guidance, as a denoiser.

    Each call is a call of the pipeline with a schedule of one step, so that whatever the pipeline
    does with its network is done here too. The prompt is encoded once. Gradients run through it
    where they are enabled.

    Arguments:
        pipe: the pipeline; one that takes `latents`, or one whose `unet` takes (sample, timestep)
        call: what the pipeline is called with: prompt, guidance_scale, height, ...

    Attributes: `shape` (C, H, W) of a particle; `sigma_min` and `sigma_max`, the noise levels
    between which the network was trained.
    """

    def __init__(self, pipe, **call):
        if hasattr(pipe, "blocks"):
            accepted = "one that is not modular, whose decisions=pilot(denoiser_of(...)) serve both"
            reject("pipe", type(pipe).__name__, accepted)
        self.pipe = pipe
        self.call = call
        self.family = _family(pipe.scheduler)
        self.encoded: dict[tuple, Any] = {}
        if self.family in (TIMESTEP, PRESERVING, EXPLODING):
            self.log_sigmas = log_sigmas_of(pipe.scheduler.alphas_cumprod)
        self.prompts = self._prompts()
        self.sigma_min, self.sigma_max = self._range()
        with torch.no_grad():
            sample, _ = self._through(None, self.sigma_max, self.prompts)
        self.native = tuple(sample.shape[1:])
        self.shape = _frame(self.native)
        self.dtype, self.device = sample.dtype, sample.device

    def _prompts(self) -> int:
        prompt = self.call.get("prompt")
        embedded = self.call.get("prompt_embeds")
        if embedded is not None:
            return len(embedded)
        return len(prompt) if isinstance(prompt, (list, tuple)) else 1

    def _range(self) -> tuple[float, float]:
        if self.family == FLOW:
            return 1e-3, 99.0  # s = 0.001 to 0.99
        if self.family == EDM:
            return self.pipe.scheduler.config.sigma_min, self.pipe.scheduler.config.sigma_max
        return math.exp(self.log_sigmas[0]), math.exp(self.log_sigmas[-1])

    def timestep(self, sigma: float) -> float:
        """What the network is told at a noise level; outside its range, the first or last one."""
        if self.family == FLOW:
            s = sigma / (1 + sigma)
            s = 1 - s if _inverted(self.pipe.scheduler) else s
            return s * self.pipe.scheduler.config.num_train_timesteps
        if self.family == EDM:
            return math.log(sigma) / 4
        return timestep_of(sigma, self.log_sigmas)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        level = float(sigma)
        if self.family == FLOW:
            alpha = 1 / (1 + level)
        else:
            alpha = 1 / math.hypot(level, self.pipe.scheduler.config.get("sigma_data") or 1.0)
        flat = (alpha * x).reshape(-1, *self.native)
        if len(flat) % self.prompts:
            reject(
                "prompt", f"{self.prompts} for {len(flat)} particles", "prompts that divide them"
            )
        _, prediction = self._through(flat.to(self.dtype), level, len(flat))
        skip, out = _prediction(self.pipe.scheduler, self.family, alpha, level)
        if self.family == EDM:
            skip = skip / alpha  # it applies to x
        return (skip * flat + out * prediction.to(flat)).view_as(x)

    def _through(self, latents: Tensor | None, sigma: float, n: int) -> tuple[Tensor, Tensor]:
        """The sample (n, ...) that the network saw and its prediction, alike."""
        pipe, timestep = self.pipe, self.timestep(sigma)
        run = inspect.unwrap(type(pipe).__call__)  # without torch.no_grad
        accepted = inspect.signature(run).parameters
        if "latents" not in accepted:
            config = pipe.unet.config
            if latents is None:
                side = config.sample_size
                like = next(pipe.unet.parameters(), torch.empty(0))
                latents = torch.zeros(n, config.in_channels, side, side).to(like)
            t = torch.full((), timestep, device=latents.device)  # filled: a GPU does not wait
            return latents, pipe.unet(latents, t).sample
        given = self.call | dict(latents=latents, num_inference_steps=1, output_type="latent")
        if self.call.get("prompt_embeds") is not None:
            # Not every pipeline repeats embeddings for the images of a prompt.
            for name, value in self.call.items():
                if "prompt_embeds" in name and value is not None:
                    given[name] = value.repeat_interleave(n // self.prompts, 0)
        elif "num_images_per_prompt" in accepted:
            given["num_images_per_prompt"] = n // self.prompts
        with self._standing_in(timestep, n) as kept:
            run(pipe, **given)
        assert kept.sample is not None and kept.prediction is not None  # a pipeline takes its step
        return kept.sample, kept.prediction

    @contextmanager
    def _standing_in(self, timestep: float, n: int) -> Iterator[_OneLevel]:
        """The pipeline with a schedule of one step, silent, and with prompts encoded once."""
        pipe, scheduler = self.pipe, self.pipe.scheduler
        bar = getattr(pipe, "_progress_bar_config", {})
        kept = _OneLevel(scheduler, timestep)
        try:
            pipe.scheduler = kept
            pipe.set_progress_bar_config(**bar | dict(disable=True))
            if hasattr(pipe, "encode_prompt"):
                pipe.encode_prompt = self._encode_once(pipe.encode_prompt, n)
            yield kept
        finally:
            pipe.scheduler = scheduler
            pipe.set_progress_bar_config(**bar)
            vars(pipe).pop("encode_prompt", None)

    def _encode_once(self, encode: Callable, n: int) -> Callable:
        """A pipeline's `encode_prompt` that remembers what it returned for n samples."""
        calls = itertools.count()

        def remembered(*args, **kwargs):
            key = (n, next(calls))  # a pipeline encodes in the same order every time
            if key not in self.encoded:
                with torch.no_grad():
                    self.encoded[key] = encode(*args, **kwargs)
            return self.encoded[key]

        return remembered


def denoiser_of(pipe, **call) -> PipelineDenoiser:
    """A pipeline with its conditioning and classifier-free guidance as `denoise(x, sigma)`.

    Arguments:
        pipe: the pipeline
        call: what it is called with: prompt (or a list of one for each set), guidance_scale, ...

    Raises SettingError for a scheduler that `repelling` refuses, and for modular pipelines.
    """
    return PipelineDenoiser(pipe, **call)


# ---------------------------------------------------------------- earlier pictures


def as_memory(pipe, earlier: Any) -> Tensor:
    """Earlier pictures in the units of a pipeline's latents, as one set (1, M, C, H, W).

    Arguments:
        pipe: the pipeline
        earlier: latents (M, ...), a tensor or a list of them, as output_type="latent" returns them;
            or pictures, as the pipeline returns others: one of PIL's, a list of them, or an array
            (M, H, W, C) in [0, 1]. The pipeline's VAE encodes pictures

    Raises SettingError for what is neither, and for pictures if the VAE is not one whose scale is
    known.
    """
    items = earlier if isinstance(earlier, (list, tuple)) else [earlier]
    if items and all(isinstance(item, Tensor) for item in items):
        latents = earlier if isinstance(earlier, Tensor) else torch.stack(items)
    else:
        latents = _encoded(pipe, earlier)
    if latents.ndim < 3 or not len(latents):
        reject("shape of memory", list(latents.shape), "(M, ...), an axis of pictures first")
    return latents.reshape(1, len(latents), *_frame(latents.shape[1:]))


def _encoded(pipe, pictures: Any) -> Tensor:
    """Pictures in [0, 1] as latents (M, ...), those that img2img pipelines of diffusers start
    from."""
    from diffusers.image_processor import VaeImageProcessor

    vae = getattr(pipe, "vae", None)
    processor = getattr(pipe, "image_processor", None) or VaeImageProcessor(vae_scale_factor=1)
    in_range = not isinstance(pictures, numpy.ndarray) or 0 <= pictures.min() <= pictures.max() <= 1
    try:
        pixels = processor.preprocess(pictures) if in_range else None  # in [-1, 1]
    except (ValueError, TypeError, IndexError):
        pixels = None
    if pixels is None or not len(pixels):
        accepted = "pictures of PIL or arrays in [0, 1], or latents, as output_type='latent' gives"
        reject("memory", type(pictures).__name__, accepted)
    if vae is None:
        return pixels
    known = type(vae).__name__ in ("AutoencoderKL", "AutoencoderTiny")
    if not known or vae.config.get("latents_mean") is not None:
        accepted = f"latents, as output_type='latent' gives, with {type(vae).__name__}"
        reject("memory", "pictures", accepted)
    precise = vae.config.get("force_upcast") and vae.dtype == torch.float16
    own = vae.dtype
    if precise:
        vae.to(torch.float32)  # in half precision it gives no numbers
    with torch.no_grad():
        device = getattr(pipe, "_execution_device", vae.device)
        found = vae.encode(pixels.to(device, vae.dtype))
    if precise:
        vae.to(own)
    latents = found.latent_dist.mode() if hasattr(found, "latent_dist") else found.latents
    latents = (latents - (vae.config.get("shift_factor") or 0)) * vae.config.scaling_factor
    if hasattr(pipe, "_pack_latents"):
        return pipe._pack_latents(latents, *latents.shape)
    return latents


# ---------------------------------------------------------------- units


def pilot(denoise: PipelineDenoiser, *, particles: int = 8, seed: int = 0) -> Decisions:
    """At which noise levels it is decided what a pipeline's samples show, measured on one set.

    Arguments:
        denoise: what `denoiser_of` returns; one set is drawn for each of its prompts
        particles: in a set, at least 2
        seed: of the noise

    Returns what `default_guidance` asks for. It costs PILOT_LEVELS calls for each particle. Raises
    ValueError if the samples are all alike.
    """
    sigmas = karras_sigmas(PILOT_LEVELS, denoise.sigma_min, denoise.sigma_max)
    sets, members = range(denoise.prompts), range(particles)
    noise = ParticleNoise(seed, sets, members, denoise.shape, denoise.device, Stream.PILOT)
    return measure(denoise, noise() * sigmas[0], sigmas, from_lowest=True)


def guided_window(decisions: Decisions) -> Window:
    """Where noise is added anew in a pipeline; `repel` guides steps that end at its low or above.

    A scheduler's few noise levels lie where they lie, so that the window is a wide one: down to
    where a sample is settled.
    """
    return decisions.window(WIDE)._replace(low=decisions.sigma(WIDE.settled))


@contextmanager
def repel(
    pipe,
    *,
    particles: int,
    factor: float | None = None,
    log_posterior: LogPosterior | None = None,
    counts: Tensor | None = None,
    clean: bool = False,
    memory: Any = None,
    decisions: Decisions | None = None,
    generator: torch.Generator | list[torch.Generator] | None = None,
    **call,
) -> Iterator[Decisions]:
    """Within this context, the pictures that a pipeline draws of one prompt repel each other, or
    show the classes that they are asked to.

    Arguments:
        pipe: the pipeline, with one of SCHEDULERS
        particles: pictures in a set, consecutive in the batch: its `num_images_per_prompt`
        factor: strength; None: 5, or 8 with `log_posterior`. 0 changes nothing
        log_posterior: (x (G, B, C, H, W), sigma) -> log p(class | x), (G, B, k), differentiable in
            x, which is noise and latents, in their units. Sets then show every class, or `counts`,
            instead of repelling (`ClassGuidance`)
        counts: (k,) or (G, k) int64, how many pictures show each class, `particles` in all. None:
            as many different classes as there can be
        clean: whether `log_posterior` knows latents without noise alone: it is asked of D(x)
        memory: earlier pictures that repel all sets and do not move, as `as_memory` takes them. One
            picture beside them is guided too
        decisions: what an earlier context gave; None: a pilot through the pipeline measures it, of
            as many unguided pictures as there are in a set, with memory up to 8 together
        generator: source of the noise that is added anew, as in `repelling`
        call: what the pilot calls the pipeline with: prompt, guidance_scale, height, ...

    Gives the decisions. Raises SettingError for a scheduler that cannot be guided, for another one
    that the pipeline has at the end, and for classes and memory that do not fit, ValueError if the
    pilot's samples are all alike. Warns, saying what to do, if nothing repels or was guided: a set
    of one without memory, no step in the context or none in the window; and of a guidance_scale
    that is not the pilot's.
    """
    earlier = None if memory is None else as_memory(pipe, memory)
    alone = particles == 1 and memory is None
    if alone and log_posterior is None and factor != 0:
        warnings.warn(
            "nothing is guided: particles is 1, and a picture repels the others of its set; use at "
            "least 2, and num_images_per_prompt of as many, or memory",
            stacklevel=3,
        )
    strength = None  # of classifier-free guidance, if the pipeline says so
    if decisions is None:
        together = particles if earlier is None else particles + earlier.shape[1]
        enough = max(particles, min(together, PILOT_PARTICLES), 2)
        decisions = pilot(denoiser_of(pipe, **call), particles=enough)
        strength = getattr(pipe, "guidance_scale", None)
    window = guided_window(decisions)
    guide = measured_guide(
        decisions,
        window._replace(high=math.inf),  # few steps end in the window, and early ones do no harm
        factor=factor,
        log_posterior=log_posterior,
        counts=counts,
        clean=clean,
        memory=earlier,
    )
    renewed = None if factor == 0 else window
    lowest = None if factor == 0 or log_posterior is not None else window.low
    scheduler = pipe.scheduler
    with _guiding(scheduler, guide, particles, renewed, generator, lowest) as steps:
        yield decisions
        if type(pipe.scheduler) is not type(scheduler):
            accepted = "that which the pipeline has when the context begins; another is not guided"
            reject("scheduler", type(pipe.scheduler).__name__, accepted)
        if not steps:
            warnings.warn(
                f"nothing was guided: {type(scheduler).__name__} took no step in the context; call "
                "the pipeline inside it, with the scheduler that it has when the context begins",
                stacklevel=3,
            )
        elif strength is not None and pipe.guidance_scale != strength:
            warnings.warn(
                f"guided by decisions at guidance_scale {strength:g}, but drawn at "
                f"{pipe.guidance_scale:g}: give repel the guidance_scale of the pipeline's call",
                stacklevel=3,
            )
