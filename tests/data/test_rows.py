"""Files of rows and Hugging Face's datasets: what they give, and what is wrong with them, said before anything is
learned."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lorica.assembly import build_source
from lorica.config import read_recipe
from lorica.data.folders import holds_texts
from lorica.data.images import Images
from lorica.data.rows import Columns
from lorica.data.sources import Source, hf_dataset, labelled_texts, load_source, table, texts, texts_alone
from lorica.data.sources.base import remarks
from lorica.data.sources.table import texts_with_labels
from lorica.data.texts import Texts
from lorica.errors import DataError

ROWS = [{"text": f"{name} {number}", "label": name} for number in range(4) for name in ("kite", "wren", "lark")]
CELLS = [("kite", "wood"), ("wren", "wood"), ("kite", "sea")]
TEST = [{"text": f"a {name}", "label": name} for name in ("kite", "wren", "lark")]


def as_csv(file: Path, rows: list[dict[str, Any]], delimiter: str = ",") -> None:
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def as_parquet(file: Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows), file)


WRITERS: dict[str, Callable[[Path, list[dict[str, Any]]], Any]] = {
    ".json": lambda file, rows: file.write_text(json.dumps(rows), encoding="utf-8"),
    ".jsonl": lambda file, rows: file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"),
    ".csv": as_csv,
    ".tsv": lambda file, rows: as_csv(file, rows, "\t"),
    ".parquet": as_parquet,
}


def read(source: Source, half: str) -> list[tuple[str, str]]:
    samples = getattr(source, half)
    assert isinstance(samples, Texts)
    return [(text, source.class_names[label]) for text, label in zip(samples.texts, samples.labels, strict=True)]


def pairs(rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(row["text"], row["label"]) for row in rows]


@pytest.mark.parametrize("suffix", WRITERS)
def test_two_files_are_the_two_halves(suffix: str, tmp_path: Path) -> None:
    WRITERS[suffix](tmp_path / f"train{suffix}", ROWS)
    WRITERS[suffix](tmp_path / f"test{suffix}", TEST)
    source = load_source("table", root=tmp_path)
    assert source.class_names == ("kite", "lark", "wren")
    assert read(source, "train") == pairs(ROWS)
    assert read(source, "test") == pairs(TEST)
    assert source.facts == {"classes": 3, "train": 12, "test": 3, "root": str(tmp_path), "split": "names"}


@pytest.mark.parametrize("suffix", WRITERS)
def test_one_file_is_split_class_by_class(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"birds{suffix}"
    WRITERS[suffix](file, ROWS)
    source = table(file, test_fraction=0.25, split_seed=1)
    assert sorted(read(source, "train") + read(source, "test")) == sorted(pairs(ROWS))
    assert sorted(label for _, label in read(source, "test")) == ["kite", "lark", "wren"]
    assert source.facts["split"] == "per class"
    assert read(table(file, split_seed=1), "test") == read(source, "test")
    assert read(table(file, split_seed=2), "test") != read(source, "test")


def test_an_object_of_pairs_as_clinc150_has_them(tmp_path: Path) -> None:
    held = {
        half: [list(pair) for pair in pairs(rows)] for half, rows in (("train", ROWS), ("test", TEST), ("val", TEST))
    }
    file = tmp_path / "clinc.json"
    file.write_text(json.dumps(held | {"oos_train": [["?", "oos"]]}))
    source = table(file)
    assert read(source, "train") == pairs(ROWS)
    assert read(source, "test") == pairs(TEST)
    assert remarks(source.facts) == ["data.root: passed over 2 files or folders: 2 beside train and test"]


def test_named_columns_several_of_them_and_numbers_of_classes(tmp_path: Path) -> None:
    rows = [{"title": "T", "body": "of 10", "topic": 10}, {"title": "U", "body": None, "topic": 2}] * 2
    WRITERS[".jsonl"](tmp_path / "news.jsonl", rows)
    columns = {"text_column": ["title", "body"], "label_column": "topic"}
    source = load_source("table", root=tmp_path / "news.jsonl", test_fraction=0.5, split_seed=0, **columns)
    assert source.class_names == ("2", "10")
    assert sorted(read(source, "train")) == [("T of 10", "10"), ("U", "2")]


def test_images_are_read_when_they_are_needed(tmp_path: Path) -> None:
    names = ("a0", "b0", "a1", "b1")
    for name in names:
        Image.new("RGB", (4, 4), "red" if name[0] == "a" else "blue").save(tmp_path / f"{name}.png")
    WRITERS[".csv"](tmp_path / "list.csv", [{"file": f"{name}.png", "label": name[0]} for name in names])
    source = table(tmp_path / "list.csv", Columns(image="file"), test_fraction=0.5)
    assert isinstance(source.train, Images)
    assert source.train.decode(int(source.train.labels.argmax())).tolist() == np.full((4, 4, 3), [0, 0, 255]).tolist()


def test_rows_that_cannot_be_used_are_told_or_left_out(tmp_path: Path) -> None:
    wrong = [{"text": " ", "label": "kite"}, {"text": "kite", "label": None}, {"text": 3, "label": "kite"}]
    WRITERS[".jsonl"](tmp_path / "birds.jsonl", ROWS + wrong)
    with pytest.raises(DataError) as caught:
        table(tmp_path / "birds.jsonl")
    assert list(caught.value.problems) == [
        "data.root: 3 rows cannot be used; data.unreadable=skip leaves them out",
        "data.root: birds.jsonl, line 13: nothing is in it",
        "data.root: birds.jsonl, line 14: it has no label",
        "data.root: birds.jsonl, line 15: expected a text, got 3",
    ]
    source = table(tmp_path / "birds.jsonl", unreadable="skip")
    assert sorted(read(source, "train") + read(source, "test")) == sorted(pairs(ROWS))
    assert remarks(source.facts) == [
        "data.unreadable: left out 3 rows that lack a label or a domain, or a text or image that can be read"
    ]


def test_classes_of_which_no_row_can_be_used_are_named(tmp_path: Path) -> None:
    wrong = [{"text": " ", "label": name} for name in ("tern", "kite", "heron", "auk\ud800")]
    WRITERS[".jsonl"](tmp_path / "birds.jsonl", ROWS + wrong)
    source = table(tmp_path / "birds.jsonl", unreadable="skip")
    assert remarks(source.facts)[1:] == ["data.unreadable: left out classes of which no row can be used: heron, tern"]


def test_labels_and_domains_that_differ_in_case_or_as_numbers_are_told(tmp_path: Path) -> None:
    names = [("Track_Parcel", "sea"), ("track_parcel", "Sea"), ("1", "wood"), ("1.0", "wood")]
    as_csv(tmp_path / "a.csv", [{"text": "a", "label": label, "where": where} for label, where in names * 2])
    told = [
        "classes that differ only in case or in how a number is written: 1 and 1.0, Track_Parcel and "
        "track_parcel; if they are one, rename them",
        "domains that differ only in case or in how a number is written: Sea and sea; if they are one, rename them",
    ]
    assert remarks(table(tmp_path / "a.csv", Columns(domain="where")).facts) == told
    assert remarks(labelled_texts(tmp_path / "a.csv")[2]) == told[:1]


def test_labels_that_the_test_rows_spell_otherwise_are_told() -> None:
    train = (["a", "b", "c", "d"], ["Wren", "kite", "1", "1.0"])
    with pytest.raises(DataError) as caught:
        texts(train, (["a", "b"], ["wren", "lark"]))
    assert list(caught.value.problems) == [
        "data.root: test has classes that train lacks: lark, wren",
        "data.root: classes that differ only in case or in how a number is written: Wren and wren; if they are one, "
        "rename them",
    ]


def test_labels_with_other_space_look_the_same(tmp_path: Path) -> None:
    as_csv(tmp_path / "a.csv", [{"text": "a", "label": label} for label in ("big cat", "big  cat", "big\u00a0cat") * 2])
    with pytest.raises(DataError, match=r"^data\.root: classes whose names look the same: 'big  cat', 'big cat', "):
        table(tmp_path / "a.csv")


def test_rows_whose_label_or_domain_is_not_unicode_are_left_out(tmp_path: Path) -> None:
    rows = [row | {"where": "sea"} for row in ROWS]
    wrong = [{"text": "a", "label": "\ud800", "where": "sea"}, {"text": "b", "label": "kite", "where": "\udfff"}]
    WRITERS[".jsonl"](tmp_path / "birds.jsonl", rows + wrong)
    with pytest.raises(DataError) as caught:
        table(tmp_path / "birds.jsonl", Columns(domain="where"))
    assert [line.partition(": its ")[2] for line in caught.value.problems[1:]] == [
        r"label is not Unicode, '\ud800'",
        r"domain is not Unicode, '\udfff'",
    ]
    source = table(tmp_path / "birds.jsonl", Columns(domain="where"), unreadable="skip")
    assert (source.class_names, source.facts["left_out"]) == (("kite", "lark", "wren"), 2)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.json", "[{}, 3]", "expected rows that are objects, or pairs of text and label, got 3"),
        ("a.json", "{", "cannot be read"),
        ("a.json", '{"rows": 3}', "expected a list of rows"),
        ("a.json", '{"one": [], "two": []}', "expected one to train on and one to test on"),
        ("a.jsonl", '{"text": "x", "label": "y"}\n{', "line 2: "),
        ("a.csv", "text,label\nx,y,z\n", "line 2 has 3 fields, and the first line names 2 columns"),
        ("a.csv", "text,label\n\nx,y\n\nx\n", "line 5 has 1 fields, and the first line names 2 columns"),
        ("a.csv", 'text,label\n"x\nx",y\nx\n', "line 4 has 1 fields"),
        ("a.csv", 'text,label\nx,y\n"x" x,y\n', "(line 3: a quotation mark ends a field, and a comma or the end"),
        ("a.csv", 'text,label\n\n"x,y\nx,y\n', "(lines 3 to 4: a quotation mark begins a field, and none ends it"),
        ("a.tsv", 'text\tlabel\n"x" x\ty\nx\n', "(line 2: a quotation mark ends a field, and a tab or the end of"),
        ("a.csv", "text;label\nx, y;z\n", "(a semicolon, not a comma, separates the columns in its first line; use a"),
        ("a.csv", "text\tlabel\nx\tz\n", "(a tab, not a comma, separates the columns in its first line; call it .tsv"),
        ("a.tsv", "text,label\nx,z\n", "(a comma, not a tab, separates the columns in its first line; call it .csv)"),
        ("a.csv", "t\0e\0x\0t\0,\0l\0\n\0", "(its first line has NULs, as UTF-16 has; save it as UTF-8)"),
        ("a.jsonl", '["x", "y"]\n\n3\n', "a.jsonl, line 3: expected rows that are objects, or pairs of text and"),
        ("a.csv", "text,label,label\nx,y,z\n", "the column 'label' is there more than once"),
        ("a.json", '[{"text": "x", "label": "y", "label": "z"}]', "the key 'label' is there more than once"),
        ("a.json", '{"train": [], "train": [], "test": []}', "the key 'train' is there more than once"),
        ("a.jsonl", '{"text": "x", "text": "y"}', "line 1: the key 'text' is there more than once"),
        ("a.json", "[" * 200_000, "lists within lists within lists"),
        ("a.jsonl", "[" * 200_000, "lists within lists within lists"),
        ("a.csv", "text,label\n", "data.root: a.csv has no rows; give some"),
        ("a.json", "[]", "data.root: a.json has no rows; give some"),
        ("a.jsonl", "", "data.root: a.jsonl has no rows; give some"),
        ("a.json", '{"train": [], "test": []}', "data.root: train has no rows; give some\ndata.root: test has no rows"),
        ("a.parquet", "no", "cannot be read"),
        ("a.md", "x", "is none of .json, .jsonl, .csv, .tsv, .parquet"),
        ("a.csv", "words,label\nx,y\n", "data.text_column: a.csv has no column text; it has words, label"),
        ("a.csv", "text,label\nx,y\n", "classes with a single row: y"),
    ],
)
def test_faults_of_files(name: str, content: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError) as caught:
        table(tmp_path / name)
    assert expected in str(caught.value)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".json", ".txt"])
@pytest.mark.parametrize(
    ("encoding", "where"), [("latin-1", "line 3 has the byte 0xe9"), ("utf-16", "it begins as UTF-16 does")]
)
def test_a_file_in_another_encoding(encoding: str, where: str, suffix: str, tmp_path: Path) -> None:
    (tmp_path / f"a{suffix}").write_text("text,label\nx,y\ncafé,y\n" + "x,y\n" * 9000, encoding=encoding)
    with pytest.raises(DataError, match=rf"^data\.root: .*a\{suffix} is not UTF-8 \({where}\); save it as UTF-8$"):
        table(tmp_path / f"a{suffix}")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "text,label\n\n\nx,y\n\n ,y\n"),
        ("a.tsv", "\ntext\tlabel\nx\ty\n\n\n \ty\n"),
        ("a.csv", 'text,label\r\n"x\r\nx\r\n",y\r\n\r\n,y\r\n'),
        ("a.jsonl", '{"text": "x", "label": "y"}\n\n\n\n\n{"text": "", "label": "y"}'),
    ],
    ids=["csv", "tsv", "text of several lines", "jsonl"],
)
def test_rows_are_told_by_the_line_where_they_begin(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content, newline="")
    with pytest.raises(DataError, match=rf"\ndata\.root: {re.escape(name)}, line 6: nothing is in it$"):
        table(tmp_path / name)


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (['"Great" movie', "so so"], ['"Great" movie', "so so"]),
        (['"Great', '"What" a, "movie"', '"so so"'], ['"Great', '"What" a, "movie"', '"so so"']),
        (['"says ""Great"""', '"in two\nlines"', 'a "b" c'], ['says "Great"', "in two\nlines", 'a "b" c']),
    ],
    ids=["begins with a word in quotes", "begins with a quotation mark", "quoted"],
)
def test_quotation_marks_in_tsv_are_text_where_they_do_not_quote(
    cells: list[str], expected: list[str], tmp_path: Path
) -> None:
    (tmp_path / "a.tsv").write_text("text\tlabel\n" + "".join(f"{cell}\ty\n" for cell in cells))
    assert texts_alone(tmp_path / "a.tsv") == expected


def test_a_column_with_a_semicolon_in_its_name_may_be_asked_for(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text; raw\nx\n")
    assert texts_alone(tmp_path / "a.csv", Columns("text; raw")) == ["x"]


def test_a_column_of_parquet_that_is_there_twice(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    cells = [["a", "b"], ["kite", "kite"], ["wren", "wren"]]
    parquet.write_table(pyarrow.table(cells, names=["text", "label", "label"]), tmp_path / "birds.parquet")
    with pytest.raises(DataError) as caught:
        table(tmp_path / "birds.parquet")
    assert str(caught.value).endswith("cannot be read (the column 'label' is there more than once)")


def of_the_far_future(file: Path, kind: str, **columns: list[Any]) -> None:
    """Parquet with a column `valid_to` of times that Python cannot tell."""
    import pyarrow
    from pyarrow import parquet

    far = pyarrow.array([2**58 if "[" in kind else 2**30] * 8, pyarrow.type_for_alias(kind))
    cells = {"text": [f"{number}" for number in range(8)], "label": ["kite", "wren"] * 4} | columns
    parquet.write_table(pyarrow.table(cells | {"valid_to": far}), file)


@pytest.mark.parametrize("kind", ["timestamp[us]", "date32", "duration[s]"])
def test_a_column_of_parquet_that_nobody_asked_for_is_not_read(kind: str, tmp_path: Path) -> None:
    of_the_far_future(tmp_path / "birds.parquet", kind)
    assert table(tmp_path / "birds.parquet").class_names == ("kite", "wren")
    assert texts_alone(tmp_path / "birds.parquet") == [str(number) for number in range(8)]
    with pytest.raises(DataError, match=r"has no column topic; it has text, label, valid_to$"):
        table(tmp_path / "birds.parquet", Columns(label="topic"))
    with pytest.raises(DataError, match=r"has no column says; it has text, label, valid_to$"):
        texts_alone(tmp_path / "birds.parquet", Columns("says"))
    with pytest.raises(DataError, match=r"birds\.parquet cannot be read \(the column 'valid_to': "):
        table(tmp_path / "birds.parquet", Columns(label="valid_to"))


def test_a_file_of_parquet_with_flipped_bytes(tmp_path: Path) -> None:
    of_the_far_future(tmp_path / "whole.parquet", "timestamp[us]")
    whole, draws = (tmp_path / "whole.parquet").read_bytes(), np.random.RandomState(0)
    for _ in range(300):
        flipped = bytearray(whole)
        for place in draws.randint(len(whole), size=draws.choice([1, 2, 5])):
            flipped[place] = draws.randint(256)
        (tmp_path / "flipped.parquet").write_bytes(flipped)
        with suppress(DataError):
            table(tmp_path / "flipped.parquet", Columns(label="valid_to" if draws.rand() < 0.2 else "label"))


def test_no_column_of_texts() -> None:
    with pytest.raises(DataError, match=r"^data\.text_column: expected a column, or a list of some, given an empty"):
        build_source(read_recipe("own_texts", {"data.text_column": [], "data.root": "birds.csv"}))


def test_halves_in_parts(tmp_path: Path) -> None:
    for name, rows in (("train-00000-of-00002", ROWS), ("train-00001-of-00002", ROWS), ("test-00000-of-00001", TEST)):
        as_parquet(tmp_path / f"{name}.parquet", rows)
    with pytest.raises(DataError, match=r"has halves in parts, test-0.*; give data\.source=hf_dataset, which puts"):
        table(tmp_path)
    assert len(hf_dataset(tmp_path).train) == 2 * len(ROWS)


def test_a_class_that_only_the_test_rows_have() -> None:
    with pytest.raises(DataError, match=r"^data\.root: test has classes that train lacks: wren$"):
        texts((["x", "y"], ["kite", "lark"]), (["z"], ["wren"]))
    with pytest.raises(DataError, match="expected a list of texts and as many labels, got 2 and 1"):
        texts((["x", "y"], ["kite"]), (["z"], ["kite"]))


@pytest.mark.parametrize(
    "labels",
    [
        torch.tensor([3, 10, 3, 10]),
        list(torch.tensor([3, 10, 3, 10])),
        torch.tensor([3.0, 10.0, 3.0, 10.0]),
        np.array([3, 10, 3, 10]),
        np.array([3, 10, 3, 10], np.float32),
        [b"3", b"10", b"3", b"10"],
    ],
    ids=["tensor", "list of tensors", "tensor of floats", "array", "array of floats", "bytes"],
)
def test_labels_of_other_kinds_name_the_same_classes(labels: Any) -> None:
    names, samples, _ = texts_with_labels(["a", "b", "c", "d"], labels)
    assert names == ["3", "10"]
    assert samples.labels.tolist() == [0, 1, 0, 1]
    assert texts_with_labels(["a", "b"], torch.tensor([3, 10]))[2]


@pytest.mark.parametrize(
    ("label", "fault"),
    [
        (["kite"], "its label is not a name or a number, but ['kite']"),
        ({"is": "kite"}, "its label is not a name or a number, but {'is': 'kite'}"),
        (b"\xff\xfe", "its label is bytes that are not UTF-8, b'\\xff\\xfe'"),
        (float("nan"), "it has no label"),
        ("", "it has no label"),
        (np.zeros(2), "its label is not a name or a number, but array([0., 0.])"),
        ("kite\ud800", "its label is not Unicode, 'kite\\ud800'"),
    ],
)
def test_labels_that_name_nothing_are_refused_with_their_row(label: Any, fault: str) -> None:
    with pytest.raises(DataError) as caught:
        texts_with_labels(["a", "b"], ["kite", label])
    assert caught.value.problems[1:] == (f"data.root: x, row 2: {fault}",)


def test_columns_of_parquet_that_hold_bytes_lists_or_structs(tmp_path: Path) -> None:
    file = tmp_path / "birds.parquet"
    as_parquet(file, [row | {"label": row["label"].encode()} for row in ROWS])
    assert table(file).class_names == ("kite", "lark", "wren")
    as_parquet(file, [row | {"where": {"is": "sea"}} for row in ROWS])
    with pytest.raises(DataError, match=r"birds\.parquet, row 1: its domain is not a name or a number, but {"):
        table(file, Columns(domain="where"))


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not there"):
        table(tmp_path / "nothing.csv")
    with pytest.raises(DataError, match="has no texts; give a file of rows"):
        table(tmp_path)
    with pytest.raises(DataError, match=r"needs a name, or a folder as data\.root, and not both"):
        load_source("hf_dataset", root=None)


def test_a_dataset_in_a_folder(tmp_path: Path) -> None:
    from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

    names = ["wren", "kite", "lark"]
    features = Features({"text": Value("string"), "label": ClassLabel(names=names)})
    numbered = [[row | {"label": names.index(row["label"])} for row in rows] for rows in (ROWS, TEST)]
    train, test = (Dataset.from_list(rows, features=features) for rows in numbered)
    DatasetDict({"train": train, "test": test}).save_to_disk(tmp_path / "both")
    source = load_source("hf_dataset", root=tmp_path / "both")
    assert (source.class_names, read(source, "train"), read(source, "test")) == (
        ("kite", "lark", "wren"),
        pairs(ROWS),
        pairs(TEST),
    )
    train.save_to_disk(tmp_path / "one")
    source = hf_dataset(tmp_path / "one")
    assert sorted(read(source, "train") + read(source, "test")) == sorted(pairs(ROWS))


def test_a_dataset_with_a_test_half_alone(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    DatasetDict({"test": Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "saved")
    with pytest.raises(DataError, match=r"saved has test to test on, and no split to train on; .* give its folder: "):
        hf_dataset(tmp_path / "saved")
    assert len(hf_dataset(tmp_path / "saved" / "test").train) == 9
    (tmp_path / "files").mkdir()
    as_csv(tmp_path / "files" / "test.csv", ROWS)
    with pytest.raises(DataError, match=r"files has test to test on, and no split to train on; add train\.\*, or, to"):
        hf_dataset(tmp_path / "files")


@pytest.mark.parametrize("name", ["train.jsonl", "train/a.jsonl", "train-00000-of-00001.jsonl"])
def test_a_half_of_another_format_that_the_library_would_leave_out(name: str, tmp_path: Path) -> None:
    as_csv(tmp_path / "train.csv", ROWS)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    WRITERS[".jsonl"](tmp_path / name, ROWS)
    with pytest.raises(DataError, match=r"^data\.root: .* beside .*, and the library datasets reads files of one"):
        hf_dataset(tmp_path)


def test_files_that_the_library_leaves_out_are_counted(tmp_path: Path) -> None:
    as_csv(tmp_path / "train.csv", ROWS)
    as_csv(tmp_path / "test.csv", TEST)
    WRITERS[".jsonl"](tmp_path / "june.jsonl", ROWS)
    (tmp_path / ".hidden.csv").write_text("text,label\n")
    source = hf_dataset(tmp_path)
    assert read(source, "train") == pairs(ROWS)
    assert source.facts["passed_over"] == {"beside the files that the library datasets reads": 1}


def test_a_column_of_a_dataset_that_python_cannot_tell(tmp_path: Path) -> None:
    import pyarrow
    from datasets import Dataset

    far = pyarrow.array([2**58] * 4, pyarrow.timestamp("us"))
    Dataset(pyarrow.table({"text": list("abcd"), "label": list("xyxy"), "valid_to": far})).save_to_disk(tmp_path / "d")
    assert hf_dataset(tmp_path / "d").class_names == ("x", "y")
    with pytest.raises(DataError, match=r"^data\.root: all: the column valid_to cannot be read: "):
        hf_dataset(tmp_path / "d", Columns(label="valid_to"))


def test_a_dataset_of_images(tmp_path: Path) -> None:
    from datasets import Dataset, Features, Value
    from datasets import Image as Pictures

    rows = [{"image": Image.new("RGB", (4, 4), colour), "label": colour} for colour in ("red", "blue", "red", "blue")]
    features = Features({"image": Pictures(), "label": Value("string")})
    Dataset.from_list(rows, features=features).save_to_disk(tmp_path / "images")
    source = load_source("hf_dataset", root=tmp_path / "images", image_column="image", test_fraction=0.5)
    assert isinstance(source.train, Images)
    assert source.train.decode(int(source.train.labels.argmax())).tolist() == np.full((4, 4, 3), [255, 0, 0]).tolist()
    with pytest.raises(DataError, match=r"^data\.image_column: label holds Value, not images; it has image, label"):
        hf_dataset(tmp_path / "images", Columns(image="label"))


def test_a_dataset_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets import config

    monkeypatch.setattr(config, "HF_ENDPOINT", "http://127.0.0.1:9")  # where nobody listens
    monkeypatch.setattr(config, "HF_HUB_OFFLINE", False)
    with pytest.raises(
        DataError, match=r"^data\.dataset: nobody/nothing cannot be fetched \(127\.0\.0\.1:9 cannot be reached"
    ):
        hf_dataset("nobody/nothing")
    with pytest.raises(DataError, match="is not a folder"):
        hf_dataset(tmp_path / "nothing")
    (tmp_path / "state.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        hf_dataset(tmp_path)


def test_a_file_of_lines_has_texts_of_one_class(tmp_path: Path) -> None:
    (tmp_path / "wren.txt").write_text("a wren\n\nanother wren\n", encoding="utf-8")
    (tmp_path / "kite.txt").write_text("a kite\r\nred kite", encoding="utf-8")
    (tmp_path / "README.md").write_text("birds")
    assert holds_texts(tmp_path)
    names, (samples,), facts = labelled_texts(tmp_path)
    assert names == ["kite", "wren"]
    assert list(samples.texts) == ["a kite", "red kite", "a wren", "another wren"]
    assert samples.labels.tolist() == [0, 0, 1, 1]
    assert facts == {"root": str(tmp_path), "passed_over": {"beside the .txt files": 1}}
    assert labelled_texts(tmp_path / "wren.txt")[0] == ["wren"]
    (tmp_path / "photos").mkdir()
    assert not holds_texts(tmp_path)
    assert not holds_texts(tmp_path / "README.md")


@pytest.mark.parametrize("unreadable", ["refuse", "skip"])
def test_files_of_lines_without_a_text(unreadable: Any, tmp_path: Path) -> None:
    for name, content in (("wren", "a wren\nwrens\n"), ("empty", ""), ("blank", " \n\n\t\n"), ("bom", "\ufeff\n")):
        (tmp_path / f"{name}.txt").write_text(content, encoding="utf-8")
    with pytest.raises(DataError) as caught:
        labelled_texts(tmp_path, unreadable=unreadable)
    assert list(caught.value.problems) == [
        f"data.root: {tmp_path / name}.txt has no texts, a line each; add some, or move it away"
        for name in ("blank", "bom", "empty")
    ]


def test_files_of_lines_that_are_called_like_halves(tmp_path: Path) -> None:
    for name in ("train", "test"):
        (tmp_path / f"{name}.txt").write_text("a wren\na kite\n")
    with pytest.raises(DataError, match=r"has test\.txt, train\.txt: a \.txt file is a class, and these are called"):
        table(tmp_path)


def test_two_files_of_one_half(tmp_path: Path) -> None:
    as_csv(tmp_path / "train.csv", ROWS)
    WRITERS[".jsonl"](tmp_path / "train.jsonl", ROWS)
    as_csv(tmp_path / "val.csv", TEST)
    as_csv(tmp_path / "dev.csv", TEST)
    with pytest.raises(DataError) as caught:
        table(tmp_path)
    assert list(caught.value.problems) == [
        f"data.root: {tmp_path} has {names}, all of them to {use} on; keep one of them, or put their rows into one file"
        for names, use in (("train.csv, train.jsonl", "train"), ("dev.csv, val.csv", "test"))
    ]
    (tmp_path / "train.jsonl").unlink()
    as_csv(tmp_path / "test.csv", TEST)
    assert table(tmp_path).facts["passed_over"] == {"beside train and test": 2}


def test_a_folder_with_a_test_half_alone(tmp_path: Path) -> None:
    as_csv(tmp_path / "test.csv", ROWS)
    with pytest.raises(DataError, match=r"has test\.csv to test on, and no file to train on; add train\.\*, or"):
        table(tmp_path)
    assert len(table(tmp_path / "test.csv").train) == 9


def test_what_lies_beside_a_table_is_counted(tmp_path: Path) -> None:
    as_csv(tmp_path / "birds.csv", ROWS)
    (tmp_path / "wren.txt").write_text("a wren\n")
    (tmp_path / "notes.md").write_text("birds")
    (tmp_path / ".hidden.csv").write_text("text,label\n")
    (tmp_path / "more.csv").mkdir()
    source = table(tmp_path)
    assert source.facts["passed_over"] == {"beside birds.csv": 3, "hidden": 1}
    assert remarks(source.facts) == ["data.root: passed over 4 files or folders: 3 beside birds.csv, 1 hidden"]
    (tmp_path / "birds.csv").unlink()
    (tmp_path / "birds.json").write_text(json.dumps({"train": ROWS, "test": TEST, "oos": []}))
    assert table(tmp_path).facts["passed_over"] == {"beside birds.json": 3, "hidden": 1, "beside train and test": 1}
    as_csv(tmp_path / "test.csv", TEST)
    (tmp_path / "birds.json").rename(tmp_path / "train.json")
    (tmp_path / "train.json").write_text(json.dumps(ROWS))
    (tmp_path / "other.csv").write_text("nobody reads it")
    assert table(tmp_path).facts["passed_over"] == {"beside train and test": 4, "hidden": 1}


def test_what_is_learned_is_not_split(tmp_path: Path) -> None:
    (tmp_path / "birds.json").write_text(json.dumps({"train": ROWS, "test": TEST, "oos": ["what"]}))
    names, (train, test), _ = labelled_texts(tmp_path / "birds.json")
    assert names == ["kite", "lark", "wren"]
    assert (len(train), len(test)) == (12, 3)
    as_csv(tmp_path / "birds.csv", ROWS)
    _, (everything,), _ = labelled_texts(tmp_path / "birds.csv")
    assert len(everything) == 12
    as_csv(tmp_path / "birds.csv", [*ROWS, {"text": "", "label": "kite"}])
    assert labelled_texts(tmp_path / "birds.csv", unreadable="skip")[2]["left_out"] == 1


def test_texts_without_labels(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(["a wren", {"text": "a kite", "label": "kite"}, {"text": None}]))
    assert texts_alone(tmp_path / "a.json") == ["a wren", "a kite", None]
    as_csv(tmp_path / "a.csv", [{"says": "a wren", "more": "a kite"}])
    assert texts_alone(tmp_path / "a.csv", Columns(["says", "more"])) == ["a wren a kite"]
    with pytest.raises(DataError, match=r"data\.text_column: .*a\.csv has no column text; it has says, more"):
        texts_alone(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_text("text,label\n")
    with pytest.raises(DataError, match=r"a\.csv has no rows; give some$"):
        texts_alone(tmp_path / "a.csv")


def test_a_column_of_domains(tmp_path: Path) -> None:
    rows = [{"text": f"{name} {where} {n}", "label": name, "where": where} for n in range(4) for name, where in CELLS]
    WRITERS[".csv"](tmp_path / "birds.csv", rows)
    source = load_source("table", root=tmp_path / "birds.csv", domain_column="where", test_fraction=0.5)
    assert source.domains is not None
    assert source.domains.names == ("sea", "wood")
    for half, domains in (("train", source.domains.train), ("test", source.domains.test)):
        where = [source.domains.names[each] for each in domains]
        told = [f"{name} {place}" for (_, name), place in zip(read(source, half), where, strict=True)]
        assert told == [text.rpartition(" ")[0] for text, _ in read(source, half)]
        assert sorted(told) == sorted(f"{name} {where}" for name, where in CELLS for _ in range(2))  # half of each cell
        samples = getattr(source, half)
        assert [rows[samples.name(place)]["text"] for place in range(len(samples))] == list(samples.texts)


def test_rows_without_a_domain_and_domains_that_the_training_rows_lack(tmp_path: Path) -> None:
    file = tmp_path / "birds.json"
    columns = Columns(domain="where")
    rows = [{"text": "a", "label": "kite", "where": "sea"}, {"text": "b", "label": "kite", "where": None}]
    file.write_text(json.dumps({"train": rows, "test": [{"text": "c", "label": "kite", "where": "wood"}]}))
    with pytest.raises(DataError, match=r"train, row 2: it has no domain"):
        table(file, columns)
    with pytest.raises(DataError, match=r"^data\.root: test has domains that train lacks: wood$"):
        table(file, columns, unreadable="skip")
    with pytest.raises(DataError, match=r"^data\.domain_column: train has no column place; it has text, label, where"):
        table(file, Columns(domain="place"))
    file.write_text(json.dumps(rows[:1] * 2 + [{"text": "d", "label": "kite", "where": "wood"}]))
    with pytest.raises(DataError, match=r"^data\.root: classes with a single row in a domain: kite;"):
        table(file, columns)


def test_a_pipe_is_no_file_of_rows(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "train.csv")
    as_csv(tmp_path / "test.csv", ROWS)
    with pytest.raises(DataError, match=r"train\.csv is no file, but a pipe, a device or a folder"):
        table(tmp_path)


def pictures_in(folder: Path, count: int) -> list[dict[str, Any]]:
    """Rows that name as many image files, of two classes by turns."""
    for number in range(count):
        Image.new("RGB", (8, 6), (number, 0, 0)).save(folder / f"{number}.png")
    return [{"image": f"{number}.png", "label": ("kite", "wren")[number % 2]} for number in range(count)]


@pytest.mark.parametrize(
    ("name", "fault"),
    [("", "it has no image"), ("a\0b", "it has no image"), ("9.png", "9.png"), ("cut.png", "cut.png")],
    ids=["empty", "no name", "missing", "cut short"],
)
def test_a_row_whose_image_cannot_be_read(name: str, fault: str, tmp_path: Path) -> None:
    rows = pictures_in(tmp_path, 8)
    whole = (tmp_path / "0.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) * 2 // 3])
    (tmp_path / "birds.json").write_text(json.dumps([*rows, {"image": name, "label": "kite"}]))
    options = {"image_column": "image", "root": tmp_path / "birds.json"}
    with pytest.raises(DataError, match=rf"1 rows cannot be used.*\n.*birds\.json, row 9: .*{re.escape(fault)}"):
        load_source("table", decode_all=True, **options)
    source = load_source("table", unreadable="skip", **options)
    assert len(source.train) + len(source.test) == 8
    assert source.facts["left_out"] == 1


@pytest.mark.parametrize("where", ["in a half", "across halves", "by a link"])
def test_an_image_that_several_rows_name_is_one_sample(where: str, tmp_path: Path) -> None:
    rows = pictures_in(tmp_path, 8)
    (tmp_path / "link.png").symlink_to(tmp_path / "1.png")
    again = {"image": "link.png" if where == "by a link" else "1.png", "label": "wren"}
    held: Any = {"train": rows[:6], "test": [*rows[6:], again]} if where == "across halves" else [*rows, again]
    (tmp_path / "birds.json").write_text(json.dumps(held))
    with pytest.raises(DataError, match=r"1 images are in several rows.* name each of them once\n.*1\.png: in 2 rows"):
        load_source("table", root=tmp_path / "birds.json", image_column="image")
