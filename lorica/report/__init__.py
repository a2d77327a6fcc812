"""Tables and figures of finished runs, from their results alone: no torch, no data, no model."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lorica.report.tables import Row, Spread, notes, summarise, to_csv, to_latex, to_markdown, to_rich

if TYPE_CHECKING:  # matplotlib takes seconds, and tables do without it
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


def __getattr__(name: str) -> Any:
    """The functions of `lorica.report.figures`."""
    if name in __all__:
        return getattr(importlib.import_module("lorica.report.figures"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
