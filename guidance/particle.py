"""Particle guidance (PG).

A set is sampled from p(x_1) ... p(x_B) Phi(x_1, ..., x_B). With sigma(t) = t and U = -log Phi, the
drift of particle i is

    d_i = (x_i - D(x_i; s)) / s + s alpha(s) grad_i U(x_1, ..., x_B),

and that is the drift of the denoiser

    D(x_i; s) - s^2 alpha(s) grad_i U,

which is what `ParticleGuidance` returns. The sampler needs no change, its Heun correction sees the
same field as its Euler step, and guidances compose by wrapping. Steps go towards smaller sigma, so
the plus sign moves particles down U: apart.

Source: Corso et al. 2023, "Particle guidance: non-IID diverse sampling with diffusion models",
arXiv 2310.13102.
"""

from __future__ import annotations

import math
from typing import Callable

import torch
from torch import Tensor

from denoiser import Denoiser
from guidance.base import LARGEST, finite
from potentials import Potential, cosine_share


class ParticleGuidance:
    """A denoiser of sets whose particles repel; wraps any denoiser of sets.

    Arguments:
        denoise: the denoiser D to wrap
        potential: U, a `Potential`
        factor: strength, in the unit that `strength` names; 0 is the denoiser itself
        space: where U acts. "x": on the noisy particles; "denoised": on D(x), its gradient taken as
            if it were one in x; "jacobian": on D(x), differentiated through the denoiser (a
            vector-Jacobian product, which costs a little more than one network call)
        strength: unit of `factor`. "joint": a drift of factor * B * s * grad U, so that the joint
            density of a set of B is that of independent particles times Phi^(B factor), memory
            counted in B; "constant": a drift of factor * grad U; "sigma": a drift of
            factor * s * grad U, alpha in the paper; "drift": a
            drift whose root mean square over the set is factor * sqrt(2) times that of (x - D) / s
            per pixel, so that factor 1 is one standard deviation of the difference of two
            particles' noise along one direction
        sigma_min: smallest noise level at which guidance acts
        sigma_max: largest noise level at which guidance acts
        anneal: whether the strength falls from all of it at sigma_max to none at sigma_min, as a
            half cosine in ln s
        cap: largest norm of the push on one particle, as a multiple of the root mean square of
            (x - D) / s over the pixels of the set
        fade: noise level -> factor on the strength in [0, 1]; None: 1 everywhere
        features: phi: images (N, C, H, W) -> (N, ...); U acts on phi of what `space` names, and its
            gradient is taken through phi. None: on the images themselves
        memory: (G, M, C, H, W) images that repel and do not move, such as samples made before
    """

    def __init__(
        self,
        denoise: Denoiser,
        potential: Potential,
        *,
        factor: float,
        space: str = "jacobian",
        strength: str = "joint",
        sigma_min: float = 0.0,
        sigma_max: float = math.inf,
        fade: Callable[[float], float] | None = None,
        anneal: bool = False,
        cap: float = math.inf,
        features: Callable[[Tensor], Tensor] | None = None,
        memory: Tensor | None = None,
    ):
        self.denoise = denoise
        self.potential = potential
        self.factor = min(factor, LARGEST**2)
        self.space = space
        self.strength = strength
        self.sigma_min = sigma_min
        self.sigma_max = sigma_max
        self.fade = fade
        self.anneal = anneal
        self.cap = cap
        self.features = features
        self.memory = memory

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        alone = x.shape[1] == 1 and self.memory is None
        if self.factor == 0 or alone or not self.sigma_min <= sigma <= self.sigma_max:
            return self.denoise(x, sigma)
        share = 1.0 if self.fade is None else self.fade(float(sigma))
        if share == 0:
            return self.denoise(x, sigma)
        denoised, grad = self._denoised_and_gradient(x, sigma)
        return finite(denoised - sigma * share * self._push(x, denoised, grad, sigma))

    def _denoised_and_gradient(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """D(x) and the gradient of U with respect to x, both (G, B, C, H, W)."""
        if self.space == "jacobian":
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                denoised = self.denoise(x, sigma)
                at_denoised = self._gradient_at(denoised.detach(), sigma)
                (grad,) = torch.autograd.grad(denoised, x, at_denoised)
            return denoised.detach(), grad
        denoised = self.denoise(x, sigma)
        return denoised, self._gradient_at(x if self.space == "x" else denoised, sigma)

    def _gradient_at(self, images: Tensor, sigma: Tensor) -> Tensor:
        """The gradient of U(phi(images)) with respect to images (G, B, C, H, W), the same shape."""
        B = images.shape[1]
        everyone = images
        if self.memory is not None:
            everyone = torch.cat([images, self.memory.to(images)], 1)
        if self.features is None:
            grad = self.potential.grad(everyone.flatten(2), float(sigma))
            return grad[:, :B].view_as(images)
        with torch.enable_grad():
            everyone = everyone.detach().requires_grad_()
            y = self.features(everyone.flatten(0, 1)).flatten(1).unflatten(0, everyone.shape[:2])
            at_features = self.potential.grad(y.detach(), float(sigma))
            (grad,) = torch.autograd.grad(y, everyone, at_features)
        return grad[:, :B]

    def _particles(self, x: Tensor) -> int:
        """How many repel each other: those of x (G, B, C, H, W), and memory."""
        return x.shape[1] + (0 if self.memory is None else self.memory.shape[1])

    def _push(self, x: Tensor, denoised: Tensor, grad: Tensor, sigma: Tensor) -> Tensor:
        """The drift that guidance adds, annealed and capped, (G, B, C, H, W)."""
        push = self._drift(x, denoised, grad, sigma)
        if self.anneal:
            push = push * cosine_share(float(sigma), self.sigma_min, self.sigma_max)
        if self.cap < math.inf:
            each = push.flatten(2).norm(dim=-1)[:, :, None, None, None]
            largest = self.cap * _per_pixel((x - denoised) / sigma)
            push = push * (largest / each.clamp_min(_tiny(push))).clamp_max(1)
        return push

    def _drift(self, x: Tensor, denoised: Tensor, grad: Tensor, sigma: Tensor) -> Tensor:
        """The drift s alpha(s) grad U, (G, B, C, H, W). Other methods have another one."""
        if self.strength == "drift":
            tiny = _tiny(grad)
            # Scaled by its largest entry first, so that squares neither overflow nor vanish.
            grad = grad / grad.abs().amax((1, 2, 3, 4), keepdim=True).clamp_min(tiny)
            size = grad.flatten(2).square().sum(-1).mean(1).sqrt()[:, None, None, None, None]
            drift = _per_pixel((x - denoised) / sigma)
            return self.factor * math.sqrt(2) * drift / size.clamp_min(tiny) * grad
        factor = self.factor * (self._particles(x) if self.strength == "joint" else 1)
        return factor * (1.0 if self.strength == "constant" else sigma) * grad


def _per_pixel(drift: Tensor) -> Tensor:
    """Root mean square over the pixels of each set, (G, B, C, H, W) -> (G, 1, 1, 1, 1)."""
    return drift.square().mean((1, 2, 3, 4), keepdim=True).sqrt()


def _tiny(like: Tensor) -> float:
    """A number that is safe to divide by, and whose square is too."""
    return torch.finfo(like.dtype).tiny ** 0.5
