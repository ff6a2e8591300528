"""Own pictures in classes, from the files to sets of a composition that somebody asks for."""

import json
from collections import Counter

import numpy as np
import pytest
import torch

import evaluate
import visualize
from config import DigitSettings, WorldSettings
from data_loader import load_world
from examples import shapes
from figures.sheets import note, notes_title, result_sheet
from lab import checkpoint, train_classifier
from lab.classifier import LARGEST, NoisyClassifier
from lab.tasks import ClassTask

NAMES = ["circle", "cross", "square", "triangle"]
SHIPPED = checkpoint.__file__.replace("lab/checkpoint.py", "checkpoints/")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of 400 small shapes, five in a hundred of them crosses."""
    folder = tmp_path_factory.mktemp("pictures") / "shapes"
    shapes.write(folder, num_pictures=400, image_size=12, seed=0)
    return folder


@pytest.fixture(scope="module")
def classifier(pictures):
    """The file of a classifier that learned them for a few seconds."""
    path = pictures.parent / "classifier.safetensors"
    flags = f"--frames {pictures} --epochs 90 --batch_size 96 --device cpu --out {path}"
    train_classifier.main(flags.split())
    return path


@pytest.fixture(scope="module")
def in_colour(pictures):
    """The same in three colours, and wider than high."""
    frames, labels = [], []
    rng = np.random.default_rng(0)
    for name, share in shapes.SHARES.items():
        for _ in range(round(100 * share)):
            wide = np.zeros((12, 20, 3), np.uint8)
            wide[:, 4:16] = shapes.picture(name, rng, 12)[..., None] * rng.uniform(0.5, 1, 3)
            frames.append(wide)
            labels.append(name)
    path = pictures.parent / "colour.npz"
    np.savez(path, frames=np.stack(frames), labels=np.array(labels))
    return path


@pytest.fixture
def evaluated(undrawn, tmp_path, capsys):
    """evaluated(frames, flags): what an evaluation of sets of four with the exact denoiser wrote,
    metrics.json and samples.npz, and its table."""

    def run(frames, flags):
        outdir = tmp_path / "run"
        shared = f"--frames {frames} --num_cond_frames 0 --denoiser exact --batch_size 4"
        evaluate.main(f"{shared} --device cpu --outdir {outdir} {flags}".split())
        with np.load(outdir / "samples.npz") as file:
            arrays = {name: torch.from_numpy(file[name]) for name in file}
        return json.loads((outdir / "metrics.json").read_text()), arrays, capsys.readouterr().out

    return run


def test_a_classifier_says_what_it_knows(pictures, classifier):
    metadata = checkpoint.read_metadata(classifier)
    assert metadata["data"]["class_names"] == NAMES and metadata["digits_source"] is None
    assert metadata["data"]["shape"][1:3] == [12, 12] and len(metadata["data"]["sha256"]) == 64
    assert metadata["accuracy_at"]["0.1"] > 0.9 > metadata["accuracy_at"]["10.0"]


def test_independent_sets_lack_classes(pictures, evaluated):
    result, arrays, table = evaluated(pictures, "--guidance none --num_sets 60")
    assert result["modes_total"] == 4 and "modes found, of 4" in table
    assert result["modes_expected_iid"] == pytest.approx(2.37, abs=0.02)  # 4 - sum of (1 - p)^4
    assert result["modes_found"]["mean"] == pytest.approx(2.37, abs=0.3)
    # What the exact denoiser draws are training pictures, and the judge knows these.
    assert result["nearest_in_class"]["mean"] < 0.01 < result["test_nearest_in_class"]["mean"]
    assert result["judge_accuracy"]["mean"] > 0.9
    assert arrays["samples"].shape == (60, 4, 12, 12) and arrays["modes"].shape == (60, 4)


def test_guided_sets_show_every_class(pictures, classifier, evaluated):
    flags = f"--guidance classes --classifier {classifier} --num_sets 12"
    result, _, _ = evaluated(pictures, flags)
    assert result["modes_found"]["mean"] >= 3.5
    assert "composition_met" not in result


def test_a_composition_that_is_asked_for_is_met(pictures, classifier, evaluated):
    flags = f"--guidance classes --classes circle:1,cross:3 --classifier {classifier}"
    result, arrays, table = evaluated(pictures, f"{flags} --num_sets 12")
    assert result["composition_met"]["mean"] >= 0.75 and "sets as asked for" in table
    held = Counter(NAMES[mode] for mode in arrays["modes"].flatten().tolist())
    assert held["cross"] >= 30 and held["circle"] >= 9


@pytest.mark.parametrize("guidance", ["joint", "pg --pg_factor 5"])
def test_colour_pictures_are_sampled_and_judged(guidance, in_colour, evaluated):
    result, arrays, _ = evaluated(in_colour, f"--guidance {guidance} --num_sets 6")
    assert arrays["samples"].shape == (6, 4, 3, 12, 20)
    if guidance == "joint":
        assert result["modes_found"]["mean"] == 4  # the optimum
        assert result["nearest_in_class"]["mean"] < 0.01


def test_runs_of_pictures_are_drawn(in_colour, evaluated, tmp_path):
    result, arrays, _ = evaluated(in_colour, "--guidance none --num_sets 2")
    assert (tmp_path / "run" / "examples.png").is_file()
    assert "of its class" in notes_title(result) and "of 4" in note(result, 0)
    assert result_sheet(arrays, result).axes
    visualize.main(["report", str(tmp_path / "run"), "--out", str(tmp_path / "report.html")])
    assert "Nearest of its class" in (tmp_path / "report.html").read_text()


def test_a_judge_that_cannot_tell_the_classes_is_reported(tmp_path, undrawn, capsys):
    """It looks at edges, and these classes differ by a shade of grey."""
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    frames = rng.integers(0, 150, (60, 12, 12)) + 50 * labels[:, None, None]
    np.savez(tmp_path / "d.npz", frames=frames.astype(np.uint8), labels=labels)
    argv = f"--frames {tmp_path / 'd.npz'} --num_cond_frames 0 --denoiser exact --num_sets 2"
    evaluate.main([*argv.split(), "--device", "cpu", "--outdir", str(tmp_path / "run")])
    assert "WARNING: the judge recognises" in capsys.readouterr().err


def test_what_a_classifier_does_not_know_is_refused(
    pictures, in_colour, classifier, tmp_path, refused
):
    def said(frames, flags):
        shared = f"--frames {frames} --num_cond_frames 0 --denoiser exact --guidance classes"
        return refused(evaluate.main, f"{shared} --batch_size 4 --device cpu {flags}".split())

    assert "classifier: got None; accepted: a file that lab/train" in said(pictures, "")
    for file, why in [
        ("classifier_judge", "with --noisy or --frames"),
        ("centered", "is not a classifier"),
        ("classifier_noisy", "it tells 0, 1, 2"),
        ("none", "was not found"),
    ]:
        line = said(pictures, f"--classifier {SHIPPED}{file}.safetensors")
        assert "error: classifier: got " in line and why in line
    known = f"--classifier {classifier}"
    assert "it knows 1 x 12 x 12" in said(in_colour, known)
    line = said(pictures, f"{known} --classes circle:4,star:0")
    assert "each of the classes circle, cross, square, triangle once" in line
    assert "4 particles in all" in said(pictures, f"{known} --classes circle:5")
    plain = tmp_path / "plain"
    plain.mkdir()
    for file in (pictures / "circle").iterdir():
        (plain / file.name).write_bytes(file.read_bytes())
    assert "trained for pictures without classes" in said(plain, "")
    line = refused(train_classifier.main, ["--frames", str(plain)])
    assert "frames: got" in line and "a directory for each class" in line


@pytest.mark.parametrize(
    "flags, line",
    [
        ("--frames {} --image_size 16", "image_size: got 16; accepted: only for digits"),
        ("--frames {} --channels 8,16", "channels: got [8, 16]; accepted: null"),
        ("--data order:nt", "data: got 'order:nt'; accepted: only with frames"),
        ("--frames {}/none", "frames: got "),
    ],
)
def test_settings_of_other_classifiers_are_refused(flags, line, pictures, refused):
    assert line in refused(train_classifier.main, flags.format(pictures).split())


@pytest.mark.parametrize("size", [(20, 20), (33, 70), (8, 200)])
def test_noise_in_averages_is_what_the_network_is_told(size):
    net = NoisyClassifier(size, margin=0, colours=3, classes=2)
    noise = torch.randn(200, 3, *size, generator=torch.Generator().manual_seed(0))
    seen = net.seen(noise)
    assert max(seen.shape[2:]) <= LARGEST
    assert float(seen.std()) == pytest.approx(net.noise_left, rel=0.02)
    assert net(noise, torch.tensor(1.0)).shape == (200, 2)


def digits_of(**world):
    settings = WorldSettings(**world)
    world = load_world(settings, DigitSettings("embedded"), "test")
    task = ClassTask(world, 3, 0)
    task.recognise = checkpoint.load_classifier("noisy")
    return task


def test_classes_given_a_condition_have_probabilities():
    """log p(class | x, condition) is normalised, so that the mean of its gradients is zero; without
    a condition, or with classes that there are not, it is that of the classifier."""
    x = torch.randn(3, 2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor(1.0)
    sets = torch.arange(3)
    for world in (dict(dataset="halves"), dict(dataset="centered", digit_classes=[3, 5, 8])):
        task = digits_of(**world)
        log_p = task.classes(sets, torch.device("cpu")).log_posterior(x, sigma)
        torch.testing.assert_close(log_p.exp().sum(-1), torch.ones(3, 2))
        possible = task.class_priors > 0
        assert torch.equal(log_p.isfinite(), possible[:, None].expand(-1, 2, -1))


def test_sets_of_fewer_particles_than_classes_show_as_many_as_they_can(tmp_path, undrawn):
    flags = "--digits embedded --denoiser exact --batch_size 4 --num_sets 4 --device cpu"
    outdir = ["--outdir", str(tmp_path / "run")]
    evaluate.main([*f"--task unconditional --guidance joint {flags}".split(), *outdir])
    result = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert result["modes_found"]["mean"] > 3.4


@pytest.mark.parametrize("guidance", ["joint", "classes"])
def test_sets_of_fewer_particles_than_likely_classes_are_refused(guidance, refused):
    flags = "--dataset halves --digits embedded --denoiser exact --batch_size 1 --num_sets 4"
    line = refused(evaluate.main, f"{flags} --guidance {guidance} --device cpu".split())
    assert "batch_size: got 1; accepted: " in line
