"""Records: what a run writes, and how it is read again.

An evaluation writes to its folder

    config.yaml    the settings and what the run is made with; `evaluate.py --config` repeats it
    sets/          each chunk of sets as soon as it is sampled, until all are written
    samples.npz    the sets, their conditions, and what is known of them
    metrics.json   the metrics, what they cost, and what made them: settings, versions, commit

and, after these, pictures. An experiment writes results.json, which holds the metrics of all cells.
A record is JSON, in which a number that is not finite is null.
"""

from __future__ import annotations

import hashlib
import platform
import shlex
import subprocess
import sys
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Mapping, Sequence

import yaml

from config import (
    WITHOUT_EFFECT,
    EvaluationSettings,
    OriginSettings,
    TrainingSettings,
    as_yaml,
    differences,
)
from diverse_sampling.defaults import SAMPLES_VERSION
from diverse_sampling.errors import reject
from lab.command_line import without_flags
from lab.files import as_json, packed, read_json, sha256_of, write_whole

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

# ---------------------------------------------------------------- written


def arrays_of(
    cond: Tensor, samples: Tensor, modes: Tensor | None, truth: dict[str, Tensor]
) -> dict[str, Tensor]:
    """The tensors that samples.npz holds, by name.

    Arguments:
        cond: (G, Cc, H, W) in [0, 1], the conditioning frames of each set
        samples: (G, B, H, W) in [0, 1] up to overshoot
        modes: (G, B) int64, the mode that each particle is in; None without modes
        truth: what else is known of each set, as `Task.truth` returns it
    """
    arrays = dict(samples=samples, cond=cond)
    if modes is not None:
        arrays["modes"] = modes
    return arrays | truth


def begin(outdir: Path, record: Mapping[str, Any]) -> None:
    """Write the config.yaml of a run with this record of settings and, of own data, the data.yaml
    that was understood. Raises OSError."""
    write_whole(outdir / "config.yaml", as_yaml(record))
    if record.get("data") is not None:
        write_whole(outdir / "data.yaml", record["data"])


def write(arrays: dict[str, Tensor], result: dict[str, Any], outdir: Path) -> None:
    """Write an evaluation's samples.npz, config.yaml and metrics.json. Raises OSError."""
    write_whole(outdir / "samples.npz", packed(arrays))
    begin(outdir, result["settings"])
    write_whole(outdir / "metrics.json", as_json(result, indent=1))


def origin(
    settings: EvaluationSettings | TrainingSettings, world: Any, checkpoint: Path | None = None
) -> dict[str, Any]:
    """What is found here of what makes a run, as settings: versions, hashes, the source of digits.

    Arguments:
        settings: of the run
        world: what is sampled or trained
        checkpoint: the trained network's file, if it has one
    """
    found: dict[str, Any] = {f.name: None for f in fields(OriginSettings)}
    found["samples_version"] = SAMPLES_VERSION
    found["checkpoint_sha256"] = checkpoint and sha256_of(checkpoint)
    record = settings.record()
    if record.get("from_run") is not None:
        found["from_run_sha256"] = sha256_of(run_file(record["from_run"], "samples.npz"))
        before = result_of(record["from_run"])["settings"].get("redraws")
        found["redraws"] = (before or 0) + 1
    if record.get("classifier") is not None:
        from lab.checkpoint import noisy_classifier_path

        path = noisy_classifier_path(record["classifier"])
        found["classifier_sha256"] = sha256_of(path) if path.is_file() else None
    if settings.world.dataset == "frames":
        found["frames_sha256"] = world.data.record()["sha256"]
        found["data"] = world.data.description.as_yaml()  # how they were understood
    elif settings.world.dataset != "mixture":
        from data_loader import digits_sha256

        found["digits_sha256"] = digits_sha256(world.source, settings.digits.data_root)
        if "+" not in world.source:  # of a mixture, `both` says it
            found["digits"] = world.source
    return found


def key_of(record: Mapping[str, Any]) -> str:
    """A name for the run with these settings: alike for those that give the same result."""
    known = {key: value for key, value in record.items() if key not in WITHOUT_EFFECT}
    return hashlib.sha256(as_json(known, sort_keys=True).encode()).hexdigest()[:16]


def refuse_other_run(outdir: Path, record: Mapping[str, Any]) -> None:
    """Raise SettingError if a folder holds another run than the one with this record of settings.

    Keys that only the folder's record has were settings of an earlier version, or are options of
    methods that the run does not use.
    """
    config, metrics = outdir / "config.yaml", outdir / "metrics.json"
    if config.is_file():
        try:
            there = yaml.safe_load(config.read_text(encoding="utf-8"))
        except (yaml.YAMLError, ValueError):
            there = None
        path = config
    elif metrics.is_file():
        there, path = result_of(str(outdir))["settings"], metrics
    else:
        return
    accepted = f"a folder that is new or holds this very run; {path.name} there says otherwise"
    if not isinstance(there, dict):
        reject("outdir", str(outdir), accepted)
    differ = differences({key: there.get(key) for key in record}, record)
    if differ:
        reject("outdir", str(outdir), f"{accepted} ({', '.join(differ[:3])})")


def write_predictions(
    samples: Tensor, names: list[str], result: dict[str, Any], folder: Path
) -> None:
    """Write each sample as a picture, folder/NAME/particle_0.png and so on; of a roll-out each
    frame, folder/NAME/particle_0/frame_1.png. `summary_pictures` of masks and classes come beside.

    Class labels have the values that the training's answers had, masks are black and white, other
    samples 8-bit grey or colour.

    Arguments:
        samples: (G, B, H, W), (G, B, 3, H, W) in colour, class labels (G, B, H, W), or a roll-out
            with an axis of frames after B
        names: of the G sequences
        result: the record of metrics.json
        folder: where to; raises OSError where it cannot be written
    """
    for particles, name in zip(samples, names):
        for what, picture in summary_pictures(particles, result).items():
            _write_picture(folder / name / what, picture)
        for b, sample in enumerate(particles):
            pixels = _pixels(sample, result)
            place = folder / name / f"particle_{b}"
            if result["settings"]["rollout"] == 1:
                _write_picture(place, pixels)
            else:
                for t, picture in enumerate(pixels, start=1):
                    _write_picture(place / f"frame_{t}", picture)


def _write_picture(path: Path, pixels: np.ndarray) -> None:
    """Write a picture (H, W) or (3, H, W) to a PNG or, if no PNG holds its numbers, to a TIFF."""
    import numpy as np
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    colours_last = np.moveaxis(pixels, 0, -1) if pixels.ndim == 3 else pixels
    suffix = ".tif" if pixels.dtype == np.int32 else ".png"
    Image.fromarray(colours_last).save(path.with_name(path.name + suffix))


def summary_pictures(particles: Tensor, result: dict[str, Any]) -> dict[str, np.ndarray]:
    """Pictures that sum up a set of masks or of class labels, by name; none of other samples.

    `consensus`, as the samples are written: the class that most particles have at a pixel.
    `disagreement` (H, W) uint8: the entropy of their classes there, 0 if all agree, 255 if all
    classes are equally frequent (`metrics.consensus` and `metrics.disagreement`).

    Arguments:
        particles: (B, H, W), the samples of one case
        result: the record of metrics.json
    """
    from lab.metrics import consensus, disagreement

    classes = result["label_classes"]
    if not classes and not result["draws_masks"]:
        return {}
    return dict(
        consensus=_pixels(consensus(particles, classes), result),
        disagreement=(disagreement(particles, classes) * 255).round().byte().numpy(),
    )


def _pixels(sample: Tensor, result: dict[str, Any]) -> np.ndarray:
    """A sample as it is written, in the numbers of a picture's file."""
    if result["label_classes"]:
        return as_written(sample, result["label_values"])
    levels = sample.clamp(0, 1)
    levels = (levels > 0.5).float() if result["draws_masks"] else levels
    return (levels * 255).round().byte().numpy()


def as_written(labels: Tensor, values: Sequence[Any]) -> np.ndarray:
    """Class labels (..., H, W) as the values that the training's answers had, in an array that a
    picture can hold: colours (..., 3, H, W) uint8, or (..., H, W) uint8, uint16 or int32.

    Raises SettingError if none can.
    """
    import numpy as np

    table = np.array(values, np.float64)
    types = [np.uint8] if table.ndim == 2 else [np.uint8, np.uint16, np.int32]
    for each in types:
        if (table == table.astype(each)).all():
            pixels = table.astype(each)[labels.numpy()]
            return np.moveaxis(pixels, -1, -3) if table.ndim == 2 else pixels
    reject("classes", list(values), "values that a PNG or TIFF holds, whole and below 2^31")


def provenance(origin: OriginSettings) -> dict[str, Any]:
    """What made a result: `made_by`, the libraries' versions, the hashes of its checkpoint and
    digits."""
    import numpy
    import torch

    return dict(
        **made_by(),
        versions=dict(
            python=platform.python_version(), torch=torch.__version__, numpy=numpy.__version__
        ),
        checkpoint_sha256=origin.checkpoint_sha256,
        digits_sha256=origin.digits_sha256,
    )


def made_by() -> dict[str, Any]:
    """What every record says of its making: {version: of samples, commit, command}.

    The command is the one that was typed, without the folder that it writes to.
    """
    program = Path(sys.argv[0]).resolve()
    root = Path(__file__).resolve().parent.parent
    name = program.relative_to(root) if program.is_relative_to(root) else program.name
    flags = without_flags(sys.argv[1:], "--outdir")
    command = shlex.join(["python", str(name), *flags])
    return dict(version=SAMPLES_VERSION, commit=commit_of_the_code(), command=command)


@lru_cache
def commit_of_the_code() -> str | None:
    """The commit that is checked out, with a + if files differ from it; None outside of git.

    Asked once a process, not for every cell of an experiment.
    """
    commit = _git("rev-parse", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no")
    return commit and commit + ("+" if changed else "")


def _git(*command: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *command],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


# ---------------------------------------------------------------- read


def run_file(run: str, name: str) -> Path:
    """The path of a file in a run's folder. Raises SettingError where there is none."""
    path = Path(run) / name
    if not path.is_file():
        reject(
            "run",
            run,
            f"a folder with the {name} that evaluate.py writes; {path.absolute()} was not found",
        )
    return path


def result_of(run: str) -> dict[str, Any]:
    """The record in metrics.json of an evaluation. Raises SettingError for a folder without it."""
    result = read_json(run_file(run, "metrics.json"), "run")
    if not isinstance(result, dict) or "settings" not in result:
        reject("run", run, "a folder with the metrics.json that evaluate.py writes")
    return result


def finished(run: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(the arrays of samples.npz, the record in metrics.json) of an evaluation.

    Raises SettingError for a folder without them.
    """
    import torch

    from worlds.files import read_npz

    result = result_of(run)
    arrays = read_npz(run_file(run, "samples.npz"), "run")
    return {name: torch.from_numpy(array) for name, array in arrays.items()}, result


def is_experiment(run: str) -> bool:
    """Whether a folder is that of a finished experiment."""
    return (Path(run) / "results.json").is_file()


def experiment_of(run: str) -> dict[str, Any]:
    """The record in results.json of an experiment: its title, its figure, and its rows.

    A row is {cell: its place on every axis, result: as in metrics.json}. Raises SettingError for a
    folder without it.
    """
    record = read_json(run_file(run, "results.json"), "run")
    if not isinstance(record, dict) or "rows" not in record:
        reject("run", run, "a folder with the results.json that evaluate.py --experiment writes")
    return record


def label(row: dict[str, Any]) -> str:
    """A cell's place in its experiment, for a legend."""
    return ", ".join(
        value if isinstance(value, str) else f"{axis} {value:g}"
        for axis, value in row["cell"].items()
    )
