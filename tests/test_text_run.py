"""Texts from a file to a model that says of which class a text is, as people use it."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import lorica
from lorica.backbones.hf_text import HFText
from lorica.config import packaged_recipes, read_recipe
from lorica.data.sources import Source
from lorica.data.texts import TextReader, Texts
from lorica.errors import LoricaError, RecipeError
from lorica.export import export, own_images
from lorica.methods import find_method, method_names
from lorica.predictor import Predictor
from lorica.run import check, run
from lorica.types import Task
from tests.conftest import CLASS_NAMES


@pytest.fixture
def recipe(six_topics: Source, tiny_text_folder: Path, tmp_path: Path) -> dict[str, Any]:
    """Rows of a file, in three tasks, on the tiny BERT."""
    held = {}
    for half in ("train", "test"):
        samples = getattr(six_topics, half)
        assert isinstance(samples, Texts)
        labels = [six_topics.class_names[label] for label in samples.labels]
        held[half] = list(zip(samples.texts, labels, strict=True))
    (tmp_path / "topics.json").write_text(json.dumps(held))
    return {
        "method": {"name": "rolda", "enough": 20, "passes": 1},
        "backbone": {"name": "hf:tiny", "weights": str(tiny_text_folder), "pooling": "mean"},
        "data": {"source": "table", "root": str(tmp_path / "topics.json"), "max_tokens": 8},
        "stream": {"tasks": 3},
        "fit": {"epochs": 2, "batch_size": 12, "learning_rate": 0.01},
        "device": "cpu",
    }


def test_from_a_file_to_predictions(recipe: dict[str, Any], tmp_path: Path) -> None:
    result = run(recipe, out=tmp_path / "run", progress=False)
    assert len(result.accuracy) == 3
    assert result.acc > 0.5  # of six classes, by words of their own
    facts = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert facts["data"]["cut"] > 0
    assert facts["backbone"]["tag"] == "tiny (checkpoint)"
    learner = lorica.load(result.path)
    given = ["the red0 of red1", "a cyan2"]
    logits = learner.logits(given)
    assert logits.shape == (2, 6)
    torch.testing.assert_close(learner.logits(given[1:]), logits[1:], atol=1e-4, rtol=1e-3)
    assert set(learner.predict(given)) <= set(learner.class_names)
    again = run(recipe, out=tmp_path / "again", progress=False)
    assert again.accuracy == result.accuracy
    with pytest.raises(
        LoricaError,
        match="reads what leaves 2 blocks, and a model of Hugging Face reads the last one alone; there is no export of "
        "it over texts: use `lorica predict`",
    ):
        export(learner, tmp_path / "exported", "hf")
    with pytest.raises(LoricaError, match="tiny reads texts, which timm does not take here; there is no export of it"):
        export(learner, tmp_path / "exported", "timm")
    with pytest.raises(LoricaError, match="reads what leaves 2 blocks"):
        export(learner, tmp_path / "exported", "peft")
    assert not (tmp_path / "exported").exists()


ADAPTED = {"README.md", "adapter_config.json", "adapter_model.safetensors"}
MERGED = {"README.md", "config.json", "model.safetensors"}


@pytest.mark.parametrize(
    ("to", "pooling", "files"), [("hf", "mean", MERGED), ("hf", "cls", MERGED), ("peft", "mean", ADAPTED)]
)
def test_an_export_is_what_its_readme_says(
    to: str, pooling: str, files: set[str], recipe: dict[str, Any], tmp_path: Path, capsys: Any
) -> None:
    changed = {"method": {"name": "lora", "rank": 2}, "backbone": recipe["backbone"] | {"pooling": pooling}}
    result = run(recipe | changed, out=tmp_path / "run", progress=False)
    given = own_images(result.path, {})
    assert len(given) == 36
    with pytest.raises(LoricaError, match="reads texts, which onnx does not take here; export to hf or peft"):
        export(lorica.load(result.path), tmp_path / "exported", "onnx")
    exported = export(lorica.load(result.path), tmp_path / "exported", to, given)
    assert exported.real
    assert exported.share < 1e-5
    folder = exported.folder
    beside = {"export.json", "tokenizer.json", "tokenizer_config.json", "classifier.json", "classifier.safetensors"}
    assert {path.name for path in folder.iterdir()} == files | beside
    code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0].replace("FOLDER", str(folder))
    code = code.replace("BACKBONE", recipe["backbone"]["weights"])
    text = "the magenta1 is magenta2 not magenta3 and magenta0 of magenta1"  # longer than what is read
    with warnings.catch_warnings(action="ignore"):  # PEFT asks transformers for what is out of date there
        exec(code.replace("what is my balance", text), {})
    assert capsys.readouterr().out.split() == lorica.load(result.path).predict([text])


def test_the_words_on_the_embedded_encoder_lead_to_it(recipe: dict[str, Any], tmp_path: Path, capsys: Any) -> None:
    """As a reader follows them: the command that they give prints what stands for BACKBONE in their code."""
    changed = {"method": {"name": "lora", "rank": 2}, "backbone": {"name": "lorica_tiny_text"}}
    result = run(recipe | changed, out=tmp_path / "run", progress=False)
    folder = export(lorica.load(result.path), tmp_path / "exported", "peft", own_images(result.path, {})).folder
    words = (folder / "README.md").read_text()
    [command] = re.findall(r"^    python (-c '.*')$", words, flags=re.MULTILINE)
    done = subprocess.run([sys.executable, *shlex.split(command)], capture_output=True, text=True, check=True)
    code = words.split("```python\n")[1].split("```")[0].replace("FOLDER", str(folder))
    with warnings.catch_warnings(action="ignore"):  # PEFT asks transformers for what is out of date there
        exec(code.replace("BACKBONE", done.stdout.strip()), {})
    assert capsys.readouterr().out.split() == lorica.load(result.path).predict(["what is my balance"])


@pytest.mark.parametrize("method", method_names())
def test_what_a_refusal_of_the_embedded_encoder_says_to_give_works(method: str, recipe: dict[str, Any]) -> None:
    """Methods whose usual blocks lie deeper than its two say keys and values with which they run."""
    changed = {"method": {"name": method}, "backbone": {"name": "lorica_tiny_text"}}
    try:
        check(recipe | changed, progress=False)
    except LoricaError as error:
        given = re.findall(r"method\.\w+=\S+\d\]", str(error))
        if "has blocks" not in str(error):
            return
        assert given
        check(read_recipe(recipe | changed, given), progress=False)


def test_what_is_of_images_alone_is_refused_before_training(recipe: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"^fit\.augment: the backbone reads what cannot be augmented by flip; use none"
    ):
        run(recipe, **{"fit.augment": "flip"}, out=tmp_path / "run", progress=False)
    with pytest.raises(
        LoricaError, match=r"^method\.rotations: tiny reads texts, which cannot be turned; use auto or never"
    ):
        run(recipe, **{"method.rotations": "always"}, out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_texts_in_memory_are_read_by_the_embedded_encoder(six_topics: Source, tmp_path: Path) -> None:
    given = {"method": "prototypes", "stream": {"tasks": 3}, "device": "cpu"}
    result = run(given, source=six_topics, out=tmp_path / "run", progress=False)
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["backbone"]["name"] == "lorica_tiny_text"
    assert result.recipe["backbone"]["name"] == "lorica_tiny_text"


@pytest.mark.parametrize(("name", "tasks", "column"), [("clinc150", 15, "label"), ("banking77", 7, "category")])
def test_the_packaged_recipes_of_texts(name: str, tasks: int, column: str) -> None:
    assert name in packaged_recipes()
    recipe = read_recipe(name)
    assert (recipe.stream.tasks, recipe.stream.seed, recipe.data.source) == (tasks, 1993, "table")
    assert recipe.data.label_column == column
    assert recipe.backbone.name.startswith("hf:")


def test_banking77_as_its_authors_publish_it(tiny_text_folder: Path, tmp_path: Path) -> None:
    """Two CSV files with text and category, of which some texts have lines and quotes, beside a list of the intents."""
    intents = [f"{CLASS_NAMES[number % 6]}_{number}" for number in range(77)]
    folder = tmp_path / "banking_data"
    folder.mkdir()
    for half, number in (("train", 2), ("test", 1)):
        lines = [f'"is ""{each[:-2]}{n}"", or\nnot?",{each}' for each in intents for n in range(number)]
        (folder / f"{half}.csv").write_text("\n".join(["text,category", *lines]) + "\n", newline="")
    (folder / "categories.json").write_text(json.dumps(intents))
    result = run(
        "banking77",
        out=tmp_path / "run",
        progress=False,
        **{"data.root": folder, "backbone.weights": tiny_text_folder, "method.name": "prototypes", "device": "cpu"},
    )
    assert [(len(task["classes"]), task["train"], task["test"]) for task in result.tasks] == [(11, 22, 11)] * 7
    assert sorted(name for task in result.tasks for name in task["classes"]) == sorted(intents)
    facts = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert facts["data"]["passed_over"] == {"beside train and test": 1}


@pytest.mark.parametrize("family", ["modernbert", "t5"])
def test_an_adapter_of_other_families(family: str, tiny_text_encoder: Callable[..., HFText], tmp_path: Path) -> None:
    """Of ModernBERT, whose q and v are rows of one layer, and of T5, whose layers are nested otherwise."""
    encoder = tiny_text_encoder(family=family)
    method = find_method("o_lora")(find_method("o_lora").Config(name="o_lora", rank=2), encoder)
    for index in range(2):
        method.grow(Task.of_new_classes(index, 2 * index, ("wren", "lark") if index else ("kite", "rook")))
    with torch.no_grad():
        for factor in method.trainable():
            factor.add_(0.3 * torch.randn(factor.shape, generator=torch.Generator().manual_seed(0)))
    plain = encoder.plain_model()
    predictor = Predictor(method.eval(), reader=TextReader(**encoder.reading()))
    exported = export(predictor, tmp_path / "exported", "peft")
    assert exported.share < 1e-5
    assert not exported.real
    layers = dict(plain.named_modules())
    adapted = json.loads((exported.folder / "adapter_config.json").read_text())
    assert set(adapted["target_modules"]) <= layers.keys()
    assert adapted["base_model_name_or_path"] == encoder.name
