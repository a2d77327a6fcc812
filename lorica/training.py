"""Learning one task: grow, begin, descend, end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from lorica.descent import Descent, Fit, Standing
from lorica.errors import LoricaError
from lorica.methods.base import Context, Data, Losses, Method, Rereadable, shapes_of
from lorica.processes import Processes
from lorica.progress import Reporter
from lorica.randomness import Draws
from lorica.types import Task


@dataclass(frozen=True)
class Watch:
    """What goes on beside the learning of a task; see `Descent` for each. Nothing, by default.

    Attributes:
        record: takes the rows of the history.
        after_step: called between the batches of every stage.
        descended: called with the main stage when it has ended, before `end_task`.
        guarded: entered for the length of every stage.
    """

    record: Callable[[dict[str, Any]], None] | None = None
    after_step: Callable[[Descent], None] | None = None
    descended: Callable[[Descent], None] | None = None
    guarded: Callable[[], AbstractContextManager[None]] = nullcontext


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
    watch: Watch = Watch(),
    resumed: tuple[Standing, Mapping[str, Tensor]] | None = None,
    frozen: bool = False,
    notes_parts: bool = False,
) -> dict[str, torch.Size]:
    """Lets a method learn one task: grow, begin, descend, end. Returns names and shapes of what trained, in any stage.

    All randomness of a task follows from `seed` and from what it is for (`lorica.randomness`), so that a run continued
    anywhere repeats the run that was never interrupted. The caller's random state is left as it was.

    Args:
        resumed: the state of the main stage (`Descent.state`) from which to go on. The method has been grown for the
            task and is as it was at that moment: what `begin_task` computed is not computed again.
        frozen: learn new classes without moving a bit of the logits of others.
        notes_parts: what each class adds to sums is noted; take it from `Method.taken_parts`.

    Raises:
        LoricaError: the method cannot learn this task frozen (`Method.cannot_freeze`); nothing has been learned then.
        TrainingError: a loss that is not finite; says at which task, epoch, step and learning rate.
        CheckpointError: a state in `resumed` that is not one of this stage.
    """
    if frozen and (why := list(method.cannot_freeze(task))):
        raise LoricaError([f"task {task.index + 1} cannot be learned frozen: {each}" for each in why])
    device, processes = accelerator.device, Processes.of(accelerator)
    trained: dict[str, torch.Size] = {}
    draws, stages = Draws(seed, task=task.index), count()
    if resumed is None:
        with draws.seeded("grow", device):
            method.grow(task)
        method.eval()  # what has just grown, too
    unread = data.unread if isinstance(data, Rereadable) else None
    if unread and method.takes_unread and method.encoder.is_as_loaded and not method.trains_encoder:
        data = unread

    def stage(
        parameters: list[nn.Parameter], epochs: int, losses: Losses = method.losses, data: Data = data, **settings: Any
    ) -> Descent:
        trained.update(shapes_of(method, parameters))
        return Descent(
            method,
            parameters,
            replace(fit, epochs=epochs, **settings),
            losses=losses,
            data=data,
            draws=draws.at(stage=next(stages)),
            accelerator=accelerator,
            reporter=reporter,
            record=watch.record,
            after_step=watch.after_step,
            guarded=watch.guarded,
            divided=losses != method.losses or not any(method.undivided(method.config)),
        )

    def descend(
        parameters: list[nn.Parameter],
        epochs: int,
        *,
        losses: Losses = method.losses,
        data: Data = data,
        **settings: Any,
    ) -> None:
        method.train()
        stage(parameters, epochs, losses, data, **settings).run()
        method.eval()

    passes = fit.epochs * method.passes()
    context = Context(
        task=task,
        batches=lambda **share: data.batches(eval_batch_size, device=device, **share),
        epochs=fit.epochs,
        steps=passes * data.number_of_batches(fit.batch_size),
        descend=descend,
        frozen=frozen,
        notes_parts=notes_parts,
        processes=processes,
    )
    if resumed is None:
        with draws.seeded("begin", device):
            method.begin_task(context)
    main = stage(method.trainable(), passes)
    if resumed is not None:
        main.restore(*resumed)
    method.train()
    main.run()
    method.eval()
    if watch.descended and main.parameters:
        watch.descended(main)
    with draws.seeded("end", device):
        method.end_task(context)
    if unread:
        unread.forget()  # a task is learned once
    state = {} if processes.alone else method.running_state()  # the same but for what a device may round otherwise
    processes.require_same(
        "what the task has left", [method.structure(), {name: each.shape for name, each in state.items()}]
    )
    processes.as_on_main(state.values())
    return trained
