"""The trained denoiser, EDM preconditioning around a U-Net; its loss; and the exact denoiser.

    D(x; s) = c_skip(s) x + c_out(s) F([c_in(s) x, cond]; c_noise(s))
    c_skip = sd^2 / (s^2 + sd^2)     c_out = s sd / sqrt(s^2 + sd^2)
    c_in   = 1 / sqrt(s^2 + sd^2)    c_noise = ln(s) / 4

with sd = sigma_data (Karras et al. 2022, arXiv 2206.00364, Table 1). Images are in [-1, 1].
Conditioning frames are concatenated as channels and not scaled by c_in.

F is the EDM U-Net in its DDPM++ flavour, with two changes that make it cheap enough for a CPU:

- `patch_size` folds p x p pixels into channels before the first convolution (space-to-depth);
- every block sees the mean over the image of its own features beside the noise embedding (as in
  squeeze-and-excitation, Hu et al. 2017, arXiv 1709.01507), so that what is decided globally, such
  as where a digit goes, reaches every pixel without a deep pyramid.

With `motion`, the network may also move the last conditioning frame M, with weights g per pixel,
instead of drawing the next one anew: c_skip(s) x becomes (1 - g) c_skip(s) x + g M (`Motion`). With
`crop`, it works on the part of the frame in which the world ever lights a pixel; the rest of D is
black.
"""

from __future__ import annotations

import math
from typing import Any, Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diverse_sampling.denoiser import to_model_range, to_unit_range


def _zero(layer: nn.Module) -> nn.Module:
    """The layer with all its parameters set to 0."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def largest_divisor(number: int, limit: int) -> int:
    """The largest divisor of `number` that is not above `limit`; 1 where `limit` is below 1."""
    return next((d for d in range(min(limit, number), 1, -1) if number % d == 0), 1)


def _norm(channels: int) -> nn.GroupNorm:
    """Group normalisation in at most 32 equal groups of at least 4 channels, where so many fit."""
    return nn.GroupNorm(largest_divisor(channels, min(32, channels // 4)), channels, eps=1e-6)


def _silu(h: Tensor) -> Tensor:
    """SiLU of a tensor that is not used again; in place unless a gradient needs the tensor."""
    return F.silu(h, inplace=not torch.is_grad_enabled())


class Pointwise(nn.Conv2d):
    """A 1 x 1 convolution, computed as one matrix product; channels-last maps are not copied."""

    def __init__(self, c_in: int, c_out: int):
        super().__init__(c_in, c_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        pixels = x.permute(0, 2, 3, 1)  # (N, H, W, C)
        return F.linear(pixels, self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


class Attention(nn.Module):
    """Residual self-attention over all pixels of a feature map, (N, C, H, W) -> the same shape.

    Arguments:
        channels: C
        head_channels: smallest number of channels of a head; there are as many equal heads as fit
    """

    def __init__(self, channels: int, head_channels: int):
        super().__init__()
        self.heads = largest_divisor(channels, channels // head_channels)
        self.norm = _norm(channels)
        self.qkv = Pointwise(channels, 3 * channels)
        self.out = _zero(Pointwise(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        N, C, H, W = x.shape
        qkv = self.qkv(self.norm(x)).permute(0, 2, 3, 1)  # (N, H, W, 3 C)
        qkv = qkv.reshape(N, H * W, 3, self.heads, C // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (N, heads, H*W, C/heads) each
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        y = y.reshape(N, H, W, C).permute(0, 3, 1, 2)
        return self.out(y).add_(x).mul_(math.sqrt(0.5))


class Block(nn.Module):
    """Residual block with adaptive scale and shift (EDM's DDPM++ block) and optional attention.

    The scale and shift follow from the embedding and from the block's own mean features.

    Arguments:
        c_in: channels of the features that come in
        c_out: channels of the features that go out
        c_emb: channels of the embedding
        attention: whether self-attention follows
        head_channels: as in `Attention`
        dropout: probability of dropout before the second convolution
    """

    def __init__(
        self, c_in: int, c_out: int, c_emb: int, attention: bool, head_channels: int, dropout: float
    ):
        super().__init__()
        self.norm1 = _norm(c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.affine = nn.Linear(c_emb, 2 * c_out)
        self.pooled = _zero(nn.Linear(c_out, 2 * c_out, bias=False))
        self.norm2 = _norm(c_out)
        self.conv2 = _zero(nn.Conv2d(c_out, c_out, 3, padding=1))
        self.skip = Pointwise(c_in, c_out) if c_in != c_out else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.attention = Attention(c_out, head_channels) if attention else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv1(_silu(self.norm1(x)))
        modulation = self.affine(emb) + self.pooled(h.mean((2, 3)))  # (N, 2 c_out)
        scale, shift = modulation[:, :, None, None].chunk(2, 1)
        h = _silu(torch.addcmul(shift, self.norm2(h), scale + 1))
        h = self.conv2(self.dropout(h))
        return self.attention(h.add_(self.skip(x)).mul_(math.sqrt(0.5)))


class Motion(nn.Module):
    """The last conditioning frame, moved by every displacement of up to `reach` px along each axis.

    It works patch by patch. `fit` says how well the noisy frame agrees with each moved frame (the
    correlation layer of FlowNet, Dosovitskiy et al. 2015, arXiv 1504.06852, equation 1, on pixels);
    `forward` mixes the moved frames with weights that the network chose (dynamic neural advection,
    Finn et al. 2016, arXiv 1605.07157, section 3). Black moves in at the borders.

    Shapes: G frames are moved by D = (2 reach + 1)^2 displacements and cut into T = h w patches of
    P = C p^2 numbers. Each of them serves N / G noisy frames, which follow each other in the batch.

    Arguments:
        reach: largest displacement, px along each axis
        patch_size: side p of a patch, px
        channels: width of the features that the weights are computed from
    """

    def __init__(self, reach: int, patch_size: int, channels: int):
        super().__init__()
        self.reach = reach
        self.patch_size = patch_size
        self.displacements = (2 * reach + 1) ** 2
        self.logits = Pointwise(channels, self.displacements)

    def moved(self, frame: Tensor) -> Tensor:
        """The patches of all moved frames, in [0, 1]: (G, C, H, W) in [-1, 1] -> (G, T, D, P)."""
        p = self.patch_size
        r = self.reach
        padded = F.pad(to_unit_range(frame), (r, r, r, r))
        around = padded.unfold(2, p + 2 * r, p).unfold(3, p + 2 * r, p)
        patches = around.unfold(4, p, 1).unfold(5, p, 1)  # (G, C, h, w, 2r + 1, 2r + 1, p, p)
        patches = patches.movedim(1, 5)  # (G, h, w, 2r + 1, 2r + 1, C, p, p)
        return patches.reshape(len(frame), -1, self.displacements, frame.shape[1] * p * p)

    @staticmethod
    def _by_patch(images: Tensor, groups: int) -> Tensor:
        """Feature maps (N, c, h, w) -> (G, T, N / G, c), with `groups` G."""
        return images.flatten(2).unflatten(0, (groups, -1)).permute(0, 3, 1, 2)

    @staticmethod
    def _by_image(patches: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The inverse, (G, T, N / G, c) -> (N, c, h, w), with `shape` (h, w)."""
        return patches.permute(0, 2, 3, 1).flatten(0, 1).unflatten(2, shape)

    def fit(self, moved: Tensor, x: Tensor) -> Tensor:
        """Inner product, patch by patch, of noisy frames with the moved ones, divided by p.

        moved (G, T, D, P), x (N, C, H, W) -> (N, D, h, w).
        """
        patches = F.pixel_unshuffle(x, self.patch_size)  # (N, P, h, w)
        fit = self._by_patch(patches, len(moved)) @ moved.transpose(2, 3)  # (G, T, N / G, D)
        return self._by_image(fit, patches.shape[2:]) / self.patch_size

    def forward(self, moved: Tensor, h: Tensor) -> Tensor:
        """The mixture of moved frames that features ask for.

        moved (G, T, D, P), h (N, c, h, w) -> (N, C, H, W) in [-1, 1].
        """
        weights = self.logits(h).to(moved).softmax(1)  # (N, D, h, w)
        mixed = self._by_patch(weights, len(moved)) @ moved  # (G, T, N / G, P)
        frames = F.pixel_shuffle(self._by_image(mixed, h.shape[2:]), self.patch_size)
        return to_model_range(frames)


class UNet(nn.Module):
    """The raw network F. It takes any widths.

    Arguments:
        in_channels: noisy and conditioning frames together, the noisy one first
        out_channels: frames to generate
        channels: width at each resolution, finest first
        blocks: residual blocks per resolution on the way down (one more on the way up)
        attention: resolutions (as indices into `channels`) with self-attention
        head_channels: as in `Attention`
        patch_size: p x p pixels become one position before the first convolution
        motion: how far the last conditioning frame may be moved, px along each axis (see `Motion`);
            0: it is not
        dropout: probability of dropout inside residual blocks
        num_classes: number of class labels, with label `num_classes` for "not given"; 0: none
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
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.patch_size = patch_size
        self.num_classes = num_classes
        pixels = patch_size**2
        c_emb = 2 * channels[0]
        frequencies = max(1, channels[0] // 2)  # each with a cosine and a sine
        self.register_buffer(
            "frequencies",
            torch.linspace(0, math.log(1e4), frequencies).neg().exp(),
            persistent=False,
        )
        self.embed = nn.Sequential(
            nn.Linear(2 * frequencies, c_emb), nn.SiLU(), nn.Linear(c_emb, c_emb), nn.SiLU()
        )
        self.label = nn.Embedding(num_classes + 1, 2 * frequencies) if num_classes else None
        self.motion = Motion(motion, patch_size, channels[0]) if motion else None
        fits = 0 if self.motion is None else self.motion.displacements
        self.stem = nn.Conv2d(in_channels * pixels + fits, channels[0], 3, padding=1)

        def block(c_in: int, c_out: int, level: int) -> Block:
            return Block(c_in, c_out, c_emb, level in attention, head_channels, dropout)

        self.down = nn.ModuleList()
        self.up = nn.ModuleList()
        c = channels[0]  # of the features so far
        widths = [c]  # of those that a block on the way up takes
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
        self.norm = _norm(c)
        # With motion, beside every pixel: how much of the moved frame to take there.
        outputs = out_channels * pixels * (2 if motion else 1)
        self.out = _zero(nn.Conv2d(c, outputs, 3, padding=1))

    def forward(
        self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None, moved: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """F, its bottleneck and, with motion, how much of a moved frame each pixel takes, and it.

        Arguments:
            x: (N, in_channels, H, W)
            c_noise: (N,)
            labels: (N,) int64, None for "not given"
            moved: (G, T, D, P) as `Motion.moved` computes it, None to compute it from x

        Returns four tensors, (N, out_channels, H, W) but for the bottleneck: it is what the block
        between the ways down and up makes, (N, channels[-1], h, w). The last two are None without
        motion.
        """
        # ln(s)/4 lies in [-2, 1.1]; times 250 it spans the sinusoids like DDPM's 1000 steps.
        angle = 250 * c_noise[:, None] * self.frequencies
        emb = torch.cat([angle.cos(), angle.sin()], 1)
        if self.label is not None:
            if labels is None:
                labels = torch.full_like(c_noise, self.num_classes, dtype=torch.long)
            emb = emb + self.label(labels)
        emb = self.embed(emb)
        h = F.pixel_unshuffle(x, self.patch_size)
        if self.motion is not None:
            C = self.out_channels
            moved = self.motion.moved(x[:, -C:]) if moved is None else moved
            h = torch.cat([h, self.motion.fit(moved, x[:, :C])], 1)
        h = self.stem(h)
        skips = [h]
        for layer in self.down:
            h = layer(h, emb) if isinstance(layer, Block) else layer(h)
            skips.append(h)
        h = bottleneck = self.mid(h, emb)
        for layer in self.up:
            if isinstance(layer, Block):
                h = layer(torch.cat([h, skips.pop()], 1), emb)
            else:
                h = layer(h)
        h = _silu(self.norm(h))
        out = F.pixel_shuffle(self.out(h), self.patch_size)
        if self.motion is None:
            return out, bottleneck, None, None
        drawn, gain = out.chunk(2, 1)
        return drawn, bottleneck, gain, self.motion(moved, h)


def inside(frames: Tensor, box: Sequence[int] | None) -> Tensor:
    """The part of frames (..., H, W) in a box (top, bottom, left, right); all of it for None."""
    if box is None:
        return frames
    top, bottom, left, right = box
    return frames[..., top:bottom, left:right]


class EDMDenoiser(nn.Module):
    """The preconditioned network D(x; s) of the top of this file.

    Arguments:
        unet: F
        sigma_data: sd, the standard deviation of the data in [-1, 1]
        box: (top, bottom, left, right) of the part of the frame that the network works on, outside
            of which D is -1; None: the whole frame
    """

    sigma_data: Tensor

    def __init__(self, unet: UNet, sigma_data: float, box: Sequence[int] | None = None):
        super().__init__()
        self.unet = unet
        self.box = None if box is None else tuple(box)
        self.register_buffer("sigma_data", torch.tensor(float(sigma_data)))
        self.autocast = False  # whether F runs in bfloat16

    def inside(self, frames: Tensor) -> Tensor:
        """The part of frames (..., H, W) that the network sees."""
        return inside(frames, self.box)

    def _whole(self, inner: Tensor, H: int, W: int) -> Tensor:
        """Frames (N, C, H, W) with `inner` in the box and -1 outside of it."""
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
        with_features: bool = False,
    ) -> Any:
        """D(x; s) in the precision of the weights, whatever that of x.

        Arguments:
            x: (N, C, H, W), images in [-1, 1] plus noise
            sigma: s, (N,) or a scalar
            cond: conditioning frames (N, Cc, H, W) in [-1, 1], or None
            labels: (N,) int64, or None
            moved: `Motion.moved` of the last conditioning frames, None to compute it
            with_features: whether to return the network's own features as well

        Returns (N, C, H, W); with features a pair of that and the bottleneck of `UNet.forward`.
        """
        H, W = x.shape[2:]
        sd = self.sigma_data
        x = self.inside(x).to(sd)
        s = sigma.to(x).expand(x.shape[0])[:, None, None, None]
        c_skip = sd**2 / (s**2 + sd**2)
        c_out = s * sd / (s**2 + sd**2).sqrt()
        c_in = 1 / (s**2 + sd**2).sqrt()
        c_noise = s.flatten().log() / 4
        inputs = c_in * x
        if cond is not None:
            inputs = torch.cat([inputs, self.inside(cond).to(x)], 1)
        inputs = inputs.contiguous(memory_format=torch.channels_last)
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=self.autocast):
            drawn, bottleneck, gain, moved = self.unet(inputs, c_noise, labels, moved)
        skip = c_skip * x
        if gain is not None:
            skip = torch.lerp(skip, moved.to(x), gain.to(x))
        denoised = self._whole(skip + c_out * drawn.to(x), H, W)
        return (denoised, bottleneck) if with_features else denoised

    def compile_for_any_size(self, **options: str) -> None:
        """Compile the network once for all numbers of images; call it before the first image.

        By default two sizes that are equal in the first call, such as the number of images and the
        pixels of a patch, are taken for one, and each other combination is compiled anew, up to
        Dynamo's limit of eight. `options` are those of torch.compile.
        """
        from torch.fx.experimental import _config as shapes  # imports much that is not needed else

        shapes.use_duck_shape = False
        self.compile(dynamic=True, **options)

    def bind(
        self,
        cond: Tensor | None = None,
        labels: Tensor | None = None,
        with_features: bool = False,
    ) -> Callable[[Tensor, Tensor], Any]:
        """A denoiser of sets: denoise(x (G, B, C, H, W), sigma scalar) -> x0, the same shape.

        Arguments:
            cond: (G, Cc, H, W), the conditioning of all particles of a set; or (G, B, Cc, H, W),
                that of each particle; or None
            labels: (G,) int64, the class of all particles of a set, or None
            with_features: whether it returns a pair, x0 and the bottleneck of `UNet.forward`,
                (G, B, c, h, w)
        """
        shared = cond is not None and cond.ndim == 4
        moved = None
        if cond is not None and shared and self.unet.motion is not None:
            # The same for all particles of a set and at all steps.
            last = cond[:, -self.unet.out_channels :]
            moved = self.unet.motion.moved(self.inside(last).to(self.sigma_data))

        def denoise(x: Tensor, sigma: Tensor) -> Any:
            B = x.shape[1]
            frames = cond
            if cond is not None:
                frames = cond.repeat_interleave(B, 0) if shared else cond.flatten(0, 1)
            classes = None if labels is None else labels.repeat_interleave(B, 0)
            images = x.flatten(0, 1)
            if not with_features:
                return self(images, sigma.to(x), frames, classes, moved).unflatten(0, (-1, B))
            both = self(images, sigma.to(x), frames, classes, moved, with_features=True)
            return tuple(each.unflatten(0, (-1, B)) for each in both)

        return denoise


def sigma_data_of(frames: Tensor) -> float:
    """Standard deviation of the pixels of frames (..., H, W) in [0, 1], in units of [-1, 1]."""
    return float(frames.double().std() * 2)


def lit_box(frames: Tensor, multiple: int) -> tuple[int, int, int, int]:
    """The smallest box outside of which every frame is black, as (top, bottom, left, right).

    frames (..., H, W) in [0, 1]. The box is widened to edges that are multiples of `multiple` px,
    as far as the frame goes. It is the whole frame where all are black.
    """
    lit = frames.flatten(0, -3).amax(0) > 0  # (H, W)
    top, bottom = _lit_span(lit.any(1), multiple)
    left, right = _lit_span(lit.any(0), multiple)
    return top, bottom, left, right


def _lit_span(lit: Tensor, multiple: int) -> tuple[int, int]:
    """First and last edge of what is lit, (n,) bool, widened to multiples of `multiple`."""
    places = lit.nonzero()
    if len(places) == 0:
        return 0, len(lit)
    low = int(places[0]) // multiple * multiple
    high = math.ceil((int(places[-1]) + 1) / multiple) * multiple
    return low, min(high, len(lit))


def edm_loss(
    denoiser: Callable, x: Tensor, sigma: Tensor, target: Tensor, sigma_data: Tensor, **kwargs
) -> Tensor:
    """The denoising loss of each image, weighted over noise levels, as a mean over pixels.

        (s^2 + sd^2) / (s sd)^2 |D(x; s) - target|^2    (EDM, equation 2)

    Arguments:
        denoiser: D
        x: (N, C, H, W), noisy images
        sigma: s, (N,)
        target: (N, C, H, W) in [-1, 1], what x should become: the clean image, or its posterior
            mean given x, which has the same minimiser
        sigma_data: sd
        kwargs: more arguments of the denoiser (cond, labels)

    Returns (N,).
    """
    weight = (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
    return weight * (denoiser(x, sigma, **kwargs) - target).square().mean((1, 2, 3))
