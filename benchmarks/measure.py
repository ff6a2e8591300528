"""What the benchmarks share: arguments, interleaved repetitions, ratios, tables, the machine.

Whatever slows the machine down for a while affects all candidates alike. Ratios are taken within
each repetition, so they can be trusted where seconds cannot.

A benchmark imports this module first, since it lets the modules of the project be found.
"""

from __future__ import annotations

import os
import platform
import statistics
import sys
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Callable, Mapping, Optional, Sequence

sys.path.insert(0, str(Path(__file__).parent.parent))

from config import PathText  # noqa: E402
from diverse_sampling.defaults import SAMPLES_VERSION  # noqa: E402
from lab.command_line import make_parser  # noqa: E402
from lab.experiments import interval  # noqa: E402
from lab.files import as_json, read_json, write_whole  # noqa: E402
from lab.records import made_by  # noqa: E402

ROOT = Path(__file__).parent.parent


@dataclass
class OutputSettings:
    """Output"""

    outdir: Optional[PathText] = None
    """folder for the results (null: runs/benchmark-NAME)"""


def arguments(settings: type, argv: Sequence[str] | None) -> Any:
    """The command line of a benchmark: its own settings, and `outdir`, a folder that exists."""
    program = sys.modules[settings.__module__]
    description = str(program.__doc__).split("\n")[0]
    args = make_parser(settings, OutputSettings, description=description).parse_args(argv)
    args.outdir = Path(args.outdir or f"runs/benchmark-{Path(str(program.__file__)).stem}")
    args.outdir.mkdir(parents=True, exist_ok=True)
    return args


# ---------------------------------------------------------------- time


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
        # Nobody always comes after the same one.
        for name in runs if turn % 2 == 0 else reversed(runs):
            times[name].append(seconds(runs[name], device))
    return times


def spread(values: Sequence[float]) -> dict[str, float]:
    return dict(median=statistics.median(values), lowest=min(values), highest=max(values))


def ratio(times: dict[Any, list[float]], name: Any, over: Any) -> dict[str, float]:
    """How long `name` takes, in units of `over`: median and range of the repetitions' ratios."""
    return spread([a / b for a, b in zip(times[name], times[over])])


def rate(times: Sequence[float], count: float) -> dict[str, float]:
    """How many a second, where each of `times` was spent on `count` of them."""
    return spread([count / time for time in times])


def launch(script: Path | str, ranks: int) -> list[str]:
    """The command that runs a script, in one process or in several by torchrun."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    return [sys.executable, *(torchrun if ranks > 1 else []), str(script)]


# ---------------------------------------------------------------- results


def shown(value: Mapping[str, float], digits: int = 2) -> str:
    """A median and its range."""
    numbers = (f"{value[key]:,.{digits}f}" for key in ("median", "lowest", "highest"))
    return "{} ({} to {})".format(*numbers)


def number(value: Any) -> str:
    """A number in a table, with its interval if it has one; nothing for None."""
    return interval(value) if isinstance(value, dict) or value is None else f"{value:.3f}"


def strength(row: Mapping[str, Any]) -> str:
    """The strength of a method, with a star if it ends the list of those tried; "" without one."""
    if row["strength"] is None:
        return ""
    return f"{row['strength']:g}{'*' if row['at_end'] else ''}"


def table(header: str, rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table; the columns of its header are separated by ` | `."""
    lines = [header.split(" | "), *rows]
    text = [f"| {' | '.join(map(str, line))} |" for line in lines]
    return "\n".join([text[0], "|" + "---|" * len(lines[0]), *text[1:]])


def machine(device: str = "cpu") -> dict[str, Any]:
    """What the numbers were measured on and with."""
    import torch

    versions = {}
    for name in ("torch", "diffusers", "azula"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            pass
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    processor = models[0] if models else platform.processor()
    return dict(
        device=torch.cuda.get_device_name() if device == "cuda" else processor,
        cores=os.cpu_count(),
        threads=torch.get_num_threads(),
        python=platform.python_version(),
        **versions,
    )


def write(
    outdir: Path,
    name: str,
    text: str,
    device: str = "cpu",
    *,
    samples: bool = False,
    **results: Any,
) -> None:
    """Print the tables; write them to outdir/NAME.md, and everything to outdir/NAME.json.

    `samples` is as in `save`.
    """
    where = machine(device)
    on = ", ".join(str(v) if key == "device" else f"{key} {v}" for key, v in where.items())
    text_on = f"{text}\n\nMeasured on {on}.\n"
    save(outdir, name, text_on, dict(machine=where, **results), samples=samples)
    print(f"{text}\n\nMeasured on {on}")


def write_parts(
    outdir: Path,
    name: str,
    parts: Mapping[str, tuple[str, Any]],
    device: str = "cpu",
    **about: Any,
) -> None:
    """Write what was measured in several parts, {part: (its table, its results)}."""
    results = {part: result for part, (_, result) in parts.items()}
    write(outdir, name, "\n\n".join(text for text, _ in parts.values()), device, **about, **results)


def save(
    outdir: Path, name: str, text: str, results: dict[str, Any], *, samples: bool = True
) -> None:
    """Write outdir/NAME.md, and outdir/NAME.json: the results, and what made them.

    If they say nothing of `samples`, only of time, their version is null: they stay true when
    samples change.
    """
    made = made_by() if samples else made_by() | dict(version=None)
    (outdir / f"{name}.md").write_text(text)
    write_whole(outdir / f"{name}.json", as_json(made | results, indent=1))
    print(f"written to {outdir}")


def kept(path: Path, measured: Callable[[], Any]) -> Any:
    """What `measured` returns, from a file if this version of samples was measured before."""
    path = path.with_stem(f"{path.stem}-version{SAMPLES_VERSION}")
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, as_json(measured()))
        print(path.stem, file=sys.stderr)
    return read_json(path)
