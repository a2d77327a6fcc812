"""Runs in resumable folders, several at a time: what results_table.py and tune.py have in common."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

console = Console(stderr=True)


@dataclass(frozen=True)
class Plan:
    """One `lorica run`: recipe, overrides, folder, and how many tasks to learn (None = all)."""

    recipe: str
    overrides: Sequence[str]
    folder: Path
    tasks: int | None = None


def of_method(method: str) -> list[str]:
    """The overrides that `name[:variant][+option=value…]` stands for."""
    named, *options = method.split("+")
    name, _, variant = named.partition(":")
    return [
        f"method.name={name}",
        *([f"method.variant={variant}"] if variant else []),
        *(f"method.{option}" for option in options),
    ]


def said(overrides: Sequence[str]) -> str:
    """Overrides as a page repeats them: where somebody's data and weights are is nobody else's business."""
    places = {"data.root", "backbone.weights"}
    return " ".join(f"{key}=…" if key in places else text for text in overrides for key in [text.partition("=")[0]])


def folder_name(method: str) -> str:
    """The same as the name of a folder."""
    return method.replace(":", "-").replace("+", "-")


def run_all(plans: Sequence[Plan], jobs: int) -> None:
    """Runs the plans in order, `jobs` at a time, each on its share of the cores; finished ones cost nothing.

    What fails is printed and does not stop the others.
    """
    with ThreadPoolExecutor(jobs) as pool:
        done = list(pool.map(lambda plan: _run(plan, jobs), plans))
    if not all(done):
        console.print("Some runs failed: started again, this command tries those again.", style="red")


def _run(plan: Plan, jobs: int) -> bool:
    command = [
        sys.executable,
        "-m",
        "lorica",
        "run",
        plan.recipe,
        *plan.overrides,
        "--out",
        str(plan.folder),
        "--resume",
    ]
    command += ["--stop-after", str(plan.tasks)] if plan.tasks else []
    # threads that wait in a loop take the cores from each other where several runs share them
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs)), "GOMP_SPINCOUNT": "0"}
    done = subprocess.run(command, env=os.environ | threads, capture_output=True, text=True, check=False)
    failed = done.returncode != 0
    said = (done.stderr.strip() or f"exit {done.returncode}") if failed else "done"
    console.print(f"{plan.folder}: {said}", highlight=False)
    return not failed
