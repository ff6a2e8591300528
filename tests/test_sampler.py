import math

import pytest
import torch

from model import posterior_mean
from noise import SetNoise
from sampler import edm_sampler, karras_sigmas


def gaussian_denoiser(mean: float, sd: float):
    """D of N(mean, sd^2): the ODE's solution is known in closed form."""
    return lambda x, sigma: mean + (x - mean) * sd**2 / (sd**2 + sigma**2)


def test_schedule_end_points_and_order():
    sigmas = karras_sigmas(22, 0.002, 80.0, 7.0)
    assert sigmas.dtype == torch.float64 and len(sigmas) == 23
    assert sigmas[0].item() == pytest.approx(80) and sigmas[-2].item() == pytest.approx(0.002)
    assert sigmas[-1] == 0 and (sigmas.diff() < 0).all()


@pytest.mark.parametrize("rho", [3.0, 7.0])
def test_schedule_agrees_with_diffusers(rho):
    from diffusers import EDMEulerScheduler

    theirs = EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, rho=rho)
    theirs.set_timesteps(22)
    torch.testing.assert_close(
        karras_sigmas(22, 0.002, 80.0, rho).float(), theirs.sigmas.float(), rtol=1e-4, atol=1e-6
    )


def test_ode_solution_of_a_gaussian_is_exact_in_the_limit():
    """x(sigma) - m scales with sqrt(sd^2 + sigma^2) along the probability-flow ODE."""
    sd, mean, start = 0.5, 0.2, 80.0
    x = start * torch.randn(
        2, 3, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    exact = mean + (x - mean) * sd / math.sqrt(sd**2 + start**2)
    errors = [
        (edm_sampler(gaussian_denoiser(mean, sd), x, karras_sigmas(n, 0.002, start, 7.0)) - exact)
        .abs()
        .max()
        for n in (20, 40, 80)
    ]
    assert errors[2] < 5e-3 * exact.abs().max()
    assert errors[0] / errors[1] > 3 and errors[1] / errors[2] > 3  # second order


def test_heun_steps_agree_with_azula():
    """Same denoiser, same noise, same schedule, another implementation."""
    import torch.nn as nn
    from azula.denoise import DiracPosterior
    from azula.noise import Schedule
    from azula.sample import HeunSampler

    num_steps, rho, low, high = 12, 7.0, 0.002, 80.0

    class Karras(Schedule):
        """azula's time runs from 1 to 0; the noise level there is EDM's equation 5."""

        def __call__(self, t):
            sigma = (low ** (1 / rho) + t * (high ** (1 / rho) - low ** (1 / rho))) ** rho
            return torch.ones_like(t), sigma

    images = torch.rand(
        1, 5, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3)
    )

    class Exact(nn.Module):
        schedule = Karras()

        def forward(self, x, t):
            return DiracPosterior(posterior_mean(x, self.schedule(t)[1], images))

    x = high * torch.randn(
        1, 6, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(4)
    )
    theirs = HeunSampler(Exact(), steps=num_steps - 1, silent=True, dtype=torch.float64)(x)
    steps = []
    edm_sampler(
        lambda x, sigma: posterior_mean(x, sigma, images),
        x,
        karras_sigmas(num_steps, low, high, rho),
        callback=steps.append,
    )
    # Theirs stops at sigma_min, one step before 0.
    torch.testing.assert_close(steps[-2]["x"], theirs, rtol=1e-6, atol=1e-8)


def test_last_step_is_the_denoised_image():
    steps = []
    denoise = gaussian_denoiser(0.1, 0.5)
    x = edm_sampler(
        denoise,
        80 * torch.ones(1, 1, 1, 2, 2),
        karras_sigmas(8, 0.002, 80.0, 7.0),
        callback=steps.append,
    )
    torch.testing.assert_close(x, steps[-1]["denoised"])
    assert [step["i"] for step in steps] == list(range(8))


def test_churn_keeps_the_marginal_of_a_gaussian():
    """The stochastic sampler samples the same distribution as the ODE: its variance is sd^2."""
    noise = SetNoise(0, range(4), (2000, 1, 2, 2))
    x = edm_sampler(
        gaussian_denoiser(0.3, 0.5),
        80 * noise(),
        karras_sigmas(60, 0.002, 80.0, 7.0),
        s_churn=30.0,
        noise=noise,
    )
    assert x.mean().item() == pytest.approx(0.3, abs=0.02)
    assert x.std().item() == pytest.approx(0.5, rel=0.03)


def test_churn_acts_only_inside_its_window():
    seen = []
    noise = SetNoise(0, range(1), (2, 1, 2, 2))
    sigmas = karras_sigmas(12, 0.002, 80.0, 7.0)
    edm_sampler(
        gaussian_denoiser(0.0, 0.5),
        80 * noise(),
        sigmas,
        s_churn=6.0,
        s_min=0.1,
        s_max=10.0,
        noise=noise,
        callback=lambda step: seen.append(float(step["sigma_hat"] / step["sigma"])),
    )
    inside = [0.1 <= s <= 10 for s in sigmas[:-1].tolist()]
    assert seen == pytest.approx([1 + min(6 / 12, math.sqrt(2) - 1) if i else 1.0 for i in inside])


def test_churn_without_noise_is_an_error():
    with pytest.raises(ValueError, match="s_churn"):
        edm_sampler(
            gaussian_denoiser(0, 1),
            torch.ones(1, 1, 1, 2, 2),
            karras_sigmas(4, 0.1, 1.0, 7.0),
            s_churn=1.0,
        )
