"""Every guidance on one model, the same test digits and the same noise: what it finds, at what cost.

    python benchmarks/guidance.py                      # 200 digits, exact and trained: hours on two cores
    python benchmarks/guidance.py --num_sets 40        # a first look

Each cell is one evaluate.py run; a finished cell is kept in --outdir and never run again.
Writes guidance.json, guidance.md and guidance.png there.
"""
from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import List, Literal

sys.path.insert(0, str(Path(__file__).parent.parent))

from jsonargparse.typing import PositiveInt  # noqa: E402

from cells import run_cell  # noqa: E402
from config import make_parser  # noqa: E402

# Method -> (flags, the flag that sets its strength, its values; the first cell of each is what the table shows).
METHODS: dict[str, tuple[list[str], str | None, list[float]]] = {
    "independent": ([], None, []),
    "particle guidance": ([], "pg_factor", [1.7, 0.6, 1.0, 3.0]),
    "  without redraws": (["--redraws", "0"], "pg_factor", [1.7, 0.6, 1.0, 3.0]),
    "  in D space, no redraws": (["--pg_space", "denoised", "--redraws", "0"], "pg_factor", [1.7, 0.6, 3.0]),
    "  rbf, no redraws": (["--pg_kernel", "rbf", "--redraws", "0"], "pg_factor", [1.7, 5.0]),
    "  iou, no redraws": (["--pg_kernel", "iou", "--redraws", "0"], "pg_factor", [1.7, 5.0]),
    "SPELL": (["--guidance", "spell"], "spell_radius", [10.0, 7.0, 14.0]),
    "CADS": (["--guidance", "cads"], "cads_scale", [0.25, 0.1, 0.5]),
    "K-medoids of 4 x 8": (["--guidance", "kmedoids"], None, []),
    "reference's form": (["--guidance", "reference"], "pg_factor", [1.0, 3.0, 10.0]),
    "simplex noise": (["--noise", "simplex"], None, []),
    "antithetic noise": (["--noise", "antithetic"], None, []),
}


@dataclass
class BenchmarkSettings:
    """Benchmark"""

    num_sets: PositiveInt = 200
    """test digits"""
    denoisers: List[Literal["exact", "trained"]] = ("exact", "trained")
    """on which denoisers"""
    data_root: str = "data"
    """folder of torchvision's MNIST"""
    outdir: str = "runs/benchmark-guidance"
    """folder for cells and results"""


def cells(num_sets: int, denoiser: str):
    """(method, strength, argv) of every cell; CADS needs a network."""
    for method, (flags, key, values) in METHODS.items():
        if method == "CADS" and denoiser == "exact":
            continue
        for value in values or [None]:
            strength = [] if value is None else [f"--{key}", str(value)]
            yield method, value, ["--denoiser", denoiser, "--num_sets", str(num_sets), *flags, *strength]


def summary(method: str, strength: float | None, result: dict) -> dict:
    keys = ("modes_found", "quality", "hm_iou", "ged")
    return dict(method=method, strength=strength, denoiser=result["settings"]["denoiser"],
                num_sets=result["num_sets"], digits=result["digits_source"], device=result["device"],
                **{key: {k: result[key][k] for k in ("mean", "ci95")} for key in keys},
                expected_iid=result["modes_expected_iid"], network_calls=result["network_calls"],
                backward_calls=result["backward_calls"], seconds=result["seconds"])


def markdown(rows: list[dict]) -> str:
    """One table per denoiser, the first strength of every method."""
    def value(row: dict, key: str, digits: int) -> str:
        mean, (low, _) = row[key]["mean"], row[key]["ci95"]
        return f"{mean:.{digits}f} ± {mean - low:.{digits}f}"

    lines = []
    header = ["method", "strength", "directions of 8", "quality", "HM IoU*", "GED", "network calls", "backward",
              "seconds"]
    for denoiser in dict.fromkeys(row["denoiser"] for row in rows):
        mine = [row for row in rows if row["denoiser"] == denoiser]
        first = {row["method"]: row for row in reversed(mine)}
        what = "{num_sets} {digits} test digits, sets of 8, 8 directions, 22 steps, {device}".format(**mine[0])
        lines += [f"**{denoiser.capitalize()} denoiser**, {what}; independent draws find "
                  f"{mine[0]['expected_iid']:.2f} in theory.",
                  "", "| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
        for method in dict.fromkeys(row["method"] for row in mine):
            row = first[method]
            lines.append("| " + " | ".join([
                method.replace("  ", "&nbsp;&nbsp;"), str(row["strength"] or ""), value(row, "modes_found", 2),
                value(row, "quality", 2), value(row, "hm_iou", 3), value(row, "ged", 3), f"{row['network_calls']:.1f}",
                f"{row['backward_calls']:.1f}", f"{row['seconds']:.0f}"]) + " |")
        lines.append("")
    return "\n".join(lines)


def figure(rows: list[dict]):
    """Directions found against quality on the trained denoiser, a curve per method over its strength."""
    import figures

    plt = figures.plt
    mine = [row for row in rows if row["denoiser"] == "trained"]
    picture, axis = plt.subplots(figsize=(7.2, 4.4))
    for index, method in enumerate(dict.fromkeys(row["method"] for row in mine)):
        curve = sorted((row for row in mine if row["method"] == method), key=lambda row: row["strength"] or 0)
        x, y = ([row[key]["mean"] for row in curve] for key in ("quality", "modes_found"))
        error = [row["modes_found"]["mean"] - row["modes_found"]["ci95"][0] for row in curve]
        axis.errorbar(x, y, yerr=error, marker="osD^vP"[index // 10 * 3 + index % 3], ms=5, lw=1.3, elinewidth=0.8,
                      color=figures.COLOURS[index % 10] if index < 10 else "#333333", label=method.strip())
    axis.axhline(expected := mine[0]["expected_iid"], color="#888888", ls=":", lw=1)
    axis.annotate("independent draws, theory", (0.01, expected), xycoords=("axes fraction", "data"),
                  ha="left", va="top", fontsize=8, color="#666666")
    axis.set_xscale("log")
    axis.set_xticks(ticks := [0.5, 0.7, 1, 2, 3, 5, 7, 10, 20], map(str, ticks))
    axis.minorticks_off()
    axis.set_xlim(0.5, 20)
    axis.set_xlabel("quality score (L2 to the translated digit, less is better)")
    axis.set_ylabel("directions found, of 8")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return picture


def main(argv: list[str] | None = None) -> None:
    args = make_parser(BenchmarkSettings, description=__doc__.split("\n")[0]).parse_args(argv)
    outdir = Path(args.outdir)
    outdir.mkdir(parents=True, exist_ok=True)
    rows = []
    for denoiser in args.denoisers:
        for method, strength, flags in cells(args.num_sets, denoiser):
            result = run_cell([*flags, "--data_root", args.data_root], outdir)
            rows.append(summary(method, strength, result))
            print(f"{denoiser:8} {method:20} {strength or '':>6}  modes {result['modes_found']['mean']:.2f}  "
                  f"quality {result['quality']['mean']:.2f}  calls {result['network_calls']:.1f}", flush=True)
    (outdir / "guidance.json").write_text(json.dumps(rows, indent=1))
    (outdir / "guidance.md").write_text(markdown(rows))
    if "trained" in args.denoisers:
        import figures

        figures.save(figure(rows), outdir / "guidance.png")
    print(f"written to {outdir}")


if __name__ == "__main__":
    main()
