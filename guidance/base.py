"""What every guidance method shares."""

from __future__ import annotations

from typing import Callable

from torch import Tensor

Denoiser = Callable[[Tensor, Tensor], Tensor]  # denoise(x, sigma) -> x0, as in sampler.py

LARGEST = 1e8  # of a guided denoiser's pixels: far beyond any image, and its square still fits into float32


def finite(denoised: Tensor) -> Tensor:
    """What absurd strengths cannot turn into infinities, but leave plain to see: any shape, within +-LARGEST."""
    return denoised.nan_to_num(nan=LARGEST).clamp(-LARGEST, LARGEST)
