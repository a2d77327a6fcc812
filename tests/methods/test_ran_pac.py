"""RanPAC: its random features, sums and choice of lambda against numpy, and what the first task alone may train."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator

from lorica.config import read_recipe
from lorica.cost import measure
from lorica.data.images import ImageReader
from lorica.data.stream import Stream
from lorica.errors import RecipeError
from lorica.linalg import COLUMNS
from lorica.methods import Context
from lorica.methods.ran_pac import RanPAC, RanPACConfig
from lorica.statistics import RIDGES
from lorica.training import Fit, learn_task
from lorica.types import Batch, Task

TASKS = [
    Task.of_new_classes(0, 0, ("a", "b")),
    Task.of_new_classes(1, 2, ("c", "d", "e")),
    Task.of_new_classes(2, 5, ("f",)),
]  # of different sizes
TUNINGS = ("adapter", "scale_and_shift", "deep_prompts", "none")
M = 48
FIT = Fit(
    epochs=1,
    batch_size=8,
    optimizer="adam",
    learning_rate=0.01,
    momentum=0.9,
    weight_decay=0.01,
    schedule="constant",
    augment="none",
)


def build(encoder, **options) -> RanPAC:
    return RanPAC(RanPACConfig(name="ran_pac", **{"width": M, "rank": 3, "length": 2, **options}), encoder)


def images(number: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.rand(number, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def context(method: RanPAC, inputs: torch.Tensor, labels: torch.Tensor, batch_size: int = 4) -> Context:
    def batches():
        return (Batch(*pair) for pair in zip(inputs.split(batch_size), labels.split(batch_size), strict=True))

    return Context(method.task, batches, 1, 1, lambda parameters, epochs: None)


def data(task: Task, each: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of a task: noise around a colour that depends on the class."""
    labels = torch.tensor(task.classes).repeat(each)
    colours = torch.rand(6, 3, generator=torch.Generator().manual_seed(9))
    return (0.5 * images(len(labels), seed=task.index) + 0.5 * colours[labels][:, :, None, None]), labels


def learned(encoder, tasks: list[Task] = TASKS, **options) -> RanPAC:
    """Without a descent: what is tuned has random values instead."""
    torch.manual_seed(0)
    method = build(encoder, **options)
    for task in tasks:
        method.grow(task)
        with torch.no_grad():
            for parameter in method.trainable():
                parameter.add_(0.1 * torch.randn_like(parameter))
        method.end_task(context(method, *data(task)))
    return method


def learn(method: RanPAC, stream: Stream, tasks: range) -> None:
    for task in stream.tasks[tasks.start : tasks.stop]:
        learn_task(method, task, stream.train(task), FIT, seed=0, accelerator=Accelerator(cpu=True))


def rows(method: RanPAC, inputs: torch.Tensor) -> np.ndarray:
    """H, one image at a time."""
    with torch.no_grad():
        features = [method.features(image[None])[0].double().numpy() for image in inputs]
    return np.maximum(np.stack(features) @ method.projection.double().numpy(), 0)


# --- the first task -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tuning", TUNINGS)
def test_only_the_first_task_trains(tiny_encoder, tuning) -> None:
    torch.manual_seed(0)
    method = build(tiny_encoder(), tuning=tuning)
    method.grow(TASKS[0])
    shapes = [tuple(parameter.shape) for parameter in method.trainable()]
    head, operations = [(2, 32), ()], tiny_encoder().operations()
    assert (
        shapes
        == {
            "adapter": [(2, 3, 32), (2, 3), (2, 32, 3), (2, 32), *head],
            "scale_and_shift": [(width,) for _ in range(2) for width in operations.values()] + head,
            "deep_prompts": [(2, 2, 32), *head],
            "none": [],
        }[tuning]
    )
    method.grow(TASKS[1])
    assert method.trainable() == []
    assert not hasattr(method, "head")


@pytest.mark.parametrize("tuning", ["adapter", "scale_and_shift", "deep_prompts"])
def test_the_first_loss_by_hand(tiny_encoder, tuning) -> None:
    torch.manual_seed(0)
    method = build(tiny_encoder(), tuning=tuning)
    method.grow(TASKS[0])
    with torch.no_grad():
        method.head.scale.fill_(4)
    x, y = data(TASKS[0])
    [terms] = method.losses(Batch(x, y))
    f = method.features(x).detach().numpy()
    w = method.head.weight.detach().numpy()
    cosines = f @ w.T / np.linalg.norm(f, axis=1)[:, None] / np.linalg.norm(w, axis=1)
    likelihood = np.exp(4 * cosines) / np.exp(4 * cosines).sum(axis=1, keepdims=True)
    assert list(terms) == ["cross_entropy"]
    assert terms["cross_entropy"].item() == pytest.approx(-np.log(likelihood[range(10), y]).mean(), rel=1e-5)


def test_an_adapter_starts_as_the_plain_backbone(tiny_encoder) -> None:
    method = build(tiny_encoder())
    method.grow(TASKS[0])
    assert torch.equal(method.features(images()), tiny_encoder().features(images()))
    nothing = build(tiny_encoder(), tuning="none")
    nothing.grow(TASKS[0])
    assert torch.equal(nothing.features(images()), tiny_encoder().features(images()))


@pytest.mark.parametrize("tuning", TUNINGS)
def test_nothing_but_the_regression_changes_after_the_first_task(tiny_encoder, six_classes, tuning) -> None:
    stream, method = Stream(six_classes, tasks=3, reader=ImageReader(32)), build(tiny_encoder(), tuning=tuning)
    learn(method, stream, range(1))
    before = {name: value.clone() for name, value in method.state_dict().items()}
    plain = tiny_encoder().state_dict()
    assert all(torch.equal(method.encoder.state_dict()[name], value) for name, value in plain.items())
    assert (tuning == "none") == torch.equal(method.features(images()), method.encoder.features(images()))
    learn(method, stream, range(1, 3))
    after = method.state_dict()
    changed = {name for name in before.keys() & after.keys() if not torch.equal(before[name], after[name])}
    assert changed - {"regression.ridge"} == {"regression.gram", "regression.targets", "regression.weight"}
    assert {name.split(".")[0] for name in method.own_state()} == (
        {"projection", "regression"} | ({"tuning"} - {tuning if tuning != "none" else "tuning"})
    )


# --- random features ------------------------------------------------------------------------------------------------


def test_the_projection_is_drawn_once_and_after_the_first_task(tiny_encoder) -> None:
    method = build(tiny_encoder())
    method.grow(TASKS[0])
    assert not method.projection.any()
    torch.manual_seed(5)
    method.end_task(context(method, *data(TASKS[0])))
    drawn = method.projection.clone()
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.randn(32, M))
    method.grow(TASKS[1])
    method.end_task(context(method, *data(TASKS[1])))
    assert torch.equal(method.projection, drawn)
    loaded = build(tiny_encoder())
    for task in TASKS[:2]:
        loaded.grow(task)
    loaded.load_own_state(method.own_state())
    loaded.end_task(context(loaded, *data(TASKS[1])))
    assert torch.equal(loaded.projection, drawn)


def test_random_features_by_hand(tiny_encoder) -> None:
    method = learned(tiny_encoder())
    f = method.features(images()).detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        h = method.random_features(f)
    np.testing.assert_allclose(h.numpy(), rows(method, images()), rtol=1e-4, atol=1e-4)
    assert h.dtype == torch.float32
    assert (h == 0).any()


# --- the regression -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tuning", TUNINGS)
def test_logits_are_those_of_one_regression_on_all_images(tiny_encoder, tuning) -> None:
    method = learned(tiny_encoder(), tuning=tuning)
    parts = [data(task) for task in TASKS]
    h = np.concatenate([rows(method, x) for x, _ in parts])
    y = np.eye(6)[np.concatenate([labels.numpy() for _, labels in parts])]
    np.testing.assert_allclose(method.regression.gram.numpy(), h.T @ h, rtol=1e-4, atol=1e-2)
    np.testing.assert_allclose(method.regression.targets.numpy(), h.T @ y, rtol=1e-4, atol=1e-2)
    method.regression.solve(10.0)
    stacked = np.concatenate([h, 10**0.5 * np.eye(M)]), np.concatenate([y, np.zeros((M, 6))])
    expected = rows(method, images()) @ np.linalg.lstsq(*stacked, rcond=None)[0]
    with torch.no_grad():
        np.testing.assert_allclose(method.predict(images()).numpy(), expected, atol=1e-3)


def test_given_lambda_the_order_of_tasks_changes_nothing(tiny_encoder) -> None:
    """And given features; the classes are numbered as they come."""
    ordered = learned(tiny_encoder(), tuning="none")
    torch.manual_seed(0)
    other, columns = build(tiny_encoder(), tuning="none"), []
    for place, task in enumerate([TASKS[2], TASKS[0], TASKS[1]]):
        other.grow(Task.of_new_classes(place, len(columns), task.class_names))
        x, y = data(task)
        other.end_task(context(other, x, y - task.classes[0] + len(columns), batch_size=3))
        columns += task.classes
    assert torch.equal(ordered.projection, other.projection)
    for each in (ordered, other):
        each.regression.solve(10.0)
    np.testing.assert_allclose(other.regression.gram, ordered.regression.gram, rtol=1e-6)
    np.testing.assert_allclose(other.regression.weight, ordered.regression.weight[:, columns], atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(other.predict(images()), ordered.predict(images())[:, columns], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("each", [2, 5, 60])  # fewer and more images than random features
def test_lambda_is_chosen_on_a_random_fifth_of_the_task(tiny_encoder, each) -> None:
    method = learned(tiny_encoder(), TASKS[:1])
    method.grow(TASKS[1])
    x, y = data(TASKS[1], each)
    torch.manual_seed(3)
    method.end_task(context(method, x, y))
    torch.manual_seed(3)
    order = torch.randperm(3 * each).numpy()
    fit = 3 * each * 8 // 10
    h, one_hot = rows(method, x)[order], np.eye(5)[y.numpy()[order]]  # over all classes seen
    errors = []
    for ridge in RIDGES:
        stacked = np.concatenate([h[:fit], ridge**0.5 * np.eye(M)]), np.concatenate([one_hot[:fit], np.zeros((M, 5))])
        weight = np.linalg.lstsq(*stacked, rcond=None)[0]
        errors.append(np.square(h[fit:] @ weight - one_hot[fit:]).mean())
    assert method.diagnostics()["ridge"] == RIDGES[int(np.argmin(errors))]


def test_a_task_of_one_image_keeps_lambda(tiny_encoder) -> None:
    method = learned(tiny_encoder(), TASKS[:2])
    before = method.diagnostics()["ridge"]
    assert before != 1
    method.grow(TASKS[2])
    method.end_task(context(method, *data(TASKS[2], each=1)))
    assert method.diagnostics() == {"ridge": before}
    assert method.regression.targets[:, 5].any()
    alone = build(tiny_encoder(), tuning="none")
    alone.grow(Task.of_new_classes(0, 0, ("a",)))
    alone.end_task(context(alone, images(1), torch.tensor([0])))
    assert alone.diagnostics() == {"ridge": 1.0}


def test_it_learns(tiny_encoder, six_classes) -> None:
    stream, method = Stream(six_classes, tasks=3, reader=ImageReader(32)), build(tiny_encoder())
    learn(method, stream, range(3))
    for task in stream.tasks:
        [batch] = stream.test(task).batches(100, device=torch.device("cpu"))
        assert (method.predict(batch.inputs).argmax(dim=1) == batch.labels).float().mean() > 0.9


# --- state, cost, options -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tuning", TUNINGS)
def test_a_loaded_learner_predicts_and_goes_on_alike(tiny_encoder, tuning) -> None:
    method, loaded = learned(tiny_encoder(), TASKS[:2], tuning=tuning), build(tiny_encoder(), tuning=tuning)
    for task in TASKS[:2]:
        loaded.grow(task)
    loaded.restore_structure(json.loads(json.dumps(method.structure())))
    loaded.load_own_state(method.own_state())
    assert torch.equal(loaded.predict(images()), method.predict(images()))  # and without dropout
    assert loaded.diagnostics() == method.diagnostics()
    for each in (method, loaded):
        torch.manual_seed(1)
        each.grow(TASKS[2])
        each.end_task(context(each, *data(TASKS[2])))
    assert torch.equal(loaded.predict(images()), method.predict(images()))


def test_cost_is_that_of_the_sums_and_one_pass(tiny_encoder) -> None:
    method = learned(tiny_encoder())
    adapter = 2 * (3 * 32 + 3 + 32 * 3 + 32)
    cost, plain = measure(method), learned(tiny_encoder(), width=1)
    assert cost["stored_by_kind"] == {
        "projection": 32 * M,
        "regression": M * M + 2 * 6 * M + 1,  # G, Q and W_o, lambda
        "adapters": adapter,
    }
    assert cost["trainable"] == 0
    assert cost["forwards_per_prediction"] == 1
    assert cost["flops_per_prediction"] - measure(plain)["flops_per_prediction"] == 2 * (M - 1) * (32 + COLUMNS)
    assert measure(learned(tiny_encoder(), TASKS[:1]))["trainable_by_kind"] == {"head": 2 * 32 + 1, "adapters": adapter}


def test_defaults_are_the_papers() -> None:
    config = RanPACConfig(name="ran_pac")
    assert (config.tuning, config.rank, config.length, config.width) == ("adapter", 64, 5, 10_000)
    rates = {"optimizer": "sgd", "learning_rate": 0.01, "weight_decay": 5e-4, "schedule": "cosine"}
    assert RanPAC.fit_defaults(None) == rates
    assert RanPAC.variants() == (None,)


@pytest.mark.parametrize("key", ["width", "rank", "length"])
def test_sizes_are_at_least_one(key) -> None:
    with pytest.raises(RecipeError, match=f"method.{key}: Input should be greater than or equal to 1, given 0"):
        read_recipe("digits", {"method": {"name": "ran_pac", key: 0}})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tuning": "full"}, r"method\.tuning: Input should be 'adapter'"),
        ({"cross_entropy": "all_seen"}, r"method\.cross_entropy"),
        ({"variant": "paper"}, r"method\.variant: unknown key"),
    ],
)
def test_recipes_that_cannot_be(options, message) -> None:
    with pytest.raises(RecipeError, match=message):
        read_recipe("digits", {"method": {"name": "ran_pac", **options}})


def test_a_first_task_of_one_class_has_nothing_to_tell_apart(tiny_encoder) -> None:
    with pytest.raises(RecipeError, match=r"the first task has a single class, .* use a larger first task"):
        build(tiny_encoder()).grow(Task.of_new_classes(0, 0, ("a",)))
    method = build(tiny_encoder(), tuning="none")
    method.grow(Task.of_new_classes(0, 0, ("a",)))
    method.end_task(context(method, images(), torch.zeros(6, dtype=torch.long)))
    assert method.predict(images()).shape == (6, 1)


def test_autocast_leaves_random_features_and_logits_in_full_precision(tiny_encoder) -> None:
    method = learned(tiny_encoder())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = method.predict(images())
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, method.predict(images()), atol=0.2, rtol=0.2)
    cosines = F.cosine_similarity(logits, method.predict(images()))
    assert cosines.min() > 0.9


def test_diagnostics_tell_how_the_first_task_ended(tiny_encoder) -> None:
    method = learned(tiny_encoder(), TASKS[:1])
    x, y = data(TASKS[0])
    means = [method.features(x)[y == label].detach().mean(dim=0) for label in y.unique()]
    pairs = [float(a @ b / a.norm() / b.norm()) for a, b in itertools.combinations(means, 2)]
    assert method.diagnostics()["mean_cosine"] == pytest.approx(sum(pairs) / len(pairs), abs=1e-5)
    assert method.diagnostics()["scale"] == method.head.scale.item()
    method.grow(TASKS[1])
    assert method.diagnostics().keys() == {"ridge"}
