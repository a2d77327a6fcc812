"""Trackers: what reaches them and where, each point once however often the run was stopped; and no word where one is
missing."""

from __future__ import annotations

import json
import re
import sys
import types
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from lorica import tracking
from lorica.config import read_recipe
from lorica.errors import LoricaError
from lorica.processes import Processes
from lorica.report import summarise
from lorica.results import Look, Result, read_history
from lorica.run import check, run
from lorica.session import Session
from lorica.tracking import Clock, require_tracker

Points = dict[str, list[tuple[int, float]]]


def look(task: int, epoch: int, step: int, stage: int = 0) -> Look:
    return Look(task=task, stage=stage, epoch=epoch, step=step, learning_rate=0.1, terms={})


def drawn(folder: Path) -> Points:
    """What TensorBoard shows of a run, by name."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder / "tensorboard"))
    read.Reload()
    return {name: [(each.step, each.value) for each in read.Scalars(name)] for name in read.Tags()["scalars"]}


def test_where_points_stand() -> None:
    clock = Clock()
    # 13 steps an epoch, looked at after 10, and after the last one; a second stage of two steps; the next task has 4
    assert [clock.look(look(0, epoch, step)) for epoch, step in ((0, 9), (0, 12), (1, 6), (1, 12))] == [10, 13, 20, 26]
    assert clock.look(look(0, 0, 1, stage=1)) == 28
    assert clock.tested() == 29
    assert [clock.look(look(1, epoch, 3)) for epoch in (0, 1)] == [33, 37]
    assert [clock.tested(), clock.tested()] == [38, 39]


def test_tensorboard_has_the_history_and_the_accuracies(small_recipe: dict[str, Any], tmp_path: Path) -> None:
    result = run(small_recipe, out=tmp_path, progress=False, track="tensorboard")
    found, clock, expected = drawn(tmp_path), Clock(), defaultdict(list)
    looks = read_history(tmp_path)
    for task, row in enumerate(result.accuracy):
        for each in (each for each in looks if each.task == task):
            at = clock.look(each)
            expected["learning_rate"].append((at, each.learning_rate))
            expected["loss/cross_entropy"].append((at, each.terms["cross_entropy"]))
        at = clock.tested()
        expected["accuracy/average"].append((at, sum(row) / len(row)))
        expected["accuracy/new_task"].append((at, row[-1]))
    assert found.keys() == expected.keys()
    for name, points in expected.items():
        assert [at for at, _ in found[name]] == [at for at, _ in points]
        assert [value for _, value in found[name]] == pytest.approx([value for _, value in points])
    (noted,) = (tmp_path / "tensorboard").glob("*/hparams.yml")
    assert yaml.safe_load(noted.read_text())["fit.epochs"] == small_recipe["fit"]["epochs"]


@pytest.mark.parametrize("method", ["sd_lora", "prototypes", "joint"])
def test_a_run_that_goes_on_draws_no_point_twice(
    method: str, small_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = {**small_recipe, "method": {"name": method}, "track": "tensorboard"}
    run(recipe, out=tmp_path / "whole", progress=False)

    class Killed(BaseException):
        pass

    closed = Session.close

    def killed(self: Session, *rows: Any, **of_model: Any) -> None:
        if self.learned == (0 if method == "joint" else 1):
            raise Killed  # all has been drawn of the task, and it is not learned
        closed(self, *rows, **of_model)

    monkeypatch.setattr(Session, "close", killed)
    with pytest.raises(Killed):
        run(recipe, out=tmp_path / "parts", progress=False)
    monkeypatch.setattr(Session, "close", closed)
    if method == "sd_lora":
        run(recipe, out=tmp_path / "parts", progress=False, resume=True, stop_after=2)
    run(recipe, out=tmp_path / "parts", progress=False, resume=True)
    assert drawn(tmp_path / "parts") == drawn(tmp_path / "whole")


def test_a_run_that_is_tracked_is_the_same_run(
    small_recipe: dict[str, Any], finished_run: Result, tmp_path: Path
) -> None:
    assert "track" not in read_recipe(small_recipe).resolved()  # recipes are as before
    result = run(small_recipe, out=tmp_path, stop_after=2, progress=False)
    result = run(small_recipe, out=tmp_path, resume=True, progress=False, track="tensorboard")
    assert result.accuracy == finished_run.accuracy
    assert result.recipe["track"] == "tensorboard"
    assert len(summarise([result, finished_run])) == 1
    assert finished_run.path is not None
    assert (tmp_path / "history.jsonl").read_bytes() == (finished_run.path / "history.jsonl").read_bytes()
    assert sorted(drawn(tmp_path)) == ["accuracy/average", "accuracy/new_task", "learning_rate", "loss/cross_entropy"]


@pytest.mark.parametrize(
    ("kind", "package"), [("tensorboard", "'lorica[track]'"), ("wandb", "wandb"), ("mlflow", "mlflow")]
)
def test_a_tracker_that_is_not_there_is_named_before_anything_is_done(
    kind: str, package: str, small_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    require_tracker("none")
    for call in (lambda: run(small_recipe, out=tmp_path / "run", track=kind), lambda: check(small_recipe, track=kind)):
        with pytest.raises(
            LoricaError, match=rf"track: {kind} is not installed; pip install {re.escape(package)}, or leave"
        ):
            call()
    assert not (tmp_path / "run").exists()


def test_one_of_several_processes_alone_draws(small_recipe: dict[str, Any], tmp_path: Path) -> None:
    session = Session.__new__(Session)
    session.processes = Processes(number=2, index=1)
    assert tracking.tracked(read_recipe({**small_recipe, "track": "tensorboard"}), session, tmp_path) is None
    assert not list(tmp_path.iterdir())


# ---- the others' classes are Accelerate's; what they import is not installed here, and stands in


class Server:
    """What Weights & Biases or MLflow would have: arguments of each start, points and configurations."""

    def __init__(self) -> None:
        self.starts: list[dict[str, Any]] = []
        self.points: list[tuple[int, dict[str, float]]] = []
        self.configurations: list[dict[str, Any]] = []
        self.ended = 0

    def start(self, **arguments: Any) -> types.SimpleNamespace:
        self.starts.append(arguments)
        name = arguments.get("id") or arguments.get("run_id") or f"run{len(self.starts)}"
        return types.SimpleNamespace(
            id=name,
            info=types.SimpleNamespace(run_id=name),
            log=lambda values, step: self.points.append((step, values)),
            finish=self.end,
        )

    def end(self) -> None:
        self.ended += 1


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    made = Server()
    wandb: Any = types.ModuleType("wandb")
    wandb.init = made.start
    wandb.config = types.SimpleNamespace(update=lambda values, allow_val_change: made.configurations.append(values))
    mlflow: Any = types.ModuleType("mlflow")
    mlflow.search_experiments = lambda filter_string: []
    mlflow.create_experiment = lambda **arguments: arguments["name"]
    mlflow.start_run = made.start
    mlflow.log_params = made.configurations.append
    mlflow.log_metrics = lambda values, step: made.points.append((step, values))
    mlflow.end_run = made.end
    validation = types.SimpleNamespace(MAX_PARAM_VAL_LENGTH=500, MAX_PARAMS_TAGS_PER_BATCH=100)
    mlflow.utils = types.SimpleNamespace(validation=validation)
    for name, module in (("wandb", wandb), ("mlflow", mlflow)):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(tracking, "find_spec", lambda name: name)
    return made


@pytest.mark.parametrize("kind", ["wandb", "mlflow"])
def test_the_others_go_on_with_the_run_that_they_know(
    kind: str, server: Server, small_recipe: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "mine"
    run(small_recipe, out=folder, progress=False, track=kind, stop_after=1)
    assert json.loads((folder / "tracking.json").read_text()) == {"tracker": kind, "id": "run1"}
    run(small_recipe, out=folder, progress=False, track=kind, resume=True)
    first, second = server.starts
    if kind == "wandb":
        assert first == {"project": "lorica", "name": "mine", "dir": str(folder)}
        assert second == {**first, "id": "run1", "resume": "allow"}
    else:
        assert [(each["experiment_id"], each["run_name"], each["run_id"]) for each in (first, second)] == [
            ("lorica", "mine", None),
            ("lorica", "mine", "run1"),
        ]
    steps = [step for step, _ in server.points]
    assert steps == sorted(set(steps))
    assert {name for _, values in server.points for name in values} == {
        "accuracy/average", "accuracy/new_task", "learning_rate", "loss/cross_entropy",
    }  # fmt: skip
    assert [each["method.name"] for each in server.configurations] == ["sd_lora"]
    assert server.ended == 2
    run(small_recipe, out=folder, progress=False, track=kind, overwrite=True)
    assert json.loads((folder / "tracking.json").read_text())["id"] == "run3"
