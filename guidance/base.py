"""What guidance methods share: a push and its strength, its bounds, and where it acts."""

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


class Pushed:
    """A denoiser of sets D + s^2 factor f, for methods that state the push f; wraps any denoiser of
    sets, and is that denoiser for a single particle.

    Arguments:
        denoise: the denoiser D to wrap
        factor: strength; 0 is the denoiser itself
    """

    def __init__(self, denoise: Denoiser, *, factor: float):
        self.denoise = denoise
        self.factor = min(factor, LARGEST**2)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        if self.factor == 0 or x.shape[1] == 1:
            return self.denoise(x, sigma)
        denoised, push = self.denoised_and_push(x, sigma)
        return finite(denoised + sigma**2 * self.factor * push)

    def denoised_and_push(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """D(x) and f, both like x (G, B, C, H, W), for two particles or more."""
        raise NotImplementedError


def per_particle(a: Tensor, b: Tensor) -> Tensor:
    """Inner products of the particles of a and b, (G, B, C, H, W) -> (G, B, 1, 1, 1)."""
    return (a * b).sum((2, 3, 4), keepdim=True)
