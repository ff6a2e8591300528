"""Condition-annealed diffusion sampling (CADS).

The conditioning c is noised early in sampling, so that particles which would agree see different
conditionings,

    c^ = sqrt(g) c + scale sqrt(1 - g) n,   n ~ N(0, I),
    g  = 1 for t <= tau1,   (tau2 - t) / (tau2 - tau1) between,   0 for t >= tau2,

and is then brought back to the mean and standard deviation of c, to the share `mixing`:

    c~ = mixing rescale(c^) + (1 - mixing) c^.

Source: Sadat et al. 2024, "CADS: Unleashing the diversity of diffusion models through
condition-annealed sampling", arXiv 2310.17347, algorithm 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Callable

from torch import Tensor

from diverse_sampling.denoiser import Denoiser
from diverse_sampling.errors import reject
from diverse_sampling.guidance.base import Guided
from diverse_sampling.method import CONDITION, Method, Sets
from diverse_sampling.noise import Stream


@dataclass(frozen=True)
class Options:
    """CADS"""

    cads_scale: float = 0.25
    """standard deviation of the noise on the conditioning frames in [-1, 1]"""

    def __post_init__(self):
        if not 0 <= self.cads_scale < math.inf:
            reject("cads_scale", self.cads_scale, "a number >= 0")


class Cads(Guided):
    """A denoiser of sets in which each particle sees its own noised conditioning.

    Arguments:
        denoise, levels: as in `Guided`
        bind: conditioning (G, B, Cc, H, W) -> a denoiser in which every particle has its own
        cond: the conditioning c (G, Cc, H, W), in [-1, 1]
        noise: draws standard normal noise n (G, B, Cc, H, W)
        time: noise level -> time t in [0, 1], 1 at the largest noise level
        tau1: time up to which the conditioning is left as it is
        tau2: time from which on nothing of the conditioning is left; more than tau1
        scale: standard deviation of the noise on the conditioning
        mixing: share of the noised conditioning that is rescaled, in [0, 1]
    """

    def __init__(
        self,
        denoise: Denoiser,
        bind: Callable[[Tensor], Denoiser],
        cond: Tensor,
        noise: Callable[[], Tensor],
        time: Callable[[float], float],
        *,
        tau1: float,
        tau2: float,
        scale: float,
        mixing: float,
        **levels: float | None,
    ):
        super().__init__(denoise, **levels)
        self.bind = bind
        self.cond = cond
        self.noise = noise
        self.time = time
        self.tau1 = tau1
        self.tau2 = tau2
        self.scale = scale
        self.mixing = mixing

    def guided(self, x: Tensor, sigma: Tensor) -> Tensor:
        """D(x) with the noised conditioning of this noise level, like x."""
        cond = self.cond[:, None].expand(-1, x.shape[1], -1, -1, -1)  # (G, B, Cc, H, W)
        share = self.kept_share(self.time(float(sigma)))
        if share < 1:
            cond = self.noised(cond, share)
        return self.bind(cond)(x, sigma)

    def kept_share(self, t: float) -> float:
        """g at time t: the share of the conditioning's variance that is kept, in [0, 1]."""
        return min(max((self.tau2 - t) / (self.tau2 - self.tau1), 0.0), 1.0)

    def noised(self, cond: Tensor, share: float) -> Tensor:
        """c~ for conditionings (G, B, Cc, H, W) of which `share` g is kept, the same shape."""
        noised = math.sqrt(share) * cond + self.scale * math.sqrt(1 - share) * self.noise()
        axes: dict[str, Any] = dict(dim=(2, 3, 4), keepdim=True)
        rescaled = (noised - noised.mean(**axes)) / noised.std(**axes).clamp_min(1e-6)
        rescaled = rescaled * cond.std(**axes) + cond.mean(**axes)
        return self.mixing * rescaled + (1 - self.mixing) * noised


def _make(sets: Sets) -> Cads:
    cond = sets.condition()
    assert cond is not None  # CONDITION
    return Cads(
        sets.denoise,
        sets.bind,
        cond,
        sets.noise(Stream.CONDITIONING, tuple(cond.shape[1:])),
        sets.position,
        tau1=0.6,
        tau2=0.9,
        scale=sets.options.cads_scale,
        mixing=1.0,
        **sets.levels,
    )


METHOD = Method(
    "CADS",
    _make,
    needs=(CONDITION,),
    shown=dict(cads_scale=", noise of {:g}"),
    options=Options,
)
