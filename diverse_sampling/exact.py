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
    logits = log_weights(x, sigma, images, log_prior, sd)
    # A GPU's kernel for products of inner size 1 is compiled when it is first used.
    means = mu if mu.shape[1] == 1 else weights(logits) @ mu  # (N, P, d), or (N, 1, d)
    return ((s2 * means + sd**2 * flat) / (s2 + sd**2)).view_as(x)


def log_weights(
    x: Tensor,
    sigma: Tensor,
    images: Tensor,
    log_prior: Tensor | None = None,
    sd: float = 0.0,
) -> Tensor:
    """log p(image m | x) up to a constant, (N, P, k); arguments as in `posterior_mean`."""
    N = x.shape[0]
    flat = x.reshape(N, -1, images[0, 0].numel())  # (N, P, d)
    mu = images.flatten(2)  # (N, k, d)
    s2 = sigma.to(x).expand(N)[:, None, None] ** 2
    # |x|^2 cancels in the softmax, and leaving it out keeps float32 exact at small sigma.
    logits = (flat @ mu.transpose(1, 2) - mu.square().sum(-1)[:, None] / 2) / (s2 + sd**2)
    if log_prior is None:
        return logits
    return logits + (log_prior if log_prior.ndim == 1 else log_prior[:, None])


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


class Bank:
    """Known pictures that all sets share, each in a class: exact posteriors of noisy pictures.

    Arguments:
        images: (M, C, H, W) in [-1, 1]
        labels: (M,) int64, their classes, below `classes`
        classes: k, how many there are
        log_prior: (G, M), log pi of each picture in each set; None: all are equally likely

    Nothing is approximated, and nothing is held for each pair of pictures: M numbers for each
    particle.
    """

    def __init__(
        self, images: Tensor, labels: Tensor, classes: int, log_prior: Tensor | None = None
    ):
        order = labels.argsort(stable=True)  # classes one after the other
        flat = images[order].flatten(1)
        # Pixels that are alike in all pictures, such as a margin, are known and say nothing.
        self.varying = (flat != flat[:1]).any(0).nonzero()[:, 0]
        self.alike = flat[0]
        self.pixels = flat[:, self.varying].contiguous()
        self.half_squares = self.pixels.square().sum(1) / 2
        self.sizes = torch.bincount(labels, minlength=classes).tolist()
        self.log_prior = None if log_prior is None else log_prior[:, order]

    def log_weights(self, x: Tensor, sigma: Tensor) -> Tensor:
        """log p(picture | x) up to a constant, x (G, B, C, H, W) -> (G, B, M), in the classes'
        order."""
        seen = x.flatten(0, 1).flatten(1)[:, self.varying]
        logits = (seen @ self.pixels.T - self.half_squares) / sigma.to(x) ** 2
        logits = logits.unflatten(0, x.shape[:2])
        return logits if self.log_prior is None else logits + self.log_prior[:, None]

    def _by_class(self, logits: Tensor) -> Tensor:
        """log p(class | x) of the log-weights of pictures, (G, B, M) -> (G, B, k)."""
        each = [part.logsumexp(-1) for part in logits.split(self.sizes, -1)]
        return torch.stack(each, -1).log_softmax(-1)

    def log_posterior(self, x: Tensor, sigma: Tensor) -> Tensor:
        """log p(class | x; sigma), x (G, B, C, H, W) -> (G, B, k)."""
        return self._by_class(self.log_weights(x, sigma))

    def denoiser(self, weights: Callable[[Tensor], Tensor] | None = None) -> Denoiser:
        """The posterior mean, denoise(x (G, B, C, H, W), sigma) -> like x.

        `weights` turns the log-posteriors of the classes (G, B, k) into the shares that they get in
        the mean, such as `joint_weights`; None: their posteriors.
        """

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            logits = self.log_weights(x, sigma)
            if weights is None:
                shares = logits.softmax(-1)
            else:
                q = weights(self._by_class(logits)).to(logits).split(1, -1)
                parts = zip(logits.split(self.sizes, -1), q)
                shares = torch.cat([part.softmax(-1) * each for part, each in parts], -1)
            means = self.alike.expand(x.shape[0] * x.shape[1], -1).clone()
            means[:, self.varying] = shares.flatten(0, 1) @ self.pixels
            return means.view_as(x)

        return denoise
