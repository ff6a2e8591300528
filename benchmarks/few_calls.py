"""How many modes a set of eight finds in 1 to 8 calls, by what is done with these calls.

    python benchmarks/few_calls.py --student circle_jumping_student

Ways, each for the price of as many calls of either network for each sample that is kept:

    independent  the student, all noise renewed before each call
    pool         as many samples as these calls make at two each, of which the medoids are kept and
                 called once more
    away         the same in batches, each of whose starting noise is moved away from the samples
                 before it; the mean that it is moved from is an eighth of a call more
    one by one   the same, with batches of one particle
    repelled     particle guidance of the student while modes are open, but for its last call
    moved        starting noise moved down the log-determinant of what the student makes of it
    handed over  the guided teacher in its window, and one call of the student at the end, from the
                 mean, another eighth

A student returns samples, so that `repelled` and `moved` push finished images, of which two that
are alike are pushed alike. The exact student is the end of the exact denoiser's ODE: its first call
is as good as its last, and its pool takes all calls. `--student` adds a network that `train.py
--teacher` wrote.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Callable, Optional, Sequence

import measure
import torch
from torch import Tensor

from config import Count, NonNegative, PathText
from diverse_sampling import few_calls
from diverse_sampling.coupling.away import away
from diverse_sampling.decisions import Decisions
from diverse_sampling.defaults import SIGMA_MAX
from diverse_sampling.denoiser import Denoiser
from diverse_sampling.guidance import default_guidance
from diverse_sampling.potentials import LogDet
from diverse_sampling.selection import kmedoids
from diverse_sampling.steps import Schedule, append_zero, integrate
from lab import assemble
from lab.checkpoint import denoiser_metadata
from lab.experiments import brief, interval
from lab.metrics import expected_modes_iid

MODEL = "--dataset circle_jumping --batch_size 8 --pg_factor 5"
MOVE = 2.0  # of noise, whose norm is 32 for 1024 pixels; 1 to 16 find as many modes
REFINED = 2  # calls for each sample of a network's pool: blends of a first call are no medoids
KEPT = ("modes_found", "modes_shown", "quality")


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
    """a network that train.py --teacher wrote, beside the exact one"""
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
        exact: whether the student is the exact one
        args: the settings of the benchmark
    """

    teacher: Denoiser
    student: Denoiser
    decisions: Decisions
    noise: Callable[[int], Tensor]
    exact: bool
    args: FewCallsSettings
    particles: int = 8  # of the sets that are kept

    def mean(self) -> Tensor:
        """Of all answers, (G, 1, C, H, W), which the teacher returns where nothing is decided."""
        top = torch.tensor(SIGMA_MAX, dtype=torch.float64)
        return self.teacher(torch.zeros_like(self.noise(1)), top)

    def guided(self, denoise: Denoiser, low: float) -> Denoiser:
        """Particle guidance from a noise level on."""
        return default_guidance(
            denoise, self.decisions, factor=self.args.factor, sigma_min=low, sigma_max=1e9
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
    """The medoids of many samples, of REFINED calls each; one call of the exact student.

    If there are calls left, one more refines those that are kept.

    They are drawn in batches of `batch` particles, each with starting noise `away` from all samples
    before; None: independently.
    """
    each = 1 if model.exact else min(REFINED, calls)
    more = int(each > 1 and calls > each)
    levels = few_calls.student_levels(model.decisions, each + more)
    mean = model.mean()
    first: list[Tensor] = []
    total = (calls - more) * model.particles // each
    size = batch or total
    for done in range(0, total, size):
        z = model.noise(min(size, total - done))
        if first:
            z = away(z, torch.cat(first, 1), mean)
        first.append(model.student(levels[0] * z, levels[0]))
    samples = torch.cat(first, 1)
    if each > 1:
        levels[1:].clamp_(max=model.decisions.settled)  # what the first call decided is to stay
        start = levels[1] * model.noise(samples.shape[1])
        samples = refined(model, samples + start, levels[1:each])
    kept = kmedoids(samples, model.particles)
    samples = samples[torch.arange(len(samples))[:, None], kept]
    if more:
        start = levels[each] * model.noise(model.particles)
        samples = refined(model, samples + start, levels[each:])
    return samples


def repelled(model: Model, calls: int) -> Tensor:
    levels = few_calls.student_levels(model.decisions, calls)
    if calls == 1:
        return independent(model, 1)
    low = max(float(levels[-2]), model.decisions.window().low)
    guided = model.guided(model.student, 0.99 * low)
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
    """The teacher's calls lie in the window, each but the first right after the window's new noise.

    Before the window nothing is decided, and all samples have one mean.
    """
    window = model.decisions.window()
    if calls == 1:
        return independent(model, 1)
    across = torch.arange(calls - 1, dtype=torch.float64) / max(calls - 2, 1)
    called = window.high * (window.low / window.high) ** across
    if calls == 2:
        called[0] = window.low
    sigmas = called / (1 + window.churn)
    sigmas[0] = called[0]
    last = torch.tensor([model.decisions.settled], dtype=torch.float64)
    churn = torch.cat([called / sigmas - 1, torch.zeros(1, dtype=torch.float64)])
    guided = model.guided(model.teacher, 0.99 * window.low)

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        return (model.student if sigma <= last else guided)(x, sigma)

    schedule = Schedule(append_zero(torch.cat([sigmas, last])), churn, torch.zeros(calls).bool())
    x = model.mean() + called[0] * model.noise(model.particles)
    return integrate(denoise, x, schedule, noise=partial(model.noise, model.particles))


WAYS: dict[str, Callable[[Model, int], Tensor]] = {
    "independent": independent,
    "pool": pool,
    "away": partial(pool, batch=8),
    "one by one": partial(pool, batch=1),
    "repelled": repelled,
    "moved": moved,
    "handed over": handed_over,
}


def load(args: Any, student: str | None) -> tuple[Any, Model]:
    """The task, and the networks; None for the exact ones."""
    base = [*MODEL.split(), "--num_sets", str(args.num_sets), "--seed", str(args.seed)]
    base += ["--data_root", args.data_root, "--device", "cpu"]
    teacher = ["--denoiser", "exact"]
    if student is not None:
        path = assemble.named_checkpoint(student)
        teacher = ["--checkpoint", denoiser_metadata(path)["settings"]["teacher"]]
    evaluation = assemble.evaluation([*base, *teacher])
    sampler = evaluation.sampler
    sets = torch.arange(args.num_sets)
    denoise = sampler.denoiser(sets)
    if student is None:
        f = few_calls.exact_student(denoise)
    else:
        flags = ["--checkpoint", student, "--sigma_min", "0.2", "--pg_factor", "0"]
        f = assemble.evaluation([*base, *flags]).sampler.denoiser(sets)
    generator = torch.Generator().manual_seed(args.seed)
    assert sampler.decisions is not None  # guidance asks for them

    def noise(particles: int) -> Tensor:
        shape = (args.num_sets, particles, *sampler.particle_shape)
        return torch.randn(shape, generator=generator)

    return evaluation.task, Model(denoise, f, sampler.decisions, noise, student is None, args)


def table(rows: list[dict[str, Any]], model: str) -> str:
    """Modes found, and quality below, by way and price."""
    rows = [row for row in rows if row["model"] == model]
    calls = sorted({row["calls"] for row in rows})
    lines = []
    for way in WAYS:
        mine = {row["calls"]: row for row in rows if row["way"] == way}
        entries = (
            f"{interval(mine[n]['modes_found'])}<br>{mine[n]['quality']['mean']:.2f}" for n in calls
        )
        lines.append([way, *entries])
    header = " | ".join([f"{model}: way", *(f"{n} call{'s' * (n > 1)}" for n in calls)])
    return measure.table(header, lines)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Modes found against calls, a panel for each model."""
    from figures.charts import error_bars
    from figures.drawing import COLOURS, GREY, grid_of_axes, save

    models = list(dict.fromkeys(row["model"] for row in rows))
    figure, (axes,) = grid_of_axes(1, len(models), 5 * len(models), 3.8)
    for axis, model in zip(axes, models):
        for way, colour in zip(WAYS, COLOURS):
            mine = [row for row in rows if (row["model"], row["way"]) == (model, way)]
            curve = [row["modes_found"] for row in mine]
            calls = [row["calls"] for row in mine]
            means = [found["mean"] for found in curve]
            axis.errorbar(
                calls, means, yerr=error_bars(curve), color=colour, marker="o", ms=4, label=way
            )
        expected = expected_modes_iid(torch.full((8,), 1 / 8), 8)
        axis.axhline(expected, color=GREY, ls=":", lw=1, label="independent draws, in theory")
        axis.set_xticks(calls)
        axis.set_ylim(4, 8.1)
        axis.set_xlabel("calls for each sample")
        axis.set_title(model, fontsize=10)
    axes[0].set_ylabel("modes found of 8")
    axes[-1].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    save(figure, path)


@torch.no_grad()
def main(argv: list[str] | None = None) -> None:
    args = measure.arguments(FewCallsSettings, argv)
    students = {"exact student": None}
    if args.student is not None:
        students["network"] = args.student
    rows = []
    for name, student in students.items():
        task, model = load(args, student)
        for calls in args.calls:
            for way, sampled in WAYS.items():
                metrics, _ = task.measure(task.to_samples(sampled(model, calls)))
                rows.append(
                    dict(model=name, calls=calls, way=way) | {key: metrics[key] for key in KEPT}
                )
                print(
                    name,
                    calls,
                    way,
                    *(interval(metrics[key]) for key in KEPT),
                    sep=" | ",
                    flush=True,
                )
    rows = brief(rows)
    text = "\n\n".join(table(rows, name) for name in students)
    note = f"{args.num_sets} sets of 8: modes found of 8, and below quality (L2, less is better)."
    about = dict(num_sets=args.num_sets, seed=args.seed, factor=args.factor, student=args.student)
    measure.write(args.outdir, "few_calls", f"{text}\n\n{note}", samples=True, rows=rows, **about)
    draw(rows, args.outdir / "few_calls.png")


if __name__ == "__main__":
    main()
