"""The methods, one file each. A method is found by its `name`; adding a file to this folder adds its methods.

That name (a text as it stands), the first line of what a method says of itself, and its `Config` are read from the file
without executing it, see `lorica.definitions`; the method is imported when it is to be built.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import importlib
import inspect
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Literal, NamedTuple

from lorica.definitions import Loader, class_attribute, constant, parsed
from lorica.errors import RecipeError
from lorica.lazy import lazily
from lorica.methods.config import Drift, Kind, LowRankConfig, MethodConfig

if TYPE_CHECKING:
    from lorica.backbones.encoder import Encoder
    from lorica.methods.base import Context, Method
    from lorica.methods.linear_head import LinearHeadMethod
    from lorica.methods.readout import Readout

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
    "config_of",
    "find_method",
    "method_descriptions",
    "method_file_sha256",
    "method_names",
]

lazily(
    __name__,
    {
        "lorica.methods.base": ["Context", "Method"],
        "lorica.methods.linear_head": ["LinearHeadMethod"],
        "lorica.methods.readout": ["Readout"],
    },
)


class _Packaged(NamedTuple):
    """Where a method is, and what it is."""

    module: str
    class_name: str
    description: str


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
    from lorica.methods.readout import Readout

    method = find_method(config.name)(config, encoder)
    return method if readout == "head" else Readout(method, readout, layers=layers, drift=drift)


def method_names() -> list[str]:
    """Names of all packaged methods, sorted."""
    return sorted(_packaged())


def method_descriptions() -> dict[str, str]:
    """The same, each with the first line of what it says of itself."""
    return {name: found.description for name, found in sorted(_packaged().items())}


def find_method(name: str) -> type[Method]:
    """The method class of that name, or the one that a `.py` file defines, which is executed.

    Raises:
        RecipeError: no such method (with the nearest names), or a file without exactly one method.
    """
    if name.endswith(".py"):
        return _from_source(Path(name), _source(Path(name)))
    found = _find(name)
    return getattr(importlib.import_module(found.module), found.class_name)


def config_of(name: str) -> type[MethodConfig]:
    """The `Config` of a method, or one just like it where a packaged method is not imported yet: that needs no torch.

    Raises:
        RecipeError: see `find_method`.
    """
    if name.endswith(".py"):
        return find_method(name).Config
    found = _find(name)
    return class_attribute(found.module, found.class_name, "Config")


def _find(name: str) -> _Packaged:
    if found := _packaged(f'"{name}"').get(name) or (packaged := _packaged()).get(name):
        return found
    near = difflib.get_close_matches(name, packaged, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(packaged))}"
    raise RecipeError(f"method.name: no method {name!r}; {hint}")


def _packaged(word: str = "name") -> dict[str, _Packaged]:
    """Methods by name; only files that have the word are read, since that takes a while."""
    found: dict[str, _Packaged] = {}
    for file in Path(__file__).parent.glob("*.py"):
        if word not in file.read_text(encoding="utf-8"):
            continue
        for each in parsed(file).body:
            if isinstance(each, ast.ClassDef) and (name := constant(each.body, "name")):
                if name in found:
                    raise TypeError(f"two methods are called {name}: {found[name].class_name} and {each.name}")
                description = (ast.get_docstring(each) or "").partition("\n")[0]
                found[name] = _Packaged(f"{__name__}.{file.stem}", each.name, description)
    return found


def _methods_of(module: ModuleType) -> list[type[Method]]:
    from lorica.methods.base import Method

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


@lru_cache
def _from_source(path: Path, source: bytes) -> type[Method]:
    """The method of a file with these contents; the same class whenever it is asked for."""
    name = f"lorica_user_method_{path.stem}_{hashlib.sha256(source).hexdigest()[:8]}"
    loader = Loader(source, path)
    try:
        loader.get_code(name)
    except (SyntaxError, ValueError) as error:  # also what is no text
        raise RecipeError(f"method.name: {path} is not a Python file: {error}") from error
    found = _methods_of(loader.load(name))
    if len(found) != 1:
        names = ", ".join(method.__name__ for method in found) or "none"
        raise RecipeError(f"method.name: {path} must define exactly one lorica.Method; it defines {names}")
    return found[0]
