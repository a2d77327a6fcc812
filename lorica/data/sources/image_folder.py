"""Images in a folder for each class."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from jaxtyping import Int
from torchvision.datasets.folder import IMG_EXTENSIONS

from lorica.data.images import ImageFiles, unreadable
from lorica.data.sources.base import Source, held_out, make_source, required, some
from lorica.errors import DataError

DESCRIPTION = "data.root/train/<class>/*.png and data.root/test/<class>/*.png, or data.root/<class>/*.png to split"


def load(*, root: Path | None, test_fraction: float, split_seed: int) -> Source:
    """See `lorica.data.sources`."""
    return image_folder(required(root, "image_folder"), test_fraction=test_fraction, split_seed=split_seed)


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
                problems.append(f"{folders[one]} has {classes} that {folders[other]} lacks: {some(missing)}")
    problems += unreadable([path for classes in found for paths in classes.values() for path in paths])
    if problems:
        raise DataError([f"data.root: {problem}" for problem in problems])

    class_names = tuple(found[0])
    samples = [_image_files(classes) for classes in found]
    facts: dict[str, object] = {"root": str(root), "split": "folders"}
    if len(samples) == 1:
        kept, held = held_out(samples[0].labels, test_fraction, split_seed)
        samples = [_selected(samples[0], kept), _selected(samples[0], held)]
        facts |= {"split": "per class", "test_fraction": test_fraction, "split_seed": split_seed}
    return make_source("image_folder", class_names, samples[0], samples[1], facts)


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
