"""Benchmarks by name: what is known of each, without torch. `lorica.data.inspection` holds folders to it.

A benchmark is a file of `lorica.data.sources` that has a BENCHMARK beside its DESCRIPTION and load.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lorica.data import sources
from lorica.data.sources.base import required
from lorica.errors import DataError

if TYPE_CHECKING:
    from lorica.data.sources.base import Source


class Entry(NamedTuple):
    """An image that a list names.

    Attributes:
        half: "train" or "test".
        path: of the file.
        class_name: of its class, and `number` of that.
        key: what the split's hash knows it by: class and file, wherever they lie.
    """

    half: str
    path: Path
    class_name: str
    number: int
    key: str


class Listing(NamedTuple):
    """What lists name, and the folders whose images they should name."""

    entries: Sequence[Entry]
    folders: Sequence[Path]


def is_class_number(text: str) -> bool:
    """Whether a list can mean the number of a class by that; reading one of thousands of digits takes time."""
    return text.isdecimal() and len(text) < 7


@dataclass(frozen=True)
class Layout:
    """A way in which the images of a benchmark lie on disk.

    Attributes:
        name: of it.
        shown: what lies where.
        marks: it is there if something is that matches one of these.
        read: its lists, for a folder; DataError with all that is wrong with them. None: the folders train and test say
            it all.
    """

    name: str
    shown: str
    marks: tuple[str, ...]
    read: Callable[[Path], Listing] | None = None

    def is_there(self, root: Path) -> bool:
        """Whether a folder has it, or a part of it."""
        return any(next(root.glob(mark), None) for mark in self.marks)


FOLDERS = Layout("folders", "{train,test}/<class>/*.jpg", ("train", "test"))


@dataclass(frozen=True)
class Split:
    """A division into training and test images that is in use.

    Attributes:
        name: whose it is.
        train: number of images, as of `test`.
        layouts: names of those in which it is found.
        numbers: of some classes, by which lists are told apart.
        sha256: the hash of its list of files, see `lorica.data.inspection`; None where nobody has told us.
    """

    name: str
    train: int
    test: int
    layouts: tuple[str, ...] = (FOLDERS.name,)
    numbers: Mapping[str, int] = field(default_factory=dict)
    sha256: str | None = None


@dataclass(frozen=True)
class Benchmark:
    """What is known of a benchmark.

    Attributes:
        name: of its source.
        title: for people.
        classes: how many.
        splits: those in use.
        layouts: those that people have; none where the source fetches and verifies its files itself.
        folders: names that they give it beside other data.
        origin: where to get it.
        licence: what that allows.
        place: what to place where, a line each.
        protocols: how papers divide it.
        traps: what has misled people.
        known: names of its classes, or their beginnings up to a dot, with spaces between; empty where we have no list.
        domains: numbers of training and test images in each of its folders of classes, where it has several.
        in_order: see `Source`.
    """

    name: str
    title: str
    classes: int
    splits: tuple[Split, ...]
    origin: str
    licence: str
    place: tuple[str, ...]
    layouts: tuple[Layout, ...] = (FOLDERS,)
    folders: tuple[str, ...] = ()
    protocols: tuple[str, ...] = ()
    traps: tuple[str, ...] = ()
    known: str = ""
    domains: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    in_order: bool = False

    def load(self, root: Path | None, **options: Any) -> Source:
        """Its training and test images.

        Args:
            root: the folder in one of its layouts, or the one that holds it under a usual name.
            options: as of a source's `load`, of which those that would make another data set of it have no effect.

        Raises:
            DataError: all in which the folder is not this benchmark.
        """
        from lorica.data.inspection import inspect  # torch

        looking = {key: options[key] for key in ("decoding", "decode_all", "reporter") if key in options}
        found = inspect(self, required(root, self.name), **looking)
        found.require()
        return found.source()


def find_benchmark(name: str) -> Benchmark:
    """The benchmark of that name. DataError for an unknown one."""
    known = sources.benchmark_names()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(known)}"
        raise DataError(f"unknown benchmark {name!r}; {hint}")
    return importlib.import_module(f"{sources.__name__}.{name}").BENCHMARK
