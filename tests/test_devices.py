"""Devices and processes: which GPU a process takes, memory, precision, shares of an evaluation."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT

import evaluate
from diverse_sampling import devices
from diverse_sampling.errors import SettingError


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
    argv = ["--denoiser", "exact", "--digits", "embedded", "--num_sets", "5", "--pg_factor", "3"]
    argv += ["--num_steps", "8", "--device", "cpu"]
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    processes = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    for start, out in (([], alone), (processes, shared)):
        done = subprocess.run(
            [sys.executable, *start, "evaluate.py", *argv, "--outdir", str(out)],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
    with np.load(alone / "samples.npz") as a, np.load(shared / "samples.npz") as b:
        np.testing.assert_array_equal(a["samples"], b["samples"])
    a, b = (json.loads((out / "metrics.json").read_text()) for out in (alone, shared))
    for key in ("modes_found", "network_calls", "backward_calls"):
        assert a[key] == b[key]
