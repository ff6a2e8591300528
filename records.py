"""What evaluate.py wrote, read again: the files of an evaluation, the cells of an experiment."""

from __future__ import annotations

import json
from pathlib import Path

from config import reject


def run_file(run: str, name: str) -> Path:
    """A file of a run. Raises SettingError where there is none."""
    path = Path(run) / name
    if not path.is_file():
        reject("run", run, f"a folder with the {name} that evaluate.py writes")
    return path


def finished(run: str) -> tuple[dict, dict]:
    """(the arrays of samples.npz as tensors, the record in metrics.json) of an evaluation. Raises SettingError."""
    import torch

    from frame_files import read_npz

    result = json.loads(run_file(run, "metrics.json").read_text())
    if not isinstance(result, dict) or "settings" not in result:
        reject("run", run, "a folder with the metrics.json that evaluate.py writes")
    arrays = read_npz(run_file(run, "samples.npz"), "run")
    return {key: torch.from_numpy(array) for key, array in arrays.items()}, result


def rows_of(run: str) -> list[dict]:
    """The cells of an experiment, or of a single evaluation one without a label."""
    if (Path(run) / "results.json").is_file():
        return json.loads(run_file(run, "results.json").read_text())["rows"]
    config, result = run_file(run, "config.yaml"), run_file(run, "metrics.json")
    return [dict(cell={}, flags=["--config", str(config)], result=json.loads(result.read_text()))]


def experiment_of(run: str) -> tuple[list[dict], str]:
    """(the cells, the title) of an experiment. Raises SettingError for anything else."""
    path = Path(run) / "results.json"
    if not path.is_file():
        reject("run", run, "a folder with the results.json that evaluate.py --experiment writes")
    results = json.loads(path.read_text())
    return results["rows"], results["title"]


def method_of(result: dict) -> str:
    """The world and what made its sets diverse."""
    settings = result["settings"]
    strength = f" {settings['pg_factor']:g}" if settings["guidance"] in ("pg", "reference") else ""
    return (
        f"{result['dataset']}, guidance {settings['guidance']}{strength}, noise {settings['noise']}"
    )


def source_of(result: dict) -> str | None:
    """Where its digits or frames come from, None where it needs none."""
    return (
        result["digits_source"]
        and f"{named(result['dataset'], result['digits_source'])} (test split)"
    )


def named(dataset: str, source: str) -> str:
    """The source of a world's pictures, for people: "mnist digits", or the path of one's own frames."""
    return source if dataset == "frames" else f"{source} digits"


def label(row: dict) -> str:
    """A cell's place in its experiment, for a legend."""
    return ", ".join(
        f"{value}" if isinstance(value, str) else f"{key} {value:g}"
        for key, value in row["cell"].items()
    )
