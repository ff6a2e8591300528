"""Starting noise away from earlier samples of its set.

    z' = z - SHIFT u,    u = (m - D(0; sigma_max)) / |m - D(0; sigma_max)|,

with m the mean of the samples that a set has already and D(0; sigma_max) that of all answers: their
difference is what was drawn more often than it should have been. What an ODE makes of noise follows
their correlation: for an exact denoiser of images far apart it is, nearly, the one with the largest
<z, image>. One direction of thousands is shifted, by SHIFT of its standard deviations, so that the
norm of the noise hardly changes, and no call of the network is guided. The same noise serves a
student (few_calls.py), whose first call decides all.

Source: none that we know of.

Uncertain: SHIFT was tried at 1, 2, 4, 6 and 8 on one world. Larger ones find more if particles are
drawn one by one, and fewer if a batch is shifted as one. Noise that the sampler adds back undoes
the shift. D(0; sigma_max) is the mean of a network's answers as far as it has learned it.
"""

from __future__ import annotations

from typing import Any, Callable

import torch
from torch import Tensor

from diverse_sampling.method import EARLIER, NO_CHURN, Method, Sets

SHIFT = 6.0


def away(noise: Tensor, earlier: Tensor, mean: Tensor) -> Tensor:
    """Noise moved away from what earlier samples of its set have in common.

    Arguments:
        noise: (G, B, C, H, W), standard normal
        earlier: (G, M, C, H, W) in [-1, 1], samples that these sets have already
        mean: (G, 1, C, H, W), of all answers: D(0; sigma_max)

    Returns noise like `noise`.
    """
    common = (earlier - mean).mean(1, keepdim=True).double()
    length = common.flatten(2).norm(dim=2)[..., None, None, None]
    return noise - (SHIFT * common / length.clamp_min(1e-12)).to(noise)


def _make(sets: Sets, noise: Callable[[], Tensor]) -> Tensor:
    z = noise()
    if sets.memory is None:
        return z
    with torch.no_grad():
        mean = sets.denoise(torch.zeros_like(z[:, :1]), sets.sigma_max)
    return away(z, sets.memory.to(z), mean)


def _before(settings: Any, particles: int) -> tuple[float, float]:
    """One call for the particles of each batch but the first."""
    return (1 - 1 / settings.sequential) / particles, 0.0


METHOD = Method("noise away from earlier samples", _make, needs=(EARLIER, NO_CHURN), before=_before)
