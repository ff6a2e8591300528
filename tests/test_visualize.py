import shutil

import numpy as np
import pytest
from conftest import slow_but
from matplotlib.image import imread
from PIL import Image

import evaluate
import visualize
from figures import gallery
from lab import assemble

EXACT = (
    "--denoiser exact --digits embedded --num_sets 2 --batch_size 3 --num_steps 4 --device cpu"
).split()
BLOBS = "--dataset frames --frames examples/blobs.npz".split()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    outdir = tmp_path_factory.mktemp("run")
    evaluate.main([*EXACT, "--pg_factor", "1.7", "--outdir", str(outdir)])
    return outdir


def drawn(path) -> float:
    """Share of pixels that are not white; a blank picture has none."""
    return float((imread(path)[..., :3].min(-1) < 0.98).mean())


def test_samples_redraws_the_sheet_of_the_run(finished, tmp_path):
    visualize.main(["figure", str(finished), "--out", str(tmp_path / "s.png")])
    assert (imread(tmp_path / "s.png") == imread(finished / "samples.png")).all()


def test_trajectory_of_a_set(finished):
    visualize.main(["trajectory", str(finished), "--set", "1"])
    assert drawn(finished / "trajectory-1.png") > 0.5


@pytest.mark.parametrize(
    "world",
    slow_but(
        ["centered"], ["centered", "free", "circle_jumping", "horizontal", " ".join(BLOBS[1:])]
    ),
    ids=lambda world: world.split()[0],
)
def test_every_world_of_frames_has_a_sheet(world, tmp_path):
    flags = ["--dataset", *world.split(), "--digits", "embedded"]
    visualize.main(["dataset", *flags, "--out", str(tmp_path / "d.png")])
    assert drawn(tmp_path / "d.png") > 0.1


def test_the_plane_has_no_sheet(refused):
    assert "dataset: got 'mixture'" in refused(visualize.main, ["dataset", "--dataset", "mixture"])


def test_schedule(tmp_path):
    visualize.main(["schedule", "--rho", "[3,7]", "--out", str(tmp_path / "s.png")])
    assert 0.01 < drawn(tmp_path / "s.png") < 0.5


def test_sets_that_do_not_exist_are_refused(finished, refused):
    line = refused(visualize.main, ["trajectory", str(finished), "--set", "2"])
    assert "set: got 2; accepted: 0 to 1" in line


def test_points_of_the_mixture(tmp_path, refused, capsys):
    evaluate.main([*EXACT, "--dataset", "mixture", "--outdir", str(tmp_path)])
    assert drawn(tmp_path / "samples.png") > 0.1
    visualize.main(["figure", str(tmp_path), "--out", str(tmp_path / "again.png")])
    assert (imread(tmp_path / "again.png") == imread(tmp_path / "samples.png")).all()
    capsys.readouterr()
    assert "run: got" in refused(visualize.main, ["trajectory", str(tmp_path)])


@pytest.mark.slow
def test_the_animation_ends_with_the_samples(finished, tmp_path):
    """Every step of the sampler, then the samples, framed in colours that the steps do not have."""
    film = tmp_path / "a.gif"
    visualize.main(["animation", str(finished), "--set", "1", "--out", str(film)])

    def coloured(gif, n: int) -> int:
        gif.seek(n)
        levels = np.array(gif.convert("RGB")).astype(int)
        return int((levels.max(-1) - levels.min(-1) > 60).sum())

    with Image.open(film) as gif:
        assert gif.n_frames >= 5  # four steps; the same frame again may be stored once
        assert coloured(gif, gif.n_frames - 1) > 100 and coloured(gif, 2) == 0


def test_outlines_of_masks_and_of_nothing_else(finished, tmp_path, refused, capsys, undrawn):
    runs = [str(tmp_path / name) for name in ("a", "b", "other")]
    for run, seed in zip(runs, "001"):
        evaluate.main([*EXACT, *BLOBS, "--seed", seed, "--outdir", run])
    picture = str(tmp_path / "outlines.png")
    visualize.main(["outlines", *runs[:2], "--sets", "1,0", "--out", picture])
    assert drawn(picture) > 0.2
    capsys.readouterr()
    for argv, expected in (
        (["outlines", str(finished)], "run: got"),
        (["outlines", runs[0], "--sets", "0,2"], "sets: got 2; accepted: 0 to 1"),
        (["outlines", runs[0], runs[2], "--sets", "0"], "the same data and seed"),
    ):
        assert expected in refused(visualize.main, argv)


# ---------------------------------------------------------------- folders that share a name


@pytest.mark.parametrize(
    "runs, names",
    [
        (["/x/run"], ["run"]),
        (["/x/a", "/x/b"], ["a", "b"]),
        (["/x/a/run", "/x/b/run"], ["a/run", "b/run"]),
        (["/x/a/run", "/x/b/run", "/x/other"], ["a/run", "b/run", "x/other"]),
        (["/a/same/run", "/b/same/run"], ["a/same/run", "b/same/run"]),
        (["/x/run/run", "/x/run"], ["run/run", "x/run"]),
        (["/x/run", "/x/../x/run"], ["run", "run"]),  # one folder, written in two ways
    ],
)
def test_names_tell_folders_apart(runs, names):
    assert gallery.short_names(runs) == names


def test_runs_of_folders_with_the_same_name_are_all_drawn(finished, tmp_path, monkeypatch):
    """In an animation and in a report, each under a name of its own."""
    runs = [str(tmp_path / parent / "run") for parent in ("a", "b")]
    for run in runs:
        shutil.copytree(finished, run)
    filmed = []

    def film(sets, start):
        filmed.extend(one.title for one in sets)
        return "film"

    monkeypatch.setattr(gallery.sheets, "denoising", film)
    visualize.main(["animation", *runs, "--out", str(tmp_path / "film")])
    assert [title.split(":")[0] for title in filmed] == ["a/run", "b/run"]
    visualize.main(["report", *runs, "--out", str(tmp_path / "report.html")])
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert html.count("<h2 ") == 2 and ">a/run</h2>" in html and ">b/run</h2>" in html


def test_the_first_set_of_frames_of_the_users_own():
    """They have neither a quality nor a confidence."""
    result = assemble.evaluation([*EXACT, *BLOBS]).run(progress=False)[2]
    strip = gallery.strip([dict(cell=dict(batch_size=8), result=result)], "")
    written = {text.get_text() for text in strip.findobj(lambda a: hasattr(a, "get_text"))}
    assert {f"{result['hm_iou']['mean']:.2f}", "HM IoU* (mean of all sets)"} <= written


def test_flags_of_a_command_win_over_its_config_file(tmp_path):
    (tmp_path / "c.yaml").write_text("num_steps: 9\nrho: [5]\n")
    argv = ["schedule", "--num_steps", "4", "--config", str(tmp_path / "c.yaml")]
    name, args = visualize.parse(argv)
    assert name == "schedule" and args.num_steps == 4 and list(args.rho) == [5]
    assert list(visualize.parse(["schedule", "--rho", "3,4,7"])[1].rho) == [3, 4, 7]
