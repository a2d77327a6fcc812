"""What a caller has set for the whole process has no bearing on a run.

A notebook may have made float64 or a GPU torch's default, switched gradients off or autocast on; the same recipe must
give the same numbers there. Threads, TF32 and deterministic algorithms stay as the caller set them: they say how to
compute.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch

_AUTOCAST = ("cpu", "cuda", "mps")


class _DefaultDtype:
    """float32 as torch's default, which all threads share, from the first of those who need it to the last."""

    def __init__(self) -> None:
        self._lock, self._users, self._before = threading.Lock(), 0, torch.float32

    def take(self) -> None:
        with self._lock:
            if not self._users:
                self._before = torch.get_default_dtype()
                torch.set_default_dtype(torch.float32)
            self._users += 1

    def give_back(self) -> None:
        with self._lock:
            self._users -= 1
            if not self._users:
                torch.set_default_dtype(self._before)


_dtype = _DefaultDtype()


@contextmanager
def isolated() -> Iterator[None]:
    """torch's and NumPy's own defaults for the length of a `with` block or, as a decorator, of a call; then they are as
    before."""
    with ExitStack() as stack:
        if torch.get_default_device().type != "cpu":  # to say so costs a little at every operation
            stack.enter_context(torch.device("cpu"))
        for kind in _AUTOCAST:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(np.errstate(divide="warn", over="warn", under="ignore", invalid="warn"))
        _dtype.take()
        stack.callback(_dtype.give_back)
        yield
