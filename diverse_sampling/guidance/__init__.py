"""Guidance: denoisers that wrap a denoiser and make the particles of a set repel each other.

One file per method, which ends with what the method is (`method.py`). Each takes a denoiser of sets
(see `denoiser.py`) and is one itself, so that methods compose by wrapping and the sampler needs no
change. Images are in [-1, 1].

    pg      particle guidance, by any of `potentials.py`
    sriw    particle guidance that does not lower the density of single particles (SRIW)
    spell   sparse repellency (SPELL)
    classes guidance towards every class, or the composition that somebody asks for
    joint   the optimum that particle guidance approximates, where the modes are known
    rivals/ methods that are there to be compared with
"""

from diverse_sampling.guidance.base import Guided, finite
from diverse_sampling.guidance.classes import ClassGuidance
from diverse_sampling.guidance.joint import joint_weights
from diverse_sampling.guidance.pg import ParticleGuidance, default_guidance
from diverse_sampling.guidance.spell import Spell
from diverse_sampling.guidance.sriw import never_down

__all__ = [
    "ClassGuidance",
    "Guided",
    "ParticleGuidance",
    "Spell",
    "default_guidance",
    "finite",
    "joint_weights",
    "never_down",
]
