"""Where it is decided what a sample shows: the curve, the window, the file beside a checkpoint."""

import json
import math
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from conftest import ROOT

from config import EvaluationSettings
from diverse_sampling import decisions
from diverse_sampling.decisions import LATE, Decisions
from diverse_sampling.defaults import PILOT_LEVELS
from diverse_sampling.denoiser import to_model_range
from diverse_sampling.errors import SettingError
from diverse_sampling.noise import ParticleNoise, Stream
from diverse_sampling.steps import karras_sigmas
from lab import assemble, methods, pilot
from lab.files import sha256_of

SIGMAS = karras_sigmas(22, 0.002, 80.0, 7.0)
PILOTS_CALLS = PILOT_LEVELS * pilot.PILOT[0] * pilot.PILOT[1]


def evaluation(**values) -> assemble.Evaluation:
    """A guided evaluation of two sets of four particles, of the exact denoiser if not told."""
    if "checkpoint" not in values:
        values = dict(denoiser="exact") | values
    few = dict(pg_factor=5.0, num_sets=2, batch_size=4, num_steps=4)
    settings, path = assemble.complete(dict(digits="embedded", device="cpu") | few | values)
    return assemble.set_up(settings, path)


# ---------------------------------------------------------------- the curve


def test_the_curve_of_a_gaussian_is_known():
    """D of N(m, sd^2) at x of variance sd^2 + s^2 has sd^2 / (sd^2 + s^2) of the variance of y."""
    sd = 0.5
    x = 80 * ParticleNoise(0, range(3), range(300), (1, 4, 4))()
    denoise = lambda x, sigma: 0.2 + (x - 0.2) * sd**2 / (sd**2 + sigma**2)
    curve = decisions.measure(denoise, x, karras_sigmas(80, 0.002, 80.0, 7.0))
    expected = [sd**2 / (sd**2 + sigma**2) for sigma in curve.sigmas]
    assert curve.shares == pytest.approx(expected, abs=0.025)
    assert curve.sigma(0.5) == pytest.approx(sd, rel=0.05)
    assert curve.variance == pytest.approx(16 * sd**2, rel=0.1)
    # What is left of the variance given x: sd^2 s^2 / (sd^2 + s^2), for each of 16 pixels.
    for sigma in (0.2, 0.5, 1.0):
        left = 16 * sd**2 * sigma**2 / (sd**2 + sigma**2)
        assert curve.undecided(sigma) == pytest.approx(left, rel=0.15)
    low, high, churn = curve.window()
    assert high > low > low / (1 + churn) == pytest.approx(curve.settled)
    assert curve.settled > curve.end


def test_the_curve_of_two_points_is_known():
    """D of +-a in one direction is a tanh(a x / s^2), and Cov[y | x] is a^2 (1 - tanh^2)."""
    direction = torch.tensor([0.6, 0.8, 0.0, 0.0]).view(1, 2, 2)
    a = 2.0

    def denoise(x, sigma):
        along = (x * direction).sum((-3, -2, -1), keepdim=True)
        return a * torch.tanh(a * along / sigma**2) * direction

    x = 80 * ParticleNoise(0, range(50), range(64), (1, 2, 2))()
    curve = decisions.measure(denoise, x, karras_sigmas(160))
    assert curve.variance == pytest.approx(a**2, rel=0.02)
    z = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    weights = (-z.square() / 2).exp() / (2 * math.pi) ** 0.5 * (z[1] - z[0])
    for sigma in (8.0, 4.0, 2.0, 1.5, 1.0, 0.8):
        # By symmetry, of the point a alone.
        left = a**2 * (1 - torch.tanh(a * (a + sigma * z) / sigma**2).square())
        assert curve.undecided(sigma) == pytest.approx(float((weights * left).sum()), abs=0.12)


def test_the_curve_of_the_exact_circle_is_that_of_its_answers():
    """V where x is an answer and noise, as it is in theory on every trajectory, without a sampler.

    Few of Euler's steps stay behind it where it is steep. It rises once, from none to all.
    """
    sampler = evaluation(num_sets=32).sampler
    measured = pilot.measured(sampler, 16)
    every = torch.arange(32)
    y = to_model_range(sampler.task.answers[:, torch.arange(64) % 8])[:, :, None]
    noise = ParticleNoise(1, range(32), range(64), y.shape[2:])
    denoise = sampler.denoiser(every)
    for sigma in (30.0, 10.0, 6.0, 4.0, 2.0, 1.0):
        denoised = denoise(y + sigma * noise(), torch.tensor(sigma, dtype=torch.float64))
        variance, of_all = (images.flatten(2).var(1).sum().item() for images in (denoised, y))
        assert measured.share(sigma) == pytest.approx(variance / of_all, abs=0.13)
    for curve in (measured, sampler.decisions):  # the latter as an evaluation has it
        assert list(curve.shares) == sorted(curve.shares)
        assert curve.shares[0] < 0.02 and curve.shares[-1] > 0.99
        assert curve.window()[:2] == pytest.approx((6.7, 24), rel=0.2)
        assert curve.sigma(0.5) == pytest.approx(6.7, rel=0.2)


def test_half_of_where_a_digit_of_mnist_goes_is_decided_between_4_and_5(mnist_root):
    curve = evaluation(digits="mnist", data_root=mnist_root).sampler.decisions
    assert 4 < curve.sigma(0.5) < 5.5
    assert curve.window()[:2] == pytest.approx((4.5, 18), rel=0.3)


def test_the_pilot_does_not_depend_on_the_sets_of_the_evaluation():
    one, other = (evaluation(num_sets=n, seed=n, batch_size=n).sampler for n in (2, 3))
    assert one.decisions == other.decisions


def test_places_on_a_curve():
    curve = Decisions([100.0, 10.0, 1.0, 0.1], [0.0, 0.0, 0.5, 1.0], 2.0)
    for sigma, share in ((1000, 0), (100, 0), (31, 0), (10, 0), (1, 0.5), (0.1, 1), (0.001, 1)):
        assert curve.share(sigma) == pytest.approx(share)
    assert curve.share(10**0.5) == pytest.approx(0.25)  # half way in ln sigma
    for share in (0.1, 0.25, 0.5, 0.75, 0.999):
        assert curve.share(curve.sigma(share)) == pytest.approx(share)
    levels = [curve.sigma(share / 100) for share in range(1, 100)]
    assert levels == sorted(levels, reverse=True)
    low, high, churn = curve.window()
    assert 0.1 < curve.end < curve.settled < low < high < 10
    # Steps go down to where nine tenths are decided before noise is added anew.
    assert [curve.share(s) for s in (high, low, low / (1 + churn))] == pytest.approx(
        [0.05, 0.5, 0.9]
    )
    # Through the Jacobian, which knows the directions that are still open, they go on for longer.
    late = curve.window(LATE)
    assert curve.end < late.low / (1 + late.churn) < late.low < low and late.high == high
    assert [curve.undecided(sigma) for sigma in (100.0, 1.0, 0.1)] == [2.0, 1.0, 0.0]
    # Decided from the start: the largest noise level that was measured.
    assert Decisions([10.0, 1.0], [0.9, 1.0], 1.0).sigma(0.5) == 10.0
    assert Decisions([10.0, 1.0], [0.1, 0.8], 1.0).sigma(0.9) == 1.0  # and never: the smallest


@pytest.mark.parametrize("value", [0.3, float("nan"), float("inf")])
def test_samples_that_are_all_alike_are_an_error(value):
    x = 80 * ParticleNoise(0, range(2), range(3), (1, 2, 2))()
    with pytest.raises(ValueError, match="^samples: their variance is"):
        decisions.measure(lambda x, sigma: torch.full_like(x, value), x, SIGMAS)


# ---------------------------------------------------------------- beside a checkpoint


@pytest.fixture
def path(tiny_model, tmp_path):
    """A checkpoint in a folder of its own."""
    return Path(shutil.copy(tiny_model / "model.safetensors", tmp_path / "net.safetensors"))


def test_a_curve_is_measured_once_for_each_checkpoint_and_world(path):
    first = evaluation(checkpoint=str(path))
    assert first.pilot_calls == PILOTS_CALLS
    assert decisions.cache_of(path) == path.parent / "net.decisions.json"
    kept = json.loads(decisions.cache_of(path).read_text())
    assert len(kept["curves"]) == 1
    again = evaluation(checkpoint=str(path), seed=5, num_steps=6, batch_size=3)
    assert again.pilot_calls == PILOTS_CALLS and again.sampler.decisions == first.sampler.decisions
    # The network sees no difference, and so there is none.
    evaluation(checkpoint=str(path), num_directions=4)
    assert len(json.loads(decisions.cache_of(path).read_text())["curves"]) == 1
    other = evaluation(checkpoint=str(path), sigma_max=40.0)
    assert other.pilot_calls == PILOTS_CALLS
    assert len(json.loads(decisions.cache_of(path).read_text())["curves"]) == 2
    assert {file.name for file in path.parent.iterdir()} == {path.name, "net.decisions.json"}
    # What it took is reported, for each particle that was asked for.
    assert first.run(progress=False)[2]["pilot_calls"] == PILOTS_CALLS / 8
    record = again.run(progress=False)[2]
    assert record["pilot_calls"] == PILOTS_CALLS / 6
    assert record["decisions"]["shares"] == first.sampler.decisions.shares
    window = again.sampler.methods.window
    assert tuple(record["window"]) == window


def test_the_end_of_the_schedule_is_measured_with_a_trained_network_alone(path):
    """For every method and for independent samples; what is given wins."""
    for flags in ({}, dict(pg_factor=0.0), dict(guidance="spell")):
        trained = evaluation(checkpoint=str(path), **flags)
        assert trained.pilot_calls == PILOTS_CALLS
        last = float(trained.sampler.schedule.sigmas[-2])
        assert last == pytest.approx(trained.sampler.decisions.end) and last > 0.004
        assert trained.run(progress=False)[2]["sigma_min"] == last
        exact = evaluation(**flags).sampler
        assert float(exact.schedule.sigmas[-2]) == pytest.approx(0.002)
    given = evaluation(checkpoint=str(path), pg_factor=0.0, sigma_min=0.01)
    assert given.pilot_calls == 0
    assert float(given.sampler.schedule.sigmas[-2]) == pytest.approx(0.01)


CURVE = Decisions([10.0, 1.0], [0.1, 0.9], 1.0)
HASH = "a" * 64
DAMAGES = {
    "hash of another": lambda held: held | dict(checkpoint_sha256="0" * 64),
    "no hash": lambda held: dict(curves=held["curves"]),
    "no curve": lambda held: held | dict(curves={}),
    "no curves": lambda held: held | dict(curves=None),
    "no calls": lambda held: held | dict(curves={"pilot": asdict(CURVE)}),
    "no shares": lambda held: held | dict(curves={"pilot": dict(sigmas=[1.0])}),
    "a list": lambda held: [held],
    "cut": lambda held: json.dumps(held).encode()[:-40],
    "empty": lambda held: b"",
    "bytes": lambda held: b"\xff\xfe\x00",
}


def test_a_file_that_is_damaged_or_of_another_checkpoint_has_no_curve_and_is_mended(tmp_path):
    net = tmp_path / "net.safetensors"
    decisions.keep(net, HASH, "pilot", CURVE, 7)
    cache = decisions.cache_of(net)
    content = cache.read_bytes()
    for name, damage in DAMAGES.items():
        assert decisions.cached(net, HASH, "pilot") == (CURVE, 7)
        damaged = damage(json.loads(content))
        cache.write_bytes(damaged if isinstance(damaged, bytes) else json.dumps(damaged).encode())
        assert decisions.cached(net, HASH, "pilot") is None, name
        decisions.keep(net, HASH, "pilot", CURVE, 7)
        assert cache.read_bytes() == content, name


def test_a_folder_that_cannot_be_written_to_does_no_harm(tmp_path, monkeypatch):
    """Root may write anywhere, so the folder's permissions are not what is tried."""

    def denied(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    net = tmp_path / "net.safetensors"
    decisions.cache_of(net).mkdir()
    decisions.keep(net, HASH, "pilot", CURVE, 7)
    assert decisions.cached(net, HASH, "pilot") is None
    decisions.cache_of(net).rmdir()
    monkeypatch.setattr("pathlib.Path.write_text", denied)
    decisions.keep(net, HASH, "pilot", CURVE, 7)
    assert not any(tmp_path.iterdir())


# ---------------------------------------------------------------- when there is a pilot


WINDOW = dict(window_min=1.0, window_max=9.0, window_churn=0.5)
ACTS = dict(pg_sigma_min=2.0, pg_sigma_max=30.0, pg_strength="joint")


@pytest.mark.parametrize(
    "given, runs",
    [
        ({}, True),
        (WINDOW, True),
        (ACTS, True),
        (ACTS | dict(window_min=1.0), True),
        (ACTS | WINDOW, False),
        (dict(sampler="edm"), True),
        (ACTS | dict(sampler="edm"), False),
        (dict(pg_factor=0.0), False),
        (dict(pg_factor=0.0, sampler="window"), True),
        (WINDOW | dict(pg_factor=0.0, sampler="window"), False),
        (dict(guidance="spell"), False),
    ],
    ids=lambda value: str(value) if isinstance(value, bool) else " ".join(map(str, value.values())),
)
def test_a_pilot_runs_where_something_is_left_to_it(given, runs, monkeypatch):
    if not runs:
        monkeypatch.setattr(pilot, "measure", None)
    made = evaluation(**given)
    assert (made.pilot_calls > 0) == runs == (made.sampler.decisions is not None)
    assert made.run(progress=False)[2]["pilot_calls"] == (PILOTS_CALLS / 8 if runs else 0)


def test_a_window_that_is_given_overrides_the_curve():
    curve = Decisions([100.0, 10.0, 1.0, 0.1], [0.0, 0.1, 0.5, 1.0], 1.0)
    guided = EvaluationSettings().changed(pg_factor=5.0, pg_strength="measured", sampler="window")
    window = lambda **given: methods.window(guided.changed(sigma_min=0.002, **given), curve)
    low, high, churn = window()
    assert (low, high, churn) == curve.window()
    assert window(**WINDOW) == (1, 9, 0.5)
    assert window(window_min=1.0) == (1, high, churn)
    assert window(window_max=9.0) == (low, 9, churn)
    below = window(window_max=0.01)  # all of the curve
    assert below[0] < below[1] == 0.01
    assert window(sigma_max=5.0)[1] < 5 < high


@pytest.mark.parametrize("given, inside", [({}, (1.01, 9)), (ACTS, (2, 30))], ids=["", "given"])
def test_guidance_acts_where_it_is_told_or_where_something_is_undecided(given, inside):
    sampler = evaluation(**given, **WINDOW).sampler
    one = torch.tensor([0])
    guided = sampler.methods.guided(sampler.asked(one, range(4)))
    plain = sampler.denoiser(one)
    noise = sampler.noise(one, range(4), Stream.SAMPLING)()
    for level in (0.3, 1.0, 3.0, 10.0, 25.0, 34.0, 70.0):
        sigma = torch.tensor(level, dtype=torch.float64)
        x = sampler.task.answers[one][:, :4, None] + level * noise
        acts = not torch.equal(guided(x, sigma), plain(x, sigma))
        assert acts == (inside[0] <= level <= inside[1]), level


@pytest.mark.parametrize(
    "given, key",
    [
        (dict(window_min=9.0, window_max=3.0), "window_min"),
        (dict(window_min=0.001), "window_min"),
        (dict(window_max=80.0), "window_max"),
        (dict(sampler="window", s_churn=1.0), "s_churn"),
        (dict(sampler="window", guidance="reference"), "sampler"),
        (dict(pg_anneal="both"), "pg_anneal"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_windows_that_cannot_be_are_refused(given, key):
    with pytest.raises(SettingError, match=f"^{key}: got"):
        evaluation(**given)


def test_shipped_curves_are_those_of_the_shipped_checkpoints():
    """A curve in the repository is read, or it is measured each time in a read-only checkout."""
    for path in (ROOT / "checkpoints").glob("*.decisions.json"):
        held = json.loads(path.read_text())
        checkpoint = path.with_name(path.name.replace(".decisions.json", ".safetensors"))
        assert held["checkpoint_sha256"] == sha256_of(checkpoint), path
        for name in held["curves"]:
            curve = decisions.cached(checkpoint, sha256_of(checkpoint), name)
            low, high, _ = curve[0].window()
            assert 0.002 < curve[0].end < curve[0].settled < low < high <= 80
