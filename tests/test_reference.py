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
