"""The digit classifier: which digit a frame shows, how readable it is, and features to repel in.

    python -m lab.train_classifier --seed 1 --out checkpoints/classifier_judge.safetensors
    python -m lab.train_classifier --seed 2 --epochs 8 \\
        --out checkpoints/classifier_guide.safetensors

Two are trained independently, with different initial weights, orders and distortions: one judges
samples, the other one's features may guide them. A guide that judged its own samples would find
what it pushed for.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Sequence

from tqdm import tqdm

from config import (
    ClosedUnitInterval,
    Count,
    DigitSettings,
    NonNegative,
    Positive,
    Seed,
    build,
    record,
)
from diverse_sampling.errors import SettingError
from lab.command_line import fail, make_parser, run_program

WARMUP = 100  # updates over which the learning rate rises linearly
DISTORTIONS = 5  # random numbers that distort a frame


@dataclass
class ClassifierSettings:
    """Classifier"""

    out: str = "runs/classifier.safetensors"
    """file to write"""
    channels: Sequence[Count] = (32, 64, 128)
    """width at each resolution, finest first"""
    epochs: Count = 14
    """passes over the training digits"""
    batch_size: Count = 128
    """frames per update"""
    lr: Positive = 3e-3
    """learning rate of AdamW, for the first and last layer and all biases"""
    muon_lr: Positive = 0.02
    """learning rate of Muon, for the other weights"""
    weight_decay: NonNegative = 0.02
    """decoupled weight decay"""
    label_smoothing: ClosedUnitInterval = 0.05
    """share of the target that is spread over all classes"""
    image_size: Count = 32
    """side of a frame, px"""
    digit_size: Count = 16
    """side of a digit, px"""
    seed: Seed = 0
    """seed of everything random"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """where to run; auto: on a GPU if there is one"""


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
    """Train a classifier on distorted digits, by Muon and AdamW with a linear decay to 0.

    Arguments:
        settings: of the classifier and its training
        digits: a `worlds.Digits`, the bank of training digits
        device: where to compute

    Returns a `model.Classifier` in evaluation mode, on `device`.
    """
    import torch
    import torch.nn.functional as F

    from lab.classifier import Classifier
    from lab.training import Optimizer

    torch.manual_seed(settings.seed)
    generator = torch.Generator().manual_seed(settings.seed)
    net = Classifier(settings.channels).to(device).to(memory_format=torch.channels_last).train()
    optimizer = Optimizer(
        net,
        lr=settings.lr,
        muon_lr=settings.muon_lr,
        weight_decay=settings.weight_decay,
        muon=True,
        ends=("stem", "out"),
    )
    frames = digits.centred(settings.image_size).to(device)
    labels = digits.labels.to(device)
    n = settings.batch_size
    batches = len(frames) // n
    updates = settings.epochs * batches
    done = 0
    bar = tqdm(total=updates, unit="it", disable=None)
    for _ in range(settings.epochs):
        order = torch.randperm(len(frames), generator=generator)[: batches * n].to(device)
        uniform = torch.rand(batches, DISTORTIONS, n, generator=generator).to(device)
        for rows, numbers in zip(order.split(n), uniform):
            batch = distort(frames[rows][:, None], numbers)
            loss = F.cross_entropy(
                net(batch[:, 0]), labels[rows], label_smoothing=settings.label_smoothing
            )
            net.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step(min(1.0, (done + 1) / WARMUP) * (1 - done / updates))
            done += 1
            bar.update()
    bar.close()
    return net.eval().requires_grad_(False)


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
    start = time.perf_counter()
    net = train(settings, train_digits, device)
    seconds = time.perf_counter() - start
    weights = checkpoint.halved(net)
    net.load_state_dict(weights)  # what is shipped is what is measured
    measured = accuracy(net, test_digits, settings.image_size, device)
    path = Path(settings.out)
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = dict(
        settings=record(settings, source) | dict(out=None, data_root="data"),
        digits_source=train_digits.source,
        parameters=sum(parameter.numel() for parameter in net.parameters()),
        train_seconds=round(seconds, 1),
        accuracy=measured,
        machine=machine_name(device, 1),
    )
    checkpoint.save_tensors(path, weights, metadata)
    print(
        f"{100 * measured:.2f}% of {len(test_digits.labels):,} {test_digits.source} test digits, "
        f"written to {path}"
    )


if __name__ == "__main__":
    run_program(main)
