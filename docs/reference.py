"""The lists of docs/reference.md and docs/files.md, from the declarations that they describe:
settings, commands, recipes of experiments, metrics."""

from __future__ import annotations

import re
from typing import Sequence

import visualize
from benchmarks.measure import table
from config import (
    DigitSettings,
    EvaluationSettings,
    ExperimentSettings,
    GuidanceSettings,
    ModelSettings,
    OptimizationSettings,
    OriginSettings,
    RunSettings,
    SamplerSettings,
    Setting,
    TaskSettings,
    TrackingSettings,
    TrainingSettings,
    WorldSettings,
    declared,
)
from diverse_sampling import method
from lab import experiments
from lab.command_line import texts_of
from lab.files import as_json
from lab.names import METRICS
from lab.train_classifier import ClassifierSettings

EVALUATION = (*EvaluationSettings.groups(), ExperimentSettings, TrackingSettings)
TRAINING = TrainingSettings.groups()
# In the order of the page.
GROUPS = (
    *(TaskSettings, SamplerSettings, GuidanceSettings, ExperimentSettings, WorldSettings),
    *(DigitSettings, ModelSettings, OptimizationSettings, RunSettings, TrackingSettings),
    OriginSettings,
)


def item(setting: Setting, text: str) -> str:
    """The line of a list about a setting: its flag, what it is, what it accepts, its default."""
    default = setting.default
    shown = default if isinstance(default, (str, float)) else as_json(default)
    often = ", `--help_all`" if setting.rare else ""
    return f"- **`--{setting.name}`**: {text}. *{setting.accepted()}; default `{shown}`{often}.*"


def items(groups: Sequence[type]) -> str:
    """The list of the settings of some groups."""
    texts = texts_of(groups)
    settings = (setting for group in groups for setting in declared(group))
    return "\n".join(item(setting, texts[setting.name]) for setting in settings)


def flags() -> str:
    """Every flag of evaluate.py and train.py, under the heading of its group."""
    parts = []
    for group in GROUPS:
        both = dict(zip(("evaluate.py", "train.py"), (group in EVALUATION, group in TRAINING)))
        where = " and ".join(f"`{script}`" for script, takes in both.items() if takes)
        parts += [f"### {group.__doc__}", f"Flags of {where}.", items([group])]
        if group is GuidanceSettings:
            parts += ["### Options of single methods", options()]
    return "\n\n".join(parts)


def options() -> str:
    """The settings that belong to one method, each under the flag that chooses it."""
    parts = ["Flags of `evaluate.py`, each accepted only with the method that it belongs to."]
    for flag in method.FOLDERS:
        for name in method.names(flag):
            found = method.find(flag, name)
            if found is not None and found.options is not None:
                parts += [f"With `--{flag} {name}`:", items([found.options])]
    return "\n\n".join(parts)


def classifier() -> str:
    """The flags of `python -m lab.train_classifier`."""
    return items([ClassifierSettings])


def commands() -> str:
    """The commands of visualize.py, and the flags of each."""
    parts = []
    for name, command in visualize.COMMANDS.items():
        runs = {"+": " RUN [RUN ...]", 1: " RUN", 0: ""}[command.runs]
        parts += [f"**`python visualize.py {name}{runs}`**: {command.help}."]
        own = [group for group in command.settings if group not in GROUPS]
        shared = [group.__doc__ for group in command.settings if group in GROUPS]
        if own:
            parts += [items(own)]
        if shared:
            links = (f"[{title}](#{anchor(str(title))})" for title in shared)
            parts += [f"Also the flags of {' and '.join(links)}."]
    return "\n\n".join([*parts, "Every command takes:", items([visualize.Output])])


def anchor(heading: str) -> str:
    """The anchor of a heading, made as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def recipes() -> str:
    """Every experiment: its question, and how many evaluations each preset runs."""
    rows = []
    for path in sorted(experiments.RECIPES.glob("*.yaml"), key=lambda path: int(path.stem[1:])):
        recipe = experiments.load(path.stem)
        heading = anchor(f"{path.stem}: {recipe['title']}")
        sizes = [len(list(experiments.cells(recipe, preset))) for preset in ("quick", "full")]
        rows.append([f"[`{path.stem}`](results.md#{heading})", recipe["title"], *sizes])
    return table("experiment | question | evaluations, quick | full", rows)


def metrics() -> str:
    """Every metric: its key in metrics.json, its name, what it is, and which values are good."""
    good = {True: "low", False: "high", None: ""}
    rows = [
        [f"`{key}`", metric.title, metric.note, good[metric.less_is_better]]
        for key, metric in METRICS.items()
        if key != "p_right"  # the first of mode_frequencies
    ]
    return table("key | name in tables | unit, or what it refers to | good", rows)


def parts() -> dict[str, str]:
    """What stands in docs/reference.md and docs/files.md, by the names of the places."""
    return {
        "reference: metrics": metrics(),
        "reference: flags": flags(),
        "reference: classifier": classifier(),
        "reference: commands": commands(),
        "reference: experiments": recipes(),
    }
