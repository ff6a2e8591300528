"""Augmentation: what it may do to a window, that it does all of it, and when it is on."""

import numpy as np
import pytest
import torch
from conftest import SMALL

import train
from lab.training import draw
from worlds.augmentation import SHIFT, augment

N = 256


def symmetries(frame: torch.Tensor) -> list[torch.Tensor]:
    """The eight symmetries of a square frame; the first four need no quarter turn."""
    flipped = [frame, frame.flip(-1), frame.flip(-2), frame.rot90(2, (-2, -1))]
    return flipped + [each.rot90(1, (-2, -1)) for each in flipped]


@pytest.mark.parametrize("kind, reached", [("flips", 4), ("dihedral", 8)])
def test_all_symmetries_appear_and_nothing_else(kind, reached, generator):
    frame = torch.rand(6, 6, generator=generator)
    out = augment(frame.expand(N, 1, 6, 6), kind, generator)[:, 0]
    equal = torch.stack([(out == each).all(-1).all(-1) for each in symmetries(frame)], 1)  # (N, 8)
    assert (equal.sum(1) == 1).all()
    shares = equal.float().mean(0)
    assert (shares[:reached] > 0.5 / reached).all() and (shares[reached:] == 0).all()


@pytest.mark.parametrize("kind", ["flips", "dihedral", "dihedral_shifts"])
def test_a_window_is_transformed_as_one_and_windows_differ(kind, generator):
    frames = torch.rand(N, 1, 16, 16, generator=generator).expand(-1, 3, -1, -1)
    out = augment(frames, kind, generator)
    assert (out == out[:, :1]).all()
    assert (out[:, 0] != frames[:, 0]).flatten(1).any(1).float().mean() > 0.5


def test_shifts_are_small_whole_and_repeat_the_border(generator):
    """A dot goes to all places within the reach and no other; what is all white stays so."""
    frames = torch.zeros(4 * N, 1, 16, 16)
    frames[:, 0, 8, 8] = 1
    out = augment(frames, "dihedral_shifts", generator)[:, 0]
    assert (out.sum((1, 2)) == 1).all() and set(out.unique().tolist()) == {0.0, 1.0}
    rows, columns = out.nonzero()[:, 1:].unbind(1)
    reach = 16 // SHIFT
    # A flip takes row 8 to row 7.
    assert rows.min() == columns.min() == 7 - reach and rows.max() == columns.max() == 8 + reach
    assert len({*zip(rows.tolist(), columns.tolist())}) == (2 * reach + 2) ** 2
    assert (augment(torch.ones(N, 1, 16, 16), "dihedral_shifts", generator) == 1).all()


def test_flips_take_frames_that_are_no_squares(generator):
    out = augment(torch.rand(N, 2, 4, 8, generator=generator), "flips", generator)
    assert out.shape == (N, 2, 4, 8)


@pytest.fixture
def own(tmp_path):
    """own(answers=..., width=...): the flags of a small training on ten frames of one's own."""

    def flags(*, answers: bool, width: int = 8) -> list[str]:
        rng = np.random.default_rng(0)
        arrays = dict(frames=rng.integers(0, 256, (40, 2, 8, width), dtype=np.uint8))
        if answers:
            arrays["answers"] = 255 * rng.integers(0, 2, (40, 3, 8, width), dtype=np.uint8)
        path = tmp_path / f"{answers}{width}.npz"
        np.savez(path, **arrays)
        return [*SMALL, "--frames", str(path), "--outdir", str(tmp_path / "run")]

    return flags


def test_flips_are_the_default_for_answers_only(own, tmp_path):
    for argv, expected in (
        (own(answers=True), "flips"),
        (own(answers=False), "none"),
        ([*own(answers=True), "--augment", "none"], "none"),
        ([*own(answers=False), "--augment", "dihedral"], "dihedral"),
        ([*SMALL, "--outdir", str(tmp_path / "run")], "none"),
    ):
        training, _ = train.setup(argv)
        assert training.augment == expected
        assert training.metadata()["settings"]["augment"] == expected


def test_a_batch_is_augmented_and_its_answers_with_it(own):
    """With posterior targets at low noise the target is the answer that x shows."""
    argv = [*own(answers=True), "--augment", "dihedral", "--target", "posterior"]
    training, _ = train.setup([*argv, "--p_mean", "-6", "--batch_size", "64"])
    x, _, target, cond, _ = training.batch()
    torch.testing.assert_close(x, target, atol=0.3, rtol=0)
    pictures = training.world.given(torch.arange(len(training.world))) * 2 - 1  # (W, 1, 8, 8)
    seen = (cond[:, None] == pictures).flatten(2).all(2).any(1)
    assert 0 < seen.sum() < 32  # an eighth is left as it is


def test_without_augmentation_nothing_is_drawn_for_it(world):
    """So that trainings of earlier versions are repeated bit for bit."""
    circle = world(dataset="circle_jumping")
    one, other = (torch.Generator().manual_seed(5) for _ in range(2))
    drawn = draw(circle, 16, one, posterior=True, augmentation="none")
    windows = circle.windows(16, other)
    assert torch.equal(torch.cat([drawn.cond, drawn.target], 1), windows.frames * 2 - 1)
    assert torch.equal(one.get_state(), other.get_state())


def test_what_cannot_be_augmented_is_refused(own, refused, tmp_path):
    argv = [*SMALL, "--augment", "flips", "--outdir", str(tmp_path / "run")]
    assert "augment: got 'flips'; accepted: none" in refused(train.main, argv)
    argv = [*own(answers=True, width=16), "--augment", "dihedral"]
    line = refused(train.main, argv)
    assert "augment: got 'dihedral'; accepted: none or flips" in line and "8 x 16" in line
