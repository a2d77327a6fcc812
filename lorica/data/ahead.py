"""Work beside the device's: the next batch is made while the last one is used, and nothing waits for the device."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

import torch
from torch import Tensor

from lorica.interruption import held_back

_AHEAD = 256
"""Items of `by_threads` that are begun or wait for a thread."""

_Item = TypeVar("_Item")
_Made = TypeVar("_Made")


def ahead(items: Iterator[_Item]) -> Iterator[_Item]:
    """The same items, each made by a thread while the caller has the one before it.

    What goes wrong there is raised here, as itself, when its item is asked for. A caller that stops early waits for the
    item under way, and leaves no thread behind.
    """
    end = object()
    with held_back():
        thread = ThreadPoolExecutor(1, "ahead")
        coming = thread.submit(next, items, end)
    try:
        while True:
            with held_back():
                if (item := coming.result()) is end:
                    return
                coming = thread.submit(next, items, end)
            yield item  # pyright: ignore[reportReturnType]
    finally:
        with held_back():
            thread.shutdown()


def by_threads(
    make: Callable[[_Item], _Made],
    items: Iterable[_Item],
    threads: ThreadPoolExecutor | None = None,
    after_each: Callable[[], None] = lambda: None,
) -> list[_Made]:
    """What is made of each item, in their order, by several threads, a few items ahead; what goes wrong there is raised
    here, and so is a signal once the item that is waited for is made.

    Args:
        threads: those that work; absent: some that end with it.
        after_each: called for each item, once it is made.
    """
    made: list[_Made] = []
    coming: deque[Future[_Made]] = deque()
    rest = iter(items)
    with held_back():
        pool = threads or ThreadPoolExecutor()
    try:
        while True:
            with held_back():
                for item in islice(rest, _AHEAD - len(coming)):
                    coming.append(pool.submit(make, item))
                if not coming:
                    return made
                made.append(coming.popleft().result())
            after_each()
    finally:
        with held_back():
            for each in coming:
                each.cancel()
            if threads is None:
                pool.shutdown()


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU's on a device. A GPU copies it when its turn comes, from memory that stays where it is."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)  # torch keeps that memory until the copy has been made
