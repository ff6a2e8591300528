"""How settings are layered, and how an evaluation is put together from them."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT

import evaluate
from config import EvaluationSettings
from diverse_sampling.errors import SettingError
from lab import assemble, checkpoint, tasks

EXACT = ["--denoiser", "exact", "--digits", "embedded", "--device", "cpu", "--num_steps", "2"]


# ---------------------------------------------------------------- layers


@pytest.mark.parametrize(
    "given, dataset",
    [
        ({}, "circle_jumping"),
        (dict(task="unconditional"), "centered"),
        (dict(frames="examples/blobs.npz", checkpoint="blobs"), "frames"),
        (dict(checkpoint="blobs"), "frames"),
        (dict(checkpoint="free"), "free"),
        (dict(dataset="horizontal"), "horizontal"),
        (dict(dataset="mixture", denoiser="exact"), "mixture"),
        (dict(frames="examples/blobs.npz", denoiser="exact"), "frames"),
    ],
)
def test_the_dataset_follows_from_what_is_given(given, dataset, monkeypatch):
    monkeypatch.chdir(ROOT)
    before = copy.deepcopy(given)
    settings, path = assemble.complete(given)
    assert settings.world.dataset == dataset and given == before
    assert (path is None) == (settings.evaluate.denoiser == "exact")
    assert settings.evaluate.task == ("unconditional" if dataset == "centered" else "conditional")


def test_layers_win_in_their_order(tmp_path):
    """Defaults < what is implied < what the checkpoint was trained with < what is given."""
    shipped = ROOT / "checkpoints" / "horizontal_p70.safetensors"
    metadata = checkpoint.read_metadata(shipped)
    metadata["settings"] |= dict(seq_len=9, pg_factor=5.0)
    path = tmp_path / "model.safetensors"
    checkpoint.save_tensors(path, checkpoint.read_tensors(shipped), metadata)
    settings, found = assemble.complete(dict(checkpoint=str(path)))
    assert found == path and settings.world.dataset == "horizontal"
    assert (settings.world.p, settings.world.seq_len) == (0.7, 9)
    assert settings.guidance.pg_factor == 0.0  # only the world comes from a checkpoint
    settings, _ = assemble.complete(dict(checkpoint=str(path), seq_len=12, p=None))
    assert (settings.world.p, settings.world.seq_len) == (None, 12)
    with pytest.raises(SettingError, match="^dataset: got 'free'.*'horizontal', which"):
        assemble.complete(dict(checkpoint=str(path), dataset="free"))


def test_a_record_is_its_own_completion():
    """config.yaml repeats a run whatever the defaults of checkpoints become."""
    settings, _ = assemble.complete(dict(dataset="horizontal", p=0.9, pg_factor=2.0))
    again, _ = assemble.complete(settings.record())
    assert again.record() == settings.record()


TOO_WIDE = [
    dict(
        excess_spread=dict(ci95=[0.1, 0.2]),
        iou_distance=dict(mean=0.5),
        answers_iou_distance=dict(mean=0.3),
    ),
    dict(spread_skill=dict(mean=1.3, ci95=[1.1, 1.5])),
]


@pytest.mark.parametrize("differ", TOO_WIDE, ids=["several answers", "one answer"])
def test_what_is_given_meets_what_is_found(differ):
    """The world's facts, and a spread that guidance would add to, end in new settings."""
    values = dict(denoiser="exact", pg_factor=2.0, num_sets=100, data=None)
    before, nothing = assemble.resolve(values, assemble.Facts())
    facts = assemble.Facts(most_sets=9, spread=differ)
    settings, notices = assemble.resolve(before.record(), facts)
    assert nothing == [] and [notice.split(":")[0] for notice in notices] == ["num_sets", "WARNING"]
    found = dict(num_sets=9, pg_factor=0.0, sampler="edm")
    assert settings.record() == before.record() | found
    assert assemble.resolve(settings.record(), facts) == (settings, [])
    forced, (_, warning) = assemble.resolve(values | dict(pg_only_if_needed=False), facts)
    assert forced.guidance.pg_factor == 2.0 and warning.endswith("guidance adds to that")


def test_without_answers_there_is_a_set_for_each_condition():
    values = dict(checkpoint="blobs", frames="examples/blobs.npz", answers="none")
    assert assemble.complete(values)[0].evaluate.num_sets is None
    assert assemble.complete(values | dict(num_sets=3))[0].evaluate.num_sets == 3
    facts = assemble.Facts(most_sets=7)
    settings, notices = assemble.resolve(dict(denoiser="exact", num_sets=None), facts)
    assert settings.evaluate.num_sets == 7 and notices == []
    with pytest.raises(SettingError, match="^num_sets: got None"):
        assemble.evaluation([*EXACT, "--dataset", "mixture", "--num_sets", "null"])


def test_settings_are_frozen():
    settings = EvaluationSettings()
    for group in (settings, settings.world, settings.guidance):
        with pytest.raises(dataclasses.FrozenInstanceError):
            group.seed = 1


# ---------------------------------------------------------------- as many sets as conditions


@pytest.fixture
def frames_file(tmp_path):
    """Ten sequences of a frame and two answers, of which two are for testing."""
    rng = np.random.default_rng(0)
    path = tmp_path / "frames.npz"
    np.savez(path, frames=rng.random((10, 1, 8, 8)), answers=rng.random((10, 2, 8, 8)))
    return str(path)


def test_more_sets_than_test_conditions_are_not_repeated(frames_file, tmp_path, capsys, undrawn):
    one_class = ["--digit_classes", "3"]
    threes = assemble.evaluation([*EXACT, *one_class]).task.world.digits
    for flags, most in [
        (one_class, len(threes.labels)),
        ([*one_class, "--dataset", "horizontal"], len(threes.labels)),
        (["--frames", frames_file], 2),
    ]:
        outdir = tmp_path / str(most) / flags[-1].replace("/", "-")
        argv = [*EXACT, *flags, "--batch_size", "2"]
        evaluate.main([*argv, "--num_sets", str(most + 7), "--outdir", str(outdir)])
        *understood, line = capsys.readouterr().err.strip().splitlines()
        assert f"num_sets: {most + 7} are more than the {most} test conditions" in line
        assert bool(understood) == ("--frames" in flags)  # what the frames are
        arrays, result = evaluate.records.finished(str(outdir))
        config = yaml.safe_load((outdir / "config.yaml").read_text())
        assert result["num_sets"] == config["num_sets"] == len(arrays["samples"]) == most
        assert len(result["quality"]["per_set"]) == most
        # As many as there are: no word, and the same run as the one that asked for more.
        evaluate.main([*argv, "--num_sets", str(most), "--outdir", str(outdir)])
        assert capsys.readouterr().err.splitlines() == understood


def test_conditions_of_all_sets_differ_up_to_the_cap(frames_file):
    for flags in (["--digit_classes", "3"], ["--frames", frames_file]):
        task = assemble.evaluation([*EXACT, *flags, "--num_sets", "1000"]).task
        assert len(task.cond.flatten(1).unique(dim=0)) == task.num_sets < 1000


def test_two_digits_in_a_frame_are_two_test_digits():
    world = assemble.evaluation([*EXACT]).task.world
    digits = len(world.digits.labels)
    assert tasks.NextFrame.most_sets(world) == digits
    world.num_digits = 2
    assert tasks.NextFrame.most_sets(world) == digits // 2


def test_sets_without_a_condition_are_as_many_as_one_likes():
    for flags in (
        ["--dataset", "mixture", "--denoiser", "exact"],
        ["--task", "unconditional", "--digits", "embedded", "--digit_classes", "3"],
    ):
        evaluation = assemble.evaluation([*flags, "--num_sets", "500", "--device", "cpu"])
        assert evaluation.settings.evaluate.num_sets == evaluation.task.num_sets == 500
        assert evaluation.notices == []


def test_another_law_than_that_of_the_training_is_said():
    few = ["--digits", "embedded", "--num_sets", "1", "--device", "cpu"]
    assert assemble.evaluation([*few, "--p", "0.5"]).notices == []
    (notice,) = assemble.evaluation([*few, "--p", "0.5", "--checkpoint", "circle_jumping"]).notices
    assert notice.startswith("p: 0.5 here and equal probabilities in the network's training")
    assert len(assemble.evaluation([*few, "--num_directions", "4"]).notices) == 1


# ---------------------------------------------------------------- tasks


@pytest.mark.parametrize(
    "flags",
    [
        [*EXACT],
        [*EXACT, "--dataset", "horizontal"],
        ["--dataset", "mixture", *EXACT],
        ["--dataset", "frames", "--frames", str(ROOT / "examples" / "blobs.npz"), *EXACT],
        ["--dataset", "free", "--digits", "embedded", "--num_steps", "2", "--device", "cpu"],
        ["--task", "unconditional", "--digits", "embedded", "--num_steps", "2", "--device", "cpu"],
    ],
    ids=["circle_jumping", "horizontal", "mixture", "frames", "free", "unconditional"],
)
def test_modes_of_some_sets_are_those_of_all(flags):
    evaluation = assemble.evaluation([*flags, "--num_sets", "5", "--batch_size", "3"])
    samples = evaluation.sampler.sample_all(progress=False)
    _, modes = evaluation.task.measure(samples)
    some = torch.tensor([3, 1])
    found = evaluation.task.modes(samples[some], some)
    assert found is None if modes is None else torch.equal(found, modes[some])
    x = evaluation.task.to_model(samples, evaluation.sampler.device)
    torch.testing.assert_close(evaluation.task.to_samples(x), samples)
