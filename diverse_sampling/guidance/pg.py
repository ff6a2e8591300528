"""Particle guidance (PG).

A set is sampled from p(x_1) ... p(x_B) Phi(x_1, ..., x_B). With sigma(t) = t and U = -log Phi, the
drift of particle i is

    d_i = (x_i - D(x_i; s)) / s + s alpha(s) grad_i U(x_1, ..., x_B),

and that is the drift of the denoiser

    D(x_i; s) - s^2 alpha(s) grad_i U,

which is what `ParticleGuidance` returns. The sampler needs no change, its Heun correction sees the
same field as its Euler step, and guidances compose by wrapping. Steps go towards smaller sigma, so
the plus sign moves particles down U: apart.

With U on D(x), grad_i U is J_i^T dU/dD_i, and J_i = Cov[y | x_i] / s^2. Its size is what matters,
more than its direction, and a pilot knows that: the total posterior variance is T (1 - V(s)) in the
mean (`decisions.py`). `measured` takes it in place of the covariance, and needs no backward pass:

    p_i = factor T (1 - V) dU/dD_i.

If V is known, D_i moves by -p_i / sqrt(1 + |p_i|^2 / (8^2 T (1 - V))), whatever p_i is: by 8 times
what a sample can still become at most, in the L2 norm of an image. Pushes through the Jacobian,
which knows what is open in each direction, then go on for longer, and fade with sqrt(1 - V).

Source: Corso et al. 2023, "Particle guidance: non-IID diverse sampling with diffusion models",
arXiv 2310.13102.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Callable

import torch
from torch import Tensor

from diverse_sampling.decisions import Decisions
from diverse_sampling.defaults import FACTOR
from diverse_sampling.denoiser import Denoiser
from diverse_sampling.errors import reject
from diverse_sampling.guidance.base import (
    LARGEST,
    Guided,
    excess,
    finite,
    per_particle,
    tiny_of,
)
from diverse_sampling.method import PILOT, ROUNDING, Method, Sets, inside
from diverse_sampling.potentials import POTENTIALS, Bandwidth, LogDet, Potential, cosine_share
from diverse_sampling.steps import Window

# ---------------------------------------------------------------- strengths


@dataclass(frozen=True)
class Push:
    """What the strength of a push is made of.

    Arguments:
        factor: the number that a strength is given
        x, denoised, grad: the noisy particles, D(x) and grad U, (G, B, C, H, W) each
        sigma: the noise level, a float64 scalar tensor
        particles: how many repel each other, memory included
        undecided: the variance that a sample still has, `Decisions.undecided`; 0 without decisions
    """

    factor: float
    x: Tensor
    denoised: Tensor
    grad: Tensor
    sigma: Tensor
    particles: int
    undecided: float = 0.0

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


def measured(push: Push) -> Tensor:
    """factor * T (1 - V) / s * grad U; see above. grad U is that on D(x)."""
    return push.factor * push.undecided / push.sigma * push.grad


STRENGTHS: dict[str, Strength] = dict(
    measured=measured, joint=joint, sigma=by_sigma, constant=constant, drift=by_drift
)

# ---------------------------------------------------------------- the method

# How far a finite difference goes, in units of the noise level.
DIFFERENCE = 0.1
# How far D(x) may be moved, in standard deviations of what a sample can still become.
REACH = 8.0


class ParticleGuidance(Guided):
    """A denoiser of sets whose particles repel; wraps any denoiser of sets.

    Arguments:
        denoise: the denoiser D to wrap
        potential: U, a `Potential`
        factor: strength, in the unit that `strength` names; 0 is the denoiser itself
        space: where U acts. "x": on the noisy particles; "denoised": on D(x), its gradient taken as
            if it were one in x; "jacobian": on D(x), differentiated through the denoiser (a
            vector-Jacobian product, which costs a little more than one network call);
            "difference": the same by a second call of the denoiser, for those that autograd
            cannot differentiate
        strength: unit of `factor`: a name in STRENGTHS, or a function of one's own
        decisions: what the pilot measured, which bounds how far D(x) moves; None: nothing does. The
            strength "measured" needs it
        sigma_min, sigma_max: as in `Guided`
        anneal: whether the strength falls from all of it at sigma_max to none at sigma_min, as a
            half cosine in ln s
        features: (x, sigma) -> (D(x), phi (G, B, ...)), a denoiser that returns features of x as
            well. U then acts on phi, whatever `space` says, and its gradient is taken through phi
            to x. How large that is says nothing about images, so that the strength "drift" suits
            it. None: U acts on images
        memory: (G, M, C, H, W) images that repel and do not move, such as samples made before, or
            (1, M, C, H, W) for all sets
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
        decisions: Decisions | None = None,
        anneal: bool = False,
        features: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
        memory: Tensor | None = None,
    ):
        super().__init__(denoise, sigma_min=sigma_min, sigma_max=sigma_max)
        self.potential = potential
        self.factor = min(factor, LARGEST**2)
        self.space = space
        self.strength = STRENGTHS[strength] if isinstance(strength, str) else strength
        self.decisions = decisions
        self.anneal = anneal
        self.features = features
        self.memory = memory

    def guided(self, x: Tensor, sigma: Tensor) -> Tensor:
        """D(x) - s^2 alpha(s) grad U, like x."""
        alone = x.shape[1] == 1 and self.memory is None
        if self.factor == 0 or alone:
            return self.denoise(x, sigma)
        denoised, grad = self._denoised_and_gradient(x, sigma)
        return finite(denoised - sigma * self._push(x, denoised, grad, sigma))

    def _denoised_and_gradient(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """D(x) and the gradient of U with respect to x, both (G, B, C, H, W)."""
        if self.features is not None or self.space == "jacobian":
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                if self.features is None:
                    denoised = seen = self.denoise(x, sigma)
                else:
                    denoised, seen = self.features(x, sigma)
                at_seen = self._gradient_at(seen.detach(), sigma)
                (grad,) = torch.autograd.grad(seen, x, at_seen)
            return denoised.detach(), grad
        denoised = self.denoise(x, sigma)
        if self.space == "difference":
            # J is symmetric, so that J^T g is the derivative of D along g.
            g = self._gradient_at(denoised, sigma)
            length = per_particle(g, g).sqrt().clamp_min(tiny_of(g))
            step = DIFFERENCE * float(sigma) / length
            return denoised, (self.denoise(x + step * g, sigma) - denoised) / step
        return denoised, self._gradient_at(x if self.space == "x" else denoised, sigma)

    def _gradient_at(self, y: Tensor, sigma: Tensor) -> Tensor:
        """The gradient of U with respect to images or features y (G, B, ...), the same shape."""
        B = y.shape[1]
        everyone = y
        if self.memory is not None:
            if self.memory.shape[2:] != y.shape[2:] or len(self.memory) not in (1, len(y)):
                accepted = f"[{len(y)}, M, {', '.join(map(str, y.shape[2:]))}] with these sets"
                reject("shape of memory", list(self.memory.shape), accepted)
            memory = self.memory.to(y).expand(len(y), *self.memory.shape[1:])
            everyone = torch.cat([y, memory], 1)
        return self.potential.grad(everyone.flatten(2), float(sigma))[:, :B].view_as(y)

    def _push(self, x: Tensor, denoised: Tensor, grad: Tensor, sigma: Tensor) -> Tensor:
        """The drift that guidance adds, annealed, (G, B, C, H, W)."""
        particles = x.shape[1] + (0 if self.memory is None else self.memory.shape[1])
        undecided = 0.0 if self.decisions is None else self.decisions.undecided(float(sigma))
        push = self.strength(Push(self.factor, x, denoised, grad, sigma, particles, undecided))
        if self.decisions is not None:
            if self.space in ("jacobian", "difference"):
                push = push * math.sqrt(undecided / self.decisions.variance)
            push = push / excess(sigma * push, REACH, undecided)
        if self.anneal:
            push = push * cosine_share(float(sigma), self.sigma_min, self.sigma_max)
        return push


def _per_pixel(drift: Tensor) -> Tensor:
    """Root mean square over the pixels of each set, (G, B, C, H, W) -> (G, 1, 1, 1, 1)."""
    return drift.square().mean((1, 2, 3, 4), keepdim=True).sqrt()


# ---------------------------------------------------------------- as it is used


def default_guidance(
    denoise: Denoiser,
    decisions: Decisions,
    *,
    factor: float = FACTOR,
    potential: Potential = LogDet(),
    window: Window | None = None,
    **others: Any,
) -> ParticleGuidance:
    """Particle guidance while it is still undecided what particles become.

    It repels by the log-determinant of the kernel matrix of the D(x), with pushes of the size that
    a pilot measured: without backward passes.

    Arguments:
        denoise: the denoiser D to wrap
        decisions: where it is decided what a sample shows
        factor, potential: as in `ParticleGuidance`
        window: of the `window_schedule` that samples. Guidance then acts inside it; its last call
            is not guided, since new noise no longer covers what a push does there. None, for any
            other schedule: from the window's largest noise level down to where pushes come too late
        others: as in `ParticleGuidance`
    """
    given: dict[str, Any] = dict(space="denoised", strength="measured", decisions=decisions)
    given |= default_levels(decisions, window)
    return ParticleGuidance(denoise, potential, factor=factor, **given | others)


def default_levels(decisions: Decisions, window: Window | None) -> dict[str, float]:
    """The smallest and the largest noise level of `default_guidance`, with its arguments."""
    if window is not None:
        return inside(window)
    return dict(sigma_min=decisions.settled, sigma_max=decisions.window().high * (1 + ROUNDING))


def beside(settings: Any) -> tuple[float, float]:
    """What a guided call costs beside it, (forward, backward), by the space in which U acts."""
    return dict(jacobian=(0, 1), difference=(1, 0)).get(settings.pg_space, (0, 0))


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
        memory=sets.memory,
    )


def _make(sets: Sets) -> Denoiser:
    g = sets.settings
    if g.pg_factor == 0:
        return sets.denoise
    asked = asked_for(sets)
    if sets.decisions is None:  # both noise levels are given, and the strength needs none
        return ParticleGuidance(sets.denoise, **asked)
    for key in [key for key, level in sets.levels.items() if level is None]:
        del asked[key]  # left to what was measured
    return default_guidance(sets.denoise, sets.decisions, window=sets.window, **asked)


METHOD = Method(
    "particle guidance",
    _make,
    needs=(PILOT,),
    beside=beside,
    shown=dict(pg_factor=", factor {:g}"),
)
