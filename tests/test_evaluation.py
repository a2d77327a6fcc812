"""One row of the accuracy matrix, counted by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from lorica.adapters.linear import AdaptedLinear
from lorica.backbones.timm_vit import TimmViT
from lorica.data.images import ImageReader
from lorica.data.sources import Source
from lorica.data.stream import Stream
from lorica.errors import LoricaError
from lorica.evaluation import accuracy_row, plain_form
from lorica.methods import find_method
from lorica.methods.base import MethodConfig
from lorica.methods.linear_head import LinearHeadMethod
from lorica.predictor import Predictor

MakeEncoder = Callable[..., TimmViT]


class Oracle(LinearHeadMethod):
    """Says a fixed class for every image, among six classes."""

    name = "oracle"

    def __init__(self, encoder: TimmViT, answer: int) -> None:
        super().__init__(MethodConfig(name=self.name), encoder)
        self.answer = answer

    def trainable(self) -> list[nn.Parameter]:
        return []

    def predict(self, inputs: Tensor) -> Tensor:
        logits = torch.zeros(len(inputs), 6)
        logits[:, self.answer] = 1
        logits[:, 5] = 2  # a class that has not been seen when fewer tasks are asked for
        return logits


@pytest.fixture
def stream(six_classes: Source) -> Stream:
    return Stream(six_classes, tasks=3, reader=ImageReader(32))


@pytest.mark.parametrize(("answer", "row"), [(0, [0.5, 0.0]), (3, [0.0, 0.5])])
def test_accuracy_per_task_over_the_classes_seen(
    answer: int, row: list[float], tiny_encoder: MakeEncoder, stream: Stream
) -> None:
    method = Oracle(tiny_encoder(), answer)
    tasks, accelerator = stream.tasks[:2], Accelerator(cpu=True)
    for size in (5, 256):
        found = accuracy_row(
            method, tasks, lambda index: stream.test(stream.tasks[index]), accelerator=accelerator, batch_size=size
        )
        assert found == row
    everything = accuracy_row(
        method, stream.tasks, lambda index: stream.test(stream.tasks[index]), accelerator=accelerator
    )
    assert everything == [0.0, 0.0, 0.5]  # class 5 is in the third task


def test_what_each_image_was_taken_for(tiny_encoder: MakeEncoder, stream: Stream) -> None:
    found: list[list[list[int]]] = []
    accuracy_row(
        Oracle(tiny_encoder(), 3),
        stream.tasks[:2],
        lambda index: stream.test(stream.tasks[index]),
        accelerator=Accelerator(cpu=True),
        batch_size=5,
        answered=lambda pairs: found.append(pairs.tolist()),
    )
    labels = [int(label) for task in stream.tasks[:2] for label in stream.test(task).labels]
    assert found == [[[label, 3] for label in labels]]


def test_logits_that_are_not_a_number_are_refused(tiny_encoder: MakeEncoder, stream: Stream) -> None:
    """The first of them would count as the largest."""

    class Lost(Oracle):
        def predict(self, inputs: Tensor) -> Tensor:
            return super().predict(inputs) / torch.tensor([1.0, 1, 1, 0, 1, 1])  # infinite, or 0 / 0

    lost = Lost(tiny_encoder(), 0)
    with pytest.raises(
        LoricaError, match=r"oracle: logits are not a number; .* go back to an earlier task, or start anew"
    ):
        accuracy_row(
            lost, stream.tasks, lambda index: stream.test(stream.tasks[index]), accelerator=Accelerator(cpu=True)
        )
    with pytest.raises(LoricaError, match="logits are not a number"):
        Predictor(lost, reader=ImageReader(32)).logits(torch.rand(2, 3, 32, 32))


def test_evaluation_runs_on_merged_weights_and_leaves_the_adapters_alone(
    tiny_encoder: MakeEncoder, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = find_method("sd_lora")
    method = kind(kind.Config(name="sd_lora"), tiny_encoder())
    method.grow(stream.tasks[0])
    seen: list[tuple[int, int]] = []
    original = kind.predict

    def adapted(part: torch.nn.Module) -> int:
        return [type(module) for module in part.modules()].count(AdaptedLinear)

    def predict(self: Any, inputs: Tensor) -> Tensor:
        seen.append((adapted(self), adapted(method)))
        return original(self, inputs)

    monkeypatch.setattr(kind, "predict", predict)
    accuracy_row(
        method, stream.tasks[:1], lambda index: stream.test(stream.tasks[index]), accelerator=Accelerator(cpu=True)
    )
    assert seen[-1] == (0, len(method.encoder.blocks))


def test_layers_that_do_more_than_their_weights_say_are_not_merged(tiny_encoder: MakeEncoder, stream: Stream) -> None:
    kind = find_method("sd_lora")
    method = kind(kind.Config(name="sd_lora"), tiny_encoder())
    method.grow(stream.tasks[0])
    for rows in method.head_parameters():
        torch.nn.init.normal_(rows)  # they start at zero, where nothing would differ
    assert plain_form(method) is not method
    method.encoder.blocks[0].get_submodule("attn.qkv").register_forward_hook(lambda module, inputs, output: output + 1)
    assert plain_form(method) is method
