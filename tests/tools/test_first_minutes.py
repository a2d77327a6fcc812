"""What the stopwatch of tools/first_minutes.py shows of a command."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def stopwatch() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "first_minutes", Path(__file__).parents[2] / "tools" / "first_minutes.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pip_is_counted_and_not_shown(stopwatch: ModuleType, tmp_path: Path) -> None:
    said = r"printf 'Setting up .venv\nLooking in an index\nDone\n.venv/bin/lorica demo\nrolda 98  \n'"
    lines = stopwatch.run(said, tmp_path)
    assert lines == ["Setting up .venv", "… 2 lines of pip", ".venv/bin/lorica demo", "rolda 98"]
    assert stopwatch.run("echo one; echo two >&2", tmp_path) == ["one", "two"]


def test_a_command_that_fails_ends_it(stopwatch: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no such"):
        stopwatch.run("echo no such thing; exit 3", tmp_path)


def test_commands_bear_their_time(stopwatch: ModuleType) -> None:
    assert stopwatch.stamped(65.4, "lorica list", ["a"]) == "[1:05] $ lorica list\na\n"
    assert stopwatch.clock(59.6) == "1:00"
