"""Guidance: denoisers that wrap a denoiser and make the particles of a set repel.

Particle guidance (PG, Corso et al. 2023, arXiv 2310.13102) samples B particles from
p(x_1) ... p(x_B) Phi(x_1..x_B) instead of independently. With U = -log Phi and
sigma(t) = t, the drift of particle i becomes

    d_i = (x_i - D(x_i; s)) / s + s alpha(s) grad_i U(x_1..x_B),

and that is the drift of the denoiser

    D_i - s^2 alpha(s) grad_i U,

which is what `ParticleGuidance` returns: the sampler needs no change, its Heun
correction sees the same field as its Euler step, and guidances compose by wrapping.
Steps go toward smaller sigma, so the plus sign moves particles down U: apart.

Sets are (G, B, C, H, W) with images in [-1, 1]; potentials see them as (G, B, d).
Gradients are in closed form, finite for every finite input, and 0 for B = 1.
"""
from __future__ import annotations

import math
from typing import Callable, Protocol

import torch
from torch import Tensor

Denoiser = Callable[[Tensor, Tensor], Tensor]  # denoise(x, sigma) -> x0, as in sampler.py


# ---------------------------------------------------------------- potentials

class Potential(Protocol):
    """U = -log Phi of a set. `energy`: (G, B, d) -> (G,). `grad`: (G, B, d) -> (G, B, d),
    the derivative of `energy` with the bandwidth held fixed."""

    def energy(self, y: Tensor) -> Tensor: ...

    def grad(self, y: Tensor) -> Tensor: ...


def _off_diagonal(pairs: Tensor) -> Tensor:
    """(G, B, B) -> (G, B * (B - 1))."""
    B = pairs.shape[-1]
    return pairs.masked_select(~torch.eye(B, dtype=torch.bool, device=pairs.device)).view(len(pairs), -1)


def median_bandwidth(distances: Tensor, fixed: float | None) -> Tensor:
    """h (G, 1, 1): `fixed`, or the median of a set's pairwise (G, B, B) distances over
    ln B (Liu & Wang 2016, arXiv 1608.04471, section 5), without gradient. It is at least a
    millionth of the largest distance, so that copies look alike whatever the rounding."""
    G, B, _ = distances.shape
    if fixed is not None:
        return distances.new_full((G, 1, 1), fixed)
    pairs = _off_diagonal(distances.detach()) if B > 1 else distances.new_zeros(G, 1)
    largest = pairs.amax(-1)
    h = torch.maximum(pairs.median(-1).values / math.log(max(B, 2)), 1e-6 * largest)
    return torch.where(largest > 0, h, 1.0)[:, None, None]


def squared_distances(y: Tensor) -> Tensor:
    """(G, B, d) -> (G, B, B) squared L2 distances by one matrix product, in float64 (squares of
    any float32 fit). The set is centred first, so that particles near each other lose no
    precision to their common part."""
    y = y.double()
    y = y - y.mean(1, keepdim=True)
    gram = y @ y.transpose(1, 2)
    norms = gram.diagonal(dim1=1, dim2=2)
    d2 = (norms[:, :, None] + norms[:, None, :] - 2 * gram).clamp_min(0)
    return d2 - torch.diag_embed(d2.diagonal(dim1=1, dim2=2))


def _weighted_differences(weights: Tensor, y: Tensor) -> Tensor:
    """sum_j weights_ij (y_i - y_j): (G, B, B) float64, (G, B, d) -> (G, B, d), never (G, B, B, d)."""
    z = y.double()
    z = z - z.mean(1, keepdim=True)
    return (weights.sum(-1, keepdim=True) * z - weights @ z).to(y)


class RBF:
    """U = 1/2 sum_{i != j} k_ij,  k_ij = exp(-|y_i - y_j|^2 / h)  (PG, section 4)."""

    def __init__(self, bandwidth: float | None = None):
        self.bandwidth = bandwidth

    def _kernel(self, y: Tensor) -> tuple[Tensor, Tensor]:
        d2 = squared_distances(y)
        h = median_bandwidth(d2, self.bandwidth)
        return (-d2 / h).exp(), h

    def energy(self, y: Tensor) -> Tensor:
        k, _ = self._kernel(y)
        return ((k.sum((1, 2)) - k.shape[1]) / 2).to(y)

    def grad(self, y: Tensor) -> Tensor:
        k, h = self._kernel(y)
        return _weighted_differences(-2 / h * k, y)


class LogDet:
    """U = -log det((K + jitter I) / (1 + jitter)) with K the RBF kernel: Phi is that of a
    determinantal point process (Kulesza & Taskar 2012, arXiv
    1207.6083, section 2; PG, section 4). Unlike a sum of pairs it goes on pushing two
    particles apart, the harder the more alike they are, down to the scale of `jitter`."""

    def __init__(self, bandwidth: float | None = None, jitter: float = 1e-3):
        self.kernel, self.jitter = RBF(bandwidth), jitter

    def _matrix(self, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        k, h = self.kernel._kernel(y)
        eye = torch.eye(k.shape[-1], dtype=k.dtype, device=k.device)
        return k, h, k + self.jitter * eye

    def energy(self, y: Tensor) -> Tensor:
        _, _, L = self._matrix(y)
        return (-torch.logdet(L) + L.shape[1] * math.log1p(self.jitter)).to(y)

    def grad(self, y: Tensor) -> Tensor:
        k, h, L = self._matrix(y)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(L))
        return _weighted_differences(4 / h * inverse * k, y)


class IoU:
    """U = 1/2 sum_{i != j} exp(-J_ij / h) with J the Jaccard distance of images in [0, 1],

        J_ij = 1 - sum min(u_i, u_j) / sum max(u_i, u_j),   u = clamp((y + 1) / 2, 0, 1),

    and subgradient 0 at ties and outside of (-1, 1). J is the square of a Euclidean
    distance, so the kernel is positive definite. Two empty images are alike: J = 0."""

    def __init__(self, bandwidth: float | None = None):
        self.bandwidth = bandwidth

    @staticmethod
    def _overlap(u: Tensor) -> tuple[Tensor, Tensor]:
        """Sums of min and max, (G, B, B) each; one column at a time bounds the memory."""
        low = torch.stack([torch.minimum(u, u[:, j:j + 1]).sum(-1) for j in range(u.shape[1])], -1)
        total = u.sum(-1)
        return low, total[:, :, None] + total[:, None, :] - low

    def _kernel(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        low, high = self._overlap(u)
        empty = high <= torch.finfo(u.dtype).tiny
        high = high.masked_fill(empty, 1.0)
        distance = (1 - low / high).clamp_min(0).masked_fill(empty, 0)
        distance = distance - torch.diag_embed(distance.diagonal(dim1=1, dim2=2))
        h = median_bandwidth(distance, self.bandwidth)
        return (-distance / h).exp(), h, low, high

    def energy(self, y: Tensor) -> Tensor:
        k = self._kernel(((y + 1) / 2).clamp(0, 1))[0]
        return (k.sum((1, 2)) - k.shape[1]) / 2

    def grad(self, y: Tensor) -> Tensor:
        u = ((y + 1) / 2).clamp(0, 1)
        k, h, low, high = self._kernel(u)
        # dU/du_i = sum_j k_ij/h d(low/high)/du_i: where u_i is the smaller one low grows
        # with it, where it is the larger one high does.
        when_less, when_more = k / h / high, -k / h * low / high**2                  # (G, B, B)
        grad = torch.zeros_like(u)
        for j in range(u.shape[1]):
            other = u[:, j:j + 1]                                                    # (G, 1, d)
            grad += (u < other) * when_less[:, :, j:j + 1] + (u > other) * when_more[:, :, j:j + 1]
        return grad / 2 * ((y > -1) & (y < 1))


POTENTIALS: dict[str, Callable[..., Potential]] = {"rbf": RBF, "iou": IoU, "logdet": LogDet}


# ---------------------------------------------------------------- particle guidance

class ParticleGuidance:
    """A denoiser of sets whose particles repel; wraps any denoiser of sets.

    denoise     the denoiser to wrap
    potential   U, a `Potential`
    factor      strength; 0 is the denoiser itself
    space       where U acts: "x" (the noisy particles), "denoised" (D(x), the gradient
                taken as if it were in x) or "jacobian" (U(D(x)) differentiated through
                the denoiser: a vector-Jacobian product, about one more network call)
    strength    "sigma": alpha = factor, a drift of factor * s * grad U (with factor 1 the
                joint density of the PG paper); "drift": a drift whose root mean square over
                the set is `factor` times that of x - D over s per pixel, so that factor 1
                is one standard deviation of the noise along one direction
    sigma_min, sigma_max   guidance acts for sigma in [sigma_min, sigma_max]
    """

    def __init__(self, denoise: Denoiser, potential: Potential, *, factor: float, space: str,
                 strength: str, sigma_min: float = 0.0, sigma_max: float = math.inf):
        self.denoise, self.potential, self.factor = denoise, potential, factor
        self.space, self.strength = space, strength
        self.sigma_min, self.sigma_max = sigma_min, sigma_max

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        if self.factor == 0 or x.shape[1] == 1 or not self.sigma_min <= sigma <= self.sigma_max:
            return self.denoise(x, sigma)
        denoised, grad = self._gradient(x, sigma)
        return denoised - sigma * self._scale(x, denoised, grad, sigma) * grad

    def _gradient(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """D(x) and grad U with respect to x, both (G, B, C, H, W)."""
        if self.space == "jacobian":
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                denoised = self.denoise(x, sigma)
                grad = self.potential.grad(denoised.detach().flatten(2)).view_as(x)
                grad, = torch.autograd.grad(denoised, x, grad)
            return denoised.detach(), grad
        denoised = self.denoise(x, sigma)
        y = x if self.space == "x" else denoised
        return denoised, self.potential.grad(y.flatten(2)).view_as(x)

    def _scale(self, x: Tensor, denoised: Tensor, grad: Tensor, sigma: Tensor) -> Tensor:
        """What turns grad U into a drift."""
        if self.strength == "sigma":
            return self.factor * sigma
        drift = ((x - denoised) / sigma).square().mean((1, 2, 3, 4), keepdim=True).sqrt()
        force = grad.flatten(2).square().sum(-1).mean(1).sqrt()[:, None, None, None, None]
        return self.factor * drift / force.clamp_min(torch.finfo(grad.dtype).tiny ** 0.5)
