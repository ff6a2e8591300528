"""Guidance in the modular pipelines of diffusers: a block around their denoising loop.

`repel` works in them as in others. The block keeps it with the pipeline:

blocks.sub_blocks["denoise"] = ParticleGuidanceBlock(
    blocks.sub_blocks["denoise"], particles=4, decisions=decisions
)
"""

from __future__ import annotations

from typing import Any

from diffusers.modular_pipelines import ModularPipelineBlocks

from diverse_sampling.decisions import Decisions
from diverse_sampling.pipelines import repel


class ParticleGuidanceBlock(ModularPipelineBlocks):
    """A block that runs another one, in which the scheduler steps, within `repel`.

    Arguments:
        denoise: the block with the denoising loop, or one that has it inside
        particles, decisions, others: as in `repel`; a pilot does not run through modular pipelines,
            so that `decisions` come from an ordinary pipeline of the same model
    """

    def __init__(
        self,
        denoise: ModularPipelineBlocks,
        *,
        particles: int,
        decisions: Decisions,
        **others: Any,
    ):
        super().__init__()
        self.denoise = denoise
        self.model_name = denoise.model_name
        self.repels: dict[str, Any] = dict(particles=particles, decisions=decisions) | others

    @property
    def description(self) -> str:
        """What diffusers shows of the block."""
        return "The pictures of a prompt repel each other in: " + self.denoise.description

    @property
    def expected_components(self) -> list:
        """Those of the block inside."""
        return self.denoise.expected_components

    @property
    def expected_configs(self) -> list:
        """Those of the block inside."""
        return self.denoise.expected_configs

    @property
    def inputs(self) -> list:
        """Those of the block inside."""
        return self.denoise.inputs

    @property
    def intermediate_outputs(self) -> list:
        """Those of the block inside."""
        return self.denoise.intermediate_outputs

    def __call__(self, components, state):
        """(components, state) after the block inside."""
        with repel(components, **self.repels):
            return self.denoise(components, state)
