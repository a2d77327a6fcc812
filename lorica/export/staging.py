"""A folder that appears whole: it is made beside its place, and takes it in one step.

While `.NAME.lorica` beside the folder NAME is there, somebody makes that folder, or was killed while making it; the
next one who does clears what was left.
"""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lorica.errors import LoricaError
from lorica.files import clear_partial, refusals, sync_folder, taken, write_json
from lorica.ownership import require_export, wrote

RECORD = "export.json"
"""What an export says of itself; `lorica.ownership` knows an export by it."""

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


@contextmanager
def arriving(folder: Path, record: dict[str, Any]) -> Iterator[Path]:
    """An empty folder that takes the place of `folder` when the block ends well; otherwise whatever was there stays.

    At any moment, also if the process is killed, the place has what was there before, or all that the block has made.
    Where the system cannot exchange two folders in one step (Linux can), there is an instant in which the former is
    beside it; the next export then brings it back.

    Args:
        folder: where links lead, in their place; its parents are made.
        record: a first version of `RECORD`, by which the new folder is known from its beginning.

    Raises:
        LoricaError: the place holds something else than an export, another process makes one there, or the system
            refuses to write.
    """
    place = Path(os.path.realpath(folder))
    require_export(place)
    workshop = place.with_name(f".{place.name}.lorica")
    new, earlier = workshop / "new", workshop / "earlier"
    try:
        with taken(workshop), refusals(place.parent):
            _tidy(place, new, earlier)
            new.mkdir()
            write_json(new / RECORD, record)
            try:
                yield new
                require_export(place)
                _settle(new)
                _replace(place, new, earlier)
            finally:
                _tidy(place, new, earlier)
    finally:
        with suppress(OSError):  # gone, as it was made here; or not empty: another process makes an export there
            workshop.rmdir()


def _replace(place: Path, new: Path, earlier: Path) -> None:
    if not place.exists():
        os.replace(new, place)
    elif not _exchange(new, place):
        os.replace(place, earlier)
        os.replace(new, place)
    sync_folder(place.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Two folders change places in one step; False where the system cannot do that."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):
        return False
    return renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0


def _tidy(place: Path, new: Path, earlier: Path) -> None:
    """Brings an earlier export back that nothing has replaced, and removes what is left of others."""
    if earlier.exists() and not place.exists():
        os.replace(earlier, place)
    for folder in (new, earlier):
        if folder.is_dir():
            clear_partial(folder)
            if any(folder.iterdir()) and not wrote(folder / RECORD):
                raise LoricaError(f"{folder}: is in the way and not of an export of lorica's; move it away")
            for entry in sorted(folder.iterdir(), key=lambda entry: entry.name == RECORD):  # by which it is known, last
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
            folder.rmdir()


def _settle(folder: Path) -> None:
    """Brings a folder's files to the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        else:
            sync_folder(path)
    sync_folder(folder)
