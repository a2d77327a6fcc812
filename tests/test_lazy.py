"""Names of packages that are imported when they are used."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import lorica
from lorica import lazy


@pytest.fixture
def invented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a package in which `walk` is a function, and the submodule that it is in."""
    folder = tmp_path / "invented"
    folder.mkdir()
    (folder / "__init__.py").write_text(
        "from lorica.lazy import lazily\nlazily(__name__, {'invented.walk': ['walk'], 'invented.other': ['found']})\n"
    )
    (folder / "walk.py").write_text("def walk(): return 'walked'\nsteps = 3\n")
    (folder / "other.py").write_text("from invented.walk import walk\nfound = walk()\n")
    (folder / "more.py").write_text("number = 7\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "invented"
    for name in [name for name in sys.modules if name.partition(".")[0] == "invented"]:
        del sys.modules[name]


@pytest.mark.parametrize("first", ["invented.walk", "invented.other", "invented.more", "invented"])
def test_a_name_is_the_same_whatever_is_imported_first(invented: str, first: str) -> None:
    importlib.import_module(first)
    package = sys.modules[invented]
    assert package.walk() == "walked"
    assert package.found == "walked"
    importlib.import_module("invented.walk")
    assert package.walk() == "walked"
    assert importlib.import_module("invented.walk").steps == 3


def test_nothing_is_imported_before_it_is_used(invented: str) -> None:
    package = importlib.import_module(invented)
    assert {"walk", "found"} <= set(dir(package))
    assert not {"invented.walk", "invented.other"} & set(sys.modules)
    assert package.walk is package.walk
    assert "invented.other" not in sys.modules


def test_submodules_are_there_without_an_import(invented: str) -> None:
    assert importlib.import_module(invented).more.number == 7


@pytest.mark.parametrize("name", ["wlak", "__wrapped__", "_private"])
def test_a_wrong_name(invented: str, name: str) -> None:
    package = importlib.import_module(invented)
    with pytest.raises(AttributeError, match=f"^module 'invented' has no attribute '{name}'$"):
        getattr(package, name)
    assert not hasattr(package, name)
    with pytest.raises(ImportError, match=f"cannot import name '{name}' from 'invented'"):
        exec(f"from invented import {name}")


@pytest.mark.parametrize("package", ["lorica", "lorica.data", "lorica.data.sources", "lorica.methods"])
def test_type_checkers_see_the_names_that_there_are(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The imports under TYPE_CHECKING, what is imported when it is used, and `__all__`."""
    module = importlib.import_module(package)
    given: list[tuple[str, dict[str, list[str]]]] = []
    monkeypatch.setattr(lazy, "lazily", lambda name, names: given.append((name, names)))
    text = Path(str(module.__file__)).read_text()
    again = ModuleType(package)
    again.__dict__.update(__file__=module.__file__, __path__=module.__path__)
    exec(compile(text, str(module.__file__), "exec"), again.__dict__)
    [(name, names)] = given
    assert name == package
    [checked] = [node for node in ast.parse(text).body if isinstance(node, ast.If)]
    seen = {
        node.module: [alias.name for alias in node.names] for node in checked.body if isinstance(node, ast.ImportFrom)
    }
    assert {home: those for home, those in seen.items() if set(those) <= set(module.__all__)} == names
    lazily = {each for those in names.values() for each in those}
    assert all(each in lazily or each in vars(again) for each in module.__all__)
    assert lazily <= set(module.__all__)
    assert all(getattr(module, each) is not None for each in module.__all__)


def test_importing_lorica_imports_nothing_else() -> None:
    """And whatever is imported then, `lorica.run` runs."""
    program = (
        "import sys; before = set(sys.modules)\n"
        "import lorica\n"
        "new = set(sys.modules) - before\n"
        "assert {name for name in new if name.startswith('lorica')} == {'lorica', 'lorica.lazy'}, new\n"
        "foreign = {name.partition('.')[0] for name in new} - sys.stdlib_module_names - {'lorica'}\n"
        "assert not foreign, foreign\n"
        "assert set(lorica.__all__) <= set(dir(lorica)) and 'lorica.run' not in sys.modules\n"
        "import lorica.run\n"
        "from lorica import run\n"
        "from lorica.run import check, default_folder\n"
        "assert lorica.run is run is sys.modules['lorica.run'].run and lorica.check is check\n"
        "assert lorica.run.__module__ == 'lorica.run' and callable(lorica.run) and lorica.merging.RULES\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_lorica_has_no_other_names() -> None:
    with pytest.raises(AttributeError, match="module 'lorica' has no attribute 'Lerner'"):
        _ = lorica.Lerner  # type: ignore[attr-defined]
