"""Devices: which one to use, its precision, its free memory, its name."""

from __future__ import annotations

import torch

from config import reject


def pick_device(name: str) -> torch.device:
    """torch.device for "auto", "cpu" or "cuda". Raises SettingError where there is no CUDA."""
    if name == "cuda" and not torch.cuda.is_available():
        reject("device", name, "cpu or auto on a machine without a CUDA GPU")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def use_bfloat16(precision: str, device: torch.device) -> bool:
    """Whether the network runs in bfloat16 autocast."""
    if precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported()
    return precision == "bfloat16"


def free_memory(device: torch.device) -> int:
    """Memory that is available on a device, in bytes."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    return psutil.virtual_memory().available


def machine_name(device: torch.device, ranks: int) -> str:
    """What a run was computed on, for people: "1 x CPU, 2 threads"."""
    if device.type == "cuda":
        return f"{ranks} x {torch.cuda.get_device_name(device)}"
    return f"{ranks} x CPU, {torch.get_num_threads()} threads"
