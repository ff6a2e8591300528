"""A training run: batches, optimizer, average of the weights, and the files to go on from.

Iterating over a `Training` yields its state after every update; progress, records and
sample sheets live outside, in train.py.
"""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import checkpoint
from config import ModelSettings, OptimizationSettings, build, reject
from devices import machine_name, use_bfloat16
from model import edm_loss, inside, lit_box, posterior_mean, sigma_data_of
from noise import set_generator
from worlds import World

STATE, PREVIOUS = "state.safetensors", "state-previous.safetensors"
PATIENCE = 10  # updates in a row without a finite gradient after which a training has failed


class Diverged(RuntimeError):
    """The gradient has not been finite for PATIENCE updates in a row."""


class Optimizer:
    """AdamW, or Muon for the hidden weight matrices and AdamW for the rest (Jordan et al. 2024,
    torch.optim.Muon). A convolution's kernel is one matrix, out x (in * k * k); `ends` are the names
    with which the first and last layers start, which are not hidden."""

    def __init__(
        self,
        model: nn.Module,
        *,
        muon: bool,
        lr: float,
        muon_lr: float,
        beta2: float = 0.99,
        weight_decay: float = 0.0,
        ends: tuple[str, ...] = (),
    ):
        hidden = [
            p for name, p in model.named_parameters() if p.ndim >= 2 and not name.startswith(ends)
        ]
        self.hidden = hidden if muon else []
        # torch.optim.Muon takes matrices only: give it views that share the kernels' memory.
        self.matrices = [self._matrix(p.detach()) for p in self.hidden]
        taken = {id(p) for p in self.hidden}
        rest = [p for p in model.parameters() if id(p) not in taken]
        self.parts: dict[str, torch.optim.Optimizer] = {
            "adam": torch.optim.AdamW(
                rest, lr=lr, betas=(0.9, beta2), weight_decay=weight_decay, fused=True
            )
        }
        if self.hidden:
            self.parts["muon"] = torch.optim.Muon(
                self.matrices, lr=muon_lr, weight_decay=weight_decay
            )
        self.base = {name: part.param_groups[0]["lr"] for name, part in self.parts.items()}

    @staticmethod
    def _matrix(tensor: Tensor) -> Tensor:
        # Kernels are channels-last, so this order is the one that needs no copy.
        return tensor.permute(0, 2, 3, 1).flatten(1) if tensor.ndim == 4 else tensor

    def step(self, scale: float) -> None:
        """One update at `scale` times the base learning rates."""
        for matrix, parameter in zip(self.matrices, self.hidden):
            assert parameter.grad is not None  # the loss depends on every weight
            matrix.grad = self._matrix(parameter.grad)
        for name, part in self.parts.items():
            part.param_groups[0]["lr"] = self.base[name] * scale
            part.step()


def learning_rate_scale(iteration: int, settings: OptimizationSettings) -> float:
    """Linear warm-up to 1, then constant or a cosine down to 0 at the last iteration."""
    scale = min(1.0, (iteration + 1) / max(1, settings.warmup))
    if settings.lr_schedule == "cosine":
        scale *= 0.5 * (1 + math.cos(math.pi * iteration / settings.iterations))
    return scale


def ema_decay(iteration: int, settings: OptimizationSettings) -> float:
    """EDM2's idea of an average over a fixed share of the training so far, capped at `ema`."""
    return min(settings.ema, (1 + iteration) / (10 + iteration))


class Training:
    """A run: network, average, optimizer. Iterating yields after every update."""

    def __init__(self, settings: dict, device: torch.device, world: World):
        self.settings, self.all_settings = build(OptimizationSettings, settings), settings
        self.device, self.world, self.seed = device, world, settings["seed"]
        self.rank, self.ranks = (
            (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        )
        measured = self._measure()
        torch.manual_seed(self.seed)
        self.net = checkpoint.make_denoiser(settings, *measured).to(device)
        self.net.autocast = use_bfloat16(settings["precision"], device)
        self.ema = (
            checkpoint.make_denoiser(settings, *measured).to(device).eval().requires_grad_(False)
        )
        self.ema.load_state_dict(self.net.state_dict())
        s = self.settings
        self.optimizer = Optimizer(
            self.net,
            muon=s.optimizer == "muon",
            lr=s.lr,
            muon_lr=s.muon_lr,
            beta2=s.beta2,
            weight_decay=s.weight_decay,
            ends=("unet.stem", "unet.out", "unet.label"),
        )
        if settings["compile"]:
            self.net.compile()
        self.parallel = DistributedDataParallel(self.net) if self.ranks > 1 else self.net
        self.iteration, self.seconds, self.skipped = 0, 0.0, 0

    def _measure(self) -> tuple[float, tuple[int, int, int, int] | None]:
        """sigma_data, unless it is set, and the box of the frame to work on, with --crop."""
        model = build(ModelSettings, self.all_settings)
        frames = self.world.windows(
            2048, set_generator(self.seed, 0, stream=3, device=self.device)
        ).frames
        box = lit_box(frames, model.multiple) if model.crop else None
        return model.sigma_data or sigma_data_of(inside(frames, box)), box

    def batch(self) -> tuple[Tensor, ...]:
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
            answers = 2 * self.world.futures(windows)[:, :, None] - 1  # (n, k, 1, H, W)
            prior = self.world.mode_probabilities
            assert prior is not None  # train.py lets no other world here
            target = posterior_mean(
                x[:, None], sigma, answers, prior.log().float().to(self.device)
            )[:, 0]
        labels = windows.labels[:, 0]
        if self.net.unet.label is not None:  # one in ten is trained without its label
            dropped = torch.rand(n, generator=generator, device=self.device) < 0.1
            labels = labels.masked_fill(dropped, self.net.unet.num_classes)
        mine = slice(self.rank, None, self.ranks)
        return tuple(t[mine] for t in (x, sigma, target, cond, labels))

    def __iter__(self) -> Iterator[dict]:
        """Yields {iteration, loss, grad_norm, lr_scale} after every update. An update whose gradient is not finite
        is left out; raises Diverged after PATIENCE of them in a row."""
        while self.iteration < self.settings.iterations:
            start = time.perf_counter()
            loss = self.backward()
            norm = torch.nn.utils.clip_grad_norm_(self.net.parameters(), self.settings.clip_grad)
            scale = learning_rate_scale(self.iteration, self.settings)
            if norm.isfinite():
                self.optimizer.step(scale)
                torch._foreach_lerp_(
                    list(self.ema.parameters()),
                    list(self.net.parameters()),
                    1 - ema_decay(self.iteration, self.settings),
                )
                self.skipped = 0
            else:
                self.skipped += 1
            if self.skipped == PATIENCE:
                raise Diverged(
                    f"no finite gradient in {PATIENCE} updates up to {self.iteration + 1}"
                )
            self.iteration += 1
            self.seconds += time.perf_counter() - start
            yield dict(iteration=self.iteration, loss=loss, grad_norm=norm, lr_scale=scale)

    def backward(self) -> Tensor:
        """The gradient of the mean loss over iteration's global batch; returns that loss, a scalar."""
        self.net.zero_grad(set_to_none=True)
        parts = self.settings.accumulate
        total = torch.zeros((), device=self.device)
        for part, tensors in enumerate(zip(*(tensor.chunk(parts) for tensor in self.batch()))):
            x, sigma, target, cond, labels = tensors
            # Ranks exchange gradients once, with the last part.
            with (
                self.parallel.no_sync()
                if isinstance(self.parallel, DistributedDataParallel) and part < parts - 1
                else nullcontext()
            ):
                loss = (
                    edm_loss(
                        self.parallel,
                        x,
                        sigma,
                        target,
                        self.net.sigma_data,
                        cond=cond if cond.shape[1] else None,
                        labels=labels if self.net.unet.label is not None else None,
                    ).mean()
                    / parts
                )
                loss.backward()
            total += loss.detach()
        if self.ranks > 1:
            dist.all_reduce(total)
        return total / self.ranks

    # ------------------------------------------------------------ files
    def metadata(self) -> dict:
        """What a checkpoint says about itself, for JSON."""
        return dict(
            settings=self.all_settings | dict(outdir=None, resume=None),
            sigma_data=float(self.net.sigma_data),
            box=self.net.box,
            iteration=self.iteration,
            train_seconds=round(self.seconds, 1),
            parameters=sum(p.numel() for p in self.net.parameters()),
            digits_source=self.world.source,
            torch=torch.__version__,
            machine=machine_name(self.device, self.ranks),
        )

    def save(self, outdir: Path) -> None:
        """Write the state and the EMA network, each file whole or as it was. Raises OSError."""
        tensors: dict[str, Tensor] = {}
        groups: dict[str, list[dict]] = {}
        for name, part in self.optimizer.parts.items():
            packed, groups[name] = checkpoint.pack(f"optimizer.{name}", part.state_dict())
            tensors |= packed
        tensors |= {f"net.{k}": v for k, v in self.net.state_dict().items()}
        tensors |= {f"ema.{k}": v for k, v in self.ema.state_dict().items()}
        checkpoint.save_tensors(
            outdir / STATE, tensors, self.metadata() | dict(groups=groups), outdir / PREVIOUS
        )
        checkpoint.save_tensors(
            outdir / "model.safetensors", checkpoint.halved(self.ema), self.metadata()
        )

    def load(self, path: Path) -> None:
        """Go on from a state. Raises SettingError."""
        metadata, tensors = checkpoint.read_metadata(path), checkpoint.read_tensors(path)
        try:
            for prefix, module in (("net.", self.net), ("ema.", self.ema)):
                module.load_state_dict(
                    {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
                )
            for name, part in self.optimizer.parts.items():
                part.load_state_dict(
                    checkpoint.unpack(f"optimizer.{name}", tensors, metadata["groups"][name])
                )
        except (KeyError, RuntimeError, ValueError) as error:
            reject(
                "resume",
                str(path),
                f"the state of a training with these settings "
                f"({str(error).splitlines()[-1].strip()})",
            )
        for part in self.optimizer.parts.values():
            for parameter, state in part.state.items():
                for key, value in state.items():
                    if (
                        value.shape == parameter.shape
                    ):  # fused optimizers want the parameter's memory layout
                        state[key] = torch.empty_like(parameter).copy_(value)
        self.iteration, self.seconds = metadata["iteration"], metadata["train_seconds"]
