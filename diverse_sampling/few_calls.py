"""Samples in few calls of a student: a network f(x, s) that returns a sample, not a mean.

Consistency models and other distilled networks are such. At the first call all is decided; each
later call refines a sample to which new noise was added,

    x_0 = f(s_1 z_1; s_1),    x_0 <- f(x_0 + s_i z_i; s_i),

which is `integrate` with `renewed_schedule` (Song et al. 2023, arXiv 2303.01469, algorithm 1). The
exact student of an exact denoiser, `exact_student`, is the end of the probability-flow ODE: methods
are tried on it in seconds.

The first call decides what a sample shows, and nothing of it can be pushed after: what helps are
other starts (`coupling.away`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from diverse_sampling.decisions import EARLY, Decisions
from diverse_sampling.defaults import SIGMA_MAX, SIGMA_MIN
from diverse_sampling.denoiser import Denoiser
from diverse_sampling.steps import Schedule, append_zero, edm_schedule, integrate, karras_sigmas


def student_levels(decisions: Decisions, calls: int, sigma_max: float = SIGMA_MAX) -> Tensor:
    """Noise levels at which a student is called: sigma_max, and geometric ones between where it
    begins to be decided what a sample shows and where nothing is left to decide.

    Returns (calls,) float64, decreasing.
    """
    high = decisions.sigma(EARLY.first)
    between = torch.arange(1, calls, dtype=torch.float64) / calls
    first = torch.tensor([sigma_max], dtype=torch.float64)
    return torch.cat([first, high * (decisions.end / high) ** between])


def renewed_schedule(levels: Tensor) -> Schedule:
    """A call at each noise level, all noise renewed before each but the first.

    Each step ends at SIGMA_MIN, from where noise is added up to the next level. levels (N,) float64
    on the CPU, all above SIGMA_MIN.
    """
    sigmas = torch.full_like(levels, SIGMA_MIN)
    sigmas[0] = levels[0]
    return Schedule(append_zero(sigmas), levels / sigmas - 1, torch.zeros(len(levels)).bool())


def exact_student(denoise: Denoiser, steps: int = 14, sigma_min: float = 0.02) -> Denoiser:
    """The student of a denoiser: the end of the probability-flow ODE from any (x, sigma).

    Arguments:
        denoise: the denoiser D
        steps: Heun's steps, at Karras' noise levels from sigma on
        sigma_min: the last of these before 0
    """

    def student(x: Tensor, sigma: Tensor) -> Tensor:
        levels = karras_sigmas(steps, sigma_min, float(sigma))
        return integrate(denoise, x, edm_schedule(levels))

    return student
