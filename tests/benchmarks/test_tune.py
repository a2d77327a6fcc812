"""Tuning and the table that takes its rates, on a tiny stream; the runs themselves are made in this process."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner

import lorica
from lorica.config import read_recipe
from lorica.methods import method_names
from lorica.report import figures
from lorica.results import read_result

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run_here(plans: Sequence[Any], jobs: int) -> None:
    for plan in plans:
        recipe = read_recipe(plan.recipe, list(plan.overrides))
        lorica.run(recipe, out=plan.folder, stop_after=plan.tasks, resume=True, progress=False)


@pytest.fixture
def benchmark(small_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Calls one of the two scripts on the recipe small.yaml, in a folder of its own."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(small_recipe))

    def call(script: str, *arguments: str) -> None:
        module = importlib.import_module(script)
        monkeypatch.setattr(module, "run_all", run_here)
        app = typer.Typer()
        app.command()(module.main)
        done = CliRunner().invoke(app, ["small.yaml", *arguments])
        assert done.exit_code == 0, done.output

    return call


def test_rates_are_chosen_on_held_out_data_and_used_by_the_table(
    benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--methods", "linear_probe", "--factors", "0.001,1", "--tasks", "2", "--out", "results"]
    benchmark("tune", *options)
    tuned = json.loads((tmp_path / "results" / "small-tuning.json").read_text())
    tried = tuned["scores"]["linear_probe"]
    assert {"1e-05", "0.01"} < set(tried)  # the recipe's rate is 0.01
    finals = tuned["final_scores"]["linear_probe"]
    assert set(finals) == set(sorted(tried, key=tried.get)[-2:])
    assert tuned["chosen"] == {"linear_probe": float(max(finals, key=finals.get))}
    assert tuned["budget"]["linear_probe"] == {
        "score": "aaa on held-out data", "held_out": 0.2, "seed": 1000, "factors": "0.001,1", "tasks": 2, "final_tasks": 8
    }  # fmt: skip
    rates = sorted(map(float, tried))
    assert rates[0] < float(max(tried, key=tried.get)) < rates[-1]  # the search has gone on past the ends
    assert all(b / a == pytest.approx(3, rel=0.1) for a, b in pairwise(rates) if b > 0.011)
    for rate in tried:
        run = read_result(tmp_path / "runs" / "small-tuning" / f"linear_probe-{rate}")
        assert run.recipe["data"]["evaluate_on"] == "validation"
        assert run.seed not in (0, 1, 2)
        assert len(run.accuracy) == (3 if rate in finals else 2)
        assert tried[rate] == pytest.approx(fmean(map(fmean, run.accuracy[:2])))
        assert rate not in finals or finals[rate] == pytest.approx(run.aaa)

    tuned["chosen"]["linear_probe"] = 0.123
    (tmp_path / "results" / "small-tuning.json").write_text(json.dumps(tuned))
    table = ["--methods", "linear_probe,prototypes", "--seeds", "0", "--out", "results"]
    times = {"recipe": "small", "tasks": 3, "totals": {"sd_lora": 1.0, "linear_probe": 0.456}}
    (tmp_path / "time.json").write_text(json.dumps(times))
    benchmark("results_table", *table, "--tuned", "results/small-tuning.json", "--times", "time.json")
    rates = [
        read_result(tmp_path / "runs" / "small-tuned" / name).recipe["fit"]["learning_rate"]
        for name in ("linear_probe", "prototypes")
    ]
    assert rates == [0.123, 0.01]
    page = (tmp_path / "results" / "small-tuned.md").read_text()
    assert "| linear_probe | 1 |" in page
    assert "--tuned results/small-tuning.json --times time.json" in page
    cells = {line.split(" | ")[0]: line.split(" | ")[-1] for line in page.splitlines() if line.startswith("| ")}
    assert cells == {"| Method": "Time |", "| ---": "---: |", "| linear_probe": "0.46 |", "| prototypes": "– |"}
    assert "Time: of learning all tasks, relative" in page
    (tmp_path / "time.json").write_text(json.dumps(times | {"tasks": 2}))
    benchmark("results_table", *table, "--times", "time.json", "--table-only", "--tuned", "results/small-tuning.json")
    assert "Time: of learning the first 2 tasks," in (tmp_path / "results" / "small-tuned.md").read_text()
    (tmp_path / "time.json").write_text(json.dumps(times | {"recipe": "other"}))
    with pytest.raises(AssertionError, match="has the times of other, not of small"):
        benchmark("results_table", *table, "--times", "time.json")

    in_figures: list[str] = []
    draw = figures.accuracy_curves
    monkeypatch.setattr(
        figures, "accuracy_curves", lambda runs: in_figures.extend(run.label for run in runs) or draw(runs)
    )
    benchmark("results_table", *table, "--tuned", "results/small-tuning.json", "--drawn", "prototypes")
    assert in_figures == ["prototypes"]
    redrawn = (tmp_path / "results" / "small-tuned.md").read_text()
    assert "| linear_probe | 1 |" in redrawn
    assert "--drawn prototypes" in redrawn


def test_the_table_is_of_every_method(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    rows = {name.partition(":")[0] for name in importlib.import_module("results_table").METHODS}
    assert rows == set(method_names()) - {"lora_fixed", "lora_frozen", "lora_single"}  # ablations of SD-LoRA
