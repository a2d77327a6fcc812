"""The training-time benchmark at a scale that says nothing about time: who learns what, and what is written."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_methods_take_turns(small_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(small_recipe))
    module = importlib.import_module("training_time")
    learned, own, file = [], module.learn_task, tmp_path / "results" / "small-time.json"
    monkeypatch.setattr(
        module,
        "learn_task",
        lambda method, task, *rest, **named: (
            learned.append((method.name, task.index, file.exists())),
            own(method, task, *rest, **named),
        ),
    )
    app = typer.Typer()
    app.command()(module.main)
    options = ["small.yaml", "--methods", "prototypes,joint,sd_lora", "--tasks", "2", "--out", "results"]
    done = CliRunner().invoke(app, options)
    assert done.exit_code == 0, done.output
    assert learned == [
        ("sd_lora", 0, False), ("prototypes", 0, False), ("sd_lora", 1, True), ("prototypes", 1, True)
    ]  # fmt: skip
    written = json.loads(file.read_text())
    assert written["tasks"] == 2
    seconds = written["seconds"]
    assert {name: len(taken) for name, taken in seconds.items()} == {"sd_lora": 2, "prototypes": 2}
    assert written["totals"]["sd_lora"] == 1
    assert written["totals"]["prototypes"] == pytest.approx(sum(seconds["prototypes"]) / sum(seconds["sd_lora"]))
