"""Drawings of sets, worlds and schedules. Functions take tensors and return matplotlib
figures; no files are read here, and `save` is the only one that writes.

Images are (H, W) in [0, 1], black background. Colours are from the Okabe-Ito palette,
which readers with any colour vision can tell apart.
"""

from __future__ import annotations

from typing import Sequence

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch
from matplotlib.animation import FuncAnimation
from matplotlib.figure import Figure
from torch import Tensor

from charts import COLOURS, _title
from records import method_of
from worlds import Mixture


def new_colours(modes: Sequence[int]) -> list[str | None]:
    """A colour for each particle of a set that is the first in its mode; None for repeats and for -1, no mode."""
    return [
        COLOURS[mode % len(COLOURS)] if mode >= 0 and mode not in modes[:b] else None
        for b, mode in enumerate(modes)
    ]


def _picture(axis, image: Tensor, colour: str | None = None, width: float = 2.0) -> None:
    """One image without ticks, framed in `colour`."""
    axis.set_axis_on()
    axis.imshow(
        image.detach().cpu().clamp(0, 1), cmap="gray", vmin=0, vmax=1, interpolation="nearest"
    )
    axis.set_xticks([]), axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_color(colour or "#606060")
        spine.set_linewidth(width if colour else 0.5)


def sample_sheet(
    cond: Tensor,
    samples: Tensor,
    *,
    answers: Tensor | None = None,
    modes: Tensor | None = None,
    title: str = "",
    notes: Sequence[str] = (),
    labels: Sequence[str] = (),
    max_sets: int = 16,
) -> Figure:
    """Each set a row: its last conditioning frame, the right answers where they are given, then its particles.

    cond (G, Cc, H, W), Cc may be 0; answers (G, k, H, W); samples (G, B, H, W); modes (G, B) int: the first
    particle that found a mode gets a frame in the mode's colour, repeats and -1, for none, get a
    thin grey one; notes and labels: a line per set, written at its right and left.
    """
    G, B = min(len(samples), max_sets), samples.shape[1]
    given = (
        cond[:, -1:] if answers is None else torch.cat([cond[:, -1:], answers], 1)
    )  # (G, first, H, W)
    first = given.shape[1]
    figure, axes = plt.subplots(
        G,
        B + first,
        figsize=(0.85 * (B + first) + 0.3, 0.85 * G + 0.4),
        squeeze=False,
        gridspec_kw=dict(wspace=0.06, hspace=0.06),
    )
    for g in range(G):
        for column in range(first):
            _picture(axes[g, column], given[g, column])
        for b, colour in enumerate(new_colours([-1] * B if modes is None else modes[g].tolist())):
            _picture(axes[g, b + first], samples[g, b], colour)
        if len(notes) > g:
            axes[g, -1].annotate(
                notes[g], (1.08, 0.5), xycoords="axes fraction", va="center", fontsize=9
            )
        if len(labels) > g:
            axes[g, 0].set_ylabel(labels[g], rotation=0, ha="right", va="center", fontsize=9)
    if first:
        axes[0, 0].set_title("given", fontsize=9)
    if answers is not None:
        axes[0, 1].set_title("right", fontsize=9)
    axes[0, first].set_title("samples", fontsize=9)
    _title(figure, title)
    return figure


def result_sheet(arrays: dict[str, Tensor], result: dict, title: str | None = None) -> Figure:
    """The sample sheet of an evaluation: `arrays` as in its samples.npz, `result` as in its metrics.json. Without a
    `title` it gets one that says what was found."""
    cond, samples, modes = arrays["cond"], arrays["samples"], arrays.get("modes")
    if result["dataset"] == "mixture":
        return points_sheet(samples.flatten(2), Mixture(), result)
    total, key = result["modes_total"], "quality" if result["quality"] else "confidence"
    judged, measured = (
        ("HM IoU*", result["hm_iou"]) if result["dataset"] == "frames" else (key, result[key])
    )
    notes = [f"{value:.2f}" for value in measured["per_set"]]
    found = ""
    if modes is not None:
        notes = [
            f"{n:.0f}/{total}, {note}" for n, note in zip(result["modes_found"]["per_set"], notes)
        ]
        found = f"{result['modes_found']['mean']:.2f} of {total} found, "
    if title is None:
        title = f"{method_of(result)}: {found}{judged} {measured['mean']:.2f}"
    return sample_sheet(
        cond, samples, answers=arrays.get("answers"), title=title, modes=modes, notes=notes
    )


def points_sheet(points: Tensor, mixture: Mixture, result: dict, max_sets: int = 6) -> Figure:
    """Sets of particles (G, B, 2) in the plane, a panel each, over the density of the mixture."""
    G, centres = min(len(points), max_sets), mixture.centres
    figure, axes = plt.subplots(1, G, figsize=(2.1 * G, 2.3), squeeze=False, sharey=True)
    reach = float(centres.abs().max()) * 1.35
    axis = torch.linspace(-reach, reach, 160)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)
    density = (-(grid[:, :, None] - centres).square().sum(-1) / (2 * mixture.sd**2)).exp().sum(-1)
    for g in range(G):
        axes[0, g].imshow(density, cmap="Blues", extent=(-reach, reach) * 2, origin="lower")
        axes[0, g].scatter(
            *points[g].T, s=14, color=COLOURS[5], edgecolor="white", linewidth=0.5, zorder=2
        )
        axes[0, g].set_xlim(-reach, reach), axes[0, g].set_ylim(-reach, reach)
        axes[0, g].set_title(
            f"{result['modes_found']['per_set'][g]:.0f} of {len(centres)}", fontsize=9
        )
        axes[0, g].tick_params(labelsize=7)
    _title(figure, f"{result['modes_found']['mean']:.2f} of {len(centres)} modes found")
    return figure


def trajectory(
    x: Tensor, denoised: Tensor, sigmas: Tensor, *, title: str = "", columns: int = 11
) -> Figure:
    """What the sampler does to a set: for each particle a row of x_n, scaled to unit variance of the
    noise, above a row of D(x_n).

    x, denoised (N, B, H, W) in [-1, 1] plus noise, at the noise levels `sigmas` (N,) on the way down.
    """
    steps = torch.linspace(0, len(sigmas) - 1, min(columns, len(sigmas))).round().long()
    scaled = x / (1 + sigmas.to(x) ** 2).sqrt()[:, None, None, None]
    B = x.shape[1]
    figure, axes = plt.subplots(
        2 * B,
        len(steps),
        figsize=(0.85 * len(steps) + 0.6, 1.7 * B + 0.4),
        squeeze=False,
        gridspec_kw=dict(wspace=0.06, hspace=0.06),
    )
    for column, n in enumerate(steps.tolist()):
        axes[0, column].set_title(f"{float(sigmas[n]):.3g}", fontsize=9)
        for b in range(B):
            _picture(axes[2 * b, column], (scaled[n, b] + 1) / 2)
            _picture(axes[2 * b + 1, column], (denoised[n, b] + 1) / 2)
    for b in range(B):
        axes[2 * b, 0].set_ylabel("$x_n$", rotation=0, ha="right", va="center", fontsize=9)
        axes[2 * b + 1, 0].set_ylabel("$D(x_n)$", rotation=0, ha="right", va="center", fontsize=9)
    axes[0, 0].annotate(
        r"$\sigma_n$ =", (-0.1, 1.1), xycoords="axes fraction", ha="right", fontsize=9
    )
    _title(figure, title)
    return figure


def world_sheet(
    frames: Tensor, positions: Tensor, choices: Tensor, *, digit_size: int, title: str = ""
) -> Figure:
    """Each sequence a row. An arrow, three times as long as the step, shows how a digit came here; frames
    that the ones before do not determine have an orange border.

    frames (N, T, H, W) in [0, 1], positions (N, T, K, 2) px, choices (N, T) bool.
    """
    N, T = choices.shape
    figure, axes = plt.subplots(
        N,
        T,
        figsize=(0.85 * T + 0.2, 0.85 * N + 0.3),
        squeeze=False,
        gridspec_kw=dict(wspace=0.06, hspace=0.06),
    )
    middles = (positions + (digit_size - 1) / 2).flip(-1)  # (N, T, K, 2) as (x, y)
    for n in range(N):
        for t in range(T):
            _picture(axes[n, t], frames[n, t], COLOURS[0] if choices[n, t] else None)
            if t and positions.shape[2]:
                (x, y), (dx, dy) = middles[n, t - 1].T, (middles[n, t] - middles[n, t - 1]).T
                axes[n, t].quiver(
                    x,
                    y,
                    3 * dx,
                    3 * dy,
                    angles="xy",
                    scale_units="xy",
                    scale=1,
                    width=0.04,
                    headwidth=3.5,
                    headlength=4,
                    headaxislength=3.5,
                    color=COLOURS[1],
                )
    for t in range(T):
        axes[0, t].set_title(f"t = {t}", fontsize=9)
    _title(figure, title)
    return figure


def mean_sheet(
    given: Tensor, samples: Tensor, names: Sequence[str], notes: Sequence[str], title: str = ""
) -> Figure:
    """A row per set: the frames that were given, the mean of all its samples, their deviation, and the first four.
    given (G, Cc, H, W), samples (G, B, H, W); names and notes: a line per set, at its left and right."""
    rows = torch.cat(
        [given, samples.mean(1, keepdim=True), samples.std(1, keepdim=True), samples[:, :4]], 1
    )
    columns = (
        ["given"] * given.shape[1] + [f"mean of {samples.shape[1]}", "deviation"] + ["sample"] * 4
    )
    figure, axes = plt.subplots(
        *rows.shape[:2],
        figsize=(1.05 * rows.shape[1], 1.05 * len(rows) + 0.3),
        squeeze=False,
        gridspec_kw=dict(wspace=0.06, hspace=0.06),
    )
    for g, images in enumerate(rows):
        for axis, image, column in zip(axes[g], images, columns):
            _picture(axis, image, COLOURS[4] if column.startswith("mean") else None)
            if g == 0:
                axis.set_title(column, fontsize=9)
        axes[g, 0].set_ylabel(names[g], rotation=0, ha="right", va="center", fontsize=9)
        axes[g, -1].annotate(
            notes[g], (1.08, 0.5), xycoords="axes fraction", va="center", fontsize=9
        )
    _title(figure, title)
    return figure


def denoising(
    runs: dict[str, tuple[Tensor | None, dict, Tensor | None]], hold: int = 12
) -> FuncAnimation:
    """Sets on their way from noise to samples, an animation: of each run a row of x_n, scaled to unit variance of the
    noise, above a row of D(x_n), the frame that is given at their left. It ends with `hold` frames of the samples,
    framed in the colours of new modes.

    runs: title -> (given (H, W) or None, what `Evaluation.trace` gives, modes (B,) or None).
    """
    given, first, _ = next(iter(runs.values()))
    N, B = first["denoised"].shape[:2]
    left = 0 if given is None else 1
    figure = plt.figure(figsize=(0.62 * (B + left), 1.55 * len(runs)))
    parts = figure.subfigures(len(runs), 1, squeeze=False)[:, 0]
    grids = [
        part.subplots(
            2,
            B + left,
            squeeze=False,
            gridspec_kw=dict(
                left=0.01, right=0.99, bottom=0.03, top=0.83, wspace=0.06, hspace=0.06
            ),
        )
        for part in parts
    ]

    def draw(n: int) -> None:
        for part, axes, (title, (given, trace, modes)) in zip(parts, grids, runs.items()):
            sigma, ended = float(trace["sigmas"][min(n, N - 1)]), n >= N
            part.suptitle(
                title + ("" if ended else rf",  $\sigma$ = {sigma:.2g}"),
                x=0.01,
                y=0.99,
                ha="left",
                fontsize=10,
            )
            noisy, denoised = (
                (trace["samples"],) * 2
                if ended
                else (
                    (trace["x_hat"][n] / (1 + sigma**2) ** 0.5 + 1) / 2,
                    (trace["denoised"][n] + 1) / 2,
                )
            )
            for axis in axes.flat:
                axis.clear(), axis.set_axis_off()
            if given is not None:
                _picture(axes[1, 0], given)
            for b, colour in enumerate(
                new_colours([-1] * B if modes is None or not ended else modes.tolist())
            ):
                for row, images in enumerate((noisy, denoised)):
                    _picture(axes[row, b + left], images[b], colour)

    return FuncAnimation(figure, draw, frames=N + hold)
