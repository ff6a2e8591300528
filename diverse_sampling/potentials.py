"""Potentials by which the particles of a set repel.

Particle guidance (PG, Corso et al. 2023, arXiv 2310.13102) is derived from the product
p(x_1) ... p(x_B) Phi(x_1..x_B). A potential is U = -log Phi. Most are sums over pairs,

    U = 1/2 sum_{i != j} k(y_i, y_j),

with a kernel k that falls from 1 to 0 as the distance of two particles grows in units of a
bandwidth h; `LogDet` is determinantal instead. Sets are (G, B, d): G sets that do not influence
each other, of B particles with d values each. Gradients are in closed form, computed in float64,
finite for every finite float32 input, and 0 for B = 1. To add a potential, write a class with
`energy` and `grad` and enter it in `POTENTIALS`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Callable, Protocol

import torch
from torch import Tensor

from diverse_sampling.denoiser import to_unit_range

MEDIAN_OF = 2**20  # pairs of a set that the median heuristic looks at, at most


class Potential(Protocol):
    """The potential U of sets y (G, B, d) at noise level sigma, which some bandwidths follow."""

    def energy(self, y: Tensor, sigma: float = 1.0) -> Tensor:
        """U of each set, (G,)."""
        ...

    def grad(self, y: Tensor, sigma: float = 1.0) -> Tensor:
        """The derivative of `energy` with the bandwidth held fixed, (G, B, d) like y."""
        ...


def cosine_share(sigma: float, low: float, high: float) -> float:
    """A share that falls from 1 at sigma = high to 0 at sigma = low, as a half cosine in ln sigma.

    It is 1 above `high` and 0 below `low`; 0 < low < high.
    """
    u = math.log(high / sigma) / math.log(high / low)
    return 0.5 * (1 + math.cos(math.pi * min(max(u, 0.0), 1.0)))


@dataclass(frozen=True)
class Bandwidth:
    """The bandwidth h of a kernel: one number per set, from the set's pairwise distances.

    h is at least a millionth of the largest distance, so that copies look alike whatever the
    rounding. In sets of more than MEDIAN_OF pairs, the median is that of about MEDIAN_OF of them.

    Arguments:
        rule: "median": value * median of the pairwise distances / ln B (Liu & Wang 2016, arXiv
            1608.04471, section 5), treated as constant in gradients; "fixed": value; "sigma":
            value * sigma^order, with the order of the kernel's distances
        value: h itself, or the factor of the rule
        anneal: (low, high) noise levels between which h falls to 0 as a half cosine in ln sigma;
            None: it does not
    """

    rule: str = "median"
    value: float = 2.0
    anneal: tuple[float, float] | None = None

    def __call__(self, distances: Tensor, sigma: float, order: int) -> Tensor:
        """h (G, 1, 1) of pairwise distances (G, B, B), which are in units of length^order."""
        B = distances.shape[1]
        largest = distances.detach().amax((1, 2))  # (G,)
        if self.rule == "median" and B > 1:
            # All but the diagonal, as a view.
            pairs = distances.detach().flatten(1)[:, 1:].unflatten(1, (B - 1, B + 1))[:, :, :-1]
            pairs = pairs[:, :: max(1, B * B // MEDIAN_OF)].flatten(1)
            h = self.value * pairs.median(-1).values / math.log(max(B, 2))
        else:
            unit = sigma**order if self.rule == "sigma" else 1.0
            h = torch.full_like(largest, self.value * unit)
        if self.anneal is not None:
            h = h * cosine_share(sigma, *self.anneal)
        h = torch.maximum(h, 1e-6 * largest)
        return torch.where(h > 0, h, 1.0)[:, None, None]


def squared_distances(y: Tensor) -> Tensor:
    """Squared L2 distances of the particles of each set, (G, B, d) -> (G, B, B) float64.

    They come from one matrix product in float64, into which the square of any float32 fits. The set
    is centred first, so that particles near each other lose no precision to their common part.
    """
    y = y.double()
    y = y - y.mean(1, keepdim=True)
    gram = y @ y.transpose(1, 2)
    norms = gram.diagonal(dim1=1, dim2=2)
    d2 = (norms[:, :, None] + norms[:, None, :]).sub_(gram, alpha=2).clamp_(min=0)
    d2.diagonal(dim1=1, dim2=2).zero_()
    return d2


def weighted_differences(weights: Tensor, y: Tensor) -> Tensor:
    """sum_j weights_ij (y_i - y_j), without a tensor of size (G, B, B, d).

    weights (G, B, B) float64, y (G, B, d) -> (G, B, d) in the precision of y.
    """
    z = y.double()
    z = z - z.mean(1, keepdim=True)
    return (weights.sum(-1, keepdim=True) * z - weights @ z).to(y)


class Radial:
    """A sum over pairs of a kernel of the L2 distance. Subclasses define `kernel`.

    Arguments:
        bandwidth: the rule for h
    """

    order = 2  # power of the distance that the bandwidth is compared with

    def __init__(self, bandwidth: Bandwidth = Bandwidth()):
        self.bandwidth = bandwidth

    def kernel(self, d2: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """k and dk/d(d2), both (G, B, B), of squared distances d2 (G, B, B) and h (G, 1, 1)."""
        raise NotImplementedError

    def matrices(self, y: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """k and dk/d(d2) of every pair, (G, B, B) float64 each."""
        d2 = squared_distances(y)
        distances = d2 if self.order == 2 else d2.sqrt()
        h = self.bandwidth(distances, sigma, self.order)
        return self.kernel(d2, h)

    def energy(self, y: Tensor, sigma: float = 1.0) -> Tensor:
        k, _ = self.matrices(y, sigma)
        return ((k.sum((1, 2)) - k.shape[1]) / 2).to(y)

    def grad(self, y: Tensor, sigma: float = 1.0) -> Tensor:
        _, slope = self.matrices(y, sigma)
        return 2 * weighted_differences(slope, y)


class RBF(Radial):
    """The Gaussian kernel k = exp(-d^2 / h) (PG, section 4)."""

    def kernel(self, d2, h):
        k = (d2 / -h).exp_()
        return k, k / -h


class UnsquaredRBF(Radial):
    """The exponential kernel k = exp(-d / h), as in the reference thesis.

    Its gradient does not vanish as two particles approach each other; between copies it is 0.
    """

    order = 1

    def kernel(self, d2, h):
        d = d2.sqrt()
        k = (-d / h).exp()
        slope = -k / (2 * h * torch.where(d > 0, d, 1.0))
        return k, torch.where(d > 0, slope, 0.0)


class InverseDistance(Radial):
    """The inverse multiquadric kernel k = (1 + d^2 / h)^(-1/2).

    It falls as slowly as sqrt(h) / d, so that distant particles repel as well.
    """

    def kernel(self, d2, h):
        k = (1 + d2 / h).rsqrt()
        return k, -(k**3) / (2 * h)


class LogDet:
    """The determinantal potential U = -log det((K + jitter I) / (1 + jitter)), K the RBF kernel.

    Phi is that of a determinantal point process (Kulesza & Taskar 2012, arXiv 1207.6083, section 2;
    PG, section 4). Unlike a sum over pairs it pushes two particles apart the harder the more alike
    they are, down to the scale of `jitter`.

    Arguments:
        bandwidth: the rule for h of the RBF kernel
        jitter: what is added to the diagonal of K, which bounds U for copies
    """

    def __init__(self, bandwidth: Bandwidth = Bandwidth(), jitter: float = 2e-3):
        self.rbf = RBF(bandwidth)
        self.jitter = jitter

    def _matrices(self, y: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """L = K + jitter I and dk/d(d2) of every pair, (G, B, B) float64 each."""
        k, slope = self.rbf.matrices(y, sigma)
        identity = torch.eye(k.shape[-1], dtype=k.dtype, device=k.device)
        return k + self.jitter * identity, slope

    def energy(self, y: Tensor, sigma: float = 1.0) -> Tensor:
        L, _ = self._matrices(y, sigma)
        return (L.shape[1] * math.log1p(self.jitter) - torch.logdet(L)).to(y)

    def grad(self, y: Tensor, sigma: float = 1.0) -> Tensor:
        L, slope = self._matrices(y, sigma)
        # cholesky_ex rather than cholesky, which raises for particles that are not finite.
        inverse = torch.cholesky_inverse(torch.linalg.cholesky_ex(L).L)
        return weighted_differences(inverse.mul_(slope).mul_(-4), y)


def overlap(u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Intersection and union of images in [0, 1]: sum min(u_i, v_j) and sum max(u_i, v_j).

    u (G, A, d), v (G, B, d) -> (G, A, B) each.
    """
    # min(u, v) + max(u, v) = u + v and max(u, v) - min(u, v) = |u - v|.
    apart = torch.cdist(u, v, p=1)
    both = u.sum(-1)[:, :, None] + v.sum(-1)[:, None, :]
    return ((both - apart) / 2).clamp_(min=0), (both + apart) / 2


class IoU:
    """A sum over pairs of the kernel k = exp(-J / h) of the Jaccard distance J of images y,

        J_ij = 1 - sum min(u_i, u_j) / sum max(u_i, u_j),   u = clamp((y + 1) / 2, 0, 1).

    The subgradient is 0 at ties and outside of (-1, 1). J is the square of a Euclidean distance, so
    the kernel is positive definite. Two empty images are alike: J = 0.

    Arguments:
        bandwidth: the rule for h, in units of J
    """

    def __init__(self, bandwidth: Bandwidth = Bandwidth()):
        self.bandwidth = bandwidth

    @staticmethod
    def _unit(y: Tensor) -> Tensor:
        """u: images in [-1, 1] as images in [0, 1], what lies outside clamped."""
        return to_unit_range(y).clamp(0, 1)

    def _kernel(self, u: Tensor, sigma: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """k (G, B, B), h (G, 1, 1), and the intersections and unions (G, B, B) of all pairs."""
        low, high = overlap(u, u)
        empty = high <= torch.finfo(u.dtype).tiny
        high = high.masked_fill(empty, 1.0)
        distance = (1 - low / high).clamp_min(0).masked_fill(empty, 0)
        distance = distance - torch.diag_embed(distance.diagonal(dim1=1, dim2=2))
        h = self.bandwidth(distance, sigma, 1)
        return (-distance / h).exp(), h, low, high

    def energy(self, y: Tensor, sigma: float = 1.0) -> Tensor:
        k, _, _, _ = self._kernel(self._unit(y), sigma)
        return (k.sum((1, 2)) - k.shape[1]) / 2

    def grad(self, y: Tensor, sigma: float = 1.0) -> Tensor:
        u = self._unit(y)
        k, h, low, high = self._kernel(u, sigma)
        # dU/du_i = sum_j k_ij/h d(low/high)/du_i: where u_i is the smaller one, low grows with it;
        # where it is the larger one, high does.
        when_less = k / h / high  # (G, B, B)
        when_more = -k / h * low / high**2  # (G, B, B)
        half_difference = (when_more - when_less) / 2
        half_sum = (when_more + when_less) / 2
        grad = torch.zeros_like(u)
        # Particle by particle, so that no tensor holds a number for each pair and pixel.
        for j in range(u.shape[1]):
            column = slice(j, j + 1)
            sign = (u - u[:, column]).sign_()
            weight = torch.addcmul(half_difference[:, :, column], half_sum[:, :, column], sign)
            grad.addcmul_(sign, weight)
        return grad / 2 * ((y > -1) & (y < 1))


POTENTIALS: dict[str, Callable[[Bandwidth], Potential]] = {
    "rbf": RBF,
    "rbf_unsquared": UnsquaredRBF,
    "inverse": InverseDistance,
    "iou": IoU,
    "logdet": LogDet,
}
