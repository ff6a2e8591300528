"""What a run writes, and how it is read again."""

import json

import numpy as np
import pytest
import torch
import yaml

from diverse_sampling.errors import SettingError
from lab import records

RESULT = dict(dataset="circle_jumping", settings=dict(seed=3, s_max=float("inf"), outdir=None))


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
    (row,) = records.rows_of(str(tmp_path))
    assert row == dict(cell={}, flags=["--config", str(tmp_path / "config.yaml")], result=RESULT)


def test_an_experiment_is_read_as_it_was_written(tmp_path):
    rows = [dict(cell=dict(kernel="rbf", pg_factor=1.5), flags=["--seed=1"], result=RESULT)]
    text = json.dumps(dict(title="Asked", rows=rows))
    (tmp_path / "results.json").write_text(text)
    assert records.rows_of(str(tmp_path)) == rows
    assert records.experiment_of(str(tmp_path)) == (rows, "Asked")
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


def test_a_folder_is_for_one_run(tmp_path):
    path = tmp_path / "config.yaml"
    records.refuse_other_run(path, dict(seed=0))
    path.write_text("seed: 0\n")
    records.refuse_other_run(path, dict(seed=0))
    with pytest.raises(SettingError, match="^outdir: got .*config.yaml there says otherwise"):
        records.refuse_other_run(path, dict(seed=1))


def test_provenance_has_the_hash_of_the_checkpoint(tmp_path):
    import hashlib

    (tmp_path / "model").write_bytes(b"weights")
    known = records.provenance(tmp_path / "model")
    assert known["checkpoint_sha256"] == hashlib.sha256(b"weights").hexdigest()
    assert known["versions"]["torch"] == torch.__version__
    assert records.provenance(None)["checkpoint_sha256"] is None
