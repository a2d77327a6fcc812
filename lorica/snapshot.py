"""A snapshot of a task under way: all that its main stage needs to go on from between two batches, in one file.

The file is safetensors; its metadata says where the descent stands and has a hash of the tensors. A snapshot that is
damaged, or of another task than the next one, is as good as none: the task begins anew, with the same result.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lorica.checkpoint import restore
from lorica.descent import Descent, Standing
from lorica.files import replacing
from lorica.methods.base import Method
from lorica.reading import WRITTEN, Count, misfits, parsed
from lorica.types import Task

_log = logging.getLogger(__name__)


class Facts(BaseModel):
    """The plain part of a snapshot: whose it is, structure of the method, and where its descent stands."""

    model_config = WRITTEN

    format: Literal[1]
    task: Count
    seed: int
    backbone: str
    structure: dict[str, Any]
    descent: Standing
    history: Count


@dataclass(frozen=True)
class Snapshot:
    """What `take` wrote.

    Attributes:
        facts: see `Facts`.
        tensors: the method's, and those of `Descent.state`, by the prefixes `method.` and `descent.`.
    """

    facts: Facts
    tensors: dict[str, Tensor]

    def is_of(self, task: int, seed: int, backbone: str) -> bool:
        """Whether it was taken in the task of that index, with that seed and on the backbone of that fingerprint."""
        return (self.facts.task, self.facts.seed, self.facts.backbone) == (task, seed, backbone)

    @property
    def history(self) -> int:
        """Size of the run's history at that moment, in bytes."""
        return self.facts.history

    @property
    def descent(self) -> tuple[Standing, dict[str, Tensor]]:
        """What `Descent.restore` takes."""
        return self.facts.descent, self._of("descent.")

    def copy_into(self, fresh: Method, tasks: Sequence[Task]) -> None:
        """Brings a fresh method to where it was in the last of these tasks.

        Raises:
            CheckpointError: tensors or a structure that do not fit, everything at once.
        """
        restore(fresh, tasks, self.facts.structure)
        fresh.load_running_state(self._of("method."))
        fresh.eval()

    def _of(self, prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): value for name, value in self.tensors.items() if name.startswith(prefix)}


def take(path: Path, descent: Descent, *, seed: int, history: int) -> None:
    """Writes a snapshot of a descent between two batches; it takes the place of an older one.

    Raises:
        TrainingError: see `Descent.state`.
        LoricaError: it cannot be written.
    """
    plain, tensors = descent.state()
    method = descent.method
    held = {f"method.{name}": tensor for name, tensor in method.running_state().items()}
    held |= {f"descent.{name}": tensor for name, tensor in tensors.items()}
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in held.items()}
    facts = {
        "format": 1,
        "task": method.task.index,
        "seed": seed,
        "backbone": method.encoder.fingerprint,
        "structure": method.structure(),
        "descent": plain.model_dump(),
        "history": history,
    }
    said = json.dumps(facts)
    with replacing(path) as file:
        file.write(save(held, {"lorica": said, "sha256": _hash(said, held)}))


def read(path: Path) -> Snapshot | None:
    """The snapshot in a file; None where there is none, or it is damaged (which is logged)."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        facts = parsed(metadata["lorica"])
        if metadata["sha256"] != _hash(metadata["lorica"], tensors):
            raise ValueError("truncated or altered")
        return Snapshot(Facts.model_validate(facts), tensors)
    except ValidationError as error:
        why = "; ".join(misfits(error))
    except (OSError, SafetensorError, ValueError, KeyError, AttributeError, TypeError, RuntimeError) as error:
        why = f"{error}"
    _log.warning("%s: truncated or altered; the task begins anew (%s)", path, why)
    return None


def _hash(facts: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(facts.encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
