"""Rows with named columns, of texts or of images and of labels, as a source: what files of rows and Hugging Face's
datasets share."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Int
from torch import Tensor

from lorica.data.decoding import DEFAULT, Decoding
from lorica.data.images import Pictures, faults
from lorica.data.samples import Chosen, Samples
from lorica.data.sources.base import (
    ClassOrder,
    Domains,
    Source,
    alike_remark,
    facts_of_names,
    held_out,
    in_order,
    listed,
    make_source,
    name_faults,
    nearly_alike,
    plural,
    some,
)
from lorica.data.texts import Texts, text_fault
from lorica.errors import DataError
from lorica.progress import Reporter


@dataclass(frozen=True)
class Columns:
    """What is in which column.

    Attributes:
        text: of texts; several are put together, with a space between.
        label: of the names or numbers of classes.
        image: of images, which are then the samples in place of texts.
        domain: of the names of domains; None where there are none.

    Raises:
        DataError: a list of no columns of texts.
    """

    text: str | Sequence[str] = "text"
    label: str = "label"
    image: str | None = None
    domain: str | None = None

    def __post_init__(self) -> None:
        if not self.texts:
            raise DataError("data.text_column: expected a column, or a list of some, given an empty list; name one")

    @classmethod
    def of(cls, section: Any) -> Columns:
        """Those that the data section of a recipe names."""
        return cls(section.text_column, section.label_column, section.image_column, section.domain_column)

    @property
    def texts(self) -> list[str]:
        """The columns of texts."""
        return [self.text] if isinstance(self.text, str) else list(self.text)

    @property
    def every(self) -> set[str]:
        """All that are named."""
        return {*self.texts, *(each for each in (self.label, self.image, self.domain) if each is not None)}


BY_DEFAULT = Columns()

_NoName = list | tuple | Mapping | set | np.ndarray | Tensor
"""What a column can hold that names nothing."""


@dataclass(frozen=True)
class Half:
    """Rows to train on, or to test on.

    Attributes:
        name: what messages call them.
        columns: their names.
        read: gives all values of a column.
        lines: of the file in which each row begins; none where rows are not lines.
    """

    name: str
    columns: Sequence[str]
    read: Callable[[str], Sequence[Any]]
    lines: Sequence[int] = ()

    def place(self, row: int) -> str:
        """What messages call a row."""
        return f"{self.name}, line {self.lines[row]}" if self.lines else f"{self.name}, row {row + 1}"

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
    decode_all: bool = False,
    reporter: Reporter | None = None,
    facts: Mapping[str, object] | None = None,
) -> Source:
    """A source of a half to train on and one to test on, or of one that is split class by class, and domain by domain.
    Classes and domains are those of the first.

    Rows without a text, a label or a domain are faults, or left out and counted with `unreadable="skip"`; so are those
    whose image cannot be read, as far as its header tells, or, with `decode_all` and with "skip", its pixels. A file
    that several rows name is one sample, and refused.

    Raises:
        DataError: all that is wrong with them.
    """
    decode = decode_all or unreadable == "skip"
    wrong = partial(faults, decoding=decoding, decode=decode, reporter=reporter) if columns.image else _text_faults
    read, left_out = _read(halves, columns, unreadable, wrong)
    if columns.image:
        _require_each_once(read)
    class_names, labels = _numbered("class", [rows.labels for rows in read], halves, class_order)
    domain_names, domains = [""], [np.zeros_like(each) for each in labels]
    if columns.domain:
        domain_names, domains = _numbered("domain", [rows.domains for rows in read], halves, "natural")
    told = dict(facts or {}) | left_out | (facts_of_names(domain_names, "domain") if columns.domain else {})

    def samples(place: int) -> Samples:
        values = read[place].values
        made = (
            Pictures(values, labels[place], decoding)
            if columns.image
            else Texts(values, labels[place], halves[place].name)
        )
        made.numbers = read[place].numbers
        return made

    if len(read) == 1:
        cells = labels[0] * len(domain_names) + domains[0]
        cell, count = np.unique(cells, return_counts=True)
        if lone := dict.fromkeys(class_names[each // len(domain_names)] for each in cell[count < 2]):
            where = " in a domain" if columns.domain else ""
            raise DataError(
                f"data.root: classes with a single row{where}: {some(lone)}; a split needs two, one of them for testing"
            )
        every, parts = samples(0), held_out(cells, test_fraction, split_seed)
        train, test = (every.picked(part) for part in parts)
        domains = [domains[0][part] for part in parts]
        told |= {"split": "per class", "test_fraction": test_fraction, "split_seed": split_seed}
    else:
        train, test = samples(0), samples(1)
    source = make_source(name, class_names, train, test, told)
    return replace(source, domains=Domains(tuple(domain_names), *domains)) if columns.domain else source


def labelled_rows(
    halves: Sequence[Half],
    columns: Columns = BY_DEFAULT,
    *,
    class_order: ClassOrder = "natural",
    unreadable: Literal["refuse", "skip"] = "refuse",
) -> tuple[list[str], list[Texts], dict[str, object]]:
    """The names of the classes of the first half, the texts of each, none of which is set aside, and what there is to
    say of them. DataError as `source_of_rows`."""
    read, left_out = _read(halves, columns, unreadable, _text_faults)
    names, numbers = _numbered("class", [rows.labels for rows in read], halves, class_order)
    found = [Texts(rows.values, own, half.name) for rows, own, half in zip(read, numbers, halves, strict=True)]
    return names, found, left_out | facts_of_names(names)


def _text_faults(values: Sequence[Any]) -> list[str | None]:
    return [text_fault(value) for value in values]


def _require_each_once(read: Sequence[_Rows]) -> None:
    """DataError that names the image files which are there more than once, under whatever names."""
    files = [os.path.realpath(value) for rows in read for value in rows.values if isinstance(value, Path)]
    if twice := [f"{file}: in {count} rows" for file, count in Counter(files).items() if count > 1]:
        told = f"{len(twice)} images are in several rows, and each is one sample; name each of them once"
        raise DataError([f"data.image_column: {line}" for line in listed(told, twice)])


def _read(
    halves: Sequence[Half],
    columns: Columns,
    unreadable: Literal["refuse", "skip"],
    wrong: Callable[[Sequence[Any]], list[str | None]],
) -> tuple[list[_Rows], dict[str, object]]:
    """The rows of each half, and facts of what was left out: rows without a label or a domain, or whose values are
    `wrong`, and classes of which no row is left."""
    if empty := [half.name for half in halves if not half.columns]:
        raise DataError([f"data.root: {name} has no rows; give some" for name in empty])
    wanted = [*([columns.image] if columns.image else columns.texts), columns.label]
    keys = {columns.label: "data.label_column"} | dict.fromkeys(
        wanted[:-1], "data.image_column" if columns.image else "data.text_column"
    )
    if columns.domain is not None:
        wanted.append(columns.domain)
        keys[columns.domain] = "data.domain_column"
    if missing := [
        f"{keys[each]}: {half.name} has no column {each}; it has {some(half.columns)}"
        for half in halves
        for each in wanted
        if each not in half.columns
    ]:
        raise DataError(missing)
    read = [_Rows.of(half, columns, wrong) for half in halves]
    found = [fault for rows in read for fault in rows.faults.values()]
    left_out: dict[str, object] = {"left_out": len(found)} if found else {}
    if unreadable == "skip":
        named = {label for label in read[0].labels if label and _name_fault(label, "label") is None}
        read = [rows.sound() for rows in read]
        if lost := named - set(read[0].labels):
            left_out["classes_left_out"] = sorted(lost)
    elif found:
        remedy = "; data.unreadable=skip leaves them out"
        raise DataError([f"data.root: {line}" for line in listed(f"{len(found)} rows cannot be used{remedy}", found)])
    if not len(read[0].labels):
        raise DataError(f"data.root: {halves[0].name} has no rows; give some to train on")
    return read, left_out


def _numbered(
    what: str, given: Sequence[list[str]], halves: Sequence[Half], order: ClassOrder
) -> tuple[list[str], list[Int[np.ndarray, " n"]]]:
    """The names of classes or domains in the first half, in order, and the number of each row's in each half."""
    names = in_order(set(given[0]), order)
    problems = name_faults(names, what)
    for half, values in zip(halves[1:], given[1:], strict=True):
        if foreign := sorted(set(values) - set(names)):
            problems.append(f"{half.name} has {plural(what)} that {halves[0].name} lacks: {some(foreign)}")
            alike = [group for group in nearly_alike([*names, *foreign]) if group[0] in names and group[-1] in foreign]
            problems += [alike_remark(plural(what), alike)] if alike else []
    if problems:
        raise DataError([f"data.root: {problem}" for problem in problems])
    number_of = {each: number for number, each in enumerate(names)}
    return names, [np.array([number_of[each] for each in values], np.int64) for values in given]


@dataclass(frozen=True)
class _Rows:
    """What is in the rows of these numbers; `domains` are all empty where rows have none."""

    values: Sequence[Any]
    labels: list[str]
    domains: list[str]
    numbers: Int[np.ndarray, " n"]
    faults: Mapping[int, str]

    @classmethod
    def of(cls, half: Half, columns: Columns, wrong: Callable[[Sequence[Any]], list[str | None]]) -> _Rows:
        named = [_label(value) for value in half.read(columns.label)]
        places = [_label(value) for value in half.read(columns.domain)] if columns.domain else [""] * len(named)
        values = half.read(columns.image) if columns.image else half.texts(columns)
        faults = {}
        for row, (why, label, domain) in enumerate(zip(wrong(values), named, places, strict=True)):
            if columns.domain:
                why = _name_fault(domain, "domain") or why
            if why := _name_fault(label, "label") or why:
                faults[row] = f"{half.place(row)}: {why}"
        labels, domains = ([each if isinstance(each, str) else "" for each in names] for names in (named, places))
        return cls(values, labels, domains, np.arange(len(labels)), faults)

    def sound(self) -> _Rows:
        rows = np.array([row for row in range(len(self.labels)) if row not in self.faults], np.int64)
        labels, domains = ([names[row] for row in rows] for names in (self.labels, self.domains))
        return _Rows(Chosen(self.values, rows), labels, domains, rows, {})


def _joined(parts: Sequence[Any]) -> Any:
    """One text of several, of which some may be empty; what is no text stays what it is."""
    if len(parts) == 1:
        return parts[0]
    wrong = [part for part in parts if not isinstance(part, str | None)]
    return wrong[0] if wrong else " ".join(part for part in parts if part)


def _label(value: Any) -> str | bytes | _NoName | None:
    """The name of a class, or None where there is none; what cannot be one stays what it is."""
    if isinstance(value, Tensor | np.number) and not value.ndim:
        value = value.item()
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            return value
    if isinstance(value, _NoName):
        return value
    if value is None or value != value:  # as a missing number is not itself
        return None
    if isinstance(value, float) and value.is_integer():  # in a column where some are missing
        value = int(value)
    return str(value).strip() or None


def _name_fault(label: Any, what: str) -> str | None:
    """Why this, of `_label`, names no class or domain."""
    if label is None:
        return f"it has no {what}"
    if isinstance(label, bytes):
        return f"its {what} is bytes that are not UTF-8, {label!r:.60}"
    if not isinstance(label, str):
        return f"its {what} is not a name or a number, but {label!r:.60}"
    try:
        label.encode()
    except UnicodeEncodeError:
        return f"its {what} is not Unicode, {label[:60]!a}"
    return None
