"""The benchmarks start, resume, and write what they promise. Nothing is timed here."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT

import data_loader
import train
from lab import assemble


def load(name: str):
    path = ROOT / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


# `measure` is what the others use.
NAMES = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py") if path.stem != "measure")


@pytest.mark.parametrize("name", NAMES)
def test_every_benchmark_explains_itself(name, capsys):
    with pytest.raises(SystemExit) as stop:
        load(name).main(["--help"])
    assert stop.value.code == 0 and "--outdir" in capsys.readouterr().out


# All in one process, which imports torch once: each finds the project's modules by itself.
PROGRAMS = """
import runpy, sys
root, *names = sys.argv[1:]
paths = sys.path[1:]
for name in names:
    sys.path[:] = [f"{root}/benchmarks", *paths]
    for key, module in list(sys.modules.items()):
        path = getattr(module, "__file__", None) or ""
        if path.startswith(root) and "site-packages" not in path:
            del sys.modules[key]
    sys.argv = [name, "--help"]
    try:
        runpy.run_path(f"{root}/benchmarks/{name}.py", run_name="__main__")
    except SystemExit as stop:
        assert not stop.code, name
"""


@pytest.mark.slow
def test_every_benchmark_is_a_program_in_any_folder(tmp_path):
    argv = [sys.executable, "-c", PROGRAMS, str(ROOT), *NAMES]
    out = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True)
    assert out.returncode == 0 and out.stdout.count("usage:") == len(NAMES), out.stderr


SMALL = {
    "sampling": f"--num_sets 1 --num_steps 3 --repetitions 1 --data_root {ROOT / 'data'}",
    "network": "--network NETWORK --compile false --device cpu --images 1 --repetitions 1",
    "potentials": "--particles [4] --pixels 16 --repetitions 1",
    "worlds": "--sequences 16 --repetitions 1 --device cpu",
    "training": "--network NETWORK --compile false --device cpu --updates 1 --repetitions 1",
    "grid": "--experiment e9 --num_sets 1 --evaluated 1 --evaluations 1 --repetitions 1",
    "pipelines": "--scheduler_sets 1 --num_sets 1 --num_steps 4 --repetitions 1 --iterations 2",
    "gpu": (
        "--network NETWORK --compile false --device cpu --updates 1 --repetitions 1 --num_sets 1 "
        "--particles 4 --experiment e9 --preset quick --grid_sets 1 --digits embedded "
        "--checkpoint CHECKPOINT"
    ),
}
NETWORK = dict(
    dataset="free", channels=[16], blocks=1, attention=[], patch_size=4, motion=4, batch_size=8
)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_every_benchmark_of_speed_measures(name, tmp_path, monkeypatch, tiny_model):
    """Each part of it, on something small; processes are few, for each takes seconds to start."""
    monkeypatch.chdir(ROOT)
    benchmark = load(name)
    if name == "gpu":
        long = ("network", benchmark.COMPILED)
        parts = {part: run for part, run in benchmark.PARTS.items() if part not in long}
        monkeypatch.setattr(benchmark, "PARTS", dict(broken=lambda args, left: 1 / 0) | parts)
    elif name == "network":
        monkeypatch.setattr(benchmark, "MATRIX_SIDE", 64)
        monkeypatch.setattr(benchmark, "COPIED", 2**10)
    elif name == "potentials":
        monkeypatch.setattr(
            "diverse_sampling.potentials.POTENTIALS", dict.fromkeys(["iou", "logdet"])
        )
    elif name == "training":
        one_of_three = {"parts": benchmark.SAME_BATCH["accumulate 4"]}
        monkeypatch.setattr(benchmark, "SAME_BATCH", one_of_three)
    elif name == "pipelines":
        pytest.importorskip("diffusers")
        monkeypatch.setattr(benchmark, "SCHEDULERS", {"DDIM": benchmark.SCHEDULERS["DDIM"]})
        monkeypatch.setattr(benchmark, "COSTED", 1)
        monkeypatch.setattr(benchmark, "STEPPED", ("DDIM",))
        monkeypatch.setattr(benchmark, "COUNTED", ("DDIM",))
        monkeypatch.setattr(benchmark, "OF_STUDENT", ("DDIM",))
        monkeypatch.setattr(benchmark, "REDRAWN", dict(exact=("DDIM",), student=("DDIM",)))
        monkeypatch.setattr(benchmark, "BESIDE", 8)
        # tests/test_examples.py draws digits by every route.
        settings = dict(num_sets=1, particles=10, num_steps=4, seed=1)
        figures = dict.fromkeys(["digits", "confidence"], dict(mean=0.9, ci95=None))
        drawn = dict(settings=settings, pilot=15.0, routes=dict(DDIM=figures | dict(calls=4.0)))
        monkeypatch.setattr(benchmark, "digits", lambda args: drawn)
    elif name == "grid":
        monkeypatch.setattr(benchmark, "ANSWERS", benchmark.ANSWERS[-1:])
        # tests/test_experiments.py shares cells and sets among two.
        launch = benchmark.measure.launch
        monkeypatch.setattr(benchmark.measure, "launch", lambda script, ranks: launch(script, 1))
    few = dict(iterations=60) if name == "gpu" else {}  # a training that ends
    (tmp_path / "network.yaml").write_text(yaml.safe_dump(NETWORK | few))
    flags = SMALL[name].replace("NETWORK", str(tmp_path / "network.yaml"))
    flags = flags.replace("CHECKPOINT", str(tiny_model / "model.safetensors")).split()
    benchmark.main([*flags, "--outdir", str(tmp_path)])
    result = json.loads((tmp_path / f"{name}.json").read_text())
    assert result["machine"]["threads"] >= 1 and result["machine"]["torch"]
    blocks = (tmp_path / f"{name}.md").read_text().split("\n\n")
    tables = [block.splitlines() for block in blocks if block.startswith("| ")]
    assert tables and all(len(table) > 2 for table in tables)
    assert all(len({line.count("|") for line in table}) == 1 for table in tables)
    if name == "gpu":
        assert parts.keys() < result.keys()
        assert result["failed"] == {"broken": "ZeroDivisionError: division by zero"}
        before = result
        benchmark.main(["--train", "true", *flags, "--minutes", "9", "--outdir", str(tmp_path)])
        result = json.loads((tmp_path / "gpu.json").read_text())
        assert {name: result[name] for name in before} == before  # what was measured is kept
        assert result["training"]["updates"] == result["training"]["of"] == 60


@pytest.mark.slow
def test_the_comparison_searches_strengths_and_keeps_finished_cells(tmp_path, monkeypatch):
    comparison = load("comparison")
    plan = comparison.PLAN | dict(
        prices=[5, 9, 15],
        searched_at=9,
        controls={"independent": {}, "the optimum": dict(guidance="joint", models=["exact"])},
        coupled={
            "particle guidance": dict(pg_factor=[0.01, 5.0]),
            "CADS": dict(guidance="cads", cads_scale=[0.1, 1.0], models=["plain U-Net"]),
        },
    )
    plan["samplers"] = {name: plan["samplers"][name] for name in ("EDM's", "the window")}
    monkeypatch.setattr(comparison, "PLAN", plan)
    monkeypatch.setattr(comparison, "SEEDS", {True: range(2), False: range(2)})
    monkeypatch.setattr(comparison, "SETS", {True: 6, False: 2})
    monkeypatch.setattr(comparison, "SEARCH_SETS", {True: 6, False: 1})
    network = str(ROOT / "checkpoints" / "circle_jumping_unet.safetensors")
    argv = ["--search_checkpoint", network, "--trainings", network, "--outdir", str(tmp_path)]
    argv += ["--data_root", str(ROOT / "data")]
    comparison.main(argv)
    record = json.loads((tmp_path / "comparison.json").read_text())
    found = {(each["method"], each["sampler"]): each for each in record["search"]}
    for (method, _), each in found.items():
        if method in plan["coupled"]:
            totals = {float(key): sum(shown.values()) for key, shown in each["shown"].items()}
            assert totals[each["chosen"]] == max(totals.values())
    assert set(found["CADS", "EDM's"]["shown"]["0.1"]) == {"plain U-Net of another seed"}
    assert found["particle guidance", "the window"]["chosen"] == 5.0
    rows = record["rows"]
    assert {row["model"] for row in rows if row["method"] == "CADS"} == {
        "plain U-Net",
        "plain U-Net, training 2",
    }
    assert all(row["price"] <= row["budget"] for row in rows)
    exact = [row for row in rows if row["model"] == "exact"]
    assert len(exact) == 3 * (2 + 2) and all(row["num_sets"] == 12 for row in exact)
    again = [row for row in rows if row["model"] == "plain U-Net, training 2"]
    assert [row["method"] for row in again] == ["independent", "particle guidance", "CADS"]
    assert again[1]["sampler"] == "the window" and {row["budget"] for row in again} == {9}
    text = (tmp_path / "comparison.md").read_text()
    assert "**All trainings of the plain U-Net, 9 calls a sample**" in text
    assert "**exact, 9 calls a sample** (12 sets" in text and "| particle guidance |" in text
    assert (tmp_path / "comparison.png").stat().st_size > 5000
    cells = sorted((tmp_path / "cells").iterdir())
    before = [cell.stat().st_mtime_ns for cell in cells]
    cells[0].unlink()
    comparison.main(argv)
    after = [cell.stat().st_mtime_ns for cell in cells]
    assert after[1:] == before[1:] and after[0] != before[0]


def test_every_row_of_the_comparison_is_an_evaluation(tmp_path):
    comparison = load("comparison")
    network = ROOT / "checkpoints" / "circle_jumping_unet.safetensors"
    args = SimpleNamespace(
        search_checkpoint=str(network), trainings=[], data_root="data", outdir=tmp_path
    )
    cells = comparison.Cells(args)
    for row in comparison.rows():
        assert set(row.models) <= set(comparison.PLAN["models"])
        strengths = [None] if row.tried is None else row.tried[1]
        assert len(strengths) in (1, 7) and strengths == sorted(strengths, key=lambda s: s or 0)
        searched = cells.searched_on(row).values()
        reported = [comparison.PLAN["models"][name] for name in row.models]
        for model in [*searched, *reported]:
            values = cells.settings(row, model, comparison.PLAN["searched_at"], strengths[-1])
            settings, _ = assemble.complete(values)
            assert row.tried is None or settings.record()[row.tried[0]] == strengths[-1]


@pytest.mark.slow
def test_the_ablation_changes_one_choice_at_a_time_and_keeps_finished_cells(tmp_path, monkeypatch):
    ablation = load("ablation")
    few = f"--denoiser exact --num_sets 4 --digits mnist {ablation.SEED}"
    names = ("", "none", "0.02 in place of 0.002")
    choices = [choice for choice in ablation.CHOICES if choice[1] in names]
    for name, value in dict(
        EXACT=few,
        UNET=f"{few} --p 0.5",  # in place of a network
        CHOICES=choices,
        PAIRS={name: ablation.PAIRS[name] for name in ("window and noise", "kernel and space")},
        FACTORS=(1, 5),
        WORLDS={"circle": (few, "pg_factor", ("modes_found", "hm_iou"))},
    ).items():
        monkeypatch.setattr(ablation, name, value)
    argv = ["--data_root", str(ROOT / "data"), "--outdir", str(tmp_path)]
    ablation.main(argv)
    record = json.loads((tmp_path / "ablation.json").read_text())
    assert [row["instead"] for row in record["choices"]] == [choice[1] for choice in choices]
    assert all(len(row["exact"]) == len(ablation.TRIED) for row in record["choices"])
    default = record["choices"][0]
    assert default["exact"]["5"] == record["worlds"][0]["cells"]["5"] | default["exact"]["5"]
    window = {(cell["row"], cell["column"]): cell for cell in record["pairs"]["window and noise"]}
    assert window["with noise", "the window"]["modes_found"] == default["exact"]["5"]["modes_found"]
    edm = window["without noise", "EDM's noise levels"]["modes_found"]
    assert edm["mean"] < window["with noise", "the window"]["modes_found"]["mean"]
    assert (tmp_path / "ablation.png").stat().st_size > 5000
    kept = {cell: cell.stat().st_mtime_ns for cell in (tmp_path / "cells").iterdir()}
    ablation.main(argv)
    assert kept == {cell: cell.stat().st_mtime_ns for cell in (tmp_path / "cells").iterdir()}


def test_predictions_are_judged_by_their_rules():
    predictions = load("predictions")
    rules = {number: met for number, _, _, met in predictions.RULES}
    page = (ROOT / "docs" / "predictions.md").read_text()
    assert sorted(rules) == list(range(1, 11)) and all(f"\n| {n} | " in page for n in rules)
    gain = predictions.Compared(0.9, 0.99, 0.05, 0.13)
    assert rules[1](gain) and rules[4](gain) and rules[8](gain) and rules[9](gain)
    assert not rules[1](predictions.Compared(0.9, 0.99, -0.01, 0.19))
    assert not rules[8](predictions.Compared(0.9, 0.97, 0.05, 0.13))
    assert rules[6](predictions.Compared(1.0, 0.95, -0.08, -0.02))
    assert not rules[6](predictions.Compared(1.0, 0.85, -0.18, -0.12))  # more than can be


def test_new_blobs_have_three_masks_that_differ_and_share_the_core():
    predictions = load("predictions")
    shown, masks = predictions.new_blob(np.random.default_rng(1), 32)
    areas = masks.sum((1, 2))
    core = masks[areas.argmin()]
    assert masks.shape == (3, 32, 32) and (masks & core).sum((1, 2)).tolist() == [core.sum()] * 3
    assert len({mask.tobytes() for mask in masks}) == 3
    assert shown[core].mean() > shown[masks.any(0) & ~core].mean() > 0.2


def test_futures_of_a_random_choice_leave_the_wall_as_the_world_says():
    predictions = load("predictions")
    flags = "--dataset free --num_sets 40 --digits embedded --seed 3"
    task = assemble.evaluation(flags.split()).task
    chosen = task.sequences.choices[:, -1].nonzero()[:, 0].tolist()
    assert chosen
    for which in chosen:
        futures = predictions.futures(task, which)
        assert futures.shape == (predictions.DRAWN, *task.world.frame_shape)
        # What did follow is one of them, but in a corner that the digit reached without hitting it.
        truth = task.sequences.frames[which, -1]
        at = task.sequences.positions[which, -2, 0]
        corner = bool(((at == 0) | (at == task.world.room)).all())
        assert corner or (futures - truth).flatten(1).norm(dim=1).min() < 1e-5


def test_the_left_half_is_seen_through_noise_and_known_exactly():
    predictions = load("predictions")
    with patch.dict(data_loader.CLASS_WORLDS, halves=predictions.LeftHalves):
        flags = "--dataset halves --denoiser exact --digits embedded --num_sets 3 --batch_size 2"
        task = assemble.evaluation(flags.split()).task
    world, seen = task.world, task.cond[:, 0]
    middle, end = world.centre + world.digit_size // 2, world.centre + world.digit_size
    lit = seen.abs().sum(0) > 0
    assert (
        lit[world.centre : end, world.centre : middle].all()
        and lit.sum() == world.digit_size**2 / 2
    )
    known = world.training.images[:, :, : world.digit_size // 2]
    drawn = seen[:, world.centre : end, world.centre : middle]
    apart = (known[None] - drawn[:, None]).square().sum((2, 3))
    ratios = world.log_likelihood(seen).diff(dim=1)
    assert torch.allclose(ratios, -apart.diff(dim=1) / (2 * world.NOISE**2), atol=1e-2)


@pytest.mark.slow
def test_the_benchmark_of_outlines_measures_bounds_and_methods(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answers = np.zeros((20, 4, 8, 8), dtype=np.uint8)
    for case in range(20):
        for reader in range(4):
            answers[case, reader, 2 : 4 + (case + reader) % 3, 3:6] = 255
    np.savez("lidc.npz", frames=answers[:, :1], answers=answers, groups=np.arange(20) // 2)
    small = "--channels [8] --blocks 1 --attention [] --patch_size 4 --batch_size 4 --device cpu"
    train.main([*small.split(), *"--frames lidc.npz --iterations 2 --outdir net".split()])
    flags = "--checkpoint net/model.safetensors --num_sets 4 --outdir out".split()
    load("lidc").main(flags)
    rows = {
        row["name"]: row["metrics"] for row in json.loads(Path("out/lidc.json").read_text())["rows"]
    }
    assert rows["the four"]["hm_iou"]["mean"] == 1
    assert rows["the four"]["ged"]["mean"] == pytest.approx(0, abs=1e-6)
    assert rows["the network's mean, copied"]["iou_distance"]["mean"] == 0
    guided = "--pg_factor 5 --pg_only_if_needed false"
    assert {"independent", "`--pg_factor 5`", f"`{guided}`"} < rows.keys()
    assert Path("out/lidc.md").read_text().count("\n| ") == 9  # with the head
    assert Path("out/lidc.png").stat().st_size > 5000
    before = Path("out/guided/metrics.json").stat().st_mtime_ns
    load("lidc").main(flags)  # what is finished is kept
    assert Path("out/guided/metrics.json").stat().st_mtime_ns == before
    # Of three given outlines, the fourth is the answer.
    np.savez("others.npz", frames=answers[:, :3], answers=answers[:, 3:], groups=np.arange(20) // 2)
    given = "--frames others.npz --num_cond_frames 3 --iterations 2 --outdir net3"
    train.main([*small.split(), *given.split()])
    flags = "--frames others.npz --checkpoint net3/model.safetensors --num_sets 4 --outdir out3"
    load("lidc").main(flags.split())
    record = json.loads(Path("out3/lidc_others.json").read_text())
    rows = {row["name"]: row["metrics"] for row in record["rows"]}
    assert {"the given", "independent", "`--pg_factor 5`"} < rows.keys()
    assert rows["majority of the given, copied"]["spread_skill"]["mean"] == 0
    assert rows["the given"]["spread_skill"]["mean"] > 0
    assert Path("out3/lidc_others.png").stat().st_size > 5000


@pytest.mark.slow
def test_eddys_benchmark_compares_the_same_noise(tmp_path, monkeypatch):
    eddy = load("eddy")
    monkeypatch.setattr(eddy, "STEPS", (4, 8))
    eddy.main(["--num_sets", "8", "--data_root", str(ROOT / "data"), "--outdir", str(tmp_path)])
    rows = json.loads((tmp_path / "eddy.json").read_text())["rows"]
    assert len(rows) == 2 * 2 * 2
    for row in rows:
        gain = row["field"]["modes_found"]["mean"] - row["alone"]["modes_found"]["mean"]
        assert row["gain"]["mean"] == pytest.approx(gain)
    assert "| simplex | 8 |" in (tmp_path / "eddy.md").read_text()
    assert (tmp_path / "eddy.png").is_file()
