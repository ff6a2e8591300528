"""docs/files.md names every key and every array that runs write, and nothing else."""

import json
import re

import numpy as np
import pytest
from conftest import ROOT, SMALL

import evaluate
import train
from lab import assemble, checkpoint, records
from lab.files import as_json

PAGE = (ROOT / "docs" / "files.md").read_text()
FEW = "--digits embedded --num_sets 3 --batch_size 4 --num_steps 4 --device cpu".split()


def section(heading):
    """The part of the page below a heading, to the next one."""
    return re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#)", PAGE + "#", flags=re.M | re.S)[1]


def named(text):
    """What the first columns of the tables in a part of the page name."""
    rows = re.findall(r"^\| (`.*?) \|", text, flags=re.M)
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """{name: (arrays, record of metrics.json)} of evaluations in all kinds of worlds."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    # A square at one of two places is the answer to a dim frame; three classes; or a next frame.
    frames = rng.random((40, 1, 8, 8)).astype(np.float32)
    masks = (rng.random((40, 3, 8, 8)) > 0.5).astype(np.uint8) * 255
    np.savez(folder / "masks.npz", frames=frames, answers=masks)
    labels = rng.integers(0, 3, (40, 3, 8, 8)).astype(np.uint8)
    np.savez(folder / "classes.npz", frames=frames, answers=labels)
    np.savez(folder / "videos.npz", frames=rng.random((40, 3, 8, 8)).astype(np.float32))
    pictures = np.zeros((40, 8, 8), np.float32)
    pictures[::2, :, 2], pictures[1::2, 2] = 1, 1
    np.savez(folder / "pictures.npz", frames=pictures, labels=np.arange(40) % 2)
    kinds = dict(
        circle="--denoiser exact",
        window="--pg_factor 5",
        free="--dataset free",
        plane="--dataset mixture --denoiser exact",
        digits="--task unconditional --guidance classes --classes 3:2,8:2",
        halves="--dataset halves",
        masks=f"--frames {folder}/masks.npz --denoiser exact",
        classes=f"--frames {folder}/classes.npz --denoiser exact",
        videos=f"--frames {folder}/videos.npz --denoiser exact",
        pictures=f"--frames {folder}/pictures.npz --num_cond_frames 0 --denoiser exact",
    )
    found = {}
    for name, flags in kinds.items():
        evaluation = assemble.evaluation([*FEW, *flags.split()])
        samples, modes, result = evaluation.run(progress=False)
        truth = evaluation.task.truth()
        arrays = records.arrays_of(evaluation.task.cond, samples, modes, truth)
        found[name] = (arrays, json.loads(as_json(result)))
    return found


def test_metrics_json(runs):
    keys = {key for _, result in runs.values() for key in result}
    assert keys == named(section("metrics.json"))


def test_a_metric_is_a_number_or_has_the_form_that_the_page_says(runs):
    form = {"mean", "ci95", "per_set"}
    exceptions = named(section("metrics.json").split("These differ from that form")[1])
    for name, (_, result) in runs.items():
        for key, value in result.items():
            if key not in exceptions and not isinstance(value, (int, float, str, type(None))):
                assert set(value) == form and len(value["per_set"]) == 3, (name, key)
    result = runs["circle"][1]
    assert set(result["equivalent_draws"]) == {"mean", "at_least"}
    assert set(result["mode_frequencies"][0]) == {"mean", "ci95", "prior"}
    assert set(runs["videos"][1]["spread_skill"]) == {"mean", "ci95"}
    assert set(runs["window"][1]["decisions"]) == {"sigmas", "shares", "variance", "floor"}
    assert set(runs["pictures"][1]["judge_accuracy"]) == {"mean", "ci95"}
    words = set(re.findall(r"`(\w+)`", PAGE))
    assert set(runs["masks"][1]["data"]) <= words


def test_samples_npz(runs):
    """`rollout` has a test of its own in test_own_data.py."""
    shapes = {}
    for arrays, _ in runs.values():
        shapes |= {name: tuple(array.shape) for name, array in arrays.items()}
    assert {*shapes, "rollout"} == named(section("samples.npz"))
    arrays = runs["window"][0]
    assert arrays["samples"].shape == (3, 4, 32, 32) and arrays["cond"].shape == (3, 1, 32, 32)
    assert arrays["positions"].shape == (3, 2, 1, 2) and arrays["choices"].shape == (3, 2)
    assert runs["plane"][0]["samples"].shape == (3, 4, 1, 2)


def test_a_training(tmp_path):
    train.main([*SMALL, "--iterations", "2", "--outdir", str(tmp_path)])
    files = {re.sub(r"-\d+", "-*", path.name) for path in tmp_path.iterdir()} - {".lock"}
    listed = named(section("A training"))
    assert files <= listed
    line = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    words = set(re.findall(r"`(\w+)`", section("A training")))
    assert set(line) <= words
    metadata = checkpoint.read_metadata(tmp_path / "model.safetensors")
    assert set(metadata) - {"box", "torch"} <= words


def test_results_json(monkeypatch, tmp_path):
    from lab import experiments

    recipe = dict(title="a", reference="b", grid=dict(pg_factor=[0, 1]), figure="heatmap")
    monkeypatch.setattr(experiments, "load", lambda name: recipe)
    flags = dict(denoiser="exact", digits="embedded", num_sets=2, num_steps=4, device="cpu")
    experiments.run("e0", "quick", flags, tmp_path)
    record = json.loads((tmp_path / "results.json").read_text())
    row = record["rows"][0]
    assert {*record, *(f"rows[].{key}" for key in row)} == named(section("results.json"))
    assert (tmp_path / "cells" / f"{row['key']}.json").is_file()


def test_the_page_reads_a_run(tmp_path, monkeypatch, capsys):
    """The blocks of Python on docs/files.md, beside a run of that name."""
    evaluate.main([*FEW, "--denoiser", "exact", "--outdir", str(tmp_path / "runs" / "NAME")])
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    for block in re.findall(r"```python\n(.*?)```", PAGE, flags=re.S):
        exec(block, {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and "[" in lines[0] and lines[1] == "(3, 4, 32, 32)"
