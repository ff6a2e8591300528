"""The front door: sets from anyone's denoiser by one call."""

import ast
import importlib
import inspect
import json
import re

import pytest
import torch
from conftest import ROOT
from scipy.stats import binomtest

import diverse_sampling
from config import SamplerSettings
from diverse_sampling import karras_sigmas, measure, posterior_mean, sample, window_schedule
from diverse_sampling.errors import SettingError
from diverse_sampling.exact import log_weights
from lab.metrics import wilson_interval


def places(k: int = 8, side: int = 6):
    """An exact denoiser of k random images, (its `denoise`, the images)."""
    images = 2 * torch.rand(k, 1, side, side, generator=torch.Generator().manual_seed(0)) - 1

    def denoise(x, sigma):
        return posterior_mean(x, sigma, images.expand(len(x), -1, -1, -1, -1))

    return denoise, images


def found(samples, images) -> float:
    """Different images that a set shows, mean over sets."""
    nearest = torch.cdist(samples.flatten(2), images.flatten(1).expand(len(samples), -1, -1))
    return sum(len(set(each.tolist())) for each in nearest.argmin(-1)) / len(samples)


def test_sets_of_anyones_denoiser_cover_what_independent_ones_miss():
    denoise, images = places()
    noise = torch.randn(30, 8, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    generators = [torch.Generator().manual_seed(2) for _ in range(3)]
    samples = sample(denoise, noise, generator=generators[0])
    independent = sample(denoise, noise, factor=0.0, generator=generators[1])
    assert samples.shape == noise.shape and samples.isfinite().all()
    assert found(samples, images) > 7.6 > 6 > found(independent, images)
    again = sample(denoise, noise, generator=generators[2])
    assert torch.equal(samples, again)


def test_one_particle_beside_earlier_samples_shows_what_they_do_not():
    """Seven of eight are in memory; of independent samples one in eight shows the other one."""
    denoise, images = places()
    noise = torch.randn(64, 1, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    drawn = [
        sample(denoise, noise, memory=memory, generator=torch.Generator().manual_seed(2))
        for memory in (images[None, 1:], images[1:].expand(64, -1, -1, -1, -1), None)
    ]
    shown = [
        int((torch.cdist(each.flatten(1), images.flatten(1)).argmin(1) == 0).sum())
        for each in drawn
    ]
    assert wilson_interval(shown[0], 64)[0] > 0.75
    assert torch.equal(drawn[0], drawn[1])  # one memory for all sets is one for each
    assert binomtest(shown[2], 64, 1 / 8).pvalue > 0.001
    with pytest.raises(SettingError, match=r"^shape of memory: got \[2, 7, 1, 6, 6\]"):
        sample(denoise, noise, memory=images[1:].expand(2, -1, -1, -1, -1))


@pytest.mark.parametrize("clean", [False, True], ids=["noisy", "clean"])
def test_sets_have_the_composition_that_is_asked_for(clean):
    denoise, images = places()

    def log_posterior(x, sigma):
        known = images.expand(len(x), -1, -1, -1, -1)
        sigma = torch.tensor(0.3) if clean else sigma
        return log_weights(x, sigma, known).log_softmax(-1)

    def drawn(**classes):
        generator = torch.Generator().manual_seed(2)
        samples = sample(denoise, noise, generator=generator, **classes)
        mode = torch.cdist(samples.flatten(2), images.flatten(1)).argmin(-1)
        return torch.nn.functional.one_hot(mode, 8).sum(1)

    noise = torch.randn(30, 6, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    counts = torch.tensor([3, 0, 0, 2, 0, 1, 0, 0])
    classes = dict(log_posterior=log_posterior, clean=clean)
    assert (drawn(**classes, counts=counts) == counts).all(1).float().mean() >= 0.9
    assert (drawn(**classes) <= 1).all(1).float().mean() >= 0.9
    assert (drawn(**classes, counts=counts, factor=0.0) == counts).all(1).float().mean() < 0.1


def snippet(name):
    """Code of docs/from-cads.md, as a dictionary of the names that it defines."""
    page, names = (ROOT / "docs" / "from-cads.md").read_text(), {}
    exec(re.search(rf"```python\n(# {name}\n.*?)```", page, flags=re.S)[1], names)
    return names


def test_the_audit_tells_a_cure_that_works_from_one_that_draws_other_images():
    """Images with a spread of their own, so that no two samples are one image."""
    _, images = places()
    spread = 0.1

    def denoise(x, sigma):
        """The mean of the eight images, each with Gaussian noise of its own."""
        total = (sigma**2 + spread**2).sqrt()
        known = images.expand(len(x), -1, -1, -1, -1)
        mean = posterior_mean(x, total, known)
        return mean + (spread / total) ** 2 * (x - mean)

    def drawn(sets, particles, factor, seed):
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(sets, particles, 1, 6, 6, generator=generator)
        return sample(denoise, noise, factor=factor, generator=generator).flatten(2)

    audit = snippet("audit")["audit"]
    pool = drawn(1, 400, 0.0, 1)[0]
    independent, guided = (audit(drawn(30, 8, factor, 2), pool) for factor in (0.0, 5.0))
    assert guided[0] > independent[0] + 0.5
    assert independent[1] == pytest.approx(0.05, abs=0.05) and guided[1] < 0.15
    other = audit(torch.randn(30, 8, 36, generator=torch.Generator().manual_seed(3)), pool)
    assert other[0] > independent[0] + 0.5 and other[1] > 0.9
    alike = audit(pool[None, :1].expand(30, 8, -1), pool)
    assert alike[0] == pytest.approx(1, abs=0.01)


def test_a_pilot_can_be_used_again_and_calls_are_kept():
    denoise, _ = places()
    called = []

    def counting(x, sigma):
        called.append(x.shape[1])
        return denoise(x, sigma)

    noise = torch.randn(4, 3, 1, 6, 6)
    sigmas = karras_sigmas()
    decisions = measure(denoise, torch.randn(4, 4, 1, 6, 6) * 80, sigmas)
    sample(counting, noise, calls=15, decisions=decisions)
    assert called == [3] * 15


def test_weights_that_require_gradients_keep_no_graph():
    net = torch.nn.Conv2d(1, 1, 1)
    images = places()[0]

    def denoise(x, sigma):
        return images(x, sigma) + 0 * net(x.flatten(0, 1)).view_as(x)

    noise = torch.randn(2, 2, 1, 6, 6)
    assert not sample(denoise, noise, calls=9).requires_grad
    assert not diverse_sampling.edm_sampler(denoise, noise * 80, karras_sigmas(5)).requires_grad


def test_everything_that_is_exported_is_there_and_known_to_type_checkers():
    tree = ast.parse((ROOT / "diverse_sampling" / "__init__.py").read_text())
    typed = {
        alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("diverse_sampling.")
        for alias in node.names
    }
    assert sorted(typed) == diverse_sampling.__all__
    for name, module in typed.items():
        assert getattr(diverse_sampling, name) is getattr(importlib.import_module(module), name)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        diverse_sampling.nothing


def test_the_command_line_has_the_librarys_defaults():
    """None stands for what is measured, as in `sample`."""
    settings = SamplerSettings()
    schedule = inspect.signature(karras_sigmas).parameters
    for name in ("num_steps", "sigma_max", "rho"):
        assert schedule[name].default == getattr(settings, name)
    assert settings.sigma_min is settings.window_churn is None
    assert inspect.signature(sample).parameters["sigma_min"].default is None
    calls = inspect.signature(window_schedule).parameters["calls"].default
    assert calls == 2 * settings.num_steps - 1


def test_the_example_prints_what_it_finds(capsys):
    import runpy

    runpy.run_path(str(ROOT / "examples" / "minimal.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert float(lines[-2].split()[-1]) < 5.6 and float(lines[-1].split()[-1]) > 7.8


@pytest.mark.slow
def test_the_notebook_is_the_example_and_runs(capsys):
    """Its cells one after the other, as a kernel runs them."""
    import matplotlib

    matplotlib.use("agg")
    notebook = json.loads((ROOT / "examples" / "minimal.ipynb").read_text())
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    example = ast.parse((ROOT / "examples" / "minimal.py").read_text())
    for node in example.body:
        if isinstance(node, ast.FunctionDef) and node.name != "main":
            assert ast.unparse(node) in ast.unparse(ast.parse(cells[0]))
    names: dict = {}
    for cell in cells:
        exec(cell, names)
    assert "guided" in capsys.readouterr().out
    matplotlib.pyplot.close("all")
