"""Exact denoisers: posterior means over answers that are known, of particles or of whole sets."""

from __future__ import annotations

from functools import partial
from typing import Callable

import torch
from torch import Tensor

from diverse_sampling.denoiser import Denoiser
from diverse_sampling.guidance.joint import joint_weights


def posterior_mean(
    x: Tensor,
    sigma: Tensor,
    images: Tensor,
    log_prior: Tensor | None = None,
    sd: float = 0.0,
    weights: Callable[[Tensor], Tensor] = partial(torch.softmax, dim=-1),
) -> Tensor:
    """The exact denoiser E[y | x] of x = y + s * noise, where y is one of k known images.

        w = softmax_m(log pi_m - |x - mu_m|^2 / 2 (s^2 + sd^2))
        D(x; s) = (s^2 sum_m w_m mu_m + sd^2 x) / (s^2 + sd^2)

    No network, no training (EDM, appendix B.3, equation 57). With sd > 0, y is drawn from a mixture
    of Gaussians of that standard deviation around the images.

    Arguments:
        x: (N, ..., C, H, W)
        sigma: s, a scalar or (N,)
        images: mu, (N, k, C, H, W)
        log_prior: log pi, (k,), or (N, k) where they differ; None: all images are equally likely
        sd: standard deviation around the images
        weights: log pi_m - |x - mu_m|^2 / 2 (s^2 + sd^2) up to a constant, (N, P, k), P the
            particles of x -> w, the same shape

    Returns the posterior mean, like x.
    """
    N = x.shape[0]
    flat = x.reshape(N, -1, images[0, 0].numel())  # (N, P, d)
    mu = images.flatten(2)  # (N, k, d)
    s2 = sigma.to(x).expand(N)[:, None, None] ** 2
    # |x|^2 cancels in the softmax, and leaving it out keeps float32 exact at small sigma.
    logits = (flat @ mu.transpose(1, 2) - mu.square().sum(-1)[:, None] / 2) / (s2 + sd**2)
    if log_prior is not None:
        logits = logits + (log_prior if log_prior.ndim == 1 else log_prior[:, None])
    # A GPU's kernel for products of inner size 1 is compiled when it is first used.
    means = mu if mu.shape[1] == 1 else weights(logits) @ mu  # (N, P, d), or (N, 1, d)
    return ((s2 * means + sd**2 * flat) / (s2 + sd**2)).view_as(x)


def exact_denoiser(
    images: Tensor, log_prior: Tensor | None = None, sd: float = 0.0, *, joint: bool = False
) -> Denoiser:
    """The exact denoiser of sets whose answers are known images.

    Arguments:
        images: (G, k, C, H, W), the answers of each set
        log_prior, sd: as in `posterior_mean`
        joint: whether the sets are as diverse as they can be (`guidance/joint.py`), in float64,
            rather than made of independent particles

    Returns denoise(x (G, B, C, H, W), sigma) -> the posterior mean, like x.
    """
    if not joint:
        return lambda x, sigma: posterior_mean(x, sigma, images, log_prior, sd)
    images = images.double()

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        means = posterior_mean(x.double(), sigma, images, log_prior, sd, weights=joint_weights)
        return means.to(x)

    return denoise
