"""Work over two processes against one, with half the cores for each of the two.

    python benchmarks/grid.py         # e5, preset quick, and an evaluation of 256 sets

An experiment shares its cells among the processes, one evaluation its sets. It also measures
start-up: the time until --help and a mistake are answered, beside that of Python itself.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, Sequence

import numpy as np

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import measure  # noqa: E402

from command_line import make_parser  # noqa: E402
from config import Count  # noqa: E402

ANSWERS = [
    "-c pass",
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
    evaluated: Count = 256
    """sets of the evaluation"""
    evaluations: Count = 3
    """repetitions of it"""
    repetitions: Count = 5
    """of the start-ups"""
    parts: Sequence[Literal["start_up", "grid", "evaluation"]] = ("start_up", "grid", "evaluation")
    """what to measure now; tables of what was measured before are written too"""
    data_root: str = "data"
    """folder of torchvision's MNIST"""
    outdir: str = "runs/benchmark-grid"
    """folder for the results"""


def evaluate(flags: list[str], ranks: int, args, outdir: Path) -> None:
    """Run evaluate.py in so many processes."""
    threads = max(1, (os.cpu_count() or 1) // ranks)
    subprocess.run(
        [
            *measure.launch(ROOT / "evaluate.py", ranks),
            *flags,
            "--data_root",
            args.data_root,
            "--outdir",
            str(outdir),
        ],
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        stdout=subprocess.DEVNULL,
    )


def grid(args) -> tuple[str, dict]:
    flags = ["--experiment", args.experiment, "--preset", args.preset]
    flags += ["--num_sets", str(args.num_sets)]

    def whole(ranks: int, outdir: Path) -> tuple[float, list[dict]]:
        """Seconds and rows of the experiment."""
        seconds = measure.seconds(lambda: evaluate(flags, ranks, args, outdir))
        return seconds, json.loads((outdir / "results.json").read_text())["rows"]

    with tempfile.TemporaryDirectory() as folder:
        (one, rows), (two, others) = (whole(ranks, Path(folder, str(ranks))) for ranks in (1, 2))
    pairs = [(a["result"], b["result"]) for a, b in zip(rows, others)]
    result = dict(
        experiment=args.experiment,
        preset=args.preset,
        num_sets=args.num_sets,
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


def evaluation(args) -> tuple[str, dict]:
    flags = ["--num_sets", str(args.evaluated)]
    times: dict[int, list[float]] = {1: [], 2: []}
    differ = 0
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(args.evaluations):
            samples = {}
            for ranks in times:
                outdir = Path(folder, str(ranks))
                run = partial(evaluate, flags, ranks, args, outdir)
                times[ranks].append(measure.seconds(run))
                samples[ranks] = np.load(outdir / "samples.npz")["samples"]
            differ += int((samples[1] != samples[2]).sum())
    result = dict(
        sets=args.evaluated,
        seconds_one=measure.spread(times[1]),
        seconds_two=measure.spread(times[2]),
        times_as_fast=measure.ratio(times, 1, 2),
        pixels_differ=differ,
    )
    text = measure.table(
        ["sets", "one process, s", "two processes, s", "times as fast", "pixels that differ"],
        [
            [
                args.evaluated,
                measure.shown(result["seconds_one"], 0),
                measure.shown(result["seconds_two"], 0),
                measure.shown(result["times_as_fast"]),
                differ,
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
    path = Path(args.outdir, "grid.json")
    before = json.loads(path.read_text()) if path.is_file() else {}
    tables = before.get("tables", {})
    results = {name: before[name] for name in tables}
    for part in (start_up, grid, evaluation):
        name = part.__name__
        if name in args.parts:
            tables[name], results[name] = part(args)
    measure.write(args.outdir, "grid", "\n\n".join(tables.values()), tables=tables, **results)


if __name__ == "__main__":
    main()
