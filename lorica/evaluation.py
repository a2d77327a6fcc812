"""Predictions over the stream: what fills the accuracy matrix."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from accelerate import Accelerator
from jaxtyping import Float, Int

from lorica.adapters.attach import merged
from lorica.errors import LoricaError
from lorica.methods.base import Data, Method, Rereadable
from lorica.processes import Processes
from lorica.progress import Reporter, Silent
from lorica.types import Task, seen_classes

LOGITS_AGREE = 1e-3
"""Share of the largest logit by which rounding may move one between two forms of a method."""


def apart(found: Float[torch.Tensor, "n classes"], expected: Float[torch.Tensor, "n classes"]) -> float:
    """The largest difference of these logits, as a share of the largest that was expected."""
    return ((found - expected).abs().max() / expected.abs().max().clamp_min(1e-30)).item()  # all of them may be 0


def require_numbers(logits: Float[torch.Tensor, "n classes"], method: Method) -> Float[torch.Tensor, "n classes"]:
    """The logits, all of which are numbers; LoricaError: one is not, and would count as the largest."""
    if bool(logits.isnan().any()):
        raise LoricaError(
            f"{method.name}: logits are not a number; what it has learned is damaged or has numbers beyond all bounds: "
            "go back to an earlier task, or start anew with a lower fit.learning_rate"
        )
    return logits


def plain_form(method: Method) -> Method:
    """The method on merged weights; or itself, where that gives other logits on random inputs (its layers do more than
    add)."""
    plain = merged(method)
    if plain is method:
        return method
    probe = method.encoder.probe(2)
    return plain if apart(plain.predict(probe), method.predict(probe)) <= LOGITS_AGREE else method


def error_rates(answers: Int[torch.Tensor, "n 2"], sizes: Sequence[int]) -> list[list[float | None]]:
    """The share of each of two classes that was taken for the other, in each task; see `lorica.metrics.Errors`.

    Args:
        answers: the class of each sample and the class that it was taken for, task after task.
        sizes: numbers of samples of the tasks.
    """
    rates = []
    for own in answers.split(list(sizes)):
        wrong = [own[own[:, 0] == number, 1] != number for number in (0, 1)]
        rates.append([int(each.sum()) / len(each) if len(each) else None for each in wrong])
    return rates


@runtime_checkable
class TestData(Rereadable, Protocol):
    """Data whose passes can be joined: samples of several tasks then share batches."""

    def __len__(self) -> int: ...

    def followed_by(self, others: Sequence[Any]) -> Data:
        """These samples, then those of the others, in one pass."""
        ...


@torch.inference_mode()
def accuracy_row(
    method: Method,
    tasks: Sequence[Task],
    test_data: Callable[[int], TestData],
    *,
    accelerator: Accelerator,
    batch_size: int = 256,
    reporter: Reporter | None = None,
    only: Sequence[Task] | None = None,
    answered: Callable[[Int[torch.Tensor, "n 2"]], None] | None = None,
) -> list[float]:
    """Accuracy on the test data of each of the given tasks, as fractions: one row of the matrix.

    A prediction is the argmax over the classes of these tasks, without knowing the task. Runs on the merged weights.

    Args:
        tasks: the tasks learned so far, in stream order.
        test_data: gives the test data of a task by its index.
        only: those of them that are tested; absent = all.
        answered: called with the class of each sample, in their order, and the class that it was taken for.

    Raises:
        LoricaError: logits that are not a number.
    """
    reporter = reporter or Silent()
    seen = seen_classes(tasks)
    splits: list[Any] = [test_data(task.index) for task in (tasks if only is None else only)]
    sizes = [len(split) for split in splits]
    if method.takes_unread and method.trunk_rests:  # features may be known
        splits = [split.unread for split in splits]
    joined = splits[0].followed_by(splits[1:])
    processes = Processes.of(accelerator)
    reporter.stage(f"{method.name}: testing", -(-joined.number_of_batches(batch_size) // processes.number))
    answers = []
    method.eval()
    plain = plain_form(method)
    for batch in joined.batches(batch_size, device=accelerator.device, **processes.taking):
        with accelerator.autocast():
            logits: Float[torch.Tensor, "n classes"] = plain.predict(batch.inputs)
        answers.append(torch.stack([batch.labels, require_numbers(logits, method)[:, :seen].argmax(dim=1)], dim=1))
        reporter.step()
    everywhere = processes.gathered(torch.cat(answers) if answers else None)
    if answered:
        answered(everywhere)
    of_tasks = (everywhere[:, 0] == everywhere[:, 1]).split(sizes)
    return [int(right.sum()) / len(right) for right in of_tasks]
