"""Sets of pictures for a prompt that differ, from a text-to-image pipeline of diffusers.

    pip install -e ".[lab,diffusers]" transformers
    python examples/text_to_image.py --model MODEL --prompt "a house by the sea" --particles 4

MODEL is a directory in the format of diffusers, or a name on the Hugging Face hub; only safetensors
files are read. The same starting noise is denoised twice, independently and with guidance in a
window of noise levels that a pilot measures through the pipeline first. The grid of both goes to
`pictures.png`, and the Vendi score of both is printed: the effective number of different pictures,
by the cosines of their pixels at a side of 16, so that it counts layouts and colours.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Optional

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent))

from config import Count, NonNegative, Seed, build  # noqa: E402
from diverse_sampling.defaults import FACTOR  # noqa: E402
from diverse_sampling.denoiser import to_model_range  # noqa: E402
from diverse_sampling.errors import SettingError, reject  # noqa: E402
from diverse_sampling.noise import Stream, set_generator  # noqa: E402
from lab.command_line import fail, make_parser, run_folder, run_program  # noqa: E402

VENDI_SIDE = 16


@dataclass
class PictureSettings:
    """Pictures"""

    model: str = ""
    """directory in diffusers' format, or a name on the hub"""
    prompt: str = ""
    """what the pictures show"""
    particles: Count = 4
    """pictures in a set, at least 2"""
    factor: NonNegative = FACTOR
    """strength of the guidance; 0: none"""
    num_steps: Count = 30
    """steps of the pipeline"""
    guidance_scale: Optional[NonNegative] = None
    """classifier-free guidance; by default the pipeline's own"""
    image_size: Optional[Count] = None
    """side of a picture, px; by default the model's own"""
    scheduler: str = ""
    """scheduler of diffusers instead of the model's own, such as UniPCMultistepScheduler"""
    seed: Seed = 0
    """seed of the first picture's noise; the next one has the next seed"""
    device: Literal["cpu", "cuda", "mps"] = "cpu"
    """where the pipeline computes"""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """of the pipeline; guidance computes in float32"""
    outdir: str = "runs/text_to_image"
    """folder for the pictures"""


def load(settings: PictureSettings):
    """The pipeline. Raises SettingError where there is none, or no such scheduler."""
    import diffusers

    precision: dict[str, Any] = {}
    if settings.precision != "float32":
        precision["torch_dtype"] = getattr(torch, settings.precision)
    try:
        pipe = diffusers.DiffusionPipeline.from_pretrained(
            settings.model, use_safetensors=True, **precision
        )
    except (OSError, ValueError) as error:
        first = str(error).strip().split("\n")[0]
        reject("model", settings.model, f"a text-to-image model in diffusers' format ({first})")
    if settings.scheduler:
        kind = getattr(diffusers, settings.scheduler, None)
        if kind is None or not hasattr(kind, "step"):
            reject("scheduler", settings.scheduler, "a scheduler of diffusers")
        pipe.scheduler = kind.from_config(pipe.scheduler.config)
    return pipe.to(settings.device)


def draw(pipe, settings: PictureSettings, call: dict[str, Any]) -> Tensor:
    """One set of pictures, (B, 3, H, W) in [0, 1], from the noise of as many seeds."""
    seeds = range(settings.seed, settings.seed + settings.particles)
    pictures = pipe(
        **call,
        num_images_per_prompt=settings.particles,
        num_inference_steps=settings.num_steps,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        output_type="np",
    ).images
    return torch.as_tensor(pictures).permute(0, 3, 1, 2)


def vendi(pictures: Tensor) -> float:
    """The Vendi score of a set of pictures, (B, 3, H, W) in [0, 1]: from 1, all alike, to B."""
    from lab.metrics import cosine_kernel, vendi_score

    small = torch.nn.functional.adaptive_avg_pool2d(to_model_range(pictures), VENDI_SIDE)
    return float(vendi_score(cosine_kernel(small.flatten(1)[None])))


def run(settings: PictureSettings) -> dict[str, Tensor]:
    """Both sets, {how they were drawn: (B, 3, H, W)}."""
    from diverse_sampling.pipelines import denoiser_of, guided_window, pilot, repel

    for key in ("model", "prompt"):
        if not getattr(settings, key):
            reject(key, "", f"--{key} with the {key} to use")
    if settings.particles < 2:
        reject("particles", settings.particles, "at least 2, which repel each other")
    pipe = load(settings)
    call: dict[str, Any] = dict(prompt=settings.prompt)
    if settings.guidance_scale is not None:
        call["guidance_scale"] = settings.guidance_scale
    if settings.image_size is not None:
        call |= dict(height=settings.image_size, width=settings.image_size)

    decided = pilot(denoiser_of(pipe, **call), particles=settings.particles, seed=settings.seed)
    low, high, _ = guided_window(decided)
    print(f"window: sigma {low:.3g} to {high:.3g}, in units of the latents")
    sets = {"independent": draw(pipe, settings, call)}
    seeds = range(settings.seed, settings.seed + settings.particles)
    with repel(
        pipe,
        particles=settings.particles,
        factor=settings.factor,
        decisions=decided,
        generator=[set_generator(seed, 0, Stream.SAMPLING) for seed in seeds],
    ):
        sets["guided"] = draw(pipe, settings, call)
    return sets


def main(argv: list[str] | None = None) -> None:
    """Draw both sets, print their Vendi scores, and write the pictures."""
    parser = make_parser(PictureSettings, description=__doc__.split("\n")[0])
    settings = build(PictureSettings, parser.parse_args(argv))
    try:
        sets = run(settings)
        folder = run_folder(settings.outdir, "")
    except (SettingError, ValueError) as error:
        fail(str(error))

    from figures.drawing import save
    from figures.sheets import sample_sheet

    scores = {name: vendi(pictures) for name, pictures in sets.items()}
    for name, score in scores.items():
        print(f"{name:<12} Vendi score {score:.2f} of {settings.particles}")
    samples = torch.stack(list(sets.values()))  # (2, B, 3, H, W)
    sheet = sample_sheet(
        torch.empty(len(samples), 0, *samples.shape[3:]),
        samples,
        labels=list(sets),
        notes=[f"{score:.2f}" for score in scores.values()],
        notes_title="Vendi",
        title=settings.prompt,
    )
    save(sheet, folder / "pictures.png")
    print(f"written to {folder / 'pictures.png'}")


if __name__ == "__main__":
    run_program(main)
