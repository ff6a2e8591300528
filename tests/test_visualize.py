import numpy as np
import pytest
from matplotlib.image import imread
from PIL import Image

import evaluate
import visualize

EXACT = [
    "--denoiser",
    "exact",
    "--digits",
    "embedded",
    "--num_sets",
    "2",
    "--num_steps",
    "6",
    "--device",
    "cpu",
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    outdir = tmp_path_factory.mktemp("run")
    evaluate.main([*EXACT, "--pg_factor", "1.7", "--outdir", str(outdir)])
    return outdir


def drawn(path) -> float:
    """Share of pixels that are not white; a blank picture has none."""
    return float((imread(path)[..., :3].min(-1) < 0.98).mean())


def test_samples_redraws_the_sheet_of_the_run(finished, tmp_path):
    visualize.main(["samples", str(finished), "--out", str(tmp_path / "s.png")])
    assert (imread(tmp_path / "s.png") == imread(finished / "samples.png")).all()


def test_trajectory_of_a_set(finished):
    visualize.main(["trajectory", str(finished), "--set", "1", "--num_particles", "2"])
    assert drawn(finished / "trajectory-1.png") > 0.5


@pytest.mark.parametrize("dataset", ["centered", "free", "circle_jumping", "horizontal"])
def test_dataset_of_every_world(dataset, tmp_path):
    visualize.main(
        ["dataset", "--dataset", dataset, "--digits", "embedded", "--out", str(tmp_path / "d.png")]
    )
    assert drawn(tmp_path / "d.png") > 0.1


def test_schedule(tmp_path):
    visualize.main(["schedule", "--rho", "[3,7]", "--out", str(tmp_path / "s.png")])
    assert 0.01 < drawn(tmp_path / "s.png") < 0.5


def test_sets_that_do_not_exist_are_refused(finished, refused):
    assert "set: got 2; accepted: 0 to 1" in refused(
        visualize.main, ["trajectory", str(finished), "--set", "2"]
    )


def test_points_of_the_mixture(tmp_path, refused, capsys):
    evaluate.main(
        [
            "--dataset",
            "mixture",
            "--denoiser",
            "exact",
            "--num_sets",
            "3",
            "--batch_size",
            "10",
            "--outdir",
            str(tmp_path),
        ]
    )
    assert drawn(tmp_path / "samples.png") > 0.1
    visualize.main(["samples", str(tmp_path), "--out", str(tmp_path / "again.png")])
    assert (imread(tmp_path / "again.png") == imread(tmp_path / "samples.png")).all()
    capsys.readouterr()
    assert "run: got" in refused(visualize.main, ["trajectory", str(tmp_path)])


def test_every_world_of_frames_has_a_sheet(tmp_path, refused, capsys):
    blobs = ["--dataset", "frames", "--frames", "examples/blobs.npz"]
    for argv in (["--dataset", "free"], blobs):
        visualize.main(["dataset", "--digits", "embedded", *argv, "--out", str(tmp_path / "w.png")])
        assert drawn(tmp_path / "w.png") > 0.2
    capsys.readouterr()
    assert "dataset: got 'mixture'" in refused(visualize.main, ["dataset", "--dataset", "mixture"])


@pytest.mark.slow
def test_the_animation_ends_with_the_samples(finished, tmp_path):
    """Every step of the sampler, then the samples, framed in colours that the steps do not have."""
    visualize.main(
        ["animation", str(finished), str(finished), "--set", "1", "--out", str(tmp_path / "a.gif")]
    )

    def coloured(gif, n: int) -> int:
        gif.seek(n)
        levels = np.array(gif.convert("RGB")).astype(int)
        return int((levels.max(-1) - levels.min(-1) > 60).sum())

    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.n_frames >= 7  # six steps; the same frame again may be stored once
        assert coloured(gif, gif.n_frames - 1) > 100 and coloured(gif, 2) == 0
