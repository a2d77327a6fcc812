"""Groups of commands, a file each, which `lorica.cli` puts together; here is what they share.

data      `lorica data show | check`
models    `lorica learn | predict | history | rollback | forget | purge | join`
sweep     `lorica sweep`
report    `lorica report`
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from lorica.errors import LoricaError
from lorica.terminal import Screen

MethodFile = Annotated[
    Path | None, typer.Option(help="the .py file that defines the method; no file is executed that is not named")
]


def naming(method_file: Path | None) -> list[str]:
    """The override that names a method's file."""
    return [f"method.name={method_file}"] if method_file else []


def drawing():
    """`lorica.report.figures`, once something is to be drawn: matplotlib takes seconds, and reads settings of the
    user's.

    Raises:
        LoricaError: settings with which it cannot be imported.
    """
    os.environ["MPLBACKEND"] = "agg"  # Jupyter's is for notebooks, and not there for a command that is started in one
    try:
        from lorica.report import figures
    except (OSError, ValueError) as error:
        raise LoricaError(
            f"matplotlib cannot be imported ({error}); mend or remove its settings: the file matplotlibrc in this "
            "folder, the one that MATPLOTLIBRC names, or yours in the folder for matplotlib"
        ) from error
    return figures


def left_out(line: str) -> None:
    """Says on standard error what is not in a table or a report, beside it."""
    Screen(stderr=True).print(f"left out: {line}", style="yellow", soft_wrap=True)
