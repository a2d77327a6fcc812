"""`lorica demo`, on data so small that it takes seconds."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from lorica import demo
from lorica.config import Recipe, read_recipe
from lorica.terminal import Screen


def test_demo_runs_every_method_and_shows_the_table(
    small_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def small(name: str, overrides: dict[str, Any]) -> Recipe:
        asked.append(read_recipe(name, overrides))  # what the demo really runs is valid
        return read_recipe(small_recipe, overrides | {"fit.epochs": 1})

    monkeypatch.setattr(demo, "read_recipe", small)
    results = demo.show(tmp_path / "demo", Screen(file=sys.stdout, width=200))
    assert [recipe.method.name for recipe in asked] == list(demo.METHODS)
    assert {recipe.data.source for recipe in asked} == {"digits"}
    assert [result.method for result in results] == list(demo.METHODS)
    printed = capsys.readouterr().out
    for result in results:
        assert result.path == tmp_path / "demo" / result.method
        assert f"{100 * result.acc:.1f}" in printed
    assert all(heading in printed for heading in ("new pair", "after all five", "average on the way", "lost"))
    assert "How to read it." in printed
    drawn = {file.suffix for file in (tmp_path / "demo" / "figures").iterdir()}
    assert drawn == {".pdf", ".png"}
