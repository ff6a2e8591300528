"""The published figures, each measured by the command beside it.

    python benchmarks/figures.py

A finished figure is kept in --outdir and not measured again. Writes figures.json and figures.md
there.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import assemble  # noqa: E402
from command_line import make_parser  # noqa: E402
from experiments import run_cell  # noqa: E402
from names import METRICS  # noqa: E402

TRAINED, EXACT = "--num_sets 200 --digits mnist", "--denoiser exact --num_sets 200 --digits mnist"
HORIZONTAL = (
    "--denoiser exact --dataset horizontal --p 0.7 --batch_size 10 --num_sets 1000 --digits mnist"
)
BLOBS = "--dataset frames --frames examples/blobs.npz --batch_size 4 --num_sets 200"
DIGITS = "--task unconditional --batch_size 10 --num_sets 40 --digits mnist"
# What is measured, the flags of evaluate.py, the keys that are shown.
FIGURES = [
    ("exact, independent", f"{EXACT}", ["modes_found"]),
    (
        "exact, guided, 12 steps",
        f"{EXACT} --pg_factor 1.7 --num_steps 12",
        ["modes_found", "hm_iou"],
    ),
    ("exact, guided, 22 steps", f"{EXACT} --pg_factor 1.7", ["modes_found", "hm_iou"]),
    (
        "exact, guided, 40 steps",
        f"{EXACT} --pg_factor 1.7 --num_steps 40",
        ["modes_found", "hm_iou"],
    ),
    (
        "exact, guided, 4 directions",
        f"{EXACT} --pg_factor 1.7 --num_directions 4 --batch_size 4",
        ["modes_found"],
    ),
    (
        "exact, guided, 2 directions",
        f"{EXACT} --pg_factor 1.7 --num_directions 2 --batch_size 2",
        ["modes_found"],
    ),
    (
        "exact, guided, one direction has p = 0.5",
        f"{EXACT} --pg_factor 1.7 --p 0.5",
        ["modes_found"],
    ),
    (
        "exact, two sequential sets of 4",
        f"{EXACT} --pg_factor 1.7 --batch_size 4 --sequential 2",
        ["modes_found"],
    ),
    ("trained, independent", TRAINED, ["modes_found", "quality", "hm_iou"]),
    ("trained, guided", f"{TRAINED} --pg_factor 1.7", ["modes_found", "quality", "hm_iou"]),
    (
        "trained, embedded digits, independent",
        "--num_sets 100 --digits embedded",
        ["modes_found", "quality", "hm_iou"],
    ),
    (
        "trained, embedded digits, guided",
        "--num_sets 100 --digits embedded --pg_factor 1.7",
        ["modes_found", "quality", "hm_iou"],
    ),
    ("unconditional digits, independent", DIGITS, ["modes_found", "confidence"]),
    (
        "unconditional digits, guided by pixels",
        f"{DIGITS} --pg_factor 3 --redraws 0",
        ["modes_found", "confidence"],
    ),
    (
        "unconditional digits, medoids of ten times as many",
        f"{DIGITS} --guidance kmedoids --kmedoids_pool 10",
        ["modes_found", "confidence"],
    ),
    (
        "unconditional digits, guided by features",
        f"{DIGITS} --pg_factor 1 --pg_features classifier --pg_sigma_min 1 --redraws 20",
        ["modes_found", "confidence"],
    ),
    (
        "mixture, independent",
        "--denoiser exact --dataset mixture --batch_size 10 --num_sets 100",
        ["modes_found", "within_3_sd"],
    ),
    ("mixture, guided", "--config configs/mixture.yaml", ["modes_found", "within_3_sd"]),
    ("horizontal, independent", HORIZONTAL, ["p_right", "count_variance_ratio"]),
    (
        "horizontal, guided",
        f"{HORIZONTAL} --pg_factor 1.7 --redraws 0",
        ["p_right", "count_variance_ratio"],
    ),
    (
        "horizontal, simplex noise",
        f"{HORIZONTAL} --noise simplex",
        ["p_right", "count_variance_ratio"],
    ),
    (
        "horizontal, stratified noise",
        f"{HORIZONTAL} --noise stratified --sigma_max 300",
        ["p_right", "count_variance_ratio"],
    ),
    (
        "masks of four experts, exact, independent",
        f"{BLOBS} --denoiser exact",
        ["hm_iou", "ged", "mean_iou"],
    ),
    (
        "masks, exact, guided",
        f"{BLOBS} --denoiser exact --pg_factor 1 --redraws 0",
        ["hm_iou", "ged", "mean_iou"],
    ),
    ("masks, trained, independent", f"{BLOBS} --checkpoint blobs", ["hm_iou", "ged", "mean_iou"]),
    (
        "masks, trained, guided",
        f"{BLOBS} --checkpoint blobs --pg_factor 1 --redraws 0",
        ["hm_iou", "ged", "mean_iou"],
    ),
]


@dataclass
class FigureSettings:
    """Figures"""

    data_root: str = "data"
    """folder of torchvision's MNIST"""
    outdir: str = "runs/benchmark-figures"
    """folder for cells and results"""


def show(key: str, result: dict) -> str:
    """One number with its interval."""
    value = result["mode_frequencies"][0] if key == "p_right" else result[key]
    digits = 2 if key == "modes_found" else 3
    name = METRICS[key].title + (f" of {result['modes_total']}" if key == "modes_found" else "")
    if not isinstance(value, dict):
        return f"{name}: {value:.{digits}f}"
    mean = f"{name}: {value['mean']:.{digits}f}"
    if value["ci95"] is None:
        return f"{mean} (no interval)"
    low, high = value["ci95"]
    return f"{mean} [{low:.{digits}f}, {high:.{digits}f}]"


def main(argv: list[str] | None = None) -> None:
    args = make_parser(FigureSettings, description=__doc__.split("\n")[0]).parse_args(argv)
    outdir, rows = Path(args.outdir), []
    for name, flags, keys in FIGURES:
        result = run_cell(*assemble.parse([*flags.split(), "--data_root", args.data_root]), outdir)
        expected = f"{result['modes_expected_iid']:.2f}" if "modes_found" in keys else ""
        rows.append(
            dict(
                name=name,
                flags=flags,
                expected_iid=expected,
                measured=[show(key, result) for key in keys],
                network_calls=result["network_calls"],
                seconds=result["seconds"],
            )
        )
        print(f"{name:45} {', '.join(rows[-1]['measured'])}", flush=True)
    table = [
        "| what | measured | independent draws, theory | `python evaluate.py ...` |",
        "|---|---|---|---|",
    ]
    table += [
        f"| {r['name']} | {'<br>'.join(r['measured'])} | {r['expected_iid']} | `{r['flags']}` |"
        for r in rows
    ]
    (outdir / "figures.json").write_text(json.dumps(rows, indent=1))
    (outdir / "figures.md").write_text("\n".join(table) + "\n")
    print(f"written to {outdir}")


if __name__ == "__main__":
    main()
