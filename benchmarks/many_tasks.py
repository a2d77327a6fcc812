"""What a long stream costs: disk, memory and time of a task, as the number of tasks grows.

    python benchmarks/many_tasks.py --methods prototypes,sd_lora --tasks 1000

An ordinary run, by `lorica.run`, on the embedded backbone: tasks of two classes, each of them a pattern of random grey squares
under noise, 8 images to train on and 1 to test on, one epoch. The data is as small as it can be, so that what is seen is what the
library itself adds to it. For each number of tasks reported:

  learn, test, save     seconds of a task, the mean of the last ten; saving is all that is neither of the others: the checkpoint, the
                        cost of a prediction, metrics.json and cost.json
  memory                of the process, MB
  tensors, journal      MB in the checkpoints: what was learned; and what each is a part of, with what was measured
  results, history      MB of metrics.json and cost.json; of history.jsonl

A matrix of accuracies has a row of t numbers after task t. So the journal and the results, and the images that are tested, grow with
the square of the tasks for every method; and so does what a method keeps for each pair of tasks. All else should be linear.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psutil
import torch
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

import lorica
from lorica.data.sources import Source
from lorica.files import RunFolder, write_json
from lorica.journal import JOURNAL
from lorica.progress import Reporter, progress_bar

CLASSES, TRAIN, TEST = 2, 8, 1  # classes of a task, images of a class
MEAN_OF = 10  # tasks


def main(
    methods: Annotated[str, typer.Option(help="comma-separated")] = "prototypes,sd_lora",
    tasks: Annotated[int, typer.Option(min=1, help="of the stream")] = 1000,
    at: Annotated[str, typer.Option(help="numbers of tasks to report")] = "10,100,200,500,1000",
    out: Annotated[Path, typer.Option(help="where the file goes")] = Path("docs/results"),
) -> None:
    """Run methods over a stream of many small tasks."""
    reported = [number for number in map(int, at.split(",")) if number <= tasks]
    out.mkdir(parents=True, exist_ok=True)
    facts = {"threads": torch.get_num_threads(), "torch": str(torch.__version__)}
    for method in methods.split(","):
        with tempfile.TemporaryDirectory() as folder, progress_bar() as bar:
            rows = run(method, tasks, reported, Path(folder, method), bar)
        Console().print(_table(method, rows))
        write_json(out / f"many-tasks-{method}.json", {"method": method} | facts | {"rows": rows})


def run(method: str, tasks: int, reported: Sequence[int], folder: Path, bar: Reporter) -> list[dict[str, float]]:
    """One method over the stream: a row for each number of tasks in `reported`."""
    watch = _Watch(RunFolder(folder), set(reported), bar)
    result = lorica.run(
        {"method": method, "stream.classes_per_task": CLASSES, "stream.seed": None, "fit.epochs": 1},
        out=folder,
        source=synthetic(CLASSES * tasks),
        progress=watch,
    )
    watch.task_ends()
    rows = []
    for number in reported:
        last = slice(max(0, number - MEAN_OF), number)
        learning = float(np.mean(result.train_seconds[last]))
        testing, whole = (float(np.mean(seconds[last])) for seconds in (watch.testing, watch.whole))
        times = {"learn": learning, "test": testing, "save": whole - learning - testing}
        rows.append({"tasks": number, **times, **watch.seen[number]})
    return rows


def synthetic(classes: int) -> Source:
    """Classes that are told apart by a pattern of 8 x 8 grey squares, under noise."""
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 256, (classes, 1, 8, 8))

    def images(each: int) -> tuple[np.ndarray, np.ndarray]:
        noisy = patterns + rng.normal(0, 64, (classes, each, 8, 8))
        return noisy.clip(0, 255).astype(np.uint8).reshape(-1, 8, 8), np.repeat(np.arange(classes), each)

    return lorica.arrays(images(TRAIN), images(TEST))


class _Watch:
    """Reads clock, memory and folder as a run reports its stages: the test of a task is the last of them."""

    def __init__(self, folder: RunFolder, reported: set[int], bar: Reporter) -> None:
        self.testing: list[float] = []
        self.whole: list[float] = []
        self.seen: dict[int, dict[str, float]] = {}
        self._folder, self._reported, self._bar = folder, reported, bar
        self._began = self._tested = time.perf_counter()
        self._is_testing = False

    def stage(self, description: str, steps: int) -> None:
        if self._is_testing:
            self.task_ends()
        self._is_testing = description.endswith("testing")
        if self._is_testing:
            self._tested = time.perf_counter()
            self.testing.append(0.0)
        self._bar.stage(f"{description} ({len(self.testing)})", steps)

    def step(self, note: str = "") -> None:
        if self._is_testing:
            self.testing[-1] = time.perf_counter() - self._tested
        self._bar.step(note)

    def say(self, remark: str) -> None:
        self._bar.say(remark)

    def task_ends(self) -> None:
        """The task is learned, tested and saved, or so much later that the next stage begins."""
        now = time.perf_counter()
        self.whole.append(now - self._began)
        if len(self.whole) in self._reported:
            self.seen[len(self.whole)] = self._sizes()
        self._began = time.perf_counter()

    def _sizes(self) -> dict[str, float]:
        folder = self._folder
        journal = folder.checkpoints / JOURNAL
        return {
            "memory": psutil.Process().memory_info().rss,
            "tensors": sum(file.stat().st_size for file in folder.checkpoints.glob("*.safetensors")),
            "journal": journal.stat().st_size,
            "results": folder.metrics.stat().st_size + folder.cost.stat().st_size,
            "history": folder.history.stat().st_size if folder.history.exists() else 0,
        }


def _table(method: str, rows: Sequence[dict[str, Any]]) -> Table:
    table = Table(
        title=method, caption=f"seconds and MB; {torch.get_num_threads()} threads", box=SIMPLE_HEAD, padding=0
    )
    for heading in rows[0]:
        table.add_column(heading, justify="right")
    for row in rows:
        seconds = [f"{row[key]:.3f}" for key in ("learn", "test", "save")]
        sizes = [f"{row[key] / 1e6:.1f}" for key in ("memory", "tensors", "journal", "results", "history")]
        table.add_row(str(row["tasks"]), *seconds, *sizes)
    return table


if __name__ == "__main__":
    typer.run(main)
