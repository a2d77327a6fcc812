"""A model that goes on learning from texts: as images are learned, from files of rows and of lines."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lorica.backbones.hf_text import HFText
from lorica.data.sources import Source
from lorica.data.texts import Texts
from lorica.errors import DataError, LoricaError, RegressionError
from lorica.export import export
from lorica.judging import inputs_of, kept_form
from lorica.learner import Learner, load
from lorica.predictor import Predictor
from lorica.types import Tokens
from tests.test_cli import Lorica


@pytest.fixture
def lorica(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Lorica:
    monkeypatch.setenv("COLUMNS", "200")
    return Lorica(monkeypatch, capsys)


@pytest.fixture
def recipe(tiny_text_folder: Path) -> dict[str, Any]:
    return {
        "method": {"name": "rolda", "passes": 0, "layers": 1},
        "backbone": {"name": "hf:tiny", "weights": str(tiny_text_folder), "pooling": "mean"},
        "fit": {"epochs": 2, "batch_size": 12, "learning_rate": 0.01},
        "device": "cpu",
    }


@pytest.fixture
def rows(six_topics: Source) -> list[tuple[str, str]]:
    assert isinstance(six_topics.train, Texts)
    return [
        (text, six_topics.class_names[label])
        for text, label in zip(six_topics.train.texts, six_topics.train.labels, strict=True)
    ]


def of_classes(rows: list[tuple[str, str]], *names: str) -> tuple[list[str], list[str]]:
    texts, labels = zip(*[row for row in rows if row[1] in names], strict=True)
    return list(texts), list(labels)


def test_what_is_set_aside_of_texts() -> None:
    tokens = Tokens(torch.tensor([[2, 7, 3], [2, 3, 0]]), torch.tensor([[True, True, True], [True, True, False]]))
    kept = kept_form(tokens)
    assert kept.tolist() == [[2, 7, 3], [2, 3, -1]]
    back = inputs_of(kept)
    assert isinstance(back, Tokens)
    assert torch.equal(back.ids, tokens.ids)
    assert torch.equal(back.mask, tokens.mask)


def test_a_model_learns_judges_and_goes_back(
    recipe: dict[str, Any], rows: list[tuple[str, str]], tmp_path: Path
) -> None:
    learner = Learner(tmp_path / "model", recipe=recipe, keep=2, forgettable=True)
    assert learner.things == "texts"
    first = learner.learn(of_classes(rows, "red", "green"))
    assert first
    assert (first.images, first.set_aside) == (20, 4)
    before = learner.logits(["the red0", "a green1 green2"])
    second = learner.learn(of_classes(rows, "green", "blue"), max_drop=100.0)  # green was learned already
    assert second
    assert second.classes == ("blue",)
    assert second.accuracy is not None
    assert learner.learn(of_classes(rows, "red", "blue")) is None
    red, _ = judges = of_classes(rows, "red")
    with pytest.raises(RegressionError, match=r"max_flips: 0 texts are allowed, and \d+ of 18 would be told wrong"):
        learner.learn(([f"{text} and" for text in red], ["yellow"] * 12), test=judges, max_flips=0)
    aside = learner.set_aside()
    assert len(aside) == 6
    assert all(re.fullmatch(r"[a-z0-9 ]+", str(text)) for text in aside)
    assert learner.predictor.calibration
    answers = learner.classify(["the red0 of red1", "blue2"])
    assert {answer.class_name for answer in answers} <= {"red", "green", "blue"}
    learner.forget("green")
    assert learner.class_names == ("red", "blue")
    learner.purge()
    assert len(load(tmp_path / "model").set_aside()) == 4  # type: ignore[union-attr]
    learner.learn(of_classes(rows, "cyan"))
    learner.rollback(4)
    assert learner.class_names == ("red", "blue")
    again = Learner(tmp_path / "again", recipe=recipe, keep=2)
    again.learn(of_classes(rows, "red", "green"))
    assert torch.equal(again.logits(["the red0", "a green1 green2"]), before)


def test_two_models_of_texts_are_joined(recipe: dict[str, Any], rows: list[tuple[str, str]], tmp_path: Path) -> None:
    """What they set aside is of unlike lengths."""
    one, other = (Learner(tmp_path / name, recipe=recipe, keep=2) for name in ("one", "other"))
    one.learn(of_classes(rows, "red", "green"))
    other.learn((["blue0 " * n for n in range(3, 20)] + ["cyan1"] * 2, ["blue"] * 17 + ["cyan"] * 2))
    one.join(other)
    assert one.class_names == ("green", "red", "blue", "cyan")
    assert len(one.set_aside()) == 6


def test_what_cannot_be_learned(recipe: dict[str, Any], tmp_path: Path) -> None:
    learner = Learner(tmp_path / "model", recipe=recipe)
    with pytest.raises(LoricaError, match="has learned nothing yet; give it texts with their classes"):
        learner.predict(["red0"])
    with pytest.raises(DataError, match="expected a file of rows, or a pair of texts and labels, got a int"):
        learner.learn(3)
    with pytest.raises(DataError, match=r"x: expected a list of texts and as many labels, got 2 and 1"):
        learner.learn((["red0", "red1"], ["red"]))
    with pytest.raises(DataError, match=r"row 2: nothing is in it"):
        learner.learn((["red0", " "], ["red", "green"]))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="has no texts; give a file of rows"):
        learner.learn(tmp_path / "empty")
    with pytest.raises(DataError, match="the same text is there as another class"):
        learner.learn((["red0", "red1", "red0"], ["red", "red", "green"]))
    assert not list((tmp_path / "model").glob("checkpoints/*"))
    numbers = Learner(recipe=recipe).partial_fit(["red0 red1", "red2", "blue1 blue0", "blue2"], np.array([3, 3, 8, 8]))
    assert set(numbers.predict(["red3", "blue3"]).tolist()) <= {3, 8}
    assert not numbers.__sklearn_tags__().input_tags.three_d_array
    with pytest.raises(DataError, match="expected several texts, got a single str; put it into a list"):
        numbers.predict("red3")


def test_a_text_that_stands_twice_in_a_file_is_a_copy(
    lorica: Lorica, rows: list[tuple[str, str]], tmp_path: Path
) -> None:
    file = tmp_path / "may.csv"
    with file.open("w", newline="") as stream:
        csv.writer(stream).writerows([("text", "label"), *rows, *rows[:5]])
    settings = ["method=prototypes", "backbone.name=lorica_tiny_text"]
    code, out, err = lorica("learn", str(tmp_path / "topics"), "--data", str(file), *settings)
    assert (code, err) == (0, "5 texts are copies of others that have come with them, and are passed over\n")
    assert "learned already" not in out


def test_the_commands(
    lorica: Lorica, tiny_text_folder: Path, rows: list[tuple[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with Path("may.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("says", "label"), *(row for row in rows if row[1] in ("red", "green"))])
    june = Path("june")
    june.mkdir()
    for name in ("green", "blue"):
        (june / f"{name}.txt").write_text("\n\n".join(text for text, label in rows if label == name))
    settings = ["backbone.name=hf:tiny", f"backbone.weights={tiny_text_folder}", "backbone.pooling=mean"]
    settings += ["method.passes=0", "method.layers=1", "data.text_column=says"]

    code, out, err = lorica("learn", "topics", "--data", "may.csv", "--keep", "2", *settings)
    assert (code, err) == (0, "")
    assert "Version 1: learned green, red from 20 texts and set 4 aside" in out
    assert Path("topics/recipe.yaml").read_text().count("own_texts") == 0
    code, out, err = lorica("learn", "topics", "--data", "june")
    assert "12 texts have been learned already, and are passed over" in out + err
    assert "Version 2: learned blue from 10 texts and set 2 aside" in out
    code, out, _ = lorica("learn", "topics", "--data", "june")
    assert "Nothing new: every text there has been learned already" in out
    code, out, _ = lorica("history", "topics")
    assert "Texts: learned + set aside" in out

    Path("mail.jsonl").write_text('{"says": "a red0"}\n"the blue1"\n')
    code, out, _ = lorica("predict", "topics", "mail.jsonl", "is green2 not green3", "--json")
    answers = [json.loads(line) for line in out.splitlines()]
    assert [each["text"] for each in answers] == ["a red0", "the blue1", "is green2 not green3"]
    learner = load("topics")
    assert isinstance(learner, Learner)
    assert [each["class"] for each in answers] == [*learner.predict([each["text"] for each in answers])]
    code, out, _ = lorica("predict", "topics", "mail.jsonl", "--csv")
    assert out.splitlines()[0] == "text,class,probability,unknown"
    code, out, err = lorica("predict", "topics", "mial.jsonl")
    assert (code, out) == (2, "")
    assert "mial.jsonl: is not there; name a file of texts, or give a text of several words" in err
    Path("music").mkdir()
    Path("owl.png").touch()
    for each in ("music", "owl.png"):  # which are there, and are not taken for a text of one word
        code, out, err = lorica("predict", "topics", each)
        assert (code, out) == (2, "")
        assert f"{each}: is there, but neither a file of texts" in err
    Path("odd.jsonl").write_text(json.dumps("red1\tgreen2  \u202e x") + "\n")
    code, out, _ = lorica("predict", "topics", "odd.jsonl", "--csv")
    assert next(csv.reader(out.splitlines()[1:]))[0] == "red1\tgreen2  \u202e x"  # to the character, for a program
    code, out, _ = lorica("predict", "topics", "june", "read me.txt " + 300 * "again ", "--csv")
    assert len(out.splitlines()) == 1 + 24 + 1
    code, out, err = lorica("predict", "topics", "red1", " ", "--csv")
    assert code == 2
    assert out.splitlines()[1].startswith("red1,")
    assert "a text to predict: nothing is in it" in err
    code, out, err = lorica("predict", "topics", "may.csv", "--version", "1", "--csv")
    assert len(out.splitlines()) == 25

    with Path("test.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("says", "label"), ("red0 red1", "red"), ("blue0", "blue")])
    code, out, _ = lorica("evaluate", "topics", "--data", "test.csv")
    assert "of 2 texts right" in out
    code, _, err = lorica("evaluate", "topics", "--data", "may.json")
    assert code == 2
    assert "may.json is not there" in err
    assert lorica("rollback", "topics", "--to", 1)[0] == 0
    assert load("topics").class_names == ("green", "red")


def test_the_commands_tell_how_many_texts_were_cut(
    lorica: Lorica, tiny_text_folder: Path, rows: list[tuple[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    longer = [(f"{text} {text} {text}" if label == "red" else "of it", label) for text, label in rows]
    with Path("may.csv").open("w", newline="") as stream:
        given = [row for row in dict.fromkeys(longer) if row[1] == "red"]
        csv.writer(stream).writerows([("text", "label"), *given, *((f"green{n}", "green") for n in range(4))])
    settings = ["backbone.name=hf:tiny", f"backbone.weights={tiny_text_folder}", "backbone.pooling=mean"]
    settings += ["method.passes=0", "method.layers=1", "data.max_tokens=6"]
    told = f"data.max_tokens: cut {len(given)} texts, which are longer"
    code, out, err = lorica("learn", "topics", "--data", "may.csv", "--keep", "2", *settings)
    assert code == 0, err
    assert told in out + err
    code, out, err = lorica("predict", "topics", "may.csv", "--csv")
    assert (code, told in err, told in out) == (0, True, False)
    code, out, err = lorica("evaluate", "topics", "--data", "may.csv")
    assert code == 0, err
    assert told in out + err
    assert "data.max_tokens" not in lorica("predict", "topics", "green1 green2", "--csv")[2]


def test_an_export_is_compared_on_what_was_set_aside(
    lorica: Lorica, recipe: dict[str, Any], rows: list[tuple[str, str]], tmp_path: Path
) -> None:
    method = {"method": {"name": "sd_lora", "rank": 2}}
    learner = Learner(tmp_path / "model", recipe=recipe | method, keep=2)
    learner.learn(of_classes(rows, "red", "green"))
    assert export(learner, tmp_path / "exported", "hf", learner.set_aside()).real
    code, out, _ = lorica("export", tmp_path / "model", "--to", "hf")
    assert code == 0
    assert "Loaded back and compared on 4 texts" in out
    (tmp_path / "some.txt").write_text("a red1\nthe green2\n")
    code, out, _ = lorica("export", tmp_path / "model", "--to", "hf", "--images", tmp_path / "some.txt")
    assert "compared on 2 texts" in out
    assert isinstance(learner.predictor, Predictor)
    assert isinstance(learner.method.encoder, HFText)
