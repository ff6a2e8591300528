"""What the project reaches on one GPU, in one command of nine minutes; and the reference training.

    python benchmarks/gpu.py                    # everything but the training
    python benchmarks/gpu.py --train true       # nine minutes of the reference training; call again

Each part is written as soon as it is measured, and a part that is there is not measured again.
What does not fit into --minutes is left to the next call.
"""

from __future__ import annotations

import gc
import json
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Callable, Literal

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import measure  # noqa: E402

from command_line import make_parser  # noqa: E402
from config import Count, Positive  # noqa: E402
from devices import out_of_memory, pick_device  # noqa: E402

# Operations a second in bfloat16 that data sheets promise, without sparsity, by the card's name.
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
LEAST = 20  # seconds that have to be left for a part to begin
SAVING = 20  # seconds that a training is given to save


@dataclass
class GPUBenchmarkSettings:
    """GPU"""

    train: bool = False
    """train the network instead, from where it stopped"""
    minutes: Positive = 9.0
    """for this call"""
    network: str = "configs/circle_jumping.yaml"
    """the training config"""
    updates: Count = 30
    """of a training, in a repetition"""
    repetitions: Count = 3
    """of everything that is repeated"""
    num_sets: Count = 4096
    """sets that are sampled, of eight particles"""
    checkpoint: str = "circle_jumping_unet"
    """the network that samples"""
    particles: Count = 4096
    """of a set whose guidance is measured"""
    experiment: str = "e5"
    """the grid"""
    preset: Literal["quick", "full"] = "full"
    """of the grid"""
    grid_sets: Count = 200
    """sets of each of its cells"""
    compile: bool = True
    """measure torch.compile too"""
    digits: Literal["mnist", "embedded"] = "mnist"
    """where digits come from"""
    data_root: str = "data"
    """folder of torchvision's MNIST"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """where to run"""
    outdir: str = "runs/benchmark-gpu"
    """folder for the results"""


Part = Callable[[GPUBenchmarkSettings, float], dict[str, Any]]


def common(args: GPUBenchmarkSettings) -> list[str]:
    """The flags that every program takes."""
    return ["--digits", args.digits, "--data_root", args.data_root, "--device", args.device]


# ---------------------------------------------------------------- parts


def update(args: GPUBenchmarkSettings, left: float, compiled: bool = False) -> dict[str, Any]:
    """Images a second of an update, and its share of the peak."""
    import torch
    from network import operations

    import train

    with tempfile.TemporaryDirectory() as folder:
        flags = ["--config", args.network, *common(args), "--outdir", folder]
        training, _ = train.setup([*flags, "--compile", str(compiled).lower()])
        steps = iter(training)
        x, sigma, _, cond, labels = training.batch()
        given = (
            cond if cond.shape[1] else None,
            labels if training.net.unet.label is not None else None,
        )
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            forward = operations(lambda: training.net(x[:1], sigma[:1], *_first(given)))
        run = lambda: [next(steps) for _ in range(args.updates)]
        times = measure.interleaved({"update": run}, args.repetitions, args.device)["update"]
    images = args.updates * training.settings.train.batch_size
    rates = measure.spread([images / seconds for seconds in times])
    return dict(
        images_per_second=rates,
        operations_per_second=3 * forward * rates["median"],
        share_of_peak=_share(3 * forward * rates["median"], args.device),
    )


def _first(given: tuple) -> list:
    return [None if tensor is None else tensor[:1] for tensor in given]


def _share(rate: float, device: str) -> float | None:
    """Operations a second over the card's peak in bfloat16, None where that is not known."""
    import torch

    name = torch.cuda.get_device_name() if device == "cuda" else ""
    return next((rate / peak for card, peak in PEAKS.items() if card in name), None)


def profile(args: GPUBenchmarkSettings, left: float) -> dict[str, Any]:
    """The operations in which an update spends its time: {name: share}."""
    import training

    with tempfile.TemporaryDirectory() as folder:
        return training.profile(args, folder)[1]


def network(args: GPUBenchmarkSettings, left: float) -> dict[str, Any]:
    """The network against that of diffusers, which has to be installed (benchmarks/network.py)."""
    import network as benchmark

    out = Path(args.outdir, "network")
    flags = ["--network", args.network, "--compile", str(args.compile).lower()]
    flags += ["--images", str(256 if args.device == "cuda" else 1), "--device", args.device]
    benchmark.main([*flags, "--repetitions", str(args.repetitions), "--outdir", str(out)])
    return json.loads((out / "network.json").read_text())["results"]


def sampling(args: GPUBenchmarkSettings, left: float) -> dict[str, Any]:
    """Seconds for many sets of eight, independent and guided: {which: ...}."""
    import assemble

    result = {}
    for name, factor in {"independent": "0", "guided": "3"}.items():
        flags = ["--checkpoint", args.checkpoint, *common(args), "--pg_factor", factor]
        evaluation = assemble.evaluation([*flags, "--num_sets", str(args.num_sets)])
        seconds = measure.seconds(lambda: evaluation.sample(progress=False), args.device)
        calls = evaluation.sampler.calls
        result[name] = dict(
            sets=evaluation.task.num_sets,
            seconds=seconds,
            forward_per_second=calls.forward / seconds,
            backward_per_second=calls.backward / seconds,
        )
    return result


def noise(args: GPUBenchmarkSettings, left: float) -> dict[str, Any]:
    """Seconds to draw the noise of one step of the sets, at 64 x 64 px, on the CPU.

    torch.randn draws as many numbers from one stream, on one core.
    """
    import torch

    from noise import ParticleNoise

    source = ParticleNoise(0, range(args.num_sets), range(8), (1, 64, 64), args.device)
    runs = {"a stream a particle": source, "one stream": lambda: torch.randn(source.shape)}
    times = measure.interleaved(runs, args.repetitions)
    return dict(
        threads=torch.get_num_threads(),
        seconds={name: measure.spread(values) for name, values in times.items()},
        over_one_stream=measure.ratio(times, *runs),
    )


def guidance(args: GPUBenchmarkSettings, left: float) -> dict[str, Any]:
    """Seconds of one gradient of each potential of a large set of 32 x 32 px: {potential: ...}."""
    import torch

    from potentials import POTENTIALS, Bandwidth

    generator = torch.Generator().manual_seed(0)
    y = torch.randn(1, args.particles, 1024, generator=generator).to(args.device)
    runs = {name: _gradient(make(Bandwidth()), y) for name, make in POTENTIALS.items()}
    times = measure.interleaved(runs, args.repetitions, args.device)
    return {name: measure.spread(values) for name, values in times.items()}


def _gradient(potential, y) -> Callable[[], Any]:
    return lambda: potential.grad(y)


def same_seed(args: GPUBenchmarkSettings, left: float) -> dict[str, Any]:
    """Samples of the CPU and of the device from the same seed, in float32: {denoiser: ...}."""
    import assemble

    result = {}
    for name, flags in {"trained": ["--checkpoint", args.checkpoint], "exact": []}.items():
        flags = [*flags, "--denoiser", name, *common(args), "--num_sets", "8", "--pg_factor", "3"]
        samples: list[Any] = []
        modes: list[Any] = []
        for device in ("cpu", args.device):
            # Of two flags of one name the last counts.
            own = ["--precision", "float32", "--device", device]
            evaluation = assemble.evaluation([*flags, *own])
            samples.append(evaluation.sample(progress=False))
            modes.append(evaluation.task.measure(samples[-1])[1])
        result[name] = dict(
            largest_difference=float((samples[0] - samples[1]).abs().max()),
            particles=modes[0].numel(),
            other_modes=int((modes[0] != modes[1]).sum()),
        )
    return result


def grid(args: GPUBenchmarkSettings, left: float) -> dict[str, Any]:
    """Seconds of an experiment. Its cells are kept: what is cut off goes on with the next call."""
    out = Path(args.outdir, "grid")
    command = [sys.executable, str(ROOT / "evaluate.py"), "--experiment", args.experiment]
    command += ["--preset", args.preset, "--num_sets", str(args.grid_sets), *common(args)]
    start = time.perf_counter()
    subprocess.run([*command, "--outdir", str(out)], check=True, timeout=left)
    seconds = time.perf_counter() - start
    results = json.loads((out / "results.json").read_text())
    cells = [row["result"]["seconds"] for row in results["rows"]]
    return dict(cells=len(cells), seconds_of_cells=sum(cells), seconds_of_last_call=seconds)


COMPILED = "update, compiled"
PARTS: dict[str, Part] = {
    part.__name__: part
    for part in (update, profile, sampling, noise, guidance, same_seed, grid, network)
} | {COMPILED: partial(update, compiled=True)}


def training(args: GPUBenchmarkSettings, left: float) -> dict[str, Any]:
    """Some minutes of the training, from where it stopped."""
    import checkpoint

    out = Path(args.outdir, "training")
    if (out / "config.yaml").is_file():
        flags = ["--resume", str(out), "--device", args.device]
    else:
        flags = ["--config", args.network, *common(args), "--outdir", str(out)]
    process = subprocess.Popen([sys.executable, str(ROOT / "train.py"), *flags])
    try:
        process.wait(left)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)  # train.py saves and ends
        process.wait()
    if process.returncode not in (0, 128 + signal.SIGTERM):
        raise subprocess.CalledProcessError(process.returncode, process.args)
    if not (out / "state.safetensors").is_file():  # it ended before its first update
        raise subprocess.TimeoutExpired(process.args, left)
    meta = checkpoint.read_metadata(out / "state.safetensors")
    log = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return dict(
        updates=meta["iteration"],
        of=meta["settings"]["iterations"],
        batch_size=meta["settings"]["batch_size"],
        seconds=meta["train_seconds"],
        loss=log[-1]["loss"] if log else None,
        machine=meta["machine"],
    )


# ---------------------------------------------------------------- the table


def rows_of(results: dict[str, Any]) -> list[list[str]]:
    """(what, value) of every figure."""
    rows = []
    updates = {name: results[name] for name in ("update", COMPILED) if name in results}
    for name, each in updates.items():
        share = each["share_of_peak"]
        peak = "" if share is None else f", {100 * share:.0f}% of the bfloat16 peak"
        value = measure.shown(each["images_per_second"], 0)
        rows.append([name, f"{value} images/s{peak}"])
    for name, share in list(results.get("profile", {}).items())[:6]:
        rows.append([f"share of an update: `{name}`", f"{100 * share:.1f}%"])
    for name, each in results.get("sampling", {}).items():
        per_second = each["sets"] / each["seconds"]
        value = f"{each['seconds']:.1f} s, {per_second:.0f} sets/s"
        rows.append([f"{each['sets']:,} sets of 8, {name}", value])
    if "noise" in results:
        ratio = measure.shown(results["noise"]["over_one_stream"])
        threads = results["noise"]["threads"]
        rows.append([f"noise, {threads} threads, over torch.randn on one core", ratio])
    for name, each in results.get("guidance", {}).items():
        value = {key: 1e3 * number for key, number in each.items()}
        rows.append([f"a gradient of {name}, ms", measure.shown(value, 1)])
    for name, each in results.get("same_seed", {}).items():
        value = f"{each['largest_difference']:.1e}; {each['other_modes']} of {each['particles']}"
        rows.append([f"CPU and GPU, {name}: difference; other modes", value])
    for name, each in results.get("network", {}).items():
        if name.endswith("forward") and each["times_as_fast_as_diffusers"]:
            value = measure.shown(each["times_as_fast_as_diffusers"])
            rows.append([f"{name}: times as fast as diffusers", value])
    if "grid" in results:
        each = results["grid"]
        rows.append([f"experiment, {each['cells']} cells", f"{each['seconds_of_cells']:.0f} s"])
    if "training" in results:
        each = results["training"]
        rate = each["updates"] * each["batch_size"] / max(each["seconds"], 1e-9)
        done = f"{each['updates']:,} of {each['of']:,} updates"
        rows.append([f"training, {done}", f"{each['seconds'] / 60:.1f} min, {rate:.0f} images/s"])
    rows += [[f"{name}: failed", reason] for name, reason in results.get("failed", {}).items()]
    return rows


def main(argv: list[str] | None = None) -> None:
    args = make_parser(GPUBenchmarkSettings, description=__doc__.split("\n")[0]).parse_args(argv)
    import torch

    end = time.perf_counter() + 60 * args.minutes
    args.device = pick_device(args.device).type
    out = Path(args.outdir)
    path = out / "gpu.json"
    results: dict[str, Any] = {}
    if path.is_file():
        results = {k: v for k, v in json.loads(path.read_text()).items() if k != "machine"}
    parts: dict[str, Part] = dict(training=training) if args.train else PARTS
    parts = {name: part for name, part in parts.items() if args.compile or name != COMPILED}
    for name, part in parts.items():
        left = end - time.perf_counter() - (SAVING if args.train else 0)
        if not args.train and (name in results or left < LEAST):
            continue
        failed = results.setdefault("failed", {})
        failed.pop(name, None)
        try:
            results[name] = part(args, max(left, 1.0))
        except subprocess.TimeoutExpired:
            failed[name] = "cut off by --minutes; call again"
        except Exception as error:  # a GPU's minutes are for the other parts then
            traceback.print_exc()
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            failed[name] = "out of memory" if out_of_memory(error) else reason
        gc.collect()
        if args.device == "cuda":
            torch.cuda.empty_cache()  # for the programs that a part starts
        table = measure.table(["on one device", "measured"], rows_of(results))
        measure.write(out, "gpu", table, args.device, **results)


if __name__ == "__main__":
    main()
