"""The methods, one file each. A method is found by its `name`; adding a file to this folder adds its methods."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import inspect
import pkgutil
import sys
from functools import lru_cache
from importlib.abc import InspectLoader
from importlib.util import decode_source, module_from_spec, spec_from_loader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Literal

from lorica.backbones.encoder import Encoder
from lorica.errors import RecipeError
from lorica.methods.base import Context, LowRankConfig, Method, MethodConfig
from lorica.methods.linear_head import LinearHeadMethod
from lorica.methods.readout import Drift, Kind, Readout

__all__ = [
    "Context",
    "Drift",
    "Kind",
    "LinearHeadMethod",
    "LowRankConfig",
    "Method",
    "MethodConfig",
    "Readout",
    "build_method",
    "find_method",
    "method_file_sha256",
    "method_names",
]


def build_method(
    config: MethodConfig,
    encoder: Encoder,
    *,
    readout: Literal["head", Kind] = "head",
    layers: int | None = None,
    drift: Drift = "none",
) -> Method:
    """The method of that config around an encoder; read otherwise than by its own predictions, if `readout` says so.

    Args:
        readout, layers, drift: the recipe's `evaluate` section, see `lorica.methods.readout`.

    Raises:
        RecipeError: see `find_method`.
    """
    method = find_method(config.name)(config, encoder)
    return method if readout == "head" else Readout(method, readout, layers=layers, drift=drift)


def method_names() -> list[str]:
    """Names of all packaged methods, sorted."""
    return sorted(_packaged())


def find_method(name: str) -> type[Method]:
    """The method class of that name, or the one that a `.py` file defines, which is executed.

    Raises:
        RecipeError: no such method (with the nearest names), or a file without exactly one method.
    """
    if name.endswith(".py"):
        return _from_source(Path(name), _source(Path(name)))
    packaged = _packaged()
    if name not in packaged:
        near = difflib.get_close_matches(name, packaged, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(packaged))}"
        raise RecipeError(f"method.name: no method {name!r}; {hint}")
    return packaged[name]


def _packaged() -> dict[str, type[Method]]:
    found: dict[str, type[Method]] = {}
    for info in pkgutil.iter_modules(__path__):
        for method in _methods_of(importlib.import_module(f"{__name__}.{info.name}")):
            if method.name in found:
                raise TypeError(f"two methods are called {method.name}: {found[method.name]} and {method}")
            found[method.name] = method
    return found


def _methods_of(module: ModuleType) -> list[type[Method]]:
    return [
        value
        for value in vars(module).values()
        if inspect.isclass(value)
        and issubclass(value, Method)
        and value.__module__ == module.__name__
        and "name" in vars(value)
    ]


def method_file_sha256(name: str) -> str:
    """The sha256 of a `.py` file's contents; RecipeError where there is none."""
    return hashlib.sha256(_source(Path(name))).hexdigest()


def _source(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise RecipeError(f"method.name: there is no file {path}") from None
    except OSError as error:
        raise RecipeError(f"method.name: {path} cannot be read: {error.strerror or error}") from error


class _Loader(InspectLoader):
    """Loads a module from the very bytes that were hashed; nothing is cached beside the file."""

    def __init__(self, source: bytes, path: Path) -> None:
        self._source, self._path = source, path

    def get_source(self, fullname: str) -> str:
        return decode_source(self._source)

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self._source, str(self._path))


@lru_cache
def _from_source(path: Path, source: bytes) -> type[Method]:
    """The method of a file with these contents; the same class whenever it is asked for."""
    name = f"lorica_user_method_{path.stem}_{hashlib.sha256(source).hexdigest()[:8]}"
    loader = _Loader(source, path)
    spec = spec_from_loader(name, loader, origin=str(path))
    assert spec is not None  # there is a loader
    spec.has_location = True  # sets __file__
    module = module_from_spec(spec)
    try:
        loader.get_code(name)
    except (SyntaxError, ValueError) as error:  # also what is no text
        raise RecipeError(f"method.name: {path} is not a Python file: {error}") from error
    sys.modules[name] = module  # where pydantic looks up the annotations of the file's own Config
    loader.exec_module(module)
    found = _methods_of(module)
    if len(found) != 1:
        names = ", ".join(method.__name__ for method in found) or "none"
        raise RecipeError(f"method.name: {path} must define exactly one lorica.Method; it defines {names}")
    return found[0]
