"""Every method by every read-out that can read it, with all that a read-out can be told: the same suite as over the
methods, as far as a read-out has a part in it, and one step a task."""

from __future__ import annotations

import json
from typing import get_args

import pytest
import torch
from accelerate import Accelerator

from lorica.adapters.attach import merged
from lorica.data.stream import Stream
from lorica.methods import Kind, Method, Readout, build_method, find_method, method_names
from lorica.training import Fit, learn_task

ONE_STEP = Fit(1, 24, "adam", 0.002, 0.9, 0.0, "constant", "none")


def learn(method: Method, stream: Stream, tasks: range) -> None:
    for task in stream.tasks[tasks.start : tasks.stop]:
        learn_task(method, task, stream.train(task), ONE_STEP, seed=0, accelerator=Accelerator(cpu=True))


@pytest.mark.parametrize("kind", get_args(Kind))
@pytest.mark.parametrize("name", method_names())
def test_a_method_is_read(name: str, kind: Kind, small, tiny_encoder, stream: Stream) -> None:
    def build() -> Readout:
        method = build_method(small(name), tiny_encoder(), readout=kind, layers=2, drift="affine")
        assert isinstance(method, Readout)
        return method

    refused = list(Readout.cannot_read(find_method(name), kind, layers=2))
    if refused:
        assert name in ("cl_lora", "ease") or (name, kind) == ("joint", "aligned"), refused
        return
    method, images = build(), next(stream.train_all().batches(6, device=torch.device("cpu")))
    learn(method, stream, range(2))
    logits = method.predict(images.inputs)
    assert logits.shape == (6, 4)
    assert logits.isfinite().all()
    alone = torch.cat([method.predict(image) for image in images.inputs.split(1)])
    torch.testing.assert_close(alone, logits, atol=1e-4, rtol=1e-3)
    # merged, and on a plain backbone
    found, classifier = merged(method), method.classifier()
    torch.testing.assert_close(found.predict(images.inputs), logits, atol=1e-4, rtol=1e-3)
    assert (classifier is not None) == (method.reads_encoder() and kind != "prototypes")
    if classifier is not None:
        model = found.encoder.with_classifier(classifier)
        plain = model(found.encoder.normalised(images.inputs))
        torch.testing.assert_close(plain, logits, atol=1e-4, rtol=1e-3)
    # a checkpoint has all of it, and nothing of what a task under way holds
    state = {key: value.clone() for key, value in method.own_state().items()}
    assert not method.before.numel()
    assert "before" not in state
    assert set(method.needed_to_learn_on()) < state.keys()
    copied = build()
    for task in stream.tasks[:2]:
        copied.grow(task)
    copied.restore_structure(json.loads(json.dumps(method.structure())))
    copied.load_own_state(state)
    copied.eval()
    assert torch.equal(copied.predict(images.inputs), logits)
    if get_args(Kind)[method_names().index(name) % 4] == kind:  # one of them goes on
        for each in (method, copied):
            learn(each, stream, range(2, 3))
    assert torch.equal(copied.predict(images.inputs), method.predict(images.inputs))
