"""The library as others have it: its wheel alone, with the three packages that it asks for."""

import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from conftest import ROOT

README = (ROOT / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", README, flags=re.S)


def closure(names) -> set[str]:
    """Distributions that some distributions need, themselves included; extras left out."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        try:
            required = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue  # of another platform
        found.add(name)
        waiting += [re.match(r"[\w.-]+", line)[0] for line in required if "extra ==" not in line]
    return found


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder that holds the wheel's content and what its metadata asks for, and nothing else."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q"]
    source = folder / "source"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(source)], check=True)
    # What is not committed yet counts too.
    changed = subprocess.run(
        ["git", "ls-files", "diverse_sampling", "pyproject.toml", "README.md", "LICENSE"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in changed.stdout.split():
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run([*build, "-w", str(folder), str(source)], check=True)
    (wheel,) = folder.glob("*.whl")
    site = folder / "site"
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site)]
    subprocess.run([*install, str(wheel)], check=True)
    (about,) = site.glob("*.dist-info/METADATA")
    required = [
        re.match(r"Requires-Dist: ([\w.-]+)", line)[1]
        for line in about.read_text().splitlines()
        if line.startswith("Requires-Dist") and "extra ==" not in line
    ]
    assert sorted(required) == ["numpy", "scipy", "torch"]
    for name in closure(required):
        for file in metadata.files(name) or []:
            top = Path(file.parts[0])
            if str(top) in ("..", "bin", "__pycache__"):
                continue
            link = site / top
            if not link.exists():
                link.symlink_to(Path(metadata.distribution(name).locate_file(top)))
    return site


def run(site: Path, code: str, cwd: Path) -> subprocess.CompletedProcess:
    """Python code in a process that sees `site`, its own folder and the standard library alone."""
    path = f"import sys; sys.path[:0] = [{str(cwd)!r}, {str(site)!r}]\n"
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", path + code],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.fixture
def elsewhere(tmp_path) -> Path:
    """A user's folder, with modules of the names that the scripts here have."""
    for name in ("config", "model", "sampler", "worlds", "lab"):
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('the user\\'s own {name}')\n")
    return tmp_path


@pytest.mark.slow
def test_the_wheel_holds_the_library_alone(installed):
    top = {path.name for path in installed.iterdir() if not path.is_symlink()}
    assert {name for name in top if not name.endswith(".dist-info")} == {"diverse_sampling"}
    assert (installed / "diverse_sampling" / "py.typed").is_file()


@pytest.mark.slow
def test_every_module_imports_without_what_is_optional(installed, elsewhere):
    code = """
import importlib, json, pkgutil
import diverse_sampling
walked = pkgutil.walk_packages(diverse_sampling.__path__, "diverse_sampling.")
names = [module.name for module in walked if module.name != "diverse_sampling.modular"]
for name in names:
    importlib.import_module(name)
for name in diverse_sampling.__all__:
    getattr(diverse_sampling, name)
print(json.dumps(sorted(sys.modules)))
"""
    out = run(installed, code, elsewhere)
    assert out.returncode == 0, out.stderr
    loaded = set(json.loads(out.stdout))
    assert not loaded & {"diffusers", "kmedoids", "psutil", "yaml", "matplotlib", "tqdm", "config"}


@pytest.mark.slow
@pytest.mark.parametrize("snippet", SNIPPETS, ids=range(len(SNIPPETS)))
def test_the_snippets_of_the_readme_run(installed, elsewhere, snippet):
    if "diffusers" in snippet:
        pytest.skip("tests/test_text_to_image.py runs it")
    out = run(installed, snippet, elsewhere)
    assert out.returncode == 0, out.stderr


@pytest.mark.slow
def test_what_is_missing_is_named(installed, elsewhere):
    out = run(
        installed,
        "from diverse_sampling import kmedoids\nimport torch\nkmedoids(torch.rand(1, 4, 8, 8), 2)",
        elsewhere,
    )
    assert "pip install kmedoids" in out.stderr
