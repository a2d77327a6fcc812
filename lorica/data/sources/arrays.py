"""Images as arrays, in memory or in an .npz file."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from lorica.data.images import ImageArrays
from lorica.data.sources.base import Source, make_source, required, some
from lorica.errors import DataError

ArrayLike = np.ndarray | Tensor | Sequence

DESCRIPTION = (
    "an .npz file with x_train, y_train, x_test, y_test; in Python: lorica.run(..., source=lorica.arrays(...))"
)


def load(*, root: Path | None, test_fraction: float, split_seed: int) -> Source:
    """See `lorica.data.sources`; the file has a test set of its own."""
    return arrays_file(required(root, "arrays"))


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
        raise DataError(f"class_names: given more than once: {some(doubled)}")

    number_of = {name if named else number: number for number, name in enumerate(names)}
    problems, samples = [], {}
    for name in halves:
        values = labels[name].tolist()
        if foreign := sorted(set(values) - number_of.keys()):
            known = some(names) if named else f"0 … {len(names) - 1}"
            problems.append(f"y_{name}: labels that are no class: {some(foreign)}; the classes are {known}")
        numbers = np.array([number_of.get(value, -1) for value in values], np.int64)
        if name == "train" and (empty := sorted(set(range(len(names))) - set(numbers.tolist()))):
            problems.append(f"y_train: classes without an image: {some([names[number] for number in empty])}")
        try:
            samples[name] = ImageArrays(images[name], numbers, name)
        except DataError as error:
            problems += error.problems
    if problems:
        raise DataError(problems)
    return make_source("arrays", names, samples["train"], samples["test"], {})


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


def _label_faults(name: str, images: np.ndarray, labels: np.ndarray) -> list[str]:
    if labels.ndim != 1 or images.shape[:1] != labels.shape:
        return [f"x_{name} has shape {list(images.shape)}, y_{name} {list(labels.shape)}: expected one label per image"]
    if len(labels) and labels.dtype.kind not in "iuU":
        return [f"y_{name}: expected integers or strings, got {labels.dtype}"]
    return ["x_train: no images"] if name == "train" and not len(labels) else []
