"""The loop: what trains and what does not, the order of the hooks, schedules, and a loss that is not finite."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from lorica.backbones.timm_vit import TimmViT
from lorica.data.images import ImageReader
from lorica.data.sources import Source
from lorica.data.stream import Stream
from lorica.errors import TrainingError
from lorica.methods.base import Context, MethodConfig
from lorica.methods.linear_head import LinearHeadMethod
from lorica.randomness import Draws
from lorica.training import Fit, Watch, learn_task
from lorica.types import Batch, Task

MakeEncoder = Callable[..., TimmViT]


class Recording(LinearHeadMethod):
    """A linear probe that notes every hook, and what is frozen at that moment."""

    name = "recording"

    def __init__(self, encoder: TimmViT, losses_per_batch: int = 1) -> None:
        super().__init__(MethodConfig(name=self.name), encoder)
        self.calls: list[str] = []
        self.losses_per_batch = losses_per_batch

    def grow(self, task: Task) -> None:
        self.calls.append("grow")
        super().grow(task)

    def begin_task(self, context: Context) -> None:
        assert context.task == self.task
        assert not self.training
        self.calls.append("begin_task")

    def trainable(self) -> list[nn.Parameter]:
        self.calls.append("trainable")
        return self.head_parameters()

    def losses(self, batch: Batch) -> Iterator[dict[str, Tensor]]:
        for number in range(self.losses_per_batch):
            self.calls.append(f"loss {number}")
            yield from super().losses(batch)

    def edit_gradients(self) -> None:
        assert all(parameter.grad is not None for parameter in self.head_parameters())
        self.calls.append("edit_gradients")

    def end_task(self, context: Context) -> None:
        assert not self.training
        assert not any(parameter.requires_grad for parameter in self.parameters())
        assert sum(len(batch.labels) for batch in context.batches()) == 24
        self.calls.append("end_task")


@pytest.fixture
def stream(six_classes: Source) -> Stream:
    return Stream(six_classes, tasks=3, reader=ImageReader(32))


def fit(**changes: Any) -> Fit:
    values = {
        "epochs": 1,
        "batch_size": 12,
        "optimizer": "adam",
        "learning_rate": 0.1,
        "momentum": 0.9,
        "weight_decay": 0.0,
        "schedule": "constant",
        "augment": "none",
    }
    return Fit(**(values | changes))


def learn(method: LinearHeadMethod, stream: Stream, number: int, seed: int = 0, **changes: Any) -> None:
    task = stream.tasks[number]
    learn_task(method, task, stream.train(task), fit(**changes), seed=seed, accelerator=Accelerator(cpu=True))


def test_the_hooks_in_their_order(tiny_encoder: MakeEncoder, stream: Stream) -> None:
    method = Recording(tiny_encoder(), losses_per_batch=2)
    learn(method, stream, 0)
    step = ["loss 0", "edit_gradients", "loss 1", "edit_gradients"]
    assert method.calls == ["grow", "begin_task", "trainable", *step, *step, "end_task"]


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_only_what_is_trainable_changes(optimizer: str, tiny_encoder: MakeEncoder, stream: Stream) -> None:
    method = Recording(tiny_encoder())
    learn(method, stream, 0, optimizer=optimizer)
    before = {key: tensor.clone() for key, tensor in method.state_dict().items()}
    learn(method, stream, 1, optimizer=optimizer, weight_decay=0.1)
    after = method.state_dict()
    assert [key for key in before if not torch.equal(before[key], after[key])] == []
    assert all(parameter.grad is None for parameter in method.parameters())
    started = Recording(tiny_encoder())
    learn(started, stream, 0, optimizer=optimizer, learning_rate=1e-12)
    assert not torch.equal(started.head.weights[0], method.head.weights[0])


def test_a_task_depends_on_its_seed_alone(tiny_encoder: MakeEncoder, stream: Stream) -> None:
    weights = []
    for noise, seed in ((1, 0), (2, 0), (1, 1)):
        torch.manual_seed(noise)
        method = Recording(tiny_encoder())
        before = torch.get_rng_state()
        learn(method, stream, 0, seed=seed, augment="shift")
        assert torch.equal(before, torch.get_rng_state())
        weights.append(method.head.weights[0])
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_stage_knows_how_long_it_waited_and_leaves_no_thread(tiny_encoder: MakeEncoder, stream: Stream) -> None:
    class Slow:
        """Batches that take their time."""

        def batches(self, *given: Any, **named: Any) -> Iterator[Batch]:
            for batch in stream.train(stream.tasks[0]).batches(*given, **named):
                time.sleep(0.05)
                yield batch

        def number_of_batches(self, batch_size: int) -> int:
            return 2

    waited: list[float] = []
    started = time.monotonic()
    learn_task(
        Recording(tiny_encoder()), stream.tasks[0], Slow(), fit(epochs=2), seed=0, accelerator=Accelerator(cpu=True),
        watch=Watch(descended=lambda descent: waited.append(descent.waited)),
    )  # fmt: skip
    assert 0.2 <= waited[0] < time.monotonic() - started  # four batches

    def fail(_: Any) -> None:
        raise KeyError("ours")

    with pytest.raises(KeyError, match="ours") as caught:
        learn_task(
            Recording(tiny_encoder()), stream.tasks[0], stream.train(stream.tasks[0]), fit(batch_size=4), seed=0,
            accelerator=Accelerator(cpu=True), watch=Watch(after_step=fail),
        )  # fmt: skip
    assert caught.tb is not None  # which holds every frame
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]


@pytest.mark.parametrize("clip", [0.0, 0.01])
def test_steps_are_no_longer_than_the_clipped_gradient(clip: float, tiny_encoder: MakeEncoder, stream: Stream) -> None:
    """One step of SGD without momentum moves what trains by the rate times the gradient."""
    method = Recording(tiny_encoder())
    one = fit(optimizer="sgd", momentum=0.0, learning_rate=1.0, batch_size=24, clip_norm=clip)
    learn_task(method, stream.tasks[0], stream.train(stream.tasks[0]), one, seed=0, accelerator=Accelerator(cpu=True))
    moved = torch.cat([parameter.detach().flatten() for parameter in method.head.parameters()]).norm().item()
    assert moved == pytest.approx(clip, rel=1e-3) if clip else moved > 0.1


def test_the_cosine_schedule_falls_to_zero(
    tiny_encoder: MakeEncoder, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float] = []
    plain = torch.optim.SGD.step

    def step(self: torch.optim.SGD, closure: None = None) -> None:
        rates.append(self.param_groups[0]["lr"])
        plain(self, closure)

    monkeypatch.setattr(torch.optim.SGD, "step", step)
    learn(Recording(tiny_encoder()), stream, 0, optimizer="sgd", schedule="cosine", epochs=2, batch_size=12)
    assert rates == pytest.approx([0.1, 0.1 * (1 + 2**-0.5) / 2, 0.05, 0.1 * (1 - 2**-0.5) / 2])
    rates.clear()
    learn(Recording(tiny_encoder()), stream, 0, optimizer="sgd", epochs=2)
    assert rates == [0.1] * 4


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_what_learns_at_another_rate(
    name: str, tiny_encoder: MakeEncoder, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A first step is proportional to the rate; the schedule keeps the proportion, and the history has the larger
    rate."""

    class Slower(Recording):
        def rate_factors(self) -> dict[nn.Parameter, float]:
            return {self.head.weights[0]: 0.25}

    at_rate, slower = Recording(tiny_encoder()), Slower(tiny_encoder())
    for method in (at_rate, slower):
        learn(method, stream, 0, optimizer=name, batch_size=24)
    assert torch.equal(slower.head.biases[0], at_rate.head.biases[0])
    torch.testing.assert_close(slower.head.weights[0], 0.25 * at_rate.head.weights[0])
    assert slower.head.weights[0].any()

    rates: list[list[float]] = []
    plain = torch.optim.SGD.step

    def step(self: torch.optim.SGD, closure: None = None) -> None:
        rates.append([group["lr"] for group in self.param_groups])
        plain(self, closure)

    monkeypatch.setattr(torch.optim.SGD, "step", step)
    rows: list[dict[str, Any]] = []
    falling, watch = fit(optimizer="sgd", schedule="cosine", epochs=2), Watch(record=rows.append)
    data, accelerator = stream.train(stream.tasks[0]), Accelerator(cpu=True)
    learn_task(Slower(tiny_encoder()), stream.tasks[0], data, falling, seed=0, accelerator=accelerator, watch=watch)
    shares = [1, (1 + 2**-0.5) / 2, 0.5, (1 - 2**-0.5) / 2]
    assert rates == [pytest.approx([0.025 * share, 0.1 * share]) for share in shares]
    assert [row["learning_rate"] for row in rows] == pytest.approx([0.1 * shares[1], 0.1 * shares[3]])


def test_a_loss_that_is_not_finite_says_where(tiny_encoder: MakeEncoder, stream: Stream) -> None:
    class Failing(Recording):
        name = "failing"

        def losses(self, batch: Batch) -> Iterator[dict[str, Tensor]]:
            for terms in super().losses(batch):
                bad = self.calls.count("loss 0") == 4
                yield terms | {"extra": torch.tensor(float("inf") if bad else 0.0)}

    where = (
        "failing: the loss became inf at task 1, epoch 2, step 2, learning rate 0.1; start anew with a lower "
        "fit.learning_rate"
    )
    with pytest.raises(TrainingError, match=where):
        learn(Failing(tiny_encoder()), stream, 0, epochs=3)


def test_learning_works(tiny_encoder: MakeEncoder, stream: Stream) -> None:
    method = Recording(tiny_encoder())
    learn(method, stream, 0, epochs=10)
    batch = next(stream.test(stream.tasks[0]).batches(64, device=torch.device("cpu")))
    with torch.no_grad():
        assert (method.predict(batch.inputs).argmax(dim=1) == batch.labels).float().mean() > 0.9


class Features:
    """One batch of features of class 1, twice an epoch."""

    def __init__(self, places: list[Draws]) -> None:
        self.places = places

    def batches(self, batch_size: int, *, device: torch.device, augment: str, draws: Draws, first: int = 0):
        self.places.append(draws)
        for _ in range(2):
            yield Batch(torch.ones(batch_size, 32), torch.ones(batch_size, dtype=torch.long))

    def number_of_batches(self, batch_size: int) -> int:
        return 2


class TwoStages(LinearHeadMethod):
    """Trains its bias once more at the end of a task, on features and a loss of its own."""

    name = "two_stages"

    def __init__(self, encoder: TimmViT) -> None:
        super().__init__(MethodConfig(name=self.name), encoder)
        self.seen: list[tuple[int, ...]] = []
        self.places: list[Draws] = []

    def trainable(self) -> list[nn.Parameter]:
        return self.head_parameters()

    def on_features(self, batch: Batch) -> Iterator[dict[str, Tensor]]:
        self.seen.append(tuple(batch.inputs.shape))
        yield {"pull": -self.head.biases[0][1]}

    def end_task(self, context: Context) -> None:
        before = self.head.biases[0].detach().clone()
        context.descend(
            [self.head.biases[0]],
            context.epochs + 1,
            losses=self.on_features,
            data=Features(self.places),
            optimizer="sgd",
            momentum=0.0,
            learning_rate=0.5,
            batch_size=3,
        )
        self.gained = (self.head.biases[0] - before).tolist()


def test_a_stage_of_its_own_has_its_own_data_losses_and_settings(tiny_encoder: MakeEncoder, stream: Stream) -> None:
    method = TwoStages(tiny_encoder())
    learn(method, stream, 0, epochs=2)
    assert method.seen == [(3, 32)] * 6  # three epochs of two batches
    assert method.gained == pytest.approx([0.0, 6 * 0.5], abs=1e-5)  # plain descent on a slope of 1
    assert method.places == [Draws(0, task=0, stage=1, epoch=epoch) for epoch in range(3)]
