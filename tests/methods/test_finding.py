"""Packaged methods are found in the text of their files."""

from __future__ import annotations

from pathlib import Path

import pytest

from lorica import methods
from lorica.errors import RecipeError
from lorica.methods import Method, find_method, method_descriptions, method_names


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In place of the packaged methods; nothing of what is in it can be executed."""
    monkeypatch.setattr(methods, "__file__", str(tmp_path / "__init__.py"))
    (tmp_path / "one.py").write_text(
        "import nowhere\n"
        "class Config(nowhere.Model):\n    name: str = nowhere.Field('one')\n"
        "class One(nowhere.Method):\n    '''The first.\n\n    At length.'''\n    name = 'one'\n"
        "class Base(nowhere.Method):\n    '''No method: has no name.'''\n"
    )
    (tmp_path / "more.py").write_text('class Two(Base):\n    """The second."""\n\n    name: ClassVar[str] = "two"\n')
    return tmp_path


def test_adding_a_file_adds_its_methods(folder: Path) -> None:
    assert method_names() == ["one", "two"]
    assert method_descriptions() == {"one": "The first.", "two": "The second."}
    with pytest.raises(RecipeError, match=r"^method\.name: no method 'tow'; did you mean two\?$"):
        find_method("tow")
    with pytest.raises(RecipeError, match=r"^method\.name: no method 'xyz'; there are one, two$"):
        find_method("xyz")
    with pytest.raises(
        ModuleNotFoundError, match=r"lorica\.methods\.one"
    ):  # found, and imported from where it would be
        find_method("one")


def test_two_methods_of_one_name(folder: Path) -> None:
    (folder / "again.py").write_text("class Again(Method):\n    name = 'two'\n")
    with pytest.raises(TypeError, match=r"two methods are called two: (Two and Again|Again and Two)"):
        method_names()


def test_every_packaged_method_is_one() -> None:
    for name in method_names():
        assert issubclass(find_method(name), Method)
        assert find_method(name).name == name
    assert {method.name for method in _subclasses(Method) if "name" in vars(method) and _is_packaged(method)} == set(
        method_names()
    )


def _subclasses(of: type[Method]) -> set[type[Method]]:
    below = set(of.__subclasses__())
    return below | {each for one in below for each in _subclasses(one)}


def _is_packaged(method: type[Method]) -> bool:
    return method.__module__.startswith("lorica.methods.")
