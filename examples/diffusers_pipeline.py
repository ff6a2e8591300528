"""Diverse sets from a diffusers pipeline, by two routes.

    pip install -r requirements-bench.txt
    python examples/diffusers_pipeline.py

A tiny UNet2DModel learns eight images, a blob at one of eight places, by DDPM's loss, so the modes
can be counted. Sets of eight are then sampled in three ways:

    plain     by a DDIMPipeline as it is
    replaced  by the pipeline with `pipe.unet` replaced by a `GuidedUNet`: its sets repel
    wrapped   by `edm_sampler`: `EpsilonDenoiser` makes the U-Net a denoiser, for any guidance here

Both routes use one change of variables (Karras et al. 2022, arXiv 2206.00364, section 5.1 and Table
1; Song et al. 2020, arXiv 2010.02502). A DDPM network predicts the noise in x_t = sqrt(abar) y +
sqrt(1 - abar) eps, so

    x = x_t / sqrt(abar) = y + s eps,   s = sqrt((1 - abar) / abar),   D(x; s) = x - s eps(x_t, t).

For your own pipeline: `pipe.unet = GuidedUNet(pipe.unet, pipe.scheduler, guide, particles=...)`,
where `guide` wraps a denoiser. Noise levels, including `sigma_min` and `sigma_max`, are in units of
the data, here [-1, 1].
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

import numpy as np
import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent.parent))

from command_line import make_parser, run_folder  # noqa: E402
from config import Count, NonNegative, Seed, Sigma, build  # noqa: E402
from guidance import Denoiser, ParticleGuidance  # noqa: E402
from potentials import LogDet  # noqa: E402
from ranges import to_model_range, to_unit_range  # noqa: E402
from sampler import edm_sampler, karras_sigmas  # noqa: E402

SIDE = 8


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
    """steps of the pipeline; edm_sampler takes half as many, of two network calls each"""
    factor: NonNegative = 3.0
    """strength of the guidance"""
    sigma_min: Sigma = 0.7
    """guidance acts from here ..."""
    sigma_max: Sigma = 3.0
    """... to here: two blobs are 4 to 6 apart, so this is where a particle chooses"""
    seed: Seed = 0
    """seed of everything random"""
    outdir: str = "runs/diffusers"
    """folder for the picture"""


# ---------------------------------------------------------------- the two routes


class EpsilonDenoiser:
    """A DDPM network as a denoiser: (x (G, B, C, H, W), sigma scalar) -> D(x; sigma) like x.

    Arguments:
        unet: predicts eps: (x_t (N, C, H, W), t scalar) -> an object with `sample`, like x_t
        scheduler: holds the noise levels of its training; a sigma between two of them gets a t
            between theirs

    Raises ValueError where the scheduler says that the network does not predict eps.
    """

    def __init__(self, unet: Callable, scheduler):
        if scheduler.config.prediction_type != "epsilon":
            raise ValueError(
                f"prediction_type: got {scheduler.config.prediction_type!r}; accepted: 'epsilon'"
            )
        self.unet = unet
        abar = scheduler.alphas_cumprod.double()
        self.log_sigmas = ((1 - abar) / abar).log().numpy() / 2  # (T,), rising

    def timestep(self, sigma: float) -> float:
        """The t at which training had this noise level; outside its range, the first or last t."""
        return float(np.interp(math.log(sigma), self.log_sigmas, np.arange(len(self.log_sigmas))))

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        s = float(sigma)
        flat = x.flatten(0, 1)
        t = torch.tensor(self.timestep(s), device=x.device)
        eps = self.unet(flat / math.sqrt(1 + s * s), t).sample  # sqrt(abar) = 1 / sqrt(1 + s^2)
        return (flat - s * eps).view_as(x)


class GuidedUNet(nn.Module):
    """Replaces the U-Net of a pipeline; consecutive images of a batch form a set that repels.

    Arguments:
        unet: that of the pipeline
        scheduler: that of the pipeline
        guide: denoiser -> guided denoiser, such as ParticleGuidance with all but `denoise` given
        particles: images in a set

    Raises ValueError for a scheduler that clips: while particles are pushed D is not an image, and
    DDIM's noise would keep the push that the clipped image has lost, with the opposite sign.
    """

    unet: UNet2DModel

    def __init__(
        self, unet: nn.Module, scheduler, guide: Callable[[Denoiser], Denoiser], *, particles: int
    ):
        super().__init__()
        for clips in ("clip_sample", "thresholding"):
            if scheduler.config.get(clips):
                raise ValueError(f"{clips}: got True; accepted: a scheduler with {clips}=False")
        self.unet = unet
        self.config = unet.config
        self.particles = particles
        denoiser = EpsilonDenoiser(unet, scheduler)
        self.sigmas = np.exp(denoiser.log_sigmas)
        self.guided = guide(denoiser)

    @property
    def dtype(self) -> torch.dtype:
        """The type of the noise that the pipeline draws."""
        return self.unet.dtype

    @property
    def device(self) -> torch.device:
        """The device on which the pipeline draws its noise."""
        return self.unet.device

    def forward(self, sample: Tensor, timestep: Tensor) -> UNet2DOutput:
        """x_t (N, C, H, W), t scalar -> the eps that makes the scheduler step to the guided D."""
        sigma = torch.tensor(self.sigmas[int(timestep)])
        x = (sample * (1 + sigma**2).sqrt()).unflatten(0, (-1, self.particles))
        eps = (x - self.guided(x, sigma)) / sigma
        return UNet2DOutput(sample=eps.view_as(sample))


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
    """Train a pipeline that draws one of `images` (k, 1, H, W), by DDPM's loss.

    The noise levels are those of Stable Diffusion.
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
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        timestep_spacing="trailing",
    )
    optimizer = torch.optim.AdamW(unet.parameters(), lr=4e-3)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=iterations)
    for _ in range(iterations):
        clean = images[torch.randint(len(images), (batch_size,))]
        noise = torch.randn_like(clean)
        t = torch.randint(scheduler.config.num_train_timesteps, (batch_size,))
        predicted = unet(scheduler.add_noise(clean, noise, t), t).sample
        loss = (predicted - noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()
    pipe = DDIMPipeline(unet.eval().requires_grad_(False), scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: DDIMPipeline, settings: ExampleSettings) -> Tensor:
    """Sets from a pipeline, (G, B, 1, H, W) in [-1, 1]."""
    images = pipe(
        batch_size=settings.num_sets * settings.particles,
        num_inference_steps=settings.num_steps,
        generator=torch.Generator().manual_seed(settings.seed),
        output_type="np",
    ).images
    sets = torch.as_tensor(images).permute(0, 3, 1, 2).unflatten(0, (-1, settings.particles))
    return to_model_range(sets)


def run(settings: ExampleSettings, pipe: DDIMPipeline) -> dict[str, Tensor]:
    """The sets of every route, from the same pipeline and seed: {route: (G, B, 1, H, W)}."""

    def guide(denoise: Denoiser) -> Denoiser:
        return ParticleGuidance(
            denoise,
            LogDet(),
            factor=settings.factor,
            sigma_min=settings.sigma_min,
            sigma_max=settings.sigma_max,
        )

    unet = pipe.unet
    sets = {"plain": draw(pipe, settings)}
    pipe.unet = GuidedUNet(unet, pipe.scheduler, guide, particles=settings.particles)
    sets["replaced"] = draw(pipe, settings)
    pipe.unet = unet

    denoise = EpsilonDenoiser(unet, pipe.scheduler)
    low, high = np.exp(denoise.log_sigmas[[0, -1]])
    sigmas = karras_sigmas(math.ceil(settings.num_steps / 2), low, high, rho=7.0)
    shape = (settings.num_sets, settings.particles, 1, SIDE, SIDE)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(settings.seed))
    start = noise * sigmas[0]
    with torch.no_grad():
        sets["wrapped, unguided"] = edm_sampler(denoise, start, sigmas)
        sets["wrapped"] = edm_sampler(guide(denoise), start, sigmas)
    return sets


def main(argv: list[str] | None = None) -> None:
    """Train, sample by every route, print how many places the sets show, and draw three of each."""
    from drawing import save
    from metrics import expected_modes_iid, mean_interval
    from sheets import sample_sheet

    parser = make_parser(ExampleSettings, description=__doc__.split("\n")[0])
    settings = build(ExampleSettings, parser.parse_args(argv))
    torch.manual_seed(settings.seed)
    images = blobs()
    sets = run(settings, train(images, settings.iterations))
    modes = {name: modes_of(samples, images) for name, samples in sets.items()}
    expected = expected_modes_iid(torch.full((8,), 1 / 8), settings.particles)
    print(
        f"{settings.num_sets} sets of {settings.particles}; independent draws find {expected:.2f} "
        "of 8 places\n"
    )
    for name, each in modes.items():
        places = mean_interval(torch.stack([(each == k).any(1) for k in range(8)]).sum(0))
        low, high = places["ci95"] or (math.nan, math.nan)  # a single set has no interval
        interval = f"[{low:.2f}, {high:.2f}]"
        print(
            f"{name:<18} {places['mean']:5.2f} {interval} places; "
            f"{100 * (each >= 0).float().mean():.0f}% of the samples show one"
        )
    rows = [
        (f"{name}  {i + 1}", samples[i, :, 0], modes[name][i])
        for name, samples in sets.items()
        for i in range(min(3, settings.num_sets))
    ]
    names, samples, found = zip(*rows)
    sheet = sample_sheet(
        torch.empty(len(rows), 0, SIDE, SIDE),
        to_unit_range(torch.stack(samples)),
        modes=torch.stack(found),
        labels=names,
    )
    path = run_folder(settings.outdir, "") / "sets.png"
    save(sheet, path)
    print(f"written to {path}")


if __name__ == "__main__":
    main()
