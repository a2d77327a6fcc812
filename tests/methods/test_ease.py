"""EASE against plain-tensor evaluations of the method card's formulas: spaces, completed prototypes, scores."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from lorica.config import read_recipe
from lorica.cost import measure
from lorica.data.images import ImageReader
from lorica.data.stream import Stream
from lorica.errors import RecipeError
from lorica.methods import find_method
from lorica.methods.base import Context
from lorica.methods.ease import EASE, EASEConfig
from lorica.training import Fit, learn_task
from lorica.types import Batch, Task

FIT = Fit(
    epochs=2,
    batch_size=8,
    optimizer="sgd",
    learning_rate=0.05,
    momentum=0.9,
    weight_decay=5e-3,
    schedule="cosine",
    augment="none",
)
SIZES = (3, 1, 2, 4)  # classes of a task
CLASSES = [range(3), range(3, 4), range(4, 6), range(6, 10)]
TASKS = [Task.of_new_classes(t, classes[0], tuple(f"class {c}" for c in classes)) for t, classes in enumerate(CLASSES)]
TASK_OF = [t for t, classes in enumerate(CLASSES) for _ in classes]
IMAGES = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def learner(encoder, tasks: int = 4, **options) -> EASE:
    """Grown for that many tasks, with trained-looking values and random prototypes, measured and completed alike."""
    torch.manual_seed(0)
    method = EASE(EASEConfig(name="ease", **{"rank": 3, **options}), encoder)
    for task in TASKS[:tasks]:
        method.grow(task)
        with torch.no_grad():
            for parameter in method.trainable():
                parameter.normal_()
    for means in method.class_means():
        means.prototypes.normal_()
    return method.eval()


def block_with(vit_block, adapters, number: int, tokens: Tensor) -> Tensor:
    """A block of the plain backbone and the card's formula for what is added."""
    u = tokens + vit_block.attn(vit_block.norm1(tokens))
    down, up = adapters.down[number], adapters.up[number]
    hidden = (u @ down.T + adapters.down_bias[number]).clamp_min(0)
    return u + vit_block.mlp(vit_block.norm2(u)) + 0.1 * (hidden @ up.T + adapters.up_bias[number])


@torch.no_grad()
def features_of(plain, method: EASE, task: int, inputs: Tensor) -> Tensor:
    tokens = plain.embed(inputs)
    for number, block in enumerate(plain.blocks):
        tokens = block_with(block, method.adapters[task], number, tokens)
    return plain.pool(tokens)


def cosine(a: Tensor, b: Tensor) -> float:
    x, y = a.double().numpy(), b.double().numpy()
    return float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))


def train(method: EASE, stream: Stream, tasks: range) -> None:
    accelerator = Accelerator(cpu=True)
    for task in stream.tasks[tasks.start : tasks.stop]:
        learn_task(method, task, stream.train(task), FIT, seed=0, accelerator=accelerator)


@pytest.fixture
def stream(six_classes) -> Stream:
    return Stream(six_classes, classes_per_task=[3, 2, 1], reader=ImageReader(32))


def all_of(data) -> Batch:
    return next(data.batches(100, device=torch.device("cpu")))


# --- spaces, (1) ----------------------------------------------------------------------------------------------------


def test_a_new_space_is_the_plain_backbones(tiny_encoder) -> None:
    method = EASE(EASEConfig(name="ease"), tiny_encoder())
    method.grow(TASKS[0])
    torch.testing.assert_close(method.in_spaces(IMAGES)[0], tiny_encoder().features(IMAGES), atol=1e-6, rtol=0)
    sizes = {name: parameter.shape for name, parameter in method.adapters[0].named_parameters()}
    assert sizes == {"down": (2, 64, 32), "up": (2, 32, 64), "down_bias": (2, 64), "up_bias": (2, 32)}


def test_features_in_every_space(tiny_encoder) -> None:
    method, plain = learner(tiny_encoder(), backbone_weight=1.0), tiny_encoder()
    spaces = method.in_spaces(IMAGES)
    assert len(spaces) == 5
    for task in range(4):
        torch.testing.assert_close(spaces[task], features_of(plain, method, task, IMAGES), atol=1e-5, rtol=1e-4)
    assert torch.equal(spaces[4], plain.features(IMAGES))
    assert not torch.allclose(spaces[0], spaces[1], atol=0.1)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in method.modules())


def test_the_loss_is_over_the_classes_of_the_task_alone(tiny_encoder) -> None:
    method, plain = learner(tiny_encoder()), tiny_encoder()
    labels = torch.tensor([6, 7, 9, 8, 6, 9])
    [terms] = method.losses(Batch(IMAGES, labels))
    assert terms.keys() == {"cross_entropy"}
    features, (weight, scale) = features_of(plain, method, 3, IMAGES), (method.head.weight, method.head.scale)
    logits = torch.tensor([[scale.item() * cosine(f, w) for w in weight.detach()] for f in features])
    assert logits.shape == (6, 4)
    expected = -logits.log_softmax(dim=1)[range(6), labels - 6].mean()
    assert terms["cross_entropy"].item() == pytest.approx(expected.item(), abs=1e-5)


def test_the_head_starts_with_a_scale_that_trains(tiny_encoder) -> None:
    method = learner(tiny_encoder(), 3)
    method.grow(TASKS[3])
    assert method.head.scale == 16
    as_released = EASE(EASEConfig(name="ease", head_scale=1.0), tiny_encoder())
    as_released.grow(TASKS[0])
    assert as_released.head.scale == 1
    assert method.head.weight.shape == (4, 32)


def test_hidden_units_drop_in_training_only(tiny_encoder) -> None:
    data = Batch(IMAGES, torch.tensor([0, 1, 2, 0, 1, 2]))

    def differs(**options) -> bool:
        method = learner(tiny_encoder(), 1, rank=20, **options).train()
        first, second = (next(method.losses(data))["cross_entropy"] for _ in range(2))
        method.eval()
        again = [next(method.losses(data))["cross_entropy"] for _ in range(2)]
        assert again[0] == again[1]
        return bool(first != second)

    assert differs()
    assert not differs(dropout=0.0)


def test_a_grown_method_predicts_without_dropout(tiny_encoder) -> None:
    """Loading grows anew: what is grown predicts the same each time, though never trained or put in a mode."""
    torch.manual_seed(0)
    method = EASE(EASEConfig(name="ease"), tiny_encoder())
    method.grow(TASKS[0])
    with torch.no_grad():
        method.adapters[0].up.normal_()
    assert torch.equal(method.in_spaces(IMAGES)[0], method.in_spaces(IMAGES)[0])


def test_a_task_trains_its_own_adapters_and_head(tiny_encoder) -> None:
    method = learner(tiny_encoder(), 3)
    trained = {id(parameter) for parameter in method.trainable()}
    names = {name for name, parameter in method.named_parameters() if id(parameter) in trained}
    assert names == {f"adapters.2.{part}" for part in ("down", "down_bias", "up", "up_bias")} | {
        "head.weight",
        "head.scale",
    }


@pytest.mark.parametrize("recalculate", [True, False])
def test_what_is_learned_keeps_its_bits(tiny_encoder, stream, recalculate) -> None:
    method = EASE(EASEConfig(name="ease", rank=3, recalculate=recalculate), tiny_encoder())
    train(method, stream, range(2))
    inputs = all_of(stream.train_all()).inputs
    adapters = {name: value.clone() for name, value in method.own_state().items() if name.startswith("adapters.")}
    spaces, means = method.in_spaces(inputs), [each.prototypes.clone() for each in method.class_means()]
    assert all(adapters[f"adapters.{t}.up"].any() for t in range(2))
    train(method, stream, range(2, 3))
    state = method.own_state()
    assert all(torch.equal(state[name], value) for name, value in adapters.items())
    for t in range(2):
        assert torch.equal(method.in_spaces(inputs)[t], spaces[t])
    first, second, _ = (each.prototypes for each in method.class_means())
    assert torch.equal(first[:5], means[0])
    assert torch.equal(second[3:5], means[1][3:5])
    assert torch.equal(second[:3], means[1][:3]) != recalculate  # the completed ones


# --- prototypes, (2) ------------------------------------------------------------------------------------------------


def test_prototypes_are_means_of_raw_features_in_every_space(tiny_encoder, stream) -> None:
    method = EASE(EASEConfig(name="ease", rank=3, backbone_weight=1.0), tiny_encoder())
    train(method, stream, range(3))
    for task in stream.tasks:
        data = all_of(stream.train(task))
        spaces = [features_of(tiny_encoder(), method, i, data.inputs) for i in range(task.index + 1)]
        measured = [*method.class_means()[: task.index + 1], method.plain_means]
        for features, means in zip([*spaces, tiny_encoder().features(data.inputs)], measured, strict=True):
            for label in task.classes:
                expected = features[data.labels == label].mean(dim=0)
                torch.testing.assert_close(means.prototypes[label], expected, atol=1e-5, rtol=1e-4)


def completed(measured: list[Tensor], old: int, space: int, known: list[int], temperature: float = 1.0) -> Tensor:
    """(2) one class at a time, in float64."""
    tau = TASK_OF[old]
    exponentials = [math.exp(cosine(measured[tau][old], measured[tau][n]) / temperature) for n in known]
    terms = [e / sum(exponentials) * measured[space][n].double() for e, n in zip(exponentials, known, strict=True)]
    return torch.stack(terms).sum(dim=0)


@pytest.mark.parametrize("temperature", [1.0, 0.2])
def test_missing_prototypes_by_hand(tiny_encoder, temperature) -> None:
    method = learner(tiny_encoder(), temperature=temperature)
    before = [each.prototypes.clone() for each in method.class_means()]
    for space in TASKS:
        method.complete(space)
    for space, means in enumerate(method.class_means()):
        known = [n for n in range(10) if TASK_OF[n] >= space]
        for c in range(10):
            if c in known:
                assert torch.equal(means.prototypes[c], before[space][c])
            else:
                expected = completed(before, c, space, known, temperature)
                torch.testing.assert_close(means.prototypes[c].double(), expected, atol=1e-5, rtol=1e-4)


def one_image_each(task: Task) -> Context:
    """The end of a task whose classes have one image each."""
    labels = torch.tensor(task.classes)
    images = torch.rand(len(labels), 3, 32, 32, generator=torch.Generator().manual_seed(task.index))
    return Context(task, lambda: iter([Batch(images, labels)]), epochs=1, steps=1, descend=lambda *_, **__: None)


@pytest.mark.parametrize("recalculate", [True, False])
def test_what_each_task_completes(tiny_encoder, recalculate) -> None:
    """Anew: all spaces, from all classes measured there. Once: the newest space, from the classes of its task."""
    torch.manual_seed(0)
    method = EASE(EASEConfig(name="ease", rank=3, recalculate=recalculate), tiny_encoder())
    for task in TASKS:
        method.grow(task)
        with torch.no_grad():
            for parameter in method.trainable():
                parameter.normal_()
        method.end_task(one_image_each(task))
    prototypes = [each.prototypes for each in method.class_means()]
    for space in range(1, 4):
        known = [n for n in range(10) if (TASK_OF[n] >= space if recalculate else TASK_OF[n] == space)]
        for old in range(CLASSES[space][0]):
            expected = completed(prototypes, old, space, known)
            torch.testing.assert_close(prototypes[space][old].double(), expected, atol=1e-4, rtol=1e-4)


def test_completed_prototypes_are_never_a_source(tiny_encoder) -> None:
    method = learner(tiny_encoder())
    for space in TASKS:
        method.complete(space)
    wanted = [each.prototypes.clone() for each in method.class_means()]
    for space, means in enumerate(method.class_means()):
        means.prototypes[: CLASSES[space][0]] = math.nan
    for space in reversed(TASKS):
        method.complete(space)
    assert all(torch.equal(each.prototypes, old) for each, old in zip(method.class_means(), wanted, strict=True))


def test_a_completed_prototype_is_a_convex_combination(tiny_encoder) -> None:
    """With unit vectors as the measured ones, the completed one shows its weights."""
    method = learner(tiny_encoder(), 2)
    method.grow(TASKS[2])
    third = method.class_means()[2].prototypes
    third[4:] = torch.eye(32)[:2]
    method.complete(TASKS[2])
    weights = third[:4, :2]
    assert (weights > 0).all()
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(4))
    assert not third[:4, 2:].any()
    assert (weights.amax(dim=1) / weights.amin(dim=1)).max() <= math.exp(2)  # cosines are 2 apart at the most


def test_at_low_temperature_the_nearest_class_stands_in(tiny_encoder) -> None:
    method = learner(tiny_encoder(), 3, temperature=1e-4)
    first, _, third = (each.prototypes for each in method.class_means())
    nearest = [4 + int(cosine(first[o], first[5]) > cosine(first[o], first[4])) for o in range(3)]
    method.complete(TASKS[2])
    torch.testing.assert_close(third[:3], third[nearest])


def test_at_temperature_one_weights_are_nearly_equal(tiny_encoder) -> None:
    """The number in the file: ten cosines spread over 0.2 to 0.9."""
    method = EASE(EASEConfig(name="ease", rank=1), tiny_encoder())
    old, new = Task.of_new_classes(0, 0, ("old",)), Task.of_new_classes(1, 1, tuple("abcdefghij"))
    method.grow(old)
    method.grow(new)
    first, second = (each.prototypes for each in method.class_means())
    angles = torch.linspace(0.2, 0.9, 10).acos()
    first[0, 0], first[1:, 0], first[1:, 1] = 1, angles.cos(), angles.sin()
    second[1:, :10] = torch.eye(10)
    method.complete(new)
    assert second[0, 0].item() == pytest.approx(0.07, abs=0.005)
    assert second[0, 9].item() == pytest.approx(0.14, abs=0.005)


# --- scores, (3) ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("alpha", "beta"), [(0.1, 0.0), (0.7, 1.5), (0.0, 0.0)])
@pytest.mark.parametrize("tasks", [1, 2, 4])
def test_scores_by_hand(tiny_encoder, tasks, alpha, beta) -> None:
    method = learner(tiny_encoder(), tasks, others_weight=alpha, backbone_weight=beta)
    spaces = [features_of(tiny_encoder(), method, i, IMAGES) for i in range(tasks)]
    plain = tiny_encoder().features(IMAGES)
    logits = method.predict(IMAGES).detach()
    assert logits.shape == (6, sum(SIZES[:tasks]))
    for x in range(6):
        for c in range(sum(SIZES[:tasks])):
            score = 0.0
            for i, features in enumerate(spaces):
                weight = 1.0 if i == TASK_OF[c] else alpha / (tasks - 1)
                score += weight * cosine(features[x], method.class_means()[i].prototypes[c])
            if beta:
                score += beta * cosine(plain[x], method.plain_means.prototypes[c])
            assert logits[x, c].item() == pytest.approx(score, abs=1e-5)


def test_without_alpha_other_spaces_do_not_matter(tiny_encoder) -> None:
    for alpha, matters in ((0.0, False), (0.1, True)):
        method = learner(tiny_encoder(), others_weight=alpha)
        before = method.predict(IMAGES)
        for space, means in enumerate(method.class_means()):
            for c in range(10):
                if TASK_OF[c] != space:
                    means.prototypes[c].normal_()
        assert torch.equal(method.predict(IMAGES), before) != matters


def test_each_space_has_a_cosine_of_its_own(tiny_encoder) -> None:
    method = learner(tiny_encoder())
    before = method.predict(IMAGES)
    method.class_means()[1].prototypes *= 50
    torch.testing.assert_close(method.predict(IMAGES), before)


def test_cosines_are_in_full_precision_under_autocast(tiny_encoder) -> None:
    method = learner(tiny_encoder(), 3, backbone_weight=1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        [terms] = method.losses(Batch(IMAGES, torch.tensor([4, 5, 4, 5, 4, 5])))
        logits = method.predict(IMAGES)
    assert {logits.dtype, terms["cross_entropy"].dtype} == {torch.float32}
    torch.testing.assert_close(logits, method.predict(IMAGES), atol=0.1, rtol=0.1)


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_passes_and_floats_in_the_ledger(tiny_encoder, beta) -> None:
    adapters = 2 * (2 * 3 * 32 + 3 + 32)  # two blocks, rank 3, biases
    for tasks in (1, 2, 4):
        cost = measure(learner(tiny_encoder(), tasks, backbone_weight=beta))
        assert cost["forwards_per_prediction"] == tasks + bool(beta)
        assert cost["trainable_by_kind"] == {"adapters": adapters, "head": SIZES[tasks - 1] * 32 + 1}
        prototypes = sum(SIZES[:tasks]) * (tasks + bool(beta)) * 32
        assert cost["stored_by_kind"] == {"adapters": tasks * adapters, "head": prototypes}


# --- whole runs, options --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"backbone_weight": 1.0, "recalculate": False}])
def test_uneven_tasks_train_and_load(tiny_encoder, stream, options) -> None:
    def build() -> EASE:
        return EASE(EASEConfig(name="ease", rank=8, **options), tiny_encoder())

    method, copied = build(), build()
    train(method, stream, range(3))
    data = all_of(stream.train_all())
    logits = method.predict(data.inputs)
    assert (logits.argmax(dim=1) == data.labels).float().mean() > 0.8  # chance is 1/6
    for task in stream.tasks:
        copied.grow(task)
    copied.restore_structure(json.loads(json.dumps(method.structure())))
    copied.load_own_state({name: value.clone() for name, value in method.own_state().items()})
    assert torch.equal(copied.predict(data.inputs), logits)
    assert not any(name.startswith(("head.", "encoder.")) for name in method.own_state())


@pytest.mark.parametrize(
    "options",
    [
        {"rank": 0},
        {"scale": 0},
        {"dropout": 1},
        {"dropout": -0.1},
        {"others_weight": -0.1},
        {"backbone_weight": -1},
        {"temperature": 0},
        {"recalculate": "sometimes"},
        {"cross_entropy": "all_seen"},
    ],
)
def test_recipes_that_cannot_be(options) -> None:
    with pytest.raises(RecipeError, match=next(iter(options))):
        read_recipe("digits", {"method": {"name": "ease", **options}})


def test_defaults() -> None:
    method = find_method("ease")
    assert method is EASE
    assert method.variants() == (None,)
    imagenet_r = {"optimizer": "sgd", "learning_rate": 0.05, "weight_decay": 5e-3, "schedule": "cosine"}
    assert method.fit_defaults(None) == imagenet_r
    config = EASEConfig(name="ease")
    assert (config.rank, config.scale, config.dropout) == (64, 0.1, 0.1)
    assert (config.others_weight, config.backbone_weight, config.temperature) == (0.1, 0.0, 1.0)
    assert config.recalculate


# --- collapse -------------------------------------------------------------------------------------------------------


def test_diagnostics_tell_how_each_task_ended(tiny_encoder, stream) -> None:
    method = EASE(EASEConfig(name="ease", rank=3), tiny_encoder())
    for number in range(3):
        train(method, stream, range(number, number + 1))
        new = list(stream.tasks[number].new_classes)
        own = method.class_means()[number].prototypes[new]
        pairs = [cosine(own[i], own[j]) for i in range(len(new)) for j in range(i)]
        told = method.diagnostics()
        assert told["scale"] == method.head.scale.item()
        expected = np.mean(pairs) if pairs else None  # the last task has one class
        assert told["mean_cosine"] == pytest.approx(expected, abs=1e-5)
