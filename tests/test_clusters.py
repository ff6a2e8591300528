"""Clusters of digits, found without labels, and the sets that they guide."""

import pytest
import torch

from lab import assemble, train_classifier
from lab.train_classifier import ClassifierSettings, in_clusters, of_digits
from config import DigitSettings

DIGITS = "--task unconditional --digits embedded --guidance classes --classifier clusters".split()


@pytest.fixture(scope="module")
def banks():
    settings = ClassifierSettings(noisy=True)
    return of_digits(settings, DigitSettings("embedded"))


@pytest.mark.slow
def test_clusters_of_digits_are_nearly_their_classes(banks):
    found = in_clusters(banks, 10, seed=0)
    for (images, clusters), (_, labels) in ((found.train, banks.train), (found.test, banks.test)):
        assert images is not None and len(clusters) == len(labels)
        both = torch.zeros(10, 10).index_put_(
            (clusters, labels), torch.tensor(1.0), accumulate=True
        )
        assert both.amax(1).sum() / both.sum() > 0.8


def test_more_clusters_than_pictures_allow_are_refused(capsys):
    with pytest.raises(SystemExit) as stop:
        train_classifier.main(["--digits", "embedded", "--clusters", "400"])
    assert stop.value.code == 2
    assert "clusters: got 400; accepted: at most a tenth" in capsys.readouterr().err


def test_the_included_classifier_of_clusters_makes_sets_of_many_classes():
    evaluation = assemble.evaluation([*DIGITS, *"--batch_size 10 --num_sets 4 --price 15".split()])
    _, modes, result = evaluation.run(progress=False)
    assert result["modes_found"]["mean"] >= 9
    shares = torch.bincount(modes.flatten(), minlength=10) / modes.numel()
    assert shares.max() < 0.2  # independent draws have no such bound in a set of ten


@pytest.mark.parametrize(
    "flags, refused",
    [
        (["--classes", "3:5,8:5"], "classes: got '3:5,8:5'; accepted: all or independent"),
        (["--task", "conditional", "--dataset", "halves"], "classifier: got 'clusters'; accepted"),
    ],
)
def test_clusters_have_no_names_and_no_condition(flags, refused):
    with pytest.raises(ValueError, match="accepted") as error:
        assemble.evaluation([*DIGITS, "--batch_size", "10", *flags])
    assert str(error.value).startswith(refused)
