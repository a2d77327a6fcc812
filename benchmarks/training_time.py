"""How long each method takes to learn a stream, relative to SD-LoRA.

    python benchmarks/training_time.py omniglot data.root=… backbone.weights=…

One process, one method after the other, task by task: every method learns the next task of the recipe's stream,
everything included that a run does between two tests (passes before and after the descent, statistics, solving). What
is reported is the ratio of the whole time to SD-LoRA's, and the smallest and the largest ratio of a task, since some
methods train on their first task alone and others take longer with each one. Methods alternate, so that a machine that
slows down slows them all. docs/results/RECIPE-time.json has the seconds; it is written anew, after every task. `--tasks
3` is for a first look, with an `--out` of its own.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from lorica.assembly import assemble
from lorica.config import read_recipe
from lorica.files import write_json
from lorica.methods import find_method
from lorica.progress import progress_bar
from lorica.sweep.plan import of_method
from lorica.training import Fit, learn_task

REFERENCE = "sd_lora"

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
    methods: Annotated[str, typer.Option(help="comma-separated, method[:variant][+option=value…]")] = ",".join(METHODS),
    tasks: Annotated[int | None, typer.Option(help="of the stream to learn; absent = all of it")] = None,
    out: Annotated[Path, typer.Option(help="where the file goes")] = Path("docs/results"),
) -> None:
    """Compare the training time of methods."""
    names = [REFERENCE, *(name for name in methods.split(",") if name != REFERENCE)]
    recipes = {name: read_recipe(recipe, [*of_method(name), *(overrides or [])]) for name in names}
    at_once = [name for name in names if find_method(recipes[name].method.name).learns_all_at_once]
    parts = {name: assemble(recipes[name]) for name in names if name not in at_once}
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    with progress_bar() as reporter:
        for number in range(len(parts[REFERENCE].stream.tasks))[:tasks]:
            for name, part in parts.items():
                task, fit = part.stream.tasks[number], Fit(**part.recipe.fit.model_dump())
                start = time.perf_counter()
                learn_task(
                    part.method, task, part.stream.train(task), fit,
                    seed=0, accelerator=part.accelerator, reporter=reporter,
                )  # fmt: skip
                seconds[name].append(time.perf_counter() - start)
            _write(out, Path(recipe).stem, seconds)
    ratios = {
        name: [own / reference for own, reference in zip(taken, seconds[REFERENCE], strict=True)]
        for name, taken in seconds.items()
    }
    totals = _totals(seconds)
    table = Table(
        "method", "time, relative", "of a task: from", "to",
        caption=f"{REFERENCE}: {sum(seconds[REFERENCE]):.0f} s, {torch.get_num_threads()} threads",
    )  # fmt: skip
    for name in sorted(totals, key=totals.__getitem__):
        table.add_row(name, f"{totals[name]:.2f}", f"{min(ratios[name]):.2f}", f"{max(ratios[name]):.2f}")
    Console().print(table)
    if at_once:
        Console(stderr=True).print(f"Left out, since they learn all tasks at once: {', '.join(at_once)}")


def _totals(seconds: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Relative to the reference."""
    return {name: sum(taken) / sum(seconds[REFERENCE]) for name, taken in seconds.items()}


def _write(out: Path, recipe: str, seconds: Mapping[str, Sequence[float]]) -> None:
    facts = {"threads": torch.get_num_threads(), "torch": str(torch.__version__), "tasks": len(seconds[REFERENCE])}
    out.mkdir(parents=True, exist_ok=True)
    write_json(
        out / f"{recipe}-time.json", {"recipe": recipe} | facts | {"totals": _totals(seconds), "seconds": seconds}
    )


if __name__ == "__main__":
    typer.run(main)
