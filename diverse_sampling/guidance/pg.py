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
from dataclasses import dataclass, replace
from typing import Any, Callable

import torch
from torch import Tensor

from diverse_sampling.decisions import Decisions
from diverse_sampling.defaults import CHURN, FACTOR
from diverse_sampling.denoiser import Denoiser
from diverse_sampling.guidance.base import LARGEST, Guided, finite
from diverse_sampling.method import BACKWARD, PILOT, Method, Sets
from diverse_sampling.potentials import POTENTIALS, Bandwidth, LogDet, Potential, cosine_share

# ---------------------------------------------------------------- strengths


@dataclass(frozen=True)
class Push:
    """What the strength of a push is made of.

    Arguments:
        factor: the number that a strength is given
        x, denoised, grad: the noisy particles, D(x) and grad U, (G, B, C, H, W) each
        sigma: the noise level, a float64 scalar tensor
        particles: how many repel each other, memory included
    """

    factor: float
    x: Tensor
    denoised: Tensor
    grad: Tensor
    sigma: Tensor
    particles: int

    @property
    def drift(self) -> Tensor:
        """(x - D(x)) / s."""
        return (self.x - self.denoised) / self.sigma


Strength = Callable[[Push], Tensor]  # -> the drift that is added, (G, B, C, H, W)


def joint(push: Push) -> Tensor:
    """factor * B * s * grad U, memory counted in B. With a fixed bandwidth it is the field of the
    product p(x_1) ... p(x_B) Phi^(B factor); with the median rule it belongs to no density."""
    return push.factor * push.particles * push.sigma * push.grad


def by_sigma(push: Push) -> Tensor:
    """factor * s * grad U, alpha in the paper."""
    return push.factor * push.sigma * push.grad


def constant(push: Push) -> Tensor:
    """factor * grad U."""
    return push.factor * push.grad


def by_drift(push: Push) -> Tensor:
    """grad U, scaled so that its root mean square over the set is factor * sqrt(2) times that of
    (x - D) / s per pixel: factor 1 is one standard deviation of the difference of two particles'
    noise along one direction."""
    tiny = tiny_of(push.grad)
    # Scaled by its largest entry first, so that squares neither overflow nor vanish.
    grad = push.grad / push.grad.abs().amax((1, 2, 3, 4), keepdim=True).clamp_min(tiny)
    size = grad.flatten(2).square().sum(-1).mean(1).sqrt()[:, None, None, None, None]
    return push.factor * math.sqrt(2) * _per_pixel(push.drift) / size.clamp_min(tiny) * grad


STRENGTHS: dict[str, Strength] = dict(
    joint=joint, sigma=by_sigma, constant=constant, drift=by_drift
)

# ---------------------------------------------------------------- the method


class ParticleGuidance(Guided):
    """A denoiser of sets whose particles repel; wraps any denoiser of sets.

    Arguments:
        denoise: the denoiser D to wrap
        potential: U, a `Potential`
        factor: strength, in the unit that `strength` names; 0 is the denoiser itself
        space: where U acts. "x": on the noisy particles; "denoised": on D(x), its gradient taken as
            if it were one in x; "jacobian": on D(x), differentiated through the denoiser (a
            vector-Jacobian product, which costs a little more than one network call)
        strength: unit of `factor`: a name in STRENGTHS, or a function of one's own
        sigma_min, sigma_max: as in `Guided`
        anneal: whether the strength falls from all of it at sigma_max to none at sigma_min, as a
            half cosine in ln s
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
        strength: str | Strength = "joint",
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        fade: Callable[[float], float] | None = None,
        anneal: bool = False,
        features: Callable[[Tensor], Tensor] | None = None,
        memory: Tensor | None = None,
    ):
        super().__init__(denoise, sigma_min=sigma_min, sigma_max=sigma_max)
        self.potential = potential
        self.factor = min(factor, LARGEST**2)
        self.space = space
        self.strength = STRENGTHS[strength] if isinstance(strength, str) else strength
        self.fade = fade
        self.anneal = anneal
        self.features = features
        self.memory = memory

    def guided(self, x: Tensor, sigma: Tensor) -> Tensor:
        """D(x) - s^2 alpha(s) grad U, like x."""
        alone = x.shape[1] == 1 and self.memory is None
        share = 1.0 if self.fade is None else self.fade(float(sigma))
        if self.factor == 0 or alone or share == 0:
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

    def _push(self, x: Tensor, denoised: Tensor, grad: Tensor, sigma: Tensor) -> Tensor:
        """The drift that guidance adds, annealed, (G, B, C, H, W)."""
        particles = x.shape[1] + (0 if self.memory is None else self.memory.shape[1])
        push = self.strength(Push(self.factor, x, denoised, grad, sigma, particles))
        if self.anneal:
            push = push * cosine_share(float(sigma), self.sigma_min, self.sigma_max)
        return push


def _per_pixel(drift: Tensor) -> Tensor:
    """Root mean square over the pixels of each set, (G, B, C, H, W) -> (G, 1, 1, 1, 1)."""
    return drift.square().mean((1, 2, 3, 4), keepdim=True).sqrt()


def tiny_of(like: Tensor) -> float:
    """A number that is safe to divide by, and whose square is too."""
    return torch.finfo(like.dtype).tiny ** 0.5


# ---------------------------------------------------------------- as it is used


def default_guidance(
    denoise: Denoiser,
    decisions: Decisions | None,
    *,
    factor: float = FACTOR,
    potential: Potential = LogDet(),
    gradients: bool = True,
    churn: float = CHURN,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    memory: Tensor | None = None,
    **others: Any,
) -> ParticleGuidance:
    """Particle guidance while it is still undecided what particles become.

    It repels by the log-determinant of the kernel matrix of the D(x): through the denoiser, in the
    unit `joint`, or without gradients, in the window alone and in units of the drift.

    Arguments:
        denoise: the denoiser D to wrap
        decisions: where it is decided what a sample shows; None if both noise levels are given
        factor, potential: as in `ParticleGuidance`
        gradients: whether the denoiser can be differentiated
        churn: the noise that the sampler adds back in the window, in units of its noise level
        sigma_min: smallest noise level at which guidance acts; None: it fades as less is undecided
        sigma_max: largest one; None: the window's largest level, with the noise that is added back
            before D is called. What memory repels from has to be decided from the start, so that
            with memory there is no largest level
        memory, others: as in `ParticleGuidance`
    """
    fade = None
    if not gradients:
        assert decisions is not None
        low, high = decisions.window()
        sigma_min, sigma_max = sigma_min or low, sigma_max or high
        others |= dict(space="denoised", strength="drift", fade=decisions.undecided)
        return ParticleGuidance(
            denoise,
            potential,
            factor=factor / 2,
            sigma_min=sigma_min,
            sigma_max=sigma_max,
            memory=memory,
            **others,
        )
    if sigma_max is None and memory is None:
        assert decisions is not None
        sigma_max = decisions.window()[1] * (1 + churn)
    if sigma_min is None:
        assert decisions is not None
        fade = decisions.undecided
    return ParticleGuidance(
        denoise,
        potential,
        factor=factor,
        sigma_min=sigma_min,
        sigma_max=sigma_max,
        fade=fade,
        memory=memory,
        **others,
    )


def asked_for(
    sets: Sets, potential: Callable[[Bandwidth], Potential] | None = None
) -> dict[str, Any]:
    """The arguments of `ParticleGuidance` that settings describe.

    `potential` takes the place of the one that they name.
    """
    g = sets.settings
    annealed = (g.pg_sigma_min, g.pg_sigma_max) if g.pg_anneal in ("bandwidth", "both") else None
    make = potential or POTENTIALS[g.pg_kernel]
    return dict(
        potential=make(Bandwidth(g.pg_bandwidth, g.pg_bandwidth_value, annealed)),
        factor=g.pg_factor,
        space=g.pg_space,
        strength=g.pg_strength,
        **sets.levels,
        anneal=g.pg_anneal in ("strength", "both"),
        features=sets.features,
        memory=sets.memory,
    )


def _make(sets: Sets) -> Denoiser:
    g = sets.settings
    if g.pg_factor == 0:
        return sets.denoise
    if sets.memory is not None and g.pg_sigma_max is not None:
        # What memory repels from has to be decided from the start.
        high = max(g.pg_sigma_max, float(sets.sigma_max))
        sets = replace(sets, settings=replace(g, pg_sigma_max=high))
    return default_guidance(sets.denoise, sets.decisions, churn=sets.churn, **asked_for(sets))


METHOD = Method(
    "particle guidance",
    _make,
    needs=(BACKWARD, PILOT),
    shown=dict(pg_factor=", factor {:g}"),
)
