"""What a run ran on."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from lorica.errors import LoricaError
from lorica.reading import WIDER, Count, misfits, read_json

_NAMED = (
    "torch",
    "torchvision",
    "timm",
    "accelerate",
    "transformers",
    "peft",
    "numpy",
    "pillow",
    "scikit-learn",
    "pydantic",
)
"""Packages whose versions a report should name."""


class _Data(BaseModel):
    """What `lorica.data.contents` noted; runs from before it have none."""

    model_config = WIDER

    contents: dict[str, dict[str, list[Count | str]]] | None = None


class _Environment(BaseModel):
    """The contents of environment.json, as far as anything reads them."""

    model_config = WIDER

    data: _Data | None = None


def environment() -> dict[str, Any]:
    """Versions (None if not installed), git revisions of the working directory and of lorica, and the machine.

    A revision ends in "-dirty" if tracked files were changed since; None outside a git checkout, as for lorica where it
    was installed. The name of the host is not among them.
    """
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpu_count": os.cpu_count(),
        "lorica": package_version("lorica"),
        "torch": package_version("torch"),
        "timm": package_version("timm"),
        "git_revision": _git_revision(Path()),
        "lorica_revision": _lorica_revision(),
    }


def versions() -> dict[str, str]:
    """Of lorica and of what its results depend on, by name; "not installed" for an extra that is not there."""
    found = {"lorica": package_version("lorica"), "python": platform.python_version()}
    found |= {name: package_version(name) for name in _NAMED}
    return {name: each or "not installed" for name, each in found.items()}


def package_version(package: str) -> str | None:
    """Of an installed package; None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _lorica_revision() -> str | None:
    here = Path(__file__)
    tracked = _git(here.parent, "ls-files", "--error-unmatch", here.name)  # not so where it is installed in a checkout
    return None if tracked is None else _git_revision(here.parent)


def _git_revision(folder: Path) -> str | None:
    return _git(folder, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _git(folder: Path, *arguments: str) -> str | None:
    """What git says of a folder; None where there is no git, or it finds nothing."""
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def noted_contents(file: Path) -> dict[str, dict[str, list[Any]]] | None:
    """What the data of a run consisted of when it began, see `lorica.data.contents`; None where its environment.json is
    not there, or from before that was noted.

    Raises:
        LoricaError: a file that cannot be read, or is no environment.json.
    """
    if not file.exists():
        return None
    try:
        read = _Environment.model_validate(read_json(file))
    except ValidationError as error:
        remedy = "not an environment.json of lorica, or altered: restore the file"
        raise LoricaError([f"{file}: {line}; {remedy}" for line in misfits(error)]) from error
    contents = read.data and read.data.contents
    for half, classes in (contents or {}).items():
        for name, noted in classes.items():
            if [type(each) for each in noted] != [int, str]:
                raise LoricaError(
                    f"{file}: data.contents.{half}.{name} is {noted!r:.60}, expected a number of samples and a digest; "
                    "restore the file"
                )
    return contents
