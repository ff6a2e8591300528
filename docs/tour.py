"""Run the commands of docs/tour.md and write their output into it, or compare it with the page.

    python docs/tour.py            # update outputs and pictures
    python docs/tour.py --check    # exit code 1, and the differences, where the page is out of date

The page is its own source. A `python` block whose first line is `# NAME.py` is written to that
file. An `sh` block is run, and the `text` block after it holds what it printed. An image whose
title is the name of a file is a copy of that file. In a `text roughly` block, which follows a
training, only the words are compared. Everything happens in one temporary directory with links to
the code, on the CPU.
"""

from __future__ import annotations

import difflib
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

import stale  # noqa: E402

from lab.command_line import Parser  # noqa: E402

PAGE = ROOT / "docs" / "tour.md"
PARTS = re.compile(
    r"```(?P<kind>sh|python|text)(?P<how> roughly)?\n(?P<body>.*?)```"
    r'|!\[[^]]*\]\((?P<to>\S+) "(?P<of>\S+)"\)',
    re.S,
)
NUMBER = re.compile(r"(-?\d+(?:\.\d+)?)")
LINKED = ("checkpoints", "configs", "diverse_sampling", "figures", "lab", "worlds")
CLOSE = 0.1  # relative difference that the numbers of two machines may have
ALIKE = 16  # mean difference that two pictures may have, of 255 grey levels
WIDEST = 800  # px of a picture
LARGEST = 150_000  # bytes of a picture


def run(command: str, folder: Path) -> str:
    """Run shell commands in `folder` and return what they print, without times.

    Raises RuntimeError, with their stderr, if one of them fails."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    done = subprocess.run(
        ["bash", "-ec", command],
        cwd=folder,
        capture_output=True,
        text=True,
        env=os.environ | dict(PATH=path, CUDA_VISIBLE_DEVICES=""),
    )
    if done.returncode:
        raise RuntimeError(f"exit code {done.returncode} from\n{command}\n{done.stderr}")
    return re.sub(
        r"( seconds)( +\d+\.\d)", lambda found: found[1] + "-".rjust(len(found[2])), done.stdout
    )


def follow(page: str, folder: Path) -> tuple[str, dict[Path, Image.Image]]:
    """Run a page from top to bottom.

    Returns the page with its outputs, and {where it belongs: picture}."""
    for name in (*LINKED, *(path.name for path in ROOT.glob("*.py"))):
        (folder / name).symlink_to(ROOT / name)
    pictures, printed = {}, ""

    def part(found: re.Match) -> str:
        nonlocal printed
        if found["kind"] == "python":
            name = re.match(r"# (\w+\.py)\n", found["body"])
            assert name, "the first line of a block of Python names its file"
            (folder / name[1]).write_text(found["body"])
        elif found["kind"] == "sh":
            printed = run(found["body"], folder)
        elif found["kind"] == "text":
            return f"```text{found['how'] or ''}\n{printed}```"
        else:
            picture = Image.open(folder / found["of"]).convert("RGB")
            picture.thumbnail((WIDEST, 10 * WIDEST))
            pictures[PAGE.parent / found["to"]] = picture
        return found[0]

    return PARTS.sub(part, page), pictures


def same(line: str, other: str, roughly: bool) -> bool:
    """Whether two lines have the same words and, unless `roughly`, nearly the same numbers.

    Numbers are nearly the same within CLOSE, or within two units of the last digit."""
    parts = NUMBER.split(" ".join(line.split()))
    others = NUMBER.split(" ".join(other.split()))
    if len(parts) != len(others) or parts[::2] != others[::2]:
        return False
    if roughly:
        return True
    for a, b in zip(parts[1::2], others[1::2]):
        unit = 10.0 ** -len(a.partition(".")[2])
        allowed = max(CLOSE * abs(float(a)), 2 * unit if "." in a else 0) + 1e-9
        if abs(float(a) - float(b)) > allowed:
            return False
    return True


def differences(page: str, again: str, pictures: dict[Path, Image.Image]) -> list[str]:
    """How a page and its pictures differ from what came out this time, a line each."""
    lines = page.splitlines()
    others = again.splitlines()
    wrong = []
    if len(lines) == len(others):
        roughly = False
        for line, other in zip(lines, others):
            if line.startswith("```"):
                roughly = line.endswith("roughly")
            if not same(line, other, roughly):
                wrong.append(f"- {line}\n+ {other}")
    else:
        wrong = list(difflib.unified_diff(lines, others, "page", "now", lineterm="", n=0))
    for path, picture in pictures.items():
        if not path.is_file():
            wrong.append(f"{path.name}: not found")
            continue
        kept = Image.open(path).convert("RGB")
        # Fonts differ a little between machines.
        if np.abs(np.subtract(kept.size, picture.size)).max() > 8:
            wrong.append(f"{path.name}: {kept.size} px, now {picture.size} px")
            continue
        apart = np.asarray(kept, float) - np.asarray(picture.resize(kept.size), float)
        if np.abs(apart).mean() > ALIKE:
            wrong.append(f"{path.name}: {np.abs(apart).mean():.0f} grey levels apart")
    return wrong


def main(argv: list[str] | None = None) -> None:
    """Update docs/tour.md, or check it."""
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--check", action="store_true", help="compare with the page instead of writing it"
    )
    args, page = parser.parse_args(argv), PAGE.read_text()
    with tempfile.TemporaryDirectory() as folder:
        again, pictures = follow(page, Path(folder))
    if args.check:
        wrong = differences(page, again, pictures)
        print("\n".join(wrong) or "docs/tour.md is what comes out")
        sys.exit(1 if wrong else 0)
    PAGE.write_text(again)
    for path, picture in pictures.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.quantize(64).save(path, optimize=True)
        stale.note(path)
        if path.stat().st_size > LARGEST:
            raise RuntimeError(f"{path.name}: {path.stat().st_size} bytes; accepted: {LARGEST}")


if __name__ == "__main__":
    main()
