"""Class means on the frozen backbone: neither the order of classes, nor of tasks, nor batches matter."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator

from lorica.data.images import ImageReader
from lorica.data.stream import Stream
from lorica.methods.base import MethodConfig
from lorica.methods.prototypes import Prototypes
from lorica.training import Fit, learn_task


def learned(encoder, stream: Stream, batch_size: int = 256) -> Prototypes:
    method, fit = (
        Prototypes(MethodConfig(name="prototypes"), encoder),
        Fit(1, 8, "adam", 0.1, 0.9, 0.0, "constant", "none"),
    )
    for task in stream.tasks:
        learn_task(
            method, task, stream.train(task), fit, seed=0, accelerator=Accelerator(cpu=True), eval_batch_size=batch_size
        )
    return method


def test_a_prototype_is_the_mean_over_its_class(tiny_encoder, six_classes) -> None:
    stream = Stream(six_classes, tasks=3, reader=ImageReader(32))
    whole = next(stream.train_all().batches(1000, device=torch.device("cpu")))
    features = tiny_encoder().features(whole.inputs)
    expected = torch.stack([features[whole.labels == label].mean(dim=0) for label in range(6)])
    for batch_size in (1, 5, 100):
        found = learned(tiny_encoder(), stream, batch_size).means.prototypes
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("tasks", [1, 6])
def test_the_number_of_tasks_changes_nothing(tiny_encoder, six_classes, tasks) -> None:
    x = torch.rand(4, 3, 32, 32)
    some, other = (learned(tiny_encoder(), Stream(six_classes, tasks=n, reader=ImageReader(32))) for n in (2, tasks))
    torch.testing.assert_close(other.predict(x), some.predict(x), atol=1e-6, rtol=1e-5)


def test_another_class_order_permutes_the_scores(tiny_encoder, six_classes) -> None:
    x, streams = (
        torch.rand(4, 3, 32, 32),
        [Stream(six_classes, tasks=2, seed=s, reader=ImageReader(32)) for s in (1, 2)],
    )
    by_name = [
        dict(zip(stream.class_names, learned(tiny_encoder(), stream).predict(x).T, strict=True)) for stream in streams
    ]
    assert streams[0].class_names != streams[1].class_names
    for name in six_classes.class_names:
        torch.testing.assert_close(by_name[0][name], by_name[1][name], atol=1e-6, rtol=1e-5)
