"""docs/reference.md has every setting, every command and every experiment, as the code has them."""

import re

import pytest
from conftest import ROOT

import config
from lab import experiments
from lab.assemble import evaluation_parser

PAGE = ROOT / "docs" / "reference.md"


@pytest.fixture(scope="module")
def reference():
    """The module that makes the lists of the page."""
    import sys

    sys.path.insert(0, str(ROOT / "docs"))
    import reference

    return reference


def test_every_flag_has_a_line_with_its_default(reference):
    text = PAGE.read_text()
    for group in (*reference.EVALUATION, *reference.TRAINING, reference.ClassifierSettings):
        for setting in config.declared(group):
            lines = re.findall(rf"^- \*\*`--{setting.name}`\*\*: .*$", text, flags=re.M)
            assert any(setting.accepted() in line for line in lines), setting.name
    for key in evaluation_parser().unread:
        assert f"- **`--{key}`**: " in text, key


def test_every_experiment_leads_to_its_section():
    text, results = PAGE.read_text(), (ROOT / "docs" / "results.md").read_text()
    for path in experiments.RECIPES.glob("*.yaml"):
        assert f"| [`{path.stem}`](results.md#" in text
        assert f"## {path.stem.upper()}: {experiments.load(path.stem)['title']}" in results


def test_the_page_is_that_of_todays_code(reference):
    text = PAGE.read_text() + (ROOT / "docs" / "files.md").read_text()
    for name, part in reference.parts().items():
        assert f"<!-- {name} -->\n\n{part.strip()}\n\n<!-- end -->" in text, name


def test_every_checkpoint_has_a_line_that_says_what_it_is_for():
    page = (ROOT / "docs" / "checkpoints.md").read_text().split("## How each was made")[0]
    lines = [line for line in page.splitlines() if line.startswith("| `")]
    named = [name for line in lines for name in re.findall(r"`(\w+)`", line.split(" | ")[0])]
    files = [path.stem for path in (ROOT / "checkpoints").glob("*.safetensors")]
    assert sorted(named) == sorted(files)


def test_constants_of_the_code_are_those_of_the_pages():
    """What a page tells of a constant that is no setting."""
    import evaluate
    import train
    from diverse_sampling import defaults
    from diverse_sampling.guidance import classes, joint
    from lab import judge, metrics, pilot, train_classifier, training
    from sampler import PARTICLES_PER_CALL
    from worlds import augmentation, levels, own_data

    number = {5: "fifth", 8: "eighth", 10: "tenth"}
    words = {10: "ten"}
    sets, particles = pilot.PILOT
    calls = defaults.PILOT_LEVELS
    told = {
        "own-data.md": [
            f"on {training.HELD_OUT_WINDOWS} windows",
            f"on {train.SPREAD_SETS} validation sequences",
            f"{train_classifier.OWN_UPDATES:,} updates",
            f"less than {evaluate.LEAST_ACCURACY:.0%}",
            f"every {number[own_data.TEST_EVERY]}",
            f"every {number[own_data.VALIDATION_EVERY]}",
            f"up to an {number[augmentation.SHIFT]} of a side",
            f"3 to {levels.FEW} whole values",
        ],
        "classes.md": [
            f"{classes.FACTOR:g}, the",
            f"{metrics.LEAST:.0%} or more",
            f"more than {words[joint.MOST_EXACT]} classes or particles",
        ],
        "checkpoints.md": [f"{2 * judge.LANDMARKS:,} known digits"],
        "performance.md": [
            f"at most {PARTICLES_PER_CALL['cpu']} particles per call",
            f"counts as {metrics.BACKWARD} calls",
        ],
        "guidance.md": [f"{sets} sets of {particles} particles with {calls} calls"],
        "faq.md": [f"--pg_factor {defaults.FACTOR:g}"],
    }
    for page, texts in told.items():
        text = " ".join((ROOT / "docs" / page).read_text().split())
        for each in texts:
            assert each in text, (page, each)
