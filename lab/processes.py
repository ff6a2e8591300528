"""What the processes that torchrun started tell each other."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from lab.command_line import this_process

# The fastest process waits for the slowest one, however long that takes. One that has died is
# noticed at once.
PATIENCE = timedelta(days=30)


class Alone(OSError):
    """Another process has ended before this one heard from it."""


def join(backend: str = "gloo") -> None:
    """Meet the other processes, which every process does. Raises Alone."""
    import torch.distributed as dist

    if this_process()[1] == 1 or dist.is_initialized():
        return
    try:
        dist.init_process_group(backend)
    except (RuntimeError, ValueError) as error:
        raise Alone(f"the processes of this run do not find each other ({_brief(error)})") from None


def _brief(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _exchange(value: Any) -> list[Any]:
    """The values of all processes, in their order; every process calls this as often."""
    import torch.distributed as dist

    _, ranks = this_process()
    if ranks == 1:
        return [value]
    join()
    values: list[Any] = [None] * ranks
    try:
        group: Any = dist.new_group(timeout=PATIENCE, backend="gloo")
        dist.all_gather_object(values, value, group)
    except RuntimeError as error:
        raise Alone(f"another process of this run has ended ({_brief(error)})") from None
    return values


def of_first(value: Any) -> Any:
    """The value of the first process, for all of them."""
    return _exchange(value)[0]


def of_all(value: Any) -> list[Any]:
    """The values of all processes, in their order, after which nothing more is exchanged."""
    values = _exchange(value)
    if len(values) > 1:
        import torch.distributed as dist

        dist.destroy_process_group()
    return values
