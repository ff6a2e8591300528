"""Devices: which one to use, at which precision, how much memory is free, and what it is called."""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Callable

import torch
from torch import Tensor

from diverse_sampling.errors import reject


def pick_device(name: str) -> torch.device:
    """The device for "auto", "cpu" or "cuda"; auto is a CUDA GPU where there is one.

    Each process that torchrun starts on a machine takes the GPU of its own number. Raises
    SettingError for "cuda" on a machine without a CUDA GPU, and for more processes than GPUs.
    """
    if name == "cuda" and not torch.cuda.is_available():
        reject("device", name, "cpu or auto on a machine without a CUDA GPU")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if "LOCAL_RANK" not in os.environ:
        return torch.device("cuda")
    own = int(os.environ["LOCAL_RANK"])
    if own >= torch.cuda.device_count():
        reject(
            "device",
            name,
            f"cpu, or torchrun with --nproc_per_node {torch.cuda.device_count()} at most: there "
            "are no more GPUs here",
        )
    torch.cuda.set_device(own)
    return torch.device("cuda", own)


def use_bfloat16(precision: str, device: torch.device) -> bool:
    """Whether the network runs in bfloat16 autocast, for "auto", "float32" or "bfloat16".

    "auto" is bfloat16 on a GPU that computes in it, float32 elsewhere.
    """
    if precision == "auto":
        on_gpu = device.type == "cuda"
        return on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    return precision == "bfloat16"


def set_precision(precision: str) -> None:
    """Let products and convolutions in float32 use TF32 for "tf32", and only then.

    By default PyTorch rounds the inputs of convolutions to TF32's 10 bits on a GPU, but not those
    of products.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"


def set_reproducible(only: bool) -> None:
    """Let a GPU take only algorithms whose results are the same bits every time, or any.

    Without it, backward passes of attention, cuDNN's convolutions and sums of scattered values may
    add up in another order. Where PyTorch knows no such algorithm it warns and takes another.
    """
    if only:
        # What cuBLAS needs for it, read when it starts.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if only != torch.are_deterministic_algorithms_enabled():  # the call imports for two seconds
        torch.use_deterministic_algorithms(only, warn_only=True)
    torch.backends.cudnn.deterministic = only


def free_memory(device: torch.device) -> int:
    """Memory that is available on a device, in bytes, with what the allocator holds unused."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    try:
        import psutil
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("free memory is read by psutil: pip install psutil") from error

    return min(psutil.virtual_memory().available, *container_memory())


def container_memory(root: Path = Path("/")) -> list[int]:
    """What is left of each limit on memory that this process's control groups set, in bytes.

    Containers and batch systems set them, in version 1 or 2 of Linux's control groups; a process
    that exceeds one is killed. Files that the system only remembers count as left.

    Arguments:
        root: where /proc and /sys are
    """
    left = []
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # another system
        return []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        mount = root / "sys/fs/cgroup" / controllers
        names = ("memory.max", "memory.current", "inactive_file")
        if controllers:
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        group = mount / path.strip("/")
        for folder in (
            group,
            *(parent for parent in group.parents if mount in (parent, *parent.parents)),
        ):
            try:
                limit, used = ((folder / name).read_text().strip() for name in names[:2])
                stat = dict(
                    row.split() for row in (folder / "memory.stat").read_text().splitlines()
                )
            except OSError:  # a container sees its own group at the mount alone
                continue
            if limit != "max":
                left.append(max(0, int(limit) - int(used) + int(stat.get(names[2], 0))))
    return left


def kept_bytes(compute: Callable[[], Tensor]) -> int:
    """Memory that a computation keeps for its gradient, in bytes. It is computed once."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor.detach()  # an operation that kept its own result would never be freed

    # A compiled network is measured uncompiled. Where torch._dynamo was never imported, which takes
    # seconds, there is none.
    compiled = "torch._dynamo" in sys.modules
    with (
        torch.enable_grad(),
        torch.compiler.set_stance("force_eager") if compiled else nullcontext(),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
    ):
        # Kept alive until everything is counted, or freed memory would be counted twice.
        kept = compute()
        total = sum(storages.values())
    del kept
    return total


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory could not be had, of a GPU or of the machine."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and "allocate memory" in str(error)


def machine_name(device: torch.device, ranks: int) -> str:
    """The hardware that a run of `ranks` processes is computed on, such as "1 x CPU, 2 threads"."""
    if device.type == "cuda":
        return f"{ranks} x {torch.cuda.get_device_name(device)}"
    threads = torch.get_num_threads()
    return f"{ranks} x CPU, {threads} thread{'s' * (threads != 1)}"
