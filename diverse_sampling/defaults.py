"""Defaults that the library and the command lines share; nothing here imports torch.

Noise levels are standard deviations for images in [-1, 1]; they and rho are EDM's (Karras et al.
2022, arXiv 2206.00364, table 1).
"""

NUM_STEPS = 22
CALLS = 2 * NUM_STEPS - 1  # of the denoiser: a step has two, but for the last
SIGMA_MIN = 0.002
SIGMA_MAX = 80.0
RHO = 7.0
PILOT_LEVELS = 15  # noise levels at which a pilot calls the denoiser, once at each
FACTOR = 5.0  # strength of guidance

# Every record of samples holds it. It is raised whenever the same settings give other samples;
# tests/test_version.py holds samples against it.
SAMPLES_VERSION = 3
