"""All guidance methods on one model, the same test digits and the same noise.

    python benchmarks/guidance.py                      # 200 digits, exact and trained denoiser
    python benchmarks/guidance.py --num_sets 16        # a first look

This is experiment e10 (configs/experiments/e10.yaml); a finished cell is kept in --outdir and not
run again. Writes guidance.json, guidance.md and guidance.png there.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import experiments  # noqa: E402
from command_line import fail, make_parser  # noqa: E402
from config import Count, SettingError  # noqa: E402


@dataclass
class BenchmarkSettings:
    """Benchmark"""

    num_sets: Count = 200
    """test digits"""
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
        "directions of 8",
        "quality",
        "HM IoU*",
        "GED",
        "network calls",
        "backward",
        "seconds",
    ]
    for denoiser in dict.fromkeys(row["cell"]["denoiser"] for row in rows):
        mine = [row for row in rows if row["cell"]["denoiser"] == denoiser]
        first = {row["cell"]["method"]: row for row in reversed(mine)}
        what = (
            "{num_sets} {digits_source} test digits, sets of 8, 8 directions, 22 steps, {device}"
        ).format(**mine[0]["result"])
        lines += [
            f"**{denoiser.capitalize()} denoiser**, {what}; independent draws find "
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
            lines.append(
                "| "
                + " | ".join(
                    [
                        method,
                        *(strength or [""]),
                        value(result, "modes_found", 2),
                        value(result, "quality", 3),
                        value(result, "hm_iou", 3),
                        value(result, "ged", 3),
                        f"{result['network_calls']:.1f}",
                        f"{result['backward_calls']:.1f}",
                        f"{result['seconds']:.0f}",
                    ]
                )
                + " |"
            )
        lines.append("")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    args = make_parser(BenchmarkSettings, description=__doc__.split("\n")[0]).parse_args(argv)
    outdir = Path(args.outdir)
    outdir.mkdir(parents=True, exist_ok=True)
    try:
        rows = experiments.run(
            "e10", "full", dict(num_sets=args.num_sets, data_root=args.data_root), outdir
        )
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
