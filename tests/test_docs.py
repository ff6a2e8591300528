"""The code in the documentation runs, and does what the text says."""

import ast
import re
import shlex
import subprocess
from types import SimpleNamespace

import pytest
import torch
import yaml
from conftest import ROOT
from programs import Program
from test_code import FILES

import evaluate
from config import FORMER, EvaluationSettings, ExperimentSettings, TrainingSettings
from diverse_sampling import method
from diverse_sampling.potentials import POTENTIALS, Bandwidth
from lab import assemble, train_classifier
from lab.command_line import make_parser

PAGES = [
    str(path.relative_to(ROOT))
    for folder in (".", "docs")
    for path in sorted((ROOT / folder).glob("*.md"))
]
MODULES = [
    path for path in FILES if path.parent.name not in ("tests", "benchmarks", "docs", "examples")
]


def blocks(path: str) -> list[str]:
    """The Python of a page."""
    return re.findall(r"```python\n(.*?)```", (ROOT / path).read_text(), flags=re.S)


def test_a_potential_of_ones_own():
    before = dict(POTENTIALS)
    try:
        (block,) = blocks("docs/guidance.md")
        exec(block, {})
        y = torch.randn(2, 5, 7, dtype=torch.float64, requires_grad=True)
        mine = POTENTIALS["student"](Bandwidth("fixed", 3.0))
        (expected,) = torch.autograd.grad(mine.energy(y).sum(), y)
        torch.testing.assert_close(mine.grad(y.detach()), expected)
        exact = "--denoiser exact --digits embedded --num_sets 10"
        guided = "--pg_kernel student --pg_factor 5"
        result = assemble.evaluation(f"{exact} {guided}".split()).run()[2]
        assert result["modes_found"]["mean"] > result["modes_expected_iid"] + 0.5
    finally:
        POTENTIALS.clear()
        POTENTIALS.update(before)


def test_an_unregistered_potential_is_refused(refused):
    line = refused(
        evaluate.main, ["--denoiser", "exact", "--digits", "embedded", "--pg_kernel", "student"]
    )
    assert "pg_kernel: got 'student'" in line and "'logdet'" in line


@pytest.fixture(scope="module")
def your_model() -> dict:
    """What the page about one's own model leaves behind, run from top to bottom."""
    pytest.importorskip("diffusers")
    torch.manual_seed(0)
    names: dict = {}
    for block in blocks("docs/your-model.md"):
        exec(block, names)
    return names


def found(samples, images) -> float:
    """How many of these images a set shows, mean over sets."""
    distances = torch.cdist(samples.flatten(2), images.flatten(1).expand(len(samples), -1, -1))
    return sum(len(set(each.tolist())) for each in distances.argmin(-1)) / len(samples)


def test_ones_own_model_is_guided(your_model):
    page = SimpleNamespace(**your_model)
    alone = page.sample(page.denoise, page.noise, factor=0)
    assert found(page.parts[0], page.images) > found(alone, page.images) + 1.5
    assert (
        found(page.samples, page.images) > found(alone, page.images) + 0.8
    )  # SPELL, EDM's sampler
    for condition in range(2):
        given = page.conditional[page.conditions == condition]
        assert found(given, page.halves[condition]) > 3.9
    window = page.decisions.window()
    assert 0 < window.low < window.high < page.largest


def test_ones_own_network_of_diffusers_is_guided(your_model):
    page = SimpleNamespace(**your_model)
    assert page.pictures.shape == (2, 4, 1, 16, 16) and page.pictures.isfinite().all()
    noise = torch.randn(2, 4, 1, 16, 16)
    guided, alone = (page.sample(page.denoise_unet, noise, 9, factor=f) for f in (5.0, 0.0))
    distance = lambda x: torch.stack([torch.pdist(each.flatten(1)).mean() for each in x]).mean()
    assert distance(guided) > distance(alone)


def test_ones_own_classes_are_drawn_as_asked_for(your_model):
    page = SimpleNamespace(**your_model)
    nearest = torch.cdist(page.composed.flatten(2), page.images.flatten(1)).argmin(-1)
    second = (nearest >= 6).sum(1)  # of each set
    assert (second == 4).float().mean() >= 0.9


@pytest.mark.parametrize("path", [path for path in PAGES if blocks(path)])
def test_a_page_with_python_is_run_by_a_test(path):
    name = path.rpartition("/")[2]
    runners = [*(ROOT / "tests").glob("*.py"), ROOT / "docs" / "tour.py"]
    texts = [runner.read_text() for runner in runners]
    assert any(name in text and ("exec(" in text or "subprocess" in text) for text in texts)


def anchors(page):
    """Those of a page's headings, made as GitHub makes them."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    headings = re.findall(r"^#+ +(.+)$", text, flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


FILES_OF_THE_THESIS = {
    "generate_conditional_frames.py",
    "generate_heatmap.py",
    "unconditional_heatmap.py",
}


@pytest.mark.parametrize("path", PAGES)
def test_every_link_and_file_name_leads_somewhere(path):
    page = ROOT / path
    text = page.read_text()
    for target in re.findall(r"\]\(([^)\s]+)", text):
        name, _, anchor = target.partition("#")
        if re.match(r"https?:", name):
            continue
        to = page.parent / name if name else page
        assert to.exists(), target
        assert not anchor or anchor in anchors(to), target
    if path == "CHANGELOG.md":  # it names files of earlier versions
        return
    written_here = set(re.findall(r"```python\n# (\w+\.py)\n", text))
    for name in set(re.findall(r"`([a-z_]+\.py)`", text)) - written_here - FILES_OF_THE_THESIS:
        assert (ROOT / name).is_file(), name


# Methods that torch or the protocol `Potential` documents.
DOCUMENTED_ELSEWHERE = {"forward", "energy", "grad", "error"}


def undocumented(path):
    """Public functions, classes and methods without a docstring of their own or of a base class."""
    tree, documented = ast.parse(path.read_text()), set(DOCUMENTED_ELSEWHERE)
    for owner in ast.walk(tree):
        if not isinstance(owner, (ast.Module, ast.ClassDef)):
            continue
        in_class = isinstance(owner, ast.ClassDef)
        for node in owner.body:
            if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or node.name.startswith("_"):
                continue
            if any(ast.unparse(each) == "overload" for each in node.decorator_list):
                continue
            if ast.get_docstring(node):
                documented |= {node.name} if in_class else set()
            elif not (in_class and node.name in documented):
                yield node.name


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_everything_public_has_a_docstring(path):
    assert ast.get_docstring(ast.parse(path.read_text()))
    assert list(undocumented(path)) == []


@pytest.mark.parametrize(
    "path",
    [*MODULES, ROOT / "CITATION.cff", *(ROOT / page for page in PAGES)],
    ids=lambda path: path.name,
)
def test_arxiv_numbers_are_well_formed(path):
    """YYMM.NNNNN, of five digits since 2015."""
    for number in re.findall(
        r"arxiv[\s:]+(?:preprint\s+)?(\S*\d\S*)", path.read_text(), flags=re.I
    ):
        found = re.fullmatch(r"(\d\d)(\d\d)\.(\d{4,5})\W*", number)
        assert found, number
        year, month, serial = found.groups()
        assert 1 <= int(month) <= 12, number
        assert len(serial) == (5 if int(year) >= 15 else 4), number


def test_the_citation_has_what_its_format_asks_for():
    """Citation File Format 1.2.0: its required keys, and those of its authors and references."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0" and citation["message"] and citation["title"]
    assert citation["authors"] and all(author["name"] for author in citation["authors"])
    assert citation["license"] == "MIT" and (ROOT / "LICENSE").read_text().startswith("MIT License")
    page = (ROOT / "docs" / "guidance.md").read_text()
    for reference in citation["references"]:
        assert {"type", "title", "authors"} <= set(reference)
        assert all(
            {"family-names", "given-names"} <= set(author) for author in reference["authors"]
        )
        for identifier in reference["identifiers"]:
            assert identifier["type"] in ("other", "doi", "url")
            assert identifier["value"].removeprefix("arXiv:") in page


def test_every_method_has_its_paper_in_the_citation():
    """By the arXiv numbers in the files of methods; one paper, whose authors we lack, is named."""
    papers = (ROOT / "CITATION.cff").read_text()
    page = (ROOT / "docs" / "guidance.md").read_text()
    for flag, folder in method.FOLDERS.items():
        for name in method.names(flag)[1:]:
            (path,) = (ROOT / "diverse_sampling" / folder).rglob(f"{name}.py")
            for number in re.findall(r"Source:[^\n]*(?:\n[^\n]+)*", path.read_text()):
                for paper in re.findall(r"\d{4}\.\d{5}", number):
                    assert f"arXiv:{paper}" in papers or f"arXiv {paper}" in page, (name, paper)


def test_the_tour_tells_what_has_changed(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    from tour import differences, same

    assert same("found  7.75 [7.5, 8.0] of 8", "found 7.76 [7.4, 8.1] of 8", roughly=False)
    assert not same("found 7.75 of 8", "found 6.20 of 8", roughly=False)
    assert same("found 7.75 of 8", "found 6.20 of 8", roughly=True)
    assert not same("found 7.75 of 8", "quality 7.75 of 8", roughly=True)
    assert differences(
        "one\n```text roughly\nof 8\n```\n5 of 8", "one\n```text roughly\nof 2\n```\n2 of 8", {}
    ) == ["- 5 of 8\n+ 2 of 8"]
    assert differences("one", "one\ntwo", {})


@pytest.mark.slow
def test_the_tour_is_what_its_commands_print(monkeypatch, capsys):
    """Each `python SCRIPT ...` forks from a server that has imported torch already."""
    monkeypatch.syspath_prepend(ROOT / "docs")
    import tour

    def forked(command, cwd, env, **options):
        *_, lines = command
        printed = ""
        for line in lines.replace("\\\n", " ").splitlines():
            python, script, *argv = shlex.split(line)
            assert python == "python"
            program = Program(script, *argv, cwd=cwd, env=dict(CUDA_VISIBLE_DEVICES=""))
            out, err = program.communicate(timeout=600)
            printed += out
            if program.returncode:
                return subprocess.CompletedProcess(command, program.returncode, printed, err)
        return subprocess.CompletedProcess(command, 0, printed, "")

    monkeypatch.setattr(tour, "subprocess", SimpleNamespace(run=forked))
    with pytest.raises(SystemExit) as stop:
        tour.main(["--check"])
    assert stop.value.code == 0, capsys.readouterr().out


# Flags of other programs, and of the parts of ours that no settings class declares.
OTHER_FLAGS = {
    *("--set", "--sets", "--value", "--num_sequences"),  # visualize.py
    *("--network", "--train"),  # benchmarks/network.py, benchmarks/gpu.py
    "--student",  # benchmarks/few_calls.py
    *("--model", "--prompt", "--particles", "--factor", "--clip"),  # examples/text_to_image.py
    *("--check", "--pictures"),  # docs/tour.py, docs/build.py
    *("--parts", "--pg_factr"),  # benchmarks/durations.py, a flag that docs/faq.md types wrongly
    *("--size", "--given", "--no"),  # examples/lidc.py, pip's --no-deps
    *("--nodes", "--ntasks", "--gpus"),  # srun
    *("--nproc_per_node", "--nnodes", "--rdzv_backend", "--rdzv_endpoint"),  # torchrun
}


@pytest.fixture(scope="module")
def our_flags() -> set[str]:
    others = (train_classifier.ClassifierSettings, ExperimentSettings)
    return {f"--{key}" for key in method.option_keys()} | {
        option
        for groups in (EvaluationSettings.groups(), TrainingSettings.groups(), others)
        for action in make_parser(*groups, description="")._actions
        for option in action.option_strings
    }


# Flags that the changelog says are gone.
GONE = {
    *("--redraws", "--most_alike", "--most_doubt", "--doubt_sigma", "--kmedoids_pool"),
    *("--print_completion", "--label_smoothing"),
    *(f"--{key}" for key in FORMER),
}


@pytest.mark.parametrize("path", PAGES)
def test_every_flag_in_the_documentation_exists(path, our_flags):
    flags = set(re.findall(r"(--[a-z][a-z_0-9]+)", (ROOT / path).read_text()))
    gone = GONE if path == "CHANGELOG.md" else set()
    assert flags - our_flags - OTHER_FLAGS - gone == set()
