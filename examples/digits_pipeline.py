"""Our digits as a pipeline in diffusers' format, saved, loaded from its folder, and guided.

    pip install -r requirements-bench.txt
    python examples/digits_pipeline.py

The network of `checkpoints/centered.safetensors`, which `train.py --config configs/centered.yaml`
trained, becomes a component of a DDIMPipeline. `save_pretrained` writes a folder with a JSON file
for each component and the weights as safetensors, and `DiffusionPipeline.from_pretrained` loads it:
pipeline and scheduler are diffusers' own, and the class of the network is `DigitsUNet` of this
module, which has to be importable. Sets of ten digits are then sampled in six ways:

    DDIM                       the pipeline as it is
    DDIM, guided               the same, guided at its scheduler
    DDIM, new noise            the pipeline, with part of the noise drawn anew in the window
    DDIM, new noise, guided    the same, guided at its scheduler
    sampler                    our sampler, which takes the pipeline as a denoiser
    sampler, guided            the same, with gradients through the network

What repels is the features of one classifier; another one says which digits a set shows.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

import numpy
import torch
from diffusers import ConfigMixin, DDIMPipeline, DDIMScheduler, DiffusionPipeline, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent))

import checkpoint  # noqa: E402
import diffusers_pipeline  # noqa: E402
from command_line import make_parser, run_folder  # noqa: E402
from config import ClosedUnitInterval, Count, ModelSettings, NonNegative, Seed, build  # noqa: E402
from metrics import mean_interval, mode_metrics, recognise  # noqa: E402
from ranges import to_unit_range  # noqa: E402


@dataclass
class DigitsSettings:
    """Digits"""

    num_sets: Count = 40
    """sets"""
    particles: Count = 10
    """particles in a set"""
    num_steps: Count = 30
    """calls of the network for each particle, by every route"""
    factor: NonNegative = 1.5
    """strength of the guidance in the pipeline, in units of the drift that denoises"""
    renewed: ClosedUnitInterval = 0.7
    """share of new noise in the window, standard deviation over that of all noise"""
    renewed_factor: NonNegative = 4.0
    """strength of the guidance in the pipeline with new noise"""
    sampler_factor: NonNegative = 3.0
    """strength of the guidance in our sampler, in units of the joint density"""
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
        abar = DDIMScheduler(**diffusers_pipeline.NOISE).alphas_cumprod.double()
        self.log_sigmas = ((1 - abar) / abar).log().numpy() / 2  # (T,), rising

    def forward(self, sample: Tensor, timestep: Tensor | float) -> UNet2DOutput:
        """The clean image of samples (N, C, H, W), like these; a timestep may be a fraction."""
        log_sigma = numpy.interp(float(timestep), range(len(self.log_sigmas)), self.log_sigmas)
        sigma = torch.tensor(math.exp(log_sigma))
        clean = self.denoiser(sample * math.hypot(1, sigma), sigma)
        return UNet2DOutput(sample=clean.to(sample))


def convert(name: str = "centered") -> DDIMPipeline:
    """The pipeline of a shipped network without a condition, `checkpoints/NAME.safetensors`."""
    path = Path(__file__).parent.parent / "checkpoints" / f"{name}.safetensors"
    denoiser, metadata = checkpoint.load_denoiser(path)
    model = checkpoint.model_settings(metadata)
    side = metadata["settings"]["image_size"]
    unet = DigitsUNet(
        side, denoiser.unet.out_channels, vars(model), metadata["sigma_data"], metadata["box"]
    )
    unet.denoiser.load_state_dict(denoiser.state_dict())
    scheduler = DDIMScheduler(
        **diffusers_pipeline.NOISE,
        clip_sample=False,
        prediction_type="sample",
        timestep_spacing="trailing",
    )
    return DDIMPipeline(unet, scheduler)


def load(folder: Path | str) -> DiffusionPipeline:
    """A pipeline from its folder, silent and without gradients of its weights."""
    pipe = DiffusionPipeline.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    pipe.unet.eval().requires_grad_(False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def features() -> Callable[[Tensor], Tensor]:
    """What digits are compared by: images (N, 1, H, W) in [-1, 1] -> (N, d)."""
    classifier = checkpoint.load_classifier("guide")
    return lambda images: classifier.features(to_unit_range(images[:, 0]))


def routes(settings: DigitsSettings, pipe: DiffusionPipeline) -> dict[str, Callable[[], Tensor]]:
    """What draws the sets of every route, (G, B, 1, H, W), from the same pipeline, by its name."""
    return diffusers_pipeline.routes(settings, pipe, features())


def figures(sets: Tensor) -> dict[str, dict]:
    """How many of the ten digits sets (G, B, 1, H, W) show, and how sure a classifier is of them.

    Returns {digits: {mean, ci95}, confidence: {mean, ci95}}.
    """
    judge = checkpoint.load_classifier("judge")
    digits, confidence = recognise(to_unit_range(sets[:, :, 0]), judge)
    found = mode_metrics(digits, torch.full((10,), 0.1))["modes_found"]
    return dict(digits=found, confidence=mean_interval(confidence.mean(1)))


def main(argv: list[str] | None = None) -> None:
    """Convert, save, load, sample by every route, print what the sets show, and draw three each."""
    from drawing import save
    from metrics import expected_modes_iid
    from sheets import sample_sheet

    parser = make_parser(DigitsSettings, description=__doc__.split("\n")[0])
    settings = build(DigitsSettings, parser.parse_args(argv))
    folder = run_folder(settings.outdir, "")
    convert().save_pretrained(folder / "pipeline")
    pipe = load(folder / "pipeline")
    sets = {name: drawn() for name, drawn in routes(settings, pipe).items()}
    expected = expected_modes_iid(torch.full((10,), 0.1), settings.particles)
    print(
        f"{settings.num_sets} sets of {settings.particles}, {settings.num_steps} calls; "
        f"independent draws find {expected:.2f} of 10 digits\n"
    )
    for name, samples in sets.items():
        shown = {
            key: f"{value['mean']:.2f} [{value['ci95'][0]:.2f}, {value['ci95'][1]:.2f}]"
            if value["ci95"]
            else f"{value['mean']:.2f}"
            for key, value in figures(samples).items()
        }
        print(f"{name:<24} {shown['digits']} digits, confidence {shown['confidence']}")
    rows = [
        (f"{name}  {i + 1}", samples[i, :, 0])
        for name, samples in sets.items()
        for i in range(min(3, settings.num_sets))
    ]
    names, drawn = zip(*rows)
    images = to_unit_range(torch.stack(drawn))
    sheet = sample_sheet(torch.empty(len(rows), 0, *images.shape[2:]), images, labels=names)
    path = folder / "sets.png"
    save(sheet, path)
    print(f"written to {folder}")


if __name__ == "__main__":
    # Under the name that the folder of the pipeline refers to.
    from digits_pipeline import main as run_program

    run_program()
