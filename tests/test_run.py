"""Whole runs: what they leave behind, that they repeat and resume exactly, and what stops them."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from lorica import files
from lorica.analysis import relative_distances, residuals
from lorica.backbones import load_backbone
from lorica.checkpoint import Checkpoints
from lorica.config import read_recipe
from lorica.data.sources import Source, arrays
from lorica.errors import BackboneError, CheckpointError, LoricaError, RecipeError, TrainingError
from lorica.learner import load
from lorica.methods import build_method, find_method
from lorica.metrics import Matrix
from lorica.results import Result, read_confusion, read_result
from lorica.run import check, default_folder, evaluate, run
from lorica.session import _finite

Recipe = dict[str, Any]

# the README's example of a method of one's own
OWN_METHOD = '''\
"""LoRA whose down-projection stays at its random start; only the up-projection and the head train."""

import torch

from lorica.adapters.attach import attach
from lorica.adapters.lowrank import LowRankUpdates
from lorica.methods.linear_head import LinearHeadMethod


class HalfLoRA(LinearHeadMethod):
    name = "half_lora"

    def __init__(self, config, encoder):
        super().__init__(config, encoder)
        sites = encoder.select(["q", "v"])
        self.updates = LowRankUpdates(sites, device=self.device)
        attach(encoder, sites, lambda site: self.updates[site](torch.empty(0, device=self.device), 1.0))

    def grow(self, task):
        super().grow(task)
        if task.index == 0:
            self.updates.grow(rank=4, zero_up=True)

    def trainable(self):
        return [p for p in self.updates.factors() if p.shape[1] == 4] + self.head_parameters()
'''

# sd_lora that is stopped once, at the second batch of the second task, while a file named "stop" lies beside it
STOPPED_METHOD = """\
from pathlib import Path

import torch

from lorica.methods import find_method

SDLoRA = find_method("sd_lora")


class Stopped(SDLoRA):
    name = "stopped"
    steps = 0

    def losses(self, batch):
        self.steps += 1
        stop = Path(__file__).parent / "stop"
        for terms in super().losses(batch):
            if self.task.index == 1 and stop.exists() and self.steps == 6:
                how = stop.read_text()
                stop.unlink()
                if how == "interrupt":
                    raise KeyboardInterrupt
                terms = {name: term * float("nan") for name, term in terms.items()}
            yield terms
"""


def quiet(recipe: Any, out: Path, **more: Any) -> Result:
    return run(recipe, out=out, progress=False, **more)


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of all checkpoints."""
    recipe = read_recipe(yaml.safe_load((folder / "recipe.yaml").read_text()))
    held = Checkpoints(folder / "checkpoints")
    tensors = {}
    for number in held.there():
        method = build_method(
            recipe.method, load_backbone(**recipe.backbone.model_dump()), readout=recipe.evaluate.readout
        )
        held.load(method, number)
        tensors |= {f"task_{number - 1:02d}.{key}": tensor.clone() for key, tensor in method.own_state().items()}
    return tensors


def checkpoint_files(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def metrics_of(folder: Path) -> dict[str, Any]:
    return {
        key: value for key, value in json.loads((folder / "metrics.json").read_text()).items() if key != "train_seconds"
    }


def assert_same_run(one: Path, other: Path) -> None:
    assert metrics_of(one) == metrics_of(other)
    left, right = tensors_of(one), tensors_of(other)
    assert left.keys() == right.keys()
    assert [key for key in left if not torch.equal(left[key], right[key])] == []


# ---- what a run leaves


def test_what_a_run_leaves_behind(finished_run: Result, small_recipe: Recipe) -> None:
    folder = finished_run.path
    assert folder is not None
    assert sorted(entry.name for entry in folder.iterdir()) == [
        "checkpoints",
        "confusion.json",
        "cost.json",
        "environment.json",
        "history.jsonl",
        "metrics.json",
        "recipe.yaml",
        "stream.jsonl",
    ]
    assert checkpoint_files(folder) == ["journal.jsonl", *(f"task_000{task}.safetensors" for task in range(3))]
    assert {path.stat().st_mode & 0o777 for path in (folder / "checkpoints").iterdir()} == {0o666 & ~umask()}
    assert yaml.safe_load((folder / "recipe.yaml").read_text()) == read_recipe(small_recipe).resolved()
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["device"] == "cpu"
    assert environment["gpu"] is None
    assert environment["float32_on_cuda"] == {"matmul": "none", "convolution": "tf32"}  # torch's own choices
    assert environment["backbone"]["name"] == "test_vit"
    assert environment["data"]["train"] == 72
    cost = json.loads((folder / "cost.json").read_text())
    assert len(cost["tasks"]) == len(cost["train_seconds"]) == len(cost["data_seconds"]) == 3
    assert all(0 < waited < taken for waited, taken in zip(cost["data_seconds"], cost["train_seconds"], strict=True))


def test_the_confusion_is_that_of_the_last_task(finished_run: Result, small_recipe: Recipe, tmp_path: Path) -> None:
    found = read_confusion(finished_run)
    assert found is not None
    assert found.classes == [name for task in finished_run.tasks for name in task["classes"]]
    assert {one: sum(n for true, _, n in found.counts if true == one) for one in range(6)} == dict.fromkeys(range(6), 6)
    for task, accuracy in enumerate(finished_run.accuracy[-1]):
        right = sum(n for one, other, n in found.counts if one == other and one // 2 == task)
        assert right == round(12 * accuracy)
    stopped = run(small_recipe, out=tmp_path, stop_after=2, progress=False)
    assert not (tmp_path / "confusion.json").exists()
    assert read_confusion(stopped) is None
    run(small_recipe, out=tmp_path, resume=True, progress=False)
    assert finished_run.path is not None
    assert (tmp_path / "confusion.json").read_bytes() == (finished_run.path / "confusion.json").read_bytes()


def test_the_result_is_metrics_json(finished_run: Result) -> None:
    assert finished_run.path is not None
    metrics = json.loads((finished_run.path / "metrics.json").read_text())
    assert finished_run.metrics.model_dump() == metrics
    assert (metrics["method"], metrics["variant"], metrics["seed"]) == ("sd_lora", "paper", 0)
    assert [len(row) for row in metrics["accuracy"]] == [1, 2, 3]
    assert [(task["train"], task["test"]) for task in metrics["tasks"]] == [(24, 12)] * 3
    assert metrics["complete"]
    assert metrics["cross_entropy"] == "current_task"
    assert [len(row) for row in metrics["diagnostics"]["magnitudes"]] == [1, 2, 3]
    assert metrics["accuracy"][0][0] > 0.9  # two colours are easy


def test_checkpoints_hold_no_frozen_backbone(finished_run: Result, small_recipe: Recipe, tmp_path: Path) -> None:
    assert finished_run.path is not None
    assert not [key for key in tensors_of(finished_run.path) if "encoder" in key]
    quiet(small_recipe, tmp_path, method="full_finetune", fit={"epochs": 1})
    assert [key for key in tensors_of(tmp_path) if "encoder" in key]


def test_joint_is_one_model_asked_about_a_growing_set_of_classes(small_recipe: Recipe, tmp_path: Path) -> None:
    result = quiet(small_recipe, tmp_path, method="joint")
    assert [len(row) for row in result.accuracy] == [1, 2, 3]
    assert result.complete
    # with more classes to choose from, an accuracy cannot rise
    assert result.accuracy[0][0] >= result.accuracy[1][0] >= result.accuracy[2][0]
    assert checkpoint_files(tmp_path) == ["journal.jsonl", "task_0000.safetensors"]
    assert evaluate(tmp_path)[0] == result.accuracy[-1]
    assert quiet(small_recipe, tmp_path, method="joint", resume=True) == result


def test_a_validation_split_can_take_the_tests_place(small_recipe: Recipe, tmp_path: Path) -> None:
    data = {"validation_fraction": 0.25, "evaluate_on": "validation"}
    result = quiet(small_recipe, tmp_path, method="prototypes", data=data)
    assert [(task["train"], task["test"]) for task in result.tasks] == [(18, 6)] * 3
    assert evaluate(tmp_path)[0] == result.accuracy[-1]


def test_default_folders(tmp_path: Path) -> None:
    assert default_folder("digits", read_recipe("digits")) == Path("runs/digits/sd_lora")
    other = read_recipe("digits", ["seed=2", "method.variant=released_code"])
    assert default_folder("some/where/mine.yaml", other) == Path("runs/mine/sd_lora-released_code-seed2")
    assert default_folder({}, read_recipe("digits")) == Path("runs/run/sd_lora")
    gated = read_recipe("digits", ["method.name=gumbel_cl_lora", "method.variant=default"])
    assert default_folder("digits", gated) == Path("runs/digits/gumbel_cl_lora")


# ---- again, and from where it stopped


def test_the_same_seed_gives_the_same_run_and_leaves_the_callers_randomness_alone(
    finished_run: Result, small_recipe: Recipe, tmp_path: Path
) -> None:
    torch.manual_seed(77)
    np.random.seed(77)
    before, legacy, environment = torch.get_rng_state(), np.random.get_state()[1], dict(os.environ)
    quiet(small_recipe, tmp_path)
    assert torch.equal(before, torch.get_rng_state())
    assert np.array_equal(legacy, np.random.get_state()[1])
    assert environment == dict(os.environ)
    assert finished_run.path is not None
    assert_same_run(finished_run.path, tmp_path)


def test_another_seed_gives_another_run_over_the_same_stream(
    finished_run: Result, small_recipe: Recipe, tmp_path: Path
) -> None:
    other = quiet(small_recipe, tmp_path, seed=1)
    assert other.tasks == finished_run.tasks
    assert finished_run.path is not None
    one, two = tensors_of(finished_run.path), tensors_of(tmp_path)
    assert not torch.equal(one["task_02.magnitudes"], two["task_02.magnitudes"])


@pytest.mark.parametrize(
    "method",
    [
        {"name": "sd_lora"},
        {"name": "full_finetune"},
        {"name": "sd_lora_rr", "reduced_from": [2, 3], "reduced_ranks": [4, 2]},
        {"name": "sd_lora_kd", "variant": "absorbing", "start": "shared", "refit_epochs": 1},
        {"name": "sd_lora_kd", "start": "previous", "tolerance": 0.5, "literal_update": True},
        {"name": "gumbel_cl_lora", "temperature": [1, 1e-5], "prune_past": True},  # so cold that one gate is open
        {"name": "gumbel_cl_lora", "temperature": [1, 1e-5], "prune_past": True, "keep_pruned": True},
        {"name": "gumbel_cl_lora", "variant": "summary"},
        {"name": "inf_lora"},
        {"name": "cl_lora"},
    ],
    ids=lambda method: "-".join(map(str, method.values())),
)
@pytest.mark.parametrize("tasks", [1, 2])
def test_a_resumed_run_equals_one_that_was_never_stopped(
    method: dict[str, Any], tasks: int, small_recipe: Recipe, tmp_path: Path
) -> None:
    recipe = small_recipe | {"method": method, "fit": {"epochs": 1, "batch_size": 8, "augment": "shift"}}
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    kept = quiet(recipe, whole).diagnostics.get("kept")
    if method.get("prune_past"):
        assert kept is not None
        assert len(kept[1]) < 2, "nothing was pruned: the test would not see a mask that is lost"
    left = quiet(recipe, stopped, stop_after=tasks)
    assert len(left.accuracy) == tasks
    assert not left.complete
    quiet(recipe, stopped, resume=True)
    assert_same_run(whole, stopped)
    assert (
        json.loads((stopped / "cost.json").read_text())["tasks"]
        == json.loads((whole / "cost.json").read_text())["tasks"]
    )


def test_whoever_starts_a_run_is_asked_after_each_task_whether_it_goes_on(
    small_recipe: Recipe, finished_run: Result, tmp_path: Path
) -> None:
    asked = []

    def go_on(accuracy: Matrix) -> bool:
        asked.append([list(row) for row in accuracy])
        return len(accuracy) < 2

    left = quiet(small_recipe, tmp_path / "run", go_on=go_on)
    assert asked == [finished_run.accuracy[:1], finished_run.accuracy[:2]]
    assert left.accuracy == finished_run.accuracy[:2]
    assert not left.complete
    assert quiet(small_recipe, tmp_path / "run", resume=True).accuracy == finished_run.accuracy


@pytest.mark.parametrize("how", ["interrupt", "nan"])
def test_a_run_that_was_stopped_within_a_task_can_be_resumed(how: str, small_recipe: Recipe, tmp_path: Path) -> None:
    file = tmp_path / "stopped.py"
    file.write_text(STOPPED_METHOD)
    recipe = small_recipe | {"method": str(file)}
    quiet(recipe, tmp_path / "whole")
    (tmp_path / "stop").write_text(how)
    with pytest.raises(KeyboardInterrupt if how == "interrupt" else TrainingError) as caught:
        quiet(recipe, tmp_path / "stopped")
    if how == "nan":
        where = "stopped: the loss became nan at task 2, epoch 1, step 2, learning rate 0.01; "
        assert str(caught.value).startswith(where)
        assert str(caught.value).endswith("start anew with a lower fit.learning_rate")
    assert checkpoint_files(tmp_path / "stopped") == ["journal.jsonl", "task_0000.safetensors"]
    assert not metrics_of(tmp_path / "stopped")["complete"]
    quiet(recipe, tmp_path / "stopped", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


def test_resuming_a_finished_run_changes_nothing(finished_run: Result, small_recipe: Recipe, tmp_path: Path) -> None:
    assert finished_run.path is not None
    shutil.copytree(finished_run.path, tmp_path / "run")
    assert quiet(small_recipe, tmp_path / "run", resume=True).metrics == finished_run.metrics


@pytest.mark.parametrize("lost", ["metrics.json", "cost.json", "both"])
def test_what_follows_from_the_checkpoints_is_written_again(
    lost: str, finished_run: Result, small_recipe: Recipe, tmp_path: Path
) -> None:
    assert finished_run.path is not None
    shutil.copytree(finished_run.path, tmp_path / "run")
    for name in ("metrics.json", "cost.json") if lost == "both" else (lost,):
        (tmp_path / "run" / name).unlink()
    if lost == "cost.json":  # a process that was killed meanwhile had not yet said that the run is complete
        (tmp_path / "run" / "metrics.json").unlink()
    assert quiet(small_recipe, tmp_path / "run", resume=True).metrics == finished_run.metrics
    cost = json.loads((tmp_path / "run" / "cost.json").read_text())
    assert cost == json.loads((finished_run.path / "cost.json").read_text())


def test_results_that_take_long_to_write_are_not_written_after_each_task(
    small_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []

    def slow_write_json(path: Path, content: dict[str, Any]) -> None:
        if path.name == "metrics.json":
            written.append(len(content["accuracy"]))
            time.sleep(0.2)
        files.write_json(path, content)

    monkeypatch.setattr(sys.modules[run.__module__], "write_json", slow_write_json)
    prototypes = {**small_recipe, "method": "prototypes", "stream": {"classes_per_task": 2}}
    result = quiet(prototypes, tmp_path / "run")
    assert len(result.accuracy) == 3
    assert written == [1, 3]


def test_resuming_where_nothing_is_starts(finished_run: Result, small_recipe: Recipe, tmp_path: Path) -> None:
    assert quiet(small_recipe, tmp_path / "new", resume=True).accuracy == finished_run.accuracy


def test_resuming_with_another_recipe_lists_what_differs(
    finished_run: Result, small_recipe: Recipe, tmp_path: Path
) -> None:
    assert finished_run.path is not None
    shutil.copytree(finished_run.path, tmp_path / "run")
    with pytest.raises(LoricaError) as caught:
        quiet(small_recipe, tmp_path / "run", resume=True, seed=1, fit={"epochs": 5})
    assert [problem.partition(": ")[2] for problem in caught.value.problems] == [
        "fit.epochs was 2, now 5; give the same value to resume",
        "seed was 0, now 1; give the same value to resume",
    ]


def test_a_folder_that_holds_a_run_is_not_overwritten_unasked(
    finished_run: Result, small_recipe: Recipe, tmp_path: Path
) -> None:
    assert finished_run.path is not None
    folder = tmp_path / "run"
    shutil.copytree(finished_run.path, folder)
    (folder / "figures").mkdir()
    with pytest.raises(LoricaError, match="holds a run already; --resume continues it, --overwrite starts it anew"):
        quiet(small_recipe, folder)
    assert_same_run(finished_run.path, folder)
    quiet(small_recipe, folder, overwrite=True, method="prototypes")
    assert metrics_of(folder)["method"] == "prototypes"
    assert not (folder / "figures").exists()


def test_a_mistake_leaves_nothing_behind(small_recipe: Recipe, tmp_path: Path) -> None:
    out = tmp_path / "run"
    for wrong in ({"data.root": "nowhere.npz"}, {"stream.tasks": 7}, {"backbone.name": "vit_bse"}, {"fit.lr": 1}):
        with pytest.raises(LoricaError):
            quiet(small_recipe, out, **wrong)
        assert not out.exists()


# ---- data that is not on disk, or is no longer what it was


def test_data_given_as_an_object(
    finished_run: Result, small_recipe: Recipe, six_classes: Source, tmp_path: Path
) -> None:
    result = quiet(small_recipe, tmp_path, source=six_classes)
    assert result.accuracy == finished_run.accuracy
    assert yaml.safe_load((tmp_path / "recipe.yaml").read_text())["data"]["source"] == "in_memory"
    with pytest.raises(RecipeError, match=r"data.source: the data of this run was given as an object .* give it again"):
        evaluate(tmp_path)
    assert evaluate(tmp_path, source=six_classes)[0] == result.accuracy[-1]
    assert quiet(small_recipe, tmp_path, source=six_classes, resume=True).metrics == result.metrics


def test_other_classes_than_the_ones_learned_are_refused(
    small_recipe: Recipe, six_classes: Source, tmp_path: Path
) -> None:
    quiet(small_recipe, tmp_path, source=six_classes, method="prototypes")
    images, labels = np.zeros((6, 8, 8), np.uint8), np.arange(6)
    other = arrays((images, labels), (images, labels), ["a", "b", "c", "d", "e", "f"])
    with pytest.raises(CheckpointError, match=r"learned the classes .*cyan.*; the data now gives .*; restore the data"):
        evaluate(tmp_path, source=other)
    journal = tmp_path / "checkpoints" / "journal.jsonl"
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:-1]))
    with pytest.raises(CheckpointError, match="learned the classes"):
        quiet(small_recipe, tmp_path, source=other, method="prototypes", resume=True)


# ---- evaluate and check


def test_evaluating_again_gives_the_rows_of_the_matrix(
    finished_run: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert finished_run.path is not None
    folder = finished_run.path.resolve()
    monkeypatch.chdir(tmp_path)
    row, names, _ = evaluate(folder)
    assert row == finished_run.accuracy[-1]
    assert [list(task) for task in names] == [task["classes"] for task in finished_run.tasks]
    assert evaluate(folder, tasks=1)[0] == finished_run.accuracy[0]


def test_evaluating_what_is_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(LoricaError, match=r"not the folder of a run \(recipe.yaml is missing\)"):
        evaluate(tmp_path)


def test_check_returns_recipe_and_stream(small_recipe: Recipe) -> None:
    recipe, stream = check(small_recipe, **{"stream.classes_per_task": [2, 4]})
    assert recipe.stream.tasks is None
    assert [len(task.class_names) for task in stream.tasks] == [2, 4]
    with pytest.raises(LoricaError, match="sums to 3, but there are 6 classes"):
        check(small_recipe, **{"stream.classes_per_task": [1, 2]})


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a device that is not there")
def test_a_device_that_is_not_there(small_recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"device: cuda is not available on this machine; it has cpu.*; use device=auto"
    ):
        quiet(small_recipe, tmp_path / "run", device="cuda")


def test_bf16_runs_and_does_not_linger(finished_run: Result, small_recipe: Recipe, tmp_path: Path) -> None:
    quiet(small_recipe, tmp_path / "bf16", precision="bf16")
    assert finished_run.path is not None
    other = tensors_of(tmp_path / "bf16")["task_00.magnitudes"]
    assert not torch.equal(tensors_of(finished_run.path)["task_00.magnitudes"], other)
    quiet(small_recipe, tmp_path / "fp32")
    assert_same_run(finished_run.path, tmp_path / "fp32")


# ---- a method of one's own


def test_a_method_in_a_file_of_ones_own(small_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("half_lora.py").write_text(OWN_METHOD)
    result = quiet(small_recipe, Path("run"), method="half_lora.py")
    assert result.label == "half_lora"
    assert result.accuracy[0][0] > 0.9
    tensors = tensors_of(tmp_path / "run")
    first, last = ({k[8:]: v for k, v in tensors.items() if k.startswith(f"task_0{t}.")} for t in (0, 2))
    changed = {key for key in first if not torch.equal(first[key], last[key])}
    assert changed
    assert all("up" in key for key in changed)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "moved.py").write_text(OWN_METHOD)  # the contents count, not the place
    for file in ("../half_lora.py", tmp_path / "moved.py"):
        assert evaluate(tmp_path / "run", method_file=file).accuracy == result.accuracy[-1]
        assert load(tmp_path / "run", method_file=file).class_names
        again = quiet(small_recipe, tmp_path / "run", method=str(file), resume=True)
        assert again.accuracy == result.accuracy


def test_no_file_is_executed_that_is_not_named_in_the_call(
    small_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it is that takes a run's folder or a recipe, and wherever the file lies."""
    file, out = tmp_path / "half_lora.py", tmp_path / "run"
    file.write_text(OWN_METHOD)
    quiet(small_recipe, out, method=str(file), stop_after=1)
    monkeypatch.chdir(tmp_path)
    trap = 'from pathlib import Path; Path("executed").touch()\n'
    file.write_text(trap)
    recipe = out / "recipe.yaml"
    for name in (str(file), "half_lora.py", "./run/../half_lora.py"):
        recipe.write_text(re.sub(r"name: .*\.py", f"name: {name}", recipe.read_text()))
        for call in (
            partial(load, out),
            partial(evaluate, out),
            partial(check, recipe),
            partial(quiet, recipe, out, resume=True),
            partial(quiet, small_recipe, out, resume=True),
            partial(quiet, recipe, tmp_path / "anew"),
            partial(read_recipe, recipe, {"method.rank": 2}),
            partial(residuals, read_result(out), "label"),
            partial(relative_distances, read_result(out), tasks=2),
        ):
            with pytest.raises(LoricaError, match=r"half_lora\.py is a program; it is executed only if you name it"):
                call()
            assert not (tmp_path / "executed").exists()
    # nor another one in its place: it is read, and found to be another
    with pytest.raises(LoricaError, match=r"other contents than the file that this recipe was run with"):
        load(out, method_file=file)
    assert not (tmp_path / "executed").exists()
    assert not list(tmp_path.rglob("*.pyc"))


def test_what_is_given_beside_a_method_file(small_recipe: Recipe, finished_run: Result, tmp_path: Path) -> None:
    assert finished_run.path is not None
    (tmp_path / "picture.py").write_bytes(b"\x89PNG\x00")
    with pytest.raises(RecipeError, match=r"picture\.py is not a Python file"):
        check(small_recipe, method=str(tmp_path / "picture.py"))
    (tmp_path / "half.py").write_text("def (:\n")
    with pytest.raises(RecipeError, match=r"half\.py is not a Python file: .*line 1"):
        check(small_recipe, method=str(tmp_path / "half.py"))
    with pytest.raises(RecipeError, match=r"method\.sha256: belongs to a method in a \.py file"):
        check(small_recipe, method={"name": "sd_lora", "sha256": "00"})
    with pytest.raises(RecipeError, match=r"there is no file .*nowhere\.py"):
        check(small_recipe, method=str(tmp_path / "nowhere.py"))
    (tmp_path / "half_lora.py").write_text(OWN_METHOD)
    with pytest.raises(LoricaError, match="the method of this run is sd_lora, and not in a file"):
        load(finished_run.path, method_file=tmp_path / "half_lora.py")


# ---- data and weights that have moved


def test_data_and_weights_that_moved_are_known_by_their_contents(small_recipe: Recipe, tmp_path: Path) -> None:
    old, new, out = tmp_path / "old", tmp_path / "new", tmp_path / "run"
    old.mkdir()
    data, weights = Path(small_recipe["data"]["root"]), Path(small_recipe["backbone"]["weights"])
    for file in (data, weights):
        shutil.copy(file, old)

    def recipe(folder: Path) -> dict[str, Any]:
        given = {"data": {"root": str(folder / data.name)}, "backbone": {"weights": str(folder / weights.name)}}
        return small_recipe | {key: small_recipe[key] | values for key, values in given.items()}

    whole = quiet(small_recipe, tmp_path / "whole")
    quiet(recipe(old), out, stop_after=2)
    old.rename(new)
    with pytest.raises(LoricaError, match="old"):
        load(out)
    moved = {"data.root": new / data.name, "backbone.weights": new / weights.name}
    assert load(out, **moved).class_names == load(tmp_path / "whole", tasks=2).class_names
    assert evaluate(out, **moved).accuracy == whole.accuracy[1]
    shutil.copytree(out, tmp_path / "unfinished")
    assert quiet(recipe(new), out, resume=True).accuracy == whole.accuracy
    assert evaluate(out).accuracy == whole.accuracy[-1]  # from now on it knows where they are
    # other contents are refused, wherever they are
    (tmp_path / "other").mkdir()
    with np.load(data) as held:
        np.savez(tmp_path / "other" / data.name, **dict(held) | {"x_train": held["x_train"] ^ 1})
    resume = partial(quiet, small_recipe, tmp_path / "unfinished", resume=True)
    for call in (partial(evaluate, out), resume):
        with pytest.raises(LoricaError, match="since the run began"):
            call(**moved | {"data.root": tmp_path / "other" / data.name})
    tensors = load_file(weights)
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, tmp_path / "other" / weights.name)
    for call in (partial(load, out), partial(evaluate, out), resume):
        with pytest.raises(LoricaError, match="learned on another backbone"):
            call(**{"backbone.weights": tmp_path / "other" / weights.name})


def test_only_places_may_be_given_with_a_run(finished_run: Result) -> None:
    assert finished_run.path is not None
    with pytest.raises(
        RecipeError,
        match=r"fit\.epochs: a run keeps its own; data\.root, backbone\.weights, stream\.manifest, device may",
    ):
        load(finished_run.path, fit={"epochs": 3})


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("normalisation: backbone", "normalisation: unit", "backbone.normalisation"),
        ("crop_pct: 1.0", "crop_pct: 0.9", "data.crop_pct"),
        ("rank: 10", "rank: 3", "method.rank"),
        ("background: white", "background: black", "data.background"),
    ],
)
def test_a_runs_recipe_that_was_altered_is_refused(
    old: str, new: str, key: str, finished_run: Result, small_recipe: Recipe, tmp_path: Path
) -> None:
    assert finished_run.path is not None
    out = tmp_path / "run"
    shutil.copytree(finished_run.path, out)
    text = (out / "recipe.yaml").read_text()
    assert old in text
    (out / "recipe.yaml").write_text(text.replace(old, new))
    resume = partial(quiet, small_recipe, out, resume=True)
    for call in (partial(load, out), partial(evaluate, out), resume, partial(residuals, read_result(out), "label")):
        with pytest.raises(LoricaError, match=rf"{re.escape(key)} is .* metrics\.json, which repeats it"):
            call()
    (out / "recipe.yaml").write_text(text.replace("checkpoints: all", "checkpoints: newest"))
    assert load(out).class_names  # how a run goes on is free


def test_nothing_of_a_run_is_relative_to_the_working_directory(finished_run: Result, tmp_path: Path) -> None:
    assert finished_run.path is not None
    shutil.copytree(finished_run.path, tmp_path / "run")
    recipe = tmp_path / "run" / "recipe.yaml"
    recipe.write_text(re.sub(r"root: .*", "root: six.npz", recipe.read_text()))
    for call in (load, evaluate):
        with pytest.raises(RecipeError, match=r"recipe\.yaml: data\.root: a run names absolute paths"):
            call(tmp_path / "run")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must define exactly one lorica.Method; it defines none"),
        (OWN_METHOD + OWN_METHOD.replace("HalfLoRA", "Other"), "exactly one lorica.Method; it defines HalfLoRA, Other"),
    ],
)
def test_a_file_without_exactly_one_method(text: str, message: str, small_recipe: Recipe, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(text)
    with pytest.raises(RecipeError, match=message):
        check(small_recipe, method=str(file))


def test_progress_is_reported(small_recipe: Recipe, tmp_path: Path) -> None:
    class Recorder:
        def __init__(self) -> None:
            self.stages: list[tuple[str, int]] = []
            self.steps = 0

        def stage(self, description: str, steps: int) -> None:
            self.stages.append((description, steps))

        def step(self, note: str = "") -> None:
            self.steps += 1

        def say(self, remark: str) -> None:
            raise AssertionError(remark)

    recorder = Recorder()
    run(small_recipe, out=tmp_path, progress=recorder)
    assert [name for name, _ in recorder.stages] == [
        text for task in (1, 2, 3) for text in (f"sd_lora: task {task}", "sd_lora: testing")
    ]
    assert recorder.steps == sum(steps for _, steps in recorder.stages)


def test_a_single_class_with_a_loss_over_its_own_logits_is_refused(six_classes) -> None:
    with pytest.raises(
        LoricaError, match=r"method\.cross_entropy: task 1 has a single class.*use method\.cross_entropy=all_seen"
    ):
        check("digits", source=six_classes, stream={"classes_per_task": 1})
    check("digits", source=six_classes, stream={"classes_per_task": 1}, method={"cross_entropy": "all_seen"})
    check("digits", source=six_classes, stream={"classes_per_task": 1}, **{"method.name": "prototypes"})
    with pytest.raises(LoricaError, match=r"task 1 has a single class.*; use larger tasks"):
        check("digits", source=six_classes, stream={"classes_per_task": 1}, **{"method.name": "cl_lora"})


def test_ease_learns_a_task_of_one_class(six_classes, tmp_path) -> None:
    recipe = {"method": {"name": "ease", "rank": 8}, "stream": {"classes_per_task": [3, 2, 1]}}
    fit = {"epochs": 8, "batch_size": 8, "learning_rate": 0.5}
    result = run({**recipe, "fit": fit}, source=six_classes, out=tmp_path / "run", progress=False)
    assert result.acc > 0.6  # of one in six
    method: Any = load(result.path).method
    images = torch.rand(2, 3, method.encoder.image_size, method.encoder.image_size)
    assert [bool(adapters.up.any()) for adapters in method.adapters] == [True, True, False]
    with torch.no_grad():
        torch.testing.assert_close(method.in_spaces(images)[2], method.encoder.features(images), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("method", ["ease", "aper"])
def test_a_backbone_without_a_place_for_adapters_is_refused_by_check(six_classes, method) -> None:
    with pytest.raises(BackboneError, match=r"adapters have no place there; choose a plain ViT"):
        check("digits", source=six_classes, method=method, backbone={"name": "vit_small_patch16_18x2_224"})


def test_a_method_that_looks_at_weights_can_be_checked(small_recipe, tmp_path) -> None:
    file = tmp_path / "mine.py"
    start = "super().__init__(config, encoder)\n"
    file.write_text(OWN_METHOD.replace(start, start + "        next(encoder.parameters()).max().item()\n"))
    before = torch.get_rng_state()
    assert check(small_recipe, method=str(file))[0].method.name == str(file)
    assert torch.equal(before, torch.get_rng_state())


def test_a_fault_of_a_packaged_method_is_not_hidden_by_check(small_recipe, monkeypatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(find_method("sd_lora"), "__init__", broken)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        check(small_recipe)


def test_a_first_task_of_one_class_is_refused_before_anything_is_written(six_classes, tmp_path) -> None:
    for method in ("aper", "ran_pac"):
        with pytest.raises(LoricaError, match=r"stream: the first task has a single class, .* use a larger first task"):
            check("digits", source=six_classes, stream={"classes_per_task": [1, 5]}, method=method)
        check("digits", source=six_classes, stream={"classes_per_task": [5, 1]}, method=method)
    untuned = {"name": "ran_pac", "tuning": "none", "width": 8}
    check("digits", source=six_classes, stream={"classes_per_task": [1, 5]}, method=untuned)


def test_a_run_older_than_a_key_is_resumed_with_its_default(small_recipe, tmp_path) -> None:
    run(small_recipe, out=tmp_path / "run", progress=False, stop_after=1)
    file = tmp_path / "run" / "recipe.yaml"
    values = yaml.safe_load(file.read_text())
    for key in ("evaluate", "checkpoints"):
        del values[key]
    file.write_text(yaml.safe_dump(values))
    assert run(small_recipe, out=tmp_path / "run", progress=False, resume=True).complete
    with pytest.raises(LoricaError, match=r"evaluate\.readout was 'head', now 'prototypes'"):
        run(small_recipe, out=tmp_path / "run", resume=True, **{"evaluate.readout": "prototypes"})


def test_a_run_older_than_where_heads_start_goes_on_as_it_began(small_recipe, tmp_path) -> None:
    random_start = {"method.head_start": "kaiming"}
    whole = quiet(small_recipe, tmp_path / "whole", **random_start)
    quiet(small_recipe, tmp_path / "run", stop_after=1, **random_start)
    file = tmp_path / "run" / "recipe.yaml"
    values = yaml.safe_load(file.read_text())
    assert values["method"].pop("head_start") == "kaiming"
    file.write_text(yaml.safe_dump(values))
    assert quiet(small_recipe, tmp_path / "run", resume=True).accuracy == whole.accuracy
    with pytest.raises(LoricaError, match=r"method\.head_start was 'kaiming', now 'zeros'"):
        quiet(small_recipe, tmp_path / "run", resume=True, **{"method.head_start": "zeros"})


def test_the_newest_checkpoint_alone(small_recipe, tmp_path) -> None:
    run(small_recipe, out=tmp_path / "run", progress=False, checkpoints="newest", stop_after=2)
    assert checkpoint_files(tmp_path / "run") == ["journal.jsonl", "task_0001.safetensors"]
    resumed = run(small_recipe, out=tmp_path / "run", progress=False, resume=True)  # and all from now on
    assert resumed.accuracy == run(small_recipe, out=tmp_path / "other", progress=False).accuracy
    assert Checkpoints(tmp_path / "run" / "checkpoints").there() == [2, 3]
    newest = run(small_recipe, out=tmp_path / "newest", progress=False, checkpoints="newest")
    assert newest.accuracy == resumed.accuracy
    assert Checkpoints(tmp_path / "newest" / "checkpoints").there() == [3]
    with pytest.raises(CheckpointError, match="no checkpoint after task 2; there are those after 3; give one of them"):
        load(tmp_path / "newest", tasks=2)


def test_what_trained_on_the_first_task_alone_is_in_the_table(small_recipe, tmp_path) -> None:
    result = run({**small_recipe, "method": {"name": "aper", "rank": 2}}, out=tmp_path / "run", progress=False)
    assert result.cross_entropy == "current_task"
    assert result.cost is not None
    assert result.cost["trainable"] > 0
    assert result.cost["stored_by_kind"].keys() == {"adapters", "head"}


def test_a_stream_longer_than_the_method_was_told_is_refused(six_classes) -> None:
    method = {"name": "inf_lora", "variant": "paper", "total_tasks": 2}
    with pytest.raises(LoricaError, match=r"method\.total_tasks: the stream has 3 tasks, which is more than 2"):
        check("digits", source=six_classes, stream={"tasks": 3}, method=method)
    check("digits", source=six_classes, stream={"tasks": 2}, method=method)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"backbone": {"name": "nonsense"}}, r"backbone\.name: timm has no model 'nonsense'"),
        ({"method": {"projections": ["zz"]}}, r"method\.projections: lorica_tiny has no projection zz"),
        (
            {"backbone": {"name": "deit_tiny_patch16_224", "image_size": 40}},
            r"backbone\.image_size: 40 is not a multiple",
        ),
        (
            {"backbone": {"name": "deit_tiny_patch16_224", "weights": "no.safetensors"}},
            r"backbone\.weights: .*is not a file",
        ),
    ],
)
def test_check_knows_backbones_without_loading_weights(overrides: dict, message: str) -> None:
    with pytest.raises(LoricaError, match=message):
        check("digits", **overrides)


def test_a_run_that_failed_in_its_first_task_does_not_block_its_folder(six_classes, tmp_path: Path) -> None:
    recipe = {"method": "linear_probe", "stream": {"tasks": 3}, "fit": {"epochs": 1, "batch_size": 8}}
    with pytest.raises(TrainingError):
        run(
            recipe | {"method": "full_finetune", "fit": {"epochs": 4, "optimizer": "sgd", "learning_rate": 1e30}},
            source=six_classes,
            out=tmp_path,
            progress=False,
        )
    assert run(recipe, source=six_classes, out=tmp_path, progress=False).complete


def test_numbers_that_json_does_not_have_are_null_in_the_history() -> None:
    row = {
        "step": 3,
        "terms": {"cross_entropy": 0.5, "overflowed": math.inf},
        "diagnostics": [math.nan, (1.0, -math.inf)],
    }
    expected = {"step": 3, "terms": {"cross_entropy": 0.5, "overflowed": None}, "diagnostics": [None, [1.0, None]]}
    assert _finite(row) == expected


@pytest.mark.parametrize(("name", "readout"), [("sd_lora", "head"), ("joint", "head"), ("linear_probe", "prototypes")])
def test_earlier_tasks_are_tested_after_every_so_many(
    name: str, readout: str, small_recipe: Recipe, tmp_path: Path
) -> None:
    given = {
        "method": {"name": name, "cross_entropy": "all_seen"},
        "stream.tasks": 6,
        "evaluate.readout": readout,
        "fit.epochs": 1,
    }
    every, thin = (
        run(small_recipe, out=tmp_path / str(each), progress=False, **given, **{"evaluate.every": each})
        for each in (1, 4)
    )
    assert [row.count(None) for row in thin.accuracy] == [0, 1, 2, 0, 4, 0]
    for found, whole in ((thin, every), (thin.head, every.head)) if readout != "head" else ((thin, every),):
        for t, row in enumerate(found.accuracy):
            assert row == (whole.accuracy[t] if t in (0, 3, 5) else [*[None] * t, whole.accuracy[t][-1]])
        assert (found.acc, found.new_task, found.bwt) == (whole.acc, whole.new_task, whole.bwt)
    assert read_result(tmp_path / "4").accuracy == thin.accuracy
    assert sorted(thin.averages) == [1, 4, 6]
    assert read_confusion(thin) == read_confusion(every) is not None
    (tmp_path / "4" / "metrics.json").unlink()
    assert (
        run(small_recipe, out=tmp_path / "4", resume=True, progress=False, **given, **{"evaluate.every": 4}).accuracy
        == thin.accuracy
    )


# ---- the manifest of the stream


def test_a_run_by_the_manifest_of_another(finished_run: Result, small_recipe: dict[str, Any], tmp_path: Path) -> None:
    """The same stream, whatever the seed of the class order, and so the same result."""
    assert finished_run.path is not None
    manifest = finished_run.path / "stream.jsonl"
    given = {"stream.manifest": str(manifest), "stream.seed": 7}
    again = run(small_recipe, out=tmp_path / "again", progress=False, **given)
    assert again.accuracy == finished_run.accuracy
    assert (tmp_path / "again" / "stream.jsonl").read_bytes() == manifest.read_bytes()
    assert again.tasks == finished_run.tasks
    assert again.recipe["stream"] == {"tasks": None, "classes_per_task": None, "seed": 7, "manifest": str(manifest)}
    assert evaluate(tmp_path / "again").accuracy == again.accuracy[-1]


def test_a_run_has_its_stream_where_the_manifest_has_gone(
    finished_run: Result, small_recipe: dict[str, Any], tmp_path: Path
) -> None:
    assert finished_run.path is not None
    manifest = tmp_path / "elsewhere.jsonl"
    manifest.write_bytes((finished_run.path / "stream.jsonl").read_bytes())
    again = run(small_recipe, out=tmp_path / "again", progress=False, **{"stream.manifest": str(manifest)})
    manifest.unlink()
    assert evaluate(tmp_path / "again").accuracy == again.accuracy[-1]


def test_a_run_is_not_tested_on_another_stream(small_recipe: dict[str, Any], tmp_path: Path) -> None:
    """The same samples and classes in other tasks: accuracies would be those of other tasks."""
    file, out = tmp_path / "texts.csv", tmp_path / "run"
    rows = [
        f"{label}{n} {domain}{n},{label},{domain}" for label in "ab" for domain in ("day", "night") for n in range(9)
    ]
    file.write_text("\n".join(["text,label,where", *rows]) + "\n")
    recipe = {
        "method": "prototypes",
        "backbone": {"name": "lorica_tiny_text"},
        "data": {"source": "table", "root": str(file), "domain_column": "where"},
        "stream": {"by": "domain", "tasks": 2},
    }
    made = run(recipe, out=out, progress=False)
    assert evaluate(out).accuracy == made.accuracy[-1]
    swapped = {"day": "night", "night": "day"}
    file.write_text(re.sub("(day|night)$", lambda found: swapped[found[1]], file.read_text(), flags=re.MULTILINE))
    with pytest.raises(CheckpointError, match=r"the run began with another stream"):
        evaluate(out)


def test_held_out_samples_are_there_where_they_are_tested(
    finished_run: Result, small_recipe: dict[str, Any], tmp_path: Path
) -> None:
    assert finished_run.path is not None
    given = {"data.evaluate_on": "validation", "data.validation_fraction": 0.2}
    manifest = {"stream.manifest": str(finished_run.path / "stream.jsonl")}
    with pytest.raises(RecipeError, match=r"data\.evaluate_on: 3 of 3 tasks have no validation samples, task 1"):
        run(small_recipe, out=tmp_path / "run", progress=False, **given, **manifest)
    assert not (tmp_path / "run").exists()


def test_a_run_goes_on_with_the_stream_that_it_began_with(small_recipe: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(small_recipe, out=out, stop_after=1, progress=False)
    whole = (out / "stream.jsonl").read_text()
    header, body = whole.split("\n", 1)
    numbers = {"1": "2", "2": "1"}
    other = re.sub('"task": ([12])', lambda found: f'"task": {numbers[found[1]]}', body)
    digest = hashlib.sha256(other.encode()).hexdigest()
    (out / "stream.jsonl").write_text(json.dumps({"stream": 1, "sha256": digest}) + "\n" + other)
    with pytest.raises(CheckpointError, match=r"stream\.jsonl: the run began with another stream"):
        run(small_recipe, out=out, resume=True, stop_after=1, progress=False)
    (out / "stream.jsonl").write_text(f"{header}\n{other}")
    with pytest.raises(CheckpointError, match=r"stream\.jsonl: altered since it was written.*restore the file"):
        run(small_recipe, out=out, resume=True, stop_after=1, progress=False)
    (out / "stream.jsonl").unlink()  # as in a run from before there was one
    run(small_recipe, out=out, resume=True, stop_after=1, progress=False)
    assert (out / "stream.jsonl").read_text() == whole
