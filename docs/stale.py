"""What docs/build.py refuses: records and pictures that are stale, foreign, or shown nowhere, and
pictures that are shown twice or without words for who cannot see them.

A record says which version of samples it holds (null: none, it is of time on the machine that it
names), at which commit and by which command it was made. docs/pictures/made.json says of each
picture what it was drawn from: the hash of its record, or the version of samples and the flags.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from diverse_sampling.defaults import SAMPLES_VERSION  # noqa: E402
from diverse_sampling.errors import reject  # noqa: E402
from lab import experiments  # noqa: E402
from lab.files import as_json, read_json, sha256_of, write_whole  # noqa: E402

# Tables that are made of another record than that of their name, by what stands before a colon;
# None: of files in the repository, of a calculation, or of a command that is run again.
SOURCES: dict[str, str | None] = dict(
    answers="figures",
    classes="figures",
    front="comparison",
    which="comparison",
    audit="comparison",
    thesis="comparison",
    cads="comparison",
    **dict.fromkeys(["checkpoint", "noisy", "scale", "needs", "prints", "references", "reference"]),
)
FEWEST_WORDS = 6  # of an alt text
NOT_YET = "Not measured yet."  # may stand in place of a table without a record


def record_of(path: Path) -> dict[str, Any]:
    """The record in a file. Raises SettingError if it is of other samples than today's."""
    record = read_json(path)
    made = record if isinstance(record, dict) else {}
    if "version" not in made or not made.get("commit") or not made.get("command"):
        reject("record", str(path), "one with a version, a commit and a command: measure it again")
    if made["version"] is None and "machine" not in made:
        reject("record", str(path), "a version, or null and the machine that time was taken on")
    if made["version"] not in (None, SAMPLES_VERSION):
        accepted = f"version {SAMPLES_VERSION} of samples, not {made['version']}: measure it again"
        reject("record", str(path), accepted)
    return record


def pictures_of(docs: Path) -> list[Path]:
    """All pictures of the documentation."""
    found = [*(docs / "results").iterdir(), *(docs / "pictures").rglob("*")]
    return sorted(path for path in found if path.suffix in (".png", ".gif"))


def drawn_from(picture: Path, flags: Any = None) -> Any:
    """What made.json holds of a picture that is drawn now; `flags` are of its evaluation."""
    record = picture.parent / f"{picture.stem.partition('-')[0]}.json"
    if picture.parent.name == "results":
        return sha256_of(record) if record.is_file() else None
    return dict(version=SAMPLES_VERSION, flags=flags)


def note(picture: Path, flags: Any = None) -> None:
    """Write to made.json what a picture was drawn from, now that it was."""
    docs = next(folder for folder in picture.parents if folder.name == "docs")
    path = docs / "pictures" / "made.json"
    made = read_json(path) if path.is_file() else {}
    made[str(picture.relative_to(docs))] = drawn_from(picture, flags)
    write_whole(path, as_json(dict(sorted(made.items())), indent=1) + "\n")


def check(root: Path, flags: dict[str, Any]) -> None:
    """Raise SettingError, which names the file, if anything in the documentation is stale.

    Arguments:
        root: the repository
        flags: {name of a picture in docs/pictures: flags of evaluate.py that make its sets}
    """
    docs = root / "docs"
    records = {path.stem: record_of(path) for path in sorted((docs / "results").glob("*.json"))}
    pages = {path: path.read_text() for path in (root / "README.md", *docs.glob("*.md"))}
    shown = {path.stem for path in experiments.RECIPES.glob("*.yaml")}  # by docs/results.md
    for name in records.keys() & shown:
        cells = experiments.cells(experiments.load(name), records[name]["preset"])
        if [labels for labels, _ in cells] != [row["cell"] for row in records[name]["rows"]]:
            reject("record", f"{name}.json", "one of the cells of its recipe: run it again")
    for page, text in pages.items():
        for name, body in re.findall(r"<!-- (\S[^\n]*) -->\n(.*?)<!-- end -->", text, re.S):
            kind = name.partition(":")[0]
            source = SOURCES.get(kind, kind)
            shown |= {source} if source else set()
            if source and source not in records and body.strip() not in ("", NOT_YET):
                reject("table", name, f"a record {source}.json of what {page.name} shows")
    for name in sorted(records.keys() - shown):
        reject("record", f"{name}.json", "one that a page shows")
    path = docs / "pictures" / "made.json"
    made = read_json(path) if path.is_file() else {}
    for picture in pictures_of(docs):
        name = str(picture.relative_to(docs))
        shown_in = rf"!\[([^]]*)\]\((?:docs/)?{re.escape(name)}[) ]"
        alts = [alt for text in pages.values() for alt in re.findall(shown_in, text)]
        if not alts:
            reject("picture", name, "one that a page shows")
        if len(alts) > 1:
            reject("picture", name, f"one that is shown once, not {len(alts)} times")
        if len(alts[0].split()) < FEWEST_WORDS:
            reject("alt", f"{alts[0]} ({name})", "a sentence that says what is seen")
        expected = drawn_from(picture, flags.get(picture.stem))
        if expected is None or made.get(name) != expected:
            reject("picture", name, "one of its record and of today's samples: draw it again")
