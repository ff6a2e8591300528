"""CADS: condition-annealed diffusion sampling."""

from __future__ import annotations

import math
from typing import Any, Callable

from torch import Tensor

from guidance.base import Denoiser


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
