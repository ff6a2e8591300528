"""At which noise level it is decided what a sample will show, read off the denoiser itself.

Particles of one set that are sampled independently share their condition and nothing else. While
the noise hides everything, their denoised images D(x; sigma) are all alike; at the end they are the
samples. The share that is decided,

    V(sigma) = variance of D(x; sigma) across the particles of a set, over that of their samples,

summed over pixels and averaged over sets, rises from 0 to 1 once. It is measured relative to its
value at the largest noise level, which is 0 but for the error of a trained network. Guidance can
change what is not decided yet, so this curve says between which noise levels a set has to be
guided, and where nothing is left to sample, for any world, network or space of values, with no
number that belongs to one of them.

Of an exact denoiser V is 1 - E|y - D|^2 / T, T the total variance of y given the condition (the law
of total variance), so that V never falls, and

    T (1 - V(sigma)) = E tr Cov[y | x]

is what a sample can still become: how far guidance may push it.

Literature on where modes are decided: Raya & Ambrogioni 2023, arXiv 2305.19693; Biroli et al. 2024,
arXiv 2402.18491; Li & Chen 2024, arXiv 2403.01633.
"""

from __future__ import annotations

import bisect
import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Sequence

import torch
from torch import Tensor

from diverse_sampling.denoiser import Denoiser
from diverse_sampling.steps import Window, euler_schedule, integrate


@dataclass(frozen=True)
class Shares:
    """The shares of what is decided that make a window.

    Arguments:
        first, last: between which sets are guided, each time right after new noise
        settled: down to which a step goes at most before noise is added anew
    """

    first: float
    last: float
    settled: float


# Pushes of one size in all directions end early, so that what they do to a sample is sampled again.
# Pushes through the Jacobian end by themselves in each direction, as it is decided.
EARLY = Shares(0.05, 0.5, 0.9)
LATE = Shares(0.05, 0.97, 0.99)
# Guidance by classes, and the noise levels of a scheduler, which nobody chose for it.
WIDE = Shares(0.05, 0.95, 0.99)
# Where this share is decided, a sample is done.
DONE = 0.998


@dataclass(frozen=True)
class Decisions:
    """The share of what is decided at each noise level, V(sigma).

    Arguments:
        sigmas: decreasing noise levels, all positive
        shares: V at each of them, in [0, 1], never falling, 0 at the largest noise level
        variance: T, of the samples of a set, summed over pixels, in squared units of x
        floor: the share that differs at the largest noise level, where nothing can be decided: the
            error of a trained network, which `shares` are relative to
    """

    sigmas: Sequence[float]
    shares: Sequence[float]
    variance: float
    floor: float = 0.0

    def share(self, sigma: float) -> float:
        """V at a noise level, interpolated in ln sigma; constant outside of what was measured."""
        falling = [-math.log(level) for level in self.sigmas]
        return _interpolated(-math.log(sigma), falling, self.shares)

    def sigma(self, share: float) -> float:
        """The largest noise level at which a share in (0, 1) is decided."""
        index = min(bisect.bisect_left(self.shares, share), len(self.shares) - 1)
        if index == 0:
            return self.sigmas[0]
        logs = [math.log(level) for level in self.sigmas[index - 1 : index + 1]]
        return math.exp(_interpolated(share, self.shares[index - 1 : index + 1], logs))

    def undecided(self, sigma: float) -> float:
        """T (1 - V): the variance that a sample still has given its x, summed over pixels."""
        return self.variance * (1 - self.share(sigma))

    def window(self, shares: Shares = EARLY) -> Window:
        """The noise levels at which sets are guided, and how much new noise goes before each."""
        low = self.sigma(shares.last)
        return Window(low, self.sigma(shares.first), low / self.sigma(shares.settled) - 1)

    @property
    def settled(self) -> float:
        """The noise level at which a pool is thinned, and below which pushes come too late."""
        return self.sigma(EARLY.settled)

    @property
    def end(self) -> float:
        """The last noise level worth calling a trained denoiser at, below `settled`."""
        return min(self.sigma(DONE), 0.99 * self.settled)


def _interpolated(at: float, rising: Sequence[float], values: Sequence[float]) -> float:
    """`values` at a place, linear between the places `rising`, constant outside of them."""
    right = bisect.bisect_left(rising, at)
    if right == 0:
        return values[0]
    if right == len(rising):
        return values[-1]
    left = right - 1
    weight = (at - rising[left]) / (rising[right] - rising[left])
    return values[left] + weight * (values[right] - values[left])


@torch.no_grad()
def measure(
    denoise: Denoiser, x: Tensor, sigmas: Tensor, *, from_lowest: bool = False
) -> Decisions:
    """V(sigma) and T along independent trajectories of the ODE, by Euler's steps.

    Euler's steps stay behind: with 15 of them V is up to 0.12 too small in its steep part.

    Arguments:
        denoise: the unguided denoiser
        x: (G, P, C, H, W), noise of standard deviation sigmas[0], P > 1 particles in each set. T is
            known to about 10% from 64 particles
        sigmas: (N + 1,) float64, as `steps.karras_sigmas` returns them; D is called once at each
        from_lowest: whether the curve starts where V is lowest, rather than at the largest noise
            level. A network that predicts noise errs in D by sigma times its error, so that its D
            differ most where nothing is decided

    Raises ValueError if the samples of every set are alike, so that nothing is decided at all.
    """
    variances: list[float] = []

    def keep(step: dict) -> None:
        variances.append(_variance(step["denoised"]))

    samples = integrate(denoise, x, euler_schedule(sigmas), callback=keep)
    final = _variance(samples)
    if not final > 0 or not math.isfinite(final):
        raise ValueError(f"samples: their variance is {final}; accepted: sets that differ")
    shares = (torch.tensor(variances) / final).clamp(0, 1)
    if from_lowest:
        lowest = int(shares.argmin())
        shares[:lowest] = shares[lowest]
    floor = float(shares[0])
    # V never falls but for the errors of a network and of few samples.
    rising = ((shares - floor) / max(1 - floor, 1e-6)).clamp(0, 1).cummax(0).values
    # Rounded, so that a curve that is read again is the one that was measured.
    return Decisions(
        [float(f"{sigma:.6g}") for sigma in sigmas[:-1].tolist()],
        [round(share, 6) for share in rising.tolist()],
        float(f"{final:.6g}"),
        round(floor, 6),
    )


def _variance(images: Tensor) -> float:
    """Variance across the particles of a set, summed over pixels, mean over sets."""
    return float(images.double().flatten(2).var(1).sum(-1).mean())


# ---------------------------------------------------------------- kept beside a checkpoint


def cache_of(checkpoint: Path) -> Path:
    """The file beside a checkpoint that holds the curves that were measured with it."""
    return checkpoint.with_suffix(".decisions.json")


def cached(checkpoint: Path, sha256: str, pilot: str) -> tuple[Decisions, int] | None:
    """The curve that was measured with this very checkpoint, and the calls that it took; None where
    there is none.

    Arguments:
        checkpoint: the file
        sha256: its hash
        pilot: what was sampled for it, as text
    """
    try:
        held = json.loads(cache_of(checkpoint).read_text())
        if held["checkpoint_sha256"] != sha256:
            return None
        curve = dict(held["curves"][pilot])
        calls = curve.pop("calls")
        return Decisions(**curve), calls
    except (OSError, ValueError, KeyError, TypeError):
        return None


def keep(checkpoint: Path, sha256: str, pilot: str, curve: Decisions, calls: int) -> None:
    """Add a curve, and the calls that it took, to the file beside a checkpoint.

    If nothing can be written there, do nothing: it is measured again the next time.
    """
    path = cache_of(checkpoint)
    curves = {}
    try:
        held = json.loads(path.read_text())
        if held["checkpoint_sha256"] == sha256:
            curves = dict(held["curves"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    curves[pilot] = asdict(curve) | dict(calls=calls)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        held = dict(checkpoint_sha256=sha256, curves=curves)
        temporary.write_text(json.dumps(held, allow_nan=False))
        temporary.replace(path)
    except (OSError, ValueError):
        temporary.unlink(missing_ok=True)
