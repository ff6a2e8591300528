"""The digit classifier: which digit a frame shows, how readable it is, and features to repel in.

    python classifier.py --seed 1 --out checkpoints/classifier_judge.safetensors
    python classifier.py --seed 2 --epochs 8 --out checkpoints/classifier_guide.safetensors

Two are trained independently, with different initial weights, orders and distortions: one judges,
the other one's features may guide. A guide that judged itself would find what it pushed for.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from command_line import fail, make_parser, run_program
from config import (
    ClosedUnitInterval,
    Count,
    DigitSettings,
    Many,
    NonNegative,
    Positive,
    Seed,
    SettingError,
    build,
    record,
)


@dataclass
class ClassifierSettings:
    """Classifier"""

    out: str = "runs/classifier.safetensors"
    """file to write"""
    channels: Many[Count] = (32, 64, 128)
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


def distort(images, generator):
    """Frames (N, 1, H, W) turned by up to 12 degrees, scaled by up to 15 % and moved by up to 1.5 px."""
    import math

    import torch
    import torch.nn.functional as F

    n, side = len(images), images.shape[-1]
    u = lambda: 2 * torch.rand(n, generator=generator).to(images) - 1
    angle, stretch, shear = u() * math.radians(12), 1 + 0.15 * u(), 0.15 * u()
    rows = torch.stack(
        [
            stretch * angle.cos(),
            -angle.sin() + shear,
            3 * u() / side,
            angle.sin(),
            stretch * angle.cos(),
            3 * u() / side,
        ],
        1,
    ).view(n, 2, 3)
    return F.grid_sample(
        images, F.affine_grid(rows, images.shape, align_corners=False), align_corners=False
    )


def centred(digits, image_size: int):
    """All digits of a bank as `centered` shows them: (M, image_size, image_size) in [0, 1]."""
    import torch.nn.functional as F

    room = image_size - digits.images.shape[-1]
    return F.pad(digits.images, (room // 2, room - room // 2) * 2)


def train(settings: ClassifierSettings, digits, device):
    """A Classifier trained on a bank of digits: Muon and AdamW with a linear decay to 0, distorted frames."""
    import torch
    import torch.nn.functional as F

    from model import Classifier
    from training_loop import Optimizer

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
    frames, labels = centred(digits, settings.image_size), digits.labels
    steps, step = settings.epochs * (len(frames) // settings.batch_size), 0
    bar = tqdm(total=steps, unit="it", disable=None)
    for _ in range(settings.epochs):
        order = torch.randperm(len(frames), generator=generator)
        for rows in order.split(settings.batch_size):
            if len(rows) < settings.batch_size:
                break
            batch = distort(frames[rows][:, None].to(device), generator)
            loss = F.cross_entropy(
                net(batch[:, 0]), labels[rows].to(device), label_smoothing=settings.label_smoothing
            )
            net.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step(min(1.0, (step + 1) / 100) * (1 - step / steps))
            step += 1
            bar.update()
    bar.close()
    return net.eval().requires_grad_(False)


def accuracy(net, digits, image_size: int, device) -> float:
    """Share of a bank's digits, centred in frames, that are recognised."""
    import torch

    with torch.no_grad():
        parts = list(zip(centred(digits, image_size).split(1000), digits.labels.split(1000)))
        right = [
            net(frames.to(device)).argmax(-1).cpu() == labels
            for frames, labels in tqdm(parts, desc="test", disable=None)
        ]
    return float(torch.cat(right).double().mean())


def main(argv: list[str] | None = None) -> None:
    """Train a classifier and write it to --out; a mistake ends with one line and exit code 2."""
    args = make_parser(
        ClassifierSettings, DigitSettings, description=__doc__.split("\n")[0]
    ).parse_args(argv)
    try:
        settings, source = build(ClassifierSettings, args), build(DigitSettings, args)
        import checkpoint
        from data_loader import load_digits
        from devices import machine_name, pick_device

        device = pick_device(settings.device)
        bank = lambda split: load_digits(
            source.digits,
            split,
            size=settings.digit_size,
            data_root=source.data_root,
            timeout=source.download_timeout,
        )
        digits, start = bank("train"), time.perf_counter()
    except (SettingError, FileNotFoundError, ValueError) as error:
        fail(str(error))
    net = train(settings, digits, device)
    seconds = time.perf_counter() - start
    weights = checkpoint.halved(net)
    net.load_state_dict(weights)  # what is shipped is what is measured
    test = bank("test")
    measured = accuracy(net, test, settings.image_size, device)
    path = Path(settings.out)
    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.save_tensors(
        path,
        weights,
        dict(
            settings=record(settings, source) | dict(out=None, data_root="data"),
            digits_source=digits.source,
            parameters=sum(p.numel() for p in net.parameters()),
            train_seconds=round(seconds, 1),
            accuracy=measured,
            machine=machine_name(device, 1),
        ),
    )
    print(
        f"{100 * measured:.2f}% of {len(test.labels):,} {test.source} test digits, written to {path}"
    )


if __name__ == "__main__":
    run_program(main)
