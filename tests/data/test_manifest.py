"""The manifest of a stream: what it names, and the same stream made of it again, by other seeds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorica.data.contents import digests_of
from lorica.data.images import ImageReader
from lorica.data.manifest import Manifest, read_manifest
from lorica.data.samples import Samples
from lorica.data.sources import Source, digits, image_folder
from lorica.data.stream import Split, Stream
from lorica.errors import DataError
from tests.data.test_sources import write_images
from tests.data.test_stream import plain_source

Lines = list[dict[str, Any]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, name in enumerate(("wren", "lark", "kite", "tern")):
        write_images(tmp_path / "birds" / name, 6, shade=40 * number)
    return tmp_path / "birds"


def written(stream: Stream, file: Path) -> Lines:
    file.write_text(stream.manifest(digests_of(stream.source)).text)
    return [json.loads(line) for line in file.read_text().splitlines()]


def by_hand(file: Path, lines: Lines) -> Manifest:
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return read_manifest(file)


def content(stream: Stream) -> list[list[list[tuple[str, str]]]]:
    """The name and the class of each sample of each half of each task, in their order."""

    def told(split: Split, samples: Samples) -> list[tuple[str, str]]:
        pairs = zip(split.indices.tolist(), split.labels.tolist(), strict=True)
        return [(str(samples.name(index)), stream.class_names[label]) for index, label in pairs]

    train, test = stream.source.train, stream.source.test
    return [
        [told(stream.train(task), train), told(stream.validation(task), train), told(stream.test(task), test)]
        for task in stream.tasks
    ]


def test_what_is_written(folder: Path, tmp_path: Path) -> None:
    stream = Stream(image_folder(folder), tasks=2, validation_fraction=0.25, reader=ImageReader(4))
    header, *lines = written(stream, tmp_path / "stream.jsonl")
    following = (tmp_path / "stream.jsonl").read_bytes().split(b"\n", 1)[1]
    assert header == {"stream": 1, "sha256": hashlib.sha256(following).hexdigest()}
    halves = [
        (task.index + 1, half, name)
        for task in stream.tasks
        for half in ("train", "validation", "test")
        for name in task.class_names
    ]
    assert [(line["task"], line["half"], line["class"]) for line in lines] == halves
    everything = sorted(name for line in lines for name in line["samples"])
    assert everything == sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    name = lines[0]["samples"][0]
    contents = hashlib.sha256((folder / name).read_bytes()).digest()
    digest = hashlib.sha256(Path(name).name.encode() + b"\0" + contents).hexdigest()
    assert lines[0]["marks"][:4] == digest[:4]


@settings(max_examples=25, deadline=None)
@given(
    options=st.fixed_dictionaries(
        {
            "tasks": st.integers(1, 4),
            "seed": st.none() | st.integers(0, 99),
            "recurring": st.sampled_from([0.0, 0.5, 1.0]),
            "validation_fraction": st.sampled_from([0.0, 0.3]),
        }
    )
)
def test_the_same_stream_again(options: dict[str, Any]) -> None:
    if options["tasks"] == 1:
        options["recurring"] = 0.0
    source = plain_source([5, 9, 7, 6, 8], [3, 2, 4, 3, 2])
    stream = Stream(source, reader=ImageReader(4), **options)
    manifest = stream.manifest(digests_of(source))
    again = Stream(source, reader=ImageReader(4), manifest=manifest, tasks=3, seed=5)
    assert (again.tasks, again.class_order) == (stream.tasks, stream.class_order)
    assert content(again) == content(stream)
    assert again.manifest(digests_of(again.source)).text == manifest.text


@pytest.mark.parametrize("make", [digits, None], ids=["digits", "image_folder"])
def test_another_seed_of_the_split_makes_no_difference(
    make: Callable[..., Source] | None, folder: Path, tmp_path: Path
) -> None:
    def source(seed: int) -> Source:
        return make(split_seed=seed) if make else image_folder(folder, split_seed=seed)

    one, other = source(0), source(1)
    assert not np.array_equal(one.test.numbers, other.test.numbers)
    stream = Stream(one, tasks=2, reader=ImageReader(8))
    written(stream, tmp_path / "stream.jsonl")
    again = Stream(other, manifest=read_manifest(tmp_path / "stream.jsonl"), reader=ImageReader(8))
    assert content(again) == content(stream)
    assert again.class_names == stream.class_names
    for half, samples in (("train", one.train), ("test", one.test)):
        now = getattr(again.source, half)
        assert [now.digest(index) for index in range(len(now))] == [samples.digest(index) for index in range(len(now))]
    assert again.source.facts["train"] == one.facts["train"]


def test_one_written_by_hand(folder: Path, tmp_path: Path) -> None:
    """Without a header and digests, of some classes, in an order of its own, and with an old class in a later task."""
    lines = [
        {"task": 2, "half": "train", "class": "kite", "samples": ["kite/00.png", "kite/01.png"]},
        {"task": 2, "half": "train", "class": "tern", "samples": ["tern/05.png"]},
        {"task": 1, "half": "train", "class": "tern", "samples": ["tern/03.png", "tern/02.png"]},
        {"task": 1, "half": "test", "class": "tern", "samples": ["tern/04.png"]},
        {"task": 2, "half": "test", "class": "kite", "samples": ["kite/02.png"]},
    ]
    stream = Stream(image_folder(folder), manifest=by_hand(tmp_path / "own.jsonl", lines), reader=ImageReader(4))
    assert stream.class_names == ("tern", "kite")
    assert [(task.classes, task.new_classes) for task in stream.tasks] == [((0,), (0,)), ((0, 1), (1,))]
    assert [len(stream.train(task)) for task in stream.tasks] == [2, 3]
    assert (stream.source.facts["classes"], stream.source.facts["test"]) == (2, 2)
    stream.manifest(digests_of(stream.source))  # of which nothing is noted to differ from


def test_samples_that_are_missing_or_have_changed_are_named(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "stream.jsonl"
    _, *lines = written(Stream(image_folder(folder), tasks=2, seed=None, reader=ImageReader(4)), file)
    first = lines[0]["samples"][0]  # of the kite, the first of the classes
    write_images(folder / "kite", 6, shade=99)
    stream = Stream(image_folder(folder), manifest=read_manifest(file), reader=ImageReader(4))
    with pytest.raises(DataError) as caught:
        stream.manifest(digests_of(stream.source))
    assert caught.value.problems[0].endswith("in 2 places samples are not what they were; restore them")
    assert caught.value.problems[1].endswith(f"task 1, train, kite: {', '.join(lines[0]['samples'])}")
    (folder / first).unlink()
    with pytest.raises(DataError, match=r"stream\.jsonl: 1 samples are not in the data; restore them") as caught:
        Stream(image_folder(folder), manifest=read_manifest(file), reader=ImageReader(4))
    assert caught.value.problems[1].endswith(f"task 1, train, kite: {first}")


ONE = {"task": 1, "half": "train", "class": "wren", "samples": ["wren/00.png"]}
TESTED = {"task": 1, "half": "test", "class": "wren", "samples": ["wren/01.png"]}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "nothing is in it"),
        ([ONE | {"half": "both"}], r"line 1: half"),
        ([ONE | {"task": 0}], r"line 1: task"),
        ([ONE | {"size": 1}], r"line 1: size"),
        ([ONE, ONE | {"samples": []}], r"line 2: samples"),
        ([ONE | {"marks": "123"}], r"line 1: .*expected 4 digits for each of 1 samples"),
        ([ONE, ONE, TESTED], r"1 samples are in it twice"),
        ([ONE, TESTED | {"class": "lark"}], r"1 samples are of another class"),
        ([ONE | {"class": "crow"}], r"1 samples are of another class"),
        ([ONE | {"half": "validation"}, TESTED], r"wren has no training samples"),
        ([ONE], r"stream\.tasks: task 1 \(wren\) has no test samples"),
        ([ONE | {"task": 2}, TESTED], r"stream: test samples of wren are in a task before the first that learns"),
        ([{"stream": 2, "sha256": ""}, ONE, TESTED], r"line 1: stream"),
        ([{"stream": 1, "by": "day"}, ONE, TESTED], r"line 1: by is 'day', expected 'class', 'domain' or"),
        ([ONE, TESTED, ONE | {"task": 10**30}], r"no line has task 2, and some task 1000+; .* without gaps"),
        ([{"stream": 1, "sha256": "1"}, ONE, TESTED], r"altered since it was written"),
    ],
)
def test_manifests_that_are_none(lines: Lines, message: str, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        Stream(image_folder(folder), manifest=by_hand(tmp_path / "own.jsonl", lines), reader=ImageReader(4))


@pytest.mark.parametrize("sealed", [True, False], ids=["of a run", "by hand"])
def test_lines_without_text_say_nothing(sealed: bool, folder: Path, tmp_path: Path) -> None:
    """Editors add one at the end, and people between tasks; a wrong line is still called by its number in the file."""
    file = tmp_path / "stream.jsonl"
    _, *whole = written(Stream(image_folder(folder), tasks=2, reader=ImageReader(4)), file)
    lines = file.read_text().splitlines()[0 if sealed else 1 :]
    file.write_text("\n" + "\n\n \t\n".join(lines) + "\r\n\n")
    assert [json.loads(part.model_dump_json(by_alias=True)) for part in read_manifest(file).parts] == whole
    file.write_text("\n" + "\n\n".join(lines) + "\n\nwren\n")
    with pytest.raises(DataError, match=rf"line {2 * len(lines) + 2}: "):
        read_manifest(file)


def test_a_first_line_by_hand_says_what_a_task_brings(tmp_path: Path) -> None:
    assert by_hand(tmp_path / "own.jsonl", [{"stream": 1, "by": "domain"}, ONE, TESTED]).by == "domain"
    assert by_hand(tmp_path / "own.jsonl", [ONE, TESTED]).by == "class"


def test_a_file_that_is_not_there_or_no_json(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"stream\.manifest: .*nowhere: cannot be read"):
        read_manifest(tmp_path / "nowhere")
    (tmp_path / "own.jsonl").write_bytes(b"task 1\n")
    with pytest.raises(DataError, match=r"own\.jsonl: line 1: "):
        read_manifest(tmp_path / "own.jsonl")


def test_sixty_thousand_images_take_little(tmp_path: Path) -> None:
    """Rows in 100 classes and 10 tasks: a tenth of a megabyte for each ten thousand."""
    source = plain_source([500] * 100, [100] * 100)
    stream = Stream(source, tasks=10, reader=ImageReader(4))
    digest = hashlib.sha256(b"").digest()
    manifest = stream.manifest({"train": [digest] * 50_000, "test": [digest] * 10_000})
    assert len(manifest.text) < 900_000
