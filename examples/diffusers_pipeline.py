"""Diverse sets from a diffusers pipeline, by two routes.

    pip install -r requirements-bench.txt
    python examples/diffusers_pipeline.py

A tiny UNet2DModel learns eight images, a blob at one of eight places, by DDPM's loss; there the modes can be counted.
It goes into a DDIMPipeline, which is then asked for sets of eight

    plain     as it is,
    replaced  with `pipe.unet` replaced by a `GuidedUNet`, so that the pipeline itself returns sets that repel,
    wrapped   not at all: `EpsilonDenoiser` makes the U-Net a denoiser, for `edm_sampler` and any guidance here.

Both routes rest on one change of variables (Karras et al. 2022, arXiv 2206.00364, section 5.1 and Table 1; Song et
al. 2020, arXiv 2010.02502). A DDPM network predicts the noise in x_t = sqrt(abar) y + sqrt(1 - abar) eps, so

    x = x_t / sqrt(abar) = y + s eps,   s = sqrt((1 - abar) / abar),   D(x; s) = x - s eps(x_t, t).

For a pipeline of your own: `pipe.unet = GuidedUNet(pipe.unet, pipe.scheduler, guide, particles=...)`, where `guide`
wraps a denoiser. Noise levels, and so `sigma_min` and `sigma_max`, count in units of the data, here [-1, 1].
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
    factor: NonNegative = 1.0
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
    """A DDPM network as a denoiser: (x (G, B, C, H, W) = y + sigma * noise, sigma scalar) -> D(x; sigma), like x.

    unet        predicts eps: (x_t (N, C, H, W), t scalar) -> an object with `sample`, like x_t
    scheduler   with the noise levels of its training; a sigma between two of them gets a t between theirs

    Raises ValueError where the scheduler says that the network predicts something else than eps.
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
        """The t at which training had this noise level, the first or last one beyond its ends."""
        return float(np.interp(math.log(sigma), self.log_sigmas, np.arange(len(self.log_sigmas))))

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        s, flat = float(sigma), x.flatten(0, 1)
        t = torch.tensor(self.timestep(s), device=x.device)
        eps = self.unet(flat / math.sqrt(1 + s * s), t).sample  # sqrt(abar) = 1 / sqrt(1 + s^2)
        return (flat - s * eps).view_as(x)


class GuidedUNet(nn.Module):
    """Stands in for the unet of a pipeline; each `particles` images in a row of a batch are a set that repels.

    unet, scheduler   those of the pipeline
    guide             denoiser -> guided denoiser, such as a ParticleGuidance with all but `denoise` given

    Raises ValueError for a scheduler that clips: D is not an image while particles are pushed, and DDIM's noise would
    keep the push that its clipped image has lost, with the sign turned.
    """

    unet: UNet2DModel

    def __init__(
        self, unet: nn.Module, scheduler, guide: Callable[[Denoiser], Denoiser], *, particles: int
    ):
        super().__init__()
        for clips in ("clip_sample", "thresholding"):
            if scheduler.config.get(clips):
                raise ValueError(f"{clips}: got True; accepted: a scheduler with {clips}=False")
        self.unet, self.config, self.particles = unet, unet.config, particles
        denoiser = EpsilonDenoiser(unet, scheduler)
        self.sigmas, self.guided = np.exp(denoiser.log_sigmas), guide(denoiser)

    @property
    def dtype(self) -> torch.dtype:
        """In which the pipeline draws its noise."""
        return self.unet.dtype

    @property
    def device(self) -> torch.device:
        """Where it does."""
        return self.unet.device

    def forward(self, sample: Tensor, timestep: Tensor) -> UNet2DOutput:
        """x_t (N, C, H, W), t scalar -> the eps that makes the scheduler step to the guided D."""
        sigma = torch.tensor(self.sigmas[int(timestep)])
        x = (sample * (1 + sigma**2).sqrt()).unflatten(0, (-1, self.particles))
        return UNet2DOutput(sample=((x - self.guided(x, sigma)) / sigma).view_as(sample))


# ---------------------------------------------------------------- something to learn, and to count


def blobs() -> Tensor:
    """The data: (8, 1, SIDE, SIDE) in [-1, 1], a Gaussian blob of 1.2 px at eight places on a circle of 2.5 px."""
    angle, pixel = torch.arange(8) * math.pi / 4, torch.arange(SIDE) - (SIDE - 1) / 2
    y, x = 2.5 * angle.sin()[:, None, None], 2.5 * angle.cos()[:, None, None]
    return 2 * (-((pixel[:, None] - y) ** 2 + (pixel - x) ** 2) / (2 * 1.2**2)).exp()[:, None] - 1


def modes_of(samples: Tensor, images: Tensor) -> Tensor:
    """Which image each sample shows, -1 for none: (G, B, 1, H, W), (k, 1, H, W) -> (G, B) int64. Shown is
    what is nearer than a third of the way from one image to the next."""
    distance, mode = torch.cdist(samples.flatten(2), images.flatten(1)).min(-1)
    return torch.where(distance < torch.pdist(images.flatten(1)).min() / 3, mode, -1)


def train(images: Tensor, iterations: int, batch_size: int = 32) -> DDIMPipeline:
    """A pipeline that draws one of `images` (k, 1, H, W), by DDPM's loss. The noise levels are Stable Diffusion's."""
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
        noise, t = (
            torch.randn_like(clean),
            torch.randint(scheduler.config.num_train_timesteps, (batch_size,)),
        )
        loss = (unet(scheduler.add_noise(clean, noise, t), t).sample - noise).square().mean()
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
    return (
        torch.as_tensor(images).permute(0, 3, 1, 2).unflatten(0, (-1, settings.particles)) * 2 - 1
    )


def run(settings: ExampleSettings, pipe: DDIMPipeline) -> dict[str, Tensor]:
    """The sets of every route, from the same pipeline and seed."""

    def guide(denoise: Denoiser) -> Denoiser:
        return ParticleGuidance(
            denoise,
            LogDet(),
            factor=settings.factor,
            sigma_min=settings.sigma_min,
            sigma_max=settings.sigma_max,
        )

    unet, sets = pipe.unet, {"plain": draw(pipe, settings)}
    pipe.unet = GuidedUNet(unet, pipe.scheduler, guide, particles=settings.particles)
    sets["replaced"] = draw(pipe, settings)
    pipe.unet = unet

    denoise = EpsilonDenoiser(unet, pipe.scheduler)
    low, high = np.exp(denoise.log_sigmas[[0, -1]])
    sigmas = karras_sigmas(math.ceil(settings.num_steps / 2), low, high, rho=7.0)
    noise = (
        torch.randn(
            settings.num_sets,
            settings.particles,
            1,
            SIDE,
            SIDE,
            generator=torch.Generator().manual_seed(settings.seed),
        )
        * sigmas[0]
    )
    with torch.no_grad():
        sets["wrapped, unguided"] = edm_sampler(denoise, noise, sigmas)
        sets["wrapped"] = edm_sampler(guide(denoise), noise, sigmas)
    return sets


def main(argv: list[str] | None = None) -> None:
    """Train, sample by every route, print how many of the eight places each set shows, draw three sets of each."""
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
        f"{settings.num_sets} sets of {settings.particles}; independent draws find {expected:.2f} of 8 places\n"
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
        (torch.stack(samples) + 1) / 2,
        modes=torch.stack(found),
        labels=names,
    )
    path = run_folder(settings.outdir, "") / "sets.png"
    save(sheet, path)
    print(f"written to {path}")


if __name__ == "__main__":
    main()
