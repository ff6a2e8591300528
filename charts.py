"""Charts: pictures of numbers. `save` writes any figure of this room or of sheets.py."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Sequence

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.figure import Figure
from torch import Tensor

COLOURS = (
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#F0E442",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
    "#999999",
    "#882255",
    "#8B5FBF",
)


def save(figure: Figure | FuncAnimation, path: Path | str, dpi: int = 110) -> None:
    """Write a figure and close it, or an animation, of six frames a second. Raises OSError."""
    if isinstance(figure, FuncAnimation):
        return figure.save(path, writer=PillowWriter(fps=6), dpi=dpi)
    figure.savefig(path, dpi=dpi, bbox_inches="tight")
    plt.close(figure)


def _title(figure: Figure, title: str) -> None:
    """Above the titles of the columns, whatever the figure's height."""
    top = figure.subplotpars.top + 0.25 / figure.get_figheight()
    figure.suptitle(title, fontsize=10, y=top, va="bottom")


NAMES = dict(
    modes_found="modes found",
    quality="quality (L2, less is better)",
    confidence="classifier's confidence",
    hm_iou="HM IoU*",
    pg_factor="strength (pg_factor)",
    s_churn="churn",
    pg_kernel="kernel",
    rho=r"schedule exponent $\rho$",
    p="p(right) in training",
)


def _name(key: str) -> str:
    return NAMES.get(key, key)


def schedules(curves: dict[str, Tensor], densities: dict[str, tuple[float, float]]) -> Figure:
    """Where the sampler goes and where the training was, on one axis of noise levels: at the left the levels over
    the steps, name -> sigmas (N + 1,), the last one 0; at the right the densities of ln sigma in training,
    name -> (mean, standard deviation)."""
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(7.5, 3.6), sharey=True, width_ratios=(3, 1.5), gridspec_kw=dict(wspace=0.05)
    )
    for (name, sigmas), colour in zip(curves.items(), COLOURS):
        left.semilogy(
            range(len(sigmas) - 1), sigmas[:-1], "o-", ms=3, lw=1.2, color=colour, label=name
        )
    u = torch.linspace(math.log(0.002), math.log(80), 300)
    for (name, (mean, std)), colour in zip(densities.items(), COLOURS[4:]):
        right.semilogy(
            (-((u - mean) ** 2) / (2 * std**2)).exp() / (std * math.sqrt(2 * math.pi)),
            u.exp(),
            color=colour,
            label=name,
        )
    left.set_xlabel(r"step $n$ (then $\sigma = 0$)")
    left.set_ylabel(r"noise level $\sigma_n$")
    right.set_xlabel(r"density of $\ln \sigma$ in training")
    left.grid(alpha=0.3), right.grid(alpha=0.3)
    (
        left.legend(frameon=False, fontsize=8),
        right.legend(frameon=False, fontsize=7, loc="upper right"),
    )
    right.set_xlim(0, 0.6)
    return figure


def heatmap(
    rows: Sequence[dict],
    value: str = "modes_found",
    threshold: float | None = None,
    title: str = "",
) -> Figure:
    """A grid of cells, each with its value and the half-width of its 95% interval. The last axis of the experiment
    goes to the right, the one before up, the others over panels with common limits; an orange frame marks cells at
    `threshold` or better (quality: or lower). rows: {cell, result}, as `experiments.run` returns."""
    *over, up, right = dict.fromkeys(key for row in rows for key in row["cell"])
    panels = list(dict.fromkeys(tuple(row["cell"][key] for key in over) for row in rows))
    ups, rights = (list(dict.fromkeys(row["cell"][key] for row in rows)) for key in (up, right))
    means = [row["result"][value]["mean"] for row in rows]
    expected = rows[0]["result"]["modes_expected_iid"] if value == "modes_found" else None
    norm = plt.Normalize(min(means + [expected] * (expected is not None)), max(means))
    figure, axes = plt.subplots(
        1,
        len(panels),
        figsize=(0.62 * len(rights) * len(panels) + 1.6, 0.46 * len(ups) + 1.5),
        squeeze=False,
        sharey=True,
        gridspec_kw=dict(wspace=0.05),
    )
    less, digits = value == "quality", 2 if max(means) >= 1 else 3
    colours = plt.get_cmap("viridis_r" if less else "viridis")
    for axis, panel in zip(axes[0], panels):
        for row in rows:
            if tuple(row["cell"][key] for key in over) != panel:
                continue
            x, y, (mean, (low, high)) = (
                rights.index(row["cell"][right]),
                ups.index(row["cell"][up]),
                (row["result"][value][key] for key in ("mean", "ci95")),
            )
            colour = colours(norm(mean))
            axis.add_patch(plt.Rectangle((x - 0.5, y - 0.5), 1, 1, color=colour))
            dark = sum(c * w for c, w in zip(colour, (0.3, 0.59, 0.11))) < 0.5
            axis.text(
                x,
                y,
                f"{mean:.{digits}f}\n±{(high - low) / 2:.{digits}f}",
                ha="center",
                va="center",
                size=6.5,
                color="white" if dark else "black",
            )
            if threshold is not None and (mean <= threshold if less else mean >= threshold):
                axis.add_patch(
                    plt.Rectangle(
                        (x - 0.46, y - 0.44), 0.92, 0.88, fill=False, ec=COLOURS[5], lw=1.6
                    )
                )
        axis.set_xlim(-0.5, len(rights) - 0.5), axis.set_ylim(-0.5, len(ups) - 0.5)
        (
            axis.set_xticks(range(len(rights)), rights, fontsize=8),
            axis.set_yticks(range(len(ups)), ups, fontsize=8),
        )
        axis.set_xlabel(_name(right))
        axis.set_title(
            ", ".join(f"{_name(key)}: {label}" for key, label in zip(over, panel)), fontsize=9
        )
    axes[0, 0].set_ylabel(_name(up))
    bar = figure.colorbar(plt.cm.ScalarMappable(norm, colours), ax=axes, pad=0.015, fraction=0.05)
    total = rows[0]["result"]["modes_total"]
    bar.set_label(
        f"{_name(value)}, of {total}" if value == "modes_found" else _name(value), fontsize=9
    )
    if expected is not None:
        bar.ax.axhline(expected, color=COLOURS[5], lw=2)
        bar.ax.annotate(
            "i.i.d.",
            (0.5, expected),
            xytext=(0, 2),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=6.5,
            color=COLOURS[5],
        )
    _title(figure, title)
    return figure


def prior(rows: Sequence[dict], title: str = "") -> Figure:
    """How often samples go right against the prior of the training, with Wilson intervals, a series per sampler."""
    samplers = list(dict.fromkeys(row["cell"]["sampler"] for row in rows))
    figure, axis = plt.subplots(figsize=(5.6, 3.8))
    axis.plot([0.4, 1], [0.4, 1], color="#999999", lw=1, ls=":", label="right: p̂ = p")
    for index, (sampler, colour) in enumerate(zip(samplers, (COLOURS[4], COLOURS[2], COLOURS[5]))):
        mine = [
            row["result"]["mode_frequencies"][0]
            for row in rows
            if row["cell"]["sampler"] == sampler
        ]
        x = [value["prior"] + 0.006 * (index - 1) for value in mine]
        error = [[abs(value["mean"] - value["ci95"][end]) for value in mine] for end in (0, 1)]
        axis.errorbar(
            x,
            [value["mean"] for value in mine],
            yerr=error,
            fmt="osD"[index % 3],
            ms=5,
            color=colour,
            label=sampler,
            capsize=3,
            lw=1.2,
        )
        for at, value in zip(x, mine):
            axis.annotate(
                f"{value['mean']:.3f}",
                (at, value["mean"]),
                xytext=(6, (6, -11, 6)[index % 3]),
                textcoords="offset points",
                fontsize=7.5,
                color=colour,
            )
    axis.set_xlabel("p(right) in training"), axis.set_ylabel("share of samples that go right, p̂")
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, fontsize=8)
    _title(figure, title)
    return figure


def frontier(rows: Sequence[dict], title: str = "") -> Figure:
    """Modes found against quality on the trained denoiser, a curve per method over its strength."""
    mine = [row for row in rows if row["cell"].get("denoiser", "trained") == "trained"]
    figure, axis = plt.subplots(figsize=(7.2, 4.4))
    for index, method in enumerate(dict.fromkeys(row["cell"]["method"] for row in mine)):
        curve = sorted(
            (row for row in mine if row["cell"]["method"] == method),
            key=lambda row: [value for value in row["cell"].values() if isinstance(value, float)],
        )
        x = [row["result"]["quality"]["mean"] for row in curve]
        found = [row["result"]["modes_found"] for row in curve]
        axis.errorbar(
            x,
            [value["mean"] for value in found],
            yerr=[value["mean"] - value["ci95"][0] for value in found],
            marker="osD^vP"[index // 10 * 3 + index % 3],
            ms=5,
            lw=1.3,
            elinewidth=0.8,
            label=method,
            color=COLOURS[index % 10] if index < 10 else "#333333",
        )
    axis.axhline(expected := mine[0]["result"]["modes_expected_iid"], color="#888888", ls=":", lw=1)
    axis.annotate(
        "independent draws, theory",
        (0.99, expected),
        xycoords=("axes fraction", "data"),
        ha="right",
        va="top",
        fontsize=8,
        color="#666666",
    )
    axis.set_xscale("log")
    low, high = axis.get_xlim()
    ticks = [
        tick
        for tick in (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1, 2, 3, 5, 7, 10, 20)
        if low <= tick <= high
    ]
    axis.set_xticks(ticks, map(str, ticks))
    axis.minorticks_off()
    axis.set_xlabel("quality score (L2 to the translated digit, less is better)")
    axis.set_ylabel(f"modes found, of {mine[0]['result']['modes_total']}")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    _title(figure, title)
    return figure


def norms(traces: dict[str, dict[str, Tensor]], title: str = "") -> Figure:
    """Per step of the sampler, a column per trace: above, the norm of the set's distance matrix; below, the norms of
    each particle's two drifts, the denoiser's and the guidance's, on common axes.

    traces: name -> {sigmas (N,), distances (N, B, B), ode (N, B), guidance (N, B)}.
    """
    figure, axes = plt.subplots(
        2,
        len(traces),
        figsize=(3.6 * len(traces) + 0.6, 4.8),
        squeeze=False,
        sharex=True,
        sharey="row",
        gridspec_kw=dict(wspace=0.06, hspace=0.1),
    )
    for (top, below), (name, trace) in zip(axes.T, traces.items()):
        sigmas = trace["sigmas"]
        top.loglog(sigmas, trace["distances"].flatten(1).norm(dim=1), "o-", ms=3, color=COLOURS[4])
        for key, colour, label in (
            ("ode", "#888888", "(x - D) / σ"),
            ("guidance", COLOURS[5], "guidance"),
        ):
            acts = trace[key].sum(1) > 0
            for b, line in enumerate(trace[key][acts].T):
                below.loglog(
                    sigmas[acts],
                    line,
                    ".-",
                    color=colour,
                    lw=0.8,
                    ms=3,
                    label=label if b == 0 else None,
                )
        top.set_title(name, fontsize=9)
        below.set_xlabel(r"noise level $\sigma$")
        top.grid(alpha=0.3), below.grid(alpha=0.3)
    axes[0, 0].invert_xaxis()
    axes[0, 0].set_ylabel("norm of distances")
    axes[1, 0].set_ylabel("norm of drift, each particle")
    axes[1, -1].legend(frameon=False, fontsize=8)
    _title(figure, title)
    return figure


def umap_sheet(
    digits: Tensor,
    labels: Tensor,
    particles: Tensor,
    found: Tensor,
    names: Sequence[str],
    title: str = "",
) -> Figure:
    """A panel per set: its particles, coloured by the digit found in them, over a map of real digits.
    digits (M, 2), labels (M,) int64; particles (G, B, 2) and found (G, B)."""
    columns = min(4, len(particles))
    rows = -(-len(particles) // columns)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(2.7 * columns, 3.0 * rows),
        squeeze=False,
        gridspec_kw=dict(wspace=0.04, hspace=0.2),
    )
    for axis in axes.flat[len(particles) :]:
        axis.axis("off")
    for axis, points, modes, name in zip(axes.flat, particles, found, names):
        for digit in range(10):
            mine = digits[labels == digit]
            axis.scatter(*mine.T, s=1.5, color=COLOURS[digit], alpha=0.35, linewidth=0)
            middle = mine.median(0).values
            axis.text(*middle, str(digit), fontsize=10, ha="center", va="center", color="#333333")
        axis.scatter(
            *points.T, s=55, c=[COLOURS[int(mode)] for mode in modes], edgecolor="black", zorder=3
        )
        axis.set_title(name, fontsize=9)
        axis.set_xticks([]), axis.set_yticks([])
    axes[-1, 0].set_xlabel("UMAP 1", fontsize=8), axes[-1, 0].set_ylabel("UMAP 2", fontsize=8)
    _title(figure, title)
    return figure
