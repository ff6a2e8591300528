#!/usr/bin/env python3
"""Sample sets with or without guidance, and measure how many correct answers they cover.

    python evaluate.py --task conditional --dataset circle_jumping --pg_factor 1.7 --batch_size 8
    python evaluate.py --config runs/NAME/config.yaml     # the same run again
    python evaluate.py --from_run runs/NAME --redraw 3    # but for particle 3 of each set
    python evaluate.py --experiment e5 --preset quick     # a whole grid, resumable

Writes to --outdir: metrics.json, samples.npz, config.yaml and samples.png; of an experiment
results.json, a picture, and its finished cells.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable

from config import EvaluationSettings, TrackingSettings, build
from diverse_sampling.errors import SettingError
from diverse_sampling.method import option_keys
from lab import assemble, experiments, records, tracking
from lab.command_line import (
    Stopped,
    claim,
    fail,
    run_folder,
    run_program,
    this_process,
    without_flags,
)
from lab.files import distinct
from lab.names import INDEPENDENT, METRICS, method_of, source_of
from lab.processes import of_first
from worlds.description import text_of

if TYPE_CHECKING:
    from lab.chunks import Chunk

# ---------------------------------------------------------------- what is printed

LEAST_ACCURACY = 0.9  # of the judge of own pictures; below, a warning is printed
# Of own frames, beside what all worlds have.
FRAMES_ROWS = (
    *("nearest_in_class", "test_nearest_in_class", "judge_accuracy"),
    *("mean_iou", "d_max", "ged", "ci_score", "energy_score", "fair_energy_score"),
    *("spread_skill", "iou_distance", "answers_iou_distance", "distance_to_answers"),
)


def table(result: dict[str, Any]) -> str:
    """The metrics that a reader wants first, as text: result as in metrics.json."""
    settings = result["settings"]
    what = [
        f"{result['num_sets']} set{'s' * (result['num_sets'] != 1)} of {result['batch_size']}",
        method_of(settings),
        source_of(result),
        f"{settings['denoiser']} denoiser",
        result["device"],
    ]
    lines = [
        f"{result['dataset']}: {', '.join(text for text in what if text)}",
        f"  {sampled(result)}",
        f"  {'':<28}{'mean':>8}   95% interval",
    ]
    lines += _row("modes_found", result["modes_found"], f", of {result['modes_total']}")
    if result["modes_total"]:
        lines.append(f"  {'  independent draws':<28}{result['modes_expected_iid']:8.2f}   expected")
    lines += _row("modes_shown", result.get("modes_shown"))
    if result["dataset"] == "horizontal" and result["modes_total"]:
        lines += _row("p_right", result["mode_frequencies"][0])
    conditional = result["task"] == "conditional"
    for key in ("coverage", "energy_score", "ged") if "coverage" in result and conditional else ():
        lines += _row(key, result[key])
    for key in ("composition_met", "quality", "confidence", "agreement", "hm_iou"):
        lines += _row(key, result.get(key))
    if "shares_error" in result:
        lines.append(f"  {METRICS['shares_error'].title:<28}{result['shares_error']:8.3f}")
    for key in ("displacement", "spread_inside"):
        if key in result:
            lines.append(f"  {METRICS[key].title:<28}{result[key]:8.2f}   sd")
    if result["dataset"] == "frames":
        for key in FRAMES_ROWS:
            lines += _row(key, result.get(key))
        for c, metric in enumerate(result.get("class_iou", []), start=1):
            lines += _row("class_iou", metric, f" {text_of(result['label_values'][c])}")
    for kind in ("unimode", "multimode"):
        for key in ("centroid_spread", "pairwise_l2"):
            lines += _row(key, result.get(kind, {}).get(key), before=f"{kind} ")
    kept = f", and {result['pilot_calls']:.1f} of a pilot" if result["pilot_calls"] else ""
    lines.append(f"  {'price':<28}{result['price']:8.1f}   network calls per sample{kept}")
    lines.append(f"  {'seconds':<28}{result['seconds']:8.1f}")
    said = diagnosis(result)
    return "\n".join([*lines, f"  {said}"] if said else lines)


def diagnosis(result: dict[str, Any]) -> str | None:
    """Whether sets spread as the answers do, in words; None where that is not known.

    If cases have one answer, it is compared how far sets spread and how far their mean errs.
    `result` is as in metrics.json.
    """
    ratio = result.get("dataset") == "frames" and result.get("spread_skill")
    if ratio and ratio["ci95"] is not None:
        low, high = ratio["ci95"]
        if high < 1:
            return "the samples of a set differ less than they err: guidance may be for this case"
        if low > 1:
            return "the samples of a set differ more than they err: guidance would add to it"
        return "the samples of a set differ as much as they err: guidance would add to it"
    excess = result.get("excess_spread")
    if not excess or excess["ci95"] is None:
        return None
    low, high = excess["ci95"]
    if high < 0:
        return "the samples of a set differ less than the answers do: guidance is for this case"
    if low > 0:
        guided = method_of(result["settings"]) != INDEPENDENT
        advice = "independent ones may be better" if guided else "guidance would add to it"
        low, high = result["iou_distance"]["ci95"]
        calibrated = low <= result["distance_to_answers"]["mean"] <= high
        knows = " (as much as a sample and an answer: the network knows no better)"
        return f"the samples of a set differ more than the answers do{knows * calibrated}: {advice}"
    return "the samples of a set differ as much as the answers do"


def sampled(result: dict[str, Any]) -> str:
    """What was chosen for the sampler and the guidance, in words."""
    settings = result["settings"]
    text = f"sampler {settings['sampler']}"
    if "window" in result:
        low, high, churn = result["window"]
        text += f", noise levels {high:.3g} to {low:.3g}, each after {churn:.0%} of new noise"
    if settings["guidance"] == "pg" and settings["pg_factor"]:
        text += "; guided"
        if "decisions" in result:
            text += " where a pilot found what is undecided"
    if settings.get("redraw") is not None:
        again = ", ".join(map(str, settings["redraw"]))
        text += f"; drawn again: {again} of each set of {settings['from_run']}"
    return text


def _row(key: str, value: dict[str, Any] | None, after: str = "", before: str = "") -> list[str]:
    """The line of one metric {mean, ci95}; none where the result does not have it."""
    if not value:
        return []
    metric = METRICS[key]
    if metric.less_is_better:
        after += " (less is better)"
    interval = "one set, no interval"
    if value["ci95"] is not None:
        low, high = value["ci95"]
        interval = f"[{low:.{metric.decimals}f}, {high:.{metric.decimals}f}]"
    name = before + metric.title + after
    return [f"  {name:<28}{value['mean']:8.{metric.decimals}f}   {interval}"]


# ---------------------------------------------------------------- what runs


def evaluate(values: dict[str, Any]) -> None:
    """Run one evaluation, write its files and print its table.

    Arguments:
        values: what was given, flat {setting: value}

    A mistake ends with one line and exit code 2.
    """
    first = this_process()[0] == 0
    outdir: Any = None
    try:
        evaluation = assemble.set_up(*assemble.complete(values))
        settings, record = evaluation.settings, evaluation.record()
        lock: Any = nullcontext()
        tracker = tracking.Tracker()
        if first:
            name = f"{settings.evaluate.task}-{settings.world.dataset}"
            outdir = run_folder(settings.run.outdir, name)
            records.refuse_other_run(outdir, record)
            lock = claim(outdir)
            tracker = tracking.start(build(TrackingSettings, values), outdir, record)
    except (SettingError, FileNotFoundError, ValueError) as error:
        fail(str(error))
    with lock, tracker:
        outdir = of_first(outdir)
        if first:
            for notice in evaluation.notices:
                print(f"evaluate.py: {notice}", file=sys.stderr)
        sampled = sample(evaluation, outdir)
        if first:
            arrays, result = write(evaluation, sampled, outdir)
            tracker.results(tracking.numbers(experiments.brief(result)))
            draw(evaluation, arrays, result, outdir, tracker)
    if first:
        warn(arrays, result)
        print(table(result))
        print(f"written to {outdir}")


def sample(evaluation: assemble.Evaluation, outdir: Path) -> Chunk:
    """Sample all sets, as `Evaluation.sampled` returns them.

    Each chunk of them is written to the folder of the run as soon as it is there, without answers
    also as predictions. Raises OSError.
    """
    from diverse_sampling.devices import out_of_memory
    from lab.chunks import Kept, without

    record = evaluation.record()
    task: Any = evaluation.task
    kept = Kept(outdir, records.key_of(record))
    done: set[int] = set()
    first = this_process()[0] == 0
    predicts = record["dataset"] == "frames" and record["answers"] == "none"
    names = distinct(task.names) if predicts else []
    about = evaluation.kind_of_samples() | dict(settings=record)

    def tell(chunk: Chunk) -> None:
        if first and not done:
            records.begin(outdir, record)
        sets = chunk["sets"].tolist()
        if predicts:
            samples = chunk.get("rollout", chunk["samples"])
            own = [names[number] for number in sets]
            records.write_predictions(samples, own, about, outdir / "predictions")
        done.update(sets)

    try:
        sampled = evaluation.sampled(kept=kept, tell=tell)
        missing = without(sampled, done)  # those of processes that have another disk
        if first and len(missing["sets"]):
            tell(missing)
    except Stopped as stop:
        stop.hint = going_on(len(done), outdir)
        raise
    except OSError as error:
        raise OSError("; ".join(filter(None, (str(error), going_on(len(done), outdir))))) from None
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        fail(
            f"batch_size: got {record['batch_size']}; accepted: fewer particles, which fit into "
            "memory"
        )
    return sampled


def going_on(done: int, outdir: Path) -> str:
    """How a run that was stopped goes on; nothing if it has finished nothing."""
    again = f"--config {outdir / 'config.yaml'} --outdir {outdir} goes on"
    return f"{done} finished sets are kept in {outdir}, {again}" if done else ""


def write(
    evaluation: assemble.Evaluation, sampled: dict[str, Any], outdir: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Measure what was sampled, and write it: (the arrays of samples.npz, the record)."""
    from lab.chunks import Kept

    modes, result = evaluation.measured(sampled)
    task: Any = evaluation.task
    arrays = records.arrays_of(task.cond, sampled["samples"], modes, task.truth())
    if "rollout" in sampled:
        arrays["rollout"] = sampled["rollout"]
    records.write(arrays, result, outdir)
    Kept(outdir, records.key_of(evaluation.record())).remove()
    return arrays, result


def draw(
    evaluation: assemble.Evaluation,
    arrays: dict[str, Any],
    result: dict[str, Any],
    outdir: Path,
    tracker: tracking.Tracker,
) -> None:
    """Draw what was sampled; a picture that cannot be drawn costs a warning."""
    from figures.drawing import attempt, save
    from figures.sheets import examples_sheet, rollout_sheet

    task: Any = evaluation.task
    pictures: dict[str, Callable[[Path], None]] = {}
    if "rollout" in arrays:
        sheet = lambda: rollout_sheet(task.cond, arrays["rollout"])
        pictures["rollout.png"] = lambda path: save(sheet(), path)
    if evaluation.settings.world.dataset == "frames":
        pictures["examples.png"] = lambda path: save(examples_sheet(task.world), path)
    pictures["samples.png"] = lambda path: draw_samples(arrays, result, path)
    for name, write_picture in pictures.items():
        drawn = attempt(write_picture, outdir / name)
    if drawn:
        tracker.picture(outdir / "samples.png")


def draw_samples(arrays: dict[str, Any], result: dict[str, Any], path: Path) -> None:
    """Write the sheet of samples: arrays as in samples.npz, result as in metrics.json."""
    from figures.drawing import save
    from figures.sheets import result_sheet

    save(result_sheet(arrays, result), path)


def warn(arrays: dict[str, Any], result: dict[str, Any]) -> None:
    """Warnings of what a reader of the table should know."""
    largest = float(arrays["samples"].abs().max())
    if largest > 10:
        print(
            f"WARNING: samples of up to {largest:.1g}, far outside of [0, 1]; less guidance helps",
            file=sys.stderr,
        )
    judge = result.get("judge_accuracy")
    if judge and judge["mean"] < LEAST_ACCURACY:
        print(
            f"WARNING: the judge recognises {judge['mean']:.0%} of the test pictures, so it may "
            "miss or invent modes",
            file=sys.stderr,
        )


def run_experiment(values: dict[str, Any], flags: list[str]) -> None:
    """Run all cells of an experiment, write its files, draw its picture and print its table.

    Arguments:
        values: what was given, flat {setting: value}
        flags: as they were typed, without those that describe the experiment itself

    A mistake ends with one line and exit code 2.
    """
    name = values["experiment"]
    preset = values.get("preset", "quick")
    own = {*EvaluationSettings.keys(), *option_keys()} - {"outdir"}
    shared = {key: values[key] for key in values if key in own}
    try:
        experiments.load(name)  # a name without a recipe is refused before there is a folder
        outdir = run_folder(values.get("outdir") or f"runs/{name}-{preset}", "")
        config = dict(experiment=name, preset=preset, flags=" ".join(flags))
        tracker = tracking.start(build(TrackingSettings, values), outdir, config, continued=True)
        with tracker:
            try:
                rows = experiments.run(name, preset, shared, outdir, flags)
            except Stopped as stop:
                done = len(list((outdir / "cells").glob("*.json")))
                stop.hint = f"{done} finished cells are kept in {outdir}, the same command goes on"
                raise
            if this_process()[0] > 0:
                return
            from figures.drawing import attempt, save
            from figures.gallery import figures

            text = experiments.table(rows)
            numbers = [
                row["cell"] | tracking.numbers(experiments.brief(row["result"])) for row in rows
            ]
            tracker.table(numbers, text)
            print(text)
            for picture, path in figures(str(outdir)):
                if attempt(lambda path: save(picture(), path), path):
                    tracker.picture(path)
                    print(f"written to {path}")
    except (SettingError, FileNotFoundError, ValueError) as error:
        fail(str(error))


def main(argv: list[str] | None = None) -> None:
    """Run an evaluation or an experiment; a mistake ends with one line and exit code 2."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        values = assemble.chosen(assemble.evaluation_parser(__doc__.split("\n")[0]), argv)
    except (SettingError, FileNotFoundError, ValueError) as error:
        fail(str(error))
    if values.get("experiment"):
        flags = without_flags(
            argv, "--experiment", "--preset", "--outdir", "--wandb", "--tensorboard"
        )
        run_experiment(values, flags)
    else:
        evaluate(values)


if __name__ == "__main__":
    run_program(main)
