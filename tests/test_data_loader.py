import pytest
import torch

from config import SettingError, WorldSettings
from data_loader import load_digits
from metrics import centroid
from worlds import DIRECTIONS, render

WORLDS = [
    dict(dataset="centered"),
    dict(dataset="free"),
    dict(dataset="free", deterministic=False),
    dict(dataset="circle_jumping"),
    dict(dataset="circle_jumping", seq_len=9),
    dict(dataset="horizontal"),
    dict(dataset="free", image_size=64, num_digits=2, deterministic=False),
]


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
    torch.testing.assert_close(
        moved, (batch.positions - batch.positions[:, :1])[:, :, 0].double(), rtol=0, atol=1e-4
    )
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
    first = (
        (batch.positions[:, 1, 0] - circle.centre == torch.tensor(DIRECTIONS[0]))
        .all(-1)
        .float()
        .mean()
    )
    assert first.item() == pytest.approx(1 / 8 if p is None else p, abs=0.015)


@pytest.mark.parametrize("p", [0.5, 0.7, 0.9])
def test_horizontal_draws_only_at_the_centre_and_right_with_p(world, generator, p):
    horizontal = world(dataset="horizontal", p=p)
    batch = horizontal.sequences(4000, generator)
    x = batch.positions[:, :, 0, 1]
    assert (batch.positions[:, :, 0, 0] == horizontal.centre).all() and (
        x.diff(dim=1).abs() == 2
    ).all()
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
        one, two = (
            world(**settings).windows(8, torch.Generator().manual_seed(5)) for _ in range(2)
        )
        assert torch.equal(one.frames, two.frames)


def test_overlapping_digits_keep_the_brighter_one():
    images = torch.stack([torch.full((4, 4), 0.3), torch.full((4, 4), 0.8)])[None]
    frames = render(images, torch.tensor([[[[0, 0], [2, 2]]]]), 8)
    assert frames[0, 0, 1, 1] == pytest.approx(0.3) and frames[0, 0, 3, 3] == pytest.approx(0.8)


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
    assert torch.bincount(digits.labels).tolist() == [
        980,
        1135,
        1032,
        1010,
        982,
        892,
        958,
        1028,
        974,
        1009,
    ]


def test_without_mnist_auto_falls_back_aloud_and_mnist_says_how_to_get_it(
    tmp_path, monkeypatch, capsys
):
    from torchvision.datasets import MNIST

    monkeypatch.setattr(
        MNIST, "mirrors", ["http://127.0.0.1:9/"]
    )  # a port that refuses: no network
    digits = load_digits("auto", "test", size=16, data_root=str(tmp_path))
    assert digits.source == "embedded" and "WARNING" in capsys.readouterr().err
    with pytest.raises(FileNotFoundError, match="--digits embedded"):
        load_digits("mnist", "test", size=16, data_root=str(tmp_path))


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
