"""Every source, and every way in which its data can be unusable."""

from __future__ import annotations

import hashlib
import importlib
import pickle
import re
import tarfile
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torchvision.datasets import CIFAR100, utils

from lorica.assembly import build_source
from lorica.config import read_recipe
from lorica.data.sources import (
    KEYS,
    Source,
    arrays,
    arrays_file,
    benchmark_names,
    cifar100,
    digits,
    image_folder,
    load_source,
    require_keys,
    source_names,
    split_per_class,
)
from lorica.data.texts import Texts
from lorica.errors import DataError


def write_images(folder: Path, count: int, shade: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.new("RGB", (6, 4), (shade, number, 0)).save(folder / f"{number:02}.png")


def problems_of(error: pytest.ExceptionInfo[DataError]) -> list[str]:
    return list(error.value.problems)


# ---------------------------------------------------------------------------------------------------- splitting


def test_split_per_class_holds_out_the_fraction_of_every_class() -> None:
    labels = np.repeat([0, 1, 2, 3], [40, 8, 2, 1])
    kept, held = split_per_class(labels, 0.25, 0)
    assert np.bincount(labels[held], minlength=4).tolist() == [10, 2, 1, 0]
    assert sorted([*kept, *held]) == list(range(len(labels)))
    expected = np.random.RandomState(0).permutation(np.arange(40, 48))[:2]
    assert sorted(expected) == held[(held >= 40) & (held < 48)].tolist()


def test_a_class_more_does_not_move_the_samples_of_the_others() -> None:
    few = split_per_class(np.repeat([0, 1], 10), 0.3, 5)[1]
    many = split_per_class(np.repeat([0, 1, 2], 10), 0.3, 5)[1]
    assert few.tolist() == many[many < 20].tolist()


# ---------------------------------------------------------------------------------------------------- image folders


def test_folder_with_train_and_test(tmp_path: Path) -> None:
    for half, count in (("train", 3), ("test", 2)):
        write_images(tmp_path / half / "wren", count, shade=10)
        write_images(tmp_path / half / "Lark", count, shade=20)
    source = image_folder(tmp_path)
    assert source.name == "image_folder"
    assert source.class_names == ("Lark", "wren")  # sorted, capitals first
    assert source.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert source.test.labels.dtype == np.int64
    assert source.train.decode(4)[0, 0].tolist() == [10, 1, 0]
    assert source.train.decode(4).shape == (4, 6, 3)
    assert source.test.describe(3) == str(tmp_path / "test" / "wren" / "01.png")
    counts = {"classes": 2, "train": 6, "test": 4}
    assert source.facts == counts | {"root": str(tmp_path), "split": "folders", "folders": ["train", "test"]}


def test_folder_of_classes_is_split_by_seed(tmp_path: Path) -> None:
    write_images(tmp_path / "a", 8)
    write_images(tmp_path / "b", 2)

    def names(source) -> tuple[set[str], set[str]]:
        train, test = ({half.describe(i) for i in range(len(half))} for half in (source.train, source.test))
        return train, test

    source = image_folder(tmp_path, split_seed=1)
    train, test = names(source)
    assert train.isdisjoint(test)
    assert train | test == {str(path) for path in tmp_path.rglob("*.png")}
    assert np.bincount(source.test.labels).tolist() == [2, 1]
    assert source.facts["split_seed"] == 1
    assert source.facts["test_fraction"] == 0.25
    assert (train, test) == names(image_folder(tmp_path, split_seed=1))
    assert (train, test) != names(image_folder(tmp_path, split_seed=2))


def test_folder_passes_over_hidden_and_foreign_files(tmp_path: Path) -> None:
    write_images(tmp_path / "a" / "deeper", 2)
    write_images(tmp_path / ".cache", 2)
    write_images(tmp_path / "a" / ".thumbnails", 2)
    (tmp_path / "a" / "._01.png").write_bytes(b"resource fork")
    (tmp_path / "a" / "readme.txt").write_text("no image")
    (tmp_path / "list.csv").write_text("no class")
    (tmp_path / "a" / "deeper" / "00.png").rename(tmp_path / "a" / "deeper" / "00.PNG")
    source = image_folder(str(tmp_path))
    assert source.class_names == ("a",)
    assert len(source.train) + len(source.test) == 2


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    write_images(tmp_path / "train", 2)
    write_images(tmp_path / "bus", 2)
    assert image_folder(tmp_path).class_names == ("bus", "train")


def test_folder_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"^data\.root: .*nowhere is not a folder; expected .*/train/<class>/\*\.jpg and"
    ):
        image_folder(tmp_path / "nowhere")


def test_folder_without_classes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^data\.root: .* has no class folders; expected"):
        image_folder(tmp_path)


@pytest.mark.parametrize("half", ["train", "test"])
def test_folder_with_only_one_half(tmp_path: Path, half: str) -> None:
    write_images(tmp_path / half / "a", 2)
    with pytest.raises(DataError, match=r"^data\.root: .* has one of train and test without the other; expected"):
        image_folder(tmp_path)


def test_all_faults_of_a_split_folder_at_once(tmp_path: Path) -> None:
    for name in ("crow", "gull"):
        write_images(tmp_path / "train" / name, 1)
    for name in ("crow", "kite", "lark", "wren"):
        write_images(tmp_path / "test" / name, 1)
    (tmp_path / "train" / "crow" / "00.png").unlink()
    (tmp_path / "test" / "kite" / "00.png").write_bytes(b"")
    train, test = tmp_path / "train", tmp_path / "test"
    with pytest.raises(DataError) as caught:
        image_folder(tmp_path)
    empty, fewer, more, count, file = problems_of(caught)
    assert empty.startswith(f"data.root: {train / 'crow'} has no images (*.jpg, ")
    assert fewer == f"data.root: {test} has 3 classes that {train} lacks: kite, lark, wren"
    assert more == f"data.root: {train} has 1 class that {test} lacks: gull"
    assert count == "data.root: 1 of 5 images cannot be read; data.unreadable=skip leaves them out"
    assert file == f"data.root: {test / 'kite' / '00.png'}: zero bytes"


def test_a_class_with_a_single_image_cannot_be_split(tmp_path: Path) -> None:
    write_images(tmp_path / "a", 3)
    write_images(tmp_path / "b", 1)
    with pytest.raises(DataError, match=r"^data\.root: .*/b has a single image; a split needs two"):
        image_folder(tmp_path)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5])
def test_test_fraction_out_of_range(tmp_path: Path, fraction: float) -> None:
    write_images(tmp_path / "a", 3)
    with pytest.raises(DataError, match=r"^data\.test_fraction: expected a number between 0 and 1"):
        image_folder(tmp_path, test_fraction=fraction)


def test_unreadable_images_are_listed_up_to_ten(tmp_path: Path) -> None:
    write_images(tmp_path / "a", 15)
    whole = (tmp_path / "a" / "14.png").read_bytes()
    for number in range(10):
        (tmp_path / "a" / f"{number:02}.png").write_bytes(b"")
    (tmp_path / "a" / "10.png").write_bytes(b"<html>404</html>")
    (tmp_path / "a" / "11.png").write_bytes(whole[:-20])
    with pytest.raises(DataError) as caught:
        image_folder(tmp_path)
    lines = problems_of(caught)
    assert (
        lines[0] == "data.root: 12 of 15 images cannot be read; data.unreadable=skip leaves them out; the first 10 are"
    )
    assert lines[1:] == [f"data.root: {tmp_path / 'a' / f'{number:02}.png'}: zero bytes" for number in range(10)]


def test_what_is_wrong_with_an_image(tmp_path: Path) -> None:
    write_images(tmp_path / "a", 4)
    whole = (tmp_path / "a" / "03.png").read_bytes()
    (tmp_path / "a" / "00.png").write_bytes(b"<html>404</html>")
    (tmp_path / "a" / "01.png").write_bytes(whole[:-20])
    Image.new("F", (3, 3)).save(tmp_path / "a" / "02.tiff")
    with pytest.raises(DataError) as caught:
        image_folder(tmp_path)
    count, foreign, truncated, deep = problems_of(caught)
    assert count == "data.root: 3 of 5 images cannot be read; data.unreadable=skip leaves them out"
    assert foreign.endswith("00.png: not an image")
    assert re.search(r"01\.png: .+", truncated)
    assert deep.endswith("02.tiff: 32 bits per pixel, of unknown range; convert it to 8 bits")


def test_a_jpeg_cut_short_fails_when_it_is_decoded(tmp_path: Path) -> None:
    write_images(tmp_path / "a", 2)
    noise = np.random.RandomState(0).randint(0, 256, (64, 64, 3)).astype(np.uint8)
    path = tmp_path / "a" / "99.jpg"
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:1500])
    source = image_folder(tmp_path)
    files = [(half, index) for half in (source.train, source.test) for index in range(len(half))]
    (half, index) = next((half, index) for half, index in files if half.describe(index) == str(path))
    with pytest.raises(DataError, match=r"99\.jpg: image file is truncated"):
        half.decode(index)


def test_images_of_every_mode_become_upright_rgb(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    Image.new("L", (6, 4), 70).save(folder / "0.png")
    Image.fromarray(np.full((4, 6), 70 * 256 + 200, np.uint16)).save(folder / "1.png")
    Image.new("RGBA", (6, 4), (70, 70, 70, 255)).save(folder / "2.png")
    palette = Image.new("P", (6, 4), 1)
    palette.putpalette([0, 0, 0, 70, 70, 70])
    palette.save(folder / "3.png", transparency=b"\x00\xff")
    turned = Image.Exif()
    turned[0x0112] = 6  # to be shown turned by 90 degrees
    Image.new("RGB", (4, 6), (70, 70, 70)).save(folder / "4.png", exif=turned)
    source = image_folder(tmp_path)
    for half in (source.train, source.test):
        for index in range(len(half)):
            np.testing.assert_array_equal(half.decode(index), np.full((4, 6, 3), 70, np.uint8))


# ---------------------------------------------------------------------------------------------------- digits


def test_digits() -> None:
    source = digits(split_seed=3)
    original = load_digits()
    assert source.class_names == tuple("0123456789")
    assert len(source.train) + len(source.test) == 1797
    counts = np.bincount(original.target)
    assert np.bincount(source.test.labels).tolist() == [round(count / 4) for count in counts]
    kept, held = split_per_class(original.target, 0.25, 3)
    for half, chosen in ((source.train, kept), (source.test, held)):
        assert half.labels.tolist() == original.target[chosen].tolist()
        first = half.decode(0)
        assert first.shape == (8, 8, 3)
        np.testing.assert_array_equal(first[..., 0], np.rint(original.images[chosen[0]] * 15.9375))
        np.testing.assert_array_equal(first[..., 0], first[..., 2])
    assert source.test.describe(17) == f"digits[{held[17]}]"
    assert source.facts["split_seed"] == 3


# ---------------------------------------------------------------------------------------------------- CIFAR-100


@pytest.fixture
def tiny_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The CIFAR-100 archive in its published format with a few images, and torchvision told of its check sums."""
    pixels = np.random.RandomState(0).randint(0, 256, (8, 3072)).astype(np.uint8)
    contents = {
        "train": {"data": pixels[:6], "fine_labels": [0, 1, 2, 2, 1, 0], "coarse_labels": [0] * 6},
        "test": {"data": pixels[6:], "fine_labels": [2, 0], "coarse_labels": [0] * 2},
        "meta": {"fine_label_names": ["apple", "bear", "cup"], "coarse_label_names": ["things"]},
    }
    folder = tmp_path / "made" / "cifar-100-python"
    folder.mkdir(parents=True)
    sums = {}
    for name, content in contents.items():
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        sums[name] = hashlib.md5(data).hexdigest()
    root = tmp_path / "root"
    root.mkdir()
    with tarfile.open(root / "cifar-100-python.tar.gz", "w:gz") as archive:
        archive.add(folder, "cifar-100-python")
    monkeypatch.setattr(CIFAR100, "train_list", [["train", sums["train"]]])
    monkeypatch.setattr(CIFAR100, "test_list", [["test", sums["test"]]])
    monkeypatch.setattr(CIFAR100, "meta", CIFAR100.meta | {"md5": sums["meta"]})
    packed = (root / "cifar-100-python.tar.gz").read_bytes()
    monkeypatch.setattr(CIFAR100, "tgz_md5", hashlib.md5(packed).hexdigest())
    return root


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr(utils, "_urlretrieve", refuse)
    monkeypatch.setattr(utils, "_get_redirect_url", lambda url, **_: url)


EXTRACTING = "ignore:Python 3.14 will, by default, filter:DeprecationWarning"
"""What Python 3.12 and 3.13 say of how torchvision unpacks an archive, whose hash it has compared."""


@pytest.mark.filterwarnings(EXTRACTING)
@pytest.mark.usefixtures("no_network")
def test_cifar100_from_the_archive_and_then_from_its_folder(tiny_cifar: Path) -> None:
    pixels = np.random.RandomState(0).randint(0, 256, (8, 3072)).astype(np.uint8)
    for _ in range(2):
        source = cifar100(tiny_cifar)
        assert source.class_names == ("apple", "bear", "cup")
        assert source.train.labels.tolist() == [0, 1, 2, 2, 1, 0]
        assert source.test.labels.tolist() == [2, 0]
        np.testing.assert_array_equal(source.test.decode(1), pixels[7].reshape(3, 32, 32).transpose(1, 2, 0))
        (tiny_cifar / "cifar-100-python.tar.gz").unlink(missing_ok=True)


@pytest.mark.usefixtures("no_network")
def test_cifar100_without_files_or_network_says_what_to_place_where(tmp_path: Path) -> None:
    root = tmp_path / "new"
    with pytest.raises(
        DataError, match=r"^data\.root: no intact CIFAR-100 in .*new, and it could not be downloaded"
    ) as e:
        cifar100(root)
    assert "no network" in str(e.value)
    assert f"place in it cifar-100-python.tar.gz (md5 {CIFAR100.tgz_md5}) from https://" in str(e.value)
    assert not root.exists()  # nothing is left behind


@pytest.mark.filterwarnings(EXTRACTING)
@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("damaged", ["train", "meta"])
def test_cifar100_with_a_damaged_file(tiny_cifar: Path, damaged: str) -> None:
    cifar100(tiny_cifar)
    (tiny_cifar / "cifar-100-python.tar.gz").unlink()
    (tiny_cifar / "cifar-100-python" / damaged).write_bytes(b"altered")
    with pytest.raises(DataError, match=r"^data\.root: no intact CIFAR-100"):
        cifar100(tiny_cifar)
    assert tiny_cifar.exists()


def test_cifar100_leaves_no_interrupted_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: str, filename: str, *__: object) -> None:
        Path(filename).write_bytes(b"half")

    monkeypatch.setattr(utils, "_urlretrieve", interrupted)
    monkeypatch.setattr(utils, "_get_redirect_url", lambda url, **_: url)
    with pytest.raises(DataError, match="could not be downloaded"):
        cifar100(tmp_path / "new")
    assert not (tmp_path / "new").exists()


# ---------------------------------------------------------------------------------------------------- arrays


def pixels(n: int, *shape: int) -> np.ndarray:
    return np.random.RandomState(0).randint(0, 256, (n, *(shape or (5, 4, 3)))).astype(np.uint8)


@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 1), (5, 4, 3)])
@pytest.mark.parametrize("floating", [False, True])
def test_arrays_of_every_shape_and_type(shape: tuple[int, ...], floating: bool) -> None:
    x = pixels(3, *shape)
    given = (x / 255).astype(np.float32) if floating else x
    source = arrays((given, [0, 1, 0]), (given[:1], np.array([1], np.uint8)))
    assert source.class_names == ("0", "1")
    np.testing.assert_array_equal(source.train.decode(2), np.broadcast_to(x[2].reshape(5, 4, -1), (5, 4, 3)))
    assert source.test.labels.tolist() == [1]
    assert source.facts == {"classes": 2, "train": 3, "test": 1}


def test_arrays_of_torch_and_an_empty_test_set() -> None:
    source = arrays((torch.ones(2, 4, 4), torch.tensor([1, 0])), (torch.ones(0, 4, 4), []))
    assert source.train.decode(0).max() == 255
    assert len(source.test) == 0


def test_arrays_with_string_labels() -> None:
    source = arrays((pixels(3), ["wren", "lark", "wren"]), (pixels(1), ["lark"]))
    assert source.class_names == ("lark", "wren")
    assert source.train.labels.tolist() == [1, 0, 1]
    source = arrays((pixels(3), ["wren", "lark", "wren"]), (pixels(1), ["lark"]), ["wren", "lark"])
    assert source.class_names == ("wren", "lark")
    assert source.test.labels.tolist() == [1]


def test_arrays_with_names_for_numbers() -> None:
    source = arrays((pixels(2), [1, 0]), (pixels(1), [1]), ["wren", "lark"])
    assert source.class_names == ("wren", "lark")
    assert source.train.labels.tolist() == [1, 0]


GOOD = (pixels(2), [0, 1])


@pytest.mark.parametrize(
    ("train", "test", "names", "message"),
    [
        (
            (pixels(3), [0, 1]),
            GOOD,
            None,
            r"x_train has shape \[3, 5, 4, 3\], y_train \[2\]: expected one label per image",
        ),
        (GOOD, (pixels(2), [[0, 1]]), None, r"x_test has shape .*: expected one label per image"),
        ((pixels(0), []), GOOD, None, "x_train: no images"),
        ((pixels(2), [0.0, 1.0]), GOOD, None, "y_train: expected integers or strings, got float64"),
        ((pixels(2), [False, True]), GOOD, None, "y_train: expected integers or strings, got bool"),
        ((pixels(2), ["a", "b"]), GOOD, None, "y_train and y_test: expected integers in both or strings in both"),
        (GOOD, (pixels(2), [1, 2]), None, "y_test: labels that are no class: 2; the classes are 0 … 1"),
        ((pixels(2), [-1, 0]), (pixels(1), [0]), None, "y_train: labels that are no class: -1; the classes are 0 … 0"),
        ((pixels(2), [0, 2]), (pixels(1), [0]), None, "y_train: classes without an image: 1"),
        (
            (pixels(1), ["a"]),
            (pixels(1), ["b"]),
            None,
            "y_test: labels that are no class: b; the classes are a",
        ),
        (GOOD, GOOD, ["a", "b", "c"], "y_train: classes without an image: c"),
        (GOOD, GOOD, ["a", "a"], "class_names: given more than once: a"),
        ((pixels(2, 3, 5, 4), [0, 1]), GOOD, None, r"x_train: expected images of shape .*, got \[2, 3, 5, 4\]"),
        ((pixels(2, 7), [0, 1]), GOOD, None, r"x_train: expected images of shape .*, got \[2, 7\]"),
        ((pixels(2).astype(np.float32), [0, 1]), GOOD, None, r"x_train: floating-point images must lie in \[0, 1\]"),
        ((np.full((2, 3, 3), np.nan), [0, 1]), GOOD, None, r"x_train: floating-point images must lie in \[0, 1\]"),
        (GOOD, (pixels(2).astype(np.int64), [0, 1]), None, r"x_test: expected uint8, or floating .*, got int64"),
    ],
)
def test_arrays_that_cannot_be_used(train, test, names, message: str) -> None:
    with pytest.raises(DataError, match=f"^{message}"):
        arrays(train, test, names)


def test_arrays_reports_all_that_is_wrong() -> None:
    with pytest.raises(DataError) as caught:
        arrays((pixels(2, 7), [0, 2]), (pixels(2).astype(np.int64), [0, 5]))
    assert len(problems_of(caught)) == 4


def test_long_lists_are_cut_short() -> None:
    with pytest.raises(DataError, match=r"0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 5 more$"):
        arrays((pixels(1), [15]), (pixels(1), [15]))


def test_arrays_file(tmp_path: Path) -> None:
    path = tmp_path / "birds.npz"
    x = pixels(3)
    np.savez_compressed(path, x_train=x, y_train=[0, 1, 1], x_test=x[:1], y_test=[0], class_names=["wren", "lark"])
    source = load_source("arrays", root=path, test_fraction=0.25, split_seed=0)
    assert source.class_names == ("wren", "lark")
    assert source.facts["root"] == str(path)
    np.testing.assert_array_equal(source.train.decode(1), x[1])


def test_arrays_file_that_cannot_be_used(tmp_path: Path) -> None:
    path = tmp_path / "birds.npz"
    with pytest.raises(
        DataError, match=r"^data\.root: .*birds\.npz is not a file; expected an \.npz file with x_train"
    ):
        arrays_file(path)
    np.savez(path, x_train=pixels(2), y_test=[0])
    with pytest.raises(DataError, match=r"^data\.root: .*birds\.npz lacks y_train, x_test; expected"):
        arrays_file(path)
    np.savez(path, x_train=pixels(2), y_train=[0, 1], x_test=pixels(2), y_test=[0, 7])
    with pytest.raises(DataError, match=r"^data\.root: .*birds\.npz: y_test: labels that are no class: 7"):
        arrays_file(path)
    np.savez(path, x_train=np.array([object()]))
    with pytest.raises(DataError, match=r"^data\.root: .*birds\.npz cannot be read \(.*allow_pickle"):
        arrays_file(path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match=r"^data\.root: .*birds\.npz is not an \.npz file, or a truncated one"):
        arrays_file(path)


def test_the_requests_are_split_by_their_places() -> None:
    source = load_source("requests", root=None)
    assert len(source.class_names) == 20
    assert [np.bincount(half.labels).tolist() for half in (source.train, source.test)] == [[27] * 20, [13] * 20]
    number = source.class_names.index("move_appointment")  # the first in the file
    texts = {half.of: [half.texts[place] for place in np.flatnonzero(half.labels == number)] for half in halves(source)}
    assert texts["train"][:3] == [
        "could we do Thursday instead of Wednesday",
        "push my three o'clock back by an hour",
        "the dentist at nine is too early for me, find another time that day",
    ]
    assert texts["test"][0] == "something came up, is there a later slot with the accountant"
    everything = [text.lower() for half in halves(source) for text in half.texts]
    assert len(set(everything)) == 800
    assert source.facts["train"] == 540


def halves(source: Source) -> tuple[Texts, Texts]:
    assert isinstance(source.train, Texts)
    assert isinstance(source.test, Texts)
    return source.train, source.test


# ---------------------------------------------------------------------------------------------------- by name


def test_load_source_by_name(tmp_path: Path) -> None:
    own = ["arrays", "cl_benchmark", "digits", "domain_folders", "hf_dataset", "image_folder", "requests", "table"]
    assert list(source_names()) == sorted([*own, *benchmark_names()])
    assert load_source("digits", root=None, test_fraction=0.5, split_seed=0).facts["test_fraction"] == 0.5
    write_images(tmp_path / "a", 4)
    folder = load_source("image_folder", root=tmp_path, test_fraction=0.5, split_seed=0)
    assert len(folder.test) == 2


def test_load_source_with_an_unknown_name() -> None:
    with pytest.raises(DataError, match=r"^data\.source: unknown source 'cifar10'; did you mean cifar100\?"):
        load_source("cifar10", root=None, test_fraction=0.25, split_seed=0)
    with pytest.raises(DataError, match=r"'xyz'; expected one of arrays, cifar100, cl_benchmark, cub200, "):
        load_source("xyz", root=None, test_fraction=0.25, split_seed=0)


@pytest.mark.parametrize("name", ["image_folder", "cifar100", "arrays"])
def test_load_source_without_the_root_it_needs(name: str) -> None:
    with pytest.raises(DataError, match=rf"^data\.root: the source {name} needs a path"):
        load_source(name, root=None, test_fraction=0.25, split_seed=0)


@pytest.mark.parametrize("name", source_names())
def test_sources_say_in_advance_that_they_need_a_root(name: str) -> None:
    try:
        require_keys(name, {})
        in_advance = ""
    except DataError as error:
        in_advance = str(error)
    try:
        load_source(name, root=None, test_fraction=0.25, split_seed=0, download=False)
        later = ""
    except DataError as error:
        later = str(error)
    assert in_advance == (later if "needs a path" in later else "")


def test_a_source_is_one_new_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lorica.data import sources

    (tmp_path / "invented.py").write_text(
        "from lorica.data.sources.arrays import arrays\n"
        "import numpy as np\n"
        "DESCRIPTION = 'two grey squares'\n"
        "def load(*, root, test_fraction, split_seed):\n"
        "    half = np.zeros((2, 4, 4), np.uint8), [0, 1]\n"
        "    return arrays(half, half)\n"
    )
    monkeypatch.setattr(sources, "__path__", [*sources.__path__, str(tmp_path)])
    assert source_names()["invented"] == "two grey squares"
    assert len(load_source("invented", root=None, test_fraction=0.25, split_seed=0).train) == 2
    with pytest.raises(DataError, match=r"unknown source 'inventd'; did you mean invented\?"):
        load_source("inventd", root=None, test_fraction=0.25, split_seed=0)


NOT_READ = {
    "data.root": "birds",
    "data.dataset": "birds",
    "data.test_fraction": 0.5,
    "data.unreadable": "skip",
    "data.text_column": "says",
    "data.label_column": "kind",
    "data.image_column": "picture",
    "data.domain_column": "place",
}


@pytest.mark.parametrize("name", source_names())
def test_keys_that_a_source_does_not_read_are_refused_by_name(name: str, tmp_path: Path) -> None:
    reads = importlib.import_module(f"lorica.data.sources.{name}").READS
    assert set(reads) <= set(KEYS)
    given = {key: value for key, value in NOT_READ.items() if key.removeprefix("data.") not in reads}
    if not given:
        return
    place = {"data.root": tmp_path} if "root" in reads else {}
    with pytest.raises(DataError) as caught:
        build_source(read_recipe("requests", {"data.source": name} | place | given))
    assert [problem.partition(":")[0] for problem in problems_of(caught)] == sorted(given, key=list(NOT_READ).index)
    assert all(f"the source {name} does not read it, given '" in problem for problem in problems_of(caught))


def test_keys_that_a_source_does_not_read_may_have_their_defaults() -> None:
    given = {"data.test_fraction": 0.25, "data.split_seed": 3, "data.text_column": "text", "data.root": None}
    assert len(build_source(read_recipe("requests", given)).test) == 260
    with pytest.raises(DataError, match=r"^data\.image_column: .* given 'x'; .*: hf_dataset, table$"):
        build_source(read_recipe("requests", {"data.image_column": "x"}))
    with pytest.raises(DataError, match=r"^data\.root: .*: hf_dataset, table, cl_benchmark, domain_folders, …$"):
        build_source(read_recipe("requests", {"data.root": "x"}))


class Series:
    """What pandas gives: values that become an array of objects."""

    def __init__(self, values: list[object]) -> None:
        self.values = values

    def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
        return np.array(self.values, dtype=object)


def test_a_label_of_a_thousand_million_and_many_classes_take_no_time() -> None:
    with pytest.raises(DataError, match=r"^y_train: classes without an image: 1, 2, .* and 999999989 more$"):
        arrays((pixels(2), [0, 10**9]), GOOD)
    with pytest.raises(DataError, match=r"^y_train: classes without an image: 0, 1, "):
        arrays((pixels(2), np.array([2**64 - 1, 2**63], np.uint64)), GOOD)
    x = np.zeros((200_000, 1, 1), np.uint8)
    for labels in (np.arange(200_000), [f"class {number}" for number in range(200_000)]):
        assert len(arrays((x, labels), (x[:1], labels[:1])).class_names) == 200_000


def test_names_that_are_objects_are_names() -> None:
    source = arrays((pixels(2), Series(["a", "b"])), (pixels(1), Series(["b"])))
    assert source.class_names == ("a", "b")
    assert source.test.labels.tolist() == [1]


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (pixels(2), [b"a", b"b"], r"y_train: expected integers or strings, got \|S1; decode these bytes: y.astype"),
        (pixels(2), [True, False], r"y_train: .* got bool; give the two classes as 0 and 1, or as names"),
        (
            pixels(2),
            Series(["a", None]),
            r"y_train: .* got object; these are objects of several kinds, or missing values",
        ),
        ([[[1, 2]], [[1]]], [0, 1], r"x_train: its entries differ in shape"),
        ([pixels(1, 3, 4)[0], pixels(1, 4, 3)[0]], [0, 1], r"x_train: its entries differ in shape"),
        (pixels(2, 3, 9, 9), [0, 1], r"x_train: .*; move the channels to the end"),
        (torch.zeros(2, 1, 9, 9), [0, 1], r"x_train: .*; move the channels to the end"),
        (np.full((2, 3, 3), np.nan), [0, 1], r"x_train: .* found nan … nan; some are NaN or infinite"),
        (np.array([[[0.0, np.inf]]] * 2), [0, 1], r"x_train: .*; some are NaN or infinite"),
        (np.array([[[-2.1, 2.6]]] * 2), [0, 1], r"x_train: .* found -2.1 … 2.6; these look normalised; undo it"),
        (np.array([[[0.0, 255.0]]] * 2), [0, 1], r"x_train: .*; divide by 255"),
        (np.array([[[0.0, 4095.0]]] * 2), [0, 1], r"x_train: .*; divide by the largest value that the format has"),
        (pixels(2).astype(np.uint16), [0, 1], r"x_train: expected uint8, .* got uint16; scale to 0 … 255"),
    ],
)
def test_pixels_and_labels_of_other_kinds_are_refused_with_a_remedy(x, y, message: str) -> None:
    with pytest.raises(DataError, match=message):
        arrays((x, y), GOOD)
