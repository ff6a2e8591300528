"""Sample sets from a trained (or exact) denoiser, with or without guidance, and judge them.

    python evaluate.py --task conditional --dataset circle_jumping --pg_factor 1.7 --batch_size 8
    python evaluate.py --config runs/NAME/config.yaml     # the same run again

Writes to --outdir: metrics.json, samples.png, samples.npz, config.yaml.
"""
from __future__ import annotations

import json
import math
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any, Callable, Iterable

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import checkpoint
from config import (DigitSettings, EvaluateSettings, GuidanceSettings, RunSettings, SamplerSettings,
                    SettingError, WorldSettings, build, dump_yaml, fail, make_parser, pick_device, record,
                    reject, run_folder)
from data_loader import Sequences, World, load_digits, make_world
from guidance import POTENTIALS, Denoiser, ParticleGuidance
from metrics import judge
from model import posterior_mean
from sampler import SetNoise, edm_sampler, karras_sigmas, set_generator

GROUPS = (EvaluateSettings, WorldSettings, DigitSettings, SamplerSettings, GuidanceSettings, RunSettings)
PARTICLES_PER_CALL = dict(cpu=256, cuda=8192)  # of one network call; results do not depend on it


def guide(denoise: Denoiser, settings: GuidanceSettings) -> Denoiser:
    """Wrap a denoiser in the guidance that the settings describe; factor 0 leaves it as it is."""
    if settings.pg_factor == 0:
        return denoise
    return ParticleGuidance(denoise, POTENTIALS[settings.pg_kernel](settings.pg_bandwidth),
                            factor=settings.pg_factor, space=settings.pg_space,
                            strength=settings.pg_strength, sigma_min=settings.pg_sigma_min,
                            sigma_max=settings.pg_sigma_max)


class Job:
    """Everything one evaluation needs. Set g is always the same: its digit, its frames and its
    noise follow from (seed, g) alone."""

    def __init__(self, settings: dict[type, Any], world: World, bind: Callable[[Sequences], Denoiser],
                 device: torch.device):
        self.settings, self.world, self.bind, self.device = settings, world, bind, device
        self.evaluate, self.sampler = settings[EvaluateSettings], settings[SamplerSettings]
        self.guidance, self.seed = settings[GuidanceSettings], settings[RunSettings].seed
        self.sequences = self._draw_sets()
        self.sigmas = karras_sigmas(self.sampler.num_steps, self.sampler.sigma_min, self.sampler.sigma_max,
                                    self.sampler.rho)

    def _draw_sets(self) -> Sequences:
        """One window per set, on the CPU, each with a test digit of its own as long as they last."""
        bank, K = len(self.world.digits.labels), self.world.num_digits
        order = torch.randperm(bank, generator=torch.Generator().manual_seed(self.seed))
        which = order[torch.arange(self.evaluate.num_sets * K) % bank].view(-1, 1, K)
        at_choice = self.world.modes_total is not None
        return Sequences.cat([self.world.windows(1, set_generator(self.seed, g), at_choice=at_choice,
                                                 which=which[g]) for g in range(self.evaluate.num_sets)])

    def sample(self, sets: range, callback: Callable[[dict], None] | None = None) -> Tensor:
        """Sample these sets in one go -> (G, B, H, W) on the CPU, in [0, 1] up to what the network
        overshoots. `callback` sees every step of the sampler."""
        side, s = self.world.image_size, self.sampler
        noise = SetNoise(self.seed, sets, (self.evaluate.batch_size, 1, side, side), self.device)
        denoise = guide(self.bind(self.sequences[sets.start:sets.stop]), self.guidance)
        with torch.no_grad():
            x = edm_sampler(denoise, noise() * self.sigmas[0], self.sigmas, s_churn=s.s_churn, s_min=s.s_min,
                            s_max=s.s_max, s_noise=s.s_noise, noise=noise, callback=callback)
        return ((x[:, :, 0] + 1) / 2).cpu()

    def sample_all(self) -> Tensor:
        """All sets, in as few calls as memory allows, with a progress bar over the steps."""
        total, steps = self.evaluate.num_sets, self.sampler.num_steps
        chunk = max(1, PARTICLES_PER_CALL[self.device.type] // self.evaluate.batch_size)
        chunks = [range(start, min(start + chunk, total)) for start in range(0, total, chunk)]
        with tqdm(total=len(chunks) * steps, unit="step", desc=f"{total} sets of {self.evaluate.batch_size}") as bar:
            return torch.cat([self.sample(sets, callback=lambda _: bar.update()) for sets in chunks])

    def judge(self, samples: Tensor) -> tuple[dict, Tensor | None]:
        """Metrics of all sets, and each particle's mode (G, B) where the world has modes."""
        cond, _ = self.sequences.split(self.world.num_cond_frames)
        directions = self.world.modes_total is not None
        return judge(samples, cond, offsets=self.world.offsets if directions else None,
                     probabilities=self.world.mode_probabilities, undetermined=self.sequences.choices[:, -1])


# ---------------------------------------------------------------- set-up

def bind_network(net, num_cond: int, device, sequences: Sequences) -> Denoiser:
    cond, _ = sequences.split(num_cond)
    labels = sequences.labels[:, 0].to(device) if net.unet.label is not None else None
    return net.bind((cond * 2 - 1).to(device) if num_cond else None, labels)


def bind_exact(world: World, device, sequences: Sequences) -> Denoiser:
    images = (world.futures(sequences)[:, :, None] * 2 - 1).to(device)              # (G, k, 1, H, W)
    log_prior = world.mode_probabilities.log().float().to(device)
    return lambda x, sigma: posterior_mean(x, sigma, images, log_prior)


def default_checkpoint(dataset: str) -> Path:
    return Path(__file__).parent / "checkpoints" / f"{dataset}.safetensors"


def parse(argv: list[str] | None) -> tuple[dict[type, Any], Path | None]:
    """Settings by group, and the checkpoint (None with the exact denoiser). World settings that
    nobody gave are those of the checkpoint's training."""
    parser = make_parser(*GROUPS, description=__doc__.split("\n")[0])
    args = parser.parse_args(argv)
    path, trained = None, {}
    if args.task == "unconditional" or args.dataset == "centered":
        key = "task" if args.task == "unconditional" else "dataset"
        reject(key, args[key], "the conditional task on free, circle_jumping or horizontal; judging "
                               "unconditional digits needs a classifier, which is not there yet")
    if args.denoiser == "trained":
        path = Path(args.checkpoint or default_checkpoint(args.dataset))
        if not path.is_file():
            reject("checkpoint", str(path), "a .safetensors file that train.py wrote, or --denoiser exact")
        trained = checkpoint.read_metadata(path)["settings"]
        parser.set_defaults({key: trained[key] for key in record(WorldSettings()) if key in trained})
        args = parser.parse_args(argv)
    settings = {group: build(group, args) for group in GROUPS}
    check(settings, trained)
    return settings, path


def check(settings: dict[type, Any], trained: dict) -> None:
    """What no single group can know. Raises SettingError."""
    world = settings[WorldSettings]
    for key in ("dataset", "image_size", "num_cond_frames"):
        if trained and trained[key] != getattr(world, key):
            reject(key, getattr(world, key), f"{trained[key]!r}, which the checkpoint was trained with")
    if settings[EvaluateSettings].denoiser == "exact" and (world.dataset == "free" or world.num_digits > 1):
        reject("denoiser", "exact", "trained for this world; exact needs circle_jumping or horizontal "
                                    "with one digit")


def setup(argv: list[str] | None = None) -> Job:
    """The job that a command line describes. Raises SettingError or FileNotFoundError."""
    settings, path = parse(argv)
    world_settings, digits = settings[WorldSettings], settings[DigitSettings]
    device = pick_device(settings[RunSettings].device)
    source = "auto" if digits.digits == "both" else digits.digits
    bank = load_digits(source, "test", size=world_settings.digit_size, data_root=digits.data_root,
                       timeout=digits.download_timeout)
    digits.digits = bank.source  # what was used, so that config.yaml repeats it
    world = make_world(world_settings, bank)
    if path is None:
        return Job(settings, world, partial(bind_exact, world, device), device)
    net, _ = checkpoint.load_denoiser(path, device)
    net.autocast = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return Job(settings, world, partial(bind_network, net, world.num_cond_frames, device), device)


# ---------------------------------------------------------------- report

def table(result: dict) -> str:
    """The handful of numbers a reader wants first."""
    def line(name: str, key: str, digits: int = 2, source: dict = result) -> Iterable[str]:
        if source.get(key):
            lo, hi = source[key]["ci95"]
            yield f"  {name:<24}{source[key]['mean']:8.{digits}f}   [{lo:.{digits}f}, {hi:.{digits}f}]"

    rows = [f"  {'':<24}{'mean':>8}   95% interval"]
    rows += line(f"modes found, of {result['modes_total']}", "modes_found")
    if result["modes_total"]:
        rows.append(f"  {'  independent draws':<24}{result['modes_expected_iid']:8.2f}   expected")
    if result["dataset"] == "horizontal":
        rows += line("p(right)", 0, 3, dict(enumerate(result["mode_frequencies"])))
    rows += line("quality (L2, less is better)"[:24], "quality")
    for name in ("unimode", "multimode"):
        for key in ("centroid_spread", "pairwise_l2"):
            rows += line(f"{name} {key}"[:24], key, 2, result.get(name, {}))
    rows.append(f"  {'seconds':<24}{result['seconds']:8.1f}")
    return "\n".join(rows)


def write(job: Job, samples: Tensor, modes: Tensor | None, result: dict, outdir: Path) -> None:
    from figures import result_sheet, save

    cond, _ = job.sequences.split(job.world.num_cond_frames)
    arrays = dict(samples=samples, cond=cond, labels=job.sequences.labels, positions=job.sequences.positions,
                  choices=job.sequences.choices) | ({} if modes is None else dict(modes=modes))
    np.savez_compressed(outdir / "samples.npz", **{key: value.numpy() for key, value in arrays.items()})
    save(result_sheet(cond, samples, modes, result), outdir / "samples.png")
    dump_yaml(result["settings"], outdir / "config.yaml")
    (outdir / "metrics.json").write_text(json.dumps(result, indent=1))


def run(job: Job) -> tuple[Tensor, Tensor | None, dict]:
    """Sample and judge: (samples (G, B, H, W), modes (G, B) or None, the record for metrics.json)."""
    start = time.perf_counter()
    samples = job.sample_all()
    seconds = time.perf_counter() - start
    metrics, modes = job.judge(samples)
    settings = record(*job.settings.values()) | dict(outdir=None)
    result = dict(task=job.evaluate.task, dataset=job.world.dataset, **metrics,
                  num_sets=job.evaluate.num_sets, batch_size=job.evaluate.batch_size,
                  digits_source=job.world.digits.source, seconds=round(seconds, 3), settings=settings,
                  device=str(job.device), torch=torch.__version__)
    return samples, modes, result


def main(argv: list[str] | None = None) -> None:
    try:
        job = setup(argv)
        outdir = run_folder(job.settings[RunSettings].outdir, f"{job.evaluate.task}-{job.world.dataset}")
    except (SettingError, FileNotFoundError, ValueError) as error:
        fail(str(error))
    print(f"{job.evaluate.denoiser} denoiser, digits: {job.world.digits.source} (test split), on {job.device}, "
          f"{'guided' if job.guidance.pg_factor else 'independent'} sets", file=sys.stderr)
    samples, modes, result = run(job)
    write(job, samples, modes, result, outdir)
    if not math.isfinite(result["quality"]["mean"]):
        print("WARNING: some samples are not finite; less guidance helps", file=sys.stderr)
    print(table(result))
    print(f"written to {outdir}")


if __name__ == "__main__":
    main()
