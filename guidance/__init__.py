"""Guidance: denoisers that wrap a denoiser and make the particles of a set repel each other.

One file per method. Each takes a denoiser of sets (see `denoiser.py`) and is one itself, so that
methods compose by wrapping and the sampler needs no change. Images are in [-1, 1].

    particle     particle guidance, by any of `potentials.py`
    spell        sparse repellency (SPELL)
    cads         condition-annealed diffusion sampling (CADS)
    reference    particle guidance as the reference thesis has it, with its sign error
    diverseflow  likelihood under a determinantal point process (DiverseFlow), a potential
    rke          the number of modes that a kernel sees (SPARKE), a potential
    sriw         particle guidance that does not lower the density of single particles (SRIW)
    oscar        the volume that the particles span, across the flow (OSCAR)
    variance     sets tilted by their variance
    eddy         a field that keeps the distribution of each particle (EDDY)
    joint        the optimum that particle guidance approximates, where the modes are known
"""

from denoiser import Denoiser
from guidance.base import between, finite
from guidance.cads import Cads
from guidance.diverseflow import DiverseFlow
from guidance.eddy import Eddy
from guidance.joint import MOST_MODES, joint_weights
from guidance.oscar import Oscar, Volume
from guidance.particle import ParticleGuidance
from guidance.reference import Reference
from guidance.rke import RKE
from guidance.spell import Spell
from guidance.sriw import Sriw
from guidance.variance import Variance

__all__ = [
    "MOST_MODES",
    "RKE",
    "Cads",
    "Denoiser",
    "DiverseFlow",
    "Eddy",
    "Oscar",
    "ParticleGuidance",
    "Reference",
    "Spell",
    "Sriw",
    "Variance",
    "Volume",
    "between",
    "finite",
    "joint_weights",
]
