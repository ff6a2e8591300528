"""OSCAR: the volume that the particles of a set span, across the flow.

    f_i = grad_i 1/2 log det(I + tau F F^T),

F (B, d) the particles' features, centred in the set and scaled to unit length. Most of the part of
f along the drift d_i = (x_i - D(x_i)) / s, 95%, is removed, and the push on each particle is at
most 0.3 of its drift. It guides by `ParticleGuidance`, whose spaces and interval of noise
levels it has, at the same cost. Marginals shift.

Source: Wu et al. 2025, arXiv 2510.09060; its title is in `oscar_noise.py`.

Uncertain: the published features are those of an image encoder, here pixels. It acts early only
and with a strength that follows the time of a flow; here `pg_sigma_min` and `pg_sigma_max` say
where. It also adds noise across the drift, which is left to the sampler's churn.
"""

from __future__ import annotations

import torch
from torch import Tensor

from diverse_sampling.guidance.base import per_particle
from diverse_sampling.guidance.pg import (
    STRENGTHS,
    ParticleGuidance,
    Push,
    Strength,
    asked_for,
    beside,
    tiny_of,
)
from diverse_sampling.method import BACKWARD, STRENGTH, Method, Sets
from diverse_sampling.potentials import Bandwidth

REMOVED = 0.95  # of the part along the drift
LARGEST_PUSH = 0.3  # in units of the drift


class Volume:
    """The potential U = -1/2 log det(I + tau F F^T); see above.

    Arguments:
        bandwidth: not used; unit vectors have no scale
        tau: how soon another direction counts in full
    """

    def __init__(self, bandwidth: Bandwidth = Bandwidth(), tau: float = 1.0):
        self.tau = tau

    def _features(self, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """F (G, B, d), the lengths before they were scaled (G, B, 1), I + tau F F^T (G, B, B)."""
        centred = y.double()
        centred = centred - centred.mean(1, keepdim=True)
        lengths = centred.norm(dim=-1, keepdim=True)
        # Copies have no direction; one in rounding errors would be a push without bound.
        least = 1e-6 * lengths.amax(1, keepdim=True).clamp_min(1e-30)
        F = centred / lengths.clamp_min(least)
        identity = torch.eye(y.shape[1], dtype=F.dtype, device=F.device)
        return F, lengths.clamp_min(least), identity + self.tau * F @ F.transpose(1, 2)

    def energy(self, y: Tensor, sigma: float = 1.0) -> Tensor:
        return (-torch.logdet(self._features(y)[2]) / 2).to(y)

    def grad(self, y: Tensor, sigma: float = 1.0) -> Tensor:
        F, lengths, volume = self._features(y)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky_ex(volume).L)
        at_F = -self.tau * inverse @ F
        at_centred = (at_F - F * (F * at_F).sum(-1, keepdim=True)) / lengths
        return (at_centred - at_centred.mean(1, keepdim=True)).to(y)


def across(strength: str | Strength) -> Strength:
    """Another strength, across the drift and capped; see above."""
    plain = STRENGTHS[strength] if isinstance(strength, str) else strength

    def across_the_drift(push: Push) -> Tensor:
        drift = push.drift
        tiny = tiny_of(push.x)
        length = per_particle(drift, drift).sqrt()
        u = drift / length.clamp_min(tiny)
        moved = plain(push)
        moved = moved - REMOVED * per_particle(moved, u) * u
        size = per_particle(moved, moved).sqrt()
        return moved * (LARGEST_PUSH * length / size.clamp_min(tiny)).clamp_max(1)

    return across_the_drift


def _make(sets: Sets) -> ParticleGuidance:
    given = asked_for(sets, Volume)
    return ParticleGuidance(sets.denoise, **given | dict(strength=across(given["strength"])))


METHOD = Method(
    "OSCAR",
    _make,
    needs=(STRENGTH, BACKWARD, "three particles"),
    beside=beside,
    shown=dict(pg_factor=", factor {:g}"),
)
