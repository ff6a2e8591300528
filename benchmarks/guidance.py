"""All methods on the same models, test digits and noise, with an audit of each.

    python benchmarks/guidance.py                      # quick: about half an hour on two cores
    python benchmarks/guidance.py --preset full        # 200 sets everywhere
    python benchmarks/guidance.py --num_sets 1         # a first look

This is experiment e10 (configs/experiments/e10.yaml); a finished cell is kept in --outdir and not
run again. Writes guidance.json, guidance.md and guidance.png there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Optional, Sequence

import measure

from config import Count
from lab import experiments
from lab.names import METRICS

# Of the audit; the other columns have the cost.
AUDIT = ("equivalent_draws", "frequency_tv", "count_dispersion", "vendi", "rke")


@dataclass
class BenchmarkSettings:
    """Benchmark"""

    preset: Literal["quick", "full"] = "quick"
    """number of sets in each cell"""
    num_sets: Optional[Count] = None
    """test digits, in place of those of the preset"""
    data_root: str = "data"
    """folder of torchvision's MNIST"""


def value(metric: dict[str, Any], digits: int) -> str:
    """A mean, and half of its interval if it has one."""
    mean = f"{metric['mean']:.{digits}f}"
    if metric["ci95"] is None:
        return mean
    low, high = metric["ci95"]
    return f"{mean} ± {(high - low) / 2:.{digits}f}"


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """One table per denoiser, the first strength of every method."""
    audited = " | ".join(METRICS[key].title for key in AUDIT)
    header = f"method | setting | modes | quality | HM IoU* | GED | {audited}"
    header += " | network calls | backward | cost | sets"
    parts = []
    for denoiser in dict.fromkeys(row["cell"]["denoiser"] for row in rows):
        mine = [row for row in rows if row["cell"]["denoiser"] == denoiser]
        first = {row["cell"]["method"]: row for row in reversed(mine)}
        what = (
            "{digits_source} test digits, sets of {batch_size}, {modes_total} directions, 22 steps,"
            " {device}; independent draws find {modes_expected_iid:.2f} in theory"
        ).format(**mine[0]["result"])
        lines = []
        for method in dict.fromkeys(row["cell"]["method"] for row in mine):
            cell, result = first[method]["cell"], first[method]["result"]
            strength = [str(cell[key]) for key in cell if key not in ("denoiser", "method")]
            lines.append(
                [
                    method,
                    ", ".join(strength),
                    value(result["modes_found"], 2),
                    *(value(result[key], 3) for key in ("quality", "hm_iou", "ged")),
                    *(experiments.audit_entry(result, key) for key in AUDIT),
                    f"{result['network_calls']:.1f}",
                    f"{result['backward_calls']:.1f}",
                    experiments.audit_entry(result, "price"),
                    result["num_sets"],
                ]
            )
        name = denoiser[0].upper() + denoiser[1:]
        parts.append(f"**{name}**: {what}.\n\n{measure.table(header, lines)}\n")
    return "\n".join(parts)


def main(argv: list[str] | None = None) -> None:
    args = measure.arguments(BenchmarkSettings, argv)
    shared = dict(data_root=args.data_root)
    if args.num_sets is not None:
        shared["num_sets"] = args.num_sets
    rows = measure.experiment("e10", "guidance", args.preset, args.outdir, **shared)
    measure.save(args.outdir, "guidance", markdown(rows), dict(rows=experiments.brief(rows)))


if __name__ == "__main__":
    main()
