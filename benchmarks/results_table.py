"""Runs every method over several seeds in resumable folders, and writes the table, the figures and the runs' metrics.

    python benchmarks/results_table.py omniglot --seeds 0,1,2 data.root=… backbone.weights=…

Runs are ordered seed by seed, so that an interrupted comparison is fair as far as it went; started again, it continues where it
stopped. `--jobs 2` works on two runs at a time, each on one thread. Results go to docs/results/RECIPE.md and beside it.
A method is given as name, name:variant or, for an ablation, name+option=value; `--page` sets a name for its table.
`--tuned` and `--times` take files that tune.py and training_time.py have written, `--drawn` the methods that figures show.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from plans import Plan, folder_name, of_method, run_all, said

from lorica.files import write_json, write_text
from lorica.metrics import MEASURES
from lorica.report import figures, tables
from lorica.results import DEFAULT_VARIANTS, Result, find_runs

METHODS = (
    "rolda",
    "sd_lora",
    "sd_lora_rr",
    "sd_lora_kd:absorbing",
    "gumbel_cl_lora",
    "cl_lora",
    "inf_lora",
    "o_lora",
    "l2p",
    "l2p:prefix",
    "dual_prompt",
    "coda_prompt",
    "hide_prompt",
    "ease",
    "ran_pac",
    "aper",
    "lora",
    "linear_probe",
    "prototypes",
    "full_finetune",
    "joint",
)
"""Every method, but for ablations and other variants."""


def main(
    recipe: str,
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[key.sub=value]…")] = None,
    seeds: Annotated[str, typer.Option(help="comma-separated")] = "0,1,2",
    methods: Annotated[str, typer.Option(help="comma-separated, method[:variant][+option=value…]")] = ",".join(METHODS),
    page: Annotated[str | None, typer.Option(help="name of the table; by default the recipe's")] = None,
    jobs: Annotated[int, typer.Option(help="runs at a time, each on its share of the cores")] = 1,
    out: Annotated[Path, typer.Option(help="where the table goes")] = Path("docs/results"),
    tuned: Annotated[
        Path | None, typer.Option(help="take the learning rates that tune.py chose, from its file")
    ] = None,
    times: Annotated[
        Path | None, typer.Option(help="add the times that training_time.py measured, from its file")
    ] = None,
    drawn: Annotated[str | None, typer.Option(help="methods in the figures, of the above; absent = all")] = None,
    table_only: Annotated[bool, typer.Option("--table-only", help="write the table of the runs there are")] = False,
) -> None:
    """Compare methods on one recipe."""
    figured = (drawn or methods).split(",")
    if unknown := set(figured) - set(methods.split(",")):
        raise typer.BadParameter(f"--drawn: {', '.join(sorted(unknown))}: not among the methods of the table")
    timed = json.loads(times.read_text()) if times else None
    if timed and timed["recipe"] != Path(recipe).stem:
        raise typer.BadParameter(f"--times: {times} has the times of {timed['recipe']}, not of {Path(recipe).stem}")
    chosen = json.loads(tuned.read_text())["chosen"] if tuned else {}
    name = Path(recipe).stem + ("-tuned" if tuned else "")
    plans, shown = [], set[Path]()
    for seed in seeds.split(","):
        for method in methods.split(","):
            known = chosen.get(method, chosen.get(method.partition("+")[0]))  # an ablation has its method's rate
            rate = [] if known is None else [f"fit.learning_rate={known}"]
            folder = folder_name(method) + ("" if seed == "0" else f"-seed{seed}")
            values = [*of_method(method), f"seed={seed}", *rate, *(overrides or [])]
            plans.append(Plan(recipe, values, Path("runs") / name / folder))
            if method in figured:
                shown.add(plans[-1].folder)
    if not table_only:
        run_all(plans, jobs)
    results = find_runs([plan.folder for plan in plans if (plan.folder / "metrics.json").exists()])
    command = ["python benchmarks/results_table.py", recipe, f"--seeds {seeds} --jobs {jobs}"]
    command += [f"--methods {methods}"] if methods != ",".join(METHODS) else []
    command += [f"--tuned {tuned}"] if tuned else []
    command += [f"--times {times}"] if times else []
    command += [f"--drawn {drawn}"] if drawn else []
    command += [f"--page {page}"] if page else []
    _write(page or name, " ".join([*command, said(overrides or [])]).rstrip(), results, shown, timed, out)


def _write(
    name: str, command: str, results: Sequence[Result], shown: Set[Path], timed: Mapping[str, Any] | None, out: Path
) -> None:
    complete = [result for result in results if result.complete]
    figured = [result for result in complete if result.path in shown]
    out.mkdir(parents=True, exist_ok=True)
    drawn = {
        "Average accuracy after each task": (f"{name}-accuracy_curves", figures.accuracy_curves(figured)),
        "Accuracy on each task, new and at the end": (f"{name}-accuracy_per_task", figures.accuracy_per_task(figured)),
    }
    for figure in (figures.magnitudes(r) for r in complete if r.label == "sd_lora" and r.seed == 0):
        if figure is not None:
            drawn["Learned magnitudes"] = (f"{name}-magnitudes", figure)
    for stem, figure in drawn.values():
        figures.save(figure, out / stem)
    rows, pictures = tables.summarise(complete, sort="acc"), {title: stem for title, (stem, _) in drawn.items()}
    remarks, columns = tables.notes(results), {}
    if timed:
        columns["Time"] = lambda row: _time(row, timed["totals"])
        tasks = "all tasks" if timed["tasks"] == rows[0].tasks else f"the first {timed['tasks']} tasks"
        remarks.append(f"Time: of learning {tasks}, relative to sd_lora, one process taking turns (training_time.py).")
    table = tables.to_markdown(rows, remarks, columns)
    write_text(out / f"{name}.md", _page(name, command, rows, table, pictures))
    kept = ("label", "seed", "accuracy", *MEASURES, "magnitudes", "cost")
    runs = [{name: getattr(result, name) for name in kept} for result in complete]
    write_json(out / f"{name}.json", runs)


def _rates(rows: Sequence[tables.Row]) -> str:
    fits: dict[str, list[str]] = {}
    for row in filter(lambda row: row.cost("trainable"), rows):
        fit = row.runs[0].recipe["fit"]
        fits.setdefault(f"{fit['optimizer']} {fit['learning_rate']:g}", []).append(row.label)
    return "; ".join(f"{rate} ({', '.join(labels)})" for rate, labels in fits.items())


def _time(row: tables.Row, times: Mapping[str, float]) -> str:
    """The row's time as training_time.py knows it, by method[:variant]."""
    name = row.method if row.variant in DEFAULT_VARIANTS else f"{row.method}:{row.variant}"
    known = name in times and "=" not in row.label  # an ablation has no time of its own
    return f"{times[name]:.2f}" if known else "–"


def _page(name: str, command: str, rows: Sequence[tables.Row], table: str, pictures: Mapping[str, str]) -> str:
    run = next((row for row in rows if row.label == "sd_lora"), rows[0]).runs[0]
    assert run.path is not None
    settings = yaml.safe_load((run.path / "recipe.yaml").read_text())
    environments = [json.loads((r.path / "environment.json").read_text()) for row in rows for r in row.runs if r.path]
    machine = environments[0]
    gpus = ", ".join(dict.fromkeys(each.get("gpu") or "no GPU" for each in environments))
    commits = ", ".join(dict.fromkeys(str(each["git_revision"])[:7] for each in environments))
    fit, seed = settings["fit"], settings["stream"]["seed"]
    order = "of the source" if seed is None else f"RandomState({seed})"
    lines = [
        f"# {name}",
        "",
        "Made by the following command; do not edit. What it says is discussed in [README.md](README.md).",
        "",
        f"    {command}",
        "",
        f"{rows[0].classes} classes in {rows[0].tasks} tasks, class order {order}, backbone "
        f"{machine['backbone']['tag']} at {settings['backbone']['image_size'] or 'its own number of'} pixels, {fit['epochs']} epochs a task, batches of "
        f"{fit['batch_size']}, augmentation: {fit['augment']}. Optimiser and learning rate: {_rates(rows)}. "
        f"Machine: {machine['cpu_count']} CPU cores ({machine['machine']}), {gpus}, torch {machine['torch']}, timm {machine['timm']}. Commit: {commits}.",
        "",
        table,
        *(f"![{title}]({stem}.png)" for title, stem in pictures.items()),
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    typer.run(main)
