"""The command lines as programs: help, completion, configurations, exit codes, and who sees what."""

import fcntl
import os
import pty
import re
import resource
import signal
import struct
import subprocess
import sys
import termios
import time

import numpy as np
import pytest
import yaml
from conftest import ROOT

import evaluate
import train
import visualize

SCRIPTS = ["train.py", "evaluate.py", "visualize.py"]
EXACT = [
    "--denoiser",
    "exact",
    "--digits",
    "embedded",
    "--num_sets",
    "2",
    "--num_steps",
    "4",
    "--device",
    "cpu",
]


def run(script: str, *argv, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(ROOT / script), *map(str, argv)],
        capture_output=True,
        text=True,
        timeout=120,
        **options,
    )


def printed(capsys, main, argv) -> str:
    """What a command line prints where it ends by itself, as with --print_config."""
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 0
    return capsys.readouterr().out


# ---------------------------------------------------------------- help and completion


@pytest.mark.parametrize(
    "main, argv",
    [
        (train.main, []),
        (evaluate.main, []),
        *((visualize.main, [command.__name__]) for command in visualize.COMMANDS),
    ],
)
def test_help_says_the_default_of_every_setting_in_words(main, argv, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "10000")
    text = printed(capsys, main, [*argv, "--help"])
    settings = re.findall(r"^  --(?!config|print_)(\w+).*?\n? {10,}(.*)$", text, flags=re.M)
    assert settings and all(re.search(r"\w.* \(.*default: .+\)$", said) for _, said in settings)
    assert not re.search(r"type: [A-Z]|Optional|Literal|CountOrZero", text)
    if main is evaluate.main:
        assert "particles in a set (a whole number > 0; default: 8)" in text
        assert (
            "(an image out of" not in text
            and "'conditional', 'unconditional'; default: null)" in text
        )


@pytest.mark.parametrize(
    "script, flag",
    [
        ("train.py", "--muon_lr"),
        ("evaluate.py", "--pg_factor"),
        ("visualize.py", "--num_particles"),
    ],
)
def test_bash_completes_flags_and_values(script, flag, tmp_path):
    out = run(script, "--print_completion", "shtab-bash")
    (tmp_path / "completion.sh").write_text(out.stdout)
    assert out.returncode == 0 and flag in out.stdout
    assert subprocess.run(["bash", "-n", tmp_path / "completion.sh"]).returncode == 0
    before = "trajectory " if script == "visualize.py" else ""
    words = f"./{script} {before}{flag[:-2]}".split()
    ask = (
        f"source completion.sh; COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}\n"
        f"$(complete -p {script} | sed 's/.*-F \\([^ ]*\\).*/\\1/') {script} {words[-1]}; echo ${{COMPREPLY[@]}}"
    )
    done = subprocess.run(["bash", "-c", ask], cwd=tmp_path, capture_output=True, text=True)
    assert flag in done.stdout.split(), done.stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_command_lines_can_be_run_as_they_are(script):
    """Only then does a shell complete them."""
    assert os.access(ROOT / script, os.X_OK) and (ROOT / script).read_text().startswith(
        "#!/usr/bin/env python3\n"
    )


# ---------------------------------------------------------------- configurations


def test_a_printed_configuration_is_the_same_evaluation(tmp_path, capsys):
    argv = [*EXACT, "--pg_factor", "1.7", "--p", "0.5"]
    (tmp_path / "c.yaml").write_text(printed(capsys, evaluate.main, [*argv, "--print_config"]))
    for name, flags in (("one", argv), ("two", ["--config", str(tmp_path / "c.yaml")])):
        evaluate.main([*flags, "--outdir", str(tmp_path / name)])
    one, two = (np.load(tmp_path / name / "samples.npz")["samples"] for name in ("one", "two"))
    assert np.array_equal(one, two)
    one, two = (
        yaml.safe_load((tmp_path / name / "config.yaml").read_text()) for name in ("one", "two")
    )
    assert one == two


@pytest.mark.parametrize(
    "argv",
    [
        ["--task", "unconditional"],
        ["--dataset", "horizontal", "--p", "0.9"],
        ["--denoiser", "exact", "--dataset", "mixture"],
        ["--dataset", "free"],
    ],
    ids=" ".join,
)
def test_a_printed_configuration_has_the_defaults_of_the_checkpoint(argv, tmp_path, capsys):
    (tmp_path / "c.yaml").write_text(printed(capsys, evaluate.main, [*argv, "--print_config"]))
    assert evaluate.parse(["--config", str(tmp_path / "c.yaml")]) == evaluate.parse(argv)


def test_a_printed_configuration_is_the_same_training(tiny_model, tmp_path, capsys):
    for argv in (
        ["--config", str(ROOT / "configs" / "circle_jumping_small.yaml"), "--lr", "0.001"],
        ["--resume", str(tiny_model), "--iterations", "40"],
    ):
        (tmp_path / "c.yaml").write_text(printed(capsys, train.main, [*argv, "--print_config"]))
        assert train.parse(["--config", str(tmp_path / "c.yaml")]) == train.parse(argv)


def test_a_printed_configuration_is_the_same_picture(tmp_path, capsys):
    argv = ["schedule", "--rho", "[2,5]"]
    (tmp_path / "c.yaml").write_text(printed(capsys, visualize.main, [*argv, "--print_config"]))
    assert (
        visualize.parse(["schedule", "--config", str(tmp_path / "c.yaml")])[1].rho
        == visualize.parse(argv)[1].rho
    )


def test_a_configuration_describes_one_evaluation(tmp_path, refused):
    (tmp_path / "c.yaml").write_text("experiment: e9\n")
    assert "experiment: got 'e9'" in refused(evaluate.main, ["--config", str(tmp_path / "c.yaml")])


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


def test_bars_are_for_terminals(tmp_path):
    piped = run("evaluate.py", *EXACT, "--outdir", tmp_path / "piped")
    assert piped.returncode == 0 and piped.stderr == ""
    lines = piped.stdout.splitlines()
    assert (
        lines[0].startswith("circle_jumping:") and lines[-1] == f"written to {tmp_path / 'piped'}"
    )
    assert len(lines) < 12
    shown = on_a_terminal("evaluate.py", *EXACT, "--outdir", tmp_path / "shown")
    assert re.search(r"2 sets of 8: +100%.*4/4 \[\d\d:\d\d<\d\d:\d\d", shown)  # elapsed<left


@pytest.mark.parametrize("env", [{}, {"NO_COLOR": "1"}], ids=["plain", "NO_COLOR"])
def test_nothing_is_coloured(env, tmp_path):
    """Not even what wandb, jsonargparse and tqdm write."""
    shown = on_a_terminal("evaluate.py", *EXACT, "--wandb", "offline", "--outdir", tmp_path, **env)
    shown += on_a_terminal("evaluate.py", "--help", **env) if "NO_COLOR" in env else ""
    assert "tracked by" in shown and not re.search("\x1b\\[[0-9;]*m", shown)


@pytest.mark.parametrize("argv", [["--help"], EXACT], ids=["help", "results"])
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
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "evaluate.py"), *EXACT, *flags, "--outdir", str(tmp_path)],
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (tmp_path / ".lock").exists():
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(0.2)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert err.strip() == f"evaluate.py: stopped by {number.name}"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_experiment_that_is_told_to_stop_keeps_its_cells_and_says_how_to_go_on(number, tmp_path):
    argv = ["--experiment", "e9", "--num_sets", "1", "--num_steps", "20", "--outdir", str(tmp_path)]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "evaluate.py"), *argv], stderr=subprocess.PIPE, text=True
    )
    while len(list(tmp_path.glob("cells/*.json"))) < 2:
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    done = list(tmp_path.glob("cells/*.json"))
    (line,) = err.strip().splitlines()
    assert process.returncode == 128 + number and not (tmp_path / "results.json").exists()
    assert line == (
        f"evaluate.py: stopped by {number.name}; {len(done)} finished cells are kept in {tmp_path}, "
        "the same command goes on"
    )


def test_a_disk_that_is_full_is_one_line(tmp_path):
    uncovered = {
        key: value for key, value in os.environ.items() if not key.startswith("COVERAGE")
    }  # it writes files
    out = run(
        "evaluate.py",
        *EXACT,
        "--num_sets",
        "40",
        "--outdir",
        tmp_path,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000)),
        env=uncovered,
    )
    assert out.returncode == 1 and out.stdout == ""
    assert re.fullmatch(r"evaluate.py: failed: .*File too large.*\n", out.stderr)
