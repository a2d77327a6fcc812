"""Methods compared over the same chance: the differences of pairs of runs, which seeds and class orders do not blur.

    d_k = a_k - b_k,   mean(d) ± t(0.975; n - 1) std(d) / sqrt(n)

over the n pairs of runs of two rows that share the seed of training, the classes of each task in their order and the
numbers of their samples, the contents of data and weights, and how both are read and tested. Values of an incomplete
run, or of runs on other data or weights, are never paired. The intervals hold for one comparison each: among twenty,
one is expected to exclude 0 by chance.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean
from typing import Any

from lorica.errors import LoricaError
from lorica.metrics import MEASURES
from lorica.nested import flatten
from lorica.report.tables import Row, Spread, settings_of
from lorica.results import Result

ORDER = "stream.seed"
"""The key of a recipe that the order of its classes follows from."""


@dataclass(frozen=True)
class Difference:
    """What one row has more of each of `lorica.metrics.MEASURES` than another one, over their pairs of runs;
    fractions."""

    row: Row
    against: Row
    spreads: Mapping[str, Spread]

    @property
    def pairs(self) -> int:
        """How many pairs of runs each spread is over."""
        return next(iter(self.spreads.values())).number


def compare(rows: Sequence[Row], against: Row | None = None) -> list[Difference]:
    """The differences of every two rows that have a pair of runs, the earlier one minus the later one; or, `against`
    one of them, of each other one minus that."""
    return [found for row, other in _in_twos(rows, against) if (found := difference(row, other))]


def without_pairs(rows: Sequence[Row], against: Row | None = None) -> list[tuple[Row, Row]]:
    """Two rows each that `compare` would compare, if they had a pair of runs."""
    return [(row, other) for row, other in _in_twos(rows, against) if not difference(row, other)]


def _in_twos(rows: Sequence[Row], against: Row | None) -> Iterable[tuple[Row, Row]]:
    return combinations(rows, 2) if against is None else [(row, against) for row in rows if row is not against]


def named(rows: Sequence[Row], name: str) -> Row | None:
    """The row of that label, or of that method; None where there is none.

    Raises:
        LoricaError: several have that name.
    """
    found = [row for row in rows if row.label == name] or [row for row in rows if row.method == name]
    if len(found) > 1:
        labels = ", ".join(repr(row.label) for row in found)
        raise LoricaError(f"--against: {len(found)} rows are called {name!r}; expected one of {labels}")
    return found[0] if found else None


def difference(row: Row, against: Row) -> Difference | None:
    """The difference of two rows; None where they have no pair of runs."""
    ours, theirs = _by_chance(row), _by_chance(against)
    shared = [chance for chance in ours if chance in theirs]
    if not shared:
        return None
    return Difference(
        row,
        against,
        {
            name: Spread.of([_value(ours[chance], name) - _value(theirs[chance], name) for chance in shared])
            for name in MEASURES
        },
    )


def benchmark_of(run: Result) -> str:
    """What runs must share to stand in one table, as a key: the classes, the number of tasks, the contents of data and
    weights, and how both are read and tested."""
    classes = sorted(name for task in run.tasks for name in task["classes"])
    return json.dumps([classes, len(run.tasks), run.identity, _conditions(run)], sort_keys=True)


def order_of(run: Result) -> Any:
    """The seed of a run's class order; None for the source's own order, or where the run does not say."""
    return dict(flatten(run.recipe)).get(ORDER)


def _by_chance(row: Row) -> dict[str, list[Result]]:
    """The runs of a row by all that two runs must share to be a pair; several where a seed is counted twice."""
    found: dict[str, list[Result]] = {}
    for run in row.runs:
        shared = json.dumps([run.seed, run.tasks, run.identity, _conditions(run)], sort_keys=True)
        found.setdefault(shared, []).append(run)
    return found


def _conditions(run: Result) -> list[tuple[str, str]]:
    """The settings that say what is learned on and how it is tested, and not how it is learned."""
    settings = settings_of(run).items()
    return [pair for pair in settings if pair[0] == "backbone.name" or pair[0].startswith(("data.", "evaluate."))]


def _value(runs: Sequence[Result], measure: str) -> float:
    return fmean(getattr(run, measure) for run in runs)
