"""One HTML file of one or several evaluations, for a browser without a network.

`gather` turns what an evaluation wrote, and one of its sets sampled again, into plain values; `page` puts them
into templates/report.html, which escapes them all. Pictures are data URIs: a PNG for a frame, an SVG for points
in the plane. Numbers stand in <data value="...">, where they are as metrics.json has them.
"""

from __future__ import annotations

import math
import shlex
from base64 import b64encode
from io import BytesIO
from pathlib import Path
from typing import Any, Iterable

import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image
from torch import Tensor

from config import WorldSettings, record
from drawing import COLOURS
from records import method_of, source_of
from sheets import new_colours
from worlds import Mixture

SETS_SHOWN = 16  # others unfold
LABELS = dict(  # what is known best comes first; numbers that are not here go by their own names
    modes_found=("Modes found", "mean over sets"),
    quality=("Quality", "L2, less is better"),
    confidence=("Confidence", "of the judging classifier"),
    hm_iou=("HM IoU*", "1 is perfect"),
    mean_iou=("Mean IoU", "with the most alike answer"),
    within_3_sd=("Within 3 sd", "share of points this near a centre"),
    largest_distance_sd=("Largest distance", "from a centre, sd"),
    ged=("Energy distance", "generalised, squared; 0 is perfect"),
    iou_distance=("IoU distance", "inside a set"),
    pairwise_l2=("L2 distance", "inside a set"),
    centroid_spread=("Spread of centroids", "inside a set, px"),
    count_variance_ratio=("Variance of counts", "over binomial"),
    network_calls=("Network calls", "per particle"),
    backward_calls=("Backward calls", "per particle"),
    seconds=("Seconds", "of sampling"),
)
NO_METRICS = ("modes_total", "modes_expected_iid", "num_sets", "batch_size")


def number(value: float, like: float | None = None) -> str:
    """A number for readers, with the decimals that suit `like` (None: itself)."""
    size = abs(value if like is None else like)
    decimals = (
        ".1e"
        if 0 < size < 1e-3 or size >= 1e5
        else ".3f"
        if size < 1
        else ".2f"
        if size < 10
        else ".1f"
    )
    return str(value) if isinstance(value, int) else format(value, decimals)


def label(metric: str) -> tuple[str, str]:
    """(name, note) of a metric, or of one of a part of the sets: `part metric`."""
    part, _, key = metric.rpartition(" ")
    name, note = LABELS.get(key, (key.replace("_", " ").capitalize(), ""))
    return name, ", ".join(filter(None, (part, note)))


def best_known_first(metrics: Iterable[str]) -> list[str]:
    """Each metric once, in the order of LABELS, then those that are not there."""
    every = list(dict.fromkeys(metrics))
    return sorted(every, key=[*LABELS, *every].index)


# ---------------------------------------------------------------- pictures


def uri(kind: str, data: bytes) -> str:
    """A picture as a data URI."""
    return f"data:image/{kind};base64,{b64encode(data).decode()}"


def frame(image: Tensor) -> str:
    """A frame (H, W) in [0, 1] (clamped)."""
    levels, file = (image.nan_to_num().clamp(0, 1) * 255).round().byte(), BytesIO()
    Image.fromarray(levels.numpy()).save(file, "PNG", optimize=True)
    return uri("png", file.getvalue())


def plane(points: Tensor, colours: list[str | None], reach: float = 1.35) -> str:
    """Points (B, 2) over the mixture's circles of 2 sd, those farther out than `reach` at the edge; without
    a colour they are rings."""
    mixture, dot = Mixture(), reach / 24
    circles = [
        f'<circle cx="{x:.3f}" cy="{-y:.3f}" r="{2 * mixture.sd}" fill="#454b54"/>'
        for x, y in mixture.centres.tolist()
    ]
    circles += [
        f'<circle cx="{x:.3f}" cy="{-y:.3f}" r="{dot:.3f}" fill="{fill}" stroke="#fff" '
        f'stroke-width="{dot / 4:.4f}"/>'
        for (x, y), fill in zip(
            points.nan_to_num().clamp(-reach, reach).tolist(),
            (colour or "none" for colour in colours),
        )
    ]
    edge = reach + 2 * dot
    return uri(
        "svg+xml",
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{-edge} {-edge} {2 * edge} {2 * edge}">'
            f'<rect x="{-edge}" y="{-edge}" width="100%" height="100%" fill="#000"/>'
            f"{''.join(circles)}</svg>"
        ).encode(),
    )


def sheet(arrays: dict[str, Tensor], result: dict) -> list[dict]:
    """A record per set: its number; what is given, the last conditioning frame and right answers (uri, alt); its
    pictures (uri, alt, colour of a mode that is new to the set); the notes (label, value, of how many) that judge
    it."""
    judged = [
        key for key in LABELS if isinstance(result.get(key), dict) and "per_set" in result[key]
    ][:3]
    sets = []
    pictures: list[tuple[str, str, str | None]]
    for g, samples in enumerate(arrays["samples"]):
        modes = arrays["modes"][g].tolist() if "modes" in arrays else [-1] * len(samples)
        colours = new_colours(modes)
        if result["dataset"] == "mixture":
            pictures = [
                (
                    plane(samples[:, 0], colours),
                    f"set {g}, {len(samples)} points in the plane",
                    None,
                )
            ]
        else:
            said = [
                f", mode {mode}, {'new' if colour else 'again'}" if mode >= 0 else ""
                for mode, colour in zip(modes, colours)
            ]
            pictures = [
                (frame(image), f"particle {b}{said[b]}", colours[b])
                for b, image in enumerate(samples)
            ]
        given = [(frame(image), "the frame that is given") for image in arrays["cond"][g, -1:]]
        given += (
            [(frame(image), f"right answer {a}") for a, image in enumerate(arrays["answers"][g])]
            if "answers" in arrays
            else []
        )
        notes = [
            (
                LABELS[key][0],
                result[key]["per_set"][g],
                result["modes_total"] if key == "modes_found" else None,
            )
            for key in judged
        ]
        sets.append(dict(number=g, given=given, pictures=pictures, notes=notes))
    return sets


# ---------------------------------------------------------------- the steps of a set


def chart(trace: dict[str, Tensor]) -> dict[str, Any]:
    """Norms of the two drifts per step on a logarithmic axis, in per cent of a plot whose y points down: a line
    per particle and one of their mean, and ticks (per cent, text)."""
    x = torch.linspace(0, 100, len(trace["sigmas"])).tolist()
    drifts = {name: (trace[name], trace[name].sum(1) > 0) for name in ("ode", "guidance")}
    positive = torch.cat([values[values > 0] for values, _ in drifts.values()]).log10()
    if not len(positive):
        return dict(lines=[], xticks=[], yticks=[])
    high = math.ceil(float(positive.max()) + 1e-6)
    low = max(math.floor(float(positive.min())), high - 6)
    height = lambda value: 100 * (high - max(math.log10(max(value, 1e-30)), low)) / (high - low)
    lines = []
    for name, (values, acts) in drifts.items():
        columns = [*values.T, values.mean(1)] if acts.any() else []
        lines += [
            dict(
                name=name,
                mean=column is columns[-1],
                points=" ".join(
                    f"{x[n]:.2f},{height(column[n].item()):.2f}"
                    for n in acts.nonzero()[:, 0].tolist()
                ),
            )
            for column in columns
        ]
    some = torch.linspace(0, len(x) - 1, min(5, len(x))).round().long().tolist()
    return dict(
        lines=lines,
        xticks=[(x[n], f"{trace['sigmas'][n]:.2g}") for n in some],
        yticks=[(height(10.0**power), f"{10.0**power:g}") for power in range(low, high + 1)],
    )


def steps(trace: dict[str, Tensor], result: dict) -> list[dict]:
    """A record per step: sigma, the mean norms of both drifts, and pictures of x_n, scaled to unit variance of the
    noise, and of D(x_n)."""

    def drawn(particles: Tensor, reach: float) -> list[str]:
        if result["dataset"] == "mixture":
            return [plane(particles[:, 0], [COLOURS[1]] * len(particles), reach)]
        return [frame((image + 1) / 2) for image in particles]

    return [
        dict(
            sigma=float(sigma),
            ode=float(trace["ode"][n].mean()),
            guidance=float(trace["guidance"][n].mean()),
            x=drawn(trace["x_hat"][n] / float(1 + sigma**2) ** 0.5, 3.0),
            denoised=drawn(trace["denoised"][n], 1.35),
        )
        for n, sigma in enumerate(trace["sigmas"])
    ]


def ended_otherwise(trace: dict[str, Tensor], samples: Tensor) -> list[int]:
    """The particles that the run has another sample of than the steps lead to: (B, H, W), (B' >= B, H, W)."""
    ends = trace["samples"]
    apart = (ends - samples[: len(ends)]).abs().flatten(1).amax(1)
    return (~(apart < 0.05)).nonzero()[:, 0].tolist()


# ---------------------------------------------------------------- numbers and settings


def measured(result: dict) -> dict[str, dict]:
    """name -> {mean, and ci95 where there is one}; those of a part of the sets are called `part name`."""
    flat: dict[str, dict] = {}
    for key, value in result.items():
        if isinstance(value, dict) and "num_sets" in value:  # of some of the sets
            flat |= {
                f"{key} {name}": part for name, part in value.items() if isinstance(part, dict)
            }
        elif isinstance(value, dict) and "mean" in value:
            flat[key] = value
        elif isinstance(value, (int, float)) and key not in NO_METRICS:
            flat[key] = dict(mean=value)
    return {key: flat[key] for key in best_known_first(flat)}


def gather(
    folder: str, result: dict, arrays: dict[str, Tensor], job, number: int, trace: dict
) -> dict[str, Any]:
    """What a page says of the evaluation in `folder`: `result`, its metrics.json; `arrays`, its samples.npz; `job`,
    set up again, and `trace` of its set `number` (`Evaluation.trace`)."""
    trace = {
        key: values.double().nan_to_num(posinf=1e30, neginf=-1e30) for key, values in trace.items()
    }
    world = WorldSettings(dataset=result["dataset"], frames=result["settings"].get("frames"))
    defaults = (
        record(*(group() for group in job.settings))
        | record(world)
        | dict(dataset=WorldSettings.dataset, frames=None)
    )
    settings = result["settings"]
    command = shlex.join(["python", "evaluate.py", "--config", str(Path(folder) / "config.yaml")])
    sources = dict(
        Command=command,
        Seed=settings["seed"],
        Device=result["device"],
        Digits=result["digits_source"],
        Commit=result["commit"],
        Checkpoint=result["checkpoint_sha256"],
        **{name.capitalize(): version for name, version in result["versions"].items()},
    )
    return dict(
        name=Path(folder).resolve().name,
        result=result,
        settings=settings,
        defaults=defaults,
        title=method_of(result),
        source=source_of(result),
        metrics=measured(result),
        sources=sources,
        sets=sheet(arrays, result),
        set=number,
        columns=1 if result["dataset"] == "mixture" else min(10, arrays["samples"].shape[1]),
        steps=steps(trace, result),
        chart=chart(trace),
        others=ended_otherwise(trace, arrays["samples"][number]),
    )


def page(runs: list[dict]) -> str:
    """The HTML of one or several evaluations, as `gather` gives them."""
    keys = list(dict.fromkeys(key for run in runs for key in run["settings"] if key != "outdir"))
    between = {key for key in keys if len({repr(run["settings"].get(key)) for run in runs}) > 1}
    changed = {
        key
        for key in keys
        for run in runs
        if key in run["settings"] and run["settings"][key] != run["defaults"].get(key)
    } | between
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, label=label)
    return environment.get_template("report.html").render(
        runs=runs,
        shown=SETS_SHOWN,
        between=between,
        metrics=best_known_first(key for run in runs for key in run["metrics"]),
        settings=[key for key in keys if key in changed],
        same=[key for key in keys if key not in changed],
    )
