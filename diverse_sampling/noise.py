"""Every stream of random numbers."""

from __future__ import annotations

from enum import IntEnum
from typing import Sequence

import numpy
import torch
from torch import Tensor

# Distance between the streams of two batches of the same set: more than there are streams.
LATER_BATCH = 16


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


def evenly(seed: int, sets: Tensor) -> Tensor:
    """A number of each set (G,) int64, float64 in [0, 1), evenly spread over any range of sets.

    The multiples of the golden ratio, from a start of the seed's own.
    """
    start = torch.rand((), generator=set_generator(seed, 0, Stream.QUANTILES), dtype=torch.float64)
    return (start + sets.cpu().double() * (5**0.5 - 1) / 2) % 1


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
        # torch's CPU generator would take 32 bits of the key, too few for so many streams.
        self.generators = [
            numpy.random.default_rng([seed, stream, g, particle])
            for g in sets
            for particle in particles
        ]
        self.shape = (len(sets), len(particles), *shape)
        self.device = torch.device(device)

    def __call__(self) -> Tensor:
        noise = torch.empty(self.shape)
        for generator, out in zip(self.generators, noise.flatten(0, 1).numpy()):
            generator.standard_normal(dtype=numpy.float32, out=out)
        return noise.to(self.device)
