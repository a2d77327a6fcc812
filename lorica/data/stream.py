"""A source's classes as a stream of tasks: label map, training/validation/test splits, and batches.

A class is renumbered by its position in the stream's class order. Which sample is in which task, `lorica.data.division`
says; what a sample is, its reader knows (`lorica.data.reader`).
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from lorica.data.ahead import ahead, sent
from lorica.data.contents import Digests
from lorica.data.division import By, divide
from lorica.data.manifest import Manifest
from lorica.data.reader import Opened, Reader
from lorica.data.sources.base import Source
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
                if self._opened.lengths is not None:
                    lengths = self._opened.lengths[self.indices[chosen]]
                    part = replace(part, shorter=int(lengths.max() - lengths[part.rows].max()))
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
    """The classes of a source in a fixed order, which arrive in tasks.

    A `manifest` says what is in which task, or else `lorica.data.division.divide`, whose keywords `division` has.
    `cache_bytes` are divided between training and test samples by their number; a quarter as much is there for features
    that stay.
    Samples of a task are in the source's order, or by their length where they have one. DataError as there.
    """

    def __init__(
        self,
        source: Source,
        *,
        reader: Reader,
        manifest: Manifest | None = None,
        cache_bytes: int = 2**31,
        **division: Any,
    ) -> None:
        source, divided = manifest.divided(source) if manifest else (source, divide(source, **division))
        self._given, self._divided = manifest, divided
        self.by: By = divided.by
        self.class_order: tuple[int, ...] = tuple(divided.order.tolist())
        self.class_names: tuple[str, ...] = tuple(source.class_names[name] for name in self.class_order)
        position = np.argsort(divided.order)  # class number in the source -> in the stream
        train_labels = torch.from_numpy(position[source.train.labels])
        test_labels = torch.from_numpy(position[source.test.labels])
        train_task, test_task = torch.from_numpy(divided.train), torch.from_numpy(divided.test)
        self.tasks: tuple[Task, ...] = tuple(self._made_of(train_labels, train_task, divided.tasks))
        kept, held = (torch.from_numpy(np.flatnonzero(which)) for which in (~divided.held, divided.held))
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
        self.source = replace(source, facts=source.facts | read, spare=None)
        self._memory = Memory(cache_bytes // 4)
        self._splits: dict[tuple[str, Task], Split] = {}

    def manifest(self, digests: Digests) -> Manifest:
        """What is in which task, by name, of the samples whose digests these are (`lorica.data.contents.digests_of`).

        Raises:
            DataError: the stream was made by a manifest, and the contents of samples are no longer what it says.
        """
        if self._given:
            self._given.require_contents(self.source, digests)
        return Manifest.of(self.source, self._divided, digests)

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

    def _made_of(self, labels: Int[Tensor, " n"], tasks: Int[Tensor, " n"], number: int) -> Iterator[Task]:
        """The tasks, of training samples with their labels and tasks."""
        known = 0
        for index in range(number):
            classes = labels[tasks == index].unique().tolist()
            new = tuple(each for each in classes if each >= known)
            known += len(new)
            yield Task(index, tuple(classes), new, tuple(self.class_names[each] for each in classes))

    def _split(self, use: str, task: Task) -> Split:
        """Always the same object, since what is kept of its samples is kept with it."""
        if (use, task) not in self._splits:
            opened, indices, labels, tasks = self._halves[use]
            of_task = tasks[indices] == task.index
            self._splits[use, task] = Split(opened, indices[of_task], labels[indices[of_task]], self._memory)
        return self._splits[use, task]


def _by_length(indices: Int[Tensor, " n"], opened: Opened) -> Int[Tensor, " n"]:
    """Sorted by length where samples have one, so that neighbours in a pass in order waste no padding on each other."""
    return indices if opened.lengths is None else indices[opened.lengths[indices].argsort(stable=True)]
