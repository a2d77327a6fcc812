"""Images of the same classes in a folder for each domain, each of which is laid out as `image_folder` takes it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from lorica.data.folders import Walk, use_of
from lorica.data.images import ImageFiles
from lorica.data.sources.base import (
    OF_ROWS,
    ClassOrder,
    Domains,
    Source,
    facts_of_names,
    in_order,
    likeness,
    make_source,
    name_faults,
    required,
    some,
)
from lorica.data.sources.image_folder import image_folder
from lorica.errors import DataError

DESCRIPTION = (
    "data.root/<domain>/train/<class>/*.png and data.root/<domain>/test/<class>/*.png, or "
    "data.root/<domain>/<class>/*.png to split"
)
READS = ("root", "test_fraction", "unreadable")
NEEDS = ("root",)


def load(*, root: Path | None, **options: Any) -> Source:
    """See `lorica.data.sources`."""
    own = {key: value for key, value in options.items() if key not in OF_ROWS}
    return domain_folders(required(root, "domain_folders"), **own)


def domain_folders(root: str | Path, *, class_order: ClassOrder = "natural", **options: Any) -> Source:
    """Each folder in `root` is a domain, with the images of its classes as in `image_folder`, whose other options these
    are. Domains are in the order of their names; a class may be in some of them only.

    Raises:
        DataError: all faults of all domains together; or fewer than two of them.
    """
    root = Path(root).expanduser()
    walk = Walk()
    folders = walk.folders(root) if root.is_dir() else []
    found: dict[str, Source] = {}
    problems = [f"data.root: {line}" for line in walk.problems]
    if len(folders) < 2:
        there = f"has {len(folders)} folders" if root.is_dir() else "is not a folder"
        problems.append(
            f"data.root: {root} {there}; expected one for each of several domains, {root}/<domain>/train/<class>/*.jpg "
            f"and {root}/<domain>/test/<class>/*.jpg, or {root}/<domain>/<class>/*.jpg"
        )
    elif halves := _halves(folders):
        problems.append(
            f"data.root: {root} has {some(halves)}: these are halves of one data set, and no domains; give "
            f"data.source=image_folder, or a folder for each domain with halves in it, {root}/<domain>/train/<class> "
            f"and {root}/<domain>/test/<class>"
        )
    else:
        problems += [f"data.root: {fault}" for fault in name_faults([folder.name for folder in folders], "domain")]
        for folder in folders:
            try:
                found[folder.name] = image_folder(folder, class_order=class_order, **options)
            except DataError as error:
                problems += error.problems
        first: dict[Path, Path] = {}
        for folder in folders:
            twin = first.setdefault(folder.resolve(), folder)
            if twin != folder:
                problems.append(f"data.root: {folder} leads to {twin}, which is read already; remove one of the two")
    if problems:
        raise DataError(problems)
    domain_names = in_order(found, "natural")
    sources = [found[name] for name in domain_names]
    named = {likeness(name): name for each in reversed(sources) for name in each.class_names}
    class_names = in_order(named.values(), class_order)
    number_of = {likeness(name): number for number, name in enumerate(class_names)}
    halves, of_domains = [], []
    for half in ("train", "test"):
        parts = [cast(ImageFiles, getattr(each, half)) for each in sources]
        paths = [path for part in parts for path in part.paths]
        numbers = [np.array([number_of[likeness(name)] for name in each.class_names]) for each in sources]
        labels = [own[part.labels] for own, part in zip(numbers, parts, strict=True)]
        files = ImageFiles(paths, np.concatenate(labels), parts[0].decoding)
        before = np.cumsum([0, *(len(each.train) + len(each.test) for each in sources)])
        files.numbers = np.concatenate([part.numbers + own for part, own in zip(parts, before[:-1], strict=True)])
        halves.append(files)
        of_domains.append(np.repeat(np.arange(len(parts)), [len(part) for part in parts]))
    facts: dict[str, object] = {
        "root": str(root),
        "domains": {name: [len(each.train), len(each.test)] for name, each in zip(domain_names, sources, strict=True)},
    }
    passed_over = sum((Counter(cast(Any, each.facts.get("passed_over", {}))) for each in sources), walk.passed_over)
    facts |= facts_of_names(domain_names, "domain")
    if passed_over:
        facts["passed_over"] = dict(passed_over.most_common())
    if unreadable := sum(cast(int, each.facts.get("unreadable", 0)) for each in sources):
        facts["unreadable"] = unreadable
    made = make_source("domain_folders", class_names, halves[0], halves[1], facts)
    return replace(made, domains=Domains(tuple(domain_names), *of_domains))


def _halves(folders: Sequence[Path]) -> list[str]:
    """Names of folders to train on and to test on, where there are both."""
    uses = {folder.name: use for folder in folders if (use := use_of(folder.name))}
    return list(uses) if "train" in uses.values() and len(set(uses.values())) > 1 else []
