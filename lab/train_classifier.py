"""Classifiers: which digit or class a picture shows, and how readable it is.

    python -m lab.train_classifier --seed 1 --out checkpoints/classifier_judge.safetensors
    python -m lab.train_classifier --noisy --out checkpoints/classifier_noisy.safetensors
    python -m lab.train_classifier --clusters 10 --out checkpoints/classifier_clusters.safetensors
    python -m lab.train_classifier --frames DATA --out FILE

The first judges samples, and never guides them: a guide that judged its own samples would find what
it pushed for. The others say how likely each class is at every noise level, for `evaluate.py
--guidance classes`: of digits, of clusters that were found without labels, and of own pictures in
classes (docs/own-data.md).
"""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Literal, NamedTuple, Optional, Sequence

from tqdm import tqdm

from config import (
    Count,
    DigitSettings,
    NonNegative,
    PathText,
    Positive,
    Seed,
    WorldSettings,
    build,
    record,
)
from diverse_sampling.errors import SettingError, reject
from lab.command_line import fail, make_parser, run_program
from lab.files import unused

if TYPE_CHECKING:
    from torch import Tensor

WARMUP = 100  # updates over which the learning rate rises linearly
DISTORTIONS = 5  # random numbers that distort a frame
LABEL_SMOOTHING = 0.05  # share of the target that is spread over all classes; noisy images: none
DIGIT_MARGIN = 2  # px around a digit that a classifier of noisy digits sees
LN_SIGMA = (math.log(2.0), 1.3)  # mean and standard deviation; 87% of the levels are in [0.3, 15]
LEVELS = (0.1, 0.3, 1.0, 3.0, 10.0)  # noise levels at which a classifier of noisy images is tested
TRAINING = dict(channels=(32, 64, 128), epochs=14, batch_size=128)
NOISY_TRAINING = dict(epochs=60, batch_size=512)  # a digit is never seen twice with the same noise
CLUSTER_AXES = 5  # dimensions in which clusters are found
CLUSTER_FITS = 8  # mixtures of Gaussians, of which the likeliest is taken
OWN_UPDATES = 3000  # of a classifier of own pictures, which may be few


@dataclass(frozen=True)
class ClassifierSettings:
    """Classifier"""

    out: Optional[PathText] = None
    """file to write (null: runs/classifier.safetensors, or the next such name that is unused)"""
    noisy: bool = False
    """train a classifier of noisy images, for all noise levels"""
    frames: Optional[PathText] = None
    """your pictures in classes, a file or a directory as for train.py --num_cond_frames 0: train
    their classifier of noisy images (null: that of digits)"""
    data: Optional[str] = None
    """with frames: how to read them, as for train.py (null: nothing)"""
    clusters: Optional[Count] = None
    """without labels: tell this many clusters of the pictures apart instead of their classes
    (implies noisy)"""
    channels: Optional[Sequence[Count]] = None
    """width at each resolution, finest first (null: 32, 64, 128; noisy has no resolutions)"""
    epochs: Optional[Count] = None
    """passes over the training pictures (null: 14; noisy: 60; with frames as many as make 3,000
    updates)"""
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
        if self.frames is not None or self.clusters is not None:
            object.__setattr__(self, "noisy", True)  # while it is built; it is frozen after that
        if self.clusters == 1:
            reject("clusters", 1, "2 or more")
        if self.frames is not None:
            for key in ("image_size", "digit_size"):
                if getattr(self, key) != getattr(type(self), key):
                    reject(key, getattr(self, key), "only for digits; frames have a size")
        elif self.data is not None:
            reject("data", self.data, "only with frames")
        if self.noisy and self.channels is not None:
            reject("channels", self.channels, "null for a classifier of noisy images")
        for key, implied in (NOISY_TRAINING if self.noisy else TRAINING).items():
            if getattr(self, key) is None and (key != "epochs" or self.frames is None):
                object.__setattr__(self, key, implied)


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


def train(settings: ClassifierSettings, images, labels, device):
    """Train a classifier on distorted digits.

    Arguments:
        settings: of the classifier and its training
        images: the bank, (M, 1, S, S) in [0, 1]
        labels: the digit of each, (M,) int64
        device: where to compute

    Returns a `lab.classifier.Classifier` in evaluation mode, on `device`.
    """
    import torch
    import torch.nn.functional as F

    from lab.classifier import Classifier

    assert settings.channels is not None
    torch.manual_seed(settings.seed)
    net = Classifier(settings.channels).to(device).to(memory_format=torch.channels_last).train()
    images, labels = images.to(device), labels.to(device)

    def loss(rows, uniform):
        batch = distort(images[rows], uniform)
        return F.cross_entropy(net(batch[:, 0]), labels[rows], label_smoothing=LABEL_SMOOTHING)

    _minimise(loss, net, ("stem", "out"), settings, len(images), DISTORTIONS, device)
    return net.eval().requires_grad_(False)


def train_noisy(
    settings: ClassifierSettings, images, labels, classes: int, device, margin: int = 0
):
    """Train a classifier of noisy images on a bank of images, at all noise levels.

    The loss is -log p(class | x, sigma) of x = y + sigma n, without smoothing or distortions, so
    that p is the posterior of the bank. ln sigma is normal (`LN_SIGMA`): most levels are those at
    which classes are decided. Of images that are averaged (`NoisyClassifier.seen`) it is the sigma
    of the averages.

    Arguments:
        settings: of the training
        images: the bank, (M, C, H, W) in [0, 1]
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
    shape = list(images.shape[2:])
    net = NoisyClassifier(shape, margin, images.shape[1], classes).train()
    bank = torch.cat([net.seen(to_model_range(part)) for part in images.split(1000)])
    net.sigma_data = round(float(bank.std()), 4)
    net, bank, labels = net.to(device), bank.to(device), labels.to(device)
    mean, sd = LN_SIGMA

    def loss(rows, uniform):
        sigma = (mean + sd * torch.special.ndtri(uniform[0].clamp_min(1e-6))).exp()
        clean = bank[rows]
        noisy = clean + sigma[:, None, None, None] * torch.randn_like(clean)
        return F.nll_loss(net.of_seen(noisy, sigma), labels[rows])

    _minimise(loss, net, ("stem", "film", "out"), settings, len(bank), 1, device)
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

    assert settings.batch_size is not None
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
    epochs = settings.epochs or math.ceil(OWN_UPDATES / batches)
    updates = epochs * batches
    done = 0
    bar = tqdm(total=updates, unit="it", disable=None)
    for _ in range(epochs):
        order = torch.randperm(size, generator=generator)[: batches * n].to(device)
        uniform = torch.rand(batches, numbers, n, generator=generator).to(device)
        for rows, each in zip(order.split(n), uniform):
            net.zero_grad(set_to_none=True)
            loss(rows, each).backward()
            optimizer.step(min(1.0, (done + 1) / WARMUP) * (1 - done / updates))
            done += 1
            bar.update()
    bar.close()


def accuracy(classify, images, labels, device) -> float:
    """The share of the digits of a bank that are recognised.

    Arguments:
        classify: frames (N, H, W) in [0, 1] -> logits (N, 10), both on `device`
        images: the bank, (M, 1, H, W) in [0, 1]
        labels: the digit of each, (M,) int64
        device: where to compute
    """
    import torch

    parts = list(zip(images[:, 0].split(1000), labels.split(1000)))
    correct = []
    with torch.no_grad():
        for some, classes in tqdm(parts, desc="test", disable=None):
            correct.append(classify(some.to(device)).argmax(-1).cpu() == classes)
    return float(torch.cat(correct).double().mean())


def accuracy_at(net, images, labels, device) -> dict[str, dict[float, float]]:
    """How well noisy images are classified: {measure: {noise level: value}}.

    Arguments:
        net: a `lab.classifier.NoisyClassifier` on `device`
        images: (M, C, H, W) in [0, 1], each seen once at each of the LEVELS
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


class Banks(NamedTuple):
    """The pictures of a classifier, those that it learns and those that test it.

    Arguments:
        train, test: (images (M, C, H, W) in [0, 1], classes (M,) int64)
        classes: number of classes
        margin: px at each side of an image that a classifier of noisy images does not look at
        tested_on: the test pictures in words
        record: what they are, for the file
        notices: what a user should know, a sentence each
    """

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    classes: int
    margin: int
    tested_on: str
    record: dict[str, Any]
    notices: Sequence[str] = ()


def of_digits(settings: ClassifierSettings, source: DigitSettings) -> Banks:
    """Digits in the middle of frames. Raises FileNotFoundError if there are none."""
    from data_loader import load_digits

    train, test = (
        load_digits(
            source.digits,
            split,
            size=settings.digit_size,
            data_root=source.data_root,
            timeout=source.download_timeout,
        )
        for split in ("train", "test")
    )
    return Banks(
        (train.centred(settings.image_size)[:, None], train.labels),
        (test.centred(settings.image_size)[:, None], test.labels),
        classes=10,
        margin=max(0, (settings.image_size - settings.digit_size) // 2 - DIGIT_MARGIN),
        tested_on=f"{len(test.labels):,} {test.source} test digits",
        record=dict(digits_source=train.source),
    )


def of_pictures(settings: ClassifierSettings) -> Banks:
    """The user's pictures. Raises SettingError if they cannot be used or have no classes."""
    from worlds.channels import as_planes
    from worlds.own_data import OwnPictures, load_frames

    world = WorldSettings(
        dataset="frames",
        frames=settings.frames,
        data=settings.data,
        num_cond_frames=0,
    )
    train, test = load_frames(world, "train"), load_frames(world, "test")
    assert isinstance(train, OwnPictures) and isinstance(test, OwnPictures)  # no condition
    data = train.data
    if not data.class_names:
        reject("frames", settings.frames, "pictures in classes, such as a directory for each class")

    def bank(world: OwnPictures) -> tuple[Tensor, Tensor]:
        images, labels = world.bank
        return as_planes(images, colours=world.answer_channels > 1), labels

    return Banks(
        bank(train),
        bank(test),
        classes=len(data.class_names),
        margin=0,
        tested_on=f"{len(test):,} test pictures of {settings.frames}",
        record=dict(digits_source=None, data=data.record()),
        notices=[data.describe(), *data.notices],
    )


def in_clusters(banks: Banks, clusters: int, seed: int) -> Banks:
    """The same pictures, with the clusters that they lie in for classes: without labels.

    UMAP (McInnes et al. 2018, arXiv 1802.03426) brings pictures that are alike together, in
    CLUSTER_AXES dimensions. A mixture of Gaussians makes clusters of them, the likeliest of
    CLUSTER_FITS fits. Raises SettingError for fewer pictures than UMAP needs.
    """
    import warnings

    import torch
    from sklearn.mixture import GaussianMixture
    from umap import UMAP

    (images, _), (test, _) = banks.train, banks.test
    if len(images) < 10 * clusters:
        reject("clusters", clusters, f"at most a tenth of the {len(images)} training pictures")
    reducer = UMAP(n_neighbors=15, min_dist=0.0, n_components=CLUSTER_AXES, random_state=seed)
    mixture = GaussianMixture(clusters, n_init=CLUSTER_FITS, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a seed costs it the second processor
        labels = mixture.fit_predict(reducer.fit_transform(images.flatten(1).numpy()))
        of_test = mixture.predict(reducer.transform(test.flatten(1).numpy()))
    return banks._replace(
        train=(images, torch.as_tensor(labels).long()),
        test=(test, torch.as_tensor(of_test).long()),
        classes=clusters,
    )


def main(argv: list[str] | None = None) -> None:
    """Train a classifier and write it to --out; a mistake ends with one line and exit code 2."""
    parser = make_parser(ClassifierSettings, DigitSettings, description=__doc__.split("\n")[0])
    args = parser.parse_args(argv)
    try:
        settings = build(ClassifierSettings, args)
        source = build(DigitSettings, args)
        from diverse_sampling.devices import machine_name, pick_device
        from lab import checkpoint

        device = pick_device(settings.device)
        banks = of_digits(settings, source) if settings.frames is None else of_pictures(settings)
        start = time.perf_counter()
        if settings.clusters is not None:
            banks = in_clusters(banks, settings.clusters, settings.seed)
    except (SettingError, FileNotFoundError, ValueError) as error:
        fail(str(error))
    for notice in banks.notices:
        print(f"train_classifier.py: {notice}", file=sys.stderr)
    metadata: dict[str, Any]
    if settings.noisy:
        net = train_noisy(settings, *banks.train, banks.classes, device, banks.margin)
    else:
        net = train(settings, *banks.train, device)
    seconds = time.perf_counter() - start
    weights = checkpoint.halved(net)
    net.load_state_dict(weights)  # what is included is what is measured
    if settings.noisy:
        measured = accuracy_at(net, *banks.test, device)
        metadata = dict(network=net.arguments, **measured)
        right = ", ".join(
            f"{100 * share:.2f}% at sigma {level:g}"
            for level, share in measured["accuracy_at"].items()
        )
    else:
        share = accuracy(net, *banks.test, device)
        metadata = dict(accuracy=share)
        right = f"{100 * share:.2f}%"
    path = Path(settings.out) if settings.out else unused(Path("runs/classifier.safetensors"))
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata |= dict(
        settings=record(settings, source) | dict(out=None, data_root="data"),
        parameters=sum(parameter.numel() for parameter in net.parameters()),
        train_seconds=round(seconds, 1),
        machine=machine_name(device, 1),
        **banks.record,
    )
    checkpoint.save_tensors(path, weights, metadata)
    print(f"{right} of {banks.tested_on}, written to {path}")


if __name__ == "__main__":
    run_program(main)
