"""Figures fit for a paper: readable in grey, safe for the colour-blind, nothing drawn over the data.

Every function returns a `matplotlib.figure.Figure` of its own, without pyplot and without touching the caller's
matplotlib settings. Figures are in percent, and tasks are numbered from 1. A figure of several runs shows what a table of
them does (see `lorica.report.tables.summarise`): complete runs only, a line for each row, and it raises LoricaError if no
run is complete.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from lorica.errors import LoricaError
from lorica.report.tables import Row, summarise
from lorica.results import Result, replacing

_paper = rc_context(
    {
        "font.size": 9,
        "legend.fontsize": 8.5,
        "legend.frameon": False,
        "legend.handlelength": 3.2,
        "axes.titlesize": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "grid.color": "0.9",
        "lines.linewidth": 1.4,
        "lines.markersize": 5.5,
        "pdf.fonttype": 42,  # TrueType: what publishers accept
    }
)
_WIDTH = 5.5  # inches, the text width of the usual conference styles
_STEMS = 60  # at most, beside each other in one panel of accuracy_per_task

# Okabe and Ito's palette without its yellow. The lengths 7, 8 and 4 make the first 56 combinations differ.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
_LINES = ("-", "--", "-.", ":")


@_paper
def accuracy_curves(results: Sequence[Result], *, by: Callable[[Result], str] | None = None) -> Figure:
    """Average accuracy over the tasks seen so far, 1/(t+1) sum_{i<=t} a[t][i], after each task t.

    A line for each method: the mean over seeds, with a band of ± one sample standard deviation where there are several.
    """
    rows = _rows(results, by)
    figure, axes = _axes(3.0)
    for index, row in enumerate(rows):
        curves = 100 * np.array([[np.mean(accuracies) for accuracies in run.accuracy] for run in row.runs])
        tasks, mean = np.arange(1, row.tasks + 1), curves.mean(axis=0)
        look = _look(index)
        axes.plot(tasks, mean, linestyle=_LINES[index % len(_LINES)], label=row.label, **look)
        if row.seeds > 1:
            std = curves.std(axis=0, ddof=1)
            axes.fill_between(tasks, mean - std, mean + std, color=look["color"], alpha=0.15, linewidth=0)
    axes.grid(axis="y")
    _number_tasks(axes, 1, max(row.tasks for row in rows))
    axes.set(xlabel="tasks learned", ylabel="average accuracy (%)")
    _legend(figure, axes.lines)
    return figure


@_paper
def accuracy_per_task(results: Sequence[Result], *, by: Callable[[Result], str] | None = None) -> Figure:
    """Which tasks were forgotten: accuracy on each task after the last one, a[T-1][i], means over seeds.

    A stem joins each marker to the accuracy on the same task when it was new, a[i][i]. Many tasks go in several panels.
    """
    rows = _rows(results, by)
    number = max(row.tasks for row in rows)
    per_panel = max(1, _STEMS // len(rows))
    starts = range(1, number + 1, per_panel)
    figure = Figure(figsize=(_WIDTH, 1.2 + 1.6 * len(starts)), layout="constrained")
    panels: list[Axes] = list(figure.subplots(len(starts), sharey=True, squeeze=False).flat)
    handles = []
    for index, row in enumerate(rows):
        look = _look(index)
        last = 100 * np.mean([run.accuracy[-1] for run in row.runs], axis=0)
        new = 100 * np.mean([[accuracies[-1] for accuracies in run.accuracy] for run in row.runs], axis=0)
        tasks = np.arange(1, row.tasks + 1) + 0.8 * ((index + 0.5) / len(rows) - 0.5)
        for axes in panels:  # each draws everything and shows its own part
            axes.vlines(tasks, last, new, color=look["color"], linewidth=1, alpha=0.6)
            axes.plot(tasks, new, linestyle="none", marker="_", color=look["color"])
            handle = axes.plot(tasks, last, linestyle="none", label=row.label, **look)
        handles += handle
    for axes, start in zip(panels, starts, strict=True):
        for task in range(start + start % 2, start + per_panel, 2):
            axes.axvspan(task - 0.5, task + 0.5, color="0.955", linewidth=0, zorder=0)
        _number_tasks(axes, start, min(start + per_panel - 1, number))
        axes.set(xlim=(start - 0.5, start - 0.5 + min(per_panel, number)), ylabel="accuracy (%)")
    panels[0].set_title("marker: after the last task;  bar: when the task was new")
    panels[-1].set_xlabel("task")
    _legend(figure, handles)
    return figure


@_paper
def accuracy_matrix(result: Result) -> Figure:
    """The accuracy matrix of one run as a heat map on a scale of 0 to 100 %, with numbers up to 12 tasks."""
    number = len(result.accuracy)
    matrix: Float[np.ndarray, "tasks tasks"] = np.full((number, number), np.nan)
    for t, row in enumerate(result.accuracy):
        matrix[t, : t + 1] = 100 * np.array(row)
    figure, axes = _axes(4.4)
    edges = (0.5, number + 0.5, number + 0.5, 0.5)
    image = axes.imshow(matrix, cmap="Blues", vmin=0, vmax=100, extent=edges)
    for t, row in enumerate(result.accuracy if number <= 12 else []):
        for i, value in enumerate(row):
            colour = "white" if value > 0.6 else "black"
            axes.text(i + 1, t + 1, f"{100 * value:.1f}", ha="center", va="center", color=colour, fontsize=7.5)
    _number_tasks(axes, 1, number)
    axes.set_yticks(axes.get_xticks())
    axes.set(xlabel="task tested", ylabel="tasks learned", title=_title(result))
    figure.colorbar(image, label="accuracy (%)", shrink=0.8)
    return figure


@_paper
def magnitudes(result: Result) -> Figure | None:
    """The learned magnitudes alpha_k against k: dark after the last task, lighter after earlier ones.

    None for a method that has none.
    """
    if not result.magnitudes:
        return None
    number = len(result.magnitudes)
    shades = ListedColormap(colormaps["Blues"](np.linspace(1, 0.25, number)[::-1]))
    figure, axes = _axes(3.0)
    for t, row in enumerate(result.magnitudes):
        last = t == number - 1
        axes.plot(
            np.arange(1, len(row) + 1),
            row,
            color=shades(t),
            marker="o",
            markersize=5 if last else 2.5 * (number <= 12),
            linewidth=2 if last else 1,
        )
    axes.grid(axis="y")
    _number_tasks(axes, 1, number)
    axes.set(xlabel="direction $k$", ylabel=r"magnitude $\alpha_k$", title=_title(result))
    if number > 1:
        norm = BoundaryNorm(np.arange(0.5, number + 1), number)
        bar = figure.colorbar(ScalarMappable(norm, shades), ax=axes, label="after task")
        bar.locator = MaxNLocator(integer=True)
        bar.minorticks_off()
    return figure


@_paper
def save(figure: Figure, stem: Path) -> list[Path]:
    """Write `stem`.pdf and `stem`.png (200 dpi), each atomically, creating the folder; returns both paths.

    Raises:
        LoricaError: the system refuses to write there.
    """
    try:
        stem.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LoricaError(f"{stem.parent}: cannot be made a folder for figures: {error.strerror or error}") from error
    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in ("pdf", "png")]
    for path in paths:
        with replacing(path) as file:
            figure.savefig(file, format=path.suffix[1:], dpi=200)
    return paths


def draw_all(results: Sequence[Result], folder: Path, *, by: Callable[[Result], str] | None = None) -> list[Path]:
    """Draw every figure there is to draw and save it in `folder`; returns the paths written.

    Figures of several runs show the complete ones. Each run, complete or not, has its matrix and magnitudes, under its
    labels and seed where there are several runs.
    """
    paths = []
    if any(run.complete for run in results):
        paths += save(accuracy_curves(results, by=by), folder / "accuracy_curves")
        paths += save(accuracy_per_task(results, by=by), folder / "accuracy_per_task")
    stems: Counter[str] = Counter()
    for run in results:
        stem = "" if len(results) == 1 else "_" + re.sub(r"\W+", "_", f"{_title(run)} {by(run) if by else ''}".strip())
        stems[stem] += 1
        if stems[stem] > 1:
            stem += f"_run_{stems[stem]}"
        paths += save(accuracy_matrix(run), folder / f"accuracy_matrix{stem}")
        if figure := magnitudes(run):
            paths += save(figure, folder / f"magnitudes{stem}")
    return paths


def _rows(results: Sequence[Result], by: Callable[[Result], str] | None) -> list[Row]:
    rows = summarise(results, by=by)
    if not rows:
        raise LoricaError("nothing to draw: expected at least one run that has learned all of its tasks")
    return rows


def _axes(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    return figure, figure.add_subplot()


def _look(index: int) -> dict[str, Any]:
    return {
        "color": _COLOURS[index % len(_COLOURS)],
        "marker": _MARKERS[index % len(_MARKERS)],
        "markeredgecolor": "white",
        "markeredgewidth": 0.4,
    }


def _number_tasks(axes: Axes, first: int, last: int) -> None:
    """Ticks for the tasks `first` … `last` on the x axis: all, or those divisible by 2, 5, 10, …, at most 12 of them."""
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, last) if last - first < 12 * step)
    axes.set_xticks(range(first + -first % step, last + 1, step))


def _legend(figure: Figure, handles: Sequence[Line2D]) -> None:
    """Below the axes, in as many columns as fit, with height of its own."""
    longest = max(len(str(handle.get_label())) for handle in handles)
    columns = max(1, min(len(handles), 78 // (longest + 10)))
    figure.set_figheight(figure.get_figheight() + 0.18 * -(-len(handles) // columns))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns)


def _title(result: Result) -> str:
    return f"{result.label}, seed {result.seed}"
