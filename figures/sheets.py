"""Sheets: pictures of frames, in rows and columns.

Functions take tensors and return matplotlib figures, `denoising` an animation. They read and write
no files; `drawing.save` writes what they return. Frames are (H, W) in [0, 1] on a black background.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from diverse_sampling.denoiser import to_unit_range
from figures.drawing import (
    BLUE,
    COLOURS,
    LEGEND,
    ORANGE,
    SKY,
    VERMILION,
    Axes,
    Figure,
    FuncAnimation,
    add_title,
    grid_of_axes,
    new_figure,
    show_image,
)
from lab.names import METRICS, method_of
from worlds.channels import as_images, in_colours
from worlds.moving_digits import DIRECTIONS, Mixture
from worlds.own_data import OwnFrames, OwnPictures

SIDE = 0.85  # of a frame in a sheet, inches
GAPS = dict(wspace=0.06, hspace=0.06)
GAP = 0.22  # between what is given, right answers and samples, in sides of a frame
ARROWS = {  # of a digit that moves by (dy, dx), by their signs
    **{(0, 1): "→", (0, -1): "←", (1, 0): "↓", (-1, 0): "↑"},
    **{(1, 1): "↘", (1, -1): "↙", (-1, 1): "↗", (-1, -1): "↖"},
}
CLOSEST = 0.93  # noise levels of two frames of an animation, the lower relative to the upper
MOST_SETS = 16  # in the sheet of an evaluation


def new_colours(modes: Sequence[int]) -> list[str | None]:
    """A colour for each particle that is the first of its set in its mode, and None for the others.

    `modes` are those of one set; -1, which stands for no mode, has no colour either.
    """
    colours: list[str | None] = []
    for b, mode in enumerate(modes):
        is_new = mode >= 0 and mode not in modes[:b]
        colours.append(COLOURS[mode % len(COLOURS)] if is_new else None)
    return colours


def frame_grid(
    rows: Sequence[Sequence[Tensor]],
    titles: Mapping[int, str],
    *,
    left: Sequence[str] = (),
    right: Sequence[str] = (),
    colours: Sequence[Sequence[str | None]] = (),
    gaps: Sequence[int] = (),
    side: float = SIDE,
) -> tuple[Figure, np.ndarray]:
    """Frames in rows, which may have different lengths.

    Arguments:
        rows: frames (H, W) or, in colour, (3, H, W)
        titles: column -> what stands above it
        left: a line per row, at its left
        right: a line per row, at its right
        colours: of the borders of the last frames of each row; None for a thin grey one
        gaps: columns with a gap at their left
        side: of a frame, inches

    Returns the figure and its axes, an array (rows, columns).
    """
    widths: list[float] = []
    for column in range(max(map(len, rows))):
        widths += [GAP, 1.0] if column in gaps else [1.0]
    figure, axes = grid_of_axes(
        len(rows),
        len(widths),
        side * sum(widths) + 0.3,
        side * len(rows) + 0.4,
        gridspec_kw=GAPS | dict(width_ratios=widths),
    )
    for axis in axes.flat:
        axis.set_axis_off()
    for axis in axes[:, np.equal(widths, GAP)].flat:
        axis.remove()
    axes = axes[:, np.equal(widths, 1.0)]
    for n, frames in enumerate(rows):
        borders: list[str | None] = list(colours[n]) if colours else []
        borders[:0] = [None] * (len(frames) - len(borders))
        for axis, frame, colour in zip(axes[n], frames, borders):
            show_image(axis, frame, colour)
    for axis, text in zip(axes[:, 0], left):
        axis.set_ylabel(text, rotation=0, ha="right", va="center", fontsize=9)
    for axis, text in zip(axes[:, -1], right):
        axis.annotate(text, (1.08, 0.5), xycoords="axes fraction", va="center", fontsize=9)
    for column, text in titles.items():
        axes[0, column].set_title(text, fontsize=9)
    return figure, axes


def sample_sheet(
    cond: Tensor,
    samples: Tensor,
    *,
    answers: Tensor | None = None,
    modes: Tensor | None = None,
    title: str = "",
    notes: Sequence[str] = (),
    notes_title: str = "",
    labels: Sequence[str] = (),
    key: Sequence[str] = (),
    draws: int = 1,
    side: float = SIDE,
) -> Figure:
    """Each set a row: its last conditioning frame, the correct answers if known, its particles.

    Any of the images may be in colour, with an axis of 3 before H.

    Arguments:
        cond: (G, c, H, W), c may be 0
        samples: (G, B, H, W)
        answers: (G, k, H, W)
        modes: (G, B) int64; the first particle in a mode gets a border in the mode's colour,
            repeats and -1, which stands for no mode, get a thin grey one
        notes: a line per set, at its right, and `notes_title` above them
        labels: a line per set, at its left
        key: what each mode is called; below the sets, it explains the colours
        draws: how many draws in sequence a set is of, with a gap between them
        side: of a frame, inches
    """
    last = cond[:, -1:]
    correct = samples[:, :0] if answers is None else answers
    first = last.shape[1] + correct.shape[1]
    of_draw = range(first, first + samples.shape[1], samples.shape[1] // draws)
    titles = {column: f"draw {n}" for n, column in enumerate(of_draw, 1)}
    if draws == 1:
        titles = {first: "samples"}
    if answers is not None:
        titles[last.shape[1]] = "correct"
    if last.shape[1]:
        titles[0] = "given"
    figure, axes = frame_grid(
        [
            [*context, *right, *particles]
            for context, right, particles in zip(last, correct, samples)
        ],
        titles,
        left=labels,
        right=notes,
        colours=[] if modes is None else [new_colours(each) for each in modes.tolist()],
        gaps=sorted({last.shape[1], *of_draw} - {0}),
        side=side,
    )
    add_key(figure, key)
    if notes_title:
        axes[0, -1].annotate(
            notes_title, (1.08, 1.08), xycoords="axes fraction", va="bottom", fontsize=9
        )
    add_title(figure, title)
    return figure


def mode_names(result: dict) -> list[str]:
    """What each mode of an evaluation is called: the arrow of its direction, or its digit.

    Several digits have none: their modes are combinations. `result` is the metrics.json.
    """
    total = result["modes_total"] or 0
    if result["settings"].get("num_digits", 1) > 1:
        return []
    if result["dataset"] in ("circle_jumping", "horizontal"):
        signs = [tuple(np.sign(offset).tolist()) for offset in DIRECTIONS[:total]]
        return [ARROWS[sign] for sign in signs]
    if result["dataset"] in ("centered", "halves") and total == 10:
        return [str(digit) for digit in range(total)]
    return []


def add_key(figure: Figure, names: Sequence[str]) -> None:
    """Write below a sheet which mode each colour of `new_colours` stands for."""
    from matplotlib.patches import Patch

    if not names:
        return
    what = "of each digit" if names[0].isdigit() else "in each direction"
    figure.legend(
        handles=[
            Patch(facecolor="none", edgecolor=COLOURS[k], linewidth=2, label=name)
            for k, name in enumerate(names)
        ],
        title=f"coloured border: the first sample of a set {what}",
        title_fontsize=LEGEND,
        fontsize=LEGEND,
        alignment="left",
        frameon=False,
        ncols=len(names),
        loc="upper left",
        bbox_to_anchor=(figure.subplotpars.left, figure.subplotpars.bottom),
        borderaxespad=0.4,
        borderpad=0,
        handlelength=1.1,
        handleheight=1.1,
        columnspacing=1.6,
    )


def judging_metric(result: dict) -> str:
    """The key of the metric that a sheet shows beside the modes found."""
    if result["dataset"] != "frames":
        return "quality" if result["quality"] else "confidence"
    return next(key for key in ("hm_iou", "nearest_in_class", "iou_distance") if key in result)


def notes_title(result: dict) -> str:
    """What stands beside each set: the modes found, where there are modes, and a metric."""
    name = METRICS[judging_metric(result)].title
    return f"found, {name}" if result["modes_found"] else name


def as_drawn(arrays: dict[str, Tensor], result: dict) -> dict[str, Tensor]:
    """The arrays of a samples.npz, class labels in colours.

    `result` is the metrics.json of the evaluation.
    """
    classes = result.get("label_classes", 0)
    labels = {key: arrays[key] for key in ("samples", "answers") if classes and key in arrays}
    return arrays | {key: in_colours(values, classes) for key, values in labels.items()}


def result_sheet(arrays: dict[str, Tensor], result: dict) -> Figure:
    """The sample sheet of an evaluation, of its first sets, under the method and what it found.

    Arguments:
        arrays: those of its samples.npz
        result: its metrics.json
    """
    reached = []
    if result["modes_found"]:
        reached.append(f"{result['modes_found']['mean']:.2f} of {result['modes_total']} found")
    if result["dataset"] != "mixture":
        key = judging_metric(result)
        reached.append(f"{METRICS[key].title} {result[key]['mean']:.2f}")
    title = f"{result['dataset']}, {method_of(result['settings'])}: {', '.join(reached)}"
    if result["dataset"] == "mixture":
        found = result["modes_found"]["per_set"]
        return points_sheet({"": (arrays["samples"].flatten(2), found)}, title)
    first = {name: values[:MOST_SETS] for name, values in as_drawn(arrays, result).items()}
    return sample_sheet(
        first["cond"],
        first["samples"],
        answers=first.get("answers"),
        title=title,
        modes=first.get("modes"),
        notes=[note(result, g) for g in range(len(first["samples"]))],
        notes_title=notes_title(result),
        key=mode_names(result) if "modes" in first else (),
        draws=result["settings"].get("sequential", 1),
    )


def note(result: dict, set_number: int) -> str:
    """What stands beside one set of an evaluation under `notes_title`."""
    score = f"{result[judging_metric(result)]['per_set'][set_number]:.2f}"
    if not result["modes_found"]:
        return score
    return f"{result['modes_found']['per_set'][set_number]:.0f} of {result['modes_total']}, {score}"


def points_sheet(sets: Mapping[str, tuple[Tensor, Sequence[float]]], title: str = "") -> Figure:
    """The first sets of particles in the plane, a panel each, over the density of the mixture.

    Arguments:
        sets: what stands at the left of a row -> its points (G, B, 2), and how many modes each set
            found
    """
    mixture = Mixture()
    centres = mixture.centres
    columns = min(max(len(points) for points, _ in sets.values()), 6)
    rows = len(sets)
    figure, axes = grid_of_axes(
        rows,
        columns,
        1.5 * columns + 0.3,
        1.75 * rows,
        sharex=True,
        sharey=True,
        gridspec_kw=dict(wspace=0.06, hspace=0.22),
    )
    reach = float(centres.abs().max()) * 1.35
    line = torch.linspace(-reach, reach, 160)
    places = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1)  # (160, 160, 2)
    squared = (places[:, :, None] - centres).square().sum(-1)  # to each centre
    density = (-squared / (2 * mixture.sd**2)).exp().sum(-1)
    for row, (name, (points, counts)) in zip(axes, sets.items()):
        for axis, particles, count in zip(row, points, counts):
            axis.imshow(
                density, cmap="Blues", extent=(-reach, reach, -reach, reach), origin="lower"
            )
            axis.scatter(
                *particles.T, s=14, color=VERMILION, edgecolor="white", linewidth=0.5, zorder=2
            )
            axis.set(xlim=(-reach, reach), ylim=(-reach, reach), xticks=[-1, 0, 1])
            axis.set_yticks([-1, 0, 1])
            axis.set_title(f"{count:.0f} of {len(centres)}", fontsize=9)
            axis.tick_params(labelsize=7)
        row[0].set_ylabel(f"{name}\n$x_2$" if name else "$x_2$", fontsize=9)
    for axis in axes[-1]:
        axis.set_xlabel("$x_1$", fontsize=9)
    add_title(figure, title)
    return figure


def trajectory(trace: dict[str, Tensor], title: str = "") -> Figure:
    """What the sampler does to a set: for each of the first three particles a row of x_n above a
    row of D(x_n), at up to eleven of the steps.

    `trace` is as `traces.trace` returns it.
    """
    sigmas = trace["sigmas"]
    steps = torch.linspace(0, len(sigmas) - 1, min(11, len(sigmas))).round().long().tolist()
    num_particles = min(3, trace["denoised"].shape[1])
    rows = []
    for b in range(num_particles):
        rows.append([noisy_image(trace, n)[b] for n in steps])
        rows.append([to_unit_range(trace["denoised"][n, b]) for n in steps])
    figure, axes = frame_grid(
        rows,
        {column: f"{float(sigmas[n]):.3g}" for column, n in enumerate(steps)},
        left=["$x_n$", "$D(x_n)$"] * num_particles,
    )
    axes[0, 0].annotate(
        r"$\sigma_n$ =", (-0.1, 1.1), xycoords="axes fraction", ha="right", fontsize=9
    )
    add_title(figure, title)
    return figure


def trajectories(traces: dict[str, dict[str, Tensor]], title: str = "") -> Figure:
    """What samplers do to a set's first particle: a row of x_n above a row of D(x_n) for each, at
    up to eleven of the steps.

    `traces`: name -> as `traces.trace` returns it.
    """
    rows = []
    left = []
    right = []
    for name, trace in traces.items():
        count = len(trace["sigmas"])
        steps = torch.linspace(0, count - 1, min(11, count)).round().long().tolist()
        rows.append([noisy_image(trace, n)[0] for n in steps])
        rows.append([to_unit_range(trace["denoised"][n, 0]) for n in steps])
        left += ["$x_n$", "$D(x_n)$"]
        low, high = (f"{float(trace['sigmas'][n]):.3g}" for n in (-1, 0))
        right += [name, rf"$\sigma_n$ {high} to {low}"]
    figure, _ = frame_grid(rows, {}, left=left, right=right, side=0.6)
    add_title(figure, title)
    return figure


def noisy_image(trace: dict[str, Tensor], n: int) -> Tensor:
    """x_n of all particles of a trace, scaled to unit variance of the noise, in [0, 1] up to noise:
    (B, H, W) or (B, 3, H, W)."""
    return to_unit_range(trace["x_hat"][n] / float(1 + trace["sigmas"][n] ** 2) ** 0.5)


def world_sheet(
    frames: Tensor, positions: Tensor, choices: Tensor, *, digit_size: int, title: str = ""
) -> Figure:
    """Each sequence a row.

    An arrow, three times as long as the step, shows how a digit came here; frames that the ones
    before do not determine have an orange border.

    Arguments:
        frames: (N, T, H, W) in [0, 1]
        positions: (N, T, K, 2), the upper left corners (y, x) of the digits, px
        choices: (N, T) bool
        digit_size: side of a digit, px
    """
    figure, axes = frame_grid(
        [list(row) for row in frames],
        {t: f"t = {t}" for t in range(frames.shape[1])},
        colours=[[ORANGE if chosen else None for chosen in row] for row in choices.tolist()],
    )
    centres = (positions + (digit_size - 1) / 2).flip(-1)  # (N, T, K, 2) as (x, y)
    for n, row in enumerate(axes):
        for t in range(1, len(row)):
            row[t].quiver(
                *centres[n, t - 1].T,
                *3 * (centres[n, t] - centres[n, t - 1]).T,
                angles="xy",
                scale_units="xy",
                scale=1,
                width=0.04,
                headwidth=3.5,
                headlength=4,
                headaxislength=3.5,
                color=SKY,
            )
    add_title(figure, title)
    return figure


def outline_sheet(cond: Tensor, answers: Tensor, runs: Sequence[tuple[str, Tensor]]) -> Figure:
    """Each set a row of panels: the frame that was given, the outlines of the correct masks, and
    those of the samples of each run, over the share of correct masks that hold a pixel.

    Arguments:
        cond: (G, H, W)
        answers: (G, k, H, W)
        runs: the title of its column, and its samples (G, B, H, W)
    """
    columns = [("correct", answers), *runs]
    shares = 0.5 * (answers > 0.5).float().mean(1)  # (G, H, W)
    names = ["given", *(name for name, _ in columns)]
    figure, axes = frame_grid(
        [[frame, *[share] * len(columns)] for frame, share in zip(cond, shares)],
        dict(enumerate(names)),
        gaps=[1, 2],
        side=1.9,
    )
    for g, row in enumerate(axes):
        for axis, (_, masks) in zip(row[1:], columns):
            for k, mask in enumerate(masks[g]):
                draw_outline(axis, mask, COLOURS[k % len(COLOURS)])
    return figure


def draw_outline(axis: Axes, mask: Tensor, colour: str) -> None:
    """Draw the line that parts what is brighter than half in an image (H, W) from the rest."""
    if bool((mask > 0.5).any()) and not bool((mask > 0.5).all()):
        axis.contour(mask.clamp(0, 1), levels=[0.5], colors=[colour], linewidths=1.4)


def examples_sheet(world: OwnFrames, at_most: int = 3) -> Figure:
    """The first examples of a user's own frames, a row each, under a line of what was understood:
    all frames that are given, and all correct answers. Of pictures without a condition, a row of
    those of each class."""
    if isinstance(world, OwnPictures):
        return _classes_sheet(world, at_most)
    which = torch.arange(min(at_most, len(world)), device=world.starts.device)
    cond, answers, counts = world.pictures(which)
    titles = {0: "given"}
    if counts[0]:
        titles[cond.shape[1]] = "correct"
    rows = [[*cond[n], *answers[n, : counts[n]]] for n in range(len(cond))]
    figure, axes = frame_grid(rows, titles, side=1.3)
    add_title(figure, textwrap.fill(world.data.describe(), max(40, 18 * axes.shape[1])))
    return figure


def _classes_sheet(world: OwnPictures, at_most: int) -> Figure:
    """The first pictures of each class, a row each, under a line of what was understood."""
    names = world.class_names[:MOST_SETS] or [""]
    rows = [
        list(as_images(world.frames[world.starts[world.labels == label][:at_most]]))
        for label in range(len(names))
    ]
    figure, axes = frame_grid(rows, {}, left=names, side=1.3)
    add_title(figure, textwrap.fill(world.data.describe(), max(40, 18 * axes.shape[1])))
    return figure


def rollout_sheet(cond: Tensor, rollout: Tensor) -> Figure:
    """The first set, whose particles go on from their own frames: a row each, after the frames
    given.

    Arguments:
        cond: (G, c, H, W) or, in colour, (G, c, 3, H, W)
        rollout: (G, B, T, H, W) or (G, B, T, 3, H, W)
    """
    c = cond.shape[1]
    B, T = rollout.shape[1:3]
    titles = {t: "given" if t < c else f"+{t - c + 1}" for t in range(c + T)}
    rows = [[*cond[0], *frames] for frames in rollout[0]]
    return frame_grid(rows, titles, left=[f"particle {b}" for b in range(B)])[0]


def mean_sheet(
    cond: Tensor, samples: Tensor, labels: Sequence[str], notes: Sequence[str], title: str = ""
) -> Figure:
    """Each set a row: the frames that were given, the mean and the standard deviation of all its
    samples, pixel by pixel, and the first four of them.

    Arguments:
        cond: (G, Cc, H, W)
        samples: (G, B, H, W)
        labels: a line per set, at its left
        notes: a line per set, at its right
    """
    G, c = cond.shape[:2]
    B = samples.shape[1]
    mean = samples.mean(1, keepdim=True)
    deviation = samples.std(1, keepdim=True, correction=min(1, B - 1))
    some = samples[:, :4]
    names = [*["given"] * c, "mean", "deviation", *["sample"] * some.shape[1]]
    figure, _ = frame_grid(
        [list(row) for row in torch.cat([cond, mean, deviation, some], 1)],
        dict(enumerate(names)),
        left=labels,
        right=notes,
        colours=[[BLUE, None, *[None] * some.shape[1]]] * G,
        gaps=[c, c + 2],
    )
    add_title(figure, title)
    return figure


@dataclass
class DenoisedSet:
    """A set on its way from noise to samples.

    Arguments:
        title: what the animation calls it; several may have the same
        cond: (H, W) in [0, 1], the last conditioning frame, None without one
        trace: what `traces.trace` returns for this set
        modes: (B,) int64, the modes of its samples, None in a world without modes
        found: how many modes were found, in words; stands beside the samples
    """

    title: str
    cond: Tensor | None
    trace: dict[str, Tensor]
    modes: Tensor | None
    found: str = ""


def denoising(
    sets: Sequence[DenoisedSet], start: float = float("inf"), hold: int = 12
) -> FuncAnimation:
    """Sets on their way from noise to samples, an animation.

    Of each set it shows a row of x_n, scaled to unit variance of the noise, above a row of D(x_n),
    with the conditioning frame at their left. All sets are at the noise level of the title, or at
    the last step above it. Steps of nearly the same level share a frame. The last `hold` frames
    show the samples, with borders in the colours of new modes.

    Arguments:
        start: the noise level of the first frame, or the one below it at which a step begins
    """
    clock = sorted({round(float(s), 6) for one in sets for s in one.trace["sigmas"]}, reverse=True)
    clock = [sigma for sigma in clock if sigma <= start] or clock
    frames: list[float] = []
    for sigma in clock:
        if not frames or sigma <= CLOSEST * frames[-1]:
            frames.append(sigma)
    num_particles = max(one.trace["denoised"].shape[1] for one in sets)
    left = 0 if all(one.cond is None for one in sets) else 1
    columns = num_particles + left
    figure = new_figure(0.62 * columns, 1.55 * len(sets))
    parts = figure.subfigures(len(sets), 1, squeeze=False)[:, 0]
    place = dict(left=0.01, right=0.99, bottom=0.03, top=0.83)
    grids = [part.subplots(2, columns, squeeze=False, gridspec_kw=place | GAPS) for part in parts]

    def draw_set(one: DenoisedSet, part, axes, sigma: float | None) -> None:
        """A set at a noise level, or its samples at None."""
        if sigma is None:
            title = f"{one.title}: {one.found}" if one.found else one.title
            upper = lower = one.trace["samples"]
        else:
            title = rf"{one.title},  $\sigma$ = {sigma:.2g}"
            reached = (one.trace["sigmas"] >= sigma - 1e-5).nonzero()[:, 0]
            n = int(reached[-1]) if len(reached) else 0
            upper = noisy_image(one.trace, n)
            lower = to_unit_range(one.trace["denoised"][n])
        part.suptitle(title, x=0.01, y=0.99, ha="left", fontsize=10)
        for axis in axes.flat:
            axis.clear()
            axis.set_axis_off()
        if one.cond is not None:
            show_image(axes[1, 0], one.cond)
        modes = [-1] * len(upper)
        if sigma is None and one.modes is not None:
            modes = one.modes.tolist()
        for b, colour in enumerate(new_colours(modes)):
            show_image(axes[0, b + left], upper[b], colour)
            show_image(axes[1, b + left], lower[b], colour)

    def draw_frame(n: int) -> None:
        """One frame of the animation."""
        for one, part, axes in zip(sets, parts, grids):
            draw_set(one, part, axes, frames[n] if n < len(frames) else None)

    return FuncAnimation(figure, draw_frame, frames=len(frames) + hold)
