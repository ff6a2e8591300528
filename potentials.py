"""Potentials by which the particles of a set repel.

Particle guidance (PG, Corso et al. 2023, arXiv 2310.13102) samples a set from
p(x_1) ... p(x_B) Phi(x_1..x_B). A potential is U = -log Phi. Most are sums over pairs,

    U = 1/2 sum_{i != j} k(y_i, y_j),

with a kernel k that falls from 1 to 0 with the distance of two particles over a
bandwidth h; `LogDet` is the determinantal one. They see sets as (G, B, d), G sets that
do not feel each other. Gradients are in closed form, float64 inside, finite for every
finite float32 input, and 0 for B = 1. A new potential is a class with `energy` and
`grad`, and one line in `POTENTIALS`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Callable, Protocol

import torch
from torch import Tensor

MEDIAN_OF = 2**20


class Potential(Protocol):
    """U of sets. `energy`: (G, B, d) -> (G,). `grad`: (G, B, d) -> (G, B, d), the derivative of
    `energy` with the bandwidth held fixed. `sigma` is the noise level, for bandwidths that follow it."""

    def energy(self, y: Tensor, sigma: float = 1.0) -> Tensor: ...

    def grad(self, y: Tensor, sigma: float = 1.0) -> Tensor: ...


def cosine_share(sigma: float, low: float, high: float) -> float:
    """1 at sigma = high falling to 0 at sigma = low, a half cosine in ln sigma."""
    u = math.log(high / sigma) / math.log(high / low)
    return 0.5 * (1 + math.cos(math.pi * min(max(u, 0.0), 1.0)))


@dataclass(frozen=True)
class Bandwidth:
    """The bandwidth h of a kernel.

    rule    "median": value * median of the set's pairwise distances / ln B (Liu & Wang 2016, arXiv
            1608.04471, section 5), without gradient; "fixed": value; "sigma": value * sigma^order
    anneal  (low, high) noise levels between which h falls to 0 by a half cosine; None: it does not

    h is at least a millionth of the largest distance, so that copies look alike whatever the rounding. Of more than
    MEDIAN_OF pairs, the median is that of so many.
    """

    rule: str = "median"
    value: float = 1.0
    anneal: tuple[float, float] | None = None

    def __call__(self, distances: Tensor, sigma: float, order: int) -> Tensor:
        """distances (G, B, B), in units of length^order -> h (G, 1, 1)."""
        G, B, _ = distances.shape
        largest = distances.detach().amax((1, 2))
        if self.rule == "median" and B > 1:
            # All but the diagonal, without a mask, which would make a GPU wait.
            pairs = distances.detach().flatten(1)[:, 1:].unflatten(1, (B - 1, B + 1))[:, :, :-1]
            pairs = pairs[:, :: max(1, B * B // MEDIAN_OF)].flatten(1)
            h = self.value * pairs.median(-1).values / math.log(max(B, 2))
        else:
            h = torch.full_like(
                largest, self.value * (sigma**order if self.rule == "sigma" else 1.0)
            )
        if self.anneal is not None:
            h = h * cosine_share(sigma, *self.anneal)
        h = torch.maximum(h, 1e-6 * largest)
        return torch.where(h > 0, h, 1.0)[:, None, None]


def squared_distances(y: Tensor) -> Tensor:
    """(G, B, d) -> (G, B, B) squared L2 distances by one matrix product, in float64 (squares of
    any float32 fit). The set is centred first, so that particles near each other lose no
    precision to their common part."""
    y = y.double()
    y = y - y.mean(1, keepdim=True)
    gram = y @ y.transpose(1, 2)
    norms = gram.diagonal(dim1=1, dim2=2)
    d2 = (norms[:, :, None] + norms[:, None, :]).sub_(gram, alpha=2).clamp_(min=0)
    d2.diagonal(dim1=1, dim2=2).zero_()
    return d2


def weighted_differences(weights: Tensor, y: Tensor) -> Tensor:
    """sum_j weights_ij (y_i - y_j): (G, B, B) float64, (G, B, d) -> (G, B, d), never (G, B, B, d)."""
    z = y.double()
    z = z - z.mean(1, keepdim=True)
    return (weights.sum(-1, keepdim=True) * z - weights @ z).to(y)


class Radial:
    """A sum over pairs of a kernel of the L2 distance. Subclasses give `order`, the power of the
    distance that the bandwidth is compared with, and `kernel`."""

    order = 2

    def __init__(self, bandwidth: Bandwidth = Bandwidth()):
        self.bandwidth = bandwidth

    def kernel(self, d2: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """Squared distances (G, B, B), h (G, 1, 1) -> k and dk/d(d2), both (G, B, B)."""
        raise NotImplementedError

    def matrices(self, y: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """k and dk/d(d2) of every pair, (G, B, B) float64 each."""
        d2 = squared_distances(y)
        return self.kernel(
            d2, self.bandwidth(d2 if self.order == 2 else d2.sqrt(), sigma, self.order)
        )

    def energy(self, y: Tensor, sigma: float = 1.0) -> Tensor:
        k, _ = self.matrices(y, sigma)
        return ((k.sum((1, 2)) - k.shape[1]) / 2).to(y)

    def grad(self, y: Tensor, sigma: float = 1.0) -> Tensor:
        return 2 * weighted_differences(self.matrices(y, sigma)[1], y)


class RBF(Radial):
    """k = exp(-d^2 / h)  (PG, section 4)."""

    def kernel(self, d2, h):
        k = (d2 / -h).exp_()
        return k, k / -h


class UnsquaredRBF(Radial):
    """k = exp(-d / h), the kernel of the reference thesis. Its gradient does not vanish as two
    particles meet; where they have met it is 0."""

    order = 1

    def kernel(self, d2, h):
        d = d2.sqrt()
        k = (-d / h).exp()
        return k, torch.where(d > 0, -k / (2 * h * torch.where(d > 0, d, 1.0)), 0.0)


class InverseDistance(Radial):
    """k = (1 + d^2 / h)^(-1/2), the inverse multiquadric: sqrt(h) / d far away, so that even distant
    particles are felt."""

    def kernel(self, d2, h):
        k = (1 + d2 / h).rsqrt()
        return k, -(k**3) / (2 * h)


class LogDet:
    """U = -log det((K + jitter I) / (1 + jitter)) with K the RBF kernel: Phi is that of a
    determinantal point process (Kulesza & Taskar 2012, arXiv 1207.6083, section 2; PG, section
    4). Unlike a sum of pairs it goes on pushing two particles apart, the harder the more alike they
    are, down to the scale of `jitter`."""

    def __init__(self, bandwidth: Bandwidth = Bandwidth(), jitter: float = 1e-3):
        self.rbf, self.jitter = RBF(bandwidth), jitter

    def _matrices(self, y: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        k, slope = self.rbf.matrices(y, sigma)
        return k + self.jitter * torch.eye(k.shape[-1], dtype=k.dtype, device=k.device), slope

    def energy(self, y: Tensor, sigma: float = 1.0) -> Tensor:
        L, _ = self._matrices(y, sigma)
        return (L.shape[1] * math.log1p(self.jitter) - torch.logdet(L)).to(y)

    def grad(self, y: Tensor, sigma: float = 1.0) -> Tensor:
        L, slope = self._matrices(y, sigma)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky_ex(L).L)  # _ex: no check to wait for
        return weighted_differences(inverse.mul_(slope).mul_(-4), y)


def overlap(u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Intersection and union of images in [0, 1], sums of min and of max: u (G, A, d), v (G, B, d)
    -> (G, A, B) each. Min and max add up to u + v, and differ by |u - v|."""
    apart, both = torch.cdist(u, v, p=1), u.sum(-1)[:, :, None] + v.sum(-1)[:, None, :]
    return ((both - apart) / 2).clamp_(min=0), (both + apart) / 2


class IoU:
    """k = exp(-J / h) with J the Jaccard distance of images in [0, 1],

        J_ij = 1 - sum min(u_i, u_j) / sum max(u_i, u_j),   u = clamp((y + 1) / 2, 0, 1),

    and subgradient 0 at ties and outside of (-1, 1). J is the square of a Euclidean
    distance, so the kernel is positive definite. Two empty images are alike: J = 0."""

    def __init__(self, bandwidth: Bandwidth = Bandwidth()):
        self.bandwidth = bandwidth

    def _kernel(self, u: Tensor, sigma: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        low, high = overlap(u, u)
        empty = high <= torch.finfo(u.dtype).tiny
        high = high.masked_fill(empty, 1.0)
        distance = (1 - low / high).clamp_min(0).masked_fill(empty, 0)
        distance = distance - torch.diag_embed(distance.diagonal(dim1=1, dim2=2))
        h = self.bandwidth(distance, sigma, 1)
        return (-distance / h).exp(), h, low, high

    def energy(self, y: Tensor, sigma: float = 1.0) -> Tensor:
        k = self._kernel(((y + 1) / 2).clamp(0, 1), sigma)[0]
        return (k.sum((1, 2)) - k.shape[1]) / 2

    def grad(self, y: Tensor, sigma: float = 1.0) -> Tensor:
        u = ((y + 1) / 2).clamp(0, 1)
        k, h, low, high = self._kernel(u, sigma)
        # dU/du_i = sum_j k_ij/h d(low/high)/du_i: where u_i is the smaller one low grows
        # with it, where it is the larger one high does.
        when_less, when_more = k / h / high, -k / h * low / high**2  # (G, B, B)
        half_difference, half_sum = (when_more - when_less) / 2, (when_more + when_less) / 2
        grad = torch.zeros_like(u)
        for i in range(
            0, u.shape[1], 128
        ):  # few rows at a time stay in the cache, one column bounds the memory
            rows = slice(i, i + 128)
            for j in range(u.shape[1]):
                column, sign = slice(j, j + 1), (u[:, rows] - u[:, j : j + 1]).sign_()
                grad[:, rows].addcmul_(
                    sign,
                    torch.addcmul(
                        half_difference[:, rows, column], half_sum[:, rows, column], sign
                    ),
                )
        return grad / 2 * ((y > -1) & (y < 1))


POTENTIALS: dict[str, Callable[[Bandwidth], Potential]] = {
    "rbf": RBF,
    "rbf_unsquared": UnsquaredRBF,
    "inverse": InverseDistance,
    "iou": IoU,
    "logdet": LogDet,
}
