"""One stage of training as an object with a state: the only optimiser step in the package.

A descent that is saved after any batch and restored goes on bit for bit as if it had never stopped: what its batches
are and what is drawn at a step follow from where it stands (`lorica.randomness`), not from what happened before.
"""

from __future__ import annotations

import itertools
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

from lorica.adapters.attach import at_once
from lorica.errors import CheckpointError, TrainingError
from lorica.methods.base import Data, Losses, Method
from lorica.processes import Processes
from lorica.progress import Reporter, Silent
from lorica.randomness import Draws
from lorica.reading import WRITTEN, Count, Plain, shown
from lorica.sharing import Part, drawing_for
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
    accumulate: int = 1


class Standing(BaseModel):
    """The plain part of a descent's state: the batch that comes next, and what optimiser and schedule say of
    themselves.

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

    Several processes each compute a part of every batch, which `fit.accumulate` divides further, and take the step of
    the whole: gradients, and the values of terms, are added up with weights that together are 1.

    Attributes:
        epoch, step: the batch that comes next; `step` counts within the epoch.
        steps: batches of an epoch.
        waited: seconds that `run` has waited for batches so far, in this process; a GPU may have been busy meanwhile.

    Args:
        divided: the losses of a batch are the means of those of its parts (`Method.undivided`). Otherwise each process
            computes all of it.
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
        divided: bool = True,
    ) -> None:
        self.method, self.parameters, self.fit, self.draws = method, parameters, fit, draws
        self.epoch = self.step = 0
        self.waited = 0.0
        self.steps = data.number_of_batches(fit.batch_size)
        self._losses, self._data, self._accelerator, self._reporter = losses, data, accelerator, reporter or Silent()
        self._record, self._after_step, self._guarded = record, after_step, guarded
        self._processes, self._divided = Processes.of(accelerator), divided
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
        # which parameters had gradients here, and the same on the device
        self._there: tuple[list[bool], Tensor] | None = None
        nothing = torch.tensor(-1, device=accelerator.device)
        self._first_bad, self._bad_value = nothing, nothing.float()  # step of the first loss that was not finite

    @property
    def taken(self) -> int:
        """Batches taken so far, over all epochs."""
        return self.epoch * self.steps + self.step

    @property
    def is_looked_at(self) -> bool:
        """Whether all wait for the device between the batch taken last and the next one, since the loss is looked
        at."""
        return self.step == 0 or self.taken % RECORD_EVERY == 0

    def run(self) -> None:
        """Takes all batches that are left.

        Raises:
            TrainingError: a loss, or a parameter at the end, that is not finite: the epoch and step at which it first
                was so.
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
                        if self.is_looked_at:
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
            **(self._processes.taking if self._divided else {}),
        )
        while True:
            asked = time.monotonic()
            batch = next(batches, None)
            self.waited += time.monotonic() - asked
            if batch is None:
                return
            yield batch

    def take(self, batch: Batch) -> None:
        """The batch that comes next: an optimiser step for each time that the losses yield. Nothing waits for the
        device.

        It seeds torch's own random state, see `Draws.seeded`.
        """
        self._terms = {}
        parts = [(part, weight, iter(self._losses(part))) for part, weight in self._parts(batch)]
        for number in itertools.count():
            terms = self._backward(parts, number)
            if terms is None:
                break
            loss = torch.stack(list(terms.values())).sum()
            found = ~loss.isfinite() & (self._first_bad < 0)
            self._bad_value = torch.where(found, loss.float(), self._bad_value)
            self._first_bad = torch.where(found, self.taken, self._first_bad)
            self.method.edit_gradients()
            if self.fit.clip_norm:
                nn.utils.clip_grad_norm_(self.parameters, self.fit.clip_norm)
            self._optimizer.step()
            self._terms |= terms
        self._rate = max(self._schedule.get_last_lr())
        self._schedule.step()
        last = self.step + 1 == self.steps
        self.epoch, self.step = (self.epoch + 1, 0) if last else (self.epoch, self.step + 1)

    def _parts(self, batch: Batch) -> list[tuple[Batch, float]]:
        """What this process computes of a batch one after another, each with its weight in the whole. What every
        process computes weighs as little as there are of them."""
        samples = len(batch.labels)
        own = batch.part or Part(0, samples, samples)
        whole = own.whole if samples < own.whole else samples * self._processes.number
        parts = own.divided(self.fit.accumulate) if self._divided else [own]
        if len(parts) == 1:
            return [(batch, samples / whole)]
        cut = [(part, slice(part.first - own.first, part.stop - own.first)) for part in parts]
        return [(Batch(batch.inputs[rows], batch.labels[rows], part), len(part) / whole) for part, rows in cut]

    def _backward(
        self, parts: list[tuple[Batch, float, Iterator[dict[str, Tensor]]]], number: int
    ) -> dict[str, Tensor] | None:
        """The terms of a batch, of that yield, and the gradients of their sum; None where the losses yield no more.
        Losses are computed under the run's precision; the caller's step runs outside it."""
        sums: dict[str, Tensor] = {}
        for place, (part, weight, losses) in enumerate(parts):
            if number == 0 or len(parts) > 1:  # every part draws alike what it does not draw for single samples
                self.draws.at(epoch=self.epoch, step=self.step).reseed(f"step{number or ''}")
            with drawing_for(part.part), self._accelerator.autocast(), at_once(self._accelerator.device):
                terms = next(losses, None)
            if terms is None:
                return None
            if place == 0:
                self._optimizer.zero_grad()
            loss = torch.stack(list(terms.values())).sum()
            self._accelerator.backward(loss if weight == 1 else weight * loss)
            for name, term in terms.items():
                own = term.detach() if weight == 1 else weight * term.detach()
                sums[name] = sums[name] + own if name in sums else own
        return sums if self._processes.alone else self._added(sums)

    def _added(self, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        """The terms, added up over all processes, and with them the gradients. A parameter without one in all of them
        stays so, which optimisers pass over."""
        there = [parameter.grad is not None for parameter in self.parameters]
        if self._there is None or self._there[0] != there:
            self._there = there, torch.tensor(there, dtype=torch.float32, device=self._accelerator.device)
        own = [torch.zeros_like(each) if each.grad is None else each.grad for each in self.parameters]
        *gradients, found, values = self._processes.added(
            [*own, self._there[1], torch.stack([term.float() for term in terms.values()])]
        )
        anywhere = there if all(there) else found.tolist()
        for parameter, gradient, has_one in zip(self.parameters, gradients, anywhere, strict=True):
            parameter.grad = gradient if has_one else None
        return dict(zip(terms, values, strict=True))

    def row(self) -> dict[str, Any]:
        """What is to say of the latest batch: task, stage, epoch and step (from 0), the largest learning rate, the
        value of each term of the loss, and what the method says of itself, without long lists.

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
        """Why a state is not one of this stage: a place beyond its end, another rate than that place has, or tensors of
        the optimiser's that do not have the shape of their parameter, or none."""
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
    # all parameters in one operation: the same bits as one after another, on a CPU too, where it is not torch's own
    # choice
    shared: dict[str, Any] = {"lr": fit.learning_rate, "weight_decay": fit.weight_decay, "foreach": True}
    if fit.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=fit.momentum, **shared)
    return (torch.optim.Adam if fit.optimizer == "adam" else torch.optim.AdamW)(groups, **shared)


def _schedule(optimizer: torch.optim.Optimizer, fit: Fit, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    if fit.schedule == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
