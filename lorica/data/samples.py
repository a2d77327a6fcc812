"""Labelled samples of any kind: what a source has, and a reader makes inputs of."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeVar

import numpy as np
from jaxtyping import Int

_Kind = TypeVar("_Kind", bound="Samples")


class Samples(ABC):
    """Samples with their class numbers. Each modality adds how one of them is read, from several threads at once.

    Attributes:
        each: names of the attributes of a subclass that have something for each sample.
        numbers: of the samples in what they were read from, where the source itself set some apart for testing.
    """

    each: ClassVar[tuple[str, ...]] = ()

    def __init__(self, labels: Int[np.ndarray, " n"]) -> None:
        self.labels = labels.astype(np.int64)
        self.numbers: Int[np.ndarray, " n"] = np.arange(len(labels))

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def describe(self, index: int) -> str:
        """What an error message or a report calls this sample."""

    @abstractmethod
    def digest(self, index: int) -> bytes:
        """Of the sample's name, without its place, and its contents. OSError where it cannot be read."""

    def name(self, index: int) -> str | int:
        """What the manifest of a stream calls this sample: its number, but for one in a file of its own."""
        return int(self.numbers[index])

    def picked(self: _Kind, places: Int[np.ndarray, " m"]) -> _Kind:
        """The samples at these places."""
        return self._with(lambda name: _taken(getattr(self, name), places))

    def followed_by(self: _Kind, other: _Kind) -> _Kind:
        """These samples, then those of another half."""
        return self._with(lambda name: _joined(getattr(self, name), getattr(other, name)))

    def _with(self: _Kind, made: Callable[[str], Any]) -> _Kind:
        changed = copy.copy(self)
        for name in ("labels", "numbers", *self.each):
            setattr(changed, name, made(name))
        return changed


class Chosen(Sequence[Any]):
    """Some of a sequence, which is read when they are."""

    def __init__(self, values: Sequence[Any], places: Int[np.ndarray, " m"]) -> None:
        self.values, self.places = values, places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, which: Any) -> Any:
        if isinstance(which, slice):
            return [self.values[place] for place in self.places[which].tolist()]
        return self.values[int(self.places[which])]


def _taken(values: Any, places: Int[np.ndarray, " m"]) -> Any:
    return values[places] if isinstance(values, np.ndarray) else Chosen(values, places)


def _joined(one: Any, other: Any) -> Any:
    return np.concatenate([one, other]) if isinstance(one, np.ndarray) else [*one, *other]
