"""The ridge benchmark at a scale that says nothing about time: what it times, and that it regresses on what it says."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch

from lorica.statistics import RidgeHead

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_widths_rise_and_tasks_bring_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    ridge_time = importlib.import_module("ridge_time")
    added: list[tuple[int, tuple[int, ...]]] = []
    own = RidgeHead.add
    monkeypatch.setattr(RidgeHead, "add", lambda head, h, y: (added.append((len(h), tuple(h.shape))), own(head, h, y)))
    results = ridge_time.measure([40, 20], [1, 3], samples=30, classes=2, repeats=2)
    assert [(each.width, each.tasks, each.classes) for each in results] == [
        (20, 1, 2),
        (20, 3, 6),
        (40, 1, 2),
        (40, 3, 6),
    ]
    assert added == [(30, (30, 20))] * 3 + [(30, (30, 40))] * 3
    assert all(min(each.accumulate, each.choose, each.solve, each.peak_gib) > 0 for each in results)
    assert {each.threads for each in results} == {torch.get_num_threads()}
