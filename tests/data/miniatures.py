"""Miniatures of benchmarks: three classes in the layouts that people have, and benchmarks that expect no more."""

from __future__ import annotations

import hashlib
import importlib
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from scipy.io import savemat

from lorica.data.benchmarks import Benchmark, Split

_shades = count()


@dataclass(frozen=True)
class Picture:
    """An image of a miniature; `number`: of its class, where lists say it."""

    half: str
    class_name: str
    number: int
    file: str
    domain: str = ""


# names that are not in order where lists number them; the last one is of a class too many
CLASSES = {
    "imagenet_r": {"n01443537": 2, "n01484850": 0, "n01494475": 1, "n99999999": 3},
    "imagenet_a": {"n01498041": 0, "n01531178": 1, "n01534433": 2, "n99999999": 3},
    "cub200": {"001.Auk": 0, "002.Jay": 1, "010.Tern": 2, "011.Wren": 3},
    "stanford_cars": {"AM General Hummer": 0, "Acura RL": 1, "Ram C-V": 2, "Volvo": 3},
    "domainnet": {"The_Eiffel_Tower": 2, "axe": 0, "tent": 1, "zebra": 3},
    "vtab": {"0": 0, "1": 1, "10": 2, "2": 3},
    "omnibenchmark": {"a": 0, "b": 1, "c": 2, "d": 3},
    "objectnet": {"air_freshener": 0, "basket": 1, "teapot": 2, "vase": 3},
}
KNOWN = {"imagenet_r": 3, "imagenet_a": 3, "cub200": 3}
"""Benchmarks whose classes are known by name."""

LAYOUTS = [
    *((name, "folders") for name in CLASSES if name != "domainnet"),
    ("imagenet_r", "CODA-Prompt's lists"),
    ("cub200", "the release"),
    ("stanford_cars", "the release"),
    ("domainnet", "the official lists"),
]

DOMAINS = ("clipart", "real")


def pictures(name: str, classes: int = 3) -> list[Picture]:
    """Three training images and two test images of each class (and each domain)."""
    domains = DOMAINS if name == "domainnet" else ("",)
    return [
        Picture(half, class_name, number, f"{domain}{half}{place}.png", domain)
        for domain in domains
        for class_name, number in list(CLASSES[name].items())[:classes]
        for half, images in (("train", 3), ("test", 2))
        for place in range(images)
    ]


def expecting(name: str, layout: str, wanted: Sequence[Picture], monkeypatch: pytest.MonkeyPatch) -> Benchmark:
    """The benchmark of that name, which from now on expects these images in that layout."""
    module = importlib.import_module(f"lorica.data.sources.{name}")
    numbers = {"n01443537": 2} if layout == "CODA-Prompt's lists" else {}
    halves = Counter(picture.half for picture in wanted)
    of_domains = Counter((picture.domain, picture.half) for picture in wanted)
    small = replace(
        module.BENCHMARK,
        classes=len({picture.class_name for picture in wanted}),
        splits=(Split("the small one", halves["train"], halves["test"], (layout,), numbers),),
        known=" ".join([each.partition(".")[0] for each in CLASSES[name]][: KNOWN.get(name, 0)]),
        domains={each: (of_domains[each, "train"], of_domains[each, "test"]) for each in DOMAINS}
        if name == "domainnet"
        else {},
    )
    monkeypatch.setattr(module, "BENCHMARK", small)
    return small


def build(layout: str, root: Path, wanted: Sequence[Picture]) -> dict[Picture, Path]:
    """Writes the images in a layout, each of another colour, and the lists that belong to it."""
    lists: Any = {
        "folders": lambda _: None,
        "CODA-Prompt's lists": _coda_lists,
        "the release": _cars_release if any("RL" in picture.class_name for picture in wanted) else _cub_release,
        "the official lists": _domain_lists,
    }[layout]
    paths = {}
    for place, picture in enumerate(wanted, 1):
        folder = {
            "folders": f"{picture.half}/{picture.class_name}",
            "CODA-Prompt's lists": picture.class_name,
            "the release": f"images/{picture.class_name}" if lists is _cub_release else f"cars_{picture.half}",
            "the official lists": f"{picture.domain}/{picture.class_name}",
        }[layout]
        file = f"{place:05}.png" if lists is _cars_release else picture.file
        paths[picture] = root / folder / file
        draw(paths[picture])
    lists({picture: path.relative_to(root) for picture, path in paths.items()}, root) if layout != "folders" else None
    return paths


def draw(path: Path) -> None:
    """An image of a colour that no other has."""
    shade = next(_shades)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (shade % 256, shade // 256 % 256, shade // 65536)).save(path)


def hash_of(root: Path, layout: str, paths: dict[Picture, Path]) -> str:
    """What the hash of a split is said to be, made in another way than lorica does."""
    numbered = layout in ("CODA-Prompt's lists", "the official lists")
    lines = []
    for picture, path in paths.items():
        domain = f"{picture.domain}/" if picture.domain else ""
        number = f" {picture.number}" if numbered else ""
        lines.append(f"{picture.half}/{domain}{picture.class_name}/{path.name}{number}\n")
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def _coda_lists(paths: dict[Picture, Path], root: Path) -> None:
    for half in ("train", "test"):
        own = {picture: path for picture, path in paths.items() if picture.half == half}
        text = {"data": [f"data/imagenet-r/{path}" for path in own.values()], "targets": [each.number for each in own]}
        (root / f"imagenet-r_{half}.yaml").write_text(yaml.safe_dump(text))


def _cub_release(paths: dict[Picture, Path], root: Path) -> None:
    tables = {
        "images.txt": [path.relative_to("images") for path in paths.values()],
        "image_class_labels.txt": [picture.number + 1 for picture in paths],
        "train_test_split.txt": [int(picture.half == "train") for picture in paths],
    }
    for name, values in tables.items():
        (root / name).write_text("".join(f"{place} {value}\n" for place, value in enumerate(values, 1)))


def _cars_release(paths: dict[Picture, Path], root: Path) -> None:
    (root / "devkit").mkdir()
    names = dict(sorted((picture.number, picture.class_name) for picture in paths))
    savemat(root / "devkit" / "cars_meta.mat", {"class_names": np.array(list(names.values()), dtype=object)})
    for half, file in (("train", "cars_train_annos.mat"), ("test", "cars_test_annos_withlabels.mat")):
        rows = [(picture.number + 1, path.name) for picture, path in paths.items() if picture.half == half]
        annotations = np.array(rows, dtype=[("class", object), ("fname", object)])
        savemat(root / "devkit" / file, {"annotations": annotations})


def _domain_lists(paths: dict[Picture, Path], root: Path) -> None:
    for domain in DOMAINS:
        for half in ("train", "test"):
            own = [(path, each.number) for each, path in paths.items() if (each.domain, each.half) == (domain, half)]
            (root / f"{domain}_{half}.txt").write_text("".join(f"{path} {number}\n" for path, number in own))


def remove_class(paths: dict[Picture, Path], class_name: str) -> None:
    """Its images go, and the folders that had nothing else."""
    for picture, path in paths.items():
        if picture.class_name == class_name:
            path.unlink()
            if not any(path.parent.iterdir()):
                shutil.rmtree(path.parent)
