"""A method and its record, task after task: learn, test, measure, save, and take up again where a process was stopped.

    session = Session(method, fit, seed=0, accelerator=accelerator, folder=folder)
    session.restore()
    for task, data in arrivals[session.learned :]:
        session.learn(task, data)
        session.close(rows)

`lorica.run` drives it over a fixed stream. The order in which files are written makes a task learned or not learned,
never half: its tensors, then its line in the journal; all else in the folder follows from the journal.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from lorica import cost, snapshot
from lorica.checkpoint import Checkpoints, Keep
from lorica.descent import Descent, Fit
from lorica.errors import CheckpointError
from lorica.files import RunFolder, append_line, cut
from lorica.interruption import Interruptions
from lorica.methods.base import Data, Method
from lorica.processes import Processes
from lorica.progress import Reporter, Silent
from lorica.results import Entry, Rates, Record
from lorica.training import Watch, learn_task
from lorica.types import Task


class Session:
    """One method that learns one task after another; in several processes, the main one of which alone writes.

    Attributes:
        listener: told of each row of the history before it is written, so that it knows whatever a resumed run has
            kept.

    Args:
        folder: where checkpoints, snapshots and history go; this process has it to itself (`RunFolder.taken`), or the
            main one has.
        keep: see `lorica.checkpoint.Keep`.
        snapshot_seconds: time between snapshots of the task under way; 0 = never.
        interruptions: a signal that they hold back finds a snapshot written.
        undoable: see `lorica.checkpoint.Checkpoints`.
    """

    def __init__(
        self,
        method: Method,
        fit: Fit,
        *,
        seed: int,
        accelerator: Accelerator,
        folder: RunFolder,
        keep: Keep = "all",
        snapshot_seconds: float = 60.0,
        reporter: Reporter | None = None,
        interruptions: Interruptions | None = None,
        undoable: int = 1,
    ) -> None:
        self.method, self.fit, self.seed, self.accelerator, self.folder = method, fit, seed, accelerator, folder
        self.processes = Processes.of(accelerator)
        self.keep: Keep = keep
        self.snapshot_seconds = snapshot_seconds
        self.reporter, self.interruptions = reporter or Silent(), interruptions or Interruptions()
        self.checkpoints = Checkpoints(folder.checkpoints, undoable=undoable)
        self.record = Record()
        self._resumed: snapshot.Snapshot | None = None
        self._trained: dict[str, torch.Size] = {}
        self._train_seconds = self._data_seconds = 0.0
        self._snapshot_at = 0.0
        self._under_way = False
        self.listener: Callable[[dict[str, Any]], None] = lambda row: None

    @property
    def learned(self) -> int:
        """How many tasks have been learned and saved (one, for all tasks that a method learns at once)."""
        return len(self.record.entries)

    def restore(self, *, to_learn: bool = True) -> None:
        """Takes up what the folder holds: the newest checkpoint, and the snapshot of the task after it, if there is
        one; with what learning on needs, if it is `to_learn`.

        Raises:
            CheckpointError: what is there is damaged, or of another method or backbone.
            LoricaError: several processes do not see the same there.
        """
        main = self.processes.is_main
        if not main:
            self.processes.wait()
        self._restore(to_learn)
        if main:
            self.processes.wait()
        self.processes.require_same(f"{self.folder.path}", [self.learned and self.checkpoints.seal, self.resumes])

    def _restore(self, to_learn: bool) -> None:
        if self.processes.is_main:
            self.checkpoints.open(self.keep)
        self.record = Record(self.checkpoints.entries)
        found = snapshot.read(self.folder.snapshot)
        if found and found.is_of(len(self.checkpoints.learned_tasks), self.seed, self.method.encoder.fingerprint):
            self._resumed = found
        elif self.processes.is_main:
            self.folder.snapshot.unlink(missing_ok=True)
        if self.learned:
            self.checkpoints.load(self.method, to_learn=to_learn, into_method=not self._resumed)
        if self.processes.is_main:
            self._cut_history(self._resumed.history if self._resumed else self.checkpoints.history)

    @property
    def resumes(self) -> bool:
        """Whether what was restored is within a task: the method is empty until it learns on."""
        return self._resumed is not None

    def learn(self, task: Task, data: Data, *, frozen: bool = False, notes_parts: bool = False) -> None:
        """Lets the method learn a task, from where its snapshot stands if there is one; `frozen` and `notes_parts` as
        in `lorica.training.learn_task`.

        Raises:
            LoricaError: a method that cannot learn the task frozen.
            TrainingError: a loss that is not finite.
            CheckpointError: the snapshot does not fit the data.
        """
        started = self._snapshot_at = time.monotonic()
        self._data_seconds = 0.0
        self._under_way = True
        found, self._resumed = self._resumed, None
        if found and found.facts.descent.steps != data.number_of_batches(self.fit.batch_size):
            raise CheckpointError(
                f"{self.folder.snapshot}: taken in an epoch of {found.facts.descent.steps} batches, and the data now "
                f"gives {data.number_of_batches(self.fit.batch_size)}; restore the data as it was, or delete this file "
                "to begin the task anew"
            )
        with _of_snapshot(self.folder.snapshot) if found else nullcontext():
            if found:
                found.copy_into(self.method, [*self.checkpoints.learned_tasks, task])
            self._trained = learn_task(
                self.method,
                task,
                data,
                self.fit,
                seed=self.seed,
                accelerator=self.accelerator,
                reporter=self.reporter,
                watch=Watch(
                    self._write_row if self.processes.is_main else None,
                    self._between_steps,
                    self._descended,
                    self.interruptions.held,
                ),
                resumed=found.descent if found else None,
                frozen=frozen,
                notes_parts=notes_parts,
            )
        self._train_seconds = time.monotonic() - started

    def close(
        self,
        rows: list[list[float | None]],
        head_rows: list[list[float | None]] | None = None,
        error_rows: list[list[Rates | None]] | None = None,
        **of_model: Any,
    ) -> None:
        """Saves what was learned last, with what was measured after it (see `lorica.results.Entry`); or another change
        of a model, with what `Checkpoints.save` takes of it."""
        entry = Entry(
            rows=rows,
            head_rows=head_rows or [],
            error_rows=error_rows or [],
            diagnostics=self.method.diagnostics(),
            train_seconds=self._train_seconds,
            data_seconds=self._data_seconds,
            cost=cost.measure(self.method, self._trained),
        )
        if self.processes.is_main:
            self.checkpoints.save(self.method, entry, keep=self.keep, history=self._history_size(), **of_model)
            self.folder.snapshot.unlink(missing_ok=True)
        self.record.entries.append(entry)
        self._under_way = False

    def abandon(self) -> bool:
        """Leaves history and snapshot as they were before the task under way. False: none has begun."""
        if self._under_way:
            self.folder.snapshot.unlink(missing_ok=True)
            self._cut_history(self.checkpoints.history)
        return self._under_way

    def move(self, folder: RunFolder) -> None:
        """Goes on in another folder, into which the files have been moved."""
        self.folder = folder
        self.checkpoints.move(folder.checkpoints)

    def _write_row(self, row: dict[str, Any]) -> None:
        self.listener(row)
        append_line(self.folder.history, json.dumps(_finite(row), allow_nan=False), durable=False)

    def _cut_history(self, size: int) -> None:
        if size:
            cut(self.folder.history, size)
        else:  # an empty file would not show that it is lorica's
            self.folder.history.unlink(missing_ok=True)

    def _history_size(self) -> int:
        return self.folder.history.stat().st_size if self.folder.history.exists() else 0

    def _between_steps(self, descent: Descent) -> None:
        """Several processes agree on a signal where all wait for the device anyway, so that none goes on without
        another."""
        if not self.processes.alone and descent.is_looked_at:
            self.interruptions.waiting = self.processes.largest(self.interruptions.waiting or 0) or None
        leaving = self.interruptions.waiting is not None and (self.processes.alone or descent.is_looked_at)
        if descent.draws.stage == 0 and self.snapshot_seconds and (leaving or self._is_due()):
            self._take(descent)
        if leaving:
            self.processes.wait()  # for the snapshot
            self.interruptions.release()

    def _descended(self, descent: Descent) -> None:
        self._data_seconds = descent.waited
        if self.snapshot_seconds and (self._is_due() or self.folder.snapshot.exists()):
            self._take(descent)

    def _is_due(self) -> bool:
        return time.monotonic() - self._snapshot_at >= self.snapshot_seconds

    def _take(self, descent: Descent) -> None:
        if self.processes.is_main:
            snapshot.take(self.folder.snapshot, descent, seed=self.seed, history=self._history_size())
        self._snapshot_at = time.monotonic()


@contextmanager
def _of_snapshot(file: Path) -> Iterator[None]:
    """What does not fit is of this file, and what to do."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(
            [f"{file}: {problem}; delete it to begin the task anew" for problem in error.problems]
        ) from error


def _finite(value: Any) -> Any:
    """Plain values with null for numbers that JSON does not have, such as a term's sum that has overflowed."""
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not isfinite(value) else value
