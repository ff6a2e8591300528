"""Charts: what they show, and that a reader can tell what it is."""

import json

import pytest
import torch
from conftest import ROOT

from config import SamplerSettings
from figures import charts
from figures.drawing import Figure


def published(name: str) -> list[dict]:
    return json.loads((ROOT / "docs" / "results" / f"{name}.json").read_text())["rows"]


def without_intervals(value):
    """A result of single sets: the same without its intervals."""
    if isinstance(value, dict):
        return {
            key: None if key == "ci95" else without_intervals(each) for key, each in value.items()
        }
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
    frontier=lambda: charts.frontier(published("e10")),
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


@pytest.mark.parametrize("chart, name", [(charts.heatmap, "e5"), (charts.frontier, "e10")])
def test_single_sets_have_no_intervals_and_charts_say_so(chart, name):
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
