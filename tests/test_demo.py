"""`lorica demo`, on data so small that it takes seconds."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lorica import demo
from lorica.config import Recipe, read_recipe
from lorica.results import Metrics, Result
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
    keys = f"data.source=image_folder data.root={tmp_path / 'birds'} fit.augment=flip stream.tasks=2 fit.batch_size=2"
    assert f"run digits {keys} method.name=lora_frozen --out {tmp_path / 'out' / 'lora_frozen'}\n" in printed
    assert f"run own_images data.root={tmp_path / 'birds'} stream.tasks=2\n" in printed
    again = read_recipe("digits", [*keys.split(), "method.name=sd_lora"])
    assert again.resolved() == asked[1].resolved()  # so it is the same data


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
    assert "run requests fit.epochs=3 method.name=lora_frozen --out runs/demo-text/lora_frozen" in printed
    assert "old groups lose only texts that new classes" in printed
    assert (tmp_path / "runs" / "demo-text" / "rolda" / "metrics.json").exists()


def test_demo_on_texts_of_ones_own(
    small_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lorica: Lorica
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [f"{word} number {number},{label}" for label, word in enumerate("abcd") for number in range(8)]
    Path("may.csv").write_text("\n".join(["text,label", *rows]))
    asked = small(small_recipe, monkeypatch)
    keys = ("data.source=table", "data.root=may.csv", "stream.classes_per_task=2", "checkpoints=newest")
    code, out, error = lorica("demo", "--text", *keys)
    assert code == 0, error
    assert asked[0].resolved() == read_recipe("requests", keys).resolved()
    printed = " ".join(out.split())
    assert "4 classes of your texts arrive in 2 groups." in printed
    assert "may.csv, 4 classes in 2 groups" in printed
    assert "equests" not in printed.replace("run requests data.source", "")
    assert f"run requests {' '.join(keys)} method.name=lora_frozen --out runs/demo-text/lora_frozen" in printed
    assert f"run own_texts {' '.join(keys[:3])} your texts" in printed
    assert "a checkpoint of the last group, and figures" in printed


@pytest.mark.parametrize(
    ("lost", "adapted", "said"),
    [
        (
            {"lora": 0.298, "full_finetune": 0.313, "sd_lora": 0.217, "rolda": 0.011},
            1,
            "train on and on, and lose much of what they had learned. SD-LoRA keeps earlier directions and lets their "
            "magnitudes learn, and loses less. RoLDA adapts to the first group and never again: what it learns later "
            "are statistics of features, which add up, so that old groups lose only images that new classes are "
            "mistaken for. Prototypes",
        ),
        (
            {"lora": 0.0, "full_finetune": 0.2, "sd_lora": 0.1, "rolda": 0.5},
            None,
            "train on and on; here they lose 0.0 and 20.0 points. SD-LoRA keeps earlier directions and lets their "
            "magnitudes learn; here it loses 10.0 points. RoLDA adapted to no group here (its warning above says why), "
            "and reads the frozen features: what it learns later are statistics of features, which add up, so that old "
            "groups lose only images that new classes are mistaken for, here 50.0 points. Prototypes",
        ),
        (
            {"lora": 0.2, "full_finetune": 0.3, "sd_lora": 0.25, "rolda": 0.0},
            2,
            "lose much of what they had learned. SD-LoRA keeps earlier directions and lets their magnitudes learn; "
            "here it loses 25.0 points. RoLDA adapts to a single group, here number 2, and never again:",
        ),
    ],
)
def test_the_reading_says_of_a_method_what_its_row_shows(
    lost: dict[str, float], adapted: int | None, said: str
) -> None:
    results = []
    for name, fell in (lost | {"prototypes": 0.0}).items():
        metrics = Metrics(
            method=name,
            variant=None,
            seed=0,
            tasks=[{"classes": [each], "train": 9, "test": 1000} for each in "ab"],
            accuracy=[[1.0], [1.0 - fell, 1.0]],
            diagnostics={"adapted_to_task": [adapted] * 2} if name == "rolda" else {},
        )
        results.append(Result(None, metrics))
    assert said in demo._reading(results, demo._of_digits())


def test_demo_says_what_it_cannot_do_before_anything_runs(lorica: Lorica, tmp_path: Path) -> None:
    (tmp_path / "one" / "wren").mkdir(parents=True)
    for image in range(3):
        Image.new("RGB", (8, 8)).save(tmp_path / "one" / "wren" / f"{image}.png")
    four = tmp_path / "four"
    for name in ("wren", "kite", "crow", "owl"):
        shutil.copytree(tmp_path / "one" / "wren", four / name)
    for arguments, message in (
        (("--images", tmp_path / "none"), "is not a folder"),
        (("--images", tmp_path / "one"), "too few classes, 1; two groups of two"),
        (("--images", tmp_path / "one", "backbone.nam=x"), "backbone.nam: unknown key"),
        (("fit.epochs=1",), "they go with --images or --text"),
        (("--text", "--images", tmp_path / "one"), "--images and --text: a demonstration is made on one of them"),
        (("--text", "backbone.weights=x"), "backbone.weights: lorica_tiny_text ships with its weights"),
        (("--text", "data.root=x"), "data.root: the source requests does not read it"),
        (("--text", "backbone.name=lorica_tiny"), "lorica_tiny reads images, and --text shows texts"),
        (("--text", "backbone.name=hf:mine", f"backbone.weights={tmp_path / 'none'}"), "is not a folder"),
        (("--text", "stream.tasks=1"), "two are the least that shows forgetting"),
        (("--text", "method.rank=3"), "method.rank: the demonstration compares 5 methods"),
        (("--text", "stream.by=domain"), "stream.by: the demonstration shows groups of classes that are all new"),
        (("--images", four, "backbone.name=lorica_tiny_text"), "reads texts, and --images shows images"),
        (("--images", four, "fit.batch_size=2", "method=ease"), "method: the demonstration compares 5 methods"),
        (("--images", four, "stream.tasks=5"), "stream.tasks: the demonstration divides the classes of --images"),
        (("--images", four, "stream.classes_per_task=2"), "stream.classes_per_task: the demonstration divides"),
        (("--images", four, f"data.root={tmp_path}"), "data.root: the demonstration reads the folder of --images"),
        (("--images", four, "stream={tasks: 5}"), "stream: the demonstration"),
    ):
        code, out, error = lorica("demo", *arguments, "--out", tmp_path / "out")
        assert (code, out) == (2, ""), arguments  # not even the introduction
        assert message in " ".join(error.split())
    assert not (tmp_path / "out").exists()
