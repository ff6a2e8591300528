"""Write the tables and pictures of the documentation from measured results.

    for b in figures guidance strengths eddy lidc pipelines; do python benchmarks/$b.py; done
    for b in pixels sampling network potentials worlds training grid
    do python benchmarks/$b.py; done
    for e in $(seq 14); do python evaluate.py --experiment e$e; done
    python docs/build.py

Numbers are never typed: the text between `<!-- NAME -->` and `<!-- end -->` in a page is written
here. A result that was not measured again stays as it was. `--pictures false` writes tables only.
"""

from __future__ import annotations

import functools
import json
import re
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.measure import table  # noqa: E402
from diverse_sampling.method import KEPT, STRENGTH, find  # noqa: E402
from lab import experiments  # noqa: E402
from lab.command_line import make_parser  # noqa: E402
from lab.names import INDEPENDENT, METRICS  # noqa: E402

RESULTS = ROOT / "docs" / "results"
# Name of a picture, and the flags of evaluate.py that make its sets.
PICTURES = {
    "sequential": ["--pg_factor", "5", "--batch_size", "4", "--sequential", "2"],
    "classes": ["--task", "unconditional", "--batch_size", "10", "--guidance", "classes"],
    "halves": ["--dataset", "halves", "--batch_size", "10", "--guidance", "classes"],
    "masks": ["--checkpoint", "blobs", "--batch_size", "4", "--pg_factor", "5"],
    "mixture": ["--config", str(ROOT / "configs" / "mixture.yaml"), "--num_sets", "5"],
}
# Rows of the README's first table: what is asked, the experiment whose recipe says what the thesis
# found (None: nothing), and the names of two rows of benchmarks/figures.py, independent and guided.
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
    (
        "unconditional digits, by ten clusters (no labels)",
        "e1",
        "unconditional digits, independent",
        "unconditional digits, by clusters (no labels)",
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


def draw_sheet(name: str, flags: list[str], data_root: str) -> None:
    """Draw the sample sheet of an evaluation: three sets by one method."""
    import evaluate
    from figures.drawing import save
    from figures.gallery import figure

    if name != "mixture":
        flags = [*flags, "--num_sets", "3", "--seed", "2"]
    with tempfile.TemporaryDirectory() as run:
        evaluate.main([*flags, "--data_root", data_root, "--outdir", run])
        save(figure(run)[0], ROOT / "docs" / "pictures" / f"{name}.png", dpi=80)


def draw_methods(data_root: str) -> None:
    """Draw one set of the plain U-Net by every method of the comparison, of the same noise."""
    import torch

    import evaluate
    from figures.drawing import save
    from figures.sheets import note, notes_title, sample_sheet
    from lab.records import finished

    rows: dict[str, tuple[dict, dict]] = {}
    for labels, flags in experiments.cells(experiments.load("e10"), "quick"):
        name = compared()[labels["method"]].title
        if labels["denoiser"] != "trained" or name in rows:
            continue
        with tempfile.TemporaryDirectory() as run:
            one = ["--num_sets", "1", "--seed", "2", "--data_root", data_root, "--outdir", run]
            evaluate.main([*flags, *one])
            rows[name] = finished(run)
    results = [result for _, result in rows.values()]
    sheet = sample_sheet(
        *(torch.cat([arrays[key] for arrays, _ in rows.values()]) for key in ("cond", "samples")),
        modes=torch.cat([arrays["modes"] for arrays, _ in rows.values()]),
        labels=list(rows),
        notes=[note(result, 0) for result in results],
        notes_title=notes_title(results[0]),
    )
    save(sheet, ROOT / "docs" / "pictures" / "methods.png", dpi=80)


def animate(data_root: str) -> None:
    """Draw the same set during denoising, independent and guided, as a GIF."""
    import evaluate
    import visualize

    always = ["--num_sets", "3", "--seed", "2", "--data_root", data_root]
    gif = str(ROOT / "docs" / "pictures" / "denoising.gif")
    with tempfile.TemporaryDirectory() as folder:
        runs = {
            f"{folder}/independent": [],
            f"{folder}/guided, --pg_factor 5": ["--pg_factor", "5"],
        }
        for run, flags in runs.items():
            evaluate.main([*flags, *always, "--outdir", run])
        visualize.main(["animation", *runs, "--set", "2", "--out", gif])


def draw_decisions(data_root: str) -> None:
    """Draw where it is decided what a sample shows, in several worlds."""
    import evaluate
    import visualize

    worlds = {
        "circle, exact": ["--denoiser", "exact"],
        "circle, plain U-Net": ["--checkpoint", "circle_jumping_unet"],
        "unconditional digits": ["--task", "unconditional"],
        "masks": ["--checkpoint", "blobs"],
        "Gaussians in the plane": ["--dataset", "mixture", "--denoiser", "exact"],
    }
    always = ["--pg_factor", "5", "--num_sets", "1", "--num_steps", "8", "--data_root", data_root]
    with tempfile.TemporaryDirectory() as folder:
        runs = {f"{folder}/{world}": flags for world, flags in worlds.items()}
        for run, flags in runs.items():
            evaluate.main([*flags, *always, "--outdir", run])
        picture = str(ROOT / "docs" / "pictures" / "decisions.png")
        visualize.main(["decisions", *runs, "--out", picture])


# ---------------------------------------------------------------- tables


def answers_table(figures: list[dict]) -> str:
    """The README's first table: the thesis's results beside independent and guided sets."""
    measured = {row["name"]: row for row in figures}
    rows = []
    for question, experiment, *names in QUESTIONS:
        thesis = experiments.load(experiment)["reference"] if experiment else "–"
        both = [measured[name] for name in names]
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


@dataclass(frozen=True)
class Compared:
    """What is said of a point of the axis `method` of e10.

    Arguments:
        title: its name in tables
        needs: what it needs beside a denoiser
        frequencies: what becomes of them
        brief: whether it is one of those that the README compares
    """

    title: str = INDEPENDENT
    needs: str = "nothing"
    frequencies: str = KEPT
    brief: bool = True


@functools.cache
def compared() -> dict[str, Compared]:
    """{point: what is said of it} of e10, as its method and the recipe's `variants` say."""
    recipe = experiments.load("e10")
    said = {}
    for point, settings in recipe["grid"]["method"].items():
        about: dict[str, Any] = {}
        name = settings.get("guidance", "pg" if "pg_factor" in settings else "none")
        method = find("guidance", name) or find("noise", settings.get("noise", "iid"))
        if method is not None:
            needs = [each for each in method.needs if each != STRENGTH]
            about = dict(title=method.title, frequencies=method.frequencies)
            about["needs"] = ", ".join(needs) or "nothing"
        said[point] = Compared(**about | recipe["variants"].get(point, {}))
    return said


def first_of_each_method(rows: list[dict], denoiser: str) -> dict[str, dict]:
    """{method: result at its first strength} of the cells of e10 with this denoiser."""
    first: dict[str, dict] = {}
    for row in rows:
        if row["cell"]["denoiser"] == denoiser:
            first.setdefault(row["cell"]["method"], row["result"])
    return first


def rivals_table(rows: list[dict]) -> str:
    """The README's second table: every method at its first strength, with the trained network."""
    first = first_of_each_method(rows, "trained")
    header = (
        "method | directions of 8 | quality (L2, less is better) | HM IoU* | equivalent draws"
        " | frequencies off by (chance) | dispersion | price"
    )
    audit = ("equivalent_draws", "frequency_tv", "count_dispersion", "price")
    lines = [
        [
            compared()[method].title,
            *(experiments.interval(result[key]) for key in ("modes_found", "quality", "hm_iou")),
            *(experiments.audit_entry(result, key) for key in audit),
        ]
        for method, result in first.items()
        if compared()[method].brief
    ]
    sets = sets_of(first["independent"]).removesuffix(".") + smaller_rows(first) + "."
    return f"{table(header, lines)}\n\n{sets}"


def which_table(rows: list[dict]) -> str:
    """The answer to "which should I use?": every method at its first strength, on two models."""
    exact, plain = (first_of_each_method(rows, name) for name in ("exact", "trained"))
    header = "method | exact | plain U-Net | its quality | frequencies | price"
    lines = []
    for method, about in compared().items():
        each = [results.get(method) for results in (exact, plain)]
        measured = next(result for result in reversed(each) if result)
        lines.append(
            [
                about.title,
                *(experiments.interval(result and result["modes_found"]) for result in each),
                experiments.interval(each[-1] and each[-1]["quality"]),
                about.frequencies,
                experiments.audit_entry(measured, "price"),
                about.needs,
            ]
        )
    return f"{table(f'{header} | needs', lines)}\n\n{sets_of_models(exact, plain)}"


def unequal_table(rows: list[dict]) -> str:
    """Every method where one answer is as likely as all others: directions and frequencies."""
    results = first_of_each_method(rows, "exact, p = 0.5")
    header = "method | directions | frequencies off by (chance) | dispersion of counts"
    lines = []
    for method, about in compared().items():
        if method in results:
            line = [about.title, experiments.interval(results[method]["modes_found"])]
            for key in ("frequency_tv", "count_dispersion"):
                line.append(experiments.audit_entry(results[method], key))
            lines.append(line)
    return f"{table(header, lines)}\n\n{sets_of_models(results)}"


def thesis_table(rows: list[dict]) -> str:
    """Directions found by independent sets and by the thesis's form, per strength and denoiser."""
    found: dict[str, dict[str, str]] = {}
    for row in rows:
        cell = row["cell"]
        if cell["denoiser"] not in ("exact", "trained"):
            continue
        if cell["method"] != "independent" and "thesis" not in cell["method"]:
            continue
        what = compared()[cell["method"]].title
        if "pg_factor" in cell:
            what += f", factor {cell['pg_factor']:g}"
        directions = experiments.interval(row["result"]["modes_found"])
        found.setdefault(what, {})[cell["denoiser"]] = directions
    denoisers = list(next(iter(found.values())))
    lines = [[what, *(each.get(name, "") for name in denoisers)] for what, each in found.items()]
    header = " | ".join(f"{name} denoiser" for name in denoisers)
    independent = [first_of_each_method(rows, name)["independent"] for name in denoisers]
    sizes = ", ".join(f"{each['num_sets']} {name}" for each, name in zip(independent, denoisers))
    return f"{table(f' | {header}', lines)}\n\nOf the sets: {sizes}. {sets_of(independent[-1])}"


def sets_of_models(*models: dict[str, dict]) -> str:
    """A line about the sets of several columns, each the results of a model by method."""
    counts = [each["independent"]["num_sets"] for each in models]
    sets = f"{counts[0]}" if len(set(counts)) == 1 else ", ".join(map(str, counts))
    expected = models[0]["independent"]["modes_expected_iid"]
    return (
        f"Directions of 8 found by sets of 8; independent draws find {expected:.2f} in theory. "
        f"Number of sets, in the order of the columns: {sets}{smaller_rows(*models)}."
    )


def smaller_rows(*models: dict[str, dict]) -> str:
    """The methods that have fewer sets than the others of a model, `; NAME: COUNT`."""
    fewer = {
        method: result["num_sets"]
        for results in models
        for method, result in results.items()
        if result["num_sets"] < results["independent"]["num_sets"]
    }
    return "".join(f"; {compared()[name].title}: {count}" for name, count in fewer.items())


def sets_of(result: dict) -> str:
    """A line about the sets of a table: how many, of what, and what is expected of them."""
    return (
        "{num_sets} sets of {batch_size} with test digits of {digits_source}; independent samples "
        "find {modes_expected_iid:.2f} directions in theory.".format(**result)
    )


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
                meta["machine"],
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
    calls, backward = 43, 29  # guidance acts at the steps in the window
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
        total = cells * sets * particles * forward * (calls + backward)
        hours = total / (REACHED * PEAK) / 3600
        row = [name, f"{forward / 1e9:.1f} billion", f"{total:.1e}"]
        rows.append(row + [f"{hours / gpus:.2g}" for gpus in (1, 8, 64)])
    return (
        f"{table(header, rows)}\n\n"
        f"Calculated, not measured: {cells:,} cells of {sets} sets of {particles}, {calls} network "
        f"calls and {backward} backward passes per particle, on GPUs of {PEAK / 1e12:.0f} TFLOP/s "
        f"in bfloat16 (data sheet of an H100) of which {100 * REACHED:.0f}% are reached."
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


def keep_results(name: str, runs: Path) -> None:
    """Copy an experiment's results and pictures to docs/results: those of `full` if it was run."""
    for preset in ("full", "quick"):
        folder = runs / f"{name}-{preset}"
        results = folder / "results.json"
        if results.is_file():
            brief = experiments.brief(json.loads(results.read_text()))
            (RESULTS / f"{name}.json").write_text(json.dumps(brief))
            for picture in folder.glob("*.png"):
                shutil.copy(picture, RESULTS / f"{name}-{picture.name}")
            return


def experiment_section(name: str) -> str:
    """The part of docs/results.md about one experiment, from its recipe and docs/results."""
    recipe = experiments.load(name)
    results = json.loads((RESULTS / f"{name}.json").read_text())
    parts = [
        f"## {name.upper()}: {recipe['title']}",
        f"    {results['command']}",
        f"Reference: {recipe['reference']}.",
        experiments.summary(results["rows"]),
    ]
    for picture in sorted(RESULTS.glob(f"{name}-*.png")):
        parts.append(f"![{picture.stem}](results/{picture.name})")
    return "\n\n".join([*parts, " ".join(recipe["meaning"].split())])


def experiment_page(runs: Path) -> str:
    """The text of docs/results.md: every experiment, from the largest preset that was run."""
    parts = [
        "# Results of the experiments",
        "Written by `python docs/build.py` from the result files. Brackets are 95% intervals. "
        "`--preset full` uses more sets per cell. *Reference* is what the thesis reports "
        "([coming from the thesis](from-the-thesis.md)) unless another source is named.",
    ]
    recipes = experiments.RECIPES.glob("*.yaml")
    for path in sorted(recipes, key=lambda path: int(path.stem[1:])):
        keep_results(path.stem, runs)
        parts.append(experiment_section(path.stem))
    return "\n\n".join(parts) + "\n"


def main(argv: list[str] | None = None) -> None:
    """Write docs/results.md and the tables of all pages, and draw the pictures."""
    args = make_parser(BuildSettings, description=__doc__.split("\n")[0]).parse_args(argv)
    for folder in ("pictures", "results"):
        (ROOT / "docs" / folder).mkdir(exist_ok=True)
    if args.pictures:
        for name, flags in PICTURES.items():
            draw_sheet(name, flags, args.data_root)
        draw_methods(args.data_root)
        animate(args.data_root)
        draw_decisions(args.data_root)
    tables = dict(checkpoint=checkpoint_table(), noisy=noisy_table(), scale=scale_table())
    for run in Path(args.runs).glob("benchmark-*"):
        name = run.name.removeprefix("benchmark-")
        for written in run.glob(f"{name}.*"):
            if written.suffix == ".md":
                tables[name] = written.read_text()
            else:
                shutil.copy(written, RESULTS)
    (ROOT / "docs" / "results.md").write_text(experiment_page(Path(args.runs)))
    figures = json.loads((RESULTS / "figures.json").read_text())
    methods = json.loads((RESULTS / "guidance.json").read_text())
    pipelines = json.loads((RESULTS / "pipelines.json").read_text())
    tables |= {f"pipelines: {name}": text for name, text in pipelines["tables"].items()}
    tables["answers"] = answers_table(figures)
    tables |= class_tables(figures)
    tables["rivals"] = rivals_table(methods)
    tables["which"] = which_table(methods)
    tables["unequal"] = unequal_table(methods)
    tables["thesis"] = thesis_table(methods)
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for name, text in tables.items():
            fill(page, name, text)


if __name__ == "__main__":
    main()
