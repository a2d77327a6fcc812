"""Recipes as text: YAML of which every part says one thing, and whose scalars wait for the type of their key.

Plain scalars are read by the core schema of YAML 1.2: null, true, false and decimal numbers; all else is text. So
`12:30`, `yes`, `0x10` and `2001-01-01` are texts, which a key for a number refuses. A key for a text or a path gets
what is written: a folder may be called 0123.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import yaml

_WORDS = {"": None, "~": None, "null": None, "true": True, "false": False}
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]{0,29})")
_DECIMAL = re.compile(r"[-+]?(\.[0-9]{1,30}|[0-9]{1,30}(\.[0-9]*)?)([eE][-+]?[0-9]{1,4})?")

_DEEPEST = 16


class Written(NamedTuple):
    """A scalar that is not quoted.

    Attributes:
        text: what is written.
        value: what it is, where its key is not for a text.
    """

    text: str
    value: Any

    @property
    def as_text(self) -> str | None:
        return None if _WORDS.get(self.text, "") is None else self.text


def parse(text: str) -> Any:
    """Nested dicts and lists of the YAML in a text, with `Written` for scalars that are not quoted.

    Raises:
        ValueError: not YAML, or more than plain values say: a key twice in a section, anchors, tags.
    """
    try:
        depth = 0
        for event in yaml.parse(text, yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _DEEPEST:  # before the reader takes time that grows with the square
                raise ValueError(
                    f"{_line(event.start_mark)}: sections within sections within sections; a recipe has two"
                )
            if isinstance(event, yaml.NodeEvent) and (event.anchor or getattr(event, "tag", None)):
                where = _line(event.start_mark)
                raise ValueError(f"{where}: anchors, references and tags are not read; write the value out")
        node = yaml.compose(text, yaml.SafeLoader)
        return None if node is None else _content(node)
    except yaml.YAMLError as error:
        raise ValueError(f"not valid YAML: {' '.join(str(error).split())}") from error


def override(text: str) -> Written:
    """The value of `key=value` on a command line."""
    try:
        value = parse(text)
    except ValueError:
        value = text
    return Written(text, value.value if isinstance(value, Written) else value)


def _content(node: yaml.Node) -> Any:
    if isinstance(node, yaml.ScalarNode):
        return node.value if node.style else Written(node.value, _core(node.value))
    if isinstance(node, yaml.SequenceNode):
        return [_content(each) for each in node.value]
    content: dict[str, Any] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise ValueError(f"{_line(key.start_mark)}: expected a name as key")
        if key.value in content:
            raise ValueError(f"{_line(key.start_mark)}: {key.value} stands here a second time; keep one of the two")
        content[key.value] = _content(value)
    return content


def _core(text: str) -> Any:
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    return float(text) if _DECIMAL.fullmatch(text) and not text.lstrip("+-").startswith("00") else text


def _line(mark: yaml.Mark) -> str:
    return f"line {mark.line + 1}"
