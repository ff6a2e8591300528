"""One evaluation, from settings to metrics: world -> denoiser -> guidance -> sampler -> sets -> metrics.

Set g is always the same: its digit, its frames and its noise follow from (seed, g) alone, whatever
other sets run beside it and in which chunks.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Callable

import torch
from torch import Tensor
from tqdm import tqdm

import checkpoint
from config import (
    DigitSettings,
    TaskSettings,
    GuidanceSettings,
    RunSettings,
    SamplerSettings,
    WorldSettings,
    reject,
)
from data_loader import load_digits, make_world
from devices import free_memory, pick_device, use_bfloat16
from frame_files import Frames, load_frames
from guidance import Cads, Denoiser, ParticleGuidance, Reference, Spell
from metrics import (
    answer_metrics,
    iou,
    iou_distance,
    mean_interval,
    mixture_modes,
    mode_metrics,
    motion_metrics,
    pairwise_l2,
    recognise,
    without_background,
)
from model import EDMDenoiser, posterior_mean
from noise import SetNoise, antithetic, leading_directions, set_generator, simplex, stratified
from potentials import POTENTIALS, Bandwidth, IoU
from sampler import edm_sampler, karras_sigmas
from selection import kmedoids, redraw_faulty
from worlds import Mixture, Sequences, World

PARTICLES_PER_CALL = dict(
    cpu=256, cuda=65536
)  # at most, of one network call; on a CPU more are no faster
COND_NOISE, QUANTILES, DIRECTIONS, DOUBT_NOISE, LATER_DRAWS = (
    4,
    5,
    6,
    7,
    16,
)  # streams of randomness, see set_generator


class Counter:
    """Counts what a denoiser costs: particles sent forward, and back to their input."""

    def __init__(self):
        self.forward = self.backward = 0

    def __call__(self, denoise: Denoiser) -> Denoiser:
        def counted(x: Tensor, sigma: Tensor) -> Tensor:
            particles = x.shape[0] * x.shape[1]
            self.forward += particles
            self.backward += particles * x.requires_grad
            return denoise(x, sigma)

        return counted


def kept_bytes(denoise: Denoiser, x: Tensor) -> int:
    """Memory that a denoiser keeps for a gradient to x (G, B, C, H, W)."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with (
        torch.enable_grad(),
        torch.compiler.set_stance("force_eager"),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
    ):
        kept = denoise(
            x.requires_grad_(), torch.tensor(1.0, dtype=torch.float64)
        )  # alive until all is counted
        total = sum(storages.values())
    del kept
    return total


class Evaluation:
    """settings   one object per settings class of evaluate.py
    world      where the conditions and right answers come from
    path       checkpoint of the trained denoiser, None for the exact one. Raises SettingError if it cannot be used"""

    world: Any  # a World here
    guide: Any = None  # the classifier whose features are compared, if any
    bar: tqdm | None = None  # while sets are drawn

    def __init__(
        self,
        settings: dict[type, Any],
        world: World | Frames | Mixture,
        device: torch.device,
        path: Path | None = None,
    ):
        self.settings, self.world, self.device, self.path = settings, world, device, path
        self.evaluate, self.sampler = settings[TaskSettings], settings[SamplerSettings]
        self.guidance, self.seed = settings[GuidanceSettings], settings[RunSettings].seed
        s = self.sampler
        self.sigmas = karras_sigmas(s.num_steps, s.sigma_min, s.sigma_max, s.rho)
        self.cost, self.shape = Counter(), (1, *world.frame_shape)
        self.net = None if path is None else self.trained(path)
        self.prepare()

    def trained(self, path: Path) -> EDMDenoiser:
        """The network in a checkpoint, in the precision that the settings ask for."""
        run, (net, _) = self.settings[RunSettings], checkpoint.load_denoiser(path, self.device)
        net.autocast = use_bfloat16(run.precision, self.device)
        if run.compile:
            net.compile(dynamic=True)
        return net

    # ------------------------------------------------------------ what depends on the kind of world
    def prepare(self) -> None:
        """One window per set, on the CPU, each with a test digit of its own as long as they last."""
        K, sets = self.world.num_digits, self.evaluate.num_sets
        which = self.shuffled(len(self.world.digits.labels), sets * K).view(-1, 1, K)
        directed = self.world.directed
        self.sequences = Sequences.cat(
            [
                self.world.windows(
                    1, set_generator(self.seed, g), at_choice=directed, which=which[g]
                )
                for g in range(sets)
            ]
        )
        self.cond, _ = self.sequences.split(self.world.num_cond_frames)
        if self.guidance.pg_features == "classifier":
            self.guide = checkpoint.load_classifier("guide", self.device)
        self.answers = self.world.futures(self.sequences) if directed else None

    def shuffled(self, total: int, number: int) -> Tensor:
        """Indices (number,) below `total` in the seed's order, all different as long as they last."""
        order = torch.randperm(total, generator=torch.Generator().manual_seed(self.seed))
        return order[torch.arange(number) % total]

    def truth(self) -> dict[str, Tensor]:
        """What is known of each set, for samples.npz."""
        return dict(
            labels=self.sequences.labels,
            positions=self.sequences.positions,
            choices=self.sequences.choices,
        )

    def bind(self, sets: Tensor, cond: Tensor | None = None) -> Denoiser:
        """The denoiser of these sets; `cond` (G, B, Cc, H, W) in [-1, 1] in place of their conditioning."""
        if self.net is None:
            assert self.answers is not None  # there is no exact denoiser where they are a continuum
            answers = (self.answers[sets][:, :, None] * 2 - 1).to(self.device)  # (G, k, 1, H, W)
            log_prior = self.world.mode_probabilities.log().float().to(self.device)
            return lambda x, sigma: posterior_mean(x, sigma, answers, log_prior)
        labels = (
            self.sequences.labels[sets, 0].to(self.device)
            if self.net.unet.label is not None
            else None
        )
        if cond is None and self.world.num_cond_frames:
            cond = (self.cond[sets] * 2 - 1).to(self.device)
        return self.net.bind(cond, labels)

    def to_samples(self, x: Tensor) -> Tensor:
        """(G, B, C, H, W) as the sampler leaves it -> (G, B, H, W) on the CPU, in [0, 1] up to overshoot."""
        return ((x[:, :, 0] + 1) / 2).cpu()

    def to_memory(self, samples: Tensor) -> Tensor:
        """The inverse of `to_samples`: (G, B, H, W) in [0, 1] -> (G, B, C, H, W) in [-1, 1] on the device."""
        return (samples[:, :, None] * 2 - 1).to(self.device)

    def alike(self, a: Tensor, b: Tensor) -> Tensor:
        """How alike samples are, from 0 to 1: (G, A, H, W), (G, B, H, W) -> (G, A, B)."""
        if self.guide is None:
            return iou(a, b)
        probabilities = self.read(a)
        return probabilities @ (probabilities if b is a else self.read(b)).transpose(1, 2)

    def read(self, samples: Tensor) -> Tensor:
        """What the guiding classifier takes samples for: (G, B, H, W) -> probabilities (G, B, 10)."""
        assert self.guide is not None  # who calls has looked
        frames = without_background(samples).flatten(0, 1).to(self.device)
        with torch.no_grad():
            return self.guide(frames).softmax(-1).cpu().unflatten(0, samples.shape[:2])

    def features(self) -> Callable[[Tensor], Tensor] | None:
        """What the particles of a set are compared by: images (N, 1, H, W) in [-1, 1] -> (N, ...)."""
        if (guide := self.guide) is not None:
            return lambda images: guide.features((images[:, 0] + 1) / 2)
        pool = self.guidance.pg_pool
        return partial(torch.nn.functional.avg_pool2d, kernel_size=pool) if pool > 1 else None

    def judge(self, samples: Tensor) -> tuple[dict, Tensor | None]:
        """Metrics of all sets, samples (G, B, H, W) in [0, 1], and each particle's mode (G, B) int64 where the world
        has modes, else None."""
        return motion_metrics(
            samples,
            self.cond,
            offsets=self.world.offsets if self.world.directed else None,
            probabilities=self.world.mode_probabilities,
            undetermined=self.sequences.choices[:, -1],
            answers=self.answers,
        )

    # ------------------------------------------------------------ drawing sets
    def guided(self, sets: Tensor, batch_size: int, stream: int, memory: Tensor | None) -> Denoiser:
        """The denoiser of these sets (G,) in the guidance that the settings describe; memory (G, M, C, H, W) in [-1, 1]
        repels too; `stream` tells draws of noise apart."""
        s, denoise = self.guidance, self.cost(self.bind(sets))
        if s.guidance == "pg" and s.pg_factor > 0:
            # What repels from memory is decided from the start.
            span = (
                s.pg_sigma_min,
                s.pg_sigma_max if memory is None else max(s.pg_sigma_max, self.sampler.sigma_max),
            )
            bandwidth = Bandwidth(
                s.pg_bandwidth,
                s.pg_bandwidth_value,
                anneal=span if s.pg_anneal in ("bandwidth", "both") else None,
            )
            return ParticleGuidance(
                denoise,
                POTENTIALS[s.pg_kernel](bandwidth),
                factor=s.pg_factor,
                space=s.pg_space,
                strength=s.pg_strength,
                sigma_min=span[0],
                sigma_max=span[1],
                anneal=s.pg_anneal in ("strength", "both"),
                cap=s.pg_cap,
                features=self.features(),
                memory=memory,
            )
        if s.guidance == "spell":
            return Spell(denoise, radius=s.spell_radius, memory=memory)
        if s.guidance == "reference":
            return Reference(denoise, factor=s.pg_factor)
        if s.guidance == "cads":
            shape = (batch_size, *self.cond.shape[1:])
            noise = SetNoise(
                self.seed, sets.tolist(), shape, self.device, COND_NOISE + LATER_DRAWS * stream
            )
            return Cads(
                lambda cond: self.cost(self.bind(sets, cond)),
                (self.cond[sets] * 2 - 1).to(self.device),
                noise,
                self.time,
                tau1=s.cads_tau1,
                tau2=s.cads_tau2,
                scale=s.cads_scale,
                mixing=s.cads_mixing,
            )
        return denoise

    def time(self, sigma: float) -> float:
        """Where a noise level lies in the schedule: 0 at sigma_min, 1 at sigma_max."""
        s = self.sampler
        low, high, here = (level ** (1 / s.rho) for level in (s.sigma_min, s.sigma_max, sigma))
        return min(max((here - low) / (high - low), 0.0), 1.0)

    def start(self, sets: Tensor, noise: SetNoise, stream: int) -> Tensor:
        """Noise to start from, (G, B, C, H, W) of deviation sigma_max, coupled inside sets if asked for."""
        kind, z = self.guidance.noise, noise()
        if kind == "antithetic":
            z = antithetic(z)
        elif kind == "simplex":
            z = simplex(z)
        elif kind == "stratified" and z.shape[1] > 1:
            streams = [
                [set_generator(self.seed, g, which + LATER_DRAWS * stream) for g in sets.tolist()]
                for which in (DIRECTIONS, QUANTILES)
            ]
            axes = leading_directions(
                self.cost(self.bind(sets)),
                torch.tensor(self.guidance.stratified_sigma),
                self.shape,
                self.guidance.stratified_rank,
                streams[0],
                device=self.device,
            )
            z = stratified(z, axes, streams[1])
        return z * self.sigmas[0]

    def draw(
        self,
        sets: Tensor,
        batch_size: int,
        *,
        stream: int = 1,
        memory: Tensor | None = None,
        callback: Callable[[dict], None] | None = None,
    ) -> Tensor:
        """One set of `batch_size` particles for each of `sets` (G,) -> (G, batch_size, H, W)."""
        s = self.sampler
        noise = SetNoise(self.seed, sets.tolist(), (batch_size, *self.shape), self.device, stream)
        denoise = self.guided(sets, batch_size, stream, memory)

        def after_step(step: dict) -> None:
            if self.bar is not None:
                self.bar.update()
            if callback is not None:
                callback(step)

        with torch.no_grad():
            x = edm_sampler(
                denoise,
                self.start(sets, noise, stream),
                self.sigmas,
                s_churn=s.s_churn,
                s_min=s.s_min,
                s_max=s.s_max,
                s_noise=s.s_noise,
                noise=noise,
                callback=after_step,
            )
        return self.to_samples(x)

    def sample(self, sets: Tensor, callback: Callable[[dict], None] | None = None) -> Tensor:
        """These sets in one go -> (G, sequential * batch_size, H, W). `callback` sees every step of the
        sampler that draws whole sets."""
        s, B = self.guidance, self.evaluate.batch_size
        if s.guidance == "kmedoids":
            pool = self.draw(sets, B * s.kmedoids_pool, callback=callback)
            return pool[torch.arange(len(pool))[:, None], kmedoids(pool, B)]
        samples = None
        for turn in range(s.sequential):
            memory = None if samples is None else self.to_memory(samples)
            new = self.draw(
                sets, B, stream=1 + LATER_DRAWS * turn, memory=memory, callback=callback
            )
            samples = new if samples is None else torch.cat([samples, new], 1)
        assert samples is not None  # sequential > 0
        if s.guidance == "pg" and s.pg_factor > 0:
            samples, _ = redraw_faulty(
                samples,
                partial(self.redraw, sets),
                partial(self.doubt, sets),
                alike=self.alike,
                rounds=s.redraws,
                most_alike=s.most_alike,
                most_doubt=s.most_doubt,
            )
        return samples

    def trace(self, sets: Tensor) -> dict[str, Tensor]:
        """What happens to the first of `sets` at each step of the sampler: {sigmas (N,), distances (N, B, B) between
        the D(x) as the potential sees them, ode (N, B) and guidance (N, B), norms of the two parts of the drift,
        x_hat and denoised (N, B, H, W) of the sampler; samples (B, H, W), where the particles end}."""
        steps: list[dict] = []
        samples = self.draw(sets[:1], self.evaluate.batch_size, callback=steps.append)[0]
        plain, kernel = self.bind(sets[:1]), POTENTIALS[self.guidance.pg_kernel]
        trace: dict[str, list[Tensor]] = dict(
            sigmas=[], distances=[], ode=[], guidance=[], x_hat=[], denoised=[]
        )
        for step in steps:
            with torch.no_grad():
                alone = plain(step["x_hat"], step["sigma_hat"])
            sigma, images = step["sigma_hat"], self.to_samples(alone)
            trace["sigmas"].append(sigma)
            trace["distances"].append(
                1 - iou(images, images)[0]
                if kernel is IoU
                else torch.cdist(alone[0].flatten(1), alone[0].flatten(1)).cpu()
            )
            for name, push in (
                ("ode", step["x_hat"] - alone),
                ("guidance", alone - step["denoised"]),
            ):
                trace[name].append((push / sigma).flatten(2).norm(dim=-1)[0].cpu())
            for name in ("x_hat", "denoised"):
                trace[name].append(step[name][0, :, 0].cpu())
        return {name: torch.stack(values) for name, values in trace.items()} | dict(samples=samples)

    def redraw(self, sets: Tensor, some: Tensor, turn: int, others: Tensor) -> Tensor:
        """One new particle for each of `some` of the sets, (M, H, W), repelled by `others`."""
        if self.bar is not None:
            self.bar.total += self.sampler.num_steps
        stream = 1 + LATER_DRAWS * (self.guidance.sequential + turn)
        return self.draw(sets[some], 1, stream=stream, memory=self.to_memory(others))[:, 0]

    def doubt(self, sets: Tensor, some: Tensor, samples: Tensor) -> Tensor:
        """How far the denoiser moves samples (M, P, H, W) of `some` of the sets once they are noised to
        doubt_sigma, as an L2 distance (M, P): answers that the model believes in come back as they were. With the
        features of a classifier, how far that is from being sure what it sees."""
        if self.guidance.most_doubt == float("inf"):
            return torch.zeros(samples.shape[:2])
        if self.guide is not None:
            return 1 - self.read(samples).amax(-1)
        sigma = torch.tensor(self.guidance.doubt_sigma, dtype=torch.float64)
        noise = SetNoise(
            self.seed,
            sets[some].tolist(),
            (samples.shape[1], *self.shape),
            self.device,
            DOUBT_NOISE,
        )
        x = self.to_memory(samples)
        with torch.no_grad():
            denoised = self.cost(self.bind(sets[some]))(x + sigma * noise(), sigma)
        return (denoised - x).flatten(2).norm(dim=-1).cpu()

    def particles_per_call(self) -> int:
        """How many particles go through the network together: as many as half of the free memory holds with what
        a gradient to their input keeps, up to PARTICLES_PER_CALL. Results do not depend on it."""
        one, nine = (
            kept_bytes(
                self.bind(torch.tensor([0])), torch.zeros(1, n, *self.shape, device=self.device)
            )
            for n in (1, 9)
        )
        each = max(1, (nine - one) // 8)
        return max(
            1, min(PARTICLES_PER_CALL[self.device.type], free_memory(self.device) // 2 // each)
        )

    def sample_all(
        self,
        progress: bool = True,
        sets: Tensor | None = None,
        callback: Callable[[dict], None] | None = None,
    ) -> Tensor:
        """All sets, or these, (G, B, H, W) in [0, 1] up to overshoot, in as few calls as memory allows, with a progress
        bar over the steps where there is a terminal to draw it on; `callback` as in `sample`."""
        s, size = self.guidance, self.evaluate.batch_size
        sets = torch.arange(self.evaluate.num_sets) if sets is None else sets
        chunks = sets.split(
            max(
                1,
                self.particles_per_call()
                // (size * (s.kmedoids_pool if s.guidance == "kmedoids" else 1)),
            )
        )
        with tqdm(
            total=len(chunks) * s.sequential * self.sampler.num_steps,
            unit="step",
            desc=f"{len(sets)} sets of {size}",
            disable=None if progress else True,
        ) as self.bar:
            samples = torch.cat([self.sample(some, callback) for some in chunks])
        self.bar = None
        return samples


class UnconditionalEvaluation(Evaluation):
    """Digits out of nothing: modes are the classes that a classifier recognises."""

    def judge(self, samples):
        judge = checkpoint.load_classifier("judge")
        digits, confidence = recognise(samples, judge)
        return mode_metrics(digits, self.world.mode_probabilities) | dict(
            quality=None,
            confidence=mean_interval(confidence.mean(1)),
            iou_distance=mean_interval(iou_distance(samples)),
            pairwise_l2=mean_interval(pairwise_l2(samples)),
        ), digits


class FramesEvaluation(Evaluation):
    """Frames of one's own: set g has a window of the test sequences, each another one as long as they last."""

    world: Frames

    def prepare(self) -> None:
        which = self.shuffled(len(self.world), self.evaluate.num_sets)
        self.sequences = self.world.windows(len(which), set_generator(self.seed, 0), which=which)
        self.cond, _ = self.sequences.split(self.world.num_cond_frames)
        self.answers: Tensor = self.world.right_answers(which)

    def truth(self):
        return dict(answers=self.answers)

    def judge(self, samples):
        return answer_metrics(samples, self.answers, self.world.mode_probabilities), None


class MixtureEvaluation(Evaluation):
    """The plane with ten Gaussians on a circle: particles are points, "frames" of 1 x 2 pixels."""

    world: Mixture

    def prepare(self) -> None:
        self.cond, self.answers = torch.zeros(self.evaluate.num_sets, 0, 1, 2), None

    def truth(self):
        return {}

    def bind(self, sets, cond=None):
        centres = (
            self.world.centres.view(1, -1, 1, 1, 2)
            .to(self.device)
            .expand(len(sets), -1, -1, -1, -1)
        )
        return lambda x, sigma: posterior_mean(x, sigma, centres, sd=self.world.sd)

    def to_samples(self, x):
        return x[:, :, 0].cpu()

    def to_memory(self, samples):
        return samples[:, :, None].to(self.device)

    def alike(self, a: Tensor, b: Tensor) -> Tensor:
        """1 for the same point, 0.02 for neighbouring centres: (G, A, 1, 2), (G, B, 1, 2) -> (G, A, B)."""
        return (-torch.cdist(a.flatten(2), b.flatten(2)).square() / (6 * self.world.sd) ** 2).exp()

    def judge(self, samples):
        centres, sd = self.world.centres, self.world.sd
        # Beyond half the way to the next centre a point belongs to none.
        modes, distance = mixture_modes(
            samples.flatten(2), centres, within=float((centres[0] - centres[1]).norm() / 2)
        )
        return mode_metrics(modes, self.world.mode_probabilities) | dict(
            quality=None,
            within_3_sd=float((distance <= 3 * sd).double().mean()),
            largest_distance_sd=float(distance.max() / sd),
        ), modes


def make_evaluation(settings: dict[type, Any], path: Path | None) -> Evaluation:
    """The evaluation that the settings describe, with the checkpoint at `path` (None: the exact denoiser).
    Raises SettingError or FileNotFoundError."""
    world_settings, digits = settings[WorldSettings], settings[DigitSettings]
    if (kernel := settings[GuidanceSettings].pg_kernel) not in POTENTIALS:
        reject("pg_kernel", kernel, ", ".join(map(repr, POTENTIALS)))
    device = pick_device(settings[RunSettings].device)
    if world_settings.dataset == "mixture":
        return MixtureEvaluation(settings, Mixture(), device)
    if world_settings.dataset == "frames":
        return FramesEvaluation(settings, load_frames(world_settings, "test"), device, path)
    source = "auto" if digits.digits == "both" else digits.digits
    bank = load_digits(
        source,
        "test",
        size=world_settings.digit_size,
        data_root=digits.data_root,
        timeout=digits.download_timeout,
    )
    digits.digits = bank.source  # what was used, so that config.yaml repeats it
    kind = (
        UnconditionalEvaluation
        if settings[TaskSettings].task == "unconditional"
        else Evaluation
    )
    return kind(settings, make_world(world_settings, bank), device, path)
