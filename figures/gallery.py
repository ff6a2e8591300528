"""Gallery: the pictures of finished runs and of worlds.

Functions return (a picture, the path of the file that it goes to unless the user says otherwise).
Those of a run take its folder. Some draw what is there; others sample a set again, with the
settings that its result records. They raise SettingError for a folder that they cannot draw.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Iterator, Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from config import DigitSettings, SamplerSettings, WorldSettings, build
from data_loader import load_world
from diverse_sampling.errors import SettingError, reject
from diverse_sampling.noise import set_generator
from diverse_sampling.steps import Window, karras_sigmas, window_schedule
from figures import charts, report, sheets
from figures.drawing import Figure, Picture
from figures.traces import trace
from lab import assemble, checkpoint
from lab.metrics import without_background
from lab.names import named
from lab.records import experiment_of, finished, is_experiment, label, result_of
from worlds.own_data import OwnFrames

Rows = Sequence[dict[str, Any]]  # the cells of an experiment: {cell, result}

FILM_START = 1.5  # of the upper end of the window, the noise level at which an animation starts
# UMAP compares each digit with this many others, on a map of so many real ones.
UMAP_NEIGHBOURS = 15
UMAP_DIGITS = 2000


def sampled_again(result: dict[str, Any], set_number: int = 0) -> assemble.Evaluation:
    """The evaluation that a result records, ready to sample a set again. Raises SettingError."""
    evaluation = assemble.set_up(*assemble.complete(result["settings"]))
    num_sets = evaluation.task.num_sets
    if set_number >= num_sets:
        reject("set", set_number, f"0 to {num_sets - 1}, the sets of this run")
    return evaluation


def short_names(runs: Sequence[str]) -> list[str]:
    """A name for each folder: its own, with its parents' if different folders share it."""
    parts = [Path(run).resolve().parts for run in runs]
    names: list[str] = []
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(folders[-length:]) for folders in parts]
        if len(set(names)) == len(set(parts)):
            break
    return names


def beside(runs: Sequence[str], name: str) -> Path:
    """The path of a file about runs: in the folder of one, of several in the working directory."""
    return Path(runs[0] if len(runs) == 1 else "") / name


# ---------------------------------------------------------------- evaluations


def frames_of_run(run: str, set_number: int) -> tuple[assemble.Evaluation, dict[str, Tensor]]:
    """An evaluation in a world of frames, and the trace of one of its sets. Raises SettingError."""
    result = result_of(run)
    if result["dataset"] == "mixture":
        reject("run", run, "a run in a world of frames; particles in the plane have none")
    evaluation = sampled_again(result, set_number)
    return evaluation, trace(evaluation, set_number)


def trajectory(run: str, set_number: int = 0) -> tuple[Picture, Path]:
    """x_n and D(x_n) of the first particles of one set over the denoising steps."""
    _, steps = frames_of_run(run, set_number)
    title = f"set {set_number} of {Path(run).resolve().name}"
    return sheets.trajectory(steps, title), Path(run) / f"trajectory-{set_number}.png"


def animation(runs: Sequence[str], set_number: int = 0) -> tuple[Picture, Path]:
    """x_n and D(x_n) of one set of each evaluation over the denoising steps.

    It starts before the first window, above which nothing can be seen yet.
    """
    sets = []
    starts = []
    for run, title in zip(runs, short_names(runs)):
        evaluation, steps = frames_of_run(run, set_number)
        task = evaluation.task
        modes = task.modes(steps["samples"][None], torch.tensor([set_number]))
        found = ""
        if modes is not None:
            modes = modes[0]
            num_found = len(modes[modes >= 0].unique())
            found = f"{num_found} of {len(task.world.mode_probabilities)}"
        cond = task.cond[set_number]  # (Cc, H, W)
        last = cond[-1] if len(cond) else None
        sets.append(sheets.DenoisedSet(title, last, steps, modes, found))
        if window := result_of(run).get("window"):
            starts.append(FILM_START * window[1])
    return sheets.denoising(sets, max(starts, default=math.inf)), beside(runs, "animation.gif")


def outlines(runs: Sequence[str], sets: Sequence[int]) -> tuple[Picture, Path]:
    """The outlines of the correct masks of some sets, and of the samples of each evaluation."""
    columns = []
    cond = answers = None
    for run, title in zip(runs, short_names(runs)):
        arrays, _ = finished(run)
        masks = arrays.get("answers")
        if masks is None or masks.ndim != 4 or arrays["samples"].ndim != 4:
            reject("run", run, "a run whose correct answers are known and grey, such as masks")
        if max(sets) >= len(masks):
            reject("sets", max(sets), f"0 to {len(masks) - 1}, the sets of {run}")
        if answers is not None and not torch.equal(masks[sets], answers):
            reject("run", run, f"a run with the conditions of {runs[0]}: the same data and seed")
        cond = arrays["cond"][sets, -1]
        answers = masks[sets]
        columns.append((title, arrays["samples"][sets]))
    assert cond is not None and answers is not None  # there is a run
    return sheets.outline_sheet(cond, answers, columns), beside(runs, "outlines.png")


def report_page(runs: Sequence[str], set_number: int = 0) -> tuple[Picture, Path]:
    """The HTML report of one or several evaluations, with the steps of one set of each."""
    pages = []
    for run, name in zip(runs, short_names(runs)):
        arrays, result = finished(run)
        steps = trace(sampled_again(result, set_number), set_number)
        pages.append(report.gather(run, name, result, arrays, set_number, steps))
    return report.page(pages), beside(runs, "report.html")


def decisions(runs: Sequence[str]) -> tuple[Picture, Path]:
    """Where it was decided what the samples of each evaluation show, from its metrics.json."""
    curves = {run: decision_curve(run) for run in runs}
    by_name = dict(zip(short_names(list(curves)), curves.values()))
    return charts.decisions(by_name), beside(runs, "decisions.png")


def decision_curve(run: str) -> charts.DecisionCurve:
    """The curve of decisions that an evaluation was sampled by, its window and its steps.

    Raises SettingError for an evaluation that needed none.
    """
    result = result_of(run)
    if "decisions" not in result:
        reject(
            "run",
            run,
            "an evaluation with decisions in its metrics.json; they are measured if particle "
            "guidance acts and its noise levels or the window are not given",
        )
    s = build(SamplerSettings, result["settings"])
    window = None
    if "window" in result:
        between = Window(*result["window"])
        window = between.low, between.high
    if s.sampler == "window":
        calls = round(result["network_calls"] / result["settings"]["medoids_of"])
        schedule = window_schedule(
            between, calls, sigma_min=result["sigma_min"], sigma_max=s.sigma_max
        )
        sigmas = schedule.sigmas * torch.cat([1 + schedule.churn, torch.ones(1)])
    else:
        sigmas = karras_sigmas(s.num_steps, result["sigma_min"], s.sigma_max, s.rho)
    decided = result["decisions"]
    return charts.DecisionCurve(decided["sigmas"], decided["shares"], window, sigmas[:-1].tolist())


# ---------------------------------------------------------------- figures of experiments


def ends(rows: Rows) -> Rows:
    """The cells at the first and at the last value of an experiment's last axis."""
    *_, last = rows[0]["cell"]
    values = charts.different(row["cell"].get(last) for row in rows)
    return [row for row in rows if row["cell"].get(last) in (values[0], values[-1])]


def norms(rows: Rows, title: str) -> Figure:
    """Distances inside the first set of each cell, and its drifts per step, at the ends of the last
    axis (e3, e6).

    With guidance of pg_factor * sigma * grad U, the gradient too.
    """
    traces = {}
    for row in tqdm(ends(rows), unit="cell", disable=None):
        evaluation = sampled_again(row["result"])
        steps = traces[label(row)] = trace(evaluation, 0)
        guidance = evaluation.settings.guidance
        if guidance.pg_strength == "sigma" and guidance.pg_factor:
            steps["gradient"] = steps["guidance"] / (guidance.pg_factor * steps["sigmas"][:, None])
    return charts.norms(traces, title)


def trajectories(rows: Rows, title: str) -> Figure:
    """x_n and D(x_n) of the first particle of cells at the ends of the last axis (e6)."""
    traces = {
        label(row): trace(sampled_again(row["result"]), 0)
        for row in tqdm(ends(rows), unit="cell", disable=None)
    }
    return sheets.trajectories(traces, f"{title}\nthe first particle of the first sets")


def strip(rows: Rows, title: str) -> Figure:
    """The first set of every cell, with what the whole cell reached at its right (e6)."""
    parts: dict[str, list[Tensor]] = dict(cond=[], samples=[], modes=[])
    notes = []
    first = torch.tensor([0])
    for row in tqdm(rows, unit="cell", disable=None):
        result = row["result"]
        evaluation = sampled_again(result)
        samples = evaluation.sampler.sample(first)
        modes = evaluation.task.modes(samples, first)
        parts["cond"].append(evaluation.task.cond[:1])
        parts["samples"].append(samples)
        parts["modes"].append(torch.full(samples.shape[:2], -1) if modes is None else modes)
        reached = [result["modes_found"], result[sheets.judging_metric(result)]]
        notes.append(", ".join(f"{metric['mean']:.2f}" for metric in reached if metric))
    return sheets.sample_sheet(
        torch.cat(parts["cond"]),
        torch.cat(parts["samples"]),
        modes=torch.cat(parts["modes"]),
        title=title,
        notes=notes,
        notes_title=sheets.notes_title(rows[0]["result"]) + " (mean of all sets)",
        labels=[label(row) for row in rows],
        key=sheets.mode_names(rows[0]["result"]),
        side=0.6,
    )


def mean(rows: Rows, title: str, num_each: int = 3) -> Figure:
    """Means and deviations of large sets, some whose frame is determined and some whose frame is
    not, of the first cell (e4)."""
    result = rows[0]["result"]
    evaluation = sampled_again(result)
    task: Any = evaluation.task  # of a next frame, as FIGURES makes sure
    is_choice = task.sequences.choices[:, -1]
    labels = dict.fromkeys((~is_choice).nonzero()[:num_each, 0].tolist(), "determined")
    labels |= dict.fromkeys(is_choice.nonzero()[:num_each, 0].tolist(), "random")
    sets = list(labels)
    notes = []
    for g in sets:
        distance = result["pairwise_l2"]["per_set"][g]
        spread = result["centroid_spread"]["per_set"][g]
        notes.append(f"L2 {distance:.2f}, spread {spread:.2f} px")
    samples = evaluation.sampler.sample_all(sets=torch.tensor(sets))
    return sheets.mean_sheet(task.cond[sets], samples, list(labels.values()), notes, title)


def umap(rows: Rows, title: str) -> Figure:
    """The first set of every cell on a map of what a network that judges sees in real digits (e1).

    Raises SettingError if umap-learn is not installed.
    """
    try:
        from umap import UMAP
    except ImportError:
        raise SettingError("umap-learn is not installed; run `pip install umap-learn`") from None

    judge = checkpoint.load_classifier("judge")
    sets = []
    modes = []
    for row in tqdm(rows, unit="cell", desc="sets", disable=None):
        evaluation = sampled_again(row["result"])
        first = torch.tensor([0])
        samples = evaluation.sampler.sample(first)  # (1, B, H, W)
        sets.append(without_background(samples)[0])
        counted = evaluation.task.modes(samples, first)  # as the table counts them
        assert counted is not None  # digits are classes
        modes.append(counted[0])
    digits = evaluation.task.world.digits
    order = torch.randperm(len(digits.labels), generator=torch.Generator().manual_seed(0))
    chosen = order[:UMAP_DIGITS]
    frames = torch.cat([digits.centred(evaluation.settings.world.image_size)[chosen], *sets])
    with torch.no_grad():
        features = torch.cat([judge.features(part) for part in frames.split(500)]).numpy()
    # Its progress bar writes to pipes too; n_jobs is what random_state implies.
    reducer = UMAP(
        n_neighbors=UMAP_NEIGHBOURS,
        random_state=0,
        n_jobs=1,
        tqdm_kwds=dict(disable=None, bar_format=None),
    ).fit(features[: len(chosen)])
    counts = [len(digits_of_set.unique()) for digits_of_set in modes]
    places = torch.from_numpy(reducer.transform(features[len(chosen) :]))
    return charts.umap_map(
        digits=torch.from_numpy(reducer.embedding_),
        labels=digits.labels[chosen],
        particles=places.unflatten(0, (len(rows), -1)),
        modes=torch.stack(modes),
        names=[f"{label(row)}\n{count} of 10" for row, count in zip(rows, counts)],
        title=f"{title}\nthe first sets on a UMAP of {len(chosen)} test digits",
    )


@dataclass(frozen=True)
class ExperimentFigure:
    """A figure that the recipe of an experiment may name.

    Arguments:
        draw: (the cells, the title) -> the figure
        accepts: whether it can draw an experiment with this cell
        accepted: the same in words
        samples_again: whether it needs more than the metrics of the cells
    """

    draw: Callable[[Rows, str], Figure]
    accepts: Callable[[dict[str, Any]], Any]
    accepted: str
    samples_again: bool = False


FIGURES = dict(
    heatmap=ExperimentFigure(charts.heatmap, lambda row: len(row["cell"]) >= 2, "two axes or more"),
    prior=ExperimentFigure(
        charts.prior,
        lambda row: row["result"]["dataset"] == "horizontal" and "sampler" in row["cell"],
        "the dataset horizontal and an axis sampler, such as e8",
    ),
    dispersion=ExperimentFigure(
        charts.dispersion,
        lambda row: "count_dispersion" in row["result"] and {"sampler", "p"} <= set(row["cell"]),
        "counted modes, an axis sampler and an axis p, such as e14",
    ),
    strength=ExperimentFigure(
        charts.over_strength,
        lambda row: row["result"].get("quality") and "pg_factor" in row["cell"],
        "quality and an axis pg_factor, such as e6",
    ),
    scaling=ExperimentFigure(
        charts.scaling,
        lambda row: row["result"]["modes_found"] and "batch_size" in row["cell"],
        "an axis batch_size and counted modes, such as e12",
    ),
    quality=ExperimentFigure(
        functools.partial(charts.heatmap, value="quality"),
        lambda row: len(row["cell"]) >= 2 and row["result"].get("quality"),
        "two axes or more, and quality",
    ),
    norms=ExperimentFigure(norms, lambda row: True, "any", samples_again=True),
    trajectories=ExperimentFigure(
        trajectories,
        lambda row: row["result"]["dataset"] != "mixture",
        "a world of frames",
        samples_again=True,
    ),
    strip=ExperimentFigure(
        strip,
        lambda row: row["result"]["dataset"] != "mixture",
        "a world of frames",
        samples_again=True,
    ),
    mean=ExperimentFigure(
        mean,
        lambda row: row["result"]["dataset"] not in ("mixture", "frames", "centered"),
        "samples that are conditioned on moving digits, such as e4",
        samples_again=True,
    ),
    umap=ExperimentFigure(
        umap,
        lambda row: row["result"]["task"] == "unconditional",
        "unconditional digits, such as e1",
        samples_again=True,
    ),
)

# Names of files that `figure --value` gives the same picture.
FILES = dict(heatmap="heatmap-modes_found", quality="heatmap-quality")


def figure(run: str, value: str | None = None) -> tuple[Picture, Path]:
    """What a run is for: of an evaluation its sheet of samples, of an experiment the first figure
    that its recipe names.

    Arguments:
        run: the folder
        value: of an experiment, the metric to draw over its grid instead
    """
    if value is None and not is_experiment(run):
        arrays, result = finished(run)
        return sheets.result_sheet(arrays, result), Path(run) / "samples.png"
    results = experiment_of(run)
    if value is None:
        picture, path = next(figures(run))
        return picture(), path
    rows = results["rows"]
    _refuse_other("heatmap", rows)
    if not all(row["result"].get(value) for row in rows):
        reject("value", value, "a metric that every cell of this experiment has")
    return charts.heatmap(rows, results["title"], value), Path(run) / f"heatmap-{value}.png"


def figures(run: str) -> Iterator[tuple[Callable[[], Picture], Path]]:
    """What draws the figures that the recipe of an experiment names, one or a list."""
    results = experiment_of(run)
    names = results["figure"] if isinstance(results["figure"], list) else [results["figure"]]
    for name in names:
        _refuse_other(name, results["rows"])
        picture = functools.partial(FIGURES[name].draw, results["rows"], results["title"])
        yield picture, Path(run) / f"{FILES.get(name, name)}.png"


def _refuse_other(name: Any, rows: Rows) -> None:
    """Raises SettingError for a figure that is none, or not of these cells."""
    if name not in FIGURES:
        reject("figure", name, ", ".join(FIGURES))
    kind = FIGURES[name]
    if not all(kind.accepts(row) for row in rows):
        reject("figure", name, f"another of this experiment; {name} needs {kind.accepted}")


# ---------------------------------------------------------------- worlds


def dataset(
    settings: WorldSettings, digits: DigitSettings, num_sequences: int, seed: int
) -> tuple[Picture, Path]:
    """Training sequences of a world, with the steps of each digit and the frames of random choices;
    of a user's own frames the first examples."""
    if digits.digits == "both":
        reject("digits", "both", "auto, mnist or embedded for a picture")
    if settings.dataset == "mixture":
        reject("dataset", "mixture", "a world of frames")
    world = load_world(settings, digits, "train")
    if isinstance(world, OwnFrames):
        return sheets.examples_sheet(world, num_sequences), Path("dataset-frames.png")
    batch = world.sequences(num_sequences, set_generator(seed, 0))
    source = named(settings.dataset, world.source or "")
    sheet = sheets.world_sheet(
        batch.frames,
        batch.positions,
        batch.choices,
        digit_size=settings.digit_size,
        title=f"{settings.dataset} ({source}); orange: a random choice",
    )
    return sheet, Path(f"dataset-{settings.dataset}.png")
