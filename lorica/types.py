"""Frozen values that cross the layers of the library."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lorica.sharing import Part
from lorica.unread import Unread


@dataclass(frozen=True)
class Tokens:
    """Texts as token ids, padded to the longest of them.

    Like a tensor of images it has a length, can be sliced along its first axis, and moves to a device.

    Attributes:
        ids: of the vocabulary of an encoder.
        mask: true where there is a token and not padding.
    """

    ids: Int[Tensor, "n length"]
    mask: Bool[Tensor, "n length"]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, which: slice | Tensor | list[int]) -> Tokens:
        return Tokens(self.ids[which], self.mask[which])

    def to(self, device: torch.device | str) -> Tokens:
        """The same on that device."""
        return Tokens(self.ids.to(device), self.mask.to(device))


Inputs: TypeAlias = Float[Tensor, "n channels height width"] | Tokens | Unread
"""What an encoder reads: images in [0, 1], not yet normalised, or tokens; or either of them, read once it is needed.
All have a length, `[…]` and `to(device)`."""


@dataclass(frozen=True)
class Task:
    """What arrives together: samples of some classes, all of them new, some of them, or none.

    Inside the library a class is a number, in the order in which classes first arrived; the source's own names are kept
    for people.

    Attributes:
        index: of the task in its stream, from 0.
        classes: whose samples the task has, ascending.
        new_classes: those of them that no earlier task had. They are the next numbers, so that heads grow at their end.
        class_names: of `classes`.
    """

    index: int
    classes: tuple[int, ...]
    new_classes: tuple[int, ...]
    class_names: tuple[str, ...]

    @classmethod
    def of_new_classes(cls, index: int, first_class: int, class_names: Sequence[str]) -> Task:
        """A task all of whose classes are new: they get the numbers from `first_class` on."""
        classes = tuple(range(first_class, first_class + len(class_names)))
        return cls(index, classes, classes, tuple(class_names))

    @property
    def new_names(self) -> tuple[str, ...]:
        """Names of the new classes."""
        named = zip(self.classes, self.class_names, strict=True)
        return tuple(name for number, name in named if number in self.new_classes)

    @property
    def columns(self) -> slice | list[int]:
        """What picks the task's classes out of a dimension that has all classes."""
        first, last = self.classes[0], self.classes[-1]
        return slice(first, last + 1) if last - first + 1 == len(self.classes) else list(self.classes)

    def positions(self, labels: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        """Where in `classes` each of these labels is."""
        return torch.searchsorted(torch.tensor(self.classes).to(labels.device, non_blocking=True), labels)


def seen_classes(tasks: Iterable[Task]) -> int:
    """How many classes there are in these tasks, from the first one on."""
    return sum(len(task.new_classes) for task in tasks)


@dataclass(frozen=True)
class Batch:
    """Inputs on the training device, and the numbers of their classes.

    Images are augmented and not yet normalised; a method may give itself batches of something else (features).

    Attributes:
        part: which samples of a batch these are; None where they are all of it.
    """

    inputs: Inputs | Float[Tensor, "n features"]
    labels: Int[Tensor, " n"]
    part: Part | None = None
