"""The chart of where it is decided what samples show, and the runs that it accepts."""

import json

import pytest
from matplotlib.image import imread

import evaluate
import visualize
from figures import charts, gallery
from lab import methods

EXACT = "--denoiser exact --digits embedded --num_sets 1 --batch_size 2 --num_steps 6 --device cpu"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folders of evaluations whose window was measured, whose guidance alone was, in the plane,
    and of one that needed no curve."""
    flags = dict(
        window=["--pg_factor", "1"],
        edm=["--pg_factor", "1", "--sampler", "edm"],
        plane=["--dataset", "mixture", "--pg_factor", "1", "--sigma_max", "20"],
        none=[],
    )
    folder = tmp_path_factory.mktemp("runs")
    for name, own in flags.items():
        evaluate.main([*EXACT.split(), *own, "--outdir", str(folder / name)])
    return folder


def result_of(run) -> dict:
    return json.loads((run / "metrics.json").read_text())


def test_a_curve_is_that_of_the_run_and_its_steps_are_those_of_the_sampler(runs):
    for name in ("window", "edm", "plane"):
        result = result_of(runs / name)
        curve = gallery.decision_curve(str(runs / name))
        assert curve.sigmas == result["decisions"]["sigmas"]
        assert curve.shares == result["decisions"]["shares"]
        sampler = gallery.sampled_again(result).sampler
        assert curve.steps == sampler.schedule.sigmas[:-1].tolist()
        if name == "edm":
            assert curve.window is None and len(curve.steps) == 6
        else:
            assert tuple(curve.window) == pytest.approx(
                methods.window(sampler.settings.sampler, sampler.decisions)
            )


def test_noise_falls_to_the_right_and_the_window_is_shaded(runs):
    curves = {name: gallery.decision_curve(str(runs / name)) for name in ("window", "edm", "plane")}
    (axis,) = charts.decisions(curves).axes
    left, right = axis.get_xlim()
    assert left > right and axis.get_xscale() == "log"
    assert "noise level" in axis.get_xlabel() and "share that is decided" in axis.get_ylabel()
    names = [text.get_text() for text in axis.get_legend().get_texts()]
    assert len(names) == 3 and names[0].startswith("window\nwindow ") and names[1] == "edm"
    shaded = [patch.get_window_extent() for patch in axis.patches]
    assert len(shaded) == 2
    for extent, name in zip(shaded, ("window", "plane")):
        low, high = curves[name].window
        x_high, x_low = axis.transData.transform([(high, 0), (low, 0)])[:, 0]
        assert (extent.x0, extent.x1) == pytest.approx((x_high, x_low))
    # All that is drawn lies between the axes' limits, the marks of the steps below the curves.
    bottom, top = axis.get_ylim()
    for line in axis.get_lines():
        x, y = line.get_data()
        assert left >= max(x) and min(x) >= right and bottom < min(y) and max(y) < top
    marks = [line.get_ydata()[0] for line in axis.get_lines() if line.get_marker() == "|"]
    assert len(set(marks)) == 3 and max(marks) < 0


def test_the_picture_is_in_the_folder_of_a_run_and_for_several_where_one_works(
    runs, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    visualize.main(["decisions", str(runs / "window")])
    visualize.main(["decisions", str(runs / "window"), str(runs / "plane")])
    assert "written to decisions.png" in capsys.readouterr().out
    for path in (runs / "window", tmp_path):
        assert (imread(path / "decisions.png")[..., :3].min(-1) < 0.98).mean() > 0.02


def test_runs_without_a_curve_are_refused(runs, tmp_path, refused):
    line = refused(visualize.main, ["decisions", str(runs / "window"), str(runs / "none")])
    assert "run: got" in line and "none" in line and "with decisions in its metrics.json" in line
    assert "metrics.json" in refused(visualize.main, ["decisions", str(tmp_path)])
    (tmp_path / "metrics.json").write_text("[1]")
    assert "run: got" in refused(visualize.main, ["decisions", str(tmp_path)])
