"""Experiment tracking, where it is asked for: Weights & Biases, TensorBoard, both or none behind one interface.

A run tells a `Tracker`; the services that it passes this on to are imported when they start. One that fails
later is left out with a warning: tracking neither ends a run nor changes it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, Callable, Literal, TypeVar

import yaml

from config import TrackingSettings, reject

T = TypeVar("T")


class Tracker:
    """What a run tells of itself; used as a context, it is told the run's end too."""

    def __init__(self, *services: WandB | TensorBoard):
        self.services = list(services)

    def _each(self, tell: Callable[[Any], None]) -> None:
        for service in list(self.services):
            try:
                tell(service)
            except Exception as error:  # of whatever kind: the run matters more
                self.services.remove(service)
                print(
                    f"WARNING: {type(service).__name__} failed ({_brief(error)}); going on without it",
                    file=sys.stderr,
                )

    def curve(self, values: dict[str, float], step: int) -> None:
        """Numbers after `step` updates."""
        self._each(lambda service: service.curve(values, step))

    def picture(self, path: Path, step: int = 0) -> None:
        """The sample sheet at `path`, a PNG."""
        self._each(lambda service: service.picture(path, step))

    def table(self, rows: list[dict[str, Any]], text: str) -> None:
        """The cells of an experiment, a row of named values for each, and the same as Markdown."""
        self._each(lambda service: service.table(rows, text))

    def results(self, values: dict[str, float]) -> None:
        """The numbers that a run ends with."""
        self._each(lambda service: service.results(values))

    def model(self, path: Path, metadata: dict) -> None:
        """The trained network, a file."""
        self._each(lambda service: service.model(path, metadata))

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, kind, error, traceback) -> None:
        code = (
            error.code
            if isinstance(error, SystemExit) and isinstance(error.code, int)
            else int(kind is not None)
        )
        self._each(lambda service: service.close(code))


class WandB:
    """A run of Weights & Biases, with its files in outdir/wandb. A `continued` one goes on with the run whose id is
    there; what it was told before, up to step `told`, is not told again."""

    def __init__(
        self,
        mode: Literal["online", "offline", "disabled"],
        outdir: Path,
        config: dict,
        continued: bool,
        told: int,
    ):
        import wandb

        wandb.setup(
            settings=wandb.Settings(silent=True)
        )  # or it talks in colours, and asks for keys
        known = outdir / "wandb" / "run.yaml"
        before = yaml.safe_load(known.read_text()) if continued and known.is_file() else None
        self.run = wandb.init(
            project="diverse-diffusion",
            name=outdir.resolve().name,
            dir=outdir,
            mode=mode,
            id=before and before["id"],
            resume="allow" if before else None,
            config=config,
            allow_val_change=True,
            settings=wandb.Settings(silent=True, console="off"),
        )
        self.library, self.told = wandb, max(told, before["told"]) if before else -1
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
        self.run.log(
            {"cells": self.library.Table(columns=columns, data=cells, allow_mixed_types=True)},
            step=0,
        )

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
    """Event files in outdir. Whatever earlier ones hold from step `begin` on is void."""

    def __init__(self, outdir: Path, config: dict, begin: int):
        from torch.utils.tensorboard import SummaryWriter

        self.config = config
        self.writer = SummaryWriter(str(outdir), purge_step=begin)
        self.writer.add_text(
            "config", f"```yaml\n{yaml.safe_dump(config, sort_keys=False)}```", begin
        )

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
        """TensorBoard keeps no files."""

    def close(self, code: int) -> None:
        self.writer.close()


def _brief(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _started(key: str, value: Any, start: Callable[[], T]) -> T:
    try:
        return start()
    except ImportError as error:
        reject(key, value, f"that where it is installed, `pip install {key}` ({_brief(error)})")
    except Exception as error:
        reject(key, value, f"that where it can start ({_brief(error)})")


def start(
    settings: TrackingSettings,
    outdir: Path,
    config: dict[str, Any],
    *,
    continued: bool = False,
    begin: int = 0,
    told: int = 0,
) -> Tracker:
    """The Tracker of a run that writes to `outdir`; of torchrun's processes the first one's only tracks.
    `config` is the record of its settings. A `continued` run goes on from step `begin` on, after it had told its
    curves up to step `told` already. Raises SettingError where a service cannot start."""
    if int(os.environ.get("RANK", 0)) > 0:
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
    if "ci95" in result:
        if result["ci95"] is None:
            return {prefix: result["mean"]}
        low, high = result["ci95"]
        return {prefix: result["mean"], f"{prefix} low": low, f"{prefix} high": high}
    found: dict[str, float] = {}
    for key, value in result.items():
        name = f"{prefix}/{key}" if prefix else key
        if isinstance(value, list):
            value = {str(index): item for index, item in enumerate(value)}
        if isinstance(value, dict):
            found |= numbers(value, name)
        elif isinstance(value, (int, float)):
            found[name] = value
    return found
