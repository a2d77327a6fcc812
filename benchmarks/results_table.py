"""Runs every method over several seeds in resumable folders, and writes the table, the figures and the runs' metrics.

    python benchmarks/results_table.py omniglot --seeds 0,1,2 data.root=… backbone.weights=…

Runs are ordered seed by seed, so that an interrupted comparison is fair as far as it went; started again, it continues where it
stopped. `--jobs 2` works on two runs at a time, each on one thread. Results go to docs/results/RECIPE.md and beside it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
import yaml
from plans import Plan, of_method, run_all

from lorica.config import read_recipe
from lorica.report import figures, tables
from lorica.results import Result, find_runs, write_json, write_text
from lorica.run import default_folder

METHODS = (
    "sd_lora",
    "sd_lora_rr",
    "sd_lora_kd:absorbing",
    "gumbel_cl_lora",
    "lora",
    "linear_probe",
    "prototypes",
    "full_finetune",
    "joint",
    "sd_lora:released_code",
    "lora_fixed",
    "lora_single",
    "lora_frozen",
)


def main(
    recipe: str,
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[key.sub=value]…")] = None,
    seeds: Annotated[str, typer.Option(help="comma-separated")] = "0,1,2",
    methods: Annotated[str, typer.Option(help="comma-separated, method or method:variant")] = ",".join(METHODS),
    jobs: Annotated[int, typer.Option(help="runs at a time, each on its share of the cores")] = 1,
    out: Annotated[Path, typer.Option(help="where the table goes")] = Path("docs/results"),
    tuned: Annotated[
        Path | None, typer.Option(help="take the learning rates that tune.py chose, from its file")
    ] = None,
    table_only: Annotated[bool, typer.Option("--table-only", help="write the table of the runs there are")] = False,
) -> None:
    """Compare methods on one recipe."""
    chosen = json.loads(tuned.read_text())["chosen"] if tuned else {}
    name = Path(recipe).stem + ("-tuned" if tuned else "")
    plans = []
    for seed in seeds.split(","):
        for method in methods.split(","):
            rate = [f"fit.learning_rate={chosen[method]}"] if method in chosen else []
            values = [*of_method(method), f"seed={seed}", *rate, *(overrides or [])]
            plans.append(Plan(recipe, values, default_folder(name, read_recipe(recipe, values))))
    if not table_only:
        run_all(plans, jobs)
    results = find_runs([plan.folder for plan in plans if (plan.folder / "metrics.json").exists()])
    command = (
        f"python benchmarks/results_table.py {recipe} --seeds {seeds} --jobs {jobs} data.root=… backbone.weights=…"
    )
    _write(name, command + (f" --tuned {tuned}" if tuned else ""), results, out)


def _write(name: str, command: str, results: Sequence[Result], out: Path) -> None:
    complete = [result for result in results if result.complete]
    out.mkdir(parents=True, exist_ok=True)
    for drawn in ("accuracy_curves", "accuracy_per_task"):
        figures.save(getattr(figures, drawn)(complete), out / f"{name}-{drawn}")
    for figure in (figures.magnitudes(r) for r in complete if r.label == "sd_lora" and r.seed == 0):
        if figure is not None:
            figures.save(figure, out / f"{name}-magnitudes")
    write_text(out / f"{name}.md", _page(name, command, tables.summarise(complete, sort="acc"), tables.notes(results)))
    kept = (
        "seed",
        "accuracy",
        "acc",
        "aaa",
        "acc_samples",
        "aaa_samples",
        "forgetting",
        "bwt",
        "new_task",
    )
    runs = [
        {"label": r.label} | {key: r.metrics[key] for key in kept} | {"magnitudes": r.magnitudes, "cost": r.cost}
        for r in complete
    ]
    write_json(out / f"{name}.json", runs)


def _page(name: str, command: str, rows: Sequence[tables.Row], notes: Sequence[str]) -> str:
    run = next((row for row in rows if row.label == "sd_lora"), rows[0]).runs[0]
    assert run.path is not None
    settings = yaml.safe_load((run.path / "recipe.yaml").read_text())
    machine = json.loads((run.path / "environment.json").read_text())
    fit = settings["fit"]
    lines = [
        f"# {name}",
        "",
        "Made by the following command; do not edit. What it says is discussed in [README.md](README.md).",
        "",
        f"    {command}",
        "",
        f"{rows[0].classes} classes in {rows[0].tasks} tasks, class order RandomState({settings['stream']['seed']}), backbone "
        f"{machine['backbone']['tag']} at {settings['backbone']['image_size'] or 'its own number of'} pixels, {fit['epochs']} epochs a task, batches of "
        f"{fit['batch_size']}, augmentation: {fit['augment']}. {fit['optimizer']} at {fit['learning_rate']:g} "
        "unless a method's own file says otherwise. "
        f"Machine: {machine['cpu_count']} CPU cores ({machine['machine']}), torch {machine['torch']}, timm {machine['timm']}.",
        "",
        tables.to_markdown(rows, notes),
        f"![Average accuracy after each task]({name}-accuracy_curves.png)",
        f"![Accuracy on each task, new and at the end]({name}-accuracy_per_task.png)",
        f"![Learned magnitudes]({name}-magnitudes.png)",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    typer.run(main)
