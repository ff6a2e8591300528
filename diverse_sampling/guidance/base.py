"""What guidance methods share: where they act, a push and its strength, and its bounds."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from diverse_sampling.denoiser import Denoiser

# Of a guided denoiser's pixels: far beyond any image, and its square still fits into float32.
LARGEST = 1e8


def finite(denoised: Tensor) -> Tensor:
    """Bound the output of a guided denoiser, so that no strength of guidance ends in infinities.

    denoised, of any shape -> the same within +-LARGEST, NaN replaced by LARGEST. The bound is so
    far outside [-1, 1] that a strength which is too large stays plain to see.
    """
    return denoised.nan_to_num(nan=LARGEST).clamp(-LARGEST, LARGEST)


class Guided:
    """A denoiser of sets that is another one between two noise levels; wraps any denoiser of sets.

    Arguments:
        denoise: the denoiser D to wrap
        sigma_min: smallest noise level at which guidance acts
        sigma_max: largest noise level at which guidance acts
    """

    def __init__(
        self, denoise: Denoiser, *, sigma_min: float | None = None, sigma_max: float | None = None
    ):
        self.denoise = denoise
        self.sigma_min = sigma_min or 0.0
        self.sigma_max = sigma_max or math.inf

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        if not self.sigma_min <= sigma <= self.sigma_max:
            return self.denoise(x, sigma)
        return self.guided(x, sigma)

    def guided(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The D that guidance makes of x, like x (G, B, C, H, W)."""
        raise NotImplementedError


class Pushed(Guided):
    """D + s^2 factor f, for methods that state the push f; D itself for a single particle.

    Arguments:
        denoise, sigma_min, sigma_max: as in `Guided`
        factor: strength; 0 is the denoiser itself
    """

    def __init__(self, denoise: Denoiser, *, factor: float, **levels: float | None):
        super().__init__(denoise, **levels)
        self.factor = min(factor, LARGEST**2)

    def guided(self, x: Tensor, sigma: Tensor) -> Tensor:
        """D(x) + s^2 factor f, like x."""
        if self.factor == 0 or x.shape[1] == 1:
            return self.denoise(x, sigma)
        denoised, push = self.denoised_and_push(x, sigma)
        return finite(denoised + sigma**2 * self.factor * push)

    def denoised_and_push(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """D(x) and f, both like x (G, B, C, H, W), for two particles or more."""
        raise NotImplementedError


def excess(moves: Tensor, reach: float, undecided: float) -> Tensor:
    """sqrt(1 + |p|^2 / (reach^2 T (1 - V))), (G, B, 1, 1, 1): what moves p of D(x) are divided by,
    so that none is longer than `reach` standard deviations of what a sample can still become.

    Arguments:
        moves: p, (G, B, C, H, W); the norm is that of a particle
        reach: how far D(x) may be moved
        undecided: T (1 - V), `Decisions.undecided`
    """
    largest = max(reach**2 * undecided, tiny_of(moves))
    return (1 + per_particle(moves, moves) / largest).sqrt()


def tiny_of(like: Tensor) -> float:
    """A number that is safe to divide by, and whose square is too."""
    return torch.finfo(like.dtype).tiny ** 0.5


def per_particle(a: Tensor, b: Tensor) -> Tensor:
    """Inner products of the particles of a and b, (G, B, C, H, W) -> (G, B, 1, 1, 1)."""
    return (a * b).sum((2, 3, 4), keepdim=True)
