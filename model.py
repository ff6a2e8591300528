"""The denoiser: EDM preconditioning around a U-Net, and its training loss.

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
every pixel without a deep pyramid.
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


class Attention(nn.Module):
    """Self-attention over all pixels of a feature map, residual. (N, C, H, W) -> same."""

    def __init__(self, channels: int, head_channels: int):
        super().__init__()
        self.heads = max(1, channels // head_channels)
        self.norm = _norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = _zero(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        N, C, H, W = x.shape
        qkv = self.qkv(self.norm(x)).reshape(N, 3, self.heads, C // self.heads, H * W)
        q, k, v = qkv.transpose(-1, -2).unbind(1)                     # (N, heads, H*W, C/heads)
        y = F.scaled_dot_product_attention(q, k, v).transpose(-1, -2).reshape(N, C, H, W)
        return (x + self.out(y)) * math.sqrt(0.5)


class Block(nn.Module):
    """Residual block with adaptive scale-shift (EDM's DDPM++ block), optional attention,
    and its own mean features joined to the embedding."""

    def __init__(self, c_in: int, c_out: int, c_emb: int, attention: bool, head_channels: int,
                 dropout: float):
        super().__init__()
        self.norm1, self.conv1 = _norm(c_in), nn.Conv2d(c_in, c_out, 3, padding=1)
        self.affine = nn.Linear(c_emb, 2 * c_out)
        self.pooled = _zero(nn.Linear(c_out, 2 * c_out, bias=False))
        self.norm2, self.conv2 = _norm(c_out), _zero(nn.Conv2d(c_out, c_out, 3, padding=1))
        self.skip = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.attention = Attention(c_out, head_channels) if attention else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = (self.affine(emb) + self.pooled(h.mean((2, 3))))[:, :, None, None].chunk(2, 1)
        h = F.silu(torch.addcmul(shift, self.norm2(h), scale + 1))
        h = self.conv2(self.dropout(h))
        return self.attention((self.skip(x) + h) * math.sqrt(0.5))


class UNet(nn.Module):
    """The raw network F.

    in_channels    noisy and conditioning frames together
    out_channels   frames to generate
    channels       width at each resolution, finest first
    blocks         residual blocks per resolution on the way down (one more on the way up)
    attention      resolutions (index into `channels`) with self-attention
    patch_size     p x p pixels become one position before the first convolution
    num_classes    0: none; else class labels, with label `num_classes` for "not given"
    """

    def __init__(self, in_channels: int, out_channels: int, *, channels: Sequence[int], blocks: int,
                 attention: Sequence[int], head_channels: int, patch_size: int, dropout: float,
                 num_classes: int):
        super().__init__()
        p, c_emb = patch_size, 2 * channels[0]
        self.patch_size, self.num_classes = p, num_classes
        self.register_buffer("frequencies", torch.linspace(0, math.log(1e4), channels[0] // 2).neg().exp(),
                             persistent=False)
        self.embed = nn.Sequential(nn.Linear(channels[0] // 2 * 2, c_emb), nn.SiLU(),
                                   nn.Linear(c_emb, c_emb), nn.SiLU())
        self.label = nn.Embedding(num_classes + 1, channels[0] // 2 * 2) if num_classes else None
        self.stem = nn.Conv2d(in_channels * p * p, channels[0], 3, padding=1)

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
        self.norm, self.out = _norm(c), _zero(nn.Conv2d(c, out_channels * p * p, 3, padding=1))

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """x (N, in_channels, H, W), c_noise (N,), labels (N,) int64 -> (N, out_channels, H, W)."""
        # ln(s)/4 lies in [-2, 1.1]; times 250 it spans the sinusoids like DDPM's 1000 steps.
        angle = 250 * c_noise.float()[:, None] * self.frequencies
        emb = torch.cat([angle.cos(), angle.sin()], 1)
        if self.label is not None:
            emb = emb + self.label(torch.full_like(c_noise, self.num_classes, dtype=torch.long)
                                   if labels is None else labels)
        emb = self.embed(emb)
        h = self.stem(F.pixel_unshuffle(x, self.patch_size))
        skips = [h]
        for layer in self.down:
            h = layer(h, emb) if isinstance(layer, Block) else layer(h)
            skips.append(h)
        h = self.mid(h, emb)
        for layer in self.up:
            h = layer(torch.cat([h, skips.pop()], 1), emb) if isinstance(layer, Block) else layer(h)
        return F.pixel_shuffle(self.out(F.silu(self.norm(h))), self.patch_size)


class EDMDenoiser(nn.Module):
    """D(x; s) of the module's head, with `sigma_data` sd. Call: (N, C, H, W) images in
    [-1, 1] plus noise, sigma (N,) or scalar, conditioning frames (N, Cc, H, W) in
    [-1, 1] or None, labels (N,) int64 or None -> D (N, C, H, W), float32."""

    def __init__(self, unet: UNet, sigma_data: float):
        super().__init__()
        self.unet = unet
        self.register_buffer("sigma_data", torch.tensor(float(sigma_data)))
        self.autocast = False

    def forward(self, x: Tensor, sigma: Tensor, cond: Tensor | None = None,
                labels: Tensor | None = None) -> Tensor:
        x, sd = x.float(), self.sigma_data
        s = sigma.to(x).expand(x.shape[0])[:, None, None, None]
        c_skip = sd**2 / (s**2 + sd**2)
        c_out = s * sd / (s**2 + sd**2).sqrt()
        c_in = 1 / (s**2 + sd**2).sqrt()
        inputs = c_in * x if cond is None else torch.cat([c_in * x, cond.float()], 1)
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=self.autocast):
            raw = self.unet(inputs.contiguous(memory_format=torch.channels_last),
                            s.flatten().log() / 4, labels)
        return c_skip * x + c_out * raw.float()

    def bind(self, cond: Tensor | None = None,
             labels: Tensor | None = None) -> Callable[[Tensor, Tensor], Tensor]:
        """A denoiser of sets: denoise(x (G, B, C, H, W), sigma scalar) -> x0, same shape.
        Every particle of set g sees cond[g] (G, Cc, H, W) and labels[g] (G,), or with cond
        (G, B, Cc, H, W) one of its own."""
        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            B = x.shape[1]
            each = lambda t: None if t is None else t.repeat_interleave(B, 0)
            frames = cond.flatten(0, 1) if cond is not None and cond.ndim == 5 else each(cond)
            return self(x.flatten(0, 1), sigma, frames, each(labels)).unflatten(0, (-1, B))
        return denoise


def sigma_data_of(frames: Tensor) -> float:
    """Standard deviation over all pixels of frames in [0, 1], as the model sees them, in [-1, 1]."""
    return float(frames.double().std() * 2)


def edm_loss(denoiser: Callable, x: Tensor, sigma: Tensor, target: Tensor, sigma_data: Tensor,
             **kwargs) -> Tensor:
    """Per-image weighted denoising loss, (N,): EDM's equation 2 with its weight
    (s^2 + sd^2) / (s sd)^2, as a mean over pixels.

    x (N, C, H, W) noisy, sigma (N,), target (N, C, H, W) what x should become, in [-1, 1]: the clean
    image, or its posterior mean given x, which has the same minimiser; `kwargs` (cond, labels) go to
    the denoiser.
    """
    weight = (sigma**2 + sigma_data**2) / (sigma * sigma_data)**2
    return weight * (denoiser(x, sigma, **kwargs) - target).square().mean((1, 2, 3))


def posterior_mean(x: Tensor, sigma: Tensor, images: Tensor, log_prior: Tensor | None = None,
                   sd: float = 0.0) -> Tensor:
    """E[y | x] where y is one of k known images, give or take `sd`, and x = y + sigma * noise.

        w = softmax_m(log pi_m - |x - mu_m|^2 / 2 (s^2 + sd^2))
        D(x; s) = (s^2 sum_m w_m mu_m + sd^2 x) / (s^2 + sd^2)

    x (N, ..., C, H, W); sigma scalar or (N,); images mu (N, k, C, H, W); log_prior (k,).
    Exact: no network, no training (EDM, appendix B.3, equation 57; sd > 0 is a Gaussian mixture).
    """
    N = x.shape[0]
    flat, mu = x.reshape(N, -1, images[0, 0].numel()), images.flatten(2)            # (N,P,d), (N,k,d)
    # |x|^2 cancels in the softmax, and leaving it out keeps float32 exact at small sigma.
    logits = flat @ mu.transpose(1, 2) - mu.square().sum(-1)[:, None] / 2           # (N, P, k)
    s2 = sigma.to(x).expand(N)[:, None, None]**2
    logits = logits / (s2 + sd**2) if log_prior is None else logits / (s2 + sd**2) + log_prior
    return ((s2 * (logits.softmax(-1) @ mu) + sd**2 * flat) / (s2 + sd**2)).view_as(x)
