"""What is recorded of the machine and the versions."""

from __future__ import annotations

import json
import platform
import subprocess
from pathlib import Path

import pytest

from lorica.environment import environment


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
    assert environment()["git_revision"] is None


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
