"""Snapshots that are sealed and cannot be: named and refused, or passed over; what follows from the recipe is not read
from them."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sealing import read_tensors, seal_snapshot
from stopping import stopped_in

from lorica.errors import CheckpointError
from lorica.run import run

Recipe = dict[str, Any]
Tensors = dict[str, torch.Tensor]


@pytest.fixture
def stopped(small_recipe: Recipe, tmp_path: Path) -> Path:
    return stopped_in(tmp_path / "run", small_recipe)


def change(folder: Path, edit: Callable[[dict[str, Any], Tensors], Any]) -> None:
    file = folder / "snapshot.safetensors"
    tensors, metadata = read_tensors(file)
    facts = json.loads(metadata["lorica"])
    edit(facts, tensors)
    seal_snapshot(file, facts, tensors)


def set_in(facts: dict[str, Any], path: str, value: Any) -> None:
    *above, last = path.split(".")
    target: Any = facts
    for key in above:
        target = target[int(key) if isinstance(target, list) else key]
    target[last] = value


def goes_on(folder: Path, recipe: Recipe, finished: Any) -> None:
    assert run(recipe, out=folder, resume=True, progress=False).accuracy == finished.accuracy


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        ("format", 2, "format is 2, expected 1"),
        ("task", "1", "task is '1', expected a valid integer"),
        ("structure", [], "structure is [], expected an object"),
        ("descent.steps", 2.5, "descent.steps is 2.5, expected a valid integer"),
        ("descent.groups", [], "descent.groups is [], List should have at least 1 item"),
        ("descent.numbers", {"0.step": "1"}, "descent.numbers.0.step"),
        ("history", -1, "history is -1, expected greater than or equal to 0"),
    ],
)
def test_a_snapshot_without_its_form_is_passed_over(
    path: str,
    value: Any,
    problem: str,
    stopped: Path,
    small_recipe: Recipe,
    finished_run: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The task begins anew, with the same result."""
    change(stopped, lambda facts, _: set_in(facts, path, value))
    with caplog.at_level(logging.WARNING):
        goes_on(stopped, small_recipe, finished_run)
    assert f"truncated or altered; the task begins anew ({problem}" in caplog.text


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (lambda facts, _: set_in(facts, "descent.epoch", 7),
         "descent.epoch and step are 7 and 1, expected a place within 2 epochs of 2"),
        (lambda facts, _: set_in(facts, "descent.step", 2), "descent.epoch and step are 0 and 2, expected a place"),
        (lambda facts, _: set_in(facts, "descent.groups.0.lr", 0.5),
         "descent.groups: the learning rates are [0.5], expected [0.01]"),
        (lambda facts, _: set_in(facts, "descent.groups.0.lr", "0.01"),
         "descent.groups: the learning rates are ['0.01']"),
        (lambda facts, _: set_in(facts, "descent.numbers", {"x.step": 1}),
         "descent.x.step is of no parameter, expected one from 0 to"),
        (lambda facts, _: set_in(facts, "structure", {"kept": []}), "structure.kept is [], expected None"),
        (lambda _, tensors: tensors.pop("descent.0.exp_avg"),
         "what the optimiser keeps differs from parameter to parameter"),
        (lambda _, tensors: tensors.update({"descent.0.exp_avg": torch.ones(3)}), "descent.0.exp_avg has shape (3,)"),
        (lambda _, tensors: tensors["descent.0.exp_avg"].fill_(float("nan")),
         "descent.0.exp_avg has numbers that are not finite"),
        (lambda _, tensors: tensors["method.magnitudes"].fill_(float("nan")),
         "magnitudes has 2 of 2 numbers that are not finite"),
        (lambda _, tensors: tensors.pop("method.magnitudes"), "magnitudes is missing"),
        (lambda _, tensors: tensors.update({"method.magnitudes": torch.ones(2).half()}),
         "magnitudes has dtype float16, expected float32"),
        (lambda _, tensors: tensors["method.directions.block0_q.rank_sizes"].fill_(3),
         "directions.block0_q.rank_sizes is [3], expected [10]"),
    ],
)  # fmt: skip
def test_a_snapshot_of_another_state_is_refused(
    edit: Callable[[dict[str, Any], Tensors], Any],
    problem: str,
    stopped: Path,
    small_recipe: Recipe,
    finished_run: Any,
) -> None:
    file = stopped / "snapshot.safetensors"
    change(stopped, edit)
    with pytest.raises(CheckpointError) as caught:
        run(small_recipe, out=stopped, resume=True, progress=False)
    problems = caught.value.problems
    assert any(each.startswith(f"{file}: ") and problem in each for each in problems), problems
    assert all(each.endswith("; delete it to begin the task anew") for each in problems)
    file.unlink()
    goes_on(stopped, small_recipe, finished_run)


def test_the_optimisers_settings_are_the_recipes(stopped: Path, small_recipe: Recipe, finished_run: Any) -> None:
    def edit(facts: dict[str, Any], _: Tensors) -> None:
        facts["descent"]["groups"][0] |= {"weight_decay": 9.0, "betas": [0.0, 0.0], "params": [5]}
        facts["descent"]["schedule"] |= {"last_epoch": 77, "base_lrs": [3.0], "step": "no function"}

    change(stopped, edit)
    goes_on(stopped, small_recipe, finished_run)
