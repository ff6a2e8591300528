"""On a real GPU, where there is one: it computes what the CPU does, up to rounding."""

import pytest
import torch

import train
from lab import assemble

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU"),
]


def test_guided_samples_of_a_gpu_are_those_of_the_cpu(tiny_model):
    def samples(device):
        flags = f"--checkpoint {tiny_model}/model.safetensors --digits embedded --num_sets 2"
        flags += " --batch_size 4 --num_steps 6 --precision float32 --pg_factor 3"
        flags += " --window_min 0.3 --window_max 5 --pg_sigma_min 0.01 --pg_sigma_max 80"
        job = assemble.evaluation([*flags.split(), "--device", device])
        return job.sampler.sample(torch.arange(2))

    torch.testing.assert_close(samples("cuda"), samples("cpu"), rtol=0, atol=1e-2)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_training_on_a_gpu_learns_and_goes_on(precision, tmp_path):
    flags = "--channels [16,16] --blocks 1 --attention [1] --head_channels 8 --patch_size 4"
    flags += " --target posterior --motion 2 --optimizer muon --lr 0.003 --batch_size 32"
    flags += " --warmup 5 --iterations 60 --digits embedded --device cuda"
    argv = [*flags.split(), "--precision", precision, "--outdir", str(tmp_path)]
    training, outdir = train.setup(argv)
    losses = [float(step["loss"]) for step in training]
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])
    training.save(outdir)
    training.load(outdir / "state.safetensors")
    assert training.iteration == 60
    assert all(each.isfinite().all() for each in training.net.parameters())
