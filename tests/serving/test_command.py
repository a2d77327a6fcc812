"""`lorica serve`: what it says, whom it refuses, and how it ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from colour_model import ColourModel

import lorica
from lorica import cli
from lorica.serving import server

PROGRAM = """
import sys
import lorica
from colour_model import ColourModel
from lorica import cli
lorica.load = lambda folder, **_: ColourModel()
cli.main()
"""


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The servers that would have answered; a model of colours is in every folder."""
    servers: list[Any] = []
    monkeypatch.setattr(lorica, "load", lambda folder, **moved: ColourModel())
    monkeypatch.setattr(server, "run", lambda made, door: servers.append((made, door)))
    return servers


def serve(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["lorica", "serve", *map(str, arguments)])
    monkeypatch.setattr(cli, "console", cli.Screen(width=200))
    with pytest.raises(SystemExit) as leaving:
        cli.main()
    return int(leaving.value.code or 0)


def test_it_listens_on_this_machine_only_and_says_where(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], served: list[Any], tmp_path: Path
) -> None:
    assert serve(monkeypatch, tmp_path, "--port", 0, "--device", "cpu") == 0
    [(_, door)] = served
    said = capsys.readouterr()
    assert door.url.startswith("http://127.0.0.1:")
    assert f"Open {door.url} in a browser" in said.out
    assert said.err == ""
    assert door.socket.fileno() == -1  # it is closed


def test_another_host_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], served: list[Any], tmp_path: Path
) -> None:
    assert serve(monkeypatch, tmp_path, "--host", "0.0.0.0", "--port", 0) == 0
    assert "warning: other machines reach 0.0.0.0, and nobody is asked for a password" in capsys.readouterr().err


def test_a_folder_that_holds_no_such_model(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], served: list[Any], tmp_path: Path
) -> None:
    monkeypatch.setattr(lorica, "load", lambda folder, **_: object())
    assert serve(monkeypatch, tmp_path) == 2
    assert f"{tmp_path}: not a model that can be served" in capsys.readouterr().err
    assert served == []


def test_the_extra_that_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], served: list[Any], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert serve(monkeypatch, tmp_path) == 2
    assert "pip install 'lorica[serve]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong",
    [
        ("--max-images", 0),
        ("--max-megabytes", 0),
        ("--port", 70_000),
        ("--max-megabytes", "nan"),
        ("--max-megabytes", "inf"),
    ],
)
def test_limits_that_are_none(
    monkeypatch: pytest.MonkeyPatch, served: list[Any], tmp_path: Path, wrong: tuple[str, object]
) -> None:
    assert serve(monkeypatch, tmp_path, *wrong) == 2
    assert served == []


def test_importing_the_command_line_imports_no_server() -> None:
    program = (
        "import lorica.cli, sys; assert not {'fastapi', 'uvicorn', 'starlette', 'python_multipart'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.skipif(os.name != "posix", reason="Ctrl-C is sent otherwise there")
def test_ctrl_c_ends_it_in_peace(tmp_path: Path) -> None:
    known = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "serve", str(tmp_path / "birds"), "--port", "0"],
        env={**os.environ, "PYTHONPATH": known, "COLUMNS": "200", "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        assert process.stderr
        found = re.search(r"Open (http://\S+) in", process.stdout.readline())
        assert found
        with urllib.request.urlopen(f"{found[1]}/health", timeout=30) as answer:
            assert b'"title":"birds"' in answer.read()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0
        assert process.stderr.read() == ""
