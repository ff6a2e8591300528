"""Sampling of sets: denoiser -> guidance -> sampler -> selection, in chunks that fit into memory.

The condition of set g follows from (seed, g) alone, and the noise of its particle i from (seed, g,
i): neither depends on what is sampled beside it, nor on the chunks.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from functools import partial
from typing import Callable, Iterator, Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from channels import in_colours
from classifier import Classifier
from config import EvaluationSettings, SamplerSettings
from decisions import Decisions, measure
from denoiser import Denoiser
from devices import free_memory, kept_bytes, sent
from guidance import (
    RKE,
    Cads,
    DiverseFlow,
    Eddy,
    Oscar,
    ParticleGuidance,
    Reference,
    Spell,
    Sriw,
    Variance,
    Volume,
    between,
)
from metrics import iou
from model import MOST_IMAGES, EDMDenoiser
from noise import (
    ParticleNoise,
    Stream,
    antithetic,
    contrastive,
    drawn_ahead,
    leading_directions,
    set_generator,
    simplex,
    stratified,
)
from potentials import POTENTIALS, Bandwidth, IoU, Potential
from ranges import to_unit_range
from sampler import Schedule, edm_schedule, integrate, karras_sigmas, window_schedule
from selection import balanced_draw, kmedoids, most_distant
from tasks import Task

# At most, in one network call. On a CPU, larger calls are no faster.
PARTICLES_PER_CALL = dict(cpu=256, cuda=MOST_IMAGES)

PREVIEW_CALLS = 3  # of the denoiser for each candidate of a balanced draw

# Noise of a set's particles, coupled without a change to any one of them.
COUPLED: dict[str, Callable[[Tensor], Tensor]] = dict(antithetic=antithetic, simplex=simplex)
# Methods that are `ParticleGuidance` by a potential of their own, and its class where it differs.
OWN_POTENTIALS: dict[str, Callable[[Bandwidth], Potential]] = dict(
    diverseflow=DiverseFlow, rke=RKE, oscar=Volume
)
OWN_CLASSES: dict[str, type[ParticleGuidance]] = dict(oscar=Oscar, sriw=Sriw)

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


class SetSampler:
    """Samples the sets of a task with one denoiser, one guidance method and one schedule.

    Arguments:
        task: conditions and right answers of the sets
        settings: of the evaluation; what is read here are `evaluate`, `sampler`, `guidance` and
            `run.seed`
        device: where the denoiser computes
        network: the trained denoiser; None for the exact one, the mean over the right answers
        feature_classifier: the classifier whose features are compared, where guidance asks for it
        decisions: where it is decided what a sample shows; None where the settings do not ask for
            it (`pilot.needs_decisions`)

    Attributes:
        schedule: the steps of the sampler
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
        decisions: Decisions | None = None,
    ):
        self.task = task
        self.settings = settings
        self.device = device
        self.network = network
        self.feature_classifier = feature_classifier
        self.seed = settings.run.seed
        self.batch_size = settings.evaluate.batch_size
        self.decisions = decisions
        self.schedule = self.make_schedule()
        self.particle_shape = (task.world.answer_channels, *task.world.frame_shape)
        self.calls = CallCounter()
        self.progress: tqdm | None = None  # while sets are sampled
        # Whether a thread draws noise while the network computes. On a CPU that takes its cores.
        self.ahead = device.type != "cpu"

    # ------------------------------------------------------------ schedule
    def make_schedule(self) -> Schedule:
        """The steps that the settings ask for."""
        s = self.settings.sampler
        if s.sampler == "window":
            return window_schedule(
                2 * s.num_steps - 1,
                self.window(),
                s.window_churn,
                sigma_min=s.sigma_min,
                sigma_max=s.sigma_max,
                rho=s.rho,
            )
        sigmas = karras_sigmas(s.num_steps, s.sigma_min, s.sigma_max, s.rho)
        return edm_schedule(sigmas, s.s_churn, s.s_min, s.s_max)

    def window(self) -> tuple[float, float]:
        """The (smallest, largest) noise level of the window: given, or measured."""
        s = self.settings.sampler
        low, high = s.window_min, s.window_max
        if low is None or high is None:
            assert self.decisions is not None  # pilot.needs_decisions says so
            measured_low, measured_high = self.decisions.window()
            high = high or min(measured_high, 0.99 * s.sigma_max)
            low = low or max(measured_low, 1.01 * s.sigma_min)
            low = min(low, 0.99 * high)
        return low, high

    def measure_decisions(self, particles: int) -> Decisions:
        """Sample all sets of the task, `particles` in each, without guidance, for what is decided
        where."""
        s = self.settings.sampler
        sets = torch.arange(self.task.num_sets)
        noise = self.noise(sets, range(particles), Stream.PILOT)
        sigmas = karras_sigmas(SamplerSettings.num_steps, s.sigma_min, s.sigma_max, s.rho)
        with torch.no_grad():
            denoise = self.calls.counted(self.denoiser(sets))
            return measure(denoise, noise() * sigmas[0], sigmas)

    def noise(self, sets: Tensor, particles: Sequence[int], stream: int) -> ParticleNoise:
        """A source of noise for some particles of some sets (G,) int64."""
        return ParticleNoise(
            self.seed, sets.tolist(), particles, self.particle_shape, self.device, stream
        )

    @contextmanager
    def sampling_noise(
        self, sets: Tensor, particles: Sequence[int]
    ) -> Iterator[Callable[[], Tensor]]:
        """The noise of one run of the sampler, a source that is called for each draw."""
        noise = self.noise(sets, particles, Stream.SAMPLING)
        if not self.ahead:
            yield noise
            return
        g = self.settings.guidance
        starting = g.balanced_of if g.noise == "balanced" and len(particles) > 1 else 1
        with drawn_ahead(noise, starting + int((self.schedule.churn > 0).sum())) as source:
            yield source

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
            labels = sent(self.task.labels[sets], self.device)
        if cond is None:
            cond = self.task.condition(sets, self.device)
        return self.network.bind(cond, labels)

    def guided_denoiser(
        self,
        sets: Tensor,
        particles: Sequence[int],
        memory: Tensor | None = None,
        cond: Tensor | None = None,
    ) -> Denoiser:
        """The denoiser of some sets with the guidance that the settings describe, counted.

        Arguments:
            sets: (G,) int64, their numbers
            particles: the numbers of the B particles in each of them
            memory: (G, M, C, H, W) in [-1, 1], images that repel the particles too
            cond: (G, B, Cc, H, W) in [-1, 1], in place of the sets' own conditioning frames
        """
        g = self.settings.guidance
        if g.guidance == "joint":
            return self.calls.counted(self.task.exact_denoiser(sets, self.device, joint=True))
        denoise = self.calls.counted(self.denoiser(sets, cond))
        if g.guidance == "none" or (g.guidance == "pg" and g.pg_factor == 0):
            return denoise
        if g.guidance in ("pg", "sriw", *OWN_POTENTIALS):
            return self.particle_guidance(denoise, memory)
        guided: Denoiser
        if g.guidance == "spell":
            guided = Spell(denoise, radius=g.spell_radius, memory=memory)
        elif g.guidance == "reference":
            guided = Reference(denoise, factor=g.pg_factor)
        elif g.guidance == "eddy":
            guided = Eddy(denoise, factor=g.pg_factor)
        elif g.guidance == "variance":
            probes = self.noise(sets, particles, Stream.PROBES)
            guided = Variance(
                denoise, factor=g.pg_factor, directions=probes, features=self.features()
            )
        else:
            guided = self.cads(sets, particles)
        return between(g.pg_sigma_min or 0.0, g.pg_sigma_max or math.inf, guided, denoise)

    def cads(self, sets: Tensor, particles: Sequence[int]) -> Cads:
        """CADS as the settings describe it; the arguments are as in `guided_denoiser`."""
        g = self.settings.guidance
        cond = self.task.condition(sets, self.device)
        assert cond is not None  # assemble refuses cads without a condition
        shape = tuple(cond.shape[1:])
        return Cads(
            lambda cond: self.calls.counted(self.denoiser(sets, cond)),
            cond,
            ParticleNoise(
                self.seed, sets.tolist(), particles, shape, self.device, Stream.CONDITIONING
            ),
            self.schedule_position,
            tau1=g.cads_tau1,
            tau2=g.cads_tau2,
            scale=g.cads_scale,
            mixing=g.cads_mixing,
        )

    def particle_guidance(self, denoise: Denoiser, memory: Tensor | None) -> ParticleGuidance:
        """Particle guidance as the settings describe it, around a denoiser, or a variant of it.

        memory is as in `guided_denoiser`.
        """
        g = self.settings.guidance
        low, high, fade = self.guided_interval(memory is not None)
        anneal_bandwidth = g.pg_anneal in ("bandwidth", "both")
        bandwidth = Bandwidth(
            g.pg_bandwidth, g.pg_bandwidth_value, anneal=(low, high) if anneal_bandwidth else None
        )
        potential = OWN_POTENTIALS.get(g.guidance) or POTENTIALS[g.pg_kernel]
        return OWN_CLASSES.get(g.guidance, ParticleGuidance)(
            denoise,
            potential(bandwidth),
            factor=g.pg_factor,
            space="denoised" if g.guidance == "sriw" else g.pg_space,
            strength=g.pg_strength,
            sigma_min=low,
            sigma_max=high,
            fade=fade,
            anneal=g.pg_anneal in ("strength", "both"),
            cap=g.pg_cap,
            features=self.features(),
            memory=memory,
        )

    def guided_interval(self, memory: bool) -> tuple[float, float, Callable[[float], float] | None]:
        """(smallest, largest noise level at which guidance acts, a factor on its strength there).

        `memory` says whether there are images that repel and do not move.
        """
        g = self.settings.guidance
        s = self.settings.sampler
        low, high, fade = g.pg_sigma_min, g.pg_sigma_max, None
        if g.guidance != "pg":
            return low or 0.0, high or math.inf, None
        if low is None or high is None:
            assert self.decisions is not None  # pilot.needs_decisions says so
            if high is None:
                # Noise is added back at the window's largest level too, before D is called.
                high = self.decisions.window()[1] * (1 + s.window_churn)
            if low is None:
                low, fade = 0.0, self.decisions.undecided
        if memory:  # what memory repels from has to be decided from the start
            high = max(high, s.sigma_max)
        return low, high, fade

    def features(self) -> Callable[[Tensor], Tensor] | None:
        """What particles are compared by: images (N, C, H, W) in [-1, 1] -> (N, ...).

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
    def initial_noise(self, sets: Tensor, noise: Callable[[], Tensor], turn: int) -> Tensor:
        """Noise of standard deviation sigma_max, coupled in each set if the settings ask for it.

        Arguments:
            sets: (G,) int64
            noise: source of independent noise
            turn: how many batches of these sets went before

        Returns (G, B, C, H, W).
        """
        g = self.settings.guidance
        scale = self.schedule.sigmas[0] * self.settings.sampler.initial_scale
        z = noise()
        B = z.shape[1]
        if g.noise in COUPLED:
            z = COUPLED[g.noise](z)
        elif B > 1 and g.noise == "stratified":
            axes = leading_directions(
                self.calls.counted(self.denoiser(sets)),
                torch.tensor(g.stratified_sigma),
                self.particle_shape,
                g.stratified_rank,
                self._generators(sets, Stream.DIRECTIONS.turn(turn)),
                device=self.device,
            )
            z = stratified(z, axes, self._generators(sets, Stream.QUANTILES.turn(turn)))
        elif B > 1 and g.noise == "balanced":
            z = torch.cat([z, *(noise() for _ in range(1, g.balanced_of))], 1)
            previews = self.previews(sets, z * scale)
            generators = self._generators(sets, Stream.QUANTILES.turn(turn))
            drawn = sent(balanced_draw(previews, B, generators), z.device)
            z = z[torch.arange(len(z), device=z.device)[:, None], drawn]
        elif B > 1 and g.noise == "contrastive":
            denoise = self.calls.counted(self.denoiser(sets))
            z = contrastive(denoise, z, scale, rate=g.contrastive_rate)
        return z * scale

    def previews(self, sets: Tensor, x: Tensor) -> Tensor:
        """D at noise level `balanced_sigma`, which a few steps of Euler's lead to from the start.

        sets (G,) int64, starting noise x (G, B, C, H, W) -> like x. PREVIEW_CALLS a particle.
        """
        denoise = self.calls.counted(self.denoiser(sets))
        first = float(self.schedule.sigmas[0])
        ramp = torch.linspace(0, 1, PREVIEW_CALLS, dtype=torch.float64)
        sigmas = first * (self.settings.guidance.balanced_sigma / first) ** ramp
        steps = PREVIEW_CALLS - 1
        euler = Schedule(
            sigmas, torch.zeros(steps, dtype=torch.float64), torch.zeros(steps, dtype=torch.bool)
        )
        return denoise(integrate(denoise, x, euler), sigmas[-1])

    def _generators(self, sets: Tensor, stream: int) -> list[torch.Generator]:
        return [set_generator(self.seed, g, stream) for g in sets.tolist()]

    def sample_once(
        self,
        sets: Tensor,
        batch_size: int,
        *,
        turn: int = 0,
        memory: Tensor | None = None,
        cond: Tensor | None = None,
        callback: Callback | None = None,
    ) -> Tensor:
        """One run of the sampler: new particles for some sets.

        Arguments:
            sets: (G,) int64, their numbers
            batch_size: new particles for each, B
            turn: how many batches of these sets went before; their particles have other numbers
            memory: (G, M, C, H, W) in [-1, 1], images that repel the particles too
            cond: (G, B, Cc, H, W) in [-1, 1], in place of the sets' own conditioning frames
            callback: sees every step

        Returns samples (G, B, H, W).
        """
        particles = range(turn * batch_size, (turn + 1) * batch_size)
        guided = self.guided_denoiser(sets, particles, memory, cond)
        with torch.no_grad(), self.sampling_noise(sets, particles) as noise:
            x = self.initial_noise(sets, noise, turn)
            x = self._integrate(sets, guided, x, noise, self.schedule, callback)
        return self.task.to_samples(x)

    def _integrate(
        self,
        sets: Tensor,
        guided: Denoiser,
        x: Tensor,
        noise: Callable[[], Tensor],
        schedule: Schedule,
        callback: Callback | None,
    ) -> Tensor:
        """Some steps of the sampler from x (G, B, C, H, W), with what else the settings ask for."""
        coupled = COUPLED.get(self.settings.guidance.churn_noise, lambda z: z)
        correction = None
        if self.settings.sampler.second_stage == "here":
            plain = self.calls.counted(self.denoiser(sets))

            def correction(x_hat: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
                return plain(x_hat, sigma)

        def after_step(step: dict) -> None:
            if self.progress is not None:
                self.progress.update()
            if callback is not None:
                callback(step)

        return integrate(
            guided,
            x,
            schedule,
            s_noise=self.settings.sampler.s_noise,
            noise=lambda: coupled(noise()),
            correction=correction,
            callback=after_step,
        )

    def sample_pruned(self, sets: Tensor, callback: Callback | None = None) -> Tensor:
        """One run of the sampler that starts with a larger pool (`selection.most_distant`).

        The pool is halved after every step until `batch_size` are left.

        Arguments:
            sets: (G,) int64, their numbers
            callback: sees every step with all particles that are still there

        Returns samples (G, B, H, W).
        """
        particles = range(self.batch_size * self.settings.guidance.group_of)
        guided = self.guided_denoiser(sets, particles)
        rows = torch.arange(len(sets), device=self.device)[:, None]
        kept = torch.arange(len(particles), device=self.device).expand(len(sets), -1)
        last: dict = {}

        def after_step(step: dict) -> None:
            last.update(step)
            if callback is not None:
                callback(step)

        with torch.no_grad(), self.sampling_noise(sets, particles) as noise:
            x = self.initial_noise(sets, noise, 0)
            for i in range(self.schedule.num_steps):
                step = self.schedule.part(i, i + 1)
                x = self._integrate(sets, guided, x, lambda: noise()[rows, kept], step, after_step)
                if x.shape[1] > self.batch_size:
                    size = max(self.batch_size, x.shape[1] // 2)
                    chosen = sent(most_distant(last["denoised"], size), self.device)
                    x = x[rows, chosen]
                    kept = kept[rows, chosen]
        return self.task.to_samples(x)

    def sample(self, sets: Tensor, callback: Callback | None = None) -> Tensor:
        """Some sets in one chunk, with everything that the settings ask for.

        Arguments:
            sets: (G,) int64, their numbers
            callback: sees every step of the runs that sample whole sets

        Returns samples (G, sequential * batch_size, H, W).
        """
        g = self.settings.guidance
        if g.group_of > 1:
            return self.sample_pruned(sets, callback)
        samples = self.sample_once(sets, self.batch_size * g.medoids_of, callback=callback)
        if g.medoids_of > 1:
            chosen = kmedoids(self.task.comparable(samples), self.batch_size)
            return samples[torch.arange(len(samples))[:, None], chosen]
        for turn in range(1, g.sequential):
            memory = self.task.to_model(samples, self.device)
            more = self.sample_once(
                sets, self.batch_size, turn=turn, memory=memory, callback=callback
            )
            samples = torch.cat([samples, more], 1)
        return samples

    def roll_out(self, samples: Tensor, frames: int) -> Tensor:
        """The frames that follow, each particle going on from its own.

        Particles of a set repel each other in every frame anew.

        Arguments:
            samples: (G, B, H, W) or (G, B, 3, H, W), the next frame of all sets
            frames: how many to return, with this one

        Returns (G, B, frames, H, W) or (G, B, frames, 3, H, W).
        """
        sets = torch.arange(len(samples))
        chunks = sets.split(max(1, self.particles_per_call() // self.batch_size))
        return torch.cat([self._rolled_out(chunk, samples[chunk], frames) for chunk in chunks])

    def _rolled_out(self, sets: Tensor, samples: Tensor, frames: int) -> Tensor:
        B = samples.shape[1]
        given = self.task.condition(sets, self.device)
        assert given is not None  # a next frame follows on others
        cond = given[:, None].expand(-1, B, -1, -1, -1)
        drawn = [samples]
        for turn in range(1, frames):
            last = self.task.to_model(drawn[-1], self.device)  # (G, B, C, H, W)
            cond = torch.cat([cond, last], 2)[:, :, last.shape[2] :]
            drawn.append(self.sample_once(sets, B, turn=turn, cond=cond))
        return torch.stack(drawn, 2)

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
        pool = self.batch_size * max(g.medoids_of, g.group_of)
        if g.noise == "balanced":
            pool *= g.balanced_of
        chunks = sets.split(max(1, self.particles_per_call() // pool))
        with tqdm(
            total=len(chunks) * g.sequential * self.schedule.num_steps,
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
        sigma = torch.tensor(1.0, dtype=torch.float64)

        def bytes_of(n: int) -> int:
            x = torch.zeros(1, n, *self.particle_shape, device=self.device)
            return kept_bytes(lambda: denoise(x.requires_grad_(), sigma))

        one, nine = bytes_of(1), bytes_of(9)
        bytes_per_particle = max(1, (nine - one) // 8)
        fit = free_memory(self.device) // 2 // bytes_per_particle
        return max(1, min(PARTICLES_PER_CALL[self.device.type], fit))

    # ------------------------------------------------------------ a closer look
    def trace(self, sets: Tensor) -> dict[str, Tensor]:
        """What happens to one set, sets[0], at each of the N steps of the sampler.

        Returns {
            sigmas (N,),
            distances (N, B, B): between the D(x), as the potential sees them,
            ode (N, B), guidance (N, B): norms of the two parts of the drift,
            x_hat, denoised (N, B, H, W) or (N, B, 3, H, W): as in the sampler,
            samples (B, H, W) or (B, 3, H, W): where the particles end
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
                images = self.task.comparable(self.task.to_samples(unguided))
                distances = 1 - iou(images, images)[0]
            else:
                flat = unguided[0].flatten(1)
                distances = torch.cdist(flat, flat).cpu()
            trace["sigmas"].append(sigma)
            trace["distances"].append(distances)
            trace["ode"].append(_norms((step["x_hat"] - unguided) / sigma))
            trace["guidance"].append(_norms((unguided - step["denoised"]) / sigma))
            for name in ("x_hat", "denoised"):
                trace[name].append(self.task.pictured(step[name][0]))
        stacked = {name: torch.stack(values) for name, values in trace.items()}
        return stacked | dict(samples=in_colours(samples, self.task.world.label_classes))


def _norms(drift: Tensor) -> Tensor:
    """L2 norm of each particle of the first set: (G, B, C, H, W) -> (B,) on the CPU."""
    return drift.flatten(2).norm(dim=-1)[0].cpu()
