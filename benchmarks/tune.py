"""Chooses the learning rate of each method on validation data, with the same budget for all of them.

    python benchmarks/tune.py omniglot --methods sd_lora,o_lora,inf_lora,cl_lora --jobs 2 data.root=… backbone.weights=…

A fifth of the training data is held out. Each method learns the first tasks of the stream at its own default rate times each
of the factors, with a seed that no table uses, and the rate of the best average anytime accuracy on the held-out data
is chosen; test data is not looked at. docs/results/RECIPE-tuning.json has what was tried and chosen, and
`results_table.py --tuned` takes the rates from there. Runs are resumable, in runs/RECIPE-tuning/.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from plans import Plan, folder_name, of_method, run_all
from rich.console import Console
from rich.table import Table

from lorica.config import read_recipe
from lorica.results import RunFolder, write_json

SEED = 1000
HELD_OUT = ["data.validation_fraction=0.2", "data.evaluate_on=validation"]


def main(
    recipe: str,
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[key.sub=value]…")] = None,
    methods: Annotated[str, typer.Option(help="comma-separated, method or method:variant")] = "sd_lora",
    factors: Annotated[str, typer.Option(help="comma-separated, of each method's own default rate")] = "0.1,0.3,1,3",
    tasks: Annotated[int, typer.Option(help="tasks of the stream to learn")] = 4,
    jobs: Annotated[int, typer.Option(help="runs at a time, each on its share of the cores")] = 1,
    out: Annotated[Path, typer.Option(help="where the file goes")] = Path("docs/results"),
) -> None:
    """Choose a learning rate for each method."""
    name = Path(recipe).stem
    plans: dict[tuple[str, float], Plan] = {}
    for factor in map(float, factors.split(",")):
        for method in methods.split(","):
            values = [*of_method(method), f"seed={SEED}", *HELD_OUT, *(overrides or [])]
            rate = float(f"{factor * read_recipe(recipe, values).fit.learning_rate:.3g}")
            folder = Path("runs") / f"{name}-tuning" / f"{folder_name(method)}-{rate:g}"
            plans[method, rate] = Plan(recipe, [*values, f"fit.learning_rate={rate}"], folder, tasks)
    run_all(list(plans.values()), jobs)
    scores: dict[str, dict[str, float]] = {}
    for (method, rate), plan in plans.items():
        if (plan.folder / "metrics.json").exists():
            result = RunFolder(plan.folder).read()
            if len(result.accuracy) == tasks:
                scores.setdefault(method, {})[f"{rate:g}"] = result.aaa
    chosen = {method: float(max(tried, key=lambda rate: tried[rate])) for method, tried in scores.items()}
    budget = {"factors": factors, "tasks": tasks, "seed": SEED, "held_out": 0.2, "score": "aaa on held-out data"}
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / f"{name}-tuning.json", {"budget": budget, "scores": scores, "chosen": chosen})
    table = Table("method", "AAA % by learning rate", "chosen")
    for method, tried in scores.items():
        table.add_row(method, ", ".join(f"{r}: {100 * a:.1f}" for r, a in tried.items()), f"{chosen[method]:g}")
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
