"""Stanford Cars: 16185 cars of 196 makes and models (Krause et al., 2013)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lorica.data.benchmarks import FOLDERS, Benchmark, Entry, Layout, Listing, Split
from lorica.data.sources.base import Source
from lorica.errors import DataError

DESCRIPTION = "Stanford Cars, 196 makes and models; `lorica data show stanford_cars` says what to place where"
READS = ("root",)
NEEDS = ("root",)

_ANNOTATIONS = {
    "train": ("devkit/cars_train_annos.mat",),
    "test": ("devkit/cars_test_annos_withlabels.mat", "cars_test_annos_withlabels.mat"),
}


def load(*, root: Path | None, **options: Any) -> Source:
    """See `lorica.data.sources`; the class numbers are those of the text order of their names, or of the release."""
    return BENCHMARK.load(root, **options)


def _read(root: Path) -> Listing:
    """The release's names of classes, and its annotations: of each image its file and its class from 1 on."""
    from scipy.io import loadmat  # scikit-learn brings it; slow to import, and only this layout needs it

    entries: list[Entry] = []
    problems: list[str] = []

    def read(places: tuple[str, ...], key: str) -> Any:
        file = next((root / place for place in places if (root / place).exists()), root / places[0])
        try:
            return np.atleast_1d(loadmat(file, squeeze_me=True)[key])
        except Exception as error:  # what scipy raises for a damaged file has no family of its own
            problems.append(f"{file}: {error}; expected the file of the release, with {key}")
            return []

    names = [str(name) for name in read(("devkit/cars_meta.mat",), "class_names")]
    for half, places in _ANNOTATIONS.items():
        for row in read(places, "annotations"):
            number, image = int(row["class"]) - 1, str(row["fname"])
            if 0 <= number < len(names):
                name = names[number]
                entries.append(Entry(half, root / f"cars_{half}" / image, name, number, f"{name}/{image}"))
            elif names:
                problems.append(f"{places[0]}: {image} is of class {number + 1}, and there are {len(names)}")
    if problems:
        raise DataError(problems)
    return Listing(entries, [root / "cars_train", root / "cars_test"])


RELEASE = Layout(
    "the release",
    "cars_train/*.jpg, cars_test/*.jpg, devkit/{cars_meta,cars_train_annos,cars_test_annos_withlabels}.mat",
    ("devkit", "cars_train", "cars_test"),
    _read,
)

BENCHMARK = Benchmark(
    name="stanford_cars",
    title="Stanford Cars",
    classes=196,
    splits=(Split("the official one", 8144, 8041, (FOLDERS.name, RELEASE.name)),),
    layouts=(FOLDERS, RELEASE),
    folders=("cars", "stanford_cars"),
    origin=(
        "ai.stanford.edu/~jkrause/cars/car_dataset.html, which is not always there; copies are where people keep them"
    ),
    licence="for research, not for commerce; the photographs are other people's",
    place=(
        "train and test with a folder for each class into data/cars",
        "or the release as it is unpacked: data/stanford_cars with cars_train, cars_test and devkit; "
        "cars_test_annos_withlabels.mat is a file of its own",
    ),
    protocols=(
        "16 classes, then 20 a task (10 tasks: RanPAC): stream.classes_per_task=[16,20,20,20,20,20,20,20,20,20]",
    ),
    traps=(
        "cars_test_annos.mat of the release has no classes; the file with them is beside it",
        "one name of a class has a slash (Ram C/V Cargo Van Minivan 2012), which folders spell otherwise",
    ),
)
