"""How the benchmarks measure: interleaved repetitions, ratios, and a record of the machine.

Whatever slows the machine down for a while affects all candidates alike. Ratios are taken within
each repetition, so they can be trusted where seconds cannot.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any, Callable, Sequence


def seconds(run: Callable[[], Any], device: str = "cpu") -> float:
    """How long it takes, to the end of what it asked of a GPU."""
    import torch

    start = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def interleaved(
    runs: dict[Any, Callable[[], Any]], repetitions: int, device: str = "cpu"
) -> dict[Any, list[float]]:
    """Seconds of every run in every repetition, after one round that is not counted."""
    for run in runs.values():
        seconds(run, device)
    times: dict[Any, list[float]] = {name: [] for name in runs}
    for turn in range(repetitions):
        names = (
            list(runs) if turn % 2 == 0 else list(reversed(runs))
        )  # nobody always comes after the same one
        for name in names:
            times[name].append(seconds(runs[name], device))
    return times


def spread(values: Sequence[float]) -> dict[str, float]:
    return dict(median=statistics.median(values), lowest=min(values), highest=max(values))


def ratio(times: dict[Any, list[float]], name: Any, over: Any) -> dict[str, float]:
    """How long `name` takes, in units of `over`: median and range of the repetitions' ratios."""
    return spread([a / b for a, b in zip(times[name], times[over])])


def launch(script: Path | str, ranks: int) -> list[str]:
    """The command that runs a script, in one process or in several by torchrun."""
    several = (
        ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
        if ranks > 1
        else []
    )
    return [sys.executable, *several, str(script)]


def shown(value: dict[str, float], digits: int = 2) -> str:
    median, lowest, highest = (
        f"{value[key]:.{digits}f}" for key in ("median", "lowest", "highest")
    )
    return f"{median} ({lowest} to {highest})"


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def machine(device: str = "cpu") -> dict[str, Any]:
    """What the numbers were measured on and with."""
    import torch

    versions = {}
    for name in ("torch", "diffusers", "azula"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            pass
    model = (
        next(
            (
                line.split(":")[1].strip()
                for line in open("/proc/cpuinfo")
                if line.startswith("model name")
            ),
            platform.processor(),
        )
        if Path("/proc/cpuinfo").is_file()
        else platform.processor()
    )
    return dict(
        device=torch.cuda.get_device_name() if device == "cuda" else model,
        cores=os.cpu_count(),
        threads=torch.get_num_threads(),
        python=platform.python_version(),
        **versions,
    )


def write(outdir: Path | str, name: str, text: str, device: str = "cpu", **results: Any) -> None:
    """Print the tables; write them to outdir/NAME.md, and everything to outdir/NAME.json."""
    where = machine(device)
    on = ", ".join(
        f"{key} {value}" if key != "device" else str(value) for key, value in where.items()
    )
    outdir = Path(outdir)
    outdir.mkdir(parents=True, exist_ok=True)
    (outdir / f"{name}.json").write_text(json.dumps(dict(machine=where, **results), indent=1))
    (outdir / f"{name}.md").write_text(f"{text}\n\nMeasured on {on}.\n")
    print(f"{text}\n\nMeasured on {on}; written to {outdir}")
