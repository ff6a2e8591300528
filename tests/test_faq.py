"""The errors that docs/faq.md explains are those that the commands give."""

import re
import shlex

import numpy as np
import pytest
import torch
from conftest import ROOT

import evaluate
import train
import visualize

PROGRAMS = {"evaluate.py": evaluate.main, "train.py": train.main, "visualize.py": visualize.main}
PAGE = (ROOT / "docs" / "faq.md").read_text().split("\n## By error text\n")[1]
BLOCKS = re.findall(r"(?:^    .+\n)+", PAGE, flags=re.M)


def commands(block):
    """(arguments, what it prints) of each command of a block, `...` for any text."""
    lines = [line.strip() for line in block.splitlines()]
    starts = [i for i, line in enumerate(lines) if line.startswith("$ python ")]
    for start, end in zip(starts, [*starts[1:], len(lines)]):
        yield shlex.split(lines[start])[2:], "\n".join(lines[start + 1 : end])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where the commands run: with the files that they name."""
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 255, (20, 1, 8, 8)).astype(np.uint8)
    masks = (rng.random((20, 1, 8, 8)) > 0.5).astype(np.uint8) * 255
    scans = rng.integers(-1000, 400, grey.shape).astype(np.int16)
    scans[0, 0, 0, 0] = -1000
    np.savez(tmp_path / "scans.npz", frames=scans, answers=masks)
    masks[:, :, 0] = 128
    np.savez(tmp_path / "masks.npz", frames=grey, answers=masks)
    np.save(tmp_path / "videos.npy", rng.integers(0, 255, (20, 40, 8, 8)).astype(np.uint8))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.splitlines()[0].strip()[9:60])
def test_the_error_is_that_of_the_command(block, folder, capsys, monkeypatch):
    if "--device cuda" in block and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    if "nowhere --download_timeout" in block:
        from urllib.error import URLError

        def none(*args, **options):
            raise URLError("no network")

        monkeypatch.setattr("torchvision.datasets.MNIST.download", none)
    for (script, *argv), expected in commands(block):
        monkeypatch.setattr("sys.argv", [script, *argv])
        if expected == "...":
            PROGRAMS[script](argv)
            capsys.readouterr()
            continue
        with pytest.raises(SystemExit) as stop:
            PROGRAMS[script](argv)
        assert stop.value.code == 2
        line = capsys.readouterr().err.strip().splitlines()[-1]
        pattern = ".*".join(map(re.escape, expected.split("...")))
        assert re.fullmatch(pattern, line), line
