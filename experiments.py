"""Experiments: a grid of evaluations, described by a recipe and run whole.

A recipe is a YAML file in configs/experiments:

    title: what is asked                     reference: what the thesis found
    settings: flags that all cells share     figure: the command of visualize.py that draws it
    grid: axes; the cells are their product

An axis is a list of values of the flag that it is named after, or names with the flags behind each. There, a
list of values is one cell for each, and everywhere {quick: ..., full: ...} depends on the preset. `except` lists
combinations that make no sense.

A finished cell is kept and never run again; a killed one leaves nothing behind.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from pathlib import Path
from typing import Any, Iterator

import yaml

from config import SettingError, record, reject

RECIPES = Path(__file__).parent / "configs" / "experiments"


def load(name: str) -> dict[str, Any]:
    """The recipe of an experiment. Raises SettingError."""
    path = RECIPES / f"{name}.yaml"
    if not path.is_file():
        names = sorted(
            (recipe.stem for recipe in RECIPES.glob("*.yaml")), key=lambda stem: (len(stem), stem)
        )
        reject("experiment", name, ", ".join(names))
    return yaml.safe_load(path.read_text())


def _chosen(settings: dict[str, Any], preset: str) -> dict[str, Any]:
    return {
        key: value[preset] if isinstance(value, dict) else value for key, value in settings.items()
    }


def cells(recipe: dict[str, Any], preset: str) -> Iterator[tuple[dict[str, Any], list[str]]]:
    """(its place on every axis, its flags of evaluate.py) of every cell."""
    axes = []
    for axis, values in recipe["grid"].items():
        points = []
        for label, flags in (
            values.items() if isinstance(values, dict) else ((v, {axis: v}) for v in values)
        ):
            flags = _chosen(flags, preset)
            lists = [
                [(key, value) for value in values]
                for key, values in flags.items()
                if isinstance(values, list)
            ]
            single = [(key, value) for key, value in flags.items() if not isinstance(value, list)]
            points += [
                (
                    {axis: label} | (dict(varied) if isinstance(values, dict) else {}),
                    [*single, *varied],
                )
                for varied in itertools.product(*lists)
            ]
        axes.append(points)
    for point in itertools.product(*axes):
        labels = {axis: label for part, _ in point for axis, label in part.items()}
        if any(
            all(labels[axis] == label for axis, label in each.items())
            for each in recipe.get("except", [])
        ):
            continue
        flags = [
            *_chosen(recipe.get("settings", {}), preset).items(),
            *(pair for _, pairs in point for pair in pairs),
        ]
        yield (
            labels,
            [
                f"--{key}={json.dumps(value) if isinstance(value, (list, bool)) else value}"
                for key, value in flags
            ],
        )


def run_cell(settings: dict[type, Any], path: Path | None, outdir: Path) -> dict:
    """The record of an evaluation, as `evaluate.parse` describes it, from outdir/cells if it is there. A cell is
    known by its settings and, with a trained network, by the bytes of its checkpoint."""
    import evaluate

    key = json.dumps(record(*settings.values()), sort_keys=True).encode()
    name = hashlib.sha256(key + (path.read_bytes() if path else b"")).hexdigest()[:16]
    cell = outdir / "cells" / f"{name}.json"
    if not cell.is_file():
        cell.parent.mkdir(parents=True, exist_ok=True)
        from set_sampler import make_evaluation

        result = evaluate.run(make_evaluation(settings, path), progress=False)[2]
        temporary = cell.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps(result))
        temporary.replace(cell)
    return json.loads(cell.read_text())


def run(name: str, preset: str, flags: list[str], outdir: Path) -> list[dict]:
    """All cells of an experiment, `flags` added to each -> rows {cell: its labels, flags, result}, also
    written to outdir/results.json. Under torchrun every process takes its share of the cells; they need
    not share a disk. Raises SettingError before anything runs if a cell cannot, or the folder holds another one."""
    from tqdm import tqdm

    import evaluate

    recipe, rank, ranks = (
        load(name),
        int(os.environ.get("RANK", 0)),
        int(os.environ.get("WORLD_SIZE", 1)),
    )
    command = " ".join(["python evaluate.py --experiment", name, "--preset", preset, *flags])
    results = outdir / "results.json"
    if results.is_file() and (held := json.loads(results.read_text())["command"]) != command:
        reject(
            "outdir",
            str(outdir),
            f"a folder that is new or holds this very experiment; there is: {held}",
        )
    todo = []
    for labels, own in cells(recipe, preset):
        try:
            todo.append((labels, [*own, *flags], *evaluate.parse([*own, *flags])))
        except SettingError as error:
            raise SettingError(f"{error} (in the cell {labels})") from None
    rows = []
    for labels, argv, settings, path in tqdm(
        todo[rank::ranks],
        unit="cell",
        desc=f"{name}, {preset}",
        disable=None if rank == 0 else True,
    ):
        rows.append(dict(cell=labels, flags=argv, result=run_cell(settings, path, outdir)))
    if ranks > 1:
        import torch.distributed as dist

        dist.init_process_group("gloo")
        shares: list[Any] = [None] * ranks
        dist.all_gather_object(shares, rows)
        dist.destroy_process_group()
        rows = [shares[i % ranks][i // ranks] for i in range(len(todo))]
    if rank == 0:
        results.write_text(
            json.dumps(
                dict(
                    experiment=name,
                    preset=preset,
                    **{key: recipe.get(key) for key in ("title", "reference", "figure")},
                    command=command,
                    rows=rows,
                )
            )
        )
    return rows


def brief(result: Any) -> Any:
    """A result without its values per set and the settings that its flags imply: what a summary needs."""
    if isinstance(result, dict):
        return {
            key: brief(value) for key, value in result.items() if key not in ("per_set", "settings")
        }
    return [brief(item) for item in result] if isinstance(result, list) else result


def numbers(result: dict) -> dict[str, dict | None]:
    """What a table shows of an evaluation: name -> {mean, ci95, ...}."""
    shown = {
        "modes found": result["modes_found"],
        "quality": result["quality"],
        "HM IoU*": result.get("hm_iou"),
        "confidence": result.get("confidence"),
    }
    if result["dataset"] == "horizontal":
        shown = {"p(right)": result["mode_frequencies"][0], "quality": result["quality"]}
    for kind in ("unimode", "multimode"):
        for key, name in (
            ("pairwise_l2", "L2 between samples"),
            ("centroid_spread", "spread of centroids, px"),
        ):
            shown[f"{kind}: {name}"] = result.get(kind, {}).get(key)
    return {name: value for name, value in shown.items() if value}


def table(rows: list[dict]) -> str:
    """A Markdown table of all cells: their labels and what was measured."""
    labels = list(dict.fromkeys(key for row in rows for key in row["cell"]))
    names = list(dict.fromkeys(name for row in rows for name in numbers(row["result"])))
    header = [*labels, *names, "network calls", "seconds"]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for row in rows:
        result, measured = row["result"], numbers(row["result"])
        lines.append(
            "| "
            + " | ".join(
                [
                    *(str(row["cell"].get(key, "")) for key in labels),
                    *(interval(measured.get(name)) for name in names),
                    f"{result['network_calls']:.1f}",
                    f"{result['seconds']:.0f}",
                ]
            )
            + " |"
        )
    return "\n".join(lines)


def summary(rows: list[dict], at_most: int = 24) -> str:
    """The table of an experiment or, where that is long, its best cells: one for each kernel, method or model."""
    if len(rows) <= at_most:
        return table(rows)
    best: dict[tuple, dict] = {}
    for row in rows:
        panel = tuple(value for value in row["cell"].values() if isinstance(value, str))
        if (
            panel not in best
            or row["result"]["modes_found"]["mean"] > best[panel]["result"]["modes_found"]["mean"]
        ):
            best[panel] = row
    sets, expected = (rows[0]["result"][key] for key in ("num_sets", "modes_expected_iid"))
    return (
        f"{len(rows)} cells of {sets} sets; independent draws find {expected:.2f} in theory. "
        f"The cells that find most:\n\n{table(list(best.values()))}"
    )


def interval(value: dict | None) -> str:
    """A mean with its 95% interval."""
    if not value:
        return ""
    digits = 2 if value["mean"] >= 2 else 3
    return (
        f"{value['mean']:.{digits}f} [{value['ci95'][0]:.{digits}f}, {value['ci95'][1]:.{digits}f}]"
    )
