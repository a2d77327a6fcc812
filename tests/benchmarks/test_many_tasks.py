"""The benchmark of long streams at a scale that says nothing about cost: what it looks at, and what it reports."""

import importlib
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import lorica

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_a_row_for_each_number_of_tasks(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    many_tasks = importlib.import_module("many_tasks")
    app = many_tasks.typer.Typer()
    app.command()(many_tasks.main)
    arguments = ["--methods", "prototypes,sd_lora", "--tasks", "4", "--at", "2,3,4,1000", "--out", str(tmp_path)]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert "tensors" in result.output
    assert "…" not in result.output  # no heading is cut
    for method in ("prototypes", "sd_lora"):
        rows = json.loads((tmp_path / f"many-tasks-{method}.json").read_text())["rows"]
        assert [row["tasks"] for row in rows] == [2, 3, 4]
        assert all(row[key] > 0 for row in rows for key in ("learn", "test", "save", "memory", "journal", "results"))
    second, third, fourth = (row["tensors"] for row in rows)
    assert third - second == pytest.approx(fourth - third, rel=0.01)  # linear: as much is added with each task
    assert rows[2]["history"] > rows[0]["history"] > 0
    assert rows[2]["journal"] > rows[0]["journal"]


def test_the_classes_can_be_told_apart(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    source = importlib.import_module("many_tasks").synthetic(6)
    recipe = {"method": "prototypes", "stream.classes_per_task": 2, "stream.seed": None}
    assert lorica.run(recipe, out=tmp_path / "run", source=source, progress=False).acc > 0.5  # chance is a sixth
