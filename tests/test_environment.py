"""What is recorded of the machine and the versions."""

from __future__ import annotations

import json
import platform
import subprocess
from pathlib import Path

import pytest

from lorica.environment import environment, noted_contents
from lorica.errors import LoricaError


def test_the_environment_outside_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    found = environment()
    assert found["git_revision"] is None
    assert found["lorica"] == "0.1.0"
    assert found["python"] == platform.python_version()
    assert found["cpu_count"] >= 1
    assert platform.node() not in json.dumps(found)


def test_the_environment_without_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    found = environment()
    assert found["git_revision"] is found["lorica_revision"] is None


def test_the_environment_in_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "core.hooksPath=/dev/null"]
        return subprocess.run(
            ["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout.strip()

    git("init", "--quiet")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "--quiet", "--message", "first")
    git("tag", "v1")
    monkeypatch.chdir(tmp_path)
    revision = git("rev-parse", "HEAD")
    assert environment()["git_revision"] == revision
    (tmp_path / "file").write_text("2")
    assert environment()["git_revision"] == f"{revision}-dirty"
    assert environment()["lorica_revision"] != f"{revision}-dirty"

    code = tmp_path / "site-packages" / "environment.py"
    code.parent.mkdir()
    code.write_text("")
    monkeypatch.setattr("lorica.environment.__file__", str(code))
    assert environment()["lorica_revision"] is None  # installed beneath a checkout of something else
    git("add", "--all")
    git("commit", "--quiet", "--message", "its own")
    assert environment()["lorica_revision"] == git("rev-parse", "HEAD")


@pytest.mark.parametrize(
    ("content", "noted"),
    [
        (
            {"data": {"contents": {"train": {"wren": [3, "5f"]}, "test": {}}}},
            {"train": {"wren": [3, "5f"]}, "test": {}},
        ),
        ({"data": {"name": "digits"}}, None),
        ({"python": "3.11"}, None),
        ({"data": None}, None),
    ],
)
def test_what_the_data_was(content: object, noted: object, tmp_path: Path) -> None:
    file = tmp_path / "environment.json"
    assert noted_contents(file) is None
    file.write_text(json.dumps(content))
    assert noted_contents(file) == noted


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ([], "the whole of it is [], expected an object"),
        ({"data": "digits"}, "data is 'digits', expected an object"),
        ({"data": {"contents": [1]}}, "data.contents is [1], expected an object"),
        ({"data": {"contents": {"train": {"wren": 3}}}}, "data.contents.train.wren is 3, expected a valid list"),
        ({"data": {"contents": {"train": {"wren": ["5f", 3]}}}},
         "data.contents.train.wren is ['5f', 3], expected a number of"),
        ({"data": {"contents": {"train": {"wren": [3]}}}},
         "data.contents.train.wren is [3], expected a number of samples"),
        ({"cpu_count": float("nan")}, "cpu_count is nan, expected finite numbers"),
    ],
)  # fmt: skip
def test_an_environment_that_is_none(content: object, problem: str, tmp_path: Path) -> None:
    file = tmp_path / "environment.json"
    file.write_text(json.dumps(content))
    with pytest.raises(LoricaError) as caught:
        noted_contents(file)
    assert caught.value.problems[0].startswith(f"{file}: {problem}")
