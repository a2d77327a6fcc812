"""The picture of the floors has the names of the contract, floor by floor."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
PICTURE = ROOT / "docs" / "figures" / "layers.svg"


def test_the_picture_has_the_floors_of_the_contract() -> None:
    layers = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]["layers"]
    drawn = re.findall(r'y="([\d.]+)" text-anchor="middle"[^>]*>([^<]+)</text>', PICTURE.read_text())
    floors: dict[float, list[str]] = {}
    for height, name in drawn:
        floors.setdefault(float(height), []).append(name)
    assert [floors[height] for height in sorted(floors)] == [re.split(r" *\| *", layer) for layer in layers]


def test_the_picture_is_the_one_that_is_drawn() -> None:
    spec = importlib.util.spec_from_file_location("draw_layers", ROOT / "tools" / "draw_layers.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.drawn() == PICTURE.read_text()
