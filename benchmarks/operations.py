"""How many operations a training step starts, which on a GPU is how many kernels the CPU launches; and what it costs on
a CPU.

    python benchmarks/operations.py --backbone deit_tiny_patch16_224 --image-size 96 --tasks 1,10,100 --batch 8
    --repeats 20

Compared are a step of SD-LoRA as a CPU takes it, the increments of its sites computed one by one, and as other devices
take it, those of one shape at once (`lorica.adapters.attach.at_once`), both on the CPU; and `token floor`, see
benchmarks/step_time.py. Views and allocations, which launch nothing, are not counted, nor numbers that Adam reads from
its counts of steps, which are on the CPU. Times are processor seconds of one thread, as multiples of the floor's in the
same round: medians, and quartiles.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from typing import Annotated, Any
from unittest import mock

import numpy as np
import step_time
import torch
import typer
from accelerate import Accelerator
from rich.console import Console
from rich.table import Table
from torch.utils._python_dispatch import TorchDispatchMode

from lorica import descent
from lorica.adapters.attach import at_once

FLOOR, ALONE, TOGETHER = "floor", "one by one", "at once"
LAUNCH_NOTHING = {
    *("alias", "as_strided", "detach", "expand", "permute", "select", "slice", "split", "split_with_sizes", "squeeze",
        "t"),
    *("transpose", "unbind", "unsqueeze", "view", "_unsafe_view", "_reshape_alias", "_local_scalar_dense",
        "lift_fresh"),
    *("empty", "empty_like", "empty_strided", "new_empty"),
}  # fmt: skip


class Operations(TorchDispatchMode):
    """Counts what reaches torch's kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.started: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        namespace, _, name = func.name().partition("::")
        if namespace == "aten" and name.partition(".")[0] not in LAUNCH_NOTHING:
            self.started[name] += 1
        return func(*args, **(kwargs or {}))


def started_by(step: step_time.Step) -> int:
    """Operations of a step that is not the first."""
    step()
    with Operations() as operations:
        step()
    return operations.started.total()


def as_on_a_gpu(step: step_time.Step) -> step_time.Step:
    """The step with all increments of a shape at once."""

    def together() -> None:
        with mock.patch.object(descent, "at_once", side_effect=lambda _: at_once(torch.device("cuda"))):
            step()

    return together


def main(
    backbone: Annotated[str, typer.Option(help="lorica_tiny, or any timm ViT")] = "deit_tiny_patch16_224",
    image_size: Annotated[int | None, typer.Option(help="side in pixels; absent: the backbone's own")] = None,
    tasks: Annotated[str, typer.Option(help="numbers of tasks, separated by commas")] = "1,10,100",
    batch: Annotated[int, typer.Option(min=1, help="images in a step")] = 8,
    repeats: Annotated[int, typer.Option(min=1, help="rounds that count")] = 20,
) -> None:
    """Counts a step's operations, and times it."""
    torch.set_num_threads(1)
    encoder, accelerator = step_time._encoder(backbone, image_size), Accelerator(cpu=True)
    images, labels = torch.rand(batch, 3, encoder.image_size, encoder.image_size), torch.randint(10, (batch,))
    table = Table("tasks", "step", "operations", "x floor", title=f"{backbone}, batch {batch}, {repeats} rounds")
    for number in step_time._numbers(tasks):
        step = step_time.own_step(step_time.grown(encoder, number, 10), images, labels, accelerator)
        steps = {FLOOR: step_time.token_floor_step(encoder, images, labels), ALONE: step, TOGETHER: as_on_a_gpu(step)}
        seconds: dict[str, list[float]] = {name: [] for name in steps}
        counts = {name: started_by(each) for name, each in steps.items()}
        for _ in range(repeats):
            for name in random.sample(list(steps), len(steps)):
                start = time.process_time()
                steps[name]()
                seconds[name].append(time.process_time() - start)
        for name in steps:
            lower, median, upper = np.quantile(np.divide(seconds[name], seconds[FLOOR]), [0.25, 0.5, 0.75])
            table.add_row(str(number), name, str(counts[name]), f"{median:.3f} ({lower:.3f}-{upper:.3f})")
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
