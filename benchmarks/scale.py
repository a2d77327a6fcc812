"""What a stream costs as it gets longer, wider or fuller: time, memory and disk over tasks, classes and images.

    python benchmarks/scale.py --methods prototypes,ran_pac,rolda,sd_lora
    python benchmarks/scale.py --draw                       (the table and the figure from the files, again)

Ordinary runs, by `lorica.run`, on the embedded backbone: each class is a pattern of random grey squares under noise,
and a task is learned in one epoch. The data is as small as it can be, so that what is seen is what the library itself
adds to it. Three axes:

  tasks     tasks of 2 classes, 8 images each to train on and 1 to test on; earlier ones are tested after every 50th
  classes   5 tasks of ever more classes, images as before
  images    2 tasks of 5 classes with ever more images, and as many to test on as tenths of them

Each point is a process of its own on one thread (of the tasks all points come from one run). For the last task of it:

  learn, test, save    processor seconds (of tasks: the mean of the last ten tasks, and the last whole test); saving is
                       all that is neither of the others: the checkpoint, the cost of a prediction, metrics.json and
                       cost.json
  memory               of the process, the most it had
  disk                 of the whole folder

The exponent of a measure is its slope between the last two points, both logarithmic: 0 is flat, 1 linear. RanPAC has
1,000 random features in place of 10,000, so that what grows is seen beside what does not.
"""

from __future__ import annotations

import json
import math
import resource
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import numpy as np
import torch
import typer
from matplotlib.figure import Figure
from rich.console import Console

import lorica
from lorica.data.sources import Source
from lorica.files import RunFolder, write_json
from lorica.report.figures import save
from lorica.report.style import LINES, WIDTH, legend_below, look_of, paper

MEAN_OF = 10  # tasks
TESTED_EVERY = 50  # tasks
AXES = {"tasks": (50, 100, 200, 500, 1000), "classes": (10, 100, 1000, 10_000), "images": (80, 800, 8000)}
MEASURES = {"learn": "learning a task, s", "test": "testing, s", "memory": "memory, MB", "disk": "disk, MB"}
SETTINGS = {"ran_pac": {"width": 1000}}


def main(
    methods: Annotated[str, typer.Option(help="comma-separated")] = "prototypes,ran_pac,rolda,sd_lora",
    axes: Annotated[str, typer.Option(help="tasks, classes, images")] = "tasks,classes,images",
    largest: Annotated[int, typer.Option(min=1, help="points beyond it are left out")] = 10_000,
    out: Annotated[Path, typer.Option(help="where the file and the figure go")] = Path("docs/results"),
    draw: Annotated[bool, typer.Option("--draw", help="measure nothing")] = False,
) -> None:
    """Measure what grows, and how fast."""
    out.mkdir(parents=True, exist_ok=True)
    file = out / "scale.json"
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"torch": str(torch.__version__)}
    for method, axis in ((method, axis) for method in methods.split(",") for axis in axes.split(",") if not draw):
        points = [point for point in AXES[axis] if point <= largest]
        if axis == "tasks":
            rows = in_a_process(many_tasks, method, points)
        else:
            rows = [in_a_process(few_tasks, method, axis, point) for point in points]
        found.setdefault(axis, {})[method] = rows
        write_json(file, found)
        Console().print(method, axis, rows[-1])
    save(drawn(found), out / "scale")
    print("\n".join(table(found)))


def in_a_process(measure: Any, *given: Any) -> Any:
    """What `measure` gives in a process that has done nothing else."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(measure, *given).result()


def many_tasks(method: str, points: Sequence[int]) -> list[dict[str, float]]:
    """One run; a row for each number of tasks."""
    with tempfile.TemporaryDirectory() as folder:
        watch = Watch(Path(folder, "run"), set(points))
        stream = {"stream.classes_per_task": 2, "evaluate.every": TESTED_EVERY}
        learned(method, synthetic(2 * points[-1], 8, 1), watch, stream)
        return [{"tasks": point} | watch.seen[point] for point in points]


def few_tasks(method: str, axis: str, point: int) -> dict[str, float]:
    """One run of so many classes, or images to train on."""
    tasks, classes = (5, point) if axis == "classes" else (2, 10)
    each, tested = (8, 1) if axis == "classes" else (point // classes, max(1, point // classes // 10))
    with tempfile.TemporaryDirectory() as folder:
        watch = Watch(Path(folder, "run"), {tasks})
        learned(method, synthetic(classes, each, tested), watch, {"stream.tasks": tasks})
        return {axis: point} | watch.seen[tasks]


def learned(method: str, source: Source, watch: Watch, stream: Mapping[str, Any]) -> None:
    torch.set_num_threads(1)
    chosen = {"method": {"name": method} | SETTINGS.get(method, {}), "fit.epochs": 1, "stream.seed": None}
    lorica.run(chosen | dict(stream), out=watch.folder, source=source, progress=watch, go_on=watch.task_ends)


def synthetic(classes: int, train: int, test: int) -> Source:
    """Classes that are told apart by a pattern of 8 x 8 grey squares, under noise."""
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 256, (classes, 1, 8, 8))

    def images(each: int) -> tuple[np.ndarray, np.ndarray]:
        noisy = patterns + rng.normal(0, 64, (classes, each, 8, 8))
        return noisy.clip(0, 255).astype(np.uint8).reshape(-1, 8, 8), np.repeat(np.arange(classes), each)

    return lorica.arrays(images(train), images(test))


class Watch:
    """Reads clock, memory and folder: as a run reports that it tests, and after each task, when it asks whether to go
    on."""

    def __init__(self, folder: Path, points: set[int]) -> None:
        self.folder = folder
        self.seen: dict[int, dict[str, float]] = {}
        self._points = points
        self._learning: list[float] = []
        self._testing: list[float] = []
        self._whole: list[float] = []
        self._began = self._tested = time.process_time()
        self._tests_since: float | None = None

    def stage(self, description: str, steps: int) -> None:
        """A stage of learning, or a test, begins."""
        if description.endswith("testing"):
            self._tests_since = self._tested = time.process_time()

    def step(self, note: str = "") -> None:
        """A batch is done."""
        self._tested = time.process_time()

    def say(self, remark: str) -> None:
        """Nobody is told."""

    def task_ends(self, accuracy: Any) -> bool:
        """The task is learned, tested and saved."""
        now = time.process_time()
        if self._tests_since is None:
            raise RuntimeError("a task ended without a test")
        self._learning.append(self._tests_since - self._began)
        self._testing.append(self._tested - self._tests_since)
        self._whole.append(now - self._began)
        if (number := len(self._whole)) in self._points:
            self.seen[number] = self._row()
        self._began, self._tests_since = time.process_time(), None
        return True

    def _row(self) -> dict[str, float]:
        # what comes before the first task's first stage is of the run, not of the task
        last = slice(max(1, len(self._whole) - MEAN_OF), None) if len(self._whole) > MEAN_OF else slice(-1, None)
        learn, test, whole = (fmean(each[last]) for each in (self._learning, self._testing, self._whole))
        files = (path for path in RunFolder(self.folder).path.rglob("*") if path.is_file())
        return {
            "learn": learn,
            "test": self._testing[-1],
            "save": whole - learn - test,
            "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "disk": sum(path.stat().st_size for path in files),
        }


def exponent(rows: Sequence[Mapping[str, float]], axis: str, measure: str) -> float:
    """The slope between the last two points, both logarithmic; not a number of a single one."""
    if len(rows) < 2:
        return math.nan
    one, other = rows[-2:]
    return math.log(other[measure] / one[measure]) / math.log(other[axis] / one[axis])


def table(found: Mapping[str, Any]) -> Iterator[str]:
    """Markdown: the largest point of each axis, with the exponent behind each measure."""
    yield "| | " + " | ".join(MEASURES.values()) + " |"
    yield "|---|" + "---:|" * len(MEASURES)
    for axis in (axis for axis in AXES if axis in found):
        for method, rows in found[axis].items():
            last = rows[-1]
            cells = (
                f"{last[measure] / (1e6 if measure in ('memory', 'disk') else 1):.3g} "
                f"(n^{exponent(rows, axis, measure):.2f})"
                for measure in MEASURES
            )
            yield f"| {last[axis]:,} {axis}, {method} | " + " | ".join(cells) + " |"


@paper
def drawn(found: Mapping[str, Any]) -> Figure:
    """A panel for each measure (rows) and axis (columns), logarithmic; a method looks the same in all of them."""
    columns = [axis for axis in AXES if axis in found]
    looks = {method: index for index, method in enumerate(sorted({each for axis in columns for each in found[axis]}))}
    figure = Figure(figsize=(WIDTH, 6.2), layout="constrained")
    panels = figure.subplots(len(MEASURES), len(columns), sharex="col", sharey="row", squeeze=False)
    for row, (measure, heading) in zip(panels, MEASURES.items(), strict=True):
        row[0].set_ylabel(heading)
        for panel, axis in zip(row, columns, strict=True):
            for method, points in found[axis].items():
                index = looks[method]
                values = [point[measure] / (1e6 if measure in ("memory", "disk") else 1) for point in points]
                numbers = [point[axis] for point in points]
                panel.loglog(numbers, values, linestyle=LINES[index % len(LINES)], label=method, **look_of(index))
            panel.grid(axis="y")
    for panel, axis in zip(panels[-1], columns, strict=True):
        panel.set_xlabel(axis)
    lines = {line.get_label(): line for panel in panels[0] for line in panel.lines}
    legend_below(figure, [lines[method] for method in looks])
    return figure


if __name__ == "__main__":
    typer.run(main)
