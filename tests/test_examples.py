"""The examples run, and do what they say."""

import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from torch import nn

from diverse_sampling.exact import posterior_mean
from diverse_sampling.pipelines import denoiser_of
from lab import checkpoint

pytest.importorskip("diffusers")
sys.path.insert(0, str(ROOT / "examples"))

import diffusers_pipeline as example  # noqa: E402
import digits_pipeline as digits  # noqa: E402
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


def test_both_routes_find_more_with_a_network_that_is_exact(pipe):
    sets = example.run(example.ExampleSettings(num_sets=20), pipe)
    found = {name: places(samples) for name, samples in sets.items()}
    for route in ("DDIM", "sampler"):
        assert found[f"{route}, guided"] > found[route] + 1.5
    assert abs(found["DDIM, new noise"] - found["DDIM"]) < 0.8


@pytest.mark.slow
def test_the_example_runs_with_a_pipeline_on_a_gpu(gpu):
    pipe = example.train(example.blobs(), iterations=2)
    settings = example.ExampleSettings(num_sets=1, particles=3, num_steps=4)
    expected = example.run(settings, pipe)
    sets = example.run(settings, pipe.to("cuda"))
    assert all(torch.equal(samples, expected[route]) for route, samples in sets.items())
    assert gpu.errors == []


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
    noisy = sets["DDIM, new noise"], sets["DDIM, guided"]
    assert not torch.allclose(*noisy, atol=0.1)


@pytest.mark.slow
def test_the_digits_are_a_pipeline_of_diffusers(tmp_path):
    """Saved, loaded by its folder alone, the same denoiser as ours, and guided."""
    digits.convert().save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"model_index.json", "scheduler", "unet"}
    pipe = digits.load(tmp_path)
    assert type(pipe) is DDIMPipeline and type(pipe.unet) is digits.DigitsUNet
    ours, _ = checkpoint.load_denoiser(ROOT / "checkpoints" / "centered.safetensors")
    denoise = denoiser_of(pipe)
    for sigma in torch.tensor([0.05, 0.7, 4.0], dtype=torch.float64):
        x = sigma.float() * torch.randn(1, 2, 1, 32, 32)
        torch.testing.assert_close(denoise(x, sigma), ours.bind()(x, sigma), atol=1e-3, rtol=1e-3)
    settings = digits.DigitsSettings(num_sets=1, particles=2, num_steps=4)
    sets = {name: drawn() for name, drawn in digits.routes(settings, pipe).items()}
    assert len(sets) == 7
    for samples in sets.values():
        assert samples.shape == (1, 2, 1, 32, 32) and samples.isfinite().all()
    assert not torch.allclose(sets["DDIM, guided"], sets["DDIM"], atol=0.01)
    assert 1 <= digits.figures(sets["DDIM"])["digits"]["mean"] <= 2
