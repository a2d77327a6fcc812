"""Everyday requests in English, written for lorica: nothing to download."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lorica.data.sources.base import Source
from lorica.data.sources.table import texts

DESCRIPTION = "800 everyday requests in 20 intents, a text each; nothing to download"
READS = ()

_EVERY = 3
"""The last of that many requests of an intent is for testing."""


def load(**_: Any) -> Source:
    """See `lorica.data.sources`; there is no root, and the split is fixed."""
    return requests()


def requests() -> Source:
    """The 800 requests of requests.txt, whose lines are those of the intent that the `#` above them names: 540 to train
    on, and every third of an intent, 260 in all, to test on."""
    train: tuple[list[str], list[str]] = ([], [])
    test: tuple[list[str], list[str]] = ([], [])
    intent, place = "", 0
    for line in Path(__file__).with_suffix(".txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("# "):
            intent, place = line.removeprefix("# "), 0
            continue
        place += 1
        given, labels = train if place % _EVERY else test
        given.append(line)
        labels.append(intent)
    return texts(train, test)
