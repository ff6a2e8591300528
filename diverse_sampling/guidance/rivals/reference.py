"""Particle guidance as the reference thesis has it.

    D_i + s^2 factor grad_i U,   U = sum_{i < j} exp(-|y_i - y_j| / h),   y = (D + 1) / 2,
    h = median(|y_i - y_j|)^2 / ln B,

with a plus in front of the gradient where particle guidance has a minus (the thesis's algorithm 2,
line 10, has the opposite sign of the drift), and the gradient, with respect to y, is taken through
the median bandwidth h as well. Of three or more particles it climbs U where it should descend. For
two, |y_1 - y_2| / h = ln 2 / |y_1 - y_2|, so that climbing U moves them apart. The formula is that
of the thesis's code, which differs from its text: the thesis prints the squared distance.

As the thesis ran it, sampling starts from noise of a tenth of the deviation, and only the Euler
stage is guided: Heun's correction evaluates the denoiser at x_hat, before the Euler step, with the
noise level after it (`--initial_scale 0.1 --second_stage here`). It is here to be compared with;
`pg.py` has the form of the paper (Corso et al. 2023, arXiv 2310.13102).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from diverse_sampling.denoiser import Denoiser, to_unit_range
from diverse_sampling.errors import reject
from diverse_sampling.guidance.base import Pushed
from diverse_sampling.method import Method, Sets


@dataclass(frozen=True)
class Options:
    """The thesis's form"""

    second_stage: str = "next"
    """where Heun's correction evaluates the denoiser: next, at the result of the Euler step; here,
    where the Euler step began and without guidance, as in the thesis's code"""
    initial_scale: float = 1.0
    """factor on the starting noise (0.1 in the thesis's code)"""

    def __post_init__(self):
        if self.second_stage not in ("next", "here"):
            reject("second_stage", self.second_stage, "'next', 'here'")
        if not 0 < self.initial_scale < math.inf:
            reject("initial_scale", self.initial_scale, "a number > 0")


class Reference(Pushed):
    """A denoiser of sets in the thesis's form of particle guidance, the push above."""

    def denoised_and_push(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """D(x) and grad U, both like x."""
        denoised = self.denoise(x, sigma)
        return denoised, self._gradient(denoised).to(x)

    def _gradient(self, denoised: Tensor) -> Tensor:
        """grad U with respect to y, float64, like denoised (G, B, C, H, W)."""
        G, B = denoised.shape[:2]
        with torch.enable_grad():
            y = to_unit_range(denoised.detach()).flatten(2).double().requires_grad_()
            differences = y[:, :, None] - y[:, None, :]
            # All but the diagonal, (G, B (B - 1)), without a mask, which would make a GPU wait.
            d2 = differences.square().sum(-1).flatten(1)[:, 1:].unflatten(1, (B - 1, B + 1))
            d2 = d2[:, :, :-1].reshape(G, -1)
            # The square root of a zero has no gradient; two copies then do not feel each other.
            d = torch.where(d2 > 0, d2, 1.0).sqrt() * (d2 > 0)
            h = (d.median(-1, keepdim=True).values ** 2 / math.log(max(B, 2))).clamp_min(1e-12)
            energy = (-d / h).exp().sum() / 2
            (grad,) = torch.autograd.grad(energy, y)
        return grad.view_as(denoised)


class StageHere:
    """The denoiser that the thesis's code has in EDM's steps, whose calls come in pairs.

    The first call of a step, of Euler's stage, is guided. The second, of Heun's correction, is the
    plain denoiser at the x of the first. It is for one run of the sampler.

    Arguments:
        guided: the denoiser of the first calls
        plain: the denoiser of the second ones
    """

    def __init__(self, guided: Denoiser, plain: Denoiser):
        self.guided = guided
        self.plain = plain
        self.began: Tensor | None = None  # where the Euler step that waits for a correction began

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        if self.began is None:
            self.began = x
            return self.guided(x, sigma)
        began, self.began = self.began, None
        return self.plain(began, sigma)


def _make(sets: Sets) -> Denoiser:
    guided = Reference(sets.denoise, factor=sets.settings.pg_factor, **sets.levels)
    if sets.options.second_stage == "here":
        return StageHere(guided, sets.denoise)
    return guided


METHOD = Method(
    "the thesis's form",
    _make,
    shown=dict(pg_factor=", factor {:g}"),
    only=dict(sampler="edm"),
    options=Options,
    start=lambda options: options.initial_scale,
)
