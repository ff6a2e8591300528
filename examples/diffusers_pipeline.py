"""Diverse sets from a diffusers pipeline whose modes can be counted, by two routes.

    pip install -e ".[dev]"
    python examples/diffusers_pipeline.py

A tiny UNet2DModel learns eight images, a blob at one of eight places, by predicting v. A pilot
through the pipeline measures the window of noise levels in which they are decided. Sets of eight
are then sampled in five ways:

    DDIM               by a DDIMPipeline as it is, without noise
    DDIM, new noise    by the pipeline, with noise added anew in the window
    DDIM, guided       by the same, guided at its scheduler
    sampler            by our sampler, which takes the pipeline as a denoiser
    sampler, guided    by our sampler, guided

A network that predicts v errs in D by the error of v at every noise level; one that predicts noise
errs by sigma times its error, and guidance sees the differences of D.

Both routes are in `diverse_sampling/pipelines.py`, and work with text-to-image pipelines too:
docs/pipelines.md.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Callable

import torch
from diffusers import DDIMPipeline, DDIMScheduler, DiffusionPipeline, UNet2DModel
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent))

from config import Count, Seed, build  # noqa: E402
from diverse_sampling.defaults import FACTOR  # noqa: E402
from diverse_sampling.denoiser import to_model_range, to_unit_range  # noqa: E402
from diverse_sampling.guidance import default_guidance  # noqa: E402
from diverse_sampling.pipelines import (  # noqa: E402
    denoiser_of,
    guided_window,
    pilot,
    repel,
    repelling,
)
from diverse_sampling.steps import integrate, window_schedule  # noqa: E402
from lab.command_line import make_parser, run_folder  # noqa: E402
from lab.experiments import interval  # noqa: E402
from lab.metrics import expected_modes_iid, mean_interval  # noqa: E402

SIDE = 8
# The noise levels of Stable Diffusion, 0.03 to 14.6.
NOISE = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")


@dataclass
class ExampleSettings:
    """Example"""

    iterations: Count = 1200
    """updates of the U-Net"""
    num_sets: Count = 40
    """sets"""
    particles: Count = 8
    """particles in a set"""
    num_steps: Count = 30
    """calls of the network, by every route"""
    seed: Seed = 0
    """seed of everything random"""
    outdir: str = "runs/diffusers"
    """folder for the picture"""


# ---------------------------------------------------------------- something to learn, and to count


def blobs() -> Tensor:
    """The data, (8, 1, SIDE, SIDE) in [-1, 1]: a Gaussian blob at eight places on a circle.

    Its standard deviation is 1.2 px, the circle's radius 2.5 px.
    """
    angle = torch.arange(8) * math.pi / 4
    pixel = torch.arange(SIDE) - (SIDE - 1) / 2
    y = 2.5 * angle.sin()[:, None, None]
    x = 2.5 * angle.cos()[:, None, None]
    squared_distance = (pixel[:, None] - y) ** 2 + (pixel - x) ** 2  # (8, SIDE, SIDE)
    return to_model_range((-squared_distance / (2 * 1.2**2)).exp()[:, None])


def modes_of(samples: Tensor, images: Tensor) -> Tensor:
    """Which image each sample shows: (G, B, 1, H, W), (k, 1, H, W) -> (G, B) int64, -1 for none.

    A sample shows an image that is nearer than a third of the smallest distance between images.
    """
    distance, mode = torch.cdist(samples.flatten(2), images.flatten(1)).min(-1)
    limit = torch.pdist(images.flatten(1)).min() / 3
    return torch.where(distance < limit, mode, -1)


def train(images: Tensor, iterations: int, batch_size: int = 32) -> DDIMPipeline:
    """Train a pipeline that draws one of `images` (k, 1, H, W), by the error of v.

    The noise levels are those of Stable Diffusion; v is that of Salimans & Ho 2022, arXiv
    2202.00512.
    """
    unet = UNet2DModel(
        sample_size=SIDE,
        in_channels=1,
        out_channels=1,
        block_out_channels=(32, 32),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    scheduler = DDIMScheduler(
        **NOISE, clip_sample=False, prediction_type="v_prediction", timestep_spacing="trailing"
    )
    optimizer = torch.optim.AdamW(unet.parameters(), lr=4e-3)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=iterations)
    for _ in range(iterations):
        clean = images[torch.randint(len(images), (batch_size,))]
        noise = torch.randn_like(clean)
        t = torch.randint(scheduler.config.num_train_timesteps, (batch_size,))
        predicted = unet(scheduler.add_noise(clean, noise, t), t).sample
        loss = (predicted - scheduler.get_velocity(clean, noise, t)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()
    return silent(DDIMPipeline(unet, scheduler))


def silent(pipe: DiffusionPipeline) -> DiffusionPipeline:
    """The pipeline without a bar of its progress and without gradients of its weights."""
    pipe.unet.eval().requires_grad_(False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def load(folder: Path | str) -> DiffusionPipeline:
    """A pipeline from its folder, silent."""
    pipe = DiffusionPipeline.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    return silent(pipe)


def draw(pipe: DiffusionPipeline, settings) -> Tensor:
    """Sets from a pipeline, (G, B, C, H, W) in [-1, 1]; `settings` as of `routes`."""
    images = pipe(
        batch_size=settings.num_sets * settings.particles,
        num_inference_steps=settings.num_steps,
        generator=torch.Generator().manual_seed(settings.seed),
        output_type="np",
    ).images
    sets = torch.as_tensor(images).permute(0, 3, 1, 2).unflatten(0, (-1, settings.particles))
    return to_model_range(sets)


def routes(
    settings, pipe: DiffusionPipeline, others: dict[str, dict[str, Any]] = {}
) -> dict[str, Callable[[], Tensor]]:
    """What draws the sets of every route, (G, B, C, H, W), from the same pipeline, by its name.

    Arguments:
        settings: with the fields of `ExampleSettings` from `num_sets` to `seed`
        pipe: without a condition
        others: further ways to guide the pipeline, {name: arguments of `repel`}
    """
    denoise = denoiser_of(pipe)
    decided = pilot(denoise, particles=64, seed=settings.seed)
    wide = guided_window(decided)

    def guided(**how) -> Tensor:
        with repel(pipe, particles=settings.particles, decisions=decided, **how):
            return draw(pipe, settings)

    def renewed() -> Tensor:
        unguided = lambda denoise: denoise
        with repelling(pipe.scheduler, unguided, particles=settings.particles, window=wide):
            return draw(pipe, settings)

    def sampler(factor: float) -> Tensor:
        # A sample that nothing pushes blends images if it leaves the window half decided.
        window = decided.window() if factor > 0 else wide
        repelled = default_guidance(denoise, decided, factor=factor, window=window)
        bounds = dict(sigma_min=decided.end, sigma_max=denoise.sigma_max)
        schedule = window_schedule(window, settings.num_steps, **bounds)
        shape = (settings.num_sets, settings.particles, *denoise.shape)
        generator = torch.Generator().manual_seed(settings.seed)
        noise = lambda: torch.randn(shape, generator=generator).to(denoise.device)
        return integrate(repelled, noise() * denoise.sigma_max, schedule, noise=noise).cpu()

    return {
        "DDIM": partial(draw, pipe, settings),
        "DDIM, new noise": renewed,
        "DDIM, guided": guided,
        **{f"DDIM, {name}": partial(guided, **how) for name, how in others.items()},
        "sampler": partial(sampler, 0.0),
        "sampler, guided": partial(sampler, FACTOR),
    }


def run(settings, pipe: DiffusionPipeline) -> dict[str, Tensor]:
    """The sets of every route, from the same pipeline: {route: (G, B, 1, H, W)}."""
    return {name: drawn() for name, drawn in routes(settings, pipe).items()}


def figures(sets: Tensor) -> dict:
    """How many of the eight places sets (G, B, 1, H, W) show, and the share of samples on one.

    Returns {places: {mean, ci95}, shown}.
    """
    modes = modes_of(sets, blobs())
    found = torch.stack([(modes == k).any(1) for k in range(8)]).sum(0)
    most = min(8, sets.shape[1])
    places = mean_interval(found, (0, most), step=1)
    return dict(places=places, shown=float((modes >= 0).float().mean()))


def report(
    sets: dict[str, Tensor],
    what: str,
    count: int,
    describe: Callable[[Tensor], str],
    path: Path,
    modes_of: Callable[[Tensor], Tensor] | None = None,
) -> None:
    """Print what the sets of every route show, and draw three sets of each.

    Arguments:
        sets: {route: (G, B, 1, H, W) in [-1, 1]}
        what: the modes' name
        count: how many modes there are
        describe: sets -> text
        path: the picture
        modes_of: sets -> (G, B), which mode each sample shows, for the frames' colours
    """
    from figures.drawing import save
    from figures.sheets import sample_sheet

    num_sets, particles = next(iter(sets.values())).shape[:2]
    expected = expected_modes_iid(torch.full((count,), 1 / count), particles)
    print(
        f"{num_sets} sets of {particles}; independent draws find {expected:.2f} of {count} {what}"
    )
    for name, samples in sets.items():
        print(f"{name:<24} {describe(samples)}")
    drawn = torch.cat([samples[:3, :, 0] for samples in sets.values()])
    modes = modes_of and torch.cat([modes_of(samples[:3]) for samples in sets.values()])
    labels = [f"{name}  {i + 1}" for name in sets for i in range(min(3, num_sets))]
    cond = torch.empty(len(drawn), 0, *drawn.shape[2:])
    save(sample_sheet(cond, to_unit_range(drawn), modes=modes, labels=labels), path)
    print(f"written to {path}")


def main(argv: list[str] | None = None) -> None:
    """Train, sample by every route, print how many places the sets show, and draw three of each."""
    parser = make_parser(ExampleSettings, description=__doc__.split("\n")[0])
    settings = build(ExampleSettings, parser.parse_args(argv))
    folder = run_folder(settings.outdir, "")
    torch.manual_seed(settings.seed)
    images = blobs()

    def describe(sets: Tensor) -> str:
        found = figures(sets)
        return f"{interval(found['places'])} places; {100 * found['shown']:.1f}% are on one"

    sets = run(settings, train(images, settings.iterations))
    modes = lambda sets: modes_of(sets, images)
    report(sets, "places", len(images), describe, folder / "sets.png", modes)


if __name__ == "__main__":
    main()
