"""What a run leaves on disk: the schema, atomic writes, reading back, and what is said of files that are no good."""

from __future__ import annotations

import copy
import csv
import io
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorica.errors import LoricaError
from lorica.files import RunFolder, write_json
from lorica.metrics import MEASURES, Measure
from lorica.report import summarise, to_csv, to_markdown
from lorica.results import Entry, Metrics, Record, Result, find_runs, read_confusion, read_history, read_result

TASKS = [{"classes": ["wren", "lark"], "train": 30, "test": 10}, {"classes": ["kite"], "train": 20, "test": 30}]
ACCURACY = [[0.9], [0.5, 0.7]]
HEAD = [[0.8], [0.6, 0.4]]


def made(**changes: Any) -> Metrics:
    defaults = {"method": "sd_lora", "variant": "paper", "seed": 0, "tasks": TASKS, "accuracy": ACCURACY}
    return Metrics(**{**defaults, **changes})


def values(**changes: Any) -> dict[str, Any]:
    return made(**changes).model_dump()


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
        "averaged_over",
        "cross_entropy", "diagnostics", "train_seconds", "identity", "complete", "recipe", "stream_by",
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


def test_a_method_read_by_class_means_has_the_measures_of_its_head_too() -> None:
    content = values(head_accuracy=HEAD)
    keys = list(content)
    assert keys[keys.index("new_task") : keys.index("cross_entropy")] == ["new_task", "averaged_over", "head"]
    assert list(content["head"]) == ["accuracy", *keys[keys.index("acc") : keys.index("averaged_over")]]
    assert content["head"]["accuracy"] == HEAD
    assert content["head"]["acc"] == pytest.approx(0.5)
    assert content["head"]["acc_samples"] == pytest.approx(0.45)  # (10 * 0.6 + 30 * 0.4) / 40
    head = made(head_accuracy=HEAD).head
    assert head is not None
    assert (head.accuracy, head.acc, head.bwt) == (HEAD, content["head"]["acc"], content["head"]["bwt"])
    assert made().head is None


def test_a_run_under_way_is_measured_over_the_tasks_it_has_learned() -> None:
    content = values(accuracy=[[0.9]])
    assert content["acc"] == content["acc_samples"] == 0.9
    assert content["tasks"] == TASKS
    assert content["complete"] is False
    assert values(accuracy=[[0.9]], complete=False) == content


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"accuracy": [[0.9]], "complete": True}, "complete run of 2 tasks whose accuracy matrix has 1 rows"),
        ({"complete": False}, "a run of 2 tasks, not complete, whose accuracy matrix has 2 rows"),
        ({"head_accuracy": [[0.9]]}, "the head's accuracy matrix has 1 rows, the other one 2"),
        ({"head_accuracy": [[0.9], [0.5, 7.0]]}, r"a\[1\]\[1\] is 7.0, expected a fraction"),
        ({"tasks": [TASKS[0], {**TASKS[1], "test": 0}]}, "task 1 has 0, expected at least 1"),
        ({"train_seconds": [float("inf")]}, "finite number"),
        ({"diagnostics": {"residual": [float("nan")]}}, "nan"),
        ({"head": {}}, "(?s)head.*not permitted"),
    ],
)
def test_metrics_that_cannot_be(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made(**change)


def test_metrics_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        made().accuracy = [[1.0]]


def test_plain_values_are_the_same_before_and_after_the_disk(tmp_path: Path) -> None:
    """A tuple, or a key that is a number, would come back as a list and as text."""
    folder = run_folder(tmp_path, diagnostics={"kept": ((0,), (0, 1)), "ranks": [{8: 1}]}, recipe={"sizes": (1, 2)})
    read = read_result(folder.path)
    assert read.diagnostics == {"kept": [[0], [0, 1]], "ranks": [{"8": 1}]}
    assert read.metrics == made(diagnostics=read.diagnostics, recipe={"sizes": [1, 2]})


@pytest.mark.parametrize(
    ("variant", "label"),
    [(None, "sd_lora"), ("paper", "sd_lora"), ("default", "sd_lora"), ("released_code", "sd_lora (released_code)")],
)
def test_a_result_is_labelled_with_its_variant_unless_that_is_the_default(variant: str | None, label: str) -> None:
    assert Result(None, made(variant=variant)).label == label


@pytest.mark.parametrize(
    ("evaluate", "label"),
    [
        ({}, "sd_lora (class means)"),  # as before the recipe said so
        ({"readout": "prototypes"}, "sd_lora (class means)"),
        ({"readout": "prototypes", "layers": None, "drift": "none"}, "sd_lora (class means)"),
        ({"readout": "discriminant", "layers": 5}, "sd_lora (discriminant of 5 layers)"),
        ({"readout": "ridge", "layers": 1, "drift": "affine"}, "sd_lora (ridge regression of 1 layer, affine drift)"),
        ({"readout": ["strange"]}, "sd_lora (['strange'])"),
    ],
)
def test_a_result_is_labelled_with_its_read_out(evaluate: dict[str, Any], label: str) -> None:
    assert made(head_accuracy=HEAD, recipe={"evaluate": evaluate}).label == label


def test_a_result_gives_what_metrics_json_says(tmp_path: Path) -> None:
    magnitudes = [[1.0], [1.1, 0.8]]
    result = read_result(run_folder(tmp_path / "run", seed=3, diagnostics={"magnitudes": magnitudes}).path)
    assert result == Result(tmp_path / "run", made(seed=3, diagnostics={"magnitudes": magnitudes}))
    assert (result.method, result.variant, result.seed, result.complete) == ("sd_lora", "paper", 3, True)
    assert (result.tasks, result.accuracy, result.magnitudes) == (TASKS, ACCURACY, magnitudes)
    assert (result.acc, result.aaa, result.acc_samples) == pytest.approx((0.6, 0.75, 0.65))
    assert (result.forgetting, result.forgetting_first_last, result.bwt) == pytest.approx((0.4, 0.4, -0.4))
    assert (result.aaa_samples, result.new_task) == pytest.approx((0.775, 0.8))  # (0.9 + 0.65) / 2
    assert Result(None, made()).magnitudes is None
    assert result.metrics.acc == result.acc
    assert {"acc", "bwt", "accuracy", "label", "path", "cost"} < set(dir(result))


def test_a_result_has_nothing_else() -> None:
    for item in (Result(None, made()), made(), made(head_accuracy=HEAD).head):
        with pytest.raises(AttributeError, match="has no 'accurracy'"):
            _ = item.accurracy  # type: ignore[union-attr]
    assert not hasattr(Result(None, made()), "__rich__")
    assert not hasattr(Result.__new__(Result), "acc")  # as while it is being copied


def test_results_can_be_copied_and_pickled() -> None:
    result = Result(Path("run"), made(head_accuracy=HEAD), {"stored": 5})
    assert copy.copy(result) == copy.deepcopy(result) == pickle.loads(pickle.dumps(result)) == result


def test_a_measure_is_defined_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A further one is in metrics.json, in results, in rows and in tables; and a file from before it can be read."""
    old = run_folder(tmp_path / "old", head_accuracy=HEAD).path
    worst = Measure(lambda a, counts: min(a[-1]) * counts[0], "Worst", lower_is_better=True)
    monkeypatch.setitem(MEASURES, "worst", worst)
    new = run_folder(tmp_path / "new", method="o_lora", accuracy=[[0.9], [0.03, 0.7]], head_accuracy=HEAD).path
    written = json.loads((new / "metrics.json").read_text())
    assert (written["worst"], written["head"]["worst"]) == pytest.approx((0.3, 4.0))
    results = [read_result(folder) for folder in (old, new)]
    assert [result.worst for result in results] == pytest.approx([5.0, 0.3])
    assert results[1].metrics.worst == results[1].worst
    rows = summarise(results, sort="worst")
    assert [row.method for row in rows] == ["o_lora", "sd_lora"]
    assert rows[0].spreads["worst"].mean == pytest.approx(0.3)
    assert (
        to_markdown(rows)
        .splitlines()[0]
        .startswith("| Method | Seeds | Acc | AAA | Forgetting | New task | Worst | Trained |")
    )
    heading, first, *_ = csv.reader(io.StringIO(to_csv(rows)))
    assert float(dict(zip(heading, first, strict=True))["worst"]) == pytest.approx(0.3)
    (new / "metrics.json").write_text(json.dumps({**written, "worst": 0.5}))
    with pytest.raises(LoricaError, match=r"worst is 0.5, but the accuracy matrix gives 0.3"):
        read_result(new)


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
        ("[]", r"the whole of it is \[\], expected an object"),
        ('{"tasks": {"stored": 5}}', "tasks is {'stored': 5}, expected a valid list"),
        ('{"tasks": [5]}', r"tasks\[0\] is 5, expected an object"),
        (
            '{"tasks": [{"trainable": 1}, {"trainable": "2"}]}',
            r"tasks\[1\]: trainable is '2', expected a valid integer",
        ),
        ('{"tasks": [{"stored": null}]}', r"tasks\[0\]: stored is None, expected a valid integer; not a cost\.json"),
        ('{"tasks": [{"stored": true}]}', r"tasks\[0\]: stored is True"),
        ('{"tasks": [{"stored": -1}]}', r"tasks\[0\]: stored is -1, expected greater than or equal to 0"),
        ('{"tasks": [{"stored": 1%s}]}' % ("0" * 400), r"tasks\[0\]: stored is 1000"),
        (
            '{"tasks": [{"stored_by_kind": {"head": "5"}}]}',
            r"tasks\[0\]: stored_by_kind.head is '5', expected a valid int",
        ),
        ('{"tasks": [{}, {}], "tasks": [{}, {}]}', "truncated or altered: 'tasks' stands twice"),
        ('{"tasks": [{}, {}, {}]}', "tasks has 3 entries, but metrics.json has a matrix of 2 rows"),
        ('{"tasks": [{}, {}], "train_seconds": [1.0]}', "train_seconds has 1 entries, but tasks has 2; one of the two"),
        ('{"tasks": [{"stored_features": "5"}]}', r"tasks\[0\]: stored_features is '5', expected a valid integer"),
        ('{"tasks": [{"end_to_end": 1}]}', r"tasks\[0\]: end_to_end is 1, expected a valid boolean"),
        ('{"tasks": [{"stored": NaN}]}', r"tasks\[0\]\.stored is nan, expected finite numbers"),
    ],
)
def test_a_cost_that_is_no_good(tmp_path: Path, text: str, problem: str) -> None:
    folder = run_folder(tmp_path)
    (tmp_path / "cost.json").write_text(text)
    with pytest.raises(LoricaError, match=rf"cost\.json: {problem}"):
        read_result(folder.path)


def test_a_cost_that_is_ahead_of_its_metrics_is_that_of_a_killed_process(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, accuracy=[[0.9]], train_seconds=[1.5])
    write_json(folder.cost, {"tasks": [{"stored": 5}, {"stored": 9}], "train_seconds": [1.5, 2.5]})
    assert read_result(folder.path).cost == {"stored": 5}
    write_json(folder.cost, {"tasks": [{"stored": 5}], "train_seconds": [2.5]})
    with pytest.raises(LoricaError, match=r"train_seconds\[0\] is 2.5, but metrics\.json says 1.5; one of the two"):
        read_result(folder.path)
    run_folder(tmp_path, train_seconds=[1.5, 2.5])
    write_json(folder.cost, {"tasks": [{"stored": 5}], "train_seconds": [1.5]})
    with pytest.raises(LoricaError, match=r"tasks has 1 entries, but metrics\.json has 2 times"):
        read_result(folder.path)


@pytest.mark.parametrize(
    ("diagnostics", "found"),
    [
        ({"magnitudes": [[1.0], [1, 0.5]], "kept": [[0], [1]], "residual": [None, 0.5]}, (True, True, True)),
        ({"magnitudes": [[1.0]], "kept": [[0], [2]], "residual": [0.5]}, (False, False, False)),
        ({"magnitudes": [[1.0], []], "kept": [0, 1], "residual": {"0": 1}}, (False, False, False)),
        ({"magnitudes": "1.0", "kept": [["0"], []], "residual": ["0.5", None]}, (False, False, False)),
    ],
)
def test_diagnostics_of_another_form_are_not_drawn(diagnostics: dict[str, Any], found: tuple[bool, ...]) -> None:
    """Their names are not lorica's alone: a method of a user's own may report something else under them."""
    read = made(diagnostics=diagnostics)
    assert (read.magnitudes is not None, read.kept is not None, bool(read.residuals)) == found


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
        ({"seed": "0"}, "seed is '0', expected a valid integer; not a metrics.json of this version of lorica"),
        ({"method": None, "complete": 1}, "method is None, .*\n.*complete is 1, expected a valid boolean; "),
        ({"cross_entropy": "none"}, "cross_entropy is 'none', expected 'current_task' or 'all_seen'; "),
        ({"tasks": [{"classes": ["wren"]}]}, r"tasks\[0\]: train is missing; test is missing; not a"),
        (
            {"tasks": [TASKS[0], {**TASKS[1], "classes": [["kite"]]}]},
            r"tasks\[1\]: classes\[0\] is \['kite'\], expected a valid s",
        ),
        ({"tasks": [TASKS[0], {**TASKS[1], "test": 10**400}]}, r"tasks\[1\]: test is 1000.*, expected less than"),
        ({"train_seconds": [-1.0, 2.0]}, r"train_seconds\[0\] is -1.0, expected greater than or equal to 0"),
        ({"train_seconds": [1.0] * 3}, "train_seconds has 3 times, the accuracy matrix 2 rows"),
        ({"tasks": TASKS[:1]}, "1 given for the 2 tasks of the accuracy matrix"),
        ({"tasks": 2}, "tasks is 2, expected a valid list"),
        ({"accuracy": [0.9, 0.8]}, r"accuracy\[0\] is 0.9, expected a valid list; [^\n]*$"),
        ({"accuracy": [[0.9], ["0.8", 0.7]]}, r"accuracy\[1\]\[0\] is '0.8', expected a valid number"),
        ({"accuracy": [[0.9], [True, 0.7]]}, r"accuracy\[1\]\[0\] is True, expected a valid number"),
        ({"accuracy": [[0.9], [10**400, 0.7]]}, r"accuracy\[1\]\[0\] is 1000"),
        ({"head": [[0.9]]}, r"head is \[\[0.9\]\], expected an object with accuracy"),
        ({"head": {"acc": 0.9}}, r"head is {'acc': 0.9}, expected an object with accuracy"),
        ({"head": {"accuracy": [[0.9], 5]}}, r"head.accuracy\[1\] is 5, expected a valid list"),
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


@pytest.mark.parametrize(
    ("change", "lines"),
    [
        ({"acc": 0.99}, ["acc is 0.99, but the accuracy matrix gives 0.6"]),
        ({"acc": 0.6 + 1e-8}, ["acc is 0.60000001, but the accuracy matrix gives 0.6"]),
        ({"acc": None}, ["acc is None, but the accuracy matrix gives 0.6"]),
        ({"acc": True}, ["acc is True, but the accuracy matrix gives 0.6"]),
        ({"acc": 10**400}, ["acc is 1000"]),
        ({"acc": [0.6]}, ["acc is [0.6], but the accuracy matrix gives 0.6"]),
        ({"bwt": "-0.4", "aaa": 1}, ["aaa is 1, but the accuracy matrix gives 0.75", "bwt is '-0.4', but"]),
        ({"head": {"accuracy": HEAD, "acc": 0.75}}, ["head.acc is 0.75, but the accuracy matrix gives 0.5"]),
    ],
)
def test_measures_that_their_matrix_does_not_give(tmp_path: Path, change: dict[str, Any], lines: list[str]) -> None:
    write_json(tmp_path / "metrics.json", {**values(head_accuracy=HEAD), **change})
    with pytest.raises(LoricaError) as caught:
        read_result(tmp_path)
    assert len(caught.value.problems) == len(lines)
    for problem, line in zip(caught.value.problems, lines, strict=True):
        assert problem.startswith(f"{tmp_path}/metrics.json: {line}")
        assert problem.endswith("; one of the two has been altered: restore the file")


@pytest.mark.parametrize(
    ("recipe", "change", "problem"),
    [
        ({"method": {"name": "o_lora"}}, {}, "method.name is 'sd_lora', but the recipe has 'o_lora'"),
        ({"method": {"variant": "released_code"}}, {}, "method.variant is 'paper', but the recipe has 'released_code'"),
        ({"method": {"name": "sd_lora"}}, {}, "method.variant is 'paper', but the recipe has none"),
        ({"seed": 3}, {"seed": 4}, "seed is 4, but the recipe has 3"),
        ({"stream": {"tasks": 3}}, {}, "the number of tasks is 2, but the recipe has 3"),
        (
            {"evaluate": {"readout": "prototypes"}},
            {},
            "head is missing, but the recipe has evaluate.readout='prototypes'",
        ),
        ({"evaluate": {"readout": "ridge"}}, {}, "head is missing, but the recipe has evaluate.readout='ridge'"),
        ({"evaluate": {"readout": "head"}}, {"head_accuracy": HEAD}, "head is there, but the recipe has"),
    ],
)
def test_metrics_that_are_not_of_their_recipe(
    tmp_path: Path, recipe: dict[str, Any], change: dict[str, Any], problem: str
) -> None:
    folder = run_folder(tmp_path, recipe=recipe, **change)
    with pytest.raises(LoricaError, match=rf"metrics\.json: {problem}.*; one of the two has been altered"):
        read_result(folder.path)


def test_a_method_in_a_file_has_a_name_of_its_own(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, recipe={"method": {"name": "mine.py"}}, variant=None)
    assert read_result(folder.path).method == "sd_lora"


def test_a_matrix_that_was_altered(tmp_path: Path) -> None:
    write_json(tmp_path / "metrics.json", {**values(), "accuracy": [[0.9], [0.5, 0.8]]})
    with pytest.raises(LoricaError, match=r"(?s)acc is 0.6, but .* gives 0.65.*new_task is 0.8, but .* gives 0.85"):
        read_result(tmp_path)


def test_measures_of_another_machine_may_differ_in_their_last_digits(tmp_path: Path) -> None:
    write_json(tmp_path / "metrics.json", {**values(), "acc": 0.6 + 1e-12})
    assert read_result(tmp_path).acc == pytest.approx(0.6, abs=1e-15)


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"acc": float("nan")}, "acc is nan"),
        ({"accuracy": [[0.9], [0.5, float("inf")]]}, r"accuracy\[1\]\[1\] is inf"),
        ({"diagnostics": {"residual": [None, float("-inf")], "more": float("nan")}},
         r"diagnostics.residual\[1\] is -inf and 1 more"),
        ({"of_another_version": {"a": [{"b": float("nan")}]}}, r"of_another_version.a\[0\].b is nan"),
    ],
)  # fmt: skip
def test_numbers_that_json_does_not_have(tmp_path: Path, change: dict[str, Any], place: str) -> None:
    (tmp_path / "metrics.json").write_text(json.dumps({**values(), **change}))
    with pytest.raises(LoricaError, match=rf"^{tmp_path}/metrics.json: {place}, expected finite numbers; "):
        read_result(tmp_path)


def test_a_number_too_large_for_a_float_is_not_finite_either(tmp_path: Path) -> None:
    text = json.dumps(values(train_seconds=[7.0])).replace("[7.0]", "[7e999]")
    (tmp_path / "metrics.json").write_text(text)
    with pytest.raises(LoricaError, match=r"train_seconds\[0\] is inf"):
        read_result(tmp_path)


@pytest.mark.parametrize("text", ["[" * 100_000, "[" * 500 + "]" * 500, "9" * 5000, '{"acc": 0.9, "acc": 0.6}'])
def test_files_that_no_parser_takes(tmp_path: Path, text: str) -> None:
    (tmp_path / "metrics.json").write_text(text)
    with pytest.raises(LoricaError, match="truncated or altered"):
        read_result(tmp_path)


def test_metrics_of_another_program(tmp_path: Path) -> None:
    write_json(tmp_path / "metrics.json", {"accuracy": 0.93, "seed": 1})
    with pytest.raises(
        LoricaError, match=r"lacks method, variant, tasks, diagnostics, complete; not a metrics\.json of this version"
    ):
        read_result(tmp_path)
    write_json(tmp_path / "metrics.json", [0.93])
    with pytest.raises(LoricaError, match="a list, expected an object with method, accuracy"):
        read_result(tmp_path)


def test_metrics_of_other_versions(tmp_path: Path) -> None:
    """A later one has keys that are unknown here; the first one had no recipe and no head."""
    later = {**values(), "of_another_version": [1], "tasks": [{**task, "domain": "sketch"} for task in TASKS]}
    write_json(tmp_path / "metrics.json", later)
    assert read_result(tmp_path).tasks[0]["domain"] == "sketch"
    assert not hasattr(read_result(tmp_path), "of_another_version")
    first = {key: value for key, value in values().items() if key not in ("recipe", "train_seconds", "lorica")}
    write_json(tmp_path / "metrics.json", first)
    read = read_result(tmp_path)
    assert (read.recipe, read.train_seconds, read.lorica, read.head) == ({}, [], None, None)


def test_whole_numbers_are_accuracies_too(tmp_path: Path) -> None:
    """JSON does not tell 1 from 1.0, and other programs write the former."""
    changed = {"accuracy": [[1], [0, 1]], "acc": 0.5, "aaa": 0.75, "acc_samples": 0.75, "aaa_samples": 0.875}
    changed |= {"forgetting": 1, "forgetting_first_last": 1, "bwt": -1, "new_task": 1}
    write_json(tmp_path / "metrics.json", {**values(), **changed})
    assert read_result(tmp_path).accuracy == [[1], [0, 1]]


# ---- the record of a run


ENTRIES = [
    Entry(
        rows=[[0.1 + 0.2]],
        head_rows=[[1 / 3]],
        diagnostics={"magnitudes": [1e-300], "residual": None},
        train_seconds=61.0,
        cost={"trainable": 10, "stored": 5},
    ),
    Entry(
        rows=[[0.5, 0.7]],
        head_rows=[[0.25, 2 / 3]],
        diagnostics={"magnitudes": [1.1, 0.8], "residual": 0.9, "late": True},
        train_seconds=59.5,
        data_seconds=0.5,
        cost={"trainable": 0, "stored": 9},
    ),
]
ABOUT: dict[str, Any] = {
    "method": "sd_lora",
    "variant": "paper",
    "seed": 3,
    "cross_entropy": "all_seen",
    "stream_by": "class",
}


def test_a_record_collects_its_entries() -> None:
    record = Record()
    assert (record.rows, record.head_rows, record.diagnostics, record.train_seconds) == ([], None, {}, [])
    record.entries.append(ENTRIES[0])
    assert (record.rows, record.head_rows) == ([[0.1 + 0.2]], [[1 / 3]])
    record.entries.append(ENTRIES[1])
    assert record.rows == [[0.1 + 0.2], [0.5, 0.7]]
    assert record.head_rows == [[1 / 3], [0.25, 2 / 3]]
    assert record.diagnostics == {"magnitudes": [[1e-300], [1.1, 0.8]], "residual": [None, 0.9], "late": [True]}
    assert record.train_seconds == [61.0, 59.5]
    assert record.costs == [{"trainable": 10, "stored": 5}, {"trainable": 0, "stored": 9}]
    assert record.cost() == {"tasks": record.costs, "train_seconds": [61.0, 59.5], "data_seconds": [None, 0.5]}


def test_metrics_follow_from_the_record() -> None:
    whole = Record(ENTRIES).metrics(**ABOUT, tasks=TASKS, recipe={"seed": 3}, identity={})
    assert whole == Metrics(
        method="sd_lora",
        variant="paper",
        seed=3,
        tasks=TASKS,
        accuracy=[[0.1 + 0.2], [0.5, 0.7]],
        head_accuracy=[[1 / 3], [0.25, 2 / 3]],
        cross_entropy="all_seen",
        diagnostics={"magnitudes": [[1e-300], [1.1, 0.8]], "residual": [None, 0.9], "late": [True]},
        train_seconds=[61.0, 59.5],
        complete=True,
        recipe={"seed": 3},
    )
    assert not Record(ENTRIES[:1]).metrics(**ABOUT, tasks=TASKS, recipe={}, identity={}).complete


def test_the_cross_entropy_of_a_method_that_trains_nothing_is_left_out() -> None:
    plain = [Entry(rows=[[0.9]], train_seconds=1.0, cost={"trainable": 0}), Entry(rows=[[0.9, 0.5]], train_seconds=1.0)]
    assert Record(plain).metrics(**ABOUT, tasks=TASKS, recipe={}, identity={}).cross_entropy is None
    trained = Entry(rows=[[0.9]], train_seconds=1.0, cost={"trainable": 10})
    assert Record([trained, plain[1]]).metrics(**ABOUT, tasks=TASKS, recipe={}, identity={}).cross_entropy == "all_seen"


def test_a_method_that_learns_all_at_once_has_one_entry_with_every_row() -> None:
    record = Record([Entry(rows=ACCURACY, train_seconds=90.0)])
    made = record.metrics(**ABOUT, tasks=TASKS, recipe={}, identity={})
    assert (made.accuracy, made.complete, made.train_seconds) == (ACCURACY, True, [90.0])


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), PLAIN, max_size=3), st.lists(st.floats(0, 1), min_size=1), st.floats(0, 1e9))
def test_an_entry_is_the_same_after_the_disk(values: dict[str, Any], row: list[float], seconds: float) -> None:
    entry = Entry(rows=[row], head_rows=[row], diagnostics=values, train_seconds=seconds, cost=values)
    text = json.dumps(entry.model_dump(), allow_nan=False)
    back = Entry.model_validate(json.loads(text))
    assert back == entry
    assert json.dumps(back.model_dump()) == text  # 0.0 and -0.0, 1 and 1.0 are equal, but not the same


@pytest.mark.parametrize("wrong", [{"diagnostics": {"loss": float("nan")}}, {"rows": [[float("inf")]]}, {"costs": {}}])
def test_an_entry_that_no_file_could_hold(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"(?s)Entry.*(nan|finite|not permitted)"):
        Entry(**{"rows": [[0.5]], "train_seconds": 1.0, **wrong})


# ---- many runs


def test_runs_are_found_once_each_with_numbers_in_order(tmp_path: Path) -> None:
    for name in ("run-10", "run-2", "deep/er/run-1", "run-2/again"):
        run_folder(tmp_path / name)
    found = find_runs([tmp_path, tmp_path / "run-2"])
    names = [str(run.path.relative_to(tmp_path)) for run in found if run.path]
    assert names == ["deep/er/run-1", "run-2", "run-2/again", "run-10"]
    assert find_runs([str(tmp_path / "run-10")])[0].path == tmp_path / "run-10"


def test_a_run_that_is_no_good_can_be_left_out_of_many(tmp_path: Path) -> None:
    for name in ("good", "bad", "foreign"):
        run_folder(tmp_path / name)
    (tmp_path / "bad" / "metrics.json").write_text("{")
    write_json(tmp_path / "foreign" / "metrics.json", {"accuracy": 0.93})
    lines: list[str] = []
    assert [run.path for run in find_runs([tmp_path], left_out=lines.append)] == [tmp_path / "good"]
    assert [line.partition(": ")[0] for line in lines] == [
        f"{tmp_path}/{name}/metrics.json" for name in ("bad", "foreign")
    ]
    with pytest.raises(LoricaError, match=r"bad/metrics\.json"):  # asked for itself
        find_runs([tmp_path, tmp_path / "bad"], left_out=lines.append)
    with pytest.raises(LoricaError, match=r"foreign/metrics\.json"):  # nothing is left
        find_runs([tmp_path / "foreign"], left_out=lines.append)


def test_a_run_that_has_learned_nothing_yet_is_not_passed_over_in_silence(tmp_path: Path) -> None:
    """Else two of three seeds would look like two seeds. A manifest of that name alone is no run."""
    for name in ("good", "begun"):
        folder = run_folder(tmp_path / name)
        folder.stream.touch()
        folder.recipe.touch()
    (tmp_path / "begun" / "metrics.json").unlink()
    (tmp_path / "manifests").mkdir()
    (tmp_path / "manifests" / "stream.jsonl").touch()
    lines: list[str] = []
    assert [run.path for run in find_runs([tmp_path], left_out=lines.append)] == [tmp_path / "good"]
    assert lines == [
        f"{tmp_path}/begun: it has begun, and there is no metrics.json: no task is learned; --resume goes on with it"
    ]


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


# ---- history.jsonl, confusion.json


def test_a_history_is_read_line_by_line(tmp_path: Path) -> None:
    assert read_history(tmp_path) == []  # of a run that has trained nothing
    file = tmp_path / "history.jsonl"
    old = {"task": 0, "epoch": 0, "step": 9, "learning_rate": 0.01, "terms": {"cross_entropy": 2}}  # before stages
    new = {**old, "stage": 1, "terms": {"cross_entropy": 1.5, "overflowed": None}, "diagnostics": {"gates": [1.0]}}
    file.write_text(f"{json.dumps(old)}\n{json.dumps(new)}\n" + '{"task": 0, "ep')  # of a process that was killed
    first, second = read_history(tmp_path)
    assert (first.stage, first.terms, first.diagnostics) == (0, {"cross_entropy": 2.0}, {})
    assert (second.stage, second.terms["overflowed"], second.diagnostics) == (1, None, {"gates": [1.0]})
    file.write_text(f"{json.dumps(old)}\n{json.dumps({**old, 'step': -1})}\n")
    with pytest.raises(LoricaError, match=r"history.jsonl: line 2: step is -1, expected .*restore the file"):
        read_history(tmp_path)


def test_a_confusion_is_that_of_its_run(tmp_path: Path) -> None:
    run_folder(tmp_path)  # 5 of 10 right, and 21 of 30
    run = read_result(tmp_path)
    assert read_confusion(run) is None
    content = {
        "classes": ["wren", "lark", "kite"],
        "counts": [[0, 0, 4], [0, 1, 2], [1, 1, 1], [1, 2, 3], [2, 0, 9], [2, 2, 21]],
    }
    file = tmp_path / "confusion.json"
    file.write_text(json.dumps(content))
    found = read_confusion(run)
    assert found is not None
    assert (found.classes, found.counts[1]) == (content["classes"], (0, 1, 2))
    for counts, why in (
        ([[0, 3, 4]], "expected numbers of 3 classes"),
        ([[0, 0, 5], [2, 2, 35]], "40 of 40 samples are right, but metrics.json says 0.6500 of 40"),
    ):
        file.write_text(json.dumps({**content, "counts": counts}))
        with pytest.raises(LoricaError, match=rf"confusion.json: .*{why}"):
            read_confusion(run)
    assert read_confusion(Result(None, run.metrics)) is None


@pytest.mark.parametrize("section", ["method", "backbone", "data", "stream", "fit", "evaluate"])
@pytest.mark.parametrize("damaged", [3, 0.5, "wren", [[]], True])
def test_a_section_of_the_recipe_that_is_none(section: str, damaged: Any) -> None:
    with pytest.raises(ValueError, match=rf"recipe\.{section} is .*, expected a section with keys"):
        made(recipe={section: damaged})
    assert made(recipe={section: {}}).recipe == {section: {}}
