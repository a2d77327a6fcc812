"""What the end of a task costs RanPAC's ridge regression: in time, by the number of random features and of tasks.

    python benchmarks/ridge_time.py --widths 1000,2000,5000,10000 --tasks 1,10,50

Timed on the CPU, with `lorica.statistics.RidgeHead` as `lorica.methods.ran_pac` uses it. A stream of tasks arrives,
each with classes and samples of its own: random features of 768 numbers, widened to M by relu(f W). After the numbers
of tasks asked for,

  accumulate  the sums over a task's samples, for the median of the tasks since the line above
  choose      17 ridges tried on a fifth of the task's samples, fitted to the others
  solve       the Cholesky factorisation of G and the weights of all classes so far

The first pays for M^2 numbers for each sample, the last for M^3 / 3 multiplications, and choosing for the cube of the
samples fitted while these are fewer than M. The number of tasks enters through the classes alone. `peak` is the largest
memory that the process had so far, all of Python and torch included; widths are taken in rising order, so that it is
each one's own.
"""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from lorica.progress import Reporter, Silent, progress_bar
from lorica.statistics import FITTED, RidgeHead, choose_ridge

FEATURES = 768  # of ViT-B


@dataclass(frozen=True)
class RidgeTime:
    """The end of task number `tasks`; seconds are medians."""

    width: int
    tasks: int
    samples: int
    classes: int
    accumulate: float
    choose: float
    solve: float
    peak_gib: float
    repeats: int
    threads: int
    torch: str


def measure(
    widths: Sequence[int],
    tasks: Sequence[int],
    *,
    samples: int = 330,
    classes: int = 10,
    repeats: int = 3,
    reporter: Reporter | None = None,
) -> list[RidgeTime]:
    """Times every width and number of tasks, with the number of threads that torch is set to.

    Args:
        samples, classes: of each task.
        repeats: times that choosing and solving are done.
    """
    reporter = reporter or Silent()
    results = []
    for width in sorted(widths):
        reporter.stage(f"{width} features", max(tasks))
        head, projection = RidgeHead(width, device=torch.device("cpu")), torch.randn(FEATURES, width)
        accumulating: list[float] = []
        for task in range(1, max(tasks) + 1):
            head.grow(classes)
            h, labels = _task(projection, samples, classes)
            labels += (task - 1) * classes
            accumulating += seconds(lambda: head.add(h, labels), 1)  # noqa: B023 (called at once)
            if task in tasks:
                choosing = seconds(lambda: choose_ridge(h, labels, fit=int(FITTED * samples)), repeats)  # noqa: B023
                solving = seconds(lambda: head.solve(1e4), repeats)  # noqa: B023
                accumulate, choose, solve = (statistics.median(each) for each in (accumulating, choosing, solving))
                results.append(
                    RidgeTime(
                        width, task, samples, task * classes, accumulate, choose, solve,
                        _peak(), repeats, torch.get_num_threads(), str(torch.__version__),
                    )
                )  # fmt: skip
                accumulating = []
            reporter.step()
    return results


def seconds(step: Callable[[], object], repeats: int) -> list[float]:
    """How long each of some calls takes."""
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        step()
        taken.append(time.perf_counter() - start)
    return taken


def _task(projection: Tensor, samples: int, classes: int) -> tuple[Tensor, Tensor]:
    """Samples around a centre for each class, widened."""
    labels = torch.arange(samples) % classes
    features = torch.randn(classes, FEATURES)[labels] + torch.randn(samples, FEATURES)
    return (features @ projection).relu(), labels


def _peak() -> float:
    units = 2**30 if sys.platform == "darwin" else 2**20  # bytes there, kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / units


def _table(results: Sequence[RidgeTime]) -> Table:
    first = results[0]
    table = Table(
        title=f"End of a task, ridge regression, {first.samples} samples a task",
        caption=f"medians in seconds, {first.threads} threads, torch {first.torch}",
    )
    for heading in ("random features", "tasks", "classes", "accumulate", "choose", "solve", "peak, GiB"):
        table.add_column(heading, justify="right")
    for each in results:
        times = [f"{value:.3f}" for value in (each.accumulate, each.choose, each.solve)]
        table.add_row(str(each.width), str(each.tasks), str(each.classes), *times, f"{each.peak_gib:.1f}")
    return table


def _numbers(text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise typer.BadParameter(f"expected numbers from 1 up, such as 1,10,50; got {text!r}")
    return numbers


def main(
    widths: Annotated[
        str, typer.Option(help="numbers of random features, separated by commas")
    ] = "1000,2000,5000,10000",
    tasks: Annotated[str, typer.Option(help="numbers of tasks, separated by commas")] = "1,10,50",
    samples: Annotated[int, typer.Option(min=2, help="of each task")] = 330,
    classes: Annotated[int, typer.Option(min=1, help="of each task")] = 10,
    repeats: Annotated[int, typer.Option(min=1, help="times that choosing and solving are done")] = 3,
    threads: Annotated[int | None, typer.Option(min=1, help="absent: torch's choice")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object for each line of the table")] = False,
) -> None:
    """Times the sums, the choice of the ridge and the solution at the end of a task of RanPAC."""
    sizes, numbers = _numbers(widths), _numbers(tasks)
    if threads is not None:
        torch.set_num_threads(threads)
    with progress_bar() as reporter:
        results = measure(sizes, numbers, samples=samples, classes=classes, repeats=repeats, reporter=reporter)
    if as_json:
        for result in results:
            print(json.dumps(asdict(result)))
    else:
        Console().print(_table(results))


if __name__ == "__main__":
    typer.run(main)
