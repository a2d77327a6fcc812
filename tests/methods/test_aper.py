"""APER against plain tensors: what trains, the joint feature and its class means, what the order of classes changes."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from lorica.config import read_recipe
from lorica.cost import measure
from lorica.data.images import ImageReader
from lorica.data.stream import Stream
from lorica.errors import RecipeError
from lorica.methods import find_method
from lorica.methods.aper import APER, APERConfig
from lorica.methods.base import Context
from lorica.training import Fit, learn_task
from lorica.types import Batch, Task

TUNINGS = ("adapter", "scale_and_shift", "deep_prompts", "shallow_prompts", "full")
ALL = pytest.mark.parametrize("tuning", TUNINGS)
FIT = Fit(3, 6, "sgd", 0.05, 0.9, 5e-4, "cosine", "none")
IMAGES = torch.rand(24, 3, 32, 32, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(24) % 6


def tasks(*sizes: int) -> list[Task]:
    firsts = [sum(sizes[:t]) for t in range(len(sizes))]
    return [
        Task.of_new_classes(t, f, tuple(f"class {f + i}" for i in range(n)))
        for t, (f, n) in enumerate(zip(firsts, sizes, strict=True))
    ]


def learner(encoder, tuning: str = "adapter", *, untuned: bool = False, **options) -> APER:
    """Grown for a first task of two classes, as if trained on it."""
    torch.manual_seed(0)
    method = APER(APERConfig(name="aper", tuning=tuning, **({"rank": 4} | options)), encoder)
    method.grow(tasks(2)[0])
    if not untuned:
        with torch.no_grad():
            for parameter in method.trainable():
                parameter.add_(0.1 * torch.randn(parameter.shape))
    return method.requires_grad_(False).eval()


def see(method, task: Task, labels: Tensor = LABELS, batch_size: int = 7) -> None:
    """`end_task` on those of the images whose labels belong to the task."""
    own = torch.isin(labels, torch.tensor(task.classes))

    def batches():
        return map(Batch, IMAGES[own].split(batch_size), labels[own].split(batch_size))

    method.end_task(Context(task, batches, epochs=0, steps=0, descend=lambda *_, **__: None))


def seen(method, *sizes: int, labels: Tensor = LABELS):
    """The rest of a stream of tasks of these sizes, after `learner`."""
    for task in tasks(*sizes):
        if task.index >= len(method.tasks):
            method.grow(task)
        see(method, task, labels)
    return method


def learned(tuning: str, encoder, stream: Stream, number: int = 3) -> APER:
    method = APER(APERConfig(name="aper", tuning=tuning, rank=4, head_scale=1.0), encoder)
    for task in stream.tasks[:number]:
        learn_task(method, task, stream.train(task), FIT, seed=0, accelerator=Accelerator(cpu=True))
    return method


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.fixture
def stream(six_classes) -> Stream:
    return Stream(six_classes, tasks=3, reader=ImageReader(32))


# --- (1) ------------------------------------------------------------------------------------------------------------


@ALL
def test_loss_by_hand(tiny_encoder, tuning) -> None:
    method: Any = learner(tiny_encoder(), tuning)
    g = method.tuning.features(method.encoder, IMAGES[:6])
    labels = torch.tensor([0, 1, 1, 0, 1, 0])
    [terms] = method.losses(Batch(IMAGES[:6], labels))
    expected = 0.0
    for feature, label in zip(g, labels, strict=True):
        logits = [method.head.scale * feature @ row / feature.norm() / row.norm() for row in method.head.weight]
        expected += math.log(sum(math.exp(each) for each in logits)) - logits[label].item()
    assert set(terms) == {"cross_entropy"}
    assert terms["cross_entropy"].item() == pytest.approx(expected / 6, rel=1e-4)


@pytest.mark.parametrize(("options", "scale"), [({}, 16), ({"head_scale": 1.0}, 1)])
def test_the_head_starts_with_a_row_for_each_class_of_the_first_task(tiny_encoder, options, scale) -> None:
    method = learner(tiny_encoder(), untuned=True, **options)
    assert method.head.scale.item() == scale
    assert method.head.weight.shape == (2, 32)


def test_diagnostics_tell_how_the_first_task_ended(tiny_encoder, stream) -> None:
    method = learned("adapter", tiny_encoder(), stream, 1)
    first, second = method.means.prototypes[:, 32:]  # of the tuned half
    cosine = float(first @ second / first.norm() / second.norm())
    assert method.diagnostics() == pytest.approx({"scale": method.head.scale.item(), "mean_cosine": cosine})
    method.grow(stream.tasks[1])
    assert method.diagnostics() == {}  # told once, whether the run was resumed or not


@pytest.mark.parametrize(
    ("tuning", "expected"),
    [
        ("adapter", 2 * (2 * 32 * 4 + 4 + 32)),
        ("scale_and_shift", 2 * (32 + 2 * (32 + 96 + 32 + 32 + 128 + 32) + 32)),
        ("deep_prompts", 2 * 5 * 32),
        ("shallow_prompts", 5 * 32),
        ("full", None),
    ],
)
def test_what_trains(tiny_encoder, tuning, expected) -> None:
    method = learner(tiny_encoder(), tuning)
    expected = expected or sum(parameter.numel() for parameter in method.encoder.parameters())
    assert sum(parameter.numel() for parameter in method.trainable()) == expected + 2 * 32 + 1
    assert not {id(p) for p in method.trainable()} & {id(p) for p in method.encoder.parameters()}
    method.grow(tasks(2, 2)[1])
    assert method.trainable() == []


@ALL
def test_the_first_task_tunes_and_later_ones_keep_every_bit(tiny_encoder, stream, tuning) -> None:
    method, plain = learned(tuning, tiny_encoder(), stream, 1), tiny_encoder()
    for name, value in plain.state_dict().items():
        assert torch.equal(method.encoder.state_dict()[name], value), name
    batch = next(stream.train(stream.tasks[0]).batches(100, device=torch.device("cpu")))
    f, g = method.features(batch.inputs).chunk(2, dim=1)
    assert torch.equal(f, plain.features(batch.inputs))
    assert (g - f).abs().max() > 1e-3
    loss = next(method.losses(batch))["cross_entropy"]
    assert loss < math.log(2) - 0.02  # two classes, sigma about 1: chance is log 2, and the least is 0.13
    before = {name: value.clone() for name, value in method.own_state().items()}
    for task in stream.tasks[1:]:
        learn_task(method, task, stream.train(task), FIT, seed=0, accelerator=Accelerator(cpu=True))
    assert not any(name.startswith("head.") for name in method.state_dict())  # it went with the first task
    after = method.own_state()
    for name in ("means.prototypes", "means.counts"):
        assert torch.equal(after.pop(name)[:2], before.pop(name))
    assert after.keys() == before.keys()
    for name, value in before.items():
        assert torch.equal(after[name], value), name


# --- (2), (3), (4) --------------------------------------------------------------------------------------------------


@ALL
def test_scores_by_hand(tiny_encoder, tuning) -> None:
    method: Any = seen(learner(tiny_encoder(), tuning), 2, 3, 1)
    phi = torch.stack(
        [torch.cat([method.encoder.features(x[None])[0], method.tuning.features(method.encoder, x[None])[0]])
         for x in IMAGES]
    )  # fmt: skip
    close(method.features(IMAGES), phi)
    means = torch.stack([phi[label == LABELS].mean(dim=0) for label in range(6)])
    close(method.means.prototypes, means)
    expected = [[p @ m / p.norm() / m.norm() for m in means] for p in phi]
    close(method.predict(IMAGES), torch.tensor(expected))


def test_batches_do_not_change_the_means(tiny_encoder) -> None:
    method = learner(tiny_encoder())
    found = []
    for size in (1, 3, 100):
        see(method, tasks(2)[0], batch_size=size)
        found.append(method.means.prototypes.clone())
    close(found[0], found[2])
    close(found[1], found[2])


@ALL
def test_the_order_of_later_classes_permutes_the_rows_alone(tiny_encoder, tuning) -> None:
    first = learner(tiny_encoder(), tuning)
    order = torch.tensor([0, 1, 4, 2, 5, 3])  # where each class of the one stream comes in the other
    one, other = seen(copy.deepcopy(first), 2, 2, 2), seen(copy.deepcopy(first), 2, 2, 2, labels=order[LABELS])
    torch.testing.assert_close(other.means.prototypes[order], one.means.prototypes, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(other.predict(IMAGES)[:, order], one.predict(IMAGES), atol=1e-6, rtol=1e-6)
    assert torch.equal(other.predict(IMAGES).argmax(dim=1), order[one.predict(IMAGES).argmax(dim=1)])


def test_the_number_of_later_tasks_changes_nothing(tiny_encoder) -> None:
    first = learner(tiny_encoder())
    one, other = seen(copy.deepcopy(first), 2, 4), seen(copy.deepcopy(first), 2, 1, 1, 1, 1)
    torch.testing.assert_close(other.predict(IMAGES), one.predict(IMAGES), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("tuning", ["adapter", "full"])
def test_an_untuned_copy_ranks_like_prototypes(tiny_encoder, tuning) -> None:
    cls = find_method("prototypes")
    plain = seen(cls(cls.Config(name="prototypes"), tiny_encoder()), 2, 4)
    method = seen(learner(tiny_encoder(), tuning, untuned=True), 2, 4)
    close(method.predict(IMAGES), plain.predict(IMAGES))
    assert torch.equal(method.predict(IMAGES).argmax(dim=1), plain.predict(IMAGES).argmax(dim=1))
    tuned = seen(learner(tiny_encoder(), tuning), 2, 4)
    assert (tuned.predict(IMAGES) - plain.predict(IMAGES)).abs().max() > 1e-3


def test_the_longer_half_counts_for_more(tiny_encoder) -> None:
    """The cosine is over both halves at once: g alone decides when it is long, f alone when it is short."""
    scores = {}
    for factor in (1e-4, 1.0, 3.0, 1e4):
        method: Any = learner(tiny_encoder(), "full")
        tuned = method.tuning.features
        method.tuning.features = lambda *inputs, c=factor, own=tuned, **named: c * own(*inputs, **named)
        scores[factor] = seen(method, 2, 4).predict(IMAGES)
    assert (scores[3.0] - scores[1.0]).abs().max() > 1e-3
    method = learner(tiny_encoder(), "full")
    for factor, half in ((1e-4, method.encoder.features(IMAGES)), (1e4, method.tuning.encoder.features(IMAGES))):
        means = torch.stack([half[label == LABELS].mean(dim=0) for label in range(6)])
        close(scores[factor], F.cosine_similarity(half[:, None], means[None], dim=2))


@ALL
def test_predictions_take_two_passes_and_training_one(tiny_encoder, tuning) -> None:
    method, passes = learner(tiny_encoder(), tuning), []
    for encoder in {method.encoder, getattr(method.tuning, "encoder", method.encoder)}:
        encoder.blocks[0].register_forward_pre_hook(lambda module, x: passes.append(len(x[0])))
    next(method.losses(Batch(IMAGES, LABELS % 2)))
    assert passes == [24]
    assert measure(method)["forwards_per_prediction"] == 2


@ALL
def test_a_prediction_does_not_depend_on_its_batch(tiny_encoder, tuning) -> None:
    method = seen(learner(tiny_encoder(), tuning), 2, 4)
    together = method.predict(IMAGES)
    close(torch.cat([method.predict(image[None]) for image in IMAGES]), together)


@ALL
def test_half_precision_changes_little(tiny_encoder, tuning) -> None:
    method = learner(tiny_encoder(), tuning)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = next(method.losses(Batch(IMAGES, LABELS % 2)))["cross_entropy"]
        rough = seen(copy.deepcopy(method), 2, 4).predict(IMAGES)
    assert loss.dtype == rough.dtype == torch.float32
    torch.testing.assert_close(rough, seen(method, 2, 4).predict(IMAGES), atol=0.05, rtol=0)


# --- state, options ---------------------------------------------------------------------------------------------------


@ALL
def test_a_checkpoint_brings_back_both_halves(tiny_encoder, stream, tuning) -> None:
    method = learned(tuning, tiny_encoder(), stream)
    x = next(stream.train_all().batches(12, device=torch.device("cpu"))).inputs
    state = {name: value.clone() for name, value in method.own_state().items()}
    assert {name.split(".")[0] for name in state} == {"tuning", "means"}
    weights = {f"tuning.encoder.{name}" for name in method.encoder.state_dict()}
    assert (weights <= state.keys()) == (tuning == "full")
    torch.manual_seed(1)
    other = APER(APERConfig(name="aper", tuning=tuning, rank=4), tiny_encoder())
    for task in stream.tasks:
        other.grow(task)
    other.load_own_state(state)
    assert torch.equal(other.eval().predict(x), method.predict(x))


@ALL
def test_a_deep_copy_is_independent(tiny_encoder, tuning) -> None:
    method = seen(learner(tiny_encoder(), tuning), 2, 4)
    before, other = method.predict(IMAGES), copy.deepcopy(method)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.1).add_(0.1)
    assert not torch.equal(other.predict(IMAGES), before)
    assert torch.equal(method.predict(IMAGES), before)


def test_a_first_task_of_one_class_is_refused(tiny_encoder) -> None:
    method = APER(APERConfig(name="aper"), tiny_encoder())
    with pytest.raises(RecipeError, match=r"the first task has a single class, .* use a larger first task"):
        method.grow(tasks(1)[0])
    assert seen(learner(tiny_encoder()), 2, 1).predict(IMAGES).shape == (24, 3)  # later ones may have one


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tuning": "lora"}, r"method\.tuning"),
        ({"rank": 0}, r"method\.rank"),
        ({"length": 0}, r"method\.length"),
        ({"cross_entropy": "all_seen"}, r"method\.cross_entropy"),
    ],
)
def test_recipes_that_cannot_be(options, message) -> None:
    with pytest.raises(RecipeError, match=message):
        read_recipe("digits", {"method": {"name": "aper", **options}})


def test_defaults(tiny_encoder) -> None:
    config = APERConfig(name="aper")
    assert (config.tuning, config.rank, config.length) == ("adapter", 64, 5)
    torch.manual_seed(0)
    method: Any = APER(config, tiny_encoder())
    method.grow(tasks(2)[0])
    assert (method.tuning.scale, method.tuning.dropout) == (0.1, 0.1)
    assert method.tuning.down.shape == (2, 64, 32)
    settings = {"optimizer": "sgd", "learning_rate": 0.01, "weight_decay": 5e-4, "schedule": "cosine"}
    assert APER.fit_defaults(None) == settings
    assert read_recipe("digits", {"method": "aper"}).fit.momentum == 0.9
    assert method.classifier() is None
