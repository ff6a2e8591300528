"""The published figures, each measured by the command beside it.

    python benchmarks/figures.py

A finished figure is kept in --outdir and not measured again. Writes figures.json and figures.md
there.
"""

from __future__ import annotations

from dataclasses import dataclass

import measure

from lab import assemble
from lab.experiments import run_cell
from lab.names import METRICS

CIRCLE = "--num_sets 200 --digits mnist"
EXACT = f"{CIRCLE} --denoiser exact"
UNET = "--num_sets 100 --digits mnist --checkpoint circle_jumping_unet"
HORIZONTAL = (
    "--denoiser exact --dataset horizontal --p 0.7 --batch_size 10 --num_sets 1000 --digits mnist"
)
BLOBS = "--dataset frames --frames examples/blobs.npz --batch_size 4 --num_sets 200"
DIGITS = "--task unconditional --batch_size 10 --num_sets 40 --digits mnist"
REAL = f"{DIGITS} --denoiser exact"
HALVES = "--dataset halves --batch_size 10 --num_sets 40 --digits mnist"
HALVES_EXACT = f"{HALVES} --denoiser exact"
CLASSES = "--guidance classes"
CLUSTERS = f"{CLASSES} --classifier clusters"
MIXTURE = "--denoiser exact --dataset mixture --batch_size 10 --num_sets 200 --num_steps 30"
PAIRS = "--denoiser exact --num_digits 2 --num_sets 64 --digits mnist"
GUIDED = "--pg_factor 5"  # in every world
GUIDED_EXACT = f"{EXACT} {GUIDED}"
GUIDED_UNET = f"{UNET} {GUIDED}"
JACOBIAN = "--pg_space jacobian --pg_factor 3"
DIFFERENCE = "--pg_space difference --pg_factor 3"
POOL = "--pool 5 --price 30"
COPYING = "--num_sets 100 --digits mnist"
EMBEDDED = "--num_sets 100 --digits embedded"
# Keys of metrics.json.
MODES = ["modes_found"]
MODES_AND_IOU = ["modes_found", "hm_iou"]
DIRECTIONS = ["modes_found", "quality", "hm_iou"]
RECOGNISED = ["modes_found", "confidence", "agreement"]
COMPOSED = ["composition_met", "shares_error", "confidence"]
LIKELY = ["coverage", "frequency_tv", "energy_score", "ged", "nearest_in_class"]
IN_PLANE = ["modes_found", "displacement", "spread_inside"]
SHARES = ["p_right", "count_variance_ratio"]
MASKS = ["hm_iou", "ged", "mean_iou"]
# What is measured, the flags of evaluate.py, the keys that are shown.
FIGURES = [
    ("exact, independent", EXACT, MODES),
    ("exact, guided", GUIDED_EXACT, MODES_AND_IOU),
    ("exact, guided, 21 calls", f"{GUIDED_EXACT} --price 21", MODES_AND_IOU),
    ("exact, guided, 15 calls", f"{GUIDED_EXACT} --price 15", MODES_AND_IOU),
    ("exact, guided, 9 calls", f"{GUIDED_EXACT} --price 9", MODES_AND_IOU),
    ("exact, guided through the Jacobian", f"{EXACT} {JACOBIAN}", MODES_AND_IOU),
    ("exact, guided by differences", f"{EXACT} {DIFFERENCE}", MODES_AND_IOU),
    ("exact, guided with EDM's sampler", f"{GUIDED_EXACT} --sampler edm", MODES_AND_IOU),
    ("exact, pool of five times as many, 30 calls", f"{EXACT} {POOL}", MODES_AND_IOU),
    ("exact, guided, one direction has p = 0.5", f"{GUIDED_EXACT} --p 0.5", MODES),
    ("the same, 21 calls", f"{GUIDED_EXACT} --p 0.5 --price 21", MODES),
    ("the same, a pool of five times as many, 30 calls", f"{EXACT} --p 0.5 {POOL}", MODES),
    ("exact, guided, sets of 16, 15 calls", f"{GUIDED_EXACT} --batch_size 16 --price 15", MODES),
    (
        "exact, guided, 4 directions, 15 calls",
        f"{GUIDED_EXACT} --num_directions 4 --batch_size 4 --price 15",
        MODES,
    ),
    (
        "exact, guided, 2 directions, 15 calls",
        f"{GUIDED_EXACT} --num_directions 2 --batch_size 2 --price 15",
        MODES,
    ),
    ("exact, two sequential sets of 4", f"{GUIDED_EXACT} --batch_size 4 --sequential 2", MODES),
    ("exact, 64 modes, independent", f"{PAIRS} --batch_size 64", MODES),
    ("exact, 64 modes, guided", f"{PAIRS} --batch_size 64 {GUIDED}", MODES),
    ("plain U-Net, independent", UNET, DIRECTIONS),
    ("plain U-Net, independent, 21 calls", f"{UNET} --price 21", DIRECTIONS),
    ("plain U-Net, independent, 9 calls", f"{UNET} --price 9", DIRECTIONS),
    ("plain U-Net, guided", GUIDED_UNET, DIRECTIONS),
    ("plain U-Net, guided, 21 calls", f"{GUIDED_UNET} --price 21", DIRECTIONS),
    ("plain U-Net, guided, 15 calls", f"{GUIDED_UNET} --price 15", DIRECTIONS),
    ("plain U-Net, guided, 9 calls", f"{GUIDED_UNET} --price 9", DIRECTIONS),
    ("plain U-Net, guided through the Jacobian", f"{UNET} {JACOBIAN}", DIRECTIONS),
    ("plain U-Net, pool of five times as many, 30 calls", f"{UNET} {POOL}", DIRECTIONS),
    ("network that copies, independent", COPYING, DIRECTIONS),
    ("network that copies, guided", f"{COPYING} {GUIDED}", DIRECTIONS),
    ("network that copies, guided, 21 calls", f"{COPYING} {GUIDED} --price 21", DIRECTIONS),
    ("network that copies, embedded digits, independent", EMBEDDED, DIRECTIONS),
    ("network that copies, embedded digits, guided", f"{EMBEDDED} {GUIDED}", DIRECTIONS),
    ("unconditional digits, independent", DIGITS, RECOGNISED),
    (
        "unconditional digits, independent, noise in the window",
        f"{DIGITS} --sampler window",
        RECOGNISED,
    ),
    ("unconditional digits, guided", f"{DIGITS} {GUIDED}", RECOGNISED),
    ("unconditional digits, guided through the Jacobian", f"{DIGITS} {JACOBIAN}", RECOGNISED),
    ("unconditional digits, medoids of four times as many", f"{DIGITS} --medoids_of 4", RECOGNISED),
    ("unconditional digits, by clusters (no labels)", f"{DIGITS} {CLUSTERS}", RECOGNISED),
    ("unconditional digits, by classes", f"{DIGITS} {CLASSES}", RECOGNISED),
    ("unconditional digits, by classes, 21 calls", f"{DIGITS} {CLASSES} --price 21", RECOGNISED),
    ("unconditional digits, by classes, 11 calls", f"{DIGITS} {CLASSES} --price 11", RECOGNISED),
    (
        "unconditional digits, a class for each by itself (control)",
        f"{DIGITS} {CLASSES} --classes independent",
        RECOGNISED,
    ),
    ("five 3s and five 8s", f"{DIGITS} {CLASSES} --classes 3:5,8:5", COMPOSED),
    (
        "one 0, one 1, two 2s, six 7s",
        f"{DIGITS} {CLASSES} --classes 0:1,1:1,2:2,7:6",
        COMPOSED,
    ),
    ("70% 3s, 30% 8s", f"{DIGITS} {CLASSES} --classes 3:70%,8:30%", COMPOSED),
    ("real digits, exact, independent", REAL, RECOGNISED),
    ("real digits, exact, guided", f"{REAL} {GUIDED}", RECOGNISED),
    ("real digits, exact, by clusters (no labels)", f"{REAL} {CLUSTERS}", RECOGNISED),
    ("real digits, exact, by classes", f"{REAL} {CLASSES}", RECOGNISED),
    ("real digits, exact, the optimum", f"{REAL} --guidance joint", RECOGNISED),
    ("halves, exact, independent", HALVES_EXACT, LIKELY),
    ("halves, exact, guided", f"{HALVES_EXACT} {GUIDED}", LIKELY),
    ("halves, exact, by classes", f"{HALVES_EXACT} {CLASSES}", LIKELY),
    ("halves, exact, the optimum", f"{HALVES_EXACT} --guidance joint", LIKELY),
    ("halves, network, independent", HALVES, LIKELY),
    ("halves, network, guided", f"{HALVES} {GUIDED}", LIKELY),
    ("halves, network, by classes", f"{HALVES} {CLASSES}", LIKELY),
    ("plain U-Net, by directions that are known", f"{UNET} {CLASSES}", DIRECTIONS),
    ("the same, 15 calls", f"{UNET} {CLASSES} --price 15", DIRECTIONS),
    ("the same, 9 calls", f"{UNET} {CLASSES} --price 9", DIRECTIONS),
    (
        "exact, 64 modes, the optimum, 15 calls",
        f"{PAIRS} --batch_size 64 --guidance joint --num_steps 8",
        MODES,
    ),
    ("mixture, independent", MIXTURE, IN_PLANE),
    ("mixture, guided", f"{MIXTURE} {GUIDED}", IN_PLANE),
    ("mixture, guided through the Jacobian", f"{MIXTURE} {JACOBIAN}", IN_PLANE),
    ("horizontal, independent", HORIZONTAL, SHARES),
    ("horizontal, guided", f"{HORIZONTAL} {GUIDED}", SHARES),
    ("horizontal, simplex noise", f"{HORIZONTAL} --noise simplex", SHARES),
    ("horizontal, stratified noise", f"{HORIZONTAL} --noise stratified --sigma_max 300", SHARES),
    ("masks, exact, independent", f"{BLOBS} --denoiser exact", MASKS),
    ("masks, exact, guided", f"{BLOBS} --denoiser exact {GUIDED}", MASKS),
    ("masks, trained, independent", f"{BLOBS} --checkpoint blobs", MASKS),
    ("masks, trained, guided", f"{BLOBS} --checkpoint blobs {GUIDED} --price 37", MASKS),
]


@dataclass
class FigureSettings:
    """Figures"""

    data_root: str = "data"
    """folder of torchvision's MNIST"""


def show(key: str, result: dict) -> str:
    """One number with its interval."""
    value = result["mode_frequencies"][0] if key == "p_right" else result[key]
    name = METRICS[key].title + (f" of {result['modes_total']}" if key == "modes_found" else "")
    return f"{name}: {measure.number(value)}"


def main(argv: list[str] | None = None) -> None:
    args = measure.arguments(FigureSettings, argv)
    rows, lines = [], []
    for name, flags, keys in FIGURES:
        cell = assemble.parse([*flags.split(), "--data_root", args.data_root])
        result = run_cell(*cell, args.outdir)
        measured = [show(key, result) for key in keys]
        expected = f"{result['modes_expected_iid']:.2f}" if "modes_found" in keys else ""
        rows.append(
            dict(
                name=name,
                flags=flags,
                expected_iid=expected,
                measured=measured,
                price=result["price"],
                seconds=result["seconds"],
            )
        )
        lines.append([name, "<br>".join(measured), expected, f"`{flags}`"])
        print(f"{name:45} {', '.join(measured)}", flush=True)
    header = "what | measured | independent draws, theory | `python evaluate.py ...`"
    measure.save(args.outdir, "figures", measure.table(header, lines) + "\n", dict(rows=rows))


if __name__ == "__main__":
    main()
