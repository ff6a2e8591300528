"""Charts: pictures of numbers.

Functions take tensors or the rows of an experiment, {cell: its place on every axis, result: its
metrics.json}, and return matplotlib figures. They read and write no files; `drawing.save` writes.
An interval that a single set cannot have (`ci95` is None) is left out, and the figure says so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Callable, Sequence

import torch
from torch import Tensor

from drawing import (
    Axes,
    BLUE,
    COLOURS,
    GREEN,
    GREY,
    ORANGE,
    SKY,
    VERMILION,
    Figure,
    add_title,
    grid_of_axes,
    new_figure,
)
from metrics import BACKWARD, expected_modes_iid
from names import AXES, METRICS

NO_INTERVAL = "no interval: a single set, or values that are not finite"
LINES = (BLUE, VERMILION, GREEN, ORANGE, SKY, *COLOURS[6:])  # of lines beside each other
QUALITY_TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1, 2, 3, 5, 7, 10, 20)
COST_TICKS = (10, 20, 40, 80, 160, 320)


def axis_name(key: str) -> str:
    """What an axis of an experiment is called; one without another name goes by its key."""
    return AXES.get(key, key)


def different(values: Any) -> list:
    """Each value once, in the order of their first appearance."""
    return list(dict.fromkeys(values))


def error_bars(metrics: Sequence[dict]) -> tuple[list[float], list[float]] | None:
    """Lengths of 95% intervals below and above their means, as `Axes.errorbar` takes them.

    Metrics are {mean, ci95}. Where one has no interval its lengths are NaN, which draws no bar; the
    result is None if none has one.
    """
    if all(metric.get("ci95") is None for metric in metrics):
        return None
    below = []
    above = []
    for metric in metrics:
        low, high = metric.get("ci95") or (math.nan, math.nan)
        # Wilson's interval and rounding may leave a mean just outside of its own interval.
        below.append(max(metric["mean"] - low, 0) if low == low else math.nan)
        above.append(max(high - metric["mean"], 0) if high == high else math.nan)
    return below, above


def with_note_on_intervals(title: str, metrics: Sequence[dict]) -> str:
    """The title, with a note if some of the metrics have no interval."""
    if all(metric.get("ci95") is not None for metric in metrics):
        return title
    return f"{title} ({NO_INTERVAL})" if title else NO_INTERVAL


def schedules(curves: dict[str, Tensor], densities: dict[str, tuple[float, float]]) -> Figure:
    """Noise levels of the sampler and of the training on one vertical axis.

    Arguments:
        curves: at the left, the levels over the steps: name -> sigmas (N + 1,), the last one 0
        densities: at the right, the densities of ln sigma in training: name -> (mean, standard
            deviation)
    """
    figure, axes = grid_of_axes(
        1, 2, 7.5, 3.6, sharey=True, width_ratios=(3, 1.5), gridspec_kw=dict(wspace=0.05)
    )
    left, right = axes[0]
    for (name, sigmas), colour in zip(curves.items(), COLOURS):
        steps = range(len(sigmas) - 1)
        left.semilogy(steps, sigmas[:-1], "o-", ms=3, lw=1.2, color=colour, label=name)
    u = torch.linspace(math.log(0.002), math.log(80), 300)
    for (name, (mean, std)), colour in zip(densities.items(), COLOURS[4:]):
        density = (-((u - mean) ** 2) / (2 * std**2)).exp() / (std * math.sqrt(2 * math.pi))
        right.semilogy(density, u.exp(), color=colour, label=name)
    left.set_xlabel(r"step $n$ (then $\sigma = 0$)")
    left.set_ylabel(r"noise level $\sigma_n$")
    left.legend(frameon=False, fontsize=8)
    left.grid(alpha=0.3)
    right.set_xlabel(r"density of $\ln \sigma$ in training")
    right.set_xlim(left=0)
    right.legend(frameon=False, fontsize=7, loc="upper right")
    right.grid(alpha=0.3)
    return figure


def heatmap(
    rows: Sequence[dict],
    value: str = "modes_found",
    threshold: float | None = None,
    title: str = "",
) -> Figure:
    """A grid of cells, each with its value and half the width of its 95% interval.

    The last axis of the experiment goes to the right, the one before it up, the others over panels
    with common limits.

    Arguments:
        rows: the cells, {cell, result}
        value: the key of the metric to show
        threshold: a frame marks the cells that are this good or better, in the unit of `value`
    """
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.patches import Rectangle

    metric = METRICS[value]
    *over, up, right = different(key for row in rows for key in row["cell"])
    panels = different(tuple(row["cell"][key] for key in over) for row in rows)
    ups = different(row["cell"][up] for row in rows)
    rights = different(row["cell"][right] for row in rows)
    measured = [row["result"][value] for row in rows]
    means = [one["mean"] for one in measured]
    expected = rows[0]["result"]["modes_expected_iid"] if value == "modes_found" else None

    shown = means if expected is None else [*means, expected]
    finite = [number for number in shown if math.isfinite(number)] or [0.0]
    norm = Normalize(min(finite), max(finite))
    colours = colormaps["viridis_r" if metric.less_is_better else "viridis"]
    decimals = 2 if max(finite) >= 1 else 3
    figure, axes = grid_of_axes(
        1,
        len(panels),
        0.62 * len(rights) * len(panels) + 1.6,
        0.46 * len(ups) + 1.5,
        sharey=True,
        gridspec_kw=dict(wspace=0.05),
    )

    for row, one in zip(rows, measured):
        cell = row["cell"]
        axis = axes[0, panels.index(tuple(cell[key] for key in over))]
        x = rights.index(cell[right])
        y = ups.index(cell[up])
        mean = one["mean"]
        colour = colours(norm(mean))
        red, green, blue, _ = colour
        is_dark = 0.3 * red + 0.59 * green + 0.11 * blue < 0.5
        text = f"{mean:.{decimals}f}"
        if one.get("ci95") is not None:
            low, high = one["ci95"]
            text += f"\n±{(high - low) / 2:.{decimals}f}"
        axis.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, color=colour))
        axis.text(
            x, y, text, ha="center", va="center", size=6.5, color="white" if is_dark else "black"
        )
        if threshold is None:
            continue
        if mean <= threshold if metric.less_is_better else mean >= threshold:
            axis.add_patch(
                Rectangle((x - 0.46, y - 0.44), 0.92, 0.88, fill=False, ec=VERMILION, lw=1.6)
            )

    for axis, panel in zip(axes[0], panels):
        axis.set(xlim=(-0.5, len(rights) - 0.5), ylim=(-0.5, len(ups) - 0.5))
        axis.set_xticks(range(len(rights)), rights, fontsize=8)
        axis.set_yticks(range(len(ups)), ups, fontsize=8)
        axis.set_xlabel(axis_name(right))
        places = [f"{axis_name(key)}: {label}" for key, label in zip(over, panel)]
        axis.set_title(", ".join(places), fontsize=9)
    axes[0, 0].set_ylabel(axis_name(up))

    bar = figure.colorbar(ScalarMappable(norm, colours), ax=axes, pad=0.015, fraction=0.05)
    label = metric.label
    if expected is not None:
        label = f"{metric.title}, of {rows[0]['result']['modes_total']}"
        label += f"\n(line: independent draws, {expected:.2f})"
        bar.ax.axhline(expected, color=VERMILION, lw=3)
    bar.set_label(label, fontsize=9)
    if threshold is not None:
        relation = "at most" if metric.less_is_better else "at least"
        title = f"{title} (framed: {relation} {threshold:g})".strip()
    add_title(figure, with_note_on_intervals(title, measured))
    return figure


def prior(rows: Sequence[dict], title: str = "") -> Figure:
    """Share of samples that go right against the prior of the training, a series per sampler.

    The intervals are Wilson's.
    """
    samplers = different(row["cell"]["sampler"] for row in rows)
    figure = new_figure(5.6, 3.8)
    axis = figure.subplots()
    axis.plot([0.4, 1], [0.4, 1], color=GREY, lw=1, ls=":", label="the prior itself: p̂ = p")
    # Of the values from their points, in points; to the right of them where x is positive.
    offsets = ((-7, 5), (-4, -13), (7, 5), (7, -8))
    colours = (BLUE, GREEN, VERMILION, ORANGE)
    for index, sampler in enumerate(samplers):
        shares = [
            row["result"]["mode_frequencies"][0]
            for row in rows
            if row["cell"]["sampler"] == sampler
        ]
        means = [share["mean"] for share in shares]
        x = [share["prior"] + 0.006 * (index - 1) for share in shares]  # side by side
        colour = colours[index % len(colours)]
        axis.errorbar(
            x,
            means,
            yerr=error_bars(shares),
            fmt="osD^"[index % len(colours)],
            ms=5,
            color=colour,
            label=sampler,
            capsize=3,
            lw=1.2,
        )
        for at, mean in zip(x, means):
            axis.annotate(
                f"{mean:.3f}",
                (at, mean),
                xytext=offsets[index % len(offsets)],
                textcoords="offset points",
                ha="left" if offsets[index % len(offsets)][0] > 0 else "right",
                fontsize=7.5,
                color=colour,
            )
    axis.set_xlabel(axis_name("p"))
    axis.set_ylabel("share of samples that go right, p̂")
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, fontsize=8)
    add_title(figure, title)
    return figure


MARKERS = "osD^vP<>X"  # with COLOURS, different for thirty methods


def frontier(rows: Sequence[dict], title: str = "") -> Figure:
    """Modes found against quality and against cost on the trained denoiser, a curve per method.

    A third panel has modes against how far frequencies are off, on the exact denoiser of a world
    with unequal priors, where rows hold one. The cost of a particle is in forward passes of the
    network, as `metrics.cost_metrics` counts.
    """
    trained = [row for row in rows if row["cell"].get("denoiser", "trained") == "trained"]
    unequal = [row for row in rows if row["cell"].get("denoiser") == "exact, p = 0.5"]

    def cost(result: dict) -> float:
        return result["network_calls"] + BACKWARD * result["backward_calls"]

    panels: list[tuple[str, list[dict], Callable[[dict], float]]] = [
        (
            "quality score (L2, less is better)",
            trained,
            lambda result: result["quality"]["mean"],
        ),
        ("cost per particle, in forward passes", trained, cost),
    ]
    if unequal:
        across = "frequencies off by (total variation)"
        panels.append((across, unequal, lambda result: result["frequency_tv"]))
    figure, (axes,) = grid_of_axes(
        1, len(panels), 3.9 * len(panels), 4.6, sharey=True, gridspec_kw=dict(wspace=0.06)
    )

    methods = different(row["cell"]["method"] for _, chosen, _ in panels for row in chosen)
    curves = {}
    for axis, (across, chosen, value) in zip(axes, panels):
        for index, method in enumerate(methods):
            curve = sorted((row for row in chosen if row["cell"]["method"] == method), key=_numbers)
            if not curve:
                continue
            found = [row["result"]["modes_found"] for row in curve]
            curves[method] = axis.errorbar(
                [value(row["result"]) for row in curve],
                [one["mean"] for one in found],
                yerr=error_bars(found),
                marker=MARKERS[(index // 10 * 3 + index % 3) % len(MARKERS)],
                ms=5,
                lw=1.3,
                elinewidth=0.8,
                color=COLOURS[index % len(COLOURS)],
            )
        expected = chosen[0]["result"]["modes_expected_iid"]
        axis.axhline(expected, color=GREY, ls=":", lw=1)
        axis.annotate(
            "independent draws, theory",
            (0.99, expected),
            xycoords=("axes fraction", "data"),
            ha="right",
            va="top",
            fontsize=8,
            color="#666666",
        )
        axis.set_title(f"denoiser: {chosen[0]['cell'].get('denoiser', 'trained')}", fontsize=9)
        axis.set_xlabel(across)
        axis.grid(alpha=0.3)
    _set_logarithmic(axes[0], QUALITY_TICKS)
    _set_logarithmic(axes[1], COST_TICKS)
    axes[0].set_ylabel(f"modes found, of {trained[0]['result']['modes_total']}")
    axes[-1].legend(
        [curves[method] for method in methods],
        methods,
        fontsize=7,
        frameon=False,
        loc="center left",
        bbox_to_anchor=(1, 0.5),
    )
    add_title(figure, with_note_on_intervals(title, [row["result"]["modes_found"] for row in rows]))
    return figure


def _numbers(row: dict) -> list[float]:
    """Where a row stands on the axes of its experiment that hold numbers, such as the strength."""
    return [number for number in row["cell"].values() if isinstance(number, (int, float))]


def _set_logarithmic(axis: Axes, marks: Sequence[float]) -> None:
    """Make the horizontal axis logarithmic, with those of the marks whose texts have room."""
    axis.set_xscale("log")
    low, high = axis.get_xlim()
    ticks: list[float] = []
    for mark in marks:
        apart = math.inf if not ticks else math.log(mark / ticks[-1]) / math.log(high / low)
        if low <= mark <= high and apart > 1 / 10:
            ticks.append(mark)
    axis.set_xticks(ticks, map(str, ticks))
    axis.minorticks_off()


def scaling(rows: Sequence[dict], title: str = "") -> Figure:
    """Modes found against the particles of a set, a panel per number of modes k.

    A panel has a line per point of the other axes. Dotted: what B independent draws find in theory;
    dashed: the most that B particles can find, min(B, k).
    """
    totals = different(row["result"]["modes_total"] for row in rows)
    figure, axes = grid_of_axes(
        1, len(totals), 3.9 * len(totals), 3.7, gridspec_kw=dict(wspace=0.18)
    )
    for axis, total in zip(axes[0], totals):
        of_panel = [row for row in rows if row["result"]["modes_total"] == total]
        sizes = sorted(different(row["cell"]["batch_size"] for row in of_panel))
        every_size = range(sizes[0], sizes[-1] + 1)
        axis.plot(
            every_size,
            [min(size, total) for size in every_size],
            color=GREY,
            ls="--",
            lw=1.2,
            label="the most that can be found",
        )
        for index, (name, line) in enumerate(lines_of(of_panel).items()):
            line = sorted(line, key=lambda row: row["cell"]["batch_size"])
            found = [row["result"]["modes_found"] for row in line]
            axis.errorbar(
                [row["cell"]["batch_size"] for row in line],
                [one["mean"] for one in found],
                yerr=error_bars(found),
                marker="osD^vP"[index % 6],
                ms=5,
                lw=1.5,
                capsize=3,
                color=LINES[index % len(LINES)],
                label=name,
            )
        priors = torch.tensor([mode["prior"] for mode in of_panel[0]["result"]["mode_frequencies"]])
        axis.plot(
            every_size,
            [expected_modes_iid(priors, size) for size in every_size],
            color="black",
            ls=":",
            lw=1.5,
            zorder=3,
            label="independent draws, theory",
        )
        axis.set_xticks(sizes, map(str, sizes))
        axis.set_ylim(0, 1.05 * total)
        axis.set_xlabel("particles in a set, B")
        axis.set_title(f"{total} modes", fontsize=10)
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("modes found")
    axes[0, 0].legend(frameon=False, fontsize=8.5, loc="lower right")
    add_title(figure, with_note_on_intervals(title, [row["result"]["modes_found"] for row in rows]))
    return figure


def lines_of(rows: Sequence[dict]) -> dict[str, list[dict]]:
    """Rows by their places on all axes but `batch_size`, named after the axes on which they differ.

    The only line of rows that differ in nothing else is called `modes found`.
    """
    others = [key for key in rows[0]["cell"] if key != "batch_size"]
    varied = [key for key in others if len(different(row["cell"].get(key) for row in rows)) > 1]
    lines: dict[str, list[dict]] = {}
    for row in rows:
        places = [(key, row["cell"].get(key)) for key in varied]
        named = [at if isinstance(at, str) else f"{axis_name(key)} {at}" for key, at in places]
        lines.setdefault(", ".join(named) or METRICS["modes_found"].title, []).append(row)
    return lines


@dataclass(frozen=True)
class DecisionCurve:
    """Where it is decided what the samples of an evaluation show, and where it was sampled.

    Arguments:
        sigmas: decreasing noise levels
        shares: the share that is decided at each of them, V(sigma) in [0, 1]
        window: (smallest, largest) noise level of the sampler's window; None without one
        steps: the noise levels at which the sampler's steps begin
    """

    sigmas: Sequence[float]
    shares: Sequence[float]
    window: tuple[float, float] | None
    steps: Sequence[float]


def decisions(curves: dict[str, DecisionCurve], title: str = "") -> Figure:
    """The share of what is decided, V(sigma), against the noise level, a line per evaluation.

    Noise falls to the right, as it does while a set is sampled. The window of an evaluation is
    shaded in the colour of its line, and marks below the curves show its steps.
    """
    figure = new_figure(7.2, 3.8)
    axis = figure.subplots()
    for index, (name, curve) in enumerate(curves.items()):
        colour = LINES[index % len(LINES)]
        label = name
        if curve.window is not None:
            low, high = curve.window
            axis.axvspan(low, high, color=colour, alpha=0.12, lw=0)
            label += f"\nwindow {high:.2g} to {low:.2g}"
        axis.semilogx(curve.sigmas, curve.shares, ".-", ms=4, lw=1.5, color=colour, label=label)
        height = -0.06 * (index + 1)
        axis.plot(curve.steps, [height] * len(curve.steps), "|", ms=7, color=colour)
    axis.invert_xaxis()
    axis.set_ylim(-0.06 * (len(curves) + 1), 1.05)
    axis.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axis.set_xlabel(r"noise level $\sigma$ (shaded: the window; marks: steps of the sampler)")
    axis.set_ylabel(r"share that is decided, $V(\sigma)$")
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, fontsize=8.5, loc="center left", bbox_to_anchor=(1, 0.5))
    add_title(figure, title)
    return figure


def norms(traces: dict[str, dict[str, Tensor]], title: str = "") -> Figure:
    """Norms over the steps of the sampler, a column per trace.

    Above, the Frobenius norm of the matrix of distances inside the set; below, the norms of the two
    parts of the drift of each particle, the denoiser's and the guidance's, on common axes.

    traces: name -> {sigmas (N,), distances (N, B, B), ode (N, B), guidance (N, B)}.
    """
    figure, axes = grid_of_axes(
        2,
        len(traces),
        3.6 * len(traces) + 0.6,
        4.8,
        sharex=True,
        sharey="row",
        gridspec_kw=dict(wspace=0.06, hspace=0.1),
    )
    drifts = (
        ("ode", GREY, r"denoiser, $(x - D) / \sigma$"),
        ("guidance", VERMILION, "guidance"),
    )
    for (top, below), (name, trace) in zip(axes.T, traces.items()):
        sigmas = trace["sigmas"]
        top.loglog(sigmas, trace["distances"].flatten(1).norm(dim=1), "o-", ms=3, color=BLUE)
        top.set_title(name, fontsize=9)
        top.grid(alpha=0.3)
        for key, colour, label in drifts:
            acts = trace[key].sum(1) > 0  # (N,): a logarithmic axis has no place for 0
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
        below.set_xlabel(r"noise level $\sigma$")
        below.grid(alpha=0.3)
    axes[0, 0].invert_xaxis()
    axes[0, 0].set_ylabel("norm of distances")
    axes[1, 0].set_ylabel("norm of drift, per particle")
    axes[1, -1].legend(frameon=False, fontsize=8)
    add_title(figure, title)
    return figure


def umap_map(
    digits: Tensor,
    labels: Tensor,
    particles: Tensor,
    found: Tensor,
    names: Sequence[str],
    title: str = "",
) -> Figure:
    """A panel per set: its particles, coloured by the digit found in each, on a map of real digits.

    Arguments:
        digits: (M, 2), where the real digits are on the map
        labels: (M,) int64, which digits they are
        particles: (G, B, 2), where the particles are
        found: (G, B) int64, the digits found in them
        names: a title for each panel
    """
    rows = math.ceil(len(particles) / 4)
    columns = math.ceil(len(particles) / rows)
    figure, axes = grid_of_axes(
        rows, columns, 3.0 * columns, 3.3 * rows, gridspec_kw=dict(wspace=0.06, hspace=0.24)
    )
    for axis in axes.flat[len(particles) :]:
        axis.axis("off")
    for axis, points, modes, name in zip(axes.flat, particles, found, names):
        for digit in labels.unique().tolist():
            mine = digits[labels == digit]
            axis.scatter(*mine.T, s=1.5, color=COLOURS[digit], alpha=0.35, linewidth=0)
            x, y = mine.median(0).values.tolist()
            axis.text(x, y, str(digit), fontsize=10, ha="center", va="center", color="#333333")
        colours = [COLOURS[mode] for mode in modes.tolist()]
        axis.scatter(*points.T, s=55, c=colours, edgecolor="black", zorder=3)
        axis.set_title(name, fontsize=8)
        axis.set(xticks=[], yticks=[])
    for axis in axes[:, 0]:
        axis.set_ylabel("UMAP 2", fontsize=8)
    for axis in axes[-1]:
        axis.set_xlabel("UMAP 1", fontsize=8)
    add_title(figure, f"{title}\n")  # the titles of the panels have two lines
    return figure
