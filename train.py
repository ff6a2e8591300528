"""Train an EDM denoiser on a MovingMNIST world.

    python train.py --config configs/circle_jumping_small.yaml
    torchrun --nproc_per_node 4 train.py --config configs/circle_jumping.yaml
    python train.py --resume runs/NAME

Writes to --outdir: config.yaml, metrics.jsonl, samples-*.png, model.safetensors (the
EMA weights, what evaluate.py reads) and state.safetensors (what --resume reads).
"""
from __future__ import annotations

import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Iterator

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

import checkpoint
from config import (DigitSettings, ModelSettings, RunSettings, SettingError, TrainSettings, WorldSettings,
                    build, dump_yaml, fail, make_parser, pick_device, record, reject, run_folder)
from data_loader import Digits, World, load_digits, make_world
from model import EDMDenoiser, edm_loss, posterior_mean, sigma_data_of
from sampler import SetNoise, edm_sampler, karras_sigmas, set_generator

GROUPS = (WorldSettings, DigitSettings, ModelSettings, TrainSettings, RunSettings)


class Optimizer:
    """Adam, or Muon for the hidden weight matrices and AdamW for the rest (Jordan et al. 2024,
    torch.optim.Muon). A convolution's kernel is one matrix, out x (in * k * k)."""

    def __init__(self, model: EDMDenoiser, settings: TrainSettings):
        ends = ("unet.stem", "unet.out", "unet.label")
        hidden = [p for name, p in model.named_parameters() if p.ndim >= 2 and not name.startswith(ends)]
        self.hidden = hidden if settings.optimizer == "muon" else []
        # torch.optim.Muon takes matrices only: give it views that share the kernels' memory.
        self.matrices = [self._matrix(p.detach()) for p in self.hidden]
        taken = {id(p) for p in self.hidden}
        rest = [p for p in model.parameters() if id(p) not in taken]
        self.parts = {"adam": torch.optim.AdamW(rest, lr=settings.lr, betas=(0.9, settings.beta2),
                                                weight_decay=settings.weight_decay, fused=True)}
        if self.hidden:
            self.parts["muon"] = torch.optim.Muon(self.matrices, lr=settings.muon_lr,
                                                  weight_decay=settings.weight_decay)
        self.base = {name: part.param_groups[0]["lr"] for name, part in self.parts.items()}

    @staticmethod
    def _matrix(tensor: Tensor) -> Tensor:
        # Kernels are channels-last, so this order is the one that needs no copy.
        return tensor.permute(0, 2, 3, 1).flatten(1) if tensor.ndim == 4 else tensor

    def step(self, scale: float) -> None:
        """One update at `scale` times the base learning rates."""
        for matrix, parameter in zip(self.matrices, self.hidden):
            matrix.grad = self._matrix(parameter.grad)
        for name, part in self.parts.items():
            part.param_groups[0]["lr"] = self.base[name] * scale
            part.step()


def learning_rate_scale(iteration: int, settings: TrainSettings) -> float:
    """Linear warm-up to 1, then constant or a cosine down to 0 at the last iteration."""
    scale = min(1.0, (iteration + 1) / max(1, settings.warmup))
    if settings.lr_schedule == "cosine":
        scale *= 0.5 * (1 + math.cos(math.pi * iteration / settings.iterations))
    return scale


def ema_decay(iteration: int, settings: TrainSettings) -> float:
    """EDM2's idea of an average over a fixed share of the training so far, capped at `ema`."""
    return min(settings.ema, (1 + iteration) / (10 + iteration))


class Training:
    """A run: network, average, optimizer. Iterating yields after every update."""

    def __init__(self, settings: dict, device: torch.device, world: World, sigma_data: float):
        self.settings, self.all_settings = build(TrainSettings, settings), settings
        self.device, self.world, self.seed = device, world, settings["seed"]
        self.rank, self.ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        torch.manual_seed(self.seed)
        self.net = checkpoint.make_denoiser(settings, sigma_data).to(device)
        self.net.autocast = device.type == "cuda" and torch.cuda.is_bf16_supported()
        self.ema = checkpoint.make_denoiser(settings, sigma_data).to(device).eval().requires_grad_(False)
        self.ema.load_state_dict(self.net.state_dict())
        self.optimizer = Optimizer(self.net, self.settings)
        self.parallel = DistributedDataParallel(self.net) if self.ranks > 1 else self.net
        self.iteration, self.seconds = 0, 0.0

    def batch(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """This rank's share of iteration's global batch: noisy frames x, sigma, target, cond, labels.
        Every rank draws the whole batch and keeps a slice, so ranks do not change the data."""
        n, s = self.settings.batch_size, self.settings
        generator = set_generator(self.seed, self.iteration, stream=2, device=self.device)
        windows = self.world.windows(n, generator)
        cond, target = (2 * frames - 1 for frames in windows.split(self.world.num_cond_frames))
        sigma = (torch.randn(n, generator=generator, device=self.device) * s.p_std + s.p_mean).exp()
        noise = torch.randn(target.shape, generator=generator, device=self.device)
        x = target + sigma[:, None, None, None] * noise
        if s.target == "posterior":
            answers = 2 * self.world.futures(windows)[:, :, None] - 1               # (n, k, 1, H, W)
            prior = self.world.mode_probabilities.log().float().to(self.device)
            target = posterior_mean(x[:, None], sigma, answers, prior)[:, 0]
        labels = windows.labels[:, 0]
        if self.net.unet.label is not None:  # one in ten is trained without its label
            dropped = torch.rand(n, generator=generator, device=self.device) < 0.1
            labels = labels.masked_fill(dropped, self.net.unet.num_classes)
        mine = slice(self.rank, None, self.ranks)
        return tuple(t[mine] for t in (x, sigma, target, cond, labels))

    def __iter__(self) -> Iterator[dict]:
        """Yields {iteration, loss, grad_norm, lr_scale} after every update."""
        while self.iteration < self.settings.iterations:
            start = time.perf_counter()
            x, sigma, target, cond, labels = self.batch()
            loss = edm_loss(self.parallel, x, sigma, target, self.net.sigma_data,
                            cond=cond if cond.shape[1] else None,
                            labels=labels if self.net.unet.label is not None else None).mean()
            self.net.zero_grad(set_to_none=True)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(self.net.parameters(), self.settings.clip_grad)
            scale = learning_rate_scale(self.iteration, self.settings)
            self.optimizer.step(scale)
            torch._foreach_lerp_(list(self.ema.parameters()), list(self.net.parameters()),
                                 1 - ema_decay(self.iteration, self.settings))
            self.iteration += 1
            self.seconds += time.perf_counter() - start
            yield dict(iteration=self.iteration, loss=loss.detach(), grad_norm=norm, lr_scale=scale)

    # ------------------------------------------------------------ files
    def metadata(self) -> dict:
        return dict(settings=self.all_settings, sigma_data=float(self.net.sigma_data),
                    iteration=self.iteration, train_seconds=round(self.seconds, 1),
                    parameters=sum(p.numel() for p in self.net.parameters()),
                    digits_source=self.world.digits.source, torch=torch.__version__,
                    machine=machine_name(self.device, self.ranks))

    def save(self, outdir: Path) -> None:
        tensors, groups = {}, {}
        for name, part in self.optimizer.parts.items():
            packed, groups[name] = checkpoint.pack(f"optimizer.{name}", part.state_dict())
            tensors |= packed
        tensors |= {f"net.{k}": v for k, v in self.net.state_dict().items()}
        tensors |= {f"ema.{k}": v for k, v in self.ema.state_dict().items()}
        checkpoint.save_tensors(outdir / "state.safetensors", tensors, self.metadata() | dict(groups=groups))
        half = {k: v.half() if k != "sigma_data" else v for k, v in self.ema.state_dict().items()}
        checkpoint.save_tensors(outdir / "model.safetensors", half, self.metadata())

    def load(self, outdir: Path) -> None:
        path = outdir / "state.safetensors"
        metadata, tensors = checkpoint.read_metadata(path), checkpoint.read_tensors(path)
        for prefix, module in (("net.", self.net), ("ema.", self.ema)):
            module.load_state_dict({k[len(prefix):]: v for k, v in tensors.items() if k.startswith(prefix)})
        for name, part in self.optimizer.parts.items():
            part.load_state_dict(checkpoint.unpack(f"optimizer.{name}", tensors, metadata["groups"][name]))
        self.iteration, self.seconds = metadata["iteration"], metadata["train_seconds"]


def machine_name(device: torch.device, ranks: int) -> str:
    if device.type == "cuda":
        return f"{ranks} x {torch.cuda.get_device_name(device)}"
    return f"{ranks} x CPU, {torch.get_num_threads()} threads"


def sample_sheet(training: Training, path: Path) -> None:
    """Four i.i.d. sets of eight from the EMA weights: a glance at how far the training is."""
    from figures import sample_sheet as draw, save

    windows = training.world.windows(4, set_generator(training.seed, 0, device=training.device))
    cond, _ = windows.split(training.world.num_cond_frames)
    side = training.world.image_size
    noise = SetNoise(training.seed, range(4), (8, 1, side, side), training.device)
    sigmas = karras_sigmas(18, 0.002, 80.0, 7.0)
    with torch.no_grad():
        denoise = training.ema.bind(cond * 2 - 1 if cond.shape[1] else None)
        images = edm_sampler(denoise, noise() * sigmas[0], sigmas)
    save(draw(cond, (images[:, :, 0] + 1) / 2, title=f"iteration {training.iteration}, i.i.d. samples"), path)


def start_wandb(settings: TrainSettings, everything: dict, outdir: Path):
    if settings.wandb == "disabled":
        return None
    import wandb

    return wandb.init(project="diverse-diffusion", dir=outdir, mode=settings.wandb, config=everything,
                      name=outdir.name)


def run(training: Training, outdir: Path, tracker=None) -> None:
    """The loop around the loop: progress, records, sheets, checkpoints."""
    settings, mean = training.settings, None
    main = training.rank == 0
    bar = tqdm(total=settings.iterations, initial=training.iteration, unit="it", disable=not main)
    images, clock = 0, time.perf_counter()
    with open(outdir / "metrics.jsonl", "a") as log:
        for step in training:
            bar.update()
            images += settings.batch_size
            i, last = step["iteration"], step["iteration"] == settings.iterations
            if i % settings.log_every == 0 or last:
                loss = float(step["loss"])
                mean = loss if mean is None else 0.9 * mean + 0.1 * loss
                rate = images / (time.perf_counter() - clock)
                images, clock = 0, time.perf_counter()
                bar.set_postfix_str(f"loss {mean:.4f}, {rate:.0f} img/s")
                if main:
                    line = dict(iteration=i, loss=loss, grad_norm=float(step["grad_norm"]),
                                lr_scale=step["lr_scale"], images_per_second=round(rate, 1))
                    log.write(json.dumps(line) + "\n")
                    log.flush()
                    if tracker is not None:
                        tracker.log(line, step=i)
            if main and (i % settings.save_every == 0 or last):
                training.save(outdir)
            if main and (settings.sample_every and i % settings.sample_every == 0 or last):
                path = outdir / f"samples-{i:07d}.png"
                sample_sheet(training, path)
                if tracker is not None:
                    import wandb
                    tracker.log({"samples": wandb.Image(str(path))}, step=i)
    bar.close()


def load_bank(digits: DigitSettings, world: WorldSettings) -> Digits:
    """Training digits: one source, or "both" mixed one to one."""
    def bank(source):
        return load_digits(source, "train", size=world.digit_size, data_root=digits.data_root,
                           timeout=digits.download_timeout)
    return bank("mnist").mixed_with(bank("embedded")) if digits.digits == "both" else bank(digits.digits)


def setup(argv: list[str] | None) -> tuple[Training, Path, dict]:
    """Settings, ranks, data and network of one run; continues the run that --resume names."""
    parser = make_parser(*GROUPS, description=__doc__.split("\n")[0])
    args = parser.parse_args(argv)
    state = Path(args.resume, "state.safetensors") if args.resume else None
    if state is not None:
        parser.set_defaults(checkpoint.read_metadata(state)["settings"])
        args = parser.parse_args(argv)
    groups = [build(group, args) for group in GROUPS]
    world_settings, digits, model, settings, run_settings = groups
    everything = record(*groups)

    if settings.target == "posterior" and (world_settings.dataset != "circle_jumping"
                                           or world_settings.num_digits > 1):
        reject("target", "posterior", "drawn in this world; posterior needs circle_jumping with one digit")
    device = pick_device(run_settings.device)
    if "RANK" in os.environ:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(device)
    world = make_world(world_settings, load_bank(digits, world_settings).to(device))
    sigma_data = model.sigma_data or sigma_data_of(world.windows(
        2048, set_generator(run_settings.seed, 0, stream=3, device=device)).frames)
    training = Training(everything, device, world, sigma_data)
    if state is not None:
        training.load(state.parent)
        outdir = state.parent
    else:
        outdir = run_folder(run_settings.outdir, f"train-{world.dataset}")
    if settings.batch_size % training.ranks:
        raise SettingError(f"batch_size: got {settings.batch_size}; accepted: a multiple of the "
                           f"{training.ranks} processes")
    return training, outdir, everything


def main(argv: list[str] | None = None) -> None:
    try:
        training, outdir, everything = setup(argv)
    except (SettingError, FileNotFoundError, ValueError) as error:
        fail(str(error))
    tracker = None
    if training.rank == 0:
        dump_yaml(everything, outdir / "config.yaml")
        meta = training.metadata()
        print(f"{meta['parameters']:,} parameters, sigma_data {meta['sigma_data']:.3f}, digits: "
              f"{meta['digits_source']}, on {meta['machine']}, writing to {outdir}", file=sys.stderr)
        tracker = start_wandb(training.settings, everything, outdir)
    run(training, outdir, tracker)
    if tracker is not None:
        tracker.finish()
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
