"""Time and memory of one guidance gradient for sets of 64 to 4096 particles of 1024 pixels.

    python benchmarks/potentials.py

Every case runs in a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import dataclass
from typing import Optional, Sequence

import measure

from config import Count


@dataclass
class PotentialBenchmarkSettings:
    """Potentials"""

    particles: Sequence[Count] = (64, 256, 1024, 4096)
    """sizes of the set"""
    pixels: Count = 1024
    """of a particle"""
    repetitions: Count = 3
    """of every case, while it takes less than a second"""
    alone: Optional[str] = None
    """measure this one only, in this process, and print the result as JSON"""


def peak_memory() -> int:
    """The most that this process ever held, bytes."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def alone(kernel: str, B: int, d: int, repetitions: int) -> dict:
    """Seconds and extra bytes of a gradient; seconds of the two matrix products it needs."""
    import torch

    from diverse_sampling.potentials import POTENTIALS, Bandwidth

    potential = POTENTIALS[kernel](Bandwidth())
    draw = torch.Generator().manual_seed(0)
    # The first call loads libraries and starts threads.
    potential.grad(torch.randn(1, 8, d, generator=draw).clamp(-1, 1))
    y = torch.randn(1, B, d, generator=draw).clamp(-1, 1)
    before = peak_memory()
    potential.grad(y)
    extra = peak_memory() - before
    wide = y[0].double()
    times: dict[str, list[float]] = dict(gradient=[], products=[])
    for _ in range(repetitions):
        times["gradient"].append(measure.seconds(lambda: potential.grad(y)))
        times["products"].append(measure.seconds(lambda: (wide @ wide.T) @ wide))
        if sum(times["gradient"]) >= 1:
            break
    return dict(
        kernel=kernel,
        particles=B,
        seconds=measure.spread(times["gradient"]),
        over_products=measure.ratio(times, "gradient", "products"),
        extra_bytes=extra,
        allowed_bytes=8 * 8 * B * (B + d),
    )


def exponent(small: dict, large: dict) -> float:
    """The power of the number of particles with which the time of a gradient grows."""
    growth = math.log(large["seconds"]["median"] / small["seconds"]["median"])
    return growth / math.log(large["particles"] / small["particles"])


def main(argv: list[str] | None = None) -> None:
    args = measure.arguments(PotentialBenchmarkSettings, argv)
    if args.alone:
        print(json.dumps(alone(args.alone, args.particles[0], args.pixels, args.repetitions)))
        return
    from diverse_sampling.potentials import POTENTIALS

    cases, rows, exponents = [], [], {}
    for kernel in POTENTIALS:
        mine: list[dict] = []
        for B in args.particles:
            flags = f"--alone {kernel} --particles [{B}] --pixels {args.pixels}"
            flags += f" --repetitions {args.repetitions} --outdir {args.outdir}"
            command = [sys.executable, __file__, *flags.split()]
            out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            case = json.loads(out)
            if mine:
                case["exponent"] = exponent(mine[-1], case)
                exponents[kernel] = exponent(mine[0], case)
            mine.append(case)
            rows.append(
                [
                    kernel,
                    B,
                    f"{1e3 * case['seconds']['median']:.1f}",
                    f"{case['exponent']:.2f}" if "exponent" in case else "",
                    measure.shown(case["over_products"]),
                    f"{case['extra_bytes'] / 2**20:.0f} of {case['allowed_bytes'] / 2**20:.0f}",
                ]
            )
            print(f"{kernel}, {B}: {case['seconds']['median']:.3f} s", file=sys.stderr)
        cases += mine
    text = measure.table(
        "potential | particles | ms | exponent since the size before"
        " | time over two (B x B x d) products, float64"
        " | extra memory, MiB, of 64 B (B + d) bytes",
        rows,
    )
    results = dict(cases=cases, exponents=exponents, pixels=args.pixels)
    measure.write(args.outdir, "potentials", text, **results)


if __name__ == "__main__":
    main()
