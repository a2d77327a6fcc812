"""What the command line and the page say of exports, as it is written there."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import lorica
from lorica import cli
from lorica.backbones import tiny
from lorica.export import export
from lorica.predictor import Predictor
from lorica.results import Result

PAGE = Path(__file__).parents[2] / "docs/export.md"
MakeLearner = Callable[..., Predictor]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """`command(*arguments)` -> (exit code, all that was printed)."""
    monkeypatch.setattr(cli, "console", cli.Screen(width=400))

    def run(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["lorica", *map(str, arguments)])
        with pytest.raises(SystemExit) as leaving:
            cli.main()
        said = capsys.readouterr()
        return int(leaving.value.code or 0), said.out + said.err

    return run


@pytest.mark.parametrize("to", ["timm", "hf", "peft", pytest.param("onnx", marks=pytest.mark.slow)])
def test_the_lines_of_the_page_give_the_learners_class(
    to: str,
    make_learner: MakeLearner,
    pictures: list[np.ndarray],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    heading = {"timm": "timm", "hf": "Hugging Face", "peft": "PEFT", "onnx": "ONNX"}[to]
    block = re.search(rf"## {heading}\n\n(?:    [^\n]*\n\n)?```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert block is not None
    learner = make_learner("sd_lora", rank=2, backbone="lorica_tiny")
    export(learner, tmp_path / "model" / to, to, pictures)
    Image.fromarray(pictures[1]).save(tmp_path / "unknown.png")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lorica").symlink_to(Path(tiny.__file__).parents[1])
    names: dict[str, Any] = {}
    code = block[1].replace("num_classes=10", "num_classes=6")
    exec(code, names)
    if to == "peft":
        encoder = learner.method.encoder
        squares = learner.reader.of(pictures)
        found = names["model"]((squares - encoder.mean) / encoder.std).argmax(dim=1)
        assert found.tolist() == learner.logits(pictures).argmax(dim=1).tolist()
    else:
        assert capsys.readouterr().out.strip().splitlines()[-1] == learner.predict([tmp_path / "unknown.png"])[0]


def test_the_command_compares_on_the_runs_own_images(
    command: Callable[..., tuple[int, str]], finished_run: Result, tmp_path: Path
) -> None:
    code, said = command("export", finished_run.path, "--to", "timm", "--out", tmp_path / "out", "--tasks", 2)
    assert code == 0
    assert "Loaded back and compared on 36 images: the largest difference of a logit is" in said
    assert str(tmp_path / "out") in said
    assert (tmp_path / "out/model.safetensors").exists()


def test_the_command_takes_images_weights_that_moved_and_says_what_is_missing(
    command: Callable[..., tuple[int, str]],
    finished_run: Result,
    small_recipe: dict[str, Any],
    pictures: list[np.ndarray],
    tmp_path: Path,
) -> None:
    (tmp_path / "photos").mkdir()
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(tmp_path / f"photos/{number}.png")
    weights = tmp_path / "moved.safetensors"
    weights.write_bytes(Path(small_recipe["backbone"]["weights"]).read_bytes())
    arguments = ("export", finished_run.path, "--to", "peft", "--out", tmp_path / "out")
    code, said = command(*arguments, "--images", tmp_path / "photos", "--set", f"backbone.weights={weights}")
    assert code == 0
    assert "compared on 5 images" in said
    assert "It is an adapter of 6 layers, rank 60." in said
    (tmp_path / "empty").mkdir()
    code, said = command(*arguments, "--images", tmp_path / "empty", "--images", tmp_path / "absent.png")
    assert code == 2
    assert said.splitlines() == [
        f"--images: {tmp_path / 'empty'} has no images",
        f"--images: {tmp_path / 'absent.png'} is not there",
    ]
    code, said = command("export", tmp_path, "--to", "timm")
    assert code == 2
    assert "not the folder of a run" in said


def test_data_that_is_gone_is_said(
    command: Callable[..., tuple[int, str]], small_recipe: dict[str, Any], six_classes: Any, tmp_path: Path
) -> None:
    recipe = {**small_recipe, "method": "linear_probe"}
    lorica.run(recipe, source=six_classes, out=tmp_path / "run", progress=False)
    code, said = command("export", tmp_path / "run", "--to", "timm")
    assert code == 0
    assert "compared on 10 random images (the model's data is not there; --images)" in said
    assert (tmp_path / "run/export/timm/config.json").exists()
