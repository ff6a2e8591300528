import json
import shutil

import pytest
import torch
from conftest import ROOT
from safetensors.torch import save_file

import evaluate
from diverse_sampling.errors import SettingError
from lab import checkpoint


def test_round_trip_of_tensors_and_metadata(tmp_path):
    """And others may read the file if the umask lets them."""
    tensors = {"a": torch.randn(3, 2), "b": torch.arange(4)}
    metadata = {"settings": {"lr": 0.1, "classes": None}}
    path = tmp_path / "x.safetensors"
    checkpoint.save_tensors(path, tensors, metadata)
    loaded = checkpoint.read_tensors(path)
    assert all(torch.equal(loaded[k], tensors[k]) for k in tensors)
    assert checkpoint.read_metadata(path) == metadata
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_failed_save_leaves_the_last_good_file(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    checkpoint.save_tensors(path, {"a": torch.ones(2)}, {})

    def full(file):
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    with pytest.raises(OSError):
        checkpoint.save_tensors(path, {"a": torch.zeros(2)}, {})
    assert torch.equal(checkpoint.read_tensors(path)["a"], torch.ones(2))
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_optimizer_state_packs_to_tensors_and_back():
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.01)
    for _ in range(3):
        layer(torch.randn(4, 3)).square().sum().backward()
        optimizer.step()
    tensors, groups = checkpoint.pack("o", optimizer.state_dict())
    state = checkpoint.unpack("o", tensors, json.loads(json.dumps(groups)))
    fresh = torch.optim.AdamW(layer.parameters(), lr=0.5)
    fresh.load_state_dict(state)
    assert fresh.param_groups[0]["lr"] == 0.01
    for old, new in zip(optimizer.state.values(), fresh.state.values()):
        assert all(torch.equal(old[key], new[key]) for key in old)


@pytest.mark.parametrize(
    "damage",
    ["missing", "empty", "truncated", "foreign", "other network", "other tensors", "directory"],
)
def test_what_is_not_a_checkpoint_is_refused_by_name(tiny_model, tmp_path, damage):
    good = tiny_model / "model.safetensors"
    path = tmp_path / "bad.safetensors"
    if damage == "empty":
        path.write_bytes(b"")
    elif damage == "truncated":
        path.write_bytes(good.read_bytes()[:-100])
    elif damage == "foreign":
        save_file({"a": torch.ones(1)}, path)
    elif damage == "directory":
        path.mkdir()
    elif damage == "other network":
        metadata = checkpoint.read_metadata(good)
        metadata["settings"]["channels"] = [24, 24]
        checkpoint.save_tensors(path, checkpoint.read_tensors(good), metadata)
    elif damage == "other tensors":
        tensors = checkpoint.read_tensors(tiny_model / "state.safetensors")
        checkpoint.save_tensors(path, tensors, checkpoint.read_metadata(good))
    with pytest.raises(SettingError, match="bad.safetensors") as refusal:
        checkpoint.load_denoiser(path)
    message = str(refusal.value)
    assert "\n" not in message and len(message) < 250 + len(str(path))


@pytest.mark.parametrize("read", [checkpoint.read_metadata, checkpoint.load_denoiser])
def test_a_missing_file_says_where_it_was_looked_for(read, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingError, match="not found") as refusal:
        read("runs/model.safetensors")
    assert str(tmp_path / "runs" / "model.safetensors") in str(refusal.value)


@pytest.mark.parametrize("name", ["state.safetensors", "state-previous.safetensors"])
def test_the_state_of_a_training_names_the_network_beside_it(tiny_model, tmp_path, refused, name):
    shutil.copy(tiny_model / "state.safetensors", tmp_path / name)
    line = refused(evaluate.main, ["--checkpoint", str(tmp_path / name)])
    assert "state of a training" in line and str(tmp_path / "model.safetensors") in line
    assert len(line) < 150 + 2 * len(str(tmp_path / name))


def test_a_classifier_is_not_a_denoiser():
    path = ROOT / "checkpoints" / "classifier_judge.safetensors"
    with pytest.raises(SettingError, match="not a denoiser"):
        checkpoint.load_denoiser(path)
