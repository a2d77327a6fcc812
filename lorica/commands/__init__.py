"""Groups of commands, a file each, which `lorica.cli` puts together; here is what they share.

data      `lorica data show | check`
models    `lorica learn | predict | history | rollback | forget | purge | join`
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

MethodFile = Annotated[
    Path | None, typer.Option(help="the .py file that defines the method; no file is executed that is not named")
]


def naming(method_file: Path | None) -> list[str]:
    """The override that names a method's file."""
    return [f"method.name={method_file}"] if method_file else []
