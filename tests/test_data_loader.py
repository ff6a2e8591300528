"""Digits of every source, and the one function that makes worlds from settings."""

import pytest
import torch
from conftest import ROOT

from config import DigitSettings, WorldSettings
from data_loader import load_digits, load_world
from diverse_sampling.errors import SettingError
from worlds import moving_digits as worlds
from worlds.own_data import OwnFrames


def test_splits_of_the_embedded_digits_share_nothing():
    train, test = (
        load_digits("embedded", split, size=16, data_root="-") for split in ("train", "test")
    )
    assert train.images.shape[1:] == (16, 16) and len(train.labels) + len(test.labels) == 1797
    assert len(torch.cat([train.images, test.images]).flatten(1).unique(dim=0)) == 1797
    assert set(test.labels.tolist()) == set(range(10))


def test_mnist_is_read_from_its_folder(mnist_root):
    digits = load_digits("mnist", "test", size=16, data_root=mnist_root)
    assert digits.source == "mnist" and digits.images.shape == (10000, 16, 16)
    # The class counts of MNIST's test split, as published.
    counts = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert torch.bincount(digits.labels).tolist() == counts


@pytest.fixture
def no_mnist(tmp_path, monkeypatch):
    """An empty directory for MNIST, without a network to download it from."""
    from torchvision.datasets import MNIST

    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:9/"])  # a port that refuses
    return tmp_path


def test_without_mnist_auto_falls_back_with_a_warning(no_mnist, capsys):
    digits = load_digits("auto", "test", size=16, data_root=str(no_mnist))
    assert digits.source == "embedded" and "WARNING" in capsys.readouterr().err


@pytest.mark.parametrize("source", ["mnist", "both"])
def test_mnist_that_is_missing_is_named_with_its_directory(source, no_mnist, monkeypatch):
    monkeypatch.chdir(no_mnist)
    with pytest.raises(FileNotFoundError, match="--digits embedded") as error:
        load_digits(source, "train", size=16, data_root="mine")
    assert f"not found in {no_mnist / 'mine'}" in str(error.value)


def test_both_digits_are_mixed_for_training_and_one_source_for_testing(mnist_root):
    options = dict(size=16, data_root=mnist_root)
    both = load_digits("both", "train", **options)
    mnist = load_digits("mnist", "train", **options)
    embedded = load_digits("embedded", "train", **options)
    assert both.source == "mnist+embedded"
    assert len(both.labels) == len(both.images)
    assert torch.equal(both.images[: len(mnist.labels)], mnist.images)
    share = (len(both.labels) - len(mnist.labels)) / len(both.labels)
    assert share == pytest.approx(0.5, abs=0.01)
    assert torch.equal(both.images[-len(embedded.labels) :], embedded.images)
    assert load_digits("both", "test", **options).source == "mnist"


@pytest.mark.parametrize(
    "settings, kind",
    [
        (dict(dataset="centered", image_size=48, digit_size=20), worlds.Centered),
        (dict(dataset="free", deterministic=False, num_digits=3, seq_len=9), worlds.Free),
        (dict(dataset="circle_jumping", num_directions=4, p=0.6), worlds.CircleJumping),
        (dict(dataset="horizontal", p=0.6, end_at_choice=True), worlds.Horizontal),
        (dict(dataset="mixture"), worlds.Mixture),
        (dict(dataset="frames", frames=str(ROOT / "examples" / "blobs.npz")), OwnFrames),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_every_setting_of_a_world_reaches_it(settings, kind):
    settings = WorldSettings(**settings)
    world = load_world(settings, DigitSettings("embedded"), "test")
    assert type(world) is kind
    if kind is not worlds.Mixture:
        assert world.num_cond_frames == settings.num_cond_frames
    if isinstance(world, worlds.MovingDigits):
        for name in ("dataset", "seq_len", "num_digits", "image_size", "digit_size"):
            assert getattr(world, name) == getattr(settings, name), name
    if kind is worlds.CircleJumping:
        assert (world.p, world.num_directions) == (0.6, 4)
    if kind is worlds.Horizontal:
        assert (world.p, world.end_at_choice) == (0.6, True)
    if kind is worlds.Free:
        assert world.deterministic is False


def test_splits_of_a_world_share_no_digits(generator):
    settings = WorldSettings(dataset="centered")
    train, test = (
        load_world(settings, DigitSettings("embedded"), split) for split in ("train", "test")
    )
    assert len(train.digits.labels) + len(test.digits.labels) == 1797
    together = torch.cat([train.digits.images, test.digits.images])
    assert len(together.flatten(1).unique(dim=0)) == 1797


def test_classes_keep_only_theirs(world, generator):
    assert set(world(classes=[3, 7]).sequences(100, generator).labels.flatten().tolist()) == {3, 7}


@pytest.mark.parametrize(
    "settings, key",
    [
        (dict(seq_len=1), "seq_len"),
        (dict(digit_size=30), "digit_size"),
        (dict(classes=[11]), "classes"),
        (dict(classes=[]), "classes"),
        (dict(num_cond_frames=2, seq_len=4), "num_cond_frames"),
    ],
)
def test_impossible_worlds_are_refused_by_name(settings, key):
    with pytest.raises(SettingError, match=f"^{key}: got"):
        WorldSettings(**settings)
