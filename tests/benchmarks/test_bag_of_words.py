"""The discriminant of bags of words against the library's own, and what the script prints."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from lorica.statistics import SHRINKAGE, Discriminant

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("bag_of_words")


def test_its_discriminant_is_that_of_the_library(script: ModuleType) -> None:
    generator = np.random.RandomState(0)
    words, asked, labels = generator.rand(30, 6), generator.rand(5, 6), np.arange(30) % 3
    own = Discriminant(6, device=torch.device("cpu"))
    own.grow(3)
    own.add(torch.from_numpy(words).float(), torch.from_numpy(labels))
    own.solve(SHRINKAGE)
    means = np.stack([words[labels == label].mean(axis=0) for label in range(3)])
    found = script._discriminant(words, labels, means, asked)
    np.testing.assert_allclose(found, own(torch.from_numpy(asked).float()).numpy(), atol=1e-3)


@pytest.mark.parametrize("options", [[], ["--discriminant"], ["--weighted"]])
def test_texts_with_words_of_their_own_are_told_apart(script: ModuleType, tmp_path: Path, options: list[str]) -> None:
    held = {half: [(f"{name} one{n} and", name) for name in "abcd" for n in range(3)] for half in ("train", "test")}
    held = {half: [(f"word{name} {text}", name) for text, name in rows] for half, rows in held.items()}
    (tmp_path / "data.json").write_text(json.dumps(held))
    app = typer.Typer()
    app.command()(script.main)
    done = CliRunner().invoke(app, [str(tmp_path / "data.json"), "--classes-per-task", "2", *options])
    assert done.output == "Acc 100.0, AAA 100.0\n"
