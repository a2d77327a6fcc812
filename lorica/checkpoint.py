"""Checkpoints: what a method learned by the end of a task, in a folder that is there whole or not at all.

    task_03/state.safetensors   the method's own tensors (adapters, heads, magnitudes; a backbone only if it was trained)
            state.json          what they belong to: method, backbone, tasks; and the record of the run so far

Nothing is pickled. The JSON holds its own hash, that of the tensor file and the fingerprint of the backbone, so that an
altered, truncated or foreign checkpoint is refused rather than loaded.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from safetensors.torch import load_file, save_file

from lorica.errors import CheckpointError
from lorica.methods.base import Method
from lorica.types import Task

FORMAT = 2
TENSORS, RECORD = "state.safetensors", "state.json"


def save_checkpoint(folder: Path, method: Method, record: dict[str, Any]) -> None:
    """Writes the state after the method's latest task; an existing checkpoint of that name is replaced.

    Args:
        folder: of this checkpoint; its parent must exist.
        record: plain values to keep beside the tensors (the accuracy matrix so far, say).
    """
    temporary = folder.with_name(f".{folder.name}.{uuid4().hex}")
    replaced = temporary.with_name(f"{temporary.name}.replaced")
    temporary.mkdir()
    try:
        state = {key: tensor.detach().cpu().contiguous() for key, tensor in method.own_state().items()}
        save_file(state, temporary / TENSORS)
        head = {
            "format": FORMAT,
            "method": method.config.model_dump(mode="json"),
            "backbone": {
                "name": method.encoder.name,
                "tag": method.encoder.tag,
                "fingerprint": method.encoder.fingerprint,
            },
            "tasks": [
                {"index": task.index, "first_class": task.first_class, "class_names": task.class_names}
                for task in method.tasks
            ],
            "structure": method.structure(),
            "sha256": _hash(temporary / TENSORS),
            "record": record,
        }
        (temporary / RECORD).write_text(json.dumps(head | {"seal": _seal(head)}, indent=1, allow_nan=False))
        if folder.exists():
            os.replace(folder, replaced)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


def latest_checkpoint(run: Path) -> Path | None:
    """The checkpoint of the last finished task in a run's folder, or None."""
    return max(_checkpoints(run / "checkpoints").items(), default=(0, None))[1]


def read_record(folder: Path) -> dict[str, Any]:
    """The contents of a checkpoint's state.json.

    Raises:
        CheckpointError: missing, truncated, altered, or of another format.
    """
    try:
        head = json.loads((folder / RECORD).read_text())
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder}: no checkpoint here ({RECORD} is missing)") from error
    except ValueError as error:  # not JSON, or not UTF-8
        raise CheckpointError(f"{folder / RECORD}: {_damaged(folder)}") from error
    if not isinstance(head, dict) or head.get("format") != FORMAT:
        raise CheckpointError(
            f"{folder / RECORD}: not a checkpoint of format {FORMAT}; it needs another lorica version"
        )
    if head.pop("seal", None) != _seal(head):
        raise CheckpointError(f"{folder / RECORD}: {_damaged(folder)}")
    return head


def load_checkpoint(folder: Path, method: Method) -> dict[str, Any]:
    """Brings a fresh method to the state that `save_checkpoint` wrote; returns the record kept beside it.

    Raises:
        CheckpointError: everything that does not fit, at once: another method, its options, another backbone, tensors
            that are truncated, altered, missing or of another shape.
    """
    head = read_record(folder)
    problems = []
    config = method.config.model_dump(mode="json")
    problems += [
        f"{folder}: method.{key} was {head['method'].get(key)!r}, now {config.get(key)!r}"
        for key in sorted(config.keys() | head["method"].keys())
        if config.get(key) != head["method"].get(key)
    ]
    if head["backbone"]["fingerprint"] != method.encoder.fingerprint:
        problems.append(
            f"{folder}: learned on another backbone: {head['backbone']['name']} ({head['backbone']['tag']}), "
            f"now {method.encoder.name} ({method.encoder.tag})"
        )
    tensors = folder / TENSORS
    if not tensors.is_file() or _hash(tensors) != head["sha256"]:
        problems.append(f"{tensors}: {_damaged(folder)}")
    if problems:
        raise CheckpointError(problems)
    for task in head["tasks"]:
        method.grow(Task.of_new_classes(task["index"], task["first_class"], tuple(task["class_names"])))
    method.restore_structure(head["structure"])
    try:
        method.load_own_state(load_file(tensors))
    except KeyError as error:
        raise CheckpointError(f"{tensors}: {error.args[0]}") from error
    method.eval()
    return head["record"]


def load_learned(run: Path, method: Method, tasks: int | None = None) -> dict[str, Any]:
    """`load_checkpoint` by a run's folder and a number of tasks learned (None = all that are finished).

    Raises:
        CheckpointError: see `load_checkpoint`; or no task has been finished, or none is kept of that number.
    """
    kept = _checkpoints(run / "checkpoints")
    if not kept:
        raise CheckpointError(f"{run}: no task has been finished yet; resume the run first")
    folder = kept.get(max(kept) if tasks is None else tasks - 1)
    if folder is None:
        there = ", ".join(str(number + 1) for number in sorted(kept))
        raise CheckpointError(
            f"{run}: no checkpoint after task {tasks}; there are those after {there}; "
            "give one of them (checkpoints=all keeps every task's)"
        )
    with torch.random.fork_rng([]):  # growing draws starting values, which the tensors then replace
        return load_checkpoint(folder, method)


def _checkpoints(folder: Path) -> dict[int, Path]:
    """Those in a folder, by the number of their task from 0."""
    numbers = {path.name.removeprefix("task_"): path for path in folder.glob("task_*")}
    return {int(number): path for number, path in numbers.items() if number.isdigit()}


def _damaged(folder: Path) -> str:
    number = folder.name.removeprefix("task_")
    earlier = number.isdigit() and any(each < int(number) for each in _checkpoints(folder.parent))
    remedy = f"delete {folder} to go back a task" if earlier else "no earlier one is kept; start anew (--overwrite)"
    return f"missing, truncated or altered; {remedy}"


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _seal(head: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(head, sort_keys=True).encode()).hexdigest()
