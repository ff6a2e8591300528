"""The network that recognises digits: it judges samples, and its features may guide them.

`lab/train_classifier.py` trains it; `checkpoint.load_classifier` loads the two that are shipped.
"""

from __future__ import annotations

import copy
from typing import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from diverse_sampling.denoiser import to_model_range

JUDGED_TOGETHER = dict(cpu=128, cuda=4096)  # frames; the maps of more do not fit a CPU's cache


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
        h = F.relu(self.stem(middle), inplace=True)
        for level, (inner, outer) in enumerate(zip(self.inner, self.outer)):
            skip = self.skip[level - 1](F.avg_pool2d(h, 2)) if level else h
            h = F.relu(skip + outer(F.relu(inner(h), inplace=True)), inplace=True)
        return h.mean((2, 3))

    def forward(self, frames: Tensor) -> Tensor:
        return self.out(self.features(frames))

    def fused(self) -> Classifier:
        """A copy for judging: the same up to rounding, without gradients, and twice as fast.

        Every normalisation, which is a fixed affine map after training, is part of the convolution
        before it, and feature maps are channels-last. Call it in evaluation mode.
        """
        fused = copy.deepcopy(self)
        for block in (fused.stem, *fused.inner, *fused.outer):
            assert isinstance(block, nn.Sequential)
            convolution, norm = block
            assert isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
            block[0] = fuse_conv_bn_eval(convolution, norm)
            block[1] = nn.Identity()
        return fused.requires_grad_(False).to(memory_format=torch.channels_last)


def judged(
    network: Callable[[Tensor], Tensor], frames: Tensor, device: torch.device | str = "cpu"
) -> Tensor:
    """What a network says of many frames (N, H, W), or of their features (N, d), a few at a time on
    its device: (N, ...)."""
    together = JUDGED_TOGETHER[torch.device(device).type]
    with torch.no_grad():
        return torch.cat([network(part.to(device)).cpu() for part in frames.split(together)])
