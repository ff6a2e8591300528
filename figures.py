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
from matplotlib.figure import Figure
from torch import Tensor

COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#999999",
           "#FFFFFF", "#8B5FBF")


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
    if title:
        figure.suptitle(title, fontsize=10, y=0.995 if G > 4 else 1.06)
    return figure
