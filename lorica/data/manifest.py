"""Which samples of a stream are in which task, by name: what a run writes beside its results, and what makes exactly
that stream again, whatever the seeds.

It is a file of JSON lines, a line for each class of each half of each task:

    {"stream": 1, "sha256": "…"}
    {"task": 1, "half": "train", "class": "wren", "samples": ["train/wren/01.png", …], "digest": "…", "marks": "…"}

The first line is lorica's own: its hash is over all that follows, and where a task is no mere group of classes, `by`
says what it brings, as `stream.by` does. Lines without text say nothing. `samples` are paths below the data's root, or
numbers in what the rows were read from. `digest` is of their names and contents together, and `marks` has four digits
of each, by which those that have changed are named. docs/streams.md says what a manifest written by hand needs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Annotated, Literal, get_args

import numpy as np
from jaxtyping import Int
from pydantic import BaseModel, Field, ValidationError, model_validator

from lorica.data.contents import Digests
from lorica.data.division import By, Division
from lorica.data.samples import Samples
from lorica.data.sources.base import LISTED, Source, listed, some
from lorica.errors import DataError
from lorica.reading import WRITTEN, misfits, parsed

Half = Literal["train", "validation", "test"]

_HALVES: tuple[Half, ...] = get_args(Half)
_DIGITS = 16
_OF_EACH = 4  # digits of a sample's digest


class Header(BaseModel):
    """The first line; a manifest written by hand may do without."""

    model_config = WRITTEN

    stream: Literal[1]
    by: By = Field(default="class", exclude_if=lambda value: value == "class")
    sha256: str | None = None


class Part(BaseModel):
    """The samples of a class in a half of a task, which are numbered from 1."""

    model_config = WRITTEN

    task: Annotated[int, Field(ge=1)]
    half: Half
    class_name: str = Field(alias="class")
    samples: Annotated[list[str | int], Field(min_length=1)]
    digest: str | None = None
    marks: str | None = None

    @model_validator(mode="after")
    def _a_mark_each(self) -> Part:
        if self.marks is not None and len(self.marks) != _OF_EACH * len(self.samples):
            raise ValueError(f"marks: expected {_OF_EACH} digits for each of {len(self.samples)} samples")
        return self

    @property
    def side(self) -> Literal["train", "test"]:
        """The half of a source that has its samples."""
        return "test" if self.half == "test" else "train"

    @property
    def title(self) -> str:
        """Which part it is, for messages."""
        return f"task {self.task}, {self.half}, {self.class_name}"

    def each_mark(self) -> list[str]:
        """The digits of each sample; none where they are not noted."""
        marks = self.marks or ""
        return [marks[begin : begin + _OF_EACH] for begin in range(0, len(marks), _OF_EACH)]

    def sealed(self, digests: Sequence[bytes]) -> Part:
        """With what its samples, of which these are the digests, consist of now."""
        together, marks = hashlib.sha256(b"".join(digests)), "".join(each.hex()[:_OF_EACH] for each in digests)
        return self.model_copy(update={"digest": together.hexdigest()[:_DIGITS], "marks": marks})


@dataclass(frozen=True)
class Manifest:
    """A stream by the names of its samples.

    Attributes:
        parts: by task, half and class; classes are numbered in the order in which they first have training samples.
        file: where it was read.
        by: what a task brings.
    """

    parts: tuple[Part, ...]
    file: Path | None = None
    by: By = "class"

    @classmethod
    def of(cls, source: Source, division: Division, digests: Digests) -> Manifest:
        """The manifest of the stream that a division makes of a source.

        Args:
            digests: of the samples, see `lorica.data.contents.digests_of`.
        """
        position = np.argsort(division.order)
        cells: dict[tuple[int, int, int], tuple[list[str | int], list[bytes]]] = {}
        for samples, own, tasks, halves in (
            (source.train, digests["train"], division.train, division.held.astype(int)),
            (source.test, digests["test"], division.test, np.full(len(source.test), 2)),
        ):
            keys = zip(tasks.tolist(), halves.tolist(), position[samples.labels].tolist(), strict=True)
            for key, name, digest in zip(keys, _names(source, samples), own, strict=True):
                names, contents = cells.setdefault(key, ([], []))
                names.append(name)
                contents.append(digest)
        parts = []
        for (task, half, number), (names, contents) in sorted(cells.items()):
            which = {"half": _HALVES[half], "class": source.class_names[division.order[number]]}
            part = Part.model_validate({"task": task + 1, **which, "samples": names})
            parts.append(part.sealed(contents))
        return cls(tuple(parts), by=division.by)

    @property
    def text(self) -> str:
        """The contents of its file."""
        header = Header(stream=1, by=self.by, sha256=self.sha256)
        return "".join(f"{line}\n" for line in (header.model_dump_json(), *self._lines()))

    @property
    def sha256(self) -> str:
        """Of its lines."""
        return _hash(self._lines())

    def _lines(self) -> Iterator[str]:
        for part in self.parts:
            yield json.dumps(part.model_dump(by_alias=True, exclude_none=True))

    def divided(self, source: Source) -> tuple[Source, Division]:
        """Those samples of a source that it names, in its tasks.

        Raises:
            DataError: samples that are not there, are of another class or in two parts; or as `Division.of`.
        """
        if source.spare is not None:  # then what was drawn does not decide what is in it
            source = replace(source, train=source.train.followed_by(source.spare), spare=None)
        names = {"train": _names(source, source.train), "test": _names(source, source.test)}
        places = {
            half: dict(zip(own, range(begin, begin + len(own)), strict=True))
            for (half, own), begin in zip(names.items(), (0, len(source.train)), strict=True)
        }
        if not places["train"].keys() & places["test"].keys():  # then a sample of one half may be of the other here
            places = dict.fromkeys(places, places["train"] | places["test"])
        labels = np.concatenate([source.train.labels, source.test.labels])
        number_of = {name: number for number, name in enumerate(source.class_names)}
        task, half_of = np.full(len(labels), -1), np.full(len(labels), -1)
        missing, foreign, twice = list[str](), list[str](), list[str]()
        for part in self.parts:
            own = places[part.side]
            for name in part.samples:
                place = own.get(name)
                if place is None:
                    missing.append(f"{part.title}: {name}")
                elif labels[place] != number_of.get(part.class_name, -1):
                    foreign.append(f"{part.title}: {name} is of {source.class_names[labels[place]]}")
                elif task[place] >= 0:
                    twice.append(f"{part.title}: {name}")
                else:
                    task[place], half_of[place] = part.task - 1, _HALVES.index(part.half)
        problems = [
            *listed(f"{len(missing)} samples are not in the data; restore them", missing),
            *listed(f"{len(foreign)} samples are of another class in the data", foreign),
            *listed(f"{len(twice)} samples are in it twice; a sample is in one task", twice),
        ]
        self._require(problems)
        trained = sorted((part for part in self.parts if part.half == "train"), key=lambda part: part.task)
        order = list(dict.fromkeys(number_of[part.class_name] for part in trained))
        used = sorted(set(labels[task >= 0].tolist()))
        self._require(
            f"{source.class_names[number]} has no training samples; give it some, or leave it out"
            for number in used
            if number not in order
        )
        numbers = np.concatenate([source.train.numbers, source.test.numbers])
        train, test = (
            (own := np.flatnonzero(which))[np.argsort(numbers[own], kind="stable")]
            for which in ((half_of == 0) | (half_of == 1), half_of == 2)
        )
        halves = [_of_places(source, own) for own in (train, test)]
        for samples in halves:
            samples.labels = np.searchsorted(used, samples.labels)
        made = replace(
            source,
            class_names=tuple(source.class_names[number] for number in used),
            train=halves[0],
            test=halves[1],
            facts=source.facts | {"classes": len(used), "train": len(train), "test": len(test)},
            domains=None,
        )
        tasks = max(part.task for part in self.parts)
        held = half_of[train] == 1
        division = Division.of(made, np.searchsorted(used, order), tasks, task[train], held, task[test], self.by)
        return made, division

    def require_contents(self, source: Source, digests: Digests) -> None:
        """DataError: samples whose contents it notes have others now, by name.

        Args:
            source: as `divided` made it.
            digests: of its samples.
        """
        sides = {"train": source.train, "test": source.test}
        now = {side: dict(zip(_names(source, each), digests[side], strict=True)) for side, each in sides.items()}
        changed = list[str]()
        for part in self.parts:
            found = part.sealed([now[part.side][name] for name in part.samples])
            if part.digest not in (None, found.digest):
                pairs = zip(part.samples, part.each_mark(), found.each_mark(), strict=False)
                named = [str(name) for name, noted, own in pairs if noted != own]
                changed.append(f"{part.title}: {some(named) or 'one of its samples'}")
        self._require(listed(f"in {len(changed)} places samples are not what they were; restore them", changed))

    def _require(self, problems: Iterable[str]) -> None:
        if lines := [f"stream.manifest: {self.file}: {problem}" for problem in problems]:
            raise DataError(lines)


def read_manifest(file: Path) -> Manifest:
    """A manifest from its file.

    Raises:
        DataError: all that keeps it from being one; or it has been altered since lorica wrote it.
    """
    problems, parts = list[str](), list[Part]()
    header: Header | None = None
    try:
        read = enumerate(file.read_bytes().splitlines(), 1)
    except OSError as error:
        raise DataError(
            f"stream.manifest: {file}: cannot be read: {error.strerror or error}; give the stream.jsonl of a run, or "
            "one written by hand"
        ) from error
    lines = {number: line for number, line in read if line.strip()}
    for number, line in lines.items():
        try:
            values = parsed(line)
            if header is None and not parts and isinstance(values, dict) and "stream" in values:
                header = Header.model_validate(values)
            else:
                parts.append(Part.model_validate(values))
        except ValidationError as error:
            problems += [f"line {number}: {why}" for why in misfits(error)]
        except ValueError as error:
            problems.append(f"line {number}: {error}")
    if not problems and not parts:
        problems.append("nothing is in it; expected a line for each class of each half of each task")
    tasks = {part.task for part in parts}
    if not problems and (gap := next(number for number in count(1) if number not in tasks)) <= len(tasks):
        problems.append(f"no line has task {gap}, and some task {max(tasks)}; tasks are numbered from 1, without gaps")
    noted = header and header.sha256
    if not problems and noted and noted != _hash(line.decode() for line in list(lines.values())[1:]):
        problems.append(
            "altered since it was written; restore it, or leave out sha256 in its first line if it is meant"
        )
    if problems:
        raise DataError([f"stream.manifest: {file}: {problem}" for problem in problems[:LISTED]])
    return Manifest(tuple(parts), file, header.by if header else Manifest.by)


def _hash(lines: Iterable[str]) -> str:
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()


def _names(source: Source, samples: Samples) -> list[str | int]:
    """What a manifest calls these samples of a source."""
    root = Path(str(source.facts.get("root", ""))).as_posix().rstrip("/") + "/"
    names = map(samples.name, range(len(samples)))
    return [name.removeprefix(root) if isinstance(name, str) else name for name in names]


def _of_places(source: Source, places: Int[np.ndarray, " n"]) -> Samples:
    """Samples at these places of both halves, one after the other."""
    train = len(source.train)
    if (places < train).all():
        return source.train.picked(places)
    if (places >= train).all():
        return source.test.picked(places - train)
    return source.train.followed_by(source.test).picked(places)
