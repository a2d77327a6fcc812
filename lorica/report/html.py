"""A report as one HTML page that needs nothing else: no network, no library, and nothing in it but text, numbers and
our own script.

All that runs say (names, paths, recipes) is data in JSON, which the script puts in place as text. The page's own policy
forbids every other script, every request, and every style but its own.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import resources
from itertools import groupby
from statistics import fmean, stdev
from typing import Any

from lorica.environment import package_version
from lorica.errors import LoricaError
from lorica.files import RunFolder
from lorica.metrics import MEASURES
from lorica.ownership import recipe_text
from lorica.reading import read_json
from lorica.report.comparison import order_of
from lorica.report.document import (
    EXPLAINED,
    RATES,
    SHOWN,
    SPENT,
    Benchmark,
    Report,
    contents_of,
    name_of,
    spent,
    spreads_of,
)
from lorica.report.tables import CAPTION, PUBLISHED, Row, Spread, published_beside
from lorica.results import Look, Result, read_confusion, read_history
from lorica.terminal import visible

LIMIT = 4_500_000
"""Bytes of what is known of single runs; those that come after them are in the tables alone, and the page names
them."""

_TASKS = 200  # of a matrix that is drawn whole
_POINTS = 500  # of a run's loss terms
_NUMBERS = 20_000  # of one diagnostic
_CONFUSED = 5_000  # pairs of classes
_MACHINE = ("lorica", "python", "torch", "timm", "device", "gpu", "git_revision", "lorica_revision")
_PART = re.compile(r"\{\{(\w+)\}\}")


def to_html(report: Report, *, title: str = "lorica report", limit: int = LIMIT) -> str:
    """The page.

    Args:
        limit: see `LIMIT`.
    """
    page = _Page(limit)
    data = page.content(report)
    style, script = (_file(name) for name in ("report.css", "report.js"))
    policy = (
        f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    parts = {
        "policy": policy,
        "title": html.escape(visible(title, keep="")),
        "style": style,
        "script": script,
        # within a script element, "<" alone could end it, or begin a comment
        "data": json.dumps(_shown(data), ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace(
            "<", "\\u003c"
        ),
    }
    return _PART.sub(lambda place: parts[place[1]], _file("report.html"))


class _Page:
    """What a page says, as plain values, and `left_out`, what it has no room for."""

    def __init__(self, limit: int) -> None:
        self.room = limit
        self.left_out: list[str] = []
        self.classes: list[list[str]] = []  # in the order of their numbers, once for all runs that share it

    def content(self, report: Report) -> dict[str, Any]:
        if any(published_beside(row) for each in report.benchmarks for row in each.rows):
            report = replace(report, columns={**report.columns, PUBLISHED: lambda row: published_beside(row) or "–"})
        benchmarks = [self._benchmark(each, report) for each in report.benchmarks]
        return {
            "lorica": package_version("lorica"),
            "measures": [[name, heading, MEASURES[name].lower_is_better] for name, heading in SHOWN.items()],
            "rates": [[name, heading, True] for name, heading in RATES.items()],
            "costs": list(SPENT.items()),
            "columns": list(report.columns),
            "explained": [CAPTION, *EXPLAINED],
            "remarks": report.remarks,
            "leftOut": self.left_out,
            "classes": self.classes,
            "benchmarks": benchmarks,
        }

    def _benchmark(self, benchmark: Benchmark, report: Report) -> dict[str, Any]:
        first = benchmark.runs[0]
        rows = {id(run): row for row in benchmark.rows for run in row.runs}
        places = {id(row): place for place, row in enumerate(benchmark.rows)}
        return {
            "title": benchmark.title,
            "contents": contents_of(first),
            "tested": sum(task["test"] for task in first.tasks),
            "tasks": len(first.tasks),
            "against": None if benchmark.against is None else places[id(benchmark.against)],
            "rows": [_row(row, report) for row in benchmark.rows],
            "differences": [
                {
                    "row": places[id(each.row)],
                    "against": places[id(each.against)],
                    "pairs": each.pairs,
                    "spreads": {name: _spread(each.spreads[name]) for name in SHOWN},
                }
                for each in benchmark.differences
            ],
            "runs": [self._run(run, rows.get(id(run))) for run in benchmark.runs],
        }

    def _run(self, run: Result, row: Row | None) -> dict[str, Any]:
        known = {
            "label": row.label if row else run.label,
            "name": name_of(run),
            "seed": run.seed,
            "order": order_of(run),
            "learned": len(run.accuracy),
            "tasks": len(run.tasks),
            "measures": {name: _rounded(getattr(run, name)) for name in SHOWN},
            "costs": {name: spent(run, name) for name in SPENT},
        }
        details = dict(self._details(run))
        size = len(json.dumps(details))
        if size > self.room:
            self.left_out.append(f"All but its measures: {name_of(run)}, seed {run.seed}.")
            return known
        self.room -= size
        return known | {"details": details}

    def _details(self, run: Result) -> Iterator[tuple[str, Any]]:
        """What there is to show of one run, by kind; of what cannot be read, why."""
        if len(run.accuracy) <= _TASKS:
            yield "matrix", [[_rounded(value) for value in row] for row in run.accuracy]
        else:
            self.left_out.append(f"The matrix of {len(run.accuracy)} tasks (more than {_TASKS}): {name_of(run)}.")
        if told := {name: rows for name, told in run.diagnostics.items() if (rows := _numbers(told))}:
            yield "diagnostics", told
        try:
            if run.path and (looks := read_history(run.path)):
                yield "terms", _terms(looks)
        except LoricaError as error:
            self.left_out += error.problems
        try:
            if confusion := read_confusion(run):
                if confusion.classes not in self.classes:
                    self.classes.append(confusion.classes)
                counts = sorted(confusion.counts, key=lambda each: (-each[2], each))
                if len(counts) > _CONFUSED:
                    self.left_out.append(
                        f"All but the {_CONFUSED} most frequent of {len(counts)} pairs of classes: {name_of(run)}."
                    )
                yield "confusion", {"classes": self.classes.index(confusion.classes), "counts": counts[:_CONFUSED]}
        except LoricaError as error:
            self.left_out += error.problems
        yield "recipe", recipe_text(_without_places(run.recipe)) if run.recipe else ""
        if run.path:
            yield "machine", _machine(run)


def _without_places(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe without where data and weights were, which is nobody else's business; what they are, contents say."""
    kept = {name: dict(each) if isinstance(each, dict) else each for name, each in recipe.items()}
    for section, key in (("data", "root"), ("backbone", "weights")):
        if isinstance(kept.get(section), dict):
            kept[section].pop(key, None)
    return kept


def _row(row: Row, report: Report) -> dict[str, Any]:
    curves = [run.averages for run in row.runs]
    points = [(task, [curve[task] for curve in curves]) for task in curves[0]]
    return {
        "label": row.label,
        "number": row.seeds,
        "chance": [[run.seed, order_of(run)] for run in row.runs],
        "spreads": {name: _spread(spread) for name, spread in spreads_of(row).items()},
        "columns": [cell(row) for cell in report.columns.values()],
        "curve": [
            [task, _rounded(fmean(values)), _rounded(stdev(values) if len(values) > 1 else 0)]
            for task, values in points
        ],
    }


def _spread(spread: Spread) -> list[int | float | None]:
    """Mean, deviation, error, and half of the interval."""
    half = spread.interval and spread.interval[1] - spread.mean
    return [_rounded(value) for value in (spread.mean, spread.std, spread.error, half)]


def _numbers(rows: Sequence[Any]) -> list[Any] | None:
    """A diagnostic that can be drawn: a number after each task, or some; None for others, and for too many numbers."""
    plain = [row if isinstance(row, list) else [row] for row in rows]
    flat = [value for row in plain for value in row]
    fit = all(value is None or (type(value) in (int, float)) for value in flat)
    if not fit or len(flat) > _NUMBERS or all(value is None for value in flat):
        return None
    return [[_rounded(value) for value in row] if isinstance(row, list) else _rounded(row) for row in rows]


def _terms(looks: Sequence[Look]) -> dict[str, Any]:
    """The mean of each term of the loss, and the learning rate, over the looks of each stage and epoch; over several
    epochs where these are more than `_POINTS`. A row is [task, stage, epoch, rate, a value for each name]."""
    names = list(dict.fromkeys(name for look in looks for name in look.terms))
    epochs = len({(look.task, look.stage, look.epoch) for look in looks})
    wide = -(-epochs // _POINTS)
    rows = []
    for (task, stage, part), own in groupby(looks, lambda look: (look.task, look.stage, look.epoch // wide)):
        some = list(own)
        values = [
            _rounded(fmean(found))
            if (found := [v for look in some if (v := look.terms.get(name)) is not None])
            else None
            for name in names
        ]
        rows.append([task, stage, part * wide, _rounded(fmean(look.learning_rate for look in some)), *values])
    return {"names": names, "epochs": wide, "rows": rows}


def _machine(run: Result) -> dict[str, str]:
    """What the run was computed with."""
    assert run.path
    file = RunFolder(run.path).environment
    try:
        told = read_json(file) if file.exists() else {}
    except LoricaError:  # nothing follows from it
        return {}
    backbone = told.get("backbone")
    tag = {"weights": str(backbone.get("tag"))} if isinstance(backbone, Mapping) else {}
    return {name: str(told[name]) for name in _MACHINE if told.get(name)} | tag


def _rounded(value: int | float | None) -> int | float | None:
    """Six digits, which is more than anybody sees."""
    return value if value is None or isinstance(value, int) else float(f"{value:.6g}")


def _shown(value: Any) -> Any:
    """Plain values whose texts have no character that hides or turns others."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, Mapping):
        return {visible(key): _shown(each) for key, each in value.items()}
    return [_shown(each) for each in value] if isinstance(value, list | tuple) else value


def _file(name: str) -> str:
    return (resources.files("lorica") / "report" / "page" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
