"""The README is short, and its commands and its Python do what they say, on small images and the embedded backbone."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.test_cli import Lorica
from tests.test_models_page import SMALL, draw

README = Path(__file__).parents[1] / "README.md"
WORDS = 900


@pytest.fixture
def lorica(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Lorica:
    monkeypatch.setenv("COLUMNS", "200")
    return Lorica(monkeypatch, capsys)


def test_it_can_be_read_at_a_sitting() -> None:
    assert len(README.read_text().split()) <= WORDS


@pytest.mark.parametrize("exports", [False, pytest.param(True, marks=pytest.mark.slow)])  # which takes most of the time
def test_its_commands(exports: bool, lorica: Lorica, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    for folder, kinds in {
        "FOLDER": ("wren", "kite", "crow", "owl"),
        "may": ("wren", "kite"),
        "june": ("crow",),
    }.items():
        for kind in kinds:
            (tmp_path / folder / kind).mkdir(parents=True)
            for number in range(30):
                draw(kind, generator).save(tmp_path / folder / kind / f"{folder}-{number}.png")
    (tmp_path / "unsorted").mkdir()
    draw("wren", generator).save(tmp_path / "unsorted" / "a.png")
    blocks = re.findall(r"^```\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE)
    commands = [line for block in blocks for line in block.splitlines() if line.startswith(".venv/bin/lorica")]
    assert len(commands) >= 6
    for command in commands:
        arguments = shlex.split(command, comments=True)[1:]
        if arguments[0] == "export" and not exports:
            continue
        if arguments[0] in ("run", "demo") or arguments[:4] == ["learn", "birds", "--data", "may"]:
            arguments += SMALL + (["stream.tasks=2"] if arguments[0] == "run" else [])
        code, out, error = lorica(*arguments)
        assert code == 0, (command, out, error)
    assert (tmp_path / "runs" / "own_images" / "rolda" / "metrics.json").exists()


def test_its_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import lorica

    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (32, 32)).save("unknown.png")
    block = re.search(r"```python\n(import lorica\n.*?)```", README.read_text(), re.DOTALL)
    assert block
    quick = {"fit": {"epochs": 1}, "progress": False, "stream": {"tasks": 2}}
    learn = lorica.run
    monkeypatch.setattr(lorica, "run", lambda *given, **keys: learn(*given, **keys, **quick))
    there: dict[str, object] = {}
    exec(block[1], there)
    assert there["names"]
    assert there["model"].__class__.__module__.startswith("timm")
