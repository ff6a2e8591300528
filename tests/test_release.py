"""What a release consists of: one version everywhere, recorded dependencies, optional libraries."""

import json
import re
import subprocess
import sys
from datetime import date
from importlib import metadata

import pytest
import yaml
from conftest import ROOT

from lab import checkpoint

VERSION = re.search(r'^version = "(.+?)"', (ROOT / "pyproject.toml").read_text(), flags=re.M)[1]


def packages(lines) -> dict[str, str]:
    """{package: what is required of it} of lines as in a requirements file."""
    split = (re.match(r"([\w-]+)(?:\[[\w,]+\])?([^;#]*)", line) for line in lines)
    return {name[1]: name[2].strip() for name in split if name}


def test_the_version_is_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    releases = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), flags=re.M)
    assert releases[0] == "Unreleased"
    assert releases[1] == f"{VERSION} - {citation['date-released']}"
    assert citation["version"] == VERSION
    for release in releases[1:]:
        number, _, day = release.partition(" - ")
        assert re.fullmatch(r"\d+\.\d+\.\d+", number) and date.fromisoformat(day)


def test_the_constraints_are_the_versions_that_results_record():
    """Every required package is pinned, and those that results record to what they record."""
    pinned = packages((ROOT / "benchmarks" / "constraints.txt").read_text().splitlines())
    required = [
        line
        for line in metadata.requires("diverse-sampling")
        if "extra" not in line or re.search(r"extra == .(lab|diffusers)", line)
    ]
    assert pinned.keys() == packages(required).keys() | {"azula"}
    assert all(re.fullmatch(r"==[\d.]+", version) for version in pinned.values())
    found = set()
    for path in (ROOT / "docs" / "results").glob("*.json"):
        found |= set(re.findall(r'"(torch|numpy|diffusers|azula)": "([\d.]+)', path.read_text()))
    for path in (ROOT / "checkpoints").glob("*.safetensors"):
        version = checkpoint.read_metadata(path).get("torch")
        found |= {("torch", version.partition("+")[0])} if version else set()
    assert {name for name, _ in found} == {"torch", "numpy", "diffusers", "azula"}
    assert {name: f"=={version}" for name, version in found}.items() <= pinned.items()
    assert len(found) == 4


def test_the_workflow_runs_what_a_person_runs():
    readme, script = (ROOT / "README.md").read_text(), (ROOT / ".ci" / "run").read_text()
    command = re.search(r"python3 -m venv .*requirements-dev\.txt.* pytest$", readme, flags=re.M)
    assert command and command[0] in script
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    steps = workflow["jobs"]["test"]["steps"]
    assert steps[-1] == {"run": ".ci/run"}


# A process of its own, since this one may hold the libraries already. It cannot import them.
WITHOUT = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("wandb", "tensorboard", "umap"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
import json, evaluate, train, visualize
for command, argv in json.loads(sys.argv[1]):
    dict(evaluate=evaluate, train=train, visualize=visualize)[command].main(argv)
print("all done")
"""


def without_optional(*commands, check=True) -> subprocess.CompletedProcess:
    """(command, argv) each, run in a process that has no wandb, tensorboard or umap-learn."""
    return subprocess.run(
        [sys.executable, "-c", WITHOUT, json.dumps(commands)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=check,
    )


@pytest.mark.slow
def test_nothing_needs_the_optional_libraries_until_they_are_asked_for(tmp_path):
    run, model = str(tmp_path / "run"), str(tmp_path / "model")
    common = ["--digits", "embedded", "--device", "cpu"]
    exact = [*common, "--denoiser", "exact", "--num_sets", "1", "--num_steps", "2"]
    tiny = [*common, "--channels", "[8]", "--attention", "[]", "--patch_size", "8"]
    out = without_optional(
        ("evaluate", [*exact, "--outdir", run]),
        ("train", [*tiny, "--iterations", "2", "--batch_size", "2", "--outdir", model]),
        ("visualize", ["figure", run]),
        ("visualize", ["report", run]),
    )
    assert out.stdout.endswith("all done\n")
    assert (tmp_path / "model" / "model.safetensors").is_file()
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.slow
def test_an_optional_library_that_is_asked_for_is_named(tmp_path):
    """umap-learn; those that track are in test_tracking.py."""
    grid = tmp_path / "grid"
    settings = "--experiment e1 --digits embedded --num_sets 1 --num_steps 2 --device cpu"
    out = without_optional(
        ("evaluate", [*settings.split(), "--outdir", str(grid)]),
        ("visualize", ["figure", str(grid)]),
        check=False,
    )
    assert out.returncode == 2, out.stderr
    assert "pip install umap-learn" in out.stderr.splitlines()[-1]
