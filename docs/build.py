"""Draw the pictures of the documentation and put the benchmarks' tables into it.

    for b in figures guidance pixels sampling network potentials worlds training grid; do python benchmarks/$b.py; done
    for e in 1 2 3 4 5 6 7 8 9 10; do python evaluate.py --experiment e$e; done
    python docs/build.py

Numbers are never typed: what stands between `<!-- NAME -->` and `<!-- end -->` in a page is written here.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from command_line import make_parser  # noqa: E402

PICTURES = {
    "independent": [],
    "pg": ["--pg_factor", "1.7"],
    "spell": ["--guidance", "spell"],
    "cads": ["--guidance", "cads"],
    "sequential": ["--pg_factor", "1.7", "--batch_size", "4", "--sequential", "2"],
    "kmedoids": ["--guidance", "kmedoids"],
    "reference": ["--guidance", "reference", "--pg_factor", "3"],
    "stratified": ["--noise", "stratified", "--stratified_rank", "3"],
    "masks": ["--checkpoint", "blobs", "--batch_size", "4", "--pg_factor", "1", "--redraws", "0"],
    "mixture": ["--config", str(ROOT / "configs" / "mixture.yaml"), "--num_sets", "5"],
}
BENCHMARKS = (
    "figures",
    "guidance",
    "pixels",
    "sampling",
    "network",
    "potentials",
    "worlds",
    "training",
    "grid",
)
PAGES = (
    "README.md",
    "docs/checkpoints.md",
    "docs/figures.md",
    "docs/guidance.md",
    "docs/performance.md",
)
# A question, the experiment with the thesis's answer, two rows of the figures: independent and guided.
QUESTIONS = [
    ("directions of a jumping digit", "e5", "trained, independent", "trained, guided"),
    (
        "digits out of nothing",
        "e1",
        "digits out of nothing, independent",
        "digits, guided by features",
    ),
    ("Gaussians on a circle", None, "mixture, independent", "mixture, guided"),
    ("masks that four experts drew", None, "masks, trained, independent", "masks, trained, guided"),
]
RIVALS = {
    "independent": "independent",
    "particle guidance": "particle guidance",
    "no redraws": "the same, nothing drawn again",
    "SPELL": "SPELL",
    "CADS": "CADS",
    "K-medoids of 4 x 8": "K-medoids of four times as many",
    "simplex noise": "simplex noise",
    "reference's form": "the thesis's form, its sign as printed",
}


@dataclass
class BuildSettings:
    """Documentation"""

    runs: str = "runs"
    """folder with the benchmarks' folders"""
    data_root: str = "data"
    """folder of torchvision's MNIST"""
    pictures: bool = True
    """draw the pictures too"""


def draw(name: str, flags: list[str], data_root: str) -> None:
    """One picture: three sets by one method."""
    import evaluate
    from drawing import save
    from sheets import result_sheet

    flags = flags if name == "mixture" else [*flags, "--num_sets", "3", "--seed", "2"]
    job = evaluate.setup([*flags, "--data_root", data_root])
    samples, modes, result = evaluate.run(job)
    arrays = evaluate.arrays_of(job, samples, modes)
    save(result_sheet(arrays, result, title=""), ROOT / "docs" / "pictures" / f"{name}.png", dpi=80)


def animate(data_root: str) -> None:
    """The same set on its way from noise to samples, independent and guided."""
    import evaluate
    import visualize

    with tempfile.TemporaryDirectory() as folder:
        runs = {
            f"{folder}/independent": [],
            f"{folder}/guided, --pg_factor 1.7": ["--pg_factor", "1.7"],
        }
        for run, flags in runs.items():
            evaluate.main(
                [
                    *flags,
                    "--redraws",
                    "0",
                    "--num_sets",
                    "3",
                    "--seed",
                    "2",
                    "--data_root",
                    data_root,
                    "--outdir",
                    run,
                ]
            )
        visualize.main(
            [
                "animation",
                *runs,
                "--set",
                "2",
                "--out",
                str(ROOT / "docs" / "pictures" / "denoising.gif"),
            ]
        )


def answers_table(figures: list[dict]) -> str:
    """What the thesis found, and what independent and guided sets do here."""
    import experiments

    measured = {row["name"]: row for row in figures}
    rows = [
        "| what a set should hold | the thesis, guided | independent, in theory | independent | guided |",
        "|" + "---|" * 5,
    ]
    for what, experiment, independent, guided in QUESTIONS:
        thesis = experiments.load(experiment)["reference"] if experiment else "–"
        rows.append(
            f"| {what} | {thesis} | {measured[independent]['expected_iid'] or '–'} | "
            f"{'<br>'.join(measured[independent]['measured'])} | {'<br>'.join(measured[guided]['measured'])} |"
        )
    return "\n".join(rows)


def rivals_table(rows: list[dict]) -> str:
    """The trained network's sets by every method at its first strength."""
    from experiments import interval

    lines = [
        "| method | directions of 8 | quality (L2, less is better) | HM IoU* | network calls a particle |",
        "|" + "---|" * 5,
    ]
    first: dict[str, dict] = {}
    for row in rows:
        if row["cell"]["denoiser"] == "trained":
            first.setdefault(row["cell"]["method"], row["result"])
    lines += [
        f"| {RIVALS[method]} | {interval(result['modes_found'])} | {interval(result['quality'])} | "
        f"{interval(result['hm_iou'])} | {result['network_calls']:.0f} |"
        for method, result in first.items()
        if method in RIVALS
    ]
    how = (
        "{num_sets} sets of {batch_size}, test digits of {digits_source}; independent draws find "
        "{modes_expected_iid:.2f} in theory.".format(**first["independent"])
    )
    return "\n".join([*lines, "", how])


def fill(page: Path, name: str, text: str) -> None:
    """Replace what stands between the markers of `name` in a page, if it has them."""
    page.write_text(
        re.sub(
            rf"(<!-- {name} -->\n).*?(<!-- end -->)",
            lambda marks: f"{marks[1]}\n{text.strip()}\n\n{marks[2]}",
            page.read_text(),
            flags=re.S,
        )
    )


def experiment_page(runs: Path) -> str:
    """docs/results.md: every experiment, in the largest preset that was run; what was not run stays as it was."""
    import experiments

    parts = [
        "# The experiments, reproduced",
        "",
        "Written by `python docs/build.py` from the result files; brackets and ± are 95% intervals. "
        "`--preset full` takes more sets per cell.",
        "",
    ]
    for path in sorted(experiments.RECIPES.glob("*.yaml"), key=lambda path: int(path.stem[1:])):
        name, recipe = path.stem, experiments.load(path.stem)
        kept = ROOT / "docs" / "results" / f"{name}.json"
        folder = next(
            (
                runs / f"{name}-{preset}"
                for preset in ("full", "quick")
                if (runs / f"{name}-{preset}" / "results.json").is_file()
            ),
            None,
        )
        if folder is not None:
            kept.write_text(
                json.dumps(experiments.brief(json.loads((folder / "results.json").read_text())))
            )
            for picture in folder.glob("*.png"):
                shutil.copy(picture, kept.with_name(f"{name}-{picture.name}"))
        results = json.loads(kept.read_text())
        parts += [
            f"## {name.upper()}: {recipe['title']}",
            "",
            f"    {results['command']}",
            "",
            f"Reference: {recipe['reference']}.",
            "",
            experiments.summary(results["rows"]),
            "",
        ]
        for picture in sorted(kept.parent.glob(f"{name}-*.png")):
            parts += [f"![{picture.stem}](results/{picture.name})", ""]
        parts += [" ".join(recipe["meaning"].split()), ""]
    return "\n".join(parts)


def checkpoint_table() -> str:
    """Every shipped network, from its own metadata."""
    import checkpoint

    rows = [
        "| checkpoint | parameters | size | trained on | updates | minutes | machine | command |",
        "|" + "---|" * 8,
    ]
    for path in sorted((ROOT / "checkpoints").glob("*.safetensors")):
        m, size = checkpoint.read_metadata(path), path.stat().st_size / 1e6
        if path.stem.startswith("classifier"):
            updates = f"{m['settings']['epochs']} epochs; {100 * m['accuracy']:.2f}% of the test digits right"
            command = "classifier.py --digits mnist --seed {seed} --epochs {epochs}".format(
                **m["settings"]
            )
        else:
            updates = f"{m['iteration']:,} of {m['settings']['batch_size']}"
            command = f"train.py --config {config(path)}"
        rows.append(
            f"| `{path.stem}` | {m['parameters']:,} | {size:.1f} MB | {m['digits_source']} | {updates} | "
            f"{m['train_seconds'] / 60:.0f} | {m['machine']} | `{command}` |"
        )
    return "\n".join(rows)


def scale_table() -> str:
    """What a large sweep costs on large machines, from counted operations and assumed rates."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    import checkpoint
    import train
    from config import record

    cells, sets, particles, calls, backward = (
        10_000,
        100,
        8,
        43,
        16,
    )  # 8 of 22 noise levels lie between 3 and 40
    peak, share = 989e12, 0.2
    rows = [
        "| model | operations an image forward | of the sweep | hours on 1 GPU | on 8 | on 64 |",
        "|" + "---|" * 6,
    ]
    models = {
        "reference network, 32 px": [],
        "the same on 64 px, two digits, three frames given": [
            "--dataset",
            "free",
            "--image_size",
            "64",
            "--num_digits",
            "2",
        ],
    }
    for name, flags in models.items():
        settings = record(
            *train.parse(["--config", str(ROOT / "configs" / "circle_jumping.yaml"), *flags])[0]
        )
        side, frames = settings["image_size"], settings["num_cond_frames"] + 1
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            unet = checkpoint.make_denoiser(settings, 0.5).unet
            unet(torch.empty(1, frames, side, side), torch.empty(1))
        forward = counter.get_total_flops()
        total = cells * sets * particles * forward * (calls + backward)
        hours = total / (share * peak) / 3600
        rows.append(
            f"| {name} | {forward / 1e9:.1f} billion | {total:.1e} | "
            + " | ".join(f"{hours / n:.2g}" for n in (1, 8, 64))
            + " |"
        )
    return "\n".join(rows) + (
        f"\n\nOn paper: {cells:,} cells of {sets} sets of {particles}, {calls} network calls a "
        f"particle and {backward} backward passes to the input, on GPUs of {peak / 1e12:.0f} "
        f"TFLOP/s in bfloat16 (an H100's data sheet) of which {100 * share:.0f}% are reached."
    )


def config(path: Path) -> str:
    small = ROOT / "configs" / f"{path.stem}_small.yaml"
    return f"configs/{small.name if small.is_file() else path.stem + '.yaml'}"


def main(argv: list[str] | None = None) -> None:
    args = make_parser(BuildSettings, description=__doc__.split("\n")[0]).parse_args(argv)
    for folder in ("pictures", "results"):
        (ROOT / "docs" / folder).mkdir(exist_ok=True)
    if args.pictures:
        for name, flags in PICTURES.items():
            draw(name, flags, args.data_root)
        animate(args.data_root)
    tables = dict(checkpoint=checkpoint_table())
    for name in BENCHMARKS:
        for result in (Path(args.runs) / f"benchmark-{name}").glob(f"{name}.*"):
            if result.suffix == ".md":
                tables[name] = result.read_text()
            else:
                shutil.copy(result, ROOT / "docs" / "results")
    (ROOT / "docs" / "results.md").write_text(experiment_page(Path(args.runs)))
    tables["scale"] = scale_table()
    figures, rivals = (
        json.loads((ROOT / "docs" / "results" / f"{name}.json").read_text())
        for name in ("figures", "guidance")
    )
    tables |= dict(answers=answers_table(figures), rivals=rivals_table(rivals))
    for page in PAGES:
        for name, text in tables.items():
            fill(ROOT / page, name, text)


if __name__ == "__main__":
    main()
