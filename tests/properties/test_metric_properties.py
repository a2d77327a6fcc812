"""What holds for every accuracy matrix."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorica import metrics

FRACTION = st.floats(0, 1, allow_nan=False)


@st.composite
def matrices(draw: st.DrawFn) -> list[list[float]]:
    return [draw(st.lists(FRACTION, min_size=t + 1, max_size=t + 1)) for t in range(draw(st.integers(1, 8)))]


@st.composite
def matrices_with_counts(draw: st.DrawFn) -> tuple[list[list[float]], list[int]]:
    a = draw(matrices())
    return a, draw(st.lists(st.integers(1, 10_000), min_size=len(a), max_size=len(a)))


@given(matrices_with_counts())
def test_every_measure_stays_within_its_bounds(example: tuple[list[list[float]], list[int]]) -> None:
    summary = metrics.summary(*example)
    differences = [summary.pop(name) for name in ("forgetting", "forgetting_first_last", "bwt")]
    assert all(-1 <= value <= 1 for value in differences)
    assert all(-1e-12 <= value <= 1 + 1e-12 for value in summary.values())


@given(matrices(), st.integers(1, 10_000))
def test_samples_and_tasks_agree_where_all_test_sets_have_one_size(a: list[list[float]], count: int) -> None:
    summary = metrics.summary(a, [count] * len(a))
    assert summary["acc_samples"] == pytest.approx(summary["acc"])
    assert summary["aaa_samples"] == pytest.approx(summary["aaa"])


@given(matrices_with_counts(), st.integers(2, 9))
def test_only_the_proportions_of_the_counts_matter(example: tuple[list[list[float]], list[int]], factor: int) -> None:
    a, counts = example
    scaled = [factor * count for count in counts]
    assert metrics.acc_samples(a, scaled) == pytest.approx(metrics.acc_samples(a, counts))
    assert metrics.aaa_samples(a, scaled) == pytest.approx(metrics.aaa_samples(a, counts))


@given(matrices())
def test_backward_transfer_is_the_negative_of_first_last_forgetting(a: list[list[float]]) -> None:
    assert metrics.bwt(a) == -metrics.forgetting_first_last(a)


@given(matrices())
def test_the_best_is_at_least_the_first(a: list[list[float]]) -> None:
    assert metrics.forgetting(a) >= metrics.forgetting_first_last(a) - 1e-12


@given(matrices())
def test_the_measures_of_differences_are_exactly_zero_where_nothing_changes(a: list[list[float]]) -> None:
    still = [a[-1][: t + 1] for t in range(len(a))]
    assert metrics.forgetting(still) == metrics.forgetting_first_last(still) == metrics.bwt(still) == 0
    assert metrics.new_task(still) == metrics.acc(still)


@given(st.integers(101, 130), st.integers(0, 2**32 - 1))
def test_more_than_a_hundred_tasks_keep_their_order(number: int, seed: int) -> None:
    """Task names sorted as text ("100" before "20") permute the columns: the released SD-LoRA code's forgetting."""
    full = np.random.default_rng(seed).random((number, number))
    counts = np.random.default_rng(seed + 1).integers(1, 500, number)
    a = [full[t, : t + 1].tolist() for t in range(number)]
    summary = metrics.summary(a, counts.tolist())
    best = np.where(np.tri(number, dtype=bool), full, -1)[:-1, :-1].max(axis=0)
    assert summary["forgetting"] == pytest.approx(np.mean(best - full[-1, :-1]))
    assert summary["forgetting_first_last"] == pytest.approx(np.mean(np.diag(full)[:-1] - full[-1, :-1]))
    assert summary["acc_samples"] == pytest.approx(np.average(full[-1], weights=counts))
    assert summary["new_task"] == pytest.approx(np.diag(full).mean())
