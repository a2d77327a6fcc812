"""The table of a comparison: a row for each method, mean ± standard deviation over its seeds."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from lorica import published
from lorica.errors import LoricaError
from lorica.metrics import MEASURES
from lorica.nested import flatten
from lorica.results import COSTS, Result
from lorica.terminal import printable

CAPTION = (
    "Percent; mean ± sample standard deviation over seeds. Trained: parameters at the task that trains most, head "
    "included. Stored: floats after it. GFLOPs and passes through the backbone: per prediction."
)
LEFT_OUT = "Left out, "
"""How a note begins on a run that is in no row."""

OF_ERROR = CAPTION.replace("sample standard deviation over seeds", "standard error of the mean over seeds")
INCIDENTAL = (
    "seed",
    "device",
    "checkpoints",
    "snapshot_seconds",
    "track",
    "data.root",
    "data.cache_gib",
    "stream.manifest",
    "backbone.weights",
    "evaluate.readout",
    "evaluate.layers",
    "evaluate.drift",
)
"""Keys of a recipe in which runs of one row may differ, or that a run's label says (`Metrics.label`)."""

PUBLISHED = "Published Acc / AAA"
"""Over what `lorica.published` has beside a row."""

_WIDE = 112
"""Columns of a terminal from which on a row with a variant in its name takes one line."""

_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "–": "--",
    "−": "$-$",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",
    "*": "{*}",
}
"""What LaTeX has for a character. Of these <, > and | are others in its first encoding; a bracket or a star that begins
a cell would belong to the line before it."""


@dataclass(frozen=True)
class Spread:
    """Mean, sample standard deviation (n - 1 in the denominator) and standard error of the mean (that over the root of
    n; both None for a single value), fractions, of a number n of values."""

    mean: float
    std: float | None
    error: float | None = None
    number: int = 1

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of at least one value."""
        if len(values) < 2:
            return cls(fmean(values), None)
        std = stdev(values)
        return cls(fmean(values), std, std / len(values) ** 0.5, len(values))

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % confidence interval of the mean, mean ± t(0.975; n - 1) error with Student's t; None for a single
        value."""
        if self.error is None:
            return None
        from scipy.special import stdtrit  # half a second, which other tables do without

        half = float(stdtrit(self.number - 1, 0.975)) * self.error
        return self.mean - half, self.mean + half

    def percent(self, plus_minus: str = "±", *, error: bool = False) -> str:
        """In percent with one decimal: "81.3 ± 0.4" with the deviation, or the standard `error`; "81.3" for a single
        value."""
        mean, spread = f"{100 * self.mean:z.1f}", self.error if error else self.std
        return mean if spread is None else f"{mean} {plus_minus} {100 * spread:.1f}"


def compact(number: int | float) -> str:
    """Three digits at the most, for people: "66", "96.4k", "7.53M"."""
    unit, size = next(
        ((unit, size) for unit, size in (("", 1), ("k", 1e3), ("M", 1e6)) if number < 999.5 * size), ("G", 1e9)
    )
    return f"{number / size:#.3g}{unit}".replace(".k", "k").replace(".M", "M") if unit else f"{number:.0f}"


@dataclass(frozen=True)
class Row:
    """Complete runs that differ in their seeds only, and the spread of each measure over the seeds.

    `label` is for people; `extra` is what `by` of `summarise` gave; `tasks` and `classes` are numbers of them;
    `spreads` has each of `lorica.metrics.MEASURES` by its name, and "hter" where all runs have it; `by_seed` has the
    runs of each seed, of which there are several where a run was made, or its folder copied, again: their mean is one
    value in a spread.
    """

    label: str
    method: str
    variant: str | None
    extra: str
    tasks: int
    classes: int
    by_seed: tuple[tuple[Result, ...], ...]
    spreads: Mapping[str, Spread]

    @property
    def runs(self) -> tuple[Result, ...]:
        """All of them, seed by seed."""
        return tuple(run for same in self.by_seed for run in same)

    @property
    def seeds(self) -> int:
        """The number of values that each spread is over."""
        return len(self.by_seed)

    def cost(self, name: str) -> int | float | None:
        """The mean of one of `COSTS` over the runs whose ledger has it, exact where they agree; None where none has."""
        values = [run.cost[name] for run in self.runs if run.cost and name in run.cost]
        return (values[0] if len(set(values)) == 1 else fmean(values)) if values else None


def summarise(
    results: Sequence[Result],
    *,
    by: Callable[[Result], str] | None = None,
    sort: str | None = None,
    over: Sequence[str] = (),
) -> list[Row]:
    """Put runs together that differ in their seeds only.

    Runs share a row if method, variant, read-out, the number of tasks, the set of classes and all settings of the
    recipe but seeds of training, device and places on disk are the same, and so are the weights and the data that were
    there. Runs that are not complete are left out; `notes` names them. Where streams or settings in one table differ,
    the labels say which is which.

    Args:
        by: a further label of a run that keeps runs apart, such as the data set or a setting under study.
        sort: one of `lorica.metrics.MEASURES` for the best row first; by default rows keep the order of their first
            run.
        over: further keys of the recipe in which runs of one row may differ.

    Raises:
        LoricaError: `sort` is not a measure.
    """
    if sort is not None and sort not in MEASURES:
        raise LoricaError(f"sort: unknown measure {sort!r}; expected one of {', '.join(MEASURES)}")
    groups: dict[tuple[Any, ...], list[Result]] = {}
    for run in results:
        if run.complete:
            classes = frozenset(name for task in run.tasks for name in task["classes"])
            key = (run.method, run.label, by(run) if by else "", len(run.tasks), classes)
            settings = tuple((name, value) for name, value in settings_of(run).items() if name not in over)
            groups.setdefault((*key, settings), []).append(run)
    one_stream = len({key[3:5] for key in groups}) < 2
    rows = []
    for key, runs in groups.items():
        method, label, extra, tasks, classes, settings = key
        stream = "" if one_stream else f"{len(classes)} classes in {tasks} tasks"
        by_seed: dict[tuple[str, ...], list[Result]] = {}
        for run in runs:
            own = dict(flatten(run.recipe))
            by_seed.setdefault((str(run.seed), *(str(own.get(each)) for each in over)), []).append(run)
        told_apart = _told_apart(dict(settings), [dict(other[5]) for other in groups if other[:5] == key[:5]])
        rows.append(
            Row(
                label=", ".join(filter(None, (label, extra, *told_apart, stream))),
                method=method,
                variant=runs[0].variant,
                extra=extra,
                tasks=tasks,
                classes=len(classes),
                by_seed=tuple(map(tuple, by_seed.values())),
                spreads={
                    name: Spread.of([fmean(getattr(run, name) for run in same) for same in by_seed.values()])
                    for name in (*MEASURES, *(["hter"] if all(run.hter is not None for run in runs) else []))
                },
            )
        )
    if sort:
        rows.sort(key=lambda row: row.spreads[sort].mean, reverse=not MEASURES[sort].lower_is_better)
    return rows


def _told_apart(own: Mapping[str, str], rivals: Sequence[Mapping[str, str]]) -> list[str]:
    """In which settings a row is not as most of its rivals, of which it is one; no two of them say the same.

    What most of them share goes without saying: one row is the method, the others what was changed in it. A run older
    than a key does not have it.
    """
    half = len(rivals) / 2
    names = dict.fromkeys(name for rival in rivals for name in rival)
    return [
        f"{name}={value}" for name, value in own.items() if sum(rival.get(name) == value for rival in rivals) <= half
    ] + [f"without {name}" for name in names if name not in own and sum(name not in rival for rival in rivals) < half]


def notes(
    results: Sequence[Result], *, by: Callable[[Result], str] | None = None, over: Sequence[str] = ()
) -> list[str]:
    """What a reader of the table of `results` must know: the runs left out, seeds that are there twice, and whose
    published numbers stand beside ours."""
    lines = [
        f"{LEFT_OUT}not complete: {_name(run)} ({len(run.accuracy)} of {len(run.tasks)} tasks)."
        for run in results
        if not run.complete
    ]
    rows = summarise(results, by=by, over=over)
    for row in rows:
        for same in row.by_seed:
            if len(same) > 1:
                lines.append(
                    f"Seed {same[0].seed} of {row.label} is there {len(same)} times, and its mean counts once: "
                    f"{', '.join(map(_name, same))}."
                )
    lengths = [row.cost("tokens_per_prediction") for row in rows]
    for length in dict.fromkeys(each for each in lengths if each):
        of_it = [row.label for row, each in zip(rows, lengths, strict=True) if each == length]
        whose = "" if len(of_it) == len(rows) else f" of {', '.join(of_it)}"
        lines.append(f"GFLOPs{whose}: of a text of {length} tokens.")
    if by_domain := [row.label for row in rows if row.runs[0].averaged_over("acc") == "domains"]:
        which = "" if len(by_domain) == len(rows) else f" of {', '.join(dict.fromkeys(by_domain))}"
        lines.append(f"Accuracies{which} are means over domains.")
    if any("hter" in row.spreads for row in rows):
        lines.append("HTER: half total error rate of two classes, the mean over tasks of that of their errors.")
    return lines + published.remarks([row.runs for row in rows])


def properties(rows: Sequence[Row]) -> Table:
    """The three properties of SD-LoRA's Table 1, each as it was measured; "–" where a run is older than the measure.

    Rehearsal-free: nothing is stored that was computed from features of training images. One pass: a prediction takes
    one through the backbone. End-to-end: the logits alone can train all that the last task trained, and rest on no such
    statistics.
    """
    table = Table("Method", "Rehearsal-free", "One pass", "End-to-end", "Stored features", box=box.SIMPLE_HEAD)
    for row in rows:
        features, passes, end_to_end = map(row.cost, ("stored_features", "forwards_per_prediction", "end_to_end"))
        held = [features if features is None else not features, passes if passes is None else passes <= 1, end_to_end]
        answers = ("–" if each is None else "yes" if each else "no" for each in held)
        table.add_row(Text(row.label), *answers, "–" if features is None else compact(features))
    return table


def to_rich(
    rows: Sequence[Row], notes: Sequence[str] = (), *, width: int = _WIDE, encoding: str = "utf-8", error: bool = False
) -> Table:
    """A table for a terminal of that many columns and that encoding, in percent, with the notes below it; spreads are
    standard `error`s if asked.

    On a narrow one names and spreads take two lines, and columns stand closer.
    """
    header, *body = _cells(rows, error=error)
    measures = _headings(rows).values()
    narrow = width < _WIDE
    table = Table(
        caption=Text(printable("\n".join([OF_ERROR if error else CAPTION, *notes]), encoding)),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        collapse_padding=not narrow,
        padding=0 if narrow else (0, 1),
        pad_edge=False,
        show_edge=False,
    )
    table.add_column(header[0], overflow="fold", no_wrap=narrow)
    for heading in header[1:]:
        broken = heading.replace("Forgetting", "Forget-\nting").replace(" ", "\n")
        # on a narrow terminal cells break after ±, and nothing is cut off
        table.add_column(broken, justify="right", no_wrap=heading not in measures, overflow="fold")
    for label, *line in body:
        name = label.replace(" (", "\n(").replace(", ", ",\n") if narrow else label
        table.add_row(*(Text(printable(cell, encoding)) for cell in (name, *line)))
    return table


def to_markdown(
    rows: Sequence[Row],
    notes: Sequence[str] = (),
    columns: Mapping[str, Callable[[Row], str]] | None = None,
    *,
    error: bool = False,
) -> str:
    """A Markdown table, in percent, with the notes below it; `columns` are further ones, what a row has there by
    heading."""
    header, *body = _cells(rows, error=error)
    for heading, cell in (columns or {}).items():
        header.append(heading)
        for row, line in zip(rows, body, strict=True):
            line.append(cell(row))
    rule = ["---", *["---:"] * (len(header) - 1)]
    lines = [" | ".join(cell.replace("|", r"\|") for cell in line) for line in (header, rule, *body)]
    return (
        "\n".join(
            [f"| {line} |" for line in lines] + ["", OF_ERROR if error else CAPTION] + [f"\n{note}" for note in notes]
        )
        + "\n"
    )


def to_latex(
    rows: Sequence[Row],
    notes: Sequence[str] = (),
    columns: Mapping[str, Callable[[Row], str]] | None = None,
    *,
    error: bool = False,
) -> str:
    r"""A LaTeX tabular, in percent, that needs \usepackage{booktabs}; the notes are comments below it. `columns` as in
    `to_markdown`."""
    header, *body = _cells(rows, r"\pm", "--", error=error)
    costs = 2 + len(_headings(rows))
    lines = [
        [escaped(line[0]), line[1], *(f"${cell}$" for cell in line[2:costs]), *map(escaped, line[costs:])]
        for line in body
    ]
    for heading, cell in (columns or {}).items():
        header.append(escaped(heading))
        for row, line in zip(rows, lines, strict=True):
            line.append(escaped(cell(row)))
    return "\n".join(
        [
            rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}",
            r"\toprule",
            " & ".join(header) + r" \\",
            r"\midrule",
            *(" & ".join(line) + r" \\" for line in lines),
            r"\bottomrule",
            r"\end{tabular}",
            *(f"% {note}" for note in (OF_ERROR if error else CAPTION, *notes)),
            "",
        ]
    )


def to_csv(rows: Sequence[Row]) -> str:
    """For other programs: every measure at full precision, as fractions, and costs as they were measured,
    flops_per_prediction in FLOPs.

    A field is empty where there is no deviation (_std) and error (_error), or no cost.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    measures = [*MEASURES, *(["hter"] if any("hter" in row.spreads for row in rows) else [])]
    spreads = [column for name in measures for column in (name, f"{name}_std", f"{name}_error")]
    writer.writerow(
        ["label", "method", "variant", "extra", "tasks", "classes", "seeds", *spreads, *COSTS, "stored_features"]
    )
    for row in rows:
        known = [row.spreads.get(name) for name in measures]
        values = [value for each in known for value in ((each.mean, each.std, each.error) if each else [None] * 3)]
        values += [row.cost(name) for name in (*COSTS, "stored_features")]
        writer.writerow([row.label, row.method, row.variant, row.extra, row.tasks, row.classes, row.seeds, *values])
    return text.getvalue()


def _cells(rows: Sequence[Row], plus_minus: str = "±", missing: str = "–", *, error: bool = False) -> list[list[str]]:
    """The heading and a line for each row: label, seeds, a cell for each measure and each cost, and what others have
    published of the same protocol, where there is such a number."""
    headings = _headings(rows)
    lines = [["Method", "Seeds", *headings.values(), *COSTS.values()]] + [
        [
            row.label,
            str(row.seeds),
            *(
                row.spreads[name].percent(plus_minus, error=error) if name in row.spreads else missing
                for name in headings
            ),
            *(_cost_cell(name, row.cost(name), missing) for name in COSTS),
        ]
        for row in rows
    ]
    numbers = [published_beside(row) for row in rows]
    if any(numbers):
        for line, cell in zip(lines, [PUBLISHED, *(each or missing for each in numbers)], strict=True):
            line.append(cell)
    return lines


def published_beside(row: Row) -> str:
    """What others have published of a row's protocol, as "77.3 / 82.0"; nothing where there is none."""
    return ", ".join(number.shown for number in published.beside(row.runs)[0])


def _headings(rows: Sequence[Row]) -> dict[str, str]:
    """The measures that tables for people show, by name."""
    shown = {name: measure.heading for name, measure in MEASURES.items() if measure.heading}
    return shown | ({"hter": "HTER"} if any("hter" in row.spreads for row in rows) else {})


def _cost_cell(name: str, value: int | float | None, missing: str) -> str:
    if value is None:
        return missing
    if name == "flops_per_prediction":
        return f"{value / 1e9:.4g}"
    return f"{value:.3g}" if name == "forwards_per_prediction" else compact(value)


def settings_of(run: Result) -> dict[str, str]:
    """The recipe's settings by dotted key, in order, without those that a comparison may ignore."""
    settings = {key: str(value) for key, value in flatten(run.recipe) if key not in INCIDENTAL}
    return dict(sorted((settings | {f"{key} contents": str(value) for key, value in run.identity.items()}).items()))


def _name(run: Result) -> str:
    return str(run.path) if run.path else f"{run.label}, seed {run.seed}"


def escaped(text: str) -> str:
    """A text as LaTeX shows it."""
    return re.sub(r"[\\~^&%$#_{}±–−<>|]|^[\[*]", lambda special: _LATEX.get(special[0], "\\" + special[0]), text)
