"""Tables and figures of finished runs, from their results alone: no torch, no data, no model."""

from __future__ import annotations

from lorica.report.figures import (
    accuracy_curves,
    accuracy_matrix,
    accuracy_per_task,
    draw_all,
    growth,
    magnitudes,
    relative_distances,
    residuals,
    save,
    straight_lines,
)
from lorica.report.tables import Row, Spread, notes, summarise, to_csv, to_latex, to_markdown, to_rich

__all__ = [
    "Row",
    "Spread",
    "accuracy_curves",
    "accuracy_matrix",
    "accuracy_per_task",
    "draw_all",
    "growth",
    "magnitudes",
    "notes",
    "relative_distances",
    "residuals",
    "save",
    "straight_lines",
    "summarise",
    "to_csv",
    "to_latex",
    "to_markdown",
    "to_rich",
]
