"""Where samples come from, one file each: benchmarks, folders and arrays, as a training and a test set over the same
classes.

The name of a file is what recipes call its source (`data.source`); adding a file to this folder adds a source. It has

    DESCRIPTION    a line for `lorica list sources`, a text as it stands: it is read without running the file
    READS          the keys of a recipe's data section that it reads, of `KEYS`, as a tuple; absent = all of them
    NEEDS          those of them that it cannot do without, as a tuple; absent = none of them
    load(*, root: Path | None, test_fraction: float, split_seed: int, …, **_) -> Source
    BENCHMARK      of a benchmark, what `lorica data` knows of it (`lorica.data.benchmarks`)

which takes of the keywords of `load_source` those it needs and raises a DataError with all that is wrong. A source
knows nothing of tasks: its class numbers are positions in `class_names`, and `lorica.data.stream` makes a stream of it.
"""

from __future__ import annotations

import ast
import difflib
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorica.definitions import constant, defines, literal, parsed
from lorica.errors import DataError
from lorica.lazy import lazily

if TYPE_CHECKING:
    from lorica.data.sources.arrays import arrays, arrays_file, labelled_pictures
    from lorica.data.sources.base import OF_ROWS, ClassOrder, Source, remarks, split_per_class
    from lorica.data.sources.cifar100 import cifar100
    from lorica.data.sources.digits import digits
    from lorica.data.sources.hf_dataset import hf_dataset
    from lorica.data.sources.image_folder import image_folder, labelled_images
    from lorica.data.sources.table import labelled_texts, table, texts, texts_alone, texts_with_labels

__all__ = [
    "KEYS",
    "OF_ROWS",
    "ClassOrder",
    "Source",
    "arrays",
    "arrays_file",
    "benchmark_names",
    "cifar100",
    "digits",
    "hf_dataset",
    "image_folder",
    "labelled_images",
    "labelled_pictures",
    "labelled_texts",
    "load_source",
    "remarks",
    "require_keys",
    "source_names",
    "split_per_class",
    "table",
    "texts",
    "texts_alone",
    "texts_with_labels",
]

lazily(
    __name__,
    {
        "lorica.data.sources.arrays": ["arrays", "arrays_file", "labelled_pictures"],
        "lorica.data.sources.base": ["OF_ROWS", "ClassOrder", "Source", "remarks", "split_per_class"],
        "lorica.data.sources.cifar100": ["cifar100"],
        "lorica.data.sources.digits": ["digits"],
        "lorica.data.sources.hf_dataset": ["hf_dataset"],
        "lorica.data.sources.image_folder": ["image_folder", "labelled_images"],
        "lorica.data.sources.table": ["labelled_texts", "table", "texts", "texts_alone", "texts_with_labels"],
    },
)


KEYS = (
    "root",
    "dataset",
    "test_fraction",
    "unreadable",
    "text_column",
    "label_column",
    "image_column",
    "domain_column",
)
"""Keys of a recipe's data section that say what a source is made of, so that one which does not read a key that is
given would be something else than was meant. `split_seed` and `class_order` are not among them: the first also divides
what any source gives, the second cannot change what has an order of its own."""


def source_names() -> dict[str, str]:
    """Every source by name, with the line that describes it."""
    return {name: constant(statements, "DESCRIPTION") for name, statements in _statements().items()}


def benchmark_names() -> list[str]:
    """Those sources that are a benchmark, with a BENCHMARK of their own."""
    return [name for name, statements in _statements().items() if defines(statements, "BENCHMARK")]


def _statements() -> dict[str, list[ast.stmt]]:
    """The files of the sources, in order."""
    files = {file.stem: file for folder in __path__ for file in Path(folder).glob("*.py")}
    return {name: parsed(files[name]).body for name in sorted(files.keys() - {"__init__", "base"})}


def require_keys(name: str, given: Mapping[str, Any]) -> None:
    """DataError that names those of the keys that are `given`, with their values, which the source `name` does not
    read, and those that it needs and that are not given."""
    statements = _statements()
    read_by = {each: literal(own, "READS", KEYS) for each, own in statements.items()}
    problems = []
    for key, value in given.items():
        if name in read_by and key not in read_by[name]:
            others = [each for each in sorted(read_by, key=lambda each: -len(read_by[each])) if key in read_by[each]]
            problems.append(
                f"data.{key}: the source {name} does not read it, given {str(value)!r:.80}; leave it out, or give a "
                f"data.source that reads it: {', '.join(others[:4])}{', …' if len(others) > 4 else ''}"
            )
    needed = literal(statements[name], "NEEDS", ()) if name in statements else ()
    problems += [
        f"data.{key}: the source {name} needs a path; give data.{key}=PATH" for key in needed if key not in given
    ]
    if problems:
        raise DataError(problems)


def load_source(name: str, *, root: Path | None, **options: Any) -> Source:
    """The source that recipes call `name`. DataError for an unknown name, a missing root, or unusable data.

    `options`: `test_fraction`, `split_seed`, `class_order`, `unreadable` and those of `OF_ROWS` as in the recipe's data
    section, the `decoding` of image files, `decode_all` to find those whose damage only decoding shows, and a
    `reporter` of what is looked at; see `image_folder` for what is absent.
    """
    known = source_names()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(known)}"
        raise DataError(f"data.source: unknown source {name!r}; {hint}")
    return importlib.import_module(f"{__name__}.{name}").load(root=root, **options)
