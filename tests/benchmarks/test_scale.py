"""The benchmark of what grows, at a scale that says nothing about cost: what it looks at, and what it reports."""

import importlib
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import lorica

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def scale(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("scale")


def test_a_row_for_each_point_of_each_axis(scale, tmp_path, monkeypatch):
    monkeypatch.setattr(scale, "AXES", {"tasks": (2, 4), "classes": (10, 20), "images": (20, 40, 80)})
    monkeypatch.setattr(scale, "TESTED_EVERY", 2)
    monkeypatch.setattr(scale, "in_a_process", lambda measure, *given: measure(*given))
    app = scale.typer.Typer()
    app.command()(scale.main)
    arguments = ["--methods", "prototypes", "--largest", "40", "--out", str(tmp_path)]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    found = json.loads((tmp_path / "scale.json").read_text())
    for axis, points in (("tasks", [2, 4]), ("classes", [10, 20]), ("images", [20, 40])):
        rows = found[axis]["prototypes"]
        assert [row[axis] for row in rows] == points
        assert all(row[key] > 0 for row in rows for key in ("learn", "test", "save", "memory", "disk"))
        assert axis == "images" or rows[-1]["disk"] > rows[0]["disk"]
    again = CliRunner().invoke(app, ["--draw", "--out", str(tmp_path)], catch_exceptions=False)
    assert [line for line in again.output.splitlines() if line.startswith("| 40 images, prototypes")]
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".pdf", ".png"}


def test_a_method_looks_the_same_on_every_axis(scale):
    point = {"learn": 1.0, "test": 1.0, "save": 1.0, "memory": 1e6, "disk": 1e6}
    found = {
        "tasks": {"sd_lora": [point | {"tasks": 2}], "ran_pac": [point | {"tasks": 2}]},
        "images": {"ran_pac": [point | {"images": 2}], "rolda": [point | {"images": 2}]},
    }
    figure = scale.drawn(found)
    styles: dict[str, set[tuple[str, str]]] = {}
    for line in [each for axes in figure.axes for each in axes.lines] + list(figure.legends[0].get_lines()):
        styles.setdefault(line.get_label(), set()).add((line.get_color(), line.get_linestyle()))
    assert styles.keys() == {"ran_pac", "rolda", "sd_lora"}
    assert all(len(each) == 1 for each in styles.values())
    assert len(set.union(*styles.values())) == 3


def test_the_exponent_is_the_slope_at_the_end(scale):
    rows = [{"tasks": n, "learn": seconds} for n, seconds in ((1, 7.0), (10, 2.0), (100, 200.0))]
    assert scale.exponent(rows, "tasks", "learn") == pytest.approx(2)


def test_the_classes_can_be_told_apart(scale, tmp_path):
    recipe = {"method": "prototypes", "stream.classes_per_task": 2, "stream.seed": None}
    found = lorica.run(recipe, out=tmp_path / "run", source=scale.synthetic(6, 8, 1), progress=False)
    assert found.acc > 0.5  # chance is a sixth
