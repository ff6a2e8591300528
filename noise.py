"""Every stream of random numbers, and the starting noise of sets: independent, or coupled in a set.

Coupled noise makes the particles of a set differ from the start. Each particle's own distribution
stays exactly standard normal; only the joint distribution of a set changes:

    antithetic    pairs (z, -z)
    simplex       pairwise correlation -1 / (B - 1), the smallest that B exchangeable particles have
    stratified    evenly spread quantiles along the directions in which the posterior varies most

`contrastive` noise, which gives up that distribution, is there to be compared with. A balanced draw
of starting noise is in `selection.py`.
"""

from __future__ import annotations

import math
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from enum import IntEnum
from typing import Any, Callable, Iterator, Sequence

import numpy
import torch
from numpy.random.bit_generator import ISeedSequence
from scipy import stats
from torch import Tensor

from denoiser import Denoiser
from devices import sent

# Distance between the streams of two batches of the same set: more than there are streams.
LATER_BATCH = 16
DRAWN_BY_A_THREAD = 2**19  # numbers of a large draw; fewer are not worth starting a thread


class Stream(IntEnum):
    """What a stream of random numbers is for. Streams of one (seed, index) do not overlap."""

    WORLD = 0  # sequences, and the digits in them
    SAMPLING = 1  # starting noise and churn
    TRAINING = 2  # batches
    DATA_SCALE = 3  # windows on which sigma_data and the crop are measured
    CONDITIONING = 4  # CADS's noise on the conditioning
    QUANTILES = 5  # stratified noise: shifts and permutations; balanced draws
    DIRECTIONS = 6  # stratified noise: starting points of the power iteration
    PILOT = 7  # starting noise of the sets on which `decisions` are measured
    PROBES = 8  # directions in which `guidance.Variance` measures the posterior
    HELD_OUT = 9  # windows and noise of the held-out loss

    def turn(self, turn: int) -> int:
        """The number of this stream in a later batch of the same set; turn 0 is the first."""
        return self + LATER_BATCH * turn


def set_generator(
    seed: int, index: int, stream: int = Stream.WORLD, device: torch.device | str = "cpu"
) -> torch.Generator:
    """The random generator of one set, or of one training iteration.

    Arguments:
        seed: the seed of the run
        index: number of the set or of the iteration
        stream: what the numbers are for: a `Stream`, or `Stream.X.turn(n)` for a later batch
        device: where the generator lives
    """
    # splitmix64's multipliers keep neighbouring (seed, index, stream) far apart.
    mixed = seed * 0x9E3779B97F4A7C15 + index * 0xBF58476D1CE4E5B9 + stream * 0x94D049BB133111EB
    return torch.Generator(device).manual_seed(mixed % 2**63)


class ParticleNoise:
    """A source of standard normal noise in which every particle of every set has its own stream.

    What a particle gets depends on the seed, its set and its number in the set alone: not on how
    many particles or sets there are beside it, on how they are split into chunks, or on the device.
    A call draws the next noise, (G, B, *shape) float32 on `device`.

    Arguments:
        seed: the seed of the run
        sets: numbers of the G sets
        particles: numbers of the B particles of each set
        shape: shape of one particle's noise, (C, H, W)
        device: where the noise is returned; it is always drawn on the CPU
        stream: what the numbers are for
    """

    def __init__(
        self,
        seed: int,
        sets: Sequence[int],
        particles: Sequence[int],
        shape: tuple[int, ...],
        device: torch.device | str = "cpu",
        stream: int = Stream.SAMPLING,
    ):
        self.generators = particle_generators(seed, stream, sets, particles)
        self.shape = (len(sets), len(particles), *shape)
        self.device = torch.device(device)

    def __call__(self) -> Tensor:
        return self.sent(self.draw())

    def draw(self) -> Tensor:
        """The next noise on the CPU, in pinned memory where it goes to a GPU."""
        noise = torch.empty(self.shape, pin_memory=self.device.type == "cuda")
        rows = noise.flatten(0, 1).numpy()
        threads = min(torch.get_num_threads(), noise.numel() // DRAWN_BY_A_THREAD, len(rows))
        if threads < 2:
            _fill(self.generators, rows)
            return noise
        parts = [slice(i, None, threads) for i in range(threads)]
        with ThreadPoolExecutor(threads) as pool:
            # list() raises what a thread has raised.
            shares = ([each[part] for part in parts] for each in (self.generators, rows))
            list(pool.map(_fill, *shares))
        return noise

    def sent(self, noise: Tensor) -> Tensor:
        """What `draw` returned, on the device. A GPU does not wait for it."""
        return noise.to(self.device, non_blocking=True)


def _fill(generators: Sequence[numpy.random.Generator], rows: numpy.ndarray) -> None:
    """The next float32 numbers of each generator, in a row each. Other threads go on meanwhile."""
    for generator, out in zip(generators, rows):
        generator.standard_normal(dtype=numpy.float32, out=out)


@contextmanager
def drawn_ahead(noise: ParticleNoise, draws: int) -> Iterator[Callable[[], Tensor]]:
    """The same source of noise, in whose next draw a thread is ahead of whoever asks for it.

    For a GPU, which would otherwise wait while noise is drawn. The numbers are the same, and one
    draw at most waits to be taken. What the thread raises is raised where the draw is asked for.
    The thread ends with the context.

    Arguments:
        noise: the source; nobody else may draw from it in the context
        draws: how many will be asked for; none is made for nothing, and more are made when asked
    """
    with ThreadPoolExecutor(1) as thread:
        left = draws
        waiting: Future[Tensor] | None = None

        def start() -> None:
            nonlocal left, waiting
            waiting = thread.submit(noise.draw) if left > 0 else None
            left -= 1

        def take() -> Tensor:
            if waiting is None:
                return noise()
            drawn = waiting.result()
            start()
            return noise.sent(drawn)

        start()
        yield take


class _Words(ISeedSequence):
    """The state from which one generator starts, computed before."""

    def __init__(self, words: numpy.ndarray):
        self.words = words

    def generate_state(self, n_words, dtype=numpy.uint32):
        """The words, of which a PCG64 asks for four of 64 bits."""
        return self.words


def particle_generators(
    seed: int, stream: int, sets: Sequence[int], particles: Sequence[int]
) -> list[numpy.random.Generator]:
    """numpy.random.default_rng([seed, stream, set, particle]) of all particles of all sets.

    numpy hashes the whole key into its generator's state; torch's CPU generator would take 32 bits
    of it, too few for as many streams as there are particles. numpy's hash of one key takes longer
    than drawing a thousand numbers; here it is computed of all keys together.

    Source: M. E. O'Neill, "Developing a seed_seq alternative" (2015), with the constants that numpy
    states for `SeedSequence`.

    Arguments:
        seed, stream: any number from 0
        sets, particles: numbers below 2^32

    Returns the generators, those of a set one after the other.
    """
    grid = numpy.meshgrid(
        numpy.asarray(sets, numpy.uint32), numpy.asarray(particles, numpy.uint32), indexing="ij"
    )
    numbers = [each.reshape(-1) for each in grid]
    head = [numpy.full_like(numbers[0], word) for word in _words_of(seed) + _words_of(stream)]
    # numpy's types know no state but its own.
    states: list[Any] = [_Words(words) for words in _hashed_keys(head + numbers)]
    return [numpy.random.Generator(numpy.random.PCG64(state)) for state in states]


def _words_of(number: int) -> list[int]:
    """A whole number from 0 as 32-bit words, the lowest first."""
    words = [number & 0xFFFFFFFF]
    while number := number >> 32:
        words.append(number & 0xFFFFFFFF)
    return words


def _hashed_keys(key: list[numpy.ndarray]) -> numpy.ndarray:
    """numpy.random.SeedSequence(k).generate_state(4, uint64) of many keys k.

    key: four words or more, each an array (N,) uint32 of that word of all keys -> (N, 4) uint64.
    """
    factor = 0x43B0D7E5

    def scrambled(word: numpy.ndarray, multiplier: int) -> numpy.ndarray:
        nonlocal factor
        word = word ^ numpy.uint32(factor)
        factor = factor * multiplier & 0xFFFFFFFF
        word = word * numpy.uint32(factor)
        return word ^ word >> numpy.uint32(16)

    def mixed(a: numpy.ndarray, b: numpy.ndarray) -> numpy.ndarray:
        both = a * numpy.uint32(0xCA01F9DD) - b * numpy.uint32(0x4973F715)
        return both ^ both >> numpy.uint32(16)

    pool = [scrambled(word, 0x931E8875) for word in key[:4]]
    for i in range(4):
        for j in range(4):
            if i != j:
                pool[j] = mixed(pool[j], scrambled(pool[i], 0x931E8875))
    for word in key[4:]:
        for j in range(4):
            pool[j] = mixed(pool[j], scrambled(word, 0x931E8875))
    factor = 0x8B51F9DD
    words = [scrambled(pool[i % 4], 0x58F38DED).astype(numpy.uint64) for i in range(8)]
    pairs = zip(words[::2], words[1::2])
    return numpy.stack([low | high << numpy.uint64(32) for low, high in pairs], 1)


def antithetic(noise: Tensor) -> Tensor:
    """Pairs (z, -z): the second half of each set becomes the negative of the first half.

    Of an odd number of particles the last one stays as it is. noise (G, B, ...) -> same shape; the
    marginal of every particle stays standard normal.
    """
    half = noise.shape[1] // 2
    return torch.cat([noise[:, :half], -noise[:, :half], noise[:, 2 * half :]], 1)


def simplex(noise: Tensor) -> Tensor:
    """Noise whose particles are as negatively correlated as B exchangeable particles can be.

        z_i = sqrt(B / (B - 1)) (e_i - mean_j e_j),   correlation of z_i and z_j: -1 / (B - 1)

    noise e (G, B, ...) -> z of the same shape; the marginal of every particle stays standard
    normal. A set of one particle is returned as it is.
    """
    B = noise.shape[1]
    if B == 1:
        return noise
    return (noise - noise.mean(1, keepdim=True)) * math.sqrt(B / (B - 1))


def stratified(noise: Tensor, directions: Tensor, generators: list[torch.Generator]) -> Tensor:
    """Noise whose components along a few directions are spread evenly inside each set.

    Along each direction the B components become Phi^-1((pi(i) + u) / B) with one uniform shift u
    and one permutation pi per set: systematic sampling (Madow & Madow 1944), and for several
    directions a Latin hypercube with a common shift per axis. Each particle's component is exactly
    standard normal, and so is the particle, as long as the directions do not depend on the noise.
    A set holds as many particles below any quantile as that quantile asks for, give or take one.

    Arguments:
        noise: (G, B, ...), standard normal
        directions: (G, r, ...), orthonormal over the last axes
        generators: one per set, for shifts and permutations

    Returns noise like `noise`, changed along the directions only.
    """
    B = noise.shape[1]
    flat = noise.flatten(2)  # (G, B, d)
    axes = directions.flatten(2).to(noise)  # (G, r, d)
    r = axes.shape[1]
    shift = torch.stack([torch.rand(1, r, generator=g, dtype=torch.float64) for g in generators])
    order = torch.stack([torch.rand(B, r, generator=g).argsort(0) for g in generators])
    quantiles = ((order + shift) / B).clamp(1e-9, 1 - 1e-9)  # (G, B, r)
    wanted = torch.as_tensor(stats.norm.ppf(quantiles.numpy()), dtype=noise.dtype)
    components = flat @ axes.transpose(1, 2)  # (G, B, r)
    missing = sent(wanted, noise.device) - components
    # A GPU's kernel for products of inner size 1 is compiled when it is first used.
    change = missing * axes if r == 1 else missing @ axes
    return (flat + change).view_as(noise)


def contrastive(
    denoise: Denoiser,
    noise: Tensor,
    sigma: Tensor,
    *,
    rate: float,
    steps: int = 3,
    temperature: float = 0.1,
) -> Tensor:
    """Starting noise moved by a few steps of Adam to where the first D(x) of a set differ (CNO).

        loss = -sum_i log(e_ii / sum_j e_ij),
        e_ij = exp(<u_i, u_j> / t),   e_ii = exp(<u_i, p_i> / t)

    with u_i = D(sigma z_i) scaled to unit length and p_i what it was before the first step: an
    InfoNCE loss whose negatives are the rest of the set. It costs steps + 1 calls and `steps`
    backward passes to the input. The noise is no longer standard normal, and marginals shift.

    Source: arXiv 2510.03813. Uncertain: learning rate, temperature and number of steps, which were
    chosen there for latents of text-to-image models.

    Arguments:
        denoise: a denoiser of sets
        noise: z (G, B, C, H, W), standard normal
        sigma: the largest noise level
        rate: learning rate of Adam, about the change of each entry of z in a step
        steps: number of steps
        temperature: t

    Returns the noise, like `noise`.
    """
    off_diagonal = ~torch.eye(noise.shape[1], dtype=torch.bool, device=noise.device)

    def directions(z: Tensor) -> Tensor:
        return torch.nn.functional.normalize(denoise(z * sigma, sigma).flatten(2).double(), dim=-1)

    with torch.no_grad():
        positive = directions(noise)
    z = noise.detach().clone().requires_grad_()
    adam = torch.optim.Adam([z], lr=rate)
    with torch.enable_grad():
        for _ in range(steps):
            u = directions(z)
            alike = (u * positive).sum(-1) / temperature  # (G, B)
            others = (u @ u.transpose(1, 2) / temperature).masked_fill(~off_diagonal, -math.inf)
            everyone = torch.cat([alike[:, :, None], others], -1)
            loss = (everyone.logsumexp(-1) - alike).sum()
            (z.grad,) = torch.autograd.grad(loss, z)
            adam.step()
    return z.detach()


def leading_directions(
    denoise: Denoiser,
    sigma: Tensor,
    shape: tuple[int, ...],
    rank: int,
    generators: list[torch.Generator],
    iterations: int = 2,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Orthonormal directions along which the posterior at noise level `sigma` varies most.

    The Jacobian of an exact denoiser is Cov[y | x] / sigma^2, a symmetric matrix. A few rounds of
    block power iteration with vector-Jacobian products, at noise drawn for this purpose alone, find
    its leading eigenvectors.

    Arguments:
        denoise: a denoiser of G sets
        sigma: noise level, a scalar tensor
        shape: shape of one particle, (C, H, W)
        rank: number of directions r
        generators: one per set
        iterations: rounds of the power iteration
        device: where the denoiser computes

    Returns (G, rank, *shape).
    """
    G = len(generators)

    def draw() -> Tensor:
        noise = torch.stack([torch.randn((rank, *shape), generator=g) for g in generators])
        return sent(noise, device)

    v = draw()
    x = float(sigma) * draw()[:, :1].expand(G, rank, *shape)
    for _ in range(iterations):
        with torch.enable_grad():
            at = x.detach().clone().requires_grad_()
            (v,) = torch.autograd.grad(denoise(at, sigma), at, v)
        columns = v.flatten(2).transpose(1, 2).double()  # (G, d, r)
        basis = torch.linalg.qr(columns).Q
        v = basis.transpose(1, 2).to(x).view(G, rank, *shape)
    return v
