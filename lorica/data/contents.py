"""What the data of a run consists of, so that other data under the same names is noticed.

Each class of each half is told by its number of samples and a digest of their names and contents, whatever folder they
are in:

    {"train": {"wren": [30, "5f3c…"], …}, "test": {…}}
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from lorica.data.ahead import by_threads
from lorica.data.sources.base import Source, some
from lorica.errors import DataError
from lorica.progress import Reporter, Silent

Contents = dict[str, dict[str, list[Any]]]
Digests = dict[str, list[bytes]]
"""Of each sample of each half."""

_SHOWN_FROM = 2000
"""Samples from which on reading them takes long enough for a bar."""


def contents_from(source: Source, digests: Digests) -> Contents:
    """What it consists of, by the digests of its samples."""
    found: Contents = {}
    for half, samples in (("train", source.train), ("test", source.test)):
        classes = [hashlib.sha256() for _ in source.class_names]
        for label, each in zip(samples.labels.tolist(), digests[half], strict=True):
            classes[label].update(each)
        counts = np.bincount(samples.labels, minlength=len(classes)).tolist()
        found[half] = {
            name: [count, each.hexdigest()[:16]]
            for name, count, each in zip(source.class_names, counts, classes, strict=True)
        }
    return found


def digests_of(source: Source, reporter: Reporter | None = None) -> Digests:
    """Reads every sample of both halves.

    Raises:
        DataError: files that cannot be read, all of them.
    """
    number = len(source.train) + len(source.test)
    shown = (reporter if number >= _SHOWN_FROM else None) or Silent()
    shown.stage("reading the data, to know it again", number)
    found: Digests = {}
    problems: list[str] = []
    for half, samples in (("train", source.train), ("test", source.test)):

        def digest(index: int, samples: Any = samples) -> bytes | str:
            try:
                return samples.digest(index)
            except OSError as error:
                return f"{samples.describe(index)}: cannot be read: {error.strerror or error}"

        made = by_threads(digest, range(len(samples)), after_each=shown.step)
        problems += [each for each in made if isinstance(each, str)]
        found[half] = [each for each in made if isinstance(each, bytes)]
    if problems:
        raise DataError(problems)
    return found


def differences(old: Contents, new: Contents) -> list[str]:
    """What has changed in each half, for people: a line each."""
    lines = []
    for half, title in (("train", "training"), ("test", "test")):
        before, now = old.get(half, {}), new.get(half, {})
        changed = [
            f"{name} ({_change(before.get(name), now.get(name))})"
            for name in dict.fromkeys([*before, *now])
            if before.get(name) != now.get(name)
        ]
        if changed:
            lines.append(
                f"the {title} data of {len(changed)} of {len(now)} classes is not what it was: {some(changed)}"
            )
    return lines


def short_digest(contents: Mapping[str, Any]) -> str:
    """One text for all of it."""
    return hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()[:16]


def _change(before: list[Any] | None, now: list[Any] | None) -> str:
    if before is None or now is None:
        return "new" if before is None else "gone"
    return f"{before[0]} samples, now {now[0]}" if before[0] != now[0] else f"{now[0]} samples, other contents or names"
