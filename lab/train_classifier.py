"""The digit classifiers: which digit a frame shows, how readable it is, and features to repel in.

    python -m lab.train_classifier --seed 1 --out checkpoints/classifier_judge.safetensors
    python -m lab.train_classifier --seed 2 --epochs 8 \\
        --out checkpoints/classifier_guide.safetensors
    python -m lab.train_classifier --noisy --out checkpoints/classifier_noisy.safetensors

The first two are trained independently, with different initial weights, orders and distortions: one
judges samples, the other one's features may guide them. A guide that judged its own samples would
find what it pushed for. The third says how likely each class is at every noise level.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Literal, Optional, Sequence

from tqdm import tqdm

from config import (
    Count,
    DigitSettings,
    NonNegative,
    Positive,
    Seed,
    build,
    record,
)
from diverse_sampling.errors import SettingError, reject
from lab.command_line import fail, make_parser, run_program

WARMUP = 100  # updates over which the learning rate rises linearly
DISTORTIONS = 5  # random numbers that distort a frame
LABEL_SMOOTHING = 0.05  # share of the target that is spread over all classes; noisy images: none
DIGIT_MARGIN = 2  # px around a digit that a classifier of noisy digits sees
LN_SIGMA = (math.log(2.0), 1.3)  # mean and standard deviation; 87% of the levels are in [0.3, 15]
LEVELS = (0.1, 0.3, 1.0, 3.0, 10.0)  # noise levels at which a classifier of noisy images is tested
TRAINING = dict(channels=(32, 64, 128), epochs=14, batch_size=128)
NOISY_TRAINING = dict(epochs=60, batch_size=512)  # a digit is never seen twice with the same noise


@dataclass(frozen=True)
class ClassifierSettings:
    """Classifier"""

    out: str = "runs/classifier.safetensors"
    """file to write"""
    noisy: bool = False
    """train a classifier of noisy images, for all noise levels"""
    channels: Optional[Sequence[Count]] = None
    """width at each resolution, finest first (null: 32, 64, 128; noisy has no resolutions)"""
    epochs: Optional[Count] = None
    """passes over the training digits (null: 14; noisy: 60)"""
    batch_size: Optional[Count] = None
    """frames per update (null: 128; noisy: 512)"""
    lr: Positive = 3e-3
    """learning rate of AdamW, for the first and last layer and all biases"""
    muon_lr: Positive = 0.02
    """learning rate of Muon, for the other weights"""
    weight_decay: NonNegative = 0.02
    """decoupled weight decay"""
    image_size: Count = 32
    """side of a frame, px"""
    digit_size: Count = 16
    """side of a digit, px"""
    seed: Seed = 0
    """seed of everything random"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """where to run; auto: on a GPU if there is one"""

    def __post_init__(self):
        if self.noisy and self.channels is not None:
            reject("channels", self.channels, "null for a classifier of noisy images")
        for key, implied in (NOISY_TRAINING if self.noisy else TRAINING).items():
            if getattr(self, key) is None:
                object.__setattr__(self, key, implied)  # while it is built; it is frozen after that


def distort(images, uniform):
    """Randomly distorted frames, (N, 1, H, W) in [0, 1] -> the same shape.

    Each is rotated by up to 12 degrees, scaled and sheared by up to 15 %, and moved by up to
    1.5 px. uniform (DISTORTIONS, N) in [0, 1) decides how, on the device of the frames.
    """
    import torch
    import torch.nn.functional as F

    n = len(images)
    side = images.shape[-1]
    turned, stretched, sheared, right, down = 2 * uniform - 1
    angle = turned * math.radians(12)
    stretch = 1 + 0.15 * stretched
    shear = 0.15 * sheared
    # affine_grid counts in half sides: 3 / side are 1.5 px.
    right = 3 * right / side
    down = 3 * down / side
    first_row = [stretch * angle.cos(), -angle.sin() + shear, right]
    second_row = [angle.sin(), stretch * angle.cos(), down]
    matrices = torch.stack([*first_row, *second_row], 1).view(n, 2, 3)
    grid = F.affine_grid(matrices, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def train(settings: ClassifierSettings, digits, device):
    """Train a classifier on distorted digits.

    Arguments:
        settings: of the classifier and its training
        digits: a `worlds.Digits`, the bank of training digits
        device: where to compute

    Returns a `lab.classifier.Classifier` in evaluation mode, on `device`.
    """
    import torch
    import torch.nn.functional as F

    from lab.classifier import Classifier

    assert settings.channels is not None
    torch.manual_seed(settings.seed)
    net = Classifier(settings.channels).to(device).to(memory_format=torch.channels_last).train()
    frames = digits.centred(settings.image_size).to(device)
    labels = digits.labels.to(device)

    def loss(rows, uniform):
        batch = distort(frames[rows][:, None], uniform)
        return F.cross_entropy(net(batch[:, 0]), labels[rows], label_smoothing=LABEL_SMOOTHING)

    _minimise(loss, net, ("stem", "out"), settings, len(frames), DISTORTIONS, device)
    return net.eval().requires_grad_(False)


def train_noisy(
    settings: ClassifierSettings, images, labels, classes: int, device, margin: int = 0
):
    """Train a classifier of noisy images on a bank of images, at all noise levels.

    The loss is -log p(class | x, sigma) of x = y + sigma n, without smoothing or distortions, so
    that p is the posterior of the bank. ln sigma is normal (`LN_SIGMA`): most levels are those at
    which classes are decided.

    Arguments:
        settings: of the training
        images: the bank, (M, C, S, S) in [0, 1]
        labels: the class of each, (M,) int64
        classes: number of classes
        device: where to compute
        margin: px at each side of an image that are not looked at

    Returns a `lab.classifier.NoisyClassifier` in evaluation mode, on `device`.
    """
    import torch
    import torch.nn.functional as F

    from diverse_sampling.denoiser import to_model_range
    from lab.classifier import NoisyClassifier

    torch.manual_seed(settings.seed)
    side = images.shape[-1]
    seen = to_model_range(images[..., margin : side - margin, margin : side - margin])
    shape = dict(image_size=side, margin=margin, colours=images.shape[1], classes=classes)
    net = NoisyClassifier(**shape, sigma_data=round(float(seen.std()), 4)).to(device).train()
    images = to_model_range(images).to(device)
    labels = labels.to(device)
    mean, sd = LN_SIGMA

    def loss(rows, uniform):
        sigma = (mean + sd * torch.special.ndtri(uniform[0].clamp_min(1e-6))).exp()
        clean = images[rows]
        noisy = clean + sigma[:, None, None, None] * torch.randn_like(clean)
        return F.nll_loss(net(noisy, sigma), labels[rows])

    _minimise(loss, net, ("stem", "film", "out"), settings, len(images), 1, device)
    return net.eval().requires_grad_(False)


def _minimise(
    loss: Callable,
    net,
    ends: tuple[str, ...],
    settings: ClassifierSettings,
    size: int,
    numbers: int,
    device,
) -> None:
    """Minimise a loss by Muon and AdamW, whose learning rates fall linearly to 0.

    Arguments:
        loss: rows (N,) of the bank, uniform (numbers, N) in [0, 1) -> the loss of this batch
        net: what is trained, in place
        ends: how the names of the layers start that AdamW trains
        settings: of the training
        size: of the bank
        numbers: random numbers for each of a batch
        device: where to compute
    """
    import torch

    from lab.training import Optimizer

    assert settings.epochs is not None and settings.batch_size is not None
    generator = torch.Generator().manual_seed(settings.seed)
    optimizer = Optimizer(
        net,
        lr=settings.lr,
        muon_lr=settings.muon_lr,
        weight_decay=settings.weight_decay,
        muon=True,
        ends=ends,
    )
    n = min(settings.batch_size, size)
    batches = size // n
    updates = settings.epochs * batches
    done = 0
    bar = tqdm(total=updates, unit="it", disable=None)
    for _ in range(settings.epochs):
        order = torch.randperm(size, generator=generator)[: batches * n].to(device)
        uniform = torch.rand(batches, numbers, n, generator=generator).to(device)
        for rows, each in zip(order.split(n), uniform):
            net.zero_grad(set_to_none=True)
            loss(rows, each).backward()
            optimizer.step(min(1.0, (done + 1) / WARMUP) * (1 - done / updates))
            done += 1
            bar.update()
    bar.close()


def accuracy(classify, digits, image_size: int, device) -> float:
    """The share of a bank's digits, centred in frames, that are recognised.

    Arguments:
        classify: frames (N, H, W) in [0, 1] -> logits (N, 10), both on `device`
        digits: a `worlds.Digits`, the bank
        image_size: side of a frame, px
        device: where to compute
    """
    import torch

    frames = digits.centred(image_size).split(1000)
    labels = digits.labels.split(1000)
    correct = []
    with torch.no_grad():
        for some, classes in tqdm(list(zip(frames, labels)), desc="test", disable=None):
            correct.append(classify(some.to(device)).argmax(-1).cpu() == classes)
    return float(torch.cat(correct).double().mean())


def accuracy_at(net, images, labels, device) -> dict[str, dict[float, float]]:
    """How well noisy images are classified: {measure: {noise level: value}}.

    Arguments:
        net: a `lab.classifier.NoisyClassifier` on `device`
        images: (M, C, S, S) in [0, 1], each seen once at each of the LEVELS
        labels: their classes, (M,) int64
        device: where to compute

    Measures are the share recognised, `accuracy_at`, and the mean of -log p(class), in nats,
    `cross_entropy_at`.
    """
    import torch

    from diverse_sampling.denoiser import to_model_range

    generator = torch.Generator().manual_seed(0)
    measured: dict[str, dict[float, float]] = dict(accuracy_at={}, cross_entropy_at={})
    for sigma in tqdm(LEVELS, desc="test", disable=None):
        log_p = []
        for some in images.split(1000):
            noise = torch.randn(some.shape, generator=generator)
            x = (to_model_range(some) + sigma * noise).to(device)
            with torch.no_grad():
                log_p.append(net(x, torch.tensor(sigma, dtype=torch.float64)).cpu())
        each = torch.cat(log_p).double()
        right = each.argmax(-1) == labels
        measured["accuracy_at"][sigma] = float(right.double().mean())
        nats = -each.gather(1, labels[:, None]).mean()
        measured["cross_entropy_at"][sigma] = round(float(nats), 4)
    return measured


def main(argv: list[str] | None = None) -> None:
    """Train a classifier and write it to --out; a mistake ends with one line and exit code 2."""
    parser = make_parser(ClassifierSettings, DigitSettings, description=__doc__.split("\n")[0])
    args = parser.parse_args(argv)
    try:
        settings = build(ClassifierSettings, args)
        source = build(DigitSettings, args)
        from data_loader import load_digits
        from diverse_sampling.devices import machine_name, pick_device
        from lab import checkpoint

        device = pick_device(settings.device)
        train_digits, test_digits = (
            load_digits(
                source.digits,
                split,
                size=settings.digit_size,
                data_root=source.data_root,
                timeout=source.download_timeout,
            )
            for split in ("train", "test")
        )
    except (SettingError, FileNotFoundError, ValueError) as error:
        fail(str(error))
    metadata: dict[str, Any]
    start = time.perf_counter()
    if settings.noisy:
        bank, test = (
            digits.centred(settings.image_size)[:, None] for digits in (train_digits, test_digits)
        )
        margin = max(0, (settings.image_size - settings.digit_size) // 2 - DIGIT_MARGIN)
        net = train_noisy(settings, bank, train_digits.labels, 10, device, margin)
    else:
        net = train(settings, train_digits, device)
    seconds = time.perf_counter() - start
    weights = checkpoint.halved(net)
    net.load_state_dict(weights)  # what is shipped is what is measured
    if settings.noisy:
        measured = accuracy_at(net, test, test_digits.labels, device)
        metadata = dict(network=net.arguments, **measured)
        right = ", ".join(
            f"{100 * share:.2f}% at sigma {level:g}"
            for level, share in measured["accuracy_at"].items()
        )
    else:
        share = accuracy(net, test_digits, settings.image_size, device)
        metadata = dict(accuracy=share)
        right = f"{100 * share:.2f}%"
    path = Path(settings.out)
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata |= dict(
        settings=record(settings, source) | dict(out=None, data_root="data"),
        digits_source=train_digits.source,
        parameters=sum(parameter.numel() for parameter in net.parameters()),
        train_seconds=round(seconds, 1),
        machine=machine_name(device, 1),
    )
    checkpoint.save_tensors(path, weights, metadata)
    count = f"{len(test_digits.labels):,} {test_digits.source} test digits"
    print(f"{right} of {count}, written to {path}")


if __name__ == "__main__":
    run_program(main)
