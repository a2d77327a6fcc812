"""What has become of a model, version by version, as the journal of its checkpoints tells it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lorica.checkpoint import Checkpoints
from lorica.journal import Change, Line, line_of_descent


@dataclass(frozen=True)
class Version:
    """A change, and what became of it.

    Attributes:
        number: of the version, from 1.
        kind: learned, rolled back, forgot, joined, purged.
        date: when, ISO 8601.
        classes: what it was about; of a way back, none.
        images: how many were learned, without those set aside.
        set_aside: how many.
        accuracy: on the images set aside of its classes when it was made, a fraction; None where there are none.
        accuracy_now: the same by the present version.
        lost: images set aside of older classes that were right and became wrong.
        won: the other way, those that were wrong and became right.
        fell: older classes of which fewer images were right afterwards.
        remarks: what is still there of classes that were forgotten.
        restores: the version that is gone back to.
        is_present: the model is now as it was after this one.
        is_there: it can be gone back to; it was not purged.
    """

    number: int
    kind: str
    date: str
    classes: tuple[str, ...]
    images: int
    set_aside: int
    accuracy: float | None
    accuracy_now: float | None
    lost: int
    won: int
    fell: tuple[str, ...]
    remarks: tuple[str, ...]
    restores: int | None
    is_present: bool
    is_there: bool


def history_of(checkpoints: Checkpoints) -> list[Version]:
    """Every version of a model, the first one first.

    Raises:
        CheckpointError: the journal is damaged.
    """
    _ = checkpoints.entries  # it is whole
    lines, stands_at = checkpoints.lines, list[int]()
    for number, line in enumerate(lines, start=1):
        stands_at.append(stands_at[line.restores - 1] if line.restores else number)
    now = _judged(lines[stands_at[-1] - 1]) if lines else {}
    numbers = {name: number for number, name in enumerate(checkpoints.class_names)}

    def version(number: int, line: Line) -> Version:
        change = line.change or Change(kind="learned", date="")  # a run that was made a model
        note = change.note
        classes = tuple(note.get("classes", [name for task in line.tasks for name in task.class_names]))
        return Version(
            number=number,
            kind=change.kind,
            date=change.date,
            classes=classes,
            images=note.get("images", 0),
            set_aside=note.get("set_aside", 0),
            accuracy=_accuracy(_judged(line), [number for task in line.tasks for number in task.classes]),
            accuracy_now=_accuracy(now, [numbers[name] for name in classes if name in numbers]),
            lost=note.get("lost", 0),
            won=note.get("won", 0),
            fell=tuple(note.get("fell", ())),
            remarks=tuple(note.get("remarks", ())),
            restores=line.restores,
            is_present=stands_at[number - 1] == stands_at[-1],
            is_there=number > checkpoints.purged,
        )

    return [version(number, line) for number, line in enumerate(lines, start=1)]


def note_of(checkpoints: Checkpoints, number: int) -> Mapping[str, Any]:
    """What is noted of the model as it was after that version."""
    newest = checkpoints.lines[line_of_descent(checkpoints.lines, number)[-1] - 1]
    return newest.change.note if newest.change else {}


def _judged(line: Line) -> dict[int, tuple[int, int]]:
    """Of each class by its number, how many of its images set aside were right then, and how many there were."""
    judged = line.change.note.get("judged") if line.change else None
    if not judged:
        return {}
    return dict(enumerate(zip(judged["right"], judged["images"], strict=True)))


def _accuracy(judged: Mapping[int, tuple[int, int]], numbers: Sequence[int]) -> float | None:
    found = [judged[number] for number in numbers if number in judged]
    images = sum(number for _, number in found)
    return sum(hits for hits, _ in found) / images if images else None
