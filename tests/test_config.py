import subprocess
import sys

import pytest
import yaml
from conftest import ROOT

import evaluate
import train
import visualize
from config import (
    EvaluationSettings,
    TrainingSettings,
    WorldSettings,
    as_yaml,
    build,
    record,
)
from diverse_sampling.errors import SettingError
from lab import assemble


@pytest.mark.parametrize(
    "main, flags, key, value, accepted",
    [
        (evaluate.main, "--pg_factor -1", "pg_factor", "-1", "a number >= 0"),
        (evaluate.main, "--pg_factor nan", "pg_factor", "nan", "a number >= 0"),
        (evaluate.main, "--batch_size 0", "batch_size", "0", "a whole number from 1 to 1e9"),
        (evaluate.main, "--num_sets 2.5", "num_sets", "2.5", "a whole number from 1 to 1e9"),
        (evaluate.main, "--pg_kernel gauss", "pg_kernel", "gauss", "'rbf'"),
        (
            evaluate.main,
            "--dataset mnist",
            "dataset",
            "mnist",
            "centered, halves, free, circle_jumping",
        ),
        (evaluate.main, "--num_directions 3", "num_directions", "3", "2, 4, 8"),
        (evaluate.main, "--num_steps 1", "num_steps", "1", "2 or more"),
        (evaluate.main, "--denoiser exact --dataset free", "denoiser", "exact", "circle_jumping"),
        (evaluate.main, "--denoiser exact --guidance cads", "guidance", "cads", "--denoiser exact"),
        (
            evaluate.main,
            "--denoiser exact --medoids_of 3 --sequential 2",
            "sequential",
            "2",
            "1 with",
        ),
        (
            evaluate.main,
            "--task conditional --dataset centered",
            "task",
            "conditional",
            "unconditional",
        ),
        (train.main, "--lr 0", "lr", "0", "a number > 0"),
        (train.main, "--p_std wide", "p_std", "wide", "a number > 0"),
        (train.main, "--target posterior --dataset free", "target", "posterior", "circle_jumping"),
        (visualize.main, "schedule --rho [7,-1]", "rho", "-1", "a number > 0"),
        (visualize.main, "figure nowhere", "run", "nowhere", "evaluate.py"),
        (visualize.main, "dataset --dataset free --seq_len 2", "seq_len", "2", "num_cond_frames"),
    ],
)
def test_bad_input_is_one_line_with_key_value_and_what_is_accepted(
    refused, main, flags, key, value, accepted
):
    line = refused(main, flags.split())
    assert f"{key}: " in line and value in line and accepted in line


def test_unknown_flags_and_keys_are_refused(refused, tmp_path):
    assert "--pg_facto" in refused(evaluate.main, ["--pg_facto", "1"])
    (tmp_path / "c.yaml").write_text("pg_facto: 1\n")
    assert "pg_facto" in refused(evaluate.main, ["--config", str(tmp_path / "c.yaml")])


def test_a_config_of_before_may_hold_what_is_no_setting_any_more(refused, tmp_path):
    path = tmp_path / "c.yaml"
    for value, accepted in ((0.99, True), (0.9, False)):
        path.write_text(f"beta2: {value}\nlr: 0.5\n")
        if accepted:
            assert train.command_line().given(["--config", str(path)]) == dict(lr=0.5)
        else:
            assert "beta2: not a setting here" in refused(train.main, ["--config", str(path)])


def test_an_older_config_of_an_evaluation_means_what_it_says(refused, tmp_path):
    path = tmp_path / "c.yaml"
    older = dict(sigma_min=0.002, window_churn=0.3, pg_space="jacobian", pg_strength="joint")
    given = dict(denoiser="exact", digits="embedded", pg_factor=3.0) | older
    path.write_text(as_yaml(given | dict(group_of=1)))
    settings, _ = assemble.parse(["--config", str(path)])
    assert given.items() <= settings.record().items() and settings.sampler.sampler == "window"
    path.write_text(as_yaml(given | dict(group_of=4)))
    assert "group_of: not a setting here" in refused(evaluate.main, ["--config", str(path)])


def test_record_is_plain_yaml_and_repeats_the_settings():
    settings = WorldSettings(dataset="horizontal", p=0.7, digit_classes=[1, 2])
    values = yaml.safe_load(yaml.safe_dump(record(settings)))
    assert build(WorldSettings, values) == settings


@pytest.mark.parametrize("kind", [EvaluationSettings, TrainingSettings])
def test_settings_of_a_run_are_the_same_after_their_record(kind):
    chosen = dict(dataset="horizontal", p=0.7, seed=3, digits="embedded", digit_classes=[1, 2])
    settings = kind.from_values(chosen | dict(experiment="e5"))
    values = yaml.safe_load(as_yaml(settings.record()))
    assert chosen.items() <= values.items() and "experiment" not in values
    assert kind.from_values(values).record() == settings.record()
    assert kind.from_values({}) == kind()


@pytest.mark.parametrize(
    "values, line",
    [
        (dict(pg_sigma_min=9.0, pg_sigma_max=2.0), "pg_sigma_min: got 9"),
        (dict(sigma_min=90.0), "sigma_min: got 90.0; accepted: less than sigma_max"),
        (dict(batch_size=None), "batch_size: got None"),
        (dict(dataset="free", seq_len=2), "seq_len: got 2"),
    ],
)
def test_settings_of_a_run_check_every_group(values, line):
    with pytest.raises(SettingError, match=f"^{line}"):
        EvaluationSettings.from_values(values)


def test_every_training_config_is_accepted():
    for path in (ROOT / "configs").glob("circle*.yaml"):
        settings, _ = train.parse(["--config", str(path)])
        assert settings.world.dataset == "circle_jumping"


@pytest.mark.parametrize(
    "script",
    ["train.py", "evaluate.py", "visualize.py", "lab/train_classifier.py", "lab/judge.py"],
)
def test_help_does_not_import_torch(script):
    """--help must answer at once."""
    code = (
        "import runpy, sys; sys.argv = [sys.argv[1], '--help']\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit: pass\n"
        "print('torch' in sys.modules, 'matplotlib' in sys.modules)"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "--config" in out.stdout or "schedule" in out.stdout
    assert out.stdout.strip().splitlines()[-1] == "False False"
