import json
import os
import subprocess
import sys

import pytest
import yaml
from conftest import ROOT, slow_but
from matplotlib.image import imread

import evaluate
import visualize
from lab import assemble, experiments

NAMES = sorted(
    (path.stem for path in experiments.RECIPES.glob("e*.yaml")), key=lambda e: int(e[1:])
)


@pytest.mark.parametrize("preset", slow_but(["quick"], ["quick", "full"]))
@pytest.mark.parametrize("name", NAMES)
def test_every_cell_of_every_recipe_is_a_valid_evaluation(name, preset):
    cells = list(experiments.cells(experiments.load(name), preset))
    assert len({json.dumps(labels) for labels, _ in cells}) == len(cells) > 0
    parsed = dict(quick=3, full=8)[preset]
    for _, flags in cells[:: max(1, len(cells) // parsed)]:
        settings, _ = assemble.parse([*flags, "--digits", "embedded"])
        assert settings.digits.digits == "embedded"


def test_grid_has_the_cells_that_its_recipe_says():
    recipe = dict(
        settings=dict(batch_size=4, num_sets=dict(quick=2, full=9)),
        grid=dict(
            kernel=dict(a=dict(pg_kernel="rbf", pg_factor=[1, 2]), b=dict(pg_kernel="iou")),
            s_churn=[0, 0.5],
        ),
    )
    recipe["except"] = [dict(kernel="b", s_churn=0.5)]
    cells = list(experiments.cells(recipe, "full"))
    assert [labels for labels, _ in cells] == [
        dict(kernel="a", pg_factor=1, s_churn=0),
        dict(kernel="a", pg_factor=1, s_churn=0.5),
        dict(kernel="a", pg_factor=2, s_churn=0),
        dict(kernel="a", pg_factor=2, s_churn=0.5),
        dict(kernel="b", s_churn=0),
    ]
    flags = "--batch_size=4 --num_sets=9 --pg_kernel=rbf --pg_factor=1 --s_churn=0.5"
    assert cells[1][1] == flags.split()


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A recipe of four fast cells on the exact denoiser, in a folder of recipes of its own."""
    sets = dict(quick=2, full=3)
    settings = dict(denoiser="exact", digits="embedded", num_sets=sets, num_steps=3, batch_size=3)
    grid = dict(pg_kernel=["rbf", "logdet"], pg_factor=[0, 2.0])
    recipe = dict(title="Small", reference="none", figure="heatmap", settings=settings, grid=grid)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "small.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    monkeypatch.setattr(experiments, "RECIPES", tmp_path / "recipes")
    return tmp_path / "out"


def test_experiment_resumes_and_draws(small, capsys, refused):
    argv = ["--experiment", "small", "--outdir", str(small), "--device", "cpu"]
    evaluate.main(argv)
    assert "| logdet | 2.0 |" in capsys.readouterr().out
    results = json.loads((small / "results.json").read_text())
    assert len(results["rows"]) == 4 and results["rows"][0]["result"]["num_sets"] == 2
    assert (imread(small / "heatmap-modes_found.png")[..., :3].min(-1) < 0.98).mean() > 0.3
    cells = sorted((small / "cells").iterdir())
    before = [cell.stat().st_mtime_ns for cell in cells]
    cells[0].unlink()
    evaluate.main(argv)
    after = [cell.stat().st_mtime_ns for cell in cells]
    assert after[1:] == before[1:] and after[0] != before[0]
    capsys.readouterr()
    other = ["--preset", "full", "--seed", "3"]
    assert "this very experiment" in refused(evaluate.main, [*argv, *other])
    evaluate.main([*argv, *other, "--outdir", str(small / "other")])
    row = json.loads((small / "other" / "results.json").read_text())["rows"][0]["result"]
    assert row["num_sets"] == 3 and row["settings"]["seed"] == 3


def test_a_cell_that_cannot_run_stops_everything_before_it_starts(small, refused):
    argv = ["--experiment", "small", "--outdir", str(small), "--guidance", "cads"]
    line = refused(evaluate.main, argv)
    assert "guidance: got 'cads'" in line and "in the cell" in line
    assert not (small / "cells").exists()


def test_unknown_experiments_are_refused(refused):
    line = refused(evaluate.main, ["--experiment", "e99"])
    assert "experiment: got 'e99'; accepted: e1, e2," in line


@pytest.mark.slow
def test_ranks_share_the_cells_and_agree_with_one_process(tmp_path):
    """Two processes as torchrun starts them, without a common folder."""
    flags = "--experiment e9 --num_sets 1 --num_steps 4 --device cpu".split()
    both = os.environ | dict(WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT="29517")
    running = []
    for rank in "01":
        argv = [sys.executable, "evaluate.py", *flags, "--outdir", str(tmp_path / rank)]
        env = both | dict(RANK=rank, LOCAL_RANK=rank)
        piped = dict(stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        running.append(subprocess.Popen(argv, cwd=ROOT, env=env, **piped))
    errors = [each.communicate(timeout=300)[1] for each in running]
    assert [each.returncode for each in running] == [0, 0], errors
    together = json.loads((tmp_path / "0" / "results.json").read_text())["rows"]
    assert not (tmp_path / "1" / "results.json").exists()
    done = [len(list((tmp_path / str(rank) / "cells").iterdir())) for rank in range(2)]
    labels = [labels for labels, _ in experiments.cells(experiments.load("e9"), "quick")]
    assert sum(done) == len(labels) and [row["cell"] for row in together] == labels


# ---------------------------------------------------------------- the figures of experiments


def drawn(path) -> float:
    return float((imread(path)[..., :3].min(-1) < 0.98).mean())


OWN = dict(e4="--num_sets 6", e6="--denoiser exact")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """finished(name): the folder of an experiment in miniature."""
    folders = {}

    def run(name: str):
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp(name)
            few = "--digits embedded --num_steps 3 --num_sets 1 --batch_size 3 --device cpu"
            argv = ["--experiment", name, "--outdir", str(folders[name]), *few.split()]
            evaluate.main([*argv, *OWN.get(name, "").split()])
        return folders[name]

    return run


@pytest.mark.parametrize(
    "name, picture",
    [
        pytest.param("e1", "umap", marks=pytest.mark.slow),
        ("e3", "norms"),
        ("e4", "mean"),
        ("e6", "strength"),
        ("e8", "prior"),
    ],
)
def test_experiments_end_with_their_picture(name, picture, finished):
    """Drawn once more it is the same.

    From the settings that are recorded beside the results, without the flags that made them.
    """
    folder = finished(name)
    assert drawn(folder / f"{picture}.png") > 0.02
    results = json.loads((folder / "results.json").read_text())
    for row in results["rows"]:
        del row["flags"]
    (folder / "results.json").write_text(json.dumps(results))
    visualize.main(["figure", str(folder), "--out", str(folder / "again.png")])
    assert (imread(folder / "again.png") == imread(folder / f"{picture}.png")).all()


def test_an_experiment_may_have_several_figures(finished):
    names = experiments.load("e6")["figure"]
    assert names == ["strength", "strip", "trajectories", "norms"]
    assert all(drawn(finished("e6") / f"{name}.png") > 0.02 for name in names)


@pytest.mark.parametrize("path", sorted(experiments.RECIPES.glob("*.yaml")), ids=lambda p: p.stem)
def test_recipes_say_what_is_seen_in_each_of_their_figures(path):
    recipe = experiments.load(path.stem)
    names = recipe["figure"] if isinstance(recipe["figure"], list) else [recipe["figure"]]
    assert list(recipe["alt"]) == names


@pytest.mark.parametrize(
    "figure, name, why",
    [
        ("heatmap", "e4", "two axes"),
        ("prior", "e4", "horizontal"),
        ("scaling", "e4", "axis batch_size"),
        ("umap", "e4", "unconditional"),
        ("mean", "e3", "conditioned"),
        ("painting", "e4", "heatmap, prior"),
        (None, "e4", "heatmap, prior"),
    ],
)
def test_figures_of_the_wrong_experiment_are_refused(
    figure, name, why, finished, refused, capsys, tmp_path
):
    results = json.loads((finished(name) / "results.json").read_text())
    (tmp_path / "results.json").write_text(json.dumps(results | dict(figure=figure)))
    capsys.readouterr()
    line = refused(visualize.main, ["figure", str(tmp_path)])
    assert f"figure: got {figure!r}; accepted: " in line and why in line


def test_any_metric_of_a_grid_can_be_drawn_and_no_other(finished, refused, capsys):
    folder = finished("e8")
    visualize.main(["figure", str(folder), "--value", "quality"])
    assert drawn(folder / "heatmap-quality.png") > 0.1
    capsys.readouterr()
    line = refused(visualize.main, ["figure", str(folder), "--value", "confidence"])
    assert "value: got 'confidence'" in line


def test_a_number_that_is_a_lower_bound_is_written_so():
    bound, number = (dict(equivalent_draws=dict(mean=36.66, at_least=x)) for x in (True, False))
    assert experiments.audit_entry(bound, "equivalent_draws") == "> 36.7"
    assert experiments.audit_entry(number, "equivalent_draws") == "36.7"
