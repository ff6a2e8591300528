"""The held-out loss: where there is one, what it is measured on, and the weights that it picks."""

import json

import numpy as np
import pytest
import torch
from conftest import SMALL

import train
from lab import checkpoint
from lab.training import HeldOut


def log_of(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def noise_frames(tmp_path_factory):
    """Flags of a training on pure noise, of which a network can learn nothing that holds for
    others: it learns its own sequences by heart."""
    path = tmp_path_factory.mktemp("frames") / "noise.npz"
    frames = np.random.default_rng(0).integers(0, 256, (30, 2, 8, 8), dtype=np.uint8)
    np.savez(path, frames=frames)
    flags = "--lr 0.01 --iterations 40 --ema 0.5 --log_every 10"
    return [*SMALL, "--frames", str(path), *flags.split()]


@pytest.fixture(scope="module")
def trained(noise_frames, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "noise"
    train.main([*noise_frames, "--outdir", str(folder)])
    return folder


def test_it_stands_beside_the_training_loss_and_rises_where_that_falls(trained):
    log = log_of(trained)
    losses = [record["loss"] for record in log]
    held_out = [record["held_out_loss"] for record in log]
    assert len(log) == 4 and all(np.isfinite(held_out))
    assert losses[-1] < losses[0]
    assert held_out[-1] > min(held_out)


def test_the_weights_with_the_lowest_one_are_kept(trained, noise_frames, tmp_path):
    log = log_of(trained)
    best = min(log, key=lambda record: record["held_out_loss"])
    assert best["iteration"] < 40
    net, metadata = checkpoint.load_denoiser(trained / "model.safetensors")
    assert metadata["iteration"] == best["iteration"]
    assert metadata["held_out_loss"] == best["held_out_loss"]
    assert metadata["trained_iterations"] == 40
    # The same windows and noise give the same loss, but for the weights' half precision.
    training, _ = train.setup([*noise_frames, "--outdir", str(tmp_path)])
    again = training.held_out.loss(net)
    assert again == pytest.approx(best["held_out_loss"], rel=0.01)
    last = checkpoint.read_tensors(trained / "state.safetensors")
    state = {name.removeprefix("ema."): t for name, t in last.items() if name.startswith("ema.")}
    training.ema.load_state_dict(state)
    assert training.held_out.loss(training.ema) == pytest.approx(log[-1]["held_out_loss"])


def test_the_last_line_says_which_weights_are_kept(trained):
    best = min(log_of(trained), key=lambda record: record["held_out_loss"])
    said = train.summary(train.parse(["--resume", str(trained)])[0], trained)
    expected = f"held-out loss {best['held_out_loss']:.4f} after {best['iteration']} updates"
    assert expected in said


def test_resuming_keeps_what_was_best_before(trained, noise_frames, tmp_path):
    folder = tmp_path / "cut"
    training, outdir = train.setup([*noise_frames, "--outdir", str(folder)])
    train.begin(training, outdir)
    best = training.best
    for step in training:
        if step["iteration"] % 10 == 0:
            training.measure_held_out()
        if step["iteration"] == 25:
            break
    assert best is None and training.best.iteration <= 20
    training.save(outdir)
    torch.manual_seed(1234)
    train.main(["--resume", str(folder)])
    for name in ("state.safetensors", "model.safetensors"):
        one, two = (checkpoint.read_tensors(each / name) for each in (trained, folder))
        assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
        a, b = (checkpoint.read_metadata(each / name) for each in (trained, folder))
        assert a["iteration"] == b["iteration"] and a.get("best") == b.get("best")


def test_what_was_best_at_other_noise_levels_is_forgotten(trained):
    """Its loss says nothing beside those that are measured from now on."""
    same, _ = train.setup(["--resume", str(trained)])
    other, _ = train.setup(["--resume", str(trained), "--p_mean", "0.5"])
    assert same.best is not None and other.best is None


def test_worlds_of_digits_have_none(tiny_model):
    assert "held_out_loss" not in log_of(tiny_model)[-1]
    assert checkpoint.read_metadata(tiny_model / "model.safetensors")["iteration"] == 30


def test_its_noise_levels_are_those_of_training(noise_frames, tmp_path):
    levels = ["--p_mean", "0.7", "--p_std", "1.1"]
    training, _ = train.setup([*noise_frames, *levels, "--outdir", str(tmp_path)])
    log_sigma = training.held_out.sigma.log()
    assert float(log_sigma.mean()) == pytest.approx(0.7, abs=0.02)
    assert float(log_sigma.std()) == pytest.approx(1.1, abs=0.05)
    other = HeldOut(training.world, training.settings, training.device)
    assert not torch.equal(other.target, training.held_out.target)
    assert torch.equal(other.sigma, training.held_out.sigma)
