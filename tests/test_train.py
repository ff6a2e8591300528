"""Training: what a run leaves behind, what it does again, and what it says at its end."""

import json
import os
import shlex
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT, SMALL, slow_but

import evaluate
import train
from lab import checkpoint


def strict_json(line: str) -> dict:
    """A line of JSON as the standard has it: Python's parser accepts NaN and Infinity too."""

    def refuse(constant: str):
        raise ValueError(f"{constant} is not JSON")

    return json.loads(line, parse_constant=refuse)


def log_of(folder) -> list[dict]:
    return [strict_json(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def contents(folder) -> dict[str, bytes]:
    """What the files of a folder hold, by their names."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def assert_equal_states(one, two, **tolerance) -> None:
    """The same tensors, bit for bit where there is no tolerance."""
    a, b = (checkpoint.read_tensors(folder / "state.safetensors") for folder in (one, two))
    torch.testing.assert_close(a, b, **(tolerance or dict(rtol=0, atol=0)))


def test_a_run_leaves_what_it_promises(tiny_model):
    names = {p.name for p in tiny_model.iterdir()}
    promised = "config.yaml metrics.jsonl model.safetensors state.safetensors samples-0000030.png"
    assert set(promised.split()) <= names
    lines = log_of(tiny_model)
    assert [line["iteration"] for line in lines] == [5, 10, 15, 20, 25, 30]
    assert lines[-1]["loss"] < lines[0]["loss"]
    denoiser, metadata = checkpoint.load_denoiser(tiny_model / "model.safetensors")
    assert metadata["iteration"] == 30 and metadata["digits_source"] == "embedded"
    assert metadata["parameters"] == sum(p.numel() for p in denoiser.parameters())


@pytest.mark.parametrize(
    "extra",
    slow_but(
        ["--dataset horizontal --class_labels true"],
        [
            "--optimizer muon",
            "--dataset free",
            "--dataset centered --crop true",
            "--dataset horizontal --class_labels true",
            "--target posterior",
        ],
    ),
)
def test_every_kind_of_run_learns(extra, tmp_path, undrawn):
    train.main(
        [*SMALL, *extra.split(), "--iterations", "40", "--lr", "0.003", "--outdir", str(tmp_path)]
    )
    losses = [record["loss"] for record in log_of(tmp_path)]
    assert sum(losses[-10:]) / 10 < 0.9 * sum(losses[:5]) / 5


def interrupted(argv: list[str], folder, updates: int) -> None:
    """Train for some updates, save, and end there."""
    training, outdir = train.setup([*argv, "--outdir", str(folder)])
    train.begin(training, outdir)
    steps = iter(training)
    for _ in range(updates):
        next(steps)
    training.save(outdir)


@pytest.mark.parametrize(
    "extra",
    slow_but(
        ["--optimizer muon --dropout 0.3"],
        [
            "--optimizer muon --dropout 0.3",
            "--optimizer muon",
            "--dropout 0.3 --accumulate 2 --sample_every 2",
            "--dropout 0.1 --dataset horizontal --class_labels true",
        ],
    ),
)
def test_resuming_gives_the_weights_of_an_uninterrupted_run(extra, tmp_path, request):
    if "sample_every" not in extra:  # pictures in between change nothing either
        request.getfixturevalue("undrawn")
    argv = [*SMALL, *extra.split(), "--iterations", "12", "--save_every", "5"]
    train.main([*argv, "--outdir", str(tmp_path / "whole")])
    interrupted(argv, tmp_path / "cut", updates=5)
    torch.manual_seed(1234)  # another process would be elsewhere in its stream
    train.main(["--resume", str(tmp_path / "cut")])
    assert_equal_states(tmp_path / "whole", tmp_path / "cut")


def test_dropout_draws_another_mask_in_every_update(tmp_path):
    """So that resuming at the start of the stream would have been noticed."""
    training, _ = train.setup([*SMALL, "--dropout", "0.5", "--outdir", str(tmp_path)])
    for step in training:  # at first the layers behind dropout are zero
        if step["iteration"] == 4:
            break
    batch = training.batch()
    training.batch = lambda: batch
    assert not torch.equal(training.backward(), training.backward())


def test_a_state_without_generators_is_continued(tmp_path, undrawn):
    """States of earlier versions hold none."""
    argv = [*SMALL, "--dropout", "0.3", "--iterations", "8"]
    interrupted(argv, tmp_path, updates=5)
    path = tmp_path / "state.safetensors"
    tensors = checkpoint.read_tensors(path)
    kept = {key: value for key, value in tensors.items() if not key.startswith("generator.")}
    assert len(kept) < len(tensors)
    checkpoint.save_tensors(path, kept, checkpoint.read_metadata(path))
    train.main(["--resume", str(tmp_path)])
    assert checkpoint.read_metadata(path)["iteration"] == 8


def test_fewer_updates_than_a_training_has_had_are_refused(tmp_path, refused, capsys, undrawn):
    train.main([*SMALL, "--iterations", "12", "--outdir", str(tmp_path)])
    before = contents(tmp_path)
    capsys.readouterr()
    line = refused(train.main, ["--resume", str(tmp_path), "--iterations", "11"])
    assert "iterations: got 11; accepted: 12 or more" in line
    assert "has had 12 updates" in line and str(tmp_path) in line
    assert contents(tmp_path) == before


def test_a_finished_training_can_be_resumed_and_prolonged(tmp_path, capsys, undrawn):
    train.main(
        [*SMALL, "--iterations", "4", "--lr_schedule", "constant", "--outdir", str(tmp_path)]
    )
    state = (tmp_path / "state.safetensors").read_bytes()
    first = capsys.readouterr().out
    train.main(["--resume", str(tmp_path)])
    assert capsys.readouterr().out == first
    assert (tmp_path / "state.safetensors").read_bytes() == state
    train.main(["--resume", str(tmp_path), "--iterations", "6"])
    assert [record["iteration"] for record in log_of(tmp_path)] == [1, 2, 3, 4, 5, 6]
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["iterations"] == 6


@pytest.mark.slow
def test_a_training_that_has_no_state_yet_starts_again_with_its_settings(tmp_path, capsys, undrawn):
    argv = [*SMALL, "--iterations", "3", "--lr", "0.002"]
    train.main([*argv, "--outdir", str(tmp_path / "whole")])
    training, outdir = train.setup([*argv, "--outdir", str(tmp_path / "cut")])
    train.begin(training, outdir)
    train.main(["--resume", str(outdir)])
    assert "there is no checkpoint yet" in capsys.readouterr().err
    assert_equal_states(tmp_path / "whole", outdir)


@pytest.mark.parametrize(
    "given, found",
    [("nowhere", "not found"), ("empty", "has no config.yaml"), ("a file", "not found")],
)
def test_what_is_no_training_is_refused_with_its_place(
    given, found, tmp_path, monkeypatch, refused
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "a file").touch()
    line = refused(train.main, ["--resume", given])
    assert f"resume: got {given!r}; accepted: the folder of a training" in line
    assert f"{tmp_path / given} {found}" in line


def test_what_is_given_wins_over_what_a_training_was_started_with(tiny_model):
    settings, _ = train.parse(["--resume", str(tiny_model), "--iterations", "40"])
    assert settings.train.iterations == 40 and settings.train.lr == 0.003
    assert settings.model.channels == [16, 16]


def test_posterior_targets_are_the_mean_of_the_drawn_ones(tmp_path):
    """Same noisy frames, less noise in the target: equal in the mean, never farther from it."""
    targets = {}
    for target in ("drawn", "posterior"):
        flags = f"--target {target} --batch_size 4096 --p_mean 1.5 --p_std 0.3".split()
        training, _ = train.setup([*SMALL, *flags, "--outdir", str(tmp_path)])
        x, _, targets[target], _, _ = training.batch()
    drawn, posterior = targets["drawn"], targets["posterior"]
    torch.testing.assert_close(drawn.mean(0), posterior.mean(0), atol=0.06, rtol=0)
    assert posterior.var(0).sum() < 0.9 * drawn.var(0).sum()


@pytest.mark.slow
def test_two_processes_train_like_one(tmp_path, undrawn):
    """DDP over gloo: the same global batch gives the same weights."""
    # Attention, whose kernels of one pixel are matrices too.
    argv = [*SMALL, "--attention", "[0]", "--iterations", "4"]
    train.main(argv + ["--outdir", str(tmp_path / "one")])
    done = subprocess.run(
        [
            *[sys.executable, "-m", "torch.distributed.run", "--standalone"],
            *["--nproc_per_node", "2", str(ROOT / "train.py"), *argv],
            *["--outdir", str(tmp_path / "two")],
        ],
        check=True,
        capture_output=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        text=True,
    )
    assert "strides" not in done.stderr and "FutureWarning" not in done.stderr
    assert_equal_states(tmp_path / "one", tmp_path / "two", rtol=1e-4, atol=1e-5)


def test_a_batch_in_parts_trains_like_a_whole_one(tmp_path, undrawn):
    argv = [*SMALL, "--iterations", "4"]
    train.main([*argv, "--outdir", str(tmp_path / "whole")])
    train.main([*argv, "--accumulate", "4", "--outdir", str(tmp_path / "parts")])
    assert_equal_states(tmp_path / "whole", tmp_path / "parts", rtol=1e-4, atol=1e-5)
    losses = [[record["loss"] for record in log_of(tmp_path / name)] for name in ("whole", "parts")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_batch_that_cannot_be_split_is_refused(tmp_path, refused):
    line = refused(train.main, [*SMALL, "--accumulate", "3", "--outdir", str(tmp_path)])
    assert "batch_size: got 8" in line and "accumulate = 3" in line


def test_a_cropped_network_is_what_is_loaded_again(tmp_path, undrawn):
    train.main(
        [*SMALL, "--dataset", "centered", "--crop", "true", "--iterations", "1"]
        + ["--outdir", str(tmp_path)]
    )
    denoiser, metadata = checkpoint.load_denoiser(tmp_path / "model.safetensors")
    assert denoiser.box == tuple(metadata["box"]) == (8, 24, 8, 24)
    assert metadata["sigma_data"] > 0.5  # of the digit, not of the black around it


# ---------------------------------------------------------------- metrics.jsonl


def test_the_log_is_json_whatever_the_loss_is(tmp_path, monkeypatch, capsys, undrawn):
    """A batch that is not finite leaves null where a number would be NaN or infinite."""
    from lab.training import Training

    draw = Training.batch
    factors = {2: float("nan"), 3: float("inf"), 5: float("-inf")}

    def batch(training):
        factor = factors.get(training.iteration, 1.0)
        return tuple(t * factor if t.is_floating_point() else t for t in draw(training))

    monkeypatch.setattr(Training, "batch", batch)
    train.main([*SMALL, "--iterations", "7", "--outdir", str(tmp_path)])
    records = log_of(tmp_path)
    broken = [record["iteration"] for record in records if record["loss"] is None]
    assert broken == [3, 4, 6]
    assert all(isinstance(r["loss"], float) for r in records if r["iteration"] not in broken)
    finite = [record["loss"] for record in records if record["loss"] is not None]
    line = capsys.readouterr().out
    assert f"loss {np.mean(finite):.4f} (mean of the last 4 records)" in line


@pytest.mark.slow
def test_a_log_of_an_earlier_version_becomes_json_when_it_is_continued(tmp_path, undrawn):
    train.main([*SMALL, "--iterations", "3", "--outdir", str(tmp_path)])
    log = tmp_path / "metrics.jsonl"
    records = log_of(tmp_path)
    records[1] |= dict(loss=float("nan"), grad_norm=float("inf"))
    log.write_text(
        "".join(json.dumps(record) + "\n" for record in records) + '{"iteration": 4, "lo'
    )
    train.main(["--resume", str(tmp_path), "--iterations", "5"])
    after = log_of(tmp_path)
    assert [record["iteration"] for record in after] == [1, 2, 3, 4, 5]
    assert after[0] == records[0] and after[2] == records[2]
    assert after[1] == records[1] | dict(loss=None, grad_norm=None)


# ---------------------------------------------------------------- results before pictures


@pytest.mark.slow
def test_a_backend_that_is_missing_does_not_end_a_training(tmp_path):
    out = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *SMALL]
        + ["--iterations", "3", "--sample_every", "2", "--outdir", str(tmp_path)],
        env=os.environ | dict(MPLBACKEND="module://not_installed"),
        capture_output=True,
        text=True,
    )
    assert out.returncode == 0, out.stderr
    assert out.stdout.startswith(f"written to {tmp_path}; loss ")
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "samples-0000002.png",
        "samples-0000003.png",
    }


def test_a_picture_that_cannot_be_drawn_costs_a_warning(tmp_path, monkeypatch, capsys):
    def draw(training, path):
        raise OSError("no space for pictures")

    monkeypatch.setattr(train, "draw_samples", draw)
    train.main([*SMALL, "--iterations", "3", "--outdir", str(tmp_path)])
    captured = capsys.readouterr()
    assert "cannot be drawn (no space for pictures)" in captured.err and "loss" in captured.out
    assert checkpoint.read_metadata(tmp_path / "model.safetensors")["iteration"] == 3
    assert [record["iteration"] for record in log_of(tmp_path)] == [1, 2, 3]


# ---------------------------------------------------------------- the last line


@pytest.mark.parametrize(
    "world",
    slow_but(
        ["", "--dataset centered"],
        [
            "",
            "--dataset centered",
            "--dataset horizontal --p 0.8 --class_labels true",
            "--dataset free --num_digits 2 --image_size 40",
            "--frames examples/blobs.npz",
        ],
    ),
)
def test_a_training_ends_with_the_command_that_samples_from_it(
    world, tmp_path, monkeypatch, capsys, undrawn
):
    monkeypatch.chdir(ROOT)
    folder = tmp_path / "a run"
    train.main([*SMALL, *world.split(), "--iterations", "2", "--outdir", str(folder)])
    (line,) = capsys.readouterr().out.splitlines()
    mean = np.mean([record["loss"] for record in log_of(folder)])
    assert line.startswith(f"written to {folder}; loss {mean:.4f} (mean of the last 2 records); ")
    words = shlex.split(line.partition("sample with: ")[2])
    assert words[:2] == ["python", "evaluate.py"]
    quick = "--num_sets 2 --batch_size 2 --num_steps 2 --device cpu".split()
    evaluate.main([*words[2:], *quick, "--outdir", str(tmp_path / "sets")])
    result = json.loads((tmp_path / "sets" / "metrics.json").read_text())
    trained = checkpoint.read_metadata(folder / "model.safetensors")
    assert result["settings"]["checkpoint"] == str(folder / "model.safetensors")
    for key in ("dataset", "p", "num_digits", "image_size", "frames"):
        assert result["settings"][key] == trained["settings"][key]
    assert result["digits_source"] == trained["digits_source"]


def test_elsewhere_the_command_names_the_path_of_the_code(tmp_path, monkeypatch):
    settings, _ = train.parse(["--digits", "mnist", "--data_root", "my data"])
    monkeypatch.chdir(tmp_path)
    words = shlex.split(train.sampling_command(settings, tmp_path / "run"))
    assert words[:2] == ["python", str(ROOT / "evaluate.py")]
    assert words[2:4] == ["--checkpoint", str(tmp_path / "run" / "model.safetensors")]
    assert words[4:] == ["--digits", "mnist", "--data_root", "my data"]


def test_no_command_is_promised_where_there_is_none(tmp_path, refused, capsys, undrawn):
    """evaluate.py has no task for a network that draws frames of a moving digit unconditionally."""
    argv = [*SMALL, "--dataset", "free", "--num_cond_frames", "0", "--iterations", "1"]
    train.main([*argv, "--outdir", str(tmp_path)])
    assert "sample with" not in capsys.readouterr().out
    line = refused(evaluate.main, ["--checkpoint", str(tmp_path / "model.safetensors")])
    assert "num_cond_frames" in line
