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
from typing import Any, Callable

import torch
from torch import Tensor

from potentials import Potential, cosine_share, squared_distances, weighted_differences

Denoiser = Callable[[Tensor, Tensor], Tensor]  # denoise(x, sigma) -> x0, as in sampler.py


LARGEST = 1e8  # of a guided denoiser's pixels: far beyond any image, and its square still fits into float32


def finite(denoised: Tensor) -> Tensor:
    """What absurd strengths cannot turn into infinities, but leave plain to see: any shape, within +-LARGEST."""
    return denoised.nan_to_num(nan=LARGEST).clamp(-LARGEST, LARGEST)


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


class Spell:
    """Sparse repellency (SPELL, Kirchhof et al. 2024, arXiv 2410.06025): D_i moves by

        sum_j relu(r / |d_ij| - 1) d_ij,   d_ij = D_i - D_j,

    j over the rest of the set and over `memory` (G, M, C, H, W). `radius` r is an L2 distance of
    images in [-1, 1]. Copies do not feel each other: their direction is undefined."""

    def __init__(self, denoise: Denoiser, *, radius: float, memory: Tensor | None = None):
        self.denoise, self.radius, self.memory = denoise, radius, memory

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        denoised = self.denoise(x, sigma)
        everyone = denoised if self.memory is None else torch.cat([denoised, self.memory.to(x)], 1)
        y = everyone.flatten(2)
        d = squared_distances(y).sqrt()
        weights = torch.where(d > 0, (self.radius / d - 1).clamp_min(0), 0.0)
        return finite(denoised + weighted_differences(weights, y)[:, : x.shape[1]].view_as(x))


class Cads:
    """Condition-annealed sampling (CADS, Sadat et al. 2024, arXiv 2310.17347, algorithm 1): the
    conditioning is noised early on, so that particles that would agree see different things,

        c^ = sqrt(g) c + scale sqrt(1 - g) n,   g = 1 for t <= tau1, 0 for t >= tau2, linear between,

    then brought back to the mean and deviation of c to the share `mixing`.

    bind    cond (G, B, Cc, H, W) -> a denoiser, every particle with a condition of its own
    cond    (G, Cc, H, W) in [-1, 1]
    noise   () -> (G, B, Cc, H, W) standard normal
    time    sigma -> t in [0, 1], 1 at the noisy end
    """

    def __init__(
        self,
        bind: Callable[[Tensor], Denoiser],
        cond: Tensor,
        noise: Callable[[], Tensor],
        time: Callable[[float], float],
        *,
        tau1: float,
        tau2: float,
        scale: float,
        mixing: float,
    ):
        self.bind, self.cond, self.noise, self.time = bind, cond, noise, time
        self.tau1, self.tau2, self.scale, self.mixing = tau1, tau2, scale, mixing

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        g = min(max((self.tau2 - self.time(float(sigma))) / (self.tau2 - self.tau1), 0.0), 1.0)
        cond = self.cond[:, None].expand(-1, x.shape[1], -1, -1, -1)
        if g < 1:
            noised = math.sqrt(g) * cond + self.scale * math.sqrt(1 - g) * self.noise()
            axes: dict[str, Any] = dict(dim=(2, 3, 4), keepdim=True)
            rescaled = (noised - noised.mean(**axes)) / noised.std(**axes).clamp_min(1e-6)
            rescaled = rescaled * cond.std(**axes) + cond.mean(**axes)
            cond = self.mixing * rescaled + (1 - self.mixing) * noised
        return self.bind(cond)(x, sigma)


class Reference:
    """Particle guidance as the reference thesis has it: a minus where the plus belongs (its
    algorithm 2, line 10), the kernel exp(-d / h) on D(x), and the gradient going through the median
    bandwidth as well. It climbs U where it should descend; here to be compared with."""

    def __init__(self, denoise: Denoiser, *, factor: float):
        self.denoise, self.factor = denoise, min(factor, LARGEST**2)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        denoised, B = self.denoise(x, sigma), x.shape[1]
        if self.factor == 0 or B == 1:
            return denoised
        with torch.enable_grad():
            y = denoised.detach().flatten(2).double().requires_grad_()
            off = ~torch.eye(B, dtype=torch.bool, device=x.device)
            # The square root of a zero has no gradient; two copies then do not feel each other.
            d2 = (y[:, :, None] - y[:, None, :]).square().sum(-1)[:, off].view(len(y), -1)
            d = torch.where(d2 > 0, d2, 1.0).sqrt() * (d2 > 0)
            h = (d.median(-1, keepdim=True).values / math.log(max(B, 2))).clamp_min(1e-12)
            (grad,) = torch.autograd.grad((-d / h).exp().sum() / 2, y)
        return finite(denoised + sigma**2 * self.factor * grad.to(x).view_as(x))
