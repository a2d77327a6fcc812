"""What every source gives: a training and a test set over the same classes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int

from lorica.data.samples import Samples
from lorica.errors import DataError

LISTED = 10  # names spelled out in one error


@dataclass(frozen=True)
class Source:
    """A training and a test set over the same classes. `facts`: plain values for the record of a run."""

    name: str
    class_names: tuple[str, ...]
    train: Samples
    test: Samples
    facts: dict[str, object]


def split_per_class(
    labels: Int[np.ndarray, " n"], fraction: float, seed: int
) -> tuple[Int[np.ndarray, " kept"], Int[np.ndarray, " held"]]:
    """Indices kept and held out, both ascending: of every class about `fraction`, at least one, never all.

    Each class is permuted by its own RandomState(seed), so a class that is added later does not move the others'.
    """
    held = np.zeros(len(labels), dtype=bool)
    for number in np.unique(labels):
        members = np.flatnonzero(labels == number)
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        held[np.random.RandomState(seed).permutation(members)[:count]] = True
    return np.flatnonzero(~held), np.flatnonzero(held)


def make_source(
    name: str, class_names: Sequence[str], train: Samples, test: Samples, facts: dict[str, object]
) -> Source:
    """A source whose facts have its numbers of classes and samples, too."""
    counts = {"classes": len(class_names), "train": len(train), "test": len(test)}
    return Source(name, tuple(class_names), train, test, counts | facts)


def held_out(
    labels: Int[np.ndarray, " n"], fraction: float, seed: int
) -> tuple[Int[np.ndarray, " kept"], Int[np.ndarray, " held"]]:
    """`split_per_class` for a source without a test set. DataError for a fraction that leaves nothing."""
    if not 0 < fraction < 1:
        raise DataError(f"data.test_fraction: expected a number between 0 and 1, got {fraction}")
    return split_per_class(labels, fraction, seed)


def required(root: Path | None, name: str) -> Path:
    """The path that a source cannot do without. DataError where there is none."""
    if root is None:
        raise DataError(f"data.root: the source {name} needs a path")
    return root


def some(items: Iterable[object]) -> str:
    """The first of some names, and how many more there are."""
    texts = [str(item) for item in items]
    more = f" and {len(texts) - LISTED} more" if len(texts) > LISTED else ""
    return ", ".join(texts[:LISTED]) + more
