"""What metrics, methods and sources are called."""

import json

import pytest
import yaml
from conftest import ROOT

from lab.names import METRICS, method_of, metric, source_of

# Numbers in metrics.json that describe the run.
NO_METRICS = {"modes_total", "num_sets", "batch_size"}


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
    "settings",
    [
        dict(guidance="pg", pg_factor=0, noise="iid", sampler="window"),
        dict(guidance="pg", pg_factor=0.0, noise="iid", medoids_of=1, sequential=2),
        dict(guidance="reference", pg_factor=0, noise="iid"),
        dict(guidance="none", pg_factor=3, noise="iid"),
        {},
    ],
)
def test_sets_that_nothing_acts_on_are_independent(settings):
    assert method_of(settings) == "independent"


@pytest.mark.parametrize(
    "settings, name",
    [
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


def test_variants_are_points_of_the_experiment_that_compares_methods():
    recipe = yaml.safe_load((ROOT / "configs" / "experiments" / "e10.yaml").read_text())
    assert set(recipe["variants"]) <= set(recipe["grid"]["method"])


def test_sources():
    assert source_of(dict(dataset="free", digits_source="mnist")) == "mnist digits (test split)"
    assert source_of(dict(dataset="frames", digits_source="a.npz")) == "a.npz (test split)"
    assert source_of(dict(dataset="mixture", digits_source=None)) is None
