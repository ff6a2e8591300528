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

CIRCLE = "--num_sets 200 --digits mnist"
EXACT = f"{CIRCLE} --denoiser exact"
UNET = "--num_sets 100 --digits mnist --checkpoint circle_jumping_unet"
HORIZONTAL = (
    "--denoiser exact --dataset horizontal --p 0.7 --batch_size 10 --num_sets 1000 --digits mnist"
)
BLOBS = "--dataset frames --frames examples/blobs.npz --batch_size 4 --num_sets 200"
DIGITS = "--task unconditional --batch_size 10 --num_sets 40 --digits mnist"
MIXTURE = "--denoiser exact --dataset mixture --batch_size 10 --num_sets 200 --num_steps 30"
PAIRS = "--denoiser exact --num_digits 2 --num_sets 64 --digits mnist"
GUIDED = "--pg_factor 3"  # in every world
DIRECTIONS = ["modes_found", "quality", "hm_iou"]
MASKS = ["hm_iou", "ged", "mean_iou"]
# What is measured, the flags of evaluate.py, the keys that are shown.
FIGURES = [
    ("exact, independent", EXACT, ["modes_found"]),
    ("exact, guided, 22 steps", f"{EXACT} {GUIDED}", ["modes_found", "hm_iou"]),
    ("exact, guided, 11 steps", f"{EXACT} {GUIDED} --num_steps 11", ["modes_found", "hm_iou"]),
    ("exact, guided, 8 steps", f"{EXACT} {GUIDED} --num_steps 8", ["modes_found", "hm_iou"]),
    (
        "exact, guided with EDM's sampler, 22 steps",
        f"{EXACT} {GUIDED} --sampler edm",
        ["modes_found", "hm_iou"],
    ),
    (
        "exact, guided, one direction has p = 0.5",
        f"{EXACT} {GUIDED} --p 0.5",
        ["modes_found"],
    ),
    (
        "exact, guided, sets of 16, 8 steps",
        f"{EXACT} {GUIDED} --batch_size 16 --num_steps 8",
        ["modes_found"],
    ),
    (
        "exact, guided, 4 directions, 8 steps",
        f"{EXACT} {GUIDED} --num_directions 4 --batch_size 4 --num_steps 8",
        ["modes_found"],
    ),
    (
        "exact, guided, 2 directions, 8 steps",
        f"{EXACT} {GUIDED} --num_directions 2 --batch_size 2 --num_steps 8",
        ["modes_found"],
    ),
    (
        "exact, two sequential sets of 4",
        f"{EXACT} {GUIDED} --batch_size 4 --sequential 2",
        ["modes_found"],
    ),
    ("exact, 64 modes, independent", f"{PAIRS} --batch_size 64", ["modes_found"]),
    ("exact, 64 modes, guided", f"{PAIRS} --batch_size 64 {GUIDED}", ["modes_found"]),
    ("plain U-Net, independent", UNET, DIRECTIONS),
    ("plain U-Net, independent, 11 steps", f"{UNET} --num_steps 11", DIRECTIONS),
    ("plain U-Net, guided", f"{UNET} {GUIDED}", DIRECTIONS),
    ("plain U-Net, guided, 11 steps", f"{UNET} {GUIDED} --num_steps 11", DIRECTIONS),
    ("network that copies, independent", CIRCLE, DIRECTIONS),
    ("network that copies, guided", f"{CIRCLE} {GUIDED}", DIRECTIONS),
    ("network that copies, guided, 11 steps", f"{CIRCLE} {GUIDED} --num_steps 11", DIRECTIONS),
    (
        "network that copies, embedded digits, independent",
        "--num_sets 100 --digits embedded",
        DIRECTIONS,
    ),
    (
        "network that copies, embedded digits, guided",
        f"--num_sets 100 --digits embedded {GUIDED}",
        DIRECTIONS,
    ),
    ("unconditional digits, independent", DIGITS, ["modes_found", "confidence"]),
    (
        "unconditional digits, independent, noise in the window",
        f"{DIGITS} --sampler window",
        ["modes_found", "confidence"],
    ),
    ("unconditional digits, guided", f"{DIGITS} {GUIDED}", ["modes_found", "confidence"]),
    (
        "unconditional digits, guided by pixels",
        f"{DIGITS} {GUIDED} --pg_features pixels",
        ["modes_found", "confidence"],
    ),
    (
        "unconditional digits, medoids of four times as many",
        f"{DIGITS} --medoids_of 4",
        ["modes_found", "confidence"],
    ),
    ("mixture, independent", MIXTURE, ["modes_found", "within_3_sd"]),
    ("mixture, guided", f"{MIXTURE} {GUIDED}", ["modes_found", "within_3_sd"]),
    ("horizontal, independent", HORIZONTAL, ["p_right", "count_variance_ratio"]),
    ("horizontal, guided", f"{HORIZONTAL} {GUIDED}", ["p_right", "count_variance_ratio"]),
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
    ("masks of four experts, exact, independent", f"{BLOBS} --denoiser exact", MASKS),
    ("masks, exact, guided", f"{BLOBS} --denoiser exact {GUIDED}", MASKS),
    ("masks, trained, independent", f"{BLOBS} --checkpoint blobs", MASKS),
    ("masks, trained, guided", f"{BLOBS} --checkpoint blobs {GUIDED}", MASKS),
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
