"""OSCAR with noise of its own: the push of `oscar.py`, and noise across the drift beside it.

    drift + push + share |drift| xi / |xi|,   xi = n - <n, u> u,   u = drift / |drift|,

for each particle, with n ~ N(0, I): xi is noise without its part along the drift, and a step moves
a particle by noise that is `share` times as long as the step itself. It is for samplers that add no
noise. The cost is that of `oscar.py`. Marginals shift.

Source: Wu et al. 2025, "OSCAR: orthogonal stochastic control for alignment-respecting diversity in
flow matching", arXiv 2510.09060.

Uncertain: as in `oscar.py`. The authors' code bounds the noise of a step by a share of the step and
by eta times that of a Brownian motion over the same levels; for eta = 1 the second is never the
smaller one, since s^2 - s'^2 >= (s - s')^2 for s > s', and is left out. Their share and eta are not
given; `share` is what also bounds the push. The noise is across the drift of this call, and not of
the last step. Their gate, the times 0.85 to 0.95 of a flow, are the noise levels 5.7 to 19 standard
deviations of the data, for `pg_sigma_min` and `pg_sigma_max`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Callable

from torch import Tensor

from diverse_sampling.errors import reject
from diverse_sampling.guidance.base import per_particle, tiny_of
from diverse_sampling.guidance.pg import ParticleGuidance, Push, Strength, asked_for, beside
from diverse_sampling.guidance.rivals.oscar import LARGEST_PUSH, Volume, across
from diverse_sampling.method import BACKWARD, NO_CHURN, STRENGTH, Method, Sets
from diverse_sampling.noise import Stream


@dataclass(frozen=True)
class Options:
    """OSCAR's noise"""

    oscar_noise: float = LARGEST_PUSH
    """length of the noise that a step adds, in lengths of the step"""

    def __post_init__(self):
        if not 0 <= self.oscar_noise < math.inf:
            reject("oscar_noise", self.oscar_noise, "a number >= 0")


def with_noise(strength: Strength, noise: Callable[[], Tensor], share: float) -> Strength:
    """Another strength, with noise across the drift beside it; see above.

    Arguments:
        strength: of the push
        noise: draws n, standard normal noise like the particles
        share: length of the noise, in lengths of the drift
    """

    def noised(push: Push) -> Tensor:
        drift = push.drift
        tiny = tiny_of(push.x)
        length = per_particle(drift, drift).sqrt()
        u = drift / length.clamp_min(tiny)
        n = noise().to(drift)
        xi = n - per_particle(n, u) * u
        size = per_particle(xi, xi).sqrt()
        return strength(push) + share * length * xi / size.clamp_min(tiny)

    return noised


def _make(sets: Sets) -> ParticleGuidance:
    given = asked_for(sets, Volume)
    noise = sets.noise(Stream.PROBES, None)
    strength = with_noise(across(given["strength"]), noise, sets.options.oscar_noise)
    return ParticleGuidance(sets.denoise, **given | dict(strength=strength))


METHOD = Method(
    "OSCAR with its own noise",
    _make,
    needs=(STRENGTH, BACKWARD, NO_CHURN, "three particles"),
    beside=beside,
    shown=dict(pg_factor=", factor {:g}"),
    options=Options,
)
