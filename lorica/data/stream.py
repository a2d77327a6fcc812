"""A source's classes as a stream of tasks: class order, label map, training/validation/test splits, and batches.

A class is renumbered by its position in the stream's class order. What a sample is, its reader knows (`lorica.data.reader`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from lorica.data.ahead import ahead, sent
from lorica.data.reader import Opened, Reader
from lorica.data.sources.base import Source, split_per_class
from lorica.errors import DataError
from lorica.randomness import Draws
from lorica.types import Batch, Task


class Split:
    """Samples of one or more tasks. `labels`: classes in stream order; `indices`: numbers in the source's samples."""

    def __init__(self, opened: Opened, indices: Int[Tensor, " n"], labels: Int[Tensor, " n"]) -> None:
        self._opened = opened
        self.indices = indices
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def followed_by(self, others: Sequence[Split]) -> Split:
        """These samples, then those of other splits of the same set, training or test."""
        every = [self, *others]
        return Split(
            self._opened, torch.cat([split.indices for split in every]), torch.cat([split.labels for split in every])
        )

    def number_of_batches(self, batch_size: int) -> int:
        """Batches in one pass, a smaller last one included."""
        return -(-len(self) // batch_size)

    def batches(
        self,
        batch_size: int,
        *,
        device: torch.device,
        augment: str = "none",
        draws: Draws | None = None,
        first: int = 0,
    ) -> Iterator[Batch]:
        """One pass from batch number `first` on, the last batch maybe smaller.

        With `draws` it is in random order and augmented, else in order and not augmented. A batch is made while the one
        before it is used, which changes nothing of what is in it.
        """
        if draws is None and augment != "none":
            raise ValueError(f"augment={augment!r} needs draws")
        order = (
            torch.arange(len(self)) if draws is None else torch.randperm(len(self), generator=draws.generator("order"))
        )

        def batch(step: int) -> Batch:
            chosen = order[step * batch_size : (step + 1) * batch_size]
            if draws is None:
                inputs = self._opened.fetch(self.indices[chosen], device=device)
            else:
                generator = draws.at(step=step).generator("augmentation")
                inputs = self._opened.augmented(self.indices[chosen], augment, generator, device=device)
            return Batch(inputs, sent(self.labels[chosen], device))

        yield from ahead(map(batch, range(first, self.number_of_batches(batch_size))))


class Stream:
    """The classes of a source in a fixed order, arriving in groups; give either `tasks` or `classes_per_task`.

    `tasks=T`: T groups as even as possible, the larger ones first. `classes_per_task`: a number (the last group may be
    smaller), or one number per task. `seed` orders the classes by RandomState(seed).permutation; None keeps the
    source's order. `validation_fraction` of each class's training samples is held out by a seed of its own. `cache_bytes` are
    divided between training and test samples by their number. DataError for a division into tasks that is impossible, or that
    leaves a task without test or validation samples.
    """

    def __init__(
        self,
        source: Source,
        *,
        reader: Reader,
        tasks: int | None = None,
        classes_per_task: int | Sequence[int] | None = None,
        seed: int | None = 1993,
        validation_fraction: float = 0.0,
        validation_seed: int = 0,
        cache_bytes: int = 2**31,
    ) -> None:
        number = len(source.class_names)
        sizes = _task_sizes(number, tasks, classes_per_task)
        if not 0 <= validation_fraction < 1:
            raise DataError(f"data.validation_fraction: expected at least 0 and less than 1, got {validation_fraction}")
        order = np.arange(number) if seed is None else np.random.RandomState(seed).permutation(number)
        self.source = source
        self.class_order: tuple[int, ...] = tuple(order.tolist())
        self.class_names: tuple[str, ...] = tuple(source.class_names[name] for name in self.class_order)
        stops = accumulate(sizes)
        self.tasks: tuple[Task, ...] = tuple(
            Task.of_new_classes(index, stop - size, self.class_names[stop - size : stop])
            for index, (size, stop) in enumerate(zip(sizes, stops, strict=True))
        )

        position = np.argsort(order)  # class number in the source -> in the stream
        self._train_labels = torch.from_numpy(position[source.train.labels])
        self._test_labels = torch.from_numpy(position[source.test.labels])
        kept, held = np.arange(len(source.train)), np.arange(0)
        if validation_fraction > 0:
            kept, held = split_per_class(source.train.labels, validation_fraction, validation_seed)
        self._kept, self._held = torch.from_numpy(kept), torch.from_numpy(held)
        self._require_images("test", self._test_labels)
        if validation_fraction > 0:
            self._require_images("validation", self._train_labels[self._held])
        train_share = len(source.train) / max(1, len(source.train) + len(source.test))
        train_bytes = int(cache_bytes * train_share)
        self._opened_train = reader.open(source.train, train_bytes)
        self._opened_test = reader.open(source.test, cache_bytes - train_bytes)

    def train(self, task: Task) -> Split:
        """The training images of a task, without those held out for validation."""
        return self._split(self._opened_train, self._kept, self._train_labels, task)

    def validation(self, task: Task) -> Split:
        """The training images of a task that were held out; empty when `validation_fraction` is 0."""
        return self._split(self._opened_train, self._held, self._train_labels, task)

    def test(self, task: Task) -> Split:
        """The test images of a task."""
        return self._split(self._opened_test, torch.arange(len(self._test_labels)), self._test_labels, task)

    def train_all(self) -> Split:
        """The training images of all tasks, without those held out: for joint training."""
        return Split(self._opened_train, self._kept, self._train_labels[self._kept])

    def _require_images(self, use: str, labels: Int[Tensor, " n"]) -> None:
        present = set(labels.tolist())
        problems = [
            f"stream.tasks: task {task.index + 1} ({', '.join(task.class_names)}) has no {use} images"
            for task in self.tasks
            if present.isdisjoint(task.classes)
        ]
        if problems:
            raise DataError(problems)

    def _split(self, opened: Opened, indices: Int[Tensor, " m"], labels: Int[Tensor, " n"], task: Task) -> Split:
        of_task = torch.isin(labels[indices], torch.tensor(task.classes))
        return Split(opened, indices[of_task], labels[indices[of_task]])


def _task_sizes(classes: int, tasks: int | None, classes_per_task: int | Sequence[int] | None) -> list[int]:
    """Classes in each task."""
    if (tasks is None) == (classes_per_task is None):
        given = "neither" if tasks is None else "both"
        raise DataError(f"stream.tasks: expected either stream.tasks or stream.classes_per_task, {given} given")
    if tasks is not None:
        if not 1 <= tasks <= classes:
            raise DataError(f"stream.tasks: expected 1 to {classes}, the number of classes; got {tasks}")
        return [classes // tasks + (index < classes % tasks) for index in range(tasks)]
    if isinstance(classes_per_task, int):
        if not 1 <= classes_per_task <= classes:
            raise DataError(
                f"stream.classes_per_task: expected 1 to {classes}, the number of classes; got {classes_per_task}"
            )
        return [min(classes_per_task, classes - start) for start in range(0, classes, classes_per_task)]
    sizes = list(classes_per_task or ())
    if any(size < 1 for size in sizes):
        raise DataError(f"stream.classes_per_task: expected at least 1 class in every task, got {sizes}")
    if sum(sizes) != classes:
        raise DataError(f"stream.classes_per_task: {sizes} sums to {sum(sizes)}, but there are {classes} classes")
    return sizes
