"""The benchmarks start, resume, and write what they promise. Nothing is timed here."""

import importlib.util
import json
import subprocess
import sys

import pytest
from conftest import ROOT, slow_but

import experiments


def load(name: str):
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        spec = importlib.util.spec_from_file_location(
            f"benchmark_{name}", ROOT / "benchmarks" / f"{name}.py"
        )
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


NAMES = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py") if path.stem != "measure")


@pytest.mark.parametrize("name", NAMES)
def test_every_benchmark_explains_itself(name, capsys):
    with pytest.raises(SystemExit) as stop:
        load(name).main(["--help"])
    assert stop.value.code == 0 and "--outdir" in capsys.readouterr().out


@pytest.mark.parametrize("name", slow_but(["potentials"], NAMES))
def test_every_benchmark_is_a_program(name, tmp_path):
    """It finds the modules of the project from any folder."""
    out = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert out.returncode == 0 and "--outdir" in out.stdout, out.stderr


NETWORK = f"--network {ROOT / 'configs' / 'free.yaml'} --compile false --device cpu"
SMALL = {
    "sampling": f"--num_sets 1 --num_steps 3 --repetitions 1 --data_root {ROOT / 'data'}",
    "network": f"{NETWORK} --images 1 --repetitions 1",
    "potentials": "--particles [4] --pixels 16 --repetitions 1",
    "worlds": "--sequences 16 --repetitions 1 --device cpu",
    "training": f"{NETWORK} --updates 1 --repetitions 1",
    "grid": "--experiment e9 --num_sets 1 --repetitions 1",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", slow_but(["worlds"], SMALL))
def test_every_benchmark_of_speed_measures(name, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    benchmark = load(name)
    if name == "network":
        monkeypatch.setattr(benchmark, "MATRIX_SIDE", 64)
        monkeypatch.setattr(benchmark, "COPIED", 2**10)
    if name == "training":
        one_of_three = {"both": benchmark.SAME_BATCH["2 processes, accumulate 2"]}
        monkeypatch.setattr(benchmark, "SAME_BATCH", one_of_three)
    benchmark.main([*SMALL[name].split(), "--outdir", str(tmp_path)])
    result = json.loads((tmp_path / f"{name}.json").read_text())
    assert result["machine"]["threads"] >= 1 and result["machine"]["torch"]
    rows = [
        line for line in (tmp_path / f"{name}.md").read_text().splitlines() if line.startswith("| ")
    ]
    assert len(rows) > 2 and len({line.count("|") for line in rows[:3]}) == 1


@pytest.mark.slow
def test_guidance_benchmark_keeps_finished_cells(tmp_path, monkeypatch):
    guidance = load("guidance")
    recipe = experiments.load("e10")
    few = {
        name: recipe["grid"]["method"][name]
        for name in ("independent", "particle guidance", "SPELL", "CADS")
    }
    recipe["grid"] = dict(denoiser=["exact", "trained"], method=few)
    monkeypatch.setattr(experiments, "load", lambda name: recipe)
    argv = ["--num_sets", "1", "--data_root", str(ROOT / "data"), "--outdir", str(tmp_path)]
    guidance.main(argv)
    methods = [
        row["cell"]["method"] for row in json.loads((tmp_path / "guidance.json").read_text())
    ]
    exact = ["independent"] + 4 * ["particle guidance"] + 3 * ["SPELL"]
    assert methods == exact + exact + 3 * ["CADS"]
    assert "| particle guidance | 1.7 |" in (tmp_path / "guidance.md").read_text()
    cells = sorted((tmp_path / "cells").iterdir())
    before = [cell.stat().st_mtime_ns for cell in cells]
    assert len(cells) == 19
    cells[0].unlink()
    guidance.main(argv)
    after = [cell.stat().st_mtime_ns for cell in cells]
    assert after[1:] == before[1:] and after[0] != before[0]
