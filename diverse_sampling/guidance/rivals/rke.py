"""RKE guidance: ascent of the number of modes that a kernel sees in a set.

    f_i = grad_i log RKE,   RKE = 1 / |K / B|_F^2,   K_ij = exp(-|y_i - y_j|^2 / h),

of the set together with its memory. RKE, the exponential of the Renyi entropy of order 2 of the
eigenvalues of K / B, lies between 1 (all alike) and B (all different). It is a potential,
U = -log RKE, and guides by `ParticleGuidance`, which costs one backward pass to the input per call,
or none with `--pg_space denoised`. Marginals shift.

Source: Jalali et al. 2025, "SPARKE: scalable prompt-aware diversity guidance in diffusion models
via RKE score", arXiv 2506.10173.

Uncertain: SPARKE weighs pairs of samples by the similarity of their prompts; the particles of a set
share theirs, so that all weigh the same. It acts on noisy latents and on |K / B|_F^2 itself; the
logarithm here changes the size of the step and not its direction.
"""

from __future__ import annotations

import math

from torch import Tensor

from diverse_sampling.guidance.pg import ParticleGuidance, asked_for, beside
from diverse_sampling.method import BACKWARD, STRENGTH, Method
from diverse_sampling.potentials import RBF, Bandwidth, weighted_differences


class RKE:
    """The potential U = -log RKE; see above.

    Arguments:
        bandwidth: the rule for h
    """

    def __init__(self, bandwidth: Bandwidth = Bandwidth()):
        self.rbf = RBF(bandwidth)

    def energy(self, y: Tensor, sigma: float = 1.0) -> Tensor:
        k, _ = self.rbf.matrices(y, sigma)
        return (k.square().sum((1, 2)).log() - 2 * math.log(k.shape[1])).to(y)

    def grad(self, y: Tensor, sigma: float = 1.0) -> Tensor:
        k, slope = self.rbf.matrices(y, sigma)
        return weighted_differences(8 * k * slope / k.square().sum((1, 2), keepdim=True), y)


METHOD = Method(
    "RKE",
    lambda sets: ParticleGuidance(sets.denoise, **asked_for(sets, RKE)),
    needs=(STRENGTH, BACKWARD),
    beside=beside,
    shown=dict(pg_factor=", factor {:g}"),
)
