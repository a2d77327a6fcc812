"""bfloat16 training: increments, heads and checkpoints stay in full precision, and the classes are learned."""

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

import lorica


@pytest.fixture(autouse=True)
def _full_precision_afterwards():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_bfloat16_learns_and_keeps_its_state_in_full_precision(six_classes, tmp_path) -> None:
    result = lorica.run(
        {
            "method": "sd_lora",
            "fit": {"epochs": 4, "batch_size": 8},
            "stream": {"tasks": 2},
            "precision": "bf16",
            "device": "cpu",
        },
        source=six_classes,
        out=tmp_path / "run",
        progress=False,
    )
    assert result.acc > 1 / 3  # chance is 1/6
    state = load_file(tmp_path / "run" / "checkpoints" / "task_0001.safetensors")
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
