"""Sheets: which frame stands where; and pictures of any kind leave matplotlib as it is."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, slow_but
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


def test_sets_are_animated_together(tmp_path):
    """Of one title; and of other numbers of steps and particles, with a given frame or without."""
    of_one_title = [denoised_set("run", particles=1)] * 2
    of_two_kinds = [denoised_set("a", 5, 2), denoised_set("b", 2, 1, given=False)]
    heights = []
    for sets, num_steps in ((of_one_title[:1], 3), (of_one_title, 3), (of_two_kinds, 5)):
        film = sheets.denoising(sets, hold=1)
        save(film, tmp_path / "a.gif", dpi=20)
        with Image.open(tmp_path / "a.gif") as gif:
            heights.append(gif.height)
            assert gif.n_frames == num_steps + 1
        assert titles(film._fig)[1:] == [each.title for each in sets]  # after the last frame
    assert heights[1] == pytest.approx(2 * heights[0], abs=2)


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


def test_the_key_explains_the_colours_of_modes():
    """By arrows of directions or by digits; combinations of directions have neither."""
    directions = result(dataset="circle_jumping")
    assert sheets.mode_names(directions) == list("→←↓↑↘↙↗↖")
    assert sheets.mode_names(directions | dict(modes_total=2)) == ["→", "←"]
    assert sheets.mode_names(result(dataset="centered", modes_total=10)) == list("0123456789")
    two = directions | dict(settings=directions["settings"] | dict(num_digits=2), modes_total=4)
    assert sheets.mode_names(two) == [] == sheets.mode_names(result(modes_total=None))
    arrays = dict(cond=torch.rand(1, 1, 8, 8), samples=torch.rand(1, 2, 8, 8))
    figure = sheets.sample_sheet(*arrays.values(), modes=torch.tensor([[1, 1]]), key=["→", "←"])
    (legend,) = figure.legends
    borders = [axes.spines["top"].get_edgecolor() for axes in figure.axes]
    assert [text.get_text() for text in legend.get_texts()] == ["→", "←"]
    assert legend.get_patches()[1].get_edgecolor() in borders
    assert legend.get_patches()[0].get_edgecolor() not in borders


def test_draws_in_sequence_and_answers_have_a_gap_before_them():
    samples = torch.rand(1, 4, 8, 8)
    figure = sheets.sample_sheet(samples[:, :1], samples, answers=samples[:, :2], draws=2)
    places = [axes.get_position() for axes in figure.axes]
    gaps = [after.x0 - before.x1 for before, after in zip(places, places[1:])]
    assert [gap > 2 * min(gaps) for gap in gaps] == [True, False, True, False, True, False]
    names = [axes.get_title() for axes in figure.axes]
    assert names == ["given", "correct", "", "draw 1", "", "draw 2", ""]


def test_a_film_has_one_clock_and_starts_where_it_is_told():
    """Sets of other steps are shown at one noise level, steps before the start are left out."""
    of_two_kinds = [denoised_set("a", 5, 2), denoised_set("b", 2, 1)]
    film = sheets.denoising(of_two_kinds, start=8, hold=1)
    film._draw_frame(0)
    assert [title.split(",")[1] for title in titles(film._fig)[1:]] == [r"  $\sigma$ = 7.8"] * 2
    assert film._save_count == 4 + 1  # of 10, 7.75, 5.5, 3.25 and 1 the last four, and the samples


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
    assert path.vertices.min(0).tolist() == [4.5, 2.5]
    assert path.vertices.max(0).tolist() == [8.5, 6.5]
    colours = [tuple(lines.get_edgecolor()[0]) for lines in figure.axes[2].collections]
    assert len(set(colours)) == 2


# ---------------------------------------------------------------- matplotlib is left as it is

MISSING = "module://matplotlib_inline.backend_inline"  # as notebooks set it; often not installed
BACKENDS = [None, "", MISSING, "no_such_backend", "module://my", "TkAgg"]
DRAW = """
import os, sys
from figures import drawing
figure, axes = drawing.grid_of_axes(1, 2, 2, 1)
drawing.add_title(figure, "a title")
drawing.save(figure, sys.argv[1])
import matplotlib
print(os.environ.get("MPLBACKEND"), "matplotlib.pyplot" in sys.modules)
print(dict.__getitem__(matplotlib.rcParams, "backend"))
"""
BESIDE_PYPLOT = f"""
import matplotlib
matplotlib.use("svg")
import matplotlib.pyplot as plt
mine = plt.figure()
{DRAW}
assert matplotlib.get_backend() == "svg" and plt.get_fignums() == [1] and plt.gcf() is mine
"""


def run(argv, backend) -> str:
    """What a Python process prints in which MPLBACKEND names a backend (None: nothing)."""
    environment = {key: value for key, value in os.environ.items() if key != "MPLBACKEND"}
    if backend is not None:
        environment["MPLBACKEND"] = backend
    argv = [sys.executable, *map(str, argv)]
    done = subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("backend", slow_but([MISSING, "TkAgg"], BACKENDS))
def test_any_backend_in_the_environment(backend, tmp_path):
    """It is drawn, the environment stays, and pyplot will use what was asked for, if it can."""
    said, chosen = run(["-c", DRAW, tmp_path / "s.png"], backend).splitlines()
    assert (tmp_path / "s.png").stat().st_size > 100
    assert said == f"{backend} False"
    if backend in ("module://my", "TkAgg"):
        assert chosen == backend


def test_the_pyplot_of_a_program_is_left_alone(tmp_path):
    """Its backend, its open figures and its current figure."""
    run(["-c", BESIDE_PYPLOT, tmp_path / "s.png"], None)


@pytest.mark.slow
def test_evaluations_with_a_missing_backend(tmp_path):
    out = tmp_path / "run"
    quick = "--denoiser exact --digits embedded --num_sets 1 --num_steps 3 --device cpu"
    run(["evaluate.py", *quick.split(), "--outdir", out], MISSING)
    assert {"metrics.json", "samples.npz", "config.yaml", "samples.png"} <= set(os.listdir(out))
