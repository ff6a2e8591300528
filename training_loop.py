"""A training run: batches, optimizer, average of the weights, and the files to continue from.

Iterating over a `Training` yields its state after every update; progress, records and sample sheets
live outside, in train.py.
"""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ContextManager, Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import checkpoint
from config import OptimizationSettings, TrainingSettings, reject
from devices import machine_name, use_bfloat16
from model import edm_loss, inside, lit_box, posterior_mean, sigma_data_of
from muon import Muon
from noise import Stream, set_generator
from own_frames import OwnFrames
from ranges import to_model_range
from worlds import MovingDigits, Sequences, World

STATE = "state.safetensors"
PREVIOUS = "state-previous.safetensors"
MODEL = "model.safetensors"
PATIENCE = 10  # updates in a row without a finite gradient after which a training has failed
MEASURED_WINDOWS = 2048  # on which sigma_data and the crop are measured
LABEL_DROPOUT = 0.1  # share of images that are trained without their label


class Diverged(RuntimeError):
    """The gradient has not been finite for PATIENCE updates in a row."""


class Optimizer:
    """AdamW, or Muon for the hidden weight matrices and AdamW for the rest.

    Muon: `muon.py`. A convolution's kernel counts as one matrix, out x
    (in * k * k).

    Arguments:
        model: the network
        muon: whether Muon takes the hidden matrices
        lr: learning rate of AdamW
        muon_lr: learning rate of Muon
        beta2: AdamW's second-moment decay, per update
        weight_decay: decoupled weight decay, per update and unit of learning rate
        ends: how the names of the first and last layers start; these are not hidden
    """

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
            parameter
            for name, parameter in model.named_parameters()
            if parameter.ndim >= 2 and not name.startswith(ends)
        ]
        self.hidden = hidden if muon else []
        # Muon takes matrices only: give it views that share the kernels' memory.
        self.matrices = [self._matrix(parameter.detach()) for parameter in self.hidden]
        taken = {id(parameter) for parameter in self.hidden}
        rest = [parameter for parameter in model.parameters() if id(parameter) not in taken]
        self.parts: dict[str, torch.optim.Optimizer] = {
            "adam": torch.optim.AdamW(
                rest, lr=lr, betas=(0.9, beta2), weight_decay=weight_decay, fused=True
            )
        }
        if self.hidden:
            self.parts["muon"] = Muon(self.matrices, lr=muon_lr, weight_decay=weight_decay)
        self.base = {name: part.param_groups[0]["lr"] for name, part in self.parts.items()}

    @staticmethod
    def _matrix(tensor: Tensor) -> Tensor:
        """A kernel (out, in, k, k) as a matrix (out, k * k * in), other tensors as they are."""
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
    """The factor on the learning rate: a linear warm-up to 1, then constant or a cosine to 0."""
    scale = min(1.0, (iteration + 1) / max(1, settings.warmup))
    if settings.lr_schedule == "cosine":
        scale *= 0.5 * (1 + math.cos(math.pi * iteration / settings.iterations))
    return scale


def ema_decay(iteration: int, settings: OptimizationSettings) -> float:
    """The decay of the average of the weights: at first an average over a fixed share of the
    training so far (as in EDM2, Karras et al. 2024, arXiv 2312.02696), at most `ema`."""
    return min(settings.ema, (1 + iteration) / (10 + iteration))


class Training:
    """One training run: a network, the average of its weights, an optimizer and the random streams.

    Iterating over it makes the updates that are left, and yields after each. With torch.distributed
    every process holds one, and the processes share each batch.

    Arguments:
        settings: all settings of the run
        device: where it is computed
        world: what it is trained on, on that device
    """

    def __init__(self, settings: TrainingSettings, device: torch.device, world: World):
        self.settings = settings
        self.device = device
        self.world = world
        self.seed = settings.run.seed
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.ranks = dist.get_world_size() if dist.is_initialized() else 1
        self.iteration = 0  # updates so far
        self.seconds = 0.0  # of all updates
        self.skipped = 0  # updates in a row without a finite gradient

        sigma_data, box = self._measure()
        channels = (world.cond_channels, world.answer_channels)
        network = (channels, settings.model, sigma_data, box)
        torch.manual_seed(self.seed)  # of initial weights and dropout
        self.net = checkpoint.make_denoiser(*network).to(device)
        self.net.autocast = use_bfloat16(settings.run.precision, device)
        self.ema = checkpoint.make_denoiser(*network).to(device)
        self.ema.eval().requires_grad_(False)
        self.ema.load_state_dict(self.net.state_dict())
        self.optimizer = Optimizer(
            self.net,
            muon=settings.train.optimizer == "muon",
            lr=settings.train.lr,
            muon_lr=settings.train.muon_lr,
            beta2=settings.train.beta2,
            weight_decay=settings.train.weight_decay,
            ends=("unet.stem", "unet.out", "unet.label"),
        )
        if settings.run.compile:
            self.net.compile()
        self.parallel = DistributedDataParallel(self.net) if self.ranks > 1 else self.net

    def _measure(self) -> tuple[float, tuple[int, int, int, int] | None]:
        """sigma_data, unless it is set, and with --crop the box of the frame to work on."""
        model = self.settings.model
        generator = set_generator(self.seed, 0, Stream.DATA_SCALE, self.device)
        frames = self.world.windows(MEASURED_WINDOWS, generator).frames
        box = lit_box(frames, model.multiple) if model.crop else None
        return model.sigma_data or sigma_data_of(inside(frames, box)), box

    def parts(self, windows: Sequences) -> tuple[Tensor, Tensor]:
        """Conditioning frames (n, Cc, H, W) and answers (n, C, H, W) of windows, in [0, 1]."""
        return windows.split(self.world.cond_channels, self.world.answer_channels)

    def batch(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """This process's share of the batch of the next update.

        Every process draws the whole batch and keeps a slice of it, so the number of processes does
        not change the data.

        Returns noisy frames x (n, C, H, W), sigma (n,), target (n, C, H, W), conditioning frames
        (n, Cc, H, W) and labels (n,); frames are in [-1, 1], x plus noise.
        """
        settings = self.settings.train
        n = settings.batch_size
        generator = set_generator(self.seed, self.iteration, Stream.TRAINING, self.device)
        windows = self.world.windows(n, generator)
        cond, target = map(to_model_range, self.parts(windows))
        normal = torch.randn(n, generator=generator, device=self.device)
        sigma = (normal * settings.p_std + settings.p_mean).exp()
        noise = torch.randn(target.shape, generator=generator, device=self.device)
        x = target + sigma[:, None, None, None] * noise
        if settings.target == "posterior":
            assert isinstance(self.world, MovingDigits)  # train.py refuses all other worlds
            answers = to_model_range(self.world.futures(windows)[:, :, None])  # (n, k, 1, H, W)
            prior = self.world.mode_probabilities
            assert prior is not None
            log_prior = prior.log().float().to(self.device)
            target = posterior_mean(x[:, None], sigma, answers, log_prior)[:, 0]
        labels = windows.labels[:, 0]
        if self.net.unet.label is not None:
            uniform = torch.rand(n, generator=generator, device=self.device)
            labels = labels.masked_fill(uniform < LABEL_DROPOUT, self.net.unet.num_classes)
        mine = slice(self.rank, None, self.ranks)
        return x[mine], sigma[mine], target[mine], cond[mine], labels[mine]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yields {iteration, loss, grad_norm, lr_scale} after every update.

        An update whose gradient is not finite is left out. Raises Diverged after PATIENCE of them
        in a row.
        """
        settings = self.settings.train
        while self.iteration < settings.iterations:
            start = time.perf_counter()
            loss = self.backward()
            norm = torch.nn.utils.clip_grad_norm_(self.net.parameters(), settings.clip_grad)
            scale = learning_rate_scale(self.iteration, settings)
            if norm.isfinite():
                self.optimizer.step(scale)
                torch._foreach_lerp_(
                    list(self.ema.parameters()),
                    list(self.net.parameters()),
                    1 - ema_decay(self.iteration, settings),
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
        """Compute the gradient of the mean loss over the next batch; returns that loss."""
        self.net.zero_grad(set_to_none=True)
        parts = self.settings.train.accumulate
        total = torch.zeros((), device=self.device)
        for part, tensors in enumerate(zip(*(tensor.chunk(parts) for tensor in self.batch()))):
            x, sigma, target, cond, labels = tensors
            # Processes exchange gradients once, with the last part.
            last = part == parts - 1
            exchange: ContextManager = nullcontext()
            if isinstance(self.parallel, DistributedDataParallel) and not last:
                exchange = self.parallel.no_sync()
            with exchange:
                losses = edm_loss(
                    self.parallel,
                    x,
                    sigma,
                    target,
                    self.net.sigma_data,
                    cond=cond if cond.shape[1] else None,
                    labels=labels if self.net.unet.label is not None else None,
                )
                loss = losses.mean() / parts
                loss.backward()
            total += loss.detach()
        if self.ranks > 1:
            dist.all_reduce(total)
        return total / self.ranks

    # ------------------------------------------------------------ files
    def metadata(self) -> dict[str, Any]:
        """What a checkpoint says of itself, for JSON."""
        return dict(
            settings=self.settings.record() | dict(outdir=None, resume=None),
            sigma_data=float(self.net.sigma_data),
            box=self.net.box,
            channels=[self.world.cond_channels, self.world.answer_channels],
            frame_shape=list(self.world.frame_shape),
            data=self.world.data.record() if isinstance(self.world, OwnFrames) else None,
            iteration=self.iteration,
            train_seconds=round(self.seconds, 1),
            parameters=sum(parameter.numel() for parameter in self.net.parameters()),
            digits_source=self.world.source,
            torch=torch.__version__,
            machine=machine_name(self.device, self.ranks),
        )

    def save(self, outdir: Path) -> None:
        """Write the state and the averaged network, each file whole or as it was. Raises OSError.

        Processes draw the same numbers for dropout, so one generator stands for all of them.
        """
        tensors: dict[str, Tensor] = {}
        groups: dict[str, list[dict]] = {}
        for name, part in self.optimizer.parts.items():
            packed, groups[name] = checkpoint.pack(f"optimizer.{name}", part.state_dict())
            tensors |= packed
        tensors |= {f"net.{name}": value for name, value in self.net.state_dict().items()}
        tensors |= {f"ema.{name}": value for name, value in self.ema.state_dict().items()}
        tensors["generator.cpu"] = torch.get_rng_state()
        if self.device.type == "cuda":
            tensors["generator.cuda"] = torch.cuda.get_rng_state(self.device)
        checkpoint.save_tensors(
            outdir / STATE, tensors, self.metadata() | dict(groups=groups), outdir / PREVIOUS
        )
        checkpoint.save_tensors(outdir / MODEL, checkpoint.halved(self.ema), self.metadata())

    def load(self, path: Path) -> None:
        """Continue from a state. Raises SettingError."""
        metadata = checkpoint.read_metadata(path)
        tensors = checkpoint.read_tensors(path)
        try:
            for prefix, module in (("net.", self.net), ("ema.", self.ema)):
                own = {
                    name[len(prefix) :]: value
                    for name, value in tensors.items()
                    if name.startswith(prefix)
                }
                module.load_state_dict(own)
            for name, part in self.optimizer.parts.items():
                part.load_state_dict(
                    checkpoint.unpack(f"optimizer.{name}", tensors, metadata["groups"][name])
                )
            self._load_generators(tensors)
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
                    # Fused optimizers want the parameter's memory layout.
                    if value.shape == parameter.shape:
                        state[key] = torch.empty_like(parameter).copy_(value)
        self.iteration = metadata["iteration"]
        self.seconds = metadata["train_seconds"]

    def _load_generators(self, tensors: dict[str, Tensor]) -> None:
        """Set the generators of dropout to those of a state; states of early versions have
        none, and states of a CPU have none for a GPU."""
        if "generator.cpu" in tensors:
            torch.set_rng_state(tensors["generator.cpu"])
        if self.device.type == "cuda" and "generator.cuda" in tensors:
            torch.cuda.set_rng_state(tensors["generator.cuda"], self.device)
