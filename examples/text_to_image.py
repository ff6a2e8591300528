"""Sets of pictures for a prompt that differ, from a text-to-image pipeline of diffusers.

    pip install -e ".[lab,diffusers]" transformers
    python examples/text_to_image.py --model MODEL --prompt "a house by the sea" --particles 4

MODEL is a directory in the format of diffusers, or a name on the Hugging Face hub; only safetensors
files are read. The same starting noise is denoised twice, independently and with guidance in a
window of noise levels that a pilot measures through the pipeline first. The grid of both goes to
`pictures.png`, and the Vendi score of both is printed: the effective number of different pictures,
by the cosines of their pixels at a side of 16, so that it counts layouts and colours.

    ... --classes "a red house:2,a blue house:2" --clip CLIP

asks for a composition instead: how many pictures show each of some texts, by the zero-shot scores
of a text-image model, CLIP, a directory or a name in the format of transformers. The pictures that
show each text are counted by the model that guides, so the count says whether guidance did what it
was asked, not what somebody sees. No published model has been run: the tests use random weights.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Literal, Optional

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent))

from config import Count, NonNegative, Seed, build  # noqa: E402
from diverse_sampling.denoiser import to_model_range, to_unit_range  # noqa: E402
from diverse_sampling.errors import SettingError, reject  # noqa: E402
from diverse_sampling.guidance.classes import LogPosterior, composition_of  # noqa: E402
from diverse_sampling.noise import Stream, set_generator  # noqa: E402
from lab.command_line import fail, make_parser, run_folder, run_program  # noqa: E402

VENDI_SIDE = 16
# Mean and standard deviation of red, green and blue, in [0, 1], that CLIP was trained with.
CLIP_COLOURS = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass
class PictureSettings:
    """Pictures"""

    model: str = ""
    """directory in diffusers' format, or a name on the hub"""
    prompt: str = ""
    """what the pictures show"""
    particles: Count = 4
    """pictures in a set, at least 2"""
    factor: Optional[NonNegative] = None
    """strength of the guidance; by default 5, or 8 with classes; 0: none"""
    classes: str = ""
    """how many pictures show each text, such as "a cat:2,a dog:2"; by default they repel"""
    clip: str = ""
    """with classes: text-image model in transformers' format, a directory or a name on the hub"""
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


def zero_shot(name: str, texts: list[str], device: torch.device) -> Callable[[Tensor], Tensor]:
    """log p(text | picture) by a text-image model, differentiable in the picture.

    Arguments:
        name: of the model
        texts: k of them
        device: where it computes

    Returns pictures (N, 3, H, W) in [0, 1] -> (N, k). Raises SettingError if there is no model.
    """
    from transformers import AutoTokenizer, CLIPModel

    try:
        clip = CLIPModel.from_pretrained(name, use_safetensors=True).eval().requires_grad_(False)
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        first = str(error).strip().split("\n")[0]
        reject("clip", name, f"a CLIP model in transformers' format ({first})")
    clip.to(device)
    words = tokenizer(texts, padding=True, truncation=True, return_tensors="pt").to(device)
    side = clip.config.vision_config.image_size
    mean, sd = (torch.tensor(each, device=device).view(3, 1, 1) for each in CLIP_COLOURS)

    def scores(pictures: Tensor) -> Tensor:
        small = torch.nn.functional.interpolate(
            pictures, (side, side), mode="bicubic", antialias=True
        )
        return clip(**words, pixel_values=(small - mean) / sd).logits_per_image.log_softmax(-1)

    return scores


def of_latents(pipe, scores: Callable[[Tensor], Tensor]) -> LogPosterior:
    """What a model of pictures says of latents: (latents (G, B, C, H, W), sigma) -> (G, B, k)."""
    vae = pipe.vae.requires_grad_(False)

    def log_posterior(x: Tensor, sigma: Tensor) -> Tensor:
        latents = x.flatten(0, 1).to(vae.dtype) / vae.config.scaling_factor
        pictures = vae.decode(latents + (vae.config.shift_factor or 0)).sample.float()
        return scores(to_unit_range(pictures)).unflatten(0, x.shape[:2])

    return log_posterior


def composition(settings: PictureSettings) -> tuple[list[str], Tensor]:
    """The texts that a set shows, and how many pictures show each, (k,) int64."""
    texts = [part.rpartition(":")[0].strip() for part in settings.classes.split(",")]
    counts = composition_of(settings.classes, texts, settings.particles)
    if counts is None or counts.is_floating_point():
        reject("classes", settings.classes, 'numbers of pictures, such as "a cat:2,a dog:2"')
    return texts, counts


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
    texts, counts = composition(settings) if settings.classes else ([], None)
    pipe = load(settings)
    classes: dict[str, Any] = {}
    if texts:
        scores = zero_shot(settings.clip, texts, pipe.device)
        classes = dict(log_posterior=of_latents(pipe, scores), counts=counts, clean=True)
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
        **classes,
        generator=[set_generator(seed, 0, Stream.SAMPLING) for seed in seeds],
    ):
        sets["guided"] = draw(pipe, settings, call)
    if texts:
        for name, pictures in sets.items():
            shown = scores(pictures.to(pipe.device)).argmax(1).bincount(minlength=len(texts))
            print(f"{name:<12} " + ", ".join(f"{text}: {n}" for text, n in zip(texts, shown)))
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
