"""All methods on the same models, test digits and noise, with an audit of each.

    python benchmarks/guidance.py                      # quick: about half an hour on two cores
    python benchmarks/guidance.py --preset full        # 200 sets everywhere
    python benchmarks/guidance.py --num_sets 1         # a first look

This is experiment e10 (configs/experiments/e10.yaml); a finished cell is kept in --outdir and not
run again. Writes guidance.json, guidance.md and guidance.png there.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Optional

sys.path.insert(0, str(Path(__file__).parent.parent))

import experiments  # noqa: E402
from command_line import fail, make_parser  # noqa: E402
from config import Count, SettingError  # noqa: E402
from names import METRICS  # noqa: E402


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
    outdir: str = "runs/benchmark-guidance"
    """folder for cells and results"""


def markdown(rows: list[dict]) -> str:
    """One table per denoiser, the first strength of every method."""

    def value(result: dict, key: str, digits: int) -> str:
        mean = result[key]["mean"]
        if result[key]["ci95"] is None:
            return f"{mean:.{digits}f}"
        low, high = result[key]["ci95"]
        return f"{mean:.{digits}f} ± {(high - low) / 2:.{digits}f}"

    lines = []
    header = [
        "method",
        "setting",
        "modes",
        "quality",
        "HM IoU*",
        "GED",
        *(METRICS[key].title for key in AUDIT),
        "network calls",
        "backward",
        "cost",
        "sets",
    ]
    for denoiser in dict.fromkeys(row["cell"]["denoiser"] for row in rows):
        mine = [row for row in rows if row["cell"]["denoiser"] == denoiser]
        first = {row["cell"]["method"]: row for row in reversed(mine)}
        what = (
            "{digits_source} test digits, sets of {batch_size}, {modes_total} "
            "directions, 22 steps, {device}"
        ).format(**mine[0]["result"])
        lines += [
            f"**{denoiser[0].upper() + denoiser[1:]}**: {what}; independent draws find "
            f"{mine[0]['result']['modes_expected_iid']:.2f} in theory.",
            "",
            "| " + " | ".join(header) + " |",
            "|" + "---|" * len(header),
        ]
        for method in dict.fromkeys(row["cell"]["method"] for row in mine):
            cell, result = dict(first[method]["cell"]), first[method]["result"]
            strength = [
                str(number) for key, number in cell.items() if key not in ("denoiser", "method")
            ]
            entries = [
                method,
                ", ".join(strength),
                value(result, "modes_found", 2),
                value(result, "quality", 3),
                value(result, "hm_iou", 3),
                value(result, "ged", 3),
                *(experiments.audit_entry(result, key) for key in AUDIT),
                f"{result['network_calls']:.1f}",
                f"{result['backward_calls']:.1f}",
                experiments.audit_entry(result, "forward_equivalents"),
                f"{result['num_sets']}",
            ]
            lines.append("| " + " | ".join(entries) + " |")
        lines.append("")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    args = make_parser(BenchmarkSettings, description=__doc__.split("\n")[0]).parse_args(argv)
    outdir = Path(args.outdir)
    outdir.mkdir(parents=True, exist_ok=True)
    shared: dict[str, Any] = dict(data_root=args.data_root)
    if args.num_sets is not None:
        shared["num_sets"] = args.num_sets
    try:
        rows = experiments.run("e10", args.preset, shared, outdir)
    except SettingError as error:
        fail(str(error))
    (outdir / "guidance.json").write_text(json.dumps(experiments.brief(rows), indent=1))
    (outdir / "guidance.md").write_text(markdown(rows))
    from charts import frontier
    from drawing import save

    save(frontier(rows), outdir / "guidance.png")
    print(f"written to {outdir}")


if __name__ == "__main__":
    main()
