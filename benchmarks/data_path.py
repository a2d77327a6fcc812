"""How many images a second the data gives, how many the model takes, and how long a step waits for its batch.

    python benchmarks/data_path.py cifar100 data.source=image_folder data.root=FOLDER data.crop_pct=1 \
        fit.batch_size=64 fit.augment=flip backbone.name=deit_tiny_patch16_224 backbone.weights=FILE

On the training images of the recipe's first task, by the library's own `Split.batches` and `Descent.take`:

  epoch 1, 2   images a second of the data alone, first decoding all of them and then with what the cache has kept;
               medians over the rounds, each with a cache of its own. `2 / 1` is the median ratio of their times in a
               round
  model        images a second of the method's step alone, on one batch that is there; and
  both         of the same number of steps on batches of a later epoch, one after the other. The two alternate, and
               `both / model` is the median ratio of their times in a round, with quartiles; on a CPU, of their
               processor times, all threads together
  waits        the share of the time of `both` in which the loop stood waiting for its next batch
  a thousand   MB that a thousand of these images take in the cache; it may have place for fewer

On a CPU, the data takes its time from the model, waiting or not, unless cores are free: there `both / model` is the
upper bound.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from lorica.assembly import Assembly, assemble, build_stream
from lorica.config import read_recipe
from lorica.data import Split
from lorica.descent import Descent, Fit
from lorica.progress import Reporter, progress_bar
from lorica.randomness import Draws
from lorica.types import Batch

DRAWS = Draws(0, task=0, stage=0)


def main(
    recipe: str,
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[key.sub=value]…")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="of the data alone, and of model and both")] = 5,
    steps: Annotated[int, typer.Option(min=1, help="that model and both take in a round")] = 4,
) -> None:
    """Time the data path beside the model."""
    read = read_recipe(recipe, overrides or [])
    parts = assemble(read)
    with progress_bar() as reporter:
        first, second = _data_alone(parts, rounds, reporter)
        model, both, ratios, waits = _with_model(parts, rounds, steps, reporter)
    split = _split(parts)
    images = len(split)
    opened: Any = split._opened
    taken = sum(image.nbytes for image in opened._cache.images(split.indices[:1000])) / min(images, 1000)
    of_steps = steps * read.fit.batch_size
    table = Table(
        "images", "epoch 1", "epoch 2", "2 / 1", "model", "both", "both / model", "waits", "a thousand, MB",
        title=f"images a second, {read.data.source}, canvas of {read.backbone.image_size} / {read.data.crop_pct:g}",
        caption=(
            f"{rounds} rounds, {steps} steps, {parts.accelerator.device}, {torch.get_num_threads()} threads, torch "
            f"{torch.__version__}"
        ),
    )  # fmt: skip
    low, middle, high = _quartiles(ratios)
    table.add_row(
        str(images),
        f"{images / statistics.median(first):.0f}",
        f"{images / statistics.median(second):.0f}",
        f"{statistics.median(after / before for before, after in zip(first, second, strict=True)):.2f}",
        f"{of_steps / statistics.median(model):.1f}",
        f"{of_steps / statistics.median(both):.1f}",
        f"{middle:.3f} ({low:.3f} … {high:.3f})",
        f"{statistics.median(waits):.1%}",
        f"{taken / 1e3:.1f}",
    )
    Console(width=150).print(table)


def _data_alone(parts: Assembly, rounds: int, reporter: Reporter) -> tuple[list[float], list[float]]:
    """Seconds of first and second epochs."""
    first, second = [], []
    reporter.stage("data alone", 2 * rounds)
    for _ in range(rounds):
        split = _split(parts)
        for epoch, times in enumerate((first, second)):
            times.append(_seconds(parts, lambda epoch=epoch: sum(1 for _ in _batches(parts, split, epoch))))  # noqa: B023
            reporter.step()
    return first, second


def _with_model(
    parts: Assembly, rounds: int, steps: int, reporter: Reporter
) -> tuple[list[float], list[float], list[float], list[float]]:
    """Seconds of steps on one batch and on batches as they come, their ratio, and the share of the latter that was
    waiting."""
    method, accelerator, split = parts.method, parts.accelerator, _split(parts)
    for _ in _batches(parts, split, 0):  # fills the cache
        pass
    method.grow(parts.stream.tasks[0])
    descent = Descent(
        method.train(), method.trainable(), Fit(**parts.recipe.fit.model_dump()),
        losses=method.losses, data=split, draws=DRAWS, accelerator=accelerator,
    )  # fmt: skip
    same = next(_batches(parts, split, 0))
    model, both, ratios, waits = [], [], [], []
    waited = 0.0
    on_cpu = accelerator.device.type == "cpu"

    def take(batches: Iterator[Batch]) -> None:
        nonlocal waited
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            waited += time.perf_counter() - asked
            if batch is None:
                return
            descent.take(batch)

    reporter.stage("steps", rounds + 1)
    for number in range(rounds + 1):  # the first warms up
        marks = [time.process_time()]
        alone = _seconds(parts, lambda: take(iter([same] * steps)))
        marks.append(time.process_time())
        coming, waited = _batches(parts, split, number), 0.0
        descent.take(next(coming))  # as in the middle of an epoch
        marks.append(time.process_time())
        together = _seconds(parts, lambda: take(islice(coming, steps)))  # noqa: B023
        marks.append(time.process_time())
        del coming
        if number:
            model.append(alone)
            both.append(together)
            waits.append(waited / together)
            ratios.append((marks[3] - marks[2]) / (marks[1] - marks[0]) if on_cpu else together / alone)
        reporter.step()
    return model, both, ratios, waits


def _split(parts: Assembly) -> Split:
    """The first task's images, none of which has been decoded yet."""
    stream = build_stream(parts.recipe, parts.stream.source, parts.method.encoder)
    return stream.train(stream.tasks[0])


def _batches(parts: Assembly, split: Split, epoch: int) -> Iterator[Batch]:
    fit = parts.recipe.fit
    return split.batches(
        fit.batch_size, device=parts.accelerator.device, augment=fit.augment, draws=DRAWS.at(epoch=epoch)
    )


def _seconds(parts: Assembly, work: Callable[[], object]) -> float:
    """Until the device has finished, too."""
    device = parts.accelerator.device
    settle = (lambda: torch.cuda.synchronize(device)) if device.type == "cuda" else lambda: None
    settle()
    start = time.perf_counter()
    work()
    settle()
    return time.perf_counter() - start


def _quartiles(values: list[float]) -> tuple[float, float, float]:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return low, middle, high


if __name__ == "__main__":
    typer.run(main)
