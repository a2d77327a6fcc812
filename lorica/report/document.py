"""All that a report of runs says, and the same in Markdown, LaTeX and CSV; `lorica.report.html` makes the page of it.

Runs of one benchmark stand in one table, a row for each method with the runs that differ by chance alone, the seed of
training and the order of the classes. Runs that are not complete are listed with what they have learned, and are in no
mean.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorica.errors import LoricaError
from lorica.metrics import MEASURES
from lorica.nested import flatten
from lorica.ownership import TIDY
from lorica.report.comparison import ORDER, Difference, benchmark_of, compare, named, without_pairs
from lorica.report.tables import Row, Spread, compact, escaped, notes, summarise, to_latex, to_markdown
from lorica.results import COSTS, Result

Columns = Mapping[str, Callable[[Row], str]]
"""Further columns of a table, as `lorica.report.tables.to_markdown` takes them: what a row has there, by heading."""

SHOWN = {
    "acc": "Acc",
    "acc_samples": "Acc by sample",
    "aaa": "AAA",
    "aaa_samples": "AAA by sample",
    "forgetting": "Forgetting",
    "new_task": "New task",
}
"""The measures of `lorica.metrics.MEASURES` that a report has, and their headings."""

RATES = {"hter": "HTER"}
"""What else a report has of runs that know it, in percent, and the headings. The less the better."""

SPENT = {**COSTS, "train_seconds": "Training (s)"}
"""The costs that a report has, and their headings."""

_BY_SAMPLE: Columns = {
    heading: lambda row, name=name: row.spreads[name].percent()
    for name, heading in SHOWN.items()
    if not MEASURES[name].heading
}
"""What `lorica.report.tables` leaves to programs."""

EXPLAINED = (
    "Percent. Runs differ in the seed of training and the order of the classes; ± and intervals are over them. "
    "95 % intervals are Student's, of the mean; a single run has none.",
    "Differences are over pairs of runs that share seed, class order, data and weights, with 95 % intervals for one "
    "comparison each; a single pair has none.",
)


_NAMED = 10  # comparisons that cannot be made

_MINUS = re.compile(r"(?<![\w.])-(?=\d)")
"""Before a number; a hyphen, which LaTeX would set, is shorter."""


@dataclass(frozen=True)
class Benchmark:
    """Runs on the same classes, data and weights: a row for each method, what rows differ by (`against` one of them, if
    there is one), and all runs, the partial ones too."""

    title: str
    rows: list[Row]
    differences: list[Difference]
    against: Row | None
    runs: list[Result]

    @property
    def partial(self) -> list[Result]:
        """Those that have not learned all tasks."""
        return [run for run in self.runs if not run.complete]


@dataclass(frozen=True)
class Report:
    """What a report of runs says: see the top of this file. `remarks` are lines that a reader must know."""

    benchmarks: list[Benchmark]
    remarks: list[str]
    columns: Columns

    @classmethod
    def of(cls, results: Sequence[Result], *, against: str | None = None, columns: Columns | None = None) -> Report:
        """The report of some runs.

        Args:
            against: the label or the method of a row, with which alone the others are compared.
            columns: further ones of each summary.

        Raises:
            LoricaError: no row is called so, or several of one benchmark are.
        """
        groups: dict[str, list[Result]] = {}
        for run in results:
            groups.setdefault(benchmark_of(run), []).append(run)
        titles = [_title(runs[0]) for runs in groups.values()]
        benchmarks, labels, apart = [], list[str](), list[str]()
        for runs, title in zip(groups.values(), titles, strict=True):
            rows = summarise(runs, over=(ORDER,))
            labels += [row.label for row in rows]
            told = f" ({contents_of(runs[0])})" if titles.count(title) > 1 else ""
            rival = None if against is None else named(rows, against)
            differences = compare(rows, rival) if rival or against is None else []
            if rival or against is None:
                apart += [f"{row.label} − {other.label}" for row, other in without_pairs(rows, rival)]
            benchmarks.append(Benchmark(title + told, rows, differences, rival, runs))
        if against is not None and not any(each.against for each in benchmarks):
            known = ", ".join(dict.fromkeys(map(repr, labels))) or "none: no run is complete"
            raise LoricaError(f"--against: no row is called {against!r}; expected one of {known}")
        remarks = [
            line for runs in groups.values() for line in notes([run for run in runs if run.complete], over=(ORDER,))
        ]
        if apart:
            more = f" and {len(apart) - _NAMED} others" if len(apart) > _NAMED else ""
            remarks.append(
                f"Not compared, since no two runs share the seed and the order: {', '.join(apart[:_NAMED])}{more}."
            )
        return cls(benchmarks, remarks, {**_BY_SAMPLE, **(columns or {})})


def spreads_of(row: Row) -> dict[str, Spread]:
    """Over the runs of a row, each of `SHOWN` and known ones of `RATES` as fractions, and each of `SPENT` that is known
    of one of them."""
    spreads = {name: row.spreads[name] for name in (*SHOWN, *RATES) if name in row.spreads}
    for name in SPENT:
        if values := [value for run in row.runs if (value := spent(run, name)) is not None]:
            spreads[name] = Spread.of(values)
    return spreads


def spent(run: Result, name: str) -> float | None:
    """One of `SPENT` of a run; None where it is older than the measure."""
    known = {"train_seconds": sum(run.train_seconds)} if run.train_seconds else {}
    known |= run.cost or {}
    return float(known[name]) if name in known else None


def to_text(report: Report, form: str) -> str:
    """The report as "markdown", "latex" (tabulars that need booktabs) or "csv" (a line for each row, or two rows, and
    measure)."""
    if form == "csv":
        return _csv(report)
    return "\n".join(_markdown(report) if form == "markdown" else _latex(report))


def _markdown(report: Report) -> Iterator[str]:
    for benchmark in report.benchmarks:
        yield f"## {benchmark.title}\n"
        if benchmark.rows:
            yield to_markdown(benchmark.rows, columns=report.columns)
        for title, (header, *body) in _further(benchmark):
            yield f"### {title}\n"
            rule = ["---", *["---:"] * (len(header) - 1)]
            for line in (header, rule, *body):
                yield "| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |"
            yield ""
    for line in (*EXPLAINED, *report.remarks):
        yield f"{line}\n"


def _latex(report: Report) -> Iterator[str]:
    for benchmark in report.benchmarks:
        yield f"% {benchmark.title}"
        if benchmark.rows:
            yield to_latex(benchmark.rows, columns=report.columns)
        for title, (header, *body) in _further(benchmark):
            yield f"% {title}"
            yield rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}"
            yield r"\toprule"
            for number, line in enumerate((header, *body)):
                signed = (_MINUS.sub("−", cell) for cell in line[1:])  # the first is a name
                yield " & ".join(map(escaped, (line[0], *signed))) + r" \\"
                if number == 0:
                    yield r"\midrule"
            yield r"\bottomrule"
            yield "\\end{tabular}\n"
    for line in (*EXPLAINED, *report.remarks):
        yield f"% {line}"
    yield ""


def _further(benchmark: Benchmark) -> Iterator[tuple[str, list[list[str]]]]:
    """The tables below the first one, each with its heading and with a line of headings."""
    lines = [
        [row.label, (SHOWN | RATES | SPENT)[name], str(spread.number), *_written(name, spread)]
        for row in benchmark.rows
        for name, spread in spreads_of(row).items()
        if spread.std or (name not in SPENT and spread.number > 1)  # the first table has a cost that is always the same
    ]
    if lines:
        yield "Spread", [["Method", "Measure", "Runs", "Mean", "Deviation", "Error", "95 % interval"], *lines]
    if benchmark.differences:
        lines = [
            [
                f"{each.row.label} − {each.against.label}",
                str(each.pairs),
                *(_signed(each.spreads[name]) for name in SHOWN),
            ]
            for each in benchmark.differences
        ]
        yield "Paired differences", [["Difference", "Pairs", *SHOWN.values()], *lines]
    if benchmark.partial:
        lines = [
            [
                name_of(run),
                str(run.seed),
                f"{len(run.accuracy)} of {len(run.tasks)} tasks",
                f"{100 * run.acc:.1f}",
            ]
            for run in benchmark.partial
        ]
        yield "Not complete, and in no row above", [["Run", "Seed", "Learned", "Acc so far"], *lines]


def _csv(report: Report) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(TIDY.split(","))
    for benchmark in report.benchmarks:
        found = [(row.label, "", spreads_of(row)) for row in benchmark.rows]
        found += [(each.row.label, each.against.label, each.spreads) for each in benchmark.differences]
        for label, against, spreads in found:
            for name, spread in spreads.items():
                low, high = spread.interval or (None, None)
                values = [spread.number, spread.mean, spread.std, spread.error, low, high]
                writer.writerow([benchmark.title, label, against, name, *values])
    return text.getvalue()


def _written(name: str, spread: Spread) -> list[str]:
    """Mean, deviation, error and interval, in percent or in the unit of a cost."""

    def number(value: float) -> str:
        if name not in SPENT:
            return f"{100 * value:z.2f}"
        if name == "flops_per_prediction":
            return f"{value / 1e9:.4g}"
        return compact(value) if name in ("trainable", "stored") else f"{value:.4g}"

    low_high = " to ".join(map(number, spread.interval)) if spread.interval else "–"
    return [
        number(spread.mean),
        *("–" if each is None else number(each) for each in (spread.std, spread.error)),
        low_high,
    ]


def _signed(spread: Spread) -> str:
    mean = f"{100 * spread.mean:+z.1f}"
    if not spread.interval:
        return mean
    low, high = (f"{100 * each:z.1f}" for each in spread.interval)
    return f"{mean} [{low}, {high}]"


def name_of(run: Result) -> str:
    """The folder of a run, or what it is called."""
    return str(run.path) if run.path else run.label


def _title(run: Result) -> str:
    recipe: dict[str, Any] = dict(flatten(run.recipe))
    source, root = recipe.get("data.source", "unknown data"), recipe.get("data.root")
    where = f" ({Path(str(root)).name})" if root else ""
    classes = len({name for task in run.tasks for name in task["classes"]})
    number = len(run.tasks)
    backbone = f", {recipe['backbone.name']}" if "backbone.name" in recipe else ""
    return f"{source}{where}: {classes} classes in {number} task{'' if number == 1 else 's'}{backbone}"


def contents_of(run: Result) -> str:
    """Which weights and data a run had, by digests of their contents."""
    digests = [f"{what} {digest}" for what, digest in run.identity.items()]
    return ", ".join(digests) or "contents of data and weights not noted"
