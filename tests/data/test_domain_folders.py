"""The same classes in a folder for each domain: what is read, and what is wrong with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lorica.data.images import ImageFiles, ImageReader
from lorica.data.sources import load_source
from lorica.data.sources.base import remarks, split_per_class
from lorica.data.sources.domain_folders import domain_folders
from lorica.data.stream import Stream
from lorica.errors import DataError
from tests.data.test_sources import write_images


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """photo2 has halves, photo10 has none, and sketch lacks the kite."""
    for half, count in (("train", 3), ("test", 2)):
        write_images(tmp_path / "photo2" / half / "wren", count)
        write_images(tmp_path / "photo2" / half / "kite", count)
        write_images(tmp_path / "sketch" / half / "wren", count)
    write_images(tmp_path / "photo10" / "kite", 4)
    write_images(tmp_path / "photo10" / "wren", 8)
    (tmp_path / "read.me").write_text("not a domain")
    return tmp_path


def test_domains_with_and_without_halves(folder: Path) -> None:
    source = domain_folders(folder, test_fraction=0.5, split_seed=4)
    assert (source.name, source.class_names) == ("domain_folders", ("kite", "wren"))
    assert source.domains is not None
    assert source.domains.names == ("photo2", "photo10", "sketch")
    assert source.facts["domains"] == {"photo2": [6, 4], "photo10": [6, 6], "sketch": [3, 2]}
    assert source.facts["passed_over"] == {"beside the class folders": 1}
    for half in ("train", "test"):
        samples = getattr(source, half)
        assert isinstance(samples, ImageFiles)
        for place, path in enumerate(samples.paths):
            parts = path.relative_to(folder).parts
            assert parts[0] == source.domains.names[getattr(source.domains, half)[place]]
            assert parts[-2] == source.class_names[samples.labels[place]]
            assert parts[1] in (half, *source.class_names)
    kept, held = split_per_class(np.repeat([0, 1], [4, 8]), 0.5, 4)  # photo10, divided by itself
    numbers = [
        samples.numbers[own == 1] for samples, own in zip((source.train, source.test), source.domains[1:], strict=True)
    ]
    assert [(each - 10).tolist() for each in numbers] == [kept.tolist(), held.tolist()]


def test_a_stream_of_them(folder: Path) -> None:
    stream = Stream(load_source("domain_folders", root=folder), by="domain", tasks=3, seed=None, reader=ImageReader(4))
    assert [task.class_names for task in stream.tasks] == [("kite", "wren"), ("kite", "wren"), ("wren",)]
    assert [len(task.new_classes) for task in stream.tasks] == [2, 0, 0]


def test_all_faults_of_all_domains_at_once(folder: Path) -> None:
    write_images(folder / "photo10" / "lark", 1)
    (folder / "photo2" / "train" / "wren" / "00.png").write_bytes(b"")
    (folder / "twin").symlink_to(folder / "sketch")
    with pytest.raises(DataError) as caught:
        domain_folders(folder)
    said = "\n".join(caught.value.problems)
    assert "photo10/lark has a single image" in said
    assert "photo2/train/wren/00.png" in said
    assert f"{folder / 'twin'} leads to {folder / 'sketch'}, which is read already" in said


@pytest.mark.parametrize("name", ["", "nowhere"])
def test_what_has_no_domains(tmp_path: Path, name: str) -> None:
    write_images(tmp_path / "wren", 2)
    with pytest.raises(DataError, match=r"^data\.root: .* expected one for each of several domains"):
        domain_folders(tmp_path / name)


@pytest.mark.parametrize("names", [("train", "test"), ("Training", "val"), ("train", "test", "photo")])
def test_halves_of_one_data_set_are_no_domains(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        write_images(tmp_path / name / "wren", 2)
        write_images(tmp_path / name / "kite", 2)
    with pytest.raises(DataError, match=r"^data\.root: .*: these are halves .* give data\.source=image_folder, or a"):
        domain_folders(tmp_path)


def test_a_domain_may_be_called_like_one_half(tmp_path: Path) -> None:
    for name in ("test", "photo"):
        write_images(tmp_path / name / "wren", 2)
        write_images(tmp_path / name / "kite", 2)
    found = domain_folders(tmp_path).domains
    assert found is not None
    assert found.names == ("photo", "test")


def test_classes_and_domains_that_differ_in_case_are_told(tmp_path: Path) -> None:
    for domain, name in (("day", "wren"), ("Day", "WREN"), ("night", "kite")):
        write_images(tmp_path / domain / name, 2)
    source = domain_folders(tmp_path)
    assert len(remarks(source.facts)) == 2
    assert (source.facts["alike_classes"], source.facts["alike_domains"]) == ([["WREN", "wren"]], [["Day", "day"]])
