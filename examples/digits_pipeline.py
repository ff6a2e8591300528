"""Our digits as a pipeline in diffusers' format, saved, loaded from its folder, and guided.

    pip install -e ".[dev]"
    python examples/digits_pipeline.py

The network of `checkpoints/centered.safetensors`, which `train.py --config configs/centered.yaml`
trained, becomes a component of a DDIMPipeline. `save_pretrained` writes a folder with a JSON file
for each component and the weights as safetensors, and `DiffusionPipeline.from_pretrained` loads it:
pipeline and scheduler are diffusers' own, and the class of the network is `DigitsUNet` of this
module, which has to be importable. Sets of ten digits are then sampled in seven ways:

    DDIM                  the pipeline as it is
    DDIM, new noise       the pipeline, with noise added anew in the window
    DDIM, guided          the same, guided at its scheduler
    DDIM, classes         guided towards one of each digit, by a classifier of noisy digits
    DDIM, classes at D    the same, by the same classifier, which is asked of D(x)
    sampler               our sampler, which takes the pipeline as a denoiser
    sampler, guided       the same, guided

A network that never guides gives the `confidence`, and a judge of another kind, by edges
(`lab/judge.py`), says which digits a set shows.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
from diffusers import ConfigMixin, DDIMPipeline, DDIMScheduler, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent))

from diffusers_pipeline import NOISE, load, report  # noqa: E402
from diffusers_pipeline import routes as routes_of_pipeline  # noqa: E402

from config import Count, ModelSettings, Seed, build  # noqa: E402
from diverse_sampling.denoiser import to_unit_range  # noqa: E402
from lab import checkpoint  # noqa: E402
from lab.command_line import make_parser, run_folder  # noqa: E402
from lab.experiments import interval  # noqa: E402
from lab.judge import Judge  # noqa: E402
from lab.metrics import mean_interval, mode_metrics, recognise  # noqa: E402

CLEAN = 0.1  # noise level at which a classifier of noisy digits is asked of clean ones


@dataclass
class DigitsSettings:
    """Digits"""

    num_sets: Count = 40
    """sets"""
    particles: Count = 10
    """particles in a set"""
    num_steps: Count = 30
    """calls of the network for each particle, by every route"""
    seed: Seed = 0
    """seed of everything random"""
    outdir: str = "runs/digits-pipeline"
    """folder for the pipeline and the picture"""


class DigitsUNet(ModelMixin, ConfigMixin):
    """A trained denoiser D(x; sigma) of ours as a network of diffusers.

    It takes sqrt(abar) y + sqrt(1 - abar) n at a timestep t, and predicts y ("sample").

    Arguments:
        sample_size: side of an image, px
        in_channels: of an image
        model: the network's own settings, as in `ModelSettings`
        sigma_data: standard deviation of the data in [-1, 1]
        box: the part of the frame that the network works on, as in `EDMDenoiser`
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int,
        in_channels: int,
        model: dict,
        sigma_data: float,
        box: list[int] | None = None,
    ):
        super().__init__()
        settings = build(ModelSettings, model)
        self.denoiser = checkpoint.make_denoiser((0, in_channels), settings, sigma_data, box)
        abar = DDIMScheduler(**NOISE).alphas_cumprod.double()
        self.log_sigmas = ((1 - abar) / abar).log().numpy() / 2  # (T,), rising

    def forward(self, sample: Tensor, timestep: Tensor | float) -> UNet2DOutput:
        """The clean image of samples (N, C, H, W), like these; a timestep may be a fraction."""
        log_sigma = numpy.interp(float(timestep), range(len(self.log_sigmas)), self.log_sigmas)
        sigma = torch.tensor(math.exp(log_sigma))
        clean = self.denoiser(sample * math.hypot(1, sigma), sigma)
        return UNet2DOutput(sample=clean.to(sample))


def convert(name: str = "centered") -> DDIMPipeline:
    """The pipeline of an included network without a condition, `checkpoints/NAME.safetensors`."""
    path = Path(__file__).parent.parent / "checkpoints" / f"{name}.safetensors"
    denoiser, metadata = checkpoint.load_denoiser(path)
    model = checkpoint.model_settings(metadata)
    side = metadata["settings"]["image_size"]
    unet = DigitsUNet(
        side, denoiser.unet.out_channels, vars(model), metadata["sigma_data"], metadata["box"]
    )
    unet.denoiser.load_state_dict(denoiser.state_dict())
    scheduler = DDIMScheduler(
        **NOISE,
        clip_sample=False,
        prediction_type="sample",
        timestep_spacing="trailing",
    )
    return DDIMPipeline(unet, scheduler)


def routes(settings: DigitsSettings, pipe):
    """What draws the sets of every route, (G, B, 1, H, W), by its name."""
    noisy = checkpoint.load_classifier("noisy")

    def of_noisy(x: Tensor, sigma: Tensor) -> Tensor:
        """log p(digit | x), (G, B, 1, H, W) -> (G, B, 10)."""
        return noisy(x.flatten(0, 1), sigma).unflatten(0, x.shape[:2])

    def of_clean(x: Tensor, sigma: Tensor) -> Tensor:
        """The same of x as images that have hardly any noise."""
        return of_noisy(x, torch.tensor(CLEAN))

    classes = {
        "classes": dict(log_posterior=of_noisy),
        "classes at D": dict(log_posterior=of_clean, clean=True),
    }
    return routes_of_pipeline(settings, pipe, classes)


def figures(sets: Tensor) -> dict[str, dict]:
    """How many digits sets (G, B, 1, H, W) show by edges, and how sure a classifier is of them.

    Returns {digits: {mean, ci95}, confidence: {mean, ci95}}.
    """
    frames = to_unit_range(sets[:, :, 0])
    _, confidence = recognise(frames, checkpoint.load_classifier("judge"))
    digits = Judge.load()(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
    found = mode_metrics(digits, torch.full((10,), 0.1))["modes_found"]
    return dict(digits=found, confidence=mean_interval(confidence.mean(1), (0, 1)))


def main(argv: list[str] | None = None) -> None:
    """Convert, save, load, sample by every route, print what the sets show, and draw three each."""
    parser = make_parser(DigitsSettings, description=__doc__.split("\n")[0])
    settings = build(DigitsSettings, parser.parse_args(argv))
    folder = run_folder(settings.outdir, "")
    convert().save_pretrained(folder / "pipeline")
    pipe = load(folder / "pipeline")
    sets = {name: drawn() for name, drawn in routes(settings, pipe).items()}

    def describe(sets: Tensor) -> str:
        found = {key: interval(value) for key, value in figures(sets).items()}
        return f"{found['digits']} digits, confidence {found['confidence']}"

    report(sets, "digits", 10, describe, folder / "sets.png")


if __name__ == "__main__":
    # Under the name that the folder of the pipeline refers to.
    from digits_pipeline import main as run_program

    run_program()
