"""What the guidance methods share: the range of a guided denoiser's pixels, and where it acts."""

from __future__ import annotations

from torch import Tensor

from denoiser import Denoiser

# Of a guided denoiser's pixels: far beyond any image, and its square still fits into float32.
LARGEST = 1e8


def finite(denoised: Tensor) -> Tensor:
    """Bound the output of a guided denoiser, so that no strength of guidance ends in infinities.

    denoised, of any shape -> the same within +-LARGEST, NaN replaced by LARGEST. The bound is so
    far outside [-1, 1] that a strength which is too large stays plain to see.
    """
    return denoised.nan_to_num(nan=LARGEST).clamp(-LARGEST, LARGEST)


def between(low: float, high: float, guided: Denoiser, plain: Denoiser) -> Denoiser:
    """The guided denoiser at noise levels in [low, high], the plain one elsewhere."""

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        return (guided if low <= sigma <= high else plain)(x, sigma)

    return denoise


def per_particle(a: Tensor, b: Tensor) -> Tensor:
    """Inner products of the particles of a and b, (G, B, C, H, W) -> (G, B, 1, 1, 1)."""
    return (a * b).sum((2, 3, 4), keepdim=True)
