"""Minutes and memory of what the pages tell a reader to run, on one core of a CPU.

    python benchmarks/durations.py                    # commands, evaluations and trainings
    python benchmarks/durations.py --parts install    # a new environment; downloads everything
    python benchmarks/durations.py --parts tests      # the whole test suite

Time is that of the processor, user and system, of a process that may use one thread: how long the
command takes on a core of its own, whatever else runs. That of an installation is the clock's.
Memory is the largest resident set of one process. Each part is kept, and not measured again.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Sequence

import measure

from diverse_sampling.errors import reject
from lab.files import as_json, read_json, write_whole

PYTHON = sys.executable
COMMANDS = {
    "the README's command": "evaluate.py --task conditional --dataset circle_jumping --pg_factor 5"
    " --batch_size 8",
    "`python examples/minimal.py`": "examples/minimal.py",
    "ten digits, each once, in 32 sets": "evaluate.py --task unconditional --batch_size 10"
    " --guidance classes",
}
# One for each kind of network; 32 guided sets of eight are as many particles as one call takes.
NETWORKS = ("circle_jumping", "circle_jumping_unet", "centered", "halves", "free", "blobs")
UPDATES = 2  # of a training whose memory is measured
Part = Literal["commands", "evaluations", "trainings", "install", "tests"]


@dataclass
class DurationSettings:
    """Durations"""

    parts: Sequence[Part] = ("commands", "evaluations", "trainings")
    """what to measure"""
    data_root: str = "data"
    """directory of torchvision's MNIST"""


def used(argv: Sequence[str], **env: str) -> dict[str, float]:
    """What a command uses: {seconds on a clock, cpu_seconds, bytes}. It has to succeed."""
    one_thread = dict(OMP_NUM_THREADS="1", NUMBA_NUM_THREADS="1")
    start = time.perf_counter()
    process = subprocess.Popen(
        argv, cwd=measure.ROOT, env=os.environ | one_thread | env, stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        reject("command", " ".join(argv), f"one that succeeds, not exit status {status}")
    return dict(
        seconds=seconds,
        cpu_seconds=usage.ru_utime + usage.ru_stime,
        bytes=usage.ru_maxrss * 1024,
    )


def run(command: str, args: Any, *more: str) -> dict[str, float]:
    """What a script with these arguments uses, which writes to a folder that is removed."""
    script, *words = command.split()
    flags = [] if script.startswith("examples/") else ["--data_root", args.data_root]
    with tempfile.TemporaryDirectory() as folder:
        if flags:
            flags += ["--device", "cpu", "--outdir", f"{folder}/run"]
        return used([PYTHON, script, *words, *flags, *more])


def commands(args: Any) -> dict[str, Any]:
    """The commands that a new reader runs first."""
    return {name: run(command, args) for name, command in COMMANDS.items()}


def evaluations(args: Any) -> dict[str, Any]:
    """32 guided sets of eight with each of these networks."""
    flags = "evaluate.py --checkpoint {} --pg_factor 5"
    return {name: run(flags.format(name), args) for name in NETWORKS}


def trainings(args: Any) -> dict[str, Any]:
    """A few updates with the configuration of each of them."""
    results = {}
    for name in NETWORKS:
        path = measure.ROOT / "configs" / f"{name}.yaml"
        small = path.with_stem(f"{name}_small")
        config = small if small.is_file() else path
        few = f"train.py --config {config} --iterations {UPDATES} --sample_every 0 --warmup 1"
        results[name] = run(few, args)
    return results


def install(args: Any) -> dict[str, Any]:
    """A new environment, as the README makes it: seconds of the clock, and bytes on the disk."""
    with tempfile.TemporaryDirectory() as folder:
        venv = Path(folder) / "venv"
        start = time.perf_counter()
        subprocess.run([PYTHON, "-m", "venv", venv], check=True)
        pip = [str(venv / "bin" / "pip"), "install", "-q", "-r", "requirements.txt"]
        subprocess.run(pip, check=True, cwd=measure.ROOT)
        seconds = time.perf_counter() - start
        size = sum(path.lstat().st_size for path in venv.rglob("*"))
    return dict(install=dict(seconds=seconds, bytes=size))


def tests(args: Any) -> dict[str, Any]:
    """The whole test suite but what is slow, in one process."""
    return dict(pytest=used([PYTHON, "-m", "pytest", "-q", "-n", "0"]))


# ---------------------------------------------------------------- tables


def duration(seconds: float) -> str:
    """Seconds as a reader wants them: `40 s`, `3 min`."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def memory(size: float) -> str:
    """Bytes as a reader wants them: `0.7 GB`."""
    return f"{size / 1e9:.1f} GB"


def tables(parts: dict[str, dict[str, Any]]) -> dict[str, str]:
    """The tables of what was measured, by name."""
    found = {}
    first = []
    if "install" in parts:
        it = parts["install"]["install"]
        size = f"{memory(it['bytes'])} on the disk"
        first.append(["the README's installation, by the clock", duration(it["seconds"]), size])
    for name, it in (parts.get("commands", {}) | parts.get("tests", {})).items():
        first.append([name, duration(it["cpu_seconds"]), memory(it["bytes"])])
    if first:
        found["commands"] = measure.table("what | time | memory", first)
    if "evaluations" in parts and "trainings" in parts:
        rows = [
            [f"`{name}`", duration(it["cpu_seconds"]), memory(it["bytes"])]
            + [memory(parts["trainings"][name]["bytes"])]
            for name, it in parts["evaluations"].items()
        ]
        found["networks"] = measure.table("network | time | memory | memory in training", rows)
    return found


def main(argv: list[str] | None = None) -> None:
    args = measure.arguments(DurationSettings, argv)
    parts = {}
    for name in ("commands", "evaluations", "trainings", "install", "tests"):
        path = args.outdir / "parts" / f"{name}.json"
        if name in args.parts and not path.is_file():
            path.parent.mkdir(exist_ok=True)
            write_whole(path, as_json(globals()[name](args)))
        if path.is_file():
            parts[name] = read_json(path)
    text = tables(parts)
    about: dict[str, Any] = dict(**parts, tables=text)
    measure.write(args.outdir, "durations", "\n\n".join(text.values()), "cpu", **about)


if __name__ == "__main__":
    main()
