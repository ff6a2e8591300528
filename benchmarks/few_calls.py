"""How many modes a set of eight finds in 1 to 8 calls, by what is done with these calls.

    python benchmarks/few_calls.py
    python benchmarks/few_calls.py --student circle_jumping_student

Ways, each for the price of as many calls of either network for each sample that is kept:

    independent  the student, all noise renewed before each call
    pool         many first calls; the medoids are kept and go on
    apart        the same, each batch of starting noise orthogonal to the samples before it
    one by one   the same, with batches of one particle
    repelled     particle guidance of the student at its first two calls, with new noise after each
    moved        starting noise moved down the log-determinant of what the student makes of it
    handed over  the guided teacher, and one call of the student at the end

A student returns samples, so that `repelled` and `moved` push finished images, of which two that
are alike are pushed alike. Without --student it is the exact one: its first call is as good as its
last, so that the pool takes all calls.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Callable, Optional, Sequence

import measure
import torch
from torch import Tensor

from config import Count, NonNegative, PathText
from diverse_sampling import few_calls
from diverse_sampling.decisions import Decisions
from diverse_sampling.denoiser import Denoiser
from diverse_sampling.guidance import default_guidance
from diverse_sampling.potentials import LogDet
from diverse_sampling.selection import kmedoids
from diverse_sampling.steps import Schedule, append_zero, integrate
from lab import assemble
from lab.experiments import interval

MODEL = "--dataset circle_jumping --batch_size 8 --pg_factor 5"
MOVE = 2.0  # of noise, whose norm is 32 for 1024 pixels; 1 to 16 find as many modes
KEPT = ("modes_found", "modes_shown", "quality", "hm_iou")


@dataclass
class FewCallsSettings:
    """Few calls"""

    calls: Sequence[Count] = (1, 2, 3, 4, 6, 8)
    """prices"""
    num_sets: Count = 200
    """sets of 8"""
    seed: Count = 31
    """of digits and noise"""
    factor: NonNegative = 5.0
    """strength of guidance"""
    student: Optional[PathText] = None
    """a network that train.py --teacher wrote (null: the exact student of the exact denoiser)"""
    data_root: str = "data"
    """folder of torchvision's MNIST"""


@dataclass
class Model:
    """A teacher and its student, and what sets are drawn from.

    Arguments:
        teacher: the denoiser D
        student: f
        decisions: where it is decided what the teacher's samples show
        noise: B -> standard normal noise (G, B, C, H, W)
        particles: B of the sets that are kept
        exact: whether the student is the exact one
        factor: strength of guidance
    """

    teacher: Denoiser
    student: Denoiser
    decisions: Decisions
    noise: Callable[[int], Tensor]
    particles: int
    exact: bool
    factor: float

    def finishing(self, calls: int) -> int:
        """How many calls of a pool follow on its first ones."""
        return 0 if self.exact else calls // 3

    def guided(self, denoise: Denoiser, low: float) -> Denoiser:
        """Particle guidance from a noise level on."""
        return default_guidance(
            denoise, self.decisions, factor=self.factor, sigma_min=low, sigma_max=1e9
        )


def refined(model: Model, x: Tensor, levels: Tensor, denoise: Denoiser | None = None) -> Tensor:
    """Samples from x, noise of standard deviation levels[0], (G, B, C, H, W)."""
    schedule = few_calls.renewed_schedule(levels)
    noise = partial(model.noise, x.shape[1])
    return integrate(denoise or model.student, x, schedule, noise=noise)


def independent(model: Model, calls: int) -> Tensor:
    levels = few_calls.student_levels(model.decisions, calls)
    return refined(model, levels[0] * model.noise(model.particles), levels)


def pool(model: Model, calls: int, batch: int | None = None) -> Tensor:
    """Of first samples the medoids, refined by the calls that are left.

    They are drawn in batches of `batch` particles, each with starting noise orthogonal to all
    samples before; None: independently.
    """
    after = model.finishing(calls)
    levels = few_calls.student_levels(model.decisions, 1 + after)
    seen: list[Tensor] = []
    for _ in range((calls - after) * model.particles // (batch or model.particles)):
        z = model.noise(batch or model.particles)
        if batch and seen:
            z = few_calls.apart(z, torch.cat(seen, 1))
        seen.append(model.student(levels[0] * z, levels[0]))
    samples = torch.cat(seen, 1)
    kept = kmedoids(samples, model.particles)
    samples = samples[torch.arange(len(samples))[:, None], kept]
    if not after:
        return samples
    noisy = samples + levels[1] * model.noise(model.particles)
    return refined(model, noisy, levels[1:])


def repelled(model: Model, calls: int) -> Tensor:
    """The last call is not guided, and the second one is where modes can still change."""
    levels = few_calls.student_levels(model.decisions, calls)
    if calls == 1:
        return independent(model, 1)
    levels[1] = model.decisions.window().high
    guided = model.guided(model.student, 0.99 * float(levels[min(1, calls - 2)]))
    return refined(model, levels[0] * model.noise(model.particles), levels, guided)


def moved(model: Model, calls: int) -> Tensor:
    """Up to two moves of MOVE standard deviations of noise, along the gradient at the student's
    images as if it were one in x."""
    z = model.noise(model.particles)
    moves = min(2, calls - 1)
    levels = few_calls.student_levels(model.decisions, calls - moves)
    for _ in range(moves):
        images = model.student(levels[0] * z, levels[0])
        grad = LogDet().grad(images.flatten(2)).view_as(z)
        length = grad.flatten(2).norm(dim=2)[..., None, None, None]
        z = z - MOVE * grad / length.clamp_min(1e-12)
    return refined(model, levels[0] * z, levels)


def handed_over(model: Model, calls: int) -> Tensor:
    """The teacher's calls lie in the window, each after the window's new noise, from its largest
    level on: before it nothing is decided."""
    window = model.decisions.window()
    if calls == 1:
        return independent(model, 1)
    across = torch.arange(calls - 1, dtype=torch.float64) / max(calls - 2, 1)
    called = (
        window.high * (window.low / window.high) ** across if calls > 2 else across + window.low
    )
    start = called / (1 + window.churn)
    start[0] = called[0]
    last = torch.tensor([model.decisions.settled], dtype=torch.float64)
    churn = torch.cat([called / start - 1, torch.zeros(1, dtype=torch.float64)])
    sigmas = append_zero(torch.cat([start, last]))
    guided = model.guided(model.teacher, 0.99 * window.low)

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        return (model.student if sigma <= last else guided)(x, sigma)

    schedule = Schedule(sigmas, churn, torch.zeros(calls).bool())
    x = called[0] * model.noise(model.particles)
    return integrate(denoise, x, schedule, noise=partial(model.noise, model.particles))


WAYS: dict[str, Callable[[Model, int], Tensor]] = {
    "independent": independent,
    "pool": pool,
    "apart": partial(pool, batch=8),
    "one by one": partial(pool, batch=1),
    "repelled": repelled,
    "moved": moved,
    "handed over": handed_over,
}


def load(args: Any) -> tuple[Any, Model]:
    """The task, and the networks."""
    base = [*MODEL.split(), "--num_sets", str(args.num_sets), "--seed", str(args.seed)]
    base += ["--data_root", args.data_root, "--device", "cpu"]
    teacher = ["--denoiser", "exact"]
    if args.student is not None:
        from lab.checkpoint import denoiser_metadata

        path = assemble.checkpoint_of(dict(checkpoint=args.student))
        assert path is not None  # it has a name
        teacher = ["--checkpoint", denoiser_metadata(path)["settings"]["teacher"]]
    evaluation = assemble.evaluation([*base, *teacher])
    sampler = evaluation.sampler
    sets = torch.arange(args.num_sets)
    denoise = sampler.denoiser(sets)
    student = few_calls.exact_student(denoise)
    if args.student is not None:
        flags = ["--checkpoint", args.student, "--sigma_min", "0.2", "--pg_factor", "0"]
        student = assemble.evaluation([*base, *flags]).sampler.denoiser(sets)
    generator = torch.Generator().manual_seed(args.seed)
    assert sampler.decisions is not None  # guidance asks for them

    def noise(particles: int) -> Tensor:
        shape = (args.num_sets, particles, *sampler.particle_shape)
        return torch.randn(shape, generator=generator)

    exact = args.student is None
    model = Model(denoise, student, sampler.decisions, noise, 8, exact, args.factor)
    return evaluation.task, model


@torch.no_grad()
def main(argv: list[str] | None = None) -> None:
    args = measure.arguments(FewCallsSettings, argv)
    task, model = load(args)
    name = "exact" if model.exact else "network"
    results, rows = [], []
    for calls in args.calls:
        for way, draw in WAYS.items():
            metrics, _ = task.measure(task.to_samples(draw(model, calls)))
            found = {key: {k: metrics[key][k] for k in ("mean", "ci95")} for key in KEPT}
            results.append(dict(calls=calls, way=way, **found))
            rows.append([calls, way, *(interval(metrics[key]) for key in KEPT)])
            print(*rows[-1], sep=" | ", flush=True)
    header = "calls | way | modes found | modes shown | quality | HM IoU*"
    measure.write(
        args.outdir,
        f"few_calls_{name}",
        measure.table(header, rows),
        samples=True,
        results=results,
        num_sets=args.num_sets,
        seed=args.seed,
        factor=args.factor,
        student=args.student,
    )


if __name__ == "__main__":
    main()
