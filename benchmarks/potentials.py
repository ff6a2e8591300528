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
from pathlib import Path
from typing import Optional, Sequence

sys.path.insert(0, str(Path(__file__).parent.parent))

import measure  # noqa: E402

from command_line import make_parser  # noqa: E402
from config import Count  # noqa: E402


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
    outdir: str = "runs/benchmark-potentials"
    """folder for the results"""


def peak_memory() -> int:
    """The most that this process ever held, bytes."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


def alone(kernel: str, B: int, d: int, repetitions: int) -> dict:
    """Seconds and extra bytes of a gradient; seconds of the two matrix products it needs."""
    import torch

    from potentials import POTENTIALS, Bandwidth

    potential = POTENTIALS[kernel](Bandwidth())
    generator = torch.Generator().manual_seed(0)
    potential.grad(
        torch.randn(1, 8, d, generator=generator).clamp(-1, 1)
    )  # libraries loaded, threads started
    y = torch.randn(1, B, d, generator=generator).clamp(-1, 1)
    before = peak_memory()
    potential.grad(y)
    extra = peak_memory() - before
    wide = y[0].double()
    times: dict[str, list[float]] = dict(gradient=[], products=[])
    while (
        len(times["gradient"]) < repetitions and sum(times["gradient"]) < 1 or not times["gradient"]
    ):
        times["gradient"].append(measure.seconds(lambda: potential.grad(y)))
        times["products"].append(measure.seconds(lambda: (wide @ wide.T) @ wide))
    return dict(
        kernel=kernel,
        particles=B,
        seconds=measure.spread(times["gradient"]),
        over_products=measure.ratio(times, "gradient", "products"),
        extra_bytes=extra,
        allowed_bytes=8 * 8 * B * (B + d),
    )


def main(argv: list[str] | None = None) -> None:
    args = make_parser(PotentialBenchmarkSettings, description=__doc__.split("\n")[0]).parse_args(
        argv
    )
    if args.alone:
        print(json.dumps(alone(args.alone, args.particles[0], args.pixels, args.repetitions)))
        return
    from potentials import POTENTIALS

    cases, rows = [], []
    for kernel in POTENTIALS:
        for B in args.particles:
            out = subprocess.run(
                [
                    sys.executable,
                    __file__,
                    "--alone",
                    kernel,
                    "--particles",
                    f"[{B}]",
                    "--pixels",
                    str(args.pixels),
                    "--repetitions",
                    str(args.repetitions),
                ],
                check=True,
                stdout=subprocess.PIPE,
                text=True,
            ).stdout
            cases.append(json.loads(out))
            print(f"{kernel}, {B}: {cases[-1]['seconds']['median']:.3f} s", file=sys.stderr)
    exponents = {}
    for kernel in POTENTIALS:
        mine = [c for c in cases if c["kernel"] == kernel]
        for small, large in zip(mine, mine[1:]):
            growth = math.log(large["seconds"]["median"] / small["seconds"]["median"])
            large["exponent"] = growth / math.log(large["particles"] / small["particles"])
        if len(mine) > 1:
            growth = math.log(mine[-1]["seconds"]["median"] / mine[0]["seconds"]["median"])
            exponents[kernel] = growth / math.log(mine[-1]["particles"] / mine[0]["particles"])
        rows += [
            [
                kernel,
                c["particles"],
                f"{1e3 * c['seconds']['median']:.1f}",
                f"{c['exponent']:.2f}" if "exponent" in c else "",
                measure.shown(c["over_products"]),
                f"{c['extra_bytes'] / 2**20:.0f} of {c['allowed_bytes'] / 2**20:.0f}",
            ]
            for c in mine
        ]
    text = measure.table(
        [
            "potential",
            "particles",
            "ms",
            "exponent since the size before",
            "time over two (B x B x d) products, float64",
            "extra memory, MiB, of 64 B (B + d) bytes",
        ],
        rows,
    )
    measure.write(
        args.outdir, "potentials", text, cases=cases, exponents=exponents, pixels=args.pixels
    )


if __name__ == "__main__":
    main()
