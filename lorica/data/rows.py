"""Rows with named columns, of texts or of images and of labels, as a source: what files of rows and Hugging Face's
datasets share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Int

from lorica.data.decoding import DEFAULT, Decoding
from lorica.data.images import Pictures
from lorica.data.samples import Samples
from lorica.data.sources.base import ClassOrder, Source, held_out, in_order, listed, make_source, name_faults, some
from lorica.data.texts import Texts, text_fault
from lorica.errors import DataError


@dataclass(frozen=True)
class Columns:
    """What is in which column.

    Attributes:
        text: of texts; several are put together, with a space between.
        label: of the names or numbers of classes.
        image: of images, which are then the samples in place of texts.
    """

    text: str | Sequence[str] = "text"
    label: str = "label"
    image: str | None = None

    @classmethod
    def of(cls, section: Any) -> Columns:
        """Those that the data section of a recipe names."""
        return cls(section.text_column, section.label_column, section.image_column)

    @property
    def texts(self) -> list[str]:
        """The columns of texts."""
        return [self.text] if isinstance(self.text, str) else list(self.text)


BY_DEFAULT = Columns()


@dataclass(frozen=True)
class Half:
    """Rows to train on, or to test on.

    Attributes:
        name: what messages call them.
        columns: their names.
        read: gives all values of a column.
    """

    name: str
    columns: Sequence[str]
    read: Callable[[str], Sequence[Any]]

    def texts(self, columns: Columns) -> list[Any]:
        """What is in the columns of texts, of which some may be no text."""
        return [_joined(parts) for parts in zip(*map(self.read, columns.texts), strict=True)]


def source_of_rows(
    name: str,
    halves: Sequence[Half],
    columns: Columns = BY_DEFAULT,
    *,
    test_fraction: float = 0.25,
    split_seed: int = 0,
    class_order: ClassOrder = "natural",
    unreadable: Literal["refuse", "skip"] = "refuse",
    decoding: Decoding = DEFAULT,
    facts: Mapping[str, object] | None = None,
) -> Source:
    """A source of a half to train on and one to test on, or of one that is split class by class. Classes are those of
    the first.

    Rows without a text or a label are faults, or left out and counted with `unreadable="skip"`.

    Raises:
        DataError: all that is wrong with them.
    """
    names, read, numbers, left_out = _read(halves, columns, class_order, unreadable)
    told = dict(facts or {}) | ({"left_out": left_out} if left_out else {})
    if len(read) == 1:
        parts = held_out(numbers[0], test_fraction, split_seed)
        if lone := [each for each, count in zip(names, np.bincount(numbers[0]), strict=True) if count < 2]:
            raise DataError(
                f"data.root: classes with a single row: {some(lone)}; a split needs two, one of them for testing"
            )
        read, numbers = [read[0].some(part) for part in parts], [numbers[0][part] for part in parts]
        told |= {"split": "per class", "test_fraction": test_fraction, "split_seed": split_seed}

    def samples(place: int, half: str) -> Samples:
        if columns.image:
            return Pictures(read[place].values, numbers[place], decoding)
        return Texts(read[place].values, numbers[place], half)

    return make_source(name, names, samples(0, "train"), samples(1, "test"), told)


def labelled_rows(
    halves: Sequence[Half],
    columns: Columns = BY_DEFAULT,
    *,
    class_order: ClassOrder = "natural",
    unreadable: Literal["refuse", "skip"] = "refuse",
) -> tuple[list[str], list[Texts], dict[str, object]]:
    """The names of the classes of the first half, the texts of each, none of which is set aside, and what there is to
    say of them. DataError as `source_of_rows`."""
    names, read, numbers, left_out = _read(halves, columns, class_order, unreadable)
    found = [Texts(rows.values, own, half.name) for rows, own, half in zip(read, numbers, halves, strict=True)]
    return names, found, {"left_out": left_out} if left_out else {}


def _read(
    halves: Sequence[Half], columns: Columns, class_order: ClassOrder, unreadable: Literal["refuse", "skip"]
) -> tuple[list[str], list[_Rows], list[Int[np.ndarray, " n"]], int]:
    """The names of the classes, the rows of each half, the numbers of their classes, and how many were left out."""
    wanted = [*([columns.image] if columns.image else columns.texts), columns.label]
    keys = {columns.label: "data.label_column"} | dict.fromkeys(
        wanted[:-1], "data.image_column" if columns.image else "data.text_column"
    )
    if missing := [
        f"{keys[each]}: {half.name} has no column {each}; it has {some(half.columns)}"
        for half in halves
        for each in wanted
        if each not in half.columns
    ]:
        raise DataError(missing)
    read = [_Rows.of(half, columns) for half in halves]
    faults = [fault for rows in read for fault in rows.faults]
    if unreadable == "skip":
        read = [rows.sound() for rows in read]
    elif faults:
        remedy = "; data.unreadable=skip leaves them out"
        raise DataError([f"data.root: {line}" for line in listed(f"{len(faults)} rows cannot be used{remedy}", faults)])
    if not len(read[0].labels):
        raise DataError(f"data.root: {halves[0].name} has no rows; give some to train on")

    names = in_order(set(read[0].labels), class_order)
    problems = name_faults(names)
    if len(read) > 1 and (foreign := sorted(set(read[1].labels) - set(names))):
        problems.append(f"{halves[1].name} has classes that {halves[0].name} lacks: {some(foreign)}")
    if problems:
        raise DataError([f"data.root: {problem}" for problem in problems])
    number_of = {each: number for number, each in enumerate(names)}
    numbers = [np.array([number_of[label] for label in rows.labels], np.int64) for rows in read]
    return names, read, numbers, len(faults)


@dataclass(frozen=True)
class _Rows:
    values: Sequence[Any]
    labels: list[str]
    faults: list[str]
    unsound: frozenset[int]

    @classmethod
    def of(cls, half: Half, columns: Columns) -> _Rows:
        labels = [_label(value) for value in half.read(columns.label)]
        if columns.image:
            values: Sequence[Any] = half.read(columns.image)
            wrong = [None if label else "it has no label" for label in labels]
        else:
            values = half.texts(columns)
            wrong = [
                text_fault(value) if label else "it has no label" for value, label in zip(values, labels, strict=True)
            ]
        faults = {row: f"{half.name}, row {row + 1}: {why}" for row, why in enumerate(wrong) if why}
        return cls(values, labels, list(faults.values()), frozenset(faults))

    def sound(self) -> _Rows:
        return self.some(np.array([row for row in range(len(self.labels)) if row not in self.unsound], np.int64))

    def some(self, rows: Int[np.ndarray, " m"]) -> _Rows:
        return _Rows(_Chosen(self.values, rows), [self.labels[row] for row in rows], [], frozenset())


class _Chosen(Sequence[Any]):
    """Some of a sequence, which is read when they are."""

    def __init__(self, values: Sequence[Any], rows: Int[np.ndarray, " m"]) -> None:
        self.values, self.rows = values, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, which: Any) -> Any:
        if isinstance(which, slice):
            return [self.values[row] for row in self.rows[which].tolist()]
        return self.values[int(self.rows[which])]


def _joined(parts: Sequence[Any]) -> Any:
    """One text of several, of which some may be empty; what is no text stays what it is."""
    if len(parts) == 1:
        return parts[0]
    wrong = [part for part in parts if not isinstance(part, str | None)]
    return wrong[0] if wrong else " ".join(part for part in parts if part)


def _label(value: Any) -> str:
    """The name of a class; empty where there is none."""
    if value is None or value != value:  # as a missing number is not itself
        return ""
    if isinstance(value, float) and value.is_integer():  # in a column where some are missing
        value = int(value)
    return str(value).strip()
