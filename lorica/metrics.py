"""What an accuracy matrix says: pure functions of it, each with its equation.

`a` is the accuracy matrix, a lower triangle: row t holds a[t][0] … a[t][t], where a[t][i] is the accuracy on the test
data of task i once tasks 0 … t have been learned, predicted among all the classes seen by then. `counts` holds n_i, the
number of test samples of each task. T is the number of tasks. Everything goes in and comes out as a fraction:
accuracies lie in [0, 1], differences of accuracies in [-1, 1]. Only tables and figures show percent.

Two averages go by the name "accuracy" in the literature. The mean over tasks counts every task alike (the SD-LoRA
paper, L2P, CODA-Prompt); the mean over samples weighs a task by its test samples (what the released codes of SD-LoRA,
InfLoRA, CL-LoRA and PILOT report). They differ as soon as test sets differ in size, so both are given.

Where earlier tasks are tested every few tasks only (`evaluate.every`), the rows between are None but for the newest
task, which is always tested. "After the last one" then means in the last whole row, which is the last row of a complete
run; averages over time are over whole rows, and a maximum over time is over what was tested.

Every function raises ValueError for a matrix that is empty, not triangular, has an entry outside [0, 1] or a row that
is neither whole nor of its newest task alone, and for counts that do not fit it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import cast

Matrix = Sequence[Sequence[float | None]]
Errors = Sequence[Sequence[Sequence[float | None] | None]]
"""Of two classes: e[t][i] is, on the test data of task i after task t, the share of the first class's samples that were
taken for the second, and of the second's that were taken for the first; None where a class has none there, or where
task i was not tested."""


def whole(a: Matrix) -> list[int]:
    """The rows, from 0, in which every task so far was tested."""
    return [t for t, row in enumerate(a) if None not in row]


def acc(a: Matrix) -> float:
    """Mean over tasks after the last one (Acc of the SD-LoRA paper): 1/T sum_i a[T-1][i]."""
    return fmean(_whole(a)[-1])


def aaa(a: Matrix) -> float:
    """Average anytime accuracy (AAA of the SD-LoRA paper): 1/T sum_t 1/(t+1) sum_{i<=t} a[t][i]."""
    return fmean(fmean(row) for row in _whole(a))


def acc_samples(a: Matrix, counts: Sequence[int]) -> float:
    """Share of all test samples that are right after the last task: sum_i n_i a[T-1][i] / sum_i n_i."""
    last = _whole(a, counts)[-1]
    return fmean(last, weights=counts[: len(last)])


def aaa_samples(a: Matrix, counts: Sequence[int]) -> float:
    """Mean over time of the sample-weighted accuracy: 1/T sum_t (sum_{i<=t} n_i a[t][i] / sum_{i<=t} n_i)."""
    return fmean(fmean(row, weights=counts[: len(row)]) for row in _whole(a, counts))


def forgetting(a: Matrix) -> float:
    """Forgetting, max-last (Chaudhry et al., 2018): 1/(T-1) sum_{i<T-1} (max_{i<=t<T-1} a[t][i] - a[T-1][i]).

    The maximum runs over every row before the last that has column i. The last row is not among them, so the value is
    negative where old tasks end better than they ever were; PILOT and HiDe include it and so cut such gains off at 0.
    0.0 for a single task.
    """
    last = _whole(a)[-1]
    before = a[: len(last) - 1]
    best = (max(each for row in before[i:] if (each := row[i]) is not None) for i in range(len(before)))
    return _mean(map(operator.sub, best, last))


def forgetting_first_last(a: Matrix) -> float:
    """Forgetting, first-last: 1/(T-1) sum_{i<T-1} (a[i][i] - a[T-1][i]); 0.0 for a single task.

    What was lost since each task was learned; the negative of `bwt`.
    """
    return _mean(cast(float, a[i][i]) - last for i, last in enumerate(_whole(a)[-1][:-1]))


def bwt(a: Matrix) -> float:
    """Backward transfer (Lopez-Paz & Ranzato, 2017): 1/(T-1) sum_{i<T-1} (a[T-1][i] - a[i][i]).

    Positive where learning later tasks helped the earlier ones. 0.0 for a single task.
    """
    return 0.0 - forgetting_first_last(a)


def new_task(a: Matrix) -> float:
    """Learning accuracy, each task when it was the newest: 1/T sum_i a[i][i]."""
    _check(a)
    return fmean(cast(float, row[-1]) for row in a)


def hter(e: Errors) -> float | None:
    """Half total error rate of two classes, mean over tasks after the last one: 1/T sum_i (FAR_i + FRR_i) / 2, where
    FAR and FRR, the shares of false acceptances and false rejections, are the two of e[T-1][i], whichever class is to
    be accepted.

    Over the tasks that test both classes; None where none does.
    """
    last = next((row for row in reversed(e) if None not in row), ())
    both = [fmean(cast(Sequence[float], pair)) for pair in last if pair and None not in pair]
    return fmean(both) if both else None


@dataclass(frozen=True)
class Measure:
    """How one measure is had, and how it is shown.

    Attributes:
        of: its function of the accuracy matrix and the test counts.
        heading: of its column in tables for people; None leaves it to files and programs.
        lower_is_better: whether the least value is the best one.
        over: what it averages over; "{tasks}" are the tasks of the stream, or its domains.
    """

    of: Callable[[Matrix, Sequence[int]], float]
    heading: str | None = None
    lower_is_better: bool = False
    over: str = "{tasks}"


_EARLIER = "{tasks} but the last"

MEASURES: dict[str, Measure] = {
    "acc": Measure(lambda a, _: acc(a), "Acc"),
    "aaa": Measure(lambda a, _: aaa(a), "AAA", over="{tasks} so far, then over time"),
    "acc_samples": Measure(acc_samples, over="test samples of all classes"),
    "aaa_samples": Measure(aaa_samples, over="test samples of the classes seen, then over time"),
    "forgetting": Measure(lambda a, _: forgetting(a), "Forgetting", lower_is_better=True, over=_EARLIER),
    "forgetting_first_last": Measure(lambda a, _: forgetting_first_last(a), lower_is_better=True, over=_EARLIER),
    "bwt": Measure(lambda a, _: bwt(a), over=_EARLIER),
    "new_task": Measure(lambda a, _: new_task(a), "New task", over="{tasks}, each when it was the newest"),
}
"""Every measure by its name, in the order in which files and tables have them. A measure that is added here is in
metrics.json, in `lorica.results.Result` and in every table; no other place names them all."""


def summary(a: Matrix, counts: Sequence[int]) -> dict[str, float]:
    """The value of each of `MEASURES`, by name."""
    return {name: measure.of(a, counts) for name, measure in MEASURES.items()}


def _mean(differences: Iterable[float]) -> float:
    values = list(differences)
    return fmean(values) if values else 0.0


def _whole(a: Matrix, counts: Sequence[int] | None = None) -> list[list[float]]:
    """The whole rows of a matrix that has been looked at; the first row is always one."""
    _check(a, counts)
    return [cast(list[float], list(a[t])) for t in whole(a)]


def _check(a: Matrix, counts: Sequence[int] | None = None) -> None:
    if not a:
        raise ValueError("accuracy matrix: empty, expected one row for each task learned")
    for t, row in enumerate(a):
        if len(row) != t + 1:
            raise ValueError(f"accuracy matrix: row {t} has length {len(row)}, expected {t + 1} (one a task so far)")
        if None in row and (row[-1] is None or set(row[:-1]) != {None}):
            raise ValueError(
                f"accuracy matrix: row {t} is {list(row)}, expected it whole, or None for all but its last"
            )
        for i, value in enumerate(row):
            if value is not None and not 0 <= value <= 1:  # false for NaN too
                raise ValueError(f"accuracy matrix: a[{t}][{i}] is {value}, expected a fraction in [0, 1]")
    if counts is None:
        return
    if len(counts) != len(a):
        raise ValueError(f"test counts: {len(counts)} given for the {len(a)} tasks of the accuracy matrix")
    for i, count in enumerate(counts):
        if count < 1:
            raise ValueError(f"test counts: task {i} has {count}, expected at least 1")
