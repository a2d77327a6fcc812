"""The lines of a journal of checkpoints: what each must consist of, and how it must follow from those before it.

Its seal says that a line is what was written after the lines before it; these models say that it can be used.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from lorica.reading import WRITTEN, Count, Plain, shown
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


class Change(BaseModel):
    """What somebody did to a model that goes on learning; the lines of a run have none.

    Attributes:
        kind: what was done.
        date: when, in the form of ISO 8601.
        note: plain values for people and for predictions, see `lorica.learner`.
    """

    model_config = WRITTEN

    kind: Literal["learned", "rolled back", "forgot", "joined", "purged"]
    date: str
    note: Plain = {}


def _left_out(value: Any) -> bool:
    """Of what the lines of a run have not: they are as they were before there was more."""
    return value is None or value == []


class Line(BaseModel):
    """A task, and what changed with it; or, in the journal of a model, another change.

    Attributes:
        task: what was learned; None where nothing was.
        structure: see `Method.structure`.
        base: nothing of earlier lines is a part of this checkpoint.
        saved: the file of what is new; None where nothing is.
        whole: tensors that are in that file as they are.
        extended: tensors of earlier lines, and along which axis what is in that file is added to them.
        removed: tensors of earlier lines that are gone.
        sums: what only learning on needs; the file is there for the newest checkpoint, and for others where that was
            asked for.
        entry: what was measured.
        history: size of the history by then, in bytes.
        change: what was done to a model; None in a run.
        joined: tasks that another model had learned, taken up with it.
        forgotten: numbers of the classes that are no longer predicted.
        restores: the number of the line after which the model is again as it was; this one then has nothing else.
        images: the file of what is known of the images, see `lorica.learner`.
        parts: the file of what only forgetting needs, see `lorica.methods.base.Method.taken_parts`.
    """

    model_config = WRITTEN

    task: TaskLearned | None
    structure: dict[str, Any]
    base: bool
    saved: Saved | None
    whole: list[str]
    extended: dict[str, Count]
    removed: list[str]
    sums: Saved | None
    entry: Entry
    history: Count
    change: Change | None = Field(default=None, exclude_if=_left_out)
    joined: list[TaskLearned] = Field(default=[], exclude_if=_left_out)
    forgotten: list[Count] = Field(default=[], exclude_if=_left_out)
    restores: Annotated[Count, Field(ge=1)] | None = Field(default=None, exclude_if=_left_out)
    images: Saved | None = Field(default=None, exclude_if=_left_out)
    parts: Saved | None = Field(default=None, exclude_if=_left_out)

    @property
    def tasks(self) -> list[TaskLearned]:
        """The tasks that this line adds."""
        return [*([self.task] if self.task else []), *self.joined]

    def files(self) -> dict[str, Saved | None]:
        """Its files, by what their names end in."""
        return {"": self.saved, "-sums": self.sums, "-images": self.images, "-parts": self.parts}


def line_of_descent(lines: Sequence[Line], number: int) -> list[int]:
    """Numbers, from 1, of the lines that together make what there was after that line: those before it, but for what
    has been rolled back by then."""
    path = []
    while number:
        restored = lines[number - 1].restores
        if restored is None:
            path.append(number)
            number -= 1
        else:
            number = restored
    return path[::-1]


def last_purged(lines: Sequence[Line]) -> int:
    """How many lines there are before the latest that purged them, whose files are gone; 0 where none did."""
    kinds = [line.change.kind if line.change else "" for line in lines]
    return max((place for place, kind in enumerate(kinds) if kind == "purged"), default=0)


@dataclass
class Account:
    """What the lines of a journal say together, so far.

    Attributes:
        names: of the classes, in the order of their numbers.
        forgotten: those of the classes that have been forgotten, and not learned again.
        hidden: those of them that were only hidden, and can be forgotten yet.
        tensors: names of those that the newest checkpoint consists of.
        tasks: how many the newest checkpoint has learned.
        rows: those of the accuracy matrix.
        has_head_rows: the lines have rows by the method's own predictions, too; None before the first.
        lines: all of them.
    """

    names: dict[str, int] = field(default_factory=dict)
    forgotten: set[int] = field(default_factory=set)
    hidden: set[int] = field(default_factory=set)
    tensors: set[str] = field(default_factory=set)
    tasks: int = 0
    rows: int = 0
    has_head_rows: bool | None = None
    lines: list[Line] = field(default_factory=list)

    def misfits(self, line: Line) -> Iterator[str]:
        """Why a line cannot be the next one."""
        if line.restores is not None:
            yield from self._restore_misfits(line)
            return
        yield from self._kind_misfits(line)
        names = dict(self.names)
        for place, task in enumerate(line.tasks):
            if task.index != self.tasks + place:
                yield f"task.index is {task.index}, expected {self.tasks + place}"
            yield from _class_misfits(task, names)
            names |= _new_names(task)
        if unknown := set(line.forgotten) - (set(names.values()) - (self.forgotten - self.hidden)):
            yield f"forgotten has {shown(min(unknown))}, expected the number of a class that is known"
        yield from self._tensor_misfits(line)
        lengths = [len(row) for row in line.entry.rows]
        expected = list(range(self.rows + 1, self.rows + 1 + (max(1, len(lengths)) if not self.tasks else 1)))
        if lengths != (expected := [] if line.change else expected):
            yield f"entry.rows has rows of {shown(lengths)} numbers, expected {shown(expected)}"
        own = [len(row) for row in line.entry.head_rows]
        if (own or self.has_head_rows) and (own != lengths or self.has_head_rows is False):
            wanted = [] if self.has_head_rows is False else lengths
            yield f"entry.head_rows has rows of {shown(own)} numbers, expected {shown(wanted)}"

    def _restore_misfits(self, line: Line) -> Iterator[str]:
        assert line.restores is not None
        if line.restores > len(self.lines):
            yield f"restores is {line.restores}, and there are {len(self.lines)} lines before it"
        if line.restores <= last_purged(self.lines):
            yield f"restores is {line.restores}, which has been purged"
        if line.change is None or line.change.kind != "rolled back":
            yield "restores is given, expected in a line whose change is 'rolled back' alone"
        filled = {"task": line.task, "joined": line.joined, "forgotten": line.forgotten, "structure": line.structure}
        filled |= {
            "whole": line.whole,
            "extended": line.extended,
            "removed": line.removed,
            "entry.rows": line.entry.rows,
        }
        filled |= {f"file{end}": saved for end, saved in line.files().items()}
        for key in [key for key, value in filled.items() if value]:
            yield f"{key} is given, expected nothing: the line goes back to an earlier one"

    def _kind_misfits(self, line: Line) -> Iterator[str]:
        kind = line.change.kind if line.change else "learned"
        there = {"task": line.task is not None, "joined": bool(line.joined), "forgotten": bool(line.forgotten)}
        expected = {"learned": "task", "joined": "joined", "forgot": "forgotten"}.get(kind)
        if wrong := [key for key, given in there.items() if given != (key == expected)]:
            yield f"{wrong[0]} is {'given' if there[wrong[0]] else 'missing'}, in a line that says {kind}"
        if kind == "purged" and not line.base:
            yield "base is false, expected true: what was purged is gone"
        if line.change is None and (line.images or line.parts):
            yield "images or parts are given, expected in a line with a change alone"

    def _tensor_misfits(self, line: Line) -> Iterator[str]:
        there = set() if line.base else self.tensors
        if not (line.base or self.tasks):
            yield "base is false, expected true: there is no earlier task"
        in_file, named = [*line.whole, *line.extended], f"task_{len(self.lines):04d}"
        if len(set(in_file)) < len(in_file):
            yield f"whole and extended are {shown(in_file)}, expected different names"
        if unknown := (line.extended.keys() | set(line.removed)) - there:
            yield f"extended and removed have {shown(sorted(unknown)[0])}, which no earlier line has"
        if (line.saved is None) == bool(in_file):
            yield f"saved is {shown(line.saved)}, with {len(in_file)} tensors in it"
        for end, saved in line.files().items():
            if saved and saved.file != f"{named}{end}.safetensors":
                key = end.removeprefix("-") or "saved"
                yield f"{key}.file is {shown(saved.file)}, expected '{named}{end}.safetensors'"

    def add(self, line: Line) -> None:
        """Takes a line up that fits."""
        self.lines.append(line)
        if line.restores is not None:
            path = [self.lines[number - 1] for number in line_of_descent(self.lines, line.restores)]
            then = Account()
            for each in path:
                then._take(each)
            vars(self).update(vars(then) | {"lines": self.lines})
            return
        self._take(line)

    def _take(self, line: Line) -> None:
        for task in line.tasks:
            self.names |= _new_names(task)
            self.forgotten -= set(task.classes)
        self.forgotten |= set(line.forgotten)
        hides = line.change is not None and bool(line.change.note.get("hidden"))
        self.hidden = (
            (self.hidden | set(line.forgotten)) if hides else (self.hidden - set(line.forgotten))
        ) & self.forgotten
        self.tensors = ((set() if line.base else self.tensors) - set(line.removed)) | set(line.whole)
        self.tasks += len(line.tasks)
        self.rows += len(line.entry.rows)
        self.has_head_rows = bool(line.entry.head_rows)


def _new_names(task: TaskLearned) -> dict[str, int]:
    numbered = zip(task.class_names, task.classes, strict=False)  # that they are as many is asked of each task
    return {name: number for name, number in numbered if number in task.new_classes}


def _class_misfits(task: TaskLearned, names: Mapping[str, int]) -> Iterator[str]:
    """Why a task cannot be the next one after those whose classes have these names."""
    if any(one >= other for one, other in pairwise(task.classes)):
        yield f"task.classes is {shown(task.classes)}, expected ascending numbers"
    new = list(range(len(names), len(names) + len(task.new_classes)))
    old = [number for number in task.classes if number < len(names)]
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
            known = names.get(name)
            if known != (number if number < len(names) else None):
                yield f"task.class_names has {shown(name)} for class {number}, another than in earlier tasks"
