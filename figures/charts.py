"""Charts: pictures of numbers.

Functions take tensors or the rows of an experiment, {cell: its place on every axis, result: its
metrics.json}, and return matplotlib figures. They read and write no files; `drawing.save` writes.
An interval that a single set cannot have (`ci95` is None) is left out, and the figure says so.
"""

from __future__ import annotations

import math
import textwrap
from dataclasses import dataclass
from typing import Any, Sequence

import torch
from torch import Tensor

from config import SamplerSettings
from diverse_sampling.defaults import SIGMA_MIN
from diverse_sampling.steps import karras_sigmas
from figures.drawing import (
    BLUE,
    COLOURS,
    GREEN,
    GREY,
    LEGEND,
    ORANGE,
    SKY,
    VERMILION,
    Axes,
    Figure,
    add_title,
    grid_of_axes,
    new_figure,
)
from lab.metrics import expected_modes_iid
from lab.names import AXES, METRICS

NO_INTERVAL = "no interval: a single set, or values that are not finite"
LINES = (BLUE, VERMILION, GREEN, ORANGE, SKY, *COLOURS[6:])  # of lines beside each other
MARKERS = "osD^vP<>X"  # with COLOURS, different for thirty methods
QUALITY_TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1, 2, 3, 5, 7, 10, 20)
PRICE_TICKS = (10, 21, 43, 86, 172)
WIDEST = 8.0  # inches of a figure, beyond which a page shrinks its texts
OURS = "particle guidance"  # how the names of our methods begin in the comparison
DEFAULT = "particle guidance, the default"
RIVALS = 5  # methods of others that the comparison's figure names


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
        # Jeffreys' interval and rounding may leave a mean just outside of its own interval.
        below.append(max(metric["mean"] - low, 0) if low == low else math.nan)
        above.append(max(high - metric["mean"], 0) if high == high else math.nan)
    return below, above


def curve(axis: Axes, x: Sequence[float], metrics: Sequence[dict], **style: Any) -> Any:
    """Draw metrics {mean, ci95} over `x`, with their intervals, in a style of `Axes.errorbar`."""
    means = [metric["mean"] for metric in metrics]
    return axis.errorbar(x, means, yerr=error_bars(metrics), **style)


def _line(axis: Axes, x: Sequence[float], metrics: Sequence[dict], index: int, label: str) -> None:
    """The curve of the method with this number in the legend."""
    marker, colour = MARKERS[index % len(MARKERS)], LINES[index % len(LINES)]
    curve(axis, x, metrics, marker=marker, ms=5, lw=1.5, capsize=3, color=colour, label=label)


def legend_below(figure: Figure, axis: Axes, columns: int, room: float = 0.45) -> None:
    """Explain the lines of an axis below all axes of a figure, whose labels take `room` inches."""
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        fontsize=LEGEND,
        frameon=False,
        ncols=columns,
        handlelength=2.8,
        loc="upper center",
        bbox_to_anchor=(0.5, figure.subplotpars.bottom - room / figure.get_figheight()),
    )


def add_title_with_note(
    figure: Figure, title: str, metrics: Sequence[dict], lines: int = 1
) -> None:
    """Write a title, with a note if some of the metrics that are drawn have no interval.

    `lines` are those of the titles of panels, which it stands above.
    """
    if any(metric.get("ci95") is None for metric in metrics):
        title = f"{title} ({NO_INTERVAL})" if title else NO_INTERVAL
    add_title(figure, title + "\n" * (lines - 1) if title else "")


def schedules(samplers: Sequence[SamplerSettings], p_mean: Sequence[float], p_std: float) -> Figure:
    """Noise levels of samplers and of trainings on one vertical axis.

    Arguments:
        samplers: at the left, those whose levels are drawn over the steps; they differ in rho
        p_mean: at the right, means of ln sigma in training
        p_std: its standard deviation
    """
    figure, axes = grid_of_axes(
        1, 2, 7.5, 3.6, sharey=True, width_ratios=(3, 1.5), gridspec_kw=dict(wspace=0.05)
    )
    left, right = axes[0]
    for s, colour in zip(samplers, COLOURS):
        sigmas = karras_sigmas(s.num_steps, s.sigma_min or SIGMA_MIN, s.sigma_max, s.rho)[:-1]
        steps = range(len(sigmas))
        label = rf"$\rho$ = {s.rho:g}"
        left.semilogy(steps, sigmas, "o-", ms=3, lw=1.2, color=colour, label=label)
    u = torch.linspace(math.log(0.002), math.log(80), 300)
    for mean, colour in zip(p_mean, COLOURS[4:]):
        density = (-((u - mean) ** 2) / (2 * p_std**2)).exp() / (p_std * math.sqrt(2 * math.pi))
        right.semilogy(density, u.exp(), color=colour, label=f"N({mean:g}, {p_std:g}²)")
    left.set(xlabel=r"step $n$ (then $\sigma = 0$)", ylabel=r"noise level $\sigma_n$")
    left.legend(frameon=False, fontsize=LEGEND)
    right.set(xlabel=r"density of $\ln \sigma$ in training", xlim=(0, None))
    right.legend(frameon=False, fontsize=LEGEND, loc="upper right")
    for axis in (left, right):
        axis.grid(alpha=0.3)
    return figure


def heatmap(rows: Sequence[dict], title: str = "", value: str = "modes_found") -> Figure:
    """A grid of cells, each with its value and half the width of its 95% interval.

    The last axis of the experiment goes to the right, the one before it up, the others over panels
    with common limits.

    Arguments:
        rows: the cells, {cell, result}
        value: the key of the metric to show
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
    results = [row["result"] for row in rows]
    metrics = [result[value] for result in results]
    expected = results[0]["modes_expected_iid"] if value == "modes_found" else None

    means = [each["mean"] for each in metrics]
    in_bar = means if expected is None else [*means, expected]
    finite = [number for number in in_bar if math.isfinite(number)] or [0.0]
    norm = Normalize(min(finite), max(finite))
    colours = colormaps["viridis_r" if metric.less_is_better else "viridis"]
    decimals = 2 if max(finite) >= 1 else 3
    width = 0.5 * len(rights)
    columns = len(different(panel[-1] for panel in panels)) if over else 1
    columns = min(columns, max(1, int((WIDEST - 1.6) / width)))
    num_rows = math.ceil(len(panels) / columns)
    titles = [
        "\n".join(
            textwrap.fill(f"{axis_name(key)}: {label}", max(16, int(14 * width)))
            for key, label in zip(over, panel)
        )
        for panel in panels
    ]
    lines = max((title.count("\n") + 1 for title in titles), default=0)
    height = 0.42 * len(ups)
    hspace = (0.1 + 0.17 * lines) / height
    figure, axes = grid_of_axes(
        num_rows,
        columns,
        width * columns + 1.6,
        (height + 0.2 * lines) * num_rows + 1.2,
        sharex=True,
        sharey=True,
        gridspec_kw=dict(wspace=0.05, hspace=hspace),
    )
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()

    for row, each in zip(rows, metrics):
        cell = row["cell"]
        axis = axes.flat[panels.index(tuple(cell[key] for key in over))]
        x = rights.index(cell[right])
        y = ups.index(cell[up])
        colour = colours(norm(each["mean"]))
        red, green, blue, _ = colour
        is_dark = 0.3 * red + 0.59 * green + 0.11 * blue < 0.5
        text = f"{each['mean']:.{decimals}f}"
        if each.get("ci95") is not None:
            low, high = each["ci95"]
            text += f"\n±{(high - low) / 2:.{decimals}f}"
        axis.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, color=colour))
        axis.text(
            x, y, text, ha="center", va="center", size=6.5, color="white" if is_dark else "black"
        )

    for axis, title_of_panel in zip(axes.flat, titles):
        axis.set(xlim=(-0.5, len(rights) - 0.5), ylim=(-0.5, len(ups) - 0.5))
        axis.set_xticks(range(len(rights)), rights, fontsize=8)
        axis.set_yticks(range(len(ups)), ups, fontsize=8)
        axis.set_title(title_of_panel, fontsize=8)
    for axis in axes[-1]:
        axis.set_xlabel(axis_name(right), fontsize=9)
    middle = (num_rows + (num_rows - 1) * hspace) / 2  # of all rows, above the bottom of the last
    axes[-1, 0].set_ylabel(axis_name(up), fontsize=9, y=middle)

    bar = figure.colorbar(ScalarMappable(norm, colours), ax=axes, pad=0.015, fraction=0.05)
    label = metric.label
    if expected is not None:
        label = f"{metric.title}, of {results[0]['modes_total']}"
        label += f"\n(line: independent draws, {expected:.2f})"
        bar.ax.axhline(expected, color=VERMILION, lw=3)
    bar.set_label(label, fontsize=9)
    add_title_with_note(figure, title, metrics, lines)
    return figure


def prior(rows: Sequence[dict], title: str = "") -> Figure:
    """Share of samples that go right against the prior of the training, a series per sampler.

    The intervals are those over sets.
    """
    figure = new_figure(5.6, 3.8)
    axis = figure.subplots()
    axis.plot([0.4, 1], [0.4, 1], color=GREY, lw=1, ls=":", label="the prior itself: p̂ = p")
    # Of each series: its colour, its marker, and where its values stand from their points, in
    # points; to the right of them if x is positive.
    styles = (
        (BLUE, "o", (-7, 5)),
        (GREEN, "s", (-4, -13)),
        (VERMILION, "D", (7, 5)),
        (ORANGE, "^", (7, -8)),
    )
    for index, sampler in enumerate(different(row["cell"]["sampler"] for row in rows)):
        series = [row["result"] for row in rows if row["cell"]["sampler"] == sampler]
        shares = [result["mode_frequencies"][0] for result in series]
        x = [share["prior"] + 0.006 * (index - 1) for share in shares]  # side by side
        colour, marker, offset = styles[index % len(styles)]
        curve(
            axis,
            x,
            shares,
            fmt=marker,
            ms=5,
            color=colour,
            label=sampler,
            capsize=3,
            lw=1.2,
        )
        for at, share in zip(x, shares):
            axis.annotate(
                f"{share['mean']:.3f}",
                (at, share["mean"]),
                xytext=offset,
                textcoords="offset points",
                ha="left" if offset[0] > 0 else "right",
                fontsize=7.5,
                color=colour,
            )
    axis.set(xlabel=axis_name("p"), ylabel="share of samples that go right, p̂")
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, fontsize=LEGEND)
    add_title(figure, title)
    return figure


def best_samplers(rows: Sequence[dict], model: str, price: float) -> dict[str, dict]:
    """{method: its row in the sampler that the search chose} on a model at a price.

    Arguments:
        rows: of the comparison, {method, best, model, budget, ...}
        model: the one that counts
        price: the budget that counts
    """
    at = (model, price)
    return {
        row["method"]: row for row in rows if row["best"] and (row["model"], row["budget"]) == at
    }


def middle_price(rows: Sequence[dict]) -> float:
    """The price of independent samples, the middle one of the comparison."""
    prices = sorted({row["budget"] for row in rows})
    return prices[len(prices) // 2]


def ranked(best: dict[str, dict]) -> list[str]:
    """Methods of the comparison, those that show most modes first.

    `best` is as `best_samplers` returns it.
    """
    return sorted(best, key=lambda method: -best[method]["modes_shown"]["mean"])


def rivals(best: dict[str, dict]) -> list[str]:
    """Those of `ranked` that others published."""
    return [
        method
        for method in ranked(best)
        if best[method]["kind"] == "coupled" and not method.startswith(OURS)
    ]


def named_methods(best: dict[str, dict]) -> list[str]:
    """The methods of the comparison that pictures name: independent samples, the default, the best
    pool, the best medoids, and the best of those that others published.

    `best` is as `best_samplers` returns it.
    """
    pools = [method for method in ranked(best) if method.startswith("pool")]
    medoids = [method for method in ranked(best) if method.endswith("medoids")]
    return ["independent", DEFAULT, *pools[:1], *medoids[:1], *rivals(best)[:RIVALS]]


def comparison(rows: Sequence[dict], model: str) -> Figure:
    """Methods of the comparison: modes against quality at the middle price, and over the prices.

    Each method is in the sampler that the search chose; those of `named_methods` are named,
    the others are grey.

    Arguments:
        rows: {method, kind, sampler, model, budget, modes_found, modes_shown, quality, ...}, one
            for each method, sampler, model and price
        model: the one that is drawn
    """
    middle = middle_price(rows)
    here = [row for row in rows if row["model"] == model]
    best = best_samplers(rows, model, middle)
    named = [method for method in named_methods(best) if method in best]
    figure, axes = grid_of_axes(1, 2, WIDEST, 3.9, gridspec_kw=dict(wspace=0.06), sharey=True)
    left, right = axes[0]
    others = [method for method in best if method not in named]
    for method in reversed([*named, *others]):
        style: dict[str, Any] = dict(color=GREY, marker=".", ms=5, alpha=0.6, lw=0.8, zorder=1)
        row = best[method]
        label = {}
        if method in named:
            index = named.index(method)
            colour = ["black", *LINES][index]
            style = dict(color=colour, marker=MARKERS[index % len(MARKERS)], ms=6, lw=1.4, zorder=3)
            label = dict(label=f"{method}, {row['sampler']}" if row["sampler"] else method)
        elif method == others[0]:
            label = dict(label="other methods")
        curve(left, [row["quality"]["mean"]], [row["modes_found"]], **style | label)
        over = [
            each for each in here if (each["method"], each["sampler"]) == (method, row["sampler"])
        ]
        over.sort(key=lambda each: each["price"])
        curve(
            right, [each["price"] for each in over], [each["modes_found"] for each in over], **style
        )
    left.set_xlabel("quality (L2, less is better)")
    right.set_xlabel("price, network calls per sample")
    _set_logarithmic(left, QUALITY_TICKS)
    _set_logarithmic(right, PRICE_TICKS)
    left.set_ylabel(f"modes found, of {here[0]['modes_total']}")
    left.set_title(f"{model}, price {middle:g}", fontsize=10)
    right.set_title("over the price", fontsize=10)
    for axis in (left, right):
        axis.grid(alpha=0.3)
        expected = here[0]["modes_expected_iid"]
        theory = axis.axhline(expected, color=GREY, ls=":", lw=1.2)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(
        [*handles[::-1], theory],
        [*labels[::-1], "independent, in theory"],
        fontsize=LEGEND,
        frameon=False,
        ncols=3,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.02),
    )
    return figure


def _set_logarithmic(axis: Axes, marks: Sequence[float]) -> None:
    """Make the horizontal axis logarithmic, with those of the marks whose texts have room."""
    axis.set_xscale("log")
    low, high = axis.get_xlim()
    ticks: list[float] = []
    for mark in marks:
        apart = math.inf if not ticks else math.log(mark / ticks[-1]) / math.log(high / low)
        if low <= mark <= high and apart > 1 / 10:
            ticks.append(mark)
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()


def strengths(worlds: Sequence[dict]) -> Figure:
    """What sets show over the strength (left scale), and how good samples are (right), by world.

    Dotted: independent sets. `worlds` are {world, keys: of two metrics, cells: {strength: {key: a
    metric {mean, ci95} or a number}}}, strength 0 for independent sets.
    """
    columns = 3
    rows = math.ceil((len(worlds) + 1) / columns)  # the last place explains the lines
    figure, axes = grid_of_axes(
        rows, columns, 1.1 * WIDEST, 2.3 * rows, gridspec_kw=dict(wspace=0.85, hspace=0.65)
    )
    for axis in axes.flat[len(worlds) :]:
        axis.set_axis_off()
    key = axes.flat[-1]
    for colour, what in ((BLUE, "what sets show"), (VERMILION, "how good samples are")):
        side = "left" if colour == BLUE else "right"
        key.plot([], [], color=colour, marker="o", ms=4, lw=1.4, label=f"{what} ({side} scale)")
        key.plot([], [], color=colour, ls=":", lw=1.2, label="the same of independent sets")
    key.legend(frameon=False, fontsize=LEGEND, loc="center", title_fontsize=LEGEND)
    for left, world in zip(axes.flat, worlds):
        factors = [float(factor) for factor in world["cells"] if factor != "0"]
        for axis, key, colour in zip((left, left.twinx()), world["keys"], (BLUE, VERMILION)):
            metrics = [
                value if isinstance(value, dict) else dict(mean=value, ci95=None)
                for value in (cell[key] for cell in world["cells"].values())
            ]
            curve(axis, factors, metrics[1:], color=colour, marker="o", ms=4, lw=1.4)
            axis.axhline(metrics[0]["mean"], color=colour, ls=":", lw=1.2)
            label = textwrap.fill(METRICS[key].title, 20)
            axis.set_ylabel(label, color=colour, fontsize=8.5)
            axis.tick_params(axis="y", colors=colour)
            axis.tick_params(labelsize=8)
        _set_logarithmic(left, factors)
        left.set_title(world["world"], fontsize=9.5)
        left.set_xlabel(world["strength"], fontsize=8.5)
        left.grid(alpha=0.3)
    return figure


def scaling(rows: Sequence[dict], title: str = "") -> Figure:
    """Modes found against the particles of a set, a panel per number of modes k.

    A panel has a line per point of the other axes. Dotted: what B independent draws find in theory;
    dashed: the most that B particles can find, min(B, k).
    """
    totals = different(row["result"]["modes_total"] for row in rows)
    figure, axes = grid_of_axes(
        1, len(totals), 3.9 * len(totals), 3.5, gridspec_kw=dict(wspace=0.18)
    )
    for axis, total in zip(axes[0], totals):
        in_panel = [row for row in rows if row["result"]["modes_total"] == total]
        sizes = sorted(different(row["cell"]["batch_size"] for row in in_panel))
        most = [min(size, total) for size in sizes]
        label = "the most that can be found"
        axis.plot(sizes, most, color=GREY, ls="--", lw=1.2, label=label)
        for index, (name, cells) in enumerate(lines_of(in_panel).items()):
            cells = sorted(cells, key=lambda row: row["cell"]["batch_size"])
            _line(
                axis,
                [row["cell"]["batch_size"] for row in cells],
                [row["result"]["modes_found"] for row in cells],
                index,
                name.removeprefix(f"{total} modes, "),
            )
        frequencies = in_panel[0]["result"]["mode_frequencies"]
        priors = torch.tensor([mode["prior"] for mode in frequencies])
        theory = [expected_modes_iid(priors, size) for size in sizes]
        label = "independent draws, in theory"
        axis.plot(sizes, theory, color="black", ls=":", lw=1.5, zorder=3, label=label)
        axis.set_xscale("log", base=2)
        axis.set_xticks(sizes, map(str, sizes))
        axis.set(ylim=(0, 1.05 * total), xlabel="particles in a set, B")
        axis.set_title(f"{total} modes", fontsize=10)
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("modes found")
    fullest = max(axes[0], key=lambda axis: len(axis.get_legend_handles_labels()[1]))
    legend_below(figure, fullest, 3)
    add_title_with_note(figure, title, [row["result"]["modes_found"] for row in rows])
    return figure


def dispersion(rows: Sequence[dict], title: str = "") -> Figure:
    """How much counts of a mode vary over sets, of that of independent draws, by sampler and prior:
    the less, the more alike are the sets."""
    figure = new_figure(6.4, 3.4)
    axis = figure.subplots()
    samplers = different(row["cell"]["sampler"] for row in rows)
    priors = sorted(different(row["cell"]["p"] for row in rows))
    width = 0.8 / len(samplers)
    for index, sampler in enumerate(samplers):
        of_sampler = [row for row in rows if row["cell"]["sampler"] == sampler]
        places = [
            priors.index(row["cell"]["p"]) + (index - (len(samplers) - 1) / 2) * width
            for row in of_sampler
        ]
        values = [row["result"]["count_dispersion"] for row in of_sampler]
        bars = axis.bar(places, values, 0.92 * width, color=LINES[index], label=sampler)
        axis.bar_label(bars, fmt="%.2f", fontsize=7, padding=1)
    label = "independent draws, in theory"
    axis.axhline(1, color="black", ls=":", lw=1.2, label=label)
    axis.set_xticks(range(len(priors)), map(str, priors))
    axis.set(xlabel=axis_name("p"), ylabel=METRICS["count_dispersion"].title)
    axis.grid(alpha=0.3, axis="y")
    axis.set_axisbelow(True)
    axis.margins(y=0.1)
    legend_below(figure, axis, 3)
    add_title(figure, title)
    return figure


def over_strength(rows: Sequence[dict], title: str = "") -> Figure:
    """Modes found and shown, and quality, over the strength; a line per point of other axes."""
    figure, axes = grid_of_axes(1, 2, WIDEST, 3.2, gridspec_kw=dict(wspace=0.22))
    left, right = axes[0]
    for index, (name, cells) in enumerate(lines_of(rows, "pg_factor").items()):
        factors = [row["cell"]["pg_factor"] for row in cells]
        results = [row["result"] for row in cells]
        _line(left, factors, [result["modes_found"] for result in results], index, f"{name}, found")
        curve(
            left,
            factors,
            [result["modes_shown"] for result in results],
            marker=MARKERS[index],
            ms=5,
            mfc="white",
            lw=1.2,
            ls="--",
            color=LINES[index],
            label=f"{name}, shown",
        )
        _line(right, factors, [result["quality"] for result in results], index, name)
    expected = rows[0]["result"]["modes_expected_iid"]
    left.axhline(expected, color=GREY, ls=":", lw=1.2, label="independent draws, in theory")
    left.set_ylabel(f"modes, of {rows[0]['result']['modes_total']}")
    right.set_ylabel(METRICS["quality"].label)
    for axis in (left, right):
        axis.set_xlabel(axis_name("pg_factor"))
        axis.grid(alpha=0.3)
    legend_below(figure, left, 3)
    add_title_with_note(figure, title, [row["result"]["modes_found"] for row in rows])
    return figure


def over_steps(rows: Sequence[dict]) -> Figure:
    """Modes found by EDDY against the steps, a panel per world, with and without its field.

    `rows` are {world, noise, steps, alone, field: results of metrics.json}.
    """
    worlds = different(row["world"] for row in rows)
    noises = different(row["noise"] for row in rows)
    steps = different(row["steps"] for row in rows)
    figure, (axes,) = grid_of_axes(1, len(worlds), WIDEST, 3.4)
    colours = dict(zip(noises, LINES))
    for axis, world in zip(axes, worlds):
        mine = [row for row in rows if row["world"] == world]
        for noise in noises:
            for name, style in (("alone", "--"), ("field", "-")):
                points = [row[name]["modes_found"] for row in mine if row["noise"] == noise]
                kind = "independent" if noise == "iid" else noise
                label = f"{kind} noise" + (", EDDY's field" if name == "field" else "")
                style_of_line = dict(color=colours[noise], ls=style, marker="o", ms=4, label=label)
                curve(axis, steps, points, **style_of_line)
        expected = mine[0]["alone"]["modes_expected_iid"]
        axis.axhline(expected, color=GREY, ls=":", lw=1, label="independent draws, in theory")
        axis.set_xscale("log")
        axis.set_xticks(steps, map(str, steps))
        axis.minorticks_off()
        axis.set_xlabel("steps")
        axis.set_title(f"{world}, of {mine[0]['alone']['modes_total']}", fontsize=10)
    axes[0].set_ylabel("modes found")
    legend_below(figure, axes[-1], 3)
    return figure


def lines_of(rows: Sequence[dict], along: str = "batch_size") -> dict[str, list[dict]]:
    """Rows by their places on all axes but `along`, named after the axes on which they differ.

    The only line of rows that differ in nothing else is called `modes found`.
    """
    others = [key for key in rows[0]["cell"] if key != along]
    varied = [key for key in others if len(different(row["cell"].get(key) for row in rows)) > 1]
    lines: dict[str, list[dict]] = {}
    for row in rows:
        places = [(key, row["cell"].get(key)) for key in varied]
        words = [at if isinstance(at, str) else f"{axis_name(key)} {at}" for key, at in places]
        lines.setdefault(", ".join(words) or METRICS["modes_found"].title, []).append(row)
    return lines


@dataclass(frozen=True)
class DecisionCurve:
    """At which noise levels it is decided what samples of an evaluation show, and its steps.

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


def decisions(curves: dict[str, DecisionCurve]) -> Figure:
    """The share of what is decided, V(sigma), against the noise level, a panel per evaluation.

    Noise falls to the right, as it does while a set is sampled. The window of an evaluation is
    shaded, and marks below the curve show its steps.
    """
    columns = min(len(curves), 5)
    rows = math.ceil(len(curves) / columns)
    width = 4.6 if len(curves) == 1 else WIDEST
    figure, axes = grid_of_axes(
        rows,
        columns,
        width,
        2.4 * rows,
        sharex=True,
        sharey=True,
        gridspec_kw=dict(wspace=0.08, hspace=0.5),
    )
    for axis in axes.flat[len(curves) :]:
        axis.set_axis_off()
    for axis, (name, run) in zip(axes.flat, curves.items()):
        label = textwrap.fill(name, int(15 * width / columns))
        if run.window is not None:
            low, high = run.window
            axis.axvspan(low, high, color=BLUE, alpha=0.15, lw=0)
            label += f"\nwindow {high:.2g} to {low:.2g}"
        axis.semilogx(run.sigmas, run.shares, ".-", ms=4, lw=1.5, color=BLUE)
        axis.plot(run.steps, [-0.08] * len(run.steps), "|", ms=7, color=VERMILION)
        axis.set_title(label, fontsize=8)
        axis.set(ylim=(-0.16, 1.05), yticks=[0, 0.25, 0.5, 0.75, 1])
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3)
    axes[0, 0].invert_xaxis()
    under = "(shaded: the window; marks: steps of the sampler)"
    figure.supxlabel(rf"noise level $\sigma$ {under}", fontsize=9, y=0, va="top")
    axes[rows // 2, 0].set_ylabel(r"share decided, $V(\sigma)$", fontsize=9)
    return figure


def norms(traces: dict[str, dict[str, Tensor]], title: str = "") -> Figure:
    """Norms over the steps of the sampler, a column per trace.

    Above, the Frobenius norm of the matrix of distances inside the set; below, the norms of the two
    parts of the drift of each particle, the denoiser's and the guidance's, on common axes, and of
    the gradient of the potential if a trace has it.

    traces: name -> {sigmas (N,), distances (N, B, B), ode (N, B), guidance (N, B)} and perhaps
    gradient (N, B).
    """
    figure, axes = grid_of_axes(
        2,
        len(traces),
        min(3.6 * len(traces) + 0.6, WIDEST),
        4.2,
        sharex=True,
        sharey="row",
        gridspec_kw=dict(wspace=0.06, hspace=0.1),
    )
    drifts = (
        ("ode", GREY, r"denoiser, $(x - D) / \sigma$"),
        ("guidance", VERMILION, "guidance"),
        ("gradient", GREEN, r"gradient of the potential, unscaled"),
    )
    for (top, below), (name, trace) in zip(axes.T, traces.items()):
        sigmas = trace["sigmas"]
        top.loglog(sigmas, trace["distances"].flatten(1).norm(dim=1), "o-", ms=3, color=BLUE)
        top.set_title(textwrap.fill(name, 24), fontsize=8)
        top.grid(alpha=0.3)
        for key, colour, label in drifts:
            if key not in trace:
                continue
            acts = trace[key].sum(1) > 0  # (N,): a logarithmic axis has no place for 0
            lines = below.loglog(sigmas[acts], trace[key][acts], ".-", color=colour, lw=0.8, ms=3)
            lines[0].set_label(label)
        below.set_xlabel(r"noise level $\sigma$")
        below.grid(alpha=0.3)
    axes[0, 0].invert_xaxis()
    axes[0, 0].set_ylabel("norm of distances")
    axes[1, 0].set_ylabel("norm of drift, per particle")
    most = max(axes[1], key=lambda axis: len(axis.get_legend_handles_labels()[1]))
    legend_below(figure, most, 3)
    lines = max(axis.get_title().count("\n") for axis in axes[0])
    add_title(figure, title + "\n" * lines if title else "")
    return figure


def umap_map(
    digits: Tensor,
    labels: Tensor,
    particles: Tensor,
    modes: Tensor,
    names: Sequence[str],
    title: str = "",
) -> Figure:
    """A panel per set: its particles, coloured by the digit found in each, on a map of real digits.

    Arguments:
        digits: (M, 2), where the real digits are on the map
        labels: (M,) int64, which digits they are
        particles: (G, B, 2), where the particles are
        modes: (G, B) int64, the digits found in them
        names: a title for each panel
    """
    rows = math.ceil(len(particles) / 4)
    columns = math.ceil(len(particles) / rows)
    figure, axes = grid_of_axes(
        rows, columns, 2.6 * columns, 2.9 * rows, gridspec_kw=dict(wspace=0.06, hspace=0.27)
    )
    for axis in axes.flat[len(particles) :]:
        axis.axis("off")
    for axis, points, modes_of_set, name in zip(axes.flat, particles, modes, names):
        for digit in labels.unique().tolist():
            cluster = digits[labels == digit]
            axis.scatter(*cluster.T, s=1.5, color=COLOURS[digit], alpha=0.35, linewidth=0)
            x, y = cluster.median(0).values.tolist()
            axis.annotate(
                str(digit), (x, y), (7, 7), textcoords="offset points", fontsize=9, color="#333333"
            )
        colours = [COLOURS[mode] for mode in modes_of_set.tolist()]
        axis.scatter(*points.T, s=40, c=colours, edgecolor="black", zorder=3)
        axis.set_title(name, fontsize=8)
        axis.set(xticks=[], yticks=[])
        axis.margins(0.13)  # room for the names of digits
    for axis in axes[:, 0]:
        axis.set_ylabel("UMAP 2", fontsize=8)
    for axis in axes[-1]:
        axis.set_xlabel("UMAP 1", fontsize=8)
    add_title(figure, f"{title}\n")  # the titles of the panels have two lines
    return figure
