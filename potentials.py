"""Potentials by which the particles of a set repel.

Particle guidance (PG, Corso et al. 2023, arXiv 2310.13102) samples a set from
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
import torch.nn.functional as F
from torch import Tensor

from ranges import to_unit_range

MEDIAN_OF = 2**20  # pairs of a set that the median heuristic looks at, at most
# Up to so many, the gradient of IoU goes through the particles one by one, in four operations each:
# from there on it is slower, on a GPU because of their number.
FEW_PARTICLES = dict(cpu=128, cuda=16)
# Numbers in the tensor (2 B x rows x d) that the gradient of IoU makes at a time on a GPU: 64 MiB
# in float32, or two copies of the particles where that is more. On a CPU there is no such tensor.
IOU_BLOCK = 2**24


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


def lower_median(values: Tensor) -> Tensor:
    """The median of each row, (G, n) -> (G,); of an even number, the smaller of the middle two.

    `torch.median` is fastest on a CPU. On a GPU it gives each row, of up to a million distances, to
    one of more than a hundred multiprocessors; sorting uses them all.
    """
    if values.device.type == "cpu":
        return values.median(-1).values
    return _median_by_sorting(values)


def _median_by_sorting(values: Tensor) -> Tensor:
    """`lower_median` as a GPU computes it."""
    return values.sort(-1).values[:, (values.shape[1] - 1) // 2]


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
            # All but the diagonal, without a mask, which would make a GPU wait.
            pairs = distances.detach().flatten(1)[:, 1:].unflatten(1, (B - 1, B + 1))[:, :, :-1]
            pairs = pairs[:, :: max(1, B * B // MEDIAN_OF)].flatten(1)
            h = self.value * lower_median(pairs) / math.log(max(B, 2))
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
        # cholesky_ex rather than cholesky, whose check of success would make a GPU wait.
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


def sums_by_order(
    when_more: Tensor, when_less: Tensor, u: Tensor, block: int | None = None
) -> Tensor:
    """Sums over particles j of one weight where u_i > u_j and of another where u_i < u_j.

        S_i = sum_j more_ij [u_i > u_j] + less_ij [u_i < u_j],   pixel by pixel

    The two are sums of weighted signs, the derivative of a sum of L1 distances, which PyTorch has
    as one operation. With r the rank of u among the particles, sign(r_i - r_j - 1/2) is 1 where
    u_i > u_j and -1 elsewhere, sign(r_i - r_j + 1/2) is -1 where u_i < u_j and 1 elsewhere.

    Arguments:
        when_more, when_less: (G, B, B)
        u: (G, B, d)
        block: numbers in the largest tensor on the way, (G, 2 B, rows, d), which is made for as
            many rows at a time as this allows, for one at least. None: IOU_BLOCK on a GPU; all rows
            together on a CPU, whose kernel makes no such tensor

    Returns S, like u.
    """
    G, B, d = u.shape
    columns = u.transpose(1, 2).contiguous()  # (G, d, B)
    ranks = torch.searchsorted(columns.sort(-1).values, columns, out_int32=True)
    # An odd number of cache lines from particle to particle: at multiples of 4 KiB the particles
    # would drive each other out of a CPU's cache.
    padded = (d + 15) // 16 | 1
    ranks = F.pad(ranks.transpose(1, 2).to(u), (0, 16 * padded - d)).contiguous()
    others = torch.cat([ranks + 0.5, ranks - 0.5], 1)  # (G, 2 B, d)
    weights = torch.cat([when_more, -when_less], 2) / 2  # (G, B, 2 B)
    rows = B
    if block is not None or u.device.type != "cpu":
        rows = max(1, (block or IOU_BLOCK) // others.numel())
    parts = [
        # The distances themselves, its last argument, do not matter to a sum of absolute values.
        torch.ops.aten._cdist_backward(each, particles.contiguous(), others, 1.0, each)
        for each, particles in zip(
            (part.contiguous() for part in weights.split(rows, 1)), ranks.split(rows, 1)
        )
    ]
    common = (when_more + when_less).sum(-1, keepdim=True) / 2
    return torch.cat(parts, 1)[:, :, :d] + common


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
        if u.shape[1] > FEW_PARTICLES[u.device.type]:
            grad = sums_by_order(when_more, when_less, u)
        else:
            grad = self._one_by_one(when_more, when_less, u)
        return grad / 2 * ((y > -1) & (y < 1))

    @staticmethod
    def _one_by_one(when_more: Tensor, when_less: Tensor, u: Tensor) -> Tensor:
        """`sums_by_order` in four operations for each particle, without leaving the cache."""
        half_difference = (when_more - when_less) / 2
        half_sum = (when_more + when_less) / 2
        grad = torch.zeros_like(u)
        for j in range(u.shape[1]):
            column = slice(j, j + 1)
            sign = (u - u[:, column]).sign_()
            weight = torch.addcmul(half_difference[:, :, column], half_sum[:, :, column], sign)
            grad.addcmul_(sign, weight)
        return grad


POTENTIALS: dict[str, Callable[[Bandwidth], Potential]] = {
    "rbf": RBF,
    "rbf_unsquared": UnsquaredRBF,
    "inverse": InverseDistance,
    "iou": IoU,
    "logdet": LogDet,
}
