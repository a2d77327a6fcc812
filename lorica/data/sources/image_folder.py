"""Images in a folder for each class."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lorica.data.decoding import DEFAULT, Decoding
from lorica.data.folders import Walk, common_folders, has_folders, use_of
from lorica.data.images import ImageFiles, faults
from lorica.data.sources.base import (
    OF_ROWS,
    ClassOrder,
    Source,
    facts_of_names,
    held_out,
    in_order,
    likeness,
    listed,
    make_source,
    name_faults,
    required,
    some,
)
from lorica.errors import DataError
from lorica.progress import Reporter

DESCRIPTION = "data.root/train/<class>/*.png and data.root/test/<class>/*.png, or data.root/<class>/*.png to split"
READS = ("root", "test_fraction", "unreadable")
NEEDS = ("root",)


def load(*, root: Path | None, **options: Any) -> Source:
    """See `lorica.data.sources`."""
    own = {key: value for key, value in options.items() if key not in OF_ROWS}
    return image_folder(required(root, "image_folder"), **own)


def image_folder(
    root: str | Path,
    *,
    test_fraction: float = 0.25,
    split_seed: int = 0,
    class_order: ClassOrder = "natural",
    decoding: Decoding = DEFAULT,
    unreadable: Literal["refuse", "skip"] = "refuse",
    decode_all: bool = False,
    reporter: Reporter | None = None,
) -> Source:
    """Images in `root/train/<class>/` and `root/test/<class>/`, or in `root/<class>/` (then split class by class).

    The halves may have any usual name (Training, val); classes are in the order of their names. Links are followed, but
    each file can be one sample. What is passed over (hidden files, folders of the system, files of no image format) is
    counted in `facts`. Images that cannot be read are faults, or left out and counted with `unreadable="skip"`;
    `decode_all` finds those that look whole until they are decoded, as `skip` does; the reporter is told of each image
    that has been looked at.

    Raises:
        DataError: all faults of the folder together.
    """
    class_names, samples, facts = labelled_images(
        root,
        least=2,
        class_order=class_order,
        decoding=decoding,
        unreadable=unreadable,
        decode_all=decode_all,
        reporter=reporter,
    )
    if len(samples) == 1:
        kept, held = held_out(samples[0].labels, test_fraction, split_seed)
        samples = [samples[0].picked(kept), samples[0].picked(held)]
        facts |= {"split": "per class", "test_fraction": test_fraction, "split_seed": split_seed}
    return make_source("image_folder", class_names, samples[0], samples[1], facts)


def labelled_images(
    root: str | Path,
    *,
    least: int = 1,
    class_order: ClassOrder = "natural",
    decoding: Decoding = DEFAULT,
    unreadable: Literal["refuse", "skip"] = "refuse",
    decode_all: bool = False,
    reporter: Reporter | None = None,
    problems: list[str] | None = None,
) -> tuple[list[str], list[ImageFiles], dict[str, object]]:
    """The names of the classes in a folder as `image_folder` takes it, their images, in two halves where the folder has
    them, and facts about it.

    Args:
        least: images of a class in a folder without halves.
        problems: takes the faults, if somebody has more to say of them; what is there is given all the same.

    Raises:
        DataError: as `image_folder`.
    """
    root = Path(root).expanduser()
    layout = f"{root}/train/<class>/*.jpg and {root}/test/<class>/*.jpg, or {root}/<class>/*.jpg"
    if not root.is_dir():
        raise DataError(f"data.root: {root} is not a folder; expected {layout}")
    walk = Walk()
    split = _class_folders(root, walk, layout)
    found = [{folder: walk.images(folder) for folder in folders} for folders in split.values()]
    every = [path for classes in found for paths in classes.values() for path in paths]
    decode = decode_all or unreadable == "skip"
    seen = zip(every, faults(every, decoding, decode=decode, reporter=reporter), strict=True)
    damaged = {path: fault for path, fault in seen if fault}
    if unreadable == "skip":
        found = [
            {folder: [path for path in paths if path not in damaged] for folder, paths in each.items()}
            for each in found
        ]

    wrong: list[str] = []
    for half, classes in zip(split, found, strict=True):
        if not classes:
            wrong.append(f"{half} has no class folders; expected {layout}")
        elif common := common_folders(classes):
            wrong.append(
                f"{half}: its folders {some(folder.name for folder in classes)} all have the same folders within "
                f"({some(common)}): these look like splits or domains, not like classes; give one of them as "
                "data.root, call two of them train and test, put the images of a class into one folder, or, of "
                "domains, give data.source=domain_folders"
            )
        elif len(classes) == 1 and (halves := _halves_within(*classes.items())):
            wrong.append(f"{next(iter(classes))} has {some(halves)}: it is no class; give it as data.root")
        wrong += name_faults([folder.name for folder in classes])
        for folder, paths in classes.items():
            if not paths:
                wrong.append(f"{folder} has no images (*.jpg, *.png or another format that Pillow reads)")
            elif len(found) == 1 and len(paths) < least:
                wrong.append(f"{folder} has a single image; a split needs two, one of them for testing")
    if len(found) == 2 and all(found):
        wrong += _missing_classes(list(split), found)
    wrong += listed(f"{len(walk.problems)} links or folders cannot be followed", walk.problems)
    if unreadable == "refuse":
        skips = problems is None and len(damaged) < len(every)
        remedy = "; data.unreadable=skip leaves them out" if skips else ""
        wrong += listed(f"{len(damaged)} of {len(every)} images cannot be read{remedy}", list(damaged.values()))
    if problems is not None:
        problems += wrong
    elif wrong:
        raise DataError([f"data.root: {problem}" for problem in wrong])

    named = {likeness(folder.name): folder.name for classes in reversed(found) for folder in classes}
    class_names = in_order(named.values(), class_order)
    samples = [_image_files(classes, class_names, decoding) for classes in found]
    facts: dict[str, object] = {"root": str(root), "split": "folders"} | facts_of_names(class_names)
    if len(samples) == 2:
        facts["folders"] = [half.name for half in split]
    if passed_over := dict(walk.passed_over.most_common()):
        facts["passed_over"] = passed_over
    if damaged and unreadable == "skip":
        facts["unreadable"] = len(damaged)
    return class_names, samples, facts


def _class_folders(root: Path, walk: Walk, layout: str) -> dict[Path, list[Path]]:
    """The class folders in each half, training first, or those of the root where it has no halves."""
    inside = walk.folders(root)
    train = [folder for folder in inside if use_of(folder.name) == "train"]
    test = [folder for folder in inside if use_of(folder.name) == "test"]
    test = test or [folder for folder in inside if use_of(folder.name) == "validation"]
    if not (train and test) and not any(
        has_folders(folder) for folder in (*train, *test)
    ):  # a class may be called train
        return {root: inside}
    if not (train and test):
        raise DataError(f"data.root: {root} has one of train and test without the other; expected {layout}")
    if len(train) + len(test) > 2:
        names = some(folder.name for folder in (*train, *test))
        raise DataError(f"data.root: {root} has {names}, one too many; keep one for training and one for testing")
    if len(inside) > 2:
        walk.passed_over[f"beside {train[0].name} and {test[0].name}"] += len(inside) - 2
    return {half: walk.folders(half) for half in (*train, *test)}


def _missing_classes(halves: Sequence[Path], found: Sequence[Mapping[Path, object]]) -> Iterator[str]:
    names = [{likeness(folder.name): folder.name for folder in classes} for classes in found]
    for one, other in ((1, 0), (0, 1)):
        if missing := sorted(names[one][key] for key in names[one].keys() - names[other].keys()):
            classes = "1 class" if len(missing) == 1 else f"{len(missing)} classes"
            yield f"{halves[one]} has {classes} that {halves[other]} lacks: {some(missing)}"


def _image_files(classes: Mapping[Path, Sequence[Path]], class_names: Sequence[str], decoding: Decoding) -> ImageFiles:
    number_of = {likeness(name): number for number, name in enumerate(class_names)}
    by_class = sorted((number_of[likeness(folder.name)], paths) for folder, paths in classes.items())
    labels = np.array([number for number, paths in by_class for _ in paths], np.int64)
    return ImageFiles([path for _, paths in by_class for path in paths], labels, decoding)


def _halves_within(found: tuple[Path, list[Path]]) -> list[str]:
    """Names of folders to train on and to test on, which are all that a single class folder has."""
    folder, images = found
    names = sorted({image.relative_to(folder).parts[0] for image in images})
    uses = {use_of(name) for name in names}
    return names if "train" in uses and uses <= {"train", "test", "validation"} and len(names) > 1 else []
