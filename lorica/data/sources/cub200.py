"""CUB-200-2011: 11788 birds of 200 species (Wah et al., 2011), in two divisions that cannot be compared.

The official one, by train_test_split.txt, has 5994 and 5794 images (HiDe-Prompt, which moves the files); the archive of
RevisitingCIL has 9430 and 2358 (PILOT, EASE, RanPAC, SD-LoRA). mammoth has a third, in arrays of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lorica.data.benchmarks import FOLDERS, Benchmark, Entry, Layout, Listing, Split, is_class_number
from lorica.data.sources.base import Source, listed
from lorica.errors import DataError

DESCRIPTION = "CUB-200-2011, 200 species of birds; `lorica data show cub200` says what to place where"
READS = ("root",)
NEEDS = ("root",)

_TABLES = ("images.txt", "image_class_labels.txt", "train_test_split.txt")


def load(*, root: Path | None, **options: Any) -> Source:
    """See `lorica.data.sources`; the class numbers are those of the text order of their names, which is the official
    one."""
    return BENCHMARK.load(root, **options)


def _read(root: Path) -> Listing:
    """The tables of the release: of each image its path below images, its class from 1 on, and 1 if it is for
    training."""
    tables, problems = [], []
    for name in _TABLES:
        try:
            lines = (root / name).read_text(encoding="utf-8").splitlines()
            tables.append(dict(line.split(maxsplit=1) for line in lines if line.strip()))
        except (OSError, ValueError) as error:
            problems.append(f"{root / name}: {error}; expected two columns, of which the first is an image's number")
    if problems:
        raise DataError(problems)
    paths, classes, training = tables
    entries: list[Entry] = []
    for image, path in paths.items():
        number, half = classes.get(image, ""), {"1": "train", "0": "test"}.get(training.get(image, ""))
        if half is None or not is_class_number(number):
            problems.append(f"image {image} ({path}) has no class number in {_TABLES[1]}, or no 0 or 1 in {_TABLES[2]}")
        else:
            name = Path(path).parent.name
            entries.append(Entry(half, root / "images" / path, name, int(number) - 1, f"{name}/{Path(path).name}"))
    if problems:
        raise DataError(listed(f"{root}: {len(problems)} images without a class or a half", problems))
    return Listing(entries, [root / "images"])


OFFICIAL = Layout("the release", "images/<class>/*.jpg, " + ", ".join(_TABLES), _TABLES, _read)

BENCHMARK = Benchmark(
    name="cub200",
    title="CUB-200-2011",
    classes=200,
    splits=(
        Split("the archive of RevisitingCIL", 9430, 2358),
        Split("the official one", 5994, 5794, (FOLDERS.name, OFFICIAL.name)),
    ),
    layouts=(FOLDERS, OFFICIAL),
    folders=("cub", "CUB_200_2011", "cub200"),
    origin=(
        "www.vision.caltech.edu/datasets/cub_200_2011; the divided archive: the links in the READMEs of RevisitingCIL "
        "and LAMDA-PILOT"
    ),
    licence="for research and education, not for commerce; the photographs are other people's",
    place=(
        "the archive of RevisitingCIL: its train and test into data/cub",
        "or the release as it is unpacked: data/CUB_200_2011 with images, images.txt, image_class_labels.txt and "
        "train_test_split.txt",
    ),
    protocols=("10 classes a task (20 tasks: APER, RevisitingCIL); 20 (10 tasks: SD-LoRA, RanPAC)",),
    traps=(
        "the archive has more than half as many training images again as the official split: their numbers cannot be "
        "compared",
    ),
    known=" ".join(f"{number:03}" for number in range(1, 201)),
)
