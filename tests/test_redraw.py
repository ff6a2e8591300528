"""Some particles of a run drawn again, repelled by those that are kept: evaluate.py --redraw."""

import shutil

import pytest
import torch
from scipy.stats import binomtest

import evaluate
from lab.files import sha256_of
from lab.metrics import wilson_interval
from lab.records import finished

EXACT = "--denoiser exact --digits embedded --device cpu --num_steps 8 --num_sets 60 --pg_factor 5"
KEPT = [0, 1, 2, 4, 5, 6, 7]


def run(outdir, *argv):
    """(the arrays of samples.npz, the record) of an evaluation."""
    evaluate.main([*map(str, argv), "--outdir", str(outdir)])
    return finished(str(outdir))


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """The folder of a guided run with the exact denoiser."""
    folder = tmp_path_factory.mktemp("first")
    run(folder, *EXACT.split())
    return folder


def missing_shown(before, after):
    """How many sets of seven different kept modes have the eighth as particle 3, and how many such
    sets there are."""
    hits = [
        len({*new.tolist()}) == 8
        for old, new in zip(before["modes"], after["modes"])
        if len({*old[KEPT].tolist()}) == 7
    ]
    return sum(hits), len(hits)


def test_what_is_kept_stays_and_what_is_drawn_again_shows_what_is_missing(first, tmp_path, capsys):
    before, _ = finished(str(first))
    after, record = run(tmp_path / "again", "--from_run", first, "--redraw", 3)
    assert torch.equal(after["samples"][:, KEPT], before["samples"][:, KEPT])
    hits, sets = missing_shown(before, after)
    assert sets > 40 and wilson_interval(hits, sets)[0] > 0.85
    assert f"drawn again: 3 of each set of {first}" in capsys.readouterr().out
    settings = record["settings"]
    assert settings["from_run"] == str(first) and settings["redraw"] == [3]
    assert settings["from_run_sha256"] == sha256_of(first / "samples.npz")
    assert record["network_calls"] == 15  # for each sample that was drawn


def test_without_guidance_it_shows_any_mode(first, tmp_path, capsys):
    """With a line that says so."""
    before, _ = finished(str(first))
    after, _ = run(tmp_path, "--from_run", first, "--redraw", 3, "--pg_factor", 0)
    assert binomtest(*missing_shown(before, after), 1 / 8).pvalue > 0.001
    assert "redraw: no guidance acts" in capsys.readouterr().err


def test_each_time_there_is_new_noise_and_the_same_command_gives_the_same(tiny_model, tmp_path):
    """From a network, whose samples never repeat."""
    network = ["--checkpoint", tiny_model / "model.safetensors", "--digits", "embedded"]
    network += "--device cpu --num_sets 3 --batch_size 4 --num_steps 4 --pg_factor 1".split()
    before, _ = run(tmp_path / "0", *network)
    once, _ = run(tmp_path / "1", "--from_run", tmp_path / "0", "--redraw", "1")
    twice, record = run(tmp_path / "2", "--from_run", tmp_path / "1", "--redraw", "1,3")
    again, _ = run(tmp_path / "again", "--config", tmp_path / "2" / "config.yaml")
    assert record["settings"]["redraws"] == 2
    assert torch.equal(again["samples"], twice["samples"])
    assert torch.equal(once["samples"][:, [0, 2, 3]], before["samples"][:, [0, 2, 3]])
    assert torch.equal(twice["samples"][:, [0, 2]], before["samples"][:, [0, 2]])
    drawn = [before["samples"][:, 1], before["samples"][:, 3], once["samples"][:, 1]]
    drawn += [twice["samples"][:, 1], twice["samples"][:, 3]]
    apart = torch.cdist(*[torch.stack(drawn, 1).flatten(2)] * 2)
    assert (apart + torch.eye(5)).min() > 1e-3


def test_points_in_the_plane_are_drawn_again_too(tmp_path):
    mixture = "--dataset mixture --denoiser exact --device cpu --num_sets 4 --num_steps 6".split()
    before, _ = run(tmp_path / "0", *mixture, "--pg_factor", 3)
    after, _ = run(tmp_path / "1", "--from_run", tmp_path / "0", "--redraw", "0,2")
    same = (before["samples"] == after["samples"]).flatten(2).all(-1)
    assert same.tolist() == 4 * [[number not in (0, 2) for number in range(8)]]


@pytest.mark.parametrize(
    "flags, line",
    {
        "": "redraw: got None; accepted: numbers of particles with from_run",
        "--redraw 8": "redraw: got [8]; accepted: different numbers from 0 to 7, and not all",
        "--redraw 3,3": "redraw: got [3, 3]; accepted: different",
        "--redraw 0,1,2,3,4,5,6,7": "redraw: got [0, 1, 2, 3, 4, 5, 6, 7]; accepted: different",
        "--redraw 3 --seed 1": "the same conditions",
        "--redraw 3 --batch_size 4": "accepted: a run with num_sets, batch_size",
        "--redraw 3 --sequential 2": "sequential: got 2; accepted: 1 with redraw",
        "--redraw 3 --medoids_of 2": "medoids_of: got 2; accepted: 1 with redraw",
        "--redraw 3 --pg_factor 0 --sampler edm --pool 2": "pool: got 2; accepted: 1 with redraw",
        "--redraw 3 --rollout 2": "rollout: got 2; accepted: 1 with redraw",
        "--redraw 3 --guidance joint": "guidance: got 'joint'; accepted: one with a memory",
        "--redraw 3 --experiment e5": "from_run: got",
    }.items(),
    ids=str,
)
def test_what_it_cannot_be_combined_with_is_refused(flags, line, first, refused, tmp_path):
    argv = ["--from_run", str(first), *flags.split(), "--outdir", str(tmp_path / "no")]
    assert line in refused(evaluate.main, argv)


def test_a_run_that_is_not_there_or_has_changed_is_refused(first, refused, tmp_path, capsys):
    assert "redraw: got [3]" in refused(evaluate.main, ["--redraw", "3"])
    missing = ["--from_run", str(tmp_path / "none"), "--redraw", "3"]
    assert "none/config.yaml was not found" in refused(evaluate.main, missing)
    copy, again = tmp_path / "copy", tmp_path / "again"
    shutil.copytree(first, copy)
    run(again, "--from_run", copy, "--redraw", 3)
    shutil.copy(again / "samples.npz", copy)
    capsys.readouterr()
    repeated = ["--config", str(again / "config.yaml"), "--outdir", str(tmp_path / "other")]
    assert "from_run_sha256: got" in refused(evaluate.main, repeated)
