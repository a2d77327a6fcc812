"""Every method: two that have learned different classes become one, or refuse with a reason and stay as they are."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator

from lorica.errors import LoricaError
from lorica.methods import Method
from lorica.training import Fit, learn_task
from lorica.types import Task

FIT = Fit(1, 8, "adam", 0.01, 0.9, 0.0, "constant", "none")
APART = {"prototypes"}
FROM_ONE = {"prototypes", "aper", "ran_pac", "rolda"}


def learned(method: Method, stream, *tasks: Task) -> Method:
    for place, task in enumerate(tasks):
        own = Task.of_new_classes(place, 2 * place, task.class_names)
        data = stream.train(task)
        first = task.classes[0] - 2 * place
        learn_task(method, own, Shifted(data, first), FIT, seed=0, accelerator=Accelerator(cpu=True))
    return method


class Shifted:
    """Data whose classes have numbers that are so much less."""

    def __init__(self, data, step: int) -> None:
        self.data, self.step = data, step

    def number_of_batches(self, batch_size: int) -> int:
        return self.data.number_of_batches(batch_size)

    def batches(self, batch_size: int, **settings):
        for batch in self.data.batches(batch_size, **settings):
            yield type(batch)(batch.inputs, batch.labels - self.step)


@pytest.mark.parametrize("from_one", [False, True])
def test_two_become_one_or_stay_what_they_are(from_one: bool, kind, tiny_encoder, stream) -> None:
    if from_one and kind(tiny_encoder()).name not in FROM_ONE:
        return  # they refuse without one
    first, second, third = stream.tasks
    common = learned(kind(tiny_encoder()), stream, first) if from_one else None
    one = learned(kind(tiny_encoder()), stream, first, *([second] if from_one else []))
    other = learned(kind(tiny_encoder()), stream, *([first, third] if from_one else [second, third]))
    x = next(stream.train_all().batches(12, device=torch.device("cpu"))).inputs
    before, tasks, logits = {k: v.clone() for k, v in one.state_dict().items()}, list(one.tasks), one.predict(x)
    goes_on = getattr(one.config, "adapt", "first") != "first"
    if one.name in (FROM_ONE if from_one else APART) and not goes_on:
        one.join(other, common)
        assert [name for task in one.tasks for name in task.class_names] == [
            name for task in stream.tasks for name in task.class_names
        ]
        assert one.predict(x).shape == (12, 6)
        assert one.predict(x).isfinite().all()
        return
    why = "trunk of its own, trained on other" if one.name in FROM_ONE else "trains on every task, so that each of two"
    with pytest.raises(LoricaError, match=why):
        one.join(other, common)
    assert one.tasks == tasks
    assert all(torch.equal(value, before[name]) for name, value in one.state_dict().items())
    assert torch.equal(one.predict(x), logits)
