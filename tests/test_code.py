"""The code itself."""

import ast
import subprocess
import sys

import pytest
from conftest import ROOT

FOLDERS = (".", "tests", "benchmarks", "docs", "examples")
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).glob("*.py"))


def test_the_style_passes():
    out = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "."], cwd=ROOT, capture_output=True, text=True
    )
    assert out.returncode == 0, out.stdout + out.stderr


def test_the_types_pass():
    out = subprocess.run([sys.executable, "-m", "mypy"], cwd=ROOT, capture_output=True, text=True)
    assert out.returncode == 0, out.stdout + out.stderr


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_oldest_python_can_read_it(path):
    ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 10))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_nothing_is_ever_unpickled(path):
    """No pickle, and torch.load only of bare tensors."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = (
            [alias.name for alias in node.names]
            if isinstance(node, (ast.Import, ast.ImportFrom))
            else []
        )
        assert not {"pickle", "dill", "joblib", "shelve"} & set(names)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            keywords = {
                keyword.arg: getattr(keyword.value, "value", None) for keyword in node.keywords
            }
            assert (
                node.func.attr != "load"
                or getattr(node.func.value, "id", "") != "torch"
                or keywords["weights_only"]
            )
            assert not keywords.get("allow_pickle")
