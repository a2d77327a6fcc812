"""The data path's benchmark at a scale that says nothing about time: what it passes over, and that it learns on what
comes."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_epochs_and_steps_take_turns(
    small_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module("data_path")
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(small_recipe))
    epochs, taken = [], []
    batches, take = module.Split.batches, module.Descent.take
    monkeypatch.setattr(
        module.Split,
        "batches",
        lambda split, *given, **named: (
            epochs.append((id(split), named["draws"].epoch)),
            batches(split, *given, **named),
        )[1],
    )
    monkeypatch.setattr(module.Descent, "take", lambda descent, batch: (taken.append(id(batch)), take(descent, batch)))
    app = typer.Typer()
    app.command()(module.main)
    done = CliRunner().invoke(app, [str(tmp_path / "small.yaml"), "fit.batch_size=8", "--rounds", "2", "--steps", "1"])
    assert done.exit_code == 0, done.output
    assert [epoch for _, epoch in epochs] == [
        0,
        1,
        0,
        1,
        0,
        0,
        0,
        1,
        2,
    ]  # alone, alone; to fill a cache, to warm up, two rounds
    assert epochs[0][0] == epochs[1][0] != epochs[2][0] == epochs[3][0]
    assert (
        len(taken) == 3 * 3
    )  # in each round one on the batch that is there, one to be within an epoch, one that is timed
    assert taken[0] == taken[3] == taken[6]
    assert "│ 24 " in done.output
    assert "│ 3.1 " in done.output  # 32 x 32 x 3 bytes
