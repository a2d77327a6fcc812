"""One suite over every method: what the loop, the checkpoints and the users of a method rely on."""

from __future__ import annotations

import copy
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from lorica.adapters.attach import merged
from lorica.adapters.linear import AdaptedLinear
from lorica.data.images import ImageReader
from lorica.data.stream import Stream
from lorica.errors import CheckpointError
from lorica.methods import find_method, method_names
from lorica.training import Fit, learn_task
from lorica.types import Batch, Task, seen_classes

FIT = Fit(
    epochs=1,
    batch_size=8,
    optimizer="adam",
    learning_rate=0.01,
    momentum=0.9,
    weight_decay=0.01,
    schedule="cosine",
    augment="shift",
)


def fit_of(method) -> Fit:
    """Texts are not augmented."""
    return FIT if method.encoder.modality == "images" else replace(FIT, augment="none")


def learn(method, stream: Stream, tasks: range = range(3), seed: int = 0) -> None:
    accelerator, fit = Accelerator(cpu=True), fit_of(method)
    for task in stream.tasks[tasks.start : tasks.stop]:
        learn_task(method, task, stream.train(task), fit, seed=seed, accelerator=accelerator)


def images(stream: Stream, number: int = 12) -> Any:
    """Inputs of any kind."""
    return next(stream.train_all().batches(number, device=torch.device("cpu"))).inputs


@pytest.mark.parametrize("name", method_names())
def test_a_variant_left_out_is_the_default_one(name: str) -> None:
    cls = find_method(name)
    default = getattr(cls.Config(name=name), "variant", None)
    assert cls.fit_defaults(None) == cls.fit_defaults(default)


def test_logits_cover_the_classes_seen_so_far(kind, tiny_encoder, stream) -> None:
    method = kind(tiny_encoder())
    for index in range(3):
        learn(method, stream, range(index, index + 1))
        logits = method.predict(images(stream))
        assert logits.shape == (12, 2 * (index + 1))
        assert torch.isfinite(logits).all()


def test_a_prediction_does_not_depend_on_the_rest_of_its_batch(kind, tiny_encoder, stream) -> None:
    method = kind(tiny_encoder())
    learn(method, stream)
    x = images(stream)
    together, alone = method.predict(x), torch.cat([method.predict(x[n : n + 1]) for n in range(len(x))])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
    turned = list(reversed(range(len(x))))
    torch.testing.assert_close(method.predict(x[turned]).flip(0), together, atol=1e-5, rtol=1e-4)


def test_what_does_not_train_keeps_its_bits(kind, tiny_encoder, stream) -> None:
    """W0, and all that a task has left but for what the next one trains or declares to write again: as it is, or
    continued."""
    method, compared = kind(tiny_encoder()), 0
    for index in range(3):
        before = {name: value.clone() for name, value in method.state_dict().items()}
        learn(method, stream, range(index, index + 1))
        trained = {id(parameter) for parameter in method.trainable()}
        after = method.state_dict(keep_vars=True)
        for name, old in before.items():
            path = name.split(".")
            if name not in after or id(after[name]) in trained or path[0] in (*method.rewritten, *method.dropped):
                continue
            if index == 0 and path[0] != "encoder":
                continue  # nothing has been learned yet
            own = after[name].detach()
            if old.shape != own.shape:  # grown, along one axis
                (axis,) = [axis for axis in range(old.dim()) if old.shape[axis] != own.shape[axis]]
                own = own.narrow(axis, 0, old.shape[axis])
            assert torch.equal(own, old), name
            compared += index > 0 and old.numel() > 0 and path[0] != "encoder"
        left = {name for name in before if name.startswith("encoder.")} - after.keys()
        assert left == set(), "the encoder has lost weights"
    assert compared, "nothing was compared"


def test_state_round_trip(kind, tiny_encoder, stream) -> None:
    method = kind(tiny_encoder())
    learn(method, stream, range(2))
    state = {key: value.clone() for key, value in method.own_state().items()}
    copied = kind(tiny_encoder())
    for task in stream.tasks[:2]:
        copied.grow(task)
    copied.restore_structure(json.loads(json.dumps(method.structure())))  # plain values
    copied.load_own_state(state)
    copied.eval()
    x = images(stream)
    assert torch.equal(copied.predict(x), method.predict(x))
    # and both go on alike
    learn(method, stream, range(2, 3))
    learn(copied, stream, range(2, 3))
    assert torch.equal(copied.predict(x), method.predict(x))


def test_a_foreign_state_is_refused_with_its_differences(kind, tiny_encoder, stream) -> None:
    method = kind(tiny_encoder())
    learn(method, stream, range(2))
    shorter = kind(tiny_encoder())
    shorter.grow(stream.tasks[0])
    with pytest.raises(CheckpointError, match=r"is unknown|has shape"):
        shorter.load_own_state(method.own_state())


def test_checkpoints_hold_no_frozen_backbone(kind, tiny_encoder, stream) -> None:
    method = kind(tiny_encoder())
    learn(method, stream, range(1))
    holds_encoder = any(key.startswith("encoder.") for key in method.own_state())
    assert holds_encoder == method.trains_encoder


def test_merged_weights_predict_the_same_on_a_plain_backbone(kind, tiny_encoder, stream) -> None:
    method, plain = kind(tiny_encoder()), tiny_encoder()
    learn(method, stream)
    x = images(stream)
    expected = method.predict(x)
    found = merged(method)
    encoder, classifier = found.encoder, method.classifier()
    assert [(n, type(m)) for n, m in encoder.named_modules()] == [(n, type(m)) for n, m in plain.named_modules()]
    torch.testing.assert_close(found.predict(x), expected, atol=1e-5, rtol=1e-5)
    if classifier is not None:
        model = encoder.with_classifier(classifier)
        torch.testing.assert_close(model(encoder.normalised(x)), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(method.predict(x), expected)


def test_eight_threads_predict_as_one_does(kind, tiny_encoder, stream, monkeypatch) -> None:
    """To the bit; and not even for the length of a pass does one set an attribute of the method's modules, or a
    hook."""
    method = kind(tiny_encoder())
    learn(method, stream)
    x = images(stream)
    batches = [x[first : first + 3] for first in range(0, len(x), 3) for _ in range(4)]
    expected, own = [method.predict(part) for part in batches], {id(module) for module in method.modules()}
    barrier = threading.Barrier(8)

    def predict(first: int) -> list[torch.Tensor]:
        barrier.wait()
        with torch.inference_mode():
            return [method.predict(part) for part in batches[first:] + batches[:first]]

    with ThreadPoolExecutor(8) as pool:
        for first, found in enumerate(pool.map(predict, range(8))):
            turned = expected[first:] + expected[:first]
            assert all(torch.equal(a, b) for a, b in zip(found, turned, strict=True))
    changed: list[object] = []
    assign, hook = torch.nn.Module.__setattr__, torch.utils.hooks.RemovableHandle.__init__

    def watched(self, name, value) -> None:
        changed.extend([(type(self), name)] if id(self) in own else [])
        assign(self, name, value)

    def hooked(self, *arguments, **named) -> None:
        changed.append("a hook")
        hook(self, *arguments, **named)

    monkeypatch.setattr(torch.nn.Module, "__setattr__", watched)
    monkeypatch.setattr(torch.utils.hooks.RemovableHandle, "__init__", hooked)
    method.predict(batches[0])
    assert changed == []


def test_a_deep_copy_is_independent(kind, tiny_encoder, stream) -> None:
    method = kind(tiny_encoder())
    learn(method, stream, range(1))
    x = images(stream)
    before = method.predict(x).clone()
    learn(copy.deepcopy(method), stream, range(1, 2))
    assert torch.equal(method.predict(x), before)


def test_thirty_tasks_run(kind, tiny_encoder) -> None:
    from lorica.data.sources import arrays

    labels = torch.arange(60).repeat(2).numpy()
    pixels = torch.randint(0, 256, (120, 32, 32, 3), dtype=torch.uint8).numpy()
    stream = Stream(arrays((pixels, labels), (pixels[:60], labels[:60])), tasks=30, reader=ImageReader(32))
    method = kind(tiny_encoder())
    learn(method, stream, range(30))
    logits = method.predict(images(stream))
    assert logits.shape == (12, 60)
    assert torch.isfinite(logits).all()


def test_cost_does_not_grow_outside_magnitudes(kind, tiny_encoder, stream) -> None:
    """What trains on task 3 is what trained on task 2, give or take a magnitude and a logit."""
    method = kind(tiny_encoder())
    counts = []
    for task in stream.tasks:
        method.grow(task)
        counts.append(sum(parameter.numel() for parameter in method.trainable()))
    assert abs(counts[2] - counts[1]) <= 2


def test_training_leaves_nothing_requiring_gradients(kind, tiny_encoder, stream) -> None:
    method = kind(tiny_encoder())
    learn(method, stream, range(1))
    assert not any(parameter.requires_grad for parameter in method.parameters())
    assert all(not isinstance(m, AdaptedLinear) or m.linear.weight.grad is None for m in method.modules())


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


def test_classes_that_return(kind, tiny_encoder, stream) -> None:
    """Two classes; then one of them with a new one; then old ones alone, unless the method says that it cannot."""
    names = stream.class_names
    tasks = [
        Task(0, (0, 1), (0, 1), names[:2]),
        Task(1, (1, 2), (2,), names[1:3]),
        Task(2, (0, 2), (), (names[0], names[2])),
    ]
    method = kind(tiny_encoder())
    refused = list(type(method).misfits(method.config, tasks))
    if refused:
        assert "task 3 has no new class" in refused[0]
        tasks.pop()
    assert list(type(method).misfits(method.config, tasks)) == []
    accelerator = Accelerator(cpu=True)
    for task in tasks:
        before = {name: value.clone() for name, value in method.state_dict().items()}
        learn_task(method, task, Some(stream, task.classes), fit_of(method), seed=0, accelerator=accelerator)
        assert method.predict(images(stream)).shape == (12, seen_classes(method.tasks))
        assert method.predict(images(stream)).isfinite().all()
    if hasattr(method, "head") and hasattr(method.head, "stacked") and "head" not in method.rewritten:
        # weight decay does not reach a row that is no class of the task
        stayed = next(number for number in range(3) if number not in tasks[-1].classes)
        rows = [value for name, value in before.items() if name.startswith("head.weights.")]
        assert torch.equal(method.head.stacked()[0][stayed], torch.cat(rows)[stayed])
    copied = kind(tiny_encoder())
    for task in tasks:
        copied.grow(task)
    copied.restore_structure(json.loads(json.dumps(method.structure())))
    copied.load_own_state(method.own_state())
    assert torch.equal(copied.eval().predict(images(stream)), method.predict(images(stream)))
