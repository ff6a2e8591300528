"""Group inference: candidates are pruned while they are sampled, by how different they are.

A set of B starts as M candidates. At each of the first steps, as many of them as `group_keep` says
go on, those that solve the quadratic assignment

    max sum_i u_i y_i + lambda sum_{i < j} b_ij y_i y_j,   y_i in {0, 1},

of the quality u_i and the pairwise difference b_ij of their D(x), until B are left; these are
sampled to the end. Steps are Euler's, and no particle is guided. M is as large as it can be if the
calls of candidates that are pruned are no more than those of the samples.

Source: Parmar et al. 2025, "Scaling group inference for diverse and high-quality generation", arXiv
2508.15773: the assignment; pruning after each step by previews, of which ceil(keep n) of n go on,
with keep = 0.5 for models of 20 steps and more and 0.1 for one of 4.

Uncertain: the published quality is the similarity of image and prompt to CLIP. Nothing here could
tell a good preview without the answers, so that u = 0, which leaves no lambda. The published b is
one minus the cosine of DINO's features, here of pixels in [0, 1]. The assignment is solved up to
exchanges of two candidates, not by a solver of integer programmes. M is published as 64 or 128 for
sets of 4, whatever it costs; here the price decides. If rounding would let all candidates go on,
one of them goes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from diverse_sampling.errors import reject
from diverse_sampling.method import Method


@dataclass(frozen=True)
class Options:
    """Group inference"""

    group_keep: float = 0.5
    """share of the candidates that go on from each of the first steps, until a set is left"""

    def __post_init__(self):
        if not 0 < self.group_keep < 1:
            reject("group_keep", self.group_keep, "a number between 0 and 1")


def remaining(candidates: int, particles: int, keep: float) -> list[int]:
    """How many candidates each step takes, as long as they are more than the particles of a set."""
    sizes = []
    while candidates > particles:
        sizes.append(candidates)
        candidates = max(particles, min(math.ceil(keep * candidates), candidates - 1))
    return sizes


def affordable(options: Options, particles: int, steps: int) -> list[int]:
    """`remaining` of as many candidates as possible.

    The calls beyond those of the set itself are no more than these, steps * particles, and the
    last step is the set's alone.
    """
    best: list[int] = []
    for candidates in range(particles + 1, particles * (steps + 1) + 1):
        sizes = remaining(candidates, particles, options.group_keep)
        if sum(sizes) - particles * len(sizes) > steps * particles:
            break
        if len(sizes) < steps:
            best = sizes
    return best


METHOD = Method(
    "group inference",
    lambda sets: sets.denoise,
    needs=("no churn",),
    shown=dict(group_keep=", {:g} kept at a step"),
    only=dict(sampler="edm", s_churn=0.0, medoids_of=1, pool=1, sequential=1),
    options=Options,
    remaining=affordable,
)
