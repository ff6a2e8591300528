"""Charts: what they show, and that a reader can tell what it is."""

import json

import pytest
import torch
from conftest import ROOT
from matplotlib.image import imread
from matplotlib.transforms import Bbox

import evaluate
import visualize
from config import SamplerSettings
from figures import charts, gallery
from figures.drawing import Figure


def published(name: str) -> list[dict]:
    return json.loads((ROOT / "docs" / "results" / f"{name}.json").read_text())["rows"]


def without_intervals(value):
    """A result of single sets: the same without its intervals."""
    if isinstance(value, dict):
        without = {key: without_intervals(each) for key, each in value.items()}
        return without | dict(ci95=None) if "ci95" in value else without
    return [without_intervals(each) for each in value] if isinstance(value, list) else value


def texts(figure: Figure) -> str:
    """All that is written in a figure."""
    return "\n".join(text.get_text() for text in figure.findobj(lambda a: hasattr(a, "get_text")))


def trace(num_steps: int = 4) -> dict[str, torch.Tensor]:
    return dict(
        sigmas=torch.linspace(10, 1, num_steps),
        distances=torch.rand(num_steps, 3, 3),
        ode=torch.rand(num_steps, 3) + 1,
        guidance=torch.zeros(num_steps, 3),
    )


def umap_map() -> Figure:
    labels = torch.tensor([1, 1, 7])  # most digits do not occur
    modes = torch.tensor([[1, 7], [1, 1]])
    points = torch.rand(2, 2, 2)
    return charts.umap_map(torch.rand(3, 2), labels, points, modes, ["one", "two"])


CHARTS = dict(
    heatmap=lambda: charts.heatmap(published("e5")),
    quality=lambda: charts.heatmap(published("e5"), value="quality"),
    prior=lambda: charts.prior(published("e8")),
    comparison=lambda: charts.comparison(published("comparison"), "plain U-Net"),
    dispersion=lambda: charts.dispersion(published("e14")),
    strength=lambda: charts.over_strength(published("e6")),
    scaling=lambda: charts.scaling(published("e12")),
    steps=lambda: charts.over_steps(published("eddy")),
    grid=lambda: charts.heatmap(published("e7")),
    schedules=lambda: charts.schedules([SamplerSettings(num_steps=2)], [0.0], 1.0),
    norms=lambda: charts.norms(dict(one=trace(), two=trace())),
    umap=umap_map,
)


@pytest.mark.parametrize("name", CHARTS)
def test_axes_are_labelled_and_nothing_overlaps_them(name):
    """Along every row and column of panels one axis has its name; names do not run into others."""
    figure = CHARTS[name]()
    assert any(axes.get_xlabel() for axes in figure.axes)
    assert any(axes.get_ylabel() for axes in figure.axes)
    figure.canvas.draw()
    for of in ("xaxis", "yaxis"):
        labels = [getattr(axes, of).label for axes in figure.axes]
        boxes = [label.get_window_extent() for label in labels if label.get_text()]
        for n, box in enumerate(boxes):
            assert not any(box.overlaps(other) for other in boxes[n + 1 :])


@pytest.mark.parametrize("value", ["modes_found", "quality"])
def test_a_heatmap_shows_every_cell(value):
    rows = published("e5")
    figure = charts.heatmap(rows, value=value)
    written = texts(figure).split()
    means = [row["result"][value]["mean"] for row in rows]
    decimals = 2 if max(means) >= 1 else 3
    for mean in means:
        assert f"{mean:.{decimals}f}" in written
    assert sum("±" in word for word in written) == len(rows)
    assert charts.NO_INTERVAL not in texts(figure)


def test_single_sets_have_no_intervals_and_charts_say_so():
    chart, name = charts.heatmap, "e5"
    rows = without_intervals(published(name))
    assert rows[0]["result"]["modes_found"]["ci95"] is None
    figure = chart(rows)
    assert charts.NO_INTERVAL in texts(figure) and "±" not in texts(figure)
    mixed = [*rows[:-1], published(name)[-1]]
    assert charts.NO_INTERVAL in texts(chart(mixed))


def test_cells_that_are_not_finite_are_drawn(tmp_path):
    rows = published("e5")
    rows[0]["result"]["quality"] = dict(mean=float("nan"), ci95=None)
    figure = charts.heatmap(rows, value="quality")
    figure.canvas.draw()
    assert "nan" in texts(figure)


def test_error_bars_reach_to_the_ends_of_the_interval():
    lopsided = dict(mean=7.5, ci95=[6.5, 8.0])
    assert charts.error_bars([lopsided]) == ([1.0], [0.5])
    below, above = charts.error_bars([dict(mean=1.0, ci95=None), lopsided])
    assert below[0] != below[0] and below[1:] == [1.0] and above[1:] == [0.5]
    assert charts.error_bars([dict(mean=1.0, ci95=None)]) is None
    assert charts.error_bars([dict(mean=1.0, ci95=[1.1, 1.2])])[0] == [0]  # never negative


def test_the_comparison_names_few_and_draws_all():
    rows = published("comparison")
    best = charts.best_samplers(rows, "plain U-Net", charts.middle_price(rows))
    named = charts.named_methods(best)
    assert len(named) == len(set(named)) <= 9 and set(named) <= set(best)
    others = [
        method for method in best if method not in named and best[method]["kind"] == "coupled"
    ]
    rivals = [method for method in named if best[method]["kind"] == "coupled"]
    shown = lambda method: best[method]["modes_shown"]["mean"]
    theirs = [method for method in others if not method.startswith(charts.OURS)]
    assert min(map(shown, rivals)) >= max(map(shown, theirs))
    figure = charts.comparison(rows, "plain U-Net")
    assert all(method in texts(figure) for method in named)
    assert len(figure.axes[0].containers) == len(best)


@pytest.mark.parametrize("name", ["e2", "e5", "e7"])
def test_figures_are_no_wider_than_a_page(name):
    """And the titles of panels do not run into each other."""
    figure = charts.heatmap(published(name), "a title")
    assert figure.get_figwidth() <= charts.WIDEST
    figure.canvas.draw()
    boxes = [axes.title.get_window_extent() for axes in figure.axes if axes.get_title()]
    title = figure._suptitle.get_window_extent()  # ends with empty lines, in place of theirs
    lines = figure._suptitle.get_text().count("\n") + 1
    boxes.append(Bbox([[title.x0, title.y1 - title.height / lines], [title.x1, title.y1]]))
    for n, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[n + 1 :])


# ---------------------------------------------------------------- where it is decided

EXACT = "--denoiser exact --digits embedded --num_sets 1 --batch_size 2 --num_steps 6 --device cpu"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folders of evaluations whose window was measured, whose guidance alone was, in the plane,
    and of one that needed no curve."""
    flags = dict(
        window="--pg_factor 1",
        edm="--pg_factor 1 --sampler edm",
        plane="--pg_factor 1 --dataset mixture --sigma_max 20",
        none="",
    )
    folder = tmp_path_factory.mktemp("runs")
    for name, own in flags.items():
        evaluate.main([*EXACT.split(), *own.split(), "--outdir", str(folder / name)])
    return folder


def test_a_curve_is_that_of_the_run_and_its_steps_are_those_of_the_sampler(runs):
    for name in ("window", "edm", "plane"):
        result = json.loads((runs / name / "metrics.json").read_text())
        curve = gallery.decision_curve(str(runs / name))
        assert curve.sigmas == result["decisions"]["sigmas"]
        assert curve.shares == result["decisions"]["shares"]
        sampler = gallery.sampled_again(result).sampler
        schedule = sampler.schedule
        assert curve.steps == (schedule.sigmas[:-1] * (1 + schedule.churn)).tolist()
        if name == "edm":
            assert curve.window is None and len(curve.steps) == 6
        else:
            assert tuple(curve.window) == pytest.approx(sampler.methods.window[:2])


def test_noise_falls_to_the_right_and_the_window_is_shaded(runs):
    """In a panel for each run."""
    curves = {name: gallery.decision_curve(str(runs / name)) for name in ("window", "edm", "plane")}
    figure = charts.decisions(curves)
    figure.canvas.draw()
    assert "noise level" in texts(figure) and "share decided" in texts(figure)
    assert len(figure.axes) == len(curves)
    for axis, (name, curve) in zip(figure.axes, curves.items()):
        left, right = axis.get_xlim()
        assert left > right and axis.get_xscale() == "log"
        assert axis.get_title().startswith(name)
        shaded = [patch.get_window_extent() for patch in axis.patches]
        assert len(shaded) == (curve.window is not None)
        for extent in shaded:
            low, high = curve.window
            x_high, x_low = axis.transData.transform([(high, 0), (low, 0)])[:, 0]
            assert (extent.x0, extent.x1) == pytest.approx((x_high, x_low))
        # All that is drawn lies between the axes' limits, the marks of the steps below the curves.
        bottom, top = axis.get_ylim()
        for line in axis.get_lines():
            x, y = line.get_data()
            assert left >= max(x) and min(x) >= right and bottom < min(y) and max(y) < top
        (marks,) = (line for line in axis.get_lines() if line.get_marker() == "|")
        assert list(marks.get_xdata()) == list(curve.steps) and max(marks.get_ydata()) < 0


def test_the_picture_is_in_the_runs_folder_or_where_one_works(runs, tmp_path, monkeypatch, capsys):
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
