"""The commands of docs/models.md, as they are printed there, on small images and the embedded backbone."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lorica import cli
from lorica.commands import models
from lorica.terminal import Screen
from tests.test_cli import Lorica

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
SMALL = ["backbone.name=lorica_tiny", "fit.epochs=1", "method.passes=1", "method.rank=2", "fit.augment=none"]
KINDS = {
    "may": ("wren", "kite"),
    "june": ("crow", "kite"),
    "july": ("heron",),
    "august": ("finch",),
    "september": ("owl",),
}
MARKS = ("wren", "kite", "crow", "heron", "finch", "owl")


@pytest.fixture
def lorica(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Lorica:
    monkeypatch.setenv("COLUMNS", "200")
    for module in (cli, models):  # one that was made before keeps the width that it found
        monkeypatch.setattr(module, "console", Screen())
    return Lorica(monkeypatch, capsys)


def draw(kind: str, generator: np.random.Generator) -> Image.Image:
    """A bright bar whose place is the class's, on noise."""
    pixels = generator.integers(0, 60, (32, 32, 3), dtype=np.uint8)
    place = 5 * MARKS.index(kind)
    pixels[place : place + 5] = 220
    return Image.fromarray(pixels)


def without_numbers(text: str) -> str:
    """What a command says on any machine, however it is broken into lines."""
    return " ".join(re.sub(r"\d[\d.e-]*", "N", text).split())


@pytest.mark.parametrize("exports", [False, pytest.param(True, marks=pytest.mark.slow)])  # which takes most of the time
def test_the_page(exports: bool, lorica: Lorica, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    folders = KINDS | {"test": ("wren", "kite", "crow")}
    for folder, kinds in folders.items():
        for kind in kinds:
            (tmp_path / folder / kind).mkdir(parents=True)
            for number in range(30):
                draw(kind, generator).save(tmp_path / folder / kind / f"{folder}-{number:03}.png")
    (tmp_path / "unsorted").mkdir()
    for kind, name in (("wren", "a"), ("crow", "b"), ("owl", "c")):
        draw(kind, generator).save(tmp_path / "unsorted" / f"{name}.png")
    (tmp_path / "who.jpg").write_bytes((tmp_path / "test" / "kite" / "test-000.png").read_bytes())

    blocks = re.findall(r"^```\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    commands = [line for block in blocks for line in block.splitlines()]
    assert len(commands) >= 13
    known: list[str] = []
    said = ""
    for command in commands:
        if "onnx" in command and not exports:
            continue
        program, *arguments = shlex.split(command)
        if program == "cp":
            shutil.copytree(tmp_path / arguments[-2], tmp_path / arguments[-1])
            continue
        assert program == "lorica"
        if arguments[0] == "learn" and arguments[1] not in known and not (tmp_path / arguments[1]).exists():
            known.append(arguments[1])
            arguments = [each for each in arguments if not each.startswith("backbone.name")] + SMALL
        if command == "lorica evaluate birds --data test --figures figures":
            assert lorica("rollback", "birds", "--to", "2")[0] == 0  # the page has gone back to version 1
        code, out, err = lorica(*arguments)
        assert code == 0, (command, out, err)
        said += f"{out}\n{err}\n"
    shown = re.findall(r"^    (?![ ┏┡└]|\w+=)(.*)$", PAGE.read_text(), re.MULTILINE)
    assert len(shown) > 18
    plain = without_numbers(said)
    expected = [line for line in shown if exports or ("onnx" not in line and "Loaded back" not in line)]
    assert [line for line in expected if without_numbers(line) not in plain] == []
    assert (tmp_path / "figures" / "confusion.png").exists()
    assert bool(list(tmp_path.rglob("model.onnx"))) == exports
    code, out, _ = lorica("history", "birds")
    assert "joined finch" in out
    python = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert python
    there: dict[str, object] = {}
    exec(python[1], there)
    [answer] = there["answers"]  # type: ignore[misc]
    assert answer.class_name == "kite"
