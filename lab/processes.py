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


_group: Any = None  # of all processes, for what they tell each other


def join(backend: str = "gloo") -> None:
    """Meet the other processes, which each of them does once. Raises Alone."""
    import torch.distributed as dist

    global _group
    if this_process()[1] == 1 or _group is not None:
        return
    try:
        dist.init_process_group(backend)
        _group = dist.new_group(timeout=PATIENCE, backend="gloo")
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
        dist.all_gather_object(values, value, _group)
    except RuntimeError as error:
        raise Alone(f"another process of this run has ended ({_brief(error)})") from None
    return values


def of_first(value: Any) -> Any:
    """The value of the first process, for all of them."""
    return _exchange(value)[0]


def of_all(value: Any) -> list[Any]:
    """The values of all processes, in their order."""
    return _exchange(value)


def part() -> None:
    """Leave the other processes; nothing more is exchanged."""
    import torch.distributed as dist

    global _group
    if _group is not None:
        dist.destroy_process_group()
        _group = None
