"""The network that recognises digits: it judges samples, and its features may guide them.

`train_classifier.py` trains it; `checkpoint.load_classifier` loads the two that are shipped.
"""

from __future__ import annotations

from typing import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from ranges import to_model_range


class Classifier(nn.Module):
    """Which digit the middle of a frame shows: frames (N, H, W) in [0, 1] -> logits (N, classes).

    A small residual network (He et al. 2016, arXiv 1512.03385) with two convolutions at each width,
    which halves the resolution between widths.

    Arguments:
        channels: width at each resolution, finest first
        margin: px at each side of a frame that are not looked at
        classes: number of classes
    """

    def __init__(self, channels: Sequence[int], margin: int = 6, classes: int = 10):
        super().__init__()

        def conv(c_in: int, c_out: int, stride: int = 1) -> nn.Sequential:
            layer = nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False)
            return nn.Sequential(layer, nn.BatchNorm2d(c_out))

        before = (channels[0], *channels[:-1])
        self.margin = margin
        self.stem = conv(1, channels[0])
        self.inner = nn.ModuleList(
            conv(a, b, 1 if level == 0 else 2) for level, (a, b) in enumerate(zip(before, channels))
        )
        self.outer = nn.ModuleList(conv(c, c) for c in channels)
        self.skip = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in zip(before[1:], channels[1:]))
        self.out = nn.Linear(channels[-1], classes)

    def features(self, frames: Tensor) -> Tensor:
        """What the last layer sees of frames (N, H, W) in [0, 1]: (N, channels[-1])."""
        H, W = frames.shape[1:]
        m = self.margin
        middle = to_model_range(frames[:, None, m : H - m, m : W - m])
        h = F.relu(self.stem(middle))
        for level, (inner, outer) in enumerate(zip(self.inner, self.outer)):
            kept = self.skip[level - 1](F.avg_pool2d(h, 2)) if level else h
            h = F.relu(kept + outer(F.relu(inner(h))))
        return h.mean((2, 3))

    def forward(self, frames: Tensor) -> Tensor:
        return self.out(self.features(frames))
