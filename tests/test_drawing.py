"""Pictures are drawn whatever matplotlib is set to, and leave it as it is."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT

MISSING = "module://matplotlib_inline.backend_inline"  # as notebooks set it; often not installed
QUICK = ["--denoiser", "exact", "--digits", "embedded", "--num_sets", "1", "--num_steps", "3"]

DRAW = """
import os, sys
import drawing
figure, axes = drawing.grid_of_axes(1, 2, 2, 1)
drawing.add_title(figure, "a title")
drawing.save(figure, sys.argv[1])
import matplotlib
print(os.environ.get("MPLBACKEND"), "matplotlib.pyplot" in sys.modules)
print(dict.__getitem__(matplotlib.rcParams, "backend"))
"""


def run(argv, backend, **options):
    """A Python process in which MPLBACKEND names a backend (None: nothing)."""
    environment = {key: value for key, value in os.environ.items() if key != "MPLBACKEND"}
    if backend is not None:
        environment["MPLBACKEND"] = backend
    return subprocess.run(
        [sys.executable, *argv],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        **options,
    )


@pytest.mark.parametrize("backend", [None, "", MISSING, "no_such_backend", "module://my", "TkAgg"])
def test_any_backend_in_the_environment(backend, tmp_path):
    """It is drawn, the environment stays, and pyplot will use what was asked for, if it can."""
    done = run(["-c", DRAW, str(tmp_path / "s.png")], backend)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "s.png").stat().st_size > 100
    said, chosen = done.stdout.splitlines()
    assert said == f"{backend} False"
    if backend in ("module://my", "TkAgg"):
        assert chosen == backend


def test_the_pyplot_of_a_program_is_left_alone(tmp_path):
    """Its backend, its open figures and its current figure."""
    program = """
import sys
import matplotlib
matplotlib.use("svg")
import matplotlib.pyplot as plt
mine = plt.figure()
import drawing
figure, axes = drawing.grid_of_axes(1, 2, 2, 1)
drawing.save(figure, sys.argv[1])
assert matplotlib.get_backend() == "svg" and plt.get_fignums() == [1] and plt.gcf() is mine
"""
    done = run(["-c", program, str(tmp_path / "s.png")], None)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_evaluations_and_pictures_with_a_missing_backend(tmp_path):
    out = tmp_path / "run"
    done = run(["evaluate.py", *QUICK, "--device", "cpu", "--outdir", str(out)], MISSING)
    assert done.returncode == 0, done.stderr
    assert {"metrics.json", "samples.npz", "config.yaml", "samples.png"} <= set(os.listdir(out))
    done = run(["visualize.py", "figure", str(out), "--out", str(tmp_path / "s.png")], MISSING)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "s.png").is_file()
