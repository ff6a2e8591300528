"""A training run: batches, optimizer, average of the weights, and the files to continue from.

Iterating over a `Training` yields its state after every update; progress, records and sample sheets
live outside, in train.py.
"""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ContextManager, Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from config import OptimizationSettings, TrainingSettings
from diverse_sampling.denoiser import to_model_range
from diverse_sampling.devices import kept_bytes, machine_name, use_bfloat16
from diverse_sampling.errors import reject
from diverse_sampling.exact import posterior_mean
from diverse_sampling.noise import Stream, set_generator
from lab import checkpoint
from model import EDMDenoiser, edm_loss, inside, lit_box, sigma_data_of
from worlds.augmentation import augment
from worlds.moving_digits import CircleJumping, World
from worlds.own_data import OwnFrames

STATE = "state.safetensors"
PREVIOUS = "state-previous.safetensors"
MODEL = "model.safetensors"
PATIENCE = 10  # updates in a row without a finite gradient after which a training has failed
MEASURED_WINDOWS = 2048  # on which sigma_data and the crop are measured
LABEL_DROPOUT = 0.1  # share of images that are trained without their label
HELD_OUT_WINDOWS = 256  # on which the held-out loss is measured


class Diverged(RuntimeError):
    """The gradient has not been finite for PATIENCE updates in a row."""


class Optimizer:
    """AdamW, or Muon for the hidden weight matrices and AdamW for the rest.

    Muon: momentum whose updates are made orthogonal, by torch.optim.Muon (Jordan et al. 2024,
    https://kellerjordan.github.io/posts/muon). A convolution's kernel counts as one matrix, out x
    (k * k * in).

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
        hidden_ids = {id(parameter) for parameter in self.hidden}
        rest = [parameter for parameter in model.parameters() if id(parameter) not in hidden_ids]
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


def tensors_of(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those of the tensors whose names start with a prefix, by the rest of their names."""
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


def augmentation_of(settings: TrainingSettings, world: World) -> str:
    """The augmentation that settings name or, where they name none, the one that is safe.

    With answers, such as masks, a flipped answer is right for the flipped frames. Without them a
    flip turns the motion round, which may be what is to be learned, and of several classes one may
    be the left one.
    """
    if settings.train.augment is not None:
        return settings.train.augment
    masks = isinstance(world, OwnFrames) and world.data.answers and not world.label_classes
    return "flips" if masks else "none"


@dataclass
class Best:
    """The averaged weights with the lowest held-out loss so far.

    Arguments:
        loss: that loss
        iteration: the number of updates after which it was measured
        tensors: the weights as they are written, on the CPU
    """

    loss: float
    iteration: int
    tensors: dict[str, Tensor]


@dataclass
class Windows:
    """N windows of a world, in [-1, 1].

    Arguments:
        cond: (N, Cc, H, W), the conditioning frames
        target: (N, C, H, W), the frame that followed
        labels: (N,) int64
        answers: (N, k, C, H, W), all frames that could have followed, for posterior targets
        log_prior: (k,) or (N, k), the logarithm of their probabilities
    """

    cond: Tensor
    target: Tensor
    labels: Tensor
    answers: Tensor | None = None
    log_prior: Tensor | None = None

    def expected(self, x: Tensor, sigma: Tensor) -> Tensor:
        """What noisy frames x (N, C, H, W) of noise levels sigma (N,) should become: the frame that
        followed or, where the answers are there, their mean given x. Like x."""
        if self.answers is None:
            return self.target
        return posterior_mean(x[:, None], sigma, self.answers, self.log_prior)[:, 0]


def draw(
    world: World, n: int, generator: torch.Generator, *, posterior: bool, augmentation: str
) -> Windows:
    """Draw n windows of a world, augmented; for posterior targets with their answers."""
    windows = world.windows(n, generator)
    answers = log_prior = None
    if posterior:
        if isinstance(world, OwnFrames):
            which = windows.which[:, 0]
            answers = world.right_answers(which)
            prior = world.answer_probabilities(which)
        else:
            assert isinstance(world, CircleJumping)  # train.py refuses all other worlds
            answers = world.futures(windows)[:, :, None]
            prior = world.direction_probabilities  # of one digit
        log_prior = prior.log().float().to(generator.device)
    cond, target = windows.split(world.cond_channels, world.answer_channels)
    if augmentation != "none":
        parts = [cond, target] if answers is None else [cond, target, answers.flatten(1, 2)]
        together = augment(torch.cat(parts, 1), augmentation, generator)
        cond, target, *rest = together.split([part.shape[1] for part in parts], 1)
        answers = None if answers is None else rest[0].view_as(answers)
    return Windows(
        to_model_range(cond),
        to_model_range(target),
        windows.labels[:, 0],
        None if answers is None else to_model_range(answers),
        log_prior,
    )


class HeldOut:
    """The loss of a network on windows that it is not trained on.

    Windows, noise levels and noise are drawn once, so that two values of one training differ by the
    weights alone. Noise levels are evenly spread quantiles of those in training.

    Arguments:
        world: where the windows come from, on `device`
        settings: of the training
        device: where it is computed
    """

    def __init__(self, world: World, settings: TrainingSettings, device: torch.device):
        self.world = world
        n = HELD_OUT_WINDOWS
        train = settings.train
        generator = set_generator(settings.run.seed, 0, Stream.HELD_OUT, device)
        posterior = train.target == "posterior"
        windows = draw(world, n, generator, posterior=posterior, augmentation="none")
        quantiles = (torch.randperm(n, generator=generator, device=device) + 0.5) / n
        self.sigma = (torch.special.ndtri(quantiles) * train.p_std + train.p_mean).exp()
        noise = torch.randn(windows.target.shape, generator=generator, device=device)
        self.x = windows.target + self.sigma[:, None, None, None] * noise
        self.target = windows.expected(self.x, self.sigma)
        self.cond = windows.cond
        # What losses are comparable by: two of different windows or noise levels are not.
        self.measured = [train.target, train.p_mean, train.p_std, settings.run.seed]
        # No more windows at once than in training.
        self.chunks = math.ceil(n * train.accumulate / train.batch_size)

    @torch.no_grad()
    def loss(self, net: EDMDenoiser) -> float:
        """The mean loss of a network in evaluation mode."""
        parts = (self.x, self.sigma, self.target, self.cond)
        losses = [
            edm_loss(net, x, sigma, target, net.sigma_data, cond=cond if cond.shape[1] else None)
            for x, sigma, target, cond in zip(*(each.chunk(self.chunks) for each in parts))
        ]
        return float(torch.cat(losses).mean())


class Training:
    """One training run: a network, the average of its weights, an optimizer and the random streams.

    Iterating over it makes the updates that are left, and yields after each. With torch.distributed
    every process holds one, and the processes share each batch.

    Arguments:
        settings: all settings of the run
        device: where it is computed
        world: what it is trained on, on that device
        held_out: what the held-out loss is measured on, on that device; None: there is none, and
            the averaged weights that are kept are the last
    """

    def __init__(
        self,
        settings: TrainingSettings,
        device: torch.device,
        world: World,
        held_out: World | None = None,
    ):
        self.settings = settings
        self.device = device
        self.world = world
        self.spread: dict[str, Any] | None = None  # of held-out sets, once it has been measured
        self.held_out = None if held_out is None else HeldOut(held_out, settings, device)
        self.best: Best | None = None
        self.augment = augmentation_of(settings, world)
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
            weight_decay=settings.train.weight_decay,
            ends=("unet.stem", "unet.out", "unet.label"),
        )
        if settings.run.compile:
            self.net.compile()
        self.parallel = DistributedDataParallel(self.net) if self.ranks > 1 else self.net

    def _measure(self) -> tuple[float, Sequence[int] | None]:
        """sigma_data, unless it is set, and with --crop the box of the frame to work on."""
        model = self.settings.model
        generator = set_generator(self.seed, 0, Stream.DATA_SCALE, self.device)
        frames = self.world.windows(MEASURED_WINDOWS, generator).frames
        if self.augment != "none":
            frames = augment(frames, self.augment, generator)
        box = lit_box(frames, model.multiple) if model.crop else None
        return model.sigma_data or sigma_data_of(inside(frames, box)), box

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
        posterior = settings.target == "posterior"
        windows = draw(self.world, n, generator, posterior=posterior, augmentation=self.augment)
        normal = torch.randn(n, generator=generator, device=self.device)
        sigma = (normal * settings.p_std + settings.p_mean).exp()
        noise = torch.randn(windows.target.shape, generator=generator, device=self.device)
        x = windows.target + sigma[:, None, None, None] * noise
        target = windows.expected(x, sigma)
        labels = windows.labels
        if self.net.unet.label is not None:
            uniform = torch.rand(n, generator=generator, device=self.device)
            labels = labels.masked_fill(uniform < LABEL_DROPOUT, self.net.unet.num_classes)
        mine = slice(self.rank, None, self.ranks)
        return x[mine], sigma[mine], target[mine], windows.cond[mine], labels[mine]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yields {iteration, loss, grad_norm, lr_scale} after every update.

        An update whose gradient is not finite leaves the weights as they were. Raises Diverged
        after PATIENCE of them in a row.
        """
        settings = self.settings.train
        while self.iteration < settings.iterations:
            start = time.perf_counter()
            loss = self.backward()
            norm = torch.nn.utils.clip_grad_norm_(self.net.parameters(), settings.clip_grad)
            scale = learning_rate_scale(self.iteration, settings)
            if norm.isfinite():
                self.optimizer.step(scale)
                self.skipped = 0
            else:
                self.skipped += 1
            torch._foreach_lerp_(
                list(self.ema.parameters()),
                list(self.net.parameters()),
                1 - ema_decay(self.iteration, settings),
            )
            self.iteration += 1
            self.seconds += time.perf_counter() - start
            if self.skipped == PATIENCE:
                raise Diverged(f"no finite gradient in {PATIENCE} updates up to {self.iteration}")
            yield dict(iteration=self.iteration, loss=loss, grad_norm=norm, lr_scale=scale)

    def measure_held_out(self) -> float | None:
        """The held-out loss of the averaged weights, which are kept if it is the lowest so far.

        None where nothing is held out.
        """
        if self.held_out is None:
            return None
        loss = self.held_out.loss(self.ema)
        if self.best is None or loss < self.best.loss:
            tensors = {name: t.cpu().clone() for name, t in checkpoint.halved(self.ema).items()}
            self.best = Best(loss, self.iteration, tensors)
        return loss

    def bytes_per_image(self) -> int:
        """Memory that an update keeps for the gradient of each image of a batch, in bytes."""
        # What the images show does not matter, and drawing a batch takes longer than this.
        shape = self.world.frame_shape
        cond_channels = self.world.cond_channels

        def bytes_of(n: int) -> int:
            x = torch.zeros(n, self.world.answer_channels, *shape, device=self.device)
            sigma = torch.ones(n, device=self.device)
            cond = torch.zeros(n, cond_channels, *shape, device=self.device)
            return kept_bytes(lambda: self.net(x, sigma, cond if cond_channels else None))

        return (bytes_of(5) - bytes_of(1)) // 4

    def losses(self, x: Tensor, sigma: Tensor, target: Tensor, **kwargs: Any) -> Tensor:
        """The loss of each image of a batch, (N,); arguments as in `edm_loss`."""
        return edm_loss(self.parallel, x, sigma, target, self.net.sigma_data, **kwargs)

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
                losses = self.losses(
                    x,
                    sigma,
                    target,
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
            settings=self.settings.record() | dict(outdir=None, resume=None, augment=self.augment),
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
        metadata = self.metadata() | dict(groups=groups)
        if self.best is not None:
            tensors |= {f"best.{name}": value for name, value in self.best.tensors.items()}
            assert self.held_out is not None
            metadata |= dict(
                best=dict(
                    loss=self.best.loss,
                    iteration=self.best.iteration,
                    measured=self.held_out.measured,
                )
            )
        checkpoint.save_tensors(outdir / STATE, tensors, metadata, outdir / PREVIOUS)
        self.save_model(outdir)

    def save_model(self, outdir: Path) -> None:
        """Write averaged weights alone: those with the lowest held-out loss or, if nothing is held
        out, the last. Raises OSError."""
        tensors = checkpoint.halved(self.ema) if self.best is None else self.best.tensors
        checkpoint.save_tensors(outdir / MODEL, tensors, self.model_metadata())

    def model_metadata(self) -> dict[str, Any]:
        """What model.safetensors says of itself."""
        spread = {} if self.spread is None else dict(spread=self.spread)
        if self.best is None:
            return self.metadata() | spread
        best = dict(
            iteration=self.best.iteration,
            held_out_loss=self.best.loss,
            trained_iterations=self.iteration,
        )
        return self.metadata() | best | spread

    def load(self, path: Path) -> None:
        """Continue from a state. Raises SettingError."""
        metadata = checkpoint.read_metadata(path)
        tensors = checkpoint.read_tensors(path)
        try:
            for prefix, module in (("net.", self.net), ("ema.", self.ema)):
                module.load_state_dict(tensors_of(prefix, tensors))
            for name, part in self.optimizer.parts.items():
                part.load_state_dict(
                    checkpoint.unpack(f"optimizer.{name}", tensors, metadata["groups"][name])
                )
            # States of early versions have no generators, those of a CPU none for a GPU.
            if "generator.cpu" in tensors:
                torch.set_rng_state(tensors["generator.cpu"])
            if self.device.type == "cuda" and "generator.cuda" in tensors:
                torch.cuda.set_rng_state(tensors["generator.cuda"], self.device)
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
        best = metadata.get("best")
        if self.held_out is not None and best and best["measured"] == self.held_out.measured:
            self.best = Best(best["loss"], best["iteration"], tensors_of("best.", tensors))
