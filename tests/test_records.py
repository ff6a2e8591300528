"""What a run writes, how it is read again, and what its metrics and methods are called."""

import json
import math
import re

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from config import OriginSettings
from diverse_sampling.errors import SettingError
from lab import records
from lab.experiments import interval
from lab.files import as_json, distinct, write_whole
from lab.names import METRICS, method_of, metric, source_of

RESULT = dict(dataset="circle_jumping", settings=dict(seed=3, s_max=None, outdir=None))


def arrays(modes: bool = True) -> dict[str, torch.Tensor]:
    return records.arrays_of(
        cond=torch.rand(2, 1, 4, 4),
        samples=torch.rand(2, 3, 4, 4),
        modes=torch.tensor([[0, 1, -1], [2, 2, 0]]) if modes else None,
        truth=dict(answers=torch.rand(2, 5, 4, 4)),
    )


@pytest.mark.parametrize("modes", [True, False])
def test_an_evaluation_is_read_as_it_was_written(modes, tmp_path):
    written = arrays(modes)
    records.write(written, RESULT, tmp_path)
    read, result = records.finished(str(tmp_path))
    assert ("modes" in read) == modes and list(read) == list(written) and result == RESULT
    assert all(torch.equal(read[name], written[name]) for name in written)
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == RESULT["settings"]
    assert records.result_of(str(tmp_path)) == RESULT
    assert not records.is_experiment(str(tmp_path))


def test_an_experiment_is_read_as_it_was_written(tmp_path):
    rows = [dict(cell=dict(kernel="rbf", pg_factor=1.5), flags=["--seed=1"], result=RESULT)]
    written = dict(title="Asked", rows=rows)
    (tmp_path / "results.json").write_text(json.dumps(written))
    assert records.is_experiment(str(tmp_path))
    assert records.experiment_of(str(tmp_path)) == written
    assert records.label(rows[0]) == "rbf, pg_factor 1.5"


@pytest.mark.parametrize("name", ["metrics.json", "samples.npz"])
def test_a_file_that_is_missing_is_named_with_its_whole_path(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    records.write(arrays(), RESULT, tmp_path / "run")
    (tmp_path / "run" / name).unlink()
    with pytest.raises(SettingError, match=f"^run: got 'run'.*{tmp_path}/run/{name} was not found"):
        records.finished("run")


@pytest.mark.parametrize("text", ["[]", "{}", '"text"', '{"settings_": {}}'])
def test_other_files_of_the_same_name_are_refused(text, tmp_path):
    (tmp_path / "metrics.json").write_text(text)
    np.savez(tmp_path / "samples.npz", samples=np.zeros(1))
    with pytest.raises(SettingError, match="^run: got .*that evaluate.py writes"):
        records.finished(str(tmp_path))
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(SettingError, match="^run: got .*that evaluate.py --experiment writes"):
        records.experiment_of(str(tmp_path))


@pytest.mark.parametrize(
    "name, text, refused",
    [
        ("config.yaml", "seed: 0\nolder: 1\noutdir: x\n", None),
        ("config.yaml", "seed: 1\n", "config.yaml there says otherwise (seed: 1 and 0"),
        ("config.yaml", "", "config.yaml there says otherwise"),
        ("config.yaml", "{", "config.yaml there says otherwise"),
        (
            "metrics.json",
            '{"settings": {"seed": 0, "digits_sha256": "b"}}',
            "digits_sha256: b and a",
        ),
        ("metrics.json", "", "broken"),
        ("other.txt", "seed: 1", None),
    ],
)
def test_a_folder_is_for_one_run(name, text, refused, tmp_path):
    (tmp_path / name).write_text(text)
    here = dict(seed=0, outdir=None, device="cpu")
    if "sha256" in text:
        here["digits_sha256"] = "a"
    if refused is None:
        records.refuse_other_run(tmp_path, here)
    else:
        with pytest.raises(SettingError, match="^(outdir|run): got .*" + re.escape(refused)):
            records.refuse_other_run(tmp_path, here)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.tuples(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_every_record_is_strict_json_and_keeps_what_is_finite(record):
    def refuse(token):
        raise AssertionError(token)

    def expected(value):
        if isinstance(value, dict):
            return {key: expected(each) for key, each in value.items()}
        if isinstance(value, (list, tuple)):
            return [expected(each) for each in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    assert json.loads(as_json(record), parse_constant=refuse) == expected(record)


def test_metrics_that_were_not_finite_are_read_as_nan(tmp_path):
    metric = dict(mean=math.nan, ci95=[-math.inf, 2.0], per_set=[1.0, math.nan], words=None)
    write_whole(tmp_path / "metrics.json", as_json(dict(settings={}, quality=metric, ged=None)))
    result = records.result_of(str(tmp_path))
    assert interval(result["quality"]) == "nan [nan, 2.000]" and result["ged"] is None
    assert math.isnan(result["quality"]["per_set"][1]) and result["quality"]["words"] is None


# Hashes, flags, the cache of the library, and what a process says to the one that started it.
NO_RECORDS = {"lab/command_line.py", "lab/pilot.py", "diverse_sampling/decisions.py"}
NO_RECORDS |= {"benchmarks/potentials.py"}


def test_every_record_is_written_by_one_function():
    folders = (".", "lab", "figures", "worlds", "benchmarks", "docs", "diverse_sampling")
    writers = {
        str(path.relative_to(ROOT))
        for folder in folders
        for path in (ROOT / folder).glob("*.py")
        if re.search(r"json\.dumps?\(", path.read_text())
    }
    assert writers - NO_RECORDS == {"lab/files.py"}


@pytest.mark.parametrize("content", ["", "{", "\x00"])
def test_a_record_that_is_no_json_is_named(content, tmp_path):
    for name in ("metrics.json", "results.json"):
        (tmp_path / name).write_text(content)
        read = records.result_of if name == "metrics.json" else records.experiment_of
        with pytest.raises(SettingError, match=rf"^run: got '.*{name}'; accepted: .*broken"):
            read(str(tmp_path))


@given(st.lists(st.sampled_from(["scan", "Scan", "scan-2", "SCAN-2", "a/b", "x"])))
def test_no_two_names_of_outputs_are_alike(names):
    different = distinct(names)
    assert len({name.casefold() for name in different}) == len(names)
    for name, new in zip(names, different):
        assert new == name or new.rpartition("-")[0] == name
    once = [
        name for name in names if [each.casefold() for each in names].count(name.casefold()) < 2
    ]
    assert set(once) <= set(different)


def test_provenance_has_the_hashes_of_what_was_used():
    known = records.provenance(OriginSettings(checkpoint_sha256="c", digits_sha256="d"))
    assert (known["checkpoint_sha256"], known["digits_sha256"]) == ("c", "d")
    assert known["versions"]["torch"] == torch.__version__


# ---------------------------------------------------------------- names

# Numbers in metrics.json that describe the run.
NO_METRICS = {"modes_total", "num_sets", "batch_size", "version"}


def measured(result: dict) -> set[str]:
    """The keys of all metrics in a result, those of some of the sets too."""
    keys = set()
    for key, value in result.items():
        if isinstance(value, dict) and "num_sets" in value:
            keys |= measured(value)
        elif isinstance(value, dict) and "mean" in value:
            keys.add(key)
        elif isinstance(value, (int, float)) and key not in NO_METRICS:
            keys.add(key)
    return keys


def test_every_metric_that_was_ever_published_has_a_name():
    found = set()
    for path in sorted((ROOT / "docs" / "results").glob("e[0-9]*.json")):
        for row in json.loads(path.read_text())["rows"]:
            found |= measured(row["result"])
    assert {"modes_found", "quality", "confidence", "centroid_spread"} <= found <= set(METRICS)


def test_names_of_metrics_are_different():
    labels = [each.label for each in METRICS.values()]
    assert len(set(labels)) == len(labels)
    assert metric("new_number").heading == "New number"
    assert METRICS["quality"].less_is_better and not METRICS["modes_found"].less_is_better


@pytest.mark.parametrize(
    "settings, name",
    [
        ({}, "independent"),
        (dict(guidance="pg", pg_factor=0, noise="iid", sampler="window"), "independent"),
        (dict(guidance="pg", pg_factor=0.0, medoids_of=1, sequential=2), "independent"),
        (dict(guidance="reference", pg_factor=0, noise="iid"), "independent"),
        (dict(guidance="none", pg_factor=3, noise="iid"), "independent"),
        (dict(guidance="pg", pg_factor=1.7), "particle guidance, factor 1.7"),
        (dict(guidance="pg", pg_factor=3.0, sampler="window"), "particle guidance, factor 3"),
        (
            dict(guidance="pg", pg_factor=3, sampler="edm"),
            "particle guidance, factor 3, EDM's sampler",
        ),
        (dict(guidance="reference", pg_factor=3.0), "the thesis's form, factor 3"),
        (dict(guidance="spell", pg_factor=0, spell_radius=10.0), "SPELL, radius 10"),
        (dict(guidance="cads", cads_scale=0.25), "CADS, noise of 0.25"),
        (dict(guidance="pg", medoids_of=4, sampler="edm"), "medoids of 4 times as many"),
        (
            dict(guidance="pg", pg_factor=3, medoids_of=2),
            "particle guidance, factor 3, medoids of 2 times as many",
        ),
        (dict(guidance="pg", pg_factor=0, noise="simplex"), "simplex noise"),
        (
            dict(guidance="pg", pg_factor=2, noise="antithetic", sequential=2),
            "particle guidance, factor 2, 2 draws in sequence, antithetic noise",
        ),
        (dict(guidance="future", noise="pink"), "future, pink"),
    ],
)
def test_a_method_says_what_it_does(settings, name):
    assert method_of(settings) == name


def test_sources():
    assert source_of(dict(dataset="free", digits_source="mnist")) == "mnist digits (test split)"
    assert source_of(dict(dataset="frames", digits_source="a.npz")) == "a.npz (test split)"
    assert source_of(dict(dataset="mixture", digits_source=None)) is None
