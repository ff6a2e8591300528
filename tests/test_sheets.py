"""Sheets: which frame stands where."""

import numpy as np
import pytest
import torch
from PIL import Image

from figures import sheets
from figures.drawing import save


def titles(figure) -> list[str]:
    """The titles of a figure and of its parts."""
    return [part.get_suptitle() for part in (figure, *figure.subfigs)]


def denoised_set(title: str, num_steps: int = 3, particles: int = 2, given: bool = True):
    trace = dict(
        sigmas=torch.linspace(10, 1, num_steps),
        x_hat=torch.randn(num_steps, particles, 8, 8),
        denoised=torch.rand(num_steps, particles, 8, 8),
        samples=torch.rand(particles, 8, 8),
    )
    return sheets.DenoisedSet(
        title, torch.rand(8, 8) if given else None, trace, torch.zeros(particles).long()
    )


def test_only_the_first_particle_of_a_mode_is_coloured():
    colours = sheets.new_colours([3, -1, 3, 0, -1])
    assert [colour is not None for colour in colours] == [True, False, False, True, False]
    assert colours[0] != colours[3]
    assert sheets.new_colours([]) == []


def test_sets_of_the_same_title_are_all_animated(tmp_path):
    heights = []
    for number in (1, 2):
        film = sheets.denoising([denoised_set("run") for _ in range(number)], hold=1)
        save(film, tmp_path / "a.gif", dpi=20)
        with Image.open(tmp_path / "a.gif") as gif:
            heights.append(gif.height)
            assert gif.n_frames == 4
        assert titles(film._fig)[1:] == ["run"] * number  # after the last frame
    assert heights[1] == pytest.approx(2 * heights[0], abs=2)


def test_sets_of_different_kinds_are_animated_together(tmp_path):
    """Other numbers of steps and particles, with and without a frame that is given."""
    film = sheets.denoising([denoised_set("a", 5, 3), denoised_set("b", 2, 1, given=False)], hold=1)
    save(film, tmp_path / "a.gif", dpi=20)
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.n_frames == 6


def result(**changed) -> dict:
    found = dict(mean=1.5, ci95=None, per_set=[1.0, 2.0])
    quality = dict(mean=0.25, ci95=None, per_set=[0.25, 0.25])
    settings = dict(guidance="pg", pg_factor=0.0, noise="iid")
    both = dict(dataset="free", modes_found=found, modes_total=8, quality=quality)
    return both | dict(settings=settings) | changed


def test_a_sheet_names_the_method_and_what_was_found():
    arrays = dict(cond=torch.rand(2, 1, 8, 8), samples=torch.rand(2, 3, 8, 8))
    modes = dict(modes=torch.tensor([[0, 0, 0], [1, 2, 1]]))
    figure = sheets.result_sheet(arrays | modes, result())
    assert titles(figure) == ["free, independent: 1.50 of 8 found, quality 0.25"]
    written = {text.get_text() for text in figure.findobj(lambda a: hasattr(a, "get_text"))}
    assert {"found, quality", "1 of 8, 0.25", "2 of 8, 0.25", "given", "samples"} <= written
    without = result(modes_found=None, modes_total=None)
    assert titles(sheets.result_sheet(arrays, without)) == ["free, independent: quality 0.25"]


def test_answers_stand_between_what_is_given_and_the_samples(tmp_path):
    levels = torch.linspace(0.1, 0.9, 5)
    cond, answers, samples = (
        part[:, :, None, None].expand(-1, -1, 8, 8) for part in levels[None].split([1, 2, 2], 1)
    )
    figure = sheets.sample_sheet(cond, samples, answers=answers)
    shown = [float(axes.images[0].get_array().mean()) for axes in figure.axes]
    assert shown == pytest.approx(levels.tolist())
    names = [axes.get_title() for axes in figure.axes]
    assert names == ["given", "correct", "", "samples", ""]


def test_means_of_large_sets_and_of_one(tmp_path):
    """The deviation of a single sample is 0."""
    for particles in (1, 6):
        samples = torch.rand(2, particles, 8, 8)
        figure = sheets.mean_sheet(torch.rand(2, 3, 8, 8), samples, ["a", "b"], ["c", "d"])
        shown = [np.asarray(axes.images[0].get_array()) for axes in figure.axes]
        columns = len(shown) // 2
        assert columns == 3 + 2 + min(4, particles)
        assert np.allclose(shown[3], samples[0].mean(0)) and np.isfinite(shown[4]).all()
        save(figure, tmp_path / "m.png")


def test_outlines_run_where_masks_end():
    """Around a square of 4 px, half a pixel outside of the centres of its pixels."""
    mask = torch.zeros(1, 1, 12, 12)
    mask[..., 3:7, 5:9] = 1
    empty = torch.zeros(1, 3, 12, 12)
    figure = sheets.outline_sheet(mask[0], mask, [("a", mask.expand(-1, 2, -1, -1)), ("b", empty)])
    assert [axes.get_title() for axes in figure.axes] == ["given", "correct", "a", "b"]
    lines = [len(axes.collections) for axes in figure.axes]
    assert lines == [0, 1, 2, 0]  # an empty mask has no outline
    (path,) = figure.axes[1].collections[0].get_paths()
    assert path.vertices.min(0).tolist() == [4.5, 2.5] and path.vertices.max(0).tolist() == [
        8.5,
        6.5,
    ]
    colours = [tuple(lines.get_edgecolor()[0]) for lines in figure.axes[2].collections]
    assert len(set(colours)) == 2
