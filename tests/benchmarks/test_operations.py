"""The count of a step's operations, and that computing at once makes it several times smaller."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def operations(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("operations")


def test_what_is_counted(operations) -> None:
    """A product, a sum and a fill; the transposition, the slices and the size that is read launch nothing."""
    a = torch.ones(3, 3)
    assert operations.started_by(lambda: (a.T @ a[:2].T).sum().item() or a.zero_()) == 2
    assert operations.started_by(lambda: (a.T @ a[:2].T).zero_()) == 2


def test_tables_and_counts(operations, capsys: pytest.CaptureFixture[str]) -> None:
    operations.main(backbone="test_vit", image_size=32, tasks="3", batch=2, repeats=1)
    rows = [line.split("│") for line in capsys.readouterr().out.splitlines() if "by one" in line or "at once" in line]
    one_by_one, at_once = (int(row[3]) for row in rows)
    assert at_once < one_by_one
