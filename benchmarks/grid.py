"""A whole experiment over two processes against one, with half the cores for each of the two.

    python benchmarks/grid.py         # e5, preset quick, twice

It also measures start-up: the time until --help and a mistake are answered.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import measure  # noqa: E402

from command_line import make_parser  # noqa: E402
from config import Count  # noqa: E402

ANSWERS = [
    "evaluate.py --help",
    "train.py --help",
    "visualize.py --help",
    "evaluate.py --batch_size 0",
]


@dataclass
class GridBenchmarkSettings:
    """Grid"""

    experiment: str = "e5"
    """the experiment"""
    preset: Literal["quick", "full"] = "quick"
    """its number of sets"""
    num_sets: Count = 8
    """sets of a cell"""
    repetitions: Count = 5
    """of the start-ups"""
    data_root: str = "data"
    """folder of torchvision's MNIST"""
    outdir: str = "runs/benchmark-grid"
    """folder for the results"""


def whole(args, ranks: int, outdir: Path) -> tuple[float, list[dict]]:
    """Seconds and rows of the experiment."""
    threads = max(1, (os.cpu_count() or 1) // ranks)
    command = [
        *measure.launch(ROOT / "evaluate.py", ranks),
        "--experiment",
        args.experiment,
        "--preset",
        args.preset,
        "--num_sets",
        str(args.num_sets),
        "--data_root",
        args.data_root,
        "--outdir",
        str(outdir),
    ]
    seconds = measure.seconds(
        lambda: subprocess.run(
            command,
            check=True,
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
            stdout=subprocess.DEVNULL,
        )
    )
    return seconds, json.loads((outdir / "results.json").read_text())["rows"]


def over_ranks(args) -> tuple[str, dict]:
    with tempfile.TemporaryDirectory() as folder:
        (one, rows), (two, others) = (
            whole(args, ranks, Path(folder, str(ranks))) for ranks in (1, 2)
        )
    pairs = [(a["result"], b["result"]) for a, b in zip(rows, others)]
    result = dict(
        cells=len(pairs),
        seconds_one=one,
        seconds_two=two,
        times_as_fast=one / two,
        counts_differ=sum(
            a["modes_found"]["per_set"] != b["modes_found"]["per_set"] for a, b in pairs
        ),
        largest_difference_of_quality=max(
            (abs(a["quality"]["mean"] - b["quality"]["mean"]) for a, b in pairs if a["quality"]),
            default=0.0,
        ),
    )
    text = measure.table(
        [
            "cells",
            "one process",
            "two processes",
            "times as fast",
            "cells whose counts differ",
            "largest difference of a quality",
        ],
        [
            [
                len(pairs),
                f"{one:.0f} s",
                f"{two:.0f} s",
                f"{one / two:.2f}",
                result["counts_differ"],
                f"{result['largest_difference_of_quality']:.1e}",
            ]
        ],
    )
    return text, result


def start_up(args) -> tuple[str, dict]:
    runs = {
        line: (
            lambda line=line: subprocess.run(
                [sys.executable, *line.split()], cwd=ROOT, capture_output=True
            )
        )
        for line in ANSWERS
    }
    times = {
        name: measure.spread(values)
        for name, values in measure.interleaved(runs, args.repetitions).items()
    }
    return measure.table(
        ["command", "seconds to its answer"],
        [[f"`python {name}`", measure.shown(value)] for name, value in times.items()],
    ), times


def main(argv: list[str] | None = None) -> None:
    args = make_parser(GridBenchmarkSettings, description=__doc__.split("\n")[0]).parse_args(argv)
    parts = {part.__name__: part(args) for part in (start_up, over_ranks)}
    measure.write(
        args.outdir,
        "grid",
        "\n\n".join(text for text, _ in parts.values()),
        experiment=args.experiment,
        preset=args.preset,
        num_sets=args.num_sets,
        **{name: result for name, (_, result) in parts.items()},
    )


if __name__ == "__main__":
    main()
