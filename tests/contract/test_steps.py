"""A training step of every method: it never waits for the device, trains in full precision, and gives the same at once
as one by one."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, cast

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from lorica.adapters.attach import at_once
from lorica.descent import Descent, Fit
from lorica.methods.base import Context, Method
from lorica.randomness import Draws
from lorica.training import Watch, learn_task
from lorica.types import Batch, Task

CPU, META = torch.device("cpu"), torch.device("meta")
FIT = Fit(
    epochs=1,
    batch_size=8,
    optimizer="sgd",  # on a CPU torch's Adam counts its steps in tensors, and reads them
    learning_rate=0.01,
    momentum=0.9,
    weight_decay=0.01,
    schedule="cosine",
    augment="none",
    clip_norm=1.0,
)
ADAM = replace(FIT, optimizer="adam", clip_norm=0.0)
WAITING = {"hide_prompt": "counts what a mask picks"}  # what it pushes features away from: as many as there are so far
WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "_unique2", "unique_dim")


@pytest.fixture(autouse=True)
def _full_precision_afterwards():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


class NeverWaits(TorchDispatchMode):
    """Fails where a CPU would wait for a device, which is `meta` here: numbers read, sizes that depend on them, values
    sent over while it waits."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:  # type: ignore[override]
        name, kwargs = func.name().removeprefix("aten::").split(".")[0], kwargs or {}
        assert name not in WAITS or args[0].device == CPU, f"{func} waits for the device"
        if name in ("index", "index_put", "index_put_"):
            masks = [each for each in args[1] if each is not None and each.dtype in (torch.bool, torch.uint8)]
            assert not masks, f"{func} counts what a mask picks"
        if name == "repeat_interleave":
            assert kwargs.get("output_size") is not None, f"{func} reads sizes from the device"
        out = func(*args, **kwargs)
        if name in ("_to_copy", "copy_"):
            source = args[0] if name == "_to_copy" else args[1]
            waits = source.device != out.device and source.ndim and not kwargs.get("non_blocking", args[2:3] == (True,))
            assert not waits, f"{func} sends {tuple(source.shape)} to the device without non_blocking=True"
        return out


class SendsNoValues(TorchFunctionMode):
    """Fails where values are put straight on the device, which waits for it."""

    def __torch_function__(self, func, types, args=(), kwargs=None) -> Any:  # type: ignore[override]
        made = func(*args, **(kwargs or {}))
        assert func not in (torch.tensor, torch.as_tensor) or made.device == CPU, (
            "make it on the CPU, and send it with non_blocking=True"
        )
        return made


class OnMeta(Accelerator):
    """One whose device is no device: shapes and kinds are computed, and values are not there to be read."""

    @property
    def device(self) -> torch.device:
        return META


def about_to_learn(kind, tiny_encoder, stream) -> Method:
    """A method that has learned a task and begun the second; or begun the first, where nothing descends later."""

    def begin(method: Method, task: Task) -> Method:
        torch.manual_seed(0)
        method.grow(task)
        batches = partial(stream.train(task).batches, 8, device=CPU)
        method.begin_task(Context(task=task, batches=batches, epochs=1, steps=3, descend=lambda *_, **__: None))
        return method

    first, second = stream.tasks[:2]
    method = kind(tiny_encoder())
    learn_task(method, first, stream.train(first), FIT, seed=0, accelerator=Accelerator(cpu=True))
    begun = begin(method, second)
    if not begun.trainable():
        begun = begin(kind(tiny_encoder()), first)
    if not begun.trainable():
        pytest.skip("nothing descends")
    return begun


def descent(method, stream, accelerator: Any, fit: Fit = FIT) -> Descent:
    task = method.task
    return Descent(
        method.train(),
        method.trainable(),
        fit,
        losses=method.losses,
        data=stream.train(task),
        draws=Draws(0, task=task.index, stage=0),
        accelerator=accelerator,
    )


def first_batch(stream, task) -> Batch:
    return next(stream.train(task).batches(8, device=CPU))


def test_a_step_never_waits_for_the_device(kind, tiny_encoder, stream, monkeypatch) -> None:
    method = about_to_learn(kind, tiny_encoder, stream)
    batch = first_batch(stream, method.task)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # which meta has not
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)
    method.to(META)
    steps = descent(method, stream, OnMeta(cpu=True))
    batch = Batch(cast(torch.Tensor, batch.inputs).to(META), batch.labels.to(META))
    waits = pytest.raises(AssertionError, match=WAITING[method.name]) if method.name in WAITING else nullcontext()
    with waits, NeverWaits(), SendsNoValues():
        steps.take(batch)


def test_at_once_gives_the_losses_and_gradients_of_one_by_one(kind, tiny_encoder, stream) -> None:
    """Twice, with other weights the second time, so that nothing can be of the step before."""
    one_by_one = about_to_learn(kind, tiny_encoder, stream).train()
    together, batch = copy.deepcopy(one_by_one), first_batch(stream, one_by_one.task)
    for _ in range(2):
        expected, found = step(one_by_one, batch, CPU), step(together, batch, META)  # META: as on a device
        assert found.keys() == expected.keys()
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)


def step(method: Method, batch: Batch, device: torch.device) -> dict[str, torch.Tensor]:
    """Losses and gradients; then takes a step of descent by hand."""
    parameters = dict(enumerate(method.trainable()))
    for parameter in method.parameters():
        parameter.requires_grad_(any(parameter is each for each in parameters.values()))
        parameter.grad = None
    torch.manual_seed(0)
    with at_once(device):
        terms = next(iter(method.losses(batch)))
    torch.stack(list(terms.values())).sum().backward()
    found = {name: term.detach() for name, term in terms.items()}
    for number, parameter in parameters.items():
        if parameter.grad is not None:
            found[f"gradient {number}"] = parameter.grad.clone()
            parameter.data -= 0.1 * parameter.grad
    return found


def test_bfloat16_leaves_all_that_is_kept_in_full_precision(kind, tiny_encoder, stream) -> None:
    """Adapters, heads, statistics, and what the optimiser keeps."""
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator, method, kept = Accelerator(cpu=True, mixed_precision="bf16"), kind(tiny_encoder()), []
    watch = Watch(descended=lambda stage: kept.extend(stage.state()[1].values()))
    for task in stream.tasks[:2]:
        learn_task(method, task, stream.train(task), ADAM, seed=0, accelerator=accelerator, watch=watch)
    kept += method.state_dict().values()
    assert {each.dtype for each in kept if each.is_floating_point()} <= {torch.float32, torch.float64}
