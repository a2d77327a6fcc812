"""Groups of commands, a file each, which `lorica.cli` puts together; here is what they share.

models    `lorica learn | predict | history | rollback | forget | purge | join`
report    `lorica report`
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lorica.terminal import Screen

MethodFile = Annotated[
    Path | None, typer.Option(help="the .py file that defines the method; no file is executed that is not named")
]


def naming(method_file: Path | None) -> list[str]:
    """The override that names a method's file."""
    return [f"method.name={method_file}"] if method_file else []


def left_out(line: str) -> None:
    """Says on standard error what is not in a table or a report, beside it."""
    Screen(stderr=True).print(f"left out: {line}", style="yellow", soft_wrap=True)
