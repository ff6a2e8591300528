import numpy as np
import pytest
from matplotlib.image import imread

import evaluate
import visualize

EXACT = ["--denoiser", "exact", "--digits", "embedded", "--num_sets", "2", "--num_steps", "6", "--device", "cpu"]


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
    visualize.main(["dataset", "--dataset", dataset, "--digits", "embedded", "--out", str(tmp_path / "d.png")])
    assert drawn(tmp_path / "d.png") > 0.1


def test_schedule(tmp_path):
    visualize.main(["schedule", "--rho", "[3,7]", "--out", str(tmp_path / "s.png")])
    assert 0.01 < drawn(tmp_path / "s.png") < 0.5


def test_sets_that_do_not_exist_are_refused(finished, refused):
    assert "set: got 2; accepted: 0 to 1" in refused(visualize.main, ["trajectory", str(finished), "--set", "2"])


def test_points_of_the_mixture(tmp_path, refused, capsys):
    evaluate.main(["--dataset", "mixture", "--denoiser", "exact", "--num_sets", "3", "--batch_size", "10",
                   "--outdir", str(tmp_path)])
    assert drawn(tmp_path / "samples.png") > 0.1
    visualize.main(["samples", str(tmp_path), "--out", str(tmp_path / "again.png")])
    assert (imread(tmp_path / "again.png") == imread(tmp_path / "samples.png")).all()
    capsys.readouterr()
    assert "run: got" in refused(visualize.main, ["trajectory", str(tmp_path)])


def test_the_animation_ends_with_the_samples(tmp_path):
    """Every step of the sampler, then the samples, in colours that the steps do not have."""
    import torch
    from matplotlib.animation import PillowWriter
    from PIL import Image

    from figures import denoising

    job = evaluate.setup([*EXACT, "--batch_size", "3"])
    runs = {title: (job.cond[0, -1], job.trace(torch.tensor([0])), torch.tensor([0, 4, 0])) for title in ("one", "two")}
    denoising(runs, hold=2).save(tmp_path / "a.gif", writer=PillowWriter(fps=5))

    def coloured(n: int) -> int:
        gif.seek(n)
        levels = torch.from_numpy(np.array(gif.convert("RGB"))).int()
        return int((levels.amax(-1) - levels.amin(-1) > 60).sum())
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.n_frames in (7, 8)  # the same frame twice may be stored once
        assert coloured(gif.n_frames - 1) > 100 and coloured(2) == 0
