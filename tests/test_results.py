"""What a run leaves on disk: the schema, atomic writes, reading back, and what is said of files that are no good."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lorica import metrics
from lorica.errors import LoricaError
from lorica.files import RunFolder, write_json
from lorica.results import Result, find_runs, metrics_of, read_result

TASKS = [{"classes": ["wren", "lark"], "train": 30, "test": 10}, {"classes": ["kite"], "train": 20, "test": 30}]
ACCURACY = [[0.9], [0.5, 0.7]]


def values(**changes: Any) -> dict[str, Any]:
    defaults = {"method": "sd_lora", "variant": "paper", "seed": 0, "tasks": TASKS, "accuracy": ACCURACY}
    return metrics_of(**{**defaults, **changes})


def run_folder(path: Path, **changes: Any) -> RunFolder:
    path.mkdir(parents=True, exist_ok=True)
    write_json(path / "metrics.json", values(**changes))
    return RunFolder(path)


# ---- metrics.json


def test_the_schema_of_metrics_json() -> None:
    diagnostics = {"magnitudes": [[1.0], [1.1, 0.8]]}
    content = values(cross_entropy="current_task", diagnostics=diagnostics, train_seconds=[61.0, 59.5])
    assert list(content) == [
        "lorica", "method", "variant", "seed", "tasks", "accuracy",
        "acc", "aaa", "acc_samples", "aaa_samples", "forgetting", "forgetting_first_last", "bwt", "new_task",
        "cross_entropy", "diagnostics", "train_seconds", "complete", "recipe",
    ]  # fmt: skip
    assert content["lorica"] == "0.1.0"
    assert content["tasks"] == TASKS
    assert content["accuracy"] == ACCURACY
    assert content["acc"] == pytest.approx(0.6)
    assert content["acc_samples"] == pytest.approx(0.65)  # (10 * 0.5 + 30 * 0.7) / 40
    assert content["forgetting"] == pytest.approx(0.4)
    assert content["cross_entropy"] == "current_task"
    assert content["diagnostics"] == diagnostics
    assert content["train_seconds"] == [61.0, 59.5]
    assert content["complete"] is True
    assert json.loads(json.dumps(content)) == content


def test_a_run_under_way_is_measured_over_the_tasks_it_has_learned() -> None:
    content = values(accuracy=[[0.9]], complete=False)
    assert content["acc"] == content["acc_samples"] == 0.9
    assert content["tasks"] == TASKS
    assert content["complete"] is False


def test_a_complete_run_with_a_row_missing_is_refused() -> None:
    with pytest.raises(ValueError, match="complete run of 2 tasks whose accuracy matrix has 1 rows"):
        values(accuracy=[[0.9]])


@pytest.mark.parametrize(
    ("variant", "label"),
    [(None, "sd_lora"), ("paper", "sd_lora"), ("default", "sd_lora"), ("released_code", "sd_lora (released_code)")],
)
def test_a_result_is_labelled_with_its_variant_unless_that_is_the_default(variant: str | None, label: str) -> None:
    assert Result(None, values(variant=variant)).label == label


def test_a_result_gives_what_metrics_json_says(tmp_path: Path) -> None:
    magnitudes = [[1.0], [1.1, 0.8]]
    result = read_result(run_folder(tmp_path / "run", seed=3, diagnostics={"magnitudes": magnitudes}).path)
    assert result == Result(tmp_path / "run", values(seed=3, diagnostics={"magnitudes": magnitudes}))
    assert (result.method, result.variant, result.seed, result.complete) == ("sd_lora", "paper", 3, True)
    assert (result.tasks, result.accuracy, result.magnitudes) == (TASKS, ACCURACY, magnitudes)
    names = ("acc", "aaa", "acc_samples", "aaa_samples", "forgetting", "bwt", "new_task")
    expected = metrics.summary(ACCURACY, [10, 30])
    assert {name: getattr(result, name) for name in names} == {name: expected[name] for name in names}
    assert Result(None, values()).magnitudes is None


def test_the_cost_of_a_run_is_that_of_its_last_task(tmp_path: Path) -> None:
    folder = run_folder(tmp_path)
    assert read_result(folder.path).cost is None
    write_json(folder.cost, {"tasks": [], "train_seconds": []})
    assert read_result(folder.path).cost is None
    write_json(folder.cost, {"tasks": [{"stored": 5}, {"stored": 9}], "train_seconds": [1.0, 1.0]})
    assert read_result(folder.path).cost == {"stored": 9}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"tasks": [', "truncated or altered"),
        ("[]", "expected tasks, an object for each"),
        ('{"tasks": {"stored": 5}}', "expected tasks, an object for each"),
        ('{"tasks": [5]}', "expected tasks, an object for each"),
    ],
)
def test_a_cost_that_is_no_good(tmp_path: Path, text: str, problem: str) -> None:
    folder = run_folder(tmp_path)
    (tmp_path / "cost.json").write_text(text)
    with pytest.raises(LoricaError, match=rf"cost\.json: {problem}"):
        read_result(folder.path)


def test_metrics_that_are_missing(tmp_path: Path) -> None:
    with pytest.raises(
        LoricaError, match=r"metrics\.json: cannot be read: No such file.*; expected the folder of a run"
    ):
        read_result(tmp_path)


def test_metrics_that_are_truncated(tmp_path: Path) -> None:
    folder = run_folder(tmp_path)
    file = tmp_path / "metrics.json"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(
        LoricaError, match=r"metrics\.json: truncated or altered: .*; restore the file, or resume the run"
    ):
        read_result(folder.path)
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(LoricaError, match="truncated or altered"):
        read_result(folder.path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": "0"}, "seed is '0'; not a metrics.json of this version of lorica"),
        ({"acc": None, "complete": 1}, "acc is None; .*\n.*complete is 1; "),
        ({"tasks": [{"classes": ["wren"]}]}, "tasks: expected classes, train and test of each"),
        ({"tasks": TASKS[:1]}, "1 given for the 2 tasks of the accuracy matrix"),
        ({"accuracy": [0.9, 0.8]}, "accuracy: expected lists of numbers"),
        ({"accuracy": [[0.9], ["0.8", 0.7]]}, "accuracy: expected lists of numbers"),
        ({"accuracy": [[90], [50, 70]]}, r"a\[0\]\[0\] is 90.0, expected a fraction"),
        ({"accuracy": [[0.9], [0.7]]}, "row 1 has length 1, expected 2"),
        ({"accuracy": []}, "accuracy matrix: empty"),
    ],
)
def test_metrics_of_another_make(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    folder = run_folder(tmp_path)
    write_json(tmp_path / "metrics.json", {**values(), **change})
    with pytest.raises(LoricaError, match=rf"^{tmp_path}/metrics.json: .*{message}"):
        read_result(folder.path)


def test_metrics_of_another_program(tmp_path: Path) -> None:
    write_json(tmp_path / "metrics.json", {"accuracy": 0.93, "seed": 1})
    with pytest.raises(
        LoricaError, match=r"lacks method, variant, tasks, acc, .*; not a metrics\.json of this version"
    ):
        read_result(tmp_path)
    write_json(tmp_path / "metrics.json", [0.93])
    with pytest.raises(LoricaError, match="a list, expected an object with method, accuracy"):
        read_result(tmp_path)


def test_whole_numbers_are_accuracies_too(tmp_path: Path) -> None:
    """JSON does not tell 1 from 1.0, and other programs write the former."""
    write_json(tmp_path / "metrics.json", {**values(), "accuracy": [[1], [0, 1]]})
    assert read_result(tmp_path).metrics["accuracy"] == [[1], [0, 1]]


# ---- many runs


def test_runs_are_found_once_each_with_numbers_in_order(tmp_path: Path) -> None:
    for name in ("run-10", "run-2", "deep/er/run-1", "run-2/again"):
        run_folder(tmp_path / name)
    found = find_runs([tmp_path, tmp_path / "run-2"])
    names = [str(run.path.relative_to(tmp_path)) for run in found if run.path]
    assert names == ["deep/er/run-1", "run-2", "run-2/again", "run-10"]
    assert find_runs([str(tmp_path / "run-10")])[0].path == tmp_path / "run-10"


def test_everything_wrong_with_many_runs_is_said_at_once(tmp_path: Path) -> None:
    run_folder(tmp_path / "good")
    (tmp_path / "empty").mkdir()
    for name in ("bad-1", "bad-2"):
        run_folder(tmp_path / name)
        (tmp_path / name / "metrics.json").write_text("{")
    with pytest.raises(LoricaError) as caught:
        find_runs([tmp_path, tmp_path / "empty", tmp_path / "gone"])
    problems = caught.value.problems
    assert len(problems) == 4
    assert problems[0].startswith(f"{tmp_path}/empty: no metrics.json in it or below; expected the folder of a run")
    assert problems[1].startswith(f"{tmp_path}/gone: not a folder")
    assert problems[2].startswith(f"{tmp_path}/bad-1/metrics.json: truncated or altered")
    assert problems[3].startswith(f"{tmp_path}/bad-2/metrics.json: truncated or altered")
