"""Checkpoints: what a method learned by the end of each task, every tensor stored once.

    checkpoints/journal.jsonl             a line for each task: what it is, what was measured after it, which tensors
                are new
                task_0003.safetensors     those that task 3 (from 0) added or replaced
                task_0003-sums.safetensors    those that only learning on needs, see `Method.needed_to_learn_on`

In the journal of a model that goes on learning (`lorica.learner`) a line may also be another change than a task
learned, or go back to an earlier line; then its files are numbered as lines are, and there may be

                task_0003-images.safetensors    what is known of the images
                task_0003-parts.safetensors     what only forgetting needs, see `Method.taken_parts`

What a method learned does not change afterwards, but for small parts: a checkpoint is the journal down to its line, and
each line says which tensors are whole in its file, which are earlier ones extended along an axis, and which are gone.
So the journal is enough to see what a checkpoint consists of, and storage grows by what is new. A line is the last
thing that is written for a task; without it, the task has not been learned.

Nothing is pickled. Each line has the hash of its files and is sealed together with all lines before it, so that
altered, truncated or foreign checkpoints are refused rather than loaded. A seal keeps no secret, so it is not taken as
a proof: what is sealed must also follow from the lines before it, and tensors must be those of the method, before
anything changes in it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from copy import copy
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lorica.errors import CheckpointError, LoricaError, TrainingError
from lorica.files import append_line, complete_lines, cut, replacing
from lorica.journal import (
    FORMAT,
    JOURNAL,
    Account,
    BackboneLearnedOn,
    Change,
    Head,
    Line,
    Saved,
    TaskLearned,
    last_purged,
    line_of_descent,
    sealed,
)
from lorica.methods.base import Method, misfits_of, number_not_finite
from lorica.ownership import tensor_metadata, wrote
from lorica.reading import WRITTEN, Count, misfits, parsed, shown
from lorica.results import Entry
from lorica.types import Task

_OURS = re.compile(r"task_\d{4,}(-sums|-images|-parts)?\.safetensors")
_SMALL = 2**14
"""Bytes up to which a vector that has grown is saved whole, so that loading it needs one file."""

Keep = Literal["all", "newest", "everything"]
"""Which checkpoints stay: those of all tasks; the newest alone; or all, each with what learning on from it needs."""


class _Known(NamedTuple):
    """A tensor as the newest checkpoint has it."""

    shape: torch.Size
    dtype: torch.dtype
    digest: str


class Checkpoints:
    """The checkpoints of a run or of a model, in their folder. One that writes has the run's folder to itself
    (`RunFolder.taken`).

    Args:
        undoable: of how many of the newest checkpoints what learning on from them needs is there.
    """

    def __init__(self, folder: Path, *, undoable: int = 1) -> None:
        self.folder, self.journal, self.undoable = folder, folder / JOURNAL, undoable
        self._seals: list[str] = []
        self._account = Account()
        self._head, self._lines, self._faults = self._read()
        self._known: dict[str, _Known] = {}

    # --- what there is ---

    @property
    def tasks(self) -> int:
        """How many tasks have been learned, or changes made to a model, as far as the journal is whole."""
        return len(self._lines) or len(_format_2(self.folder))

    @property
    def lines(self) -> list[Line]:
        """The lines of the journal, as far as it is whole."""
        return list(self._lines)

    @property
    def of_model(self) -> bool:
        """Whether they are of a model that goes on learning, and not of a run."""
        return any(line.change for line in self._lines)

    @property
    def seal(self) -> str:
        """Of the newest line: what tells a journal from any other."""
        return self._seals[-1] if self._seals else ""

    @property
    def entries(self) -> list[Entry]:
        """What was measured after each of them.

        Raises:
            CheckpointError: the journal is damaged, or of an earlier version, whose runs can be read and not continued.
        """
        self._require_whole()
        if not self._lines and _format_2(self.folder):
            raise CheckpointError(
                f"{self.folder}: learned by an earlier version of lorica, which drew its random numbers otherwise; it "
                "can be loaded and evaluated, but not continued: start anew (--overwrite)"
            )
        return [line.entry for line in self._lines]

    @property
    def learned_tasks(self) -> list[Task]:
        """The tasks that the newest checkpoint has learned, in order."""
        return self.tasks_of(len(self._lines))

    @property
    def class_names(self) -> list[str]:
        """Of the classes that the newest checkpoint has learned, by their numbers."""
        return [name for task in self.learned_tasks for name in task.new_names]

    def tasks_of(self, number: int) -> list[Task]:
        """The tasks that had been learned by then."""
        return [task.task for each in line_of_descent(self._lines, number) for task in self._lines[each - 1].tasks]

    @property
    def purged(self) -> int:
        """How many of the first versions of a model were removed for good."""
        return last_purged(self._lines)

    @property
    def history(self) -> int:
        """Size of the run's history when the latest task had been learned, in bytes."""
        return self._lines[-1].history if self._lines else 0

    def there(self) -> list[int]:
        """After which numbers of tasks there is a checkpoint, ascending."""
        if not self._lines:
            return [number + 1 for number in sorted(_format_2(self.folder))]
        exists = {path.name for path in self.folder.glob("task_*.safetensors")}
        whole: list[bool] = []
        for line in self._lines:  # each is what its own file makes of an earlier one
            earlier = line.restores or (0 if line.base else len(whole))
            own = line.saved is None or line.saved.file in exists
            whole.append(own and (not earlier or whole[earlier - 1]))
        return [number for number, there in enumerate(whole, start=1) if there]

    def files(self, tasks: int) -> list[Path]:
        """The files of tensors that the checkpoint after that many tasks consists of, without the sums."""
        return [self.folder / line.saved.file for _, line in self._parts(tasks) if line.saved]

    def _parts(self, tasks: int) -> list[tuple[int, Line]]:
        """The lines that make the checkpoint, with their numbers from 1."""
        lines = [(number, self._lines[number - 1]) for number in line_of_descent(self._lines, tasks)]
        first = max((place for place, (_, line) in enumerate(lines) if line.base), default=0)
        return lines[first:]

    def _sums(self, tasks: int) -> Saved | None:
        """The sums that the checkpoint after so many tasks has; None where it has none."""
        return self._parts(tasks)[-1][1].sums

    def lines_in_common(self, other: Checkpoints) -> int:
        """How many lines both journals begin with."""
        same = 0
        for one, another in zip(self._seals, other._seals, strict=False):
            if one != another:
                break
            same += 1
        return max(0, same - 1)  # what the journal belongs to is sealed before the first line

    def can_learn_on_from(self, tasks: int) -> bool:
        """Whether what that needs is there."""
        sums = self._sums(tasks)
        return sums is None or (self.folder / sums.file).is_file()

    def tensors(self, saved: Saved) -> dict[str, Tensor]:
        """What is in a file that a line names.

        Raises:
            CheckpointError: it is missing, truncated or altered.
        """
        if _hash(self.folder / saved.file) != saved.sha256:
            raise CheckpointError(
                f"{self.folder / saved.file}: missing, truncated or altered; restore it, or {self._back(saved.file)}"
            )
        return _tensors(self.folder / saved.file)[1]

    # --- writing ---

    def save(
        self,
        method: Method,
        entry: Entry,
        *,
        keep: Keep = "all",
        history: int = 0,
        change: Change | None = None,
        joined: int = 0,
        forgotten: Sequence[int] = (),
        images: Mapping[str, Tensor] | None = None,
        parts: Mapping[str, Tensor] | None = None,
        learns_on: bool = True,
    ) -> None:
        """Adds the checkpoint after the method's latest task, or after another change. Files that are no longer wanted
        go once it is safe.

        Args:
            change: made to a model; of its kind are `joined`, the number of tasks it has taken up, and `forgotten`
                classes. One that purges makes a checkpoint for which no earlier one is needed, and they go.
            images, parts: what goes into files of these names.
            learns_on: False where the method was loaded without what learning on needs; that is then not there, either.

        Raises:
            TrainingError: a tensor that is not finite, and could not be loaded.
            LoricaError: the system refuses to write there.
            ValueError: the entry has a number that JSON lacks.
        """
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in method.own_state().items()}
        if bad := [name for name, tensor in state.items() if number_not_finite(tensor)]:
            raise TrainingError(
                f"{method.name}: {bad[0]} is not finite after task {method.task.index + 1}; start anew with a lower "
                "fit.learning_rate, or let a method of your own keep such numbers in buffers with persistent=False"
            )
        self.folder.mkdir(exist_ok=True)
        if self._head is None:
            self._append(_head_of(method).model_dump())
            self._head = _head_of(method)
        sums = {name: state.pop(name) for name in method.needed_to_learn_on()}
        purges = change is not None and change.kind == "purged"
        base = keep == "newest" or purges or not self._lines
        before = {} if base else self._known
        known, new, extended = {}, {}, {}
        for name, tensor in state.items():
            known[name] = _Known(tensor.shape, tensor.dtype, _digest(tensor))
            if known[name] == before.get(name):
                continue
            axis = _grown_along(before.get(name), tensor)
            if axis is None or (tensor.dim() == 1 and tensor.nbytes <= _SMALL):
                new[name] = tensor
            else:
                extended[name] = axis
                old = before[name].shape[axis]
                new[name] = tensor.narrow(axis, old, tensor.shape[axis] - old).contiguous()
        name = f"task_{len(self._lines):04d}"
        absent = Saved(file=f"{name}-sums.safetensors", sha256="") if sums else None
        learned = change is None or change.kind == "learned"
        line = Line(
            task=TaskLearned.of(method.task) if learned else None,
            structure=json.loads(json.dumps(method.structure())),
            base=base,
            saved=self._write(f"{name}.safetensors", new),
            whole=sorted(new.keys() - extended.keys()),
            extended=extended,
            removed=sorted(before.keys() - known.keys()),
            sums=self._write(f"{name}-sums.safetensors", sums) if learns_on else absent,
            entry=entry,
            history=history,
            change=change,
            joined=[TaskLearned.of(task) for task in method.tasks[len(method.tasks) - joined :]],
            forgotten=list(forgotten),
            images=self._write(f"{name}-images.safetensors", images or {}),
            parts=self._write(f"{name}-parts.safetensors", parts or {}),
        )
        self._add(line, keep)
        self._known = known

    def roll_back(self, number: int, change: Change, *, keep: Keep = "all") -> None:
        """Adds a line after which all is as it was after that one, which there is.

        The caller loads it before anything is saved again.
        """
        empty = Entry(rows=[], train_seconds=0.0)
        nothing: dict[str, Any] = {
            "task": None,
            "structure": {},
            "base": False,
            "saved": None,
            "whole": [],
            "extended": {},
        }
        nothing |= {"removed": [], "sums": None, "entry": empty, "history": self.history}
        self._add(Line(**nothing, change=change, restores=number), keep)

    def _add(self, line: Line, keep: Keep) -> None:
        there = self._wanted(keep)
        if wrong := list(self._account.misfits(line)):
            raise ValueError(f"a line that could not be read again: {wrong[0]}")
        self._append(line.model_dump())
        self._account.add(line)
        self._lines.append(line)
        for name in there - self._wanted(keep):
            with suppress(OSError):  # what is done is done; `open` tries again
                (self.folder / name).unlink(missing_ok=True)

    def _write(self, name: str, tensors: Mapping[str, Tensor]) -> Saved | None:
        if not tensors:
            return None
        content = save(dict(tensors), tensor_metadata("checkpoint"))
        with replacing(self.folder / name) as file:
            file.write(content)
        return Saved(file=name, sha256=hashlib.sha256(content).hexdigest())

    def _wanted(self, keep: Keep) -> set[str]:
        """Names of the files that stay, of those that lines name."""
        if not self._lines:
            return set()
        number, gone = len(self._lines), last_purged(self._lines)
        lines = [line for _, line in self._parts(number)] if keep == "newest" else self._lines[gone:]
        files = {saved.file for line in lines for end, saved in line.files().items() if saved and end != "-sums"}
        if keep == "everything":
            learned_on = lines
        else:
            # The newest, and those that the present one comes of: one that was left can be gone back to, and learns on.
            path = [self._lines[each - 1] for each in line_of_descent(self._lines, number) if each > gone]
            newest = [line for line in self._lines[gone:] if line.restores is None]
            learned_on = [*path[-self.undoable :], *newest[-self.undoable :]]
        return files | {line.sums.file for line in learned_on if line.sums}

    def _append(self, values: dict[str, Any]) -> None:
        seal = sealed(self.seal, values)
        append_line(self.journal, json.dumps({"seal": seal} | values, allow_nan=False, ensure_ascii=False))
        self._seals.append(seal)

    def open(self, keep: Keep = "all") -> None:
        """Makes ready to add to what is there: takes away a line that a killed process did not finish, files without
        one, and files that it did not come to remove.

        Raises:
            CheckpointError: the journal is damaged.
        """
        self._require_whole()
        if self._head and not self._lines:  # the process that wrote it may have had other settings
            self.journal.unlink()
            self._head, self._seals = None, []
        cut(self.journal, sum(len(line) + 1 for line in complete_lines(self.journal)))
        named = self._wanted(keep)
        for path in self.folder.glob("task_*.safetensors"):
            if _OURS.fullmatch(path.name) and path.name not in named and wrote(path):
                path.unlink()

    def move(self, folder: Path) -> None:
        """Goes on in another folder, into which the files have been moved."""
        self.folder, self.journal = folder, folder / JOURNAL

    # --- reading ---

    def load(
        self, method: Method, tasks: int | None = None, *, to_learn: bool = False, into_method: bool = True
    ) -> None:
        """Brings a fresh method to where it was after that many tasks (None = all that have been learned).

        The caller's random state is left as it was.

        Args:
            to_learn: the method is to learn on; what that needs must be there.
            into_method: False leaves the method as it is: what is there is only made ready to be added to.

        Raises:
            CheckpointError: everything that does not fit, at once: another method, its options, another backbone, files
                that are truncated, altered or missing; or there is no such checkpoint.
        """
        if not self._lines and (earlier := _format_2(self.folder)):
            folder = self._chosen({number + 1: path for number, path in earlier.items()}, tasks)
            _load_format_2(folder, method)
            return
        if tasks is None or tasks > len(self._lines):
            self._require_whole()
        number = self._chosen({number: number for number in self.there()}, tasks)
        assert self._head is not None
        lines = self._parts(number)
        at, newest = lines[-1]
        problems = _misfits(self.folder, method, self._head.method, self._head.backbone)
        pieces = _pieces(lines)
        wanted = {saved.file: saved for place in pieces if (saved := lines[place][1].saved)}
        problems += [
            f"{self.folder / name}: missing, truncated or altered; restore it, or {self._back(name)}"
            for name, saved in wanted.items()
            if _hash(self.folder / name) != saved.sha256
        ]
        sums = newest.sums and self.folder / newest.sums.file
        has_sums = sums is not None and sums.is_file()
        if newest.sums and has_sums and _hash(self.folder / newest.sums.file) != newest.sums.sha256:
            problems.append(f"{sums}: truncated or altered; restore it, or {self._back(newest.sums.file)}")
        elif sums is not None and not has_sums and to_learn:
            problems.append(
                f"{sums}: learning on from task {number} needs this file, which is kept for the newest checkpoint "
                "alone; restore it, or start anew with checkpoints=everything"
            )
        if problems:
            raise CheckpointError(problems)
        state = self._assembled(lines, pieces)
        if to_learn:
            self._known = {name: _Known(value.shape, value.dtype, _digest(value)) for name, value in state.items()}
        if not into_method:
            return
        summed = _tensors(sums)[1] if sums is not None and has_sums else {}
        files = {name: self.folder / line.saved.file for _, line in lines if line.saved for name in _names(line)}
        with unharmed(method):
            try:
                restore(method, self.tasks_of(number), newest.structure)
            except CheckpointError as error:
                raise CheckpointError(
                    [
                        f"{self.journal}: line {at + 1}: {problem}; {self._restored(at - 1)}"
                        for problem in error.problems
                    ]
                ) from error
            own, late = method.own_state(), method.needed_to_learn_on()
            problems = [f"{sums}: {name:.200} is unknown" for name in sorted(summed.keys() - set(late))]
            if sums is None or has_sums:
                state |= summed
                files |= dict.fromkeys(late, sums or self.journal)
            else:
                state |= {name: torch.zeros_like(own[name]) for name in late}
            problems += [
                f"{files.get(name, self.journal)}: {name:.200} {why}"
                for name, why in misfits_of(method, own, state).items()
            ]
            if problems:
                raise CheckpointError([f"{problem}; {self._restored(at - 1)}" for problem in problems])
            method.load_own_state(state)
        method.eval()

    def _chosen(self, there: Mapping[int, Any], tasks: int | None) -> Any:
        if not there:
            raise CheckpointError(f"{self.folder.parent}: no task has been finished yet; resume the run first")
        chosen = there.get(max(there) if tasks is None else tasks)
        if chosen is None:
            numbers = ", ".join(map(str, sorted(there)))
            raise CheckpointError(
                f"{self.folder.parent}: no checkpoint after task {tasks}; there are those after {numbers}; "
                "give one of them (checkpoints=all keeps every task's)"
            )
        return chosen

    def _assembled(self, lines: Sequence[tuple[int, Line]], pieces: Mapping[int, Collection[str]]) -> dict[str, Tensor]:
        """The tensors that the lines make together, of which `_pieces` says what is read.

        Raises:
            CheckpointError: files that do not have what their lines say, or that do not fit together.
        """
        parts: dict[str, list[tuple[int | None, Tensor]]] = {}
        problems: list[str] = []
        for place, names in pieces.items():
            number, line = lines[place]
            assert line.saved
            file = self.folder / line.saved.file
            there, found = _tensors(file, names)
            wrong = dict.fromkeys(_names(line) - there, "is missing") | dict.fromkeys(
                there - _names(line), "is unknown"
            )
            for name, piece in found.items():
                axis = line.extended.get(name)
                if axis is None:
                    parts[name] = [(None, piece)]
                elif name in parts:
                    if why := _cannot_extend(parts[name][0][1], piece, axis):
                        wrong[name] = why
                    else:
                        parts[name].append((axis, piece))
            problems += [
                f"{file}: {name:.200} {why}; {self._restored(number - 1)}" for name, why in sorted(wrong.items())
            ]
        if problems:
            raise CheckpointError(problems)
        try:
            return {name: _joined(pieces) for name, pieces in parts.items()}
        except RuntimeError as error:  # parts of which each fits the first, and not each other
            raise CheckpointError(f"{self.folder}: tensors of several tasks do not fit together: {error}") from error

    def _back(self, name: str) -> str:
        """What to do where a file is no good."""
        uses = [
            number
            for number, line in enumerate(self._lines, start=1)
            if name in {saved.file for saved in line.files().values() if saved}
        ]
        return self._before(uses[0] - 1 if uses else 0)

    def _restored(self, tasks: int) -> str:
        """What to do where a line, or its file, is whole and no good."""
        return f"restore the files, or {self._before(tasks)}"

    def _before(self, tasks: int) -> str:
        """How to go on from that one, where later ones cannot be used."""
        if self.of_model and tasks > self.purged:
            return f"go back to version {tasks} (rollback)"
        return self._back_to(tasks)

    def _back_to(self, tasks: int) -> str:
        if tasks < 1:
            return "start anew (--overwrite)"
        return f"delete the lines of {self.journal} after its first {tasks + 1}, to go back to the end of task {tasks}"

    def _read(self) -> tuple[Head | None, list[Line], list[str]]:
        """The journal as far as it is whole, and what is wrong with the line after that."""
        head, lines, seal, account = None, [], "", self._account
        for number, text in enumerate(complete_lines(self.journal), start=1):
            try:
                values = parsed(text)
                said = values.pop("seal")
                if head is None and values.get("format") != FORMAT:
                    return None, [], [f"{self.journal}: not of format {FORMAT}; it needs another lorica version"]
                seal = sealed(seal, values)
                if said != seal:
                    raise ValueError("seal")
                self._seals.append(seal)
            except (ValueError, AttributeError, KeyError, TypeError):
                return (
                    head,
                    lines,
                    [f"{self.journal}: line {number} is truncated or altered; {self._restore_to(number)}"],
                )
            wrong: list[str] = []
            try:
                if head is None:
                    head = Head.model_validate(values)
                else:
                    line = Line.model_validate(values)
                    wrong = list(account.misfits(line))
                    if not wrong:
                        account.add(line)
                        lines.append(line)
            except ValidationError as error:
                wrong = list(misfits(error))
            if wrong:
                return (
                    head,
                    lines,
                    [f"{self.journal}: line {number}: {why}; {self._restore_to(number)}" for why in wrong],
                )
        return head, lines, []

    def _restore_to(self, line: int) -> str:
        return f"restore the file, or {self._back_to(line - 2)}"

    def _require_whole(self) -> None:
        if self._faults:
            raise CheckpointError(self._faults)


@contextmanager
def unharmed(method: Method) -> Iterator[None]:
    """Where the block raises, the method is what it was: its modules have the attributes that they had, with the same
    in lists and mappings, and its tensors their values. Those of the encoder are not looked at: growing leaves them
    alone."""
    containers: dict[int, Any] = {}
    for module in method.modules():
        _collect(vars(module), containers)
    before = [(each, copy(each)) for each in containers.values()]
    tensors = [tensor for name, tensor in method.state_dict().items() if name.partition(".")[0] != "encoder"]
    values = [(tensor, tensor.clone() if tensor.any() else None) for tensor in tensors]  # large ones are still zero
    try:
        yield
    except BaseException:
        for container, old in before:
            container.clear()
            container.extend(old) if isinstance(container, list) else container.update(old)
        for tensor, value in values:
            tensor.zero_() if value is None else tensor.copy_(value)
        raise


def _collect(value: Any, found: dict[int, Any]) -> None:
    """Every list, mapping and set in a value, by identity; not those of other objects."""
    if isinstance(value, tuple):
        for each in value:
            _collect(each, found)
    elif isinstance(value, list | dict | set) and id(value) not in found:
        found[id(value)] = value
        for each in list(value.values()) if isinstance(value, dict) else list(value):
            _collect(each, found)


def restore(method: Method, tasks: Iterable[Task], structure: Mapping[str, Any]) -> None:
    """Gives a fresh method the shape that it had; tensors are to be copied in. The caller's random state is left as it
    was.

    Raises:
        CheckpointError: a structure that the method cannot take, or takes otherwise.
    """
    with torch.random.fork_rng([]):  # growing draws starting values, which the tensors then replace
        for task in tasks:
            method.grow(task)
        try:
            method.restore_structure(structure)
        except LoricaError:
            raise
        except Exception as error:  # whatever a method comes upon in values that it did not write
            why = f"{error}" if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
            raise CheckpointError(f"structure is {shown(structure)}, which {method.name} cannot take: {why}") from error
        taken = json.loads(json.dumps(method.structure()))
    if wrong := [key for key in structure if json.dumps(taken.get(key)) != json.dumps(structure[key])]:
        raise CheckpointError(
            [f"structure.{key} is {shown(structure[key])}, expected {shown(taken.get(key))}" for key in wrong]
        )


def _head_of(method: Method) -> Head:
    encoder = method.encoder
    backbone = BackboneLearnedOn(name=encoder.name, tag=encoder.tag, fingerprint=encoder.fingerprint)
    return Head(format=FORMAT, method=method.config.model_dump(mode="json"), backbone=backbone)


def _misfits(where: Path, method: Method, options: Mapping[str, Any], backbone: BackboneLearnedOn) -> list[str]:
    config, options = method.config.model_dump(mode="json"), method.config.as_now(options)
    if config.get("sha256"):  # a method in a file is known by the file's contents; runs of earlier versions by its name
        unsaid = "name" if "sha256" in options else "sha256"
        config, options = ({k: v for k, v in each.items() if k != unsaid} for each in (config, options))
    problems = [
        f"{where}: method.{key} was {shown(options.get(key))}, now {config.get(key)!r}"
        for key in sorted(config.keys() | options.keys())
        if config.get(key) != options.get(key)
    ]
    if backbone.fingerprint != method.encoder.fingerprint:
        problems.append(
            f"{where}: learned on another backbone: {backbone.name:.60} ({backbone.tag:.60}), "
            f"now {method.encoder.name} ({method.encoder.tag})"
        )
    return problems


def _names(line: Line) -> set[str]:
    """The tensors in a line's file."""
    return {*line.whole, *line.extended}


def _pieces(lines: Sequence[tuple[int, Line]]) -> dict[int, set[str]]:
    """Where among the lines the tensors are that they make together: for each place the names of what is read there, in
    order.

    What a later line has whole, or has removed, is not read in an earlier one.
    """
    pieces: dict[int, set[str]] = {}
    settled: set[str] = set()
    for place in reversed(range(len(lines))):
        line = lines[place][1]
        if read := _names(line) - settled:
            pieces[place] = read
        settled |= {*line.whole, *line.removed}
    return dict(sorted(pieces.items()))


def _tensors(file: Path, names: Collection[str] | None = None) -> tuple[set[str], dict[str, Tensor]]:
    """The names of all that is in a file of tensors, and those wanted, which are all by default. CheckpointError: it is
    none, or has tensors of a kind that torch does not have."""
    try:
        with safe_open(file, framework="pt") as opened:
            there = set(opened.keys())
            return there, {name: opened.get_tensor(name) for name in (there if names is None else there & set(names))}
    except (OSError, SafetensorError, ValueError, KeyError, AttributeError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"{file}: not a file of tensors that can be read: {error}; restore it") from error


def _cannot_extend(first: Tensor, piece: Tensor, axis: int) -> str | None:
    """Why a piece cannot be added to a tensor along that axis; None where it can."""
    if piece.dtype != first.dtype:
        return f"has dtype {piece.dtype}, expected {first.dtype}, as it began"
    if piece.dim() != first.dim() or axis >= first.dim():
        return f"has shape {tuple(piece.shape)}, expected one that extends {tuple(first.shape)} along axis {axis}"
    return None


def _grown_along(before: _Known | None, tensor: Tensor) -> int | None:
    """The axis along which a tensor is the one before and more; None where it is not."""
    if before is None or before.dtype != tensor.dtype or len(before.shape) != tensor.dim():
        return None
    axes = [axis for axis, (old, new) in enumerate(zip(before.shape, tensor.shape, strict=True)) if old != new]
    if len(axes) != 1 or before.shape[axes[0]] > tensor.shape[axes[0]]:
        return None
    same = _digest(tensor.narrow(axes[0], 0, before.shape[axes[0]]).contiguous()) == before.digest
    return axes[0] if same else None


def _joined(pieces: list[tuple[int | None, Tensor]]) -> Tensor:
    """A tensor and what was added to it, along an axis each; runs along one axis are joined at once."""
    (_, value), rest = pieces[0], pieces[1:]
    while rest:
        axis = rest[0][0]
        run = 0
        while run < len(rest) and rest[run][0] == axis:
            run += 1
        assert axis is not None
        value, rest = torch.cat([value, *(piece for _, piece in rest[:run])], dim=axis), rest[run:]
    return value


def _digest(tensor: Tensor) -> str:
    """Of a tensor's values; it is contiguous and on the CPU."""
    return hashlib.sha256(tensor.detach().reshape(-1).view(torch.uint8).numpy().data).hexdigest()


def _hash(path: Path) -> str | None:
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- format 2: a folder for each task, with all that had been learned by then ---


class _EarlierTask(BaseModel):
    """A task, all of whose classes are new."""

    model_config = WRITTEN

    index: Count
    first_class: Count
    class_names: Annotated[list[str], Field(min_length=1)]


class _Earlier(BaseModel):
    """The contents of state.json, without its seal."""

    model_config = WRITTEN | ConfigDict(extra="ignore")

    format: Literal[2]
    method: dict[str, Any]
    backbone: BackboneLearnedOn
    tasks: Annotated[list[_EarlierTask], Field(min_length=1)]
    structure: dict[str, Any] = {}
    sha256: str


def _format_2(folder: Path) -> dict[int, Path]:
    """Its checkpoints, by the number of their task from 0."""
    numbers = {path.parent.name.removeprefix("task_"): path.parent for path in folder.glob("task_*/state.json")}
    return {int(number): path for number, path in numbers.items() if re.fullmatch(r"[0-9]{1,9}", number)}


def _load_format_2(folder: Path, method: Method) -> None:
    file, tensors = folder / "state.json", folder / "state.safetensors"
    remedy = "restore it, or start anew (--overwrite)"
    damaged = f"missing, truncated or altered; {remedy}"
    try:
        values = parsed(file.read_bytes())
        if values.get("format") != 2:
            raise CheckpointError(f"{file}: not a checkpoint of format 2; it needs another lorica version")
        whole = values.pop("seal") == sealed("", values)
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file}: {damaged}") from error
    if not whole:
        raise CheckpointError(f"{file}: {damaged}")
    try:
        head = _Earlier.model_validate(values)
    except ValidationError as error:
        raise CheckpointError([f"{file}: {line}; {remedy}" for line in misfits(error)]) from error
    problems = [
        f"{file}: {line}; {remedy}" for line in _earlier_misfits(head.tasks, int(folder.name.removeprefix("task_")))
    ]
    problems += _misfits(folder, method, head.method, head.backbone)
    if _hash(tensors) != head.sha256:
        problems.append(f"{tensors}: {damaged}")
    if problems:
        raise CheckpointError(problems)
    _, state = _tensors(tensors)
    with unharmed(method):
        try:
            tasks = [Task.of_new_classes(task.index, task.first_class, task.class_names) for task in head.tasks]
            restore(method, tasks, head.structure)
        except CheckpointError as error:
            raise CheckpointError([f"{file}: {problem}; {remedy}" for problem in error.problems]) from error
        own = method.own_state()
        for name, tensor in own.items():  # how many samples a class mean is of was not known then
            if name.endswith("counts"):
                state.setdefault(name, torch.zeros_like(tensor))
        if wrong := misfits_of(method, own, state):
            raise CheckpointError([f"{tensors}: {name:.200} {why}; {remedy}" for name, why in wrong.items()])
        method.load_own_state(state)
    method.eval()


def _earlier_misfits(tasks: Sequence[_EarlierTask], last: int) -> Iterator[str]:
    if len(tasks) != last + 1:
        yield f"tasks has {len(tasks)} entries, expected {last + 1} after task {last + 1}"
    known: set[str] = set()
    for index, task in enumerate(tasks):
        if task.index != index:
            yield f"tasks[{index}].index is {task.index}, expected {index}"
        if task.first_class != len(known):
            yield (
                f"tasks[{index}].first_class is {task.first_class}, expected {len(known)}: the number after earlier "
                "tasks'"
            )
        if len(known | set(task.class_names)) < len(known) + len(task.class_names):
            yield f"tasks[{index}].class_names is {shown(task.class_names)}, expected names that no other class has"
            return
        known |= set(task.class_names)
