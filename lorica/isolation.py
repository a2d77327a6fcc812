"""What a caller has set for the whole process has no bearing on a run.

A notebook may have made float64 or a GPU torch's default, switched gradients off or autocast on; the same recipe must give
the same numbers there. Threads, TF32 and deterministic algorithms stay as the caller set them: they say how to compute.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch

_AUTOCAST = ("cpu", "cuda", "mps")


@contextmanager
def isolated() -> Iterator[None]:
    """torch's and NumPy's own defaults for the length of a `with` block or, as a decorator, of a call; then they are as before."""
    dtype = torch.get_default_dtype()
    with ExitStack() as stack:
        if torch.get_default_device().type != "cpu":  # to say so costs a little at every operation
            stack.enter_context(torch.device("cpu"))
        for kind in _AUTOCAST:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(np.errstate(divide="warn", over="warn", under="ignore", invalid="warn"))
        stack.callback(torch.set_default_dtype, dtype)
        torch.set_default_dtype(torch.float32)
        yield
