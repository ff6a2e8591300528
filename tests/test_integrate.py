import math

import pytest
import torch

from diverse_sampling.exact import posterior_mean
from diverse_sampling.noise import ParticleNoise
from diverse_sampling.steps import (
    Schedule,
    edm_sampler,
    edm_schedule,
    integrate,
    karras_sigmas,
    noised_schedule,
    Window,
    window_schedule,
)


def gaussian_denoiser(mean: float, sd: float):
    """D of N(mean, sd^2): the ODE's solution is known in closed form."""
    return lambda x, sigma: mean + (x - mean) * sd**2 / (sd**2 + sigma**2)


def normal(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(shape, dtype=torch.float64, generator=generator)


def assert_standard(x: torch.Tensor) -> None:
    """These are samples of N(0.3, 0.5^2)."""
    assert x.mean().item() == pytest.approx(0.3, abs=0.02)
    assert x.std().item() == pytest.approx(0.5, rel=0.03)


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
    ours = karras_sigmas(22, 0.002, 80.0, rho).float()
    torch.testing.assert_close(ours, theirs.sigmas.float(), rtol=1e-4, atol=1e-6)


def test_ode_solution_of_a_gaussian_is_exact_in_the_limit():
    """x(sigma) - m scales with sqrt(sd^2 + sigma^2) along the probability-flow ODE."""
    sd, mean, start = 0.5, 0.2, 80.0
    x = start * normal(2, 3, 1, 4, 4)
    exact = mean + (x - mean) * sd / math.sqrt(sd**2 + start**2)
    denoise = gaussian_denoiser(mean, sd)
    sampled = [edm_sampler(denoise, x, karras_sigmas(n, 0.002, start, 7.0)) for n in (20, 40, 80)]
    errors = [(each - exact).abs().max() for each in sampled]
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

    images = normal(1, 5, 1, 8, 8)

    class Exact(nn.Module):
        schedule = Karras()

        def forward(self, x, t):
            return DiracPosterior(posterior_mean(x, self.schedule(t)[1], images))

    x = high * normal(1, 6, 1, 8, 8)
    theirs = HeunSampler(Exact(), steps=num_steps - 1, silent=True, dtype=torch.float64)(x)
    steps = []
    denoise = lambda x, sigma: posterior_mean(x, sigma, images)
    edm_sampler(denoise, x, karras_sigmas(num_steps, low, high, rho), callback=steps.append)
    # Theirs stops at sigma_min, one step before 0.
    torch.testing.assert_close(steps[-2]["x"], theirs, rtol=1e-6, atol=1e-8)


def test_last_step_is_the_denoised_image():
    steps = []
    start, sigmas = 80 * torch.ones(1, 1, 1, 2, 2), karras_sigmas(8, 0.002, 80.0, 7.0)
    x = edm_sampler(gaussian_denoiser(0.1, 0.5), start, sigmas, callback=steps.append)
    torch.testing.assert_close(x, steps[-1]["denoised"])
    assert [step["i"] for step in steps] == list(range(8))


def test_churn_keeps_the_marginal_of_a_gaussian():
    """The stochastic sampler samples the same distribution as the ODE: its variance is sd^2."""
    noise = ParticleNoise(0, range(4), range(1000), (1, 2, 2))
    denoise, sigmas = gaussian_denoiser(0.3, 0.5), karras_sigmas(60, 0.002, 80.0, 7.0)
    assert_standard(edm_sampler(denoise, 80 * noise(), sigmas, s_churn=30.0, noise=noise))


def test_churn_acts_only_inside_its_window():
    sigmas = karras_sigmas(12, 0.002, 80.0, 7.0)
    inside = (0.1 <= sigmas[:-1]) & (sigmas[:-1] <= 10)
    schedule = edm_schedule(sigmas, s_churn=6.0, s_min=0.1, s_max=10.0)
    assert schedule.num_steps == 12 and schedule.calls == 23
    torch.testing.assert_close(schedule.churn, inside * min(6 / 12, math.sqrt(2) - 1))


def test_edms_steps_take_the_windows_noise_at_the_windows_levels():
    """Every noised call is in the window, every other level is EDM's, and the marginal is kept."""
    sigmas, between = karras_sigmas(60, 0.002, 80.0, 7.0), Window(1.0, 20.0, 0.2)
    schedule = noised_schedule(sigmas, between)
    noised = schedule.churn > 0
    assert noised.sum() > 5 and schedule.churn[noised].tolist() == pytest.approx(
        [0.2] * noised.sum()
    )
    called = sigmas[:-1][noised] * 1.2
    assert bool(((1 <= called) & (called <= 20)).all())
    assert schedule.calls == edm_schedule(sigmas).calls
    noise = ParticleNoise(0, range(4), range(1000), (1, 2, 2))
    assert_standard(integrate(gaussian_denoiser(0.3, 0.5), 80 * noise(), schedule, noise=noise))


def test_churn_without_noise_is_an_error():
    x = torch.ones(1, 1, 1, 2, 2)
    with pytest.raises(ValueError, match="^churn: 0.25 needs a source of noise"):
        edm_sampler(gaussian_denoiser(0, 1), x, karras_sigmas(4, 0.1, 1.0, 7.0), s_churn=1.0)
    with pytest.raises(ValueError, match="^churn: 0.5 needs"):
        integrate(gaussian_denoiser(0, 1), x, window(15))
    integrate(gaussian_denoiser(0, 1), x, window(15, churn=0.0))  # needs none


# ---------------------------------------------------------------- the window


def window(calls, low=2.0, high=20.0, churn=0.5) -> Schedule:
    return window_schedule(Window(low, high, churn), calls)


@pytest.mark.parametrize("low, high", [(2.0, 20.0), (0.01, 79.0), (0.0031, 0.004), (19.0, 20.0)])
def test_a_window_has_its_calls_after_new_noise_and_a_tenth_of_them_below(low, high):
    for calls in (*range(3, 70), 200, 1999):
        schedule = window(calls, low, high)
        assert schedule.calls == schedule.num_steps == calls and not schedule.corrected.any()
        assert schedule.sigmas[0] == 80 and schedule.sigmas[-1] == 0
        assert (schedule.sigmas.diff() < 0).all() and schedule.sigmas.dtype == torch.float64
        noised = schedule.churn > 0
        called = (schedule.sigmas[:-1] * (1 + schedule.churn))[noised]
        assert called[0] == pytest.approx(high)
        below = schedule.sigmas[:-1][~noised][1:]  # all but the first call
        assert len(below) == max(1, round(calls / 10)) and below[-1] == pytest.approx(0.002)
        assert (below < low / 1.5).all()
        if len(called) > 1:
            assert called[-1] == pytest.approx(low)
            for levels in (called, torch.cat([torch.tensor([low / 1.5]).double(), below])):
                ratio = levels[1:] / levels[:-1]
                torch.testing.assert_close(ratio, ratio[:1].expand(len(ratio)))  # geometric


def test_a_window_without_noise_converges_to_the_exact_solution():
    """x(sigma) - m scales with sqrt(sd^2 + sigma^2); first order, as Euler's steps are."""
    sd, mean = 0.5, 0.2
    x = 80 * normal(2, 3, 1, 4, 4)
    denoise = gaussian_denoiser(mean, sd)
    # The first step, from sigma_max into the window, stays as long however many there are.
    high = 20.0
    start = x + (high - 80) * (x - denoise(x, torch.tensor(80.0))) / 80
    exact = mean + (start - mean) * sd / math.sqrt(sd**2 + high**2)
    errors = [
        (integrate(denoise, x, window(2 * n - 1, high=high, churn=0.0)) - exact).abs().max()
        for n in (200, 400, 800)
    ]
    assert errors[2] < 0.02 * exact.abs().max()
    assert errors[0] / errors[1] > 1.8 and errors[1] / errors[2] > 1.8


def test_a_window_keeps_the_marginal_of_a_gaussian(generator):
    noise = lambda: torch.randn(1, 4000, 1, 2, 2, generator=generator)
    denoise = gaussian_denoiser(0.3, 0.5)
    assert_standard(integrate(denoise, 80 * noise(), window(1499), noise=noise))


@pytest.mark.parametrize("calls", [7, 43])
@pytest.mark.parametrize("churn", [0.3, 1.5])
def test_the_variance_of_a_gaussian_is_known_at_each_step_of_a_window(calls, churn):
    """D of a Gaussian is linear, so that the variance follows from the levels alone."""
    noise = ParticleNoise(0, range(4), range(2000), (1, 2, 2))
    schedule = window(calls, churn=churn)
    denoise, steps = gaussian_denoiser(0.3, 0.5), []
    integrate(denoise, 80 * noise(), schedule, noise=noise, callback=steps.append)
    expected = 80.0**2
    for i, step in enumerate(steps):
        level, following = float(step["sigma_hat"]), float(schedule.sigmas[i + 1])
        expected += level**2 - float(schedule.sigmas[i]) ** 2
        if level > 1:  # where Euler's steps hardly err: it is that of a sample and noise
            assert expected == pytest.approx(0.25 + level**2, rel=0.05)
        # Four standard errors of the variance of 32,000 numbers.
        assert step["x_hat"].var().item() == pytest.approx(expected, rel=4 * (2 / 32000) ** 0.5)
        expected *= (1 + (following - level) * level / (0.25 + level**2)) ** 2


def test_a_particle_is_the_same_beside_any_others_under_churn():
    schedule = window(21)

    def sampled(sets, particles):
        noise = ParticleNoise(5, sets, particles, (1, 4, 4))
        return integrate(gaussian_denoiser(0.1, 0.5), 80 * noise(), schedule, noise=noise)

    everyone = sampled(range(4), range(8))
    torch.testing.assert_close(sampled(range(4), range(3)), everyone[:, :3], rtol=0, atol=1e-6)
    torch.testing.assert_close(sampled([2], [7, 1]), everyone[2:3, [7, 1]], rtol=0, atol=1e-6)


def test_the_parts_of_a_schedule_are_the_whole():
    schedule = edm_schedule(karras_sigmas(6, 0.01, 10.0, 7.0))
    denoise = lambda x, sigma: x / (1 + sigma**2)
    x = torch.randn(2, 3, 1, 2, 2, dtype=torch.float64)
    whole = integrate(denoise, x, schedule)
    for cuts in ((0, 6), (0, 1, 6), range(7)):
        parts = x
        for start, stop in zip(cuts, cuts[1:]):
            parts = integrate(denoise, parts, schedule.part(start, stop))
        torch.testing.assert_close(parts, whole)
