"""The judge that is no network."""

import pytest
import torch

from data_loader import load_digits
from diverse_sampling.errors import SettingError
from lab import checkpoint, judge
from lab.classifier import judged
from lab.judge import Judge, edges


@pytest.fixture(scope="module")
def known():
    """Embedded training digits."""
    return load_digits("embedded", "train", size=16, data_root="data")


@pytest.fixture(scope="module")
def fitted(known):
    return Judge.fit(known.centred(20), known.labels, 10)


def test_a_judge_recognises_digits_it_has_not_seen(fitted, digits):
    right = fitted(digits.centred(20)) == digits.labels
    assert right.double().mean() > 0.95


def test_of_a_larger_frame_the_middle_counts(fitted, digits):
    few = digits.images[:30]
    frames = digits.centred(32)[:30]
    frames[:, 0] = frames[:, :, -1] = 1
    torch.testing.assert_close(fitted.scores(frames), fitted.scores(digits.centred(20)[:30]))
    with pytest.raises(SettingError, match="frames of 16 x 16 px'; accepted: 20 x 20 px or more"):
        fitted(few)


def test_what_is_loaded_judges_as_what_was_saved(fitted, digits, tmp_path):
    path = tmp_path / "judge.safetensors"
    fitted.save(path, dict(accuracy=1.0))
    assert checkpoint.read_metadata(path) == dict(accuracy=1.0, size=[20, 20])
    assert {t.dtype for t in checkpoint.read_tensors(path).values() if t.ndim} == {torch.float16}
    loaded = Judge.load(path)
    frames = digits.centred(32)
    torch.testing.assert_close(loaded.scores(frames), fitted.scores(frames), rtol=0, atol=0.05)
    assert (loaded(frames) == fitted(frames)).double().mean() > 0.99
    other = tmp_path / "other.safetensors"
    checkpoint.save_tensors(other, dict(mean=torch.zeros(1)), {})
    with pytest.raises(SettingError, match="is not a judge"):
        Judge.load(other)


@pytest.mark.parametrize("shape", [(24, 48), (60, 20), (3, 40, 24)])
def test_pictures_of_any_shape_have_classes(shape):
    """Stripes across, along or diagonally, in noise; in colour, in one channel."""
    generator = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(*(torch.arange(side) for side in shape[-2:]), indexing="ij")
    stripes = [(0.7 * each).sin() / 2 + 0.5 for each in (y, x, (x + y) / 1.4)]
    labels = torch.arange(60) % 3
    images = 0.3 * torch.rand(60, *shape, generator=generator)
    for image, label in zip(images, labels):
        (image if len(shape) == 2 else image[1])[:] += 0.7 * stripes[label]
    fitted = Judge.fit(images[:30], labels[:30], 4)  # of one class there is no picture
    assert torch.equal(fitted(images[30:]), labels[30:])
    assert fitted(images[:0]).shape == (0,)


def test_edges_do_not_depend_on_contrast_and_turn_with_the_picture(digits):
    frames = digits.centred(20)[:20]
    torch.testing.assert_close(edges(frames / 2), edges(frames), rtol=1e-3, atol=1e-4)
    ramp = torch.linspace(0, 1, 40).expand(1, 40, 40)
    for picture, direction in ((ramp, 0), (ramp.mT, 1 / 4), (1 - ramp, 1 / 2)):
        histogram = edges(picture).square().view(judge.DIRECTIONS, -1).sum(1)
        assert histogram.argmax() == direction * judge.DIRECTIONS
        assert (histogram > 1e-3).sum() == 1


def test_one_picture_makes_no_judge():
    with pytest.raises(SettingError, match="judge: got '1 pictures'; accepted: two or more"):
        Judge.fit(torch.zeros(1, 8, 8), torch.zeros(1, dtype=torch.int64), 1)


@pytest.mark.slow
def test_the_command_measures_what_it_writes(tmp_path, capsys, digits):
    path = tmp_path / "judge.safetensors"
    judge.main(["--digits", "embedded", "--out", str(path)])
    metadata = checkpoint.read_metadata(path)
    right = (Judge.load(path)(digits.centred(32)) == digits.labels).double().mean()
    assert metadata["accuracy"] == metadata["accuracy_embedded"] == float(right)
    assert metadata["digits_source"] == "embedded"
    assert f"{100 * right:.2f}% of {len(digits.labels)} embedded" in capsys.readouterr().out


def test_the_shipped_judge_knows_the_embedded_digits(digits):
    """And agrees with the network that judges wherever that is right."""
    path = judge.SHIPPED
    assert path.stat().st_size <= 1e6
    frames = digits.centred(32)
    said = Judge.load(path)(frames)
    assert (said == digits.labels).double().mean() >= 0.98
    network = judged(checkpoint.load_classifier("judge"), frames).argmax(1)
    right = network == digits.labels
    assert (said == network)[right].double().mean() >= 0.98


@pytest.mark.slow
def test_the_shipped_judge_reaches_its_figure(mnist_root):
    test = load_digits("mnist", "test", size=16, data_root=mnist_root)
    right = (Judge.load(judge.SHIPPED)(test.centred(32)) == test.labels).double().mean()
    metadata = checkpoint.read_metadata(judge.SHIPPED)
    assert float(right) == pytest.approx(metadata["accuracy"], abs=1e-3)
    assert right >= 0.992
