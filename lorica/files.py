"""Files of lorica's own: written whole or not at all, in folders that one process has to itself.

A run leaves

    <run>/recipe.yaml           the resolved recipe
          environment.json      versions, device, git revision, checkpoint tag
          stream.jsonl          which samples are in which task: see `lorica.data.manifest`
          metrics.json          the public contract: see `lorica.results.Metrics`
          cost.json             measured parameters, storage, time
          history.jsonl         loss terms, learning rates and diagnostics on the way
          tracking.json         which run of Weights & Biases or MLflow it is: see `lorica.tracking`
          confusion.json        what was taken for what after the last task: see `lorica.results.Confusion`
          checkpoints/          what was learned: see `lorica.checkpoint`
          snapshot.safetensors  of the task under way; gone once it is learned
          model.json            in the folder of a model that goes on learning, in place of metrics.json and cost.json
          figures/

and this file is the one place that knows these names.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

from filelock import FileLock, Timeout

from lorica.errors import LoricaError
from lorica.ownership import require_ours, wrote

LOCK = ".lorica.lock"
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO)
_PARTIAL = re.compile(r"\..+\.[0-9a-f]{32}\.partial")


class RunFolder:
    """The folder of one run."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.recipe = self.path / "recipe.yaml"
        self.environment = self.path / "environment.json"
        self.stream = self.path / "stream.jsonl"
        self.metrics = self.path / "metrics.json"
        self.cost = self.path / "cost.json"
        self.history = self.path / "history.jsonl"
        self.confusion = self.path / "confusion.json"
        self.tracking = self.path / "tracking.json"
        self.checkpoints = self.path / "checkpoints"
        self.snapshot = self.path / "snapshot.safetensors"
        self.model = self.path / "model.json"
        self.figures = self.path / "figures"
        self._arriving = self.path / ".lorica.arriving"
        self._arrived = self.path / ".lorica.arrived"

    def require(self) -> None:
        """LoricaError unless a run has begun in the folder, and can be read."""
        with refusals(self.path):
            if os.path.lexists(self._arriving) or os.path.lexists(self._arrived):
                self.tidy()
            if not self.recipe.is_file():
                raise LoricaError(f"{self.path}: not the folder of a run ({self.recipe.name} is missing)")

    def tidy(self) -> None:
        """Clears what a killed process left half-written, if one did.

        Raises:
            LoricaError: as `taken`.
        """
        if any(os.path.lexists(path) for path in (self.path / LOCK, self._arriving, self._arrived)):
            with self.taken():
                pass

    @contextmanager
    def taken(self) -> Iterator[None]:
        """The folder, made where it is missing, for this process alone, for the length of a `with` block.

        What a killed process left half-written is cleared, and what it began to hand over arrives.

        Raises:
            LoricaError: as `lorica.files.taken`; or there is a link where a run arrives.
        """
        if links := [path for path in (self._arriving, self._arrived, self.anew.path) if path.is_symlink()]:
            raise LoricaError(
                [
                    f"{link}: is a link, and lorica makes none: what it leads to is not of this run; remove the link"
                    for link in links
                ]
            )
        with taken(self.path):
            with refusals(self.path):
                for folder in (self.checkpoints, self.anew.path, self.anew.checkpoints):
                    clear_partial(folder)
                self._arrive()
            yield

    # --- one run after another: the old one stays until the new one has learned something ---

    @property
    def anew(self) -> RunFolder:
        """Where a run learns its first task while the folder still holds another run."""
        return RunFolder(self.path / ".lorica.anew")

    def give_up_anew(self) -> None:
        """Removes what is there of a run that has not taken the other one's place."""
        if self.anew.path.exists():
            shutil.rmtree(self.anew.path)

    def held(self, *, anew: bool) -> list[Path]:
        """The files here that a run replaces or removes as it goes on; or as it begins `anew`, then including all that
        are in its folders (but for hidden ones, which it leaves alone)."""
        files = [
            self.recipe,
            self.environment,
            self.stream,
            self.metrics,
            self.cost,
            self.history,
            self.confusion,
            self.tracking,
            self.snapshot,
        ]
        folders = {self.checkpoints: "**/*" if anew else "task_*.safetensors"} | (
            {self.figures: "**/*"} if anew else {}
        )
        for folder, pattern in folders.items():
            if folder.is_dir():
                files += [path for path in sorted(folder.glob(pattern)) if not (path.is_dir() or path.name[0] == ".")]
            else:
                files.append(folder)
        return [path for path in files if os.path.lexists(path)]

    def clear(self) -> None:
        """Removes the run here; of files that are not lorica's, none."""
        ours = [path for path in self.held(anew=True) if wrote(path)]
        for path in sorted(
            ours, key=lambda path: path.suffix.startswith(".json")
        ):  # journals last: they name the others
            path.unlink()
        for folder in sorted({path.parent for path in ours} | {self.checkpoints, self.figures}, reverse=True):
            if folder != self.path and folder.is_dir() and not (folder.is_symlink() or any(folder.iterdir())):
                folder.rmdir()

    def hand_over(self) -> None:
        """The run in `anew` takes the place of the one here. If the process is killed meanwhile, the next one ends it.

        Raises:
            LoricaError: a file has appeared that is not lorica's.
        """
        require_ours(self.held(anew=True))
        os.replace(self.anew.path, self._arriving)
        sync_folder(self.path)
        self._arrive()

    def _arrive(self) -> None:
        """Two steps, of which each can be taken again: the old run goes, without its recipe at once; the new one's
        files move in, the recipe last. So at no moment is there a mixture that can be loaded."""
        if self._arriving.exists():
            self.clear()
            os.replace(self._arriving, self._arrived)
            sync_folder(self.path)
        if self._arrived.exists():
            moves = {
                path: self.path / path.relative_to(self._arrived) for path in self._arrived.rglob("*") if path.is_file()
            }
            require_ours(moves.values())
            for path, target in sorted(moves.items(), key=lambda move: move[1] == self.recipe):
                target.parent.mkdir(exist_ok=True)
                shutil.move(path, target)  # also where the user has linked a folder to another disk
                sync_folder(target.parent)
            shutil.rmtree(self._arrived)


@contextmanager
def without_empty(folder: Path) -> Iterator[None]:
    """Of a folder and those that it is in, what is made within this block and is empty at its end is removed: whatever
    was to be in it has been refused."""
    missing = [each for each in (folder, *folder.parents) if not os.path.lexists(each)]
    try:
        yield
    finally:
        with suppress(OSError):  # not empty, or never made
            for each in missing:
                each.rmdir()


@contextmanager
def taken(folder: Path) -> Iterator[None]:
    """A folder, made where it is missing, for this process alone; what a killed process left half-written in it is
    cleared, and a folder that was made in vain.

    The lock goes with its process, however that ends.

    Raises:
        LoricaError: another process has it (which), a file is in the way, there is no permission or no space.
    """
    file = folder / LOCK
    lock = FileLock(file, timeout=0)
    with without_empty(folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout:
            raise LoricaError(
                f"{folder}: {_holder(file)} is at work in it; wait for it, or choose another folder"
            ) from None
        except OSError as error:
            raise LoricaError(f"{_short(folder)}: cannot be made a folder: {error.strerror or error}") from error
        try:
            with refusals(folder):
                file.write_text(json.dumps({"process": os.getpid(), "host": socket.gethostname(), "since": _now()}))
                clear_partial(folder)
            yield
        finally:
            with suppress(OSError):  # of a disk that can no longer be written; the lock itself goes with the process
                file.unlink(missing_ok=True)  # while it is held, so that it is nobody else's
            lock.release()


@contextmanager
def refusals(folder: Path) -> Iterator[None]:
    """What the system refuses at or below a folder in this block, or for want of space, is a LoricaError."""
    try:
        yield
    except OSError as error:
        where = os.path.abspath(error.filename) if isinstance(error.filename, str | os.PathLike) else None
        below = where is not None and Path(where).is_relative_to(os.path.abspath(folder))
        if not below and (where or error.errno not in _NO_SPACE):
            raise
        raise LoricaError(
            f"{_short(error.filename or folder)}: {error.strerror or error}; what was saved before is kept"
        ) from error


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
    """Adds a line to a file, made where it is missing; once this returns, the line is on the disk, if it is to be
    `durable`.

    A process that is killed meanwhile leaves a part of the line without its end, which `complete_lines` passes over.

    Raises:
        LoricaError: as `replacing`; the file is what it was, as far as the system still allows that.
    """
    new = not path.exists()
    size = 0 if new else path.stat().st_size
    try:
        with path.open("ab") as file:
            file.write(line.encode() + b"\n")
            if durable:
                file.flush()
                os.fsync(file.fileno())
        if new and durable:
            sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):  # otherwise a whole line could stay that was said not to be there
            path.unlink(missing_ok=True) if new else os.truncate(path, size)
        raise LoricaError(f"{path}: cannot be written: {error.strerror or error}") from error


def complete_lines(path: Path) -> list[bytes]:
    """The lines of a file that `append_line` wrote, without one whose end is missing; none where there is no file.

    Raises:
        LoricaError: the file cannot be read.
    """
    with refusals(path):
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


def _short(path: object) -> str:
    text = str(path)
    return text if len(text) <= 200 else f"{text[:120]} … {text[-60:]}"


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")
