"""Chooses the learning rate of each method on validation data, by the same rule for all of them.

    python benchmarks/tune.py omniglot --methods sd_lora,o_lora,inf_lora,cl_lora --jobs 2 data.root=… backbone.weights=…

A fifth of the training data is held out. Each method learns the first tasks of the stream at its own default rate times each
of the factors, with a seed that no table uses, and is scored by its average anytime accuracy on the held-out data; test data is
not looked at. While the best rate of a method is the lowest or the highest that it has tried, one a third or three times as
high is tried too, so that no method is held back by where its default lies. Then the best two rates go on to more tasks, since
what suits a short stream need not suit a long one, and the better one is chosen.
docs/results/RECIPE-tuning.json has what was tried, on what budget, and chosen; methods that are there from another call stay.
`results_table.py --tuned` takes the rates from it. Runs are resumable, in runs/RECIPE-tuning/.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from typing import Annotated

import typer
from plans import Plan, folder_name, of_method, run_all
from rich.console import Console
from rich.table import Table

from lorica.config import read_recipe
from lorica.files import write_json
from lorica.results import read_result

SEED = 1000
HELD_OUT = ["data.validation_fraction=0.2", "data.evaluate_on=validation"]
STEP = 3


def main(
    recipe: str,
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[key.sub=value]…")] = None,
    methods: Annotated[str, typer.Option(help="comma-separated, method or method:variant")] = "sd_lora",
    factors: Annotated[str, typer.Option(help="comma-separated, of each method's own default rate")] = "0.3,1,3",
    tasks: Annotated[int, typer.Option(help="tasks of the stream to learn")] = 4,
    final_tasks: Annotated[int, typer.Option(help="and with the best two rates")] = 8,
    jobs: Annotated[int, typer.Option(help="runs at a time, each on its share of the cores")] = 1,
    out: Annotated[Path, typer.Option(help="where the file goes")] = Path("docs/results"),
) -> None:
    """Choose a learning rate for each method."""

    def run(wanted: dict[str, list[float]], tasks: int) -> dict[str, dict[float, float]]:
        """The score of each method at each of the rates that are wanted of it."""
        plans = {
            (method, rate): Plan(
                recipe,
                [*of_method(method), f"seed={SEED}", *HELD_OUT, *(overrides or []), f"fit.learning_rate={rate}"],
                Path("runs") / f"{name}-tuning" / f"{folder_name(method)}-{rate:g}",
                tasks,
            )
            for method, rates in wanted.items()
            for rate in rates
        }
        run_all(list(plans.values()), jobs)
        return {method: {rate: _score(plans[method, rate]) for rate in rates} for method, rates in wanted.items()}

    name = Path(recipe).stem
    defaults = {method: _default_rate(recipe, method, overrides or []) for method in methods.split(",")}
    wanted = {
        method: [_rounded(float(factor) * rate) for factor in factors.split(",")] for method, rate in defaults.items()
    }
    scores: dict[str, dict[float, float]] = {method: {} for method in defaults}
    while any(wanted.values()):
        for method, tried in run(wanted, tasks).items():
            scores[method] |= tried
        wanted = {method: _beyond(tried) for method, tried in scores.items()}
    finals = run(
        {method: sorted(tried, key=lambda rate: -tried[rate])[:2] for method, tried in scores.items()}, final_tasks
    )
    budget = {"score": "aaa on held-out data", "held_out": 0.2, "seed": SEED} | {
        "factors": factors,
        "tasks": tasks,
        "final_tasks": final_tasks,
    }
    file = out / f"{name}-tuning.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    written = {key: known.get(key, {}) for key in ("budget", "scores", "final_scores", "chosen")}
    table = Table("method", f"AAA % after {tasks} tasks, by learning rate", f"after {final_tasks}", "chosen")
    for method in defaults:
        best = max(finals[method], key=lambda rate: finals[method][rate])
        for key, tried in (("scores", scores[method]), ("final_scores", finals[method])):
            written[key][method] = {f"{rate:g}": tried[rate] for rate in sorted(tried)}
        written["chosen"][method], written["budget"][method] = best, budget
        shown = (
            ", ".join(f"{r}: {100 * a:.1f}" for r, a in written[key][method].items())
            for key in ("scores", "final_scores")
        )
        table.add_row(method, *shown, f"{best:g}")
    out.mkdir(parents=True, exist_ok=True)
    write_json(file, written)
    Console().print(table)


def _default_rate(recipe: str, method: str, overrides: list[str]) -> float:
    return read_recipe(recipe, [*of_method(method), *overrides]).fit.learning_rate


def _rounded(rate: float) -> float:
    return float(f"{rate:.2g}")


def _score(plan: Plan) -> float:
    """AAA of the run; 0 where it failed, since a loss that is not finite is what too high a rate does."""
    if not (plan.folder / "metrics.json").exists():
        return 0.0
    run = read_result(plan.folder)
    means = [fmean(row) for row in run.accuracy[: plan.tasks]]
    return fmean(means) if len(means) == plan.tasks or run.complete else 0.0


def _beyond(tried: dict[float, float]) -> list[float]:
    """The next rate to try, where the best one is at an end of those tried."""
    best = max(tried, key=lambda rate: tried[rate])
    if not tried[best]:
        return []
    ends = {max(tried): _rounded(best * STEP), min(tried): _rounded(best / STEP)}
    return [ends[best]] if best in ends else []


if __name__ == "__main__":
    typer.run(main)
