"""Class means in place of a method's head: same training, other predictions, both accuracies."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator

import lorica
from lorica.cost import measure
from lorica.data.images import ImageReader
from lorica.data.stream import Stream
from lorica.errors import LoricaError
from lorica.methods import ClassMeanReadout, Context, Method, build_method, find_method, method_names
from lorica.run import check, evaluate
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


def learned(name: str, encoder, stream: Stream, readout: str, tasks: int = 3):
    method = build_method(find_method(name).Config(name=name, **SMALL.get(name, {})), encoder, readout=readout)
    for task in stream.tasks[:tasks]:
        learn_task(method, task, stream.train(task), FIT, seed=0, accelerator=Accelerator(cpu=True))
    return method


@pytest.mark.parametrize("name", ["sd_lora", "l2p", "hide_prompt", "full_finetune"])
def test_training_is_the_methods_own_and_predictions_are_by_class_means(name, tiny_encoder, stream) -> None:
    read, plain = (
        learned(name, tiny_encoder(), stream, "prototypes", 2),
        learned(name, tiny_encoder(), stream, "head", 2),
    )
    assert isinstance(read, ClassMeanReadout)
    for key, value in plain.own_state().items():
        assert torch.equal(read.own_state()[f"learner.{key}"], value), key
    task = stream.tasks[1]
    batch = next(stream.train(task).batches(100, device=torch.device("cpu")))
    features = plain.features(batch.inputs)
    for label in (2, 3):  # of the latest task, whose features are as they were then
        mean = features[batch.labels == label].mean(dim=0)
        torch.testing.assert_close(
            read.predict(batch.inputs)[:, label], F.cosine_similarity(features, mean[None]), atol=1e-5, rtol=1e-5
        )


def test_means_of_earlier_classes_stay(tiny_encoder, stream) -> None:
    method = learned("sd_lora", tiny_encoder(), stream, "prototypes", 1)
    before = method.means.prototypes.clone()
    task = stream.tasks[1]
    learn_task(method, task, stream.train(task), FIT, seed=0, accelerator=Accelerator(cpu=True))
    assert torch.equal(method.means.prototypes[:2], before)
    assert method.means.prototypes[2:].any()


@pytest.mark.parametrize("name", [name for name in method_names() if find_method(name).features is not Method.features])
def test_state_round_trip(name, tiny_encoder, stream) -> None:
    method = learned(name, tiny_encoder(), stream, "prototypes", 2)
    copied = build_method(method.config, tiny_encoder(), readout="prototypes")
    for task in stream.tasks[:2]:
        copied.grow(task)
    copied.restore_structure(json.loads(json.dumps(method.structure())))
    copied.load_own_state(method.own_state())
    copied.eval()
    x = torch.rand(4, 3, 32, 32)
    assert torch.equal(copied.predict(x), method.predict(x))


def test_the_ledger_adds_the_means(tiny_encoder, stream) -> None:
    read, plain = (measure(learned("l2p", tiny_encoder(), stream, readout)) for readout in ("prototypes", "head"))
    assert read["trainable_by_kind"] == plain["trainable_by_kind"]
    assert read["stored_by_kind"] == plain["stored_by_kind"] | {"head": plain["stored_by_kind"]["head"] + 6 * 32}
    assert read["forwards_per_prediction"] == plain["forwards_per_prediction"] == 2


def test_a_result_has_both_accuracies(small_recipe, tmp_path) -> None:
    plain = lorica.run(small_recipe, out=tmp_path / "head", progress=False)
    both = {"evaluate": {"readout": "prototypes"}}
    lorica.run(small_recipe, out=tmp_path / "means", progress=False, stop_after=1, **both)
    read = lorica.run(small_recipe, out=tmp_path / "means", progress=False, resume=True, **both)
    assert read.head.accuracy == plain.accuracy
    assert read.head.acc == plain.acc
    assert plain.head is None
    learner = lorica.load(tmp_path / "means")
    assert isinstance(learner.method, ClassMeanReadout)
    with pytest.raises(LoricaError, match="sd_lora has no linear classifier to export"):
        learner.merged_model()
    again = evaluate(tmp_path / "means")
    assert (again.accuracy, again.head_accuracy) == (read.accuracy[-1], plain.accuracy[-1])
    assert evaluate(tmp_path / "head").head_accuracy is None


@pytest.mark.parametrize("name", ["cl_lora", "prototypes", "aper", "ease"])
def test_methods_that_read_no_single_feature_are_refused(name, six_classes) -> None:
    with pytest.raises(LoricaError, match=f"evaluate.readout: {name} predicts by class means already, or has no space"):
        check("digits", source=six_classes, method=name, stream={"tasks": 3}, **{"evaluate.readout": "prototypes"})


# ---- every hook reaches the method

ANSWERED_BY_THE_READ_OUT = {
    "predict": "by class means: that is what it is for",
    "classifier": "none: a cosine with means is not linear",
    "load_own_state": "copies into what own_state names, the method's tensors among them",
    "running_state": "all tensors below it, the method's among them",
    "load_running_state": "copies into what running_state names",
    "task": "from the list of tasks that both share",
    "device": "of the encoder that both share",
    "variants": "asked of the method's class",
    "fit_defaults": "asked of the method's class",
    "misfits": "asked of the method's class",
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
    forwarded = {name for name in vars(ClassMeanReadout) if name in hooks}
    assert ANSWERED_BY_THE_READ_OUT.keys() <= hooks
    assert hooks - forwarded - ANSWERED_BY_THE_READ_OUT.keys() == set()


def test_a_forwarded_hook_reaches_the_method(tiny_encoder) -> None:
    called: list[str] = []
    cls = find_method("linear_probe")

    class Noting(cls):  # type: ignore[misc, valid-type]
        def __getattribute__(self, name: str):
            called.append(name)
            return super().__getattribute__(name)

    method = ClassMeanReadout(Noting(cls.Config(name="linear_probe"), tiny_encoder()))
    task = Task.of_new_classes(0, 0, ("a", "b"))
    images, labels = torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 0, 1])
    context = Context(task, lambda: iter([Batch(images, labels)]), 1, 1, lambda *_, **__: None)
    calls = {
        "grow": lambda: method.grow(task),
        "begin_task": lambda: method.begin_task(context),
        "trainable": method.trainable,
        "losses": lambda: list(method.losses(Batch(images, labels))),
        "edit_gradients": method.edit_gradients,
        "end_task": lambda: method.end_task(context),
        "features": lambda: method.features(images),
        "diagnostics": method.diagnostics,
        "structure": method.structure,
        "restore_structure": lambda: method.restore_structure({}),
        "own_state": method.own_state,
        "needed_to_learn_on": method.needed_to_learn_on,
    }
    assert (
        calls.keys()
        == {name for name in vars(ClassMeanReadout) if name in vars(Method) and not name.startswith("_")}
        - ANSWERED_BY_THE_READ_OUT.keys()
    )
    for name, call in calls.items():
        called.clear()
        call()
        assert name in called
