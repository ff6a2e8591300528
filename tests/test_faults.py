"""What can go wrong while a training or an experiment runs, with real processes and real files."""

import json
import random
import shutil
import signal
import time

import pytest
import torch
from conftest import SMALL, draw_nothing
from programs import Program

import evaluate
import train
from lab import checkpoint

pytestmark = pytest.mark.usefixtures("undrawn")


def logged(folder) -> int:
    """Lines of a training's log."""
    path = folder / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.is_file() else 0


def wait_for(condition, process, seconds=120) -> None:
    end = time.monotonic() + seconds
    while not condition() and process.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.005)


def state_of(folder) -> dict[str, torch.Tensor]:
    return checkpoint.read_tensors(folder / "state.safetensors")


def assert_same_training(one, two) -> None:
    torch.testing.assert_close(state_of(one), state_of(two), rtol=0, atol=0)
    logs = [(folder / "metrics.jsonl").read_text().splitlines() for folder in (one, two)]
    a, b = ([json.loads(line) | dict(images_per_second=0) for line in log] for log in logs)
    assert a == b


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(flags, the folder of an uninterrupted run)"""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the processes that are compared with it
    flags = [*SMALL, "--iterations", "100", "--save_every", "3"]
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        draw_nothing(patch)
        train.main([*flags, "--outdir", str(folder)])
    yield flags, folder
    torch.set_num_threads(threads)


@pytest.mark.slow
def test_a_training_killed_twenty_times_ends_with_the_same_weights(whole, tmp_path):
    flags, expected = whole
    folder, generator, lost = tmp_path / "run", random.Random(0), []
    for _ in range(20):
        resume = ["--resume", folder] if (folder / "config.yaml").exists() else []
        before, more = logged(folder), generator.randrange(7)
        process = Program("train.py", *flags, "--outdir", folder, *resume)
        wait_for(lambda: logged(folder) >= before + more, process)
        time.sleep(generator.random() * 0.05)
        process.kill()
        process.communicate()
        done = logged(folder)
        state = folder / "state.safetensors"
        saved = checkpoint.read_metadata(state)["iteration"] if state.exists() else 0
        lost.append(done - saved)
    assert max(lost) <= 4  # three updates between checkpoints, and the one in flight
    assert Program("train.py", *flags, "--outdir", folder, "--resume", folder).wait() == 0
    assert_same_training(expected, folder)


@pytest.mark.slow
def test_a_training_that_is_told_to_stop_saves_first(whole, tmp_path):
    flags, expected = whole
    folder = tmp_path / "run"
    for number, resume in ((signal.SIGTERM, []), (signal.SIGINT, ["--resume", folder])):
        before = logged(folder)
        process = Program("train.py", *flags, "--outdir", folder, *resume)
        wait_for(lambda: logged(folder) >= before + 3, process)
        process.send_signal(number)
        _, err = process.communicate()
        assert process.returncode == 128 + number
        line = err.strip().splitlines()[-1]
        assert number.name in line and f"--resume {folder}" in line
        saved = checkpoint.read_metadata(folder / "state.safetensors")["iteration"]
        assert saved == logged(folder) >= before + 3 and f"after {saved} of 100" in line
    train.main(["--resume", str(folder)])
    assert_same_training(expected, folder)


@pytest.mark.slow
def test_an_experiment_that_is_killed_keeps_its_finished_cells(tmp_path):
    argv = ["--experiment", "e9", "--num_sets", "2", "--num_steps", "8", "--outdir", tmp_path]
    cells = lambda: {path: path.stat().st_mtime_ns for path in tmp_path.glob("cells/*.json")}
    before, generator = {}, random.Random(0)
    for _ in range(3):
        process = Program("evaluate.py", *argv)
        more = len(before) + generator.randrange(1, 6)
        wait_for(lambda: len(cells()) >= more, process)
        process.kill()
        process.communicate()
        assert before.items() <= cells().items() and len(cells()) >= more
        before = cells()
    assert not (tmp_path / "results.json").exists()
    assert Program("evaluate.py", *argv).wait() == 0
    assert before.items() <= cells().items()
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert len(rows) == len(cells()) > len(before)


def damaged(path, how: str, generator: random.Random) -> None:
    content = bytearray(path.read_bytes())
    if how == "truncated":
        content = content[: generator.randrange(len(content))]
    elif how == "flipped":
        content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
    elif how == "empty":
        content = bytearray()
    path.unlink()  # not through the link that is the previous state
    if how == "a folder":
        path.mkdir()
    else:
        path.write_bytes(content)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The folder of a short training, with its last state and the one before."""
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.MonkeyPatch.context() as patch:
        draw_nothing(patch)
        train.main([*SMALL, "--iterations", "4", "--save_every", "2", "--outdir", str(folder)])
    return folder


@pytest.mark.parametrize(
    "how, times",
    [
        *(("truncated", 3), ("flipped", 5), ("empty", 1), ("a folder", 1)),
        pytest.param("truncated", 25, marks=pytest.mark.slow),
        pytest.param("flipped", 50, marks=pytest.mark.slow),
    ],
)
def test_a_damaged_checkpoint_is_never_used(how, times, stopped, tmp_path, capsys):
    """One line that names the file; resuming falls back on the state before."""
    folder = stopped
    generator = random.Random(0)
    for turn in range(times):
        run = tmp_path / str(turn)
        run.mkdir()
        for name in ("state.safetensors", "state-previous.safetensors", "config.yaml"):
            shutil.copy(folder / name, run)
        damaged(run / "state.safetensors", how, generator)
        assert train.last_state(run) == run / "state-previous.safetensors"
        err = capsys.readouterr().err.strip().splitlines()
        assert len(err) == 1
        assert str(run / "state.safetensors") in err[0] and "continuing from" in err[0]
        damaged(run / "state-previous.safetensors", how, generator)
        with pytest.raises(train.SettingError, match="state-previous"):
            train.last_state(run)


def test_a_checkpoint_of_another_kind_is_refused(stopped, tmp_path, refused):
    folder = stopped
    tensors, metadata = state_of(folder), checkpoint.read_metadata(folder / "state.safetensors")
    other = metadata | dict(settings=metadata["settings"] | dict(channels=[8]))
    checkpoint.save_tensors(tmp_path / "state.safetensors", tensors, other)
    assert "resume: got" in refused(train.main, ["--resume", str(tmp_path)])
    from safetensors.torch import save_file

    save_file(tensors, tmp_path / "state.safetensors", {"format": "2", "metadata": "{}"})
    assert "format '2'; accepted: '1'" in refused(train.main, ["--resume", str(tmp_path)])


@pytest.mark.slow
def test_a_full_disk_leaves_the_checkpoint_as_it_was(tmp_path):
    """A limit on the size of files stands in for a disk that is full."""
    flags = [*SMALL, "--iterations", "8", "--save_every", "4"]
    train.main([*flags, "--iterations", "4", "--outdir", str(tmp_path)])
    before = (tmp_path / "state.safetensors").read_bytes()
    limit = len(before) // 2
    process = Program("train.py", "--iterations", "8", "--resume", tmp_path, largest_file=limit)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "cannot be written" in err.splitlines()[-1] and "is as it was" in err.splitlines()[-1]
    assert (tmp_path / "state.safetensors").read_bytes() == before
    assert not list(tmp_path.glob("*.tmp"))
    train.main(["--iterations", "8", "--resume", str(tmp_path)])
    assert checkpoint.read_metadata(tmp_path / "state.safetensors")["iteration"] == 8


@pytest.mark.slow
def test_two_runs_never_share_a_folder(tmp_path, refused, capsys):
    flags = [*SMALL, "--iterations", "100000", "--outdir", tmp_path / "run"]
    process = Program("train.py", *flags)
    try:
        wait_for(lambda: logged(tmp_path / "run") >= 1, process)
        assert "no other run" in refused(train.main, [str(flag) for flag in flags])
        assert "this very run" in refused(
            evaluate.main,
            ["--digits", "embedded", "--denoiser", "exact", "--outdir", str(tmp_path / "run")],
        )
    finally:
        process.kill()
        process.communicate()
    train.main([*SMALL, "--iterations", "1", "--outdir", str(tmp_path / "done")])
    capsys.readouterr()
    assert "--resume" in refused(train.main, [*SMALL, "--outdir", str(tmp_path / "done")])


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_one_gradient_that_is_not_finite_is_left_out(optimizer, tmp_path):
    argv = [*SMALL, "--iterations", "5", "--optimizer", optimizer, "--weight_decay", "0.1"]
    training, _ = train.setup([*argv, "--outdir", str(tmp_path)])
    draw = training.batch
    training.batch = lambda: tuple(
        t * float("nan") if training.iteration == 2 and t.is_floating_point() else t for t in draw()
    )
    before, finite = None, []
    for step in training:
        weights = [p.clone() for p in training.net.parameters()]
        changed = before is None or any(not torch.equal(a, b) for a, b in zip(weights, before))
        finite.append((bool(step["loss"].isfinite()), changed))
        before = weights
    assert finite == [(True, True), (True, True), (False, False), (True, True), (True, True)]


def test_a_training_that_diverges_stops_and_says_so(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        flags = "--iterations 100 --lr 1e30 --save_every 1".split()
        train.main([*SMALL, *flags, "--outdir", str(tmp_path)])
    assert stop.value.code == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "no finite gradient in 10 updates" in line and "is as it was" in line
