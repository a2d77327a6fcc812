"""The reading that is RoLDA's own has the accuracy of a run."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner

import lorica

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_readings_of_one_training(
    monkeypatch: pytest.MonkeyPatch, small_recipe: dict[str, Any], tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.chdir(tmp_path)
    script = importlib.import_module("rolda_reading")
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(small_recipe))
    app = typer.Typer()
    app.command()(script.main)
    given = ["method.enough=1", "fit.learning_rate=0.01"]
    done = CliRunner().invoke(app, ["small.yaml", "--passes", "1,2", *given])
    assert done.exit_code == 0, done.output
    page = (tmp_path / "docs/results/small-rolda-reading.md").read_text()
    assert page.startswith("# Small: RoLDA read in several ways\n")
    cells = {line.split(" | ")[0][2:]: line.split(" | ")[1:] for line in page.splitlines() if line.startswith("| ")}
    assert set(cells) == {"reading", *script.READINGS}
    for name, options in (("as it is", {}), ("layers 1", {"layers": 1}), ("shrinkage 0.4", {"shrinkage": 0.4})):
        recipe = {**small_recipe, "method": {"name": "rolda", "passes": 2, "enough": 1, **options}}
        held_out = {"data.validation_fraction": 0.2, "data.evaluate_on": "validation", "fit.learning_rate": 0.01}
        result = lorica.run(recipe, out=tmp_path / name, seed=1000, **held_out)
        assert cells[name][1] == f"{100 * result.acc:.1f} |"
