"""What reaches a terminal or a pipe: names and messages as they are, nothing that the terminal would obey, and only
characters that it has.

Class names, paths, method names and errors may contain anything: brackets that rich would read as markup, escape
sequences, letters that an ASCII terminal or one of Windows cannot show. Whatever prints does so through a `Screen`,
which takes every text literally; a rich `Text` is made of what `printable` gives.
"""

from __future__ import annotations

import codecs
import io
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

_ROWS, _COLUMNS = 20, 80  # of the smallest screen that an error must fit on
_LONGEST = 400  # characters of a line of an error
_TAIL = 150  # of them for its end, where the remedy is

_JOINERS = "\u200c\u200d"  # invisible, and part of words and emoji
_ASCII = {
    "±": "+-",
    "…": "...",
    "–": "-",
    "—": "-",
    "−": "-",
    "×": "x",
    "·": "*",
    "≤": "<=",
    "≥": ">=",
    "≈": "~",
    "√": "sqrt",
    "²": "^2",
    "‘": "'",
    "’": "'",
    "“": '"',
    "”": '"',
}


def visible(text: object, *, keep: str = "\n\t") -> str:
    """A text in which each character that controls a terminal, or is no character, is written out: ESC as \\x1b.

    Args:
        keep: the controls that stay.
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(each if _is_harmless(each) or each in keep else ascii(each)[1:-1] for each in text)


def shown(path: object) -> str:
    """A path, or another text of one line, as `visible` makes it."""
    return visible(path, keep="")


def printable(text: object, encoding: str = "utf-8") -> str:
    """A text as `visible` makes it, with other words for the characters that an encoding lacks: ± as +-."""
    text = visible(text)
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = "".join(each if _is_in(each, encoding) else _spelled(each) for each in text)
    return text


class Screen(Console):
    """A console that takes every text literally, unless it is told `markup=True`, and shows it as `printable` makes
    it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False, "highlight": False, **options})

    def render_str(self, text: str, **options: Any) -> Text:
        """See `rich.console.Console.render_str`, through which it sends each text that is printed or in a table."""
        return super().render_str(printable(text, self.encoding), **options)

    def strong(self, text: object) -> Text:
        """A text in bold."""
        return Text(printable(text, self.encoding), "bold")


def open_streams() -> None:
    """From now on standard output and error write other words for what they cannot encode; none of them raises."""
    codecs.register_error(__name__, _substituted)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=__name__)


def screenful(problems: Sequence[str]) -> Iterator[str]:
    """The lines of an error, of which long ones lack their middle, as many as fit on a screen, and how many more there
    are."""
    lines = [_shortened(visible(line)) for problem in problems for line in problem.split("\n")]
    rows = 0
    for number, line in enumerate(lines):
        rows += -(-len(line) // _COLUMNS) or 1
        if number and rows > _ROWS:
            yield f"… and {len(lines) - number} more; mend these, or see all of them with --debug"
            return
        yield line


def _shortened(line: str) -> str:
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - _TAIL - 3]} … {line[-_TAIL:]}"


def _is_harmless(character: str) -> bool:
    return character.isprintable() or character in _JOINERS or unicodedata.category(character) == "Zs"


def _is_in(character: str, encoding: str) -> bool:
    try:
        character.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def _spelled(character: str) -> str:
    """Characters of lorica's own in ASCII; those of other alphabets as their numbers, so that two names stay two."""
    if character in _ASCII:
        return _ASCII[character]
    name = unicodedata.name(character, "")
    return name.split()[-1].lower() if name.startswith("GREEK") and " LETTER " in name else ascii(character)[1:-1]


def _substituted(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_spelled, error.object[error.start : error.end])), error.end
