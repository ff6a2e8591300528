"""Traces: one set looked at closely, at every step of the sampler."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from diverse_sampling.potentials import POTENTIALS, IoU
from lab.metrics import iou
from worlds.channels import in_colours

if TYPE_CHECKING:
    from lab.assemble import Evaluation


def trace(evaluation: Evaluation, set_number: int) -> dict[str, Tensor]:
    """What happens to one set at each of the N steps of the sampler.

    Of sets that are drawn in sequence, or selected out of more samples, these are the steps of a
    first draw of B particles.

    Returns {
        sigmas (N,),
        distances (N, B, B): between the D(x), as the potential sees them,
        ode (N, B), guidance (N, B): L2 norms of the two parts of the drift,
        x_hat, denoised (N, B, H, W) or, in colour, (N, B, 3, H, W): as in the sampler,
        samples (B, H, W) or (B, 3, H, W): where the particles end
    }, all on the CPU.
    """
    task = evaluation.task
    sampler = evaluation.sampler
    sets = torch.tensor([set_number])
    steps: list[dict] = []
    samples = sampler.sample_once(sets, sampler.batch_size, callback=steps.append)[0]
    unguided_denoiser = sampler.denoiser(sets)
    is_iou = POTENTIALS[sampler.settings.guidance.pg_kernel] is IoU
    records: dict[str, list[Tensor]] = {}
    for step in steps:
        x_hat, sigma, guided = (step[key] for key in ("x_hat", "sigma_hat", "denoised"))
        with torch.no_grad():
            unguided = unguided_denoiser(x_hat, sigma)  # (1, B, C, H, W)
        if is_iou:
            images = task.comparable(task.to_samples(unguided))
            distances = 1 - iou(images, images)[0]
        else:
            vectors = unguided[0].flatten(1)
            distances = torch.cdist(vectors, vectors).cpu()
        record = dict(
            sigmas=sigma,
            distances=distances,
            ode=_norms((x_hat - unguided) / sigma),
            guidance=_norms((unguided - guided) / sigma),
            x_hat=task.pictured(x_hat[0]),
            denoised=task.pictured(guided[0]),
        )
        for key, value in record.items():
            records.setdefault(key, []).append(value)
    stacked = {key: torch.stack(values) for key, values in records.items()}
    return stacked | dict(samples=in_colours(samples, task.world.label_classes))


def _norms(drift: Tensor) -> Tensor:
    """L2 norm of each particle of the first set: (1, B, C, H, W) -> (B,) on the CPU."""
    return drift.flatten(2).norm(dim=-1)[0].cpu()
