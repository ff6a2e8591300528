"""What all pictures share: their colours, figures that need no screen, titles, and files.

Figures are made by matplotlib's object interface and rendered by Agg, whatever MPLBACKEND names:
notebooks set it to a backend that other environments often lack. pyplot is never imported, so the
backend and the open figures of a program that uses this code stay as they are.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Union

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor


def import_matplotlib() -> None:
    """Import matplotlib although MPLBACKEND may name a backend that it does not accept.

    matplotlib checks the name when it is imported. A name that it accepts is still the default of
    pyplot afterwards; the environment is left as it was found.
    """
    if "matplotlib" in sys.modules:
        return
    backend = os.environ.pop("MPLBACKEND", None)
    import matplotlib

    if backend is None:
        return
    os.environ["MPLBACKEND"] = backend
    if backend:
        try:
            matplotlib.rcParams["backend"] = backend
        except ValueError:
            pass  # pyplot chooses one itself, as it does without MPLBACKEND


import_matplotlib()

from matplotlib.animation import FuncAnimation, PillowWriter  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

Picture = Union[Figure, FuncAnimation, str]  # a figure, an animation, the text of an HTML page

# The first seven are of the palette of Okabe and Ito (2008), which readers with any colour vision
# can tell apart; the others make it ten, one for each digit. None is taken for a grey.
COLOURS = (
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#F0E442",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
    "#A0693B",
    "#882255",
    "#8B5FBF",
)
ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILION = COLOURS[:6]
GREY = "#888888"
LEGEND = 8  # size of the text of every legend, points


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches."""
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def grid_of_axes(
    rows: int, columns: int, width: float, height: float, **options: Any
) -> tuple[Figure, np.ndarray]:
    """A figure of `width` x `height` inches and its axes, an array (rows, columns).

    `options` are those of `matplotlib.figure.Figure.subplots`.
    """
    figure = new_figure(width, height)
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def add_title(figure: Figure, title: str) -> None:
    """Write a title above the titles of the columns, whatever the figure's height."""
    top = figure.subplotpars.top + 0.25 / figure.get_figheight()
    figure.suptitle(title, fontsize=10, y=top, va="bottom")


def show_image(axis: Axes, image: Tensor, colour: str | None = None) -> None:
    """Draw an image (H, W) or, in colour, (3, H, W) in [0, 1], clamped, without ticks.

    `colour` is that of its border; without one the border is thin and grey.
    """
    axis.set_axis_on()
    levels = image.detach().cpu().clamp(0, 1)
    if levels.ndim == 3:
        levels = levels.movedim(0, -1)
    axis.imshow(levels, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axis.set(xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set_color(colour or "#606060")
        spine.set_linewidth(2 if colour else 0.5)


def save(picture: Picture, path: Path | str, dpi: int = 110) -> None:
    """Write a figure, an animation of six frames a second, or an HTML page. Raises OSError."""
    if isinstance(picture, str):
        Path(path).write_text(picture, encoding="utf-8")
    elif isinstance(picture, FuncAnimation):
        picture.save(path, writer=PillowWriter(fps=6), dpi=dpi)
    else:
        picture.savefig(path, dpi=dpi, bbox_inches="tight")


def attempt(write: Callable[[Path], Any], path: Path) -> bool:
    """Draw a picture of a run, and say whether that could be done.

    What made the picture is written already and matters more, so that an error, be it of LaTeX or
    of a full disk, costs a warning.

    Arguments:
        write: draws it and writes it to a path
        path: of the picture
    """
    try:
        write(path)
    except Exception as error:  # of whatever kind
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        print(f"WARNING: {path} cannot be drawn ({reason}); going on without it", file=sys.stderr)
        return False
    return True
