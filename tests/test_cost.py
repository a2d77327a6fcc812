"""Costs against counts by hand: the tiny encoder has width 32 and two blocks, so four adapted projections q and v."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from lorica.backbones.timm_vit import TimmViT
from lorica.cost import measure
from lorica.methods import find_method
from lorica.types import Task

MakeEncoder = Callable[..., TimmViT]
TASKS = (Task(0, 0, ("wren", "lark", "kite")), Task(1, 3, ("rook", "dove")))

HEAD = 5 * 32 + 5
DIRECTION = 4 * (2 * 32) * 10  # four projections, U and D, rank 10


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("linear_probe", {"trainable": 66, "trainable_head": 66, "stored": HEAD, "stored_head": HEAD}),
        ("prototypes", {"trainable": 0, "trainable_head": 0, "stored": 5 * 32, "stored_head": 5 * 32}),
        ("lora", {"trainable": DIRECTION + 66, "trainable_head": 66, "stored": DIRECTION + HEAD, "stored_head": HEAD}),
    ],
)
def test_counts(name: str, expected: dict[str, Any], tiny_encoder: MakeEncoder) -> None:
    kind = find_method(name)
    encoder = tiny_encoder()
    weights = sum(parameter.numel() for parameter in encoder.parameters())
    method = kind(kind.Config(name=name), encoder)
    for task in TASKS:
        method.grow(task)
    assert measure(method) == {"backbone": weights} | expected


def test_a_trained_backbone_counts(tiny_encoder: MakeEncoder) -> None:
    kind = find_method("full_finetune")
    method = kind(kind.Config(name="full_finetune"), tiny_encoder())
    method.grow(TASKS[0])
    cost = measure(method)
    assert cost["trainable"] == cost["stored"] == cost["backbone"] + 3 * 33


def test_sd_lora_stores_every_direction_and_trains_the_last(tiny_encoder: MakeEncoder) -> None:
    kind = find_method("sd_lora")
    method = kind(kind.Config(name="sd_lora"), tiny_encoder())
    for task in TASKS:
        method.grow(task)
    cost = measure(method)
    assert cost["trainable"] == DIRECTION + 2 + 66  # two magnitudes, two new classes
    assert cost["stored"] >= 2 * DIRECTION + 2 + HEAD
