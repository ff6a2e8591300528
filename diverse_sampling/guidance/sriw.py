"""Repulsion that never leads to less probable images (SRIW).

With the unit score u of a particle and the repulsion f of particle guidance, c = <f, u> is how
much of f runs up the density of single particles. Of the part down the density, only the share l
is kept:

    f <- f - c u + (l c + (1 - l) relu(c)) u,   l = s / (1 + s),

so that late in sampling, where l is small, f is tangential to the level sets of the density or
climbs it. Each particle's push then has the norm factor sqrt(l) |d_i|, d_i = (x_i - D(x_i)) / s.
It acts on D(x) and needs no backward pass. Marginals shift.

Source: Liu et al. 2025, "Score-regularized joint sampling with importance weights for flow
matching", arXiv 2511.17812, which uses a factor of 0.1.

Uncertain: which potential f comes from; here it is the Gaussian kernel with the median heuristic,
or `pg_kernel`. A normalised push has the same size whether particles are near or far.
"""

from __future__ import annotations

from torch import Tensor

from diverse_sampling.guidance.base import per_particle, tiny_of
from diverse_sampling.guidance.pg import ParticleGuidance, Push, asked_for
from diverse_sampling.method import STRENGTH, Method


def never_down(push: Push) -> Tensor:
    """A strength for `ParticleGuidance` on D(x): a push that does not lower the density; see above.

    Its factor is the size of the push at high noise in units of the drift.
    """
    score = push.denoised - push.x  # times s^2
    tiny = tiny_of(push.x)
    length = per_particle(score, score).sqrt()
    u = score / length.clamp_min(tiny)
    share = float(push.sigma / (1 + push.sigma))  # l
    f = -push.grad / push.grad.abs().amax((1, 2, 3, 4), keepdim=True).clamp_min(tiny)
    c = per_particle(f, u)
    f = f - c * u + (share * c + (1 - share) * c.relu()) * u
    size = per_particle(f, f).sqrt()
    return -push.factor * share**0.5 * (length / push.sigma) * f / size.clamp_min(tiny)


METHOD = Method(
    "SRIW",
    lambda sets: ParticleGuidance(
        sets.denoise, **asked_for(sets) | dict(space="denoised", strength=never_down)
    ),
    needs=(STRENGTH,),
    shown=dict(pg_factor=", factor {:g}"),
)
