"""What the guidance methods share: the range that a guided denoiser's pixels stay in."""

from __future__ import annotations

from torch import Tensor

# Of a guided denoiser's pixels: far beyond any image, and its square still fits into float32.
LARGEST = 1e8


def finite(denoised: Tensor) -> Tensor:
    """Bound the output of a guided denoiser, so that no strength of guidance ends in infinities.

    denoised, of any shape -> the same within +-LARGEST, NaN replaced by LARGEST. The bound is so
    far outside [-1, 1] that a strength which is too large stays plain to see.
    """
    return denoised.nan_to_num(nan=LARGEST).clamp(-LARGEST, LARGEST)
