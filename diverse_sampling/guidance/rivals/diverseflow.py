"""DiverseFlow: the likelihood of a set under a determinantal point process.

    f_i = grad_i [log det L - log det(L + I)],   L_ij = q_i q_j exp(-h |y_i - y_j|^2 / (2 median)),

with y = D(x) and `median` that of the squared distances: the log-probability that a determinantal
point process with kernel L, of random size, draws just this set. log det L alone is `LogDet` of
`potentials.py`; the second term bounds the gain from particles that are far apart already. It is a
potential, U = -log of that probability, and guides by `ParticleGuidance`, which costs one backward
pass to the input per call. Marginals shift.

Source: Morshed & Boddeti 2025, "DiverseFlow: sample-efficient diverse mode coverage in flows",
arXiv 2504.07894.

Uncertain: the published qualities q_i fall where the noise that a particle implies is improbably
long. Here all of them are one number, 1. The published strength follows the schedule of a flow;
here it is `pg_factor` in any unit of `pg_strength`. h is not given as one number; `Bandwidth` of 2
median / ln B is h = ln B. A little is added to the diagonal of L, as in `LogDet`, for copies.
"""

from __future__ import annotations

import torch
from torch import Tensor

from diverse_sampling.guidance.pg import ParticleGuidance, asked_for, beside
from diverse_sampling.method import BACKWARD, STRENGTH, Method
from diverse_sampling.potentials import RBF, Bandwidth, weighted_differences

JITTER = 2e-3  # on the diagonal, as in LogDet


class DiverseFlow:
    """The potential U = log det(L + I) - log det L; see above.

    Arguments:
        bandwidth: the rule for the denominator, 2 median / h
        quality: q, the same for all particles
    """

    def __init__(self, bandwidth: Bandwidth = Bandwidth(), quality: float = 1.0):
        self.rbf = RBF(bandwidth)
        self.quality = quality

    def _matrices(self, y: Tensor, sigma: float) -> tuple[Tensor, Tensor, Tensor]:
        """L, L + I, and dL/d(d2) of every pair, (G, B, B) float64 each."""
        k, slope = self.rbf.matrices(y, sigma)
        identity = torch.eye(k.shape[-1], dtype=k.dtype, device=k.device)
        L = self.quality**2 * (k + JITTER * identity)
        return L, L + identity, self.quality**2 * slope

    def energy(self, y: Tensor, sigma: float = 1.0) -> Tensor:
        L, normaliser, _ = self._matrices(y, sigma)
        return (torch.logdet(normaliser) - torch.logdet(L)).to(y)

    def grad(self, y: Tensor, sigma: float = 1.0) -> Tensor:
        L, normaliser, slope = self._matrices(y, sigma)
        return weighted_differences(4 * (_inverse(normaliser) - _inverse(L)) * slope, y)


def _inverse(matrix: Tensor) -> Tensor:
    """The inverse of positive definite matrices. cholesky_ex does not make a GPU wait."""
    return torch.cholesky_inverse(torch.linalg.cholesky_ex(matrix).L)


METHOD = Method(
    "DiverseFlow",
    lambda sets: ParticleGuidance(sets.denoise, **asked_for(sets, DiverseFlow)),
    needs=(STRENGTH, BACKWARD),
    beside=beside,
    shown=dict(pg_factor=", factor {:g}"),
)
