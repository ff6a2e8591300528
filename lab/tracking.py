"""Experiment tracking by Weights & Biases, TensorBoard, both or neither, behind one interface.

A run reports to a `Tracker`, which passes the report on to each service. Services are imported when
they start. One that fails later is dropped with a warning: tracking neither ends a run nor changes
it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Callable, Literal, TypeVar

import yaml

from config import TrackingSettings
from diverse_sampling.errors import SettingError, reject
from lab.command_line import this_process

T = TypeVar("T")


class Tracker:
    """Passes what a run reports on to some services; as a context it also reports the run's end.

    Arguments:
        services: those that are tracked with; none is fine
    """

    def __init__(self, *services: WandB | TensorBoard):
        self.services = list(services)

    def _each(self, tell: Callable[[Any], None]) -> None:
        """Call `tell` with every service; one that fails is dropped with a warning."""
        for service in list(self.services):
            try:
                tell(service)
            except Exception as error:  # of whatever kind: the run matters more
                self.services.remove(service)
                print(
                    f"WARNING: {type(service).__name__} failed ({_brief(error)}); continuing "
                    "without it",
                    file=sys.stderr,
                )

    def curve(self, values: dict[str, float], step: int) -> None:
        """Numbers after `step` updates."""
        self._each(lambda service: service.curve(values, step))

    def picture(self, path: Path, step: int = 0) -> None:
        """The sample sheet at `path`, a PNG."""
        self._each(lambda service: service.picture(path, step))

    def table(self, rows: list[dict[str, Any]], text: str) -> None:
        """The cells of an experiment: one row of named values each, and the table as Markdown."""
        self._each(lambda service: service.table(rows, text))

    def results(self, values: dict[str, float]) -> None:
        """The numbers that a run ends with, by name."""
        self._each(lambda service: service.results(values))

    def model(self, path: Path, metadata: dict) -> None:
        """The file of the trained network, and what it says of itself."""
        self._each(lambda service: service.model(path, metadata))

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, kind, error, traceback) -> None:
        if isinstance(error, SystemExit) and isinstance(error.code, int):
            code = error.code
        else:
            code = int(kind is not None)
        self._each(lambda service: service.close(code))


class WandB:
    """A run of Weights & Biases, with its files in outdir/wandb.

    Arguments:
        mode: online, offline or disabled
        outdir: the folder of the run
        config: the record of the run's settings
        continued: continue the tracked run whose id is in outdir/wandb
        told: the step up to which a continued run has reported before; these are not repeated
    """

    def __init__(
        self,
        mode: Literal["online", "offline", "disabled"],
        outdir: Path,
        config: dict,
        continued: bool,
        told: int,
    ):
        import wandb

        # Without this it prints in colours and asks for keys.
        wandb.setup(settings=wandb.Settings(silent=True))
        known = outdir / "wandb" / "run.yaml"
        before = yaml.safe_load(known.read_text()) if continued and known.is_file() else None
        self.run = wandb.init(
            project="diverse-diffusion",
            name=outdir.resolve().name,
            dir=outdir,
            mode=mode,
            id=before["id"] if before else None,
            resume="allow" if before else None,
            config=config,
            allow_val_change=True,
            settings=wandb.Settings(silent=True, console="off"),
        )
        self.library = wandb
        self.told = max(told, before["told"]) if before else -1
        known.write_text(yaml.safe_dump(dict(id=self.run.id, told=self.told)))
        where = self.run.settings.sync_dir if mode == "offline" else self.run.url
        print(f"tracked by Weights & Biases: {where}", file=sys.stderr)

    def curve(self, values: dict[str, float], step: int) -> None:
        if step > self.told:
            self.run.log(values, step=step)

    def picture(self, path: Path, step: int) -> None:
        if step > self.told:
            self.run.log({"samples": self.library.Image(str(path))}, step=step)

    def table(self, rows: list[dict], text: str) -> None:
        columns = list(dict.fromkeys(key for row in rows for key in row))
        cells = [[row.get(key) for key in columns] for row in rows]
        table = self.library.Table(columns=columns, data=cells, allow_mixed_types=True)
        self.run.log({"cells": table}, step=0)

    def results(self, values: dict[str, float]) -> None:
        self.run.summary.update(values)

    def model(self, path: Path, metadata: dict) -> None:
        artifact = self.library.Artifact(f"model-{self.run.id}", type="model", metadata=metadata)
        artifact.add_file(str(path))
        self.run.log_artifact(artifact)

    def close(self, code: int) -> None:
        """The run ended with this exit code."""
        if not self.run.offline:
            print(
                f"uploading; Ctrl-C leaves the rest to `wandb sync {self.run.settings.sync_dir}`",
                file=sys.stderr,
            )
        self.run.finish(exit_code=code)


class TensorBoard:
    """Event files of TensorBoard in outdir.

    Arguments:
        outdir: the folder of the run
        config: the record of the run's settings
        begin: the first step; what earlier files hold from this step on is void
    """

    def __init__(self, outdir: Path, config: dict, begin: int):
        from torch.utils.tensorboard import SummaryWriter

        self.config = config
        self.writer = SummaryWriter(str(outdir), purge_step=begin)
        text = yaml.safe_dump(config, sort_keys=False)
        self.writer.add_text("config", f"```yaml\n{text}```", begin)

    def curve(self, values: dict[str, float], step: int) -> None:
        for key, value in values.items():
            self.writer.add_scalar(key, value, step)

    def picture(self, path: Path, step: int) -> None:
        from matplotlib.image import imread

        self.writer.add_image("samples", imread(path)[..., :3], step, dataformats="HWC")

    def table(self, rows: list[dict], text: str) -> None:
        self.writer.add_text("cells", text)

    def results(self, values: dict[str, float]) -> None:
        plain = {
            key: value if isinstance(value, (bool, int, float, str)) else str(value)
            for key, value in self.config.items()
        }
        self.writer.add_hparams(
            plain, {f"final/{key}": value for key, value in values.items()}, run_name="."
        )

    def model(self, path: Path, metadata: dict) -> None:
        """Nothing: TensorBoard keeps no files."""

    def close(self, code: int) -> None:
        self.writer.close()


def _brief(error: Exception) -> str:
    """The first line of an error's message, or its name where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _started(library: str, value: Any, start: Callable[[], T]) -> T:
    """What `start` returns. Raises SettingError where the library is not installed or cannot start.

    `library` is also the name of the setting, `value` its value.
    """
    try:
        return start()
    except ImportError as error:
        if error.name is None or error.name.split(".")[0] == library:
            raise SettingError(f"{library} is not installed; run `pip install {library}`") from None
        reject(library, value, f"this where {library} can be imported ({_brief(error)})")
    except Exception as error:
        reject(library, value, f"this where {library} can start ({_brief(error)})")


def start(
    settings: TrackingSettings,
    outdir: Path,
    config: dict[str, Any],
    *,
    continued: bool = False,
    begin: int = 0,
    told: int = 0,
) -> Tracker:
    """The Tracker of a run; of the processes of torchrun only the first one tracks.

    Arguments:
        settings: what to track with
        outdir: the folder that the run writes to
        config: the record of the run's settings
        continued: whether the run continues one that may have been tracked
        begin: the first step that it reports
        told: the step up to which it has reported its curves before

    Raises SettingError where a service is not installed or cannot start.
    """
    if this_process()[0] > 0:
        return Tracker()
    services: list[WandB | TensorBoard] = []
    if settings.tensorboard:
        services.append(_started("tensorboard", True, lambda: TensorBoard(outdir, config, begin)))
    if settings.wandb != "disabled":
        services.append(
            _started(
                "wandb",
                settings.wandb,
                lambda: WandB(settings.wandb, outdir, config, continued, told),
            )
        )
    return Tracker(*services)


def numbers(result: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of a nested record by flat names.

    A mean with its interval becomes NAME, NAME low and NAME high; one without becomes NAME.
    """
    if "mean" in result:
        if result.get("ci95") is None:
            return {prefix: result["mean"]}
        low, high = result["ci95"]
        return {prefix: result["mean"], f"{prefix} low": low, f"{prefix} high": high}
    flat: dict[str, float] = {}
    for key, value in result.items():
        name = f"{prefix}/{key}" if prefix else key
        if isinstance(value, list):
            value = {str(index): item for index, item in enumerate(value)}
        if isinstance(value, dict):
            flat |= numbers(value, name)
        elif isinstance(value, (int, float)):
            flat[name] = value
    return flat
