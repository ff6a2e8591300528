"""Sampling of sets: denoiser -> guidance -> sampler -> redraws, in chunks that fit into memory.

Set g is always the same: its condition and its noise follow from (seed, g) alone, whatever other
sets are sampled beside it and in whichever chunks.
"""

from __future__ import annotations

import math
import sys
from contextlib import nullcontext
from functools import partial
from typing import Callable

import torch
from torch import Tensor
from tqdm import tqdm

from classifier import Classifier
from config import EvaluationSettings
from denoiser import Denoiser
from devices import free_memory
from guidance import Cads, ParticleGuidance, Reference, Spell
from metrics import iou, without_background
from model import EDMDenoiser
from noise import (
    SetNoise,
    Stream,
    antithetic,
    leading_directions,
    set_generator,
    simplex,
    stratified,
)
from potentials import POTENTIALS, Bandwidth, IoU
from ranges import to_model_range, to_unit_range
from sampler import edm_sampler, karras_sigmas
from selection import kmedoids, redraw_faulty
from tasks import Task

# At most, in one network call. On a CPU, larger calls are no faster.
PARTICLES_PER_CALL = dict(cpu=256, cuda=65536)

Callback = Callable[[dict], None]  # sees every step of the sampler, see sampler.edm_sampler


class CallCounter:
    """Counts what sampling costs: particles sent through the denoiser, and back to its input."""

    def __init__(self):
        self.forward = 0
        self.backward = 0

    def counted(self, denoise: Denoiser) -> Denoiser:
        """The same denoiser, with its calls counted."""

        def denoise_and_count(x: Tensor, sigma: Tensor) -> Tensor:
            particles = x.shape[0] * x.shape[1]
            self.forward += particles
            if x.requires_grad:
                self.backward += particles
            return denoise(x, sigma)

        return denoise_and_count


def kept_bytes(denoise: Denoiser, x: Tensor) -> int:
    """Memory that a denoiser keeps for a gradient to x (G, B, C, H, W), in bytes."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    # A compiled network is measured uncompiled. Where torch._dynamo was never imported, which takes
    # seconds, there is none.
    compiled = "torch._dynamo" in sys.modules
    with (
        torch.enable_grad(),
        torch.compiler.set_stance("force_eager") if compiled else nullcontext(),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
    ):
        # Kept alive until everything is counted, or freed memory would be counted twice.
        kept = denoise(x.requires_grad_(), torch.tensor(1.0, dtype=torch.float64))
        total = sum(storages.values())
    del kept
    return total


class SetSampler:
    """Samples the sets of a task with one denoiser, one guidance method and one schedule.

    Arguments:
        task: conditions and right answers of the sets
        settings: of the evaluation; what is read here are `evaluate`, `sampler`, `guidance` and
            `run.seed`
        device: where the denoiser computes
        network: the trained denoiser; None for the exact one, the mean over the right answers
        feature_classifier: the classifier whose features are compared, where guidance asks for it

    Attributes:
        sigmas: (N + 1,) float64, the noise levels of the sampler, the last one 0
        particle_shape: (C, H, W)
        calls: what sampling has cost so far
    """

    def __init__(
        self,
        task: Task,
        settings: EvaluationSettings,
        device: torch.device,
        network: EDMDenoiser | None = None,
        feature_classifier: Classifier | None = None,
    ):
        self.task = task
        self.settings = settings
        self.device = device
        self.network = network
        self.feature_classifier = feature_classifier
        self.seed = settings.run.seed
        self.batch_size = settings.evaluate.batch_size
        s = settings.sampler
        self.sigmas = karras_sigmas(s.num_steps, s.sigma_min, s.sigma_max, s.rho)
        self.particle_shape = (1, *task.world.frame_shape)
        self.calls = CallCounter()
        self.progress: tqdm | None = None  # while sets are sampled

    # ------------------------------------------------------------ denoisers
    def denoiser(self, sets: Tensor, cond: Tensor | None = None) -> Denoiser:
        """The unguided denoiser of some sets, not counted.

        Arguments:
            sets: (G,) int64, their numbers
            cond: (G, B, Cc, H, W) in [-1, 1], in place of their own conditioning frames
        """
        if self.network is None:
            return self.task.exact_denoiser(sets, self.device)
        labels = None
        if self.network.unet.label is not None and self.task.labels is not None:
            labels = self.task.labels[sets].to(self.device)
        if cond is None and self.task.cond.shape[1]:
            cond = to_model_range(self.task.cond[sets]).to(self.device)
        return self.network.bind(cond, labels)

    def guided_denoiser(
        self, sets: Tensor, batch_size: int, stream: int, memory: Tensor | None = None
    ) -> Denoiser:
        """The denoiser of some sets with the guidance that the settings describe, counted.

        Arguments:
            sets: (G,) int64, their numbers
            batch_size: particles in each of them, B
            stream: of the noise that they are sampled from; it tells apart what else is random
            memory: (G, M, C, H, W) in [-1, 1], images that repel the particles too
        """
        g = self.settings.guidance
        denoise = self.calls.counted(self.denoiser(sets))
        if g.guidance == "pg" and g.pg_factor > 0:
            sigma_max = g.pg_sigma_max
            if memory is not None:
                # What memory repels from has to be decided from the start.
                sigma_max = max(sigma_max, self.settings.sampler.sigma_max)
            anneal_bandwidth = g.pg_anneal in ("bandwidth", "both")
            bandwidth = Bandwidth(
                g.pg_bandwidth,
                g.pg_bandwidth_value,
                anneal=(g.pg_sigma_min, sigma_max) if anneal_bandwidth else None,
            )
            return ParticleGuidance(
                denoise,
                POTENTIALS[g.pg_kernel](bandwidth),
                factor=g.pg_factor,
                space=g.pg_space,
                strength=g.pg_strength,
                sigma_min=g.pg_sigma_min,
                sigma_max=sigma_max,
                anneal=g.pg_anneal in ("strength", "both"),
                cap=g.pg_cap,
                features=self.features(),
                memory=memory,
            )
        if g.guidance == "spell":
            return Spell(denoise, radius=g.spell_radius, memory=memory)
        if g.guidance == "reference":
            return Reference(denoise, factor=g.pg_factor)
        if g.guidance == "cads":
            shape = (batch_size, *self.task.cond.shape[1:])
            conditioning = Stream.CONDITIONING.turn(stream)
            return Cads(
                lambda cond: self.calls.counted(self.denoiser(sets, cond)),
                to_model_range(self.task.cond[sets]).to(self.device),
                SetNoise(self.seed, sets.tolist(), shape, self.device, conditioning),
                self.schedule_position,
                tau1=g.cads_tau1,
                tau2=g.cads_tau2,
                scale=g.cads_scale,
                mixing=g.cads_mixing,
            )
        return denoise

    def features(self) -> Callable[[Tensor], Tensor] | None:
        """What particles are compared by: images (N, 1, H, W) in [-1, 1] -> (N, ...).

        None stands for the pixels themselves.
        """
        if self.feature_classifier is not None:
            classifier = self.feature_classifier
            return lambda images: classifier.features(to_unit_range(images[:, 0]))
        pool = self.settings.guidance.pg_pool
        if pool > 1:
            return partial(torch.nn.functional.avg_pool2d, kernel_size=pool)
        return None

    def schedule_position(self, sigma: float) -> float:
        """Where a noise level lies in the schedule: 0 at sigma_min, 1 at sigma_max."""
        s = self.settings.sampler
        low = s.sigma_min ** (1 / s.rho)
        high = s.sigma_max ** (1 / s.rho)
        position = (sigma ** (1 / s.rho) - low) / (high - low)
        return min(max(position, 0.0), 1.0)

    # ------------------------------------------------------------ sampling
    def initial_noise(self, sets: Tensor, noise: SetNoise, stream: int) -> Tensor:
        """Noise of standard deviation sigma_max, coupled in each set if the settings ask for it.

        Arguments:
            sets: (G,) int64
            noise: source of independent noise
            stream: of that noise; it tells apart what else is random

        Returns (G, B, C, H, W).
        """
        g = self.settings.guidance
        z = noise()
        if g.noise == "antithetic":
            z = antithetic(z)
        elif g.noise == "simplex":
            z = simplex(z)
        elif g.noise == "stratified" and z.shape[1] > 1:
            axes = leading_directions(
                self.calls.counted(self.denoiser(sets)),
                torch.tensor(g.stratified_sigma),
                self.particle_shape,
                g.stratified_rank,
                self._generators(sets, Stream.DIRECTIONS.turn(stream)),
                device=self.device,
            )
            z = stratified(z, axes, self._generators(sets, Stream.QUANTILES.turn(stream)))
        return z * self.sigmas[0]

    def _generators(self, sets: Tensor, stream: int) -> list[torch.Generator]:
        return [set_generator(self.seed, g, stream) for g in sets.tolist()]

    def sample_once(
        self,
        sets: Tensor,
        batch_size: int,
        *,
        turn: int = 0,
        memory: Tensor | None = None,
        callback: Callback | None = None,
    ) -> Tensor:
        """One run of the sampler: new particles for some sets.

        Arguments:
            sets: (G,) int64, their numbers
            batch_size: new particles for each, B
            turn: how many runs for these sets went before; each has noise of its own
            memory: (G, M, C, H, W) in [-1, 1], images that repel the particles too
            callback: sees every step

        Returns samples (G, B, H, W).
        """
        s = self.settings.sampler
        stream = Stream.SAMPLING.turn(turn)
        shape = (batch_size, *self.particle_shape)
        noise = SetNoise(self.seed, sets.tolist(), shape, self.device, stream)
        denoise = self.guided_denoiser(sets, batch_size, stream, memory)

        def after_step(step: dict) -> None:
            if self.progress is not None:
                self.progress.update()
            if callback is not None:
                callback(step)

        with torch.no_grad():
            x = edm_sampler(
                denoise,
                self.initial_noise(sets, noise, stream),
                self.sigmas,
                s_churn=s.s_churn,
                s_min=s.s_min,
                s_max=s.s_max,
                s_noise=s.s_noise,
                noise=noise,
                callback=after_step,
            )
        return self.task.to_samples(x)

    def sample(self, sets: Tensor, callback: Callback | None = None) -> Tensor:
        """Some sets in one chunk, with everything that the settings ask for.

        Arguments:
            sets: (G,) int64, their numbers
            callback: sees every step of the runs that sample whole sets

        Returns samples (G, sequential * batch_size, H, W).
        """
        g = self.settings.guidance
        if g.guidance == "kmedoids":
            pool = self.sample_once(sets, self.batch_size * g.kmedoids_pool, callback=callback)
            chosen = kmedoids(pool, self.batch_size)
            return pool[torch.arange(len(pool))[:, None], chosen]
        samples = self.sample_once(sets, self.batch_size, callback=callback)
        for turn in range(1, g.sequential):
            memory = self.task.to_model(samples, self.device)
            more = self.sample_once(
                sets, self.batch_size, turn=turn, memory=memory, callback=callback
            )
            samples = torch.cat([samples, more], 1)
        if g.guidance == "pg" and g.pg_factor > 0:
            samples, _ = redraw_faulty(
                samples,
                partial(self.resample, sets),
                partial(self.doubt, sets),
                alike=self.similarity,
                rounds=g.redraws,
                most_alike=g.most_alike,
                most_doubt=g.most_doubt,
            )
        return samples

    def sample_all(
        self,
        progress: bool = True,
        sets: Tensor | None = None,
        callback: Callback | None = None,
    ) -> Tensor:
        """All sets of the task, or some, in as few chunks as memory allows.

        Arguments:
            progress: show a progress bar over the steps if stderr is a terminal
            sets: (G,) int64, the numbers of the sets; all without them
            callback: sees every step of the runs that sample whole sets

        Returns samples (G, sequential * batch_size, H, W).
        """
        g = self.settings.guidance
        if sets is None:
            sets = torch.arange(self.task.num_sets)
        particles = self.batch_size
        if g.guidance == "kmedoids":
            particles *= g.kmedoids_pool
        chunks = sets.split(max(1, self.particles_per_call() // particles))
        with tqdm(
            total=len(chunks) * g.sequential * self.settings.sampler.num_steps,
            unit="step",
            desc=f"{len(sets)} sets of {self.batch_size}",
            disable=None if progress else True,
        ) as self.progress:
            samples = torch.cat([self.sample(chunk, callback) for chunk in chunks])
        self.progress = None
        return samples

    def particles_per_call(self) -> int:
        """How many particles go through the denoiser together.

        As many as fit into half of the free memory with what a gradient to their input keeps, and
        PARTICLES_PER_CALL at most. The samples do not depend on it.
        """
        denoise = self.denoiser(torch.tensor([0]))
        one, nine = (
            kept_bytes(denoise, torch.zeros(1, n, *self.particle_shape, device=self.device))
            for n in (1, 9)
        )
        bytes_per_particle = max(1, (nine - one) // 8)
        fit = free_memory(self.device) // 2 // bytes_per_particle
        return max(1, min(PARTICLES_PER_CALL[self.device.type], fit))

    # ------------------------------------------------------------ redraws
    def resample(self, sets: Tensor, rows: Tensor, turn: int, others: Tensor) -> Tensor:
        """One new particle for some of `sets`, repelled by the others of its set.

        Arguments:
            sets: (G,) int64, numbers of the sets of a chunk
            rows: (M,) int64, which of them get a new particle
            turn: round of redraws, from 0
            others: (M, B - 1, H, W), the other particles of each

        Returns (M, H, W).
        """
        if self.progress is not None:
            self.progress.total += self.settings.sampler.num_steps
        turn += self.settings.guidance.sequential
        memory = self.task.to_model(others, self.device)
        return self.sample_once(sets[rows], 1, turn=turn, memory=memory)[:, 0]

    def doubt(self, sets: Tensor, rows: Tensor, samples: Tensor) -> Tensor:
        """How little the model believes in samples: (M, P, H, W) of sets[rows] -> (M, P).

        The L2 distance by which the denoiser moves a sample once it is noised to `doubt_sigma`:
        answers that the model believes in come back as they were. With the features of a
        classifier, 1 minus its largest class probability.
        """
        g = self.settings.guidance
        if g.most_doubt == math.inf:
            return torch.zeros(samples.shape[:2])
        if self.feature_classifier is not None:
            return 1 - self.class_probabilities(samples).amax(-1)
        sigma = torch.tensor(g.doubt_sigma, dtype=torch.float64)
        shape = (samples.shape[1], *self.particle_shape)
        noise = SetNoise(self.seed, sets[rows].tolist(), shape, self.device, Stream.DOUBT)
        x = self.task.to_model(samples, self.device)
        with torch.no_grad():
            denoise = self.calls.counted(self.denoiser(sets[rows]))
            denoised = denoise(x + sigma * noise(), sigma)
        return (denoised - x).flatten(2).norm(dim=-1).cpu()

    def similarity(self, a: Tensor, b: Tensor) -> Tensor:
        """Similarity of samples from 0 to 1: (G, A, H, W), (G, B, H, W) -> (G, A, B).

        The task's own or, with the features of a classifier, the probability that both show the
        same digit.
        """
        if self.feature_classifier is None:
            return self.task.similarity(a, b)
        of_a = self.class_probabilities(a)
        of_b = of_a if b is a else self.class_probabilities(b)
        return of_a @ of_b.transpose(1, 2)

    def class_probabilities(self, samples: Tensor) -> Tensor:
        """What the feature classifier sees in samples: (G, B, H, W) -> (G, B, 10)."""
        assert self.feature_classifier is not None  # callers have checked
        frames = without_background(samples).flatten(0, 1).to(self.device)
        with torch.no_grad():
            probabilities = self.feature_classifier(frames).softmax(-1).cpu()
        return probabilities.unflatten(0, samples.shape[:2])

    # ------------------------------------------------------------ a closer look
    def trace(self, sets: Tensor) -> dict[str, Tensor]:
        """What happens to one set, sets[0], at each of the N steps of the sampler, without redraws.

        Returns {
            sigmas (N,),
            distances (N, B, B): between the D(x), as the potential sees them,
            ode (N, B), guidance (N, B): norms of the two parts of the drift,
            x_hat, denoised (N, B, H, W): as in the sampler,
            samples (B, H, W): where the particles end
        }.
        """
        steps: list[dict] = []
        samples = self.sample_once(sets[:1], self.batch_size, callback=steps.append)[0]
        plain = self.denoiser(sets[:1])
        by_iou = POTENTIALS[self.settings.guidance.pg_kernel] is IoU
        trace: dict[str, list[Tensor]] = dict(
            sigmas=[], distances=[], ode=[], guidance=[], x_hat=[], denoised=[]
        )
        for step in steps:
            sigma = step["sigma_hat"]
            with torch.no_grad():
                unguided = plain(step["x_hat"], sigma)
            if by_iou:
                images = self.task.to_samples(unguided)
                distances = 1 - iou(images, images)[0]
            else:
                flat = unguided[0].flatten(1)
                distances = torch.cdist(flat, flat).cpu()
            trace["sigmas"].append(sigma)
            trace["distances"].append(distances)
            trace["ode"].append(_norms((step["x_hat"] - unguided) / sigma))
            trace["guidance"].append(_norms((unguided - step["denoised"]) / sigma))
            trace["x_hat"].append(step["x_hat"][0, :, 0].cpu())
            trace["denoised"].append(step["denoised"][0, :, 0].cpu())
        stacked = {name: torch.stack(values) for name, values in trace.items()}
        return stacked | dict(samples=samples)


def _norms(drift: Tensor) -> Tensor:
    """L2 norm of each particle of the first set: (G, B, C, H, W) -> (B,) on the CPU."""
    return drift.flatten(2).norm(dim=-1)[0].cpu()
