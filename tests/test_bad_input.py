"""Whatever is typed: a run, or one line that says what is wrong, and exit code 2."""

import contextlib
import functools
import io
import sys
import tempfile
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import ROOT, slow_but
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import evaluate
import train
import visualize
from config import EvaluationSettings, TrainingSettings
from lab import assemble

NUMBERS = "nan inf -inf -1 0 1 2 0.5 1.5 1e-300 1e300 -1e-9 99999999999999999999999 007 0x10 1_000"
YAML = "true null None [] [1] [0,-1] [1,2,3] {} ~ * &a !!python/object:os.system @ ` ' \" \\"
OTHERS = ["", " ", "{a: 1}", "a: b", "é漢字", "\u202e", "--", "x" * 300, "1;2", "%s", "\n"]
ODD = st.sampled_from([*NUMBERS.split(), *YAML.split(), *OTHERS])
NAMES = st.sampled_from(
    "circle_jumping horizontal free centered mixture exact trained none pg cads window edm joint "
    "here iid stratified rbf logdet conditional unconditional embedded posterior muon jacobian "
    "classifier sigma both".split()
)
ANY = st.one_of(ODD, NAMES, st.text(max_size=8), st.integers().map(str), st.floats().map(str))
# Where results and digits are, and how fast to give up, are not what is tried here.
LEFT = {*"outdir data_root wandb tensorboard resume download_timeout experiment preset".split()}
FLAGS = {
    main: sorted({f.name for group in kind.groups() for f in fields(group)} - LEFT)
    for main, kind in ((evaluate.main, EvaluationSettings), (train.main, TrainingSettings))
}
# Sizes at which a run that is accepted ends at once, and values that a run may well have.
TINY = {
    evaluate.main: dict(denoiser="exact", num_sets=1, batch_size=2, num_steps=2),
    train.main: dict(channels=[8], blocks=1, attention=[], patch_size=8, iterations=1)
    | dict(batch_size=2, sample_every=0),
}
TINY = {main: values | dict(digits="embedded", device="cpu") for main, values in TINY.items()}
REPEATABLE = settings(deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def outcome(main, argv: list[str]) -> tuple[int, list[str]]:
    """(exit code, lines on stderr) of a command."""
    err = io.StringIO()
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
        try:
            main(argv)
            code = 0
        except SystemExit as stop:
            code = stop.code
        except (ValueError, FileNotFoundError):  # of a parse: the command line makes a line of it
            code = 2
    return code, [line for line in err.getvalue().splitlines() if line.strip()]


# What is accepted is run, up to these sizes: a billion sets are no mistake, but no test either.
LIMITS = dict(num_sets=20, batch_size=50, sequential=4, medoids_of=20, num_steps=50)
LIMITS |= dict(image_size=64, digit_size=64, seq_len=40, num_cond_frames=20, num_digits=2)
LIMITS |= dict(stratified_rank=8, iterations=3, blocks=3, motion=8, accumulate=50)


def quick(main, argv: list[str]) -> bool:
    """Whether a run that is accepted ends at once. False too for what its settings alone forbid."""
    settings = (assemble if main is evaluate.main else train).parse(argv)[0]
    values = settings.record()
    return (
        not values["compile"]
        and sum(values.get("channels", ())) <= 64
        and all(values.get(key, 0) <= limit for key, limit in LIMITS.items())
    )


def check(main, argv: list[str], outdir: Path) -> None:
    argv = [*argv, "--outdir", str(outdir)]
    code, lines = outcome(lambda argv: quick(main, argv) or sys.exit(-1), argv)
    if code == -1:
        return
    code, lines = outcome(main, argv)
    if code == 0:
        assert (outdir / "config.yaml").is_file()
        return
    assert code == 2, (argv, lines)
    assert len(lines) == 1 and "error: " in lines[0] and len(lines[0]) < 1500, (argv, lines)
    assert not {"metrics.json", "model.safetensors"} & {path.name for path in outdir.glob("*")}


def flags_of(values: dict) -> list[str]:
    return [f"--{key}={value}" for key, value in values.items()]


MAINS = st.sampled_from([evaluate.main, train.main])


def any_flags(data):
    main = data.draw(MAINS)
    odd = data.draw(st.dictionaries(st.sampled_from(FLAGS[main]), ANY, min_size=1, max_size=3))
    with tempfile.TemporaryDirectory() as folder:
        check(main, flags_of(TINY[main] | odd), Path(folder, "run"))


def any_yaml(data):
    main = data.draw(MAINS)
    anything = st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), NAMES),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
        ),
        max_leaves=4,
    )
    keys = st.sampled_from(FLAGS[main]) | st.text(max_size=5)
    odd = data.draw(st.dictionaries(keys, anything, min_size=1, max_size=3))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "c.yaml")
        path.write_text(yaml.safe_dump(TINY[main] | odd))
        check(main, ["--config", str(path)], Path(folder, "run"))


def any_file_as_config(content):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "c.yaml")
        path.write_bytes(content)
        argv = [*flags_of(TINY[evaluate.main]), "--config", str(path)]
        check(evaluate.main, argv, Path(folder, "run"))


# What is drawn is accepted up to these sizes.
DRAWN = dict(seq_len=20, image_size=64, num_steps=1000)
OF_VISUALIZE = [*DRAWN, "rho", "sigma_max", "dataset", "seed", "value"]


def at_most(value: str, limit: int) -> bool:
    """Whether a value is no number, or one up to a limit."""
    try:
        return not float(value) > limit
    except ValueError:
        return True


def any_flags_of_visualize(command, data):
    odd = data.draw(st.dictionaries(st.sampled_from(OF_VISUALIZE), ANY, max_size=3))
    if not all(at_most(odd.get(key, ""), limit) for key, limit in DRAWN.items()):
        return
    with tempfile.TemporaryDirectory() as folder:
        run = [folder] if command == "figure" else []
        own = dict(digits="embedded") if command == "dataset" else {}
        argv = [command, *run, *flags_of(own | odd), "--out", folder + "/picture.png"]
        code, lines = outcome(visualize.main, argv)
        assert code in (0, 2), (command, odd, lines)
        drawn, refused = Path(folder, "picture.png").is_file(), len(lines) == 1
        assert drawn if code == 0 else refused and "error: " in lines[0]


COMMANDS = st.sampled_from(["dataset", "schedule", "figure", "nonsense"])
# (what is checked, its input, how often by default, how often in all)
PROPERTIES = [
    (any_flags, [st.data()], 12, 250),
    (any_yaml, [st.data()], 8, 150),
    (any_file_as_config, [st.binary(max_size=60)], 5, 50),
    (any_flags_of_visualize, [COMMANDS, st.data()], 6, 60),
]


@pytest.fixture
def one_parser(monkeypatch):
    """Each command line makes its parser once: that takes longer than what is tried here."""
    for module, name in ((assemble, "evaluation_parser"), (train, "command_line")):
        monkeypatch.setattr(module, name, functools.cache(getattr(module, name)))


@pytest.mark.parametrize("much", slow_but([False], [False, True]))
@pytest.mark.parametrize("check, inputs, few, many", PROPERTIES)
def test_odd_input_runs_or_is_refused(check, inputs, few, many, much, one_parser):
    settings(REPEATABLE, max_examples=many if much else few)(given(*inputs)(check))()


def test_sizes_that_the_network_cannot_halve_are_named(refused, tmp_path):
    for size, channels in ((30, "[8,8,8]"), (36, "[8,8,8,8]")):
        flags = flags_of(TINY[train.main] | dict(image_size=size, channels=channels, patch_size=1))
        line = refused(train.main, [*flags, "--outdir", str(tmp_path / "run")])
        assert f"image_size: got '{size}x{size}'; accepted: multiples of" in line
    assert not (tmp_path / "run").exists()


def test_conflicts_are_named(refused, tiny_model, tmp_path):
    trained = ["--checkpoint", str(tiny_model / "model.safetensors"), "--digits", "embedded"]
    classifier = str(ROOT / "checkpoints" / "classifier_judge.safetensors")
    for argv, key in [
        ([*trained, "--dataset", "horizontal"], "dataset"),
        (["--s_churn", "-1"], "s_churn"),
        ([*trained, "--image_size", "64"], "image_size"),
        (["--checkpoint", classifier], "checkpoint"),
        ([*trained, "--task", "unconditional"], "task"),
        (["--rho", "0"], "rho"),
        (["--pg_sigma_min", "50", "--pg_sigma_max", "40"], "pg_sigma_min"),
        (["--sampler", "window", "--s_churn", "1"], "s_churn"),
    ]:
        assert f"{key}: " in refused(evaluate.main, [*argv, "--outdir", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("flags", ["", "--pg_space jacobian", "--pg_space x --pg_kernel iou"])
def test_absurd_strength_moves_nothing_out_of_bounds(flags, tmp_path, capsys, undrawn):
    """Of particle guidance, whose moves are bounded by what is undecided."""
    tiny = TINY[evaluate.main] | dict(num_steps=8, batch_size=3, pg_factor=1e300)
    evaluate.main([*flags_of(tiny), *flags.split(), "--outdir", str(tmp_path)])
    samples = np.load(tmp_path / "samples.npz")["samples"]
    assert np.isfinite(samples).all() and abs(samples).max() < 2


# Down to the last noise level, where the exact denoiser does not put things right any more.
@pytest.mark.parametrize(
    "flags",
    [
        ["--guidance", "rke", "--pg_factor", "1e300", "--pg_strength", "drift"],
        ["--guidance", "rke", "--pg_factor", "1e300", "--pg_space", "denoised"],
        ["--guidance", "sriw", "--pg_factor", "1e300"],
        ["--guidance", "spell", "--spell_radius", "1e300"],
        ["--guidance", "reference", "--pg_factor", "1e300"],
    ],
    ids=" ".join,
)
def test_absurd_strength_ends_with_finite_images_and_a_warning(flags, tmp_path, capsys, undrawn):
    tiny = TINY[evaluate.main] | dict(num_steps=8, batch_size=3, pg_sigma_min=0.001)
    evaluate.main([*flags_of(tiny), *flags, "--outdir", str(tmp_path)])
    assert "WARNING: samples of up to" in capsys.readouterr().err
    assert np.isfinite(np.load(tmp_path / "samples.npz")["samples"]).all()
