"""The step-time benchmark at a scale that says nothing about time: what it times, how often, and what it reports."""

import importlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from typer.testing import CliRunner

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
ROUNDS = 3


@pytest.fixture(scope="module")
def step_time() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield importlib.import_module("step_time")


@pytest.fixture(scope="module")
def encoder(step_time):
    encoder = step_time._encoder("vit_tiny_patch16_224", 32)
    for block in encoder.blocks:
        torch.nn.init.normal_(block.attn.qkv.bias)  # timm starts biases at zero, where a mistake would not show
    return encoder


def test_every_task_count_is_compared_with_the_floor_and_with_peft(step_time) -> None:
    results = step_time.measure("vit_tiny_patch16_224", [1, 3], batch=2, repeats=2, image_size=32)
    assert [result.tasks for result in results] == [1, 3]
    for result in results:
        for name in (
            "ratio_to_floor",
            "ratio_to_token_floor",
            "ratio_to_peft",
            "seconds",
            "floor_seconds",
            "peft_seconds",
        ):
            lower, upper = getattr(result, f"{name}_quartiles")
            assert 0 < lower <= getattr(result, name) <= upper < math.inf


def test_each_precision_is_compared_with_floors_of_its_own(step_time) -> None:
    results = step_time.measure("lorica_tiny", [1], batch=2, repeats=2, precisions=("fp32", "bf16"))
    assert [result.precision for result in results] == ["fp32", "bf16"]
    assert results[0].floor_seconds_quartiles != results[1].floor_seconds_quartiles


def test_a_step_in_bf16_runs_under_autocast(step_time) -> None:
    found = []
    for precision in ("fp32", "bf16"):
        step_time.in_precision(precision, lambda: found.append((torch.ones(2, 2) @ torch.ones(2, 2)).dtype))()
    assert found == [torch.float32, torch.bfloat16]


def test_json_is_one_object_a_line(step_time) -> None:
    app = step_time.typer.Typer()
    app.command()(step_time.main)
    options = "--backbone lorica_tiny --tasks 1,2 --batch 2 --repeats 1 --threads 1 --rank 2 --json"
    output = CliRunner().invoke(app, options.split(), catch_exceptions=False)
    lines = [json.loads(line) for line in output.stdout.splitlines()]
    assert [line["tasks"] for line in lines] == [1, 2]
    expected = {
        "backbone": "lorica_tiny",
        "batch": 2,
        "repeats": 1,
        "threads": 1,
        "rank": 2,
        "torch": torch.__version__,
    }
    for line in lines:
        assert expected.items() <= line.items()
        assert {"ratio_to_floor", "ratio_to_peft", "seconds", "floor_seconds", "peft_seconds"} <= line.keys()


def test_a_round_times_every_configuration_once_in_an_order_of_its_own(step_time) -> None:
    calls: list[str] = []
    names = list("abcdef")
    steps = {name: (lambda name=name: calls.append(name)) for name in names}
    seconds = step_time.interleaved(steps, ROUNDS, step_time.Silent())
    assert {name: len(times) for name, times in seconds.items()} == dict.fromkeys(names, ROUNDS)
    rounds = [calls[start : start + len(names)] for start in range(0, len(calls), len(names))]
    assert len(rounds) == ROUNDS + step_time.WARM_UP_ROUNDS
    assert all(sorted(order) == names for order in rounds)
    assert len({tuple(order) for order in rounds}) > 1


def test_splitting_the_fused_qkv_changes_no_logit_and_copies_no_weight(step_time, encoder) -> None:
    split = step_time.split_qkv(encoder)
    head = torch.nn.Linear(encoder.width, 10)
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(head(split.features(images)), head(encoder.features(images)))
    fused = encoder.vit.blocks[0].attn.qkv.weight
    assert split.vit.blocks[0].attn.q.weight.data_ptr() == fused.data_ptr()


def test_an_attention_that_does_not_split_is_refused(step_time, encoder) -> None:
    altered = step_time._copy(encoder)
    altered.vit.blocks[0].attn.scale = 1.0
    altered.vit.blocks[0].attn.fused_attn = False
    with pytest.raises(ValueError, match="splitting its fused qkv"):
        step_time.split_qkv(altered)


def test_what_trains_is_what_the_loop_trains(step_time, encoder) -> None:
    method = step_time.grown(encoder, 3, 4)
    step_time.own_step(method, torch.rand(2, 3, 32, 32), torch.tensor([0, 9]), step_time.Accelerator(cpu=True))()
    trained = {id(parameter) for parameter in method.parameters() if parameter.grad is not None}
    assert trained == {id(parameter) for parameter in method.trainable()}
    assert method.magnitudes.shape == (3,)
    assert method.task.classes[0] == 20


def test_peft_adapts_q_and_v_of_every_block_and_nothing_else(step_time, encoder, monkeypatch) -> None:
    models = []
    wrapped = step_time.get_peft_model
    monkeypatch.setattr(step_time, "get_peft_model", lambda *args: models.append(wrapped(*args)) or models[0])
    step_time.peft_step(encoder, torch.rand(1, 3, 32, 32), torch.tensor([0]), 4, step_time.Accelerator(cpu=True))
    shapes = sorted(tuple(p.shape) for p in models[0].parameters() if p.requires_grad)
    width, adapted = encoder.width, 2 * len(encoder.blocks)
    assert shapes == sorted([(4, width), (width, 4)] * adapted + [(10, width), (10,)])


def test_methods_over_texts_are_compared_with_transformers_own_model(step_time, tiny_text_folder: Path) -> None:
    results = step_time.measure(
        "hf:tiny", [2], batch=3, repeats=1, rank=2, methods=["sd_lora", "lora"], weights=tiny_text_folder, length=8
    )
    assert [(result.method, result.tasks, result.size) for result in results] == [("sd_lora", 2, 8), ("lora", 2, 8)]
    assert all(result.ratio_to_floor == result.ratio_to_token_floor > 0 for result in results)
    encoder = step_time._encoder("hf:tiny", None, tiny_text_folder)
    tokens = step_time.texts(encoder, 3, 8)
    assert tokens.mask.sum(dim=1).tolist() == [8, 7, 8]
    classifier = step_time.text_classifier(encoder.eval())
    torch.testing.assert_close(classifier(tokens), classifier.head(encoder.features(tokens)), atol=1e-5, rtol=1e-4)
