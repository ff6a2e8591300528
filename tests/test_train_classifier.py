from unittest.mock import ANY

import pytest
import torch

from data_loader import load_digits
from lab import checkpoint, train_classifier
from lab.classifier import judged
from lab.metrics import recognise, without_background
from lab.tasks import UnconditionalDigits


@pytest.mark.slow
def test_training_learns_and_the_file_says_what_it_measured(tmp_path, digits, capsys):
    path = tmp_path / "small.safetensors"
    flags = "--digits embedded --channels [16,32] --epochs 6 --batch_size 32 --device cpu"
    train_classifier.main([*flags.split(), "--out", str(path)])
    metadata = checkpoint.read_metadata(path)
    accuracy = metadata["accuracy"]
    assert accuracy > 0.7 and metadata["digits_source"] == "embedded"
    measured = f"{100 * accuracy:.2f}% of {len(digits.labels)} embedded test digits"
    assert measured in capsys.readouterr().out


def test_distortion_moves_little_and_keeps_the_range(digits):
    frames = digits.centred(32)[:64, None]
    out = train_classifier.distort(frames, torch.rand(train_classifier.DISTORTIONS, len(frames)))
    assert out.shape == frames.shape and out.min() >= 0 and out.max() <= 1
    change = (out - frames).flatten(1).norm(dim=1) / frames.flatten(1).norm(dim=1)
    assert change.min() > 0.01 and change.mean() < 0.9


@pytest.mark.slow
@pytest.mark.parametrize("role", ["judge", "guide"])
def test_shipped_classifiers_reach_their_figure(role, mnist_root):
    """On all 10,000 test digits, 16 px in frames of 32."""
    test = load_digits("mnist", "test", size=16, data_root=mnist_root)
    classifier = checkpoint.load_classifier(role).fused()  # quicker, and it says the same
    assert train_classifier.accuracy(classifier, test, 32, "cpu") >= 0.995


def test_shipped_classifiers_are_two_different_ones():
    judge, guide = (checkpoint.load_classifier(role).state_dict() for role in ("judge", "guide"))
    assert not torch.allclose(judge["out.weight"], guide["out.weight"], atol=0.01)


def test_background_goes_and_the_digit_stays(digits):
    frames = digits.centred(32)[:20]
    grey = 0.1 + 0.9 * frames
    clean = without_background(grey[None])[0]
    assert (clean[frames == 0] == 0).all() and torch.equal(clean[frames > 0.8], grey[frames > 0.8])
    one_grey = torch.full((1, 1, 4, 4), 0.3)
    assert torch.equal(without_background(one_grey), one_grey)


def test_recognise_returns_what_the_classifier_says():
    """A classifier that answers by where the light is: digits and confidence come back in place."""
    frames = torch.zeros(2, 3, 8, 8)
    places = torch.tensor([[1, 4, 2], [7, 0, 3]])
    for g in range(2):
        for b in range(3):
            frames[g, b, :, places[g, b]] = 1
    digits, confidence = recognise(frames, lambda images: images.sum(1))
    assert torch.equal(digits, places)
    expected = float(torch.tensor([8.0] + [0.0] * 7).softmax(0)[0])
    torch.testing.assert_close(confidence, torch.full((2, 3), expected))


@pytest.mark.parametrize("judge", ["judge", "guide"])
def test_a_judge_says_what_its_classifier_says(judge):
    """With normalisations folded in, and a few frames at a time."""
    classifier = checkpoint.load_classifier(judge)
    frames = torch.rand(300, 32, 32, generator=torch.Generator().manual_seed(0))
    fused = classifier.fused()
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in fused.modules())
    torch.testing.assert_close(judged(fused, frames), classifier(frames), rtol=1e-4, atol=1e-4)
    features = classifier.features(frames)
    torch.testing.assert_close(judged(fused.features, frames), features, rtol=1e-4, atol=1e-5)


def test_sets_of_digits_are_measured_by_what_the_judge_sees(world, digits):
    """A faint background is not seen; different digits count for more than one ten times."""
    task = UnconditionalDigits(world(dataset="centered"), num_sets=2, seed=0)
    frames = (digits.centred(32) > 0.5).float()
    first = [int((digits.labels == d).nonzero()[0]) for d in range(10)]
    sets = torch.stack([frames[first], frames[first[:1]].expand(10, -1, -1)])
    metrics, modes = task.measure(sets)
    assert metrics["vendi"]["per_set"][0] > 2 and metrics["vendi"]["per_set"][1] < 1.001
    assert torch.equal(modes, task.modes(sets, torch.arange(2)))
    assert len(set(modes[0].tolist())) > 3 and len(set(modes[1].tolist())) == 1
    of_pixels = dict(iou_distance=ANY, pairwise_l2=ANY)
    assert task.measure(sets.clamp_min(0.05))[0] == metrics | of_pixels
