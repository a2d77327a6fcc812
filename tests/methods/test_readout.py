"""Class means in place of a method's head: same training, other predictions, both accuracies."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator

import lorica
from lorica.cost import measure
from lorica.data.stream import Stream
from lorica.errors import LoricaError
from lorica.methods import ClassMeanReadout, Method, build_method, find_method, method_names
from lorica.run import check, evaluate
from lorica.training import Fit, learn_task

SMALL = {
    "dual_prompt": {"general_blocks": (0,), "blocks": (1,)},
    "hide_prompt": {"alignment_epochs": 2},
    "ran_pac": {"width": 64},
}
FIT = Fit(1, 8, "adam", 0.01, 0.9, 0.0, "constant", "none")


@pytest.fixture
def stream(six_classes) -> Stream:
    return Stream(six_classes, tasks=3, image_size=32)


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
