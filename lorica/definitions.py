"""What modules of lorica define, taken from their text without executing all of it.

A method is one file, which imports torch, and that takes seconds. Its name, what it is, and what a recipe can tell it
need no torch: so that lists and errors in recipes do not wait for it, they are read here. A definition is executed
together with those that it mentions, in the order of the file, and with nothing else of the file; what it has from
other modules of lorica is taken in the same way, or as it is where that module is imported already.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib.abc import InspectLoader
from importlib.util import decode_source, module_from_spec, spec_from_loader
from pathlib import Path
from threading import Lock
from types import CodeType, MappingProxyType, ModuleType
from typing import Any

_ABOVE = Path(__file__).parent.parent
_one_at_a_time = Lock()


class Loader(InspectLoader):
    """Executes the very bytes of a file that it is given, or some of its statements; nothing is cached beside the
    file."""

    def __init__(self, source: bytes, path: Path, statements: Sequence[ast.stmt] | None = None) -> None:
        self._source, self._path, self._statements = source, path, statements

    def get_source(self, fullname: str) -> str:
        return decode_source(self._source)

    def get_code(self, fullname: str) -> CodeType:
        code = self._source if self._statements is None else ast.Module([*self._statements], type_ignores=[])
        return compile(code, str(self._path), "exec", dont_inherit=True)

    def load(self, name: str, given: Mapping[str, Any] = MappingProxyType({})) -> ModuleType:
        """The module, executed where these names are given; in `sys.modules`, where pydantic looks up the annotations
        of a model."""
        spec = spec_from_loader(name, self, origin=str(self._path))
        assert spec is not None  # there is a loader
        spec.has_location = True  # sets __file__
        module = sys.modules[name] = module_from_spec(spec)
        vars(module).update(given)
        self.exec_module(module)
        return module


@cache
def parsed(file: Path) -> ast.Module:
    """The statements of a Python file."""
    return ast.parse(file.read_bytes(), str(file))


def constant(statements: Sequence[ast.stmt], name: str) -> Any:
    """The text or number that one of these statements gives a name; None where none does."""
    for statement in statements:
        if isinstance(value := getattr(statement, "value", None), ast.Constant) and name in _defined(statement):
            return value.value
    return None


def literal(statements: Sequence[ast.stmt], name: str, default: Any = None) -> Any:
    """What is written out for a name in one of these statements, of texts, numbers and tuples; else the default."""
    for statement in statements:
        if name in _defined(statement) and (value := getattr(statement, "value", None)) is not None:
            return ast.literal_eval(value)
    return default


def defines(statements: Sequence[ast.stmt], name: str) -> bool:
    """Whether one of these statements gives something this name."""
    return any(name in _defined(statement) for statement in statements)


def class_attribute(module: str, class_name: str, name: str) -> Any:
    """An attribute of a class in a module of lorica's; the class has it itself, or from a base in lorica.

    Raises:
        AttributeError: neither.
    """
    module, class_name, statement = _definition(module, class_name)
    if class_name in _there(module):
        return getattr(_there(module)[class_name], name)
    if isinstance(statement, ast.ClassDef):
        for own in statement.body:
            if name in _defined(own):
                return _executed(module, own)[name]
        for base in statement.bases:
            with suppress(AttributeError):
                return class_attribute(module, ast.unparse(base), name)
    raise AttributeError(f"{class_name} of {module} has no {name}")


def _definition(module: str, name: str) -> tuple[str, str, ast.stmt]:
    """Where in lorica what a module calls by a name is from, what it is called there, and the statement that defines
    it."""
    for statement in parsed(_file(module)).body:
        if name in _defined(statement):
            if isinstance(statement, ast.ImportFrom) and _is_ours(statement):
                return _definition(str(statement.module), _defined(statement)[name])
            return module, name, statement
    raise AttributeError(f"{module} has no {name}")


def _there(module: str) -> dict[str, Any]:
    """What a module has that is imported already, or is being imported."""
    return vars(sys.modules[module]) if module in sys.modules else {}


def _part(module: str, name: str) -> Any:
    """What a module of lorica's calls by this name."""
    module, name, statement = _definition(module, name)
    return _there(module)[name] if name in _there(module) else _executed(module, statement)[name]


@cache
def _executed(module: str, statement: ast.stmt) -> dict[str, Any]:
    """What there is once a statement of a module, or of a class in it, is executed after all that it mentions."""
    file = _file(module)
    statements = parsed(file).body
    statements = statements if statement in statements else [*statements, statement]
    names, waiting = set[str](), [statement]
    while waiting:
        mentioned = _names(waiting.pop(), ast.Load) - names
        names |= mentioned
        waiting += [each for each in statements if mentioned & _defined(each).keys()]
    needed = [each for each in statements if each is statement or names & _defined(each).keys() or _is_future(each)]
    ours = [each for each in needed if isinstance(each, ast.ImportFrom) and _is_ours(each)]
    given = {
        name: _part(str(each.module), original)
        for each in ours
        for name, original in _defined(each).items()
        if name in names
    }
    loader = Loader(file.read_bytes(), file, [each for each in needed if each not in ours])
    with _one_at_a_time:  # another thread's would be found under the same name
        return vars(loader.load(f"{module}:{statement.lineno}", given))


def _file(module: str) -> Path:
    path = _ABOVE.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _defined(statement: ast.stmt) -> dict[str, str]:
    """The names that a statement defines; those that are imported, with what they are called where they come from."""
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return {alias.asname or alias.name.partition(".")[0]: alias.name for alias in statement.names}
    if isinstance(statement, ast.ClassDef | ast.FunctionDef):
        return {statement.name: statement.name}
    return {name: name for name in _names(statement, ast.Store)}


def _names(statement: ast.stmt, context: type[ast.expr_context]) -> set[str]:
    """The names that a statement reads, or writes."""
    return {node.id for node in ast.walk(statement) if isinstance(node, ast.Name) and isinstance(node.ctx, context)}


def _is_ours(statement: ast.ImportFrom) -> bool:
    return str(statement.module).partition(".")[0] == "lorica"


def _is_future(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.ImportFrom) and statement.module == "__future__"
