"""Predictions over the stream: what fills the accuracy matrix."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from accelerate import Accelerator
from jaxtyping import Float

from lorica.adapters.attach import merged
from lorica.methods.base import Data, Method
from lorica.progress import Reporter, Silent
from lorica.types import Task, seen_classes


@torch.inference_mode()
def accuracy_row(
    method: Method,
    tasks: Sequence[Task],
    test_data: Callable[[int], Data],
    *,
    accelerator: Accelerator,
    batch_size: int = 256,
    reporter: Reporter | None = None,
) -> list[float]:
    """Accuracy on the test data of each of the given tasks, as fractions: one row of the matrix.

    A prediction is the argmax over the classes of these tasks, without knowing the task. Runs on the merged weights.

    Args:
        tasks: the tasks learned so far, in stream order.
        test_data: gives the test data of a task by its index.
    """
    reporter = reporter or Silent()
    seen = seen_classes(tasks)
    splits = [test_data(task.index) for task in tasks]
    reporter.stage(f"{method.name}: testing", sum(split.number_of_batches(batch_size) for split in splits))
    row = []
    method.eval()
    with merged(method.encoder):
        for split in splits:
            correct = total = 0
            for batch in split.batches(batch_size, device=accelerator.device):
                with accelerator.autocast():
                    logits: Float[torch.Tensor, "n classes"] = method.predict(batch.inputs)
                correct += int((logits[:, :seen].argmax(dim=1) == batch.labels).sum())
                total += len(batch.labels)
                reporter.step()
            row.append(correct / total)
    return row
