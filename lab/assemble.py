"""Assembly of an evaluation: flags or a config.yaml -> settings, world, network and method.

Settings come in layers, weakest first: the defaults of config.py, what other settings imply, what
the checkpoint was trained with (its world), `--config` files, flags. A command line is parsed once;
layers are dictionaries, and what they add up to is checked by the settings' own classes.
"""

from __future__ import annotations

import sys
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Literal, Mapping, Sequence

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
from diverse_sampling.defaults import SIGMA_MIN
from diverse_sampling.errors import reject
from lab.command_line import Parser, asks_for_config, make_parser, print_config, this_process
from lab.names import INDEPENDENT, method_of
from worlds.description import Description

if TYPE_CHECKING:
    from torch import Tensor

    from lab.chunks import Chunk, Kept
    from lab.tasks import Task
    from model import EDMDenoiser
    from sampler import SetSampler
    from worlds.levels import Levels
    from worlds.own_data import OwnFrames

CHECKPOINTS = Path(__file__).parent.parent / "checkpoints"
STUDENT_CALLS = 4  # of a network that returns samples, unless given

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


def chosen(parser: Parser, argv: Sequence[str] | None) -> dict[str, Any]:
    """What flags and --config files set, as `Parser.given` has it.

    Options of methods that are not chosen are left out of files, such as older config.yaml, which
    have all of them. With --print_config, prints the configuration that repeats the command, and
    exits. Raises SettingError for such an option as a flag, and for an experiment in a file.
    """
    values = parser.given(argv)
    if values.get("from_run") is not None:
        values = _as_in_the_run(parser, argv, values)
    typed = {arg.partition("=")[0] for arg in (sys.argv[1:] if argv is None else argv)}
    for key, (flag, name) in method.option_keys().items():
        if key in values and values.get(flag) != name:
            if f"--{key}" in typed:
                reject(key, values[key], f"only with --{flag} {name}")
            del values[key]
    experiment = values.get("experiment")
    if experiment and "--experiment" not in typed:
        reject("experiment", experiment, "a flag; a --config file describes one evaluation")
    if experiment and values.get("from_run") is not None:
        reject("from_run", values["from_run"], "null with --experiment, which draws whole sets")
    if asks_for_config(argv):
        print_config(parser, values if experiment else _configuration(values))
    return values


def _as_in_the_run(
    parser: Parser, argv: Sequence[str] | None, values: dict[str, Any]
) -> dict[str, Any]:
    """What was given, above the settings of the run that it starts from."""
    words = sys.argv[1:] if argv is None else argv
    below = parser.given(["--config", str(Path(values["from_run"]) / "config.yaml"), *words])
    own = ("redraw", "redraws", "from_run_sha256")  # that run may have been made from another one
    return {key: value for key, value in below.items() if key not in own or key in values}


def _configuration(values: Mapping[str, Any]) -> dict[str, Any]:
    """What was given to an evaluation, and what stands in for the rest beside the defaults."""
    from lab import methods

    path = checkpoint_of(implied(values) | dict(values))
    below = implied(values, _facts_of(path)) | dict(values)
    return below | methods.options_of(record(GuidanceSettings()) | below, values)


def parse(argv: Sequence[str] | None) -> tuple[EvaluationSettings, Path | None]:
    """The settings that a command line describes, and the checkpoint, None for the exact denoiser.

    Raises SettingError or FileNotFoundError.
    """
    return complete(chosen(evaluation_parser(), argv))


def complete(values: Mapping[str, Any]) -> tuple[EvaluationSettings, Path | None]:
    """The settings of an evaluation, and its checkpoint, from the few values that were given.

    Arguments:
        values: flat {setting: value}, as `Parser.given` returns it

    Raises SettingError or FileNotFoundError.
    """
    # Mistakes answer before a checkpoint is looked for. A checkpoint that is named knows its world.
    likely = implied(values) | dict(values)
    for group in EvaluationSettings.groups():
        if group is not WorldSettings or values.get("checkpoint") is None:
            build(group, likely)
    path = checkpoint_of(likely)
    return resolve(values, _facts_of(path))[0], path


@dataclass(frozen=True)
class Facts:
    """What settings follow from beside the values that were given.

    Arguments:
        trained: the settings of the checkpoint's training, empty with the exact denoiser
        most_sets: how many test conditions there are; None before, and for points in the plane
        spread: how far the network's samples were apart on sequences held out from its training
    """

    trained: Mapping[str, Any] = field(default_factory=dict)
    most_sets: int | None = None
    spread: Mapping[str, Any] | None = None


def _facts_of(path: Path | None) -> Facts:
    """What is known before the world is loaded."""
    if path is None:
        return Facts()
    from lab import checkpoint

    return Facts(checkpoint.denoiser_metadata(path)["settings"])


def resolve(values: Mapping[str, Any], facts: Facts) -> tuple[EvaluationSettings, list[str]]:
    """The settings of an evaluation, and what a user should know of them, a sentence each.

    Nothing else decides about a setting. The settings of fewer facts are values for more of them.

    Arguments:
        values: flat {setting: value}, those that were given
        facts: what they meet

    Raises SettingError.
    """
    below = implied(values, facts)
    data = below.get("data", values.get("data"))
    asked = EvaluationSettings.from_values({**below, **values, "data": data})
    offered = "conditional" if asked.world.num_cond_frames else "unconditional"
    _check(asked, offered, facts.trained)

    from lab import methods  # after all mistakes that answer without torch

    task = asked.evaluate.task or offered
    s, g = asked.sampler, asked.guidance
    exact = asked.evaluate.denoiser == "exact"
    space = g.pg_space or ("denoised" if g.guidance in ("pg", "classes") else "jacobian")
    unit = "measured" if g.guidance == "pg" and space == "denoised" else "joint"
    settings = replace(
        asked.changed(
            task=task,
            pg_space=space,
            pg_strength=g.pg_strength or unit,
            sampler=methods.sampler_of(asked),
            sigma_min=SIGMA_MIN if exact and s.sigma_min is None else s.sigma_min,
        ),
        options=methods.options_of(asked.record(), values),
    )
    methods.check(settings)

    found: dict[str, Any] = {}
    notices: list[str] = []
    num_sets = settings.evaluate.num_sets
    if facts.most_sets is not None and (num_sets is None or num_sets > facts.most_sets):
        found["num_sets"] = facts.most_sets
        if num_sets is not None:
            notices.append(
                f"num_sets: {num_sets} are more than the {facts.most_sets} test conditions of this "
                f"world; using {facts.most_sets}, so that no set repeats another one's condition"
            )
    notices += _other_law(settings.world, facts.trained)
    excess = _excess(facts.spread) if methods.measures(settings.guidance) else None
    if excess and not settings.guidance.pg_only_if_needed:
        notices.append(f"WARNING: {excess}; guidance adds to that")
    elif excess:
        found |= dict(pg_factor=0.0, sampler="edm")
        notices.append(
            f"WARNING: {excess}; guidance would add to that, so these sets are independent "
            "(--pg_only_if_needed false guides them)"
        )
    return settings.changed(**found), notices


def implied(values: Mapping[str, Any], facts: Facts = Facts()) -> dict[str, Any]:
    """What stands in for settings that were not given, above the defaults of config.py.

    Returns a flat {setting: value}: the dataset that --frames or --task unconditional implies, all
    conditions without answers and, with a trained denoiser, the world that it was trained in.
    """
    below: dict[str, Any] = {}
    if values.get("frames") is not None:
        below["dataset"] = "frames"
    elif values.get("task") == "unconditional":
        below["dataset"] = "centered"
    if values.get("answers") == "none":
        below["num_sets"] = None
    known = record(WorldSettings())
    below |= {key: value for key, value in facts.trained.items() if key in known}
    if facts.trained.get("teacher") is not None:
        below |= dict(sampler="student", num_steps=STUDENT_CALLS)
    if facts.trained.get("data") is not None:
        # Other frames are read by the numbers of the training, and by what is said of them.
        trained = Description.of(facts.trained["data"], "the checkpoint")
        if values.get("frames") not in (None, facts.trained["frames"]):
            trained = trained.of_numbers()
        below["data"] = Description.of(values.get("data")).over(trained).as_yaml() or None
    return below


def checkpoint_of(values: Mapping[str, Any]) -> Path | None:
    """The path of the checkpoint, None for the exact denoiser.

    Without a name it is the included one of the world, of its dataset and its p.

    Arguments:
        values: flat {setting: value}, those that were given and what they imply

    Raises SettingError if there is none.
    """
    if values.get("denoiser") == "exact":
        return None
    name = values.get("checkpoint")
    if name is not None and Path(name).is_file():
        return Path(name)
    wanted = name
    if wanted is None:
        wanted = values.get("dataset", WorldSettings.dataset)
        p = values.get("p")
        if wanted == "horizontal" and p is None:
            p = 0.5
        if p is not None:
            wanted += f"_p{100 * p:.0f}"
    path = CHECKPOINTS / f"{wanted}.safetensors"
    if path.is_file():
        return path
    stems = sorted(path.stem for path in CHECKPOINTS.glob("*.safetensors"))
    included = ", ".join(stem for stem in stems if not stem.startswith(("classifier", "judge")))
    if name is None:
        missing = f"none is included for this world, {CHECKPOINTS} has no {path.name}"
    elif Path(name).is_dir():
        missing = f"{Path(name).absolute()} is a directory; a training's network is its " + (
            "model.safetensors"
        )
    else:
        missing = f"{Path(name).absolute()} was not found"
    reject("checkpoint", wanted, f"a file that train.py wrote, or one of {included}; {missing}")


def named_checkpoint(name: str) -> Path:
    """The path of a network that a setting names. Raises SettingError if there is none."""
    path = checkpoint_of(dict(checkpoint=name))
    assert path is not None  # it has a name
    return path


def _check(settings: EvaluationSettings, offered: str, trained: Mapping[str, Any]) -> None:
    """Refuse combinations that no single group can know. Raises SettingError.

    Arguments:
        offered: the task that the world offers
        trained: the world settings of the checkpoint, empty with the exact denoiser
    """
    world = settings.world
    guidance = settings.guidance
    exact = settings.evaluate.denoiser == "exact"
    if settings.evaluate.task not in (None, offered) and world.dataset != "mixture":
        reject("task", settings.evaluate.task, f"{offered} with dataset {world.dataset}")
    if offered == "unconditional" and world.dataset not in ("centered", "frames"):
        reject(
            "num_cond_frames",
            0,
            "1 or more; only datasets centered and frames are sampled without conditioning frames",
        )
    if settings.evaluate.rollout > 1:
        plain = guidance.guidance in ("pg", "none", "spell") and guidance.noise == "iid"
        whole = guidance.sequential == 1 and guidance.pool == 1
        videos = world.dataset == "frames" and offered == "conditional"
        if not videos or exact or not plain or not whole:
            reject(
                "rollout",
                settings.evaluate.rollout,
                "1, or a trained network of your frames with guidance pg, spell or none, noise "
                "iid, sequential 1 and pool 1",
            )
    if exact and world.answers == "none":
        reject("answers", "none", "given with --denoiser exact, which knows the answers")
    student = trained.get("teacher") is not None
    if student != (settings.sampler.sampler == "student"):
        accepted = "student" if student else "edm, edm_noised or window"
        kind = "a student, which returns samples" if student else "a denoiser"
        if student or settings.sampler.sampler is not None:
            reject("sampler", settings.sampler.sampler, f"{accepted}: this network is {kind}")
    for key in ("dataset", "image_size", "num_cond_frames", "num_digits"):
        if trained and trained[key] != getattr(world, key):
            reject(
                key, getattr(world, key), f"{trained[key]!r}, which the checkpoint was trained with"
            )
    uncounted = world.num_digits > 1
    if world.dataset == "circle_jumping":  # counted up to worlds.MOST_ANSWERS
        uncounted = world.num_directions ** min(world.num_digits, 64) > 4096
    if exact and (world.dataset == "free" or uncounted):
        reject(
            "denoiser",
            "exact",
            "trained for this world; exact needs circle_jumping with at most 4096 answers "
            "(num_directions ** num_digits), centered, halves or horizontal with one digit, "
            "frames, or mixture",
        )


# What decides how likely the answers of a world are.
LAWS = dict(circle_jumping=("num_directions", "p"), horizontal=("p",), free=("deterministic",))


def _other_law(world: WorldSettings, trained: Mapping[str, Any]) -> list[str]:
    """Notices of where the answers are not as likely as in the network's training.

    `trained` are the settings of the training, empty without one.
    """

    def said(value: Any) -> str:
        return "equal probabilities" if value is None else f"{value}"

    return [
        f"{key}: {said(getattr(world, key))} here and {said(trained[key])} in the network's "
        "training; samples are judged by the former"
        for key in LAWS.get(world.dataset, ())
        if trained and getattr(world, key) != trained[key]
    ]


def _excess(spread: Mapping[str, Any] | None) -> str | None:
    """That the samples of a network differ too much already, in words; None if they do not."""
    held_out = "on sequences held out from its training, the samples of this network"
    excess, ratio = ((spread or {}).get(key) for key in ("excess_spread", "spread_skill"))
    if spread and excess and excess["ci95"] and excess["ci95"][0] > 0:
        return (
            f"{held_out} differ more (IoU distance {spread['iou_distance']['mean']:.2f}) than the "
            f"answers do ({spread['answers_iou_distance']['mean']:.2f})"
        )
    if ratio and ratio["ci95"] and ratio["ci95"][0] > 1:
        return f"{held_out} differ more than they err ({ratio['mean']:.2f} times as much)"
    return None


# ---------------------------------------------------------------- the parts


@dataclass
class Evaluation:
    """An evaluation that is ready to run.

    Arguments:
        settings: of everything, as they are used: with what was found of what makes the run,
            `num_sets` at most the number of test conditions
        task: conditions, right answers and metrics
        sampler: makes the sets
        checkpoint: the trained network's file, None with the exact denoiser
        pilot_calls: network calls of the pilot, all of its particles together, also where it was
            read from beside the checkpoint; 0 where there is none
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
        held: dict[str, Any] = dict(sigma_min=float(self.sampler.schedule.sigmas[-2]))
        if self.sampler.methods.window is not None:
            held["window"] = self.sampler.methods.window
        if self.sampler.decisions is not None:
            held["decisions"] = asdict(self.sampler.decisions)
        return held

    def _composition(self, modes: Tensor) -> dict[str, Any]:
        """Whether sets hold what was asked for, for metrics.json; modes (G, B)."""
        import torch

        from diverse_sampling.guidance.classes import asked_counts
        from diverse_sampling.noise import evenly
        from lab.metrics import composition_met

        if self.settings.guidance.guidance != "classes":
            return {}
        sets = torch.arange(len(modes))
        names = self.task.classes(sets[:1], self.sampler.device).names
        counts = asked_counts(
            self.settings.options["classes"],
            names,
            modes.shape[1],
            evenly(self.settings.run.seed, sets),
        )
        return {} if counts is None else composition_met(modes, counts)

    def kind_of_samples(self) -> dict[str, Any]:
        """What a user's frames are, and what the samples show, for metrics.json."""
        if self.settings.world.dataset != "frames":
            return {}
        levels = self.task.world.answer_levels
        return dict(
            data=self.task.world.data.record(),
            label_classes=levels.label_classes,
            label_values=levels.values,
            draws_masks=levels.kind == "mask",
        )

    def sample(self, progress: bool = True) -> Tensor:
        """Sample all sets: (G, B, H, W)."""
        return self.sampler.sample_all(progress)

    def sampled(
        self,
        progress: bool = True,
        kept: Kept | None = None,
        tell: Callable[[Chunk], None] = lambda chunk: None,
    ) -> Chunk:
        """All sets, and with `rollout` what follows on them.

        Each process that torchrun started samples some of the sets, and all return those of all.
        The samples do not depend on how many processes there are.

        Arguments:
            progress: whether to show it
            kept: where each chunk is kept until the run has ended. Those that are there already,
                of a run that was stopped, are not sampled again
            tell: is told each chunk in turn
        """
        import torch

        from lab.chunks import put_together
        from lab.processes import of_all, part

        rank, ranks = this_process() if kept is not None else (0, 1)
        own = torch.arange(self.task.num_sets)[rank::ranks]
        chunks = [] if kept is None else kept.read()
        for chunk in chunks:
            tell(chunk)
            own = own[~torch.isin(own, chunk["sets"])]
        calls, frames = self.sampler.calls, self.settings.evaluate.rollout
        start, before = time.perf_counter(), (calls.forward, calls.backward)
        for sets, samples in self.sampler.chunks(own, progress and rank == 0):
            chunk = dict(
                sets=sets,
                samples=samples,
                calls=torch.tensor(
                    [calls.forward - before[0], calls.backward - before[1]], dtype=torch.float64
                ),
                seconds=torch.tensor(time.perf_counter() - start),
            )
            if frames > 1:
                chunk["rollout"] = self.sampler.roll_out(sets, samples, frames)
            tell(chunk)
            if kept is not None:
                kept.add(chunk)
            chunks.append(chunk)
            start, before = time.perf_counter(), (calls.forward, calls.backward)
        seconds = sum(float(chunk["seconds"]) for chunk in chunks)
        shares = [(chunks, seconds)]
        if ranks > 1:
            shares = of_all(shares[0])
            part()
        together = put_together([chunk for share, _ in shares for chunk in share])
        return together | dict(seconds=torch.tensor(max(each for _, each in shares)))

    def run(self, progress: bool = True) -> tuple[Tensor, Tensor | None, dict[str, Any]]:
        """Sample all sets in this process, and measure them.

        Returns (samples (G, B, H, W), the mode of each particle (G, B) or None, the record for
        metrics.json).
        """
        sampled = self.sampled(progress)
        modes, result = self.measured(sampled)
        return sampled["samples"], modes, result

    def measured(self, sampled: Chunk) -> tuple[Tensor | None, dict[str, Any]]:
        """The mode of each particle (G, B) or None, and the record for metrics.json, of all sets
        as `sampled` returns them."""
        from lab.metrics import cost_metrics
        from lab.records import provenance

        samples = sampled["samples"]
        metrics, modes = self.task.measure(samples)
        if modes is not None:
            metrics |= self._composition(modes)
        particles = samples.shape[0] * len(self.settings.evaluate.redraw or samples[0])
        forward, backward = (calls / particles for calls in sampled["calls"].tolist())
        found = metrics["modes_found"] and metrics["modes_found"]["mean"]
        result = dict(
            task=self.settings.evaluate.task,
            dataset=self.settings.world.dataset,
            **metrics,
            num_sets=self.settings.evaluate.num_sets,
            batch_size=self.settings.evaluate.batch_size,
            seconds=round(float(sampled["seconds"]), 3),
            network_calls=forward,
            backward_calls=backward,
            **cost_metrics(forward, backward, found, samples.shape[1]),
            pilot_calls=self.pilot_calls / particles,
            **self._decided(),
            **self.kind_of_samples(),
            digits_source=self.task.world.source,
            settings=self.record(),
            device=str(self.sampler.device),
            **provenance(self.settings.origin),
        )
        return modes, result


def evaluation(argv: Sequence[str] | None = None) -> Evaluation:
    """The evaluation that a command line describes. Raises SettingError or FileNotFoundError."""
    return set_up(*parse(argv))


def found(
    settings: EvaluationSettings,
    path: Path | None,
    split: Literal["test", "validation"] = "test",
) -> tuple[EvaluationSettings, Any]:
    """The settings with what is found of what makes the evaluation, and its world.

    Arguments are as of `set_up`. Raises SettingError, also where the settings name another
    checkpoint, other digits or other frames, or FileNotFoundError.
    """
    from data_loader import load_world
    from lab.records import origin

    world = load_world(settings.world, settings.digits, split)
    return settings.made_with(origin(settings, world, path)), world


def set_up(
    settings: EvaluationSettings,
    path: Path | None,
    split: Literal["test", "validation"] = "test",
) -> Evaluation:
    """Load the world and the network that settings describe, and put them together.

    Arguments:
        settings, path: as `complete` returns them; the evaluation's settings are those that follow
            from what is found here
        split: of the world; own frames also have one for validation

    Raises SettingError or FileNotFoundError.
    """
    import torch

    from diverse_sampling.devices import pick_device, set_precision, set_reproducible, use_bfloat16
    from diverse_sampling.potentials import POTENTIALS
    from lab import checkpoint, methods, pilot, tasks
    from lab.records import as_written
    from sampler import SetSampler

    if settings.guidance.pg_kernel not in POTENTIALS:
        reject("pg_kernel", settings.guidance.pg_kernel, ", ".join(map(repr, POTENTIALS)))
    device = pick_device(settings.run.device)
    set_precision(settings.run.precision)
    set_reproducible(settings.run.reproducible)
    autocast = use_bfloat16(settings.run.precision, device)
    settings, world = found(settings, path, split)
    kind = tasks.kind_of(world)
    network = None
    trained: dict[str, Any] = dict(settings={})
    if path is not None:
        network, trained = checkpoint.load_denoiser(path, device)
        network.autocast = autocast
        if settings.run.compile:
            network.compile_for_any_size()
    piloted = network, path
    if trained["settings"].get("teacher") is not None:  # whose samples a student learned
        path_of_teacher = named_checkpoint(trained["settings"]["teacher"])
        piloted = checkpoint.load_denoiser(path_of_teacher, device)[0], path_of_teacher
    notices: list[str] = []
    if settings.world.dataset == "frames":
        if path is None and not world.num_cond_frames and not world.class_names:
            reject("denoiser", "exact", "trained for pictures without classes")
        notices += [world.data.describe(), *world.data.notices]
        if network is not None:
            if world.unlabelled:
                world.answer_levels = _levels_drawn(settings.world, network, trained)
                as_written(torch.zeros(0, 1, 1, dtype=torch.uint8), world.answer_levels.values)
            notices += _check_frames(world, settings, network, trained)
    most = kind.most_sets(world)
    facts = Facts(trained["settings"], most, trained.get("spread"))
    settings, more = resolve(settings.record(), facts)
    notices += more
    if settings.evaluate.redraw is not None and method_of(settings.record()) == INDEPENDENT:
        notices.append("redraw: no guidance acts, so nothing repels what is drawn again")
    if settings.evaluate.num_sets is None:
        reject("num_sets", None, "a number for points in the plane, which have no conditions")

    task = kind(world, settings.evaluate.num_sets, settings.run.seed)
    task.device = device
    guidance = methods.named(settings.record()).get("guidance")
    if guidance is not None and method.ANSWERS in guidance.needs:
        _check_optimum(task, settings)
    if guidance is not None and method.CLASSES in guidance.needs:
        _check_classes(task, settings, device)
    curve, pilot_calls = pilot.decisions_of(settings, kind, world, *piloted, device)
    chosen = methods.Methods(settings, curve)
    sampler = SetSampler(task, settings, device, chosen, network, _earlier(task, settings))
    sampler.check_memory()
    return Evaluation(settings, task, sampler, path, pilot_calls, notices)


def _earlier(task: Task, settings: EvaluationSettings) -> Tensor | None:
    """The samples of the run that an evaluation starts from, (G, B, H, W); None without one.

    Raises SettingError if its sets are not those of the task.
    """
    import torch

    from lab.records import finished

    run = settings.evaluate.from_run
    if run is None:
        return None
    arrays, _ = finished(run)
    sets = (settings.evaluate.num_sets, settings.evaluate.batch_size)
    if arrays["samples"].shape[:2] != sets or not torch.equal(arrays["cond"], task.cond):
        accepted = "a run with num_sets, batch_size, seed and world as here: the same conditions"
        reject("from_run", run, accepted)
    return arrays["samples"]


def _check_optimum(task: Task, settings: EvaluationSettings) -> None:
    """Refuse a method that needs the answers of each set if these differ in number.

    Raises SettingError, also for sets of fewer particles than likely classes.
    """
    from lab.tasks import ClassTask

    if task.world.dataset == "frames" and len(set(task.world.data.cases.counts)) > 1:
        reject(
            "guidance",
            settings.guidance.guidance,
            "any other if cases have different numbers of answers",
        )
    if isinstance(task, ClassTask):
        _check_wanted(task.wanted(slice(None)), settings.evaluate.batch_size)


def _check_wanted(wanted: Tensor | None, particles: int) -> None:
    """Refuse sets that are too small for the classes that each has to show, wanted (G, k) bool.

    Raises SettingError.
    """
    most = 0 if wanted is None else int(wanted.sum(1).max())
    if most > particles:
        reject("batch_size", particles, f"{most} or more, one for each likely class of a set")


def _check_classes(task: Task, settings: EvaluationSettings, device: Any) -> None:
    """Refuse guidance by classes if nothing tells the classes, and give a task its classifier.

    Raises SettingError.
    """
    import torch

    from diverse_sampling.guidance.classes import INDEPENDENT, composition_of
    from lab import checkpoint
    from lab.tasks import ClassTask

    if not task.has_classes:
        reject("guidance", settings.guidance.guidance, "any other in a world without classes")
    path = settings.options["classifier"]
    if isinstance(task, ClassTask):
        own = settings.world.dataset == "frames"
        if path is None and own:
            reject(
                "classifier", None, "a file that lab/train_classifier.py wrote for these pictures"
            )
        task.recognise = (
            checkpoint.load_classifier("noisy", device)
            if path is None
            else checkpoint.read_noisy_classifier(path, task.world, device)
        )
    elif path is not None:
        reject("classifier", path, "null in a world whose rule tells the classes")
    asked = settings.options["classes"]
    if isinstance(task, ClassTask) and task.recognise.of_clusters:
        if task.log_prior is not None:
            reject("classifier", path, "one of classes; how likely a cluster is here is not known")
        if asked not in ("all", INDEPENDENT):
            reject("classes", asked, f"all or {INDEPENDENT} with clusters, which nobody counts")
    classes = task.classes(torch.arange(task.num_sets), device)
    particles = settings.evaluate.batch_size
    composition_of(asked, classes.names, particles)
    if asked == "all":
        _check_wanted(classes.wanted, particles)


def _levels_drawn(
    settings: WorldSettings, network: EDMDenoiser, trained: Mapping[str, Any]
) -> Levels:
    """The levels of what a network draws on frames without answers.

    `trained` is the metadata of its checkpoint.
    """
    from worlds.levels import Levels

    said = Description.of(settings.data)
    if said.classes is not None:
        return Levels("classes", values=tuple(said.classes.values()))
    if str((trained.get("data") or {}).get("answers")).startswith("mask"):
        return Levels("mask", values=(0, 1))
    return Levels("colours" if network.unet.out_channels == 3 else "grey")


def _check_frames(
    world: OwnFrames,
    settings: EvaluationSettings,
    network: EDMDenoiser,
    trained: dict[str, Any],
) -> list[str]:
    """Check that a network fits a user's frames; `trained` is the metadata of its checkpoint.

    Returns notices. Raises SettingError if the frames are not like those it was trained on.
    """
    from lab.checkpoint import model_settings

    path = str(world.data.path)
    generated = network.unet.out_channels
    given = network.unet.in_channels - generated
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
