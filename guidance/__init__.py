"""Guidance: denoisers that wrap a denoiser and make the particles of a set repel."""

from guidance.base import Denoiser, finite
from guidance.cads import Cads
from guidance.particle import ParticleGuidance
from guidance.reference import Reference
from guidance.spell import Spell

__all__ = ["Cads", "Denoiser", "ParticleGuidance", "Reference", "Spell", "finite"]
