"""The caller's own settings of torch and NumPy: a run gives the same numbers, and leaves them as they were."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import lorica
from lorica.analysis import FILE, analyze
from lorica.isolation import isolated
from lorica.results import Result
from lorica.run import evaluate


class _Float64:
    def __enter__(self) -> None:
        torch.set_default_dtype(torch.float64)

    def __exit__(self, *_: object) -> None:
        torch.set_default_dtype(torch.float32)


CALLERS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "float64": _Float64,
    "another device": lambda: torch.device("meta"),
    "no gradients": torch.no_grad,
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "numpy raises": lambda: np.errstate(all="raise"),
}


def settings() -> tuple[Any, ...]:
    """All that `isolated` changes, and the random states (without that of `random`, of which beartype draws)."""
    return (
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        np.geterr(),
        np.random.get_state(legacy=False)["state"]["key"].tolist(),
        torch.get_rng_state().numpy().tobytes(),
    )


@pytest.mark.parametrize("caller", CALLERS)
def test_a_run_is_the_same_whatever_its_caller_has_set(
    caller: str, small_recipe: dict[str, Any], finished_run: Result, tmp_path: Path
) -> None:
    images = np.random.RandomState(0).randint(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    expected = lorica.load(finished_run.path or "").logits(images)
    with CALLERS[caller]():
        before = settings()
        lorica.check(small_recipe)
        result = lorica.run(small_recipe, out=tmp_path / "run", progress=False)
        tested = evaluate(tmp_path / "run")
        learner = lorica.load(tmp_path / "run")
        logits = learner.logits(images)
        model = learner.merged_model()
        assert settings() == before
    assert result.accuracy == finished_run.accuracy
    assert tested.accuracy == finished_run.accuracy[-1]
    assert logits.dtype == torch.float32
    assert torch.equal(logits, expected)
    assert {each.dtype for each in model.state_dict().values()} == {torch.float32}
    for file in sorted((Path(finished_run.path or "") / "checkpoints").glob("*.safetensors")):
        ours, theirs = load_file(file), load_file(tmp_path / "run" / "checkpoints" / file.name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@isolated()
def fails() -> None:
    assert torch.ones(1).dtype == torch.float32
    assert torch.ones(1, requires_grad=True).exp().requires_grad
    assert torch.ones(1).device.type == "cpu"
    raise KeyError


def test_they_are_as_before_after_an_error_too() -> None:
    with ExitStack() as stack:
        for caller in CALLERS.values():
            stack.enter_context(caller())
        before = settings()
        with pytest.raises(KeyError):
            fails()
        assert settings() == before


def test_analysing_is_the_same_whatever_its_caller_has_set(finished_run: Result, tmp_path: Path) -> None:
    expected = analyze([finished_run], tmp_path / "plain", points=2)
    with ExitStack() as stack:
        for caller in CALLERS.values():
            stack.enter_context(caller())
        found = analyze([finished_run], tmp_path / "odd", points=2)
    assert (found.problems, found.skipped) == ([], expected.skipped)
    assert (tmp_path / "odd" / FILE).read_text() == (tmp_path / "plain" / FILE).read_text()


def test_threads_that_overlap_leave_the_callers_dtype() -> None:
    """The first to come is the first to go, so that the last must not take float32 for the caller's own."""
    steps = [threading.Event() for _ in range(3)]
    seen = []

    def first() -> None:
        with isolated():
            steps[0].set()
            steps[1].wait(60)
        steps[2].set()

    def second() -> None:
        steps[0].wait(60)
        with isolated():
            steps[1].set()
            steps[2].wait(60)
            seen.append(torch.get_default_dtype())

    with _Float64(), ThreadPoolExecutor(2) as pool:
        for thread in [pool.submit(first), pool.submit(second)]:
            thread.result(60)
        assert seen == [torch.float32]
        assert torch.get_default_dtype() == torch.float64
