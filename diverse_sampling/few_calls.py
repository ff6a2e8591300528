"""Samples in few calls of a student: a network f(x, s) that returns a sample, not a mean.

Consistency models and other distilled networks are such. At the first call all is decided; each
later call refines a sample to which new noise was added,

    x_0 = f(s_1 z_1; s_1),    x_0 <- f(x_0 + s_i z_i; s_i),

which is `integrate` with `renewed_schedule` (Song et al. 2023, arXiv 2303.01469, algorithm 1). The
exact student of an exact denoiser, `exact_student`, is the end of the probability-flow ODE: methods
are tried on it in seconds.

What a student makes of noise follows the correlation of noise and images: for an exact one of k
images far apart it is the image mu_m with the largest <z, mu_m>, nearly. Noise that is nearly
orthogonal to the samples that there are (`apart`) leads to them only if it leads away from all
others.

Uncertain: `LEFT` was tried at 0, 0.1, 0.3 and 0.6. Without any left, all earlier samples are
equally near, and an ODE ends between them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from diverse_sampling.decisions import EARLY, Decisions
from diverse_sampling.defaults import SIGMA_MAX, SIGMA_MIN
from diverse_sampling.denoiser import Denoiser
from diverse_sampling.steps import Schedule, append_zero, edm_schedule, integrate, karras_sigmas

LEFT = 0.1  # of noise along earlier samples, so that no two of them are equally near
SMALLEST = 1e-3  # singular values of earlier samples below this share of the largest are rounding


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


def apart(noise: Tensor, earlier: Tensor) -> Tensor:
    """Noise of which what lies in the span of earlier samples of its set is scaled by LEFT.

    noise (G, B, ...), earlier (G, M, ...) in [-1, 1], M below the number of pixels -> like noise. A
    particle keeps its distribution but for these M of all its directions.
    """
    z = noise.flatten(2).double()
    _, size, directions = torch.linalg.svd(earlier.flatten(2).to(z), full_matrices=False)
    directions = directions * (size > SMALLEST * size[:, :1])[:, :, None]  # (G, M, d)
    z = z - (1 - LEFT) * (z @ directions.transpose(1, 2) @ directions)
    return z.view_as(noise).to(noise)
