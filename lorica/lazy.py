"""Names of a package whose homes are imported when a name is first used: `import lorica` costs nothing, torch is paid
for by what computes.

A package that does so lists its names three times, since type checkers run nothing: imported under TYPE_CHECKING, in
`__all__`, and here. A test holds the three to each other.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from pkgutil import iter_modules
from types import ModuleType
from typing import Any


def lazily(package: str, names: Mapping[str, Sequence[str]]) -> None:
    """Makes a package that is being imported have the names of these modules, and all of its own submodules.

    A name stands for the same thing whatever was imported before: where a submodule is called like it (`lorica.run`),
    importing that submodule does not put it in the name's place.
    """
    homes = {name: module for module, those in names.items() for name in those}

    class Lazy(ModuleType):
        def __getattr__(self, name: str) -> Any:
            if name in homes:
                found = getattr(importlib.import_module(homes[name]), name)
            elif not name.startswith("_") and name in {info.name for info in iter_modules(self.__path__)}:
                found = importlib.import_module(f"{package}.{name}")
            else:
                raise AttributeError(f"module {package!r} has no attribute {name!r}")
            setattr(self, name, found)
            return found

        def __setattr__(self, name: str, value: Any) -> None:
            if name in homes and isinstance(value, ModuleType):
                value = getattr(value, name)
            super().__setattr__(name, value)

        def __dir__(self) -> list[str]:
            return sorted({*super().__dir__(), *homes})

    sys.modules[package].__class__ = Lazy
