"""Drawings of sets, worlds and schedules. Functions take tensors and return matplotlib
figures; no files are read here, and `save` is the only one that writes.

Images are (H, W) in [0, 1], black background. Colours are from the Okabe-Ito palette,
which readers with any colour vision can tell apart.
"""
from __future__ import annotations

from pathlib import Path
from typing import Sequence

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import Tensor

from data_loader import Mixture

COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#999999",
           "#882255", "#8B5FBF")


def save(figure: Figure, path: Path | str, dpi: int = 110) -> None:
    figure.savefig(path, dpi=dpi, bbox_inches="tight")
    plt.close(figure)


def _picture(axis, image: Tensor, colour: str | None = None, width: float = 2.0) -> None:
    """One image without ticks, framed in `colour`."""
    axis.imshow(image.detach().cpu().clamp(0, 1), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axis.set_xticks([]), axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_color(colour or "#606060")
        spine.set_linewidth(width if colour else 0.5)


def _title(figure: Figure, title: str) -> None:
    """Above the titles of the columns, whatever the figure's height."""
    top = figure.subplotpars.top + 0.25 / figure.get_figheight()
    figure.suptitle(title, fontsize=10, y=top, va="bottom")


def sample_sheet(cond: Tensor, samples: Tensor, *, title: str = "", modes: Tensor | None = None,
                 notes: Sequence[str] = (), max_sets: int = 16) -> Figure:
    """Each set a row: its last conditioning frame, then its particles.

    cond (G, Cc, H, W), Cc may be 0; samples (G, B, H, W); modes (G, B) int: the first
    particle that found a mode gets a frame in the mode's colour, repeats get a thin grey
    one; notes: a line per set, written at its right.
    """
    G, B = min(len(samples), max_sets), samples.shape[1]
    first = 1 if cond.shape[1] else 0
    figure, axes = plt.subplots(G, B + first, figsize=(0.85 * (B + first) + 0.3, 0.85 * G + 0.4),
                                squeeze=False, gridspec_kw=dict(wspace=0.06, hspace=0.06))
    for g in range(G):
        if first:
            _picture(axes[g, 0], cond[g, -1])
        seen: set[int] = set()
        for b in range(B):
            mode = int(modes[g, b]) if modes is not None else None
            new = mode is not None and mode not in seen
            seen |= {mode}
            _picture(axes[g, b + first], samples[g, b], COLOURS[mode % len(COLOURS)] if new else None)
        if len(notes) > g:
            axes[g, -1].annotate(notes[g], (1.08, 0.5), xycoords="axes fraction", va="center", fontsize=9)
    if first:
        axes[0, 0].set_title("given", fontsize=9)
    axes[0, first].set_title("samples", fontsize=9)
    _title(figure, title)
    return figure


def result_sheet(cond: Tensor, samples: Tensor, modes: Tensor | None, result: dict,
                 title: str | None = None) -> Figure:
    """The sample sheet of an evaluation: `result` is the record in its metrics.json. Without a `title`
    it gets one that says what was found."""
    if result["dataset"] == "mixture":
        return points_sheet(samples.flatten(2), Mixture(), result)
    total, settings = result["modes_total"], result["settings"]
    notes = [f"{quality:.1f}" for quality in result["quality"]["per_set"]]
    found = ""
    if modes is not None:
        notes = [f"{found:.0f}/{total}, {note}" for found, note in zip(result["modes_found"]["per_set"], notes)]
        found = f"{result['modes_found']['mean']:.2f} of {total} found, "
    if title is None:
        strength = f" {settings['pg_factor']:g}" if settings["guidance"] in ("pg", "reference") else ""
        title = (f"{result['dataset']}, guidance {settings['guidance']}{strength}, noise {settings['noise']}: "
                 f"{found}quality {result['quality']['mean']:.2f}")
    return sample_sheet(cond, samples, title=title, modes=modes, notes=notes)


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
        axes[0, g].scatter(*points[g].T, s=14, color=COLOURS[5], edgecolor="white", linewidth=0.5, zorder=2)
        axes[0, g].set_xlim(-reach, reach), axes[0, g].set_ylim(-reach, reach)
        axes[0, g].set_title(f"{result['modes_found']['per_set'][g]:.0f} of {len(centres)}", fontsize=9)
        axes[0, g].tick_params(labelsize=7)
    _title(figure, f"{result['modes_found']['mean']:.2f} of {len(centres)} modes found")
    return figure


def trajectory(x: Tensor, denoised: Tensor, sigmas: Tensor, *, title: str = "", columns: int = 11) -> Figure:
    """What the sampler does to a set: for each particle a row of x_n, scaled to unit variance of the
    noise, above a row of D(x_n).

    x, denoised (N, B, H, W) in [-1, 1] plus noise, at the noise levels `sigmas` (N,) on the way down.
    """
    steps = torch.linspace(0, len(sigmas) - 1, min(columns, len(sigmas))).round().long()
    scaled = x / (1 + sigmas.to(x)**2).sqrt()[:, None, None, None]
    B = x.shape[1]
    figure, axes = plt.subplots(2 * B, len(steps), figsize=(0.85 * len(steps) + 0.6, 1.7 * B + 0.4),
                                squeeze=False, gridspec_kw=dict(wspace=0.06, hspace=0.06))
    for column, n in enumerate(steps.tolist()):
        axes[0, column].set_title(f"{float(sigmas[n]):.3g}", fontsize=9)
        for b in range(B):
            _picture(axes[2 * b, column], (scaled[n, b] + 1) / 2)
            _picture(axes[2 * b + 1, column], (denoised[n, b] + 1) / 2)
    for b in range(B):
        axes[2 * b, 0].set_ylabel("$x_n$", rotation=0, ha="right", va="center", fontsize=9)
        axes[2 * b + 1, 0].set_ylabel("$D(x_n)$", rotation=0, ha="right", va="center", fontsize=9)
    axes[0, 0].annotate(r"$\sigma_n$ =", (-0.1, 1.1), xycoords="axes fraction", ha="right", fontsize=9)
    _title(figure, title)
    return figure


def world_sheet(frames: Tensor, positions: Tensor, choices: Tensor, *, digit_size: int, title: str = "") -> Figure:
    """Each sequence a row. An arrow, three times as long as the step, shows how a digit came here; frames
    that the ones before do not determine have an orange border.

    frames (N, T, H, W) in [0, 1], positions (N, T, K, 2) px, choices (N, T) bool.
    """
    N, T = choices.shape
    figure, axes = plt.subplots(N, T, figsize=(0.85 * T + 0.2, 0.85 * N + 0.3), squeeze=False,
                                gridspec_kw=dict(wspace=0.06, hspace=0.06))
    middles = (positions + (digit_size - 1) / 2).flip(-1)                           # (N, T, K, 2) as (x, y)
    for n in range(N):
        for t in range(T):
            _picture(axes[n, t], frames[n, t], COLOURS[0] if choices[n, t] else None)
            if t:
                (x, y), (dx, dy) = middles[n, t - 1].T, (middles[n, t] - middles[n, t - 1]).T
                axes[n, t].quiver(x, y, 3 * dx, 3 * dy, angles="xy", scale_units="xy", scale=1, width=0.04,
                                  headwidth=3.5, headlength=4, headaxislength=3.5, color=COLOURS[1])
    for t in range(T):
        axes[0, t].set_title(f"t = {t}", fontsize=9)
    _title(figure, title)
    return figure


def schedules(curves: dict[str, Tensor]) -> Figure:
    """Noise levels over the steps, a line per schedule: name -> sigmas (N + 1,), the last one 0."""
    figure, axis = plt.subplots(figsize=(5.5, 3.4))
    for (name, sigmas), colour in zip(curves.items(), COLOURS):
        axis.semilogy(range(len(sigmas) - 1), sigmas[:-1], "o-", ms=3, lw=1.2, color=colour, label=name)
    axis.set_xlabel(r"step $n$ (then $\sigma = 0$)")
    axis.set_ylabel(r"noise level $\sigma_n$")
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    return figure
