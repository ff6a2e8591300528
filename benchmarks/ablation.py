"""Each choice in the default changed alone, and its strength in every world.

    python benchmarks/ablation.py

Four parts: each choice changed alone, with three strengths, on the exact circle; pairs of choices
that may interact; the same for some of them on the plain U-Net, with the strength that was best on
the exact circle; strengths from 0.1 to 30 in every world. A finished cell is kept in --outdir.
Writes ablation.json, ablation.md and ablation.png there.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import measure

from diverse_sampling.defaults import FACTOR
from diverse_sampling.potentials import POTENTIALS, LogDet
from lab import assemble, experiments
from lab.names import METRICS

SEED = "--seed 60001"
EXACT = f"--denoiser exact --num_sets 200 --digits mnist {SEED}"
UNET = f"--checkpoint circle_jumping_unet --num_sets 24 --digits mnist {SEED}"
# The jitter of LogDet has no flag: kernels of one's own have one.
JITTERS = (2e-5, 2e-2, 2e-1)
POTENTIALS.update({f"logdet-{jitter:g}": partial(LogDet, jitter=jitter) for jitter in JITTERS})

# Each row of the first part: the choice, what it is instead, its flags with the measured window's
# {low} and {high} noise levels and its {noise}, and the strength that is tried between a fifth and
# five times as much. Where the unit is another, it is the one around which sets do best.
NO_WINDOW = "--sampler edm"
EDM_NOISE = "--sampler edm --s_churn 9.1 --s_min {low} --s_max {high}"
CHOICES: list[tuple[str, str, str, float]] = [
    ("default", "", "", FACTOR),
    ("window", "EDM's noise levels, without noise", NO_WINDOW, FACTOR),
    ("window", "EDM's noise levels, as much noise as EDM adds at most", EDM_NOISE, FACTOR),
    ("window", "EDM's noise levels, with the window's noise", "--sampler edm_noised", FACTOR),
    ("window", "twice as far up", "--window_max {high_2}", FACTOR),
    ("window", "half as far up", "--window_max {half_high}", FACTOR),
    ("window", "twice as far down", "--window_min {half_low}", FACTOR),
    ("window", "half as far down", "--window_min {low_2}", FACTOR),
    ("noise", "none", "--window_churn 0", FACTOR),
    ("noise", "a quarter", "--window_churn {quarter}", FACTOR),
    ("noise", "half", "--window_churn {half}", FACTOR),
    ("noise", "twice", "--window_churn {double}", FACTOR),
    ("fade", "pushes at all noise levels", "--pg_sigma_min 0.002 --pg_sigma_max 80", FACTOR),
    ("fade", "the last noised call is guided too", "--pg_sigma_min {below}", FACTOR),
    (
        "fade",
        "a cosine beside it that ends with the window",
        "--pg_anneal strength --pg_sigma_min {low} --pg_sigma_max {above}",
        FACTOR,
    ),
    ("fade", "none: a drift of the same size at all levels", "--pg_strength constant", 30.0),
    ("fade", "none: a drift that grows with the noise level", "--pg_strength sigma", 10.0),
    ("fade", "none: relative to the denoiser's drift", "--pg_strength drift", 3.0),
    ("kernel", "sum over pairs, Gaussian", "--pg_kernel rbf", FACTOR),
    ("kernel", "sum over pairs, of the unsquared distance", "--pg_kernel rbf_unsquared", FACTOR),
    ("kernel", "sum over pairs, inverse distance", "--pg_kernel inverse", FACTOR),
    ("kernel", "sum over pairs, IoU", "--pg_kernel iou", 50.0),
    ("space", "the noisy particles", "--pg_space x", 300.0),
    ("space", "through the Jacobian, its window", "--pg_space jacobian", 3.0),
    ("space", "by differences, its window", "--pg_space difference", 3.0),
    ("bandwidth", "a quarter", "--pg_bandwidth_value 0.5", FACTOR),
    ("bandwidth", "four times", "--pg_bandwidth_value 8", FACTOR),
    ("bandwidth", "proportional to the noise level", "--pg_bandwidth sigma", FACTOR),
    ("bandwidth", "constant, 100", "--pg_bandwidth fixed --pg_bandwidth_value 100", FACTOR),
    *(
        ("jitter", f"{jitter:g} in place of 0.002", f"--pg_kernel logdet-{jitter:g}", FACTOR)
        for jitter in JITTERS
    ),
]
TRIED = (0.2, 1.0, 5.0)
# Those of the first part that are run on the U-Net, by what they are instead.
ON_UNET = [
    "",
    "EDM's noise levels, without noise",
    "EDM's noise levels, as much noise as EDM adds at most",
    "half as far down",
    "twice as far down",
    "none",
    "twice",
    "the last noised call is guided too",
    "none: a drift that grows with the noise level",
    "sum over pairs, Gaussian",
    "the noisy particles",
    "four times",
]
# Pairs: {name: (rows {label: flags}, columns {label: flags})}, with the strength of the default or
# of the space.
KERNELS = ("logdet", "rbf", "inverse")
PAIRS: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "noise and calls": (
        {
            "no noise": "--window_churn 0",
            "half": "--window_churn {half}",
            "as measured": "",
            "twice": "--window_churn {double}",
        },
        {f"{calls} calls": f"--price {calls}" for calls in (9, 15, 21, 43, 86)},
    ),
    "window and noise": (
        {"without noise": "", "with noise": ""},
        {"EDM's noise levels": "edm", "the window": "window"},
    ),
    "kernel and space": (
        {name: f"--pg_kernel {name}" for name in KERNELS},
        {
            "D(x)": f"--pg_factor {FACTOR:g}",
            "the Jacobian": "--pg_space jacobian --pg_factor 3",
            "noisy particles": "--pg_space x --pg_factor 300",
        },
    ),
}
NOISE_OF = {  # of the pair "window and noise"
    ("without noise", "edm"): NO_WINDOW,
    ("with noise", "edm"): EDM_NOISE,
    ("without noise", "window"): "--window_churn 0",
    ("with noise", "window"): "",
}
FACTORS = (0.1, 0.3, 1, 3, 5, 10, 30)
DIGITS = f"--task unconditional --batch_size 10 --num_sets 16 --digits mnist {SEED}"
HALVES = f"--dataset halves --batch_size 10 --digits mnist {SEED}"
BLOBS = f"--dataset frames --frames examples/blobs.npz --batch_size 4 {SEED}"
MIXTURE = "--denoiser exact --dataset mixture --batch_size 10 --num_sets 200 --num_steps 30"
CLUSTERS = "--guidance classes --classifier clusters"
# Every world: its flags, its strength, and two keys of metrics.json: what sets show, and how good
# their samples are.
WORLDS: dict[str, tuple[str, str, tuple[str, str]]] = {
    "circle, exact": (EXACT, "pg_factor", ("modes_found", "hm_iou")),
    "circle, exact, p = 0.5": (f"{EXACT} --p 0.5", "pg_factor", ("modes_found", "frequency_tv")),
    "circle, plain U-Net": (UNET, "pg_factor", ("modes_found", "quality")),
    "circle, network that copies": (
        f"--num_sets 24 --digits mnist {SEED}",
        "pg_factor",
        ("modes_found", "quality"),
    ),
    "Gaussians in the plane": (
        f"{MIXTURE} {SEED}",
        "pg_factor",
        ("modes_found", "displacement"),
    ),
    "the same, through the Jacobian": (
        f"{MIXTURE} --pg_space jacobian {SEED}",
        "pg_factor",
        ("modes_found", "displacement"),
    ),
    "masks, exact": (
        f"{BLOBS} --denoiser exact --num_sets 200",
        "pg_factor",
        ("hm_iou", "mean_iou"),
    ),
    "masks, network": (
        f"{BLOBS} --checkpoint blobs --num_sets 40",
        "pg_factor",
        ("hm_iou", "mean_iou"),
    ),
    "digits, network": (DIGITS, "pg_factor", ("modes_found", "confidence")),
    "digits, network, by clusters": (
        f"{DIGITS} {CLUSTERS}",
        "class_factor",
        ("modes_found", "confidence"),
    ),
    "halves, exact": (
        f"{HALVES} --denoiser exact --num_sets 24",
        "pg_factor",
        ("coverage", "energy_score"),
    ),
    "halves, network": (f"{HALVES} --num_sets 16", "pg_factor", ("coverage", "energy_score")),
    "horizontal, exact": (
        "--denoiser exact --dataset horizontal --p 0.7 --batch_size 10 --num_sets 400 "
        f"--digits mnist {SEED}",
        "pg_factor",
        ("count_variance_ratio", "frequency_tv"),
    ),
}


@dataclass
class AblationSettings:
    """Ablation"""

    data_root: str = "data"
    """folder of torchvision's MNIST"""


class Runs:
    """Evaluations whose finished cells are kept."""

    def __init__(self, args: Any):
        self.args = args

    def __call__(self, flags: str) -> dict[str, Any]:
        """The record of an evaluation by its flags."""
        cell = assemble.parse([*flags.split(), "--data_root", self.args.data_root])
        print(flags, flush=True)
        return experiments.run_cell(*cell, self.args.outdir)

    def levels(self, flags: str) -> dict[str, float]:
        """The names in the flags of CHOICES: multiples of the measured window and noise."""
        low, high, noise = self(f"{flags} --pg_factor {FACTOR:g}")["window"]
        values = dict(low=low, half_low=low / 2, low_2=2 * low, below=0.99 * low)
        values |= dict(high=high, half_high=high / 2, high_2=2 * high, above=1.01 * high)
        return values | dict(quarter=noise / 4, half=noise / 2, double=2 * noise)


def brief(result: dict, keys: tuple[str, ...]) -> dict[str, Any]:
    """What is kept of a record: some of its numbers, without those of single sets."""
    kept = {key: result[key] for key in keys if result.get(key) is not None}
    return experiments.brief(kept) | dict(price=result["price"], num_sets=result["num_sets"])


KEYS = ("modes_found", "modes_shown", "quality", "hm_iou")


def changed_alone(run: Runs) -> list[dict]:
    """Each choice changed alone, on the exact circle with three strengths and, of some, on the
    plain U-Net with the best of them."""
    exact, unet = run.levels(EXACT), run.levels(UNET)
    rows = []
    for choice, instead, flags, strength in CHOICES:
        tried: dict[str, dict] = {}
        for times in TRIED:
            own = f"{EXACT} {flags.format(**exact)} --pg_factor {strength * times:g}"
            tried[f"{strength * times:g}"] = brief(run(own), KEYS)
        best = max(tried, key=lambda factor: tried[factor]["modes_found"]["mean"])
        row: dict[str, Any] = dict(choice=choice, instead=instead, exact=tried, best=best)
        if instead in ON_UNET:
            factor = best if instead else f"{FACTOR:g}"
            result = run(f"{UNET} {flags.format(**unet)} --pg_factor {factor}")
            row["unet"] = brief(result, KEYS) | dict(factor=factor)
        rows.append(row)
    return rows


def in_pairs(run: Runs) -> dict[str, list[dict]]:
    """Pairs of choices on the exact circle."""
    levels = run.levels(EXACT)
    pairs: dict[str, list[dict]] = {}
    for name, (rows, columns) in PAIRS.items():
        pairs[name] = []
        for row, row_flags in rows.items():
            for column, column_flags in columns.items():
                flags = NOISE_OF.get((row, column_flags), f"{row_flags} {column_flags}")
                if "--pg_factor" not in flags:
                    flags += f" --pg_factor {FACTOR:g}"
                result = brief(run(f"{EXACT} {flags.format(**levels)}"), KEYS)
                pairs[name].append(dict(row=row, column=column) | result)
    return pairs


def in_every_world(run: Runs) -> list[dict]:
    """Strengths in every world, and independent sets."""
    worlds = []
    for name, (flags, strength, keys) in WORLDS.items():
        independent = flags.replace(f" {CLUSTERS}", "").replace(" --pg_space jacobian", "")
        cells = {"0": brief(run(independent), keys)}
        for factor in FACTORS:
            cells[f"{factor:g}"] = brief(run(f"{flags} --{strength} {factor:g}"), keys)
        worlds.append(dict(world=name, flags=flags, strength=strength, keys=keys, cells=cells))
    return worlds


# ---------------------------------------------------------------- tables


def choices_table(rows: list[dict]) -> str:
    """Modes of the exact circle with three strengths, and of the plain U-Net with the best."""
    lines = []
    for row in rows:
        exact = [
            f"{cell['modes_found']['mean']:.2f} ({factor})" for factor, cell in row["exact"].items()
        ]
        unet = row.get("unet", {})
        quality = measure.number(unet.get("quality"))
        lines.append(
            [
                row["choice"],
                row["instead"],
                *exact,
                measure.number(unet.get("modes_found")),
                quality,
            ]
        )
    header = "choice | instead | exact, a fifth | exact, its strength | exact, five times"
    return measure.table(f"{header} | plain U-Net | its quality", lines)


def pair_table(cells: list[dict]) -> str:
    """Modes found by rows and columns."""
    columns = list(dict.fromkeys(cell["column"] for cell in cells))
    lines = [
        [row, *(measure.number(cell["modes_found"]) for cell in cells if cell["row"] == row)]
        for row in dict.fromkeys(cell["row"] for cell in cells)
    ]
    return measure.table(f" | {' | '.join(columns)}", lines)


def worlds_table(worlds: list[dict]) -> str:
    """Both numbers of every world over the strengths."""
    lines = []
    for world in worlds:
        for key in world["keys"]:
            numbers = []
            for cell in world["cells"].values():
                value = cell.get(key)
                value = value["mean"] if isinstance(value, dict) else value
                numbers.append("" if value is None else f"{value:.{METRICS[key].decimals}f}")
            title = METRICS[key].title
            lines.append([world["world"] if key == world["keys"][0] else "", title, *numbers])
    factors = " | ".join(f"{factor:g}" for factor in FACTORS)
    return measure.table(f"world | strength: | independent | {factors}", lines)


def main(argv: list[str] | None = None) -> None:
    from figures.charts import strengths
    from figures.drawing import save

    args = measure.arguments(AblationSettings, argv)
    run = Runs(args)
    worlds = in_every_world(run)
    choices, pairs = changed_alone(run), in_pairs(run)
    tables = dict(choices=choices_table(choices), worlds=worlds_table(worlds))
    tables |= {name: pair_table(cells) for name, cells in pairs.items()}
    text = "\n\n".join(f"**{name}**\n\n{table}" for name, table in tables.items())
    record = dict(choices=choices, pairs=pairs, worlds=worlds, tables=tables)
    measure.save(args.outdir, "ablation", text + "\n", record)
    save(strengths(worlds), args.outdir / "ablation.png")


if __name__ == "__main__":
    main()
