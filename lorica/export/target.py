"""What a target is: a module that writes a folder, and loads it back with the library that it is for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from lorica.export.subject import Subject


@dataclass(frozen=True)
class Loaded:
    """An export, loaded back from its files by the library that it is for.

    Attributes:
        predict: logits [n, classes] of squares in [0, 1], [n, 3, s, s], or of tokens, of any number.
        prepare: the library's own preparation of an image of Pillow, with the normalisation, [3, s, s]; None where
            there is none.
        class_names: as the library names them.
        remark: what there is to say of the form it took.
    """

    predict: Callable[[Any], Tensor]
    prepare: Callable[[Any], Tensor] | None
    class_names: Sequence[str]
    remark: str = ""


@runtime_checkable
class Target(Protocol):
    """One of `lorica.export.TARGETS`: a module with

    Attributes:
        NAME: what people call the target.
        PACKAGES: what loads it, whose versions are noted.
    """

    NAME: str
    PACKAGES: tuple[str, ...]

    def require(self, subject: Subject) -> None:
        """LoricaError: it cannot express the method, or a package is missing. Nothing has been written then."""
        ...

    def write(self, subject: Subject, folder: Path) -> None:
        """Writes its files into the folder."""
        ...

    def load(self, subject: Subject, folder: Path) -> Loaded:
        """Loads the files back, as the library they are for does."""
        ...

    def readme(self, subject: Subject) -> str:
        """How others load them, in Markdown; FOLDER stands for the folder."""
        ...
