"""The measures on matrices small enough to work out by hand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lorica import metrics

# Task 0 has 1 test sample, task 1 has 3, task 2 has 4.
A = [[0.9], [0.6, 0.8], [0.7, 0.5, 0.9]]
COUNTS = [1, 3, 4]


def test_acc_is_the_mean_over_tasks_of_the_last_row() -> None:
    assert metrics.acc(A) == pytest.approx(0.7)  # (0.7 + 0.5 + 0.9) / 3


def test_aaa_is_the_mean_over_time_of_the_means_of_the_rows() -> None:
    assert metrics.aaa(A) == pytest.approx(2.3 / 3)  # (0.9 + 0.7 + 0.7) / 3


def test_acc_samples_weighs_tasks_by_their_test_samples() -> None:
    assert metrics.acc_samples(A, COUNTS) == pytest.approx(0.725)  # (0.7 + 3 * 0.5 + 4 * 0.9) / 8 = 5.8 / 8


def test_aaa_samples_weighs_each_row_by_the_tasks_it_has() -> None:
    # 0.9;  (0.6 + 3 * 0.8) / 4 = 0.75;  0.725
    assert metrics.aaa_samples(A, COUNTS) == pytest.approx((0.9 + 0.75 + 0.725) / 3)


def test_forgetting_takes_the_best_before_the_last_row() -> None:
    # task 0: max(0.9, 0.6) - 0.7 = 0.2;  task 1: 0.8 - 0.5 = 0.3
    assert metrics.forgetting(A) == pytest.approx(0.25)


def test_the_two_forgettings_differ_where_the_best_was_not_the_first() -> None:
    a = [[0.5], [0.8, 0.6], [0.4, 0.6, 0.7]]
    assert metrics.forgetting(a) == pytest.approx(0.2)  # (0.8 - 0.4, 0.6 - 0.6)
    assert metrics.forgetting_first_last(a) == pytest.approx(0.05)  # (0.5 - 0.4, 0.6 - 0.6)


def test_forgetting_is_negative_where_old_tasks_end_better_than_ever() -> None:
    a = [[0.5], [0.75, 0.6]]
    assert metrics.forgetting(a) == pytest.approx(-0.25)
    assert metrics.bwt(a) == pytest.approx(0.25)


def test_bwt_is_the_change_since_each_task_was_new() -> None:
    assert metrics.bwt(A) == pytest.approx(-0.25)  # (0.7 - 0.9, 0.5 - 0.8) / 2


def test_new_task_is_the_mean_of_the_diagonal() -> None:
    assert metrics.new_task(A) == pytest.approx(2.6 / 3)  # (0.9 + 0.8 + 0.9) / 3


def test_summary_has_every_measure_under_its_name() -> None:
    summary = metrics.summary(A, COUNTS)
    assert list(summary) == [
        "acc", "aaa", "acc_samples", "aaa_samples", "forgetting", "forgetting_first_last", "bwt", "new_task",
    ]  # fmt: skip
    assert summary["acc_samples"] == pytest.approx(0.725)
    assert summary["forgetting"] == pytest.approx(0.25)
    assert list(metrics.MEASURES) == list(summary)
    for name in summary:  # those that need the counts take them
        function, arguments = getattr(metrics, name), (A, COUNTS) if name.endswith("_samples") else (A,)
        assert summary[name] == function(*arguments)


def test_less_is_better_for_forgetting_alone() -> None:
    lower = [name for name, measure in metrics.MEASURES.items() if measure.lower_is_better]
    assert lower == ["forgetting", "forgetting_first_last"]


def test_one_task_has_nothing_to_forget() -> None:
    summary = metrics.summary([[0.8]], [5])
    assert {summary.pop(name) for name in ("forgetting", "forgetting_first_last", "bwt")} == {0.0}
    assert set(summary.values()) == {0.8}


@pytest.mark.parametrize(
    ("a", "message"),
    [
        ([], "accuracy matrix: empty"),
        ([[]], "row 0 has length 0, expected 1"),
        ([[0.5], [0.5]], "row 1 has length 1, expected 2"),
        ([[0.5, 0.5], [0.5, 0.5]], "row 0 has length 2, expected 1"),
        ([[0.5], [0.5, 50.0]], r"a\[1\]\[1\] is 50.0, expected a fraction in \[0, 1\]"),
        ([[-0.1]], r"a\[0\]\[0\] is -0.1"),
        ([[float("nan")]], r"a\[0\]\[0\] is nan"),
    ],
)
@pytest.mark.parametrize("measure", ["acc", "aaa", "forgetting", "forgetting_first_last", "bwt", "new_task"])
def test_a_malformed_matrix_is_refused(measure: str, a: list[list[float]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        getattr(metrics, measure)(a)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([1, 2], "2 given for the 3 tasks"),
        ([1, 0, 2], "task 1 has 0, expected at least 1"),
        ([1, 2, -1], "task 2 has -1"),
    ],
)
@pytest.mark.parametrize("measure", ["acc_samples", "aaa_samples", "summary"])
def test_counts_that_do_not_fit_are_refused(measure: str, counts: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        getattr(metrics, measure)(A, counts)


def test_measures_results_and_reports_do_not_import_torch() -> None:
    # A bare package stands in for lorica, whose own __init__ offers the parts that train.
    program = (
        "import sys, types; package = sys.modules['lorica'] = types.ModuleType('lorica'); package.__path__ = "
        "sys.argv[1:];import lorica.metrics, lorica.results, lorica.report; sys.exit('torch' in sys.modules)"
    )
    folder = Path(metrics.__file__).parent
    assert subprocess.run([sys.executable, "-c", program, folder]).returncode == 0


# after tasks 2 and 4 of four, earlier tasks were tested as well
THIN = [[0.9], [0.6, 0.8], [None, None, 0.9], [0.5, 0.6, 0.7, 1.0]]


def test_measures_of_a_matrix_whose_earlier_tasks_were_tested_now_and_then() -> None:
    assert metrics.whole(THIN) == [0, 1, 3]
    assert metrics.acc(THIN) == pytest.approx(0.7)
    assert metrics.aaa(THIN) == pytest.approx((0.9 + 0.7 + 0.7) / 3)
    assert metrics.acc_samples(THIN, [1, 3, 4, 2]) == pytest.approx((0.5 + 1.8 + 2.8 + 2.0) / 10)
    assert metrics.aaa_samples(THIN, [1, 3, 4, 2]) == pytest.approx((0.9 + (0.6 + 2.4) / 4 + 0.71) / 3)
    assert metrics.forgetting(THIN) == pytest.approx((0.4 + 0.2 + 0.2) / 3)
    assert metrics.forgetting_first_last(THIN) == pytest.approx((0.4 + 0.2 + 0.2) / 3)
    assert metrics.bwt(THIN) == pytest.approx(-0.8 / 3)
    assert metrics.new_task(THIN) == pytest.approx(0.9)


def test_the_last_whole_row_counts_where_a_run_stopped_behind_it() -> None:
    stopped = THIN[:3]
    assert metrics.acc(stopped) == pytest.approx(0.7)
    assert metrics.forgetting(stopped) == pytest.approx(0.3)
    assert metrics.bwt(stopped) == pytest.approx(-0.3)
    assert metrics.acc_samples(stopped, [1, 3, 4]) == pytest.approx((0.6 + 2.4) / 4)
    assert metrics.new_task(stopped) == pytest.approx((0.9 + 0.8 + 0.9) / 3)


@pytest.mark.parametrize("row", [[None, 0.5, 0.5], [0.5, 0.5, None], [None, None, None]])
def test_a_row_is_whole_or_of_its_newest_task(row: list[float | None]) -> None:
    with pytest.raises(ValueError, match=r"row 2 is .* expected it whole, or None for all but its last"):
        metrics.acc([[0.9], [0.6, 0.8], row])
    with pytest.raises(ValueError, match="row 0"):
        metrics.acc([[None]])


def test_half_total_error_rate() -> None:
    """(FAR + FRR) / 2, of each task that tests both classes after the last one."""
    first, second = [[0.5, 0.5]], [[0.2, 0.4], [0.0, 0.1]]
    assert metrics.hter([first, second]) == pytest.approx(((0.2 + 0.4) / 2 + (0.0 + 0.1) / 2) / 2)
    assert metrics.hter([first, second, [None, None, [0.3, 0.1]]]) == pytest.approx(0.175)  # the last whole row
    assert metrics.hter([[[0.2, None]], [[0.2, None], [0.3, 0.5]]]) == pytest.approx(0.4)
    assert metrics.hter([[[0.0, None]], [[0.2, None], [None, 0.5]]]) is None
