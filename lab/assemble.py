"""Assembly of an evaluation: flags or a config.yaml -> settings, world, network and method.

Settings come in layers, weakest first: the defaults of config.py, what other settings imply, what
the checkpoint was trained with (its world), `--config` files, flags. A command line is parsed once;
layers are dictionaries, and what they add up to is checked by the settings' own classes.
"""

from __future__ import annotations

import copy
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Mapping, Sequence

from config import (
    EvaluationSettings,
    ExperimentSettings,
    GuidanceSettings,
    TrackingSettings,
    WorldSettings,
    build,
    record,
)
from diverse_sampling import method
from diverse_sampling.errors import reject
from lab.command_line import Parser, asks_for_config, make_parser, print_config, this_process

if TYPE_CHECKING:
    from torch import Tensor

    from lab.tasks import Task
    from model import EDMDenoiser
    from sampler import SetSampler
    from worlds.own_data import OwnFrames

CHECKPOINTS = Path(__file__).parent.parent / "checkpoints"

EVERY_SET = 10**9  # a number of sets that stands for all conditions of a world

# ---------------------------------------------------------------- settings


def evaluation_parser(description: str | None = None) -> Parser:
    """The command line of evaluate.py.

    Settings of tracking and of experiments are about runs, not about what they find: no record of a
    result has them.
    """
    return make_parser(
        *EvaluationSettings.groups(),
        ExperimentSettings,
        TrackingSettings,
        description=description,
        # `complete` reads those of the methods that are chosen.
        unread={key: f"--{flag} {name}" for key, (flag, name) in method.option_keys().items()},
        more=method.all_options,
    )


def configuration(values: Mapping[str, Any]) -> dict[str, Any]:
    """What --print_config prints of an evaluation beside the defaults of config.py.

    `values` are what was given, as `chosen` returns them.
    """
    from lab import methods

    below = {**defaults_below(values)[0], **values}
    return below | methods.options_of(record(GuidanceSettings()) | below, values)


def chosen(parser: Parser, argv: Sequence[str] | None) -> dict[str, Any]:
    """What flags and --config files set, as `Parser.given` has it.

    Options of methods that are not chosen are left out of files, such as older config.yaml, which
    have all of them. Raises SettingError for such a flag.
    """
    values = parser.given(argv)
    typed = {arg.partition("=")[0] for arg in (sys.argv[1:] if argv is None else argv)}
    for key, (flag, name) in method.option_keys().items():
        if key in values and values.get(flag) != name:
            if f"--{key}" in typed:
                reject(key, values[key], f"only with --{flag} {name}")
            del values[key]
    return values


def parse(argv: Sequence[str] | None) -> tuple[EvaluationSettings, Path | None]:
    """The settings that a command line describes, and the checkpoint, None for the exact denoiser.

    With --print_config, prints the configuration that repeats the command and exits. Raises
    SettingError or FileNotFoundError.
    """
    parser = evaluation_parser()
    values = chosen(parser, argv)
    if asks_for_config(argv):
        print_config(parser, configuration(values))
    return complete(values)


def complete(values: Mapping[str, Any]) -> tuple[EvaluationSettings, Path | None]:
    """All settings of an evaluation, and its checkpoint, from the few that were given.

    Arguments:
        values: flat {setting: value}, as `Parser.given` returns it

    Raises SettingError or FileNotFoundError.
    """
    for group in EvaluationSettings.groups():
        if group is not WorldSettings:
            build(group, values)  # before a checkpoint is looked for: these mistakes answer at once
    defaults, path = defaults_below(values)
    settings = EvaluationSettings.from_values({**defaults, **values})
    if settings.world.answers == "none" and values.get("num_sets") is None:
        settings.evaluate.num_sets = EVERY_SET
    offered: Literal["conditional", "unconditional"]
    offered = "conditional" if settings.world.num_cond_frames else "unconditional"
    if settings.evaluate.task is None:
        settings.evaluate.task = offered
    _choose(settings)
    _check(settings, offered, defaults if path else {})

    from lab import methods  # after all mistakes that answer without torch

    settings.options = methods.options_of(settings.record(), values)
    methods.check(settings)
    return settings, path


def _choose(settings: EvaluationSettings) -> None:
    """Fill in what is left to the task and to each other among the settings."""
    guidance = settings.guidance
    sampler = settings.sampler
    if guidance.pg_features is None:
        digits = settings.evaluate.task == "unconditional" and settings.world.dataset == "centered"
        guidance.pg_features = "classifier" if digits else "pixels"
    if sampler.sampler is None:
        together = (
            settings.evaluate.batch_size
            * guidance.medoids_of
            * guidance.group_of
            * guidance.sequential
            > 1
        )
        repelled = guidance.guidance == "pg" and guidance.pg_factor > 0 and together
        sampler.sampler = "window" if repelled and sampler.s_churn == 0 else "edm"


def defaults_below(values: Mapping[str, Any]) -> tuple[dict[str, Any], Path | None]:
    """What stands in for settings that were not given, above the defaults of config.py.

    Returns (flat {setting: value}, the path of the checkpoint or None for the exact denoiser): the
    dataset that --task unconditional or --frames implies and, with a trained denoiser, the world
    that its checkpoint was trained in. Raises SettingError where there is no such checkpoint.
    """
    implied: dict[str, Any] = {}
    if values.get("task") == "unconditional":
        implied["dataset"] = "centered"
    elif values.get("frames") is not None:
        implied["dataset"] = "frames"
    if values.get("denoiser") == "exact":
        return implied, None
    name = values.get("checkpoint")
    likely = {**implied, **values}
    if name is None:
        # Without a checkpoint of its own the world is known already, and so are its mistakes.
        build(WorldSettings, likely)
    path = find_checkpoint(name, likely.get("dataset", WorldSettings.dataset), likely.get("p"))

    from lab import checkpoint

    trained = checkpoint.denoiser_metadata(path)["settings"]
    world = {key: trained[key] for key in record(WorldSettings()) if key in trained}
    if values.get("frames") is not None:
        world["frame_axes"] = None  # of other files
    return implied | world, path


def find_checkpoint(name: str | None, dataset: str, p: float | None) -> Path:
    """The path of a checkpoint. Raises SettingError where there is none.

    Arguments:
        name: a file, or the name of a shipped checkpoint; None for the one of the world
        dataset: the world
        p: the probability of the first direction; None for equal ones
    """
    if name is not None and Path(name).is_file():
        return Path(name)
    wanted = name
    if wanted is None:
        wanted = dataset
        if dataset == "horizontal" and p is None:
            p = 0.5
        if p is not None:
            wanted += f"_p{100 * p:.0f}"
    path = CHECKPOINTS / f"{wanted}.safetensors"
    if path.is_file():
        return path
    stems = sorted(path.stem for path in CHECKPOINTS.glob("*.safetensors"))
    shipped = ", ".join(stem for stem in stems if not stem.startswith("classifier"))
    if name is None:
        missing = f"none is shipped for this world, {CHECKPOINTS} has no {path.name}"
    elif Path(name).is_dir():
        missing = f"{Path(name).absolute()} is a directory; a training's network is its " + (
            "model.safetensors"
        )
    else:
        missing = f"{Path(name).absolute()} was not found"
    reject("checkpoint", wanted, f"a file that train.py wrote, or one of {shipped}; {missing}")


def _check(settings: EvaluationSettings, offered: str, trained: Mapping[str, Any]) -> None:
    """Refuse combinations that no single group can know. Raises SettingError.

    Arguments:
        offered: the task that the world offers
        trained: the world settings of the checkpoint, empty with the exact denoiser
    """
    world = settings.world
    guidance = settings.guidance
    exact = settings.evaluate.denoiser == "exact"
    if settings.evaluate.task != offered and world.dataset != "mixture":
        reject("task", settings.evaluate.task, f"{offered} with dataset {world.dataset}")
    if offered == "unconditional" and world.dataset != "centered":
        reject(
            "num_cond_frames",
            0,
            "1 or more; only dataset centered is sampled without conditioning frames",
        )
    if settings.evaluate.rollout > 1:
        plain = guidance.guidance in ("pg", "none", "spell") and guidance.noise == "iid"
        if world.dataset != "frames" or exact or not plain or guidance.sequential > 1:
            reject(
                "rollout",
                settings.evaluate.rollout,
                "1, or a trained network of own frames with guidance pg, spell or none, noise iid "
                "and sequential 1",
            )
    if exact and world.answers == "none":
        reject("answers", "none", "given with --denoiser exact, which knows the answers")
    if world.dataset == "frames" and guidance.pg_features == "classifier":
        reject("pg_features", "classifier", "pixels with frames; the classifier knows digits only")
    for key in ("dataset", "image_size", "num_cond_frames", "num_digits"):
        if trained and trained[key] != getattr(world, key):
            reject(
                key, getattr(world, key), f"{trained[key]!r}, which the checkpoint was trained with"
            )
    uncounted = world.num_digits > 1
    if world.dataset == "circle_jumping":  # counted up to worlds.MOST_ANSWERS
        uncounted = world.num_directions ** min(world.num_digits, 64) > 4096
    if exact and (world.dataset in ("free", "centered") or uncounted):
        reject(
            "denoiser",
            "exact",
            "trained for this world; exact needs circle_jumping with at most 4096 "
            "answers (num_directions ** num_digits), horizontal with one digit, frames, or mixture",
        )
    no_churn = settings.sampler.sampler == "edm" and settings.sampler.s_churn == 0
    if guidance.churn_noise != "iid" and no_churn:
        reject(
            "churn_noise",
            guidance.churn_noise,
            "iid, or a sampler that adds noise back: --s_churn or --sampler window",
        )


# What decides how likely the answers of a world are.
LAWS = dict(circle_jumping=("num_directions", "p"), horizontal=("p",), free=("deterministic",))


def _other_law(world: WorldSettings, trained: Mapping[str, Any]) -> list[str]:
    """Notices of where the answers are not as likely as in the network's training.

    `trained` are the settings of the training.
    """

    def said(value: Any) -> str:
        return "equal probabilities" if value is None else f"{value}"

    return [
        f"{key}: {said(getattr(world, key))} here and {said(trained[key])} in the network's "
        "training; samples are judged by the former"
        for key in LAWS.get(world.dataset, ())
        if getattr(world, key) != trained[key]
    ]


# ---------------------------------------------------------------- the parts


@dataclass
class Evaluation:
    """An evaluation that is ready to run.

    Arguments:
        settings: of everything, as they are used: `digits` is the source that was found, `num_sets`
            at most the number of test conditions
        task: conditions, right answers and metrics
        sampler: makes the sets
        checkpoint: the trained network's file, None with the exact denoiser
        pilot_calls: network calls of the pilot, all of its particles together; 0 where it was read
            from beside the checkpoint, or where there is none
        notices: what a user should know before it runs, a sentence each
    """

    settings: EvaluationSettings
    task: Task
    sampler: SetSampler
    checkpoint: Path | None = None
    pilot_calls: int = 0
    notices: list[str] = field(default_factory=list)

    def record(self) -> dict[str, Any]:
        """The settings that repeat it, wherever its results are written to."""
        return self.settings.record() | dict(outdir=None)

    def _decided(self) -> dict[str, Any]:
        """The window and the curve that it was measured from, for metrics.json."""
        from lab import methods

        held: dict[str, Any] = {}
        if self.settings.sampler.sampler == "window":
            held["window"] = methods.window(self.settings.sampler, self.sampler.decisions)
        if self.sampler.decisions is not None:
            held["decisions"] = asdict(self.sampler.decisions)
        return held

    def _own_data(self) -> dict[str, Any]:
        """What a user's frames are, for metrics.json."""
        if self.settings.world.dataset != "frames":
            return {}
        levels = self.task.world.answer_levels
        return dict(
            data=self.data(),
            label_classes=self.task.world.label_classes,
            draws_masks=len(levels.values) == 2,
        )

    def data(self) -> dict[str, Any] | None:
        """What a user's frames are and their hash; None in other worlds."""
        own = self.settings.world.dataset == "frames"
        return self.task.world.data.record() if own else None

    def sample(self, progress: bool = True, shared: bool = False) -> Tensor:
        """Sample all sets: (G, B, H, W).

        With `shared`, each process that torchrun started samples some of them, and all return
        those of all. The samples do not depend on how many processes there are.
        """
        import torch
        import torch.distributed as dist

        rank, ranks = this_process()
        if not shared or ranks == 1:
            return self.sampler.sample_all(progress)
        dist.init_process_group("gloo")
        sets = torch.arange(self.task.num_sets)
        own = sets[rank::ranks]
        calls = self.sampler.calls
        # A process without a set still takes part in the exchange.
        samples = self.sampler.sample_all(progress and rank == 0, own) if len(own) else None
        shares: list[Any] = [None] * ranks
        dist.all_gather_object(shares, (own, samples, calls.forward, calls.backward))
        dist.destroy_process_group()
        calls.forward = sum(share[2] for share in shares)
        calls.backward = sum(share[3] for share in shares)
        order = torch.cat([share[0] for share in shares]).argsort()
        return torch.cat([share[1] for share in shares if share[1] is not None])[order]

    def run(
        self, progress: bool = True, shared: bool = False
    ) -> tuple[Tensor, Tensor | None, dict[str, Any]]:
        """Sample all sets and measure them; `shared` is as in `sample`.

        Returns (samples (G, B, H, W), the mode of each particle (G, B) or None, the record for
        metrics.json).
        """
        from lab.metrics import cost_metrics
        from lab.records import provenance

        start = time.perf_counter()
        samples = self.sample(progress, shared)
        seconds = time.perf_counter() - start
        metrics, modes = self.task.measure(samples)
        particles = samples.shape[0] * samples.shape[1]
        forward = self.sampler.calls.forward / particles
        backward = self.sampler.calls.backward / particles
        found = metrics["modes_found"] and metrics["modes_found"]["mean"]
        result = dict(
            task=self.settings.evaluate.task,
            dataset=self.settings.world.dataset,
            **metrics,
            num_sets=self.settings.evaluate.num_sets,
            batch_size=self.settings.evaluate.batch_size,
            seconds=round(seconds, 3),
            network_calls=forward,
            backward_calls=backward,
            **cost_metrics(forward, backward, found, samples.shape[1]),
            pilot_calls=self.pilot_calls / particles,
            **self._decided(),
            **self._own_data(),
            digits_source=self.task.world.source,
            settings=self.record(),
            device=str(self.sampler.device),
            **provenance(self.checkpoint),
        )
        return samples, modes, result


def evaluation(argv: Sequence[str] | None = None) -> Evaluation:
    """The evaluation that a command line describes. Raises SettingError or FileNotFoundError."""
    return set_up(*parse(argv))


def set_up(
    settings: EvaluationSettings,
    path: Path | None,
    split: Literal["test", "validation"] = "test",
) -> Evaluation:
    """Load the world and the network that settings describe, and put them together.

    Arguments:
        settings: complete, as `complete` returns them; they are copied
        path: the checkpoint, None for the exact denoiser
        split: of the world; own frames also have one for validation

    Raises SettingError or FileNotFoundError.
    """
    from data_loader import load_world
    from diverse_sampling.devices import pick_device, set_precision, set_reproducible, use_bfloat16
    from diverse_sampling.guidance import MOST_MODES
    from diverse_sampling.potentials import POTENTIALS
    from lab import checkpoint, pilot, tasks
    from sampler import SetSampler

    settings = copy.deepcopy(settings)
    if settings.guidance.pg_kernel not in POTENTIALS:
        reject("pg_kernel", settings.guidance.pg_kernel, ", ".join(map(repr, POTENTIALS)))
    device = pick_device(settings.run.device)
    set_precision(settings.run.precision)
    set_reproducible(settings.run.reproducible)

    world: Any = load_world(settings.world, settings.digits, split)
    notices: list[str] = []
    kind: type[Task]
    if settings.world.dataset == "mixture":
        kind = tasks.MixtureTask
    elif settings.world.dataset == "frames":
        kind = tasks.FramesTask
        notices += [world.data.describe(), *world.data.notices]
    else:
        settings.digits.digits = world.source  # what was used, so that config.yaml repeats it
        unconditional = settings.evaluate.task == "unconditional"
        kind = tasks.UnconditionalDigits if unconditional else tasks.NextFrame

    most = kind.most_sets(world)
    if most is not None and settings.evaluate.num_sets > most:
        if settings.evaluate.num_sets != EVERY_SET:
            notices.append(
                f"num_sets: {settings.evaluate.num_sets} are more than the {most} test conditions "
                f"of this world; using {most}, so that no set repeats another one's condition"
            )
        settings.evaluate.num_sets = most

    network = None
    if path is not None:
        network, trained = checkpoint.load_denoiser(path, device)
        network.autocast = use_bfloat16(settings.run.precision, device)
        if settings.run.compile:
            network.compile_for_any_size()
        notices += _other_law(settings.world, trained["settings"])
        if settings.world.dataset == "frames":
            notices += _check_frames(world, settings, network, trained)
            notices += _guide_if_needed(settings, trained)
    task = kind(world, settings.evaluate.num_sets, settings.run.seed)
    task.device = device
    modes = world.modes_total if task.answers is None else task.answers.shape[1]
    if settings.guidance.guidance == "joint" and modes > MOST_MODES:
        reject("guidance", "joint", f"any other in a world of more than {MOST_MODES} answers")
    if settings.guidance.guidance == "joint" and settings.world.dataset == "frames":
        if len(set(world.data.cases.counts)) > 1:
            reject("guidance", "joint", "any other where cases have different numbers of answers")
    feature_classifier = None
    if settings.guidance.pg_features == "classifier" and settings.world.dataset != "mixture":
        feature_classifier = checkpoint.load_classifier("guide", device)
    curve = None
    pilot_calls = 0
    if pilot.needs_decisions(settings):
        curve, pilot_calls = pilot.decisions_of(settings, kind, world, network, path, device)
    sampler = SetSampler(task, settings, device, network, feature_classifier, curve)
    return Evaluation(settings, task, sampler, path, pilot_calls, notices)


def _check_frames(
    world: OwnFrames,
    settings: EvaluationSettings,
    network: EDMDenoiser,
    trained: dict[str, Any],
) -> list[str]:
    """Check that a network fits a user's frames, and fill in what only one of them knows.

    Arguments:
        world: the test split; without answers it learns from the network what it draws
        settings: the values of classes are filled in
        network: the trained denoiser
        trained: the metadata of its checkpoint

    Returns notices. Raises SettingError where the frames are not like those it was trained on.
    """
    from lab.checkpoint import model_settings
    from worlds.levels import Levels

    path = str(world.data.path)
    generated = network.unet.out_channels
    given = network.unet.in_channels - generated
    if world.unlabelled:
        masks = str((trained.get("data") or {}).get("answers")).startswith("mask")
        labels = settings.world.answer_classes or ([0, 1] if masks else [])
        world.answer_levels = Levels(0, 1, tuple(labels), colours=3 if generated == 3 else 1)
    if world.label_classes:
        settings.world.answer_classes = list(world.answer_levels.values)
    here = (world.cond_channels, world.answer_channels)
    if here != (given, generated):
        reject(
            "frames",
            path,
            f"frames of {given} channels and answers of {generated}, with which the checkpoint was "
            f"trained; these have {here[0]} and {here[1]} ({world.data.describe()})",
        )
    shape = list(world.frame_shape)
    size = trained.get("frame_shape")
    multiple = model_settings(trained).multiple
    accepted = None
    if size is not None and shape != size:
        accepted = f"{size[0]} x {size[1]} px, which the checkpoint was trained with"
    elif any(side % multiple for side in shape):
        accepted = f"multiples of {multiple} px, which the network can halve"
    if accepted is not None:
        reject("frames", path, f"{accepted}; these have {shape[0]} x {shape[1]} px")
    then = trained.get("data") or {}
    if settings.evaluate.rollout > 1 and then.get("answers") is not None:
        reject(
            "rollout",
            settings.evaluate.rollout,
            "1 with a network that was trained on answers, which are no next frames",
        )
    if then.get("name") == world.data.path.name and then["sha256"] != world.data.sha256:
        return [
            f"WARNING: {path} has changed since the training (other hash); test sequences may have "
            "been trained on"
        ]
    return []


def _guide_if_needed(settings: EvaluationSettings, trained: Mapping[str, Any]) -> list[str]:
    """Leave the samples independent where they were found to differ too much already.

    `trained` is the metadata of the checkpoint; its `spread` was measured on sequences that were
    held out from the training. Returns notices.
    """
    guidance = settings.guidance
    excess = (trained.get("spread") or {}).get("excess_spread")
    if guidance.guidance != "pg" or guidance.pg_factor == 0 or not excess or not excess["ci95"]:
        return []
    if excess["ci95"][0] <= 0:
        return []
    spread = trained["spread"]
    found = (
        f"on sequences held out from its training, the samples of this network differ more (IoU "
        f"distance {spread['iou_distance']['mean']:.2f}) than the answers do "
        f"({spread['answers_iou_distance']['mean']:.2f})"
    )
    if not guidance.pg_only_if_needed:
        return [f"WARNING: {found}; guidance adds to that"]
    guidance.pg_factor = 0.0
    settings.sampler.sampler = "edm"
    return [
        f"WARNING: {found}; guidance would add to that, so these sets are independent "
        "(--pg_only_if_needed false guides them)"
    ]
