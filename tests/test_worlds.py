"""The worlds: what they draw, what is known of it, and the base class that all of them share."""

import numpy as np
import pytest
import torch
from conftest import ROOT
from scipy import stats

from config import DigitSettings, WorldSettings
from data_loader import load_digits, load_world
from diverse_sampling.denoiser import to_model_range
from diverse_sampling.errors import SettingError
from lab.metrics import centroid
from lab.tasks import NextFrame
from worlds import moving_digits as worlds
from worlds.moving_digits import DIRECTIONS, Digits, Mixture, World, render
from worlds.own_data import OwnFrames

WORLDS = [
    dict(dataset="centered"),
    dict(dataset="free"),
    dict(dataset="free", deterministic=False),
    dict(dataset="circle_jumping"),
    dict(dataset="circle_jumping", seq_len=9),
    dict(dataset="horizontal"),
    dict(dataset="free", image_size=64, num_digits=2, deterministic=False),
]


# One world of each kind, and the frames of a user.
ALL_WORLDS = [
    dict(dataset="centered"),
    dict(dataset="halves"),
    dict(dataset="free", deterministic=False, num_digits=2),
    dict(dataset="circle_jumping", num_directions=4, p=0.7),
    dict(dataset="horizontal", p=0.9),
    dict(dataset="mixture"),
    dict(dataset="frames", frames=str(ROOT / "examples" / "blobs.npz")),
]
every_world = pytest.mark.parametrize("settings", ALL_WORLDS, ids=lambda s: s["dataset"])


@every_world
def test_every_world_has_the_members_of_its_base(settings, generator):
    """The members are there, and hold what `World` says of them."""
    world = load_world(WorldSettings(**settings), DigitSettings("embedded"), "test")
    assert isinstance(world, World)
    assert world.dataset == settings["dataset"]
    assert (world.source is None) == (world.dataset == "mixture")
    assert world.directed == (world.dataset in ("circle_jumping", "horizontal"))
    assert world.to("cpu") is world

    K = settings.get("num_digits", 1)
    assert world.num_digits == K
    T = world.num_cond_frames + 1
    windows = world.windows(20, generator)
    assert windows.frames.shape == (20, T, *world.frame_shape)
    assert windows.frames.dtype == torch.float32
    assert windows.labels.shape == (20, K) and windows.labels.dtype == torch.int64
    assert windows.positions.shape[:2] == (20, T) and windows.positions.dtype == torch.int64
    assert windows.choices.shape == (20, T) and windows.choices.dtype == torch.bool
    sequences = world.sequences(20, generator)
    assert sequences.frames.shape[2:] == world.frame_shape and len(sequences.frames) == 20

    probabilities = world.mode_probabilities
    if probabilities is None:
        assert world.modes_total is None
    else:
        assert probabilities.dtype == torch.float64
        assert probabilities.sum().item() == pytest.approx(1)
        assert world.modes_total in (None, len(probabilities))


@every_world
def test_a_window_can_be_chosen_in_every_world(settings):
    """The same `which` shows the same digits, frames or Gaussian, whatever else is drawn."""
    world = load_world(WorldSettings(**settings), DigitSettings("embedded"), "test")
    which = torch.tensor([3, 0, 7, 7])
    if world.dataset not in ("frames", "mixture"):
        which = which[:, None].expand(-1, world.num_digits)
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    one, two = (world.windows(4, generator, which=which) for generator in generators)
    assert torch.equal(one.labels, two.labels)
    assert torch.equal(one.labels[2], one.labels[3])
    if world.dataset == "frames":
        assert torch.equal(one.frames[:, 0], two.frames[:, 0])


def test_points_of_the_mixture_are_normal_around_their_centres(generator):
    mixture = Mixture()
    drawn = mixture.windows(20_000, generator)
    points = to_model_range(drawn.frames)[:, 0, 0].double()
    which = drawn.labels[:, 0]
    assert stats.chisquare(np.bincount(which, minlength=10)).pvalue > 1e-3
    assert mixture.centres.norm(dim=1).allclose(torch.tensor(1.0))
    offsets = (points - mixture.centres[which]) / mixture.sd
    for axis in (0, 1):
        assert stats.kstest(offsets[:, axis], "norm").pvalue > 1e-3


@pytest.mark.parametrize("size", [16, 17, 32])
def test_centred_digits_are_what_the_world_of_that_name_shows(size, generator):
    images = torch.rand(6, 16, 16, generator=generator)
    centred = Digits(images, torch.arange(6), "made up").centred(size)
    settings = WorldSettings(dataset="centered", image_size=size)
    world = load_world(settings, DigitSettings("embedded"), "test")
    world.digits = Digits(images, torch.arange(6), "made up")
    shown = world.windows(6, generator, which=torch.arange(6)[:, None])
    assert torch.equal(shown.frames[:, 0], centred)


@pytest.mark.parametrize("settings", WORLDS, ids=str)
def test_frames_show_the_digits_where_the_positions_say(world, generator, settings):
    batch = world(**settings).sequences(32, generator)
    assert batch.frames.min() >= 0 and batch.frames.max() <= 1
    room = batch.frames.shape[-1] - 16
    assert batch.positions.min() >= 0 and batch.positions.max() <= room
    outside = batch.frames.clone()
    for n in range(32):
        for t in range(outside.shape[1]):
            for y, x in batch.positions[n, t].tolist():
                outside[n, t, y : y + 16, x : x + 16] = 0
    assert not outside.any()


@pytest.mark.parametrize("settings", [s for s in WORLDS if "num_digits" not in s], ids=str)
def test_a_digit_moves_without_changing(world, generator, settings):
    """The centroid moves exactly as the position does, and no brightness is lost."""
    batch = world(**settings).sequences(32, generator)
    moved = centroid(batch.frames) - centroid(batch.frames[:, :1])
    expected = (batch.positions - batch.positions[:, :1])[:, :, 0].double()
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-4)
    brightness = batch.frames.sum((2, 3))
    torch.testing.assert_close(brightness, brightness[:, :1].expand_as(brightness))


def test_circle_jumps_from_the_centre_in_even_frames(world, generator):
    circle = world(seq_len=7, num_directions=4)
    batch = circle.sequences(500, generator)
    assert (batch.positions[:, ::2] == circle.centre).all()
    jumps = (batch.positions[:, 1::2, 0] - circle.centre).reshape(-1, 2)
    assert {tuple(j) for j in jumps.tolist()} == set(DIRECTIONS[:4])
    assert batch.choices[:, 1::2].all() and not batch.choices[:, ::2].any()


@pytest.mark.parametrize("p", [None, 0.5, 0.9])
def test_first_direction_has_probability_p(world, generator, p):
    circle = world(p=p)
    batch = circle.sequences(20000, generator)
    went = batch.positions[:, 1, 0] - circle.centre
    first = (went == torch.tensor(DIRECTIONS[0])).all(-1).float().mean()
    assert first.item() == pytest.approx(1 / 8 if p is None else p, abs=0.015)


@pytest.mark.parametrize("p", [0.5, 0.7, 0.9])
def test_horizontal_draws_only_at_the_centre_and_right_with_p(world, generator, p):
    horizontal = world(dataset="horizontal", p=p)
    batch = horizontal.sequences(4000, generator)
    y, x = batch.positions[:, :, 0].unbind(-1)
    assert (y == horizontal.centre).all() and (x.diff(dim=1).abs() == 2).all()
    assert torch.equal(batch.choices[:, 1:], x[:, :-1] == horizontal.centre)
    turned = x.diff(dim=1)[:, 1:] != x.diff(dim=1)[:, :-1]
    at_border = (x[:, 1:-1] == 0) | (x[:, 1:-1] == horizontal.room)
    assert not (turned & ~at_border & ~batch.choices[:, 2:]).any()  # turns are bounces or draws
    right = x.diff(dim=1)[batch.choices[:, 1:]] > 0
    assert right.float().mean().item() == pytest.approx(p, abs=0.02)


def test_horizontal_windows_end_at_a_choice_when_asked(world, generator):
    windows = world(dataset="horizontal", end_at_choice=True).windows(200, generator)
    assert windows.frames.shape == (200, 4, 32, 32)
    assert windows.choices[:, -1].float().mean() > 0.95  # some sequences have no late enough choice


def test_free_reflects_or_draws_at_walls(world, generator):
    reflecting = world(dataset="free").sequences(300, generator)
    assert not reflecting.choices.any()
    drawing = world(dataset="free", deterministic=False).sequences(300, generator)
    assert drawing.choices.any()
    steps = drawing.positions[:, :, 0].diff(dim=1)
    changed = (steps[:, 1:] != steps[:, :-1]).any(-1)
    # without a choice a digit keeps its velocity, except where the wall cut a step short
    room = 16
    at_wall = ((drawing.positions[:, 2:, 0] == 0) | (drawing.positions[:, 2:, 0] == room)).any(-1)
    assert not (changed & ~drawing.choices[:, 2:] & ~at_wall).any()


def test_futures_are_the_frames_that_could_have_come(world, generator):
    for settings in (dict(), dict(dataset="horizontal", end_at_choice=True)):
        some = world(**settings)
        batch = some.windows(64, generator, at_choice=True)
        futures = some.futures(batch)
        same = (futures == batch.frames[:, -1:]).flatten(2).all(-1)  # (N, k)
        assert (same.sum(1) == 1)[batch.choices[:, -1]].all()


def test_everything_follows_from_the_generator(world):
    for settings in WORLDS:
        here = world(**settings)
        one, two = (here.windows(8, torch.Generator().manual_seed(5)) for _ in range(2))
        assert torch.equal(one.frames, two.frames)


def test_overlapping_digits_keep_the_brighter_one():
    images = torch.stack([torch.full((4, 4), 0.3), torch.full((4, 4), 0.8)])[None]
    frames = render(images, torch.tensor([[[[0, 0], [2, 2]]]]), 8)
    assert frames[0, 0, 1, 1] == pytest.approx(0.3) and frames[0, 0, 3, 3] == pytest.approx(0.8)


@pytest.mark.parametrize("settings", WORLDS, ids=str)
def test_the_condition_of_a_set_does_not_depend_on_the_number_of_sets(world, settings):
    two, five = (NextFrame(world(**settings), num_sets, seed=3).sequences for num_sets in (2, 5))
    for name in ("frames", "labels", "positions", "choices", "which"):
        assert torch.equal(getattr(two, name), getattr(five, name)[:2])


# ---------------------------------------------------------------- digits, and worlds from settings


def test_splits_of_the_embedded_digits_share_nothing():
    both = ("train", "test")
    train, test = (load_digits("embedded", split, size=16, data_root="-") for split in both)
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


def test_the_digits_of_a_world_are_those_of_its_split():
    settings = WorldSettings(dataset="centered")
    for split in ("train", "test"):
        images = load_digits("embedded", split, size=16, data_root="-").images
        held = load_world(settings, DigitSettings("embedded"), split).digits.images
        assert torch.equal(images, held)


def test_classes_keep_only_theirs(world, generator):
    assert set(world(digit_classes=[3, 7]).sequences(100, generator).labels.flatten().tolist()) == {
        3,
        7,
    }


@pytest.mark.parametrize(
    "settings, key",
    [
        (dict(seq_len=1), "seq_len"),
        (dict(digit_size=30), "digit_size"),
        (dict(digit_classes=[11]), "digit_classes"),
        (dict(digit_classes=[]), "digit_classes"),
        (dict(num_cond_frames=2, seq_len=4), "num_cond_frames"),
    ],
)
def test_impossible_worlds_are_refused_by_name(settings, key):
    with pytest.raises(SettingError, match=f"^{key}: got"):
        WorldSettings(**settings)
