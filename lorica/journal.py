"""The lines of a journal of checkpoints: what each must consist of, and how it must follow from those before it.

Its seal says that a line is what was written after the lines before it; these models say that it can be used.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from lorica.reading import WRITTEN, Count, shown
from lorica.results import Entry
from lorica.types import Task

FORMAT = 3
JOURNAL = "journal.jsonl"


def sealed(before: str, values: Mapping[str, Any]) -> str:
    """The seal of a line: of its values and the seal before it."""
    return hashlib.sha256((before + json.dumps(values, sort_keys=True)).encode()).hexdigest()


class Saved(BaseModel):
    """A file of tensors, and its hash."""

    model_config = WRITTEN

    file: str
    sha256: str


class BackboneLearnedOn(BaseModel):
    """What was learned on; the fingerprint tells it, the rest is for people."""

    model_config = WRITTEN

    name: str
    tag: str
    fingerprint: str


class Head(BaseModel):
    """The first line: what the checkpoints belong to."""

    model_config = WRITTEN

    format: Literal[3]
    method: dict[str, Any]
    backbone: BackboneLearnedOn


class TaskLearned(BaseModel):
    """See `lorica.types.Task`."""

    model_config = WRITTEN

    index: Count
    classes: Annotated[list[Count], Field(min_length=1)]
    new_classes: list[Count]
    class_names: list[str]

    @classmethod
    def of(cls, task: Task) -> TaskLearned:
        return cls(
            index=task.index,
            classes=list(task.classes),
            new_classes=list(task.new_classes),
            class_names=list(task.class_names),
        )

    @property
    def task(self) -> Task:
        return Task(self.index, tuple(self.classes), tuple(self.new_classes), tuple(self.class_names))


class Line(BaseModel):
    """A task, and what changed with it.

    Attributes:
        structure: see `Method.structure`.
        base: nothing of earlier lines is a part of this checkpoint.
        saved: the file of what is new; None where nothing is.
        whole: tensors that are in that file as they are.
        extended: tensors of earlier lines, and along which axis what is in that file is added to them.
        removed: tensors of earlier lines that are gone.
        sums: what only learning on needs; the file is there for the newest checkpoint, and for others where that was asked for.
        entry: what was measured.
        history: size of the history by then, in bytes.
    """

    model_config = WRITTEN

    task: TaskLearned
    structure: dict[str, Any]
    base: bool
    saved: Saved | None
    whole: list[str]
    extended: dict[str, Count]
    removed: list[str]
    sums: Saved | None
    entry: Entry
    history: Count


@dataclass
class Account:
    """What the lines of a journal say together, so far.

    Attributes:
        names: of the classes, in the order of their numbers.
        tensors: names of those that the newest checkpoint consists of.
        lines: their number.
        rows: those of the accuracy matrix.
        has_head_rows: the lines have rows by the method's own predictions, too; None before the first.
    """

    names: dict[str, int] = field(default_factory=dict)
    tensors: set[str] = field(default_factory=set)
    lines: int = 0
    rows: int = 0
    has_head_rows: bool | None = None

    def misfits(self, line: Line) -> Iterator[str]:
        """Why a line cannot be the next one."""
        if line.task.index != self.lines:
            yield f"task.index is {line.task.index}, expected {self.lines}"
        yield from self._class_misfits(line.task)
        yield from self._tensor_misfits(line)
        lengths = [len(row) for row in line.entry.rows]
        expected = list(range(self.rows + 1, self.rows + 1 + (len(lengths) if not self.lines else 1)))
        if lengths != expected:
            yield f"entry.rows has rows of {shown(lengths)} numbers, expected {shown(expected)}"
        own = [len(row) for row in line.entry.head_rows]
        if (own or self.has_head_rows) and (own != lengths or self.has_head_rows is False):
            wanted = [] if self.has_head_rows is False else lengths
            yield f"entry.head_rows has rows of {shown(own)} numbers, expected {shown(wanted)}"

    def _class_misfits(self, task: TaskLearned) -> Iterator[str]:
        if any(one >= other for one, other in pairwise(task.classes)):
            yield f"task.classes is {shown(task.classes)}, expected ascending numbers"
        new = list(range(len(self.names), len(self.names) + len(task.new_classes)))
        old = [number for number in task.classes if number < len(self.names)]
        if task.new_classes != new:
            yield f"task.new_classes is {shown(task.new_classes)}, expected {shown(new)}: those after earlier tasks'"
        elif task.classes != old + new:
            yield f"task.classes is {shown(task.classes)}, expected {shown(old + new)}"
        if len(task.class_names) != len(task.classes):
            yield f"task.class_names has {len(task.class_names)} names, expected {len(task.classes)}"
        elif len(set(task.class_names)) < len(task.class_names):
            yield f"task.class_names is {shown(task.class_names)}, expected different names"
        else:
            for number, name in zip(task.classes, task.class_names, strict=True):
                known = self.names.get(name)
                if known != (number if number < len(self.names) else None):
                    yield f"task.class_names has {shown(name)} for class {number}, another than in earlier tasks"

    def _tensor_misfits(self, line: Line) -> Iterator[str]:
        there = set() if line.base else self.tensors
        if not (line.base or self.lines):
            yield "base is false, expected true: there is no earlier task"
        in_file, named = [*line.whole, *line.extended], f"task_{self.lines:04d}"
        if len(set(in_file)) < len(in_file):
            yield f"whole and extended are {shown(in_file)}, expected different names"
        if unknown := (line.extended.keys() | set(line.removed)) - there:
            yield f"extended and removed have {shown(sorted(unknown)[0])}, which no earlier line has"
        if (line.saved is None) == bool(in_file):
            yield f"saved is {shown(line.saved)}, with {len(in_file)} tensors in it"
        for key, saved, file in (("saved", line.saved, named), ("sums", line.sums, f"{named}-sums")):
            if saved and saved.file != f"{file}.safetensors":
                yield f"{key}.file is {shown(saved.file)}, expected '{file}.safetensors'"

    def add(self, line: Line) -> None:
        """Takes a line up that fits."""
        numbered = zip(line.task.class_names, line.task.classes, strict=True)
        self.names |= {name: number for name, number in numbered if number in line.task.new_classes}
        self.tensors = ((set() if line.base else self.tensors) - set(line.removed)) | set(line.whole)
        self.lines += 1
        self.rows += len(line.entry.rows)
        self.has_head_rows = bool(line.entry.head_rows)
