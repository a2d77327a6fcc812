"""The training loop: the only optimiser step in the package."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import nn

from lorica.errors import TrainingError
from lorica.methods.base import Context, Data, Losses, Method, shapes_of
from lorica.progress import Reporter, Silent
from lorica.randomness import Draws
from lorica.types import Task


@dataclass(frozen=True)
class Fit:
    """How each task is trained; the recipe's `fit` section, see `lorica.config.FitConfig` for the meaning of each."""

    epochs: int
    batch_size: int
    optimizer: Literal["adam", "adamw", "sgd"]
    learning_rate: float
    momentum: float
    weight_decay: float
    schedule: Literal["constant", "cosine"]
    augment: str


def learn_task(
    method: Method,
    task: Task,
    data: Data,
    fit: Fit,
    *,
    seed: int,
    accelerator: Accelerator,
    reporter: Reporter | None = None,
    eval_batch_size: int = 256,
) -> dict[str, torch.Size]:
    """Lets a method learn one task: grow, begin, descend, end. Returns names and shapes of what trained, in any stage.

    All randomness of a task follows from `seed` and the task's index alone, so that a run continued at a task repeats the
    run that was never interrupted. The caller's random state is left as it was.

    Raises:
        TrainingError: a loss that is not finite; says at which task, epoch, step and learning rate.
    """
    device = accelerator.device
    trained: dict[str, torch.Size] = {}
    draws, stages = Draws(seed, task=task.index), count()

    def descend(
        parameters: list[nn.Parameter],
        epochs: int,
        *,
        losses: Losses = method.losses,
        data: Data = data,
        **settings: Any,
    ) -> None:
        trained.update(shapes_of(method, parameters))
        method.train()
        stage, place = replace(fit, epochs=epochs, **settings), draws.at(stage=next(stages))
        with place.seeded("steps", device):
            _descend(method, parameters, losses, data, stage, place, accelerator, reporter or Silent())
        method.eval()

    context = Context(
        task=task,
        batches=lambda: data.batches(eval_batch_size, device=device),
        epochs=fit.epochs,
        steps=fit.epochs * data.number_of_batches(fit.batch_size),
        descend=descend,
    )
    with draws.seeded("grow", device):
        method.grow(task)
    method.eval()  # what has just grown, too
    with draws.seeded("begin", device):
        method.begin_task(context)
    descend(method.trainable(), fit.epochs)
    with draws.seeded("end", device):
        method.end_task(context)
    return trained


def _descend(
    method: Method,
    parameters: list[nn.Parameter],
    losses: Losses,
    data: Data,
    fit: Fit,
    draws: Draws,
    accelerator: Accelerator,
    reporter: Reporter,
) -> None:
    for parameter in method.parameters():
        parameter.requires_grad_(False)
    if not parameters:
        return
    for parameter in parameters:
        parameter.requires_grad_(True)
    task, steps = method.task, data.number_of_batches(fit.batch_size)
    plain_optimizer = _optimizer(parameters, fit)
    schedule = _schedule(plain_optimizer, fit, steps * fit.epochs)
    optimizer = accelerator.prepare_optimizer(plain_optimizer)
    reporter.stage(f"{method.name}: task {task.index + 1}", steps * fit.epochs)
    value = 0.0
    for epoch in range(fit.epochs):
        place = draws.at(epoch=epoch)
        batches = data.batches(fit.batch_size, device=accelerator.device, augment=fit.augment, draws=place)
        for step, batch in enumerate(batches):
            place.at(step=step).reseed("step")
            for terms in _terms(iter(losses(batch)), accelerator):
                loss = torch.stack(list(terms.values())).sum()
                value = loss.item()
                if not math.isfinite(value):
                    rate = schedule.get_last_lr()[0]
                    raise TrainingError(
                        f"{method.name}: the loss became {value} at task {task.index + 1}, epoch {epoch + 1}, step "
                        f"{step + 1}, learning rate {rate:g}; start anew with a lower fit.learning_rate"
                    )
                optimizer.zero_grad()
                accelerator.backward(loss)
                method.edit_gradients()
                optimizer.step()
            schedule.step()
            reporter.step(f"epoch {epoch + 1}/{fit.epochs}  loss {value:.3f}")
    if not all(parameter.isfinite().all() for parameter in parameters):  # the loss of the last step was still finite
        raise TrainingError(
            f"{method.name}: parameters are not finite after task {task.index + 1}; "
            "start anew with a lower fit.learning_rate"
        )
    for parameter in parameters:
        parameter.requires_grad_(False)
        parameter.grad = None


def _terms(losses: Iterator[dict[str, torch.Tensor]], accelerator: Accelerator) -> Iterator[dict[str, torch.Tensor]]:
    """The losses, each computed under the run's precision; the caller's step in between runs outside it."""
    while True:
        with accelerator.autocast():
            terms = next(losses, None)
        if terms is None:
            return
        yield terms


def _optimizer(parameters: list[nn.Parameter], fit: Fit) -> torch.optim.Optimizer:
    if fit.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=fit.learning_rate, momentum=fit.momentum, weight_decay=fit.weight_decay)
    kind = torch.optim.Adam if fit.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, lr=fit.learning_rate, weight_decay=fit.weight_decay)


def _schedule(optimizer: torch.optim.Optimizer, fit: Fit, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    if fit.schedule == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
