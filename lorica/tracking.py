"""A run as it learns in TensorBoard, Weights & Biases or MLflow, through Accelerate's trackers: `track: tensorboard`.

    loss/<term>, learning_rate           of each row of the history, see `lorica.descent.Descent.row`
    accuracy/average, accuracy/new_task  after each task, over the tasks so far and on the newest one
    the recipe                           as the configuration, once

A point stands at the number of steps that the optimiser has taken since the run began, and one more for each task that
was tested: such numbers grow from point to point, also for a method that trains nothing. They follow from the history,
so that a run which is taken up again goes on where its history stands; TensorBoard drops what a killed process had
drawn after that, Weights & Biases passes over points that it has.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean
from typing import Any

from accelerate.tracking import MLflowTracker, TensorBoardTracker, WandBTracker

from lorica.config import Recipe
from lorica.errors import LoricaError
from lorica.files import write_json
from lorica.nested import flatten
from lorica.reading import read_json
from lorica.results import Look, read_history
from lorica.session import Session

_Tracker = TensorBoardTracker | WandBTracker | MLflowTracker

PROJECT = "lorica"
"""The project of Weights & Biases, or the experiment of MLflow, that runs are in, unless their own settings say
otherwise."""


def require_tracker(kind: str) -> None:
    """LoricaError where the package of that tracker is not installed."""
    if kind != "none" and find_spec(kind) is None:
        package = "'lorica[track]'" if kind == "tensorboard" else kind
        raise LoricaError(f"track: {kind} is not installed; pip install {package}, or leave out track={kind}")


class Clock:
    """Where points stand: see the top of this file.

    Attributes:
        now: where the latest one does.
    """

    def __init__(self) -> None:
        self.now = self._before = self._length = 0
        self._stage: tuple[int, int] | None = None

    def look(self, look: Look) -> int:
        """At a row of the history. The last step of each epoch has one, which tells how long an epoch is."""
        if self._stage != (look.task, look.stage):
            self._stage, self._before, self._length = (look.task, look.stage), self.now, 0
        if look.epoch == 0:
            self._length = look.step + 1
        self.now = self._before + look.epoch * self._length + look.step + 1
        return self.now

    def tested(self) -> int:
        """After a task."""
        self.now += 1
        self._stage = None
        return self.now


class Tracking:
    """One run in one tracker, from where it stands: `clock`."""

    def __init__(self, tracker: _Tracker, clock: Clock) -> None:
        self._tracker, self._clock = tracker, clock

    def look(self, row: dict[str, Any]) -> None:
        """Takes a row of the history."""
        terms = {f"loss/{name}": value for name, value in row["terms"].items()}
        step = self._clock.look(Look.model_construct(**row))
        self._tracker.log({**terms, "learning_rate": row["learning_rate"]}, step=step)

    def tested(self, rows: Sequence[list[float | None]]) -> None:
        """Takes the rows of the accuracy matrix that a task, or all of them at once, have led to."""
        for row in rows:
            whole = [value for value in row if value is not None]
            average = {"accuracy/average": fmean(whole)} if len(whole) == len(row) else {}
            self._tracker.log({**average, "accuracy/new_task": whole[-1]}, step=self._clock.tested())

    def finish(self) -> None:
        """Lets the tracker end; what it has not sent yet, it sends."""
        self._tracker.finish()


def tracked(recipe: Recipe, session: Session, folder: Path) -> Tracking | None:
    """Begins to follow a session that stands where it goes on from; None where nobody asked, or another process does.

    Args:
        folder: the run's, which gets TensorBoard's files, and names the run.
    """
    if recipe.track == "none" or not session.processes.is_main:
        return None
    clock, looks, rows = Clock(), read_history(session.folder.path), session.record.rows
    task = 0
    for look in looks:
        while task < look.task and task < len(rows):
            clock.tested()
            task += 1
        clock.look(look)
    for _ in rows[task:]:
        clock.tested()
    begins = clock.now == 0
    known = _known(session, recipe.track)
    tracker: Any = _tracker(recipe.track, known, folder, clock.now + 1)
    tracker.start()
    if recipe.track != "tensorboard" and not known:
        number = tracker.tracker.id if recipe.track == "wandb" else tracker.tracker.info.run_id
        write_json(session.folder.tracking, {"tracker": recipe.track, "id": number})
    if begins:
        values = {
            key: value if isinstance(value, int | float) else str(value) for key, value in flatten(recipe.resolved())
        }
        tracker.store_init_configuration(values)
    tracking = Tracking(tracker, clock)
    session.listener = tracking.look
    return tracking


def _tracker(kind: str, known: str | None, folder: Path, first: int) -> _Tracker:
    """Accelerate's, for a run that is `known` there already, and whose next point is the `first` or a later one."""
    name = folder.resolve().name
    if kind == "tensorboard":
        return TensorBoardTracker("tensorboard", folder, purge_step=first)
    if kind == "wandb":
        return WandBTracker(PROJECT, name=name, dir=str(folder), **({"id": known, "resume": "allow"} if known else {}))
    return MLflowTracker(PROJECT, run_name=name, run_id=known)


def _known(session: Session, kind: str) -> str | None:
    """What the tracker calls the run, where it has been there before."""
    file = session.folder.tracking
    told = read_json(file) if file.exists() else {}
    return told["id"] if told.get("tracker") == kind else None
