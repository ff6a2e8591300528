"""The code itself: what every file may contain, and which module may import which."""

import ast
import re
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGES = ("guidance", "coupling")
PACKAGES = ("diverse_sampling", "worlds", "lab", "figures")
FILES = sorted(
    path
    for folder in (".", "tests", "benchmarks", "docs", "examples")
    for path in (ROOT / folder).glob("*.py")
) + sorted(path for folder in PACKAGES for path in (ROOT / folder).rglob("*.py"))
name_of_file = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))


def floors_of_contributing() -> dict[str, int]:
    """{room: its floor}, as CONTRIBUTING.md's table has them: files and folders of the root."""
    text = (ROOT / "docs" / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d) \| (.+?) \|", text, flags=re.M)
    return {
        room.removesuffix(".py").removesuffix("/"): int(floor)
        for floor, rooms in rows
        for room in re.findall(r"`([\w./]+)`", rooms)
    }


FLOORS = floors_of_contributing()


def modules_of(root: Path) -> dict[str, Path]:
    """{dotted name: file} of the modules in `root` and in its packages."""
    inside = [path for name in PACKAGES for path in (root / name).rglob("*.py")]
    return {
        ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path
        for path in [*root.glob("*.py"), *inside]
    }


def imports_of(name: str, path: Path, modules: dict[str, Path]) -> set[str]:
    """Those of `modules` that a module imports: at its top, in functions or for type checkers."""
    parts = name.split(".") if path.stem == "__init__" else name.split(".")[:-1]
    wanted: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            wanted += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = parts[: len(parts) - node.level + 1] if node.level else []
            origin = ".".join([*package, *filter(None, [node.module])])
            # `from guidance import cads` imports a module, `from guidance import Cads` a class.
            within = [f"{origin}.{alias.name}" for alias in node.names]
            wanted += [each if each in modules else origin for each in within]
    return {each for each in wanted if each in modules} - {name}


def floor_of(name: str) -> int:
    return FLOORS[name.split(".")[0]]


def upward(graph: dict[str, set[str]]) -> list[tuple[str, str]]:
    """(importer, imported) if what is imported stands above, or beside in another room."""
    return [
        (name, imported)
        for name in sorted(graph)
        for imported in sorted(graph[name])
        if floor_of(imported) >= floor_of(name) and imported.split(".")[0] != name.split(".")[0]
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
    assert {name.split(".")[0] for name in graph} == set(FLOORS)
    assert upward(graph) == []
    # The face of the library names its parts for type checkers; it imports none of them.
    graph["diverse_sampling"] = set()
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
    """An upward import, and a circle inside one room, in any form that an import can take."""
    library = tmp_path / "diverse_sampling"
    (library / "guidance").mkdir(parents=True)
    (library / "potentials.py").write_text("import numpy")
    (library / "guidance" / "__init__.py").write_text("from .spell import Spell")
    (library / "guidance" / "spell.py").write_text("from diverse_sampling import potentials")
    (tmp_path / "config.py").write_text("from diverse_sampling.guidance import Spell")
    graph = imports(tmp_path)
    assert graph["config"] == {"diverse_sampling.guidance"}
    assert upward(graph) == [] and circle(graph) == []

    (library / "potentials.py").write_text(planted.format("config"))
    assert upward(imports(tmp_path)) == [("diverse_sampling.potentials", "config")]

    (library / "potentials.py").write_text(planted.format("diverse_sampling.guidance.spell"))
    assert upward(imports(tmp_path)) == []
    names = {"diverse_sampling.potentials", "diverse_sampling.guidance.spell"}
    assert set(circle(imports(tmp_path))) == names


def test_the_top_level_is_small():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    assert len({name.split("/")[0] for name in tracked.stdout.splitlines()}) <= 27


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
