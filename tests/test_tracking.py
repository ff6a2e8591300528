"""What Weights & Biases (offline) and TensorBoard hold after a run, read back from their files."""

import json
import os
import signal
import struct
import subprocess
import sys
import time

import pytest
import torch
import yaml
from conftest import ROOT, SMALL

import evaluate
import train
from config import TrackingSettings
from lab import checkpoint, tracking

EXACT = "--denoiser exact --digits embedded --num_sets 3 --num_steps 4 --device cpu".split()
BOTH = "--wandb offline --tensorboard true".split()
SIX = [*SMALL, *"--iterations 6 --save_every 4 --sample_every 3".split()]
# A program that does `do` after each line of a training's log that was told to the services.
HOOKED = """
import os, sys, psutil, train
from lab import tracking
told = tracking.Tracker.curve
def curve(self, values, step):
    told(self, values, step)
    do(self, step)
tracking.Tracker.curve = curve
"""


def python(code: str, *argv, **options) -> subprocess.CompletedProcess:
    """`python -c CODE ARGV...` in the repository, by a wandb of its own."""
    env = {key: value for key, value in os.environ.items() if key != "WANDB_SERVICE"}
    command = [sys.executable, "-c", code, *map(str, argv)]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, **options)


def records(folder):
    """The records of every offline run in a folder, oldest run first.

    A .wandb file is a LevelDB log: 7 bytes, then blocks of 32 KiB with pieces of records: checksum,
    length, and 1 whole, 2 first, 3 middle or 4 last.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    for path in sorted((folder / "wandb").glob("offline-run-*/*.wandb")):
        data, at, whole = path.read_bytes(), 7, b""
        while at < len(data):
            if (left := 32768 - at % 32768) < 7:
                at += left
                continue
            _, size, kind = struct.unpack_from("<IHB", data, at)
            whole += data[at + 7 : at + 7 + size]
            at += 7 + size
            if kind in (1, 4):
                yield Record.FromString(whole)
                whole = b""


def content(folder) -> dict:
    """{config, history: rows, summary, artifacts: {type: metadata}, ids, exits}

    wandb's own process writes the last records, at its leisure, after the run was left.
    """
    runs = len(list((folder / "wandb").glob("offline-run-*")))
    end = time.monotonic() + 30
    while sum(record.WhichOneof("record_type") == "exit" for record in records(folder)) < runs:
        assert time.monotonic() < end
        time.sleep(0.05)
    found = dict(config={}, history=[], summary={}, artifacts={}, ids=[], exits=[])
    items = lambda entries: {
        "/".join(entry.nested_key) or entry.key: json.loads(entry.value_json) for entry in entries
    }
    for record in records(folder):
        kind = record.WhichOneof("record_type")
        if kind == "run" and record.run.run_id not in found["ids"][-1:]:
            found["ids"].append(record.run.run_id)
        if kind == "run":
            found["config"] |= items(record.run.config.update)
        elif kind == "history":
            found["history"].append(items(record.history.item))
        elif kind == "summary":
            found["summary"] |= items(record.summary.update)
        elif kind == "artifact":
            found["artifacts"][record.artifact.type] = json.loads(
                record.artifact.metadata or "null"
            )
        elif kind == "exit":
            found["exits"].append(record.exit.exit_code)
    return found


def events(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder)).Reload()


def steps(folder) -> list[int]:
    return [event.step for event in events(folder).Scalars("loss")]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A training that both services track."""
    folder = tmp_path_factory.mktemp("tracked")
    train.main([*SIX, *BOTH, "--outdir", str(folder)])
    return folder


def log_of(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_training_is_held_by_wandb(trained):
    found, lines = content(trained), log_of(trained)
    settings = yaml.safe_load((trained / "config.yaml").read_text())
    assert settings["wandb"] == "offline" and settings["tensorboard"] is True
    assert {key: found["config"][key] for key in settings} == settings
    assert [{key: row[key] for key in lines[0]} for row in found["history"]] == lines
    drawn = [row for row in found["history"] if "samples/path" in row]
    pictures = {row["_step"]: row["samples/path"] for row in drawn}
    assert list(pictures) == [3, 6]
    for path in pictures.values():
        assert list((trained / "wandb").glob(f"offline-run-*/files/{path}"))
    metadata = found["artifacts"]["model"]
    assert metadata["iteration"] == 6 and metadata["settings"]["channels"] == [16]
    assert found["summary"]["loss"] == lines[-1]["loss"] and found["exits"] == [0]


def test_a_training_is_held_by_tensorboard(trained):
    found, lines = events(trained), log_of(trained)
    assert [event.value for event in found.Scalars("loss")] == pytest.approx(
        [line["loss"] for line in lines]
    )
    assert [picture.step for picture in found.Images("samples")] == [3, 6]
    (text,) = found.Tensors("config/text_summary")
    assert b"channels:\n- 16" in text.tensor_proto.string_val[0]
    assert any("hparams" in tag for tag in found.summary_metadata)


def test_tracking_does_not_change_a_training(trained, tmp_path):
    train.main([*SIX, "--outdir", str(tmp_path)])
    alone, tracked = (
        checkpoint.read_tensors(folder / "state.safetensors") for folder in (tmp_path, trained)
    )
    assert all(torch.equal(alone[key], tracked[key]) for key in alone)
    assert not (tmp_path / "wandb").exists() and not list(tmp_path.glob("events*"))


@pytest.mark.slow
def test_resuming_goes_on_with_the_same_run_and_tells_nothing_twice(tmp_path):
    """Killed after 7 updates of which 4 were saved: 5, 6 and 7 are done again, not told again."""
    argv = [*SMALL, "--iterations", "9", "--save_every", "4", *BOTH]
    code = HOOKED + (
        "def do(tracker, step):\n"
        "    if step == 7:\n"
        "        [service.close(1) for service in tracker.services]\n"  # so that all is on the disk
        "        os._exit(9)\n"
        "train.main(sys.argv[1:])"
    )
    assert python(code, *argv, "--outdir", tmp_path).returncode == 9
    train.main(["--resume", str(tmp_path)])
    found = content(tmp_path)
    assert len(set(found["ids"])) == 1 and found["exits"] == [1, 0]
    assert [row["iteration"] for row in found["history"]] == list(range(1, 10))
    assert steps(tmp_path) == list(range(1, 10))


def test_an_evaluation_is_held_by_both(tmp_path):
    evaluate.main([*EXACT, *BOTH, "--outdir", str(tmp_path)])
    result, found = json.loads((tmp_path / "metrics.json").read_text()), content(tmp_path)
    settings = yaml.safe_load((tmp_path / "config.yaml").read_text())
    # inf is a word there
    recorded = {key: value for key, value in settings.items() if not isinstance(value, float)}
    assert {key: found["config"][key] for key in recorded} == recorded
    low, high = result["modes_found"]["ci95"]
    assert [found["summary"][f"modes_found{end}"] for end in ("", " low", " high")] == [
        pytest.approx(value) for value in (result["modes_found"]["mean"], low, high)
    ]
    assert any("samples/path" in row for row in found["history"])
    accumulated = events(tmp_path)
    assert accumulated.Scalars("final/modes_found low")[0].value == pytest.approx(low)
    assert len(accumulated.Images("samples")) == 1
    # A result is the same, tracked or not, and is repeated without tracking.
    assert not {"wandb", "tensorboard"} & settings.keys()
    evaluate.main(["--config", str(tmp_path / "config.yaml"), "--outdir", str(tmp_path / "again")])
    again = json.loads((tmp_path / "again" / "metrics.json").read_text())
    assert again["modes_found"] == result["modes_found"] and again["settings"] == result["settings"]
    assert not (tmp_path / "again" / "wandb").exists()


@pytest.mark.slow
def test_an_experiment_is_held_as_one_table(tmp_path):
    argv = "--experiment e9 --num_sets 2 --num_steps 3 --device cpu --outdir".split()
    argv.append(str(tmp_path))
    evaluate.main(argv)
    times = lambda: {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").iterdir()}
    before = times()
    evaluate.main([*argv, *BOTH])
    assert times() == before  # none ran again
    found, results = content(tmp_path), json.loads((tmp_path / "results.json").read_text())
    (path,) = {row["cells/path"] for row in found["history"] if "cells/path" in row}
    (stored,) = (tmp_path / "wandb").glob(f"offline-run-*/files/{path}")
    table = json.loads(stored.read_text())
    rows = [dict(zip(table["columns"], values)) for values in table["data"]]
    assert len(rows) == len(results["rows"]) == 30
    for row, cell in zip(rows, results["rows"]):
        mean = cell["result"]["modes_found"]
        low, high = mean["ci95"]
        interval = {"modes_found": mean["mean"], "modes_found low": low, "modes_found high": high}
        assert cell["cell"].items() | interval.items() <= row.items()
    assert any("samples/path" in row for row in found["history"])
    accumulated = events(tmp_path)
    (text,) = accumulated.Tensors("cells/text_summary")
    assert b"| modes found |" in text.tensor_proto.string_val[0]
    assert len(accumulated.Images("samples")) == 1


@pytest.mark.slow
def test_libraries_are_imported_only_when_asked_for(tmp_path):
    code = (
        "import sys, train; train.main(sys.argv[1:])\n"
        "print('wandb' in sys.modules, 'tensorboard' in sys.modules)"
    )
    out = python(code, *SMALL, "--iterations", "1", "--outdir", tmp_path, check=True)
    assert out.stdout.splitlines()[-1] == "False False"


def test_only_the_first_process_tracks(tmp_path, monkeypatch):
    torchrun = dict(RANK="1", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT="1")
    for name, value in torchrun.items():
        monkeypatch.setenv(name, value)
    tracker = tracking.start(TrackingSettings("offline", True), tmp_path, {})
    assert tracker.services == [] and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "flags, library",
    [(["--wandb", "offline"], "wandb"), (["--tensorboard", "true"], "tensorboard")],
)
@pytest.mark.parametrize(
    "main, argv", [(train.main, SMALL), (evaluate.main, EXACT)], ids=["train", "evaluate"]
)
def test_a_library_that_is_missing_is_named(
    flags, library, main, argv, tmp_path, refused, monkeypatch
):
    for name in list(sys.modules):
        if name.split(".")[0] == library or name.startswith("torch.utils.tens"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    line = refused(main, [*argv, *flags, "--outdir", str(tmp_path)])
    assert line.endswith(f"{library} is not installed; run `pip install {library}`")


@pytest.mark.slow
def test_wandb_that_cannot_start_is_one_line(tmp_path):
    """Without a key, and without a folder to write to."""
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    argv = [*EXACT, "--wandb", "online", "--outdir", str(tmp_path / "run")]
    out = subprocess.run(
        [sys.executable, str(ROOT / "evaluate.py"), *argv],
        env=env,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert out.returncode == 2 and out.stdout == ""
    (line,) = out.stderr.strip().splitlines()
    assert "wandb: got 'online'" in line and "wandb login" in line
    assert not (tmp_path / "run" / "metrics.json").exists()


def test_a_service_that_fails_later_is_left_out(tmp_path, capsys):
    class Broken(tracking.TensorBoard):
        def curve(self, values, step):
            raise BrokenPipeError("gone")

    broken, whole = Broken(tmp_path / "a", {}, 0), tracking.TensorBoard(tmp_path / "b", {}, 0)
    with tracking.Tracker(broken, whole) as tracker:
        for step in (1, 2):
            tracker.curve(dict(loss=1.0), step)
    told = "WARNING: Broken failed (gone); continuing without it"
    assert capsys.readouterr().err.count(told) == 1
    assert steps(tmp_path / "b") == [1, 2]


@pytest.mark.slow
def test_a_training_outlives_the_process_that_tracks_it(tmp_path):
    """wandb's own process is killed under a training that goes on to its end."""
    code = HOOKED + (
        "def do(tracker, step):\n"
        "    if step == 3:\n"
        "        [child.kill() for child in psutil.Process().children(recursive=True)]\n"
        "train.main(sys.argv[1:])"
    )
    argv = [*SMALL, "--iterations", "100", "--wandb", "offline", "--outdir", tmp_path]
    out = python(code, *argv, timeout=120)
    assert out.returncode == 0 and "WARNING: WandB failed" in out.stderr
    assert checkpoint.read_metadata(tmp_path / "state.safetensors")["iteration"] == 100


@pytest.mark.slow
def test_a_training_that_is_stopped_ends_its_run_as_such(tmp_path):
    argv = [*SMALL, "--iterations", "100000", "--wandb", "offline", "--outdir", str(tmp_path)]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *argv], stderr=subprocess.PIPE, text=True
    )
    log = tmp_path / "metrics.jsonl"
    while not log.is_file() or not log.read_text():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143 and "--resume" in process.communicate()[1]
    assert content(tmp_path)["exits"] == [143]
