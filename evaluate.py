#!/usr/bin/env python3
"""Sample sets from a trained (or exact) denoiser, with or without guidance, and judge them.

    python evaluate.py --task conditional --dataset circle_jumping --pg_factor 1.7 --batch_size 8
    python evaluate.py --config runs/NAME/config.yaml     # the same run again
    python evaluate.py --experiment e5 --preset quick     # a whole grid, resumable

Writes to --outdir: metrics.json, samples.png, samples.npz, config.yaml; of an experiment
results.json, a picture, and its finished cells.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from functools import lru_cache
from pathlib import Path
from typing import Any, Iterable

import experiments
import tracking
from command_line import Parser, claim, fail, make_parser, run_folder, run_program, silent
from config import (
    DigitSettings,
    TaskSettings,
    ExperimentSettings,
    GuidanceSettings,
    RunSettings,
    SamplerSettings,
    SettingError,
    TrackingSettings,
    WorldSettings,
    as_yaml,
    build,
    record,
    reject,
)
from records import source_of

GROUPS: tuple[type, ...] = (
    TaskSettings,
    WorldSettings,
    DigitSettings,
    SamplerSettings,
    GuidanceSettings,
    RunSettings,
)


# ---------------------------------------------------------------- set-up


def find_checkpoint(name: str | None, dataset: str, p: float | None) -> Path:
    """A file, or a shipped network by its name; without one, the shipped network of the world."""
    if name is not None and Path(name).is_file():
        return Path(name)
    default = (
        f"{dataset}_p{100 * (0.5 if p is None else p):.0f}" if dataset == "horizontal" else dataset
    )
    path = Path(__file__).parent / "checkpoints" / f"{name or default}.safetensors"
    if not path.is_file():
        shipped = sorted(
            p.stem for p in path.parent.glob("*.safetensors") if not p.stem.startswith("classifier")
        )
        reject(
            "checkpoint",
            name or default,
            f"a file that train.py wrote, or one of {', '.join(shipped)}",
        )
    return path


def command_line() -> Parser:
    """Tracking and experiments are about runs, not about what they find: no record of a result has them."""
    return make_parser(
        *GROUPS,
        ExperimentSettings,
        TrackingSettings,
        description=__doc__.split("\n")[0],
        usage="%(prog)s [options]",
    )


def parse(argv: list[str] | None) -> tuple[dict[type, Any], Path | None]:
    """Settings by group, and the checkpoint (None with the exact denoiser). World settings that
    nobody gave are those of the checkpoint's training. Raises SettingError."""
    parser = command_line()
    args = parser.parse_args(silent(argv))
    implied = (
        "centered"
        if args.task == "unconditional"
        else "frames"
        if args.frames is not None
        else None
    )
    if implied is not None:
        parser.set_defaults(dataset=implied)
        args = parser.parse_args(silent(argv))
    for group in GROUPS:
        build(group, args)
    path, trained = None, {}
    if args.denoiser == "trained":
        import checkpoint

        path = find_checkpoint(args.checkpoint, args.dataset, args.p)
        trained = checkpoint.denoiser_metadata(path)["settings"]
        parser.set_defaults(
            {key: trained[key] for key in record(WorldSettings()) if key in trained}
        )
    args = parser.parse_args(argv)
    settings: dict[type, Any] = {group: build(group, args) for group in GROUPS}
    offered = "conditional" if settings[WorldSettings].num_cond_frames else "unconditional"
    settings[TaskSettings].task = args.task or offered
    check(settings, trained, offered)
    return settings, path


def check(settings: dict[type, Any], trained: dict, offered: str) -> None:
    """What no single group can know. Raises SettingError."""
    world, exact = settings[WorldSettings], settings[TaskSettings].denoiser == "exact"
    if settings[TaskSettings].task != offered and world.dataset != "mixture":
        reject("task", settings[TaskSettings].task, f"{offered} with dataset {world.dataset}")
    if offered == "unconditional" and world.dataset != "centered":
        reject("num_cond_frames", 0, "1 or more; out of nothing there is only dataset centered")
    if world.dataset == "frames" and settings[GuidanceSettings].pg_features == "classifier":
        reject("pg_features", "classifier", "pixels with frames; the classifier knows digits only")
    for key in ("dataset", "image_size", "num_cond_frames"):
        if trained and trained[key] != getattr(world, key):
            reject(
                key, getattr(world, key), f"{trained[key]!r}, which the checkpoint was trained with"
            )
    if exact and (world.dataset in ("free", "centered") or world.num_digits > 1):
        reject(
            "denoiser",
            "exact",
            "trained for this world; exact needs circle_jumping or horizontal "
            "with one digit, or mixture",
        )
    guidance = settings[GuidanceSettings]
    if guidance.guidance == "kmedoids" and guidance.sequential > 1:
        reject("sequential", guidance.sequential, "1 with --guidance kmedoids, which has no memory")
    if guidance.guidance == "cads" and (exact or offered == "unconditional"):
        reject(
            "guidance",
            "cads",
            "any other with --denoiser exact or --task unconditional, where there is no "
            "conditioning to noise",
        )


def setup(argv: list[str] | None = None):
    """The Evaluation that a command line describes. Raises SettingError or FileNotFoundError."""
    settings, path = parse(argv)
    from set_sampler import make_evaluation

    return make_evaluation(settings, path)


# ---------------------------------------------------------------- report


def table(result: dict) -> str:
    """The handful of numbers a reader wants first."""

    def line(name: str, value: dict | None, digits: int = 2) -> Iterable[str]:
        if value:
            lo, hi = value["ci95"]
            yield f"  {name:<28}{value['mean']:8.{digits}f}   [{lo:.{digits}f}, {hi:.{digits}f}]"

    settings = result["settings"]
    what = [
        f"{result['num_sets']} sets of {result['batch_size']}",
        source_of(result),
        f"{settings['denoiser']} denoiser",
        result["device"],
    ]
    rows = [
        f"{result['dataset']}: {', '.join(filter(None, what))}",
        f"  {'':<28}{'mean':>8}   95% interval",
    ]
    rows += line(f"modes found, of {result['modes_total']}", result["modes_found"])
    if result["modes_total"]:
        rows.append(f"  {'  independent draws':<28}{result['modes_expected_iid']:8.2f}   expected")
    if result["dataset"] == "horizontal":
        rows += line("p(right)", result["mode_frequencies"][0], 3)
    rows += line("quality (L2, less is better)", result["quality"])
    rows += line("confidence", result.get("confidence"), 3)
    rows += line("HM IoU*", result.get("hm_iou"), 3)
    if result["dataset"] == "frames":
        rows += line("mean IoU", result["mean_iou"], 3)
        rows += line("GED (less is better)", result["ged"], 3)
    for name in ("unimode", "multimode"):
        for key in ("centroid_spread", "pairwise_l2"):
            rows += line(f"{name} {key}", result.get(name, {}).get(key))
    rows.append(f"  {'network calls per particle':<28}{result['network_calls']:8.1f}")
    rows.append(f"  {'seconds':<28}{result['seconds']:8.1f}")
    return "\n".join(rows)


def arrays_of(job, samples, modes) -> dict[str, Any]:
    """The tensors that samples.npz holds: those of the sets, their conditioning, and what is known of them."""
    return (
        dict(samples=samples, cond=job.cond)
        | ({} if modes is None else dict(modes=modes))
        | job.truth()
    )


def write(job, samples, modes, result: dict, outdir: Path) -> None:
    """The four files of an evaluation. samples (G, B, H, W) in [0, 1], modes (G, B) int64 or None. Raises OSError."""
    import numpy as np

    from drawing import save
    from sheets import result_sheet

    arrays = arrays_of(job, samples, modes)
    np.savez_compressed(
        outdir / "samples.npz", **{key: value.numpy() for key, value in arrays.items()}
    )
    save(result_sheet(arrays, result), outdir / "samples.png")
    (outdir / "config.yaml").write_text(as_yaml(result["settings"]))
    (outdir / "metrics.json").write_text(json.dumps(result, indent=1))


@lru_cache
def commit_of_the_code() -> str | None:
    """The commit that is checked out, with a + if files differ from it; asked once, not for every cell of a grid."""

    def git(*command: str) -> str | None:
        try:
            return subprocess.run(
                ["git", *command],
                cwd=Path(__file__).parent,
                capture_output=True,
                text=True,
                check=True,
            ).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return None

    commit, changed = git("rev-parse", "HEAD"), git("status", "--porcelain", "--untracked-files=no")
    return commit and commit + ("+" if changed else "")


def provenance(path: Path | None) -> dict[str, Any]:
    """What made a result: versions, the commit of this code, the checkpoint."""
    import numpy
    import torch

    return dict(
        versions=dict(
            python=platform.python_version(), torch=torch.__version__, numpy=numpy.__version__
        ),
        commit=commit_of_the_code(),
        checkpoint_sha256=path and hashlib.sha256(path.read_bytes()).hexdigest(),
    )


def settings_of(job) -> dict[str, Any]:
    """The record that repeats an evaluation, wherever it is written to."""
    return record(*job.settings.values()) | dict(outdir=None)


def refuse_other_run(held: Path, this: str) -> None:
    """Raise SettingError if `held`, a file in a folder of results, does not describe `this` run."""
    if held.is_file() and held.read_text() != this:
        reject(
            "outdir",
            str(held.parent),
            f"a folder that is new or holds this very run; {held.name} there says otherwise",
        )


def run(job, progress: bool = True) -> tuple[Any, Any, dict]:
    """Sample and judge: (samples (G, B, H, W), modes (G, B) or None, the record for metrics.json)."""
    start = time.perf_counter()
    samples = job.sample_all(progress)
    seconds = time.perf_counter() - start
    metrics, modes = job.judge(samples)
    particles, world = samples.shape[0] * samples.shape[1], job.world
    result = dict(
        task=job.evaluate.task,
        dataset=world.dataset,
        **metrics,
        num_sets=job.evaluate.num_sets,
        batch_size=job.evaluate.batch_size,
        seconds=round(seconds, 3),
        network_calls=job.cost.forward / particles,
        backward_calls=job.cost.backward / particles,
        digits_source=world.source,
        settings=settings_of(job),
        device=str(job.device),
        **provenance(job.path),
    )
    return samples, modes, result


def run_experiment(
    name: str, preset: str, flags: list[str], outdir: Path, tracker: tracking.Tracker
) -> None:
    """All cells of an experiment, its table and its picture."""
    import visualize

    try:
        rows = experiments.run(name, preset, flags, outdir)
    except KeyboardInterrupt as stop:
        done = len(list((outdir / "cells").glob("*.json")))
        stop.args += (f"{done} finished cells are kept in {outdir}, the same command goes on",)
        raise
    if int(os.environ.get("RANK", 0)) == 0:
        picture = visualize.draw([experiments.load(name)["figure"], str(outdir)])
        tracker.table(
            [row["cell"] | tracking.numbers(experiments.brief(row["result"])) for row in rows],
            experiments.table(rows),
        )
        tracker.picture(picture)
        print(experiments.table(rows))
        print(f"written to {picture}")


def main(argv: list[str] | None = None) -> None:
    """Run an evaluation or an experiment; a mistake ends with one line and exit code 2."""
    argv = sys.argv[1:] if argv is None else argv
    # What remains are the flags that hold for every cell of an experiment.
    whole = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for flag in ("--experiment", "--preset", "--outdir", "--wandb", "--tensorboard"):
        whole.add_argument(flag)
    asked, flags = whole.parse_known_args(argv)
    try:
        if asked.experiment:
            args = command_line().parse_args(argv)
            experiments.load(asked.experiment)
            outdir = run_folder(asked.outdir or f"runs/{asked.experiment}-{args.preset}", "")
            config = dict(experiment=asked.experiment, preset=args.preset, flags=" ".join(flags))
            with tracking.start(
                build(TrackingSettings, args), outdir, config, continued=True
            ) as tracker:
                return run_experiment(asked.experiment, args.preset, flags, outdir, tracker)
        args = command_line().parse_args(silent(argv))
        if args.experiment:
            reject(
                "experiment", args.experiment, "a flag; a --config file describes one evaluation"
            )
        job = setup(argv)
        outdir = run_folder(
            job.settings[RunSettings].outdir, f"{job.evaluate.task}-{job.world.dataset}"
        )
        refuse_other_run(outdir / "config.yaml", as_yaml(settings_of(job)))
        lock = claim(outdir)
        tracker = tracking.start(build(TrackingSettings, args), outdir, settings_of(job))
    except (SettingError, FileNotFoundError, ValueError) as error:
        fail(str(error))
    with lock, tracker:
        samples, modes, result = run(job)
        write(job, samples, modes, result, outdir)
        tracker.results(tracking.numbers(experiments.brief(result)))
        tracker.picture(outdir / "samples.png")
    if (largest := float(samples.abs().max())) > 10:
        print(
            f"WARNING: samples of up to {largest:.1g}, far outside of [0, 1]; less guidance helps",
            file=sys.stderr,
        )
    print(table(result))
    print(f"written to {outdir}")


if __name__ == "__main__":
    run_program(main)
