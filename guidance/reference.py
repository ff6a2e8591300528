"""The reference thesis's form of particle guidance."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from guidance.base import LARGEST, Denoiser, finite


class Reference:
    """Particle guidance as the reference thesis has it: a minus where the plus belongs (its
    algorithm 2, line 10), the kernel exp(-d / h) on D(x), and the gradient going through the median
    bandwidth as well. It climbs U where it should descend; here to be compared with."""

    def __init__(self, denoise: Denoiser, *, factor: float):
        self.denoise, self.factor = denoise, min(factor, LARGEST**2)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        denoised, B = self.denoise(x, sigma), x.shape[1]
        if self.factor == 0 or B == 1:
            return denoised
        with torch.enable_grad():
            y = denoised.detach().flatten(2).double().requires_grad_()
            off = ~torch.eye(B, dtype=torch.bool, device=x.device)
            # The square root of a zero has no gradient; two copies then do not feel each other.
            d2 = (y[:, :, None] - y[:, None, :]).square().sum(-1)[:, off].view(len(y), -1)
            d = torch.where(d2 > 0, d2, 1.0).sqrt() * (d2 > 0)
            h = (d.median(-1, keepdim=True).values / math.log(max(B, 2))).clamp_min(1e-12)
            (grad,) = torch.autograd.grad((-d / h).exp().sum() / 2, y)
        return finite(denoised + sigma**2 * self.factor * grad.to(x).view_as(x))
