"""Sample sets from a trained (or exact) denoiser, with or without guidance, and judge them.

    python evaluate.py --task conditional --dataset circle_jumping --pg_factor 1.7 --batch_size 8
    python evaluate.py --config runs/NAME/config.yaml     # the same run again

Writes to --outdir: metrics.json, samples.png, samples.npz, config.yaml.
"""
from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any, Iterable

from config import (DigitSettings, EvaluateSettings, GuidanceSettings, RunSettings, SamplerSettings,
                    SettingError, WorldSettings, build, dump_yaml, fail, make_parser, record, reject,
                    run_folder)

GROUPS = (EvaluateSettings, WorldSettings, DigitSettings, SamplerSettings, GuidanceSettings, RunSettings)


# ---------------------------------------------------------------- set-up

def default_checkpoint(dataset: str) -> Path:
    return Path(__file__).parent / "checkpoints" / f"{dataset}.safetensors"


def parse(argv: list[str] | None) -> tuple[dict[type, Any], Path | None]:
    """Settings by group, and the checkpoint (None with the exact denoiser). World settings that
    nobody gave are those of the checkpoint's training. Raises SettingError."""
    parser = make_parser(*GROUPS, description=__doc__.split("\n")[0])
    args = parser.parse_args(argv)
    for group in GROUPS:
        build(group, args)
    if args.task == "unconditional" or args.dataset == "centered":
        key = "task" if args.task == "unconditional" else "dataset"
        reject(key, args[key], "the conditional task on free, circle_jumping or horizontal; judging "
                               "unconditional digits needs a classifier, which is not there yet")
    path, trained = None, {}
    if args.denoiser == "trained":
        import checkpoint

        path = Path(args.checkpoint or default_checkpoint(args.dataset))
        if not path.is_file():
            reject("checkpoint", str(path), "a .safetensors file that train.py wrote, or --denoiser exact")
        trained = checkpoint.read_metadata(path)["settings"]
        parser.set_defaults({key: trained[key] for key in record(WorldSettings()) if key in trained})
        args = parser.parse_args(argv)
    settings = {group: build(group, args) for group in GROUPS}
    check(settings, trained)
    return settings, path


def check(settings: dict[type, Any], trained: dict) -> None:
    """What no single group can know. Raises SettingError."""
    world, exact = settings[WorldSettings], settings[EvaluateSettings].denoiser == "exact"
    for key in ("dataset", "image_size", "num_cond_frames"):
        if trained and trained[key] != getattr(world, key):
            reject(key, getattr(world, key), f"{trained[key]!r}, which the checkpoint was trained with")
    if exact and (world.dataset == "free" or world.num_digits > 1):
        reject("denoiser", "exact", "trained for this world; exact needs circle_jumping or horizontal "
                                    "with one digit, or mixture")
    guidance = settings[GuidanceSettings]
    if guidance.guidance == "kmedoids" and guidance.sequential > 1:
        reject("sequential", guidance.sequential, "1 with --guidance kmedoids, which has no memory")
    if exact and guidance.guidance == "cads":
        reject("guidance", "cads", "any other with --denoiser exact, which has no conditioning to noise")


def setup(argv: list[str] | None = None):
    """The Evaluation that a command line describes. Raises SettingError or FileNotFoundError."""
    settings, path = parse(argv)
    from evaluation import make_evaluation

    return make_evaluation(settings, path)


# ---------------------------------------------------------------- report

def table(result: dict) -> str:
    """The handful of numbers a reader wants first."""
    def line(name: str, value: dict | None, digits: int = 2) -> Iterable[str]:
        if value:
            lo, hi = value["ci95"]
            yield f"  {name:<28}{value['mean']:8.{digits}f}   [{lo:.{digits}f}, {hi:.{digits}f}]"

    settings = result["settings"]
    digits = f"{result['digits_source']} digits (test split), " if result["digits_source"] else ""
    rows = [f"{result['dataset']}: {result['num_sets']} sets of {result['batch_size']}, {digits}"
            f"{settings['denoiser']} denoiser, {result['device']}", f"  {'':<28}{'mean':>8}   95% interval"]
    rows += line(f"modes found, of {result['modes_total']}", result["modes_found"])
    if result["modes_total"]:
        rows.append(f"  {'  independent draws':<28}{result['modes_expected_iid']:8.2f}   expected")
    if result["dataset"] == "horizontal":
        rows += line("p(right)", result["mode_frequencies"][0], 3)
    rows += line("quality (L2, less is better)", result["quality"])
    rows += line("HM IoU*", result.get("hm_iou"), 3)
    for name in ("unimode", "multimode"):
        for key in ("centroid_spread", "pairwise_l2"):
            rows += line(f"{name} {key}", result.get(name, {}).get(key))
    rows.append(f"  {'network calls per particle':<28}{result['network_calls']:8.1f}")
    rows.append(f"  {'seconds':<28}{result['seconds']:8.1f}")
    return "\n".join(rows)


def write(job, samples, modes, result: dict, outdir: Path) -> None:
    import numpy as np

    from figures import result_sheet, save

    arrays = dict(samples=samples, cond=job.cond) | ({} if modes is None else dict(modes=modes))
    if result["dataset"] != "mixture":
        truth = job.sequences
        arrays |= dict(labels=truth.labels, positions=truth.positions, choices=truth.choices)
    np.savez_compressed(outdir / "samples.npz", **{key: value.numpy() for key, value in arrays.items()})
    save(result_sheet(job.cond, samples, modes, result), outdir / "samples.png")
    dump_yaml(result["settings"], outdir / "config.yaml")
    (outdir / "metrics.json").write_text(json.dumps(result, indent=1))


def run(job) -> tuple[Any, Any, dict]:
    """Sample and judge: (samples (G, B, H, W), modes (G, B) or None, the record for metrics.json)."""
    import torch

    start = time.perf_counter()
    samples = job.sample_all()
    seconds = time.perf_counter() - start
    metrics, modes = job.judge(samples)
    particles, world = samples.shape[0] * samples.shape[1], job.world
    result = dict(task=job.evaluate.task, dataset=world.dataset, **metrics, num_sets=job.evaluate.num_sets,
                  batch_size=job.evaluate.batch_size, seconds=round(seconds, 3),
                  network_calls=job.cost.forward / particles, backward_calls=job.cost.backward / particles,
                  digits_source=world.digits.source if hasattr(world, "digits") else None,
                  settings=record(*job.settings.values()) | dict(outdir=None), device=str(job.device),
                  torch=torch.__version__)
    return samples, modes, result


def main(argv: list[str] | None = None) -> None:
    try:
        job = setup(argv)
        outdir = run_folder(job.settings[RunSettings].outdir, f"{job.evaluate.task}-{job.world.dataset}")
    except (SettingError, FileNotFoundError, ValueError) as error:
        fail(str(error))
    samples, modes, result = run(job)
    write(job, samples, modes, result, outdir)
    if not bool(samples.isfinite().all()):
        print("WARNING: some samples are not finite; less guidance helps", file=sys.stderr)
    print(table(result))
    print(f"written to {outdir}")


if __name__ == "__main__":
    main()
