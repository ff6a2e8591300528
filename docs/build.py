"""Write the tables and pictures of the documentation from measured results.

    for b in figures comparison ablation predictions eddy few_calls lidc pipelines pixels
    do python benchmarks/$b.py; done
    for b in sampling network potentials worlds loading training grid durations
    do python benchmarks/$b.py; done
    for e in configs/experiments/*.yaml
    do python evaluate.py --experiment $(basename $e .yaml) --preset full; done
    python docs/build.py

Numbers are never typed: the text between `<!-- NAME -->` and `<!-- end -->` in a page is written
here. A result that was not measured again stays as it was; `stale.py` says what is refused.
`--pictures false` writes tables only.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import shutil
import sys
import tempfile
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

import reference  # noqa: E402
import stale  # noqa: E402

from benchmarks.measure import strength, table  # noqa: E402
from diverse_sampling.errors import SettingError, reject  # noqa: E402
from diverse_sampling.method import find, names  # noqa: E402
from figures import charts, gallery  # noqa: E402
from figures.charts import DEFAULT, best_samplers, middle_price, ranked, rivals  # noqa: E402
from figures.drawing import Figure, save  # noqa: E402
from lab import experiments  # noqa: E402
from lab.command_line import fail, make_parser  # noqa: E402
from lab.files import as_json, write_whole  # noqa: E402
from lab.names import METRICS  # noqa: E402

RESULTS = ROOT / "docs" / "results"
# Name of a picture, and the flags of evaluate.py that make its sets.
PICTURES = {
    "sequential": ["--pg_factor", "5", "--batch_size", "4", "--sequential", "2"],
    "classes": ["--task", "unconditional", "--batch_size", "10", "--guidance", "classes"],
    "halves": ["--dataset", "halves", "--batch_size", "10", "--guidance", "classes"],
    "masks": ["--checkpoint", "blobs", "--batch_size", "4", "--pg_factor", "5"],
    "mixture": ["--config", "configs/mixture.yaml", "--num_sets", "5"],
}
# Rows of a table of docs/from-the-thesis.md: what is asked, the experiment whose recipe says what
# the thesis found (None: nothing), and the names of two rows of benchmarks/figures.py, independent
# and guided.
QUESTIONS: list[tuple[str, str | None, str, str]] = [
    *(
        (question, experiment, name.format("independent"), name.format("guided"))
        for question, experiment, name in (
            ("directions of a jumping digit, plain U-Net", "e5", "plain U-Net, {}"),
            ("the same for 21 network calls", None, "plain U-Net, {}, 21 calls"),
            ("the same for 9 network calls", None, "plain U-Net, {}, 9 calls"),
            ("directions, a network that copies pixels", None, "network that copies, {}"),
            ("Gaussians on a circle in the plane", None, "mixture, {}"),
            ("masks with four answers each (synthetic)", None, "masks, trained, {}"),
        )
    ),
    *(
        (question, experiment, "unconditional digits, independent", guided)
        for question, experiment, guided in (
            ("unconditional digits, by pixels", "e1", "unconditional digits, guided"),
            (
                "the same by ten clusters (no labels)",
                None,
                "unconditional digits, by clusters (no labels)",
            ),
        )
    ),
]
# Tables of docs/classes.md: the first column's heading, the keys of metrics.json, and rows: a name,
# what the guide knows beside the denoiser, and the name of a row of benchmarks/figures.py.
LABELS, NO_LABELS = "labels", "nothing"
CLASS_TABLES = {
    "digits": (
        ("modes_found", "confidence", "agreement"),
        [
            ("network, independent", NO_LABELS, "unconditional digits, independent"),
            ("network, particle guidance", NO_LABELS, "unconditional digits, guided"),
            (
                "network, by clusters",
                "the number of clusters",
                "unconditional digits, by clusters (no labels)",
            ),
            ("network, by classes", LABELS, "unconditional digits, by classes"),
            ("the same, 21 calls", LABELS, "unconditional digits, by classes, 21 calls"),
            ("the same, 11 calls", LABELS, "unconditional digits, by classes, 11 calls"),
            (
                "network, a class for each by itself (control)",
                LABELS,
                "unconditional digits, a class for each by itself (control)",
            ),
            ("real digits, independent", NO_LABELS, "real digits, exact, independent"),
            ("real digits, particle guidance", NO_LABELS, "real digits, exact, guided"),
            (
                "real digits, by clusters",
                "the number of clusters",
                "real digits, exact, by clusters (no labels)",
            ),
            ("real digits, by classes", LABELS, "real digits, exact, by classes"),
            ("real digits, the optimum", "the answers", "real digits, exact, the optimum"),
        ],
    ),
    "compositions": (
        ("composition_met", "shares_error", "confidence"),
        [
            (name, LABELS, name)
            for name in ("five 3s and five 8s", "one 0, one 1, two 2s, six 7s", "70% 3s, 30% 8s")
        ],
    ),
    "halves": (
        ("coverage", "frequency_tv", "energy_score", "ged", "nearest_in_class"),
        [
            ("exact, independent", NO_LABELS, "halves, exact, independent"),
            ("exact, particle guidance", NO_LABELS, "halves, exact, guided"),
            ("exact, by classes", LABELS, "halves, exact, by classes"),
            ("exact, the optimum", "the answers", "halves, exact, the optimum"),
            ("network, independent", NO_LABELS, "halves, network, independent"),
            ("network, particle guidance", NO_LABELS, "halves, network, guided"),
            ("network, by classes", LABELS, "halves, network, by classes"),
        ],
    ),
    "circle": (
        ("modes_found", "quality", "hm_iou"),
        [
            ("particle guidance", NO_LABELS, "plain U-Net, guided"),
            ("the same, 15 calls", NO_LABELS, "plain U-Net, guided, 15 calls"),
            ("the same, 9 calls", NO_LABELS, "plain U-Net, guided, 9 calls"),
            ("by directions", "the rule", "plain U-Net, by directions that are known"),
            ("the same, 15 calls ", "the rule", "the same, 15 calls"),
            ("the same, 9 calls ", "the rule", "the same, 9 calls"),
        ],
    ),
}
# How many operations a second an H100's data sheet promises in bfloat16, and the share that is
# assumed to be reached.
PEAK, REACHED = 989e12, 0.2


@dataclass
class BuildSettings:
    """Documentation"""

    runs: str = "runs"
    """directory that contains the directories of benchmarks and experiments"""
    data_root: str = "data"
    """directory of torchvision's MNIST"""
    pictures: bool = True
    """draw the pictures as well"""


# ---------------------------------------------------------------- pictures

# Pictures of PICTURES with a row of independent samples above each guided one.
BESIDE_INDEPENDENT = ("sequential", "masks", "mixture")
INDEPENDENT, GUIDED = "independent", "guided"
GUIDANCE = ["--pg_factor", "5"]
WORST = 3  # methods whose samples are worst, in the picture of methods
# The set of the README's picture and of the film: the first one, in which independent samples find
# about as many directions as in the mean.
FRONT = ["--checkpoint", "circle_jumping_unet", "--num_sets", "1"]
# Charts of benchmarks that are drawn from their records.
CHARTS: dict[str, Callable[[dict], Figure]] = {
    "ablation": lambda record: charts.strengths(record["worlds"]),
    "comparison": lambda record: charts.comparison(record["rows"], UNET),
    "eddy": lambda record: charts.over_steps(record["rows"]),
}


def sampled(flags: list[str], data_root: str) -> tuple[dict, dict]:
    """The arrays and the metrics of an evaluation: what its samples.npz and metrics.json hold."""
    import evaluate
    from lab.records import finished

    with tempfile.TemporaryDirectory() as run:
        evaluate.main([*flags, "--data_root", data_root, "--outdir", run])
        return finished(run)


def write_picture(picture: Any, name: str, flags: list[str] | None = None, dpi: int = 80) -> None:
    """Write a picture to docs/pictures, with the flags of its evaluation if it is of one."""

    path = ROOT / "docs" / "pictures" / name
    save(picture, path, dpi=dpi)
    stale.note(path, flags)


def draw_sheet(name: str, flags: list[str], data_root: str) -> None:
    """Draw the sample sheet of an evaluation: three sets by one method, or five in the plane.

    Those of BESIDE_INDEPENDENT have a row of independent samples above each guided one.
    """
    from figures.sheets import points_sheet, result_sheet

    sets = [] if name == "mixture" else ["--num_sets", "3", "--seed", "2"]
    arrays, result = sampled([*flags, *sets], data_root)
    if name not in BESIDE_INDEPENDENT:
        figure = result_sheet(arrays, result)
    else:
        alone = sampled([*flags, *sets, "--pg_factor", "0"], data_root)
        both = {INDEPENDENT: alone, GUIDED: (arrays, result)}
        if name == "mixture":
            figure = points_sheet(
                {
                    label: (arrays["samples"].flatten(2), result["modes_found"]["per_set"])
                    for label, (arrays, result) in both.items()
                }
            )
        else:
            figure = sheet_of_both(both)
    write_picture(figure, f"{name}.png", flags)


def sheet_of_both(both: dict[str, tuple[dict, dict]], **changes: Any) -> Any:
    """The same sets by several methods: the rows of a set below each other.

    Arguments:
        both: label of a row -> arrays and metrics of its evaluation
        changes: of the arguments of `sample_sheet`
    """
    import torch

    from figures.sheets import mode_names, note, notes_title, sample_sheet

    first, result = next(iter(both.values()))
    sets = range(len(first["samples"]))
    of_sheet = {
        key: torch.stack([arrays[key][g] for g in sets for arrays, _ in both.values()])
        for key in ("cond", "samples", "answers", "modes")
        if key in first
    }
    options = dict(
        answers=of_sheet.get("answers"),
        modes=of_sheet.get("modes"),
        labels=list(both) * len(sets),
        notes=[note(metrics, g) for g in sets for _, metrics in both.values()],
        notes_title=notes_title(result),
        key=mode_names(result) if "modes" in first else (),
        draws=max(metrics["settings"].get("sequential", 1) for _, metrics in both.values()),
    )
    return sample_sheet(of_sheet["cond"], of_sheet["samples"], **options | changes)


def draw_front(data_root: str) -> None:
    """Draw the README's picture: a set of the plain U-Net, independent above, guided below."""
    both = {
        INDEPENDENT: sampled(FRONT, data_root),
        GUIDED: sampled([*FRONT, *GUIDANCE], data_root),
    }
    found = [
        f"{metrics['modes_found']['mean']:.0f} of {metrics['modes_total']} places"
        for _, metrics in both.values()
    ]
    write_picture(sheet_of_both(both, notes=found, notes_title="", side=0.62), "front.png", dpi=110)


def draw_methods(rows: list[dict], data_root: str) -> None:
    """Draw one set of the plain U-Net by methods of the comparison, of the same noise.

    Those that its chart names, and under them those whose samples are worst.
    """
    import torch

    import evaluate
    from figures.sheets import mode_names, note, notes_title, sample_sheet
    from lab.records import finished

    sets: dict[str, tuple[dict, dict]] = {}
    best = best_samplers(rows, UNET, middle_price(rows))
    named = charts.named_methods(best)
    worst = sorted(best, key=lambda method: best[method]["quality"]["mean"])[-WORST:]
    for row in (best[method] for method in dict.fromkeys([*named, *worst])):
        with tempfile.TemporaryDirectory() as run:
            one = ["--num_sets", "1", "--data_root", data_root, "--outdir", run]
            evaluate.main([*shlex.split(row["flags"]), *one])
            # A picture has no words for the star of a table.
            sets[title_of(row).removesuffix("*")] = finished(run)
    results = [result for _, result in sets.values()]
    sheet = sample_sheet(
        *(torch.cat([arrays[key] for arrays, _ in sets.values()]) for key in ("cond", "samples")),
        modes=torch.cat([arrays["modes"] for arrays, _ in sets.values()]),
        labels=[textwrap.fill(name, 36) for name in sets],
        notes=[note(result, 0) for result in results],
        notes_title=notes_title(results[0]),
        key=mode_names(results[0]),
        side=0.6,
    )
    write_picture(sheet, "methods.png", dpi=110)


def printed(data_root: str) -> str:
    """What the README's first command prints, as a block of text."""
    import evaluate

    (flags,) = re.findall(
        r"^    .*evaluate\.py (.*)$", (ROOT / "README.md").read_text(), flags=re.M
    )
    out = io.StringIO()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(out):
        run = str(Path(folder) / "NAME")
        evaluate.main([*shlex.split(flags), "--data_root", data_root, "--outdir", run])
    return f"```text\n{out.getvalue().replace(run, 'runs/NAME').strip()}\n```"


def animate(data_root: str) -> None:
    """Draw the README's set during denoising, independent and guided, as a GIF."""
    import evaluate
    import visualize

    gif = str(ROOT / "docs" / "pictures" / "denoising.gif")
    with tempfile.TemporaryDirectory() as folder:
        runs = {f"{folder}/{UNET}, {INDEPENDENT}": [], f"{folder}/{UNET}, {GUIDED}": GUIDANCE}
        for run, flags in runs.items():
            evaluate.main([*FRONT, *flags, "--data_root", data_root, "--outdir", run])
        visualize.main(["animation", *runs, "--out", gif])
    stale.note(Path(gif))


def draw_decisions(data_root: str) -> None:
    """Draw at which noise levels it is decided what a sample shows, in several worlds."""
    import evaluate
    import visualize

    worlds = {
        "circle, exact denoiser": ["--denoiser", "exact"],
        "circle, plain U-Net": ["--checkpoint", "circle_jumping_unet"],
        "digits, U-Net": ["--task", "unconditional"],
        "masks, U-Net": ["--checkpoint", "blobs"],
        "plane, exact denoiser": ["--dataset", "mixture", "--denoiser", "exact"],
    }
    with tempfile.TemporaryDirectory() as folder:
        runs = {f"{folder}/{world}": flags for world, flags in worlds.items()}
        for run, flags in runs.items():
            one = [*GUIDANCE, "--num_sets", "1", "--data_root", data_root, "--outdir", run]
            evaluate.main([*flags, *one])
        picture = str(ROOT / "docs" / "pictures" / "decisions.png")
        visualize.main(["decisions", *runs, "--out", picture])
    stale.note(Path(picture))


# ---------------------------------------------------------------- tables


def answers_table(figures: list[dict]) -> str:
    """The thesis's results beside independent and guided sets."""
    measured = {row["name"]: row for row in figures}
    rows = []
    for question, experiment, *both_names in QUESTIONS:
        thesis = experiments.load(experiment)["reference"] if experiment else "–"
        both = [measured[name] for name in both_names]
        results = ["<br>".join(row["measured"]) for row in both]
        rows.append([question, thesis, both[0]["expected_iid"] or "–", *results])
    header = "task | thesis, guided | independent, theory | independent"
    return table(f"{header} | guided", rows)


def class_tables(figures: list[dict]) -> dict[str, str]:
    """The tables of docs/classes.md, by the names of their places.

    A row that was not measured yet is left out.
    """
    measured = {row["name"]: row for row in figures}
    tables = {}
    for name, (keys, rows) in CLASS_TABLES.items():
        lines = []
        for title, knows, figure in rows:
            row = measured.get(figure)
            if row is None:
                continue
            values = [text.partition(": ")[2] for text in row["measured"]]
            lines.append([title, knows, *values, f"{row['price']:g}"])
        titles = " | ".join(METRICS[key].label for key in keys)
        tables[f"classes: {name}"] = table(f"what | knows | {titles} | price", lines)
    return tables


# ---------------------------------------------------------------- the comparison

UNET = "plain U-Net"
MODELS = ("exact", "exact, p = 0.5", UNET)


def used(row: dict) -> str:
    """The sampler and the strength of a row of the comparison."""
    return ", ".join(filter(None, (row["sampler"], strength(row))))


def title_of(row: dict) -> str:
    """A row of the comparison in words: method, sampler, strength."""
    return ", ".join(filter(None, (row["method"], used(row))))


def best_rival(rows: list[dict], price: float) -> dict:
    """The row of the method by others that shows most modes on the plain U-Net at a price."""
    best = best_samplers(rows, UNET, price)
    return best[rivals(best)[0]]


def front_tables(rows: list[dict]) -> dict[str, str]:
    """The README's figures: what guidance finds in a line, and a table of five rows."""
    price = middle_price(rows)
    half = min(row["budget"] for row in rows)
    best = best_samplers(rows, UNET, price)
    independent, guided = best["independent"], best[DEFAULT]
    halved = best_samplers(rows, UNET, half)[DEFAULT]
    rival = best_rival(rows, price)
    pool = next(best[method] for method in ranked(best) if method.startswith("pool"))
    k = guided["modes_total"]
    mean = lambda row: f"{row['modes_found']['mean']:.1f}"
    line = (
        f"- **It finds** {mean(guided)} of {k} different answers "
        "([modes](docs/glossary.md#mode)) in a [guided](docs/glossary.md#guidance) set of 8, "
        f"{mean(halved)} with half the network calls, and {mean(independent)} in an "
        "[independent](docs/glossary.md#independent) set."
    )
    lines = [
        [name, experiments.interval(row["modes_found"]), experiments.interval(row["quality"])]
        for name, row in (
            ("independent", independent),
            ("guided", guided),
            ("guided, half the network calls", halved),
            (f"best rival: {rival['method']}", rival),
            (pool["method"], pool),
        )
    ]
    header = f"set of 8 | modes found, of {k} | [quality](docs/glossary.md#quality), 0 is perfect"
    others = [each for each in sorted({row["budget"] for row in rows}) if each != price]
    calls = " and ".join(f"{each:g}" for each in others)
    found = " and ".join(
        f"{row['method']} ({row['modes_found']['mean']:.2f})"
        for row in (best_rival(rows, each) for each in others)
    )
    caption = (
        f"Means over {guided['num_sets']} sets with 95% intervals, by a [plain "
        f"U-Net](docs/glossary.md#plain-u-net) with at most {price:g} calls a sample. A search on "
        f"other models chose the rival's sampler and strength; at {calls} calls the best "
        f"rivals are {found}."
    )
    return {"front: line": line, "front: table": f"{table(header, lines)}\n\n{caption}"}


def which_table(rows: list[dict]) -> str:
    """Every method of the comparison on the plain U-Net, at all prices, in a row.

    Each has the sampler that the search chose.
    """
    prices = sorted({row["budget"] for row in rows})
    at = {
        (row["method"], row["sampler"], row["budget"]): row for row in rows if row["model"] == UNET
    }
    best = best_samplers(rows, UNET, middle_price(rows))
    lines = []
    for row in (best[method] for method in ranked(best)):
        found = [at.get((row["method"], row["sampler"], price)) for price in prices]
        lines.append(
            [
                row["method"],
                used(row),
                *(experiments.interval(other and other["modes_found"]) or "–" for other in found),
                *(experiments.interval(row[key]) for key in ("modes_shown", "quality", "hm_iou")),
            ]
        )
    calls = " | ".join(f"modes found, {price:g} calls" for price in prices)
    header = f"method | sampler, strength | {calls} | modes shown | quality | HM IoU*"
    return f"{table(header, lines)}\n\n{sets_of(rows)}"


def audit_table(rows: list[dict]) -> str:
    """Every method of the comparison with exact denoisers, at the middle price, in a row."""
    equal, unequal = (best_samplers(rows, model, middle_price(rows)) for model in MODELS[:2])
    lines = []
    for method in ranked(equal):
        first, second = equal[method], unequal.get(method, {})
        lines.append(
            [
                method,
                used(first),
                *(experiments.interval(row.get("modes_found")) or "–" for row in (first, second)),
                experiments.audit_entry(first, "count_dispersion"),
                experiments.audit_entry(first, "equivalent_draws"),
                experiments.audit_entry(second, "frequency_tv") or "–",
                f"{first['price']:.1f}",
            ]
        )
    dispersion, draws, off = (
        METRICS[key].title for key in ("count_dispersion", "equivalent_draws", "frequency_tv")
    )
    found = "modes found | modes found, p = 0.5"
    header = (
        f"method | sampler, strength | {found} | {dispersion} | {draws} | {off}, p = 0.5 | price"
    )
    return table(header, lines)


def cads_table(rows: list[dict], search: list[dict]) -> str:
    """CADS beside independent samples in its sampler and the default, at the middle price."""
    shown = ("independent, EDM's", "CADS", "particle guidance, the default")
    rows = [row for row in rows if row["model"] == UNET]
    lines = [
        [
            title_of(row),
            *(experiments.interval(row[key]) for key in ("modes_found", "quality", "hm_iou")),
        ]
        for row in rows
        if row["budget"] == middle_price(rows)
        and ", ".join(filter(None, (row["method"], row["sampler"]))) in shown
    ]
    lines.sort(key=lambda line: line[1])
    (tried,) = (each["shown"] for each in search if each["method"] == "CADS")
    (tuned_on,) = {model for found in tried.values() for model in found}
    note = f"CADS's scale is the best of {', '.join(tried)} on the {tuned_on}."
    header = "method, sampler, strength | modes found | quality | HM IoU*"
    return f"{table(header, lines)}\n\n{sets_of(rows)} {note}"


def needs_table() -> str:
    """What every method needs beside a denoiser, and what becomes of frequencies."""
    lines = [
        [
            f"`--{flag} {name}`",
            method.title,
            ", ".join(method.needs) or "nothing",
            method.frequencies,
        ]
        for flag in ("guidance", "noise")
        for name in names(flag)
        if (method := find(flag, name)) is not None
    ]
    return table("flag | method | needs | frequencies", lines)


def references() -> str:
    """The papers of CITATION.cff, by the names of their authors."""
    import yaml

    lines = []
    for paper in yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["references"]:
        *others, last = [author["family-names"] for author in paper["authors"]]
        authors = f"{', '.join(others)} and {last}" if others else last
        (where,) = paper["identifiers"]
        place = where["value"].replace("arXiv:", "arXiv ")
        place = f"doi {place}" if where["type"] == "doi" else place
        lines.append(f"- {authors} ({paper['year']}). *{paper['title']}*. {place}.")
    return "\n".join(sorted(lines))


def thesis_table(rows: list[dict]) -> str:
    """Directions found by independent sets and by the thesis's form, on each model."""
    lines = []
    for method in dict.fromkeys(row["method"] for row in rows):
        if method == "independent" or "thesis's" in method and "kernel" not in method:
            each = [best_samplers(rows, name, middle_price(rows)).get(method) for name in MODELS]
            lines.append(
                [method, *(experiments.interval(row and row["modes_found"]) for row in each)]
            )
    header = " | ".join(("", *MODELS))
    return f"{table(header, lines)}\n\n{sets_of(rows)}"


def sets_of(rows: list[dict]) -> str:
    """A line about the sets of the comparison."""
    middle = [row for row in rows if row["budget"] == middle_price(rows)]
    counts = {row["model"]: (row["num_sets"], len(row["seeds"])) for row in middle}
    sets = "; ".join(
        f"{name}: {sets} sets of 8, {n} seed{'s' * (n > 1)}" for name, (sets, n) in counts.items()
    )
    return f"{sets}. Independent samples find {middle[0]['modes_expected_iid']:.2f} in theory."


def checkpoint_table() -> str:
    """Every network in checkpoints/, from its own metadata."""
    from lab import checkpoint

    header = "checkpoint | parameters | size | trained on | updates | minutes | machine | command"
    rows = []
    for path in sorted((ROOT / "checkpoints").glob("*.safetensors")):
        meta = checkpoint.read_metadata(path)
        settings = meta["settings"]
        if "accuracy_at" in meta:
            updates = f"{settings['epochs']} epochs"
            clusters = settings.get("clusters")
            kind = f"--clusters {clusters}" if clusters else "--noisy"
            command = f"-m lab.train_classifier {kind} --digits mnist"
        elif path.stem.startswith("classifier"):
            right = f"{100 * meta['accuracy']:.2f}% of the test digits correct"
            updates = f"{settings['epochs']} epochs; {right}"
            command = "-m lab.train_classifier --digits mnist --seed {seed} --epochs {epochs}"
            command = command.format(**settings)
        elif path.stem == "judge":
            updates = (
                f"{100 * meta['accuracy']:.2f}% of the test digits correct, "
                f"{100 * meta['accuracy_embedded']:.2f}% of the embedded ones"
            )
            command = f"-m lab.judge --digits {settings['digits']}"
        else:
            updates = f"{meta['iteration']:,} of {settings['batch_size']}"
            command = f"train.py --config {config_of(path)}"
        rows.append(
            [
                f"`{path.stem}`",
                f"{meta['parameters']:,}",
                f"{path.stat().st_size / 1e6:.1f} MB",
                meta["digits_source"],
                updates,
                f"{meta['train_seconds'] / 60:.0f}",
                meta["machine"].replace(" 1 threads", " 1 thread"),
                f"`{command}`",
            ]
        )
    return table(header, rows)


def noisy_table() -> str:
    """How well the classifier of noisy digits does at each noise level, from its own metadata."""
    from lab import checkpoint

    meta = checkpoint.read_metadata(ROOT / "checkpoints" / "classifier_noisy.safetensors")
    rows = [
        [f"{float(sigma):g}", f"{100 * share:.1f}%", f"{meta['cross_entropy_at'][sigma]:.3f}"]
        for sigma, share in meta["accuracy_at"].items()
    ]
    return table("noise level | test digits recognised | cross-entropy, nats", rows)


def config_of(path: Path) -> str:
    """The configuration that a checkpoint was trained with, relative to the repository."""
    small = ROOT / "configs" / f"{path.stem}_small.yaml"
    return f"configs/{small.name if small.is_file() else path.stem + '.yaml'}"


def scale_table() -> str:
    """What a large sweep costs on large machines, from counted operations and assumed rates."""
    import torch
    import yaml
    from torch.utils.flop_counter import FlopCounterMode

    from config import TrainingSettings
    from lab import checkpoint

    cells, sets, particles = 10_000, 100, 8
    calls = 43  # guidance by default has no backward pass
    large = yaml.safe_load((ROOT / "configs" / "circle_jumping.yaml").read_text())
    models = {
        "reference network, 32 px": {},
        "the same at 64 px, two digits, three conditioning frames": dict(
            dataset="free", image_size=64, num_digits=2
        ),
    }
    header = (
        "model | operations per image, forward | operations of the sweep | hours on 1 GPU"
        " | on 8 GPUs | on 64 GPUs"
    )
    rows = []
    for name, changes in models.items():
        settings = TrainingSettings.from_values(large | changes)
        side = settings.world.image_size
        given = settings.world.num_cond_frames or 0
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            unet = checkpoint.make_denoiser((given, 1), settings.model, 0.5).unet
            unet(torch.empty(1, given + 1, side, side), torch.empty(1))
        forward = counter.get_total_flops()
        total = cells * sets * particles * forward * calls
        hours = total / (REACHED * PEAK) / 3600
        row = [name, f"{forward / 1e9:.1f} billion", f"{total:.1e}"]
        rows.append(row + [f"{hours / gpus:.2g}" for gpus in (1, 8, 64)])
    return (
        f"{table(header, rows)}\n\n"
        f"Calculated, not measured: {cells:,} cells of {sets} sets of {particles}, {calls} network "
        f"calls per particle, on GPUs of {PEAK / 1e12:.0f} TFLOP/s in bfloat16 (data sheet of an "
        f"H100) of which {100 * REACHED:.0f}% are reached."
    )


# ---------------------------------------------------------------- pages


def fill(page: Path, name: str, text: str) -> None:
    """Replace the text between the markers of `name` in a page, if it has them."""
    page.write_text(
        re.sub(
            rf"(<!-- {name} -->\n).*?(<!-- end -->)",
            lambda marks: f"{marks[1]}\n{text.strip()}\n\n{marks[2]}",
            page.read_text(),
            flags=re.S,
        )
    )


def held(name: str) -> dict[str, Any] | None:
    """The record of that name in docs/results; None if there is none."""
    path = RESULTS / f"{name}.json"
    return stale.record_of(path) if path.is_file() else None


def keep_results(name: str, runs: Path) -> None:
    """Copy an experiment's results, those of `full` if it was run, and its pictures of samples.

    Charts are drawn from the results."""
    for preset in ("full", "quick"):
        folder = runs / f"{name}-{preset}"
        results = folder / "results.json"
        if results.is_file():
            brief = experiments.brief(stale.record_of(results))
            write_whole(RESULTS / f"{name}.json", as_json(brief))
            for figure, file in figures_of(name).items():
                picture = folder / file
                if not gallery.FIGURES[figure].samples_again or not picture.is_file():
                    continue
                if picture.stat().st_mtime < results.stat().st_mtime:
                    reject("picture", str(picture), "one that is not older than its record")
                stale.note(Path(shutil.copy(picture, RESULTS / f"{name}-{file}")))
            break


def figures_of(name: str) -> dict[str, str]:
    """{name of a figure of an experiment: its file}."""
    figures = experiments.load(name)["figure"]
    figures = figures if isinstance(figures, list) else [figures]
    return {figure: f"{gallery.FILES.get(figure, figure)}.png" for figure in figures}


def draw_charts(name: str, results: dict[str, Any]) -> None:
    """Draw the figures of an experiment that its results are enough for."""
    for figure, file in figures_of(name).items():
        kind = gallery.FIGURES[figure]
        if not kind.samples_again:
            path = RESULTS / f"{name}-{file}"
            save(kind.draw(results["rows"], experiments.load(name)["title"]), path)
            stale.note(path)


def experiment_section(name: str) -> str:
    """The part of docs/results.md about one experiment, from its recipe and docs/results."""
    recipe = experiments.load(name)
    results = held(name)
    if results is None:
        return ""
    size = recipe.get("size")
    if size and results["preset"] == "quick":
        size = f"smaller than `--preset full`, which would be: {size}"
    parts = [
        f"## {name.upper()}: {recipe['title']}",
        *([f"Size: {size}."] if size else []),
        f"    {results['command']}",
        f"Reference: {recipe['reference']}.",
        experiments.summary(results["rows"]),
    ]
    for figure, file in figures_of(name).items():
        parts.append(f"![{' '.join(recipe['alt'][figure].split())}](results/{name}-{file})")
    return "\n\n".join([*parts, " ".join(recipe["meaning"].split())])


def experiment_durations() -> str:
    """How long each experiment took to sample, from its record."""
    rows = []
    for path in sorted(experiments.RECIPES.glob("*.yaml"), key=lambda path: int(path.stem[1:])):
        if record := held(path.stem):
            seconds = sum(row["result"]["seconds"] for row in record["rows"])
            rows.append([f"`{path.stem}`", record["preset"], len(record["rows"])])
            rows[-1].append(f"{seconds / 60:.1f}")
    return table("experiment | preset | evaluations | minutes", rows)


def experiment_page(runs: Path) -> str:
    """The text of docs/results.md: every experiment, from the largest preset that was run."""
    parts = [
        "# Results of the experiments",
        "Written by `python docs/build.py` from the result files. Brackets are 95% intervals. A "
        "*cell* is one evaluation of the grid of an experiment; `--preset full` uses more sets per "
        "cell. *Reference* is what the thesis reports ([coming from the "
        "thesis](from-the-thesis.md)), unless it names another source; *Size* compares an "
        "experiment with the thesis's. *Modes found* counts the different directions in a set of "
        "jumping digits (the thesis calls it *directional accuracy*), or the different classes in "
        "a set of unconditional digits. "
        "All samples are from one version of the code "
        "([when samples change](CONTRIBUTING.md#when-samples-change)).",
    ]
    recipes = experiments.RECIPES.glob("*.yaml")
    for path in sorted(recipes, key=lambda path: int(path.stem[1:])):
        keep_results(path.stem, runs)
        if results := held(path.stem):
            draw_charts(path.stem, results)
        parts.append(experiment_section(path.stem))
    parts = [part for part in parts if part]
    return "\n\n".join(parts) + "\n"


def main(argv: list[str] | None = None) -> None:
    """Write docs/results.md and the tables of all pages, and draw the pictures."""
    try:
        build(argv)
        stale.check(ROOT, PICTURES)
    except SettingError as error:
        fail(str(error))


def build(argv: list[str] | None) -> None:
    """All of it but the check. Raises SettingError for a record of other samples than today's."""
    args = make_parser(BuildSettings, description=__doc__.split("\n")[0]).parse_args(argv)
    for folder in ("pictures", "results"):
        (ROOT / "docs" / folder).mkdir(exist_ok=True)
    tables = dict(checkpoint=checkpoint_table(), noisy=noisy_table(), scale=scale_table())
    for run in Path(args.runs).glob("benchmark-*"):
        name = run.name.removeprefix("benchmark-")
        if (run / f"{name}.json").is_file():
            stale.record_of(run / f"{name}.json")
            tables[name] = (run / f"{name}.md").read_text()
            shutil.copy(run / f"{name}.json", RESULTS)
        if (run / f"{name}.png").is_file() and name not in CHARTS:
            stale.note(Path(shutil.copy(run / f"{name}.png", RESULTS)))
    for name, draw in CHARTS.items():
        if record := held(name):
            save(draw(record), RESULTS / f"{name}.png")
            stale.note(RESULTS / f"{name}.png")
    comparison = held("comparison")
    compared = comparison["rows"] if comparison else []
    if args.pictures:
        draw_front(args.data_root)
        for name, flags in PICTURES.items():
            draw_sheet(name, flags, args.data_root)
        if compared:
            draw_methods(compared, args.data_root)
        tables["prints"] = printed(args.data_root)
        animate(args.data_root)
        draw_decisions(args.data_root)
    (ROOT / "docs" / "results.md").write_text(experiment_page(Path(args.runs)))
    for name in ("pipelines", "ablation", "durations"):
        if record := held(name):
            tables |= {f"{name}: {part}": text for part, text in record["tables"].items()}
    if figures := held("figures"):
        tables["answers"] = answers_table(figures["rows"])
        tables |= class_tables(figures["rows"])
    if comparison:
        tables |= front_tables(compared)
        tables |= dict(which=which_table(compared), audit=audit_table(compared))
        tables["cads"] = cads_table(compared, comparison["search"])
        tables["thesis"] = thesis_table(compared)
    tables |= dict(needs=needs_table(), references=references()) | reference.parts()
    tables["durations: experiments"] = experiment_durations()
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for name, text in tables.items():
            fill(page, name, text)


if __name__ == "__main__":
    main()
