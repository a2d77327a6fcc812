"""Every example runs offline and says what it promises; the notebook's cells run one after another."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import lorica

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch):
    """An example as a module; examples may import one another."""

    def load(name: str) -> ModuleType:
        monkeypatch.syspath_prepend(str(EXAMPLES))
        monkeypatch.delitem(sys.modules, "own_images", raising=False)
        spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
        assert spec
        assert spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.mark.parametrize("methods", [("prototypes",), pytest.param(None, marks=pytest.mark.slow)])
def test_compare_methods(
    methods: tuple[str, ...] | None, example, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = example("compare_methods")
    module.METHODS = methods or module.METHODS
    module.main(tmp_path)
    out = capsys.readouterr().out
    assert all(f"| {name} | 2 |" in out for name in module.METHODS)


def test_own_images_and_serving(example, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example("serve").main(tmp_path)
    out = capsys.readouterr().out
    assert all(f"a {kind}: {kind}, probability" in out for kind in ("ring", "box", "stroke"))
    assert "'class': 'ring'" in out


def test_own_method(six_classes: lorica.Source, tmp_path: Path) -> None:
    result = lorica.run(
        "digits",
        method={"name": str(EXAMPLES / "my_method.py")},
        source=six_classes,
        out=tmp_path / "run",
        progress=False,
        fit={"epochs": 2, "batch_size": 8},
        stream={"tasks": 3},
    )
    assert len(result.accuracy) == 3
    assert result.acc > 1 / 3


def test_the_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cells = json.loads((EXAMPLES / "tour.ipynb").read_text())["cells"]
    assert all(not cell["outputs"] for cell in cells if cell["cell_type"] == "code")
    there: dict[str, Any] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), there)
    assert there["result"].complete
    assert (tmp_path / "runs" / "tour" / "curve.png").exists()


@pytest.mark.parametrize("own", [False, True])
def test_text(own: bool, example, tiny_text_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example("text").main(tmp_path, tiny_text_folder if own else None)
    out = capsys.readouterr().out
    assert "of twenty intents, " in out
    assert "please put the meeting off until friday" in out
    assert own or "'move_appointment'" in out


def test_the_page_of_examples_names_all() -> None:
    page = (EXAMPLES.parent / "docs" / "examples.md").read_text()
    files = [
        each for each in EXAMPLES.rglob("*") if each.is_file() and each.suffix in (".py", ".ipynb", ".sh", ".yaml")
    ]
    assert len(files) >= 14
    assert [each.name for each in files if f"examples/{each.relative_to(EXAMPLES).as_posix()})" not in page] == []
