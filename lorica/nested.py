"""Mappings within mappings, as recipes are, by dotted key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value that is not a mapping, in order, with its dotted key: {"fit": {"epochs": 3}} gives ("fit.epochs", 3).

    A mapping without keys gives nothing; lists are values.
    """
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
