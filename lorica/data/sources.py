"""Where samples come from: benchmarks, folders and arrays, each as a training and a test set over the same classes.

A source knows nothing of tasks: its class numbers are positions in `class_names`, and stream.py makes a stream of it.
"""

from __future__ import annotations

import difflib
import os
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

import numpy as np
from jaxtyping import Int
from torch import Tensor
from torchvision.datasets import CIFAR100
from torchvision.datasets.folder import IMG_EXTENSIONS

from lorica.data.samples import ImageArrays, ImageFiles, Samples, unreadable
from lorica.errors import DataError

ArrayLike = np.ndarray | Tensor | Sequence

_LISTED = 10  # names spelled out in one error


@dataclass(frozen=True)
class Source:
    """A training and a test set over the same classes. `facts`: plain values for the record of a run."""

    name: str
    class_names: tuple[str, ...]
    train: Samples
    test: Samples
    facts: dict[str, object]


def split_per_class(
    labels: Int[np.ndarray, " n"], fraction: float, seed: int
) -> tuple[Int[np.ndarray, " kept"], Int[np.ndarray, " held"]]:
    """Indices kept and held out, both ascending: of every class about `fraction`, at least one, never all.

    Each class is permuted by its own RandomState(seed), so a class that is added later does not move the others'.
    """
    held = np.zeros(len(labels), dtype=bool)
    for number in np.unique(labels):
        members = np.flatnonzero(labels == number)
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        held[np.random.RandomState(seed).permutation(members)[:count]] = True
    return np.flatnonzero(~held), np.flatnonzero(held)


def image_folder(root: str | Path, *, test_fraction: float = 0.25, split_seed: int = 0) -> Source:
    """Images in `root`/train/<class>/ and `root`/test/<class>/, or in `root`/<class>/ (then split class by class).

    Classes are in the order of their sorted names. All faults of the folder are raised together as one DataError.
    """
    root = Path(root).expanduser()
    layout = f"{root}/train/<class>/*.jpg and {root}/test/<class>/*.jpg, or {root}/<class>/*.jpg"
    if not root.is_dir():
        raise DataError(f"data.root: {root} is not a folder; expected {layout}")
    halves = [root / "train", root / "test"]
    folders = halves if all(half.is_dir() for half in halves) else [root]
    if len(folders) == 1 and any(half.is_dir() and _visible_folders(half) for half in halves):
        raise DataError(f"data.root: {root} has one of train and test without the other; expected {layout}")
    found = [{folder.name: _images_below(folder) for folder in _visible_folders(half)} for half in folders]

    problems = []
    for folder, classes in zip(folders, found, strict=True):
        if not classes:
            problems.append(f"{folder} has no class folders; expected {layout}")
        for name, paths in classes.items():
            if not paths:
                problems.append(f"{folder / name} has no images ({', '.join(IMG_EXTENSIONS)})")
            elif len(folders) == 1 and len(paths) == 1:
                problems.append(f"{folder / name} has a single image; a split needs two, one of them for testing")
    if len(folders) == 2 and all(found):
        for one, other in ((1, 0), (0, 1)):
            if missing := sorted(found[one].keys() - found[other].keys()):
                classes = "1 class" if len(missing) == 1 else f"{len(missing)} classes"
                problems.append(f"{folders[one]} has {classes} that {folders[other]} lacks: {_some(missing)}")
    problems += unreadable([path for classes in found for paths in classes.values() for path in paths])
    if problems:
        raise DataError([f"data.root: {problem}" for problem in problems])

    class_names = tuple(found[0])
    samples = [_image_files(classes) for classes in found]
    facts: dict[str, object] = {"root": str(root), "split": "folders"}
    if len(samples) == 1:
        kept, held = _test_split(samples[0].labels, test_fraction, split_seed)
        samples = [_selected(samples[0], kept), _selected(samples[0], held)]
        facts |= {"split": "per class", "test_fraction": test_fraction, "split_seed": split_seed}
    return _source("image_folder", class_names, samples[0], samples[1], facts)


def digits(*, test_fraction: float = 0.25, split_seed: int = 0) -> Source:
    """scikit-learn's 1797 handwritten digits of 8 x 8 pixels in 10 classes, split class by class."""
    from sklearn.datasets import load_digits  # slow to import, and only this source needs it

    images, labels = load_digits(return_X_y=True)
    images = np.rint(images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)  # 0 … 16 -> 0 … 255
    kept, held = _test_split(labels, test_fraction, split_seed)
    train, test = ImageArrays(images[kept], labels[kept], "train"), ImageArrays(images[held], labels[held], "test")
    facts: dict[str, object] = {"split": "per class", "test_fraction": test_fraction, "split_seed": split_seed}
    return _source("digits", [str(number) for number in range(10)], train, test, facts)


def cifar100(root: str | Path) -> Source:
    """CIFAR-100 from `root`/cifar-100-python, downloaded into `root` when absent. DataError when that fails."""
    root = Path(root).expanduser()
    archive = root / CIFAR100.filename
    had_root, had_archive = root.exists(), archive.exists()
    try:
        halves = [CIFAR100(root, train=True, download=True), CIFAR100(root, train=False)]
    except (OSError, RuntimeError, HTTPException) as error:
        if not had_archive:
            archive.unlink(missing_ok=True)  # an interrupted download
        if not had_root and root.is_dir() and not any(root.iterdir()):
            root.rmdir()
        raise DataError(
            f"data.root: no intact CIFAR-100 in {root}, and it could not be downloaded ({error}); place in it "
            f"{CIFAR100.filename} (md5 {CIFAR100.tgz_md5}) from {CIFAR100.url}, or its folder {CIFAR100.base_folder}"
        ) from error
    train, test = (
        ImageArrays(half.data, np.asarray(half.targets), name)
        for half, name in zip(halves, ("train", "test"), strict=True)
    )
    return _source("cifar100", halves[0].classes, train, test, {"root": str(root)})


def arrays(
    train: tuple[ArrayLike, ArrayLike], test: tuple[ArrayLike, ArrayLike], class_names: Sequence[str] | None = None
) -> Source:
    """Images (see `ImageArrays`) and labels in memory; labels are the integers 0 … K-1, or class names.

    Without `class_names` the classes are 0 … K-1 or the sorted names in `train`. Every class needs a training image;
    the test set may lack classes. DataError with all that is wrong.
    """
    halves = {"train": train, "test": test}
    images = {name: np.asarray(pixels) for name, (pixels, _) in halves.items()}
    labels = {name: np.asarray(values) for name, (_, values) in halves.items()}
    if faults := [fault for name in halves for fault in _label_faults(name, images[name], labels[name])]:
        raise DataError(faults)
    named = labels["train"].dtype.kind == "U"
    if len(labels["test"]) and (labels["test"].dtype.kind == "U") != named:
        raise DataError("y_train and y_test: expected integers in both or strings in both")
    if class_names is not None:
        names = [str(name) for name in class_names]
    elif named:
        names = [str(name) for name in np.unique(labels["train"])]
    else:
        names = [str(number) for number in range(int(labels["train"].max()) + 1)]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"class_names: given more than once: {_some(doubled)}")

    number_of = {name if named else number: number for number, name in enumerate(names)}
    problems, samples = [], {}
    for name in halves:
        values = labels[name].tolist()
        if foreign := sorted(set(values) - number_of.keys()):
            known = _some(names) if named else f"0 … {len(names) - 1}"
            problems.append(f"y_{name}: labels that are no class: {_some(foreign)}; the classes are {known}")
        numbers = np.array([number_of.get(value, -1) for value in values], np.int64)
        if name == "train" and (empty := sorted(set(range(len(names))) - set(numbers.tolist()))):
            problems.append(f"y_train: classes without an image: {_some([names[number] for number in empty])}")
        try:
            samples[name] = ImageArrays(images[name], numbers, name)
        except DataError as error:
            problems += error.problems
    if problems:
        raise DataError(problems)
    return _source("arrays", names, samples["train"], samples["test"], {})


def arrays_file(root: str | Path) -> Source:
    """An .npz file with x_train, y_train, x_test, y_test and optionally class_names: `arrays` of these. DataError."""
    path = Path(root).expanduser()
    expected = "expected an .npz file with x_train, y_train, x_test, y_test and optionally class_names"
    if not path.is_file():
        raise DataError(f"data.root: {path} is not a file; {expected}")
    if not zipfile.is_zipfile(path):
        raise DataError(f"data.root: {path} is not an .npz file, or a truncated one; {expected}")
    try:
        with np.load(path, allow_pickle=False) as stored:
            held = {key: stored[key] for key in stored}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"data.root: {path} cannot be read ({error}); {expected}") from error
    if missing := [key for key in ("x_train", "y_train", "x_test", "y_test") if key not in held]:
        raise DataError(f"data.root: {path} lacks {', '.join(missing)}; {expected}")
    names = held["class_names"].tolist() if "class_names" in held else None
    try:
        source = arrays((held["x_train"], held["y_train"]), (held["x_test"], held["y_test"]), names)
    except DataError as error:
        raise DataError([f"data.root: {path}: {problem}" for problem in error.problems]) from error
    source.facts["root"] = str(path)
    return source


SOURCES: dict[str, Callable[[Path | None, float, int], Source]] = {
    "digits": lambda root, fraction, seed: digits(test_fraction=fraction, split_seed=seed),
    "image_folder": lambda root, fraction, seed: image_folder(
        _required(root, "image_folder"), test_fraction=fraction, split_seed=seed
    ),
    "cifar100": lambda root, fraction, seed: cifar100(_required(root, "cifar100")),
    "arrays": lambda root, fraction, seed: arrays_file(_required(root, "arrays")),
}


SOURCE_DESCRIPTIONS = {
    "digits": "scikit-learn's 1,797 handwritten digits, 8x8; nothing to download",
    "image_folder": "data.root/train/<class>/*.png and data.root/test/<class>/*.png, or data.root/<class>/*.png to split",
    "cifar100": "CIFAR-100 through torchvision, downloaded into data.root when it is not there",
    "arrays": "an .npz file with x_train, y_train, x_test, y_test; in Python: lorica.run(..., source=lorica.arrays(...))",
}


def load_source(name: str, *, root: Path | None, test_fraction: float, split_seed: int) -> Source:
    """The source that recipes call `name`. DataError for an unknown name, a missing root, or unusable data."""
    if name not in SOURCES:
        near = difflib.get_close_matches(name, SOURCES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(SOURCES)}"
        raise DataError(f"data.source: unknown source {name!r}; {hint}")
    return SOURCES[name](root, test_fraction, split_seed)


def _required(root: Path | None, name: str) -> Path:
    if root is None:
        raise DataError(f"data.root: the source {name} needs a path")
    return root


def _source(name: str, class_names: Sequence[str], train: Samples, test: Samples, facts: dict[str, object]) -> Source:
    counts = {"classes": len(class_names), "train": len(train), "test": len(test)}
    return Source(name, tuple(class_names), train, test, counts | facts)


def _test_split(
    labels: Int[np.ndarray, " n"], fraction: float, seed: int
) -> tuple[Int[np.ndarray, " kept"], Int[np.ndarray, " held"]]:
    if not 0 < fraction < 1:
        raise DataError(f"data.test_fraction: expected a number between 0 and 1, got {fraction}")
    return split_per_class(labels, fraction, seed)


def _image_files(classes: dict[str, list[Path]]) -> ImageFiles:
    counts = [len(paths) for paths in classes.values()]
    return ImageFiles([path for paths in classes.values() for path in paths], np.repeat(np.arange(len(counts)), counts))


def _selected(files: ImageFiles, indices: Int[np.ndarray, " m"]) -> ImageFiles:
    return ImageFiles([files.paths[index] for index in indices], files.labels[indices])


def _visible_folders(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _images_below(folder: Path) -> list[Path]:
    """Image files in a class folder and the folders within, sorted; hidden ones are passed over."""
    images = []
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        images += [
            Path(place, name) for name in files if not name.startswith(".") and name.lower().endswith(IMG_EXTENSIONS)
        ]
    return sorted(images)


def _some(items: Iterable[object]) -> str:
    texts = [str(item) for item in items]
    more = f" and {len(texts) - _LISTED} more" if len(texts) > _LISTED else ""
    return ", ".join(texts[:_LISTED]) + more


def _label_faults(name: str, images: np.ndarray, labels: np.ndarray) -> list[str]:
    if labels.ndim != 1 or images.shape[:1] != labels.shape:
        return [f"x_{name} has shape {list(images.shape)}, y_{name} {list(labels.shape)}: expected one label per image"]
    if len(labels) and labels.dtype.kind not in "iuU":
        return [f"y_{name}: expected integers or strings, got {labels.dtype}"]
    return ["x_train: no images"] if name == "train" and not len(labels) else []
