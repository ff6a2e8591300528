"""What guidance costs: whole sampling runs over the same network calls bare, interleaved repetitions.

    python benchmarks/cost.py            # 32 sets of 8, 22 steps, the shipped network

Writes --outdir/cost.json and cost.md: medians of the ratios of each repetition, and their range.
"""
from __future__ import annotations

import json
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from jsonargparse.typing import PositiveInt  # noqa: E402

from config import make_parser  # noqa: E402

RUNS = {"no guidance": [], "D space": ["--pg_factor", "1.7", "--pg_space", "denoised", "--redraws", "0"],
        "through the Jacobian": ["--pg_factor", "1.7", "--redraws", "0"],
        "through the Jacobian, with redraws (the default)": ["--pg_factor", "1.7"]}


@dataclass
class CostSettings:
    """Cost"""

    repetitions: PositiveInt = 5
    """of every run, interleaved"""
    num_sets: PositiveInt = 32
    """sets of 8"""
    data_root: str = "data"
    """folder of torchvision's MNIST"""
    outdir: str = "runs/benchmark-cost"
    """folder for the results"""


def bare(job, sets) -> None:
    """The network calls of an unguided run and nothing else."""
    import torch

    denoise = job.bind(sets)
    x = torch.randn(len(sets), job.evaluate.batch_size, *job.shape)
    with torch.no_grad():
        for n in range(2 * job.sampler.num_steps - 1):
            denoise(x, job.sigmas[n // 2])


def main(argv: list[str] | None = None) -> None:
    args = make_parser(CostSettings, description=__doc__.split("\n")[0]).parse_args(argv)
    import torch

    import evaluate

    base = ["--num_sets", str(args.num_sets), "--data_root", args.data_root, "--device", "cpu"]
    jobs = {name: evaluate.setup([*base, *flags]) for name, flags in RUNS.items()}
    sets = torch.arange(args.num_sets)
    ratios: dict[str, list[float]] = {name: [] for name in jobs}
    bare(jobs["no guidance"], sets)
    for _ in range(args.repetitions):
        start = time.perf_counter()
        bare(jobs["no guidance"], sets)
        network = time.perf_counter() - start
        for name, job in jobs.items():
            start = time.perf_counter()
            job.sample(sets)
            ratios[name].append((time.perf_counter() - start) / network)
    result = {name: dict(median=statistics.median(r), lowest=min(r), highest=max(r)) for name, r in ratios.items()}
    outdir = Path(args.outdir)
    outdir.mkdir(parents=True, exist_ok=True)
    record = dict(ratios=result, num_sets=args.num_sets, repetitions=args.repetitions,
                  threads=torch.get_num_threads(), torch=torch.__version__)
    (outdir / "cost.json").write_text(json.dumps(record, indent=1))
    table = ["| run | time over its bare network calls | lowest to highest |", "|---|---|---|"]
    table += [f"| {name} | {r['median']:.2f} | {r['lowest']:.2f} to {r['highest']:.2f} |" for name, r in result.items()]
    (outdir / "cost.md").write_text("\n".join(table) + "\n")
    print("\n".join(table))


if __name__ == "__main__":
    main()
