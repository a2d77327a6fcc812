"""One training watched by all read-outs gives what a run of each of them gives."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner

import lorica
from lorica.config import read_recipe

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.chdir(tmp_path)
    return importlib.import_module("readout_table")


@pytest.mark.parametrize("method", ["sd_lora", "lora", "joint"])
def test_each_matrix_is_that_of_a_run(method: str, script: Any, small_recipe: dict[str, Any]) -> None:
    given = [f"method.name={method}", "fit.epochs=2"]
    found = script.read_all(small_recipe, given)
    assert list(found) == [script.OWN, *script.READOUTS]
    for name in (script.OWN, "means", "ridge of 5 layers", "discriminant of 5 layers, affine drift"):
        kind, layers, drift = script.READOUTS.get(name, ("head", None, "none"))
        evaluate = {"readout": kind, **({} if kind == "head" else {"layers": layers, "drift": drift})}
        recipe = read_recipe({**small_recipe, "evaluate": evaluate}, given)
        assert found[name] == lorica.run(recipe, out=name).accuracy, name


def test_the_table_has_a_line_for_each_trunk(script: Any, small_recipe: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(small_recipe))
    (tmp_path / "before.json").write_text(json.dumps({"chosen": {"linear_probe": 0.5, "prototypes": 0.25}}))
    (tmp_path / "tuning.json").write_text(json.dumps({"chosen": {"linear_probe": 0.123}}))
    app = typer.Typer()
    app.command()(script.main)
    tuned = ["--tuned", "before.json", "--tuned", "tuning.json"]
    options = ["small.yaml", "--methods", "linear_probe,prototypes,cl_lora", "--seeds", "0,1", *tuned]
    done = CliRunner().invoke(app, options)
    assert done.exit_code == 0, done.output
    page = (tmp_path / "docs/results/small-readouts.md").read_text()
    assert page.startswith("# Small: trunks by their read-outs\n")
    cells = {line.split(" | ")[0]: line.split(" | ")[1:] for line in page.splitlines() if line.startswith("| ")}
    assert all("±" in cell for cell in cells["| linear_probe"])
    assert "–" in cells["| prototypes"][1]  # they are class means already
    assert cells["| cl_lora"][1:] == ["–"] * 6 + ["– |"]  # a space for each task
    written = json.loads((tmp_path / "runs/small-readouts/linear_probe-seed1.json").read_text())
    assert "fit.learning_rate=0.123" in written["given"]
    prototypes = json.loads((tmp_path / "runs/small-readouts/prototypes-seed0.json").read_text())
    assert "fit.learning_rate=0.25" in prototypes["given"]
    assert " --tuned before.json --tuned tuning.json" in page
    # what is done is not done again
    (tmp_path / "runs/small-readouts/linear_probe-seed1.json").write_text(
        json.dumps({**written, "matrices": {script.OWN: [[1.0], [1.0, 1.0], [1.0, 1.0, 1.0]]}})
    )
    assert CliRunner().invoke(app, options).exit_code == 0
    assert json.loads((tmp_path / "docs/results/small-readouts.json").read_text())["acc_aaa"]["linear_probe"][
        script.OWN
    ][1] == [1.0, 1.0]
