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
import time
import traceback
from dataclasses import dataclass
from functools import partial
from typing import Any, Callable, Literal

import measure

from config import Count, Positive
from diverse_sampling.devices import out_of_memory, pick_device
from lab.files import read_json

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


def common(args) -> list[str]:
    """The flags that every program takes."""
    return ["--digits", args.digits, "--data_root", args.data_root, "--device", args.device]


# ---------------------------------------------------------------- parts
# Each is given the seconds that are left.


def update(args, left: float, compiled: bool = False) -> dict[str, Any]:
    """Images a second of an update, and its share of the peak."""
    import torch
    from network import operations
    from training import start

    flags = [*common(args), "--compile", str(compiled).lower()]
    training = start(args.network, args.device, *flags)
    steps = iter(training)
    x, sigma, _, cond, labels = (each[:1] for each in training.batch())
    labelled = training.net.unet.label is not None
    conditions = [cond if cond.shape[1] else None, labels if labelled else None]
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        forward = operations(lambda: training.net(x, sigma, *conditions))
    run = lambda: [next(steps) for _ in range(args.updates)]
    times = measure.interleaved({"update": run}, args.repetitions, args.device)["update"]
    rates = measure.rate(times, args.updates * training.settings.train.batch_size)
    done = 3 * forward * rates["median"]
    card = torch.cuda.get_device_name() if args.device == "cuda" else ""
    share = next((done / peak for name, peak in PEAKS.items() if name in card), None)
    return dict(images_per_second=rates, operations_per_second=done, share_of_peak=share)


def profile(args, left: float) -> dict[str, Any]:
    """The operations in which an update spends its time: {name: share}."""
    import training

    return training.profile(args)[1]


def network(args, left: float) -> dict[str, Any]:
    """The network against that of diffusers, which has to be installed (benchmarks/network.py)."""
    import network as benchmark

    out = args.outdir / "network"
    flags = ["--network", args.network, "--compile", str(args.compile).lower()]
    flags += ["--images", str(256 if args.device == "cuda" else 1), "--device", args.device]
    benchmark.main([*flags, "--repetitions", str(args.repetitions), "--outdir", str(out)])
    return json.loads((out / "network.json").read_text())["results"]


def sampling(args, left: float) -> dict[str, Any]:
    """Seconds for many sets of eight, independent and guided: {which: ...}."""
    from lab import assemble

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


def noise(args, left: float) -> dict[str, Any]:
    """Seconds to draw the noise of one step of the sets, at 64 x 64 px, on the CPU.

    torch.randn draws as many numbers from one stream, on one core.
    """
    import torch

    from diverse_sampling.noise import ParticleNoise

    source = ParticleNoise(0, range(args.num_sets), range(8), (1, 64, 64), args.device)
    runs = {"a stream a particle": source, "one stream": lambda: torch.randn(source.shape)}
    times = measure.interleaved(runs, args.repetitions)
    return dict(
        threads=torch.get_num_threads(),
        seconds={name: measure.spread(values) for name, values in times.items()},
        over_one_stream=measure.ratio(times, *runs),
    )


def guidance(args, left: float) -> dict[str, Any]:
    """Seconds of one gradient of each potential of a large set of 32 x 32 px: {potential: ...}."""
    import torch

    from diverse_sampling.potentials import POTENTIALS, Bandwidth

    generator = torch.Generator().manual_seed(0)
    y = torch.randn(1, args.particles, 1024, generator=generator).to(args.device)
    runs = {name: partial(make(Bandwidth()).grad, y) for name, make in POTENTIALS.items()}
    times = measure.interleaved(runs, args.repetitions, args.device)
    return {name: measure.spread(values) for name, values in times.items()}


def same_seed(args, left: float) -> dict[str, Any]:
    """Samples of the CPU and of the device from the same seed, in float32: {denoiser: ...}."""
    from lab import assemble

    result = {}
    for name, flags in {"trained": ["--checkpoint", args.checkpoint], "exact": []}.items():
        flags = [*flags, "--denoiser", name, *common(args), "--num_sets", "8", "--pg_factor", "5"]
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


def grid(args, left: float) -> dict[str, Any]:
    """Seconds of an experiment. Its cells are kept: what is cut off goes on with the next call."""
    out = args.outdir / "grid"
    command = [sys.executable, str(measure.ROOT / "evaluate.py"), "--experiment", args.experiment]
    command += ["--preset", args.preset, "--num_sets", str(args.grid_sets), *common(args)]
    run = partial(subprocess.run, [*command, "--outdir", str(out)], check=True, timeout=left)
    seconds = measure.seconds(run)
    rows = json.loads((out / "results.json").read_text())["rows"]
    of_cells = sum(row["result"]["seconds"] for row in rows)
    return dict(cells=len(rows), seconds_of_cells=of_cells, seconds_of_last_call=seconds)


COMPILED = "update, compiled"
PARTS: dict[str, Callable[..., dict[str, Any]]] = {
    part.__name__: part
    for part in (update, profile, sampling, noise, guidance, same_seed, grid, network)
}
PARTS[COMPILED] = partial(update, compiled=True)


def training(args, left: float) -> dict[str, Any]:
    """Some minutes of the training, from where it stopped."""
    from lab import checkpoint

    out = args.outdir / "training"
    if (out / "config.yaml").is_file():
        flags = ["--resume", str(out), "--device", args.device]
    else:
        flags = ["--config", args.network, *common(args), "--outdir", str(out)]
    process = subprocess.Popen([sys.executable, str(measure.ROOT / "train.py"), *flags])
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


def table(results: dict[str, Any]) -> str:
    """Every figure."""
    rows = []
    part = lambda name: results.get(name, {}).items()
    for name in ("update", COMPILED):
        if name in results:
            share = results[name]["share_of_peak"]
            peak = "" if share is None else f", {100 * share:.0f}% of the bfloat16 peak"
            value = measure.shown(results[name]["images_per_second"], 0)
            rows.append([name, f"{value} images/s{peak}"])
    for name, share in list(part("profile"))[:6]:
        rows.append([f"share of an update: `{name}`", f"{100 * share:.1f}%"])
    for name, each in part("sampling"):
        value = f"{each['seconds']:.1f} s, {each['sets'] / each['seconds']:.0f} sets/s"
        rows.append([f"{each['sets']:,} sets of 8, {name}", value])
    if "noise" in results:
        ratio = measure.shown(results["noise"]["over_one_stream"])
        threads = results["noise"]["threads"]
        rows.append([f"noise, {threads} threads, over torch.randn on one core", ratio])
    for name, each in part("guidance"):
        value = measure.shown({key: 1e3 * number for key, number in each.items()}, 1)
        rows.append([f"a gradient of {name}, ms", value])
    for name, each in part("same_seed"):
        value = f"{each['largest_difference']:.1e}; {each['other_modes']} of {each['particles']}"
        rows.append([f"CPU and GPU, {name}: difference; other modes", value])
    for name, each in part("network"):
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
    rows += [[f"{name}: failed", reason] for name, reason in part("failed")]
    return measure.table("on one device | measured", rows)


def main(argv: list[str] | None = None) -> None:
    args = measure.arguments(GPUBenchmarkSettings, argv)
    import torch

    end = time.perf_counter() + 60 * args.minutes
    args.device = pick_device(args.device).type
    path = args.outdir / "gpu.json"
    results = read_json(path) if path.is_file() else {}
    results.pop("machine", None)
    failed = results.setdefault("failed", {})
    if args.train:
        parts, end = dict(training=training), end - SAVING
    else:
        parts = {name: part for name, part in PARTS.items() if args.compile or name != COMPILED}
    for name, part in parts.items():
        left = end - time.perf_counter()
        if not args.train and (name in results or left < LEAST):
            continue
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
        measure.write(args.outdir, "gpu", table(results), args.device, **results)


if __name__ == "__main__":
    main()
