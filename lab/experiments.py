"""Experiments: grids of evaluations that are run whole and can be interrupted.

Each experiment is one YAML file in configs/experiments, its recipe; add your own there.

    title: the question that it asks
    reference: what the thesis found
    meaning: what the result says, for docs/results.md
    size: "as in the thesis", or what is smaller there than in the thesis, with --preset full
    figure: what is drawn of it, one or several of gallery.FIGURES; `visualize.py figure` draws the
        first
    alt: what is seen in each of these figures, for docs/results.md
    settings: flags that all cells share
    grid: the axes; a cell is one point of their product
    except: combinations of points that are left out

An axis is a list of values of the flag that it is named after, or a mapping from labels to flags.
In such a mapping a flag with a list of values makes one cell for each. A flag's value, or a whole
axis, may be written {quick: ..., full: ...}; --preset picks one.

A finished cell is kept in outdir/cells and never run again; one that is interrupted leaves nothing.
"""

from __future__ import annotations

import functools
import itertools
import sys
from pathlib import Path
from typing import Any, Iterator, Sequence

import yaml

from config import EvaluationSettings, differences
from diverse_sampling.errors import SettingError, reject
from lab import assemble
from lab.command_line import as_flags, this_process
from lab.files import as_json, read_json, write_whole
from lab.names import METRICS
from lab.processes import join, of_all, part
from lab.records import experiment_of, key_of, made_by

# What every table has beside the metrics of its world: is it as diverse, and as often right, as
# independent draws, and at what cost?
AUDIT = (
    "equivalent_draws",
    "frequency_tv",
    "count_dispersion",
    "vendi",
    "backward_calls",
    "modes_per_100_calls",
)
COST = ("network_calls", "seconds")

RECIPES = Path(__file__).parent.parent / "configs" / "experiments"

# ---------------------------------------------------------------- recipes


def load(name: str) -> dict[str, Any]:
    """The recipe of an experiment. Raises SettingError for a name that has none."""
    path = RECIPES / f"{name}.yaml"
    if not path.is_file():
        names = [recipe.stem for recipe in RECIPES.glob("*.yaml")]
        reject("experiment", name, ", ".join(sorted(names, key=lambda name: (len(name), name))))
    return yaml.safe_load(path.read_text())


def _for_preset(settings: dict[str, Any], preset: str) -> dict[str, Any]:
    """Settings with every {quick: ..., full: ...} replaced by the preset's value."""
    return {
        key: value[preset] if isinstance(value, dict) else value for key, value in settings.items()
    }


Point = tuple[dict[str, Any], dict[str, Any]]  # (labels by axis, settings) of one point of an axis


def _points_of_axis(axis: str, values: Any, preset: str) -> list[Point]:
    """The points of one axis, as the recipe's `grid` describes it."""
    if isinstance(values, dict) and set(values) == {"quick", "full"}:
        values = values[preset]
    if isinstance(values, list):
        return [({axis: value}, {axis: value}) for value in values]
    points: list[Point] = []
    for name, flags in values.items():
        settings = _for_preset(flags, preset)
        fixed = {key: value for key, value in settings.items() if not isinstance(value, list)}
        listed = {key: value for key, value in settings.items() if isinstance(value, list)}
        for chosen in itertools.product(*listed.values()):
            varied = dict(zip(listed, chosen))
            points.append(({axis: name} | varied, fixed | varied))
    return points


def _left_out(labels: dict[str, Any], combinations: list[dict[str, Any]]) -> bool:
    """Whether a cell is one of the combinations of the recipe's `except`."""
    return any(
        all(labels[axis] == value for axis, value in combination.items())
        for combination in combinations
    )


def cells(recipe: dict[str, Any], preset: str) -> Iterator[tuple[dict[str, Any], list[str]]]:
    """(its place on every axis, its flags of evaluate.py) of every cell."""
    shared = _for_preset(recipe.get("settings", {}), preset)
    axes = [_points_of_axis(axis, values, preset) for axis, values in recipe["grid"].items()]
    for points in itertools.product(*axes):
        labels: dict[str, Any] = {}
        settings = dict(shared)
        for at, own in points:
            labels |= at
            settings |= own
        if not _left_out(labels, recipe.get("except", [])):
            yield labels, as_flags(settings)


# ---------------------------------------------------------------- running


def cell_of(settings: EvaluationSettings, checkpoint: Path | None, outdir: Path) -> Path:
    """The file that keeps the record of an evaluation, named after what makes it.

    Arguments:
        settings, checkpoint: as `assemble.complete` returns them
        outdir: folder of the experiment

    Raises SettingError or FileNotFoundError.
    """
    known, _ = assemble.found(settings, checkpoint)
    return outdir / "cells" / f"{key_of(known.record())}.json"


def run_cell(settings: EvaluationSettings, checkpoint: Path | None, outdir: Path) -> dict[str, Any]:
    """The record of an evaluation, from its file if it is there; arguments as of `cell_of`."""
    cell = cell_of(settings, checkpoint, outdir)
    if cell.is_file():
        try:
            return read_json(cell, "cell")
        except SettingError as error:
            _say_once(f"WARNING: {error}; made again")
    cell.parent.mkdir(parents=True, exist_ok=True)
    evaluation = assemble.set_up(settings, checkpoint)
    for notice in evaluation.notices:
        _say_once(notice)
    _, _, result = evaluation.run(progress=False)
    write_whole(cell, as_json(result))
    return read_json(cell)


@functools.cache
def _say_once(notice: str) -> None:
    """Print a notice to stderr, unless another cell has brought it."""
    from tqdm import tqdm

    tqdm.write(f"evaluate.py: {notice}", file=sys.stderr)


def run(
    name: str,
    preset: str,
    shared: dict[str, Any],
    outdir: Path,
    flags: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """Run all cells of an experiment, and write them to outdir/results.json.

    Under torchrun every process takes its share of the cells; they need not share a disk.

    Arguments:
        name: the experiment
        preset: "quick" or "full"
        shared: settings that hold for every cell, flat {setting: value}; they win over the recipe
        outdir: the experiment's folder
        flags: the same as they were typed, for the record

    Returns rows {cell: its place on every axis, flags: of evaluate.py, result: as in metrics.json}.
    Raises SettingError before anything runs if a cell cannot run, or if the folder holds another
    experiment.
    """
    from tqdm import tqdm

    recipe = load(name)
    rank, ranks = this_process()
    typed = as_flags(shared) if flags is None else flags
    command = " ".join(["python evaluate.py --experiment", name, "--preset", preset, *typed])
    parser = assemble.evaluation_parser()
    planned = []
    digits = shared.get("digits", "auto")
    for labels, own in cells(recipe, preset):
        try:
            values = assemble.chosen(parser, own) | shared
            settings, checkpoint = assemble.complete(values)
            if settings.digits.digits == "auto":
                settings = settings.changed(digits=digits)
            settings, _ = assemble.found(settings, checkpoint)
            digits = settings.digits.digits  # searched for once
        except SettingError as error:
            raise SettingError(f"{error} (in the cell {labels})") from None
        planned.append((labels, as_flags(values), settings, checkpoint))
    keys = [key_of(settings.record()) for _, _, settings, _ in planned]
    results = outdir / "results.json"
    if results.is_file():
        _refuse_other(outdir, keys, [settings.record() for _, _, settings, _ in planned])

    join()
    rows = []
    progress = tqdm(
        list(zip(planned, keys))[rank::ranks],
        unit="cell",
        desc=f"{name}, {preset}",
        disable=None if rank == 0 else True,
    )
    for (labels, own, settings, checkpoint), key in progress:
        result = run_cell(settings, checkpoint, outdir)
        rows.append(dict(cell=labels, flags=own, key=key, result=result))
    shares = of_all(rows)
    part()
    rows = [shares[i % ranks][i // ranks] for i in range(len(planned))]
    if rank == 0:
        record = dict(
            experiment=name,
            preset=preset,
            title=recipe.get("title"),
            reference=recipe.get("reference"),
            figure=recipe.get("figure"),
            **made_by() | dict(command=command),
            rows=rows,
        )
        write_whole(results, as_json(record))
    return rows


def _refuse_other(outdir: Path, keys: Sequence[str], planned: Sequence[dict[str, Any]]) -> None:
    """Raise SettingError if a folder's record is not that of the cells that are planned, which have
    these keys and these records of settings."""
    there = experiment_of(str(outdir))
    rows = there["rows"]
    if [row.get("key") for row in rows] == [*keys]:
        return
    differ = [
        difference
        for row, key, here in zip(rows, keys, planned)
        if row.get("key") != key
        for difference in differences(row["result"]["settings"], here)
    ]
    reject(
        "outdir",
        str(outdir),
        f"a folder that is new or holds this very experiment; there is: {there['command']} "
        f"({', '.join(differ[:3])})",
    )


# ---------------------------------------------------------------- tables


def brief(result: Any) -> Any:
    """A result without its values per set and without the settings that its flags imply."""
    if isinstance(result, dict):
        return {
            key: brief(value) for key, value in result.items() if key not in ("per_set", "settings")
        }
    if isinstance(result, list):
        return [brief(item) for item in result]
    return result


def shown_metrics(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What a table shows of an evaluation: {heading: {mean, ci95, ...}}."""
    keys = ["modes_found", "modes_shown", "quality", "hm_iou", "confidence"]
    values = {key: result.get(key) for key in keys}
    if result["dataset"] == "horizontal" and result["modes_total"]:
        values = dict(p_right=result["mode_frequencies"][0], quality=result["quality"])
    shown = {METRICS[key].title: value for key, value in values.items()}
    for kind in ("unimode", "multimode"):
        for key in ("pairwise_l2", "centroid_spread"):
            shown[f"{kind}: {METRICS[key].title}"] = result.get(kind, {}).get(key)
    return {heading: value for heading, value in shown.items() if value}


def table(rows: list[dict[str, Any]]) -> str:
    """A Markdown table of cells: their labels and what was measured."""
    axes = list(dict.fromkeys(axis for row in rows for axis in row["cell"]))
    metrics = [shown_metrics(row["result"]) for row in rows]
    headings = list(dict.fromkeys(heading for each in metrics for heading in each))
    audited = [key for key in AUDIT if any(row["result"].get(key) is not None for row in rows)]
    header = [*axes, *headings, *(METRICS[key].title for key in (*audited, *COST))]
    lines = [_table_row(header), "|" + "---|" * len(header)]
    for row, each in zip(rows, metrics):
        entries = [str(row["cell"].get(axis, "")) for axis in axes]
        entries += [interval(each.get(heading)) for heading in headings]
        entries += [audit_entry(row["result"], key) for key in audited]
        entries += [f"{row['result']['network_calls']:.1f}", f"{row['result']['seconds']:.0f}"]
        lines.append(_table_row(entries))
    return "\n".join(lines)


def audit_entry(result: dict[str, Any], key: str) -> str:
    """A number of the audit in a table; frequencies with what chance gives, `0.012 (0.020)`, and
    what is a lower bound as `> 36.7`."""
    value = result.get(key)
    if value is None:
        return ""
    more = ""
    if isinstance(value, dict):
        more = "> " if value.get("at_least") else ""
        value = value["mean"]
    text = f"{more}{value:.{METRICS[key].decimals}f}"
    if key == "frequency_tv":
        text += f" ({result['frequency_tv_iid']:.{METRICS[key].decimals}f})"
    return text


def _table_row(entries: list[str]) -> str:
    return "| " + " | ".join(entries) + " |"


def summary(rows: list[dict[str, Any]], at_most: int = 24) -> str:
    """The table of an experiment; of a long one only the best cell per kernel, method or model."""
    if len(rows) <= at_most:
        return table(rows)
    best: dict[tuple, dict] = {}
    for row in rows:
        kind = tuple(value for value in row["cell"].values() if isinstance(value, str))
        found = row["result"]["modes_found"]["mean"]
        if kind not in best or found > best[kind]["result"]["modes_found"]["mean"]:
            best[kind] = row
    num_sets = rows[0]["result"]["num_sets"]
    expected = rows[0]["result"]["modes_expected_iid"]
    return (
        f"{len(rows)} cells of {num_sets} sets; independent draws are expected to find "
        f"{expected:.2f}. The cells that find most:\n\n{table(list(best.values()))}"
    )


def interval(value: dict[str, Any] | None) -> str:
    """A mean with its 95% interval, if it has one: `7.98 [7.95, 8.00]`."""
    if not value:
        return ""
    digits = 2 if value["mean"] >= 2 else 3
    mean = f"{value['mean']:.{digits}f}"
    if value["ci95"] is None:
        return f"{mean} (no interval)"
    low, high = value["ci95"]
    return f"{mean} [{low:.{digits}f}, {high:.{digits}f}]"
