"""config.yaml files that version 1 wrote."""

import pytest
import yaml

import assemble
from config import SettingError

RECORDED = dict(
    denoiser="exact",
    dataset="circle_jumping",
    digits="embedded",
    redraws=6,
    most_alike=0.25,
    most_doubt=float("inf"),
    doubt_sigma=1.5,
    kmedoids_pool=4,
    pg_strength="drift",
    pg_sigma_min=3.0,
    pg_sigma_max=40.0,
)


def parsed(tmp_path, **changed):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(RECORDED | changed))
    return assemble.parse(["--config", str(path)])[0]


@pytest.mark.parametrize("changed", [dict(pg_factor=0.0), dict(pg_factor=1.7, redraws=0)])
def test_they_describe_the_same_evaluation_where_nothing_was_drawn_again(changed, tmp_path):
    settings = parsed(tmp_path, **changed)
    assert settings.sampler.sampler == "edm"
    assert settings.guidance.pg_strength == "drift" and settings.guidance.pg_sigma_min == 3
    assert "redraws" not in settings.record()


def test_redraws_that_counted_are_refused_by_name(tmp_path):
    with pytest.raises(SettingError, match="redraws: got 6.0; accepted: 0"):
        parsed(tmp_path, pg_factor=1.7)


def test_what_is_left_to_the_task_is_recorded():
    for argv, features in (
        (["--task", "unconditional", "--pg_factor", "1"], "classifier"),
        (["--denoiser", "exact", "--pg_factor", "1"], "pixels"),
    ):
        settings, _ = assemble.parse(argv)
        assert settings.guidance.pg_features == features
        assert settings.sampler.sampler == "window"
    assert assemble.parse(["--denoiser", "exact"])[0].sampler.sampler == "edm"
    churned = assemble.parse(["--denoiser", "exact", "--pg_factor", "1", "--s_churn", "5"])[0]
    assert churned.sampler.sampler == "edm"
