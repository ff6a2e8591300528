"""The code in the documentation runs, and does what the text says."""
import re

import pytest
import torch

import evaluate
from conftest import ROOT
from potentials import POTENTIALS, Bandwidth

PAGES = ["README.md", "docs/guidance.md", "docs/results.md", "docs/performance.md"]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "guidance.md").read_text(), flags=re.S)


def test_a_potential_of_ones_own():
    before = dict(POTENTIALS)
    try:
        exec(next(block for block in BLOCKS if "class Student" in block), {})
        y = torch.randn(2, 5, 7, dtype=torch.float64, requires_grad=True)
        mine = POTENTIALS["student"](Bandwidth("fixed", 3.0))
        expected, = torch.autograd.grad(mine.energy(y).sum(), y)
        torch.testing.assert_close(mine.grad(y.detach()), expected)
        result = evaluate.run(evaluate.setup(["--denoiser", "exact", "--digits", "embedded", "--num_sets", "20",
                                              "--pg_kernel", "student", "--pg_factor", "5", "--redraws", "0"]))[2]
        assert result["modes_found"]["mean"] > result["modes_expected_iid"] + 0.5
    finally:
        POTENTIALS.clear()
        POTENTIALS.update(before)


def test_an_unregistered_potential_is_refused(refused):
    line = refused(evaluate.main, ["--denoiser", "exact", "--digits", "embedded", "--pg_kernel", "student"])
    assert "pg_kernel: got 'student'" in line and "'logdet'" in line


def test_guidance_around_a_diffusers_unet():
    torch.manual_seed(0)
    names: dict = {}
    exec(next(block for block in BLOCKS if "UNet2DModel" in block), names)
    samples, sigmas = names["samples"], names["sigmas"]
    assert samples.shape == (2, 4, 1, 16, 16) and samples.isfinite().all()
    with torch.no_grad():
        alone = names["edm_sampler"](names["denoise"], names["noise"], sigmas)
    distance = lambda x: torch.stack([torch.pdist(each.flatten(1)).mean() for each in x]).mean()
    assert distance(samples) > distance(alone)


@pytest.mark.parametrize("path", PAGES)
def test_every_link_and_file_name_leads_somewhere(path):
    text = (ROOT / path).read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert ((ROOT / path).parent / target).exists(), target
    for name in re.findall(r"`([a-z_]+\.py)`", text):
        assert (ROOT / name).is_file(), name


@pytest.mark.parametrize("path", PAGES)
def test_every_flag_in_the_documentation_exists(path):
    import train
    from command_line import make_parser
    from config import ClassifierSettings, ExperimentSettings

    known = {option for groups in (evaluate.GROUPS, train.GROUPS, (ClassifierSettings, ExperimentSettings))
             for action in make_parser(*groups, description="")._actions for option in action.option_strings}
    known |= {"--set", "--nproc_per_node", "--threshold", "--value", "--network", "--print_completion"}
    known |= {"--nodes", "--ntasks", "--gpus", "--nnodes", "--rdzv_backend", "--rdzv_endpoint"}  # srun and torchrun
    flags = set(re.findall(r"(--[a-z][a-z_]+)", (ROOT / path).read_text()))
    assert flags - known == set()
