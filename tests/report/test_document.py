"""A report in text: what stands in one table, what is in no mean, and the numbers by hand."""

from __future__ import annotations

import csv
import io
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from lorica.errors import LoricaError
from lorica.report.document import Report, to_text
from lorica.results import Result

MakeRun = Callable[..., Result]


def tidy(report: Report) -> dict[tuple[str, str, str], dict[str, str]]:
    lines = csv.DictReader(io.StringIO(to_text(report, "csv")))
    return {(line["label"], line["against"], line["measure"]): line for line in lines}


def test_seeds_and_orders_share_a_row(make_run: MakeRun) -> None:
    runs = [
        make_run([[acc]], seed=seed, recipe={"stream": {"seed": order}})
        for seed, order, acc in ((0, 1993, 0.5), (1, 1993, 0.7), (0, 7, 0.9))
    ]
    (benchmark,) = Report.of(runs).benchmarks
    assert [(row.label, row.seeds, row.spreads["acc"].mean) for row in benchmark.rows] == [
        ("sd_lora", 3, pytest.approx(0.7))
    ]
    again = Report.of([*runs, runs[0]])
    assert again.remarks == [
        "Seed 0 of sd_lora is there 2 times, and its mean counts once: sd_lora, seed 0, sd_lora, seed 0."
    ]
    assert again.benchmarks[0].rows[0].spreads == benchmark.rows[0].spreads
    assert Report.of(runs).remarks == []


def test_other_data_or_weights_stand_in_other_tables(make_run: MakeRun) -> None:
    recipe = {"data": {"source": "cifar100"}, "backbone": {"name": "tiny"}}
    runs = [make_run([[0.5]], identity={"data": data}, recipe=recipe) for data in ("aa", "bb")]
    report = Report.of([*runs, make_run([[0.5], [0.5, 0.5]], recipe=recipe)])
    assert [each.title for each in report.benchmarks] == [
        "cifar100: 2 classes in 1 task, tiny (data aa)",
        "cifar100: 2 classes in 1 task, tiny (data bb)",
        "cifar100: 4 classes in 2 tasks, tiny",
    ]
    assert [[row.label for row in each.rows] for each in report.benchmarks] == [["sd_lora"]] * 3


def test_partial_runs_are_listed_and_in_no_mean(make_run: MakeRun) -> None:
    partial = make_run([[0.9]], "lora", seed=2, tasks=2, path=Path("runs/lora"))
    report = Report.of([make_run([[0.5], [0.5, 0.5]], "lora"), partial])
    assert tidy(report)["lora", "", "acc"]["mean"] == "0.5"
    for form, line in (
        ("markdown", "| runs/lora | 2 | 1 of 2 tasks | 90.0 |"),
        ("latex", r"runs/lora & 2 & 1 of 2 tasks & 90.0 \\"),
    ):
        assert line in to_text(report, form).splitlines()
    alone = Report.of([partial])
    assert "| runs/lora | 2 | 1 of 2 tasks | 90.0 |" in to_text(alone, "markdown")
    with pytest.raises(LoricaError, match="no row is called 'lora'; expected one of none: no run is complete"):
        Report.of([partial], against="lora")


def test_every_number_of_a_row(two_seeds: list[Result]) -> None:
    found = tidy(Report.of(two_seeds))["sd_lora", "", "acc"]
    # 0.6 and 0.8: deviation 0.2 / sqrt 2, error 0.1; t(0.975; 1) = 12.7062
    expected = {"number": 2, "mean": 0.7, "std": 0.141421, "error": 0.1, "low": 0.7 - 1.27062, "high": 0.7 + 1.27062}
    assert {key: float(found[key]) for key in expected} == pytest.approx(expected, abs=1e-5)
    text = to_text(Report.of(two_seeds), "markdown")
    assert "| sd_lora | Acc | 2 | 70.00 | 14.14 | 10.00 | -57.06 to 197.06 |" in text
    assert "| sd_lora | Acc by sample | 2 | 70.00 |" in text
    # of seed 0 alone: 0.6 - 0.375, (0.9 + 0.6) / 2 - (0.75 + 0.375) / 2, (0.9 - 0.5) - (0.75 - 0.25), 0.8 - 0.625
    assert "| sd_lora − o_lora | 1 | +22.5 | +22.5 | +18.8 | +18.8 | -10.0 | +17.5 |" in text


def test_costs_vary_too(make_run: MakeRun) -> None:
    cost = {"trainable": 96_417, "stored": 1_060_717, "flops_per_prediction": 2 * 10**9, "forwards_per_prediction": 1.0}
    runs = [make_run([[0.5]], seed=seed, cost=cost, seconds=[10.0 + 4 * seed]) for seed in (0, 1)]
    found, text = tidy(Report.of(runs)), to_text(Report.of(runs), "markdown")
    times = found["sd_lora", "", "train_seconds"]
    assert (times["mean"], float(times["std"])) == ("12.0", pytest.approx(8**0.5))
    assert (found["sd_lora", "", "stored"]["mean"], found["sd_lora", "", "stored"]["std"]) == ("1060717.0", "0.0")
    assert "| sd_lora | Training (s) | 2 | 12 | 2.828 | 2 | -13.41 to 37.41 |" in text
    assert "| sd_lora | Stored |" not in text  # the first table has what is always the same
    assert "| 96.4k | 1.06M | 2 | 1 |" in text


def test_columns_of_somebody_else(two_seeds: list[Result]) -> None:
    report = Report.of(two_seeds, columns={"Published_1": lambda row: f"{row.method} & co"})
    assert "| Acc by sample | AAA by sample | Published_1 |" in to_text(report, "markdown")
    assert r"& Published\_1 \\" in to_text(report, "latex")
    assert r"& sd\_lora \& co \\" in to_text(report, "latex")


def test_against_one(two_seeds: list[Result], make_run: MakeRun) -> None:
    report = Report.of([*two_seeds, make_run([[0.5], [0.5, 0.5]], "lora")], against="o_lora")
    assert [key[:2] for key in tidy(report) if key[1] and key[2] == "acc"] == [
        ("sd_lora", "o_lora"),
        ("lora", "o_lora"),
    ]
    with pytest.raises(LoricaError, match="no row is called 'ease'; expected one of 'sd_lora', 'o_lora'"):
        Report.of(two_seeds, against="ease")


def test_latex_has_only_characters_that_it_takes(two_seeds: list[Result], make_run: MakeRun) -> None:
    text = to_text(Report.of([*two_seeds, make_run([[0.1], [0.1, 0.1]], "50% & more_")]), "latex")
    assert r"sd\_lora $-$ 50\% \& more\_ & 1 &" in text
    body = [line for line in text.splitlines() if not line.startswith("%")]
    assert not any("−" in line or "–" in line for line in body)
    assert not any("±" in line for line in body)
    assert r"& $70.0 \pm 14.1$ &" in text
    assert r"& 70.0 $\pm$ 14.1 &" in text  # by sample
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 3


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="needs LaTeX")
@pytest.mark.parametrize("against", [None, "sd_lora"])
def test_latex_compiles(against: str | None, two_seeds: list[Result], make_run: MakeRun, tmp_path: Path) -> None:
    """Whatever rows are called, and without a line that is too wide for itself or a character that it lacks."""
    odd = make_run([[0.1], [0.1, 0.1]], "50% & more_ ~ ^ # $x {y} \\z <a|b> é − ± –")
    partial = [make_run([[0.25]], tasks=2, path=Path(f"{each}-1"), seed=4) for each in "[*"]
    (tmp_path / "report.tex").write_text(to_text(Report.of([*two_seeds, odd, *partial], against=against), "latex"))
    (tmp_path / "paper.tex").write_text(
        r"\documentclass{article}\usepackage{booktabs}\begin{document}\input{report}\end{document}"
    )
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "paper.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout
    assert "Missing character" not in (tmp_path / "paper.log").read_text()


def test_rows_without_a_pair_are_named(make_run: MakeRun) -> None:
    """They stand in one table, and nothing says that one is better by so much."""
    runs = [make_run([[0.5]], method, seed=seed) for method, seed in (("lora", 0), ("lora", 1), ("joint", 1))]
    assert not any("Not compared" in line for line in Report.of(runs).remarks)
    report = Report.of([*runs, make_run([[0.5]], "o_lora", seed=2)])
    words = "Not compared, since no two runs share the seed and the order: "
    assert report.remarks == [f"{words}lora − o_lora, joint − o_lora."]
    assert f"{words}lora − o_lora, joint" in to_text(report, "markdown")
    assert Report.of(runs[1:], against="lora").remarks == []
    (line,) = Report.of([make_run([[0.5]], "lora", seed=9), *runs[2:]], against="joint").remarks
    assert line == f"{words}lora − joint."
    many = Report.of([make_run([[0.5]], f"m{seed}", seed=seed) for seed in range(6)])
    assert many.remarks[0].endswith(" and 5 others.")


def test_latex_takes_no_name_for_a_command(two_seeds: list[Result], make_run: MakeRun) -> None:
    """After a line's end a bracket would be its height, and a star its kind; a minus is longer than a hyphen."""
    partial = [make_run([[0.25]], tasks=2, path=Path(f"{each}-1"), seed=4) for each in "[*"]
    text = to_text(Report.of([*two_seeds, *partial], against="sd_lora"), "latex")
    assert "\n{[}-1 & 4 & 1 of 2 tasks & 25.0 \\\\\n{*}-1 & 4 &" in text
    (line,) = (line for line in text.splitlines() if line.startswith(r"o\_lora $-$ sd\_lora & "))
    assert " $-$" in line.partition(" & ")[2]
    assert not re.search(r"(?<![\w$])-\d", line)
