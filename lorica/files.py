"""Files of lorica's own: written whole or not at all, in folders that one process has to itself.

A run leaves

    <run>/recipe.yaml           the resolved recipe
          environment.json      versions, device, git revision, checkpoint tag
          metrics.json          the public contract: see `lorica.results.Metrics`
          cost.json             measured parameters, storage, time
          history.jsonl         loss terms, learning rates and diagnostics on the way
          checkpoints/          what was learned: see `lorica.checkpoint`
          snapshot.safetensors  of the task under way; gone once it is learned
          figures/

and this file is the one place that knows these names.
"""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

from filelock import FileLock, Timeout

from lorica.errors import LoricaError

_PARTIAL = re.compile(r"\..+\.[0-9a-f]{32}\.partial")


class RunFolder:
    """The folder of one run."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.recipe = self.path / "recipe.yaml"
        self.environment = self.path / "environment.json"
        self.metrics = self.path / "metrics.json"
        self.cost = self.path / "cost.json"
        self.history = self.path / "history.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.snapshot = self.path / "snapshot.safetensors"
        self.figures = self.path / "figures"
        self._lock = self.path / ".lorica.lock"

    def require(self) -> None:
        """LoricaError unless a run has begun in the folder."""
        if not self.recipe.is_file():
            raise LoricaError(f"{self.path}: not the folder of a run ({self.recipe.name} is missing)")

    def tidy(self) -> None:
        """Clears what a killed process left half-written, if one did.

        Raises:
            LoricaError: as `taken`.
        """
        if self._lock.exists():
            with self.taken():
                pass

    @contextmanager
    def taken(self) -> Iterator[None]:
        """The folder, made where it is missing, for this process alone, for the length of a `with` block.

        What a killed process left half-written is cleared. The lock goes with its process, however that ends.

        Raises:
            LoricaError: another process has it (which), a file is in the way, or there is no permission.
        """
        file = self._lock
        lock = FileLock(file, timeout=0)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout:
            raise LoricaError(
                f"{self.path}: {_holder(file)} is at work in it; wait for it, or choose another folder"
            ) from None
        except OSError as error:
            raise LoricaError(f"{self.path}: cannot be made a run folder: {error.strerror or error}") from error
        try:
            file.write_text(json.dumps({"process": os.getpid(), "host": socket.gethostname(), "since": _now()}))
            clear_partial(self.path)
            clear_partial(self.checkpoints)
            yield
        finally:
            file.unlink(missing_ok=True)  # while it is held, so that it is nobody else's
            lock.release()


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file that takes the place of `path` when the block ends well; otherwise whatever was there stays.

    Raises:
        LoricaError: the system refuses to write there (no such folder, no permission, disk full).
    """
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.partial")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        raise LoricaError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically; raises as `replacing` does."""
    with replacing(path) as file:
        file.write(text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write plain values as indented JSON, atomically; a list of numbers takes one line.

    Raises:
        ValueError: a number is NaN or infinite, which JSON does not have.
        TypeError: a value is not a plain one (an array, a tensor, a path).
        LoricaError: as `replacing`.
    """
    text = json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False)
    text = re.sub(r"\[\n[\s\d.,eE+-]+\]", lambda numbers: f"[{' '.join(numbers[0][1:-1].split())}]", text)
    write_text(path, text + "\n")


def append_line(path: Path, line: str, *, durable: bool = True) -> None:
    """Adds a line to a file, made where it is missing; once this returns, the line is on the disk, if it is to be `durable`.

    A process that is killed meanwhile leaves a part of the line without its end, which `complete_lines` passes over.

    Raises:
        LoricaError: as `replacing`.
    """
    new = not path.exists()
    try:
        with path.open("ab") as file:
            file.write(line.encode() + b"\n")
            if durable:
                file.flush()
                os.fsync(file.fileno())
        if new and durable:
            sync_folder(path.parent)
    except OSError as error:
        raise LoricaError(f"{path}: cannot be written: {error.strerror or error}") from error


def complete_lines(path: Path) -> list[bytes]:
    """The lines of a file that `append_line` wrote, without one whose end is missing; none where there is no file."""
    return path.read_bytes().split(b"\n")[:-1] if path.exists() else []


def cut(path: Path, size: int) -> None:
    """Cuts a file down to its first `size` bytes; a shorter file, or none, stays as it is."""
    if path.exists() and path.stat().st_size > size:
        os.truncate(path, size)


def clear_partial(folder: Path) -> None:
    """Removes what `replacing` left in a folder where its process was killed."""
    for file in folder.glob(".*.partial"):
        if _PARTIAL.fullmatch(file.name):
            file.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Brings the names in a folder to the disk; nothing where the system does not open folders."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _holder(lock: Path) -> str:
    try:
        known = json.loads(lock.read_text())
        return f"process {known['process']} on {known['host']}, since {known['since']},"
    except (OSError, ValueError, KeyError, TypeError):  # it has only just taken the folder
        return "another process"


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")
