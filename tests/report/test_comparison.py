"""Paired differences: against scipy's paired test, by hand, and what is never a pair."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats

from lorica.errors import LoricaError
from lorica.report import Spread, summarise
from lorica.report.comparison import ORDER, benchmark_of, compare, difference, named
from lorica.report.tables import Row
from lorica.results import Result

MakeRun = Callable[..., Result]

FRACTIONS = st.lists(st.integers(0, 1000), min_size=2, max_size=6).map(lambda each: [one / 1000 for one in each])


def row(runs: list[Result]) -> Row:
    (made,) = summarise(runs, over=(ORDER,))
    return made


def test_an_interval_is_students() -> None:
    spread = Spread.of([0.2, 0.4, 0.9])  # mean 0.5, deviation the root of 0.13; t(0.975; 2) = 4.30265
    assert spread.interval == pytest.approx((0.5 - 4.30265 * sqrt(0.13 / 3), 0.5 + 4.30265 * sqrt(0.13 / 3)), abs=1e-5)
    assert Spread.of([0.4]).interval is None
    assert Spread.of([0.4, 0.4]).interval == (0.4, 0.4)


@given(FRACTIONS.filter(lambda values: len(set(values)) > 1))
def test_an_interval_is_scipys(values: list[float]) -> None:
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert Spread.of(values).interval == pytest.approx((expected.low, expected.high), abs=1e-12)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ours=FRACTIONS, theirs=FRACTIONS)
def test_differences_are_those_of_the_paired_test(make_run: MakeRun, ours: list[float], theirs: list[float]) -> None:
    number = min(len(ours), len(theirs))
    one, other = (
        row([make_run([[value]], method, seed=seed) for seed, value in enumerate(values)])
        for method, values in (("sd_lora", ours), ("o_lora", theirs))
    )
    found = difference(one, other)
    assert found is not None
    assert found.pairs == number
    spread = found.spreads["acc"]
    gaps = [a - b for a, b in zip(ours, theirs, strict=False)]
    assert spread.mean == pytest.approx(sum(gaps) / number)
    if len(set(gaps)) > 1 and max(gaps) - min(gaps) > 1e-9:
        expected = stats.ttest_rel(ours[:number], theirs[:number]).confidence_interval(0.95)
        assert spread.interval == pytest.approx((expected.low, expected.high), abs=1e-9)
    turned = difference(other, one)
    assert turned is not None
    assert turned.spreads["acc"].mean == pytest.approx(-spread.mean)
    assert turned.spreads["acc"].std == pytest.approx(spread.std)


def test_only_runs_of_one_seed_and_order_are_a_pair(make_run: MakeRun) -> None:
    def made(method: str, *chances: tuple[int, int, float]) -> Row:
        return row(
            [
                make_run([[acc]], method, seed=seed, classes=f"order {order}", recipe={"stream": {"seed": order}})
                for seed, order, acc in chances
            ]
        )

    # the classes' names stand for their order: another order, other classes in the first task
    one = made("sd_lora", (0, 1, 0.5), (1, 1, 0.6), (2, 1, 0.9))
    other = made("o_lora", (1, 1, 0.3), (2, 1, 0.5), (3, 1, 0.1))
    found = difference(one, other)
    assert found is not None
    assert (found.pairs, found.spreads["acc"].mean) == (2, pytest.approx((0.3 + 0.4) / 2))
    assert difference(one, made("o_lora", (0, 2, 0.3), (1, 2, 0.5))) is None


def test_other_data_or_weights_are_never_a_pair(make_run: MakeRun) -> None:
    ours = {"backbone": "4e0a", "data": "c245"}
    one = row([make_run([[0.5]], identity=ours)])
    assert difference(one, row([make_run([[0.4]], "o_lora", identity=ours)])) is not None
    for other in (
        make_run([[0.4]], "o_lora", identity={**ours, "data": "ffff"}),
        make_run([[0.4]], "o_lora", identity={**ours, "backbone": "ffff"}),
        make_run([[0.4]], "o_lora"),  # older, so that nothing is known of them
        make_run([[0.4]], "o_lora", identity=ours, recipe={"data": {"evaluate_on": "validation"}}),
        make_run([[0.4]], "o_lora", identity=ours, classes="other"),
    ):
        assert difference(one, row([other])) is None
        assert benchmark_of(one.runs[0]) != benchmark_of(other)
    how = make_run(
        [[0.4]], "o_lora", identity=ours, recipe={"fit": {"epochs": 3}, "backbone": {"normalisation": "unit"}}
    )
    assert difference(one, row([how])) is not None  # is part of a method's recipe


def test_a_seed_that_is_there_twice_counts_once(make_run: MakeRun) -> None:
    one = row([make_run([[0.5]]), make_run([[0.7]]), make_run([[0.9]], seed=1)])
    found = difference(one, row([make_run([[0.1]], "lora"), make_run([[0.2]], "lora", seed=1)]))
    assert found is not None
    assert (found.pairs, found.spreads["acc"].mean) == (2, pytest.approx((0.5 + 0.7) / 2))


def test_a_single_pair_has_a_difference_and_no_interval(make_run: MakeRun) -> None:
    found = difference(row([make_run([[0.5]])]), row([make_run([[0.4]], "lora")]))
    assert found is not None
    assert (found.pairs, found.spreads["acc"].interval) == (1, None)


def test_all_are_compared_or_all_with_one(make_run: MakeRun) -> None:
    runs = [make_run([[0.1 * place]], method) for place, method in enumerate(("lora", "o_lora", "sd_lora"))]
    rows = summarise([*runs, make_run([[0.9]], "sd_lora", "released_code")])
    pairs = [(each.row.label, each.against.label) for each in compare(rows)]
    assert pairs[:3] == [("lora", "o_lora"), ("lora", "sd_lora"), ("lora", "sd_lora (released_code)")]
    assert len(pairs) == 6
    found = compare(rows, named(rows, "o_lora"))
    assert [(each.row.label, round(each.spreads["acc"].mean, 6)) for each in found] == [
        ("lora", -0.1), ("sd_lora", 0.1), ("sd_lora (released_code)", 0.8),
    ]  # fmt: skip
    assert named(rows, "sd_lora") is rows[2]  # a label comes before a method
    assert named(rows, "nothing") is None
    twice = summarise([make_run([[0.5]], variant=variant) for variant in ("one", "other")])
    with pytest.raises(LoricaError, match=r"2 rows are called 'sd_lora'; expected one of 'sd_lora \(one\)', 'sd_lora"):
        named(twice, "sd_lora")
