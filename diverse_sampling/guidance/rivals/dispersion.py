"""Dispersion of the network's own features: particles repel by what the denoiser sees in them.

    f_i = -grad_{x_i} U(phi(x_1; s), ..., phi(x_B; s)),

with phi the bottleneck of the denoiser's own U-Net. Features come with D(x), from one call; their
gradient is a backward pass through the layers before the bottleneck alone, and counted as that
share of one. Guides by `ParticleGuidance`, with a drift of a size relative to that of the denoiser.
Marginals shift.

Source: Bhat et al. 2026, "Don't settle at the mode! Mitigating diversity collapse in pretrained
flow models via feature self-guidance", arXiv 2606.27371. From it is the idea: the features of the
generating model itself are dispersed within a batch, without another network and without training.

Uncertain: all else, since only its abstract was read. The paper's networks are transformers, with
features of some of their layers; here they are a U-Net's bottleneck. U is any of `potentials.py`.
The paper disperses the features and projects them back onto the data's manifold, at a marginal
cost; here x is moved by a gradient, and nothing is projected. The noise levels are all, or those of
the sampler's window.
"""

from __future__ import annotations

from diverse_sampling.denoiser import ENCODER
from diverse_sampling.guidance.pg import ParticleGuidance, asked_for
from diverse_sampling.method import BACKWARD, NETWORK, STRENGTH, Method, Sets


def _make(sets: Sets) -> ParticleGuidance:
    return ParticleGuidance(
        sets.denoise, **asked_for(sets) | dict(strength="drift", features=sets.features())
    )


METHOD = Method(
    "dispersion of the network's features",
    _make,
    needs=(STRENGTH, NETWORK, BACKWARD),
    beside=lambda settings: (0, ENCODER),
    shown=dict(pg_factor=", factor {:g}"),
    only=dict(sequential=1),
)
