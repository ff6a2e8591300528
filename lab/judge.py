"""A judge of pictures that shares nothing with the networks: edges, and a kernel machine on them.

    python -m lab.judge --digits both --out checkpoints/judge.safetensors

What guides samples is a network, and another network may err where it does. The judge looks at
histograms of the directions of edges (HOG, Dalal & Triggs 2005, 10.1109/CVPR.2005.177), their
principal components, and which known pictures these are near: a least-squares classifier with a
Gaussian kernel, by the Nystroem method (Williams & Seeger 2000). The known pictures that others
are compared with, its landmarks, are some at random and those that a judge by these alone finds
hardest. The included one knows digits; for other pictures with classes, `Judge.fit` makes one in
seconds.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

from config import Count, DigitSettings, PathText, build, record
from diverse_sampling.errors import SettingError, reject
from lab.command_line import fail, make_parser, run_program
from lab.files import unused

if TYPE_CHECKING:
    from torch import Tensor

CELL = 4  # px of a side of a cell, which has one histogram
CELLS = 8  # along the longer side of a picture
DIRECTIONS = 8  # of edges, in a histogram: those of gradients, over the full circle
COMPONENTS = 100  # most principal components
LANDMARKS = 2000  # most known pictures of each kind, any and hard, that others are compared with
RIDGE = 0.1  # weight of the squared norm of the scores, and of their coefficients
SHIPPED = Path(__file__).parent.parent / "checkpoints" / "judge.safetensors"  # knows digits
TOGETHER = 2048  # pictures at once
MARGIN = 2  # px around a digit that the judge of digits looks at


def edges(images: Tensor) -> Tensor:
    """Histograms of the directions of edges, as points on the unit sphere.

    images (N, H, W), or (N, 3, H, W) in colour, in [0, 1] -> (N, DIRECTIONS x rows x columns)
    float32. A picture is resized to CELLS cells along its longer side, so that details below 1/32
    of it are not seen; in colour, the channel with the largest gradient counts. An edge counts by
    its gradient, shared between the two nearest directions and the nearest cells. Each histogram
    enters by its square root, so that distances are those of Hellinger (Arandjelovic & Zisserman
    2012, 10.1109/CVPR.2012.6248018).
    """
    import torch
    import torch.nn.functional as F

    H, W = images.shape[-2:]
    rows, columns = (max(1, round(CELLS * side / max(H, W))) for side in (H, W))

    resize = partial(F.interpolate, mode="bilinear", align_corners=False, antialias=True)
    images = images[:, None] if images.ndim == 3 else images
    features = []
    for part in images.float().clamp(0, 1).split(TOGETHER):
        padded = F.pad(resize(part, (CELL * rows, CELL * columns)), (1, 1, 1, 1), mode="replicate")
        down = padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
        right = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]
        size, channel = torch.hypot(down, right).max(1, keepdim=True)
        angle = torch.atan2(down, right).gather(1, channel)
        turns = angle / (2 * math.pi) - torch.arange(DIRECTIONS).view(-1, 1, 1) / DIRECTIONS
        near = (1 - DIRECTIONS * (turns - turns.round()).abs()).clamp(min=0)
        histograms = resize(size * near, (rows, columns)).flatten(1)
        features.append(F.normalize(histograms, p=1).sqrt())
    return torch.cat(features)


def kernel(points: Tensor, landmarks: Tensor, gamma: Tensor) -> Tensor:
    """How near points (N, q) are to landmarks (m, q), from 0 to 1: (N, m)."""
    import torch

    return torch.exp(-gamma * torch.cdist(points, landmarks).square())


class Judge:
    """Which class the middle of a frame shows: frames (N, H, W) in [0, 1] -> (N,) int64.

    Arguments:
        size: (h, w) of the pictures that it was fitted to, px; of a larger frame it judges the
            middle
        tensors: `mean` (d,) and `axes` (d, q) of the principal components, `landmarks` (m, q),
            `weights` (m, k) and `bias` (k,) of the classes, and `gamma` () of the kernel
    """

    def __init__(self, size: tuple[int, int], tensors: dict[str, Tensor]):
        self.size = size
        self.tensors = {name: tensor.float() for name, tensor in tensors.items()}

    @classmethod
    def fit(cls, images: Tensor, labels: Tensor, classes: int) -> Judge:
        """A judge that knows some pictures.

        Arguments:
            images: (M, H, W), or (M, 3, H, W) in colour, in [0, 1]
            labels: (M,) int64 below `classes`; a class without a picture is never recognised
            classes: number of classes

        The same pictures always give the same judge. Raises SettingError for fewer than two.
        """
        import torch
        import torch.nn.functional as F

        if len(images) < 2:
            reject("judge", f"{len(images)} pictures", "two or more")
        features = edges(images)
        mean = features.mean(0)
        features -= mean
        axes = torch.linalg.eigh((features.T @ features).double()).eigenvectors
        axes = axes[:, -COMPONENTS:].float()
        points = features @ axes
        targets = 2 * F.one_hot(labels, classes).float() - 1
        gamma = 1 / points.square().sum(1).mean().clamp(min=1e-12)
        bias = targets.mean(0)
        H, W = images.shape[-2:]

        def judge_by(chosen: Tensor) -> Judge:
            landmarks = points[chosen]
            gram = RIDGE * (kernel(landmarks, landmarks, gamma) + torch.eye(len(chosen))).double()
            products = torch.zeros(len(chosen), classes).double()
            for part, wanted in zip(points.split(TOGETHER), targets.split(TOGETHER)):
                near = kernel(part, landmarks, gamma)
                gram += near.T @ near
                products += near.T @ (wanted - bias)
            tensors = dict(
                mean=mean,
                axes=axes,
                landmarks=landmarks,
                weights=torch.linalg.solve(gram, products),
                bias=bias,
                gamma=gamma,
            )
            return cls((H, W), tensors)

        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
        chosen, others = order[:LANDMARKS], order[LANDMARKS:]
        judge = judge_by(chosen)
        if not len(others):
            return judge
        correct = targets[others] > 0
        scores = judge.scores_at(points[others])
        margin = scores[correct] - scores.masked_fill(correct, -math.inf).max(1).values
        return judge_by(torch.cat([chosen, others[margin.argsort()[:LANDMARKS]]]))

    def scores_at(self, points: Tensor) -> Tensor:
        """The scores (N, k) of pictures whose principal components are `points` (N, q)."""
        import torch

        of = self.tensors
        parts = [
            kernel(part, of["landmarks"], of["gamma"]) @ of["weights"]
            for part in points.split(TOGETHER)
        ]
        return torch.cat(parts) + of["bias"]

    def scores(self, frames: Tensor) -> Tensor:
        """How much the judge holds for each class: about 1 for it, -1 against it, (N, k).

        frames (N, H, W) or (N, 3, H, W) in [0, 1], as the pictures that were fitted, or larger.
        """
        (H, W), (h, w) = frames.shape[-2:], self.size
        if H < h or W < w:
            reject("judge", f"frames of {H} x {W} px", f"{h} x {w} px or more")
        top, left = (H - h) // 2, (W - w) // 2
        features = edges(frames.detach().cpu()[..., top : top + h, left : left + w])
        of = self.tensors
        if features.shape[1] != len(of["mean"]):
            reject("judge", f"{features.shape[1]} features", f"{len(of['mean'])}")
        return self.scores_at((features - of["mean"]) @ of["axes"])

    def __call__(self, frames: Tensor) -> Tensor:
        return self.scores(frames).argmax(1)

    def save(self, path: Path | str, metadata: dict[str, Any]) -> None:
        """Write the judge in half precision, with `metadata` and the size of its pictures."""
        from lab import checkpoint

        halves = {name: tensor.half() for name, tensor in self.tensors.items()}
        halves["gamma"] = self.tensors["gamma"]
        checkpoint.save_tensors(path, halves, metadata | dict(size=list(self.size)))

    @classmethod
    def load(cls, path: Path | str = SHIPPED) -> Judge:
        """A judge that was saved. Raises SettingError for any other file."""
        from lab import checkpoint

        size = checkpoint.read_metadata(path).get("size")
        if size is None:
            raise SettingError(
                f"checkpoint: {path} is not a judge; accepted: what Judge.save wrote"
            )
        height, width = size
        return cls((height, width), checkpoint.read_tensors(path))


@dataclass
class JudgeSettings:
    """Judge"""

    out: Optional[PathText] = None
    """file to write (null: runs/judge.safetensors, or the next such name that is unused)"""
    digit_size: Count = 16
    """side of a digit, px"""


def main(argv: list[str] | None = None) -> None:
    """Fit the judge of digits and write it to --out; a mistake ends with one line and code 2."""
    parser = make_parser(JudgeSettings, DigitSettings, description=__doc__.split("\n")[0])
    args = parser.parse_args(argv)
    try:
        settings = build(JudgeSettings, args)
        source = build(DigitSettings, args)
        import torch

        from data_loader import load_digits
        from diverse_sampling.devices import machine_name, pick_device

        def bank(digits: str, split: str):
            return load_digits(
                digits,
                split,
                size=settings.digit_size,
                data_root=source.data_root,
                timeout=source.download_timeout,
            )

        # Each digit once: what "both" repeats would be known twice.
        sources = ["mnist", "embedded"] if source.digits == "both" else [source.digits]
        known = [bank(each, "train") for each in sources]
        test, embedded = bank(source.digits, "test"), bank("embedded", "test")
    except (SettingError, FileNotFoundError, ValueError) as error:
        fail(str(error))
    side = settings.digit_size + 2 * MARGIN
    start = time.perf_counter()
    images = torch.cat([each.centred(side) for each in known])
    judge = Judge.fit(images, torch.cat([each.labels for each in known]), 10)
    seconds = time.perf_counter() - start
    path = Path(settings.out) if settings.out else unused(Path("runs/judge.safetensors"))
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata: dict[str, Any] = dict(
        settings=record(settings, source) | dict(out=None, data_root="data"),
        digits_source="+".join(each.source for each in known),
        parameters=sum(tensor.numel() for tensor in judge.tensors.values()),
        train_seconds=round(seconds, 1),
        machine=machine_name(pick_device("cpu"), 1),
    )
    judge.save(path, metadata)
    judge = Judge.load(path)  # what is included is what is measured
    right, right_embedded = (
        float((judge(each.centred(side)) == each.labels).double().mean())
        for each in (test, embedded)
    )
    judge.save(path, metadata | dict(accuracy=right, accuracy_embedded=right_embedded))
    print(
        f"{100 * right:.2f}% of {len(test.labels):,} {test.source} test digits, "
        f"{100 * right_embedded:.2f}% of {len(embedded.labels)} embedded ones, written to {path}"
    )


if __name__ == "__main__":
    run_program(main)
