"""The pilot of an evaluation: a few independent sets, for where it is decided what a sample shows.

What it measures is kept beside the checkpoint (`diverse_sampling/decisions.py` says what that is).
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from config import EvaluationSettings, SamplerSettings
from diverse_sampling import decisions
from diverse_sampling.decisions import Decisions, measure
from diverse_sampling.defaults import PILOT_LEVELS, SIGMA_MIN
from diverse_sampling.noise import Stream
from diverse_sampling.steps import karras_sigmas
from lab.files import sha256_of
from lab.methods import Methods, needs_pilot
from lab.tasks import Task
from model import EDMDenoiser
from sampler import SetSampler

# Sets, and particles in each.
PILOT = (12, 8)
# If more than this differs at the largest noise level, the samples of a set hardly differ: a rare
# answer has not been drawn yet. The pilot then has twice as many particles, up to 16 times as many.
LARGEST_FLOOR = 0.25


def _name_of(task: Task, sampler: SamplerSettings) -> str:
    """A hash of all that a trained network sees in a pilot: conditions, labels, noise levels.

    Conditions count as 8-bit images, so that rounding on another machine makes no new name.
    """
    seen = hashlib.sha256(
        json.dumps([PILOT, task.world.frame_shape, sampler.sigma_max, sampler.rho]).encode()
    )
    seen.update((task.cond * 255).round().clamp(0, 255).byte().numpy().tobytes())
    if task.labels is not None:
        seen.update(task.labels.numpy().tobytes())
    return seen.hexdigest()[:16]


def measured(sampler: SetSampler, particles: int) -> Decisions:
    """Where it is decided what a sample shows, of `particles` in each set without guidance."""
    s = sampler.settings.sampler
    sets = torch.arange(sampler.task.num_sets)
    noise = sampler.noise(sets, range(particles), Stream.PILOT)
    sigmas = karras_sigmas(PILOT_LEVELS, sigma_max=s.sigma_max, rho=s.rho)
    with torch.no_grad():
        denoise = sampler.calls.counted(sampler.denoiser(sets))
        return measure(denoise, noise() * sigmas[0], sigmas)


def decisions_of(
    settings: EvaluationSettings,
    kind: type[Task],
    world: Any,
    network: EDMDenoiser | None,
    path: Path | None,
    device: torch.device,
) -> tuple[Decisions | None, int]:
    """Where it is decided what a sample shows, measured by a pilot of a few independent sets.

    It is kept beside the checkpoint, and read from there the next time. It depends on the network,
    the first conditions of the world and the range of noise levels, not on the seed or the sets of
    the evaluation.

    Arguments:
        settings, path: as for `assemble.set_up`
        kind: the class of the task
        world: the test split of the world
        network: the trained denoiser, None for the exact one
        device: where it computes

    Returns (the curve, None if the settings leave nothing to it; the network calls that it takes,
    of all particles together, also where it was read).
    """
    if not needs_pilot(settings):
        return None, 0
    sets, particles = PILOT
    most = kind.most_sets(world)
    sampler = settings.sampler
    independent = EvaluationSettings(
        evaluate=settings.evaluate,
        world=settings.world,
        digits=settings.digits,
        sampler=SamplerSettings(
            sampler="edm", sigma_min=SIGMA_MIN, sigma_max=sampler.sigma_max, rho=sampler.rho
        ),
    )
    task = kind(world, sets if most is None else min(sets, most), 0)
    name = _name_of(task, independent.sampler)
    if path is not None:
        held = decisions.cached(path, sha256_of(path), name)
        if held is not None:
            return held
    unguided = SetSampler(task, independent, device, Methods(independent), network)
    curve = measured(unguided, particles)
    while curve.floor > LARGEST_FLOOR and particles < PILOT[1] * 2**4:
        particles *= 2
        curve = measured(unguided, particles)
    if path is not None:
        decisions.keep(path, sha256_of(path), name, curve, unguided.calls.forward)
    return curve, unguided.calls.forward
