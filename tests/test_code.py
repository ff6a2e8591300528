"""The code itself: what every file may contain, and which module may import which."""

import ast
import re
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGES = ("guidance", "coupling")
FOLDERS = ("tests", "benchmarks", "docs", "examples")
FILES = sorted(
    [path for folder in (".", *FOLDERS) for path in (ROOT / folder).glob("*.py")]
    + [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
)
name_of_file = pytest.mark.parametrize(
    "path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}"
)


def layers_of_contributing() -> tuple[tuple[str, ...], ...]:
    """The layers from the bottom up, as CONTRIBUTING.md's table has them from the top down.

    A module imports modules of layers below its own, and of its own layer where no circle results.
    """
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    _, _, table = text.partition("| modules | content |\n|---|---|\n")
    rows, _, _ = table.partition("\n\n")
    first_columns = [row.split("|")[1] for row in rows.splitlines()]
    return tuple(tuple(re.findall(r"`(\w+)`", column)) for column in reversed(first_columns))


LAYERS = layers_of_contributing()


def modules_of(root: Path) -> dict[str, Path]:
    """{dotted name: file} of the modules in `root` and of its packages of methods."""
    found = {path.stem: path for path in root.glob("*.py")}
    for package in PACKAGES:
        for path in (root / package).rglob("*.py"):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(part for part in parts if part != "__init__")] = path
    return found


def imports_of(name: str, path: Path, modules: dict[str, Path]) -> set[str]:
    """Those of `modules` that a module imports: at its top, in functions or for type checkers."""
    top = name.split(".")[0]
    package = top if top in PACKAGES else ""
    wanted: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            wanted += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            origin = ".".join(filter(None, (package if node.level else "", node.module)))
            # `from guidance import cads` imports a module, `from guidance import Cads` a class.
            within = [f"{origin}.{alias.name}" for alias in node.names]
            wanted += [each if each in modules else origin for each in within]
    return {each for each in wanted if each in modules} - {name}


def layer_of(name: str) -> int:
    top = name.split(".")[0]
    return next(level for level, layer in enumerate(LAYERS) if top in layer)


def upward(graph: dict[str, set[str]]) -> list[tuple[str, str]]:
    """(importer, imported) where what is imported stands in a layer above."""
    return [
        (name, imported)
        for name in sorted(graph)
        for imported in sorted(graph[name])
        if layer_of(imported) > layer_of(name)
    ]


def circle(graph: dict[str, set[str]]) -> list[str]:
    """The modules of one circle of imports, in order; an empty list where there is none."""
    finished: set[str] = set()

    def follow(name: str, path: list[str]) -> list[str]:
        if name in path:
            return path[path.index(name) :]
        if name in finished:
            return []
        for imported in sorted(graph[name]):
            found = follow(imported, [*path, name])
            if found:
                return found
        finished.add(name)
        return []

    for name in sorted(graph):
        found = follow(name, [])
        if found:
            return found
    return []


def imports(root: Path) -> dict[str, set[str]]:
    """{module: the modules of this project that it imports}"""
    modules = modules_of(root)
    return {name: imports_of(name, path, modules) for name, path in modules.items()}


def test_imports_run_downwards_without_a_circle():
    graph = imports(ROOT)
    named = [name for layer in LAYERS for name in layer]
    assert sorted({name.split(".")[0] for name in graph}) == sorted(named)
    assert upward(graph) == []
    assert circle(graph) == []


@pytest.mark.parametrize(
    "planted",
    [
        "import {0}",
        "from {0} import anything",
        "def inside():\n    import {0} as other",
        "class Inside:\n    def method(self):\n        from {0} import anything",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from {0} import Anything",
        "try:\n    import os, {0}\nexcept ImportError:\n    pass",
    ],
)
def test_a_planted_import_is_found(planted, tmp_path):
    """An upward import, and a circle inside one layer, in any form that an import can take."""
    (tmp_path / "guidance").mkdir()
    (tmp_path / "guidance" / "__init__.py").write_text("from guidance.spell import Spell")
    (tmp_path / "guidance" / "spell.py").write_text("import potentials")
    (tmp_path / "diverse_sampling/potentials.py").write_text("import config\nimport numpy")
    (tmp_path / "config.py").write_text("")
    (tmp_path / "evaluate.py").write_text("from guidance import Spell")
    (tmp_path / "train.py").write_text("import evaluate")
    graph = imports(tmp_path)
    assert graph["evaluate"] == {"guidance"} and upward(graph) == [] and circle(graph) == []

    (tmp_path / "diverse_sampling/potentials.py").write_text(planted.format("guidance.spell"))
    assert upward(imports(tmp_path)) == [("potentials", "guidance.spell")]
    assert set(circle(imports(tmp_path))) == {"potentials", "guidance.spell"}

    (tmp_path / "diverse_sampling/potentials.py").write_text("")
    (tmp_path / "evaluate.py").write_text(planted.format("train"))
    assert upward(imports(tmp_path)) == []
    assert set(circle(imports(tmp_path))) == {"evaluate", "train"}


def test_relative_imports_and_modules_of_a_package_are_found(tmp_path):
    (tmp_path / "guidance").mkdir()
    (tmp_path / "guidance" / "__init__.py").write_text("from . import base")
    (tmp_path / "guidance" / "base.py").write_text("from .cads import Cads")
    (tmp_path / "guidance" / "cads.py").write_text("from guidance import base")
    assert circle(imports(tmp_path)) == ["guidance.base", "guidance.cads"]


@name_of_file
def test_the_oldest_python_can_read_it(path):
    ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 10))


@name_of_file
def test_nothing_is_ever_unpickled(path):
    """No pickle, and torch.load only of bare tensors."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        imported: set[str] = set()
        if isinstance(node, ast.Import):
            imported = {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported = {(node.module or "").split(".")[0], *(alias.name for alias in node.names)}
        assert not imported & {"pickle", "dill", "joblib", "shelve", "cloudpickle"}
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        given = {word.arg: getattr(word.value, "value", None) for word in node.keywords}
        assert not given.get("allow_pickle")
        if node.func.attr == "load" and getattr(node.func.value, "id", "") == "torch":
            assert given.get("weights_only") is True
