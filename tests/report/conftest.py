"""Results made up for tables and figures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorica.results import Metrics, Result

MakeRun = Callable[..., Result]


@pytest.fixture
def make_run() -> MakeRun:
    def make(
        accuracy: list[list[float]],
        method: str = "sd_lora",
        variant: str | None = None,
        *,
        seed: int = 0,
        tasks: int | None = None,
        classes: str = "class",
        path: Path | None = None,
        recipe: dict[str, Any] | None = None,
        head_accuracy: list[list[float]] | None = None,
        identity: dict[str, str] | None = None,
        seconds: list[float] | None = None,
        cost: dict[str, Any] | None = None,
        error_rates: list[list[Any]] | None = None,
        **diagnostics: Any,
    ) -> Result:
        """A run over `tasks` tasks of two classes; one that has not come to the last is not complete."""
        number = tasks or len(accuracy)
        made = Metrics(
            method=method,
            variant=variant,
            seed=seed,
            tasks=[
                {"classes": [f"{classes} {2 * t}", f"{classes} {2 * t + 1}"], "train": 8, "test": 4}
                for t in range(number)
            ],
            accuracy=accuracy,
            head_accuracy=head_accuracy,
            diagnostics=diagnostics,
            recipe=recipe or {},
            identity=identity or {},
            train_seconds=seconds or [],
            error_rates=error_rates,
        )
        return Result(path, made, cost)

    return make


@pytest.fixture
def two_seeds(make_run: MakeRun) -> list[Result]:
    """Two seeds of one method, one of another.

    sd_lora: acc (0.6, 0.8), so 0.7 ± 0.1414;  aaa ((0.9 + 0.6) / 2, (0.7 + 0.8) / 2), so 0.75 ± 0;
    forgetting (0.9 - 0.5, 0.7 - 0.8), so 0.15 ± 0.3536;  new task (0.8, 0.75), so 0.775 ± 0.0354.
    """
    return [
        make_run([[0.9], [0.5, 0.7]], seed=0, magnitudes=[[1.0], [1.2, 0.8]]),
        make_run([[0.75], [0.25, 0.5]], "o_lora"),
        make_run([[0.7], [0.8, 0.8]], seed=1, magnitudes=[[1.0], [1.1, 0.9]]),
    ]
