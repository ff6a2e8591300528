"""Checkpoints: safetensors files with their whole configuration as metadata, never pickles.

    model.safetensors            the averaged weights and what they are: enough to sample from
    state.safetensors            raw and averaged weights, optimizer, iteration: enough to continue
    state-previous.safetensors   the state before, to fall back on

Each is written to a temporary file and renamed, so that a reader never sees a part of one, and
carries a hash of its content. Whatever is wrong with a file is one line that names it.
"""

from __future__ import annotations

import hashlib
import json
import os
import textwrap
from pathlib import Path
from typing import Any, Literal, Sequence, TypeVar, overload

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from config import ModelSettings, WorldSettings, build
from diverse_sampling.errors import SettingError, reject
from lab.classifier import Classifier, NoisyClassifier
from lab.files import as_json
from model import EDMDenoiser, UNet

T = TypeVar("T", bound=nn.Module)
FORMAT = "1"
WRITTEN = "a .safetensors file that train.py wrote"


def digest(tensors: dict[str, Tensor], metadata: str) -> str:
    """The SHA-256 hash of a checkpoint's tensors, their names, and its metadata, in hexadecimal."""
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
    """Write a checkpoint, all of it or nothing.

    Arguments:
        path: the file to write
        tensors: by name, on any device
        metadata: what JSON can express
        previous: where a file that is at `path` already is kept, None to replace it

    Raises OSError, with the file at `path` as it was, where it cannot be written (a full disk).
    """
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = as_json(metadata)
    try:
        header = {"format": FORMAT, "metadata": text, "sha256": digest(tensors, text)}
        with open(temporary, "wb") as file:  # save_file's files are readable by their owner only
            file.write(save(tensors, header))
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
    """The file at `path`, opened with safetensors. Raises SettingError where there is none."""
    path = Path(path)
    if path.is_dir():
        raise SettingError(f"checkpoint: {path.absolute()} is a directory; accepted: {WRITTEN}")
    if not path.is_file():
        raise SettingError(f"checkpoint: {path.absolute()} was not found; accepted: {WRITTEN}")
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise SettingError(f"checkpoint: {path} cannot be read ({error})") from None


def _header(file: Any, path: Path | str) -> dict[str, str]:
    """The metadata of an open safetensors file. Raises SettingError where it is not ours."""
    header = file.metadata() or {}
    if header.get("format") != FORMAT or "metadata" not in header:
        raise SettingError(
            f"checkpoint: {path} is of format {header.get('format')!r}; accepted: {FORMAT!r}"
        )
    return header


def _damaged(path: Path | str, how: object) -> SettingError:
    return SettingError(f"checkpoint: {path} is damaged ({how}); accepted: an undamaged copy")


def read_metadata(path: Path | str) -> dict[str, Any]:
    """The metadata of a checkpoint, without its tensors.

    Raises SettingError for a file that is missing, damaged, or not a checkpoint.
    """
    with _open(path) as file:
        text = _header(file, path)["metadata"]
    try:
        return json.loads(text)
    except ValueError as error:
        raise _damaged(path, error) from None


def read_tensors(path: Path | str) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, on the CPU.

    Raises SettingError for a file that is missing or not a checkpoint, and where the tensors are
    not those that were written.
    """
    with _open(path) as file:
        header = _header(file, path)
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    if header.get("sha256") != digest(tensors, header["metadata"]):
        raise _damaged(path, "its hash does not match its content")
    return tensors


def halved(module: nn.Module) -> dict[str, Tensor]:
    """The state of a module by name: weights in half precision, scalars as they are."""
    return {
        name: tensor.half() if tensor.ndim else tensor
        for name, tensor in module.state_dict().items()
    }


def make_denoiser(
    channels: Sequence[int],
    model: ModelSettings,
    sigma_data: float,
    box: Sequence[int] | None = None,
) -> EDMDenoiser:
    """The network that settings describe, with random weights, on the CPU.

    Arguments:
        channels: of the conditioning frames together, and of the frame to generate
        model: the network's own settings
        sigma_data: standard deviation of the data in [-1, 1]
        box: the part of the frame that it works on, as in `EDMDenoiser`
    """
    given, generated = channels
    unet = UNet(
        given + generated,
        generated,
        channels=model.channels,
        blocks=model.blocks,
        attention=model.attention,
        head_channels=model.head_channels,
        patch_size=model.patch_size,
        motion=model.motion,
        dropout=model.dropout,
        num_classes=10 if model.class_labels else 0,
    )
    denoiser = EDMDenoiser(unet, sigma_data, box).to(memory_format=torch.channels_last)
    for parameter in denoiser.parameters():
        if parameter.ndim == 4 and parameter.shape[2:] == (1, 1):
            # The strides of its gradient, a matrix; any are channels-last. Processes that exchange
            # gradients would copy them otherwise.
            strides = (parameter.shape[1], 1, 1, 1)
            parameter.data = parameter.data.as_strided(parameter.shape, strides)
    return denoiser


def denoiser_metadata(path: Path | str) -> dict[str, Any]:
    """The metadata of a trained denoiser. Raises SettingError for any other file."""
    metadata = read_metadata(path)
    if "groups" in metadata:  # of an optimizer
        network = Path(path).absolute().with_name("model.safetensors")
        raise SettingError(
            f"checkpoint: {path} is the state of a training; accepted: its network, {network}"
        )
    if "sigma_data" not in metadata:
        raise SettingError(f"checkpoint: {path} is not a denoiser; accepted: {WRITTEN}")
    metadata["settings"].setdefault("data", _said_before(metadata["settings"]))
    return metadata


def _said_before(settings: dict[str, Any]) -> str | None:
    """The setting `data` of a training by an earlier version, which had a setting for each key."""
    values = settings.get("answer_classes")
    said = dict(
        order=settings.get("frame_axes"),
        range=settings.get("value_range"),
        classes=values and {f"{value:g}": value for value in values},
    )
    text = as_json({key: value for key, value in said.items() if value})
    return None if text == "{}" else text


def model_settings(metadata: dict[str, Any]) -> ModelSettings:
    """The settings of a checkpoint's network."""
    return build(ModelSettings, metadata["settings"])


def load_denoiser(
    path: Path | str, device: torch.device | str = "cpu"
) -> tuple[EDMDenoiser, dict[str, Any]]:
    """A trained denoiser, in float32 and in evaluation mode, and its metadata.

    Raises SettingError for any other file.
    """
    metadata = denoiser_metadata(path)
    settings = metadata["settings"]
    world = build(WorldSettings, settings)
    denoiser = make_denoiser(
        metadata.get("channels") or [world.num_cond_frames or 0, 1],
        model_settings(metadata),
        metadata["sigma_data"],
        metadata.get("box"),
    )
    return _load(denoiser, path, device), metadata


@overload
def load_classifier(
    role: Literal["noisy"], device: torch.device | str = "cpu"
) -> NoisyClassifier: ...


@overload
def load_classifier(role: Literal["judge"], device: torch.device | str = "cpu") -> Classifier: ...


def load_classifier(
    role: Literal["judge", "noisy"], device: torch.device | str = "cpu"
) -> Classifier | NoisyClassifier:
    """An included classifier, in float32 and in evaluation mode.

    `role` is "judge" for the one that measures samples, "noisy" for the one of noisy images.
    Raises SettingError if it is missing or damaged.
    """
    return read_classifier(classifier_path(role), device)


def classifier_path(role: str) -> Path:
    """The file of an included classifier."""
    return Path(__file__).parent.parent / "checkpoints" / f"classifier_{role}.safetensors"


def noisy_classifier_path(name: Path | str) -> Path:
    """The file of a classifier that somebody names: a path, or what is included under that name."""
    included = classifier_path(str(name))
    path = Path(name).expanduser()
    return included if included.is_file() and not path.is_file() else path


def read_classifier(
    path: Path | str, device: torch.device | str = "cpu"
) -> Classifier | NoisyClassifier:
    """A classifier that `lab/train_classifier.py` wrote, in float32 and in evaluation mode.

    Raises SettingError for any other file.
    """
    metadata = read_metadata(path)
    if "network" in metadata:
        return _load(NoisyClassifier(**metadata["network"]), path, device)
    if "accuracy" not in metadata:
        raise SettingError(
            f"checkpoint: {path} is not a classifier; accepted: a file that "
            "lab/train_classifier.py wrote"
        )
    return _load(Classifier(metadata["settings"]["channels"]), path, device)


def read_noisy_classifier(
    path: Path | str, world: Any, device: torch.device | str = "cpu"
) -> NoisyClassifier:
    """The classifier of noisy pictures at `path`, for a world of classes.

    Raises SettingError for any other file, and for a classifier of other classes than the world's
    or of pictures of another size. One of clusters knows no classes.
    """
    path = noisy_classifier_path(path)
    written = "a file that lab/train_classifier.py wrote"
    try:
        net = read_classifier(path, device)
    except SettingError as error:
        reject("classifier", str(path), f"{written} ({error})")
    if not isinstance(net, NoisyClassifier):
        reject("classifier", str(path), f"{written} with --noisy or --frames")
    metadata = read_metadata(path)
    data = metadata.get("data")
    names = list(map(str, range(net.classes))) if data is None else data["class_names"]
    net.of_clusters = metadata["settings"].get("clusters") is not None
    if not net.of_clusters and names != list(world.class_names):
        known, needed = (
            textwrap.shorten(", ".join(each), 80) for each in (names, world.class_names)
        )
        reject("classifier", str(path), f"one of the classes {needed}; it tells {known}")
    here = (world.answer_channels, *world.frame_shape)
    if (net.colours, *net.image_size) != here:
        reject(
            "classifier",
            str(path),
            f"one of pictures of {' x '.join(map(str, here))} (channels, rows, columns); it knows "
            + " x ".join(map(str, (net.colours, *net.image_size))),
        )
    return net


def _load(module: T, path: Path | str, device: torch.device | str) -> T:
    """The module with the weights at `path`, in evaluation mode. Raises SettingError."""
    tensors = {name: tensor.float() for name, tensor in read_tensors(path).items()}
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        reason = textwrap.shorten(str(error).splitlines()[-1], width=160, placeholder=" ...")
        raise SettingError(
            f"checkpoint: {path} does not fit the network it describes ({reason})"
        ) from None
    return module.to(device).eval().requires_grad_(False)


# ---------------------------------------------------------------- state of a training run


def pack(prefix: str, state: dict) -> tuple[dict[str, Tensor], list[dict]]:
    """An optimizer's state_dict as tensors by name and parameter groups that JSON can express.

    Names are PREFIX.INDEX.KEY, with the index of the parameter.
    """
    tensors = {
        f"{prefix}.{index}.{key}": torch.as_tensor(value)
        for index, entry in state["state"].items()
        for key, value in entry.items()
    }
    return tensors, state["param_groups"]


def unpack(prefix: str, tensors: dict[str, Tensor], groups: list[dict]) -> dict:
    """The inverse of `pack`, from all tensors of a checkpoint: an optimizer's state_dict."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith(prefix + "."):
            index, key = name[len(prefix) + 1 :].split(".", 1)
            state.setdefault(int(index), {})[key] = tensor
    return {"state": state, "param_groups": groups}
