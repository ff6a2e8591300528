"""Sampling of sets: denoiser -> guidance -> sampler -> selection, in chunks that fit into memory.

The condition of set g follows from (seed, g) alone, and the noise of its particle i from (seed, g,
i): neither depends on what is sampled beside it, nor on the chunks.
"""

from __future__ import annotations

from functools import cached_property, partial
from typing import Any, Callable, Iterator, Protocol, Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from config import EvaluationSettings
from diverse_sampling.decisions import Decisions
from diverse_sampling.denoiser import ENCODER, CallCounter, Denoiser
from diverse_sampling.devices import free_memory, kept_bytes
from diverse_sampling.errors import reject
from diverse_sampling.method import Classes, Sets
from diverse_sampling.noise import ParticleNoise, Stream, evenly, set_generator
from diverse_sampling.selection import kmedoids, prune, thin
from diverse_sampling.steps import Schedule, Window, integrate
from model import EDMDenoiser

# At most, in one network call. On a CPU, larger calls are no faster; a GPU's kernels of attention
# take fewer than 65,536 images.
PARTICLES_PER_CALL = dict(cpu=256, cuda=32768)
# Of the memory that a gradient keeps, the share that a call without one takes: 0.23 and 0.47 of two
# networks that were measured. At less than that a set surely does not fit.
LEAST_WITHOUT_GRADIENT = 0.2

Callback = Callable[[dict], None]  # sees every step of the sampler, see `integrate`


class Task(Protocol):
    """What sets are sampled for, of which `lab/tasks.py` has several."""

    world: Any
    num_sets: int
    labels: Tensor | None

    def exact_denoiser(self, sets: Tensor, device: torch.device, joint: bool = False) -> Denoiser:
        """The mean over the right answers of some sets, or that of the most diverse sets."""

    def classes(self, sets: Tensor, device: torch.device) -> Classes:
        """What the classes of some sets are, and how they are recognised."""

    def condition(self, sets: Tensor, device: torch.device) -> Tensor | None:
        """The conditioning frames of some sets (G, Cc, H, W) in [-1, 1], None without."""

    def to_samples(self, x: Tensor) -> Tensor:
        """What the sampler returns (G, B, C, H, W) as samples (G, B, H, W)."""

    def to_model(self, samples: Tensor, device: torch.device) -> Tensor:
        """The inverse of `to_samples`."""

    def comparable(self, samples: Tensor) -> Tensor:
        """Samples as numbers that can be subtracted."""


class Methods(Protocol):
    """Guidance, noise and steps of a run, as `lab/methods.py` makes them from settings."""

    schedule: Schedule
    window: Window | None
    acting_window: Window | None
    decisions: Decisions | None
    candidates: int
    remaining: list[int]
    differentiates: bool

    def guided(self, sets: Sets) -> Denoiser:
        """The denoiser of some sets with guidance."""

    def start(self, sets: Sets, noise: Callable[[], Tensor], particles: int) -> Tensor:
        """Starting noise of some sets (G, particles, C, H, W)."""

    def churn(self, sets: Sets, noise: Callable[[], Tensor]) -> Tensor:
        """The noise that is added back at a step (G, B, C, H, W)."""

    def position(self, sigma: float) -> float:
        """Where a noise level lies in the schedule: 0 at its smallest, 1 at its largest."""


class SetSampler:
    """Samples the sets of a task with one denoiser, one guidance method and one schedule.

    Arguments:
        task: conditions and right answers of the sets
        settings: of the evaluation; what is read here are `evaluate`, `sampler`, `guidance` and
            `run.seed`
        device: where the denoiser computes
        methods: guidance, noise and steps
        network: the trained denoiser; None for the exact one, the mean over the right answers
        earlier: samples of all sets (G, B, H, W), of which some particles are drawn again; None

    Attributes:
        schedule: the steps of the sampler
        decisions: where it is decided what a sample shows; None if the methods do not ask for it
        particle_shape: (C, H, W)
        pool: how many particles a set starts with, if it is thinned; else how many it keeps
        calls: what sampling has cost so far
    """

    def __init__(
        self,
        task: Task,
        settings: EvaluationSettings,
        device: torch.device,
        methods: Methods,
        network: EDMDenoiser | None = None,
        earlier: Tensor | None = None,
    ):
        self.task = task
        self.settings = settings
        self.device = device
        self.network = network
        self.earlier = earlier
        self.seed = settings.run.seed
        self.batch_size = settings.evaluate.batch_size
        self.methods = methods
        self.schedule = methods.schedule
        self.decisions = methods.decisions
        self.pool = max([self.batch_size * settings.guidance.pool, *methods.remaining])
        self.particle_shape = (task.world.answer_channels, *task.world.frame_shape)
        self.calls = CallCounter()

    def noise(
        self,
        sets: Tensor,
        particles: Sequence[int],
        stream: int,
        shape: tuple[int, ...] | None = None,
    ) -> ParticleNoise:
        """A source of noise for some particles of some sets (G,) int64.

        `shape` is that of one particle's noise; None: that of a particle.
        """
        return ParticleNoise(
            self.seed, sets.tolist(), particles, shape or self.particle_shape, self.device, stream
        )

    # ------------------------------------------------------------ denoisers
    def denoiser(
        self, sets: Tensor, cond: Tensor | None = None, with_features: bool = False
    ) -> Callable[[Tensor, Tensor], Any]:
        """The unguided denoiser of some sets, not counted.

        Arguments:
            sets: (G,) int64, their numbers
            cond: (G, B, Cc, H, W) in [-1, 1], in place of their own conditioning frames
            with_features: whether a network returns its features as well (`EDMDenoiser.bind`)
        """
        if self.network is None:
            return self.task.exact_denoiser(sets, self.device)
        labels = None
        if self.network.unet.label is not None and self.task.labels is not None:
            labels = self.task.labels[sets].to(self.device)
        if cond is None:
            cond = self.task.condition(sets, self.device)
        return self.network.bind(cond, labels, with_features)

    def asked(
        self,
        sets: Tensor,
        particles: Sequence[int],
        *,
        turn: int = 0,
        memory: Tensor | None = None,
        cond: Tensor | None = None,
    ) -> Sets:
        """What a method is given for some sets.

        Arguments:
            sets: (G,) int64, their numbers
            particles: the numbers of the B particles in each of them
            turn: how many batches of these sets went before
            memory: (G, M, C, H, W) in [-1, 1], images that repel the particles too
            cond: (G, B, Cc, H, W) in [-1, 1], in place of the sets' own conditioning frames
        """
        return Sets(
            denoise=self.calls.counted(self.denoiser(sets, cond)),
            particles=len(particles),
            evenly=evenly(self.seed, sets),
            settings=self.settings.guidance,
            options=None,
            sigma_max=torch.tensor(self.settings.sampler.sigma_max, dtype=torch.float64),
            window=self.methods.acting_window,
            position=self.methods.position,
            noise=partial(self.noise, sets, particles),
            generators=lambda stream: [
                set_generator(self.seed, number, Stream(stream).turn(turn))
                for number in sets.tolist()
            ],
            condition=lambda: self.task.condition(sets, self.device),
            bind=lambda cond: self.calls.counted(self.denoiser(sets, cond)),
            features=lambda: self.calls.counted(
                self.denoiser(sets, cond, with_features=True), backward=ENCODER
            ),
            joint=lambda: self.calls.counted(
                self.task.exact_denoiser(sets, self.device, joint=True)
            ),
            classes=lambda: self.task.classes(sets, self.device),
            decisions=self.decisions,
            memory=memory,
        )

    # ------------------------------------------------------------ sampling
    def sample_once(
        self,
        sets: Tensor,
        batch_size: int,
        *,
        turn: int = 0,
        only: Sequence[int] | None = None,
        memory: Tensor | None = None,
        cond: Tensor | None = None,
        callback: Callback | None = None,
    ) -> Tensor:
        """One run of the sampler: new particles for some sets.

        Arguments:
            sets: (G,) int64, their numbers
            batch_size: new particles for each, B
            turn: how many batches of these sets went before; their particles have other numbers
            only: which of the new particles to draw; None: all
            memory: (G, M, C, H, W) in [-1, 1], images that repel the particles too
            cond: (G, B, Cc, H, W) in [-1, 1], in place of the sets' own conditioning frames
            callback: sees every step

        Returns samples (G, B, H, W).
        """
        chosen = range(batch_size) if only is None else only
        particles = [turn * batch_size + number for number in chosen]
        asked = self.asked(sets, particles, turn=turn, memory=memory, cond=cond)
        guided = self.methods.guided(asked)
        noise = self.noise(sets, particles, Stream.SAMPLING)
        with torch.no_grad():
            x = self.methods.start(asked, noise, len(particles))
            churn = partial(self.methods.churn, asked, noise)
            x = integrate(guided, x, self.schedule, noise=churn, callback=callback)
        return self.task.to_samples(x)

    def sample_thinned(self, sets: Tensor, callback: Callback | None = None) -> Tensor:
        """One run that starts with a larger pool and keeps its medoids (`selection.thin`), or those
        that differ most at each of the first steps (`selection.prune`).

        Arguments:
            sets: (G,) int64, their numbers
            callback: sees every step of the particles that are kept

        Returns samples (G, B, H, W).
        """
        particles = range(self.pool)
        asked = self.asked(sets, particles)
        noise = self.noise(sets, particles, Stream.SAMPLING)
        first = float(self.settings.sampler.sigma_max)
        remaining = self.methods.remaining
        with torch.no_grad():
            x = self.methods.start(asked, noise, len(particles))
            if remaining:
                kept = [*remaining[1:], self.batch_size]
                x = prune(asked.denoise, x, self.schedule, kept)
            else:
                level = float(self.schedule.sigmas[0])
                x = thin(asked.denoise, x, first, level, self.batch_size)
            rest = self.schedule.part(len(remaining), self.schedule.num_steps)
            x = integrate(asked.denoise, x, rest, callback=callback)
        return self.task.to_samples(x)

    def redraw(self, sets: Tensor, callback: Callback | None = None) -> Tensor:
        """The earlier samples of some sets, some of them drawn again with new noise, repelled by
        those that are kept.

        Arguments are as in `sample`. Returns samples (G, B, H, W).
        """
        again, turn = self.settings.evaluate.redraw, self.settings.origin.redraws
        assert self.earlier is not None and again is not None and turn is not None
        samples = self.earlier[sets]
        kept = [number for number in range(self.batch_size) if number not in again]
        samples[:, again] = self.sample_once(
            sets,
            self.batch_size,
            turn=turn,
            only=again,
            memory=self.task.to_model(samples[:, kept], self.device),
            callback=callback,
        )
        return samples

    def sample(self, sets: Tensor, callback: Callback | None = None) -> Tensor:
        """Some sets in one chunk, with everything that the settings ask for.

        Arguments:
            sets: (G,) int64, their numbers
            callback: sees every step of the runs that sample whole sets

        Returns samples (G, sequential * batch_size, H, W).
        """
        g = self.settings.guidance
        if self.earlier is not None:
            return self.redraw(sets, callback)
        if self.pool > self.batch_size:
            return self.sample_thinned(sets, callback)
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

    def roll_out(self, sets: Tensor, samples: Tensor, frames: int) -> Tensor:
        """The frames that follow, each particle going on from its own.

        Particles of a set repel each other in every frame anew.

        Arguments:
            sets: (G,) int64, the numbers of a chunk of sets
            samples: (G, B, H, W) or (G, B, 3, H, W), the next frame of these sets
            frames: how many to return, with this one

        Returns (G, B, frames, H, W) or (G, B, frames, 3, H, W).
        """
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

    def chunks(
        self, sets: Tensor, progress: bool = True, callback: Callback | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Some sets, in as few chunks as memory allows.

        Arguments:
            sets: (G,) int64, their numbers
            progress: show a progress bar over the steps if stderr is a terminal
            callback: sees every step of the runs that sample whole sets

        Yields of each chunk (the numbers of its sets (G',), their samples
        (G', sequential * batch_size, H, W)).
        """
        g = self.settings.guidance
        chunks = sets.split(max(1, self.particles_per_call() // self.drawn)) if len(sets) else ()
        steps = self.schedule.num_steps - len(self.methods.remaining)
        with tqdm(
            total=len(chunks) * g.sequential * steps,
            unit="step",
            desc=f"{len(sets)} sets of {self.batch_size}",
            disable=None if progress else True,
        ) as bar:

            def after_step(step: dict) -> None:
                bar.update()
                if callback is not None:
                    callback(step)

            for chunk in chunks:
                yield chunk, self.sample(chunk, after_step)

    def sample_all(
        self,
        progress: bool = True,
        sets: Tensor | None = None,
        callback: Callback | None = None,
    ) -> Tensor:
        """All sets of the task, or some, as `chunks` samples them.

        Arguments:
            sets: (G,) int64, the numbers of the sets; all without them

        Returns samples (G, sequential * batch_size, H, W).
        """
        if sets is None:
            sets = torch.arange(self.task.num_sets)
        return torch.cat([samples for _, samples in self.chunks(sets, progress, callback)])

    @cached_property
    def bytes_per_particle(self) -> int:
        """Memory that a call of the denoiser keeps for a gradient to its input, in bytes."""
        denoise = self.denoiser(torch.tensor([0]))
        sigma = torch.tensor(1.0, dtype=torch.float64)

        def bytes_of(n: int) -> int:
            x = torch.zeros(1, n, *self.particle_shape, device=self.device)
            return kept_bytes(lambda: denoise(x.requires_grad_(), sigma))

        one, nine = bytes_of(1), bytes_of(9)
        return max(1, (nine - one) // 8)

    @property
    def drawn(self) -> int:
        """How many particles of a set go through the denoiser together."""
        most = max(self.batch_size * self.settings.guidance.medoids_of, self.pool)
        return most * self.methods.candidates

    def particles_per_call(self) -> int:
        """How many particles go through the denoiser together.

        As many as fit into half of the free memory with what a gradient to their input keeps, and
        PARTICLES_PER_CALL at most. The samples do not depend on it.
        """
        fit = free_memory(self.device) // 2 // self.bytes_per_particle
        return max(1, min(PARTICLES_PER_CALL[self.device.type], fit))

    def check_memory(self) -> None:
        """Refuse sets of which one alone does not fit into memory. Raises SettingError."""
        share = 1.0 if self.methods.differentiates else LEAST_WITHOUT_GRADIENT
        needed = self.drawn * self.bytes_per_particle * share
        free = free_memory(self.device)
        if needed > free:
            reject(
                "batch_size",
                self.batch_size,
                f"at most {max(1, int(self.batch_size * free / needed))}; a set of {self.drawn} "
                f"particles needs {needed / 2**30:.1f} GiB at least, {free / 2**30:.1f} GiB are "
                "free",
            )
