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
from typing import Literal

import measure
import numpy as np

from config import Count

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
    data_root: str = "data"
    """folder of torchvision's MNIST"""


def evaluate(flags: str, ranks: int, data_root: str, outdir: Path) -> float:
    """Run evaluate.py in so many processes. Returns seconds."""
    threads = max(1, (os.cpu_count() or 1) // ranks)
    command = [*measure.launch(measure.ROOT / "evaluate.py", ranks), *flags.split()]
    run = partial(
        subprocess.run,
        [*command, "--data_root", data_root, "--outdir", str(outdir)],
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        stdout=subprocess.DEVNULL,
    )
    return measure.seconds(run)


def grid(args) -> tuple[str, dict]:
    """An experiment, whose cells are shared."""
    flags = f"--experiment {args.experiment} --preset {args.preset} --num_sets {args.num_sets}"
    seconds, rows = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for ranks in (1, 2):
            outdir = Path(folder, str(ranks))
            seconds[ranks] = evaluate(flags, ranks, args.data_root, outdir)
            rows[ranks] = json.loads((outdir / "results.json").read_text())["rows"]
    pairs = [(a["result"], b["result"]) for a, b in zip(rows[1], rows[2])]
    counts = [[each["modes_found"]["per_set"] for each in pair] for pair in pairs]
    qualities = [[each["quality"]["mean"] for each in pair] for pair in pairs if pair[0]["quality"]]
    result = dict(
        experiment=args.experiment,
        preset=args.preset,
        num_sets=args.num_sets,
        cells=len(pairs),
        seconds_one=seconds[1],
        seconds_two=seconds[2],
        times_as_fast=seconds[1] / seconds[2],
        counts_differ=sum(a != b for a, b in counts),
        largest_difference_of_quality=max((abs(a - b) for a, b in qualities), default=0.0),
    )
    row = (
        "{cells} | {seconds_one:.0f} s | {seconds_two:.0f} s | {times_as_fast:.2f}"
        " | {counts_differ} | {largest_difference_of_quality:.1e}"
    ).format(**result)
    header = (
        "cells | one process | two processes | times as fast | cells whose counts differ"
        " | largest difference of a quality"
    )
    return measure.table(header, [row.split(" | ")]), result


def evaluation(args) -> tuple[str, dict]:
    """One evaluation, whose sets are shared."""
    times: dict[int, list[float]] = {1: [], 2: []}
    differ = 0
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(args.evaluations):
            samples = {}
            for ranks in times:
                outdir = Path(folder, str(ranks))
                flags = f"--num_sets {args.evaluated}"
                times[ranks].append(evaluate(flags, ranks, args.data_root, outdir))
                samples[ranks] = np.load(outdir / "samples.npz")["samples"]
            differ += int((samples[1] != samples[2]).sum())
    one, two, faster = *map(measure.spread, times.values()), measure.ratio(times, 1, 2)
    seconds = [measure.shown(each, 0) for each in (one, two)]
    header = "sets | one process, s | two processes, s | times as fast | pixels that differ"
    text = measure.table(header, [[args.evaluated, *seconds, measure.shown(faster), differ]])
    return text, dict(
        sets=args.evaluated,
        seconds_one=one,
        seconds_two=two,
        times_as_fast=faster,
        pixels_differ=differ,
    )


def start_up(args) -> tuple[str, dict]:
    """The time until programs answer."""
    run = partial(subprocess.run, cwd=measure.ROOT, capture_output=True)
    runs = {line: partial(run, [sys.executable, *line.split()]) for line in ANSWERS}
    times = measure.interleaved(runs, args.repetitions)
    result = {line: measure.spread(values) for line, values in times.items()}
    rows = [[f"`python {line}`", measure.shown(value)] for line, value in result.items()]
    return measure.table("command | seconds to its answer", rows), result


def main(argv: list[str] | None = None) -> None:
    args = measure.arguments(GridBenchmarkSettings, argv)
    parts = {part.__name__: part(args) for part in (start_up, grid, evaluation)}
    measure.write_parts(args.outdir, "grid", parts)


if __name__ == "__main__":
    main()
