"""What docs/build.py refuses: records and pictures that are stale, foreign, or shown nowhere."""

import importlib
import json

import pytest
from conftest import ROOT

from diverse_sampling.defaults import SAMPLES_VERSION
from diverse_sampling.errors import SettingError

MADE = dict(version=SAMPLES_VERSION, commit="1234567", command="python benchmarks/figures.py")
SEEN = "two rows of digits, each in a place of its own"
FLAGS = dict(sheet=["--num_sets", "2"])


@pytest.fixture
def stale(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    return importlib.import_module("stale")


@pytest.fixture
def tree(stale, tmp_path):
    """A repository with a record, its picture, and a picture of an evaluation; a page shows all."""
    docs = tmp_path / "docs"
    for folder in ("results", "pictures"):
        (docs / folder).mkdir(parents=True)
    (docs / "results" / "figures.json").write_text(json.dumps(MADE | dict(rows=[])))
    page = "<!-- figures -->\n\n| a |\n\n<!-- end -->\n"
    page += f"![{SEEN}](results/figures-a.png)\n![{SEEN}](pictures/sheet.png)\n"
    (docs / "page.md").write_text(page)
    (tmp_path / "README.md").write_text("")
    for name in ("results/figures-a.png", "pictures/sheet.png"):
        (docs / name).write_bytes(b"")
        stale.note(docs / name, FLAGS.get("sheet") if "sheet" in name else None)
    return tmp_path


def test_what_is_new_and_shown_is_accepted(stale, tree):
    stale.check(tree, FLAGS)
    of_time = MADE | dict(version=None, machine={})
    path = tree / "docs" / "results" / "worlds.json"
    path.write_text(json.dumps(of_time))
    assert stale.record_of(path) == of_time


@pytest.mark.parametrize(
    "change",
    [
        *(dict.fromkeys([key]) for key in ("commit", "command", "version")),
        dict(version=SAMPLES_VERSION - 1),
    ],
    ids=str,
)
def test_a_record_of_other_samples_is_refused(change, stale, tree):
    path = tree / "docs" / "results" / "figures.json"
    path.write_text(json.dumps(MADE | change))
    with pytest.raises(SettingError, match=r"figures\.json"):
        stale.check(tree, FLAGS)
    path.write_text("[]")
    with pytest.raises(SettingError, match=r"figures\.json"):
        stale.check(tree, FLAGS)


def test_pictures_of_other_records_or_flags_are_refused(stale, tree):
    with pytest.raises(SettingError, match=r"pictures/sheet\.png"):
        stale.check(tree, dict(sheet=["--num_sets", "3"]))
    path = tree / "docs" / "results" / "figures.json"
    path.write_text(json.dumps(MADE | dict(rows=[1])))
    with pytest.raises(SettingError, match=r"results/figures-a\.png"):
        stale.check(tree, FLAGS)


def test_what_no_page_shows_is_refused(stale, tree):
    page = tree / "docs" / "page.md"
    text = page.read_text()
    page.write_text(text.replace(f"![{SEEN}](pictures/sheet.png)", ""))
    with pytest.raises(SettingError, match=r"pictures/sheet\.png.*page shows"):
        stale.check(tree, FLAGS)
    page.write_text(text.replace("figures -->", "worlds -->"))
    with pytest.raises(SettingError, match=r"worlds.*page\.md"):
        stale.check(tree, FLAGS)
    page.write_text(text.replace("<!-- figures -->", ""))
    with pytest.raises(SettingError, match=r"figures\.json.*page shows"):
        stale.check(tree, FLAGS)


def test_pictures_are_shown_once_and_described(stale, tree):
    page = tree / "docs" / "page.md"
    text = page.read_text()
    page.write_text(text.replace(f"![{SEEN}](pictures", "![sheet.png](pictures"))
    with pytest.raises(SettingError, match=r"alt: got 'sheet\.png .*what is seen"):
        stale.check(tree, FLAGS)
    page.write_text(text)
    (tree / "README.md").write_text(f"![{SEEN}\nand more](docs/pictures/sheet.png)\n")
    with pytest.raises(SettingError, match=r"pictures/sheet\.png.*shown once"):
        stale.check(tree, FLAGS)


def test_nothing_in_the_documentation_is_stale(stale):
    build = importlib.import_module("build")
    stale.check(ROOT, build.PICTURES)
