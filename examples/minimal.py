"""Sets that cover the answers of a model, in one file: python examples/minimal.py

Eight images, a bright spot at one of eight places of a circle, are all that the "model" knows. Its
denoiser is exact, so that every difference is the method's.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))  # a checkout; not needed after pip install

from diverse_sampling import edm_sampler, karras_sigmas, posterior_mean, sample

SETS, PARTICLES, SIDE = 100, 8, 16


def spots() -> torch.Tensor:
    """The answers, (8, 1, SIDE, SIDE) in [-1, 1]."""
    angle = torch.arange(8) * torch.pi / 4
    centre = SIDE / 2 - 0.5 + 5 * torch.stack([angle.sin(), angle.cos()], 1)  # (8, 2)
    grid = torch.stack(torch.meshgrid(*[torch.arange(SIDE)] * 2, indexing="ij"))  # (2, SIDE, SIDE)
    distance2 = (grid - centre[:, :, None, None]).square().sum(1, keepdim=True)
    return 2 * (-distance2 / 4).exp() - 1


ANSWERS = spots()


def denoise(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """E[y | x]: x (sets, particles, 1, SIDE, SIDE), y one of the answers plus noise of sigma."""
    return posterior_mean(x, sigma, ANSWERS.expand(len(x), -1, -1, -1, -1))


def found(samples: torch.Tensor) -> float:
    """How many different answers a set shows, mean over sets."""
    distances = torch.cdist(samples.flatten(2), ANSWERS.flatten(1).expand(len(samples), -1, -1))
    return sum(len(set(each.tolist())) for each in distances.argmin(-1)) / len(samples)


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(SETS, PARTICLES, 1, SIDE, SIDE, generator=generator)
    independent = edm_sampler(denoise, noise * 80, karras_sigmas())
    guided = sample(denoise, noise, calls=43, generator=generator)
    print(f"{SETS} sets of {PARTICLES}, answers found of 8, for 43 calls of the denoiser each")
    print("(and 15 of the pilot, whose decisions can be used again):")
    print(f"  independent {found(independent):.1f}")
    print(f"  guided      {found(guided):.1f}")


if __name__ == "__main__":
    main()
