"""Networks that predict noise, velocity or flow, held against diffusers' schedulers."""

import math

import pytest
import torch

from diverse_sampling import from_epsilon, from_flow, from_velocity
from diverse_sampling.errors import SettingError
from diverse_sampling.predictions import skip_and_out


def network(sample, times):
    """Any function that depends on the sample and on its own time."""
    return (sample * 1.7).sin() + 0.1 * times.log1p()[:, None, None, None]


@pytest.mark.parametrize(
    "wrap, prediction", [(from_epsilon, "epsilon"), (from_velocity, "v_prediction")]
)
@pytest.mark.parametrize("timestep", [1, 250, 999])
def test_it_is_what_ddpm_takes_for_the_clean_image(wrap, prediction, timestep):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDPMScheduler(prediction_type=prediction, clip_sample=False)
    share = scheduler.alphas_cumprod[timestep].double()
    sigma = ((1 - share) / share).sqrt()
    x = float(sigma) * torch.randn(2, 3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    sample = (x * share.sqrt()).float().flatten(0, 1)
    predicted = network(sample, torch.full((6,), float(timestep)))
    expected = scheduler.step(predicted, timestep, sample).pred_original_sample
    found = wrap(network, scheduler.alphas_cumprod)(x, sigma)
    torch.testing.assert_close(found.flatten(0, 1), expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("place", [0, 5, 9])
def test_flow_is_where_diffusers_own_step_to_the_end_leads(place):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(10)
    s, time = float(scheduler.sigmas[place]), scheduler.timesteps[place]
    s = min(s, 0.999)  # at 1 there is no image in the sample
    scheduler.sigmas = torch.tensor([s, 0.0])
    scheduler.timesteps = time[None]
    x = torch.randn(2, 3, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * s / (1 - s)
    sample = (x * (1 - s)).flatten(0, 1)
    predicted = network(sample, torch.full((6,), 1000 * s))
    expected = scheduler.step(predicted, time, sample).prev_sample
    denoise = from_flow(network, time_scale=1000)
    found = denoise(x, torch.tensor(s / (1 - s), dtype=torch.float64))
    torch.testing.assert_close(found.flatten(0, 1), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample", "flow_prediction"])
def test_a_prediction_that_is_right_gives_the_clean_image(prediction):
    y, n = torch.randn(2, 100, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for sigma in (0.01, 1.0, 30.0):
        a = 1 / math.hypot(1, sigma)
        alpha = 1 / (1 + sigma) if prediction == "flow_prediction" else a
        right = dict(epsilon=n, v_prediction=a * (n - sigma * y), sample=y, flow_prediction=n - y)
        skip, out = skip_and_out(prediction, alpha, sigma)
        torch.testing.assert_close(skip * alpha * (y + sigma * n) + out * right[prediction], y)


def test_another_prediction_is_refused():
    with pytest.raises(SettingError, match="prediction_type: got 'score'; accepted: epsilon"):
        skip_and_out("score", 1.0, 1.0)


def test_a_noise_level_between_two_timesteps_lies_between_them():
    shares = torch.linspace(0.99, 0.01, 50)
    told = []

    def model(sample, times):
        told.append(float(times[0]))
        return sample

    denoise = from_epsilon(model, shares)
    for sigma in (1e-3, 0.5, 2.0, 1e3):
        denoise(torch.zeros(1, 1, 1, 2, 2), torch.tensor(sigma))
    assert told[0] == 0 and told[-1] == 49
    assert told == sorted(told) and 0 < told[1] % 1 < 1
