"""Run what docs/tour.md says, and write what came out into it; or compare with it.

    python docs/tour.py            # outputs and pictures again
    python docs/tour.py --check    # are they what the page says? Exit code 1 and the differences if not

The page is its own source. A `python` block whose first line is `# NAME.py` is written to that file, an `sh` block is
run, the `text` block after it is what it printed, and an image whose title is a file's name is a copy of that file.
Of what follows a training, `text roughly`, only the words are compared.
All happens in one empty folder with links to the code, on the CPU.
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
sys.path.insert(0, str(ROOT))

from command_line import Parser  # noqa: E402

PAGE = ROOT / "docs" / "tour.md"
PARTS = re.compile(
    r"```(?P<kind>sh|python|text)(?P<how> roughly)?\n(?P<body>.*?)```"
    r'|!\[[^]]*\]\((?P<to>\S+) "(?P<of>\S+)"\)',
    re.S,
)
NUMBER = re.compile(r"(-?\d+(?:\.\d+)?)")
CLOSE = 0.1  # share of a number by which another machine's may differ
ALIKE = 16  # mean difference of two pictures, of 255 grey levels
WIDEST, LARGEST = 800, 150_000  # a picture: px, bytes


def run(command: str, folder: Path) -> str:
    """What a block of shell commands prints in `folder`, without times. Raises RuntimeError with its stderr if one
    fails."""
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
    """Run a page from top to bottom: the page with its outputs, and its pictures by where they belong."""
    for name in ("checkpoints", "configs", *(path.name for path in ROOT.glob("*.py"))):
        (folder / name).symlink_to(ROOT / name)
    pictures, printed = {}, ""

    def part(found: re.Match) -> str:
        nonlocal printed
        if found["kind"] == "python":
            name = re.match(r"# (\w+\.py)\n", found["body"])
            assert name, "a block of Python says on its first line what file it is"
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
    """Whether two lines say the same: words equal, and numbers, if not `roughly`, close or apart by two in the last
    digit."""
    parts, others = (NUMBER.split(" ".join(text.split())) for text in (line, other))
    if len(parts) != len(others) or parts[::2] != others[::2]:
        return False
    for a, b in [] if roughly else zip(parts[1::2], others[1::2]):
        last = 10.0 ** -len(a.partition(".")[2])
        if (
            abs(float(a) - float(b))
            > max(CLOSE * abs(float(a)), 2 * last if "." in a else 0) + 1e-9
        ):
            return False
    return True


def differences(page: str, again: str, pictures: dict[Path, Image.Image]) -> list[str]:
    """In what a page and its pictures differ from what came out this time; nothing if they do not."""
    lines, others, wrong = page.splitlines(), again.splitlines(), []
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
        kept = Image.open(path).convert("RGB") if path.is_file() else None
        if (
            kept is None or np.abs(np.subtract(kept.size, picture.size)).max() > 8
        ):  # fonts differ a little
            wrong.append(f"{path.name}: there is none of this size")
            continue
        apart = np.asarray(kept, float) - np.asarray(picture.resize(kept.size), float)
        if np.abs(apart).mean() > ALIKE:
            wrong.append(f"{path.name}: {np.abs(apart).mean():.0f} grey levels apart")
    return wrong


def main(argv: list[str] | None = None) -> None:
    """Refresh docs/tour.md, or check it."""
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
        if path.stat().st_size > LARGEST:
            raise RuntimeError(f"{path.name}: {path.stat().st_size} bytes; accepted: {LARGEST}")


if __name__ == "__main__":
    main()
