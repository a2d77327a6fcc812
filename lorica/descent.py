"""One stage of training as an object with a state: the only optimiser step in the package.

A descent that is saved after any batch and restored goes on bit for bit as if it had never stopped: what its batches are
and what is drawn at a step follow from where it stands (`lorica.randomness`), not from what happened before.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from itertools import groupby
from typing import Annotated, Any, Literal

import torch
from accelerate import Accelerator
from pydantic import BaseModel, Field
from torch import Tensor, nn

from lorica.errors import CheckpointError, TrainingError
from lorica.methods.base import Data, Losses, Method
from lorica.progress import Reporter, Silent
from lorica.randomness import Draws
from lorica.reading import WRITTEN, Count, Plain, shown
from lorica.types import Batch

RECORD_EVERY = 10
"""Steps from one look at the loss to the next; between them nothing waits for the device."""

_LISTED = 64  # a diagnostic with more numbers than this is not worth its place in a history


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
    clip_norm: float = 0.0


class Standing(BaseModel):
    """The plain part of a descent's state: the batch that comes next, and what optimiser and schedule say of themselves.

    Of that, only the learning rates are taken up again; all else follows from the recipe and from the place.
    """

    model_config = WRITTEN

    epoch: Count
    step: Count
    steps: Count
    groups: Annotated[list[Plain], Field(min_length=1)]
    numbers: dict[str, float | int]
    schedule: Plain

    @property
    def rates(self) -> list[Any]:
        """The learning rate of each group of parameters."""
        return [group.get("lr") for group in self.groups]


class Descent:
    """A stage: some parameters of a method, trained on some data for some epochs. Everything else is frozen meanwhile.

    Attributes:
        epoch, step: the batch that comes next; `step` counts within the epoch.
        steps: batches of an epoch.
        waited: seconds that `run` has waited for batches so far, in this process; a GPU may have been busy meanwhile.

    Args:
        draws: the place of this stage, from which all that it draws follows.
        record: takes a row of the history every `RECORD_EVERY` steps and at the end of each epoch, see `row`.
        after_step: called between batches, when the descent can be saved.
        guarded: entered for as long as `run` takes; signals that it holds back are to be let through by `after_step`.
    """

    def __init__(
        self,
        method: Method,
        parameters: list[nn.Parameter],
        fit: Fit,
        *,
        losses: Losses,
        data: Data,
        draws: Draws,
        accelerator: Accelerator,
        reporter: Reporter | None = None,
        record: Callable[[dict[str, Any]], None] | None = None,
        after_step: Callable[[Descent], None] | None = None,
        guarded: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.method, self.parameters, self.fit, self.draws = method, parameters, fit, draws
        self.epoch = self.step = 0
        self.waited = 0.0
        self.steps = data.number_of_batches(fit.batch_size)
        self._losses, self._data, self._accelerator, self._reporter = losses, data, accelerator, reporter or Silent()
        self._record, self._after_step, self._guarded = record, after_step, guarded
        for parameter in method.parameters():
            parameter.requires_grad_(False)
        for parameter in parameters:
            parameter.requires_grad_(True)
        if parameters:
            plain = _optimizer(_groups(parameters, method.rate_factors(), fit.learning_rate), fit)
            self._rates = [group["lr"] for group in plain.param_groups]
            self._schedule = _schedule(plain, fit, self.steps * fit.epochs)
            self._optimizer = accelerator.prepare_optimizer(plain)
        self._terms: dict[str, Tensor] = {}  # of the latest batch
        nothing = torch.tensor(-1, device=accelerator.device)
        self._first_bad, self._bad_value = nothing, nothing.float()  # step of the first loss that was not finite

    @property
    def taken(self) -> int:
        """Batches taken so far, over all epochs."""
        return self.epoch * self.steps + self.step

    def run(self) -> None:
        """Takes all batches that are left.

        Raises:
            TrainingError: a loss, or a parameter at the end, that is not finite: the epoch and step at which it first was so.
        """
        if not (self.parameters and self.steps):
            return
        note, total = "", self.steps * self.fit.epochs
        self._reporter.stage(f"{self.method.name}: task {self.method.task.index + 1}", total - self.taken)
        with self._guarded(), self.draws.seeded("steps", self._accelerator.device):
            while self.epoch < self.fit.epochs:
                with closing(
                    self._batches()
                ) as batches:  # one that is being made when an error ends this is waited for
                    for batch in batches:
                        self.take(batch)
                        if self.step == 0 or self.taken % RECORD_EVERY == 0:
                            row = self.row()
                            note = f"epoch {row['epoch'] + 1}/{self.fit.epochs}  loss {sum(row['terms'].values()):.3f}"
                            if self._record:
                                self._record(row)
                        self._reporter.step(note)
                        if self._after_step:
                            self._after_step(self)
        self.finish()

    def _batches(self) -> Generator[Batch, None, None]:
        """Those that are left of the epoch; adds to `waited`."""
        batches = self._data.batches(
            self.fit.batch_size,
            device=self._accelerator.device,
            augment=self.fit.augment,
            draws=self.draws.at(epoch=self.epoch),
            first=self.step,
        )
        while True:
            asked = time.monotonic()
            batch = next(batches, None)
            self.waited += time.monotonic() - asked
            if batch is None:
                return
            yield batch

    def take(self, batch: Batch) -> None:
        """The batch that comes next: an optimiser step for each time that the losses yield. Nothing waits for the device.

        It seeds torch's own random state, see `Draws.seeded`.
        """
        self.draws.at(epoch=self.epoch, step=self.step).reseed("step")
        self._terms = {}
        for terms in self._yielded(iter(self._losses(batch))):
            loss = torch.stack(list(terms.values())).sum()
            found = ~loss.detach().isfinite() & (self._first_bad < 0)
            self._bad_value = torch.where(found, loss.detach().float(), self._bad_value)
            self._first_bad = torch.where(found, self.taken, self._first_bad)
            self._optimizer.zero_grad()
            self._accelerator.backward(loss)
            self.method.edit_gradients()
            if self.fit.clip_norm:
                nn.utils.clip_grad_norm_(self.parameters, self.fit.clip_norm)
            self._optimizer.step()
            self._terms |= {name: term.detach() for name, term in terms.items()}
        self._rate = max(self._schedule.get_last_lr())
        self._schedule.step()
        last = self.step + 1 == self.steps
        self.epoch, self.step = (self.epoch + 1, 0) if last else (self.epoch, self.step + 1)

    def _yielded(self, losses: Iterator[dict[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
        """The losses, each computed under the run's precision; the caller's step in between runs outside it."""
        while True:
            with self._accelerator.autocast():
                terms = next(losses, None)
            if terms is None:
                return
            yield terms

    def row(self) -> dict[str, Any]:
        """What is to say of the latest batch: task, stage, epoch and step (from 0), the largest learning rate, the value of each
        term of the loss, and what the method says of itself, without long lists.

        Raises:
            TrainingError: a loss since the last look that was not finite.
        """
        self.require_finite()
        taken = self.taken - 1
        values = torch.stack([term.float() for term in self._terms.values()]).tolist() if self._terms else []
        told = self.method.diagnostics()
        short = {key: value for key, value in told.items() if not isinstance(value, list) or len(value) <= _LISTED}
        return {
            "task": self.draws.task,
            "stage": self.draws.stage,
            "epoch": taken // self.steps,
            "step": taken % self.steps,
            "learning_rate": self._rate,
            "terms": dict(zip(self._terms, values, strict=True)),
            **({"diagnostics": short} if short else {}),
        }

    def require_finite(self, *, parameters: bool = False) -> None:
        """Looks at every loss since the beginning, and at the parameters, which the latest step may have spoilt.

        Raises:
            TrainingError: one is not finite.
        """
        name, task, remedy = self.method.name, self.method.task.index + 1, "start anew with a lower fit.learning_rate"
        if (bad := int(self._first_bad)) >= 0:
            raise TrainingError(
                f"{name}: the loss became {self._bad_value.item()} at task {task}, epoch {bad // self.steps + 1}, step "
                f"{bad % self.steps + 1}, learning rate {self.rate_at(bad):g}; {remedy}"
            )
        if parameters and not all(parameter.isfinite().all() for parameter in self.parameters):
            raise TrainingError(f"{name}: parameters are not finite after task {task}; {remedy}")

    def rate_at(self, step: int) -> float:
        """The learning rate of a step, counted over all epochs."""
        if self.fit.schedule == "constant":
            return self.fit.learning_rate
        return self.fit.learning_rate * (1 + math.cos(math.pi * step / (self.steps * self.fit.epochs))) / 2

    def finish(self) -> None:
        """Freezes what has trained.

        Raises:
            TrainingError: a loss or a parameter that is not finite.
        """
        self.require_finite(parameters=True)
        for parameter in self.parameters:
            parameter.requires_grad_(False)
            parameter.grad = None

    def state(self) -> tuple[Standing, dict[str, Tensor]]:
        """Plain values and tensors that `restore` takes, between batches.

        Raises:
            TrainingError: a loss or a parameter that is not finite: such a state is not worth keeping.
        """
        self.require_finite(parameters=True)
        saved = self._optimizer.state_dict()
        tensors, numbers = {}, {}
        for index, values in saved["state"].items():
            for key, value in values.items():
                (tensors if isinstance(value, Tensor) else numbers)[f"{index}.{key}"] = value
        standing = Standing(
            epoch=self.epoch,
            step=self.step,
            steps=self.steps,
            groups=saved["param_groups"],
            numbers=numbers,
            schedule=self._schedule.state_dict(),
        )
        return standing, tensors

    def restore(self, standing: Standing, tensors: Mapping[str, Tensor]) -> None:
        """Goes to where `state` was taken; the method's own parameters are those of that moment already.

        Raises:
            CheckpointError: a state that is not one of this stage; everything that does not fit, at once.
        """
        if problems := list(self._misfits(standing, tensors)):
            raise CheckpointError(problems)
        state: dict[int, dict[str, Any]] = {}
        for name, value in [*tensors.items(), *standing.numbers.items()]:
            index, _, key = name.partition(".")
            state.setdefault(int(index), {})[key] = value
        taken, rates = standing.epoch * self.steps + standing.step, standing.rates
        groups = [
            each | {"lr": rate} for each, rate in zip(self._optimizer.state_dict()["param_groups"], rates, strict=True)
        ]
        self._optimizer.load_state_dict({"state": state, "param_groups": groups})
        place = {"last_epoch": taken, "_step_count": taken + 1, "_last_lr": rates}
        self._schedule.load_state_dict(self._schedule.state_dict() | place)
        self.epoch, self.step = standing.epoch, standing.step

    def _misfits(self, standing: Standing, tensors: Mapping[str, Tensor]) -> Iterator[str]:
        """Why a state is not one of this stage: a place beyond its end, another rate than that place has, or tensors of the
        optimiser's that do not have the shape of their parameter, or none."""
        if standing.steps != self.steps:
            yield f"descent.steps is {standing.steps}, expected {self.steps}"
            return
        within = standing.step < self.steps if standing.epoch < self.fit.epochs else not standing.step
        if standing.epoch > self.fit.epochs or not within:
            yield (
                f"descent.epoch and step are {standing.epoch} and {standing.step}, expected a place within "
                f"{self.fit.epochs} epochs of {self.steps} steps"
            )
            return
        taken = standing.epoch * self.steps + standing.step
        share = self.rate_at(taken) / self.fit.learning_rate
        expected = [share * first for first in self._rates]
        # a cosine is followed from step to step, so that its rate has other last digits than the formula
        near = len(standing.rates) == len(expected) and all(
            type(each) is float and abs(each - rate) <= 1e-6 * first
            for each, rate, first in zip(standing.rates, expected, self._rates, strict=True)
        )
        if not near:
            yield f"descent.groups: the learning rates are {shown(standing.rates)}, expected {expected}"
        kinds: dict[str, set[str]] = {}
        for name, value in [*tensors.items(), *standing.numbers.items()]:
            index, _, key = name.partition(".")
            known = next((each for number, each in enumerate(self.parameters) if str(number) == index), None)
            if known is None or not key:
                yield f"descent.{name} is of no parameter, expected one from 0 to {len(self.parameters) - 1}"
                continue
            kinds.setdefault(index, set()).add(key)
            if not isinstance(value, Tensor):
                continue
            if value.shape not in (known.shape, torch.Size()) or value.dtype not in (known.dtype, torch.float32):
                yield (
                    f"descent.{name} has shape {tuple(value.shape)} and dtype {value.dtype}, expected "
                    f"{tuple(known.shape)}, or a single number, and {known.dtype}"
                )
            elif not value.isfinite().all():
                yield f"descent.{name} has numbers that are not finite"
        if len({frozenset(each) for each in kinds.values()}) > 1:
            yield f"descent: what the optimiser keeps differs from parameter to parameter: {shown(kinds)}"


def _groups(parameters: list[nn.Parameter], factors: Mapping[nn.Parameter, float], rate: float) -> list[dict[str, Any]]:
    """Neighbours of one rate together, so that the optimiser counts the parameters in their order."""
    neighbours = groupby(parameters, lambda each: factors.get(each, 1.0))
    return [{"params": list(part), "lr": factor * rate} for factor, part in neighbours]


def _optimizer(groups: list[dict[str, Any]], fit: Fit) -> torch.optim.Optimizer:
    if fit.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=fit.learning_rate, momentum=fit.momentum, weight_decay=fit.weight_decay)
    kind = torch.optim.Adam if fit.optimizer == "adam" else torch.optim.AdamW
    return kind(groups, lr=fit.learning_rate, weight_decay=fit.weight_decay)


def _schedule(optimizer: torch.optim.Optimizer, fit: Fit, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    if fit.schedule == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
