"""One HTML file that shows one or several evaluations, for a browser without a network.

`gather` turns what an evaluation wrote, and one of its sets sampled again, into plain values;
`page` renders them with templates/report.html, which escapes all of them. Pictures are data URIs: a
PNG for a frame, an SVG for points in the plane. Every number stands in <data value="...">, with all
the digits that metrics.json has.
"""

from __future__ import annotations

import math
import shlex
from dataclasses import fields
from base64 import b64encode
from io import BytesIO
from pathlib import Path
from typing import Any, Iterable, NamedTuple

import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image
from torch import Tensor

from config import EvaluationSettings, OriginSettings, WorldSettings
from diverse_sampling.denoiser import to_unit_range
from figures.drawing import COLOURS, SKY
from figures.sheets import as_drawn, mode_names, new_colours, noisy_image
from lab.names import METRICS, method_of, metric, source_of
from worlds.moving_digits import Mixture

SETS_SHOWN = 16  # the others unfold
NOTES = 3  # metrics beside each set
HEADLINES = ("modes_found", "quality", "confidence", "hm_iou", "within_3_sd")
NO_METRICS = ("modes_total", "modes_expected_iid", "num_sets", "batch_size", "version")
REACH = 1.35  # of the plane from its middle to an edge of its picture; the centres lie at 1
NOISY_REACH = 3.0  # likewise while there is noise


class Thumbnail(NamedTuple):
    """A picture in the page.

    Arguments:
        uri: its data
        alt: its description
        colour: of its border; None without one
    """

    uri: str
    alt: str
    colour: str | None = None


def number(value: float, like: float | None = None) -> str:
    """A number as text, with as many decimals as suit the size of `like` (None: of the number)."""
    if isinstance(value, int):
        return str(value)
    size = abs(value if like is None else like)
    if 0 < size < 1e-3 or size >= 1e5:
        return f"{value:.1e}"
    if size < 1:
        return f"{value:.3f}"
    if size < 10:
        return f"{value:.2f}"
    return f"{value:.1f}"


def heading(key: str) -> tuple[str, str]:
    """(name, note) of a metric, or of a metric of some of the sets, whose key is `part metric`."""
    part, _, name = key.rpartition(" ")
    wording = metric(name)
    note = ", ".join(text for text in (part, wording.note) if text)
    return wording.heading, note


def best_known_first(keys: Iterable[str]) -> list[str]:
    """Each metric once, in the order of METRICS, then those that are not there."""
    every = list(dict.fromkeys(keys))
    order = [*METRICS, *every]
    return sorted(every, key=order.index)


# ---------------------------------------------------------------- pictures


def uri(kind: str, data: bytes) -> str:
    """A picture of MIME type image/`kind` as a data URI."""
    return f"data:image/{kind};base64,{b64encode(data).decode()}"


def frame(image: Tensor) -> str:
    """The data URI of a frame (H, W) or, in colour, (3, H, W) in [0, 1], clamped."""
    levels = (image.nan_to_num().clamp(0, 1) * 255).round().byte()
    if levels.ndim == 3:
        levels = levels.movedim(0, -1).contiguous()
    file = BytesIO()
    Image.fromarray(levels.numpy()).save(file, "PNG", optimize=True)
    return uri("png", file.getvalue())


def plane(points: Tensor, colours: list[str | None], reach: float = REACH) -> str:
    """The data URI of points in the plane, over the mixture's circles of 2 sd.

    Arguments:
        points: (B, 2); those farther out than `reach` are drawn at the edge
        colours: of the points; without a colour they are rings
        reach: from the middle to each edge, in the unit of the points
    """
    mixture = Mixture()
    dot = reach / 24
    edge = reach + 2 * dot
    shapes = [
        f'<rect x="{-edge}" y="{-edge}" width="100%" height="100%" fill="#000"/>',
    ]
    for x, y in mixture.centres.tolist():
        shapes.append(f'<circle cx="{x:.3f}" cy="{-y:.3f}" r="{2 * mixture.sd}" fill="#454b54"/>')
    inside = points.nan_to_num().clamp(-reach, reach).tolist()
    for (x, y), colour in zip(inside, colours):
        shapes.append(
            f'<circle cx="{x:.3f}" cy="{-y:.3f}" r="{dot:.3f}" fill="{colour or "none"}" '
            f'stroke="#fff" stroke-width="{dot / 4:.4f}"/>'
        )
    view = f"{-edge} {-edge} {2 * edge} {2 * edge}"
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{view}">{"".join(shapes)}</svg>'
    return uri("svg+xml", svg.encode())


# ---------------------------------------------------------------- sets


def sheet(arrays: dict[str, Tensor], result: dict) -> list[dict]:
    """A record per set: {number, context, pictures, notes}.

    context: thumbnails of the last conditioning frame and of the correct answers
    pictures: thumbnails of the particles, the first in each mode with its colour; points in the
        plane share one
    notes: (name, value, of how many), some metrics of this set
    """
    keys = [
        key
        for key in METRICS
        if isinstance(result.get(key), dict)
        # Those over some sets only have no value for each.
        and len(result[key].get("per_set", ())) == len(arrays["samples"])
    ][:NOTES]
    names = mode_names(result) or range(result["modes_total"] or 0)
    sets = []
    for g, samples in enumerate(arrays["samples"]):
        context = [
            Thumbnail(frame(image), "the frame that is given") for image in arrays["cond"][g, -1:]
        ]
        if "answers" in arrays:
            for a, image in enumerate(arrays["answers"][g]):
                context.append(Thumbnail(frame(image), f"correct answer {a}"))
        modes = arrays["modes"][g].tolist() if "modes" in arrays else [-1] * len(samples)
        colours = new_colours(modes)
        if result["dataset"] == "mixture":
            alt = f"set {g}, {len(samples)} points in the plane"
            pictures = [Thumbnail(plane(samples[:, 0], colours), alt)]
        else:
            pictures = []
            for b, (image, mode, colour) in enumerate(zip(samples, modes, colours)):
                alt = f"particle {b}"
                if mode >= 0:
                    alt += f", mode {names[mode]}, {'new' if colour else 'again'}"
                pictures.append(Thumbnail(frame(image), alt, colour))
        notes = []
        for key in keys:
            total = result["modes_total"] if key == "modes_found" else None
            notes.append((METRICS[key].heading, result[key]["per_set"][g], total))
        sets.append(dict(number=g, context=context, pictures=pictures, notes=notes))
    return sets


# ---------------------------------------------------------------- the steps of a set


def chart(trace: dict[str, Tensor]) -> dict[str, Any]:
    """Norms of the two drifts per step on a logarithmic axis: {lines, xticks, yticks}.

    Coordinates are percentages of a plot whose y points down. There is a line per particle and one
    of their mean; a tick is (percentage, text).
    """
    num_steps = len(trace["sigmas"])
    x = torch.linspace(0, 100, num_steps).tolist()
    drifts = {name: trace[name] for name in ("ode", "guidance")}  # (N, B) each
    positive = torch.cat([values[values > 0] for values in drifts.values()]).log10()
    if not len(positive):
        return dict(lines=[], xticks=[], yticks=[])
    high = math.ceil(float(positive.max()) + 1e-6)
    low = max(math.floor(float(positive.min())), high - 6)

    def height(value: float) -> float:
        """The percentage from the top at which a norm is drawn; small ones at the bottom."""
        exponent = max(math.log10(max(value, 1e-30)), low)
        return 100 * (high - exponent) / (high - low)

    def points(values: Tensor, steps: list[int]) -> str:
        return " ".join(f"{x[n]:.2f},{height(values[n].item()):.2f}" for n in steps)

    lines = []
    for name, values in drifts.items():
        acts = (values.sum(1) > 0).nonzero()[:, 0].tolist()  # the steps where it is not 0
        if not acts:
            continue
        for particle in values.T:
            lines.append(dict(name=name, mean=False, points=points(particle, acts)))
        lines.append(dict(name=name, mean=True, points=points(values.mean(1), acts)))
    some = torch.linspace(0, num_steps - 1, min(5, num_steps)).round().long().tolist()
    return dict(
        lines=lines,
        xticks=[(x[n], f"{trace['sigmas'][n]:.2g}") for n in some],
        yticks=[(height(10.0**power), f"{10.0**power:g}") for power in range(low, high + 1)],
    )


def steps(trace: dict[str, Tensor], result: dict) -> list[dict]:
    """A record per step: sigma, the mean norms of both drifts, and pictures of all particles.

    Pictures are of x_n, scaled to unit variance of the noise, and of D(x_n).
    """

    records = []
    for n, sigma in enumerate(trace["sigmas"]):
        if result["dataset"] == "mixture":
            colours: list[str | None] = [SKY] * trace["denoised"].shape[1]
            scaled = trace["x_hat"][n, :, 0] / float(1 + sigma**2) ** 0.5
            noisy = [plane(scaled, colours, NOISY_REACH)]
            denoised = [plane(trace["denoised"][n, :, 0], colours)]
        else:
            noisy = [frame(image) for image in noisy_image(trace, n)]
            denoised = [frame(image) for image in to_unit_range(trace["denoised"][n])]
        records.append(
            dict(
                sigma=float(sigma),
                ode=float(trace["ode"][n].mean()),
                guidance=float(trace["guidance"][n].mean()),
                x=noisy,
                denoised=denoised,
            )
        )
    return records


def ended_otherwise(trace: dict[str, Tensor], samples: Tensor) -> list[int]:
    """The particles whose sample in the run is not where the traced steps lead.

    The trace holds samples (B, H, W), the run (B', H, W) with B' >= B.
    """
    ends = trace["samples"]
    apart = (ends - samples[: len(ends)]).abs().flatten(1).amax(1)
    is_near = apart < 0.05  # False for NaN
    return (~is_near).nonzero()[:, 0].tolist()


# ---------------------------------------------------------------- numbers and settings


def measured(result: dict) -> dict[str, dict]:
    """Every metric as {mean, ci95 where it has one}, those that matter most first.

    A metric of some of the sets has the key `part metric`, such as `multimode pairwise_l2`.
    """
    flat: dict[str, dict] = {}
    for key, value in result.items():
        if isinstance(value, dict) and "num_sets" in value:  # of some of the sets
            for name, part in value.items():
                if isinstance(part, dict):
                    flat[f"{key} {name}"] = part
        elif isinstance(value, dict) and "mean" in value:
            flat[key] = value
        elif isinstance(value, (int, float)) and key not in NO_METRICS:
            flat[key] = dict(mean=value)
    return {key: flat[key] for key in best_known_first(flat)}


def default_settings(result: dict) -> dict[str, Any]:
    """The defaults of all settings of an evaluation, those of its world where they depend on it.

    What it was made with has none.
    """
    world = dict(dataset=result["dataset"], frames=result["settings"].get("frames"))
    defaults = EvaluationSettings.from_values(world).record()
    defaults |= {f.name: result["settings"].get(f.name) for f in fields(OriginSettings)}
    return defaults | dict(dataset=WorldSettings.dataset, frames=WorldSettings.frames)


def gather(
    folder: str,
    name: str,
    result: dict,
    arrays: dict[str, Tensor],
    set_number: int,
    trace: dict[str, Tensor],
) -> dict[str, Any]:
    """What a page says of an evaluation.

    Arguments:
        folder: where the evaluation is
        name: what the page calls it
        result: its metrics.json
        arrays: those of its samples.npz
        set_number: the set that was sampled again
        trace: its steps, as `traces.trace` returns them
    """
    finite = {
        key: values.double().nan_to_num(posinf=1e30, neginf=-1e30) for key, values in trace.items()
    }
    settings = result["settings"]
    arrays = as_drawn(arrays, result)
    command = shlex.join(["python", "evaluate.py", "--config", str(Path(folder) / "config.yaml")])
    sources = dict(
        Command=command,
        Seed=settings["seed"],
        Device=result["device"],
        Digits=result["digits_source"],
        Commit=result["commit"],
        Samples=f"version {result['version']}" if "version" in result else None,
        Checkpoint=result["checkpoint_sha256"],
    ) | {library.capitalize(): version for library, version in result["versions"].items()}
    in_plane = result["dataset"] == "mixture"
    return dict(
        name=name,
        result=result,
        settings=settings,
        defaults=default_settings(result),
        title=f"{result['dataset']}, {method_of(settings)}",
        source=source_of(result),
        metrics=measured(result),
        sources=sources,
        sets=sheet(arrays, result),
        key=list(zip(mode_names(result), COLOURS)) if "modes" in arrays else [],
        set=set_number,
        columns=1 if in_plane else min(10, arrays["samples"].shape[1]),
        steps=steps(finite, result),
        chart=chart(finite),
        others=ended_otherwise(finite, arrays["samples"][set_number]),
    )


def page(runs: list[dict]) -> str:
    """The HTML of one or several evaluations, each as `gather` returns it."""
    keys = list(dict.fromkeys(key for run in runs for key in run["settings"] if key != "outdir"))
    different = set()  # between the runs
    changed = set()  # from the default in some run
    for key in keys:
        values = [run["settings"].get(key) for run in runs]
        if len({repr(value) for value in values}) > 1:
            different.add(key)
        for run in runs:
            if key in run["settings"] and run["settings"][key] != run["defaults"].get(key):
                changed.add(key)
    deviating = different | changed
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "template"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, heading=heading)
    return environment.get_template("report.html").render(
        runs=runs,
        shown=SETS_SHOWN,
        headlines=HEADLINES,
        different=different,
        metrics=best_known_first(key for run in runs for key in run["metrics"]),
        settings=[key for key in keys if key in deviating],
        same=[key for key in keys if key not in deviating],
    )
