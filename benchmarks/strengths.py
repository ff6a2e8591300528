"""The default strength of every method, each found with the same number of tries.

    python benchmarks/strengths.py                   # 60 exact and 12 trained sets a cell
    python benchmarks/strengths.py --preset full     # 200 of both

This is experiment e13 (configs/experiments/e13.yaml): equal priors, eight particles and 43 network
calls, on the exact denoiser and on a network that copies the digit's pixels. A finished cell stays
in --outdir. Of the strengths of a method, the one is chosen that finds most modes, summed over both
denoisers, among those whose quality is no worse than that of independent samples; of equals the
weakest. Writes strengths.json, strengths.md and strengths.png there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import measure

from lab import experiments

# How much worse the mean quality may be than that of independent samples, in L2 distance of images.
TOLERANCE = 0.05


@dataclass
class BenchmarkSettings:
    """Benchmark"""

    preset: Literal["quick", "full"] = "quick"
    """number of sets in each cell"""
    data_root: str = "data"
    """folder of torchvision's MNIST"""


def by_method(rows: list[dict[str, Any]]) -> dict[str, dict[float, dict[str, dict]]]:
    """{method: {strength: {denoiser: result}}}; independent sampling has the strength 0."""
    found: dict[str, dict[float, dict[str, dict]]] = {}
    for row in rows:
        cell = row["cell"]
        strength = next((v for v in cell.values() if isinstance(v, (int, float))), 0.0)
        at = found.setdefault(cell["method"], {}).setdefault(strength, {})
        at[cell["denoiser"]] = row["result"]
    return found


def chosen(tried: dict[float, dict[str, dict]], independent: dict[str, dict]) -> float | None:
    """The strength of a method with most modes at no worse quality; None where there is none.

    Arguments:
        tried: {strength: {denoiser: result}}
        independent: {denoiser: result}
    """

    def good(results: dict[str, dict]) -> bool:
        return all(
            result["quality"]["mean"] <= independent[denoiser]["quality"]["mean"] + TOLERANCE
            for denoiser, result in results.items()
        )

    def modes(strength: float) -> tuple[float, float]:
        results = tried[strength].values()
        return sum(result["modes_found"]["mean"] for result in results), -strength

    allowed = [strength for strength, results in tried.items() if good(results)]
    return max(allowed, key=modes) if allowed else None


def choices(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """{method: {tried: its strengths, chosen: one of them or None}}"""
    methods = by_method(rows)
    independent = methods.pop("independent")[0.0]
    return {
        method: dict(tried=sorted(tried), chosen=chosen(tried, independent))
        for method, tried in methods.items()
    }


def markdown(rows: list[dict[str, Any]]) -> str:
    """A line per method: what was tried, what was chosen, and what it finds on each denoiser."""
    methods = by_method(rows)
    independent = methods["independent"][0.0]
    lines = []
    for method, tried in methods.items():
        strength = chosen(tried, independent)
        entry = [method, str(len(tried)), f"{min(tried):g} to {max(tried):g}"]
        if method == "independent":
            entry = [method, "", ""]
        entry.append("none" if strength is None else f"{strength:g}" if strength else "")
        for denoiser in independent:
            result = tried[strength].get(denoiser) if strength is not None else None
            for key in ("modes_found", "quality"):
                entry.append(experiments.interval(result and result[key]))
        lines.append(entry)
    columns = "".join(f" | {name}: modes | {name}: quality" for name in independent)
    table = measure.table(f"method | tried | from | chosen{columns}", lines)
    sets = ", ".join(f"{result['num_sets']} {name}" for name, result in independent.items())
    return f"{table}\n\nSets of 8 in each cell: {sets}."


def main(argv: list[str] | None = None) -> None:
    args = measure.arguments(BenchmarkSettings, argv)
    shared = dict(data_root=args.data_root)
    rows = measure.experiment("e13", "strengths", args.preset, args.outdir, **shared)
    measure.save(args.outdir, "strengths", markdown(rows), dict(methods=choices(rows)))


if __name__ == "__main__":
    main()
