"""The one signature that the sampler, the guidance and every denoiser share.

A *denoiser* is any function `denoise(x, sigma) -> x0`:

    x       (G, B, C, H, W) float32: G independent sets of B noisy particles
    sigma   their noise level, a float64 scalar tensor on the CPU, so that comparing it with a bound
            never waits for a GPU
    x0      like x: the denoiser's estimate of the clean images, E[y | x] for an exact one

A trained network with its conditioning bound is a denoiser, the exact posterior mean is one, and
guidance is a denoiser that wraps another denoiser.
"""

from __future__ import annotations

from typing import Callable, TypeVar

from torch import Tensor

Denoiser = Callable[[Tensor, Tensor], Tensor]
Out = TypeVar("Out")

# Of a backward pass through a U-Net: what one through the layers before its bottleneck takes.
ENCODER = 0.3


class CallCounter:
    """Counts what sampling costs: particles sent through the denoiser, and back to its input."""

    def __init__(self):
        self.forward = 0
        self.backward = 0.0

    def counted(
        self, denoise: Callable[[Tensor, Tensor], Out], backward: float = 1.0
    ) -> Callable[[Tensor, Tensor], Out]:
        """The same denoiser, with its calls counted.

        Arguments:
            denoise: it may return more than x0
            backward: which share of a backward pass follows on a call whose x needs a gradient
        """

        def denoise_and_count(x: Tensor, sigma: Tensor) -> Out:
            particles = x.shape[0] * x.shape[1]
            self.forward += particles
            if x.requires_grad:
                self.backward += backward * particles
            return denoise(x, sigma)

        return denoise_and_count


def to_model_range(images: Tensor) -> Tensor:
    """Images of any shape, from [0, 1] to [-1, 1]. Values outside stay outside."""
    return images * 2 - 1


def to_unit_range(images: Tensor) -> Tensor:
    """Images of any shape, from [-1, 1] to [0, 1]. Values outside stay outside."""
    return (images + 1) / 2
