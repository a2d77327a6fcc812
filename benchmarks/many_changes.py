"""What a model costs that gains classes again and again: time of a change, disk, and time to load, as their number
grows.

    python benchmarks/many_changes.py --each 10 --classes 1000
    python benchmarks/many_changes.py --each 1 --classes 150

A `lorica.Learner` with RoLDA on the embedded backbone. Each class is a pattern of random grey squares under noise, 6
images, of which one is set aside; a change of a single class is too small to adapt to. The data is as small as it can
be, so that what is seen is what the library itself adds to it. For each number of classes reported:

  change              seconds of `learn`, the mean of the last few changes
  load                seconds from a folder to the first prediction
  tensors             MB of what predicts, in all versions together
  sums                MB of what only learning on needs
  images              MB of the images set aside, and of the digests of all
  journal, history    MB of them

Every version stays, and RoLDA's weights for all classes are new in each: so the tensors, and what is counted for each
class in the journal, grow with the square of the changes. All else is linear: a change judges every image set aside
twice, which takes most of its time.
"""

from __future__ import annotations

import tempfile
import time
from collections import deque
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from lorica.files import RunFolder, write_json
from lorica.journal import JOURNAL
from lorica.learner import Learner

IMAGES, KEEP = 6, 1  # of a class, and of them set aside
MEAN_OF = 5  # changes
RECIPE = {
    "method": {"name": "rolda"},
    "backbone": {"name": "lorica_tiny"},
    "fit": {"epochs": 1, "batch_size": 64},
    "device": "cpu",
}


def main(
    each: Annotated[int, typer.Option(min=1, help="classes of a change")] = 10,
    classes: Annotated[int, typer.Option(min=1, help="in the end")] = 1000,
    at: Annotated[str, typer.Option(help="numbers of classes to report")] = "1,10,50,100,150,200,300,500,1000",
    out: Annotated[Path, typer.Option(help="where the file goes")] = Path("docs/results"),
) -> None:
    """Let a model gain classes."""
    reported = {number for number in map(int, at.split(",")) if each <= number <= classes}
    facts = {"each": each, "threads": torch.get_num_threads(), "torch": str(torch.__version__)}
    with tempfile.TemporaryDirectory() as folder:
        rows = grown(Path(folder, "model"), each, classes, reported)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / f"many-changes-{each}.json", facts | {"rows": rows})
    table = Table(*rows[0], box=SIMPLE_HEAD)
    for row in rows:
        table.add_row(*(f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()))
    Console().print(table)


def grown(folder: Path, each: int, classes: int, reported: set[int]) -> list[dict[str, Any]]:
    """A row for each number of classes that is reported."""
    learner, took = Learner(folder, recipe=RECIPE, keep=KEEP), deque[float](maxlen=MEAN_OF)
    rows = []
    for known in range(each, classes + 1, each):
        images, labels = samples(range(known - each, known))
        started = time.perf_counter()
        learner.learn((images, labels))
        took.append(time.perf_counter() - started)
        if known in reported:
            started = time.perf_counter()
            Learner(folder).predict(images[:1])
            rows.append(
                {"classes": known, "change": float(np.mean(took)), "load": time.perf_counter() - started}
                | sizes(RunFolder(folder))
            )
    return rows


def samples(classes: range) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of the classes of these numbers."""
    images = []
    for number in classes:
        random = np.random.RandomState(number)
        pattern = np.kron(random.randint(0, 256, (8, 8)), np.ones((4, 4)))
        images += [(pattern + random.randint(-20, 21, pattern.shape)).clip(0, 255) for _ in range(IMAGES)]
    return np.stack(images).astype(np.uint8), np.repeat(list(classes), IMAGES)


def sizes(folder: RunFolder) -> dict[str, float]:
    """MB of each kind of file."""
    kinds = {"sums": "*-sums.safetensors", "images": "*-images.safetensors", "journal": JOURNAL}
    found = {kind: sum(file.stat().st_size for file in folder.checkpoints.glob(kinds[kind])) for kind in kinds}
    whole = sum(file.stat().st_size for file in folder.checkpoints.iterdir())
    history = folder.history.stat().st_size if folder.history.exists() else 0
    found = {"tensors": whole - sum(found.values())} | found | {"history": history}
    return {kind: size / 1e6 for kind, size in found.items()}


if __name__ == "__main__":
    typer.run(main)
