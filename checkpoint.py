"""Checkpoints: safetensors with the whole configuration as metadata, never pickle.

    model.safetensors            the EMA weights and what they are: enough to sample
    state.safetensors            raw weights, EMA, optimizer and iteration: enough to go on
    state-previous.safetensors   the state before, to fall back on

They are written to a temporary file and renamed, so a reader never sees half of one, and carry a hash of what they
hold.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any, Sequence, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from config import ModelSettings, SettingError, WorldSettings, build
from model import Classifier, EDMDenoiser, UNet

T = TypeVar("T", bound=nn.Module)
FORMAT = "1"


def digest(tensors: dict[str, Tensor], metadata: str) -> str:
    """SHA-256 of a checkpoint's names, tensors and metadata."""
    sha = hashlib.sha256(metadata.encode())
    for name in sorted(tensors):
        sha.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        sha.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def save_tensors(
    path: Path | str,
    tensors: dict[str, Tensor],
    metadata: dict[str, Any],
    previous: Path | None = None,
) -> None:
    """Write tensors and JSON-able metadata to `path`, all or nothing; what was there moves to `previous`.
    Raises OSError, with the file at `path` as it was, where the disk is full."""
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(metadata)
    try:
        with open(temporary, "wb") as file:  # not by save_file, whose files nobody else may read
            file.write(
                save(tensors, {"format": FORMAT, "metadata": text, "sha256": digest(tensors, text)})
            )
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(f"checkpoint: {path} cannot be written ({error})") from None
    if previous is not None and path.is_file():
        previous.unlink(missing_ok=True)
        try:
            os.link(path, previous)  # so that there is a file at `path` all the time
        except OSError:  # a file system without links
            os.replace(path, previous)
    os.replace(temporary, path)


def _open(path: Path | str):
    if not Path(path).is_file():
        raise SettingError(
            f"checkpoint: {path} is not a file; accepted: a .safetensors file that train.py wrote"
        )
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise SettingError(f"checkpoint: {path} cannot be read ({error})") from None


def _header(file, path: Path | str) -> dict[str, str]:
    header = file.metadata() or {}
    if header.get("format") != FORMAT or "metadata" not in header:
        raise SettingError(
            f"checkpoint: {path} is of format {header.get('format')!r}; accepted: {FORMAT!r}"
        )
    return header


def read_metadata(path: Path | str) -> dict[str, Any]:
    """What a checkpoint says of itself. Raises SettingError for anything but our files."""
    with _open(path) as file:
        text = _header(file, path)["metadata"]
    try:
        return json.loads(text)
    except ValueError as error:
        raise SettingError(
            f"checkpoint: {path} is damaged ({error}); accepted: a copy that is whole"
        ) from None


def read_tensors(path: Path | str) -> dict[str, Tensor]:
    """The tensors of a checkpoint. Raises SettingError if they are not those that were written."""
    with _open(path) as file:
        header = _header(file, path)
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    if header.get("sha256") != digest(tensors, header["metadata"]):
        raise SettingError(
            f"checkpoint: {path} is damaged (its hash does not fit); accepted: a copy that is whole"
        )
    return tensors


def halved(module: nn.Module) -> dict[str, Tensor]:
    """The weights of a module in half precision, its single numbers as they are."""
    return {
        name: tensor.half() if tensor.ndim else tensor
        for name, tensor in module.state_dict().items()
    }


def make_denoiser(
    settings: dict[str, Any], sigma_data: float, box: Sequence[int] | None = None
) -> EDMDenoiser:
    """The untrained network that a flat record of settings describes, with what was measured of its data."""
    world, model = build(WorldSettings, settings), build(ModelSettings, settings)
    assert world.num_cond_frames is not None  # it was None before __post_init__ only
    unet = UNet(
        world.num_cond_frames + 1,
        1,
        channels=model.channels,
        blocks=model.blocks,
        attention=model.attention,
        head_channels=model.head_channels,
        patch_size=model.patch_size,
        motion=model.motion,
        dropout=model.dropout,
        num_classes=10 if model.class_labels else 0,
    )
    return EDMDenoiser(unet, sigma_data, box).to(memory_format=torch.channels_last)


def denoiser_metadata(path: Path | str) -> dict[str, Any]:
    """What a trained denoiser says of itself. Raises SettingError for anything else."""
    metadata = read_metadata(path)
    if "sigma_data" not in metadata:
        raise SettingError(f"checkpoint: {path} is no denoiser; accepted: what train.py wrote")
    return metadata


def load_denoiser(path: Path | str, device="cpu") -> tuple[EDMDenoiser, dict[str, Any]]:
    """(the trained denoiser in float32, in evaluation mode; its metadata). Raises SettingError."""
    metadata = denoiser_metadata(path)
    denoiser = make_denoiser(metadata["settings"], metadata["sigma_data"], metadata.get("box"))
    return _load(denoiser, path, device), metadata


def load_classifier(role: str, device="cpu") -> Classifier:
    """The shipped classifier of a role, "judge" or "guide", in evaluation mode. Raises SettingError."""
    path = Path(__file__).parent / "checkpoints" / f"classifier_{role}.safetensors"
    return _load(Classifier(read_metadata(path)["settings"]["channels"]), path, device)


def _load(module: T, path: Path | str, device) -> T:
    try:
        module.load_state_dict(
            {name: tensor.float() for name, tensor in read_tensors(path).items()}
        )
    except RuntimeError as error:
        raise SettingError(
            f"checkpoint: {path} does not fit the network it describes "
            f"({str(error).splitlines()[-1].strip()})"
        ) from None
    return module.to(device).eval().requires_grad_(False)


# ---------------------------------------------------------------- state of a training run


def pack(prefix: str, state: dict) -> tuple[dict[str, Tensor], list[dict]]:
    """An optimizer's state_dict as (flat tensors, JSON-able parameter groups)."""
    tensors = {
        f"{prefix}.{index}.{key}": torch.as_tensor(value)
        for index, entry in state["state"].items()
        for key, value in entry.items()
    }
    return tensors, state["param_groups"]


def unpack(prefix: str, tensors: dict[str, Tensor], groups: list[dict]) -> dict:
    """The inverse of `pack`."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith(prefix + "."):
            index, key = name[len(prefix) + 1 :].split(".", 1)
            state.setdefault(int(index), {})[key] = tensor
    return {"state": state, "param_groups": groups}
