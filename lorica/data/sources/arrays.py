"""Images as arrays, in memory or in an .npz file."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from lorica.data.decoding import DEFAULT, Decoding
from lorica.data.images import ImageArrays, Images, Pictures
from lorica.data.sources.base import LISTED, ClassOrder, Source, in_order, make_source, name_faults, required, some
from lorica.errors import DataError


@runtime_checkable
class HasArray(Protocol):
    """A column of pandas and its like."""

    def __array__(self) -> np.ndarray: ...


ArrayLike = np.ndarray | Tensor | Sequence | HasArray

DESCRIPTION = (
    "an .npz file with x_train, y_train, x_test, y_test; in Python: lorica.run(..., source=lorica.arrays(...))"
)
READS = ("root",)
NEEDS = ("root",)


def load(*, root: Path | None, class_order: ClassOrder = "natural", **_: Any) -> Source:
    """See `lorica.data.sources`; the file has a test set of its own."""
    return arrays_file(required(root, "arrays"), class_order)


def arrays(
    train: tuple[ArrayLike, ArrayLike],
    test: tuple[ArrayLike, ArrayLike],
    class_names: Sequence[str] | None = None,
    *,
    class_order: ClassOrder = "natural",
) -> Source:
    """Images (see `ImageArrays`) and labels in memory; labels are the integers 0 … K-1, or class names.

    Without `class_names` the classes are 0 … K-1 or the names in `train`, in order. Every class needs a training image;
    the test set may lack classes. DataError with all that is wrong.
    """
    halves = {"train": train, "test": test}
    problems: list[str] = []
    images, labels = (
        {name: _array(f"{letter}_{name}", half[place], problems) for name, half in halves.items()}
        for place, letter in enumerate("xy")
    )
    if not problems:
        problems = [fault for name in halves for fault in _label_faults(name, images[name], labels[name])]
    if problems:
        raise DataError(problems)
    named = labels["train"].dtype.kind == "U"
    if len(labels["test"]) and (labels["test"].dtype.kind == "U") != named:
        raise DataError("y_train and y_test: expected integers in both or strings in both")
    present = set(labels["train"].tolist())
    names: Sequence[object]
    if class_names is not None or named:
        names = [str(name) for name in class_names] if class_names is not None else in_order(present, class_order)
        if doubled := [name for name, times in Counter(names).items() if times > 1]:
            raise DataError(f"class_names: given more than once: {some(sorted(doubled))}")
        problems = name_faults(names)
    else:
        names = range(min(max(present), 2**62) + 1)  # not written out: a label may be a thousand million
    number_of = {name: number for number, name in enumerate(names)} if named else range(len(names))
    if absent := len(number_of) - sum(label in number_of for label in present):
        empty = (name for name, label in zip(names, number_of, strict=True) if label not in present)
        problems.append(f"y_train: classes without an image: {some(islice(empty, LISTED), absent)}")

    samples = {}
    for name in halves:
        values = labels[name].tolist()
        if foreign := sorted({value for value in values if value not in number_of}):
            known = some(names) if named else f"0 … {len(names) - 1}"
            problems.append(f"y_{name}: labels that are no class: {some(foreign)}; the classes are {known}")
        numbers = np.array([number_of[value] for value in values if value in number_of], np.int64)
        try:
            samples[name] = ImageArrays(images[name], numbers, name)
        except DataError as error:
            problems += error.problems
    if problems:
        raise DataError(problems)
    return make_source("arrays", [str(name) for name in names], samples["train"], samples["test"], {})


def arrays_file(root: str | Path, class_order: ClassOrder = "natural") -> Source:
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
        halves = [(held[f"x_{half}"], held[f"y_{half}"]) for half in ("train", "test")]
        source = arrays(halves[0], halves[1], names, class_order=class_order)
    except DataError as error:
        raise DataError([f"data.root: {path}: {problem}" for problem in error.problems]) from error
    source.facts["root"] = str(path)
    return source


def labelled_pictures(images: Any, labels: ArrayLike, decoding: Decoding = DEFAULT) -> tuple[list[str], Images, bool]:
    """The names of the classes in a pair of images and labels, the samples, and whether the labels are numbers.

    Args:
        images: an array or a tensor of images (see `ImageArrays`), or an iterable of pictures (see `pixels_of`).
        labels: one for each: integers, or class names. Classes are those that occur, in order.

    Raises:
        DataError: all that is wrong with them.
    """
    problems: list[str] = []
    named = _array("y", labels, problems)
    if isinstance(images, str | Path):
        problems.append(f"x: expected images, got {images}; for a folder of class folders give it alone")
    if problems:
        raise DataError(problems)
    given: Any = [] if isinstance(images, str | Path) else list(images)
    if isinstance(images, np.ndarray | Tensor) and images.ndim > 2:
        given = _array("x", images, problems)
    if named.ndim != 1 or len(named) != len(given):
        problems.append(f"x has {len(given)} images, y shape {list(named.shape)}: expected one label per image")
    elif not len(named):
        problems.append("x: no images")
    elif named.dtype.kind not in "iuU":
        problems.append(f"y: expected integers or strings, got {named.dtype}; use y.astype(int) or y.astype(str)")
    if problems:
        raise DataError(problems)
    texts = [str(label) for label in named.tolist()]
    names = in_order(set(texts), "natural")
    if faults := name_faults(names):
        raise DataError(faults)
    number_of = {name: number for number, name in enumerate(names)}
    numbers = np.array([number_of[text] for text in texts], np.int64)
    if isinstance(given, list):
        if all(isinstance(each, str) and not os.path.exists(each) for each in given):  # Path.exists minds long texts
            raise DataError(
                f"x: none of the {len(given)} strings is the path of a file, {given[0]!r:.60} for one; give paths of "
                'images, or, if these are texts, make the model with recipe="own_texts"'
            )
        samples: Images = Pictures(given, numbers, decoding)
        if wrong := [problem for index in range(len(given)) if (problem := _unreadable(samples, index))]:
            raise DataError(wrong)
    else:
        if given.ndim == 4 and given.shape[1] in (1, 3) and given.shape[-1] not in (1, 3):
            given = np.moveaxis(given, 1, -1)
        samples = ImageArrays(given, numbers, "x")
    return names, samples, named.dtype.kind != "U"


def _unreadable(samples: Images, index: int) -> str | None:
    try:
        samples.decode(index)
    except DataError as error:
        return f"{samples.describe(index)}: {error}"
    return None


def _array(name: str, given: ArrayLike, problems: list[str]) -> np.ndarray:
    """What was given as an array; strings that pandas keeps as objects become strings. Or a problem, and an empty
    array."""
    try:
        array = np.asarray(given.detach().cpu() if isinstance(given, Tensor) else given)
    except ValueError:  # lists of unequal length
        problems.append(f"{name}: its entries differ in shape; bring them to one shape, or use a folder of images")
        return np.empty(0)
    if array.dtype == object and all(isinstance(value, str) for value in array.flat):
        return array.astype(str)
    return array


def _label_faults(name: str, images: np.ndarray, labels: np.ndarray) -> list[str]:
    if labels.ndim != 1 or images.shape[:1] != labels.shape:
        return [f"x_{name} has shape {list(images.shape)}, y_{name} {list(labels.shape)}: expected one label per image"]
    if len(labels) and labels.dtype.kind not in "iuU":
        remedy = {
            "b": "; give the two classes as 0 and 1, or as names",
            "S": "; decode these bytes: y.astype(str)",
            "O": "; these are objects of several kinds, or missing values",
            "f": "; use y.astype(int)",
        }.get(labels.dtype.kind, "")
        return [f"y_{name}: expected integers or strings, got {labels.dtype}{remedy}"]
    return ["x_train: no images"] if name == "train" and not len(labels) else []
