"""What a run leaves on disk: the schema, atomic writes, reading back, and what is said of files that are no good."""

from __future__ import annotations

import json
import platform
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from lorica import metrics
from lorica.errors import LoricaError
from lorica.results import Result, RunFolder, environment, find_runs, metrics_of, replacing, write_json, write_text

TASKS = [{"classes": ["wren", "lark"], "train": 30, "test": 10}, {"classes": ["kite"], "train": 20, "test": 30}]
ACCURACY = [[0.9], [0.5, 0.7]]


def values(**changes: Any) -> dict[str, Any]:
    defaults = {"method": "sd_lora", "variant": "paper", "seed": 0, "tasks": TASKS, "accuracy": ACCURACY}
    return metrics_of(**{**defaults, **changes})


def run_folder(path: Path, **changes: Any) -> RunFolder:
    folder = RunFolder(path)
    folder.create()
    folder.write_metrics(values(**changes))
    return folder


# ---- writing


def test_text_is_written_as_utf8_and_replaces_what_was_there(tmp_path: Path) -> None:
    write_text(tmp_path / "note", "first")
    write_text(tmp_path / "note", "α ± β\n")
    assert (tmp_path / "note").read_bytes() == "α ± β\n".encode()
    assert [file.name for file in tmp_path.iterdir()] == ["note"]


def test_json_is_indented_with_a_list_of_numbers_on_one_line(tmp_path: Path) -> None:
    value = {"a": [[0.5], [1e-05, -2]], "names": ["é [\n1,\n2]", "b"], "none": [], "nothing": None}
    write_json(tmp_path / "x.json", value)
    text = (tmp_path / "x.json").read_text(encoding="utf-8")
    assert json.loads(text) == value
    assert '  "a": [\n    [0.5],\n    [1e-05, -2]\n  ],\n  "names": [\n    "é [' in text
    assert text.endswith("}\n")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_json_with_a_number_that_json_lacks_is_refused_and_nothing_changes(tmp_path: Path, bad: float) -> None:
    file = tmp_path / "x.json"
    write_json(file, [1])
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(file, {"loss": bad})
    assert file.read_text() == "[1]\n"
    assert list(tmp_path.iterdir()) == [file]


def test_a_write_that_fails_half_way_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    file = tmp_path / "figure.pdf"
    write_text(file, "old")

    def interrupted() -> None:
        with replacing(file) as new:
            new.write(b"half of the new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("call", ["os.fsync", "os.replace"])
def test_a_full_disk_leaves_the_old_file_and_says_which(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    file = tmp_path / "metrics.json"
    write_json(file, [1])

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(call, full)
    with pytest.raises(LoricaError, match=r"metrics\.json: cannot be written: No space left on device"):
        write_json(file, [2])
    assert file.read_text() == "[1]\n"
    assert list(tmp_path.iterdir()) == [file]


def test_writing_into_a_folder_that_is_missing_says_so(tmp_path: Path) -> None:
    with pytest.raises(LoricaError, match=r"gone/x\.json: cannot be written: No such file or directory"):
        write_json(tmp_path / "gone" / "x.json", 1)


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
    result = run_folder(tmp_path / "run", seed=3, diagnostics={"magnitudes": magnitudes}).read()
    assert result == Result(tmp_path / "run", values(seed=3, diagnostics={"magnitudes": magnitudes}))
    assert (result.method, result.variant, result.seed, result.complete) == ("sd_lora", "paper", 3, True)
    assert (result.tasks, result.accuracy, result.magnitudes) == (TASKS, ACCURACY, magnitudes)
    names = ("acc", "aaa", "acc_samples", "aaa_samples", "forgetting", "bwt", "new_task")
    expected = metrics.summary(ACCURACY, [10, 30])
    assert {name: getattr(result, name) for name in names} == {name: expected[name] for name in names}
    assert Result(None, values()).magnitudes is None


# ---- the folder of a run


def test_a_run_folder_has_a_place_for_everything(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "runs" / "birds")
    folder.create()
    folder.create()
    recipe = {"method": {"name": "sd_lora", "rank": 10}, "data": {"root": "/data/vögel"}}
    folder.write_recipe(recipe)
    folder.write_environment({"torch": "2.11.0"})
    folder.write_cost({"tasks": [{"trainable": 368640}], "train_seconds": [1.5]})
    folder.write_metrics(values())
    assert sorted(file.name for file in folder.path.iterdir()) == [
        "cost.json", "environment.json", "metrics.json", "recipe.yaml",
    ]  # fmt: skip
    text = (folder.path / "recipe.yaml").read_text(encoding="utf-8")
    assert yaml.safe_load(text) == recipe
    assert text.startswith("method:\n  name: sd_lora")
    assert "vögel" in text
    assert folder.checkpoint(3) == folder.path / "checkpoints" / "task_03"
    assert folder.checkpoint(120) == folder.path / "checkpoints" / "task_120"
    assert folder.figures == folder.path / "figures"


def test_a_file_in_the_way_of_a_run_folder(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(LoricaError, match=r"runs/birds: cannot be made a run folder: Not a directory"):
        RunFolder(tmp_path / "runs" / "birds").create()


def test_the_cost_of_a_run_is_that_of_its_last_task(tmp_path: Path) -> None:
    folder = run_folder(tmp_path)
    assert folder.read().cost is None
    folder.write_cost({"tasks": [], "train_seconds": []})
    assert folder.read().cost is None
    folder.write_cost({"tasks": [{"stored": 5}, {"stored": 9}], "train_seconds": [1.0, 1.0]})
    assert folder.read().cost == {"stored": 9}


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
        folder.read()


def test_metrics_that_are_missing(tmp_path: Path) -> None:
    with pytest.raises(
        LoricaError, match=r"metrics\.json: cannot be read: No such file.*; expected the folder of a run"
    ):
        RunFolder(tmp_path).read()


def test_metrics_that_are_truncated(tmp_path: Path) -> None:
    folder = run_folder(tmp_path)
    file = tmp_path / "metrics.json"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(
        LoricaError, match=r"metrics\.json: truncated or altered: .*; restore the file, or resume the run"
    ):
        folder.read()
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(LoricaError, match="truncated or altered"):
        folder.read()


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
        folder.read()


def test_metrics_of_another_program(tmp_path: Path) -> None:
    write_json(tmp_path / "metrics.json", {"accuracy": 0.93, "seed": 1})
    with pytest.raises(
        LoricaError, match=r"lacks method, variant, tasks, acc, .*; not a metrics\.json of this version"
    ):
        RunFolder(tmp_path).read()
    write_json(tmp_path / "metrics.json", [0.93])
    with pytest.raises(LoricaError, match="a list, expected an object with method, accuracy"):
        RunFolder(tmp_path).read()


def test_whole_numbers_are_accuracies_too(tmp_path: Path) -> None:
    """JSON does not tell 1 from 1.0, and other programs write the former."""
    write_json(tmp_path / "metrics.json", {**values(), "accuracy": [[1], [0, 1]]})
    assert RunFolder(tmp_path).read().metrics["accuracy"] == [[1], [0, 1]]


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


# ---- environment


def test_the_environment_outside_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    found = environment()
    assert found["git_revision"] is None
    assert found["lorica"] == "0.1.0"
    assert found["python"] == platform.python_version()
    assert found["cpu_count"] >= 1
    assert platform.node() not in json.dumps(found)


def test_the_environment_without_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert environment()["git_revision"] is None


def test_the_environment_in_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "core.hooksPath=/dev/null"]
        return subprocess.run(
            ["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout.strip()

    git("init", "--quiet")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "--quiet", "--message", "first")
    git("tag", "v1")
    monkeypatch.chdir(tmp_path)
    revision = git("rev-parse", "HEAD")
    assert environment()["git_revision"] == revision
    (tmp_path / "file").write_text("2")
    assert environment()["git_revision"] == f"{revision}-dirty"
