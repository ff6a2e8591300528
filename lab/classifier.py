"""The networks that recognise classes, of clean frames and of noisy ones.

`Classifier` judges samples. `NoisyClassifier` says how likely each class is while a sample is still
noise. `lab/train_classifier.py` trains both;
`checkpoint.load_classifier` loads those that are included.
"""

from __future__ import annotations

import copy
import math
from typing import Any, Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from diverse_sampling.denoiser import to_model_range

LARGEST = 32  # px; a larger image is averaged to at most these sides before it is classified
WAVES = 8  # functions of the noise level that a `NoisyClassifier` sees
UNDECIDED = 2.0  # noise level around which these tell levels apart best
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


class NoisyClassifier(nn.Module):
    """log p(class | x, sigma) of noisy images x = y + sigma n, normalised over the classes.

    Its gradient with respect to x is the score of a class less that of all images, which is what
    classifier guidance adds (Dhariwal & Nichol 2021, arXiv 2105.05233). Under noise an image is
    recognised by inner products with whole images, so its layers are fully connected. They see
    x / sqrt(sigma^2 + sigma_data^2), and the noise level scales and shifts every layer (FiLM, Perez
    et al. 2018, arXiv 1709.07871). Normalisations know no batch, which would mix noise levels, and
    activations are smooth, because gradients are taken through them.

    Logits are multiplied by 1 / sqrt(1 + sigma^2 / UNDECIDED^2): the stronger the noise, the less
    an image says, until the logarithm of the classes' shares is left.

    Large images are averaged over rectangles, which leaves less of the noise; sigma above is what
    is left of it.

    Arguments:
        image_size: (H, W) of an image, px; a number for squares
        margin: px at each side of an image that are not looked at
        colours: channels of an image
        classes: number of classes
        sigma_data: standard deviation of what is looked at, in [-1, 1]
        width: of every layer
        blocks: number of residual layers

    Attributes:
        pool: (h, w) of the rectangles over which an image is averaged, px
        of_clusters: whether its classes are clusters, found without labels
    """

    of_clusters = False

    def __init__(
        self,
        image_size: int | Sequence[int] = 32,
        margin: int = 6,
        colours: int = 1,
        classes: int = 10,
        sigma_data: float = 0.6,
        width: int = 352,
        blocks: int = 2,
    ):
        super().__init__()
        self.image_size = [image_size] * 2 if isinstance(image_size, int) else list(image_size)
        self.margin = margin
        self.colours = colours
        self.classes = classes
        self.sigma_data = sigma_data
        sides = [side - 2 * margin for side in self.image_size]
        self.pool = [math.ceil(side / LARGEST) for side in sides]
        inputs = colours * math.prod(side // n for side, n in zip(sides, self.pool))
        self.stem = nn.Linear(inputs, width)
        self.inner = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.film = nn.ModuleList(nn.Linear(WAVES, 2 * width) for _ in range(blocks + 1))
        self.out = nn.Linear(width, classes)
        self.prior = nn.Parameter(torch.zeros(classes))

    @property
    def arguments(self) -> dict[str, Any]:
        """What makes the same network, for its checkpoint."""
        keys = ("image_size", "margin", "colours", "classes", "sigma_data")
        return {key: getattr(self, key) for key in keys}

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """log p, (N, classes).

        Arguments:
            x: noisy images (N, colours, H, W), [-1, 1] plus noise
            sigma: their noise level, a scalar or (N,)
        """
        return self.of_seen(self.seen(x), sigma * self.noise_left)

    @property
    def noise_left(self) -> float:
        """The standard deviation of noise in what is looked at, over that in the image."""
        return math.prod(self.pool) ** -0.5

    def seen(self, x: Tensor) -> Tensor:
        """What is looked at of images (N, colours, H, W): averages (N, colours, h, w). Rows and
        columns that fill no rectangle, at the lower and the right edge, are left out."""
        H, W = x.shape[2:]
        m = self.margin
        return F.avg_pool2d(x[:, :, m : H - m, m : W - m], self.pool)

    def of_seen(self, seen: Tensor, sigma: Tensor) -> Tensor:
        """`forward`, given what is looked at and the noise that is left in it."""
        sigma = sigma.to(seen).expand(len(seen))[:, None]
        waves = torch.arange(WAVES, device=seen.device)
        level = torch.cos(math.pi * waves * sigma / (sigma + UNDECIDED))  # the same for all < 0.01

        def modulated(h: Tensor, film: nn.Module) -> Tensor:
            scale, shift = film(level).chunk(2, -1)
            return F.silu(self.norm(h) * (1 + scale) + shift)

        h = self.stem(seen.flatten(1) * (sigma**2 + self.sigma_data**2).rsqrt())
        for inner, film in zip(self.inner, self.film):
            h = h + inner(modulated(h, film))
        logits = self.out(modulated(h, self.film[-1]))
        return (logits * (1 + (sigma / UNDECIDED) ** 2).rsqrt() + self.prior).log_softmax(-1)


def judged(
    network: Callable[[Tensor], Tensor], frames: Tensor, device: torch.device | str = "cpu"
) -> Tensor:
    """What a network says of many frames (N, H, W), or of their features (N, d), a few at a time on
    its device: (N, ...)."""
    together = JUDGED_TOGETHER[torch.device(device).type]
    with torch.no_grad():
        return torch.cat([network(part.to(device)).cpu() for part in frames.split(together)])
