"""What a prediction costs, beside the plain backbone with a linear head.

    OMP_NUM_THREADS=1 python benchmarks/prediction_time.py --batch 1 --rounds 40 --weights FILE
    OMP_NUM_THREADS=1 python benchmarks/prediction_time.py --batch 64 --rounds 9 --weights FILE

For each method, a `lorica.Learner` learns two tasks of ten classes (random images, one epoch: time does not depend on
what is learned), and is loaded from its folder. Timed, on the CPU:

  forward  `Predictor.of_inputs` on a batch of squares: normalisation, backbone, classifier, the check that logits are
           numbers; and the same batch through normalisation and timm's own ViT, never adapted, with a linear head of 20
           classes.
  images   `Learner.logits` on a list of arrays larger than the input; and the same reader followed by that ViT.

Every round times all of them once, in an order drawn anew, so that slow phases of the machine fall on all alike; what
is timed is the processor's time, which other processes cost less of. Reported are the medians over the rounds of the
ratio to the plain ViT's time in the same round, with quartiles; and the plain ViT's milliseconds. It is timed against
itself too (`plain`), which says how far a ratio is from 1 by chance.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import torch
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor

from lorica.adapters.attach import unadapted
from lorica.backbones.encoder import Classifier, Encoder
from lorica.export.subject import normalised
from lorica.files import write_json
from lorica.learner import Learner
from lorica.progress import progress_bar

CLASSES, IMAGES = 10, 6  # of a task, and of a class


def main(
    backbone: Annotated[str, typer.Option()] = "deit_tiny_patch16_224",
    weights: Annotated[str | None, typer.Option(help="file of its weights; absent = timm's hub")] = None,
    methods: Annotated[str, typer.Option()] = "sd_lora,o_lora,lora,rolda,prototypes,ran_pac",
    batch: Annotated[int, typer.Option(min=1, help="images at a time")] = 1,
    rounds: Annotated[int, typer.Option(min=3)] = 30,
    out: Annotated[Path, typer.Option(help="where the file goes")] = Path("docs/results"),
) -> None:
    """Time predictions beside the plain backbone's."""
    settings: dict[str, Any] = {"backbone": {"name": backbone, "weights": weights}}
    names = methods.split(",")
    with tempfile.TemporaryDirectory() as folder, progress_bar() as reporter:
        learners = {name: learned(Path(folder, name), name, settings) for name in names}
        reporter.stage(f"batches of {batch}", rounds)
        taken = timed(contenders(learners, batch), rounds, reporter.step)
    rows = [
        {"kind": kind, "method": name, "plain_ms": 1e3 * float(np.median(taken[kind, ""])), **ratios}
        for kind in ("forward", "images")
        for name in ("plain", *names)
        for ratios in [quartiles(taken[kind, name], taken[kind, ""])]
    ]
    out.mkdir(parents=True, exist_ok=True)
    facts = {"backbone": backbone, "batch": batch, "rounds": rounds, "threads": torch.get_num_threads()}
    write_json(out / f"prediction-time-{batch}.json", facts | {"torch": str(torch.__version__), "rows": rows})
    table = Table("what", "method", "of the plain ViT's time", "quartiles", "its ms", box=SIMPLE_HEAD)
    for row in rows:
        spread = f"{row['lower']:.3f} to {row['upper']:.3f}"
        table.add_row(row["kind"], row["method"], f"{row['ratio']:.3f}", spread, f"{row['plain_ms']:.1f}")
    Console().print(table)


def learned(folder: Path, method: str, settings: dict[str, Any]) -> Learner:
    """A model of that method with two tasks, from its folder."""
    fit = {"epochs": 1, "batch_size": 20}
    learner = Learner(folder, recipe={"method": {"name": method}, "fit": fit, "device": "cpu"} | settings, keep=0)
    for first in (0, CLASSES):
        images = pictures(CLASSES * IMAGES, seed=first)
        learner.learn((images, np.repeat(np.arange(first, first + CLASSES), IMAGES)))
    return Learner(folder)


def pictures(number: int, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 256, (number, 256, 256, 3)).astype(np.uint8)


def contenders(learners: dict[str, Learner], number: int) -> dict[tuple[str, str], Callable[[], Tensor]]:
    """What is timed, by its kind and name; the plain ViT is there twice, once as what all are divided by."""
    first = next(iter(learners.values()))
    encoder = unadapted(cast(Encoder, first.method.encoder))
    head = Classifier(torch.zeros(2 * CLASSES, encoder.width), torch.zeros(2 * CLASSES))
    vit = cast(Any, encoder).with_classifier(head).eval()
    mean, std = (each.flatten().tolist() for each in (cast(Any, encoder).mean, cast(Any, encoder).std))
    images = list(pictures(number))
    squares = cast(Tensor, first.reader.of(images))

    @torch.inference_mode()
    def plain(inputs: Tensor | None = None) -> Tensor:
        return vit(normalised(cast(Tensor, first.reader.of(images)) if inputs is None else inputs, mean, std))

    found: dict[tuple[str, str], Callable[[], Tensor]] = {}
    for name in ("", "plain"):
        found["forward", name] = lambda: plain(squares)
        found["images", name] = plain
    for name, learner in learners.items():
        found["forward", name] = lambda predictor=learner.predictor: predictor.of_inputs(squares)
        found["images", name] = lambda learner=learner: learner.logits(images)
    return found


def timed(
    work: dict[tuple[str, str], Callable[[], Tensor]], rounds: int, step: Callable[[], None]
) -> dict[tuple[str, str], list[float]]:
    """Seconds of each in each round."""
    for each in work.values():
        each()
    taken: dict[tuple[str, str], list[float]] = {key: [] for key in work}
    order, chance = list(work), random.Random(0)
    for _ in range(rounds):
        chance.shuffle(order)
        for key in order:
            started = time.process_time()
            work[key]()
            taken[key].append(time.process_time() - started)
        step()
    return taken


def quartiles(taken: list[float], of: list[float]) -> dict[str, float]:
    lower, middle, upper = np.quantile(np.array(taken) / np.array(of), (0.25, 0.5, 0.75))
    return {"ratio": float(middle), "lower": float(lower), "upper": float(upper)}


if __name__ == "__main__":
    typer.run(main)
