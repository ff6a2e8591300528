"""Methods: each is one file, which says what it is."""

import re
import subprocess
import sys
from dataclasses import fields

import pytest
import yaml
from conftest import ROOT

import evaluate
from config import GuidanceSettings, SamplerSettings
from diverse_sampling import method
from diverse_sampling.errors import SettingError
from lab import assemble

EXACT = ["--denoiser", "exact", "--digits", "embedded", "--device", "cpu"]
EVERY = [(flag, name) for flag in method.FOLDERS for name in method.names(flag)[1:]]
every_method = pytest.mark.parametrize("flag, name", EVERY, ids=lambda value: value)
# Those whose names mean nothing else: `variance` is a word, and `rke` a metric too.
RIVALS = {"cads", "contrastive", "diverseflow", "eddy", "oscar"}


@every_method
def test_each_says_what_it_is_in_words_of_its_own(flag, name):
    found = method.find(flag, name)
    titles = [method.find(*each).title for each in EVERY]
    assert titles.count(found.title) == 1 and found.frequencies
    settings = {f.name for group in (GuidanceSettings, SamplerSettings) for f in fields(group)}
    options = {f.name for f in fields(found.options)} if found.options else set()
    assert set(found.shown) <= settings | options and set(found.only) <= settings | options


@every_method
def test_options_are_known_without_an_import(flag, name):
    found = method.find(flag, name)
    owned = {key for key, owner in method.option_keys().items() if owner == (flag, name)}
    assert owned == ({f.name for f in fields(found.options)} if found.options else set())
    assert not owned & {f.name for f in fields(GuidanceSettings)}


def test_what_names_no_method_is_none():
    assert method.find("guidance", "none") is None and method.find("noise", "iid") is None
    assert "pg" in method.names("guidance", rivals=False)
    with pytest.raises(KeyError):
        method.find("guidance", "nonsense")


@pytest.mark.parametrize("name", sorted(RIVALS))
def test_one_file_knows_a_rival(name):
    """Outside of documentation, recipes and tests; and one of a variant, NAME_VARIANT."""
    parts = ("*.py", "diverse_sampling/**/*.py", "worlds/*.py", "lab/*.py", "figures/*.py")
    files = [path for part in parts for path in ROOT.glob(part)]
    word = re.compile(rf"\b{name}\b")
    knowing = [path.stem for path in files if word.search(path.read_text(encoding="utf-8"))]
    assert all(each == name or each.startswith(f"{name}_") for each in knowing)


def test_names_and_mistakes_do_not_import_torch():
    code = (
        "import sys, evaluate\n"
        "for argv in (['--guidance', 'cad'], ['--cads_scale', '1'], ['--pg_facto', '1']):\n"
        "    try: evaluate.main(argv)\n"
        "    except SystemExit as stop: assert stop.code == 2\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)


def test_options_of_the_method_that_is_chosen_are_settings(tmp_path):
    own = ["--guidance", "reference", "--initial_scale", "0.1", "--second_stage", "here"]
    settings, _ = assemble.parse([*EXACT, *own])
    assert settings.options == dict(second_stage="here", initial_scale=0.1)
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(settings.record()))
    assert assemble.parse(["--config", str(tmp_path / "c.yaml")])[0].record() == settings.record()
    assert assemble.parse(EXACT)[0].options == {}


def test_a_configuration_that_is_printed_has_the_options_of_its_methods_alone(capsys):
    with pytest.raises(SystemExit):
        evaluate.main([*EXACT, "--noise", "contrastive", "--contrastive_rate=2", "--print_config"])
    printed = yaml.safe_load(capsys.readouterr().out)
    owned = set(method.option_keys()) & set(printed)
    assert owned == {"contrastive_rate"} and printed["contrastive_rate"] == 2


@pytest.mark.parametrize(
    "flags, line",
    [
        ("--cads_scale 2", "cads_scale: got '2'; accepted: only with --guidance cads"),
        ("--guidance reference --initial_scale 0", "initial_scale: got 0.0; accepted: a number >"),
        ("--guidance reference --second_stage there", "got 'there'; accepted: 'next', 'here'"),
        ("--guidance reference --sampler window", "sampler: got 'window'; accepted: edm with"),
        (
            "--noise contrastive --contrastive_rate fast",
            "contrastive_rate: got 'fast'; accepted: a",
        ),
    ],
)
def test_options_that_cannot_be_are_refused_by_name(flags, line, refused):
    assert line in refused(evaluate.main, [*EXACT, *flags.split()])


def test_a_file_may_hold_options_of_methods_that_are_not_chosen(tmp_path):
    """A config.yaml of version 1 holds all of them."""
    recorded = dict(cads_scale=0.25, contrastive_rate=0.1, second_stage="next", initial_scale=1.0)
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(recorded | dict(guidance="spell")))
    settings, _ = assemble.parse([*EXACT, "--config", str(tmp_path / "c.yaml")])
    assert settings.options == {} and settings.guidance.guidance == "spell"


def test_a_set_that_is_checked_says_which_method_refuses():
    with pytest.raises(SettingError, match="^pg_factor: got 0.0; accepted: more than 0 with"):
        assemble.parse([*EXACT, "--guidance", "sriw"])
