"""Guidance: denoisers that wrap a denoiser and make the particles of a set repel.

With sigma(t) = t and U = -log Phi, the drift of particle i under particle guidance (PG,
Corso et al. 2023, arXiv 2310.13102) is

    d_i = (x_i - D(x_i; s)) / s + s alpha(s) grad_i U(x_1..x_B),

and that is the drift of the denoiser

    D_i - s^2 alpha(s) grad_i U,

which is what `ParticleGuidance` returns: the sampler needs no change, its Heun
correction sees the same field as its Euler step, and guidances compose by wrapping.
Steps go toward smaller sigma, so the plus sign moves particles down U: apart.

Sets are (G, B, C, H, W) with images in [-1, 1]. The rivals are here on the same footing:
`Spell`, `Cads` and the reference thesis's own form.
"""

from __future__ import annotations

import math
from typing import Callable

import torch
from torch import Tensor

from guidance.base import LARGEST, Denoiser, finite
from potentials import Potential, cosine_share


class ParticleGuidance:
    """A denoiser of sets whose particles repel; wraps any denoiser of sets.

    denoise     the denoiser to wrap
    potential   U, a `Potential`
    factor      strength; 0 is the denoiser itself
    space       where U acts: "x" (the noisy particles), "denoised" (D(x), the gradient
                taken as if it were in x) or "jacobian" (U(D(x)) differentiated through
                the denoiser: a vector-Jacobian product, a little more than one network call)
    strength    unit of `factor`. "constant": a drift of factor * grad U; "sigma": factor * s * grad U,
                so that factor 1 is the joint density of the PG paper; "drift": a drift whose root mean
                square over the set is `factor` * sqrt(2) times that of (x - D) / s per pixel, so that factor 1
                is one standard deviation of the difference of two particles' noise along one direction
    sigma_min, sigma_max   guidance acts for sigma in [sigma_min, sigma_max]
    anneal      the strength falls from all of it at sigma_max to none at sigma_min, a half cosine in ln s
    cap         largest push on one particle, as a multiple of (x - D) / s per pixel, root mean square
    features    phi: images (N, C, H, W) -> (N, ...); U acts on phi of what `space` says, through its gradient
    memory      (G, M, C, H, W) images that repel too and do not move: samples already made
    """

    def __init__(
        self,
        denoise: Denoiser,
        potential: Potential,
        *,
        factor: float,
        space: str = "jacobian",
        strength: str = "drift",
        sigma_min: float = 0.0,
        sigma_max: float = math.inf,
        anneal: bool = False,
        cap: float = math.inf,
        features: Callable[[Tensor], Tensor] | None = None,
        memory: Tensor | None = None,
    ):
        self.denoise, self.potential, self.factor = denoise, potential, min(factor, LARGEST**2)
        self.space, self.strength, self.anneal, self.cap = space, strength, anneal, cap
        self.sigma_min, self.sigma_max = sigma_min, sigma_max
        self.features, self.memory = features, memory

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        alone = x.shape[1] == 1 and self.memory is None
        if self.factor == 0 or alone or not self.sigma_min <= sigma <= self.sigma_max:
            return self.denoise(x, sigma)
        denoised, grad = self._gradient(x, sigma)
        return finite(denoised - sigma * self._push(x, denoised, grad, sigma))

    def _gradient(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """D(x) and grad U with respect to x, both (G, B, C, H, W)."""
        if self.space == "jacobian":
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                denoised = self.denoise(x, sigma)
                (grad,) = torch.autograd.grad(
                    denoised, x, self._gradient_at(denoised.detach(), sigma)
                )
            return denoised.detach(), grad
        denoised = self.denoise(x, sigma)
        return denoised, self._gradient_at(x if self.space == "x" else denoised, sigma)

    def _gradient_at(self, images: Tensor, sigma: Tensor) -> Tensor:
        """grad U(phi(images)), like images (G, B, C, H, W)."""
        B, everyone = images.shape[1], images
        if self.memory is not None:
            everyone = torch.cat([images, self.memory.to(images)], 1)
        if self.features is None:
            return self.potential.grad(everyone.flatten(2), float(sigma))[:, :B].view_as(images)
        with torch.enable_grad():
            everyone = everyone.detach().requires_grad_()
            y = self.features(everyone.flatten(0, 1)).flatten(1).unflatten(0, everyone.shape[:2])
            (grad,) = torch.autograd.grad(
                y, everyone, self.potential.grad(y.detach(), float(sigma))
            )
        return grad[:, :B]

    def _push(self, x: Tensor, denoised: Tensor, grad: Tensor, sigma: Tensor) -> Tensor:
        """The drift that grad U adds, (G, B, C, H, W)."""
        drift = ((x - denoised) / sigma).square().mean((1, 2, 3, 4), keepdim=True).sqrt()
        tiny = torch.finfo(grad.dtype).tiny ** 0.5
        if self.strength == "drift":
            # Scaled by its largest entry first, so that squares neither overflow nor vanish.
            grad = grad / grad.abs().amax((1, 2, 3, 4), keepdim=True).clamp_min(tiny)
            size = grad.flatten(2).square().sum(-1).mean(1).sqrt()[:, None, None, None, None]
            push = self.factor * math.sqrt(2) * drift / size.clamp_min(tiny) * grad
        else:
            push = self.factor * (sigma if self.strength == "sigma" else 1.0) * grad
        if self.anneal:
            push = push * cosine_share(float(sigma), self.sigma_min, self.sigma_max)
        if self.cap < math.inf:
            each = push.flatten(2).norm(dim=-1)[:, :, None, None, None]
            push = push * (self.cap * drift / each.clamp_min(tiny)).clamp_max(1)
        return push
