"""Tables: means and standard deviations by hand, what belongs together, and every way of writing them down."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from math import sqrt
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from rich.console import Console

from lorica.errors import LoricaError
from lorica.report import Spread, notes, summarise, to_csv, to_latex, to_markdown, to_rich
from lorica.report.tables import CAPTION, compact, properties
from lorica.results import Result

MakeRun = Callable[..., Result]


def with_cost(run: Result, **changes: int | float) -> Result:
    """The run with a ledger: SD-LoRA's on DeiT-Ti, but the FLOPs of ViT-B/16."""
    cost = {"trainable": 96_417, "stored": 1_060_717, "flops_per_prediction": 35_126_427_648}
    return replace(run, cost={**cost, "forwards_per_prediction": 1.0, **changes})


def test_the_standard_deviation_is_that_of_a_sample() -> None:
    spread = Spread.of([0.2, 0.4, 0.9])  # mean 0.5; (0.09 + 0.01 + 0.16) / 2 = 0.13
    assert spread.mean == pytest.approx(0.5)
    assert spread.std == pytest.approx(sqrt(0.13))
    assert spread.error == pytest.approx(sqrt(0.13 / 3))
    assert (spread.percent(), spread.percent(error=True)) == ("50.0 ± 36.1", "50.0 ± 20.8")


def test_a_single_value_has_no_standard_deviation() -> None:
    assert Spread.of([0.25]) == Spread(0.25, None)


@pytest.mark.parametrize(
    ("spread", "text"),
    [
        (Spread(0.81349, 0.00351), "81.3 ± 0.4"),
        (Spread(0.81349, None), "81.3"),
        (Spread(0.5, 0.0), "50.0 ± 0.0"),
        (Spread(-0.034, 0.012), "-3.4 ± 1.2"),
        (Spread(-0.0001, None), "0.0"),  # not -0.0
    ],
)
def test_a_spread_in_percent(spread: Spread, text: str) -> None:
    assert spread.percent() == text


def test_seeds_of_a_method_share_a_row(two_seeds: list[Result]) -> None:
    sd_lora, o_lora = summarise(two_seeds)
    assert (sd_lora.label, sd_lora.method, sd_lora.seeds) == ("sd_lora", "sd_lora", 2)
    assert (sd_lora.tasks, sd_lora.classes) == (2, 4)
    assert sd_lora.runs == (two_seeds[0], two_seeds[2])
    assert (sd_lora.spreads["acc"].mean, sd_lora.spreads["acc"].std) == pytest.approx((0.7, 0.2 / sqrt(2)))
    assert (sd_lora.spreads["aaa"].mean, sd_lora.spreads["aaa"].std) == pytest.approx((0.75, 0))
    assert (sd_lora.spreads["forgetting"].mean, sd_lora.spreads["forgetting"].std) == pytest.approx(
        (0.15, 0.5 / sqrt(2))
    )
    assert (sd_lora.spreads["new_task"].mean, sd_lora.spreads["new_task"].std) == pytest.approx((0.775, 0.05 / sqrt(2)))
    assert (o_lora.label, o_lora.seeds, o_lora.spreads["acc"]) == ("o_lora", 1, Spread(0.375, None))


def test_variants_are_methods_of_their_own(make_run: MakeRun) -> None:
    runs = [make_run([[0.5]], variant="paper"), make_run([[0.6]], variant="released_code")]
    assert [row.label for row in summarise(runs)] == ["sd_lora", "sd_lora (released_code)"]


def test_a_further_label_keeps_runs_apart(make_run: MakeRun) -> None:
    runs = [
        make_run([[0.5]], path=Path(f"runs/rank_{rank}/seed_{seed}"), seed=seed) for rank in (4, 16) for seed in (0, 1)
    ]
    rows = summarise(runs, by=lambda run: run.path.parent.name if run.path else "")
    assert [(row.label, row.extra, row.seeds) for row in rows] == [
        ("sd_lora, rank_4", "rank_4", 2),
        ("sd_lora, rank_16", "rank_16", 2),
    ]


def test_runs_over_different_streams_are_never_averaged(make_run: MakeRun) -> None:
    runs = [make_run([[0.5]]), make_run([[0.5], [0.5, 0.5]]), make_run([[0.5]], classes="other")]
    rows = summarise(runs)
    assert [row.seeds for row in rows] == [1, 1, 1]
    assert [row.label for row in rows[:2]] == ["sd_lora, 2 classes in 1 tasks", "sd_lora, 4 classes in 2 tasks"]


def test_the_order_of_classes_does_not_matter(make_run: MakeRun) -> None:
    first, second = make_run([[0.5], [0.5, 0.5]]), make_run([[0.5], [0.5, 0.5]], seed=1)
    second.tasks.reverse()
    assert [row.seeds for row in summarise([first, second])] == [2]


def test_rows_come_in_order_of_first_appearance_or_best_first(make_run: MakeRun) -> None:
    runs = [make_run([[0.9], [0.1 * k, 0.5]], name) for k, name in ((5, "b"), (8, "c"), (3, "a"))]
    assert [row.method for row in summarise(runs)] == ["b", "c", "a"]
    assert [row.method for row in summarise(runs, sort="acc")] == ["c", "b", "a"]
    assert [row.method for row in summarise(runs, sort="forgetting")] == ["c", "b", "a"]  # the least first


def test_an_unknown_sort_key(two_seeds: list[Result]) -> None:
    with pytest.raises(
        LoricaError, match=r"sort: unknown measure 'accuracy'; expected one of acc, aaa, acc_samples, .*, new_task"
    ):
        summarise(two_seeds, sort="accuracy")


def test_incomplete_runs_are_left_out_and_named(two_seeds: list[Result], make_run: MakeRun) -> None:
    unfinished = make_run([[0.9]], "l2p", tasks=5, path=Path("runs/l2p"))
    assert summarise([*two_seeds, unfinished]) == summarise(two_seeds)
    assert notes([*two_seeds, unfinished]) == ["Left out, not complete: runs/l2p (1 of 5 tasks)."]
    assert notes(two_seeds) == []


def test_a_seed_that_is_there_twice_counts_once(make_run: MakeRun) -> None:
    """A copied folder would otherwise make a spread and an interval narrower than they are."""
    runs = [make_run([[0.5]], path=Path("runs/a")), make_run([[0.6]], seed=1), make_run([[0.7]])]
    (line,) = notes(runs)
    assert line == "Seed 0 of sd_lora is there 2 times, and its mean counts once: runs/a, sd_lora, seed 0."
    (row,) = summarise(runs)
    assert (row.seeds, len(row.runs)) == (2, 3)
    assert row.spreads["acc"] == Spread.of([fmean([0.5, 0.7]), 0.6])
    assert notes(runs, by=lambda run: str(run.acc)) == []


def lines_of(width: int, runs: list[Result], *remarks: str) -> list[str]:
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(to_rich(summarise(runs), remarks, width=width))
    return [line.strip() for line in console.export_text().splitlines()]


def test_the_terminal_table(two_seeds: list[Result]) -> None:
    older = replace(two_seeds[1], cost={"trainable": 4247, "stored": 138_867})  # as runs before the ledger wrote it
    above, heading, _, *rows = lines_of(
        120, [with_cost(two_seeds[0]), older, two_seeds[2]], "Left out, not complete: [l2p]."
    )
    assert above.split() == ["Forget-", "New"]
    assert heading.split() == [
        "Method", "Seeds", "Acc", "AAA", "ting", "task", "Trained", "Stored", "GFLOPs", "Passes",
    ]  # fmt: skip
    assert [re.split(r"\s{2,}", row) for row in rows[:2]] == [
        ["sd_lora", "2", "70.0 ± 14.1", "75.0 ± 0.0", "15.0 ± 35.4", "77.5 ± 3.5", "96.4k", "1.06M", "35.13", "1"],
        ["o_lora", "1", "37.5", "56.2", "50.0", "62.5", "4.25k", "139k", "–", "–"],
    ]
    assert "\n".join(rows[2:]).split() == [*CAPTION.split(), "Left", "out,", "not", "complete:", "[l2p]."]


def test_the_widest_terminal_table_takes_120_columns_and_none_loses_a_digit(make_run: MakeRun) -> None:
    runs = [with_cost(make_run([[0.9], [0.1, a]], variant="released_code", seed=int(a))) for a in (0.0, 1.0)]
    assert lines_of(120, runs)[3].startswith("sd_lora (released_code)")
    for width in (120, 100, 80):
        together = "".join("".join(lines_of(width, runs)).split())
        assert "…" not in together
        for cell in ("96.4k", "1.06M", "35.13"):
            assert cell in together


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (66, "66"),
        (999, "999"),
        (4_247, "4.25k"),
        (96_417, "96.4k"),
        (368_640, "369k"),
        (999_499, "999k"),
        (999_500, "1.00M"),
        (85_952_456, "86.0M"),
        (2.5e9, "2.50G"),
    ],
)
def test_a_compact_number(number: int | float, text: str) -> None:
    assert compact(number) == text


def test_costs_that_differ_between_seeds_are_averaged(make_run: MakeRun) -> None:
    (row,) = summarise([with_cost(make_run([[0.5]], seed=s), stored=kept) for s, kept in ((0, 100), (1, 300))])
    assert (row.cost("stored"), row.cost("trainable")) == (200, 96_417)


def test_the_markdown_table(make_run: MakeRun) -> None:
    runs = [with_cost(make_run([[0.25]]), forwards_per_prediction=10.5), make_run([[0.5]], "a|b")]
    assert to_markdown(summarise(runs), ["One note."]) == (
        "| Method | Seeds | Acc | AAA | Forgetting | New task | Trained | Stored | GFLOPs | Passes |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n"
        "| sd_lora | 1 | 25.0 | 25.0 | 0.0 | 25.0 | 96.4k | 1.06M | 35.13 | 10.5 |\n"
        "| a\\|b | 1 | 50.0 | 50.0 | 0.0 | 50.0 | – | – | – | – |\n"
        "\n"
        f"{CAPTION}\n"
        "\n"
        "One note.\n"
    )


def test_further_columns_of_the_markdown_table(make_run: MakeRun) -> None:
    rows = summarise([make_run([[0.25]]), make_run([[0.5]], "o_lora")])
    lines = to_markdown(rows, columns={"Time": lambda row: {"sd_lora": "1.00"}.get(row.method, "–")}).splitlines()
    assert [line.rsplit(" | ", 1)[1] for line in lines[:4]] == ["Time |", "---: |", "1.00 |", "– |"]
    assert {line.count("|") for line in lines[:4]} == {12}


def test_the_latex_table(two_seeds: list[Result], make_run: MakeRun) -> None:
    two_seeds[0] = with_cost(two_seeds[0])
    rows = summarise([*two_seeds, make_run([[0.5], [0.5, 0.5]], "sd_lora", "50%_{x}\\~")])
    assert to_latex(rows, ["One note."]).splitlines() == [
        r"\begin{tabular}{lrrrrrrrrr}",
        r"\toprule",
        r"Method & Seeds & Acc & AAA & Forgetting & New task & Trained & Stored & GFLOPs & Passes \\",
        r"\midrule",
        r"sd\_lora & 2 & $70.0 \pm 14.1$ & $75.0 \pm 0.0$ & $15.0 \pm 35.4$ & $77.5 \pm 3.5$ & 96.4k & 1.06M & 35.13 & "
        r"1 \\",
        r"o\_lora & 1 & $37.5$ & $56.2$ & $50.0$ & $62.5$ & -- & -- & -- & -- \\",
        r"sd\_lora (50\%\_\{x\}\textbackslash{}\textasciitilde{}) & 1 & $50.0$ & $50.0$ & $0.0$ & $50.0$ & -- & -- & "
        r"-- & -- \\",
        r"\bottomrule",
        r"\end{tabular}",
        f"% {CAPTION}",
        "% One note.",
    ]


def test_the_csv_table_has_fractions(two_seeds: list[Result]) -> None:
    two_seeds[0] = with_cost(two_seeds[0], forwards_per_prediction=10.5)
    sd_lora, o_lora = csv.DictReader(io.StringIO(to_csv(summarise(two_seeds))))
    assert {key: sd_lora[key] for key in ("label", "method", "variant", "extra", "tasks", "classes", "seeds")} == {
        "label": "sd_lora", "method": "sd_lora", "variant": "", "extra": "", "tasks": "2", "classes": "4", "seeds": "2",
    }  # fmt: skip
    assert float(sd_lora["acc"]) == pytest.approx(0.7)
    assert float(sd_lora["acc_std"]) == pytest.approx(0.2 / sqrt(2))
    assert (o_lora["acc"], o_lora["acc_std"], o_lora["new_task"]) == ("0.375", "", "0.625")
    assert float(sd_lora["bwt"]) == pytest.approx(-0.15)  # (0.5 - 0.9, 0.8 - 0.7): what no table for people shows
    costs = ("trainable", "stored", "flops_per_prediction", "forwards_per_prediction")
    assert [sd_lora[cost] for cost in costs] == ["96417", "1060717", "35126427648", "10.5"]
    assert [o_lora[cost] for cost in costs] == ["", "", "", ""]


def test_runs_of_different_settings_never_share_a_row(make_run: MakeRun) -> None:
    runs = [
        make_run(
            [[0.5]], seed=seed, recipe={"method": {"name": "sd_lora", "rank": rank}, "seed": seed, "device": device}
        )
        for seed, rank, device in ((0, 10, "cpu"), (1, 4, "cpu"), (2, 10, "cuda"))
    ]
    ten, four = summarise(runs)
    assert (ten.label, ten.seeds) == ("sd_lora, method.rank=10", 2)
    assert (four.label, four.seeds) == ("sd_lora, method.rank=4", 1)


def test_read_outs_are_rows_of_their_own(make_run: MakeRun) -> None:
    """Named by their labels alone; a run older than `layers` and `drift` is of the row that leaves them out."""
    kinds: list[dict[str, Any]] = [
        {"readout": "prototypes"},
        {"readout": "prototypes", "layers": None, "drift": "none"},
        {"readout": "prototypes", "layers": 5, "drift": "none"},
        {"readout": "prototypes", "layers": None, "drift": "affine"},
        {"readout": "ridge", "layers": None, "drift": "none"},
    ]
    runs = [
        make_run([[0.5]], seed=seed, head_accuracy=[[0.4]], recipe={"evaluate": kind})
        for seed, kind in enumerate(kinds)
    ]
    assert [(row.label, row.seeds) for row in summarise(runs)] == [
        ("sd_lora (class means)", 2),
        ("sd_lora (class means of 5 layers)", 1),
        ("sd_lora (class means, affine drift)", 1),
        ("sd_lora (ridge regression)", 1),
    ]


def test_an_ablation_is_named_by_what_it_changes(make_run: MakeRun) -> None:
    usual = {"name": "sd_lora", "rank": 10, "reset": False}
    runs = [make_run([[0.5]], recipe={"method": usual | changed}) for changed in ({}, {"rank": 4}, {"reset": True})]
    assert [row.label for row in summarise(runs)] == ["sd_lora", "sd_lora, method.rank=4", "sd_lora, method.reset=True"]


def test_no_two_rows_have_one_label(make_run: MakeRun) -> None:
    """Also where some runs are older than a key, and do not have it."""
    kinds = [
        {key: value for key, value in {"a": a, "b": b}.items() if value} for a, b in product(("", "1", "2"), repeat=2)
    ]
    for some in product(kinds, repeat=3):
        labels = [row.label for row in summarise([make_run([[0.5]], recipe={"fit": kind}) for kind in some])]
        assert len(set(labels)) == len(labels) == len({str(kind) for kind in some})


def test_a_run_older_than_a_key_is_told_apart(make_run: MakeRun) -> None:
    recipes = [{"fit": {"rate": "1", "precision": "fp32"}}, {"fit": {"rate": "2", "precision": "fp32"}}]
    runs = [make_run([[0.5]], recipe=recipe) for recipe in [*recipes, {"fit": {"rate": "1"}}]]
    assert [row.label for row in summarise(runs)] == [
        "sd_lora",
        "sd_lora, fit.rate=2",
        "sd_lora, without fit.precision",
    ]


def test_standard_errors_in_place_of_deviations(make_run: MakeRun) -> None:
    rows = summarise([make_run([[0.6]], seed=seed) for seed in range(3)] + [make_run([[0.9]], seed=3)])
    for table in (to_markdown(rows, error=True), to_latex(rows, error=True)):
        assert re.search(r"67.5 (±|\\pm) 7.5", table)
        assert "standard error of the mean over seeds" in table
    for table in (to_markdown(rows), to_latex(rows)):
        assert re.search(r"67.5 (±|\\pm) 15.0", table)
        assert "sample standard deviation over seeds" in table


def test_the_three_properties_are_those_measured(make_run: MakeRun) -> None:
    old = make_run([[0.5]], "old")
    costs = {
        "sd_lora": {"stored_features": 0, "forwards_per_prediction": 1.0, "end_to_end": True},
        "hide_prompt": {"stored_features": 5_000, "forwards_per_prediction": 2.0, "end_to_end": False},
    }
    rows = summarise([old, *(replace(make_run([[0.5]], name), cost=cost) for name, cost in costs.items())])
    table = properties(rows)
    lines = list(zip(*(map(str, column.cells) for column in table.columns), strict=True))
    assert lines == [
        ("old", "–", "–", "–", "–"),
        ("sd_lora", "yes", "yes", "yes", "0"),
        ("hide_prompt", "no", "no", "no", "5.00k"),
    ]


def test_costs_of_texts_say_of_how_many_tokens(two_seeds: list[Result]) -> None:
    texts = [with_cost(run, tokens_per_prediction=64) for run in two_seeds]
    assert notes(texts) == ["GFLOPs: of a text of 64 tokens."]
    mixed = [with_cost(run, **({"tokens_per_prediction": 64} if run.method == "sd_lora" else {})) for run in two_seeds]
    assert notes(mixed) == ["GFLOPs of sd_lora: of a text of 64 tokens."]
    assert notes(two_seeds) == []
