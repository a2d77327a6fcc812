"""Benchmarks by name: miniatures of each in each of its layouts, whole and in all the ways in which they are not."""

from __future__ import annotations

import importlib
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from torchvision.datasets import ImageFolder

from lorica.data.benchmarks import Split, find_benchmark
from lorica.data.images import ImageFiles, ImageReader
from lorica.data.inspection import inspect
from lorica.data.sources import Source, benchmark_names, load_source
from lorica.data.sources.domainnet import DOMAINS
from lorica.data.stream import Stream
from lorica.errors import DataError
from tests.data.miniatures import (
    CLASSES,
    KNOWN,
    LAYOUTS,
    Picture,
    build,
    draw,
    expecting,
    hash_of,
    pictures,
    remove_class,
)

each_layout = pytest.mark.parametrize(("name", "layout"), LAYOUTS)


def load(name: str, root: Path) -> Source:
    return load_source(name, root=root, test_fraction=0.25, split_seed=0, class_order="natural", unreadable="refuse")


def files(source: Source, half: str) -> dict[Path, int]:
    samples = getattr(source, half)
    assert isinstance(samples, ImageFiles)
    return dict(zip(samples.paths, samples.labels.tolist(), strict=True))


def problems(name: str, root: Path) -> list[str]:
    with pytest.raises(DataError) as caught:
        load(name, root)
    first, *others = caught.value.problems
    assert f"`lorica data show {name}`" in first
    return [each.removeprefix("data.root: ") for each in others]


# ---------------------------------------------------------------------------------------------------- whole


@each_layout
def test_a_whole_one(name: str, layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = pictures(name)
    benchmark = expecting(name, layout, wanted, monkeypatch)
    paths = build(layout, tmp_path, wanted)
    source = load(name, tmp_path)
    assert dict(enumerate(source.class_names)) == {picture.number: picture.class_name for picture in wanted} or (
        layout == "folders" and list(source.class_names) == sorted(CLASSES[name])[:3]
    )
    for half in ("train", "test"):
        found = files(source, half)
        assert found.keys() == {path for picture, path in paths.items() if picture.half == half}
        for picture, path in paths.items():
            if picture.half == half:
                assert source.class_names[found[path]] == picture.class_name
    assert source.name == name
    assert source.in_order == (name == "vtab")
    assert source.facts["split"] == "the small one"
    assert source.facts["layout"] == layout
    assert source.facts["split_sha256"] == hash_of(tmp_path, layout, paths)
    assert not inspect(benchmark, tmp_path, decode_all=True, duplicates=True).problems


@pytest.mark.parametrize("name", [name for name, layout in LAYOUTS if layout == "folders"])
def test_folders_are_numbered_as_torchvision_numbers_them(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = pictures(name)
    expecting(name, "folders", wanted, monkeypatch)
    build("folders", tmp_path, wanted)
    for half in ("train", "test"):
        theirs = ImageFolder(str(tmp_path / half))
        ours = files(load(name, tmp_path), half)
        assert [(str(path), label) for path, label in ours.items()] == theirs.samples


@each_layout
def test_beside_other_data(name: str, layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = pictures(name)
    benchmark = expecting(name, layout, wanted, monkeypatch)
    draw(tmp_path / "other" / "train" / "x" / "1.png")
    for folder in benchmark.folders:
        build(layout, tmp_path / folder, wanted)
        assert load(name, tmp_path).facts["root"] == str(tmp_path / folder)
        shutil.rmtree(tmp_path / folder)


def test_a_division_has_one_hash_in_whatever_layout_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = pictures("cub200")
    hashes = set()
    for layout in ("folders", "the release"):
        expecting("cub200", layout, wanted, monkeypatch)
        build(layout, tmp_path / layout, wanted)
        source = load("cub200", tmp_path / layout)
        hashes.add(source.facts["split_sha256"])
        assert [path.name for path in files(source, "train")] == [f"train{place}.png" for place in range(3)] * 3
    assert len(hashes) == 1


def test_class_numbers_are_part_of_a_list_s_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = []
    for shift in (0, 1):
        wanted = [replace(each, number=(each.number + shift) % 3) for each in pictures("imagenet_r")]
        benchmark = expecting("imagenet_r", "CODA-Prompt's lists", wanted, monkeypatch)
        build("CODA-Prompt's lists", tmp_path / str(shift), wanted)
        hashes.append(
            inspect(
                replace(benchmark, splits=(Split("any", 9, 6, ("CODA-Prompt's lists",)),)), tmp_path / str(shift)
            ).sha256
        )
    assert hashes[0] != hashes[1]


# ---------------------------------------------------------------------------------------------------- not whole


@each_layout
def test_a_class_that_is_missing(name: str, layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = pictures(name)
    expecting(name, layout, wanted, monkeypatch)
    paths = build(layout, tmp_path, wanted)
    lost = wanted[0].class_name
    remove_class(paths, lost)
    said = problems(name, tmp_path)
    number = 2 if name == "domainnet" else 1
    assert (
        f"{6 * number} training and {4 * number} test images, expected {9 * number} and {6 * number} (the small one)"
        in said
    )
    if layout == "folders":
        assert "2 classes, expected 3" in said
    else:
        assert f"classes without an image: {lost}" in said
        assert any(line.startswith(f"{5 * number} images that the lists name are missing: ") for line in said)
    if layout == "folders" and name in KNOWN:
        assert f"missing classes: {lost.partition('.')[0]}" in said


@each_layout
def test_a_class_too_many(name: str, layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expecting(name, layout, pictures(name), monkeypatch)
    build(layout, tmp_path, pictures(name, 4))
    said = problems(name, tmp_path)
    assert "4 classes, expected 3" in said
    assert any(line.startswith("24 training and" if name == "domainnet" else "12 training and") for line in said)
    if name in KNOWN:
        assert f"classes that it does not have: {list(CLASSES[name])[3]}" in said


@each_layout
def test_a_file_that_is_damaged(name: str, layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = pictures(name)
    expecting(name, layout, wanted, monkeypatch)
    damaged = build(layout, tmp_path, wanted)[wanted[4]]
    damaged.write_bytes(damaged.read_bytes()[:20])
    images = 30 if name == "domainnet" else 15
    first, second = problems(name, tmp_path)
    assert first == f"1 of {images} images cannot be read"
    assert second.startswith(f"{damaged}: ")


@each_layout
def test_another_split(name: str, layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = pictures(name)
    expecting(name, layout, wanted, monkeypatch)
    build(layout, tmp_path, [replace(wanted[4], half="train"), *wanted[:4], *wanted[5:]])
    said = problems(name, tmp_path)
    counts = (19, 11, 18, 12) if name == "domainnet" else (10, 5, 9, 6)
    assert said[
        -1
    ] == "{} training and {} test images, expected {} and {} (the small one): all are there, divided otherwise".format(
        *counts
    )
    if name == "domainnet":
        assert said[0] == "clipart: 10 training and 5 test images, expected 9 training and 6 test images"


@each_layout
def test_as_many_images_divided_otherwise(
    name: str, layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = pictures(name)
    benchmark = expecting(name, layout, wanted, monkeypatch)
    paths = build(layout, tmp_path / "theirs", wanted)
    other = [replace(wanted[0], half="test"), *wanted[1:4], replace(wanted[4], half="train"), *wanted[5:]]
    build(layout, tmp_path / "ours", other)
    theirs = hash_of(tmp_path / "theirs", layout, paths)
    ours = inspect(benchmark, tmp_path / "ours")
    assert not ours.problems  # nobody told us that split's hash, so it may be this one
    assert ours.sha256 not in (theirs, None)

    told = replace(benchmark, splits=tuple(replace(split, sha256=theirs) for split in benchmark.splits))
    assert inspect(told, tmp_path / "theirs").split == "the small one"
    (problem,) = inspect(told, tmp_path / "ours").problems
    assert (
        problem == f"split {str(ours.sha256)[:16]} …, expected the small one ({theirs[:16]} …): "
        "as many images, divided otherwise"
    )
    (problem,) = inspect(benchmark, tmp_path / "ours", split=theirs[:8]).problems
    assert problem == f"its split is {ours.sha256}, expected {theirs[:8]}: other images, or divided otherwise"
    assert not inspect(benchmark, tmp_path / "theirs", split=theirs[:8]).problems


def test_a_known_hash_names_one_of_several_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = pictures("imagenet_r")
    benchmark = expecting("imagenet_r", "folders", wanted, monkeypatch)
    paths = build("folders", tmp_path, wanted)
    unknown = replace(benchmark, splits=(Split("one", 9, 6), Split("two", 9, 6)))
    assert inspect(unknown, tmp_path).split == "one or two"
    told = replace(
        benchmark, splits=(Split("one", 9, 6), Split("two", 9, 6, sha256=hash_of(tmp_path, "folders", paths)))
    )
    assert inspect(told, tmp_path).split == "two"
    told = replace(benchmark, splits=(Split("one", 9, 6), Split("two", 9, 6, sha256="0" * 64)))
    assert inspect(told, tmp_path).split == "one"


def test_all_that_is_wrong_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = pictures("imagenet_r")
    expecting("imagenet_r", "folders", wanted, monkeypatch)
    paths = build("folders", tmp_path, [*wanted, Picture("train", "n99999999", 3, "1.png")])
    paths[wanted[0]].write_bytes(b"")
    remove_class(paths, wanted[5].class_name)
    assert problems("imagenet_r", tmp_path) == [
        f"{tmp_path / 'train'} has 1 class that {tmp_path / 'test'} lacks: n99999999",
        "1 of 11 images cannot be read",
        f"{paths[wanted[0]]}: zero bytes",
        "missing classes: n01484850",
        "classes that it does not have: n99999999",
        "7 training and 4 test images, expected 9 and 6 (the small one)",
    ]


def test_an_image_in_both_halves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = pictures("imagenet_a")
    benchmark = expecting("imagenet_a", "folders", wanted, monkeypatch)
    paths = build("folders", tmp_path, wanted)
    shutil.copy(paths[wanted[0]], paths[wanted[8]])
    first, second = inspect(benchmark, tmp_path, duplicates=True).problems
    assert first == "1 test images are training images, too"
    assert second == f"{paths[wanted[8]]} is {paths[wanted[0]]}"
    load("imagenet_a", tmp_path)  # a published half may have them


@each_layout
def test_none_of_the_layouts(name: str, layout: str, tmp_path: Path) -> None:
    (said,) = problems(name, tmp_path)
    assert said.startswith(f"{tmp_path} has none of its layouts; expected in it, or in its folder ")
    assert f"({layout})" in said
    (said,) = problems(name, tmp_path / "nowhere")
    assert said.startswith(f"{tmp_path / 'nowhere'} is not a folder; expected")
    with pytest.raises(DataError, match=rf"^data\.root: the source {name} needs a path"):
        load_source(name, root=None)


def test_a_half_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = pictures("objectnet")
    expecting("objectnet", "folders", wanted, monkeypatch)
    build("folders", tmp_path, wanted)
    shutil.rmtree(tmp_path / "test")
    (said,) = problems("objectnet", tmp_path)
    assert said.startswith(f"{tmp_path} has one of train and test without the other; expected ")


def test_train_is_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expecting("objectnet", "folders", pictures("objectnet"), monkeypatch)
    (tmp_path / "train").mkdir()
    (said,) = problems("objectnet", tmp_path)
    assert said == f"{tmp_path} has no halves; expected {{train,test}}/<class>/*.jpg"


# ---------------------------------------------------------------------------------------------------- lists


def small(name: str, layout: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> dict[Picture, Path]:
    wanted = pictures(name)
    expecting(name, layout, wanted, monkeypatch)
    return build(layout, root, wanted)


@pytest.mark.parametrize(("name", "layout"), [each for each in LAYOUTS if each[1] != "folders"])
def test_images_that_are_in_no_list(name: str, layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beside = next(iter(small(name, layout, tmp_path, monkeypatch).values())).parent / "more.png"
    draw(beside)
    assert problems(name, tmp_path) == [
        f"1 images are in no list: 1 in {beside.parent.relative_to(tmp_path).as_posix()}"
    ]


@pytest.mark.parametrize(
    ("name", "layout", "file"),
    [
        ("imagenet_r", "CODA-Prompt's lists", "imagenet-r_test.yaml"),
        ("cub200", "the release", "images.txt"),
        ("cub200", "the release", "train_test_split.txt"),
        ("stanford_cars", "the release", "devkit/cars_meta.mat"),
        ("stanford_cars", "the release", "devkit/cars_test_annos_withlabels.mat"),
        ("domainnet", "the official lists", "real_train.txt"),
    ],
)
@pytest.mark.parametrize("contents", [None, b"", b"nothing\n", b"\xff\xfe\x00"])
def test_a_list_that_is_missing_or_no_list(
    name: str, layout: str, file: str, contents: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(name, layout, tmp_path, monkeypatch)
    (tmp_path / file).unlink()
    if contents is not None:
        (tmp_path / file).write_bytes(contents)
    said = problems(name, tmp_path)
    empty_is_a_list = contents == b"" and file.endswith(".txt")
    assert any(str(tmp_path / file) in line for line in said) or empty_is_a_list, said
    assert said


def test_lists_of_another_order_are_another_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small("imagenet_r", "CODA-Prompt's lists", tmp_path, monkeypatch)
    for half in ("train", "test"):
        file = tmp_path / f"imagenet-r_{half}.yaml"
        text = yaml.safe_load(file.read_text())
        file.write_text(yaml.safe_dump(text | {"targets": [2 - number for number in text["targets"]]}))
    assert problems("imagenet_r", tmp_path) == [
        "the lists are of another split: n01443537 has number 0, and 2 in the small one"
    ]


def test_an_image_in_both_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small("domainnet", "the official lists", tmp_path, monkeypatch)
    line = (tmp_path / "real_train.txt").read_text().splitlines()[0]
    with (tmp_path / "real_test.txt").open("a") as file:
        file.write(line + "\n")
    said = problems("domainnet", tmp_path)
    assert said[0] == "1 images are named more than once: 1 in real/The_Eiffel_Tower"


def test_lists_that_disagree_on_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small("domainnet", "the official lists", tmp_path, monkeypatch)
    file = tmp_path / "real_train.txt"
    file.write_text(file.read_text().replace(" 2\n", " 7\n"))
    assert problems("domainnet", tmp_path) == [
        "the lists do not number the classes 0 … 2, each once: The_Eiffel_Tower = 2, The_Eiffel_Tower = 7"
    ]


@pytest.mark.parametrize(
    ("name", "layout", "file", "line", "words"),
    [
        ("domainnet", "the official lists", "real_train.txt", "real/a/b.png " + "9" * 5000, "lines that are not real/"),
        ("cub200", "the release", "image_class_labels.txt", "1 " + "9" * 5000, "images without a class or a half"),
        (
            "imagenet_r",
            "CODA-Prompt's lists",
            "imagenet-r_train.yaml",
            "data: [a/b.png]\ntargets: [.inf]",
            "not a list",
        ),
        (
            "imagenet_r",
            "CODA-Prompt's lists",
            "imagenet-r_train.yaml",
            "data: [a/b.png]\ntargets: [.nan]",
            "not a list",
        ),
    ],
)
def test_a_number_that_no_class_has(
    name: str, layout: str, file: str, line: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(name, layout, tmp_path, monkeypatch)
    (tmp_path / file).write_text(line + "\n")
    assert words in "\n".join(problems(name, tmp_path))


def test_a_list_that_names_images_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small("cub200", "the release", tmp_path / "cub", monkeypatch)
    outside = tmp_path / "001.Auk" / "train0.png"
    draw(outside)
    file = tmp_path / "cub" / "images.txt"
    for path in (str(outside), "../../001.Auk/train0.png"):
        file.write_text("\n".join([f"1 {path}", *file.read_text().splitlines()[1:]]))
        said = problems("cub200", tmp_path / "cub")
        assert said[0].startswith("1 images that the lists name are missing: 1 in ")
        assert said[1] == "1 images are in no list: 1 in images/001.Auk"


def test_an_image_without_a_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small("cub200", "the release", tmp_path, monkeypatch)
    file = tmp_path / "train_test_split.txt"
    file.write_text(file.read_text().replace("3 1\n", "3 7\n", 1))
    said = problems("cub200", tmp_path)
    assert said[0] == f"{tmp_path}: 1 images without a class or a half"
    assert said[1].startswith("image 3 (001.Auk/train2.png) has no class number")


# ---------------------------------------------------------------------------------------------------- CIFAR-100


def test_cifar100_is_looked_at_without_a_download(tmp_path: Path) -> None:
    (said,) = inspect(find_benchmark("cifar100"), tmp_path).problems
    assert said.startswith(f"no intact CIFAR-100 in {tmp_path}; place in it cifar-100-python.tar.gz (md5 ")
    assert not any(tmp_path.iterdir())


def test_cifar100_of_other_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Small:
        filename, tgz_md5, url, base_folder, classes = "x", "y", "z", "w", ["apple", "bear"]

        def __init__(self, *_: object, train: bool, download: bool = False) -> None:
            assert not download
            self.data, self.targets = np.zeros((4 if train else 2, 2, 2, 3), np.uint8), [0, 1] * (2 if train else 1)

    monkeypatch.setattr("torchvision.datasets.CIFAR100", Small)
    module = importlib.import_module("lorica.data.sources.cifar100")
    found = inspect(find_benchmark("cifar100"), tmp_path)
    assert found.problems == [
        "2 classes, expected 100",
        "4 training and 2 test images, expected 50000 and 10000 (the official one)",
    ]
    splits = (Split("the official one", 4, 2, ("archive",)),)
    monkeypatch.setattr(module, "BENCHMARK", replace(module.BENCHMARK, classes=2, splits=splits))
    found = inspect(find_benchmark("cifar100"), tmp_path)
    assert (found.split, found.problems, found.counts) == ("the official one", [], (4, 2))


# ---------------------------------------------------------------------------------------------------- what is known


def test_what_is_known_of_each_fits_together() -> None:
    assert benchmark_names() == sorted([*CLASSES, "cifar100"])
    for benchmark in map(find_benchmark, benchmark_names()):
        known = benchmark.known.split()
        assert len(known) in (0, benchmark.classes)
        assert known == sorted(set(known))
        layouts = {layout.name for layout in benchmark.layouts} or {"archive"}
        assert {name for split in benchmark.splits for name in split.layouts} == layouts
        assert benchmark.place
        assert benchmark.protocols
        assert benchmark.licence
    sizes = {name: [(split.train, split.test) for split in find_benchmark(name).splits] for name in benchmark_names()}
    assert set(sizes["imagenet_r"]) == {(24000, 6000)}
    assert sum(sizes["imagenet_a"][0]) == 7500
    assert {sum(each) for each in sizes["cub200"]} == {11788}
    assert sum(sizes["stanford_cars"][0]) == 16185
    assert sum(sizes["domainnet"][0]) == 586575 == sum(map(sum, DOMAINS.values()))


@pytest.mark.parametrize("name", ["cub200", "domainnet"])
def test_the_remedy_reads_such_folders(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        inspect(find_benchmark(name), tmp_path).require()
    reader = "domain_folders" if name == "domainnet" else "image_folder"
    assert f"data.source={reader} data.class_order=text takes a folder as it is" in str(caught.value)


def test_an_unknown_one() -> None:
    with pytest.raises(DataError, match=r"^unknown benchmark 'imagenet-r'; did you mean imagenet_r\?"):
        find_benchmark("imagenet-r")
    with pytest.raises(DataError, match=r"^unknown benchmark 'x'; expected one of cifar100, cub200, "):
        find_benchmark("x")


def test_domainnet_is_a_stream_of_domains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = small("domainnet", "the official lists", tmp_path, monkeypatch)
    domain_of = {path: picture.domain for picture, path in paths.items()}
    source = load("domainnet", tmp_path)
    assert source.domains is not None
    assert source.domains.names == ("clipart", "real")
    for half in ("train", "test"):
        found = [source.domains.names[number] for number in getattr(source.domains, half)]
        assert found == [domain_of[path] for path in getattr(source, half).paths]
    stream = Stream(source, reader=ImageReader(8), by="domain", tasks=2)
    for task, domain in zip(stream.tasks, ("clipart", "real"), strict=True):
        assert len(task.classes) == 3
        for half, split in (("train", stream.train(task)), ("test", stream.test(task))):
            read = [getattr(source, half).paths[number] for number in split.indices.tolist()]
            assert {domain_of[path] for path in read} == {domain}
            assert len(read) == (9 if half == "train" else 6)


def test_vtab_is_never_shuffled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small("vtab", "folders", tmp_path, monkeypatch)
    source = load("vtab", tmp_path)
    with pytest.raises(
        DataError, match=r"^stream\.seed: the classes of vtab come in an order .* got 1993; give stream\.seed=null"
    ):
        Stream(source, reader=ImageReader(8), tasks=3)
    assert Stream(source, reader=ImageReader(8), tasks=3, seed=None).class_names == ("0", "1", "10")


def test_what_downloads_itself_has_no_split_to_be_held_to(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cifar100: what downloads itself is held to its own digest; leave --split out"):
        inspect(find_benchmark("cifar100"), tmp_path, split="5f3c")
