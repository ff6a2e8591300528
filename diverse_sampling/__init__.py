"""Diverse sets of samples from diffusion models.

    from diverse_sampling import sample

    samples = sample(denoise, noise)

draws sets whose particles repel each other, with anyone's denoiser `denoise(x, sigma) -> x0`, and

    from diverse_sampling import repel

    with repel(pipe, prompt=prompt, particles=4):
        images = pipe(prompt, num_images_per_prompt=4).images

does so in a pipeline of diffusers. If something says which class a sample shows,

    counts = torch.tensor([3, 1])  # of two classes, in a set of four
    samples = sample(denoise, noise, log_posterior=log_posterior, counts=counts)

draws sets with this composition, and `repel` takes the same arguments. The parts are there too:
denoisers (`denoiser.py`, `exact.py`, `predictions.py`), the sampler (`steps.py`, `noise.py`), where
modes are decided (`decisions.py`), potentials, methods (`guidance/`, `coupling/`, `selection.py`).

Names are imported when they are first used, so that what needs no torch does not wait for it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diverse_sampling.decisions import Decisions, measure
    from diverse_sampling.denoiser import CallCounter, Denoiser
    from diverse_sampling.errors import SettingError
    from diverse_sampling.exact import Bank, exact_denoiser, posterior_mean
    from diverse_sampling.guidance import (
        ClassGuidance,
        ParticleGuidance,
        Spell,
        default_guidance,
        joint_weights,
        never_down,
    )
    from diverse_sampling.noise import ParticleNoise
    from diverse_sampling.pipelines import denoiser_of, pilot, repel, repelling
    from diverse_sampling.potentials import POTENTIALS, Bandwidth, LogDet, Potential
    from diverse_sampling.predictions import from_epsilon, from_flow, from_velocity
    from diverse_sampling.selection import kmedoids, thin
    from diverse_sampling.sets import sample
    from diverse_sampling.steps import (
        Schedule,
        Window,
        edm_sampler,
        edm_schedule,
        integrate,
        karras_sigmas,
        window_schedule,
    )

_MODULES = dict(
    decisions=("Decisions", "measure"),
    denoiser=("CallCounter", "Denoiser"),
    errors=("SettingError",),
    exact=("Bank", "exact_denoiser", "posterior_mean"),
    guidance=(
        *("ClassGuidance", "ParticleGuidance", "Spell", "default_guidance", "joint_weights"),
        "never_down",
    ),
    steps=(
        *("Schedule", "Window", "edm_sampler", "edm_schedule", "integrate", "karras_sigmas"),
        "window_schedule",
    ),
    noise=("ParticleNoise",),
    pipelines=("denoiser_of", "pilot", "repel", "repelling"),
    potentials=("POTENTIALS", "Bandwidth", "LogDet", "Potential"),
    predictions=("from_epsilon", "from_flow", "from_velocity"),
    selection=("kmedoids", "thin"),
    sets=("sample",),
)
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}
__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
