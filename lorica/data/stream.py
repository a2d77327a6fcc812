"""A source's classes as a stream of tasks: class order, label map, training/validation/test splits, and batches.

A class is renumbered by its position in the stream's class order. What a sample is, its reader knows
(`lorica.data.reader`).
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import accumulate
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from lorica.data.ahead import ahead, sent
from lorica.data.reader import Opened, Reader
from lorica.data.sources.base import Domains, Source, split_per_class
from lorica.errors import DataError
from lorica.randomness import Draws
from lorica.sharing import ALL, Part, Share, drawing_for
from lorica.types import Batch, Inputs, Task
from lorica.unread import Memory, Pass, Samples, Unread

_SORTED_TOGETHER = 32
"""Batches among which samples of like length are put together."""


class Split:
    """Samples of one or more tasks. `labels`: classes in stream order; `indices`: numbers in the source's samples;
    `memory` is for features of them that stay (`unread`)."""

    def __init__(
        self, opened: Opened, indices: Int[Tensor, " n"], labels: Int[Tensor, " n"], memory: Memory | None = None
    ) -> None:
        self._opened, self._memory = opened, memory or Memory()
        self.indices = indices
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def followed_by(self, others: Sequence[Split]) -> Split:
        """These samples, then those of other splits of the same set, training or test."""
        every = [self, *others]
        return Split(
            self._opened,
            torch.cat([split.indices for split in every]),
            torch.cat([split.labels for split in every]),
            self._memory,
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
        share: Share = ALL,
    ) -> Iterator[Batch]:
        """One pass from batch number `first` on, the last batch maybe smaller.

        With `draws` it is in random order and augmented, else in order and not augmented. A share of it is, with
        `draws`, a part of each batch, and else neighbours of all samples, from which as large batches are made. A batch
        is made while the one before it is used, which changes nothing of what is in it.
        """
        if draws is None and augment != "none":
            raise ValueError(f"augment={augment!r} needs draws")

        def batch(chosen: tuple[int, Int[Tensor, " n"], Part | None]) -> Batch:
            step, places, part = chosen
            if draws is None:
                inputs = self.read(places, device)
            else:
                generator = draws.at(step=step).generator("augmentation")
                with drawing_for(part):
                    inputs = self._opened.augmented(self.indices[places], augment, generator, device=device)
            return Batch(inputs, sent(self.labels[places], device), part)

        yield from ahead(map(batch, self.chosen(batch_size, draws, first, share)))

    def chosen(
        self, batch_size: int, draws: Draws | None, first: int, share: Share, rows: slice | None = None
    ) -> Iterator[tuple[int, Int[Tensor, " n"], Part | None]]:
        """The number of each batch of such a pass, the places of its samples in the split, and what part of a batch
        they are; in order, those of some `rows`, by default the share's."""
        if draws is None:
            order = torch.arange(len(self))[rows or share.of_samples(len(self)).rows]
        else:
            generator = draws.generator("order")
            order = torch.randperm(len(self), generator=generator)
            if self._opened.lengths is not None:
                order = of_like_length(order, self._opened.lengths[self.indices], batch_size, generator)
        for step in range(first, -(-len(order) // batch_size)):
            chosen, part = order[step * batch_size : (step + 1) * batch_size], None
            if draws is not None and share.of > 1:
                part = share.of_batch(len(chosen))
                chosen = chosen[part.rows]
            yield step, chosen, part

    def read(self, places: Int[Tensor, " n"], device: torch.device) -> Inputs:
        """The samples at these places of the split, not augmented."""
        return self._opened.fetch(self.indices[places], device=device)

    @property
    def unread(self) -> UnreadSplit:
        """The same samples as inputs that are read only once somebody needs them (`UnreadSplit`)."""
        return UnreadSplit(self, self._samples)

    @cached_property
    def _samples(self) -> Samples:
        """By which its features are known. It does not hold the split, whose images would else stay until cycles are
        looked for."""
        opened, indices = self._opened, self.indices
        return Samples(len(self), lambda places, device: opened.fetch(indices[places], device=device), self._memory)


def of_like_length(
    order: Int[Tensor, " n"], lengths: Int[Tensor, " n"], batch_size: int, generator: torch.Generator
) -> Int[Tensor, " n"]:
    """A random order in which batches have samples of like length: so many batches at a time are sorted, divided anew,
    and shuffled.

    Args:
        lengths: of the samples, not in that order.
    """
    batches: list[Tensor] = []
    for part in order.split(_SORTED_TOGETHER * batch_size):
        whole = list(part[lengths[part].argsort(stable=True)].split(batch_size))
        smaller = [whole.pop()] if len(whole[-1]) < batch_size else []  # it stays the last
        batches += [whole[place] for place in torch.randperm(len(whole), generator=generator).tolist()] + smaller
    return torch.cat(batches) if batches else order


class UnreadSplit:
    """A split whose samples, where they are not augmented, are read only if something asks for more than features that
    it computed before; see `lorica.unread`."""

    def __init__(self, split: Split, samples: Samples) -> None:
        self._parts = [(split, samples)]

    def followed_by(self, others: Sequence[UnreadSplit]) -> UnreadSplit:
        """These samples, then those of others, in one pass, in which no batch has samples of two: so they are always
        the same."""
        joined = copy.copy(self)
        joined._parts = [part for each in (self, *others) for part in each._parts]
        return joined

    def number_of_batches(self, batch_size: int) -> int:
        """Batches in one pass, smaller ones included."""
        return sum(split.number_of_batches(batch_size) for split, _ in self._parts)

    def batches(
        self,
        batch_size: int,
        *,
        device: torch.device,
        augment: str = "none",
        draws: Draws | None = None,
        first: int = 0,
        share: Share = ALL,
    ) -> Iterator[Batch]:
        """Batches as `Split.batches` gives them, of one part after another."""
        if augment != "none":
            for split, _ in self._parts:
                yield from split.batches(
                    batch_size, device=device, augment=augment, draws=draws, first=first, share=share
                )
            return
        pass_ = Pass(ordered=draws is None)

        def batch(chosen: tuple[Split, Samples, Int[Tensor, " n"], Part | None]) -> Batch:
            split, samples, places, part = chosen
            inputs = Unread(samples, places, device, pass_)
            inputs.prepare()
            return Batch(inputs, sent(split.labels[places], device), part)

        yield from ahead(map(batch, self._chosen(batch_size, draws, first, share)))

    def _chosen(
        self, batch_size: int, draws: Draws | None, first: int, share: Share
    ) -> Iterator[tuple[Split, Samples, Int[Tensor, " n"], Part | None]]:
        """As `Split.chosen`, split after split; a share of a pass in order is neighbours over all of them."""
        own, begins = share.of_samples(sum(len(split) for split, _ in self._parts)), 0
        for split, samples in self._parts:
            rows = slice(max(own.first - begins, 0), max(own.stop - begins, 0))
            begins += len(split)
            for _, places, part in split.chosen(batch_size, draws, first, share, rows):
                yield split, samples, places, part

    def forget(self) -> None:
        """Drops the features that were kept of these samples."""
        for _, samples in self._parts:
            samples.memory.forget(samples)


class Stream:
    """The classes of a source in a fixed order, arriving in groups; give either `tasks` or `classes_per_task`.

    Or, by="domain", its domains one after another, each with its classes; those that an earlier one had are not new.
    `tasks` is then their number, and classes of earlier domains come before those of later ones.

    `tasks=T`: T groups as even as possible, the larger ones first. `classes_per_task`: a number (the last group may be
    smaller), or one number per task. `seed` orders the classes by RandomState(seed).permutation; None keeps the
    source's order, which some sources ask for (`Source.in_order`). `validation_fraction` of each class's training
    samples is held out by a seed of its own. `cache_bytes` are divided between training and test samples by their
    number; a quarter as much is there for features that stay. Samples of a task are in the source's order, or by their
    length where they have one. DataError for a division into tasks that is impossible, or that leaves a task without
    test or validation samples.
    """

    def __init__(
        self,
        source: Source,
        *,
        reader: Reader,
        by: Literal["class", "domain"] = "class",
        tasks: int | None = None,
        classes_per_task: int | Sequence[int] | None = None,
        seed: int | None = 1993,
        validation_fraction: float = 0.0,
        validation_seed: int = 0,
        cache_bytes: int = 2**31,
    ) -> None:
        number = len(source.class_names)
        domains = _domains_of(source, tasks) if by == "domain" else None
        sizes = _task_sizes(number, tasks, classes_per_task) if domains is None else []
        if not 0 <= validation_fraction < 1:
            raise DataError(f"data.validation_fraction: expected at least 0 and less than 1, got {validation_fraction}")
        if source.in_order and seed is not None:
            raise DataError(
                f"stream.seed: the classes of {source.name} come in an order of their own, got {seed}; give "
                "stream.seed=null"
            )
        order = np.arange(number) if seed is None else np.random.RandomState(seed).permutation(number)
        if domains is not None:
            first = np.full(number, len(domains.names))  # domain that has the class
            np.minimum.at(first, source.train.labels, domains.train)
            order = order[np.argsort(first[order], kind="stable")]
        self.class_order: tuple[int, ...] = tuple(order.tolist())
        self.class_names: tuple[str, ...] = tuple(source.class_names[name] for name in self.class_order)
        position = np.argsort(order)  # class number in the source -> in the stream
        train_labels = torch.from_numpy(position[source.train.labels])
        test_labels = torch.from_numpy(position[source.test.labels])
        groups = source.train.labels  # of which a part is held out each
        if domains is None:
            self.tasks: tuple[Task, ...] = tuple(
                Task.of_new_classes(index, stop - size, self.class_names[stop - size : stop])
                for index, (size, stop) in enumerate(zip(sizes, accumulate(sizes), strict=True))
            )
            task_of = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
            train_task, test_task = task_of[train_labels], task_of[test_labels]
        else:
            train_task, test_task = torch.from_numpy(domains.train), torch.from_numpy(domains.test)
            self.tasks = tuple(self._of_domains(train_labels, train_task, len(domains.names)))
            groups = groups * len(domains.names) + domains.train
        kept, held = torch.arange(len(source.train)), torch.arange(0)
        if validation_fraction > 0:
            kept, held = map(torch.from_numpy, split_per_class(groups, validation_fraction, validation_seed))
        self._require_images("test", test_task)
        if validation_fraction > 0:
            self._require_images("validation", train_task[held])
        train_share = len(source.train) / max(1, len(source.train) + len(source.test))
        train_bytes = int(cache_bytes * train_share)
        opened_train = reader.open(source.train, train_bytes)
        opened_test = reader.open(source.test, cache_bytes - train_bytes)
        self._halves = {
            "train": (opened_train, _by_length(kept, opened_train), train_labels, train_task),
            "validation": (opened_train, _by_length(held, opened_train), train_labels, train_task),
            "test": (opened_test, _by_length(torch.arange(len(test_labels)), opened_test), test_labels, test_task),
        }
        read = Counter(opened_train.facts) + Counter(opened_test.facts)
        self.source = replace(source, facts=source.facts | read)
        self._memory = Memory(cache_bytes // 4)
        self._splits: dict[tuple[str, Task], Split] = {}

    def train(self, task: Task) -> Split:
        """The training images of a task, without those held out for validation."""
        return self._split("train", task)

    def validation(self, task: Task) -> Split:
        """The training images of a task that were held out; empty when `validation_fraction` is 0."""
        return self._split("validation", task)

    def test(self, task: Task) -> Split:
        """The test images of a task."""
        return self._split("test", task)

    def train_all(self) -> Split:
        """The training images of all tasks, without those held out: for joint training."""
        opened, kept, labels, _ = self._halves["train"]
        return Split(opened, kept, labels[kept], self._memory)

    def _of_domains(self, labels: Int[Tensor, " n"], domain: Int[Tensor, " n"], number: int) -> Iterator[Task]:
        """A task for each domain, of which a sample has a label."""
        known = 0
        for index in range(number):
            classes = labels[domain == index].unique().tolist()
            new = tuple(each for each in classes if each >= known)
            known += len(new)
            yield Task(index, tuple(classes), new, tuple(self.class_names[each] for each in classes))

    def _require_images(self, use: str, tasks: Int[Tensor, " n"]) -> None:
        present = set(tasks.tolist())
        problems = [
            f"stream.tasks: task {task.index + 1} ({', '.join(task.class_names)}) has no {use} images"
            for task in self.tasks
            if task.index not in present
        ]
        if problems:
            raise DataError(problems)

    def _split(self, use: str, task: Task) -> Split:
        """Always the same object, since what is kept of its samples is kept with it."""
        if (use, task) not in self._splits:
            opened, indices, labels, tasks = self._halves[use]
            of_task = tasks[indices] == task.index
            self._splits[use, task] = Split(opened, indices[of_task], labels[indices[of_task]], self._memory)
        return self._splits[use, task]


def _domains_of(source: Source, tasks: int | None) -> Domains:
    """Its domains, one a task."""
    if source.domains is None:
        raise DataError(f"stream.by: {source.name} has no domains, as domainnet has; give stream.by=class")
    if tasks != len(source.domains.names):
        given = "" if tasks is None else f", got {tasks}"
        raise DataError(
            f"stream.tasks: {source.name} has {len(source.domains.names)} domains, a task each{given}; "
            f"give stream.tasks={len(source.domains.names)}"
        )
    return source.domains


def _by_length(indices: Int[Tensor, " n"], opened: Opened) -> Int[Tensor, " n"]:
    """Sorted by length where samples have one, so that neighbours in a pass in order waste no padding on each other."""
    return indices if opened.lengths is None else indices[opened.lengths[indices].argsort(stable=True)]


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
