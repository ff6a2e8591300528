import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, SMALL, slow_but

import checkpoint
import train


def test_a_run_leaves_what_it_promises(tiny_model):
    names = {p.name for p in tiny_model.iterdir()}
    assert {
        "config.yaml",
        "metrics.jsonl",
        "model.safetensors",
        "state.safetensors",
        "samples-0000030.png",
    } <= names
    lines = [json.loads(line) for line in (tiny_model / "metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [5, 10, 15, 20, 25, 30]
    assert lines[-1]["loss"] < lines[0]["loss"]
    denoiser, metadata = checkpoint.load_denoiser(tiny_model / "model.safetensors")
    assert metadata["iteration"] == 30 and metadata["digits_source"] == "embedded"
    assert metadata["parameters"] == sum(p.numel() for p in denoiser.parameters())


@pytest.mark.parametrize(
    "extra",
    slow_but(
        ["--dataset horizontal --class_labels true", "--optimizer muon"],
        [
            "--optimizer muon",
            "--dataset free",
            "--dataset centered --crop true",
            "--dataset horizontal --class_labels true",
            "--target posterior",
        ],
    ),
)
def test_every_kind_of_run_learns(extra, tmp_path):
    train.main(
        [*SMALL, *extra.split(), "--iterations", "40", "--lr", "0.003", "--outdir", str(tmp_path)]
    )
    losses = [
        json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()
    ]
    assert sum(losses[-10:]) / 10 < 0.9 * sum(losses[:5]) / 5


def test_resuming_gives_the_weights_of_an_uninterrupted_run(tmp_path):
    argv = [*SMALL, "--optimizer", "muon", "--iterations", "12", "--save_every", "5"]
    train.main(argv + ["--outdir", str(tmp_path / "whole")])
    training, outdir, everything = train.setup(argv + ["--outdir", str(tmp_path / "cut")])
    steps = iter(training)
    for _ in range(5):
        next(steps)
    training.save(outdir)
    train.main(["--resume", str(outdir)])
    whole, cut = (
        checkpoint.read_tensors(tmp_path / name / "state.safetensors") for name in ("whole", "cut")
    )
    assert whole.keys() == cut.keys() and all(torch.equal(whole[key], cut[key]) for key in whole)


def test_posterior_targets_are_the_mean_of_the_drawn_ones(tmp_path):
    """Same noisy frames, less noise in the target: equal in the mean, never farther from it."""
    targets = {}
    for target in ("drawn", "posterior"):
        training, _, _ = train.setup(
            [
                *SMALL,
                "--target",
                target,
                "--batch_size",
                "4096",
                "--p_mean",
                "1.5",
                "--p_std",
                "0.3",
                "--outdir",
                str(tmp_path),
            ]
        )
        x, _, targets[target], _, _ = training.batch()
    torch.testing.assert_close(
        targets["drawn"].mean(0), targets["posterior"].mean(0), atol=0.06, rtol=0
    )
    assert targets["posterior"].var(0).sum() < 0.9 * targets["drawn"].var(0).sum()


def test_two_processes_train_like_one(tmp_path):
    """DDP over gloo: the same global batch gives the same weights."""
    argv = [*SMALL, "--iterations", "4"]
    train.main(argv + ["--outdir", str(tmp_path / "one")])
    subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node",
            "2",
            str(ROOT / "train.py"),
            *argv,
            "--outdir",
            str(tmp_path / "two"),
        ],
        check=True,
        capture_output=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    one, two = (
        checkpoint.read_tensors(tmp_path / name / "state.safetensors") for name in ("one", "two")
    )
    for key in one:
        torch.testing.assert_close(one[key], two[key], rtol=1e-4, atol=1e-5)


def test_a_batch_in_parts_trains_like_a_whole_one(tmp_path):
    argv = [*SMALL, "--iterations", "4"]
    train.main([*argv, "--outdir", str(tmp_path / "whole")])
    train.main([*argv, "--accumulate", "4", "--outdir", str(tmp_path / "parts")])
    whole, parts = (
        checkpoint.read_tensors(tmp_path / name / "state.safetensors")
        for name in ("whole", "parts")
    )
    for key in whole:
        torch.testing.assert_close(whole[key], parts[key], rtol=1e-4, atol=1e-5)
    losses = [
        [
            json.loads(line)["loss"]
            for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        ]
        for name in ("whole", "parts")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_batch_that_cannot_be_split_is_refused(tmp_path, refused):
    line = refused(train.main, [*SMALL, "--accumulate", "3", "--outdir", str(tmp_path)])
    assert "batch_size: got 8" in line and "accumulate = 3" in line


def test_a_cropped_network_is_what_is_loaded_again(tmp_path):
    train.main(
        [
            *SMALL,
            "--dataset",
            "centered",
            "--crop",
            "true",
            "--iterations",
            "1",
            "--outdir",
            str(tmp_path),
        ]
    )
    denoiser, metadata = checkpoint.load_denoiser(tmp_path / "model.safetensors")
    assert denoiser.box == tuple(metadata["box"]) == (8, 24, 8, 24)
    assert metadata["sigma_data"] > 0.5  # of the digit, not of the black around it
