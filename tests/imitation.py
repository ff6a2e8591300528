"""An imitation of a GPU, which finds what one would refuse.

    with GPU() as gpu:
        training, _ = train.setup([..., "--device", "cuda"])
        next(iter(training))
    assert gpu.errors == []

Everything is computed on the CPU, so that every number is real and every branch is taken. Only the
storages of tensors are marked: in the memory of the GPU. torch answers as if there were one GPU
(`Answers`, and what `_torch` replaces), and the marks are followed through every operation
(`Follow`). Errors are operations on tensors of both sides; .numpy() of a tensor on the GPU; a
generator of the other side; and a kernel that is compiled where it runs, which needs a C compiler.

Not seen: other threads, gradients of tensors of the host, the dtypes of CUDA's autocast, limits of
kernels, cuDNN, torch.compile.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Callable, Iterator
from unittest import mock

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ROOT = Path(__file__).resolve().parent.parent
CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
MEMORY = 64 * 2**30  # bytes that the imitation says are free
INDEXING = {"index", "_unsafe_index", "index_put", "index_put_", "_index_put_impl_"}
# Operations that take a number of the host in place of a tensor, beside those that work by element.
TAKE_NUMBERS = {"fill_", "masked_fill", "masked_fill_", "where", *INDEXING}


class Storages:
    """A set of storages. A storage is out of it once it is freed."""

    def __init__(self) -> None:
        # While there is a weak reference, the address is not used again.
        self.held: dict[int, StorageWeakRef] = {}

    def __contains__(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self.held

    def add(self, tensor: Tensor) -> Tensor:
        """Put the storage of a tensor into the set; returns the tensor."""
        storage = tensor.untyped_storage()
        self.held[storage._cdata] = StorageWeakRef(storage)
        if len(self.held) % 20_000 == 0:
            self.held = {key: ref for key, ref in self.held.items() if not ref.expired()}
        return tensor


class GPU:
    """The imitation, as a context; see the top of this file.

    Attributes:
        errors: what a GPU would have refused so far, each as "FILE:LINE: what was done"
        there: which storages are in the GPU's memory; what caches hold stays there for the next one
    """

    there = Storages()

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.made_there = 0  # > 0: what an operation makes of no tensor is on the GPU

    def __enter__(self) -> GPU:
        self.stack = ExitStack()
        self.stack.enter_context(_torch(self))
        self.stack.enter_context(Answers(self))
        self.stack.enter_context(Follow(self))
        return self

    def __exit__(self, *error: Any) -> None:
        self.stack.close()

    def refused(self, what: str) -> None:
        """Note an error of the line that runs."""
        self.errors.append(f"{_line()}: {what}")

    def making(self, there: bool, func: Callable, *args: Any, **kwargs: Any) -> Any:
        """Call a function; what it makes of no tensor is on the GPU, if `there`."""
        self.made_there += there
        try:
            return func(*args, **kwargs)
        finally:
            self.made_there -= there


def _line() -> str:
    """The innermost line of the project that runs, this file left out."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(f"{ROOT}/") and name != __file__ and "/site-packages/" not in name:
            return f"{name[len(str(ROOT)) + 1 :]}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "a library"


def _tensors(*values: Any) -> list[Tensor]:
    """All tensors among values, and in lists, tuples and dictionaries of them."""
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


class Follow(TorchDispatchMode):
    """Follows the marks of a GPU through every operation."""

    def __init__(self, gpu: GPU):
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        gpu = self.gpu
        given = _tensors(*args, *kwargs.values())
        there = [tensor for tensor in given if tensor in gpu.there]
        if there:
            name = func._schema.name.split("::")[1]
            self.check(name, args, given, there, torch.Tag.pointwise in func.tags)
        out = func(*args, **kwargs)
        if not there and (given or not gpu.made_there):
            return out
        made = _tensors(out)
        known = {tensor.untyped_storage()._cdata for tensor in given}
        for tensor in made:
            if tensor.untyped_storage()._cdata not in known:
                gpu.there.add(tensor)
        return out

    def check(
        self, name: str, args: tuple, given: list[Tensor], there: list[Tensor], by_element: bool
    ) -> None:
        """Note what a GPU refuses of an operation with a tensor on it."""
        gpu = self.gpu
        host = [tensor for tensor in given if tensor not in gpu.there]
        if name == "bmm" and args[0].shape[2] == 1:
            gpu.refused("bmm of inner size 1: its kernel needs a C compiler")
        if name in INDEXING and args[0] in gpu.there:
            host = [each for each in host if not any(each is index for index in args[1])]
        if name != "copy_" and host:
            numbers = all(tensor.ndim == 0 for tensor in host)
            if not (numbers and (by_element or name in TAKE_NUMBERS)):
                shapes = [tuple(tensor.shape) for tensor in (*there, *host)][:4]
                gpu.refused(f"{name} of {len(there)} there, {len(host)} here: {shapes}")


class Answers(TorchFunctionMode):
    """Answers for devices; what is computed is computed on the CPU."""

    def __init__(self, gpu: GPU):
        super().__init__()
        self.gpu = gpu

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        gpu = self.gpu
        name = getattr(func, "__name__", "")
        if name == "__get__":  # a property: no new storage
            return func(*args, **kwargs)
        if func is Tensor.to:
            return self.to(args[0], *self.target(args[1:], kwargs))
        if func in (Tensor.cpu, Tensor.cuda):
            return self.to(args[0], CPU if func is Tensor.cpu else CUDA, {})
        there = any(tensor in gpu.there for tensor in _tensors(*args, *kwargs.values()))
        if there and func in (Tensor.numpy, Tensor.__array__):
            gpu.refused(f"{name} of a tensor on the GPU")
        device = kwargs.get("device")
        target = CPU if device is None else torch.device(device)
        if device is not None:
            kwargs["device"] = CPU if target.type == "cuda" else target
        self.check_generator(name, kwargs.get("generator"), target if device else None, there)
        made = target.type == "cuda" or (there and device is None)
        out = gpu.making(made, func, *args, **kwargs)
        if there and func is Tensor.__deepcopy__:  # which copies a buffer without an operation
            gpu.there.add(out)
        if target.type == "cuda":
            if name in ("tensor", "as_tensor", "asarray", "new_tensor"):
                out = out.clone()
            for tensor in _tensors(out):
                gpu.there.add(tensor)
        return out

    def check_generator(
        self, name: str, generator: Any, target: torch.device | None, there: bool
    ) -> None:
        """Note a generator that is not where its numbers are asked for."""
        if generator is not None:
            side = target or (CUDA if there else CPU)
            if generator.device.type != side.type:
                self.gpu.refused(f"{name} on {side.type} by a generator on {generator.device.type}")

    @staticmethod
    def target(args: tuple, kwargs: dict) -> tuple[torch.device | None, dict]:
        """Device, and what else arguments of Tensor.to ask for."""
        device, dtype = kwargs.pop("device", None), kwargs.pop("dtype", None)
        kwargs.pop("non_blocking", None)
        for arg in (*args, kwargs.pop("other", None)):
            if isinstance(arg, Tensor):
                device, dtype = arg.device, arg.dtype
            elif isinstance(arg, (str, torch.device)):
                device = arg
            elif isinstance(arg, torch.dtype):
                dtype = arg
        if dtype is not None:
            kwargs["dtype"] = dtype
        return None if device is None else torch.device(device), kwargs

    def to(self, tensor: Tensor, target: torch.device | None, others: dict) -> Tensor:
        """Tensor.to: a tensor on a side, in another type or layout."""
        gpu = self.gpu
        there = tensor in gpu.there
        if target is None or (target.type == "cuda") == there:
            return gpu.making(there, tensor.to, **others) if others else tensor
        if others:
            tensor = tensor.to(**others)
        out = torch.empty_like(tensor, requires_grad=False)
        if target.type == "cuda":
            gpu.there.add(out)
        else:  # it was marked as like one on the GPU
            gpu.there.held.pop(out.untyped_storage()._cdata, None)
        return out.copy_(tensor)


class Generator(torch.Generator):
    """A generator that says that it is where it was asked for."""

    def __new__(cls, device="cpu"):
        return super().__new__(cls)

    def __init__(self, device="cpu"):
        self.side = torch.device(device)

    @property
    def device(self):  # type: ignore[override]
        return self.side


@contextmanager
def _torch(gpu: GPU) -> Iterator[None]:
    """torch says that there is one GPU, `gpu`; CUDA itself is never asked for."""

    cuda: dict[str, Any] = dict(
        is_available=lambda: True,
        is_initialized=lambda: False,
        device_count=lambda: 1,
        current_device=lambda: 0,
        get_device_name=lambda device=None: "an imitation of a GPU",
        get_device_capability=lambda device=None: (9, 0),
        is_bf16_supported=lambda including_emulation=True: True,
        mem_get_info=lambda device=None: (MEMORY, MEMORY),
        get_rng_state=lambda device=None: torch.get_rng_state(),
        set_rng_state=lambda state, device=None: None,
        is_current_stream_capturing=lambda: False,
    )
    for name in ("memory_reserved", "memory_allocated", "max_memory_allocated"):
        cuda[name] = lambda device=None: 0
    for name in ("set_device", "synchronize", "empty_cache", "reset_peak_memory_stats"):
        cuda[name] = lambda device=None: None
    for name in ("manual_seed_all", "_lazy_init"):
        cuda[name] = lambda *seed: None
    where = torch._C.TensorBase.device.__get__  # type: ignore[attr-defined]
    tensor: dict[str, Any] = dict(
        device=property(lambda self: CUDA if self in gpu.there else where(self)),
        is_cuda=property(lambda self: self in gpu.there),
        get_device=lambda self: 0 if self in gpu.there else -1,
    )
    autocast = torch.autocast

    def autocast_of_the_cpu(device_type: str, **options: Any):
        return autocast("cpu" if device_type == "cuda" else device_type, **options)

    with ExitStack() as stack:
        for of, replaced in ((torch.cuda, cuda), (torch.Tensor, tensor)):
            for name, value in replaced.items():
                stack.enter_context(mock.patch.object(of, name, value))
        stack.enter_context(mock.patch.object(torch, "Generator", Generator))
        stack.enter_context(mock.patch.object(torch, "autocast", autocast_of_the_cpu))
        for name in ("_accelerator_graph_capture_health_check", "_cuda_graph_capture_health_check"):
            check = mock.patch.object(torch.optim.Optimizer, name, lambda self: None, create=True)
            stack.enter_context(check)
        _group_by_mark(gpu, stack)
        yield


def _group_by_mark(gpu: GPU, stack: ExitStack) -> None:
    """What groups tensors by device in C++, for optimizers and norms, is told of the marks."""
    from torch.nn.utils import clip_grad
    from torch.optim import optimizer
    from torch.utils import _foreach_utils

    group = _foreach_utils._group_tensors_by_device_and_dtype

    def grouped(lists, with_indices=False):
        groups = group(lists, with_indices)
        on_gpu = lambda each: any(t is not None and t in gpu.there for t in each[0][0])
        return {
            (CUDA if on_gpu(each) else device, dtype): each
            for (device, dtype), each in groups.items()
        }

    for module in (_foreach_utils, clip_grad, optimizer):
        name = "_group_tensors_by_device_and_dtype"
        stack.enter_context(mock.patch.object(module, name, grouped))
