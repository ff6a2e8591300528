"""Sheets: pictures of frames, in rows and columns.

Functions take tensors and return matplotlib figures, `denoising` an animation. They read and write
no files; `drawing.save` writes what they return. Frames are (H, W) in [0, 1] on a black background.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import Sequence

import torch
from torch import Tensor

from drawing import (
    BLUE,
    COLOURS,
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
from channels import in_colours
from names import METRICS, method_of
from own_frames import OwnFrames
from ranges import to_unit_range
from worlds import Mixture

SIDE = 0.85  # of a frame in a sheet, inches
GAPS = dict(wspace=0.06, hspace=0.06)


def new_colours(modes: Sequence[int]) -> list[str | None]:
    """A colour for each particle that is the first of its set in its mode, and None for the others.

    `modes` are those of one set; -1, which stands for no mode, has no colour either.
    """
    colours: list[str | None] = []
    for b, mode in enumerate(modes):
        is_new = mode >= 0 and mode not in modes[:b]
        colours.append(COLOURS[mode % len(COLOURS)] if is_new else None)
    return colours


def write_left(axis: Axes, text: str) -> None:
    """Write horizontally at the left of a frame."""
    axis.set_ylabel(text, rotation=0, ha="right", va="center", fontsize=9)


def write_right(axis: Axes, text: str) -> None:
    """Write horizontally at the right of a frame."""
    axis.annotate(text, (1.08, 0.5), xycoords="axes fraction", va="center", fontsize=9)


def write_head(axis: Axes, text: str) -> None:
    """Write above what `write_right` puts beside the frames of a column."""
    axis.annotate(text, (1.08, 1.08), xycoords="axes fraction", va="bottom", fontsize=9)


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
    max_sets: int = 16,
) -> Figure:
    """Each set a row: its last conditioning frame, the correct answers where known, its particles.

    Any of the images may be in colour, with an axis of 3 before H.

    Arguments:
        cond: (G, c, H, W), where c may be 0
        samples: (G, B, H, W)
        answers: (G, k, H, W)
        modes: (G, B) int64; the first particle in a mode gets a border in the mode's colour,
            repeats and -1, which stands for no mode, get a thin grey one
        notes: a line per set, at its right, and `notes_title` above them
        labels: a line per set, at its left
        max_sets: sets to show, from the first
    """
    G = min(len(samples), max_sets)
    B = samples.shape[1]
    right = samples[:, :0] if answers is None else answers
    rows = [[*last, *correct] for last, correct in zip(cond[:, -1:], right)]
    first = len(rows[0])  # the column of the first particle
    columns = first + B
    figure, axes = grid_of_axes(G, columns, SIDE * columns + 0.3, SIDE * G + 0.4, gridspec_kw=GAPS)
    for g in range(G):
        for column in range(first):
            show_image(axes[g, column], rows[g][column])
        colours = new_colours([-1] * B if modes is None else modes[g].tolist())
        for b, colour in enumerate(colours):
            show_image(axes[g, first + b], samples[g, b], colour)
        if g < len(notes):
            write_right(axes[g, -1], notes[g])
        if g < len(labels):
            write_left(axes[g, 0], labels[g])
    if notes_title:
        write_head(axes[0, -1], notes_title)
    if first:
        axes[0, 0].set_title("given", fontsize=9)
    if answers is not None:
        axes[0, cond[:, -1:].shape[1]].set_title("correct", fontsize=9)
    axes[0, first].set_title("samples", fontsize=9)
    add_title(figure, title)
    return figure


def judging_metric(result: dict) -> str:
    """The key of the metric that a sheet shows beside the modes found."""
    if result["dataset"] == "frames":
        return "hm_iou" if "hm_iou" in result else "iou_distance"
    return "quality" if result["quality"] else "confidence"


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


def result_sheet(arrays: dict[str, Tensor], result: dict, title: str | None = None) -> Figure:
    """The sample sheet of an evaluation.

    Arguments:
        arrays: those of its samples.npz
        result: its metrics.json
        title: None for one that names the method and what was found
    """
    if result["dataset"] == "mixture":
        return points_sheet(arrays["samples"].flatten(2), Mixture(), result)
    modes = arrays.get("modes")
    key = judging_metric(result)
    name = METRICS[key].title
    notes = [f"{value:.2f}" for value in result[key]["per_set"]]
    found = ""
    if modes is not None:
        total = result["modes_total"]
        counts = result["modes_found"]["per_set"]
        notes = [f"{count:.0f} of {total}, {note}" for count, note in zip(counts, notes)]
        found = f"{result['modes_found']['mean']:.2f} of {total} found, "
    if title is None:
        title = f"{result['dataset']}, {method_of(result['settings'])}: "
        title += f"{found}{name} {result[key]['mean']:.2f}"
    arrays = as_drawn(arrays, result)
    return sample_sheet(
        arrays["cond"],
        arrays["samples"],
        answers=arrays.get("answers"),
        title=title,
        modes=modes,
        notes=notes,
        notes_title=notes_title(result),
    )


def points_sheet(points: Tensor, mixture: Mixture, result: dict, max_sets: int = 6) -> Figure:
    """Sets of particles (G, B, 2) in the plane, a panel each, over the density of the mixture.

    `result` is the metrics.json of the evaluation.
    """
    G = min(len(points), max_sets)
    centres = mixture.centres
    figure, axes = grid_of_axes(1, G, 2.1 * G, 2.3, sharey=True)
    reach = float(centres.abs().max()) * 1.35
    line = torch.linspace(-reach, reach, 160)
    places = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1)  # (160, 160, 2)
    squared = (places[:, :, None] - centres).square().sum(-1)  # to each centre
    density = (-squared / (2 * mixture.sd**2)).exp().sum(-1)
    for g, axis in enumerate(axes[0]):
        axis.imshow(density, cmap="Blues", extent=(-reach, reach, -reach, reach), origin="lower")
        axis.scatter(
            *points[g].T, s=14, color=VERMILION, edgecolor="white", linewidth=0.5, zorder=2
        )
        axis.set(xlim=(-reach, reach), ylim=(-reach, reach))
        count = result["modes_found"]["per_set"][g]
        axis.set_title(f"{count:.0f} of {len(centres)}", fontsize=9)
        axis.set_xlabel("$x_1$", fontsize=8)
        axis.tick_params(labelsize=7)
    axes[0, 0].set_ylabel("$x_2$", fontsize=8)
    found = f"{result['modes_found']['mean']:.2f} of {len(centres)} modes found"
    add_title(figure, f"{result['dataset']}, {method_of(result['settings'])}: {found}")
    return figure


def trajectory(
    x: Tensor, denoised: Tensor, sigmas: Tensor, *, title: str = "", columns: int = 11
) -> Figure:
    """What the sampler does to a set: for each particle a row of x_n above a row of D(x_n).

    Arguments:
        x: (N, B, H, W) or, in colour, (N, B, 3, H, W), frames in [-1, 1] plus noise; drawn scaled
            to unit variance of the noise
        denoised: (N, B, H, W) or (N, B, 3, H, W) in [-1, 1]
        sigmas: (N,), their noise levels, on the way down
        columns: steps to show, at equal distances
    """
    steps = torch.linspace(0, len(sigmas) - 1, min(columns, len(sigmas))).round().long().tolist()
    scaled = x / (1 + sigmas.to(x) ** 2).sqrt().view(-1, *[1] * (x.ndim - 1))
    B = x.shape[1]
    figure, axes = grid_of_axes(
        2 * B, len(steps), SIDE * len(steps) + 0.6, 2 * SIDE * B + 0.4, gridspec_kw=GAPS
    )
    for column, n in enumerate(steps):
        axes[0, column].set_title(f"{float(sigmas[n]):.3g}", fontsize=9)
        for b in range(B):
            show_image(axes[2 * b, column], to_unit_range(scaled[n, b]))
            show_image(axes[2 * b + 1, column], to_unit_range(denoised[n, b]))
    for b in range(B):
        write_left(axes[2 * b, 0], "$x_n$")
        write_left(axes[2 * b + 1, 0], "$D(x_n)$")
    axes[0, 0].annotate(
        r"$\sigma_n$ =", (-0.1, 1.1), xycoords="axes fraction", ha="right", fontsize=9
    )
    add_title(figure, title)
    return figure


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
    N, T = choices.shape
    figure, axes = grid_of_axes(N, T, SIDE * T + 0.2, SIDE * N + 0.3, gridspec_kw=GAPS)
    centres = (positions + (digit_size - 1) / 2).flip(-1)  # (N, T, K, 2) as (x, y)
    has_digits = positions.shape[2] > 0
    for n in range(N):
        for t in range(T):
            show_image(axes[n, t], frames[n, t], ORANGE if choices[n, t] else None)
            if t == 0 or not has_digits:
                continue
            x, y = centres[n, t - 1].T
            step_x, step_y = (centres[n, t] - centres[n, t - 1]).T
            axes[n, t].quiver(
                x,
                y,
                3 * step_x,
                3 * step_y,
                angles="xy",
                scale_units="xy",
                scale=1,
                width=0.04,
                headwidth=3.5,
                headlength=4,
                headaxislength=3.5,
                color=SKY,
            )
    for t in range(T):
        axes[0, t].set_title(f"t = {t}", fontsize=9)
    add_title(figure, title)
    return figure


def outline_sheet(
    given: Tensor, answers: Tensor, runs: Sequence[tuple[str, Tensor]], *, title: str = ""
) -> Figure:
    """Each set a row of panels: the frame that was given, the outlines of the correct masks, and
    those of the samples of each run, over the share of correct masks that hold a pixel.

    Arguments:
        given: (G, H, W)
        answers: (G, k, H, W)
        runs: the title of its column, and its samples (G, B, H, W)
    """
    columns = [("correct", answers), *runs]
    side = 1.9
    figure, axes = grid_of_axes(
        len(given),
        1 + len(columns),
        side * (1 + len(columns)),
        side * len(given) + 0.3,
        gridspec_kw=GAPS,
    )
    for g, row in enumerate(axes):
        show_image(row[0], given[g])
        for axis, (_, masks) in zip(row[1:], columns):
            show_image(axis, 0.5 * (answers[g] > 0.5).float().mean(0))
            for k, mask in enumerate(masks[g]):
                draw_outline(axis, mask, COLOURS[k % len(COLOURS)])
    for axis, text in zip(axes[0], ["given", *(text for text, _ in columns)]):
        axis.set_title(text, fontsize=10)
    add_title(figure, title)
    return figure


def draw_outline(axis: Axes, mask: Tensor, colour: str) -> None:
    """Draw the line that parts what is brighter than half in an image (H, W) from the rest."""
    if bool((mask > 0.5).any()) and not bool((mask > 0.5).all()):
        axis.contour(mask.clamp(0, 1), levels=[0.5], colors=[colour], linewidths=1.4)


def examples_sheet(world: OwnFrames, at_most: int = 3) -> Figure:
    """The first examples of a user's own frames, a row each, under a line of what was understood:
    all frames that are given, and all correct answers."""
    which = torch.arange(min(at_most, len(world)), device=world.starts.device)
    given, answers, counts = world.pictures(which)
    c = given.shape[1]
    columns = c + answers.shape[1]
    side = 1.3
    figure, axes = grid_of_axes(
        len(given), columns, side * columns + 0.2, side * len(given) + 0.5, gridspec_kw=GAPS
    )
    for n, row in enumerate(axes):
        for axis, image in zip(row, [*given[n], *answers[n, : counts[n]]]):
            show_image(axis, image)
        for axis in row[c + counts[n] :]:
            axis.set_axis_off()
    axes[0, 0].set_title("given", fontsize=9)
    if counts[0]:
        axes[0, c].set_title("correct", fontsize=9)
    add_title(figure, textwrap.fill(world.data.describe(), max(40, 18 * columns)))
    return figure


def rollout_sheet(cond: Tensor, rollout: Tensor, set_number: int = 0) -> Figure:
    """A set whose particles go on from their own frames: a row each, after the frames given.

    Arguments:
        cond: (G, c, H, W) or, in colour, (G, c, 3, H, W)
        rollout: (G, B, T, H, W) or (G, B, T, 3, H, W)
        set_number: the set to show
    """
    c, (B, T) = cond.shape[1], rollout.shape[1:3]
    figure, axes = grid_of_axes(B, c + T, SIDE * (c + T) + 0.2, SIDE * B + 0.4, gridspec_kw=GAPS)
    for b, row in enumerate(axes):
        for axis, image in zip(row, [*cond[set_number], *rollout[set_number, b]]):
            show_image(axis, image)
        write_left(row[0], f"particle {b}")
    for t, axis in enumerate(axes[0]):
        axis.set_title("given" if t < c else f"+{t - c + 1}", fontsize=9)
    return figure


def mean_sheet(
    given: Tensor, samples: Tensor, names: Sequence[str], notes: Sequence[str], title: str = ""
) -> Figure:
    """Each set a row: the frames that were given, the mean and the standard deviation of all its
    samples, pixel by pixel, and the first four of them.

    Arguments:
        given: (G, Cc, H, W)
        samples: (G, B, H, W)
        names: a line per set, at its left
        notes: a line per set, at its right
    """
    mean = samples.mean(1, keepdim=True)
    deviation = samples.std(1, keepdim=True, correction=min(1, samples.shape[1] - 1))
    some = samples[:, :4]
    rows = torch.cat([given, mean, deviation, some], 1)
    titles = ["given"] * given.shape[1]
    titles += [f"mean of {samples.shape[1]}", "deviation"]
    titles += ["sample"] * some.shape[1]
    figure, axes = grid_of_axes(
        len(rows), len(titles), 1.05 * len(titles), 1.05 * len(rows) + 0.3, gridspec_kw=GAPS
    )
    for g, images in enumerate(rows):
        for column, image in enumerate(images):
            is_mean = column == given.shape[1]
            show_image(axes[g, column], image, BLUE if is_mean else None)
        write_left(axes[g, 0], names[g])
        write_right(axes[g, -1], notes[g])
    for axis, text in zip(axes[0], titles):
        axis.set_title(text, fontsize=9)
    add_title(figure, title)
    return figure


@dataclass
class DenoisedSet:
    """A set on its way from noise to samples.

    Arguments:
        title: what the animation calls it; several may have the same
        given: (H, W) in [0, 1], the last conditioning frame, None without one
        trace: what `trace` of the evaluation returns for this set
        modes: (B,) int64, the modes of its samples, None where the world has none
    """

    title: str
    given: Tensor | None
    trace: dict[str, Tensor]
    modes: Tensor | None


def denoising(sets: Sequence[DenoisedSet], hold: int = 12) -> FuncAnimation:
    """Sets on their way from noise to samples, an animation.

    Of each set it shows a row of x_n, scaled to unit variance of the noise, above a row of D(x_n),
    with the conditioning frame at their left. The last `hold` frames show the samples, with borders
    in the colours of new modes. A set of fewer steps than the longest shows its samples earlier.
    """
    num_steps = max(len(one.trace["sigmas"]) for one in sets)
    num_particles = max(one.trace["denoised"].shape[1] for one in sets)
    left = 0 if all(one.given is None for one in sets) else 1
    columns = num_particles + left
    figure = new_figure(0.62 * columns, 1.55 * len(sets))
    parts = figure.subfigures(len(sets), 1, squeeze=False)[:, 0]
    place = dict(left=0.01, right=0.99, bottom=0.03, top=0.83)
    grids = [part.subplots(2, columns, squeeze=False, gridspec_kw=place | GAPS) for part in parts]

    def draw_set(one: DenoisedSet, part, axes, n: int) -> None:
        """Step n of one set, or its samples once its steps are over."""
        trace = one.trace
        has_ended = n >= len(trace["sigmas"])
        title = one.title
        if has_ended:
            upper = lower = trace["samples"]
        else:
            sigma = float(trace["sigmas"][n])
            title += rf",  $\sigma$ = {sigma:.2g}"
            upper = to_unit_range(trace["x_hat"][n] / (1 + sigma**2) ** 0.5)
            lower = to_unit_range(trace["denoised"][n])
        part.suptitle(title, x=0.01, y=0.99, ha="left", fontsize=10)
        for axis in axes.flat:
            axis.clear()
            axis.set_axis_off()
        if one.given is not None:
            show_image(axes[1, 0], one.given)
        modes = [-1] * len(upper)
        if has_ended and one.modes is not None:
            modes = one.modes.tolist()
        for b, colour in enumerate(new_colours(modes)):
            show_image(axes[0, b + left], upper[b], colour)
            show_image(axes[1, b + left], lower[b], colour)

    def draw(n: int) -> None:
        """One frame of the animation."""
        for one, part, axes in zip(sets, parts, grids):
            draw_set(one, part, axes, n)

    return FuncAnimation(figure, draw, frames=num_steps + hold)
