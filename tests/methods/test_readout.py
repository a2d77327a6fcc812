"""Other read-outs in place of a method's head: same training, other predictions, both accuracies."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from accelerate import Accelerator
from sklearn.linear_model import Ridge

import lorica
from lorica.cost import measure
from lorica.data.images import ImageReader
from lorica.data.stream import Stream
from lorica.errors import CheckpointError, LoricaError, RecipeError, TrainingError
from lorica.methods import Context, Kind, Method, Readout, build_method, find_method
from lorica.randomness import Draws
from lorica.run import check, default_folder, evaluate
from lorica.statistics import Gaussians, affine_drift
from lorica.training import Fit, learn_task
from lorica.types import Batch, Task

SMALL = {
    "dual_prompt": {"general_blocks": (0,), "blocks": (1,)},
    "hide_prompt": {"alignment_epochs": 2},
    "ran_pac": {"width": 64},
}
FIT = Fit(1, 8, "adam", 0.01, 0.9, 0.0, "constant", "none")


@pytest.fixture
def stream(six_classes) -> Stream:
    return Stream(six_classes, tasks=3, reader=ImageReader(32))


def built(name: str, encoder, readout: str = "prototypes", layers: int | None = None, drift: str = "none", **options):
    config = find_method(name).Config(name=name, **SMALL.get(name, {}), **options)
    return build_method(config, encoder, readout=readout, layers=layers, drift=drift)


def learn(method: Method, stream: Stream, tasks: range) -> None:
    for task in stream.tasks[tasks.start : tasks.stop]:
        learn_task(method, task, stream.train(task), FIT, seed=0, accelerator=Accelerator(cpu=True))


def learned(name: str, encoder, stream: Stream, readout: str, tasks: int = 3, **options):
    method = built(name, encoder, readout, **options)
    learn(method, stream, range(tasks))
    return method


def images_of(stream: Stream, *tasks: int) -> Batch:
    batches = [next(stream.train(stream.tasks[t]).batches(100, device=torch.device("cpu"))) for t in tasks]
    return Batch(torch.cat([each.inputs for each in batches]), torch.cat([each.labels for each in batches]))


# ---- training and predictions


@pytest.mark.parametrize(
    ("name", "readout", "options"),
    [
        ("sd_lora", "prototypes", {}),
        ("l2p", "discriminant", {"drift": "affine"}),
        ("hide_prompt", "ridge", {"layers": 1, "drift": "affine"}),
        ("full_finetune", "ridge", {"drift": "affine"}),
        ("ran_pac", "discriminant", {"layers": 2}),
        ("full_finetune", "aligned", {"drift": "affine"}),
        ("hide_prompt", "aligned", {}),
        ("gumbel_cl_lora", "aligned", {}),
    ],
)
def test_training_is_the_methods_own(name, readout, options, tiny_encoder, stream) -> None:
    read = learned(name, tiny_encoder(), stream, readout, 2, **options)
    plain = learned(name, tiny_encoder(), stream, "head", 2)
    assert isinstance(read, Readout)
    for key, value in plain.own_state().items():
        assert torch.equal(read.own_state()[f"learner.{key}"], value), key
    assert read.diagnostics() == plain.diagnostics()
    assert read.structure() == plain.structure()  # steps that a method counts, among it


def test_class_means(tiny_encoder, stream) -> None:
    read = learned("sd_lora", tiny_encoder(), stream, "prototypes", 2)
    batch = images_of(stream, 1)
    features = read.learner.features(batch.inputs)
    for label in (2, 3):  # of the latest task, whose features are as they were then
        mean = features[batch.labels == label].mean(dim=0)
        torch.testing.assert_close(
            read.predict(batch.inputs)[:, label], F.cosine_similarity(features, mean[None]), atol=1e-5, rtol=1e-5
        )


@pytest.mark.parametrize("layers", [None, 2])
def test_a_discriminant(layers, tiny_encoder, stream) -> None:
    """Written out; the trunk stays, so that the features of all tasks are there again."""
    read = learned("linear_probe", tiny_encoder(), stream, "discriminant", layers=layers)
    batch = images_of(stream, 0, 1, 2)
    x, y = read.features(batch.inputs).double().numpy(), batch.labels.numpy()
    assert x.shape[1] == (32 if layers is None else 2 * 2 * 32)
    means = np.stack([x[y == label].mean(0) for label in range(6)])
    within = (x - means[y]).T @ (x - means[y]) / (len(x) - 6)
    shrunk = 0.8 * within + 0.2 * np.trace(within) / len(within) * np.eye(len(within))
    rows = np.linalg.solve(shrunk, means.T).T
    expected = x @ rows.T - (rows * means).sum(1) / 2
    found = read.predict(batch.inputs).double().numpy()
    np.testing.assert_allclose(found - found[:, :1], expected - expected[:, :1], rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("layers", [None, 2])
def test_ridge_regression(layers, tiny_encoder, stream) -> None:
    read = learned("linear_probe", tiny_encoder(), stream, "ridge", layers=layers)
    batch = images_of(stream, 0, 1, 2)
    x, ridge = read.features(batch.inputs).double().numpy(), read.regression.ridge.item()
    expected = Ridge(alpha=ridge, solver="svd").fit(x, np.eye(6)[batch.labels]).predict(x)
    np.testing.assert_allclose(read.predict(batch.inputs).numpy(), expected, rtol=1e-2, atol=1e-3)


# ---- a head that is aligned


def gaussian(method: Readout, label: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance that are kept of a class."""
    factor = method.alignment.factors[label, 0].double().numpy()
    return method.alignment.means[label, 0].double().numpy(), factor @ factor.T


def aligning(method: Readout, task: Task, batch: Batch) -> list[dict[str, Any]]:
    """Ends a task without training: the stages that it asks for, and where the head then starts."""
    stages: list[dict[str, Any]] = []

    def descend(parameters: list[torch.nn.Parameter], epochs: int, **given: Any) -> None:
        stages.append({"parameters": parameters, "epochs": epochs, **given})

    method.end_task(Context(task, lambda: iter([batch]), 1, 1, descend))
    return stages


def test_what_is_kept_of_a_class(tiny_encoder, stream) -> None:
    read = learned("linear_probe", tiny_encoder(), stream, "aligned", layers=1)
    batch = images_of(stream, 0, 1, 2)
    features = read.features(batch.inputs).double().numpy()
    for label in range(6):
        own, (mean, covariance) = features[batch.labels == label], gaussian(read, label)
        np.testing.assert_allclose(mean, own.mean(0), atol=1e-5)
        expected = np.cov(own.T, bias=True) + 1e-4 * np.eye(own.shape[1])
        np.testing.assert_allclose(covariance, expected, atol=1e-5)


def test_the_gaussians_follow_the_new_images(tiny_encoder, stream) -> None:
    method = learned("lora", tiny_encoder(), stream, "aligned", 1, drift="affine")
    x, earlier = images_of(stream, 1).inputs, [gaussian(method, label) for label in (0, 1)]
    before = method.features(x)
    learn(method, stream, range(1, 2))
    after = method.features(x)
    weight, bias = (each.numpy() for each in affine_drift(before, after))
    assert not torch.equal(before, after)
    for label, (mean, covariance) in enumerate(earlier):
        moved, spread = gaussian(method, label)
        np.testing.assert_allclose(moved, weight @ mean + bias, atol=1e-4)
        np.testing.assert_allclose(spread, weight @ covariance @ weight.T, atol=1e-4)
        assert np.abs(moved - mean).max() > 1e-3
    own = after[images_of(stream, 1).labels == 2].double().numpy()
    np.testing.assert_allclose(gaussian(method, 2)[0], own.mean(0), atol=1e-5)  # not moved


def test_where_alignment_starts_and_what_it_minimises(tiny_encoder, stream) -> None:
    """SLCA's loss written out, over tasks of 2 and 1 new classes: the length of each task's logits, and their mean."""
    method = learned("full_finetune", tiny_encoder(), stream, "aligned", 1)
    first = method.learner.head.stacked()
    assert torch.equal(method.alignment.weight, first[0])  # a first task's is not aligned
    assert torch.equal(method.alignment.bias, first[1])
    task, batch = Task(1, (0, 2), (2,), stream.class_names[:3]), images_of(stream, 0, 1)
    batch = Batch(batch.inputs[batch.labels != 3], batch.labels[batch.labels != 3])
    kept = method.alignment.means[:2].clone()
    method.grow(task)
    (stage,) = aligning(method, task, batch)
    assert torch.equal(method.alignment.means[:2], kept)  # also of the class that returns
    weight, bias = method.learner.head.stacked()
    assert torch.equal(method.alignment.weight, weight)
    assert [id(each) for each in stage["parameters"]] == [id(method.alignment.weight), id(method.alignment.bias)]
    assert {
        key: stage[key] for key in ("epochs", "optimizer", "learning_rate", "momentum", "weight_decay", "schedule")
    } == {
        "epochs": 5,
        "optimizer": "sgd",
        "learning_rate": 0.01,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "schedule": "cosine",
    }
    drawn = list(stage["data"].batches(stage["batch_size"], device=torch.device("cpu"), draws=Draws(0)))
    assert (
        torch.cat([each.labels for each in drawn]).bincount().tolist()
        == [256] * 3
        == [len(each.labels) for each in drawn]
    )
    logits = drawn[0].inputs.double().numpy() @ weight.detach().double().numpy().T + bias.detach().double().numpy()
    lengths = (np.linalg.norm(logits[:, :2], axis=1) + np.abs(logits[:, 2])) / 2
    scaled = np.exp(logits / (0.1 * lengths[:, None]))
    right = scaled[np.arange(256), drawn[0].labels] / scaled.sum(1)
    (terms,) = stage["losses"](drawn[0])
    assert terms["alignment"].item() == pytest.approx(-np.log(right).mean(), rel=1e-4)


@pytest.mark.parametrize(("name", "layers"), [("l2p", None), ("full_finetune", 1)])
def test_without_a_linear_head_of_these_features_alignment_starts_at_the_means(
    name, layers, tiny_encoder, stream
) -> None:
    method = built(name, tiny_encoder(), "aligned", layers)
    method.grow(stream.tasks[0])
    assert len(aligning(method, stream.tasks[0], images_of(stream, 0))) == 1  # a first task's is aligned, too
    means = method.alignment.means[:, 0].double().numpy()
    centre = means.mean(0)
    rows = (means - centre) / np.linalg.norm(means - centre, axis=1, keepdims=True)
    np.testing.assert_allclose(method.alignment.weight.numpy(), rows, atol=1e-4)
    np.testing.assert_allclose(method.alignment.bias.numpy(), -rows @ centre, atol=1e-3)


def test_where_features_are_projected_alignment_does_not_start_at_a_head_of_wider_ones(tiny_encoder, stream) -> None:
    """RoLDA's classifier has the projection in it, and reads what the encoder gives."""
    options = {"enough": 1, "passes": 1, "rank": 2, "width": 48}
    method = learned("rolda", tiny_encoder(), stream, "aligned", 2, **options)
    assert method.alignment.weight.shape == (4, 48)
    assert method.classifier() is None
    batch = images_of(stream, 0, 1)
    assert (method.predict(batch.inputs).argmax(dim=1) == batch.labels).float().mean() > 0.8
    first = built("rolda", tiny_encoder(), "aligned", 2, **options)  # of the encoder's own features it does
    first.grow(stream.tasks[0])
    assert aligning(first, stream.tasks[0], images_of(stream, 0)) == []
    assert torch.equal(first.alignment.weight, first.learner.classifier().weight)


def test_alignment_is_of_the_head_alone_and_tells_tasks_apart(tiny_encoder, stream) -> None:
    """Heads that never saw each other's classes; draws are the same in each run, and the method's own head is as it
    was."""
    read, again = (learned("linear_probe", tiny_encoder(), stream, "aligned") for _ in range(2))
    assert torch.equal(read.alignment.weight, again.alignment.weight)
    assert not torch.equal(read.alignment.weight, read.learner.head.stacked()[0])
    batch, encoder = images_of(stream, 0, 1, 2), tiny_encoder()
    right = [(each.predict(batch.inputs).argmax(dim=1) == batch.labels).float().mean() for each in (read, read.learner)]
    assert right[0] > right[1]
    for key, value in read.encoder.state_dict().items():
        assert torch.equal(value, encoder.state_dict()[key])


def test_variances_alone_cannot_be_moved() -> None:
    gaussians = Gaussians(2, 3, full=False, device=torch.device("cpu"))
    with pytest.raises(ValueError, match="expected Gaussians with full covariances"):
        gaussians.move(torch.eye(2, dtype=torch.double), torch.zeros(2, dtype=torch.double))


# ---- features of several blocks

TOKENS_IN_FRONT = {"deep_prompts": 5, "shallow_prompts": 5}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("lora", {}),
        ("l2p", {"variant": "prefix"}),
        ("l2p", {}),
        ("dual_prompt", {}),
        ("coda_prompt", {}),
        ("hide_prompt", {}),
        *(("ran_pac", {"tuning": each}) for each in ("adapter", "scale_and_shift", "deep_prompts", "none")),
        *(("aper", {"tuning": each}) for each in ("shallow_prompts", "full")),
    ],
)
def test_features_of_several_blocks_are_those_on_the_way_to_the_single_one(name, options, tiny_encoder, stream) -> None:
    """What leaves the blocks while the method makes its own features, caught on its way."""
    method = learned(name, tiny_encoder(), stream, "head", 2, **options)
    tuned: Any = getattr(method, "tuning", None)
    encoders = {method.encoder, getattr(tuned, "encoder", method.encoder)}
    left: list[torch.Tensor] = []
    hooks = [
        block.register_forward_hook(lambda module, _, tokens: left.append(tokens))
        for encoder in encoders
        for block in encoder.blocks
    ]
    x = images_of(stream, 0, 1).inputs[::6]
    method.features(x)
    for hook in hooks:
        hook.remove()
    expected, halves = [], 2 if name == "aper" else 1
    for half, passing in enumerate([left[-2 * n :][:2] for n in range(halves, 0, -1)]):
        encoder = tuned.encoder if half and tuned is not None and hasattr(tuned, "encoder") else method.encoder
        first = TOKENS_IN_FRONT.get(options.get("tuning", ""), 0) if half == halves - 1 else 0
        first = 40 if (name, options) == ("l2p", {}) else first  # four prompts of ten tokens
        for tokens in passing:
            seen = encoder.vit.norm(tokens[:, first:])
            if options.get("tuning") == "scale_and_shift":  # which tunes this norm, too
                assert tuned is not None
                seen = seen * tuned.scales["vit_norm"] + tuned.shifts["vit_norm"]
            parts = [seen[:, 0], seen[:, 1:].mean(dim=1)]
            expected += [32**0.5 * each / each.norm(dim=1, keepdim=True) for each in parts]
    found = method.features(x, layers=2)
    torch.testing.assert_close(found, torch.cat(expected, dim=1), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(method.features(x, layers=99), found)
    torch.testing.assert_close(method.features(x, layers=1)[:, :64], found[:, 64:128])


def test_what_is_exported_reads_the_blocks_that_the_read_out_does(tiny_encoder, stream) -> None:
    def layers(name: str, own: int | None, **options) -> int | None:
        classifier = learned(name, tiny_encoder(), stream, "ridge", 1, layers=own, **options).classifier()
        return classifier and classifier.layers

    assert (layers("lora", None), layers("lora", 1), layers("lora", 9)) == (None, 1, 2)
    assert (layers("rolda", None), layers("rolda", 1)) == (2, 1)  # its own are five, or all there are
    ran_pac = learned("ran_pac", tiny_encoder(), stream, "ridge", 1)
    assert ran_pac.classifier() is None
    assert learned("ran_pac", tiny_encoder(), stream, "ridge", 1, tuning="none").classifier() is not None


# ---- drift


def test_means_of_earlier_classes_stay(tiny_encoder, stream) -> None:
    method = learned("sd_lora", tiny_encoder(), stream, "prototypes", 1)
    before = method.means.prototypes.clone()
    learn(method, stream, range(1, 2))
    assert torch.equal(method.means.prototypes[:2], before)
    assert method.means.prototypes[2:].any()


@pytest.mark.parametrize("layers", [None, 1])
def test_means_of_earlier_classes_move_as_the_new_images_do(layers, tiny_encoder, stream) -> None:
    method = learned("lora", tiny_encoder(), stream, "prototypes", 1, layers=layers, drift="affine")
    x, means = images_of(stream, 1).inputs, method.means.prototypes.clone()
    before = method.features(x)
    learn(method, stream, range(1, 2))
    weight, bias = affine_drift(before, method.features(x))
    expected = means[:2].double() @ weight.T + bias
    torch.testing.assert_close(method.means.prototypes[:2].double(), expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(method.means.prototypes[:2], means[:2], atol=1e-2)


@pytest.mark.parametrize("readout", ["discriminant", "ridge"])
def test_sums_follow_and_new_images_are_added_as_they_are(readout, tiny_encoder, stream) -> None:
    method = learned("lora", tiny_encoder(), stream, readout, 1, drift="affine")
    batch = images_of(stream, 1)
    expected: Any = copy.deepcopy(method.statistics)
    before = method.features(batch.inputs)
    learn(method, stream, range(1, 2))
    expected.move(*affine_drift(before, method.features(batch.inputs)))
    expected.grow(2)
    expected.add(method.features(batch.inputs), batch.labels)
    for name in expected.sums:
        torch.testing.assert_close(getattr(method.statistics, name), getattr(expected, name), atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("name", ["dual_prompt", "lora", "full_finetune", "hide_prompt"])
def test_features_from_before_are_those_of_the_method_before_it_grew(name, tiny_encoder, stream) -> None:
    method = learned(name, tiny_encoder(), stream, "discriminant", 1, drift="affine")
    task, batch = stream.tasks[1], images_of(stream, 1)
    expected = method.features(batch.inputs)
    method.grow(task)
    method.eval()
    with torch.no_grad():  # as if growing had moved features by itself
        frozen = set() if method.trains_encoder else {id(each) for each in method.encoder.parameters()}
        for parameter in method.learner.parameters():
            if id(parameter) not in frozen:
                parameter.add_(1.0)
    assert not torch.equal(method.features(batch.inputs), expected)
    method.begin_task(Context(task, lambda: iter([batch]), 1, 1, lambda *_, **__: None))
    assert torch.equal(method.before, expected)
    assert "before" in method.running_state()


@pytest.mark.parametrize("readout", get_args(Kind))
def test_a_trunk_that_stays_keeps_the_bits_of_its_statistics(readout, tiny_encoder, stream, monkeypatch) -> None:
    plain = learned("linear_probe", tiny_encoder(), stream, readout, layers=2)
    monkeypatch.setattr("lorica.methods.readout.affine_drift", None)  # nothing is even fitted
    moved = learned("linear_probe", tiny_encoder(), stream, readout, layers=2, drift="affine")
    for name, value in plain.own_state().items():
        assert torch.equal(moved.own_state()[name], value), name


def test_a_method_that_is_only_loaded_is_not_copied(tiny_encoder, stream, monkeypatch) -> None:
    method = learned("lora", tiny_encoder(), stream, "ridge", 2, drift="affine")
    other = built("lora", tiny_encoder(), "ridge", drift="affine")
    monkeypatch.setattr(copy, "deepcopy", None)
    for task in stream.tasks[:2]:
        other.grow(task)
    other.load_own_state(method.own_state())


@pytest.mark.parametrize("readout", ["prototypes", "discriminant", "ridge"])
def test_classes_that_return_are_moved_and_then_added_to(readout, tiny_encoder, stream) -> None:
    method, (first, second) = learned("lora", tiny_encoder(), stream, readout, 1, drift="affine"), (0, 1)
    batch = images_of(stream, first, second)
    names, held = stream.class_names, copy.deepcopy(method.statistics)
    task = Task(1, (0, 1, 2, 3), (2, 3), names[:4])
    before = method.features(batch.inputs)
    context = Context(task, lambda: iter([batch]), 1, 1, lambda *_, **__: None)
    method.grow(task)
    method.eval()
    method.begin_task(context)
    with torch.no_grad():
        for factor in method.learner.updates.factors():
            factor.add_(0.01)
    method.end_task(context)
    held.move(*affine_drift(before, method.features(batch.inputs)))
    held.grow(2)
    held.add(method.features(batch.inputs), batch.labels)
    for name in set(held.of_features) - {"weight", "bias"}:
        torch.testing.assert_close(getattr(method.statistics, name), getattr(held, name), atol=1e-3, rtol=1e-4)


def in_a_task(tiny_encoder, stream) -> tuple[Readout, Context]:
    method = learned("lora", tiny_encoder(), stream, "discriminant", 1, drift="affine")
    assert isinstance(method, Readout)
    method.grow(stream.tasks[1])
    context = Context(stream.tasks[1], lambda: iter([images_of(stream, 1)]), 1, 1, lambda *_, **__: None)
    method.begin_task(context)
    return method, context


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda held: held[:, :-1], r"before has shape \(24, 31\), expected \(24, 32\)"),
        (lambda held: held[0], r"before has shape \(32,\), expected \(0, 32\)"),
        (lambda held: held.double(), r"before has dtype float64, expected float32"),
        (lambda held: held / 0, r"before has 768 of 768 numbers that are not finite"),
    ],
)
def test_features_in_a_snapshot_that_cannot_be(change, message, tiny_encoder, stream) -> None:
    method, _ = in_a_task(tiny_encoder, stream)
    state = {name: value.clone() for name, value in method.running_state().items()}
    fresh = built("lora", tiny_encoder(), "discriminant", drift="affine")
    for task in stream.tasks[:2]:
        fresh.grow(task)
    with pytest.raises(CheckpointError, match=message):
        fresh.load_running_state(state | {"before": change(state["before"])})
    fresh.load_running_state(state)
    assert torch.equal(fresh.before, method.before)


def test_another_number_of_images_at_the_end_of_a_task(tiny_encoder, stream) -> None:
    method, context = in_a_task(tiny_encoder, stream)
    method.before = method.before[:-1]
    with pytest.raises(TrainingError, match=r"evaluate\.drift: the task began with 23 images and ends with 24"):
        method.end_task(context)


# ---- what a run says of it


def test_the_ledger_adds_the_statistics(tiny_encoder, stream) -> None:
    plain = measure(learned("l2p", tiny_encoder(), stream, "head"))
    kept = plain["stored_by_kind"]
    for readout, added in (
        ("prototypes", {"head": kept["head"] + 6 * 32}),
        ("discriminant", {"statistics": 2 * 6 * 32 + 6 + 32 * 33 // 2}),
        ("ridge", {"regression": 33 * 33 + 2 * 33 * 6 + 1}),
        ("aligned", {"alignment": 6 * (32 + 32 * 32) + 6 * 33}),
    ):
        read = measure(learned("l2p", tiny_encoder(), stream, readout, drift="affine"))
        assert read["trainable_by_kind"] == plain["trainable_by_kind"]
        assert read["stored_by_kind"] == kept | added
        assert read["forwards_per_prediction"] == plain["forwards_per_prediction"] == 2
        assert read["stored_features"] >= 6 * 32


def test_a_result_has_both_accuracies(small_recipe, tmp_path) -> None:
    plain = lorica.run(small_recipe, out=tmp_path / "head", progress=False)
    both = {"evaluate": {"readout": "prototypes"}}
    lorica.run(small_recipe, out=tmp_path / "means", progress=False, stop_after=1, **both)
    read = lorica.run(small_recipe, out=tmp_path / "means", progress=False, resume=True, **both)
    assert read.head.accuracy == plain.accuracy
    assert read.head.acc == plain.acc
    assert plain.head is None
    learner = lorica.load(tmp_path / "means")
    assert isinstance(learner.method, Readout)
    with pytest.raises(LoricaError, match="sd_lora, read by prototypes, has no linear classifier to export"):
        learner.merged_model()
    again = evaluate(tmp_path / "means")
    assert (again.accuracy, again.head_accuracy) == (read.accuracy[-1], plain.accuracy[-1])
    assert evaluate(tmp_path / "head").head_accuracy is None


@pytest.mark.parametrize(
    ("method", "options", "label"),
    [
        (
            "sd_lora",
            {"readout": "discriminant", "layers": 2, "drift": "affine"},
            "discriminant of 2 layers, affine drift",
        ),
        ("prototypes", {"readout": "ridge"}, "ridge regression"),
        ("full_finetune", {"readout": "aligned", "drift": "affine"}, "aligned head, affine drift"),
    ],
)
def test_a_run_goes_on_is_evaluated_and_exported(method, options, label, small_recipe, tmp_path) -> None:
    recipe = small_recipe | {"method": {"name": method}}
    whole = lorica.run(recipe, out=tmp_path / "whole", progress=False, evaluate=options)
    assert whole.label == f"{method} ({label})"
    lorica.run(recipe, out=tmp_path / "parts", progress=False, stop_after=2, evaluate=options)
    parts = lorica.run(recipe, out=tmp_path / "parts", progress=False, resume=True, evaluate=options)
    assert (parts.accuracy, parts.head.accuracy) == (whole.accuracy, whole.head.accuracy)
    tested = evaluate(tmp_path / "parts")
    assert (tested.accuracy, tested.head_accuracy) == (whole.accuracy[-1], whole.head.accuracy[-1])
    learner = lorica.load(tmp_path / "parts")
    model, encoder = learner.merged_model(), learner.method.encoder
    x = encoder.probe(4)
    torch.testing.assert_close(model(encoder.normalised(x)), learner.method.predict(x), atol=1e-4, rtol=1e-3)


def test_a_run_older_than_layers_and_drift(small_recipe, tmp_path) -> None:
    """Its recipes lack the keys, in both places, and its means are called as they are called today."""
    both = {"evaluate": {"readout": "prototypes"}}
    whole = lorica.run(small_recipe, out=tmp_path / "whole", progress=False, **both)
    folder = tmp_path / "older"
    lorica.run(small_recipe, out=folder, progress=False, stop_after=1, **both)
    values = yaml.safe_load((folder / "recipe.yaml").read_text())
    metrics = json.loads((folder / "metrics.json").read_text())
    for recipe in (values, metrics["recipe"]):
        assert recipe["evaluate"] == {"readout": "prototypes", "layers": None, "drift": "none", "every": 1}
        recipe["evaluate"] = {"readout": "prototypes"}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values))
    (folder / "metrics.json").write_text(json.dumps(metrics))
    assert lorica.load(folder).method.own_state().keys() > {"means.prototypes", "means.counts"}
    resumed = lorica.run(small_recipe, out=folder, progress=False, resume=True, **both)
    assert resumed.accuracy == whole.accuracy
    assert resumed.label == whole.label == "sd_lora (class means)"


def test_a_run_goes_on_read_as_it_was(small_recipe, tmp_path) -> None:
    lorica.run(
        small_recipe, out=tmp_path, overwrite=True, progress=False, stop_after=1, **{"evaluate.readout": "ridge"}
    )
    other = {"readout": "discriminant", "layers": 2, "drift": "affine"}
    with pytest.raises(LoricaError) as caught:
        lorica.run(small_recipe, out=tmp_path, resume=True, progress=False, evaluate=other)
    assert [line.split(": ", 1)[1].split(";")[0] for line in caught.value.problems] == [
        "evaluate.drift was 'none', now 'affine'",
        "evaluate.layers was None, now 2",
        "evaluate.readout was 'ridge', now 'discriminant'",
    ]


def test_default_folders_tell_read_outs_apart(small_recipe) -> None:
    def name(**options) -> str:
        return default_folder("mine.yaml", lorica.config.read_recipe(small_recipe, {"evaluate": options})).name

    assert name() == "sd_lora"
    assert name(readout="prototypes") == "sd_lora-class_means"
    assert name(readout="ridge", layers=3, drift="affine") == "sd_lora-ridge-layers3-affine_drift"


# ---- refusals, before anything is learned


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cl_lora", {"readout": "prototypes"},
         "evaluate.readout: cl_lora gives no features in a space that all its classes"),
        ("ease", {"readout": "ridge"},
         "evaluate.readout: ease gives no features in a space that all its classes share, which ridge"),
        ("prototypes", {"readout": "prototypes"},
         "evaluate.readout: prototypes predicts by prototypes of these features already"),
        ("aper", {"readout": "prototypes"}, "evaluate.readout: aper predicts by prototypes of these features already"),
        ("rolda", {"readout": "discriminant"},
         "evaluate.readout: rolda predicts by discriminant of these features already"),
        ("joint", {"readout": "aligned"},
         "evaluate.readout: joint learns all classes at once, so that its head has no tasks to align"),
        ("ease", {"readout": "aligned"},
         "ease gives no features in a space that all its classes share, which aligned needs"),
        ("sd_lora", {"layers": 2, "drift": "affine"},
         "evaluate: layers and drift: no effect on a method's own predictions"),
        ("sd_lora", {"readout": "head", "drift": "affine"}, "evaluate: drift: no effect on a method's own predictions"),
        ("sd_lora", {"readout": "means"},
         "evaluate.readout: Input should be 'head', 'prototypes', 'discriminant', 'ridge' or 'aligned'"),
        ("sd_lora", {"readout": "ridge", "layers": 0},
         "evaluate.layers: Input should be greater than or equal to 1, given 0"),
    ],
)  # fmt: skip
def test_refusals(name, options, message, six_classes) -> None:
    with pytest.raises(RecipeError) as caught:
        check("digits", source=six_classes, method=name, stream={"tasks": 3}, evaluate=options)
    (problem,) = caught.value.problems
    assert message in problem


@pytest.mark.parametrize("name", ["prototypes", "aper", "rolda"])
def test_a_read_out_of_other_features_is_not_refused(name, six_classes) -> None:
    method = find_method(name)
    options = {"readout": method.reads_by, "layers": 2}
    check("digits", source=six_classes, method=name, stream={"tasks": 3}, evaluate=options)


OF_ONES_OWN = """
from lorica.methods import LinearHeadMethod

class Doubled(LinearHeadMethod):
    name = "doubled"

    def trainable(self):
        return self.head_parameters()

    def features(self, inputs):
        return 2 * self.encoder.features(inputs)
"""


def test_a_method_whose_features_take_no_layers_is_read_without_them(six_classes, tmp_path: Path) -> None:
    """Those of several blocks would be the backbone's, and not what it makes of them."""
    (tmp_path / "doubled.py").write_text(OF_ONES_OWN)
    own = {"method": {"name": str(tmp_path / "doubled.py")}, "stream": {"tasks": 3}}
    check("digits", source=six_classes, **own, evaluate={"readout": "discriminant"})
    with pytest.raises(
        RecipeError, match=r"evaluate\.layers: doubled gives the features .* leave evaluate\.layers out"
    ):
        check("digits", source=six_classes, **own, evaluate={"readout": "discriminant", "layers": 2})


# ---- every hook reaches the method

ANSWERED_BY_THE_READ_OUT = {
    "predict": "by its statistics: that is what it is for",
    "load_own_state": "copies into what own_state names, the method's tensors among them",
    "running_state": "all tensors below it, the method's among them",
    "load_running_state": "makes room for the features from before a task, and copies into what running_state names",
    "cannot_freeze": "by its statistics, and by keeps_features",
    "cannot_forget": "by every module below it that remembers classes, the method's among them",
    "forget": "as cannot_forget, and then by solve_again",
    "join": "by all that summed names, the method's among them",
    "cannot_join": "as join, or by what it is read by",
    "note_parts": "of its statistics; the method notes its own, and taken_parts has both",
    "task": "from the list of tasks that both share",
    "device": "of the encoder that both share",
    "variants": "asked of the method's class",
    "fit_defaults": "asked of the method's class",
    "misfits": "taken over from the method as it is made",
    "undivided": "taken over from the method as it is made",
    "unshared": "taken over from the method as it is made",
}


def test_every_hook_is_forwarded_or_answered_on_purpose() -> None:
    """Also one that is added to the contract tomorrow."""
    hooks = {
        name
        for name, value in vars(Method).items()
        if not name.startswith("_")
        and not isinstance(value, type)
        and (callable(value) or isinstance(value, property | classmethod))
    }
    forwarded = {name for name in vars(Readout) if name in hooks}
    assert ANSWERED_BY_THE_READ_OUT.keys() <= hooks
    assert hooks - forwarded - ANSWERED_BY_THE_READ_OUT.keys() == set()


def test_a_forwarded_hook_reaches_the_method(tiny_encoder) -> None:
    called: list[str] = []
    cls: Any = find_method("linear_probe")

    class Noting(cls):
        def __getattribute__(self, name: str):
            called.append(name)
            return super().__getattribute__(name)

    method = Readout(Noting(cls.Config(name="linear_probe"), tiny_encoder()), "discriminant")
    task = Task.of_new_classes(0, 0, ("a", "b"))
    images, labels = torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 0, 1])
    context = Context(task, lambda: iter([Batch(images, labels)]), 1, 1, lambda *_, **__: None)
    calls = {
        "grow": lambda: method.grow(task),
        "begin_task": lambda: method.begin_task(context),
        "trainable": method.trainable,
        "passes": method.passes,
        "losses": lambda: list(method.losses(Batch(images, labels))),
        "rate_factors": method.rate_factors,
        "edit_gradients": method.edit_gradients,
        "end_task": lambda: method.end_task(context),
        "features": lambda: method.features(images),
        "reads_encoder": method.reads_encoder,
        "classifier": method.classifier,
        "keeps_features": lambda: method.keeps_features(task),
        "trunk_rests": lambda: method.trunk_rests,
        "taken_parts": method.taken_parts,
        "trained_on": method.trained_on,
        "traces_of": lambda: list(method.traces_of([0])),
        "summed": method.summed,
        "solve_again": method.solve_again,
        "diagnostics": method.diagnostics,
        "structure": method.structure,
        "restore_structure": lambda: method.restore_structure({}),
        "own_state": method.own_state,
        "needed_to_learn_on": method.needed_to_learn_on,
    }
    assert (
        calls.keys()
        == {name for name in vars(Readout) if name in vars(Method) and not name.startswith("_")}
        - {"takes_unread"}  # each class has its own; the instance says what its method does
        - ANSWERED_BY_THE_READ_OUT.keys()
    )
    for name, call in calls.items():
        called.clear()
        call()
        assert name in called
