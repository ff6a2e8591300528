"""The front page is short, in order, and what it shows runs; pages define their terms."""

import re
import shlex

import pytest
import yaml
from conftest import ROOT
from programs import Program

README = (ROOT / "README.md").read_text()
MOST_WORDS, MOST_WORDS_BEFORE = 750, 200
WIDEST_TABLE = 100  # characters of a cell's text, links without their targets

# What is no running text: code, what it prints, marks of generated parts, headings.
SHOWN = re.compile(r"^```.*?^```|^(?:    .*\n)+|<!--.*?-->|`[^`\n]+`|^#[^\n]*", flags=re.M | re.S)


def prose(page: str) -> str:
    """The running text of a page, without its pictures."""
    return re.sub(r"!\[[^]]*\]\([^)]*\)", "", SHOWN.sub(" ", page))


def as_read(text: str) -> str:
    """Text with its links as they look."""
    return re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text)


def test_the_front_page_is_short():
    assert len(README.split()) <= MOST_WORDS
    before, command, _ = README.partition("    python3 -m venv")
    assert command and len(as_read(prose(before)).split()) <= MOST_WORDS_BEFORE


def test_no_table_of_the_front_page_is_wide():
    rows = [line for line in README.splitlines() if line.startswith("|")]
    assert rows
    for row in rows:
        assert len(as_read(row)) <= WIDEST_TABLE, row


def test_the_front_page_has_its_parts_in_order():
    parts = (
        "answers",  # one sentence
        "![",
        "**It finds**",
        "**It costs**",
        "**It changes**",
        "(docs/your-model.md)",
        "(docs/pipelines.md)",
        "(docs/own-data.md)",
        "(docs/guidance.md)",
        "Clone",
        "requirements.txt",
        "requirements-dev.txt",
        "| independent |",
        "## Limits",
        "@software",
        "(LICENSE)",
    )
    places = [README.find(part) for part in parts]
    assert -1 not in places and places == sorted(places)


def test_the_citation_is_that_of_the_file():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    (bibtex,) = re.findall(r"```bibtex\n(.*?)```", README, flags=re.S)
    fields = dict(re.findall(r"(\w+)=\{+(.*?)\}+,?\n", bibtex))
    (author,) = citation["authors"]
    assert fields == dict(
        author=author["name"],
        title=citation["title"],
        version=citation["version"],
        year=str(citation["date-released"])[:4],
    )


def test_the_index_has_every_page():
    index = (ROOT / "docs" / "README.md").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "README.md" or f"({page.name})" in index, page.name


# What makes the commands of a door short.
SHORT = {
    "train.py": "--digits embedded --channels [8] --blocks 1 --attention [] --patch_size 4 "
    "--batch_size 4 --warmup 1 --iterations 1 --log_every 1 --sample_every 0 --device cpu",
    "evaluate.py": "--digits embedded --num_sets 2 --price 9 --device cpu",
    "visualize.py": "",
}
DOORS = re.findall(r"```sh\n(.*?)```", README, flags=re.S)


@pytest.mark.slow
@pytest.mark.parametrize("commands", DOORS, ids=range(len(DOORS)))
def test_the_commands_of_a_door_run(commands, tmp_path):
    for name in ("configs", "checkpoints", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    for line in commands.splitlines():
        python, script, *argv = shlex.split(line, comments=True)
        assert python == "python"
        program = Program(script, *argv, *shlex.split(SHORT[script]), cwd=tmp_path)
        _, err = program.communicate(timeout=600)
        assert program.returncode == 0, err
    assert len(list((tmp_path / "runs").iterdir())) >= 2


@pytest.mark.slow
def test_the_first_command_prints_what_the_page_says(mnist_root, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    from tour import same

    (flags,) = re.findall(r"^    .*evaluate\.py (.*)$", README, flags=re.M)
    run = tmp_path / "NAME"
    program = Program(
        "evaluate.py", *shlex.split(flags), "--data_root", mnist_root, "--outdir", run
    )
    out, err = program.communicate(timeout=600)
    assert program.returncode == 0, err
    (page,) = re.findall(r"```text\n(.*?)```", README, flags=re.S)
    now = out.replace(str(run), "runs/NAME")
    for line, other in zip(page.splitlines(), now.splitlines(), strict=True):
        assert same(line, other, roughly=line.startswith("  seconds")), (line, other)


# ---------------------------------------------------------------- terms

TERMS = re.findall(r"^### (.+)$", (ROOT / "docs" / "glossary.md").read_text(), flags=re.M)


def undefined(page: str) -> list[str]:
    """The glossary's terms whose first use in a page is no link, and no definition in italics."""
    text = prose(page)
    linked = [match.span() for match in re.finditer(r"\[[^]]*\]\([^)\s]*#[^)\s]+\)", text)]
    found = []
    taken = text  # without the longer terms, of which shorter ones are parts
    for term in sorted(TERMS, key=len, reverse=True):
        pattern = re.compile(rf"(?<![\w-]){re.escape(term)}s?(?![\w-])", flags=re.I)
        first = pattern.search(taken)
        if first is None:
            continue
        start, end = first.span()
        defined = taken[start - 1] == "*" == taken[end]
        if not defined and not any(low < start and end < high for low, high in linked):
            found.append(f"{term}: ...{text[max(0, start - 40) : end + 20]!r}")
        taken = pattern.sub(lambda match: " " * len(match[0]), taken)
    return found


@pytest.mark.parametrize("path", ["README.md", "docs/guidance.md", "docs/your-model.md"])
def test_terms_are_linked_or_defined_where_they_are_first_used(path):
    assert undefined((ROOT / path).read_text()) == []


def test_what_counts_as_undefined():
    assert undefined("Each mode counts.\n\nA [mode](docs/glossary.md#mode) is an answer.\n")
    assert undefined("A [mode](docs/glossary.md#mode) is an answer. Each mode counts.\n") == []
    assert undefined("A *mode* is an answer. Modes count.\n") == []
    assert undefined("# Modes\n\n`mode` and\n\n    python mode\n\n") == []


def test_the_glossary_has_each_term_once():
    assert len(TERMS) == len({term.lower() for term in TERMS}) > 20
