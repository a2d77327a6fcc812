"""Streams of several data sets of texts: read in whatever form they are there, in the order asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lorica.config import packaged_recipes, read_recipe
from lorica.data.contents import digests_of
from lorica.data.manifest import read_manifest
from lorica.data.sources import Source, cl_benchmark, load_source
from lorica.data.sources.cl_benchmark import ORDERS
from lorica.data.stream import Stream
from lorica.data.texts import TextReader, Texts
from lorica.errors import DataError
from lorica.run import run
from tests.conftest import CLASS_NAMES


def rows(name: str, number: int, text: str = "text", label: str = "label") -> list[dict[str, Any]]:
    return [{text: f"{name} {n}", label: f"kind{n % 2}"} for n in range(number)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """As the authors have it (TC/agnews, with further files); as rows; and as `save_to_disk` writes it."""
    import datasets

    authors = tmp_path / "TC" / "agnews"
    authors.mkdir(parents=True)
    for half, number in (("train", 6), ("dev", 2), ("test", 4)):
        (authors / f"{half}.json").write_text(json.dumps(rows("ag", number, "sentence")))
    (authors / "labels.json").write_text(json.dumps(["kind0", "kind1"]))
    (tmp_path / "Amazon").mkdir()
    for half, number in (("train", 4), ("test", 2)):
        (tmp_path / "Amazon" / f"{half}.json").write_text(json.dumps(rows("amazon", number)))
    titled = [each | {"content": "b"} for each in rows("dbpedia", 4, "title")]
    datasets.DatasetDict({half: datasets.Dataset.from_list(titled) for half in ("train", "test")}).save_to_disk(
        tmp_path / "dbpedia"
    )
    return tmp_path


def read(source: Source, half: str) -> list[tuple[str, str]]:
    samples = getattr(source, half)
    assert isinstance(samples, Texts)
    return [(text, source.class_names[label]) for text, label in zip(samples.texts, samples.labels, strict=True)]


def test_a_task_is_a_data_set(root: Path, tiny_text_encoder: Any) -> None:
    source = load_source("cl_benchmark", root=root, dataset="dbpedia, ag,amazon")
    assert source.class_names == tuple(f"{name}: kind{n}" for name in ("dbpedia", "ag", "amazon") for n in (0, 1))
    expected = [(f"dbpedia {n} b", f"dbpedia: kind{n % 2}") for n in range(4)]
    assert read(source, "train")[:4] == expected
    assert read(source, "test") == [
        *expected,
        *((f"ag {n}", f"ag: kind{n % 2}") for n in range(4)),
        *((f"amazon {n}", f"amazon: kind{n % 2}") for n in range(2)),
    ]
    stream = Stream(source, by="domain", tasks=3, reader=TextReader(**tiny_text_encoder().reading()))
    assert [len(stream.train(task)) for task in stream.tasks] == [4, 6, 4]
    assert [set(task.class_names) for task in stream.tasks] == [
        {f"{name}: kind0", f"{name}: kind1"} for name in ("dbpedia", "ag", "amazon")
    ]
    assert all(task.classes == task.new_classes for task in stream.tasks)


def test_of_more_texts_of_a_class_some_are_drawn(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cl_benchmark, "MOST", 2)
    found = [read(load_source("cl_benchmark", root=root, dataset="ag", split_seed=seed), "train") for seed in range(9)]
    assert all(sorted(label for _, label in each) == ["ag: kind0"] * 2 + ["ag: kind1"] * 2 for each in found)
    assert found[0] != found[1] or found[0] != found[2]
    assert found[0] == read(load_source("cl_benchmark", root=root, dataset="ag"), "train")
    assert len(load_source("cl_benchmark", root=root, dataset="ag").test) == 4


def test_a_manifest_is_the_same_stream_at_any_split_seed(
    root: Path, tmp_path: Path, tiny_text_encoder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cl_benchmark, "MOST", 2)
    reader = TextReader(**tiny_text_encoder().reading())

    def source(seed: int) -> Source:
        return load_source("cl_benchmark", root=root, dataset="ag,dbpedia,amazon", split_seed=seed)

    stream = Stream(source(0), by="domain", tasks=3, reader=reader)
    drawn = stream.source.train
    assert [drawn.name(place) // 6 for place in range(4)] == [0] * 4  # rows of the first data set, which has six
    assert [(number - 6) // 4 for number in drawn.numbers[4:].tolist()] == [0] * 4 + [1] * 4
    told = stream.manifest(digests_of(stream.source))
    file = tmp_path / "stream.jsonl"
    file.write_text(told.text)
    others = [source(seed) for seed in range(1, 9)]
    assert any(set(other.train.numbers.tolist()) != set(drawn.numbers.tolist()) for other in others)
    for other in others:
        again = Stream(other, reader=reader, manifest=read_manifest(file))
        assert again.manifest(digests_of(again.source)).text == told.text
        assert read(again.source, "train") == read(stream.source, "train")


def test_what_is_not_there(root: Path) -> None:
    with pytest.raises(
        DataError, match=r"lacks mnli, cb, wic; place a folder of that name .*Of the hub only ag, dbped"
    ):
        load_source("cl_benchmark", root=root, dataset="mnli,ag,cb,wic")
    with pytest.raises(DataError, match=r"no folder .* and there is none to fetch of amazon; place .* in one that"):
        load_source("cl_benchmark", root=None)
    for empty in ("ag,,amazon", "ag,", " "):
        with pytest.raises(DataError, match=rf"^data\.dataset: expected names with single commas .* given '{empty}'"):
            load_source("cl_benchmark", root=root, dataset=empty)
    with pytest.raises(DataError, match=r"ag is named twice"):
        load_source("cl_benchmark", root=root, dataset="ag,ag")
    with pytest.raises(DataError, match=r"is not a folder"):
        load_source("cl_benchmark", root=root / "nowhere", dataset="ag")
    (root / "Amazon" / "test.json").unlink()
    with pytest.raises(DataError, match=r"amazon has no test half"):
        load_source("cl_benchmark", root=root, dataset="amazon")
    (root / "Amazon" / "test.json").write_text(json.dumps(rows("amazon", 2, "says")))
    (root / "Amazon" / "train.json").write_text(json.dumps(rows("amazon", 2, "says")))
    with pytest.raises(DataError, match=r"data\.text_column: train has no column text; it has says, label"):
        load_source("cl_benchmark", root=root, dataset="amazon")
    assert len(load_source("cl_benchmark", root=root, dataset="amazon", text_column="says").train) == 2


def test_the_orders_and_their_recipes() -> None:
    lengths = {name: len(order.split(",")) for name, order in ORDERS.items()}
    assert lengths == dict.fromkeys(("order_1", "order_2", "order_3"), 4) | dict.fromkeys(
        ("order_4", "order_5", "order_6"), 15
    )
    assert len({frozenset(ORDERS[name].split(",")) for name in ("order_1", "order_2", "order_3")}) == 1
    assert len({frozenset(ORDERS[name].split(",")) for name in ("order_4", "order_5", "order_6")}) == 1
    for name, tasks in lengths.items():
        recipe = read_recipe(f"o_lora_{name}")
        assert f"o_lora_{name}" in packaged_recipes()
        assert (recipe.data.source, recipe.data.dataset, recipe.stream.tasks) == ("cl_benchmark", name, tasks)
        assert recipe.stream.by == "domain"


def test_a_run_over_tiny_copies(tiny_text_folder: Path, tmp_path: Path) -> None:
    order = ("dbpedia", "amazon", "yahoo", "ag")
    for place, name in enumerate(order):
        (tmp_path / name).mkdir()
        for half, number in (("train", 6), ("test", 4)):
            lines = [f"the {CLASS_NAMES[place]}{n % 2} is,{n % 2}" for n in range(number)]
            (tmp_path / name / f"{half}.csv").write_text("\n".join(["text,label", *lines]) + "\n")
    result = run(
        "o_lora_order_1",
        out=tmp_path / "run",
        progress=False,
        **{"data.root": tmp_path, "backbone.weights": tiny_text_folder, "method.rank": 2, "device": "cpu"},
    )
    assert [set(task["classes"]) for task in result.tasks] == [{f"{name}: 0", f"{name}: 1"} for name in order]
    assert [(task["train"], task["test"]) for task in result.tasks] == [(6, 4)] * 4
    assert [len(row) for row in result.accuracy] == [1, 2, 3, 4]
    assert result.recipe["data"]["dataset"] == "order_1"
