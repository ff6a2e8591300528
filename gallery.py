"""Gallery: the pictures of finished runs.

Functions take the folder of an evaluation or of an experiment and return (a figure, an animation or
the text of an HTML page, the path of the file that it goes to unless the user says otherwise). Some
draw what the folder holds; others sample sets again as the run did. All raise SettingError for a
folder that they cannot draw.
"""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from typing import Any, Callable, Sequence, Union

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import assemble
import charts
import checkpoint
import report
import sheets
from config import SamplerSettings, SettingError, build, reject
from drawing import Figure, FuncAnimation, write
from metrics import recognise, without_background
from records import experiment_of, finished, label, rows_of, run_file
from sampler import karras_sigmas, window_schedule

Picture = tuple[Union[Figure, FuncAnimation, str], Path]

# UMAP compares each digit with this many others.
UMAP_NEIGHBOURS = 15


# ---------------------------------------------------------------- sampling again


def set_up_again(run: str, set_number: int) -> assemble.Evaluation:
    """The evaluation in a folder, ready to sample one of its sets again. Raises SettingError."""
    evaluation = assemble.evaluation(["--config", str(run_file(run, "config.yaml"))])
    check_set(evaluation, set_number, run)
    return evaluation


def check_set(evaluation: assemble.Evaluation, set_number: int, run: str) -> None:
    """Raise SettingError if the evaluation has no set of this number."""
    num_sets = evaluation.task.num_sets
    if set_number >= num_sets:
        reject("set", set_number, f"0 to {num_sets - 1}, the sets of {run}")


def refuse_points(evaluation: assemble.Evaluation, run: str) -> None:
    """Raise SettingError for an evaluation in the plane, whose particles are no frames."""
    if evaluation.settings.world.dataset == "mixture":
        reject("run", run, "a run in a world of frames; particles in the plane have none")


def short_names(runs: Sequence[str]) -> list[str]:
    """A name for each folder: its own, with its parents' where different folders share it."""
    parts = [Path(run).resolve().parts for run in runs]
    names: list[str] = []
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(own[-length:]) for own in parts]
        if len(set(names)) == len(set(parts)):
            break
    return names


def beside(runs: Sequence[str], name: str) -> Path:
    """The path of a file about runs: in the folder of one, of several in the working directory."""
    return Path(runs[0] if len(runs) == 1 else "") / name


# ---------------------------------------------------------------- evaluations


def samples(run: str) -> Picture:
    """The sample sheet of an evaluation, from its samples.npz and metrics.json."""
    arrays, result = finished(run)
    return sheets.result_sheet(arrays, result), Path(run) / "samples.png"


def trajectory(run: str, set_number: int = 0, num_particles: int = 3) -> Picture:
    """x_n and D(x_n) of the first particles of one set over the denoising steps."""
    evaluation = set_up_again(run, set_number)
    refuse_points(evaluation, run)
    steps: list[dict[str, Tensor]] = []
    evaluation.sampler.sample_all(sets=torch.tensor([set_number]), callback=steps.append)
    x, denoised = (
        evaluation.task.pictured(torch.stack([step[name][0, :num_particles] for step in steps]))
        for name in ("x_hat", "denoised")
    )
    sigmas = torch.stack([step["sigma_hat"] for step in steps])
    figure = sheets.trajectory(
        x, denoised, sigmas, title=f"set {set_number} of {Path(run).resolve().name}"
    )
    return figure, Path(run) / f"trajectory-{set_number}.png"


def animation(runs: Sequence[str], set_number: int = 0) -> Picture:
    """x_n and D(x_n) of one set of each evaluation over the denoising steps."""
    sets = []
    for run, title in zip(runs, short_names(runs)):
        evaluation = set_up_again(run, set_number)
        refuse_points(evaluation, run)
        task = evaluation.task
        number = torch.tensor([set_number])
        trace = evaluation.sampler.trace(number)
        modes = task.modes(trace["samples"][None], number)
        if modes is not None:
            modes = modes[0]
            found = modes[modes >= 0].unique()
            title += f": {len(found)} of {len(task.world.mode_probabilities)}"
        cond = task.cond[set_number]  # (Cc, H, W)
        given = cond[-1] if len(cond) else None
        sets.append(sheets.DenoisedSet(title, given, trace, modes))
    return sheets.denoising(sets), beside(runs, "animation.gif")


def outlines(runs: Sequence[str], sets: Sequence[int]) -> Picture:
    """The outlines of the correct masks of some sets, and of the samples of each evaluation."""
    columns = []
    given = answers = None
    for run, title in zip(runs, short_names(runs)):
        arrays, _ = finished(run)
        masks = arrays.get("answers")
        if masks is None or masks.ndim != 4 or arrays["samples"].ndim != 4:
            reject("run", run, "a run whose correct answers are known and grey, such as masks")
        if max(sets) >= len(masks):
            reject("sets", max(sets), f"0 to {len(masks) - 1}, the sets of {run}")
        if answers is not None and not torch.equal(masks[sets], answers):
            reject("run", run, f"a run with the conditions of {runs[0]}: the same data and seed")
        given, answers = arrays["cond"][sets, -1], masks[sets]
        columns.append((title, arrays["samples"][sets]))
    assert given is not None and answers is not None  # there is a run
    return sheets.outline_sheet(given, answers, columns), beside(runs, "outlines.png")


def report_page(runs: Sequence[str], set_number: int = 0) -> Picture:
    """The HTML report of one or several evaluations, with the steps of one set of each."""
    gathered = []
    for run, name in zip(runs, short_names(runs)):
        arrays, result = finished(run)
        evaluation = set_up_again(run, set_number)
        trace = evaluation.sampler.trace(torch.tensor([set_number]))
        gathered.append(report.gather(run, name, result, arrays, set_number, trace))
    return report.page(gathered), beside(runs, "report.html")


def decisions(runs: Sequence[str]) -> Picture:
    """Where it was decided what the samples of each evaluation show, from its metrics.json."""
    curves = {run: decision_curve(run) for run in runs}
    named = dict(zip(short_names(list(curves)), curves.values()))
    return charts.decisions(named), beside(runs, "decisions.png")


def decision_curve(run: str) -> charts.DecisionCurve:
    """The curve of decisions that an evaluation was sampled by, its window and its steps.

    Raises SettingError for an evaluation that needed none.
    """
    result = json.loads(run_file(run, "metrics.json").read_text())
    if not isinstance(result, dict) or "decisions" not in result:
        reject(
            "run",
            run,
            "an evaluation with decisions in its metrics.json; they are measured where particle "
            "guidance acts and its noise levels or the window are not given",
        )
    s = build(SamplerSettings, result["settings"])
    window = None
    if s.sampler == "window":
        low, high = window = result["window"]
        schedule = window_schedule(
            2 * s.num_steps - 1,
            (low, high),
            s.window_churn,
            sigma_min=s.sigma_min,
            sigma_max=s.sigma_max,
            rho=s.rho,
        )
        sigmas = schedule.sigmas
    else:
        sigmas = karras_sigmas(s.num_steps, s.sigma_min, s.sigma_max, s.rho)
    curve = result["decisions"]
    return charts.DecisionCurve(
        curve["sigmas"], curve["shares"], window=window, steps=sigmas[:-1].tolist()
    )


# ---------------------------------------------------------------- experiments


def heatmap(run: str, value: str = "modes_found", threshold: float | None = None) -> Picture:
    """A metric over the grid of an experiment, a panel per point of its first axes."""
    rows, title = experiment_of(run)
    if len(rows[0]["cell"]) < 2:
        reject("run", run, "an experiment with two axes or more")
    if not all(row["result"].get(value) for row in rows):
        reject("value", value, "a metric that every cell of this experiment has")
    figure = charts.heatmap(rows, value, threshold, title)
    return figure, Path(run) / f"heatmap-{value}.png"


def prior(run: str) -> Picture:
    """Shares of samples that go right against the priors of the training (e8)."""
    rows, title = experiment_of(run)
    if rows[0]["result"]["dataset"] != "horizontal" or "sampler" not in rows[0]["cell"]:
        reject("run", run, "an experiment in horizontal with an axis sampler, such as e8")
    return charts.prior(rows, title), Path(run) / "prior.png"


def frontier(run: str) -> Picture:
    """Modes found against quality, a curve per method (e10)."""
    rows, title = experiment_of(run)
    if "method" not in rows[0]["cell"] or not rows[0]["result"]["quality"]:
        reject("run", run, "an experiment with an axis method and a quality, such as e10")
    return charts.frontier(rows, title), Path(run) / "frontier.png"


def scaling(run: str) -> Picture:
    """Modes found against the number of particles (e12)."""
    rows, title = experiment_of(run)
    if "batch_size" not in rows[0]["cell"] or not all(row["result"]["modes_found"] for row in rows):
        reject("run", run, "an experiment with an axis batch_size and counted modes, such as e12")
    return charts.scaling(rows, title), Path(run) / "scaling.png"


def norms(run: str, set_number: int = 0) -> Picture:
    """Distances inside a set and its drifts per step, a column per cell (e3)."""
    traces = {}
    for row in tqdm(rows_of(run), unit="cell", disable=None):
        evaluation = assemble.evaluation(row["flags"])
        check_set(evaluation, set_number, run)
        traces[label(row) or Path(run).resolve().name] = evaluation.sampler.trace(
            torch.tensor([set_number])
        )
    return charts.norms(traces), Path(run) / "norms.png"


def strip(run: str) -> Picture:
    """The first set of every cell, with what the whole cell reached at its right (e6)."""
    rows = rows_of(run)
    given = []
    sets = []
    modes: list[Tensor] = []
    notes = []
    for row in tqdm(rows, unit="cell", disable=None):
        evaluation = assemble.evaluation([*row["flags"], "--num_sets", "1"])
        own = evaluation.sampler.sample_all(progress=False)
        given.append(evaluation.task.cond)
        sets.append(own)
        own_modes = evaluation.task.modes(own, torch.tensor([0]))
        if own_modes is None:
            own_modes = torch.full(own.shape[:2], -1)
        modes.append(own_modes)
        result = row["result"]
        note = f"{result[sheets.judging_metric(result)]['mean']:.2f}"
        if result["modes_found"]:
            note = f"{result['modes_found']['mean']:.2f}, {note}"
        notes.append(note)
    first = rows[0]["result"]
    figure = sheets.sample_sheet(
        torch.cat(given),
        torch.cat(sets),
        modes=torch.cat(modes),
        notes=notes,
        notes_title=sheets.notes_title(first) + " (mean of all sets)",
        labels=[label(row) or Path(run).resolve().name for row in rows],
        max_sets=len(rows),
    )
    return figure, Path(run) / "strip.png"


def mean(run: str, num_each: int = 3) -> Picture:
    """Means and deviations of large sets, whose frame is determined and not (e4)."""
    row = rows_of(run)[0]
    result = row["result"]
    evaluation = assemble.evaluation(row["flags"])
    task = evaluation.task
    if not evaluation.settings.world.num_cond_frames or not hasattr(task, "sequences"):
        reject("run", run, "a run whose samples are conditioned on frames")
    is_choice = task.sequences.choices[:, -1]
    chosen: list[int] = []
    names: list[str] = []
    for name, mask in (("determined", ~is_choice), ("random", is_choice)):
        some = mask.nonzero()[:num_each, 0].tolist()
        chosen += some
        names += [name] * len(some)
    sets = evaluation.sampler.sample_all(sets=torch.tensor(chosen))
    notes = []
    for g in chosen:
        distance = result["pairwise_l2"]["per_set"][g]
        spread = result["centroid_spread"]["per_set"][g]
        notes.append(f"L2 {distance:.2f}, spread {spread:.2f} px")
    return sheets.mean_sheet(task.cond[chosen], sets, names, notes), Path(run) / "mean.png"


# ---------------------------------------------------------------- UMAP


def umap(run: str, num_digits: int = 2000, set_number: int = 0) -> Picture:
    """Digits found, on a map of what the judging classifier sees in real ones (e1).

    Arguments:
        num_digits: real test digits that the map is fitted to, as many as there are at most
        set_number: the set of every cell that is drawn
    """
    rows = rows_of(run)
    if rows[0]["result"]["task"] != "unconditional":
        reject("run", run, "an unconditional run, such as e1")
    if num_digits <= UMAP_NEIGHBOURS:
        accepted = f"{UMAP_NEIGHBOURS + 1} or more; UMAP compares a digit with {UMAP_NEIGHBOURS}"
        reject("num_digits", num_digits, accepted)
    kept = Path(run) / "umap.npz"
    sources = [(row["flags"], row["result"]["checkpoint_sha256"]) for row in rows]
    key = json.dumps(dict(num_digits=num_digits, set=set_number, cells=sources))
    points = read_points(kept, key)
    if points is None:
        points = map_points(rows, run, num_digits, set_number)
        write_points(kept, key, points)
    names = []
    for row, modes in zip(rows, points["found"]):
        found = f"{len(modes.unique())} of 10"
        names.append(f"{label(row)}\n{found}".strip())
    title = f"set {set_number} on a UMAP of {len(points['labels'])} test digits"
    return charts.umap_map(**points, names=names, title=title), Path(run) / "umap.png"


def read_points(path: Path, key: str) -> dict[str, Tensor] | None:
    """The points of a map that was kept for this key; None if there is none."""
    names = ("digits", "labels", "particles", "found")
    try:
        with np.load(path, allow_pickle=False) as file:
            if str(file["key"]) != key:
                return None
            return {name: torch.from_numpy(file[name]) for name in names}
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile):
        return None  # none, of an older version, or damaged: fitted anew


def write_points(path: Path, key: str, points: dict[str, Tensor]) -> None:
    """Keep the points of a map, complete or not at all. Raises OSError."""
    arrays = {name: tensor.numpy() for name, tensor in points.items()}
    temporary = path.with_suffix(f".{os.getpid()}.tmp.npz")
    with open(temporary, "wb") as file:
        np.savez(file, key=np.array(key), **arrays)  # type: ignore[arg-type]
    temporary.replace(path)


def map_points(
    rows: Sequence[dict[str, Any]], run: str, num_digits: int, set_number: int
) -> dict[str, Tensor]:
    """Sample one set of every cell again and fit a UMAP to features of the judging classifier.

    Returns {digits (M, 2), labels (M,), particles (G, B, 2), found (G, B)}, as `charts.umap_map`
    takes them. Raises SettingError where umap-learn is not installed.
    """
    try:
        from umap import UMAP
    except ImportError:
        raise SettingError("umap-learn is not installed; run `pip install umap-learn`") from None

    judge = checkpoint.load_classifier("judge")
    sets = []
    found = []
    for row in tqdm(rows, unit="cell", desc="sets", disable=None):
        evaluation = assemble.evaluation(row["flags"])
        check_set(evaluation, set_number, run)
        sampled = evaluation.sampler.sample(torch.tensor([set_number]))
        own = without_background(sampled)  # (1, B, H, W)
        sets.append(own[0])
        found.append(recognise(own, judge)[0][0])
    digits = evaluation.task.world.digits
    order = torch.randperm(len(digits.labels), generator=torch.Generator().manual_seed(0))
    some = order[:num_digits]
    frames = torch.cat([digits.centred(evaluation.settings.world.image_size)[some], *sets])
    with torch.no_grad():
        features = torch.cat([judge.features(part) for part in frames.split(500)]).numpy()
    # Its progress bar writes to pipes too; n_jobs is what random_state implies.
    fitted = UMAP(
        n_neighbors=UMAP_NEIGHBOURS,
        random_state=0,
        n_jobs=1,
        tqdm_kwds=dict(disable=None, bar_format=None),
    ).fit(features[: len(some)])
    particles = fitted.transform(features[len(some) :])
    return dict(
        digits=torch.from_numpy(fitted.embedding_),
        labels=digits.labels[some],
        particles=torch.from_numpy(particles).view(len(rows), -1, 2),
        found=torch.stack(found),
    )


# ---------------------------------------------------------------- the picture of an experiment

FIGURES: dict[str, Callable[[str], Picture]] = dict(
    heatmap=heatmap,
    prior=prior,
    frontier=frontier,
    scaling=scaling,
    norms=norms,
    strip=strip,
    mean=mean,
    umap=umap,
)


def draw_experiment(figure: str, folder: Path) -> Path:
    """Draw the figure that an experiment's recipe names, from the results in a folder.

    Returns the path of the picture. Raises SettingError for results that it cannot draw, OSError.
    """
    picture, path = FIGURES[figure](str(folder))
    write(picture, path)
    return path
