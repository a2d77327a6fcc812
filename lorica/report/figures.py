"""Figures fit for a paper: readable in grey, safe for the colour-blind, nothing drawn over the data.

Every function returns a `matplotlib.figure.Figure` of its own, without pyplot and without touching the caller's
matplotlib settings. Figures are in percent, and tasks are numbered from 1. A figure of several runs shows what a table
of them does (see `lorica.report.tables.summarise`): complete runs only, a line for each row, and it raises LoricaError
if no run is complete.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lorica.errors import LoricaError
from lorica.files import replacing, taken
from lorica.ownership import figure_mark, require_ours
from lorica.report.style import (
    LINES,
    WIDTH,
    axes_of,
    legend_below,
    literal,
    look_of,
    number_tasks,
    paper,
    two_panels,
)
from lorica.report.tables import Row, summarise
from lorica.results import Result

_KINDS = {"pdf": "Creator", "png": "Software"}  # and where such a file says what made it
_STEMS = 60  # at most, beside each other in one panel of accuracy_per_task


@dataclass(frozen=True)
class Distances:
    """How far weights W_i, fine-tuned on one task each, are from each other and from W0; see `lorica.analysis`.

    Attributes:
        label: which weights.
        to_start: ||W_i - W0|| / ||W0||, one for each task.
        between: ||W_i - W_j|| / ||W0||.
        ratios: ||W_i - W_j|| / mean(||W_i - W0||, ||W_j - W0||).
        recipe: what they depend on, plain values.
    """

    label: str
    to_start: list[float]
    between: list[list[float]]
    ratios: list[list[float]]
    recipe: dict[str, Any]


@dataclass(frozen=True)
class Residuals:
    """||X_t - sum_k a_k X_k|| / ||X_t|| of one run's directions; tasks are numbered from 1, `dropped` are the absorbed
    ones."""

    label: str
    tasks: list[int]
    residuals: list[float]
    dropped: list[int]


@dataclass(frozen=True)
class StraightLine:
    """Accuracies, fractions, with the weights (1-s) W_before + s W_after of a task (numbered from 1), for each position
    s.

    `old` is the mean over the tasks before it, `new` is on the task itself.
    """

    label: str
    task: int
    positions: list[float]
    old: list[float]
    new: list[float]


@paper
def accuracy_curves(results: Sequence[Result], *, by: Callable[[Result], str] | None = None) -> Figure:
    """Average accuracy over the tasks seen so far, 1/(t+1) sum_{i<=t} a[t][i], after each task t at which all were
    tested.

    A line for each method: the mean over seeds, with a band of ± one sample standard deviation where there are several.
    """
    rows = _rows(results, by)
    figure, axes = axes_of(3.0)
    for index, row in enumerate(rows):
        curves = 100 * np.array(
            [np.mean([list(run.averages.values()) for run in same], axis=0) for same in row.by_seed]
        )
        tasks, mean = list(row.runs[0].averages), curves.mean(axis=0)
        look = look_of(index)
        axes.plot(tasks, mean, linestyle=LINES[index % len(LINES)], label=literal(row.label), **look)
        if row.seeds > 1:
            std = curves.std(axis=0, ddof=1)
            axes.fill_between(tasks, mean - std, mean + std, color=look["color"], alpha=0.15, linewidth=0)
    axes.grid(axis="y")
    number_tasks(axes, 1, max(row.tasks for row in rows))
    axes.set(xlabel="tasks learned", ylabel="average accuracy (%)")
    legend_below(figure, axes.lines)
    return figure


@paper
def accuracy_per_task(results: Sequence[Result], *, by: Callable[[Result], str] | None = None) -> Figure:
    """Which tasks were forgotten: accuracy on each task after the last one, a[T-1][i], means over seeds.

    A stem joins each marker to the accuracy on the same task when it was new, a[i][i]. Many tasks go in several panels.
    """
    rows = _rows(results, by)
    number = max(row.tasks for row in rows)
    at_most = max(1, _STEMS // len(rows))
    per_panel = ceil(number / ceil(number / at_most))  # 11 tasks as 6 and 5, not as 10 and 1
    starts = range(1, number + 1, per_panel)
    figure = Figure(figsize=(WIDTH, 1.2 + 1.6 * len(starts)), layout="constrained")
    panels: list[Axes] = list(figure.subplots(len(starts), sharey=True, squeeze=False).flat)
    handles = []
    for index, row in enumerate(rows):
        look = look_of(index)
        last = 100 * np.mean([np.array(run.accuracy[-1], dtype=float) for run in row.runs], axis=0)
        new = 100 * np.mean([np.array([each[-1] for each in run.accuracy], dtype=float) for run in row.runs], axis=0)
        tasks = np.arange(1, row.tasks + 1) + 0.8 * ((index + 0.5) / len(rows) - 0.5)
        for axes in panels:  # each draws everything and shows its own part
            axes.vlines(tasks, last, new, color=look["color"], linewidth=1, alpha=0.6)
            axes.plot(tasks, new, linestyle="none", marker="_", color=look["color"])
            handle = axes.plot(tasks, last, linestyle="none", label=literal(row.label), **look)
        handles += handle
    for axes, start in zip(panels, starts, strict=True):
        for task in range(start + start % 2, start + per_panel, 2):
            axes.axvspan(task - 0.5, task + 0.5, color="0.955", linewidth=0, zorder=0)
        number_tasks(axes, start, min(start + per_panel - 1, number))
        axes.set(xlim=(start - 0.5, start - 0.5 + min(per_panel, number)), ylabel="accuracy (%)")
    panels[0].set_title("marker: after the last task;  bar: when the task was new")
    panels[-1].set_xlabel("task")
    legend_below(figure, handles)
    return figure


@paper
def accuracy_matrix(result: Result) -> Figure:
    """The accuracy matrix of one run as a heat map on a scale of 0 to 100 %, with numbers up to 12 tasks."""
    number = len(result.accuracy)
    matrix: Float[np.ndarray, "tasks tasks"] = np.full((number, number), np.nan)
    for t, row in enumerate(result.accuracy):
        matrix[t, : t + 1] = 100 * np.array(row, dtype=float)  # NaN where a task was not tested
    figure, axes = axes_of(4.4)
    edges = (0.5, number + 0.5, number + 0.5, 0.5)
    image = axes.imshow(matrix, cmap="Blues", vmin=0, vmax=100, extent=edges)
    for t, row in enumerate(result.accuracy if number <= 12 else []):
        for i, value in ((i, value) for i, value in enumerate(row) if value is not None):
            colour = "white" if value > 0.6 else "black"
            axes.text(i + 1, t + 1, f"{100 * value:.1f}", ha="center", va="center", color=colour, fontsize=7.5)
    number_tasks(axes, 1, number)
    axes.set_yticks(axes.get_xticks())
    axes.set(xlabel="task tested", ylabel="tasks learned", title=literal(_title(result)))
    figure.colorbar(image, label="accuracy (%)", shrink=0.8)
    return figure


@paper
def confusion(shares: Float[np.ndarray, "rows classes"], rows: Sequence[str], columns: Sequence[str]) -> Figure:
    """What images of each class were taken for, in percent of them.

    Args:
        shares: fractions.
        rows, columns: names of the classes that images are of, and that they can be taken for. More than sixty are
            numbers.
    """
    side = min(12.0, max(WIDTH, 0.22 * len(columns) + 1.5))
    figure = Figure(figsize=(side, max(2.4, side * len(rows) / max(1, len(columns)))), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(100 * shares, cmap="Blues", vmin=0, vmax=100, aspect="auto", interpolation="nearest")
    axes.set_xlabel("taken for")
    axes.set_ylabel("class")
    for axis, names, turned in ((axes.xaxis, columns, 90), (axes.yaxis, rows, 0)):
        if len(names) <= _STEMS:
            axis.set_ticks(range(len(names)), [literal(name[:24]) for name in names], rotation=turned, fontsize=7)
    if len(columns) <= 20:
        for row, column in zip(*np.nonzero(shares >= 0.005), strict=True):
            share = 100 * shares[row, column]
            axes.text(
                column,
                row,
                f"{share:.0f}",
                ha="center",
                va="center",
                fontsize=6,
                color="white" if share > 60 else "black",
            )
    figure.colorbar(image, ax=axes, label="%", shrink=0.8)
    return figure


@paper
def magnitudes(result: Result) -> Figure | None:
    """The learned magnitudes alpha_k against k: dark after the last task, lighter after earlier ones.

    A magnitude of 0 is that of a direction that was dropped: a cross, and no part of the lines. None for a method that
    has no magnitudes.
    """
    if not result.magnitudes:
        return None
    number = len(result.magnitudes)
    shades = ListedColormap(colormaps["Blues"](np.linspace(1, 0.25, number)[::-1]))
    figure, axes = axes_of(3.0)
    dropped = [k + 1 for k, value in enumerate(result.magnitudes[-1]) if value == 0]
    for t, row in enumerate(result.magnitudes):
        last = t == number - 1
        kept = np.array([k for k, value in enumerate(row) if value != 0], dtype=int)
        axes.plot(
            kept + 1,
            np.array(row)[kept],
            color=shades(t),
            marker="o",
            markersize=5 if last else 2.5 * (number <= 12),
            linewidth=2 if last else 1,
        )
    axes.grid(axis="y")
    number_tasks(axes, 1, number)
    axes.set(xlabel="direction $k$", ylabel=r"magnitude $\alpha_k$", title=literal(_title(result)), xlim=_room(number))
    if dropped:
        at_the_foot = axes.get_xaxis_transform()
        axes.plot(dropped, [0.03] * len(dropped), "x", color="0.3", transform=at_the_foot)
        axes.margins(y=0.12)
        axes.set_title(f"{literal(_title(result))}    (×: dropped)")
    if number > 1:
        norm = BoundaryNorm(np.arange(0.5, number + 1), number)
        bar = figure.colorbar(ScalarMappable(norm, shades), ax=axes, label="after task")
        bar.locator = MaxNLocator(integer=True)
        bar.minorticks_off()
    return figure


@paper
def growth(results: Sequence[Result], *, by: Callable[[Result], str] | None = None) -> Figure | None:
    """How many adapters are kept against tasks learned, beside the average accuracy so far; means over seeds.

    Of the complete runs whose method says which adapters it keeps; None if there are none.
    """
    rows = summarise([run for run in results if run.kept], by=by)
    if not rows:
        return None
    figure, (left, right) = two_panels(2.6)
    last = max(row.tasks for row in rows)
    left.plot([1, last], [1, last], color="0.6", linestyle=(0, (4, 3)), linewidth=1)
    for index, row in enumerate(rows):
        look = {"linestyle": LINES[index % len(LINES)], **look_of(index)}
        tasks = np.arange(1, row.tasks + 1)
        kept = np.mean([[len(each) for each in run.kept] for run in row.runs], axis=0)
        accuracy = 100 * np.mean([list(run.averages.values()) for run in row.runs], axis=0)
        left.plot(tasks, kept, label=literal(row.label), **look)
        right.plot(list(row.runs[0].averages), accuracy, **look)
    for axes in (left, right):
        axes.grid(axis="y")
        axes.set(xlabel="tasks learned")
        number_tasks(axes, 1, last)
    left.set(ylabel="adapters kept", ylim=(0, None), title="dashed: one per task")
    left.yaxis.set_major_locator(MaxNLocator(integer=True))
    right.set(ylabel="average accuracy (%)")
    legend_below(figure, left.lines[1:])
    return figure


@paper
def residuals(runs: Sequence[Residuals]) -> Figure:
    """The least-squares residual of each new direction, relative to its length: 1 is orthogonal to all earlier ones.

    A hollow marker is a direction that was dropped.
    """
    figure, axes = axes_of(2.6)
    for index, run in enumerate(runs):
        look = look_of(index)
        line = axes.plot(
            run.tasks, run.residuals, linestyle=LINES[index % len(LINES)], label=literal(run.label), **look
        )[0]
        hollow = [k for k, task in enumerate(run.tasks) if task in run.dropped]
        line.set_markevery([k for k in range(len(run.tasks)) if k not in hollow])
        at = np.array(hollow, dtype=int)
        look |= {"markerfacecolor": "white", "markeredgecolor": look["color"], "markeredgewidth": 1.1}
        axes.plot(np.array(run.tasks)[at], np.array(run.residuals)[at], linestyle="none", **look)
    axes.grid(axis="y")
    number_tasks(axes, 2, max(max(run.tasks) for run in runs))
    axes.set(xlabel="task $t$", ylabel="relative residual of $X_t$", ylim=(0, 1.06))
    if any(set(run.tasks) & set(run.dropped) for run in runs):
        axes.set_title("hollow: the direction was dropped")
    legend_below(figure, [line for line in axes.lines if not str(line.get_label()).startswith("_")])
    return figure


@paper
def straight_lines(runs: Sequence[StraightLine]) -> Figure:
    """Accuracy on old tasks (left) and on the new one (right) along the line from the weights before it to those
    after."""
    figure, panels = two_panels(2.6, sharey=True)
    task = runs[0].task
    titles = ("task 1" if task == 2 else f"tasks 1 to {task - 1}, mean", f"task {task} (new)")
    for axes, title, kind in zip(panels, titles, ("old", "new"), strict=True):
        for index, run in enumerate(runs):
            values = 100 * np.array(getattr(run, kind))
            style = LINES[index % len(LINES)]
            axes.plot(run.positions, values, linestyle=style, label=literal(run.label), clip_on=False, **look_of(index))
        axes.grid(axis="y")
        axes.set(title=title, xlabel=f"$s$, from before (0) to after task {task} (1)", xlim=(0, 1))
        axes.set_xticks((0, 0.25, 0.5, 0.75, 1), ("0", "¼", "½", "¾", "1"))
    lowest = 100 * min(min(*run.old, *run.new) for run in runs)
    panels[0].set(ylabel="accuracy (%)", ylim=(20 * min(lowest // 20, 4), 100))
    legend_below(figure, panels[0].lines)
    return figure


@paper
def relative_distances(distances: Distances) -> Figure:
    """Distances of independently fine-tuned weights: all pairs with W0 (left); pairs relative to their way from W0
    (right)."""
    number = len(distances.to_start)
    figure, (left, right) = two_panels(2.9, width_ratios=(1.15, 1))
    matrix = np.full((number, number), np.nan)
    for i in range(number):
        matrix[i, : i + 1] = [distances.to_start[i], *distances.between[i][:i]]
    image = left.imshow(matrix, cmap="Blues", vmin=0)
    for i in range(number if number <= 8 else 0):
        for j in range(i + 1):
            dark = matrix[i, j] > 0.6 * np.nanmax(matrix)
            left.text(j, i, f"{matrix[i, j]:#.2g}", ha="center", va="center", color="w" if dark else "k", fontsize=7)
    ticks = range(number)
    left.set_xticks(ticks, [f"$W_{{{j}}}$" for j in ticks])
    left.set_yticks(ticks, [f"$W_{{{i + 1}}}$" for i in ticks])
    figure.colorbar(image, ax=left, label=r"distance / $\|W_0\|$", shrink=0.75)
    for i in ticks:
        others = [distances.ratios[i][j] for j in ticks if j != i]
        right.plot([i + 1] * len(others), others, linestyle="none", **look_of(0))
    levels = [
        right.axhline(2**0.5, color="0.3", linestyle="--", linewidth=1, label=r"independent moves ($\sqrt{2}$)"),
        right.axhline(1, color="0.3", linestyle=":", linewidth=1.2, label="as far apart as from $W_0$ (1)"),
    ]
    number_tasks(right, 1, number)
    right.set(xlabel="task $i$", xlim=(0.5, number + 0.5), ylim=(0, 1.6))
    right.set_ylabel(r"$\|W_i - W_j\|$ / distance to $W_0$")
    figure.suptitle(literal(distances.label), fontsize=9)
    legend_below(figure, levels)
    return figure


@paper
def save(figure: Figure, stem: Path) -> list[Path]:
    """Write `stem`.pdf and `stem`.png; see `save_all`."""
    return save_all({stem.name: figure}, stem.parent)


@paper
def save_all(drawn: Mapping[str, Figure], folder: Path) -> list[Path]:
    """Write each figure as `folder`/name.pdf and name.png (200 dpi), each atomically, creating the folder; returns the
    paths.

    Raises:
        LoricaError: files of that name that lorica did not draw, all of them, before anything is written; another
            process is writing there; or the system refuses to.
    """
    paths = {folder / f"{name}.{kind}": figure for name, figure in drawn.items() for kind in _KINDS}
    require_ours(paths)
    if paths:
        with taken(folder), warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", "Glyph .* missing from"
            )  # letters of a name that the font lacks are boxes
            for path, figure in paths.items():
                made_by = {_KINDS[path.suffix[1:]]: figure_mark(path.stem)}
                with replacing(path) as file:
                    figure.savefig(file, format=path.suffix[1:], dpi=200, metadata=made_by)
    return [*paths]


def draw_all(results: Sequence[Result], folder: Path, *, by: Callable[[Result], str] | None = None) -> list[Path]:
    """Draw every figure there is to draw and save it in `folder`; returns the paths written.

    Figures of several runs show the complete ones. Each run, complete or not, has its matrix and magnitudes, under its
    labels and seed where there are several runs.
    """
    return save_all(all_figures(results, by=by), folder)


def all_figures(results: Sequence[Result], *, by: Callable[[Result], str] | None = None) -> dict[str, Figure]:
    """What `draw_all` saves, by name."""
    drawn: dict[str, Figure] = {}
    if any(run.complete for run in results):
        drawn["accuracy_curves"] = accuracy_curves(results, by=by)
        drawn["accuracy_per_task"] = accuracy_per_task(results, by=by)
    if figure := growth(results, by=by):
        drawn["growth"] = figure
    stems: Counter[str] = Counter()
    for run in results:
        stem = "" if len(results) == 1 else "_" + re.sub(r"\W+", "_", f"{_title(run)} {by(run) if by else ''}".strip())
        stems[stem] += 1
        if stems[stem] > 1:
            stem += f"_run_{stems[stem]}"
        drawn[f"accuracy_matrix{stem}"] = accuracy_matrix(run)
        if figure := magnitudes(run):
            drawn[f"magnitudes{stem}"] = figure
    return drawn


def _rows(results: Sequence[Result], by: Callable[[Result], str] | None) -> list[Row]:
    rows = summarise(results, by=by)
    if not rows:
        raise LoricaError("nothing to draw: expected at least one run that has learned all of its tasks")
    return rows


def _room(number: int) -> tuple[float, float]:
    """Limits of an x axis for 1 … number."""
    margin = 0.05 * (number - 1) or 0.5
    return 1 - margin, number + margin


def _title(result: Result) -> str:
    return f"{result.label}, seed {result.seed}"
