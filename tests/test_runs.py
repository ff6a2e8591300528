"""A run is what made it, what it has done is saved, and it replaces nothing of another run."""

import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT, SMALL, draw_nothing, slow_but
from PIL import Image
from programs import Program

import evaluate
import train
import visualize
from config import PATH, EvaluationSettings, TrainingSettings, declared
from lab import assemble, chunks, command_line, experiments, records
from sampler import SetSampler

EXACT = "--denoiser exact --digits embedded --device cpu --num_sets 2 --num_steps 2".split()


def strict(path: Path):
    """What a file of JSON says; a NaN or an infinity in it is an error."""

    def refuse(token):
        raise AssertionError(f"{token} in {path}")

    return json.loads(path.read_text(), parse_constant=refuse)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture
def refused(capsys):
    """refused(main, argv): the last line of a command line that turns bad input down."""

    def call(main, argv):
        with pytest.raises(SystemExit) as stop:
            main(argv)
        captured = capsys.readouterr()
        assert stop.value.code == 2 and captured.out == ""
        return captured.err.strip().splitlines()[-1]  # others may tell of a download

    return call


@pytest.fixture
def sampled(monkeypatch):
    """The numbers of the sets that this process samples."""
    numbers: list[int] = []
    sample = SetSampler.sample

    def noted(self, sets, callback=None):
        numbers.extend(sets.tolist())
        return sample(self, sets, callback)

    monkeypatch.setattr(SetSampler, "sample", noted)
    return numbers


# ---------------------------------------------------------------- what is done is saved

SETS = 8


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """A network of frames of 8 x 8 px."""
    folder = tmp_path_factory.mktemp("frames")
    frames = np.random.default_rng(0).integers(0, 256, (10, 2, 8, 8), dtype=np.uint8)
    np.savez(folder / "frames.npz", frames=frames)
    argv = [*SMALL[2:], "--frames", str(folder / "frames.npz"), "--iterations", "2"]
    with pytest.MonkeyPatch.context() as patch:
        draw_nothing(patch)
        train.main([*argv, "--outdir", str(folder / "model")])
    return folder / "model" / "model.safetensors"


@pytest.fixture
def predicting(network, tmp_path, undrawn):
    """The flags of predictions for pictures, of which each is a chunk, and their folder."""
    (tmp_path / "new").mkdir()
    frames = np.random.default_rng(0).integers(0, 256, (SETS, 8, 8), dtype=np.uint8)
    for i, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / "new" / f"{i}.png")
    flags = ["--checkpoint", str(network), "--frames", str(tmp_path / "new"), "--answers", "none"]
    flags += ["--batch_size", "256", "--num_steps", "30", "--sigma_min", "0.002"]
    return [*flags, "--device", "cpu", "--outdir", str(tmp_path / "out")], tmp_path / "out"


def pictures_of(folder: Path) -> dict[str, int]:
    """How many predictions there are, by the name of the picture."""
    folders = (folder / "predictions").glob("*")
    return {each.name: len(list(each.glob("particle_*"))) for each in folders}


def wait_for(condition, *processes) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end and all(each.poll() is None for each in processes)
        time.sleep(0.01)


@pytest.mark.parametrize("number", slow_but([signal.SIGTERM], [signal.SIGTERM, signal.SIGKILL]))
def test_a_run_that_is_stopped_loses_a_chunk_at_most_and_goes_on(number, predicting, sampled):
    flags, out = predicting
    process = Program("evaluate.py", *flags)
    wait_for(lambda: len(list(out.glob("sets/*/*.npz"))) >= 3, process)
    process.send_signal(number)
    _, err = process.communicate()
    done = len(list(out.glob("sets/*/*.npz")))
    assert 3 <= done < SETS
    written = pictures_of(out)
    assert done <= sum(each == 256 for each in written.values()) <= len(written) <= done + 1
    if number == signal.SIGTERM:
        assert process.returncode == 143
        line = err.strip().splitlines()[-1]
        assert f"{done} finished sets are kept in {out}, --config {out}/config.yaml" in line
        flags = ["--config", f"{out}/config.yaml", "--outdir", str(out)]  # as it says
    evaluate.main(flags)
    assert sampled == list(range(done, SETS))
    assert set(pictures_of(out).values()) == {256} and len(pictures_of(out)) == SETS
    assert not (out / "sets").exists()
    once = assemble.evaluation([*predicting[0]])
    arrays, result = records.finished(str(out))
    expected, _, other = once.run(progress=False)
    assert torch.equal(arrays["samples"], expected)
    assert result["network_calls"] == other["network_calls"]


def test_a_full_disk_loses_nothing_that_is_sampled(predicting, sampled):
    """A limit on the size of files stands in for a disk that is full."""
    flags, out = predicting
    process = Program("evaluate.py", *flags, largest_file=150_000)  # one chunk, not all sets
    _, err = process.communicate()
    assert process.returncode == 1 and "File too large" in err
    assert len(list(out.glob("sets/*/*.npz"))) == SETS and not list(out.rglob("*.tmp"))
    evaluate.main(flags)
    assert sampled == [] and (out / "metrics.json").is_file()


@pytest.mark.slow
def test_a_process_that_dies_costs_its_own_chunk_alone(predicting, sampled):
    """The other one has written its sets before it hears of that; one process goes on."""
    flags, out = predicting
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    both = os.environ | dict(WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    command = [sys.executable, str(ROOT / "evaluate.py"), *flags]
    running = [
        subprocess.Popen(command, env=both | dict(RANK=rank), stderr=subprocess.PIPE, text=True)
        for rank in "01"
    ]
    wait_for(lambda: len(list(out.glob("sets/*/*.npz"))) >= 3, *running)
    running[1].kill()
    err = running[0].communicate(timeout=120)[1].strip().splitlines()[-1]
    running[1].communicate()
    assert running[0].returncode == 1, err
    assert "another process of this run has ended" in err and "finished sets are kept" in err
    kept = {int(path.stem) for path in out.glob("sets/*/*.npz")}
    assert kept >= set(range(0, SETS, 2))
    evaluate.main(flags)
    assert set(sampled) == set(range(SETS)) - kept and len(pictures_of(out)) == SETS


def test_a_broken_chunk_is_sampled_again(predicting, sampled):
    flags, out = predicting
    key = records.key_of(assemble.evaluation(flags).record())
    kept = chunks.Kept(out, key)
    kept.folder.mkdir(parents=True)
    (kept.folder / "0000000.npz").write_bytes(b"PK")
    evaluate.main(flags)
    assert sampled == list(range(SETS))


@pytest.mark.parametrize("what", ["evaluation", "training", "experiment"])
def test_pictures_that_latex_cannot_draw_cost_a_warning(what, tmp_path, capsys):
    if shutil.which("latex"):
        pytest.skip("LaTeX is installed")
    argv, promised = dict(
        evaluation=([*EXACT], "metrics.json"),
        training=([*SMALL, "--iterations", "3"], "model.safetensors"),
        experiment=(["--experiment", "e9", *EXACT[2:], "--denoiser", "exact"], "results.json"),
    )[what]
    main = train.main if what == "training" else evaluate.main
    with matplotlib.rc_context({"text.usetex": True}):
        main([*argv, "--outdir", str(tmp_path)])
    captured = capsys.readouterr()
    assert "cannot be drawn (" in captured.err and captured.out.strip()
    assert (tmp_path / promised).is_file()


# ---------------------------------------------------------------- processes and folders


@pytest.mark.parametrize(
    "env, missing",
    [
        (dict(RANK="1"), "no WORLD_SIZE and no MASTER_ADDR"),
        (dict(RANK="0", WORLD_SIZE="2"), "no MASTER_ADDR and no MASTER_PORT"),
        (dict(WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT="1"), "no RANK"),
        (dict(RANK="1", WORLD_SIZE="1"), "WORLD_SIZE is '1'"),
        (dict(RANK="x", WORLD_SIZE="1"), "WORLD_SIZE is '1'"),
    ],
)
@pytest.mark.parametrize("script", ["evaluate.py", "train.py"])
def test_a_part_of_what_torchrun_sets_is_refused(script, env, missing, tmp_path):
    argv = [*SMALL, "--iterations", "1"] if script == "train.py" else EXACT
    process = Program(script, *argv, "--outdir", tmp_path / "run", env=env)
    out, err = process.communicate()
    assert process.returncode == 2 and out == ""
    (line,) = err.strip().splitlines()
    assert line.startswith(f"{script}: error: RANK: got ") and missing in line
    assert not (tmp_path / "run").exists()


def test_runs_of_one_second_have_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command_line.time, "strftime", lambda form: "now")
    folders = [command_line.run_folder(None, "a") for _ in range(4)]
    assert [each.name for each in folders] == ["a-now", "a-now-2", "a-now-3", "a-now-4"]
    assert command_line.run_folder("a", "") == command_line.run_folder("a", "")


def test_the_home_folder_may_be_named_in_every_path(tmp_path, monkeypatch, undrawn):
    monkeypatch.setenv("HOME", str(tmp_path))
    groups = {*EvaluationSettings.groups(), *TrainingSettings.groups(), visualize.Output}
    paths = [each for group in groups for each in declared(group) if each.check is PATH]
    names = {"frames", "data_root", "checkpoint", "outdir", "resume", "out", "from_run", "teacher"}
    assert {each.name for each in paths} == names
    assert {each.read("~/x") for each in paths} == {str(tmp_path / "x")}
    (tmp_path / "c.yaml").write_text("outdir: ~/x\n")
    evaluate.main([*EXACT, "--config", str(tmp_path / "c.yaml")])
    assert (tmp_path / "x" / "metrics.json").is_file()


def test_a_picture_of_several_runs_replaces_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(3):
        visualize.main(["schedule"])
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["schedule-2.png", "schedule-3.png", "schedule.png"]
    before = contents(tmp_path)
    visualize.main(["schedule", "--rho", "5", "--out", "schedule.png"])  # said so
    assert contents(tmp_path)["schedule.png"] != before["schedule.png"]


# ---------------------------------------------------------------- a run is what made it


def mnist(root: Path, seed: int) -> str:
    """A folder with a little MNIST of noise, as --data_root takes it."""
    generator = np.random.default_rng(seed)
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    for split in ("train", "t10k"):
        images = generator.integers(0, 256, (40, 28, 28), dtype=np.uint8)
        labels = (np.arange(40) % 10).astype(np.uint8)
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            head = struct.pack(f">{1 + array.ndim}I", 2048 + array.ndim, *array.shape)
            (raw / f"{split}-{name}-ubyte").write_bytes(head + array.tobytes())
    return str(root)


@pytest.fixture(autouse=True)
def forgotten():
    """Digits that were read before may lie elsewhere now."""
    import data_loader

    yield
    data_loader._mnist.cache_clear()
    data_loader.digits_sha256.cache_clear()


def forget() -> None:
    import data_loader

    data_loader._mnist.cache_clear()
    data_loader.digits_sha256.cache_clear()


NETWORK = "--num_sets 2 --batch_size 2 --num_steps 2 --device cpu".split()


@pytest.fixture
def made(tmp_path, undrawn, capsys):
    """A training and an evaluation of its network, on a MNIST: (their folders, its root)."""
    root = mnist(tmp_path / "data", 0)
    model, run = tmp_path / "model", tmp_path / "run"
    digits = ["--digits", "auto", "--data_root", root]
    train.main([*SMALL[2:], *digits, "--iterations", "2", "--outdir", str(model)])
    network = ["--checkpoint", str(model / "model.safetensors"), *NETWORK, *digits]
    evaluate.main([*network, "--outdir", str(run)])
    capsys.readouterr()
    return model, run, root


def test_a_run_records_what_made_it(made):
    model, run, _ = made
    result = strict(run / "metrics.json")
    config = yaml.safe_load((run / "config.yaml").read_text())
    trained = yaml.safe_load((model / "config.yaml").read_text())
    assert config == result["settings"]
    assert (config["digits"], trained["digits"]) == ("mnist", "mnist")
    assert len(config["digits_sha256"]) == 64
    assert config["digits_sha256"] == trained["digits_sha256"] == result["digits_sha256"]
    assert config["checkpoint_sha256"] == result["checkpoint_sha256"]
    assert config["samples_version"] == trained["samples_version"] == result["version"]
    assert config["frames_sha256"] is None


def resumed(model, run, root, patch):
    train.main(["--resume", str(model), "--iterations", "3"])


def other_mnist(model, run, root, patch):
    mnist(Path(root), 1)
    forget()


def gone_mnist(model, run, root, patch):
    shutil.rmtree(root)
    forget()
    patch.setattr("torchvision.datasets.MNIST.mirrors", [])


def other_version(model, run, root, patch):
    patch.setattr(records, "SAMPLES_VERSION", 99)


CHANGES = dict(
    checkpoint_sha256=resumed,
    digits_sha256=other_mnist,
    digits=gone_mnist,
    samples_version=other_version,
)


@pytest.mark.parametrize("key", CHANGES)
def test_another_checkpoint_other_digits_and_another_version_are_refused(
    key, made, tmp_path, refused, capsys, monkeypatch
):
    model, run, root = made
    CHANGES[key](model, run, root, monkeypatch)
    before = contents(run)
    capsys.readouterr()
    config = ["--config", str(run / "config.yaml")]
    for argv in (config, [*config, "--outdir", str(run)]):
        assert f"error: {key}: " in refused(evaluate.main, argv)
    line = refused(visualize.main, ["trajectory", str(run)])
    assert f"error: {key}: " in line
    if key != "checkpoint_sha256":  # which is this training's own
        assert f"error: {key}: " in refused(train.main, ["--resume", str(model)])
    if key != "digits":
        # Typed again it is another run, which has no place in this folder, and one in another.
        network = ["--checkpoint", str(model / "model.safetensors"), *NETWORK]
        again = [*network, "--digits", "auto", "--data_root", root]
        line = refused(evaluate.main, [*again, "--outdir", str(run)])
        assert "outdir: got" in line and f"config.yaml there says otherwise ({key}: " in line
        evaluate.main([*config, f"--{key}", "null", "--outdir", str(tmp_path / "new")])
    assert contents(run) == before


def test_settings_without_effect_make_no_other_run(made, tmp_path, monkeypatch):
    model, run, root = made
    shutil.move(root, tmp_path / "moved")
    shutil.copy(model / "model.safetensors", tmp_path / "copy.safetensors")
    forget()
    before = np.load(run / "samples.npz")["samples"]
    config = ["--config", str(run / "config.yaml"), "--outdir", str(run), "--device", "auto"]
    config += ["--data_root", str(tmp_path / "moved"), "--download_timeout", "3"]
    evaluate.main([*config, "--tensorboard"])
    shutil.rmtree(model)
    evaluate.main([*config, "--checkpoint", str(tmp_path / "copy.safetensors")])
    assert (np.load(run / "samples.npz")["samples"] == before).all()


def test_a_training_keeps_the_digits_that_it_began_with(tmp_path, undrawn, refused, capsys):
    """They are those that were found, wherever others are found later."""
    root, model = tmp_path / "data", tmp_path / "model"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torchvision.datasets.MNIST.mirrors", [])
        digits = ["--digits", "auto", "--data_root", str(root)]
        train.main([*SMALL[2:], *digits, "--iterations", "2", "--outdir", str(model)])
    mnist(root, 0)
    capsys.readouterr()
    line = refused(train.main, ["--resume", str(model), "--digits", "mnist"])
    assert "digits_sha256: got" in line and "that of mnist here and now" in line
    train.main(["--resume", str(model), "--iterations", "3"])
    assert "digits: embedded" in capsys.readouterr().err


def test_other_frames_of_the_same_name_are_refused(network, tmp_path, undrawn, refused, capsys):
    frames = np.random.default_rng(0).integers(0, 256, (10, 2, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "frames.npz", frames=frames)
    flags = ["--checkpoint", str(network), "--frames", str(tmp_path / "frames.npz"), *NETWORK]
    evaluate.main([*flags, "--outdir", str(tmp_path / "run")])
    before = contents(tmp_path / "run")
    np.savez(tmp_path / "frames.npz", frames=frames[::-1])
    capsys.readouterr()
    config = ["--config", str(tmp_path / "run" / "config.yaml")]
    assert "error: frames_sha256: got" in refused(evaluate.main, config)
    line = refused(evaluate.main, [*flags, "--outdir", str(tmp_path / "run")])
    assert "config.yaml there says otherwise (frames_sha256: " in line
    assert contents(tmp_path / "run") == before
    evaluate.main([*config, "--frames", str(tmp_path / "frames.npz"), "--outdir", str(tmp_path)])


@pytest.mark.parametrize("other", ["evaluation", "training"])
def test_a_training_replaces_nothing_of_another_run(other, tmp_path, undrawn, refused, capsys):
    argv = [*SMALL, "--iterations", "2", "--outdir", str(tmp_path)]
    if other == "evaluation":
        evaluate.main([*EXACT, "--outdir", str(tmp_path)])
    else:
        training, outdir = train.setup([*argv, "--lr", "0.1"])
        train.begin(training, outdir)  # and killed before its first checkpoint
    before = contents(tmp_path)
    capsys.readouterr()
    assert "config.yaml there says otherwise" in refused(train.main, argv)
    assert contents(tmp_path) == before


# ---------------------------------------------------------------- experiments


@pytest.fixture
def small(made, tmp_path, monkeypatch):
    """The flags of an experiment of two cells with the training's network, and its folder."""
    model, _, root = made
    settings = dict(num_sets=2, num_steps=2, batch_size=2, pg_kernel="rbf")
    settings |= dict(checkpoint=str(model / "model.safetensors"))
    recipe = dict(title="Small", figure="heatmap", settings=settings)
    recipe["grid"] = dict(seed=[0, 1], s_min=[0.0])
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(recipe))
    monkeypatch.setattr(experiments, "RECIPES", tmp_path)
    out = tmp_path / "experiment"
    return ["--experiment", "small", "--data_root", root, "--outdir", str(out)], out


def test_a_cell_is_made_again_if_it_is_broken_and_only_then(small, capsys, sampled):
    argv, out = small
    evaluate.main(argv)
    assert strict(out / "results.json") and len(sampled) == 4
    evaluate.main([*argv, "--device", "cpu", "--download_timeout", "2"])
    assert len(sampled) == 4
    cells = sorted((out / "cells").iterdir())
    for content in ("", '{"a": '):
        cells[0].write_text(content)
        capsys.readouterr()
        evaluate.main(argv)
        err = capsys.readouterr().err
        assert cells[0].name in err and "made again" in err
        assert strict(cells[0])["num_sets"] == 2
    assert len(sampled) == 8


def test_frames_that_are_understood_otherwise_are_other_cells(tmp_path):
    """What is said beside them changes none of their numbers, but what these mean."""
    frames = np.random.default_rng(0).integers(0, 256, (10, 2, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "frames.npz", frames=frames)

    def cell():
        settings, path = assemble.complete(
            dict(denoiser="exact", frames=str(tmp_path / "frames.npz"), num_sets=2)
        )
        known, _ = assemble.found(settings, path)
        one = experiments.cell_of(settings, path, tmp_path)
        assert known.world.data and experiments.cell_of(known, path, tmp_path) == one
        return one

    first = cell()
    (tmp_path / "frames.yaml").write_text("range: [0, 300]\n")
    assert cell() != first


@pytest.mark.parametrize("key", CHANGES)
def test_cells_of_other_checkpoints_digits_or_code_are_no_cells_of_this_experiment(
    key, small, made, refused, capsys, monkeypatch, tmp_path
):
    argv, out = small
    argv += ["--digits", "mnist"]
    evaluate.main(argv)
    before = contents(out)
    CHANGES[key](*made, monkeypatch)
    capsys.readouterr()
    line = refused(evaluate.main, argv)
    assert contents(out) == before
    assert f"{key}: " in line
    if key != "digits":
        assert "outdir: got" in line
        (out / "results.json").unlink()  # then every cell is made anew
        evaluate.main(argv)
        assert len(list((out / "cells").iterdir())) == 4
