"""Devices and processes: which GPU a process takes, memory, precision, shares of an evaluation.

On a real GPU, samples and trainings are those of the CPU, up to rounding.
"""

import gc
import json
import subprocess
import sys
import weakref

import numpy as np
import pytest
import torch
from conftest import ROOT

import evaluate
import sampler
import train
from diverse_sampling import devices
from diverse_sampling.errors import SettingError
from lab import assemble


def test_each_process_of_a_machine_takes_a_gpu_of_its_own(monkeypatch):
    taken = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    assert devices.pick_device("auto") == torch.device("cuda")
    for own in range(4):
        monkeypatch.setenv("LOCAL_RANK", str(own))
        assert devices.pick_device("auto") == torch.device("cuda", own)
        assert devices.pick_device("cpu") == torch.device("cpu")
    assert taken == [0, 1, 2, 3]
    monkeypatch.setenv("LOCAL_RANK", "4")
    with pytest.raises(SettingError, match="device: got 'auto'.*--nproc_per_node 4 at most"):
        devices.pick_device("auto")


def test_memory_that_the_allocator_holds_unused_is_free(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 70)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 30)
    assert devices.free_memory(torch.device("cuda")) == 140


def control_groups(root, lines: str, groups: dict[str, tuple]) -> None:
    """What Linux says of a process: its groups, and of some {folder: (limit, used, files)}."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(lines)
    for folder, (limit, used, files) in groups.items():
        group = root / "sys/fs/cgroup" / folder
        group.mkdir(parents=True, exist_ok=True)
        first = folder.startswith("memory")
        names = ("limit_in_bytes", "usage_in_bytes") if first else ("max", "current")
        for name, number in zip(names, (limit, used)):
            (group / f"memory.{name}").write_text(f"{number}\n")
        stat = f"inactive_file {files}\ntotal_inactive_file {files}\n"
        (group / "memory.stat").write_text(stat)


@pytest.mark.parametrize(
    "lines, groups, left",
    [
        ("0::/\n", {"": (1000, 400, 100)}, [700]),  # a container of version 2
        ("0::/a/b\n", {"a": (900, 100, 0), "a/b": ("max", 50, 0)}, [800]),
        ("4:memory:/docker/7\n3:cpu:/\n0::/\n", {"memory": (500, 450, 30)}, [80]),  # version 1
        ("4:memory:/job\n", {"memory": (2**63, 9, 0), "memory/job": (500, 600, 0)}, [0, 2**63 - 9]),
        ("0::/\n", {}, []),
        ("", {}, []),
    ],
)
def test_limits_of_containers_are_read(lines, groups, left, tmp_path, monkeypatch):
    control_groups(tmp_path, lines, groups)
    assert devices.container_memory(tmp_path) == left
    assert devices.container_memory(tmp_path / "elsewhere") == []
    monkeypatch.setattr(devices, "container_memory", lambda: [77])
    assert devices.free_memory(torch.device("cpu")) == 77


@pytest.mark.parametrize("space, most", [("jacobian", 20), ("denoised", 100)])
def test_a_set_that_cannot_fit_is_refused_with_a_size_that_does(
    space, most, tiny_model, tmp_path, refused, monkeypatch
):
    """Where a gradient runs through the network it needs more."""
    argv = ["--checkpoint", str(tiny_model / "model.safetensors"), "--digits", "embedded"]
    argv += ["--device", "cpu", "--num_sets", "1", "--pg_factor", "1", "--pg_space", space]
    argv += ["--num_steps", "2", "--sigma_min", "0.002", "--sampler", "edm"]
    one = assemble.evaluation([*argv, "--batch_size", "4"]).sampler.bytes_per_particle
    monkeypatch.setattr(sampler, "free_memory", lambda device: 20 * one)
    argv += ["--outdir", str(tmp_path / "run")]
    line = refused(evaluate.main, [*argv, "--batch_size", "1000"])
    assert f"batch_size: got 1000; accepted: at most {most};" in line
    assert not (tmp_path / "run").exists()
    assemble.evaluation([*argv, "--batch_size", str(most)])


@pytest.mark.parametrize("precision", ["auto", "float32", "tf32", "bfloat16"])
def test_tf32_is_used_for_all_operations_or_for_none(precision):
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        devices.set_precision(precision)
        used = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        assert used == (precision == "tf32",) * 2
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def test_a_reproducible_run_takes_no_other_algorithms_and_the_next_run_may(tmp_path):
    flags = ["--digits", "embedded", "--num_sets", "1", "--num_steps", "2", "--device", "cpu"]
    try:
        for name, only in (("a", True), ("b", False)):
            outdir = str(tmp_path / name)
            evaluate.main([*flags, "--reproducible", str(only).lower(), "--outdir", outdir])
            assert torch.are_deterministic_algorithms_enabled() == only
            assert torch.backends.cudnn.deterministic == only
    finally:
        devices.set_reproducible(False)
    one, other = (np.load(tmp_path / name / "samples.npz")["samples"] for name in "ab")
    assert (one == other).all()


@pytest.mark.slow
def test_an_evaluation_is_shared_by_processes_with_the_same_samples(tmp_path):
    flags = "--denoiser exact --digits embedded --num_sets 3 --pg_factor 3 --num_steps 4"
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    processes = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    for start, out in (([], alone), (processes, shared)):
        argv = [*start, "evaluate.py", *flags.split(), "--device", "cpu", "--outdir", str(out)]
        done = subprocess.run([sys.executable, *argv], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    with np.load(alone / "samples.npz") as a, np.load(shared / "samples.npz") as b:
        np.testing.assert_array_equal(a["samples"], b["samples"])
    a, b = (json.loads((out / "metrics.json").read_text()) for out in (alone, shared))
    for key in ("modes_found", "network_calls", "backward_calls"):
        assert a[key] == b[key]


# ---------------------------------------------------------------- on a real GPU, if there is one

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU")


@NO_GPU
@pytest.mark.gpu
def test_guided_samples_of_a_gpu_are_those_of_the_cpu(tiny_model):
    def samples(device):
        flags = f"--checkpoint {tiny_model}/model.safetensors --digits embedded --num_sets 2"
        flags += " --batch_size 4 --num_steps 6 --precision float32 --pg_factor 3"
        flags += " --window_min 0.3 --window_max 5 --pg_sigma_min 0.01 --pg_sigma_max 80"
        job = assemble.evaluation([*flags.split(), "--device", device])
        return job.sampler.sample(torch.arange(2))

    torch.testing.assert_close(samples("cuda"), samples("cpu"), rtol=0, atol=1e-2)


@NO_GPU
@pytest.mark.gpu
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


def test_what_a_computation_kept_is_freed_once_it_is_counted():
    results = []

    def compute():
        result = torch.ones(1000, requires_grad=True).exp()  # keeps its own result
        results.append(weakref.ref(result))
        return result

    assert devices.kept_bytes(compute) == 4000
    gc.collect()
    assert results[0]() is None
