"""Every stream of random numbers."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from enum import IntEnum
from typing import Any, Callable, Iterator, Sequence

import numpy
import torch
from numpy.random.bit_generator import ISeedSequence
from torch import Tensor

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
    PROBES = 8  # directions in which a method measures the posterior
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
