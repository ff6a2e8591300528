"""What every test shares: digits, small worlds and the command lines in-process."""

import os
import sys
from pathlib import Path

import pytest

# Set before torch is imported, which reads it: each test process computes on one core. umap's numba
# would have torch compute on all of them from then on. Nothing here imports torch by itself, since
# the process that only hands out the tests would wait for it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "benchmarks"))  # behind the root, whose modules come first
# Flags of a training of a few seconds.
SMALL = (
    "--digits embedded --channels [16] --blocks 1 --attention [] --patch_size 4 --batch_size 8 "
    "--warmup 2 --log_every 1 --sample_every 0 --device cpu"
).split()
MOST_WORKERS = 8  # each imports torch, which takes seconds and some hundred megabytes


def slow_but(quick, values) -> list:
    """`values` as parameters of a test. All but those in `quick` are marked slow."""
    return [
        value if value in quick else pytest.param(value, marks=pytest.mark.slow) for value in values
    ]


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    """Spread the tests over the cores where the whole suite was asked for: `pytest` without a path.

    `pytest tests/test_x.py` stays one process, and a `-n` on the command line wins. So does --cov,
    which has to know of workers before this is called: `pytest --cov -n logical`.
    """
    whole_suite = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    in_worker = hasattr(config, "workerinput")
    option = config.option
    if not whole_suite or in_worker or not config.pluginmanager.hasplugin("xdist"):
        return
    if option.numprocesses is not None or getattr(option, "cov_source", None):
        return
    if option.usepdb or option.collectonly:
        return
    option.numprocesses = min(os.cpu_count() or 1, MOST_WORKERS)
    option.dist = "worksteal"


@pytest.fixture
def gpu():
    """An imitation of a GPU."""
    from imitation import GPU

    with GPU() as gpu:
        yield gpu


@pytest.fixture(scope="session")
def digits():
    """Test digits that are always there."""
    from data_loader import load_digits

    return load_digits("embedded", "test", size=16, data_root="data")


@pytest.fixture(scope="session")
def mnist_root():
    """Where MNIST is, for the tests that want the real thing."""
    if not (ROOT / "data" / "MNIST" / "raw" / "t10k-images-idx3-ubyte").is_file():
        pytest.skip("MNIST is not in data/")
    return str(ROOT / "data")


@pytest.fixture
def world():
    """world(dataset=..., ...): a world of embedded test digits, other settings as by default."""
    from config import DigitSettings, WorldSettings
    from data_loader import load_world

    return lambda **settings: load_world(
        WorldSettings(**settings), DigitSettings("embedded"), "test"
    )


@pytest.fixture
def generator():
    import torch

    return torch.Generator().manual_seed(0)


@pytest.fixture
def refused(capsys):
    """refused(main, argv): the one line with which a command line turns bad input down."""

    def call(main, argv):
        with pytest.raises(SystemExit) as stop:
            main(argv)
        captured = capsys.readouterr()
        lines = captured.err.strip().splitlines()
        assert stop.value.code == 2 and captured.out == ""
        assert len(lines) == 1, captured.err
        return lines[0]

    return call


def draw_nothing(patch) -> None:
    """In this process neither script draws samples, which takes longer than small runs take."""
    patch.setattr("evaluate.draw_samples", lambda arrays, result, path: None)
    patch.setattr("train.draw_samples", lambda training, path: path.touch())


@pytest.fixture
def undrawn(monkeypatch):
    """Neither script draws samples in this test."""
    draw_nothing(monkeypatch)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """The folder of a real, very short training of a very small network."""
    from train import main

    outdir = tmp_path_factory.mktemp("tiny") / "run"
    network = "--channels [16,16] --blocks 1 --attention [1] --head_channels 8 --patch_size 4"
    updates = "--iterations 30 --batch_size 16 --warmup 5 --lr 0.003 --log_every 5"
    main([*f"--digits embedded --device cpu {network} {updates}".split(), "--outdir", str(outdir)])
    return outdir
