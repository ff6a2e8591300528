"""Checkpoints: safetensors with the whole configuration as metadata, never pickle.

    model.safetensors   the EMA weights and what they are: enough to sample
    state.safetensors   raw weights, EMA, optimizer and iteration: enough to go on

Both are written to a temporary file and renamed, so a reader never sees half of one.
"""
from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Sequence, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from config import ModelSettings, SettingError, WorldSettings, build
from model import Classifier, EDMDenoiser, UNet

T = TypeVar("T", bound=nn.Module)
FORMAT = "1"


def save_tensors(path: Path | str, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """Write tensors and JSON-able metadata to `path`, all or nothing."""
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(tensors, temporary, {"format": FORMAT, "metadata": json.dumps(metadata)})
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _open(path: Path | str):
    if not Path(path).is_file():
        raise SettingError(f"checkpoint: {path} is not a file; accepted: a .safetensors file that train.py wrote")
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise SettingError(f"checkpoint: {path} cannot be read ({error})") from None


def read_metadata(path: Path | str) -> dict[str, Any]:
    """What a checkpoint says of itself. Raises SettingError for anything but our files."""
    with _open(path) as file:
        header = file.metadata() or {}
    if header.get("format") != FORMAT or "metadata" not in header:
        raise SettingError(f"checkpoint: {path} is of format {header.get('format')!r}; accepted: {FORMAT!r}")
    return json.loads(header["metadata"])


def read_tensors(path: Path | str) -> dict[str, Tensor]:
    with _open(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}


def halved(module: nn.Module) -> dict[str, Tensor]:
    """The weights of a module in half precision, its single numbers as they are."""
    return {name: tensor.half() if tensor.ndim else tensor for name, tensor in module.state_dict().items()}


def make_denoiser(settings: dict[str, Any], sigma_data: float, box: Sequence[int] | None = None) -> EDMDenoiser:
    """The untrained network that a flat record of settings describes, with what was measured of its data."""
    world, model = build(WorldSettings, settings), build(ModelSettings, settings)
    unet = UNet(world.num_cond_frames + 1, 1, channels=model.channels, blocks=model.blocks,
                attention=model.attention, head_channels=model.head_channels, patch_size=model.patch_size,
                motion=model.motion, dropout=model.dropout, num_classes=10 if model.class_labels else 0)
    return EDMDenoiser(unet, sigma_data, box).to(memory_format=torch.channels_last)


def load_denoiser(path: Path | str, device="cpu") -> tuple[EDMDenoiser, dict[str, Any]]:
    """(the trained denoiser in float32, in evaluation mode; its metadata). Raises SettingError."""
    metadata = read_metadata(path)
    if "sigma_data" not in metadata:
        raise SettingError(f"checkpoint: {path} is no denoiser; accepted: what train.py wrote")
    denoiser = make_denoiser(metadata["settings"], metadata["sigma_data"], metadata.get("box"))
    return _load(denoiser, path, device), metadata


def load_classifier(role: str, device="cpu") -> Classifier:
    """The shipped classifier of a role, "judge" or "guide", in evaluation mode. Raises SettingError."""
    path = Path(__file__).parent / "checkpoints" / f"classifier_{role}.safetensors"
    return _load(Classifier(read_metadata(path)["settings"]["channels"]), path, device)


def _load(module: T, path: Path | str, device) -> T:
    try:
        module.load_state_dict({name: tensor.float() for name, tensor in read_tensors(path).items()})
    except RuntimeError as error:
        raise SettingError(f"checkpoint: {path} does not fit the network it describes "
                           f"({str(error).splitlines()[-1].strip()})") from None
    return module.to(device).eval().requires_grad_(False)


# ---------------------------------------------------------------- state of a training run

def pack(prefix: str, state: dict) -> tuple[dict[str, Tensor], list[dict]]:
    """An optimizer's state_dict as (flat tensors, JSON-able parameter groups)."""
    tensors = {f"{prefix}.{index}.{key}": torch.as_tensor(value)
               for index, entry in state["state"].items() for key, value in entry.items()}
    return tensors, state["param_groups"]


def unpack(prefix: str, tensors: dict[str, Tensor], groups: list[dict]) -> dict:
    """The inverse of `pack`."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith(prefix + "."):
            index, key = name[len(prefix) + 1:].split(".", 1)
            state.setdefault(int(index), {})[key] = tensor
    return {"state": state, "param_groups": groups}
