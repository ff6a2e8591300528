import math
from pathlib import Path
from unittest.mock import ANY

import pytest
import torch
import torch.nn.functional as F

from data_loader import load_digits
from diverse_sampling.denoiser import to_model_range
from diverse_sampling.errors import SettingError
from lab import checkpoint, train_classifier
from lab.classifier import judged
from lab.metrics import recognise, without_background
from lab.tasks import ClassTask

NOISY = Path(checkpoint.__file__).parent.parent / "checkpoints" / "classifier_noisy.safetensors"


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
def test_the_shipped_judge_reaches_its_figure(mnist_root):
    """On all 10,000 test digits, 16 px in frames of 32."""
    test = load_digits("mnist", "test", size=16, data_root=mnist_root)
    classifier = checkpoint.load_classifier("judge").fused()  # quicker, and it says the same
    images = test.centred(32)[:, None]
    assert train_classifier.accuracy(classifier, images, test.labels, "cpu") >= 0.995


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


def test_a_judge_says_what_its_classifier_says():
    """With normalisations folded in, and a few frames at a time."""
    classifier = checkpoint.load_classifier("judge")
    frames = torch.rand(300, 32, 32, generator=torch.Generator().manual_seed(0))
    fused = classifier.fused()
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in fused.modules())
    torch.testing.assert_close(judged(fused, frames), classifier(frames), rtol=1e-4, atol=1e-4)
    features = classifier.features(frames)
    torch.testing.assert_close(judged(fused.features, frames), features, rtol=1e-4, atol=1e-5)


def test_sets_of_digits_are_measured_by_what_the_judge_sees(world, digits):
    """A faint background is not seen; different digits count for more than one ten times."""
    task = ClassTask(world(dataset="centered"), num_sets=2, seed=0)
    frames = (digits.centred(32) > 0.5).float()
    first = [int((digits.labels == d).nonzero()[0]) for d in range(10)]
    sets = torch.stack([frames[first], frames[first[:1]].expand(10, -1, -1)])
    metrics, modes = task.measure(sets)
    assert metrics["vendi"]["per_set"][0] > 2 and metrics["vendi"]["per_set"][1] < 1.001
    assert torch.equal(modes, task.modes(sets, torch.arange(2)))
    assert len(set(modes[0].tolist())) > 3 and len(set(modes[1].tolist())) == 1
    of_pixels = dict(iou_distance=ANY, pairwise_l2=ANY, nearest_in_class=ANY)
    assert task.measure(sets.clamp_min(0.05))[0] == metrics | of_pixels


# ---------------------------------------------------------------- noisy images


def noised(images, sigma):
    """Images (N, ...) in [0, 1] as noisy ones in [-1, 1] plus noise."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    return to_model_range(images) + sigma * noise


def exact_log_posterior(x, sigma, images, labels):
    """log p(class | x, sigma) if the images of a bank are all that there is: (N, classes)."""
    bank = to_model_range(images).flatten(1)
    flat = x.flatten(1)
    log_likelihood = (flat @ bank.T - bank.square().sum(1) / 2) / sigma**2
    each = [log_likelihood[:, labels == c].logsumexp(1) for c in range(int(labels.max()) + 1)]
    return torch.stack(each, 1).log_softmax(1)


@pytest.fixture(scope="module")
def noisy():
    return checkpoint.load_classifier("noisy")


@pytest.fixture(scope="module")
def mnist_banks(mnist_root):
    """16 px: all training digits, and the first 500 for testing."""
    train = load_digits("mnist", "train", size=16, data_root=mnist_root)
    test = load_digits("mnist", "test", size=16, data_root=mnist_root)
    return train, test.centred(32)[:500, None], test.labels[:500]


def test_classes_of_noisy_images_have_probabilities_and_gradients(noisy, digits):
    """Probabilities sum to 1 at every level, so the mean over classes of grad log p is zero."""
    frames = digits.centred(32)[:6, None]
    for sigma in (0.002, 0.3, 3.0, 80.0):
        x = noised(frames, sigma).requires_grad_()
        log_p = noisy(x, torch.tensor(sigma, dtype=torch.float64))
        assert log_p.shape == (6, 10)
        torch.testing.assert_close(log_p.exp().sum(1), torch.ones(6))
        torch.testing.assert_close(noisy(x, torch.full((6,), sigma)), log_p)
        (mean,) = torch.autograd.grad((log_p.detach().exp() * log_p).sum(), x, retain_graph=True)
        (one,) = torch.autograd.grad(log_p[:, 3].sum(), x)
        assert torch.isfinite(one).all() and one.abs().max() > 0
        assert mean.abs().max() < 1e-4 * max(1, one.abs().max())


def test_what_surrounds_a_digit_does_not_matter(noisy, digits):
    x = to_model_range(digits.centred(32)[:4, None])
    other = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    other[..., 6:26, 6:26] = x[..., 6:26, 6:26]
    assert torch.equal(noisy(x, torch.tensor(1.0)), noisy(other, torch.tensor(1.0)))


def test_a_short_training_approaches_the_exact_posterior(digits):
    """On the embedded digits, of which the exact posterior of the training digits is known."""
    train = load_digits("embedded", "train", size=16, data_root="unused")
    images = train.centred(20)[:, None]
    settings = train_classifier.ClassifierSettings(noisy=True, epochs=60)
    net = train_classifier.train_noisy(settings, images, train.labels, 10, "cpu")
    test = digits.centred(20)[:, None]
    measured = train_classifier.accuracy_at(net, test, digits.labels, "cpu")
    chance = math.log(10)
    for sigma, accuracy, nats in ((0.3, 0.85, 0.6), (1.0, 0.7, 1.0), (3.0, 0.25, 2.1)):
        assert measured["accuracy_at"][sigma] > accuracy
        assert measured["cross_entropy_at"][sigma] < nats < chance
    x = noised(test, 5.0)
    log_p = exact_log_posterior(x, 5.0, images, train.labels)
    with torch.no_grad():
        found = net(x, torch.tensor(5.0))
    divergence = (log_p.exp() * (log_p - found)).sum(1).mean()
    information = (log_p.exp() * (log_p + chance)).sum(1).mean()
    assert divergence < 0.4 * information


@pytest.mark.slow
def test_the_shipped_classifier_of_noisy_digits_reaches_its_figures(noisy, mnist_root):
    """On all 10,000 test digits, 16 px in frames of 32, and the file says the same."""
    test = load_digits("mnist", "test", size=16, data_root=mnist_root)
    images = test.centred(32)[:, None]
    measured = train_classifier.accuracy_at(noisy, images, test.labels, "cpu")["accuracy_at"]
    assert measured[0.1] > 0.98 and measured[1.0] > 0.85 and measured[3.0] > 0.39
    stated = checkpoint.read_metadata(NOISY)["accuracy_at"]
    assert {float(sigma): value for sigma, value in stated.items()} == pytest.approx(
        measured, abs=0.001
    )


@pytest.mark.slow
@pytest.mark.parametrize("sigma, excess", [(0.1, 0.0), (1.0, 0.0), (3.0, 0.03), (10.0, 0.01)])
def test_the_shipped_classifier_of_noisy_digits_is_as_good_as_the_truth(
    noisy, mnist_banks, sigma, excess
):
    """Cross-entropy in nats beside the exact posterior of all training digits. For digits that are
    not among them, the network is better than that while noise is weak."""
    train, test, labels = mnist_banks
    x = noised(test, sigma)
    with torch.no_grad():
        log_p = noisy(x, torch.tensor(sigma))
    exact = exact_log_posterior(x[..., 8:24, 8:24], sigma, train.images, train.labels)
    assert F.nll_loss(log_p, labels) < F.nll_loss(exact, labels) + excess


@pytest.mark.slow
@pytest.mark.parametrize("sigma, cosine", [(3.0, 0.9), (6.0, 0.95), (12.0, 0.95)])
def test_its_gradient_is_that_of_the_exact_posterior(noisy, mnist_banks, sigma, cosine):
    train, test, labels = mnist_banks
    x = noised(test[:100], sigma).requires_grad_()
    rows = torch.arange(100)
    exact = exact_log_posterior(x[..., 8:24, 8:24], sigma, train.images, train.labels)
    (truth,) = torch.autograd.grad(exact[rows, rows % 10].sum(), x)
    (found,) = torch.autograd.grad(noisy(x, torch.tensor(sigma))[rows, rows % 10].sum(), x)
    assert F.cosine_similarity(truth.flatten(1), found.flatten(1)).mean() > cosine


def test_the_shipped_classifier_of_noisy_digits_is_small():
    assert NOISY.stat().st_size <= 1e6


@pytest.mark.parametrize("side", [12, 70])
def test_other_images_and_classes_are_learned(side):
    """Three colours, told apart under strong noise; images of more than 32 px are averaged."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(90) % 3
    images = 0.2 * torch.rand(90, 3, side, side, generator=generator)
    images[torch.arange(90), labels] += 0.8
    settings = train_classifier.ClassifierSettings(noisy=True, epochs=60, batch_size=90)
    net = train_classifier.train_noisy(settings, images, labels, 3, "cpu")
    assert net.stem.in_features <= 3 * 32**2
    log_p = net(noised(images, 1.0), torch.tensor(1.0))
    assert (log_p.argmax(1) == labels).double().mean() > 0.95
    assert net(noised(images, 1e4), torch.tensor(1e4)).std() < 0.2  # nothing is known any more


def test_a_file_says_what_network_it_holds(tmp_path, capsys):
    path = tmp_path / "noisy.safetensors"
    flags = "--noisy --digits embedded --epochs 1 --device cpu"
    train_classifier.main([*flags.split(), "--out", str(path)])
    metadata = checkpoint.read_metadata(path)
    printed = capsys.readouterr().out
    for sigma, accuracy in metadata["accuracy_at"].items():
        assert 0 <= accuracy <= 1 and metadata["cross_entropy_at"][sigma] > 0
        assert f"{100 * accuracy:.2f}% at sigma {sigma.removesuffix('.0')}" in printed
    net = checkpoint.read_classifier(path)
    assert net(torch.zeros(2, 1, 32, 32), torch.tensor(1.0)).shape == (2, 10)


def test_a_classifier_of_noisy_images_has_no_resolutions(refused):
    said = refused(train_classifier.main, ["--noisy", "--channels", "8,16"])
    assert "channels" in said and "accepted: null" in said


def test_a_denoiser_is_not_a_classifier():
    with pytest.raises(SettingError, match="is not a classifier; accepted: a file that"):
        checkpoint.read_classifier(NOISY.with_name("centered.safetensors"))
