"""JSON that was written to disk, read back: what it must consist of is said by one strict pydantic model for each kind
of file.

Whatever does not fit is a line that names the place, what was given and what was expected. Seals and hashes of
checkpoints say that a file is what was written; models say that it can be used.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from math import isfinite
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field, ValidationError

from lorica.errors import LoricaError

_SHOWN = 60  # characters of a value in a message
_OBJECT = re.compile(r"a valid dictionary( or (object|instance).*)?")
_DEEPEST = 64  # lists within lists; what is written has a few, and readers of many would run out of stack


WRITTEN = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
"""Of the model of an object that lorica wrote: types are not converted, and numbers are finite."""

WIDER = WRITTEN | ConfigDict(extra="allow")
"""The same, where other versions may have written more."""


def _as_written(value: Any) -> Any:
    """The value as JSON gives it back, a copy: lists for tuples, text for the keys of a mapping."""
    return json.loads(json.dumps(value, allow_nan=False))


Plain = Annotated[dict[str, Any], BeforeValidator(_as_written)]
"""Plain values, the same as if they had been to the disk and back."""

Count = Annotated[int, Field(ge=0, lt=2**63)]
"""A number of things."""

Seconds = Annotated[float, Field(ge=0)]


def parsed(text: bytes | str) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: not JSON, or not UTF-8; a key twice in an object, of which readers see one or the other; lists
            within lists within lists.
    """
    try:
        value = json.loads(text, object_pairs_hook=_once)
    except RecursionError as error:
        raise ValueError("lists within lists within lists") from error
    level = [value]
    for _ in range(_DEEPEST):
        level = [inner for each in level for inner in _inside(each) if isinstance(inner, dict | list)]
    if level:
        raise ValueError("lists within lists within lists")
    return value


def read_json(file: Path) -> Any:
    """The contents of a JSON file of a run. LoricaError: it cannot be read, is damaged, or has numbers that are not
    finite."""
    try:
        values = parsed(file.read_bytes())
    except OSError as error:
        raise LoricaError(
            f"{file}: cannot be read: {error.strerror or error}; expected the folder of a run with a task learned"
        ) from error
    except ValueError as error:
        raise LoricaError(
            f"{file}: truncated or altered: {error}; restore the file, or resume the run to write it again"
        ) from error
    if places := list(_not_finite(values)):
        more = f" and {len(places) - 1} more" if len(places) > 1 else ""
        raise LoricaError(
            f"{file}: {places[0]}{more}, expected finite numbers; lorica writes no others: restore the file"
        )
    return values


def misfits(error: ValidationError) -> Iterator[str]:
    """A line for each field that is wrong: its place, what was given, and the first thing about it."""
    seen = set[Any]()
    for item in error.errors(include_url=False):
        if (top := item["loc"][:1]) in seen:
            continue
        seen.add(top)
        place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in item["loc"]).lstrip(".")
        said = item["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
        said = _OBJECT.sub("an object", said)
        if item["type"] == "value_error":  # says itself what it was given
            yield f"{place}: {said}" if place else said
        elif item["type"] == "missing":
            yield f"{place} is missing"
        elif item["type"] == "extra_forbidden":
            yield f"{place} is unknown"
        else:
            yield f"{place or 'the whole of it'} is {shown(item['input'])}, {said}"


def shown(value: Any) -> str:
    """A value in a message, cut where it is long."""
    try:
        return f"{value!r:.{_SHOWN}}"
    except (ValueError, RecursionError):  # a number of more digits than are written out, lists within lists
        return f"a {type(value).__name__}"


def _inside(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise ValueError(f"{key[:_SHOWN]!r} stands twice in an object")
        values[key] = value
    return values


def _not_finite(value: Any, place: str = "") -> Iterator[str]:
    """Every number that JSON does not have, with its place: "accuracy[1][0] is nan"."""
    if isinstance(value, float) and not isfinite(value):
        yield f"{place or 'the whole of it'} is {value}"
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from _not_finite(each, f"{place}.{key}" if place else key)
    elif isinstance(value, list):
        for index, each in enumerate(value):
            yield from _not_finite(each, f"{place}[{index}]")
