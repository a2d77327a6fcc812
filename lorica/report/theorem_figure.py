"""What `lorica.theorem` measured, as one figure fit for a paper and as a table for the terminal."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from rich import box
from rich.table import Table

from lorica.report.style import LINES, WIDTH, look_of, paper
from lorica.theorem import Descent, Experiment

_DERIVED = {"color": "0.87", "linewidth": 3.5}  # wide and pale, beneath what was measured


@paper
def draw(result: Experiment) -> Figure:
    """Four panels; each component has a colour, a line style and a marker of its own.

    (a) Singular values of U D over time t = learning rate x steps, with the closed form (2), for a scale from the
    middle of the list. (b) Distance to each partial sum M_i = ΔW*_i in the same descent; markers where it is least.
    (c) That least distance against ε, with lines of the derived slopes through the smallest ε. (d) How far each
    direction that SD-LoRA learns is each component.
    """
    run = result.descents[len(result.descents) // 2]
    figure = Figure(figsize=(WIDTH, 5.0), layout="constrained")
    (values, errors), (bound, found) = figure.subplots(2, 2)
    _values(values, run, result.setting.spectrum)
    _errors(errors, run)
    _bound(bound, result)
    _found(found, result)
    for axes in (values, errors, bound):
        axes.grid()
    handles = []
    for i, (derived, fitted) in enumerate(zip(result.setting.exponents, result.fitted, strict=True)):
        handle = Line2D([], [], linestyle=LINES[i % len(LINES)], **look_of(i))
        slope = f"{derived:.2f} derived" if np.isnan(fitted) else f"{fitted:.2f} (derived {derived:.2f})"
        handle.set_label(f"$i={i + 1}$: slope {slope}")
        handles.append(handle)
    handles.append(Line2D([], [], **_DERIVED, label="derived: curve in (a), slope in (c)"))
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure


def to_rich(result: Experiment) -> Table:
    """A row per ε: for each stage the least error ||U D - M_i||_F beside ε^e_i; then slopes, fitted beside derived."""
    table = Table(title="Least error of stage i | its term in ε", title_justify="left", box=box.SIMPLE_HEAD)
    table.show_edge = table.pad_edge = False  # four components fit in 80 columns
    table.add_column("ε", justify="right")
    for i, sigma in enumerate(result.setting.spectrum, start=1):
        table.add_column(f"i={i}, σ={sigma:g}", justify="right")
    for run in result.descents:
        terms = run.epsilon ** np.array(result.setting.exponents)
        cells = [f"{_short(error)} | {_short(term)}" for error, term in zip(run.best_errors, terms, strict=True)]
        table.add_row(f"{run.epsilon:g}", *cells)
    table.add_section()
    pairs = zip(result.fitted, result.setting.exponents, strict=True)
    table.add_row("slope", *(f"{fitted:.2f} | {derived:.2f}" for fitted, derived in pairs))
    return table


def _values(axes: Axes, run: Descent, spectrum: tuple[float, ...]) -> None:
    for i in range(len(spectrum)):
        axes.plot(run.times[1:], run.predicted[1:, i], **_DERIVED)
        axes.plot(run.times[1:], run.singular_values[1:, i], **_line(i))
    axes.set(xscale="log", ylim=(0, None), title=f"(a) arrival, {_power(run.epsilon)}")
    axes.set(xlabel=r"time $t$ = learning rate $\times$ steps", ylabel=r"singular values of $UD$")
    axes.set_xlim(left=max(run.times[1], np.nanmin(run.arrivals, initial=np.inf) / 8))


def _errors(axes: Axes, run: Descent) -> None:
    for i in range(run.errors.shape[1]):
        axes.plot(run.times[1:], run.errors[1:, i], **_line(i))
        axes.plot(run.best_times[i], run.best_errors[i], linestyle="none", **look_of(i))
    axes.set(xscale="log", yscale="log", title=f"(b) distance, {_power(run.epsilon)}")
    axes.set(xlabel=r"time $t$ = learning rate $\times$ steps", ylabel=r"$\|UD - \Delta W^*_i\|_F$")
    axes.set_xlim(left=max(run.times[1], np.nanmin(run.arrivals, initial=np.inf) / 8))


def _bound(axes: Axes, result: Experiment) -> None:
    scales = np.array([run.epsilon for run in result.descents])
    least = np.array([run.best_errors for run in result.descents])
    for i, exponent in enumerate(result.setting.exponents):
        axes.plot(scales, least[-1, i] * (scales / scales[-1]) ** exponent, **_DERIVED)
        axes.plot(scales, least[:, i], linestyle="none", **look_of(i))
    axes.set(xscale="log", yscale="log", title="(c) least distance")
    axes.set(
        xlabel=r"scale of initialisation $\varepsilon$", ylabel=r"$\min_t\,\|UD - \Delta W^*_i\|_F$", ylim=(None, 3)
    )


def _found(axes: Axes, result: Experiment) -> None:
    k = len(result.found)
    edges = np.arange(k + 1) + 0.5
    axes.pcolormesh(edges, edges, result.found, cmap="Greys", vmin=0, vmax=1)  # unlike an image, vectors in a PDF
    axes.invert_yaxis()
    for (i, j), value in np.ndenumerate(result.found if k <= 6 else np.empty((0, 0))):
        colour = "white" if value > 0.6 else "black"
        axes.text(j + 1, i + 1, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=7.5)
    axes.set(xticks=range(1, k + 1), yticks=range(1, k + 1), title="(d) alignment in SD-LoRA")
    axes.set(xlabel="direction, as learned", ylabel=r"component of $\Delta W^*$")


def _line(i: int) -> dict[str, Any]:
    return {"color": look_of(i)["color"], "linestyle": LINES[i % len(LINES)]}


def _short(value: float) -> str:
    return f"{value:.1e}".replace("e-0", "e-").replace("e+00", "")


def _power(epsilon: float) -> str:
    exponent = np.log10(epsilon)
    number = f"10^{{{exponent:.0f}}}" if np.isclose(exponent, round(exponent)) else f"{epsilon:g}"
    return rf"$\varepsilon={number}$"
