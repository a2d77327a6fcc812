"""Work beside the device's: the next batch is made while the last one is used, and nothing waits for the device."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

_Item = TypeVar("_Item")


def ahead(items: Iterator[_Item]) -> Iterator[_Item]:
    """The same items, each made by a thread while the caller has the one before it.

    What goes wrong there is raised here, as itself, when its item is asked for. A caller that stops early waits for the
    item under way, and leaves no thread behind.
    """
    end = object()
    with ThreadPoolExecutor(1, "ahead") as thread:
        coming = thread.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = thread.submit(next, items, end)
            yield item  # pyright: ignore[reportReturnType]


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU's on a device. A GPU copies it when its turn comes, from memory that stays where it is."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)  # torch keeps that memory until the copy has been made
