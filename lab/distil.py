"""Distillation: a network that returns what its teacher's samples become, in one call.

The teacher D moves noise along the probability-flow ODE dx/ds = (x - D(x; s)) / s. The student f
has the same preconditioning, starts from the same weights and learns where the path through (x, s)
ends,

    f(x; s) = x_0,    E over paths and levels of sqrt(|f(x; s) - x_0|^2 + c^2) - c,

at the noise levels of the solver, from sigma_max on. Every path is solved anew, so that there is no
set of pairs to overfit, and serves at all of its levels. The norm is not squared: a mean over the
modes that noise could still lead to is no image, while this minimiser is one of them as soon as
most of the paths go there.

Source: regression on the end points of paths, Luhman & Luhman 2021, arXiv 2101.02388, at all noise
levels as consistency models have it (Song et al. 2023, arXiv 2303.01469); the loss is the
pseudo-Huber one of Song & Dhariwal 2023, arXiv 2310.14189, section 3.3.

Uncertain: c, the number of levels and the solver were chosen once and not searched.
"""

from __future__ import annotations

from typing import Any, Sequence

import torch
from torch import Tensor

from config import TrainingSettings
from diverse_sampling.defaults import RHO, SIGMA_MAX
from diverse_sampling.denoiser import to_model_range
from diverse_sampling.errors import reject
from diverse_sampling.noise import Stream, set_generator
from diverse_sampling.steps import append_zero, edm_schedule, integrate
from lab.training import Training
from model import EDMDenoiser
from worlds.moving_digits import World

LEVELS = 8  # of a path: one call at each, and one more for Heun's correction but at the last
SIGMA_MIN = 0.1  # below it the teacher's D differs from the end by less than its own error
SOFT = 0.1  # c, an L2 distance of images in [-1, 1]


def path_levels(shift: float) -> Tensor:
    """The noise levels of a path, (LEVELS + 1,) float64: SIGMA_MAX, then Karras' levels down to
    SIGMA_MIN, moved up by a share `shift` in [0, 1) of a step, then 0."""
    place = (torch.arange(LEVELS, dtype=torch.float64) - shift).clamp_min(0) / (LEVELS - 1)
    top = SIGMA_MAX ** (1 / RHO)
    return append_zero((top + place * (SIGMA_MIN ** (1 / RHO) - top)) ** RHO)


class Distillation(Training):
    """The training of a student.

    Arguments:
        settings, device, world: as in `Training`
        teacher: the network to distil, on `device`; the student has its architecture

    Raises SettingError for a teacher of another architecture, and for a batch that whole paths do
    not fill.
    """

    def __init__(
        self,
        settings: TrainingSettings,
        device: torch.device,
        world: World,
        teacher: EDMDenoiser,
    ):
        if settings.train.batch_size % LEVELS:
            reject("batch_size", settings.train.batch_size, f"a multiple of {LEVELS}")
        self.teacher = teacher
        super().__init__(settings, device, world)
        try:
            for net in (self.net, self.ema):
                net.load_state_dict(teacher.state_dict())
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()
            reject("teacher", settings.train.teacher, f"a network of these settings ({reason})")

    def _measure(self) -> tuple[float, Sequence[int] | None]:
        """sigma_data and the box of the teacher."""
        return float(self.teacher.sigma_data), self.teacher.box

    def batch(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Points x of the teacher's paths with their sigma, and the ends of the paths as targets;
        as in `Training.batch`."""
        n = self.settings.train.batch_size // LEVELS
        generator = set_generator(self.seed, self.iteration, Stream.TRAINING, self.device)
        windows = self.world.windows(n, generator)
        cond, _ = windows.split(self.world.cond_channels, self.world.answer_channels)
        cond = to_model_range(cond)
        labels = windows.labels[:, 0]
        shift = float(torch.rand((), generator=generator, device=self.device))
        shape = (n, 1, self.world.answer_channels, *self.world.frame_shape)
        start = SIGMA_MAX * torch.randn(shape, generator=generator, device=self.device)
        points: list[Tensor] = []

        def keep(step: dict[str, Any]) -> None:
            points.append(step["x_hat"][:, 0])

        sigmas = path_levels(shift)
        classes = labels if self.teacher.unet.label is not None else None
        denoise = self.teacher.bind(cond if cond.shape[1] else None, classes)
        ends = integrate(denoise, start, edm_schedule(sigmas), callback=keep)[:, 0]
        mine = slice(self.rank, None, self.ranks)
        return (
            torch.cat(points)[mine],
            sigmas[:-1].to(ends).repeat_interleave(n)[mine],
            ends.repeat(LEVELS, 1, 1, 1)[mine],
            cond.repeat(LEVELS, 1, 1, 1)[mine],
            labels.repeat(LEVELS)[mine],
        )

    def losses(self, x: Tensor, sigma: Tensor, target: Tensor, **kwargs: Any) -> Tensor:
        """The distance of f(x; s) from the end of its path, of each image, (N,)."""
        apart = (self.parallel(x, sigma, **kwargs) - target).square().sum((1, 2, 3))
        return (apart + SOFT**2).sqrt() - SOFT
