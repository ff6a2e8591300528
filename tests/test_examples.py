"""The examples run, and do what they say."""

import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from torch import nn

from model import posterior_mean

pytest.importorskip("diffusers")
sys.path.insert(0, str(ROOT / "examples"))

import diffusers_pipeline as example  # noqa: E402
from diffusers import DDIMPipeline, DDIMScheduler  # noqa: E402


def scheduler(**settings):
    noise_levels = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    return DDIMScheduler(
        **(noise_levels | dict(clip_sample=False, timestep_spacing="trailing") | settings)
    )


class Exact(nn.Module):
    """The eps network of a perfect training; `mean`: (x_t (N, C, H, W), abar) -> E[y | x_t]."""

    config = SimpleNamespace(sample_size=example.SIDE, in_channels=1)
    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, abar, mean):
        super().__init__()
        self.abar, self.mean = abar, mean

    def forward(self, x, t):
        t, abar = float(t), self.abar.double()
        abar = float(torch.lerp(abar[int(t)], abar[min(int(t) + 1, len(abar) - 1)], t - int(t)))
        return SimpleNamespace(sample=(x - abar**0.5 * self.mean(x, abar)) / (1 - abar) ** 0.5)


def of_blobs(x, abar):
    """E[y | x_t] of the eight images, in closed form."""
    sigma = torch.tensor(((1 - abar) / abar) ** 0.5)
    return posterior_mean(x / abar**0.5, sigma, example.blobs().expand(len(x), -1, -1, -1, -1))


@pytest.fixture
def pipe():
    schedule = scheduler()
    pipe = DDIMPipeline(Exact(schedule.alphas_cumprod, of_blobs), schedule)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def places(sets):
    modes = example.modes_of(sets, example.blobs())
    return float(sum((modes == k).any(1).float() for k in range(8)).mean())


@pytest.mark.parametrize("sigma", [0.03, 0.2, 1.0, 4.4, 14.6])
def test_an_epsilon_network_becomes_the_denoiser_of_its_data(sigma):
    """For data N(m, sd^2) the posterior mean is known in the variables of both.

    DDPM: E[y | x_t] = m + sqrt(abar) sd^2 (x_t - sqrt(abar) m) / (abar sd^2 + 1 - abar)
    EDM: D(x; s) = (sd^2 x + s^2 m) / (sd^2 + s^2)
    """
    m, sd, schedule = 0.3, 0.6, scheduler()
    exact = Exact(
        schedule.alphas_cumprod,
        lambda x, abar: m + abar**0.5 * sd**2 * (x - abar**0.5 * m) / (abar * sd**2 + 1 - abar),
    )
    x, s = (
        m + torch.randn(2, 3, 1, 8, 8, dtype=torch.float64) * (sd**2 + sigma**2) ** 0.5,
        torch.tensor(sigma),
    )
    expected = (sd**2 * x + sigma**2 * m) / (sd**2 + sigma**2)
    # Between two steps of the schedule t is interpolated, in ln sigma here and in abar there.
    torch.testing.assert_close(
        example.EpsilonDenoiser(exact, schedule)(x, s), expected, rtol=1e-3, atol=1e-3
    )


def test_every_step_of_the_schedule_is_found_again():
    schedule = scheduler()
    denoise = example.EpsilonDenoiser(None, schedule)
    sigmas = ((1 - schedule.alphas_cumprod) / schedule.alphas_cumprod).sqrt().tolist()
    assert [denoise.timestep(sigma) for sigma in sigmas[::37]] == pytest.approx(
        range(0, 1000, 37), abs=1e-2
    )
    assert denoise.timestep(1e-4) == 0 and denoise.timestep(1e4) == 999


def test_a_replaced_unet_without_guidance_changes_nothing(pipe):
    settings = example.ExampleSettings(num_sets=3)
    plain = example.draw(pipe, settings)
    pipe.unet = example.GuidedUNet(
        pipe.unet, pipe.scheduler, lambda denoise: denoise, particles=settings.particles
    )
    torch.testing.assert_close(example.draw(pipe, settings), plain, rtol=0, atol=1e-3)


def test_both_routes_find_more_with_a_network_that_is_exact(pipe):
    unet, sets = pipe.unet, example.run(example.ExampleSettings(num_sets=30), pipe)
    found = {name: places(samples) for name, samples in sets.items()}
    assert pipe.unet is unet
    assert (
        found["replaced"] > found["plain"] + 1 and found["wrapped"] > found["wrapped, unguided"] + 1
    )


def test_what_cannot_be_guided_is_refused():
    with pytest.raises(ValueError, match="clip_sample: got True"):
        example.GuidedUNet(None, scheduler(clip_sample=True), None, particles=8)
    with pytest.raises(ValueError, match="prediction_type: got 'v_prediction'"):
        example.EpsilonDenoiser(None, scheduler(prediction_type="v_prediction"))


@pytest.mark.slow
def test_the_example_as_it_is_with_a_short_training(tmp_path, capsys, monkeypatch):
    kept = {}
    run = example.run
    monkeypatch.setattr(
        example, "run", lambda settings, pipe: kept.setdefault("sets", run(settings, pipe))
    )
    example.main(["--iterations", "120", "--num_sets", "8", "--outdir", str(tmp_path)])
    sets = kept["sets"]
    assert (tmp_path / "sets.png").stat().st_size > 10_000
    assert capsys.readouterr().out.startswith(
        "8 sets of 8; independent draws find 5.25 of 8 places"
    )
    assert not torch.allclose(sets["replaced"], sets["plain"], atol=0.1)
    assert places(sets["replaced"]) >= places(sets["plain"])
    assert places(sets["wrapped"]) >= places(sets["wrapped, unguided"])
