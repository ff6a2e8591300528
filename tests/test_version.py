"""Samples are those of SAMPLES_VERSION, every way of moving them.

    python tests/test_version.py

stores them in samples.json, after SAMPLES_VERSION was raised.
"""

import json
import math
import sys
from pathlib import Path

import pytest
import torch

from diverse_sampling import exact_denoiser, method, sample
from diverse_sampling.defaults import SAMPLES_VERSION
from diverse_sampling.errors import SettingError
from lab import assemble

STORED = Path(__file__).with_name("samples.json")
SMALL = "--denoiser exact --device cpu --num_sets 2 --batch_size 4 --num_steps 8 --dataset"
CIRCLE = f"{SMALL} circle_jumping --digits embedded"
MIXTURE = f"{SMALL} mixture"
# Other flags than MIXTURE's own `--guidance NAME --pg_factor 0.3` and `--noise NAME`.
RUNS = {
    "window": f"{MIXTURE} --sampler window",
    "pool": f"{MIXTURE} --pg_factor 1 --medoids_of 2",
    "sequential": f"{MIXTURE} --pg_factor 1 --sequential 2",
    "churn": f"{MIXTURE} --sampler edm --s_churn 4",
    "jacobian": f"{MIXTURE} --pg_factor 1 --pg_space jacobian",
    "circle": f"{CIRCLE} --pg_factor 5",
    "circle, EDM": f"{CIRCLE} --pg_factor 5 --sampler edm",
    "circle, 12 calls": f"{CIRCLE} --pg_factor 5 --price 12",
    "circle, jacobian": f"{CIRCLE} --pg_factor 1 --pg_space jacobian",
}


def by_the_library(**options) -> torch.Tensor:
    """Sets of the four images of an identity matrix, by `sample`."""
    bank = (2 * torch.eye(4) - 1).view(1, 4, 1, 2, 2)
    noise = torch.randn(2, 4, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    denoise = exact_denoiser(bank.expand(2, -1, -1, -1, -1))
    return sample(denoise, noise, 12, sigma_min=0.1, generator=generator, **options)


def log_posterior(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """log p(image | x; sigma) of those four."""
    distances = (x.flatten(3).squeeze(2)[..., None, :] - (2 * torch.eye(4) - 1)).square().sum(-1)
    return (-distances / (2 * sigma**2)).log_softmax(-1)


def numbers(samples: torch.Tensor) -> list[float]:
    """Two of each particle, that all of its pixels have a part in."""
    flat = samples.double().flatten(0, 1).flatten(1)
    pixel = torch.arange(flat.shape[1], dtype=torch.float64)
    waves = torch.stack([torch.cos(pixel), torch.sin(pixel)], dim=1) / math.sqrt(len(pixel))
    return [round(value, 4) for value in (flat @ waves).flatten().tolist()]


def sampled() -> dict[str, list[float]]:
    """{way of moving samples: numbers of what it returns}, of all that the mixture accepts."""
    flags = dict(RUNS)
    for name in method.names("guidance"):
        flags[f"guidance {name}"] = f"{MIXTURE} --guidance {name} --pg_factor 0.3"
    for name in method.names("noise"):
        flags[f"noise {name}"] = f"{MIXTURE} --noise {name}"
    values = {"sample": numbers(by_the_library())}
    values["sample by classes"] = numbers(by_the_library(log_posterior=log_posterior))
    for name, line in flags.items():
        try:
            evaluation = assemble.evaluation(line.split())
        except SettingError:  # of a world with classes, or with a condition
            continue
        values[name] = numbers(evaluation.sample(progress=False))
    return values


def changed(values: dict[str, list[float]], stored: dict[str, list[float]]) -> list[str]:
    """The ways of moving samples that both have, and that now give others."""
    return [
        name
        for name in values.keys() & stored.keys()
        if values[name] != pytest.approx(stored[name], rel=1e-3, abs=1e-3)
    ]


def new_record(values: dict[str, list[float]], stored: dict) -> dict:
    """What samples.json is to hold. Exits if samples changed and their version did not."""
    others = changed(values, stored["values"])
    if others and stored["version"] == SAMPLES_VERSION:
        sys.exit(f"raise SAMPLES_VERSION in diverse_sampling/defaults.py: changed are {others}")
    return dict(version=SAMPLES_VERSION, values=values)


def test_other_samples_have_another_version():
    stored = json.loads(STORED.read_text())
    values = sampled()
    assert stored["version"] == SAMPLES_VERSION, "store: python tests/test_version.py"
    assert changed(values, stored["values"]) == [], (
        "raise SAMPLES_VERSION in diverse_sampling/defaults.py, then: python tests/test_version.py"
    )
    assert values.keys() == stored["values"].keys(), "store: python tests/test_version.py"


def test_changed_samples_are_not_stored_under_the_same_version():
    stored = dict(version=SAMPLES_VERSION, values=dict(a=[1.0, 2.0]))
    more = dict(a=[1.0, 2.0004], b=[0.0])
    assert new_record(more, stored) == dict(version=SAMPLES_VERSION, values=more)
    with pytest.raises(SystemExit, match="raise SAMPLES_VERSION .*'a'"):
        new_record(dict(a=[1.0, 2.1]), stored)
    raised = new_record(dict(a=[1.0, 2.1]), stored | dict(version=SAMPLES_VERSION - 1))
    assert raised["version"] == SAMPLES_VERSION


if __name__ == "__main__":
    held = json.loads(STORED.read_text()) if STORED.is_file() else dict(version=0, values={})
    record = new_record(sampled(), held)
    lines = [f'  "{name}": {json.dumps(each)}' for name, each in record["values"].items()]
    text = ",\n".join(lines)
    STORED.write_text(f'{{"version": {record["version"]}, "values": {{\n{text}\n}}}}\n')
