"""Folders of images as they are found: links, layouts, other people's files, names, and what is said about them."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lorica.data.folders import Walk
from lorica.data.images import ImageFiles
from lorica.data.sources import Source, arrays, image_folder, labelled_images, remarks
from lorica.data.sources.base import in_order, nearly_alike
from lorica.errors import DataError


def write_images(folder: Path, count: int, ending: str = "png", shade: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.new("RGB", (6, 4), (shade, number, 0)).save(folder / f"{number:02}.{ending}")


def files(source: Source) -> list[Path]:
    assert isinstance(source.train, ImageFiles)
    assert isinstance(source.test, ImageFiles)
    return sorted([*source.train.paths, *source.test.paths])


def problems(root: Path, **options) -> str:
    with pytest.raises(DataError) as caught:
        image_folder(root, **options)
    return str(caught.value)


# ---- links


@pytest.mark.parametrize("target", [".", "..", "../b", "../a", "/"])
def test_a_folder_that_is_reached_twice_is_an_error_and_hangs_nothing(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path / "a", 4)
    write_images(tmp_path / "b", 4)
    if target == "/":
        monkeypatch.setattr(Path, "iterdir", _only_below(tmp_path))
    for name in ("l", "m"):
        (tmp_path / "a" / name).symlink_to(target)
    assert "links or folders cannot be followed" in problems(tmp_path)


def _only_below(root: Path):
    """The whole machine is not walked in a test: its root has this one folder."""
    real = Path.iterdir

    def iterdir(self: Path):
        if self.resolve() == Path("/"):
            return iter([root])
        return real(self)

    return iterdir


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_one_file_in_both_halves_or_twice_in_a_class(link, tmp_path: Path) -> None:
    for half in ("train", "test"):
        write_images(tmp_path / half / "a", 2)
    first = tmp_path / "train" / "a" / "00.png"
    link(first, tmp_path / "test" / "a" / "again.png")
    link(first, tmp_path / "train" / "a" / "again.png")
    message = problems(tmp_path)
    assert "2 links or folders cannot be followed" in message
    assert f"{tmp_path / 'test' / 'a' / 'again.png'} leads to {first}, which is read already" in message


def test_links_to_files_and_classes_elsewhere_are_followed(tmp_path: Path) -> None:
    write_images(tmp_path / "pool" / "x", 3)
    write_images(tmp_path / "pool" / "y", 2)
    root = tmp_path / "root"
    (root / "b").mkdir(parents=True)
    (root / "a").symlink_to(tmp_path / "pool" / "x")
    for image in (tmp_path / "pool" / "y").iterdir():
        (root / "b" / image.name).symlink_to(image)
    assert len(files(image_folder(root))) == 5


def test_a_link_to_nothing_or_itself_is_an_image_that_cannot_be_read(tmp_path: Path) -> None:
    write_images(tmp_path / "a", 2)
    (tmp_path / "a" / "gone.png").symlink_to("nowhere.png")
    (tmp_path / "a" / "self.png").symlink_to("self.png")
    message = problems(tmp_path)
    assert "gone.png: No such file" in message
    assert "self.png: Too many levels" in message


# ---- layouts


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("Train", "Test"),
        ("training", "validation"),
        ("TRAIN", "val"),
        ("train_set", "test_set"),
        ("train2017", "val2017"),
        ("trn", "tst"),
        ("train-images", "eval"),
    ],
)
def test_halves_in_any_usual_spelling(train: str, test: str, tmp_path: Path) -> None:
    for half, count in ((train, 3), (test, 2)):
        write_images(tmp_path / half / "a", count)
        write_images(tmp_path / half / "b", count)
    source = image_folder(tmp_path)
    assert source.class_names == ("a", "b")
    assert (len(source.train), len(source.test)) == (6, 4)
    assert source.facts["folders"] == [train, test]


def test_a_validation_folder_beside_train_and_test_is_passed_over_and_said(tmp_path: Path) -> None:
    for half in ("train", "val", "test"):
        write_images(tmp_path / half / "a", 2)
    source = image_folder(tmp_path)
    assert len(files(source)) == 4
    assert remarks(source.facts) == ["data.root: passed over 1 files or folders: 1 beside train and test"]


def test_two_folders_for_training(tmp_path: Path) -> None:
    for half in ("train", "Training", "test"):
        write_images(tmp_path / half / "a", 2)
    assert "has Training, train, test, one too many" in problems(tmp_path)


@pytest.mark.parametrize("names", [("clipart", "real", "sketch"), ("Teil 1", "Teil 2")])
def test_domains_are_not_taken_for_classes(names: tuple[str, ...], tmp_path: Path) -> None:
    for name in names:
        for number, kind in enumerate(("dog", "cat", "fox", "owl")):
            if (name, number) != (names[0], 3):  # one class lacks in one domain
                write_images(tmp_path / name / kind, 2)
    message = problems(tmp_path)
    assert f"its folders {', '.join(names)} all have the same folders within (cat, dog, fox)" in message
    assert "look like splits or domains" in message


@pytest.mark.parametrize("halves", [("train", "test"), ("Training", "val"), ("train", "valid", "test")])
def test_a_folder_around_the_halves_is_no_class(halves: tuple[str, ...], tmp_path: Path) -> None:
    for half in halves:
        for kind in ("dog", "cat"):
            write_images(tmp_path / "birds" / half / kind, 2)
    assert f"birds has {', '.join(sorted(halves))}: it is no class; give it as data.root" in problems(tmp_path)


def test_one_folder_called_images_in_every_class_is_no_domain(tmp_path: Path) -> None:
    write_images(tmp_path / "a" / "images", 2)
    write_images(tmp_path / "b" / "images", 2)
    assert image_folder(tmp_path).class_names == ("a", "b")


# ---- other formats, other files


def test_every_format_that_pillow_reads_in_any_case(tmp_path: Path) -> None:
    endings = ["jfif", "gif", "avif", "jpe", "JPG", "Webp", "bmp", "tif", "jp2", "ppm", "tga", "qoi", "ico"]
    for ending in endings:
        write_images(tmp_path / "a" / ending, 1, ending)
    source = image_folder(tmp_path, decode_all=True)
    assert len(files(source)) == len(endings)
    assert "passed_over" not in source.facts


def test_what_is_passed_over_is_counted_by_reason(tmp_path: Path) -> None:
    write_images(tmp_path / "a", 3)
    for folder in ("a/@eaDir", "a/.thumbnails", "__MACOSX/a", "b/lost+found"):
        write_images(tmp_path / folder, 2)
    write_images(tmp_path / "b", 2)
    for name in ("a/notes.txt", "b/more.TXT", "a/README", "list.csv", "a/video.mpg"):
        (tmp_path / name).write_text("no image")
    source = image_folder(tmp_path)
    assert len(files(source)) == 5
    assert source.facts["passed_over"] == {
        "*.txt (no image format)": 1,
        "*.TXT (no image format)": 1,
        "*.mpg (no image format)": 1,
        "without an ending (no image format)": 1,
        "beside the class folders": 1,
        "hidden": 1,
        "system folder (@eaDir)": 1,
        "system folder (__MACOSX)": 1,
        "system folder (lost+found)": 1,
    }
    (remark,) = remarks(source.facts)
    assert remark.startswith("data.root: passed over 9 files or folders: 1 ")


def test_a_folder_that_cannot_be_opened_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path / "a", 2)
    write_images(tmp_path / "a" / "locked", 2)
    real = Path.iterdir

    def iterdir(self: Path):
        if self.name == "locked":
            raise PermissionError(13, "Permission denied")
        return real(self)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    walk = Walk()
    assert len(walk.images(tmp_path / "a")) == 2
    assert walk.problems == [
        f"{tmp_path / 'a' / 'locked'}: cannot be opened (Permission denied); make it readable, or move it away"
    ]
    assert "locked: cannot be opened (Permission denied)" in problems(tmp_path)


# ---- damaged images


def cut_jpeg(path: Path) -> None:
    noise = np.random.RandomState(0).randint(0, 256, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:1500])


def test_a_jpeg_cut_short_is_found_by_decoding_alone(tmp_path: Path) -> None:
    write_images(tmp_path / "a", 3)
    cut_jpeg(tmp_path / "a" / "99.jpg")
    assert len(files(image_folder(tmp_path))) == 4
    message = problems(tmp_path, decode_all=True)
    assert "1 of 4 images cannot be read; data.unreadable=skip leaves them out" in message
    assert "99.jpg: image file is truncated" in message


def test_unreadable_images_are_left_out_and_counted(tmp_path: Path) -> None:
    write_images(tmp_path / "a", 3)
    write_images(tmp_path / "b", 2)
    cut_jpeg(tmp_path / "a" / "99.jpg")
    (tmp_path / "b" / "x.png").write_bytes(b"")
    source = image_folder(tmp_path, unreadable="skip")
    assert [path.suffix for path in files(source)] == [".png"] * 5
    assert source.facts["unreadable"] == 2
    assert remarks(source.facts) == ["data.unreadable: left out 2 images that cannot be read"]
    for file in (tmp_path / "b").glob("0*.png"):
        file.write_bytes(b"no")
    assert "b has no images" in problems(tmp_path, unreadable="skip")


# ---- names


def test_numeric_classes_are_sorted_by_their_size_or_as_texts(tmp_path: Path) -> None:
    for name in ("0", "1", "10", "11", "2", "007"):
        write_images(tmp_path / name, 2, shade=int(name))
    source = image_folder(tmp_path)
    assert source.class_names == ("0", "1", "2", "007", "10", "11")
    for index, label in enumerate(source.train.labels):
        assert source.train.decode(index)[0, 0, 0] == int(source.class_names[label])
    assert image_folder(tmp_path, class_order="text").class_names == ("0", "007", "1", "10", "11", "2")


def test_numbers_within_names_and_names_of_arrays_are_sorted_alike() -> None:
    names = ["class 10", "class 9", "Z", "class 9b", "class 09"]
    pixels = np.zeros((5, 4, 4), np.uint8)
    expected = ("Z", "class 09", "class 9", "class 9b", "class 10")
    assert arrays((pixels, names), (pixels, names)).class_names == expected
    assert arrays((pixels, names), (pixels, names), class_order="text").class_names == tuple(sorted(names))


@pytest.mark.parametrize("first", ["1", "v1", "class 1", "2019"])
@pytest.mark.parametrize("more", [".0", "_0", " (0)", "_00"])
def test_a_name_that_goes_on_after_its_number_comes_behind(first: str, more: str) -> None:
    assert in_order([first + more, first], "natural") == [first, first + more]


def test_texts_between_numbers_come_before_the_numbers_behind_them() -> None:
    assert in_order(["a1b2", "a1a10", "a1b10", "a1a2"], "natural") == ["a1a2", "a1a10", "a1b2", "a1b10"]


@given(st.lists(st.text("01a_ ", min_size=1, max_size=6), unique=True))
def test_any_names_have_one_order(names: list[str]) -> None:
    assert in_order(reversed(names), "natural") == in_order(names, "natural")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (b"caf\xe9", r"'caf\\udce9', which is not UTF-8; rename it"),
        (b"wren\x1b[31m", r"'wren\\x1b\[31m', with control characters; rename it"),
        (b"a\nb", r"'a\\nb', with control characters"),
        ("\u200b".encode(), r"'\\u200b', which shows nothing"),
    ],
)
def test_a_class_whose_name_cannot_be_kept_or_shown(name: bytes, words: str, tmp_path: Path) -> None:
    write_images(tmp_path / "other", 2)
    write_images(tmp_path / os.fsdecode(name), 2)
    with pytest.raises(DataError, match=rf"data\.root: a class has the name {words}"):
        image_folder(tmp_path)
    pixels = np.zeros((2, 4, 4), np.uint8)
    with pytest.raises(DataError, match=words):
        arrays((pixels, [0, 1]), (pixels, [0, 1]), ["other", os.fsdecode(name)])


def test_names_that_look_the_same(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    write_images(tmp_path / "one" / composed, 2)
    write_images(tmp_path / "one" / decomposed, 2)
    assert r"classes whose names look the same: 'cafe\u0301', 'caf\xe9'; rename them" in problems(tmp_path / "one")
    write_images(tmp_path / "space" / "a", 2)
    write_images(tmp_path / "space" / "a ", 2)
    assert "classes whose names look the same: 'a', 'a '" in problems(tmp_path / "space")


@pytest.mark.parametrize("other", ["big  cat", "big\u00a0cat", "big \u2003cat ", "big \u200b cat"])
def test_names_with_other_space_look_the_same(other: str, tmp_path: Path) -> None:
    for name in ("big cat", other, "bigcat"):
        write_images(tmp_path / name, 2)
    assert "classes whose names look the same: " in problems(tmp_path)
    assert "bigcat" not in problems(tmp_path)


def test_names_that_differ_in_case_or_as_numbers_are_told() -> None:
    assert nearly_alike(["Wren", "kite", "wren ", "1", "2", "1.0", "01", "+1.", "10", "-1", "1.5", "1.50", "a1"]) == [
        ["Wren", "wren "],
        ["1", "1.0", "01", "+1."],
        ["1.5", "1.50"],
    ]
    pixels = np.zeros((3, 4, 4), np.uint8)
    labels = ["Wren", "kite", "wren"]
    assert remarks(arrays((pixels, labels), (pixels, labels)).facts) == [
        "classes that differ only in case or in how a number is written: Wren and wren; if they are one, rename them"
    ]


def test_class_folders_that_differ_in_case_are_told(tmp_path: Path) -> None:
    for name in ("Wren", "kite", "wren"):
        write_images(tmp_path / name, 2)
    for facts in (image_folder(tmp_path).facts, labelled_images(tmp_path)[2]):
        assert facts["alike_classes"] == [["Wren", "wren"]]


def test_one_class_spelled_in_two_ways_in_the_halves(tmp_path: Path) -> None:
    """As after a journey through a Mac."""
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    write_images(tmp_path / "train" / decomposed, 2, shade=9)
    write_images(tmp_path / "test" / composed, 2, shade=9)
    for half in ("train", "test"):
        write_images(tmp_path / half / "dog", 2)
    source = image_folder(tmp_path)
    assert source.class_names == (decomposed, "dog")
    assert source.test.labels.tolist() == [0, 0, 1, 1]
    assert [source.test.decode(index)[0, 0, 0] for index in range(4)] == [9, 9, 0, 0]


def test_faults_may_be_gathered_in_place_of_raised(tmp_path: Path) -> None:
    for half, names in (("train", "ab"), ("test", "ac")):
        for name in names:
            write_images(tmp_path / half / name, 2)
    (tmp_path / "test" / "c" / "00.png").write_bytes(b"no image")
    gathered = ["earlier"]
    names, (train, test), facts = labelled_images(tmp_path, problems=gathered)
    assert gathered == [
        "earlier",
        f"{tmp_path / 'test'} has 1 class that {tmp_path / 'train'} lacks: c",
        f"{tmp_path / 'train'} has 1 class that {tmp_path / 'test'} lacks: b",
        "1 of 8 images cannot be read",
        f"{tmp_path / 'test' / 'c' / '00.png'}: not an image",
    ]
    assert names == ["a", "b", "c"]
    assert (train.labels.tolist(), test.labels.tolist()) == ([0, 0, 1, 1], [0, 0, 2, 2])
    assert "unreadable" not in facts
