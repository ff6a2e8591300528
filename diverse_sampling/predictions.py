"""Networks that predict something else than the clean image, as denoisers.

A diffusion network sees sample = alpha (y + sigma n), and its prediction is linear in the clean
image y, so that

    D = skip * sample + out * prediction,

    prediction   skip         out
    epsilon      1 / alpha    -sigma                n
    v            a^2 / alpha  -a sigma              a (n - sigma y), with a = 1 / sqrt(1 + sigma^2)
    sample       0            1                     y
    flow         1            -alpha sigma          n - y, with alpha = 1 - s, sigma = s / (1 - s)

Sources: Ho et al. 2020, arXiv 2006.11239 (epsilon); Salimans & Ho 2022, arXiv 2202.00512 (v);
Lipman et al. 2022, arXiv 2210.02747 (flow); Karras et al. 2022, arXiv 2206.00364, Table 1.
"""

from __future__ import annotations

import math
from typing import Callable

import numpy
import torch
from torch import Tensor

from diverse_sampling.denoiser import Denoiser
from diverse_sampling.errors import reject

Network = Callable[[Tensor, Tensor], Tensor]


def skip_and_out(prediction: str, alpha: float, sigma: float) -> tuple[float, float]:
    """(skip, out) of D = skip * sample + out * prediction; the top of this file has the table.

    Arguments:
        prediction: "epsilon", "v_prediction", "sample" or "flow_prediction"
        alpha: factor of the clean image in the sample, > 0
        sigma: noise level of sample / alpha, > 0

    Raises SettingError for another prediction.
    """
    a = 1 / math.sqrt(1 + sigma**2)
    if prediction == "epsilon":
        return 1 / alpha, -sigma
    if prediction == "v_prediction":
        return a * a / alpha, -a * sigma
    if prediction == "sample":
        return 0.0, 1.0
    if prediction == "flow_prediction":
        return 1.0, -alpha * sigma
    reject("prediction_type", prediction, "epsilon, v_prediction, sample, flow_prediction")


def log_sigmas_of(alphas_cumprod: Tensor) -> numpy.ndarray:
    """ln sigma of each timestep, (T,) float64, rising.

    alphas_cumprod (T,) is the share of the image in the variance of the sample, in [0, 1] and
    falling. Timesteps without any image, whose sigma is infinite, are left out.
    """
    share = alphas_cumprod.detach().double().cpu().numpy()
    share = share[share > 0]
    return numpy.log((1 - share) / share) / 2


def timestep_of(sigma: float, log_sigmas: numpy.ndarray) -> float:
    """The timestep at a noise level, between two of them; outside their range, the first or last.

    log_sigmas (T,) are those of `log_sigmas_of`.
    """
    return float(numpy.interp(math.log(sigma), log_sigmas, range(len(log_sigmas))))


def from_epsilon(model: Network, alphas_cumprod: Tensor) -> Denoiser:
    """A denoiser of sets from a network that predicts the noise (DDPM).

    Arguments:
        model: (sample (N, C, H, W) of variance about 1, timesteps (N,) float) -> the noise n in it,
            like the sample. Conditions are bound to it: `lambda x, t: network(x, t, labels)`
        alphas_cumprod: (T,), the training's, such as `DDPMScheduler(...).alphas_cumprod`

    Returns denoise(x (G, B, C, H, W), sigma) -> D, like x. Particles of a set follow each other in
    the batch. Noise levels between two timesteps are interpolated in ln sigma.
    """
    return _variance_preserving(model, alphas_cumprod, "epsilon")


def from_velocity(model: Network, alphas_cumprod: Tensor) -> Denoiser:
    """A denoiser of sets from a network that predicts v = alpha n - sqrt(1 - alpha^2) y.

    The arguments and the result are as in `from_epsilon`.
    """
    return _variance_preserving(model, alphas_cumprod, "v_prediction")


def from_flow(model: Network, *, time_scale: float = 1.0) -> Denoiser:
    """A denoiser of sets from a network that predicts the velocity n - y of a rectified flow.

    Arguments:
        model: (sample (1 - s) y + s n, (N, C, H, W); times (N,)) -> n - y, like the sample
        time_scale: what the network is told is time_scale * s, s in [0, 1] and 1 for pure noise;
            1000 for those of diffusers

    Returns a denoiser as `from_epsilon` does; s = sigma / (1 + sigma).
    """

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        level = float(sigma)
        alpha = 1 / (1 + level)
        return _predicted(model, x, alpha, level, level * alpha * time_scale, "flow_prediction")

    return denoise


def _variance_preserving(model: Network, alphas_cumprod: Tensor, prediction: str) -> Denoiser:
    log_sigmas = log_sigmas_of(alphas_cumprod)

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        level = float(sigma)
        alpha = 1 / math.hypot(1, level)
        return _predicted(model, x, alpha, level, timestep_of(level, log_sigmas), prediction)

    return denoise


def _predicted(
    model: Network, x: Tensor, alpha: float, sigma: float, time: float, prediction: str
) -> Tensor:
    """D of x (G, B, C, H, W), by one call of the network."""
    sample = (alpha * x).flatten(0, 1)
    times = torch.full((len(sample),), time, dtype=x.dtype, device=x.device)
    skip, out = skip_and_out(prediction, alpha, sigma)
    return (skip * sample + out * model(sample, times)).view_as(x)
