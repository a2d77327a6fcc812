"""Runs every method over several seeds in resumable folders, and writes the table, the figures and the runs' metrics.

    python benchmarks/results_table.py omniglot --seeds 0,1,2 data.root=… backbone.weights=…

Runs are ordered seed by seed, so that an interrupted comparison is fair as far as it went; started again, it continues where it
stopped. `--jobs 2` works on two runs at a time, each on one thread. Results go to docs/results/RECIPE.md and beside it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import typer
import yaml
from rich.console import Console

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

console = Console(stderr=True)


def main(
    recipe: str,
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[key.sub=value]…")] = None,
    seeds: Annotated[str, typer.Option(help="comma-separated")] = "0,1,2",
    methods: Annotated[str, typer.Option(help="comma-separated, method or method:variant")] = ",".join(METHODS),
    jobs: Annotated[int, typer.Option(help="runs at a time, each on its share of the cores")] = 1,
    out: Annotated[Path, typer.Option(help="where the table goes")] = Path("docs/results"),
    table_only: Annotated[bool, typer.Option("--table-only", help="write the table of the runs there are")] = False,
) -> None:
    """Compare methods on one recipe."""
    wanted = [(method, seed) for seed in seeds.split(",") for method in methods.split(",")]
    plans = [[f"method.name={m.split(':')[0]}", f"seed={s}", *_variant(m), *(overrides or [])] for m, s in wanted]
    folders = [default_folder(recipe, read_recipe(recipe, plan)) for plan in plans]
    if not table_only:
        with ThreadPoolExecutor(jobs) as pool:
            done = list(pool.map(lambda plan: _run(recipe, plan, jobs), zip(plans, folders, strict=True)))
        if not all(done):
            console.print("Some runs failed: started again, this command tries those again.", style="red")
    results = find_runs([folder for folder in folders if (folder / "metrics.json").exists()])
    _write(recipe, results, out)


def _variant(method: str) -> list[str]:
    return [f"method.variant={method.split(':')[1]}"] if ":" in method else []


def _run(recipe: str, plan: tuple[list[str], Path], jobs: int) -> bool:
    """Whether the run is complete now; what went wrong is printed."""
    overrides, folder = plan
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    command = [sys.executable, "-m", "lorica", "run", recipe, *overrides, "--out", str(folder), "--resume"]
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": threads}, capture_output=True, text=True, check=False
    )
    failed = done.returncode != 0
    console.print(
        f"{folder}: {(done.stderr.strip() or f'exit {done.returncode}') if failed else 'done'}", highlight=False
    )
    return not failed


def _write(recipe: str, results: Sequence[Result], out: Path) -> None:
    complete = [result for result in results if result.complete]
    out.mkdir(parents=True, exist_ok=True)
    for name in ("accuracy_curves", "accuracy_per_task"):
        figures.save(getattr(figures, name)(complete), out / f"{recipe}-{name}")
    for drawn in (figures.magnitudes(r) for r in complete if r.label == "sd_lora" and r.seed == 0):
        if drawn is not None:
            figures.save(drawn, out / f"{recipe}-magnitudes")
    write_text(out / f"{recipe}.md", _page(recipe, tables.summarise(complete, sort="acc"), tables.notes(results)))
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
    write_json(out / f"{recipe}.json", runs)


def _page(recipe: str, rows: Sequence[tables.Row], notes: Sequence[str]) -> str:
    run = next((row for row in rows if row.label == "sd_lora"), rows[0]).runs[0]
    assert run.path is not None
    settings = yaml.safe_load((run.path / "recipe.yaml").read_text())
    machine = json.loads((run.path / "environment.json").read_text())
    fit = settings["fit"]
    lines = [
        f"# {recipe}",
        "",
        "Made by the following command; do not edit. What it says is discussed in [README.md](README.md).",
        "",
        f"    python benchmarks/results_table.py {recipe} --seeds 0,1,2 --jobs 2 data.root=… backbone.weights=…",
        "",
        f"{rows[0].classes} classes in {rows[0].tasks} tasks, class order RandomState({settings['stream']['seed']}), backbone "
        f"{machine['backbone']['tag']} at {settings['backbone']['image_size'] or 'its own number of'} pixels, {fit['epochs']} epochs a task, batches of "
        f"{fit['batch_size']}, augmentation: {fit['augment']}. {fit['optimizer']} at {fit['learning_rate']:g} "
        "unless a method's own file says otherwise. "
        f"Machine: {machine['cpu_count']} CPU cores ({machine['machine']}), torch {machine['torch']}, timm {machine['timm']}.",
        "",
        tables.to_markdown(rows, notes),
        f"![Average accuracy after each task]({recipe}-accuracy_curves.png)",
        f"![Accuracy on each task, new and at the end]({recipe}-accuracy_per_task.png)",
        f"![Learned magnitudes]({recipe}-magnitudes.png)",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    typer.run(main)
