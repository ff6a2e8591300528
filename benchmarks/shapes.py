"""Sets of every class of a user's pictures: both trainings and every row of the table.

    python benchmarks/shapes.py

The pictures are those of examples/shapes.py. What is trained or measured is kept in --outdir, and a
training that was stopped continues.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import measure

from config import Count
from lab import assemble, checkpoint
from lab.experiments import brief, interval

CLASSES = "--guidance classes"
SHARES = "circle:25%,cross:25%,square:25%,triangle:25%"
# Flags of evaluate.py, and what they ask for.
ROWS = {
    "--guidance none": "",
    "--guidance pg --pg_factor 5": "without labels",
    f"{CLASSES} --classes independent": "a class for each by itself",
    CLASSES: "",
    f"{CLASSES} --price 21": "",
    f"{CLASSES} --classes circle:2,cross:2": "",
    f"{CLASSES} --classes {SHARES} --batch_size 8": "",
}


@dataclass
class ShapesSettings:
    """Shapes"""

    num_sets: Count = 40
    """sets in each row"""


def script(*argv: Any) -> None:
    """Run a script of the project, which has to succeed."""
    subprocess.run([sys.executable, *map(str, argv)], cwd=measure.ROOT, check=True)


def train(outdir: Path) -> tuple[Path, Path]:
    """(the network, the classifier), trained unless they are there."""
    data, run = outdir / "shapes", outdir / "network"
    network, classifier = run / "model.safetensors", outdir / "classifier.safetensors"
    if not data.is_dir():
        script("examples/shapes.py", "--out", data)
    if (run / "config.yaml").is_file():
        script("train.py", "--resume", run)
    else:
        config = ["--config", "configs/shapes.yaml", "--frames", data, "--num_cond_frames", "0"]
        script("train.py", *config, "--device", "cpu", "--outdir", run)
    if not classifier.is_file():
        script("-m", "lab.train_classifier", "--frames", data, "--out", classifier)
    return network, classifier


def row(network: Path, classifier: Path, flags: str, num_sets: int) -> dict[str, Any]:
    """The metrics of an evaluation with these flags."""
    argv = ["--checkpoint", str(network), "--batch_size", "4", "--num_sets", str(num_sets)]
    if CLASSES in flags:
        argv += ["--classifier", str(classifier)]
    return brief(assemble.evaluation([*argv, "--device", "cpu", *flags.split()]).run()[2])


def shown(flags: str, result: dict[str, Any]) -> list[str]:
    """A line of the table."""
    said = ", ".join(filter(None, (f"`{flags}`", ROWS[flags])))
    asked = result.get("composition_met")
    if asked:
        found = f"as asked for in {asked['mean']:.1%} of the sets"
    else:
        found = f"{interval(result['modes_found'])} of {result['modes_total']}"
    return [said, f"{result['price']:.0f}", found, f"{result['nearest_in_class']['mean']:.2f}"]


def main(argv: list[str] | None = None) -> None:
    args = measure.arguments(ShapesSettings, argv)
    outdir = args.outdir.absolute()
    network, classifier = train(outdir)
    results = {
        flags: measure.kept(
            outdir / "rows" / f"{number}.json",
            lambda: row(network, classifier, flags, args.num_sets),
        )
        for number, flags in enumerate(ROWS)
    }
    first = results["--guidance none"]
    of_network, of_classifier = map(checkpoint.read_metadata, (network, classifier))
    accuracy = of_classifier["accuracy_at"]
    shares = ", ".join(f"{share:.0%}" for share in accuracy.values())
    at = ", ".join(f"{float(sigma):g}" for sigma in accuracy)
    header = "flags of evaluate.py | calls | classes found | nearest of its class"
    table = measure.table(header, [shown(*each) for each in results.items()])
    judge, nearest = (first[key]["mean"] for key in ("judge_accuracy", "test_nearest_in_class"))
    weights = [f"{of['parameters']:,}" for of in (of_network, of_classifier)]
    text = (
        f"{table}\n\n{args.num_sets} sets of each row. Independent sets of four are expected to "
        f"show {first['modes_expected_iid']:.2f} classes. The network has {weights[0]} weights, "
        f"the classifier {weights[1]}. The classifier recognises {shares} of the test pictures at "
        f"noise levels {at}, the judge {judge:.1%} without noise. Test pictures are "
        f"{nearest:.2f} from the nearest of their class.\n"
    )
    measure.save(args.outdir, "shapes", text, dict(rows=results, accuracy_at=accuracy))
    print(text)


if __name__ == "__main__":
    main()
