"""What every source gives: a training and a test set over the same classes."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Int

from lorica.data.samples import Samples
from lorica.errors import DataError

LISTED = 10  # names spelled out in one error

OF_ROWS = ("dataset", "text_column", "label_column", "image_column", "domain_column")
"""Keys of a recipe's data section that say which rows and columns are meant, for the sources that read rows."""

ClassOrder = Literal["natural", "text"]
"""Of class names: 2 before 10, or as texts (10 before 2), as lorica once did and torchvision does."""


class Domains(NamedTuple):
    """Of which domain each sample is, by its number among `names`."""

    names: tuple[str, ...]
    train: Int[np.ndarray, " n_train"]
    test: Int[np.ndarray, " n_test"]


@dataclass(frozen=True)
class Source:
    """A training and a test set over the same classes.

    Attributes:
        facts: plain values for the record of a run.
        in_order: its classes come in an order of their own, which no stream may shuffle.
        domains: in which its classes recur, for streams of domains; None where there are none.
        spare: training samples that were not drawn, which a manifest may name all the same; None where all are there.
    """

    name: str
    class_names: tuple[str, ...]
    train: Samples
    test: Samples
    facts: dict[str, object]
    in_order: bool = False
    domains: Domains | None = None
    spare: Samples | None = None


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
    return Source(name, tuple(class_names), train, test, counts | facts | facts_of_names(class_names))


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
        raise DataError(f"data.root: the source {name} needs a path; give data.root=PATH")
    return root


def in_order(names: Iterable[str], order: ClassOrder) -> list[str]:
    """Names sorted, numbers within them by their size where the order is "natural"."""

    def natural(name: str) -> tuple[list[tuple[str, int, str]], str]:
        parts = re.split("([0-9]+)", name)  # texts and numbers by turns, a text last
        digits = [part.lstrip("0") for part in parts[1::2]]
        pairs = zip(parts[::2], [*digits, ""], strict=True)
        return [(text, len(number), number) for text, number in pairs], name

    return sorted(names, key=natural if order == "natural" else None)


def likeness(name: str) -> str:
    """The same for names that look the same: accents composed or not, unseen characters, space around, and space of
    whatever width within."""
    composed = unicodedata.normalize("NFC", name)
    return " ".join("".join(letter for letter in composed if unicodedata.category(letter) != "Cf").split())


def nearly_alike(names: Iterable[str]) -> list[list[str]]:
    """Those names, together, that differ only in case, or in how a number is written: 1, 01 and 1.0."""
    together: dict[str, list[str]] = {}
    for name in names:
        plain = likeness(name).casefold()
        if number := re.fullmatch(r"\+?(-?)0*([0-9]+?)(?:\.([0-9]*?)0*)?", plain):
            sign, whole, fraction = number.groups("")
            plain = f"{sign}{whole}.{fraction}"
        together.setdefault(plain, []).append(name)
    return [group for group in together.values() if len(group) > 1]


def facts_of_names(names: Iterable[str], what: str = "class") -> dict[str, object]:
    """For the facts of a source: those of its classes, or of what the names are of, that are `nearly_alike`."""
    groups = nearly_alike(names)
    return {f"alike_{plural(what)}": groups} if groups else {}


def plural(what: str) -> str:
    """Of a word: classes, domains."""
    return f"{what}es" if what.endswith("s") else f"{what}s"


def name_faults(names: Sequence[str], what: str = "class") -> list[str]:
    """Why these cannot be the names of classes, or what they are of: no text, harmful to a terminal, or not to be told
    apart."""
    problems = [f"a {what} has the name {name!a}, {fault}; rename it" for name in names if (fault := _name_fault(name))]
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(likeness(name), []).append(name)
    return problems + [
        f"{plural(what)} whose names look the same: {some(map(ascii, same))}; rename them, or put them together"
        for same in alike.values()
        if len(same) > 1
    ]


def _name_fault(name: str) -> str | None:
    kinds = {unicodedata.category(letter) for letter in name}
    if "Cs" in kinds:
        return "which is not UTF-8"
    if kinds & {"Cc", "Zl", "Zp"}:
        return "with control characters"
    return None if likeness(name) else "which shows nothing"


def remarks(facts: Mapping[str, Any]) -> list[str]:
    """What a source has left out, or may have taken amiss, one line each, for whoever runs or checks it."""
    lines = []
    if passed_over := facts.get("passed_over"):
        reasons = some(f"{number} {reason}" for reason, number in passed_over.items())
        lines.append(f"data.root: passed over {sum(passed_over.values())} files or folders: {reasons}")
    if unreadable := facts.get("unreadable"):
        lines.append(f"data.unreadable: left out {unreadable} images that cannot be read")
    if left_out := facts.get("left_out"):
        lacking = "a label or a domain, or a text or image that can be read"
        lines.append(f"data.unreadable: left out {left_out} rows that lack {lacking}")
    if lost := facts.get("classes_left_out"):
        lines.append(f"data.unreadable: left out classes of which no row can be used: {some(lost)}")
    for what in ("classes", "domains"):
        if groups := facts.get(f"alike_{what}"):
            lines.append(alike_remark(what, groups))
    if cut := facts.get("cut"):
        lines.append(f"data.max_tokens: cut {cut} texts, which are longer")
    return lines


def alike_remark(what: str, groups: Iterable[Sequence[str]]) -> str:
    """A line about names that are `nearly_alike`."""
    named = some(" and ".join(group) for group in groups)
    return f"{what} that differ only in case or in how a number is written: {named}; if they are one, rename them"


def listed(what: str, lines: Sequence[str]) -> list[str]:
    """The first of some problems after a line that says what and how many they are; nothing where there are none."""
    if not lines:
        return []
    shown = f"; the first {LISTED} are" if len(lines) > LISTED else ""
    return [what + shown, *lines[:LISTED]]


def some(items: Iterable[object], number: int | None = None) -> str:
    """The first of some names, and how many more there are, of that `number` or of as many as were given."""
    texts = [str(item) for item in items]
    more = (number or len(texts)) - LISTED
    return ", ".join(texts[:LISTED]) + (f" and {more} more" if more > 0 else "")
