"""`lorica demo`, on data so small that it takes seconds."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lorica import demo
from lorica.config import Recipe, read_recipe
from lorica.results import Result
from lorica.run import run
from lorica.terminal import Screen
from tests.test_cli import Lorica


@pytest.fixture
def lorica(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Lorica:
    return Lorica(monkeypatch, capsys)


def small(given: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> list[Recipe]:
    """Makes the demonstration run another recipe; returns what it would have run, as it asks for it."""
    asked = []

    def learn(recipe: Recipe, **options: Any) -> Result:
        asked.append(recipe)  # what the demo really runs is valid
        return run(read_recipe(given, {"method.name": recipe.method.name, "fit.epochs": 1}), **options)

    monkeypatch.setattr(demo, "run", learn)
    return asked


def test_demo_runs_every_method_and_shows_the_table(
    small_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = small(small_recipe, monkeypatch)
    results = demo.show(tmp_path / "demo", Screen(file=sys.stdout, width=200))
    assert [recipe.method.name for recipe in asked] == list(demo.METHODS)
    assert {recipe.data.source for recipe in asked} == {"digits"}
    assert [result.method for result in results] == list(demo.METHODS)
    printed = capsys.readouterr().out
    for result in results:
        assert result.path == tmp_path / "demo" / result.method
        assert f"{100 * result.acc:.1f}" in printed
    assert all(heading in printed for heading in ("new group", "after the last", "average on the way", "lost"))
    assert "How to read it." in printed
    drawn = {file.suffix for file in (tmp_path / "demo" / "figures").iterdir()}
    assert drawn == {".pdf", ".png"}
    rows = [line for line in printed.splitlines() if "│" in line and any(name in line for name in demo.METHODS)]
    ends = [float(line.split("│")[3]) for line in rows]
    assert ends == sorted(ends, reverse=True)  # the best on top


def test_demo_on_images_of_ones_own(
    small_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = small(small_recipe, monkeypatch)
    for number, name in enumerate(("wren", "kite", "[red] owl", "crow", "finch")):
        (tmp_path / "birds" / name).mkdir(parents=True)
        for image in range(4):
            Image.new("RGB", (40, 30), (50 * number, 9 * image, 0)).save(tmp_path / "birds" / name / f"{image}.png")
    screen = Screen(file=sys.stdout, width=200)
    results = demo.show(tmp_path / "out", screen, tmp_path / "birds", ["fit.batch_size=2"])
    assert len(results) == len(demo.METHODS)
    for recipe in asked:
        assert (recipe.data.source, recipe.data.root) == ("image_folder", tmp_path / "birds")
        assert (recipe.stream.tasks, recipe.fit.batch_size, recipe.fit.augment) == (2, 2, "flip")
    printed = capsys.readouterr().out
    assert "5 classes of your images arrive in 2 groups" in printed
    assert "birds, 5 classes in 2 groups" in printed


def test_demo_on_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lorica: Lorica) -> None:
    few = {"data": {"source": "requests", "max_tokens": 8}, "stream": {"tasks": 2}, "fit": {"batch_size": 64}}
    given = {"method": {"name": "rolda"}, "backbone": {"name": "lorica_tiny_text"}, "device": "cpu"} | few
    monkeypatch.chdir(tmp_path)
    asked = small(given, monkeypatch)
    code, out, error = lorica("demo", "--text", "fit.epochs=3")
    assert code == 0, error
    for recipe in asked:
        assert (recipe.data.source, recipe.backbone.name) == ("requests", "lorica_tiny_text")
        assert (recipe.stream.tasks, recipe.fit.epochs) == (5, 3)
    assert [recipe.method.name for recipe in asked] == list(demo.METHODS)
    printed = " ".join(out.split())
    assert "arrive in 5 groups. A small text encoder, pre-trained on docstrings" in printed
    assert "which group a text comes from" in printed
    assert "Requests, 20 classes in 5 groups" in printed
    assert "run requests method.name=lora_frozen" in printed
    assert (tmp_path / "runs" / "demo-text" / "rolda" / "metrics.json").exists()


def test_demo_says_what_it_cannot_do_before_anything_runs(lorica: Lorica, tmp_path: Path) -> None:
    (tmp_path / "one" / "wren").mkdir(parents=True)
    for image in range(3):
        Image.new("RGB", (8, 8)).save(tmp_path / "one" / "wren" / f"{image}.png")
    for arguments, message in (
        (("--images", tmp_path / "none"), "is not a folder"),
        (("--images", tmp_path / "one"), "too few classes, 1; two groups of two"),
        (("--images", tmp_path / "one", "backbone.nam=x"), "backbone.nam: unknown key"),
        (("fit.epochs=1",), "they go with --images or --text"),
        (("--text", "--images", tmp_path / "one"), "--images and --text: a demonstration is made on one of them"),
        (("--text", "backbone.weights=x"), "backbone.weights: lorica_tiny_text ships with its weights"),
        (("--text", "data.root=x"), "data.root: the source requests does not read it"),
    ):
        code, _, error = lorica("demo", *arguments, "--out", tmp_path / "out")
        assert code == 2
        assert message in " ".join(error.split())
    assert not (tmp_path / "out").exists()
