"""Records: what a run writes, and how it is read again.

An evaluation writes to its folder

    metrics.json   the metrics, what they cost, and what made them: settings, versions, commit
    samples.npz    the sets, their conditions, and what is known of them
    config.yaml    the settings; `evaluate.py --config` repeats the run with them

and, after these, pictures. An experiment writes results.json, which holds the metrics of all cells.
"""

from __future__ import annotations

import hashlib
import json
import platform
import shlex
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Mapping

import yaml

from config import as_yaml
from diverse_sampling.defaults import SAMPLES_VERSION
from diverse_sampling.errors import reject
from lab.command_line import without_flags

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


def write(arrays: dict[str, Tensor], result: dict[str, Any], outdir: Path) -> None:
    """Write an evaluation's samples.npz, config.yaml and metrics.json. Raises OSError."""
    import numpy as np

    as_numpy: dict[str, Any] = {name: tensor.numpy() for name, tensor in arrays.items()}
    np.savez_compressed(outdir / "samples.npz", **as_numpy)
    (outdir / "config.yaml").write_text(as_yaml(result["settings"]))
    (outdir / "metrics.json").write_text(json.dumps(result, indent=1))


def refuse_other_run(path: Path, values: Mapping[str, Any]) -> None:
    """Raise SettingError if the config.yaml at `path` exists and is that of another run.

    `values` is the record of this one's settings. Keys of the file that it lacks were settings of
    an earlier version, or are options of methods that the run did not use.
    """
    if not path.is_file():
        return
    there = yaml.safe_load(path.read_text())
    if not isinstance(there, dict) or {key: there.get(key) for key in values} != {**values}:
        reject(
            "outdir",
            str(path.parent),
            f"a folder that is new or holds this very run; {path.name} there says otherwise",
        )


def refuse_other_data(path: Path, data: dict[str, Any] | None) -> None:
    """Raise SettingError if the metrics.json at `path` exists and comes from other frames.

    `data` is the record of the user's frames, with their hash; None in other worlds.
    """
    if not path.is_file():
        return
    other = json.loads(path.read_text()).get("data") or {}
    if other.get("sha256") != (data or {}).get("sha256"):
        reject(
            "outdir",
            str(path.parent),
            f"a folder that is new; {path.name} there comes from other frames "
            f"({other.get('sequences')} sequences, hash {str(other.get('sha256'))[:12]})",
        )


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
    import numpy as np
    from PIL import Image

    for particles, name in zip(samples, names):
        for what, picture in summary_pictures(particles, result).items():
            path = folder / name / f"{what}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(path)
        for b, sample in enumerate(particles):
            pixels = _pixels(sample, result)
            place = folder / name / f"particle_{b}.png"
            pictures = {place: pixels}
            if result["settings"]["rollout"] > 1:
                place = place.with_suffix("")
                pictures = {place / f"frame_{t}.png": p for t, p in enumerate(pixels, start=1)}
            for path, picture in pictures.items():
                path.parent.mkdir(parents=True, exist_ok=True)
                colours_last = np.moveaxis(picture, 0, -1) if picture.ndim == 3 else picture
                Image.fromarray(colours_last).save(path)


def summary_pictures(particles: Tensor, result: dict[str, Any]) -> dict[str, np.ndarray]:
    """Pictures that sum up a set of masks or of class labels, by name; none of other samples.

    `consensus` (H, W), as the samples are written: the class that most particles have at a pixel.
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
    import numpy as np

    if result["label_classes"]:
        pixels = np.asarray(result["settings"]["answer_classes"])[sample.numpy()]
        return pixels.astype(np.uint8 if pixels.max() < 256 else np.uint16)
    levels = sample.clamp(0, 1)
    levels = (levels > 0.5).float() if result["draws_masks"] else levels
    return (levels * 255).round().byte().numpy()


def provenance(checkpoint: Path | None) -> dict[str, Any]:
    """What made a result: `made_by`, the libraries' versions, the hash of the checkpoint."""
    import numpy
    import torch

    return dict(
        **made_by(),
        versions=dict(
            python=platform.python_version(), torch=torch.__version__, numpy=numpy.__version__
        ),
        checkpoint_sha256=checkpoint and sha256_of(checkpoint),
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


def sha256_of(path: Path) -> str:
    """The hash of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


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
    result = json.loads(run_file(run, "metrics.json").read_text())
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
    return json.loads(run_file(run, "results.json").read_text())


def label(row: dict[str, Any]) -> str:
    """A cell's place in its experiment, for a legend."""
    return ", ".join(
        value if isinstance(value, str) else f"{axis} {value:g}"
        for axis, value in row["cell"].items()
    )
