"""Every method: classes that are taken out, and tasks that are learned without moving old logits."""

from __future__ import annotations

import json

import pytest
import torch
from accelerate import Accelerator

from lorica.data.stream import Stream
from lorica.errors import LoricaError
from lorica.methods import Method
from lorica.parts import Parts
from lorica.training import Fit, learn_task
from lorica.types import Batch, Task, seen_classes

FIT = Fit(1, 8, "adam", 0.01, 0.9, 0.0, "constant", "none")
FREEZE = {"prototypes", "aper", "ran_pac", "rolda"}
KEEP_SUMS = {"ran_pac", "rolda"}


class Some:
    """The samples of some classes, as the data of a task."""

    def __init__(self, stream: Stream, classes: tuple[int, ...]) -> None:
        (everything,) = stream.train_all().batches(1000, device=torch.device("cpu"))
        own = torch.isin(everything.labels, torch.tensor(classes))
        self.inputs, self.labels = everything.inputs[own], everything.labels[own]

    def number_of_batches(self, batch_size: int) -> int:
        return -(-len(self.labels) // batch_size)

    def batches(self, batch_size: int, *, device, augment="none", draws=None, first=0):
        order = torch.arange(len(self.labels))
        if draws is not None:
            order = torch.randperm(len(order), generator=draws.generator("order"))
        for part in order.split(batch_size)[first:]:
            yield Batch(self.inputs[part], self.labels[part])


def learn(method: Method, stream: Stream, *tasks: Task, **told: bool) -> list[dict[str, torch.Tensor]]:
    parts = []
    for task in tasks:
        learn_task(method, task, Some(stream, task.classes), FIT, seed=0, accelerator=Accelerator(cpu=True), **told)
        parts.append(method.taken_parts())
    return parts


def names_of(stream: Stream) -> list[str]:
    return [name for task in stream.tasks for name in task.class_names]


def images(stream: Stream, number: int = 12) -> torch.Tensor:
    inputs = next(stream.train_all().batches(number, device=torch.device("cpu"))).inputs
    assert isinstance(inputs, torch.Tensor)
    return inputs


def tensors(method: Method) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in method.own_state().items()}


def test_a_class_is_forgotten_and_returns(kind, tiny_encoder, stream) -> None:
    method, x, names = kind(tiny_encoder()), images(stream), names_of(stream)
    parts = learn(method, stream, *stream.tasks[:2], notes_parts=True)
    assert [bool(each) for each in parts] == [method.name in KEEP_SUMS] * 2
    assert method.taken_parts() == {}
    before = tensors(method)
    if method.name in KEEP_SUMS:  # which nothing can be taken out of without
        assert list(method.cannot_forget([1], Parts()))
        with pytest.raises(LoricaError, match=rf"{names[1]} cannot be taken out of (regression|discriminant)"):
            method.forget([1])
        assert all(torch.equal(value, before[name]) for name, value in tensors(method).items())
    assert list(method.cannot_forget([1], Parts(parts))) == []
    traces = list(method.traces_of([1]))
    assert bool(traces) == (method.name != "prototypes")
    assert all(names[1] in each for each in traces)
    method.forget([1], Parts(parts))
    after = tensors(method)
    assert after.keys() == before.keys()
    assert all(value.isfinite().all() and value.shape == before[name].shape for name, value in after.items())
    logits = method.predict(x)
    assert logits.shape == (12, 4)
    assert logits.isfinite().all()
    # it comes again, with a class that is new
    returning = Task(2, (1, 4), (4,), (names[1], names[4]))
    learn(method, stream, returning)
    assert method.predict(x).isfinite().all()
    copied = kind(tiny_encoder())
    for task in method.tasks:
        copied.grow(task)
    copied.restore_structure(json.loads(json.dumps(method.structure())))
    copied.load_own_state(method.own_state())
    assert torch.equal(copied.eval().predict(x), method.predict(x))
    everything = Some(stream, (0, 1, 2, 3, 4))
    right = method.predict(everything.inputs).argmax(dim=1) == everything.labels
    if method.name in (
        *FREEZE,
        "ease",
        "cl_lora",
    ):  # the others have been trained for three epochs, of which it was in one
        assert right[everything.labels == 1].float().mean() > 0.5


def test_what_is_frozen_keeps_its_bits(kind, tiny_encoder, stream) -> None:
    method, refusing, names = kind(tiny_encoder()), kind(tiny_encoder()), names_of(stream)
    assert list(method.cannot_freeze(stream.tasks[0]))
    learn(method, stream, stream.tasks[0])
    assert (list(method.cannot_freeze(stream.tasks[1])) == []) == (method.name in FREEZE)
    if method.name not in FREEZE:
        before = tensors(method)
        with pytest.raises(LoricaError, match=r"task 2 cannot be learned frozen: .* trains on every task"):
            learn(method, stream, stream.tasks[1], frozen=True)
        assert all(torch.equal(value, before[name]) for name, value in tensors(method).items())
        assert seen_classes(method.tasks) == 2
        return
    batches = [images(stream, number) for number in (1, 2, 5, 12, 64)]
    old = [method.predict(batch) for batch in batches]
    learn(method, stream, stream.tasks[1], frozen=True)
    once = [method.predict(batch) for batch in batches]
    assert all(torch.equal(now[:, :2], before) for now, before in zip(once, old, strict=True))
    learn(method, stream, stream.tasks[2], frozen=True)
    twice = [method.predict(batch) for batch in batches]
    assert all(torch.equal(now[:, :4], before) for now, before in zip(twice, once, strict=True))
    # what was added is known, and more of it cannot be frozen
    everything = Some(stream, tuple(range(6)))
    right = method.predict(everything.inputs).argmax(dim=1) == everything.labels
    assert right[everything.labels >= 2].float().mean() > 0.6
    more = Task(3, (1, 4), (), (names[1], names[4]))
    with pytest.raises(LoricaError, match=f"{names[1]}, {names[4]}: learned already"):
        learn(method, stream, more, frozen=True)
    # and what is not frozen goes on
    learn(method, stream, more)
    assert method.predict(batches[0]).isfinite().all()
    with pytest.raises(LoricaError, match="nothing has been learned"):
        learn(refusing, stream, stream.tasks[0], frozen=True)
