"""The command lines as programs: help, configurations, exit codes, output."""

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time

import pytest
import yaml
from conftest import ROOT
from programs import Program

import evaluate
import train
import visualize
from config import DigitSettings, TrainingSettings, WorldSettings
from examples.blobs import BlobSettings
from examples.lidc import LidcSettings
from examples.shapes import ShapeSettings
from lab import assemble
from lab.command_line import as_flags, make_parser, without_flags
from lab.judge import JudgeSettings
from lab.train_classifier import ClassifierSettings
from lab.train_classifier import main as classify

COLOUR = re.compile("\x1b\\[[0-9;]*m")
SCRIPTS = ["train.py", "evaluate.py", "visualize.py"]
EXACT = "--denoiser exact --digits embedded --num_sets 2 --num_steps 4 --device cpu".split()


def printed(capsys, main, argv) -> str:
    """What a command line prints where it ends by itself, as with --print_config."""
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 0
    return capsys.readouterr().out


# ---------------------------------------------------------------- help


@pytest.mark.parametrize(
    "main, argv",
    [
        (train.main, []),
        (evaluate.main, []),
        *((visualize.main, [command]) for command in visualize.COMMANDS),
    ],
)
def test_help_says_the_default_of_every_setting_in_words(main, argv, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "10000")
    text = printed(capsys, main, [*argv, "--help_all"])
    settings = re.findall(r"^  --(?!config|print_|help_)(\w+) *\n? {2,}(.*)$", text, flags=re.M)
    assert settings and all(re.search(r"\w.* \(.*default: .+\)$", said) for _, said in settings)
    assert not re.search(r"Optional|Literal|Annotated|<class", text)
    often = printed(capsys, main, [*argv, "--help"])
    assert set(often.split()) <= set(text.split()) | {"more;"}
    if main is evaluate.main:
        assert "particles in a set (a whole number from 1 to 1e9; default: 8)" in text
        assert "(conditional, unconditional, or null; default: null)" in text
        for rare in ("--cads_scale", "cads, dispersion,"):
            assert rare in text and rare not in often


@pytest.mark.parametrize("script", SCRIPTS)
def test_command_lines_can_be_run_as_they_are(script):
    assert os.access(ROOT / script, os.X_OK) and (ROOT / script).read_text().startswith(
        "#!/usr/bin/env python3\n"
    )


# ---------------------------------------------------------------- configurations


@pytest.mark.parametrize(
    "main, parse, argv",
    [
        (evaluate.main, assemble.parse, "--denoiser exact --pg_factor 1.7 --p 0.5"),
        (evaluate.main, assemble.parse, "--task unconditional"),
        (evaluate.main, assemble.parse, "--dataset horizontal --p 0.9"),
        (evaluate.main, assemble.parse, "--denoiser exact --dataset mixture"),
        (evaluate.main, assemble.parse, "--dataset free"),
        (train.main, train.parse, "--config CODE/configs/circle_jumping_small.yaml --lr 0.001"),
        (train.main, train.parse, "--resume TRAINING --iterations 40"),
    ],
)
def test_a_printed_configuration_is_the_same_run(main, parse, argv, tiny_model, tmp_path, capsys):
    """With the defaults that follow from the task, the checkpoint or the training."""
    argv = argv.replace("CODE", str(ROOT)).replace("TRAINING", str(tiny_model)).split()
    (tmp_path / "c.yaml").write_text(printed(capsys, main, [*argv, "--print_config"]))
    assert parse(["--config", str(tmp_path / "c.yaml")]) == parse(argv)


def test_a_printed_configuration_is_the_same_picture(tmp_path, capsys):
    argv = ["schedule", "--rho", "[2,5]"]
    (tmp_path / "c.yaml").write_text(printed(capsys, visualize.main, [*argv, "--print_config"]))
    again = visualize.parse(["schedule", "--config", str(tmp_path / "c.yaml")])[1]
    assert again.rho == visualize.parse(argv)[1].rho


def test_a_configuration_describes_one_evaluation(tmp_path, refused):
    (tmp_path / "c.yaml").write_text("experiment: e9\n")
    assert "experiment: got 'e9'" in refused(evaluate.main, ["--config", str(tmp_path / "c.yaml")])


# ---------------------------------------------------------------- what may be typed

PARSERS = {
    "evaluate": assemble.evaluation_parser(),
    "train": make_parser(*TrainingSettings.groups(), description=""),
    "train_classifier": make_parser(ClassifierSettings, DigitSettings, description=""),
    "judge": make_parser(JudgeSettings, DigitSettings, description=""),
    "schedule": make_parser(visualize.Schedules, description=""),
    "dataset": make_parser(WorldSettings, DigitSettings, visualize.Rows, description=""),
    "blobs": make_parser(BlobSettings, description=""),
    "shapes": make_parser(ShapeSettings, description=""),
    "lidc": make_parser(LidcSettings, description=""),
}
every_parser = pytest.mark.parametrize("parser", PARSERS.values(), ids=PARSERS)


@pytest.mark.parametrize("joined", [False, True], ids=["--config FILE", "--config=FILE"])
@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize(
    "name, flags",
    [
        ("evaluate", dict(num_steps=7, seed=5)),
        ("train", dict(iterations=7, seed=5)),
        ("train_classifier", dict(epochs=7, seed=5)),
        ("schedule", dict(num_steps=7, p_std=0.5)),
        ("dataset", dict(num_digits=7, seed=5)),
        ("blobs", dict(out="here.npz", num_pictures=7)),
        ("shapes", dict(out="here", num_pictures=7)),
        ("lidc", dict(out="here.npz", num_sets=7)),
    ],
)
def test_flags_win_over_config_files_wherever_they_stand(name, flags, place, joined, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump({key: otherwise(value) for key, value in flags.items()}))
    typed = [[f"--{key}", str(value)] for key, value in flags.items()]
    typed.insert(place, [f"--config={path}"] if joined else ["--config", str(path)])
    argv = [word for words in typed for word in words]
    assert PARSERS[name].given(argv) == flags
    values = PARSERS[name].parse_args(argv)
    assert flags.items() <= vars(values).items()


@every_parser
def test_a_flag_that_stands_alone_means_true(parser):
    """Wherever it stands, if its setting is true or false; any other flag needs a value."""
    for name, setting in parser.settings.items():
        if setting.base is bool:
            assert parser.given([f"--{name}"]) == {name: True}
            assert parser.given([f"--{name}", "false"]) == {name: False}
        else:
            with pytest.raises(SystemExit):
                parser.given([f"--{name}"])


def otherwise(value):
    """What the file says where a flag says `value`."""
    return f"not {value}" if isinstance(value, str) else value + 1


def test_flags_win_over_the_file_in_whole_commands(tmp_path, capsys, undrawn):
    (tmp_path / "c.yaml").write_text("num_steps: 9\nbatch_size: 3\n")
    evaluate.main([*EXACT, "--config", str(tmp_path / "c.yaml"), "--outdir", str(tmp_path / "run")])
    written = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (written["num_steps"], written["batch_size"]) == (4, 3)
    (tmp_path / "t.yaml").write_text("iterations: 9\nlr: 0.5\n")
    settings, _ = train.parse(["--iterations", "2", "--config", str(tmp_path / "t.yaml")])
    assert (settings.train.iterations, settings.train.lr) == (2, 0.5)
    (tmp_path / "s.yaml").write_text("rho: [5]\nnum_steps: 9\n")
    argv = ["schedule", "--num_steps", "4", "--config", str(tmp_path / "s.yaml")]
    _, args = visualize.parse(argv)
    assert (args.num_steps, args.rho) == (4, [5.0])


def test_later_config_files_win_over_earlier_ones(tmp_path):
    for name, seed in (("a", 1), ("b", 2)):
        (tmp_path / f"{name}.yaml").write_text(f"seed: {seed}\n")
    files = [f"--config={tmp_path / 'a.yaml'}", f"--config={tmp_path / 'b.yaml'}"]
    assert PARSERS["evaluate"].given([files[0], "--num_sets", "3", files[1]]) == dict(
        seed=2, num_sets=3
    )


@every_parser
@pytest.mark.parametrize("value", ["-1e-1", "-.5", "-1", "-1E+2", "-inf", "-0.5e3"])
def test_negative_numbers_are_values_in_any_notation(parser, value, capsys):
    """Accepted, or refused by the setting that they were meant for."""
    for flag in [f"--{name}" for name, s in parser.settings.items() if s.base in (int, float)]:
        try:
            values = parser.given([flag, value])
        except SystemExit:
            assert f"error: {flag[2:]}: got " in capsys.readouterr().err
        else:
            (accepted,) = values.values()
            assert accepted in (float(value), [float(value)])


def test_a_mean_of_ln_sigma_may_be_negative():
    assert PARSERS["train"].given(["--p_mean", "-1e-1", "--seed", "3"]) == dict(p_mean=-0.1, seed=3)


@pytest.mark.parametrize("name", ["evaluate", "train", "train_classifier", "schedule", "dataset"])
def test_lists_are_written_with_or_without_brackets(name, refused):
    parser = PARSERS[name]
    flags = [f"--{name}" for name, setting in parser.settings.items() if setting.listed]
    assert flags
    for flag in flags:
        key = flag[2:]
        for typed in ("3,4", "[3,4]", "[3, 4]"):
            assert parser.given([flag, typed]) == parser.given([f"{flag}={typed}"]) == {key: [3, 4]}
        assert parser.given([flag, "3"]) == {key: [3]}
        for words in (["3", "4"], ["3", "4", "-5"], ["[3", "4]"]):
            line = refused(parser.parse_args, [flag, *words])
            assert f"{key}: got '{' '.join(words)}'" in line and "[3,5]" in line
        for typed in ("3;4", "a,b", "3 4"):
            line = refused(parser.parse_args, [flag, typed])
            assert f"{key}: got '{typed}'" in line and "[3,5]" in line


def test_missing_files_say_that_they_were_not_found_and_where(refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for main, argv, missing in [
        (evaluate.main, ["--config", "no/such.yaml"], "no/such.yaml"),
        (train.main, ["--config", "no/such.yaml"], "no/such.yaml"),
        (evaluate.main, ["--checkpoint", "no/such.safetensors"], "no/such.safetensors"),
        (evaluate.main, ["--checkpoint", "such"], "such"),
        (visualize.main, ["figure", "no/run"], "no/run/metrics.json"),
        (visualize.main, ["figure", "empty", "--value", "quality"], "empty/results.json"),
        (visualize.main, ["trajectory", "empty"], "empty/metrics.json"),
    ]:
        line = refused(main, argv)
        assert f"{tmp_path / missing} was not found" in line


@pytest.mark.parametrize(
    "content", [b"\x80", b"seed: \xff", b"\x00", b"[", b"- 1", b"3", b"{a: [}"]
)
@pytest.mark.parametrize(
    "main, argv",
    [(evaluate.main, []), (train.main, []), (visualize.main, ["schedule"]), (classify, [])],
)
def test_a_config_file_that_is_no_yaml_is_refused(main, argv, content, tmp_path, refused):
    (tmp_path / "c.yaml").write_bytes(content)
    assert "config" in refused(main, [*argv, "--config", str(tmp_path / "c.yaml")])


def test_a_checkpoint_that_is_missing_names_the_shipped_ones(refused):
    for name in ("no/such/path.safetensors", "such", "/no/such"):
        line = refused(evaluate.main, ["--checkpoint", name])
        assert f"checkpoint: got '{name}'; accepted: a file that train.py wrote, or one of" in line
        assert "blobs, centered, circle_jumping, " in line
        assert "classifier" not in line and "judge" not in line
    for world in ("horizontal", "circle_jumping"):
        line = refused(evaluate.main, ["--dataset", world, "--p", "0.3"])
        assert f"checkpoint: got '{world}_p30'" in line and "none is included" in line
    assert "is a directory" in refused(evaluate.main, ["--checkpoint", str(ROOT / "checkpoints")])


def test_flags_of_values_are_the_same_values():
    values = dict(digit_classes=[1, 2], p=0.7, deterministic=False, seq_len=None, frames="a b.npz")
    values |= dict(s_max=float("inf"), pg_sigma_min=1e-05, num_sets=3)
    assert PARSERS["evaluate"].given(as_flags(values)) == values
    argv = ["--outdir", "a", "--seed=3", "--outdir=b", "--p", "0.5"]
    assert without_flags(argv, "--outdir", "--p") == ["--seed=3"]


# ---------------------------------------------------------------- who sees what


def on_a_terminal(*argv, **env) -> str:
    """What a program writes to a terminal."""
    read, write = pty.openpty()
    fcntl.ioctl(write, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    process = subprocess.Popen(
        [sys.executable, *map(str, argv)],
        cwd=ROOT,
        stdout=write,
        stderr=write,
        env=os.environ | env,
    )
    os.close(write)
    out = b""
    try:
        while part := os.read(read, 4096):
            out += part
    except OSError:  # the other end is closed
        pass
    os.close(read)
    assert process.wait() == 0
    return out.decode()


@pytest.mark.slow
def test_bars_are_for_terminals(tmp_path):
    """And nothing is coloured, not even what wandb and tqdm write."""
    piped = Program("evaluate.py", *EXACT, "--outdir", tmp_path / "piped")
    out, err = piped.communicate()
    assert piped.returncode == 0 and err == ""
    lines = out.splitlines()
    assert (
        lines[0].startswith("circle_jumping:") and lines[-1] == f"written to {tmp_path / 'piped'}"
    )
    assert len(lines) < 12
    tracked = ["--wandb", "offline", "--outdir", tmp_path / "shown"]
    shown = on_a_terminal("evaluate.py", *EXACT, *tracked)
    assert re.search(r"2 sets of 8: +100%.*4/4 \[\d\d:\d\d<\d\d:\d\d", shown)  # elapsed<left
    assert "tracked by" in shown and not COLOUR.search(shown)


@pytest.mark.slow
def test_help_is_not_coloured_where_that_is_not_wanted():
    shown = on_a_terminal("evaluate.py", "--help", NO_COLOR="1")
    assert "--pg_factor" in shown and not COLOUR.search(shown)


@pytest.mark.parametrize(
    "argv", [["--help"], pytest.param(EXACT, marks=pytest.mark.slow)], ids=["help", "results"]
)
def test_a_pipe_that_nobody_reads_is_no_traceback(argv, tmp_path):
    read, write = os.pipe()
    os.close(read)
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "evaluate.py"), *argv],
        cwd=tmp_path,
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(write)
    _, err = process.communicate(timeout=120)
    # argparse keeps to itself that nobody reads its help.
    assert process.returncode in ([0, 141] if argv == ["--help"] else [141]) and err == ""
    assert argv == ["--help"] or list(tmp_path.glob("runs/*/metrics.json"))


# ---------------------------------------------------------------- ends


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_evaluation_that_is_told_to_stop_ends_with_one_line(number, tmp_path):
    flags = ["--num_steps", "1000000"]
    process = Program("evaluate.py", *EXACT, *flags, "--outdir", tmp_path)
    while not (tmp_path / ".lock").exists():
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(0.2)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert err.strip() == f"evaluate.py: stopped by {number.name}"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_experiment_that_is_told_to_stop_keeps_its_cells_and_says_how_to_go_on(number, tmp_path):
    argv = ["--experiment", "e9", "--num_sets", "1", "--num_steps", "20", "--outdir", tmp_path]
    process = Program("evaluate.py", *argv)
    while len(list(tmp_path.glob("cells/*.json"))) < 2:
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    done = list(tmp_path.glob("cells/*.json"))
    (line,) = err.strip().splitlines()
    assert process.returncode == 128 + number and not (tmp_path / "results.json").exists()
    assert line == (
        f"evaluate.py: stopped by {number.name}; {len(done)} finished cells are kept in "
        f"{tmp_path}, the same command goes on"
    )


def test_a_disk_that_is_full_is_one_line(tmp_path):
    process = Program(
        "evaluate.py", *EXACT, "--num_sets", "40", "--outdir", tmp_path, largest_file=2000
    )
    out, err = process.communicate()
    assert process.returncode == 1 and out == ""
    assert re.fullmatch(r"evaluate.py: failed: .*File too large.*\n", err)
