"""Guidance: denoisers that wrap a denoiser and make the particles of a set repel each other.

One file per method. Each takes a denoiser of sets (see `denoiser.py`) and is one itself, so that
methods compose by wrapping and the sampler needs no change. Images are in [-1, 1].

    particle     particle guidance, by any of `potentials.py`
    spell        sparse repellency (SPELL)
    cads         condition-annealed diffusion sampling (CADS)
    reference    particle guidance as the reference thesis has it, with its sign error
    joint        the optimum that particle guidance approximates, where the modes are known
"""

from denoiser import Denoiser
from guidance.base import finite
from guidance.cads import Cads
from guidance.joint import MOST_MODES, joint_weights
from guidance.particle import ParticleGuidance
from guidance.reference import Reference
from guidance.spell import Spell

__all__ = [
    "MOST_MODES",
    "Cads",
    "Denoiser",
    "ParticleGuidance",
    "Reference",
    "Spell",
    "finite",
    "joint_weights",
]
