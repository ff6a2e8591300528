"""The denoiser: EDM preconditioning around a U-Net, and its training loss. At the end, the digit classifier.

    D(x; s) = c_skip(s) x + c_out(s) F([c_in(s) x, cond]; c_noise(s))
    c_skip = sd^2 / (s^2 + sd^2)     c_out = s sd / sqrt(s^2 + sd^2)
    c_in   = 1 / sqrt(s^2 + sd^2)    c_noise = ln(s) / 4

with sd = sigma_data (Karras et al. 2022, arXiv 2206.00364, Table 1). Images are in
[-1, 1] here. Conditioning frames are concatenated as channels, not scaled by c_in.

F is the EDM U-Net in its DDPM++ flavour. Two things make it cheap enough for a CPU:
`patch_size` folds p x p pixels into channels before the first convolution
(space-to-depth), and every block sees the mean over the image of its own features
beside the noise embedding (as in squeeze-and-excitation, Hu et al. 2017, arXiv
1709.01507), so that what is decided globally, such as where a digit goes, reaches
every pixel without a deep pyramid. With `motion`, the network may also move the last
conditioning frame M, with weights g per pixel, instead of drawing the next one anew:
c_skip(s) x becomes (1 - g) c_skip(s) x + g M (`Motion`). With `crop`, it works on the
part of the frame that the world ever lights; the rest of D is black.
"""

from __future__ import annotations

import math
from typing import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _zero(layer: nn.Module) -> nn.Module:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(min(32, channels // 4), channels, eps=1e-6)


def _silu(h: Tensor) -> Tensor:
    """SiLU of a tensor that nobody else reads; in place unless a gradient needs it."""
    return F.silu(h, inplace=not torch.is_grad_enabled())


class Pointwise(nn.Conv2d):
    """A 1 x 1 convolution as the matrix product that it is, on channels-last maps without a copy."""

    def __init__(self, c_in: int, c_out: int):
        super().__init__(c_in, c_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias).permute(
            0, 3, 1, 2
        )


class Attention(nn.Module):
    """Self-attention over all pixels of a feature map, residual. (N, C, H, W) -> same."""

    def __init__(self, channels: int, head_channels: int):
        super().__init__()
        self.heads = max(1, channels // head_channels)
        self.norm = _norm(channels)
        self.qkv = Pointwise(channels, 3 * channels)
        self.out = _zero(Pointwise(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        N, C, H, W = x.shape
        qkv = (
            self.qkv(self.norm(x))
            .permute(0, 2, 3, 1)
            .reshape(N, H * W, 3, self.heads, C // self.heads)
        )
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (N, heads, H*W, C/heads) each
        y = (
            F.scaled_dot_product_attention(q, k, v)
            .transpose(1, 2)
            .reshape(N, H, W, C)
            .permute(0, 3, 1, 2)
        )
        return self.out(y).add_(x).mul_(math.sqrt(0.5))


class Block(nn.Module):
    """Residual block with adaptive scale-shift (EDM's DDPM++ block), optional attention,
    and its own mean features joined to the embedding."""

    def __init__(
        self, c_in: int, c_out: int, c_emb: int, attention: bool, head_channels: int, dropout: float
    ):
        super().__init__()
        self.norm1, self.conv1 = _norm(c_in), nn.Conv2d(c_in, c_out, 3, padding=1)
        self.affine = nn.Linear(c_emb, 2 * c_out)
        self.pooled = _zero(nn.Linear(c_out, 2 * c_out, bias=False))
        self.norm2, self.conv2 = _norm(c_out), _zero(nn.Conv2d(c_out, c_out, 3, padding=1))
        self.skip = Pointwise(c_in, c_out) if c_in != c_out else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.attention = Attention(c_out, head_channels) if attention else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv1(_silu(self.norm1(x)))
        scale, shift = (self.affine(emb) + self.pooled(h.mean((2, 3))))[:, :, None, None].chunk(
            2, 1
        )
        h = _silu(torch.addcmul(shift, self.norm2(h), scale + 1))
        h = self.conv2(self.dropout(h))
        return self.attention(h.add_(self.skip(x)).mul_(math.sqrt(0.5)))


class Motion(nn.Module):
    """The last conditioning frame moved by every displacement of up to `reach` px an axis, patch by patch.

    `fit` says how well the noisy frame agrees with each of them (the correlation layer of FlowNet, Dosovitskiy
    et al. 2015, arXiv 1504.06852, equation 1, on pixels); `forward` mixes them with weights that the network
    chose (dynamic neural advection, Finn et al. 2016, arXiv 1605.07157, section 3). Black moves in at the borders.
    """

    def __init__(self, reach: int, patch_size: int, channels: int):
        super().__init__()
        self.reach, self.patch_size, self.displacements = reach, patch_size, (2 * reach + 1) ** 2
        self.logits = Pointwise(channels, self.displacements)

    def moved(self, frame: Tensor) -> Tensor:
        """(G, 1, H, W) in [-1, 1] -> (G, T, D, P) in [0, 1]: T patches of P pixels, D displacements."""
        p, r = self.patch_size, self.reach
        padded = F.pad((frame[:, 0] + 1) / 2, (r, r, r, r))
        around = padded.unfold(1, p + 2 * r, p).unfold(2, p + 2 * r, p)  # (G, h, w, p + 2r, p + 2r)
        return (
            around.unfold(3, p, 1)
            .unfold(4, p, 1)
            .reshape(len(frame), -1, self.displacements, p * p)
        )

    # Below, a frame of `moved` serves N / G noisy ones, in a row; c channels at h x w positions are T of them.
    @staticmethod
    def _by_patch(images: Tensor, groups: int) -> Tensor:
        """(N, c, h, w) -> (G, T, N / G, c)."""
        return images.flatten(2).unflatten(0, (groups, -1)).permute(0, 3, 1, 2)

    @staticmethod
    def _by_image(patches: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The inverse: (G, T, N / G, c) -> (N, c, h, w)."""
        return patches.permute(0, 2, 3, 1).flatten(0, 1).unflatten(2, shape)

    def fit(self, moved: Tensor, x: Tensor) -> Tensor:
        """Inner product, patch by patch, of noisy frames x (N, 1, H, W) with the moved ones -> (N, D, h, w)."""
        patches = F.pixel_unshuffle(x, self.patch_size)  # (N, P, h, w)
        fit = self._by_patch(patches, len(moved)) @ moved.transpose(2, 3)  # (G, T, N / G, D)
        return self._by_image(fit, patches.shape[2:]) / self.patch_size

    def forward(self, moved: Tensor, h: Tensor) -> Tensor:
        """The mixture of moved frames that the features h (N, C, h, w) ask for, (N, 1, H, W) in [-1, 1]."""
        weights = self._by_patch(
            self.logits(h).to(moved).softmax(1), len(moved)
        )  # (G, T, N / G, D)
        return (
            2 * F.pixel_shuffle(self._by_image(weights @ moved, h.shape[2:]), self.patch_size) - 1
        )


class UNet(nn.Module):
    """The raw network F.

    in_channels    noisy and conditioning frames together, the noisy one first
    out_channels   frames to generate
    channels       width at each resolution, finest first
    blocks         residual blocks per resolution on the way down (one more on the way up)
    attention      resolutions (index into `channels`) with self-attention
    patch_size     p x p pixels become one position before the first convolution
    motion         0: none; else how far it may move the last conditioning frame, px an axis (see `Motion`)
    num_classes    0: none; else class labels, with label `num_classes` for "not given"
    """

    frequencies: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        channels: Sequence[int],
        blocks: int,
        attention: Sequence[int],
        head_channels: int,
        patch_size: int,
        motion: int,
        dropout: float,
        num_classes: int,
    ):
        super().__init__()
        p, c_emb = patch_size, 2 * channels[0]
        self.patch_size, self.num_classes = p, num_classes
        self.register_buffer(
            "frequencies",
            torch.linspace(0, math.log(1e4), channels[0] // 2).neg().exp(),
            persistent=False,
        )
        self.embed = nn.Sequential(
            nn.Linear(channels[0] // 2 * 2, c_emb), nn.SiLU(), nn.Linear(c_emb, c_emb), nn.SiLU()
        )
        self.label = nn.Embedding(num_classes + 1, channels[0] // 2 * 2) if num_classes else None
        self.motion = Motion(motion, p, channels[0]) if motion else None
        self.stem = nn.Conv2d(
            in_channels * p * p + (self.motion.displacements if self.motion else 0),
            channels[0],
            3,
            padding=1,
        )

        def block(c_in, c_out, level):
            return Block(c_in, c_out, c_emb, level in attention, head_channels, dropout)

        self.down, self.up, widths, c = nn.ModuleList(), nn.ModuleList(), [channels[0]], channels[0]
        for level, width in enumerate(channels):
            if level:
                self.down.append(nn.Conv2d(c, c, 3, stride=2, padding=1))
                widths.append(c)
            for _ in range(blocks):
                self.down.append(block(c, width, level))
                c = width
                widths.append(c)
        self.mid = block(c, c, len(channels) - 1)
        for level, width in reversed(list(enumerate(channels))):
            for _ in range(blocks + 1):
                self.up.append(block(c + widths.pop(), width, level))
                c = width
            if level:
                self.up.append(nn.Upsample(scale_factor=2, mode="nearest"))
        # With motion, beside every pixel: how much of the moved frame to take there.
        self.norm, self.out = (
            _norm(c),
            _zero(nn.Conv2d(c, out_channels * p * p * (2 if motion else 1), 3, padding=1)),
        )

    def forward(
        self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None, moved: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """x (N, in_channels, H, W), c_noise (N,), labels (N,) int64, moved (G, T, D, P) as `Motion.moved` gives it,
        None to make it from x -> F and, with motion, how much of the moved frame to take at each pixel and that
        frame (else None, None); each (N, out_channels, H, W)."""
        # ln(s)/4 lies in [-2, 1.1]; times 250 it spans the sinusoids like DDPM's 1000 steps.
        angle = 250 * c_noise[:, None] * self.frequencies
        emb = torch.cat([angle.cos(), angle.sin()], 1)
        if self.label is not None:
            emb = emb + self.label(
                torch.full_like(c_noise, self.num_classes, dtype=torch.long)
                if labels is None
                else labels
            )
        emb = self.embed(emb)
        h = F.pixel_unshuffle(x, self.patch_size)
        if self.motion is not None:
            moved = self.motion.moved(x[:, -1:]) if moved is None else moved
            h = torch.cat([h, self.motion.fit(moved, x[:, :1])], 1)
        h = self.stem(h)
        skips = [h]
        for layer in self.down:
            h = layer(h, emb) if isinstance(layer, Block) else layer(h)
            skips.append(h)
        h = self.mid(h, emb)
        for layer in self.up:
            h = layer(torch.cat([h, skips.pop()], 1), emb) if isinstance(layer, Block) else layer(h)
        h = _silu(self.norm(h))
        out = F.pixel_shuffle(self.out(h), self.patch_size)
        if self.motion is None:
            return out, None, None
        own, gain = out.chunk(2, 1)
        return own, gain, self.motion(moved, h)


def inside(frames: Tensor, box: Sequence[int] | None) -> Tensor:
    """The part of (..., H, W) in a box (top, bottom, left, right), all of it for None."""
    if box is None:
        return frames
    top, bottom, left, right = box
    return frames[..., top:bottom, left:right]


class EDMDenoiser(nn.Module):
    """D(x; s) of the module's head, with `sigma_data` sd. Call: (N, C, H, W) images in
    [-1, 1] plus noise, sigma (N,) or scalar, conditioning frames (N, Cc, H, W) in
    [-1, 1] or None, labels (N,) int64 or None -> D (N, C, H, W) in the precision of the
    weights, whatever that of x. Outside `box` (top, bottom, left, right; None: the whole
    frame) D is -1."""

    sigma_data: Tensor

    def __init__(self, unet: UNet, sigma_data: float, box: Sequence[int] | None = None):
        super().__init__()
        self.unet, self.box = unet, None if box is None else tuple(box)
        self.register_buffer("sigma_data", torch.tensor(float(sigma_data)))
        self.autocast = False

    def inside(self, frames: Tensor) -> Tensor:
        """The part of (..., H, W) that the network sees."""
        return inside(frames, self.box)

    def _whole(self, inner: Tensor, H: int, W: int) -> Tensor:
        if self.box is None:
            return inner
        top, bottom, left, right = self.box
        return F.pad(inner, (left, W - right, top, H - bottom), value=-1.0)

    def forward(
        self,
        x: Tensor,
        sigma: Tensor,
        cond: Tensor | None = None,
        labels: Tensor | None = None,
        moved: Tensor | None = None,
    ) -> Tensor:
        H, W = x.shape[2:]
        x, sd = self.inside(x).to(self.sigma_data), self.sigma_data
        s = sigma.to(x).expand(x.shape[0])[:, None, None, None]
        c_skip = sd**2 / (s**2 + sd**2)
        c_out = s * sd / (s**2 + sd**2).sqrt()
        c_in = 1 / (s**2 + sd**2).sqrt()
        inputs = c_in * x if cond is None else torch.cat([c_in * x, self.inside(cond).to(x)], 1)
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=self.autocast):
            own, gain, moved = self.unet(
                inputs.contiguous(memory_format=torch.channels_last),
                s.flatten().log() / 4,
                labels,
                moved,
            )
        kept = c_skip * x if gain is None else torch.lerp(c_skip * x, moved.to(x), gain.to(x))
        return self._whole(kept + c_out * own.to(x), H, W)

    def bind(
        self, cond: Tensor | None = None, labels: Tensor | None = None
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """A denoiser of sets: denoise(x (G, B, C, H, W), sigma scalar) -> x0, same shape.
        Every particle of set g sees cond[g] (G, Cc, H, W) and labels[g] (G,), or with cond
        (G, B, Cc, H, W) one of its own."""
        shared, moved = cond is not None and cond.ndim == 4, None
        if cond is not None and shared and self.unet.motion is not None:
            # What all particles of a set and all steps have in common.
            moved = self.unet.motion.moved(self.inside(cond[:, -1:]).to(self.sigma_data))

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            B = x.shape[1]
            each = lambda t: None if t is None else t.repeat_interleave(B, 0)
            frames = each(cond) if shared or cond is None else cond.flatten(0, 1)
            return self(x.flatten(0, 1), sigma, frames, each(labels), moved).unflatten(0, (-1, B))

        return denoise


def sigma_data_of(frames: Tensor) -> float:
    """Standard deviation over all pixels of frames (..., H, W) in [0, 1], as the model sees them, in [-1, 1]."""
    return float(frames.double().std() * 2)


def lit_box(frames: Tensor, multiple: int) -> tuple[int, int, int, int]:
    """(top, bottom, left, right) of the smallest box outside of which every frame (..., H, W) in [0, 1] is black,
    widened to places and sizes that are multiples of `multiple` px."""
    lit = frames.flatten(0, -3).amax(0) > 0
    edges: list[int] = []
    for axis in (1, 0):
        places = lit.any(axis).nonzero()
        low, high = (
            (int(places[0]), int(places[-1]) + 1) if len(places) else (0, lit.shape[1 - axis])
        )
        edges += [
            low // multiple * multiple,
            min(-(-high // multiple) * multiple, lit.shape[1 - axis]),
        ]
    top, bottom, left, right = edges
    return top, bottom, left, right


def edm_loss(
    denoiser: Callable, x: Tensor, sigma: Tensor, target: Tensor, sigma_data: Tensor, **kwargs
) -> Tensor:
    """Per-image weighted denoising loss, (N,): EDM's equation 2 with its weight
    (s^2 + sd^2) / (s sd)^2, as a mean over pixels.

    x (N, C, H, W) noisy, sigma (N,), target (N, C, H, W) what x should become, in [-1, 1]: the clean
    image, or its posterior mean given x, which has the same minimiser; `kwargs` (cond, labels) go to
    the denoiser.
    """
    weight = (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
    return weight * (denoiser(x, sigma, **kwargs) - target).square().mean((1, 2, 3))


def posterior_mean(
    x: Tensor, sigma: Tensor, images: Tensor, log_prior: Tensor | None = None, sd: float = 0.0
) -> Tensor:
    """E[y | x] where y is one of k known images, give or take `sd`, and x = y + sigma * noise.

        w = softmax_m(log pi_m - |x - mu_m|^2 / 2 (s^2 + sd^2))
        D(x; s) = (s^2 sum_m w_m mu_m + sd^2 x) / (s^2 + sd^2)

    x (N, ..., C, H, W); sigma scalar or (N,); images mu (N, k, C, H, W); log_prior (k,).
    Exact: no network, no training (EDM, appendix B.3, equation 57; sd > 0 is a Gaussian mixture).
    """
    N = x.shape[0]
    flat, mu = x.reshape(N, -1, images[0, 0].numel()), images.flatten(2)  # (N,P,d), (N,k,d)
    # |x|^2 cancels in the softmax, and leaving it out keeps float32 exact at small sigma.
    logits = flat @ mu.transpose(1, 2) - mu.square().sum(-1)[:, None] / 2  # (N, P, k)
    s2 = sigma.to(x).expand(N)[:, None, None] ** 2
    logits = logits / (s2 + sd**2) if log_prior is None else logits / (s2 + sd**2) + log_prior
    return ((s2 * (logits.softmax(-1) @ mu) + sd**2 * flat) / (s2 + sd**2)).view_as(x)


class Classifier(nn.Module):
    """Which digit the middle of a frame shows: a small residual network (He et al. 2016, arXiv 1512.03385), two
    convolutions at each width, that halves the resolution between widths. `margin` px around it are not looked at.
    Frames (N, H, W) in [0, 1] -> logits (N, 10)."""

    def __init__(self, channels: Sequence[int], margin: int = 6, classes: int = 10):
        super().__init__()

        def conv(c_in, c_out, stride=1):
            return nn.Sequential(
                nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out)
            )

        self.margin, before = margin, (channels[0], *channels[:-1])
        self.stem = conv(1, channels[0])
        self.inner = nn.ModuleList(
            conv(a, b, 1 if i == 0 else 2) for i, (a, b) in enumerate(zip(before, channels))
        )
        self.outer = nn.ModuleList(conv(b, b) for b in channels)
        self.skip = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in zip(before[1:], channels[1:]))
        self.out = nn.Linear(channels[-1], classes)

    def features(self, frames: Tensor) -> Tensor:
        """What the last layer sees, (N, channels[-1])."""
        m, H, W = self.margin, *frames.shape[1:]
        h = F.relu(self.stem(2 * frames[:, None, m : H - m, m : W - m] - 1))
        for level, (inner, outer) in enumerate(zip(self.inner, self.outer)):
            kept = self.skip[level - 1](F.avg_pool2d(h, 2)) if level else h
            h = F.relu(kept + outer(F.relu(inner(h))))
        return h.mean((2, 3))

    def forward(self, frames: Tensor) -> Tensor:
        return self.out(self.features(frames))
