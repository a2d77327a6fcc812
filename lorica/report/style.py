"""How the figures look: a size, a palette, markers and dashes that differ in grey too, and the parts they all use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib import rc_context, rcParamsDefault
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lorica.terminal import visible

# of a user's matplotlibrc only the fonts hold, which may be needed for the letters of a name; text.usetex, say, needs
# LaTeX
_THEIRS = ("backend", "interactive", "font.family", "font.serif", "font.sans-serif", "font.monospace")

_DEFAULTS = {key: value for key, value in rcParamsDefault.items() if not key.startswith(_THEIRS)}
_OURS: dict[Any, Any] = _DEFAULTS | {
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
paper = rc_context(_OURS)
WIDTH = 5.5  # inches, the text width of the usual conference styles

# Okabe and Ito's palette without its yellow. The lengths 7, 8 and 4 make the first 56 combinations differ, and 16 in
# grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
LINES = ("-", "--", "-.", ":")


def literal(text: str) -> str:
    """A text as matplotlib shows it unchanged: $ begins no mathematics, and _ keeps nothing out of a legend."""
    text = visible(text).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def axes_of(height: float) -> tuple[Figure, Axes]:
    """A figure of the text's width, so many inches high, with one panel."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.add_subplot()


def two_panels(height: float, **layout: Any) -> tuple[Figure, tuple[Axes, Axes]]:
    """The same with two panels beside each other."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    left, right = figure.subplots(1, 2, gridspec_kw={"wspace": 0.08}, **layout)
    return figure, (left, right)


def look_of(index: int) -> dict[str, Any]:
    """Colour and marker of the line with that number, as keywords of `plot`; hollow markers once all have been used."""
    colour = COLOURS[index % len(COLOURS)]
    hollow = index // len(MARKERS) % 2 == 1
    face, edge, width = ("white", colour, 1.1) if hollow else (colour, "white", 0.4)
    return {
        "color": colour,
        "marker": MARKERS[index % len(MARKERS)],
        "markerfacecolor": face,
        "markeredgecolor": edge,
        "markeredgewidth": width,
    }


def number_tasks(axes: Axes, first: int, last: int) -> None:
    """Ticks for the tasks `first` … `last` on the x axis: all, or those divisible by 2, 5, 10, …, at most 12 of
    them."""
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, last) if last - first < 12 * step)
    axes.set_xticks(range(first + -first % step, last + 1, step))


def legend_below(figure: Figure, handles: Sequence[Line2D]) -> None:
    """Below the axes, in as many columns as fit, with height of its own."""
    longest = max(len(str(handle.get_label())) for handle in handles)
    columns = max(1, min(len(handles), 78 // (longest + 10)))
    figure.set_figheight(figure.get_figheight() + 0.18 * -(-len(handles) // columns))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns)
