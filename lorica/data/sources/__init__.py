"""Where samples come from, one file each: benchmarks, folders and arrays, as a training and a test set over the same
classes.

The name of a file is what recipes call its source (`data.source`); adding a file to this folder adds a source. It has

    DESCRIPTION    a line for `lorica list sources`, a text as it stands: it is read without running the file
    load(*, root: Path | None, test_fraction: float, split_seed: int, …, **_) -> Source
    BENCHMARK      of a benchmark, what `lorica data` knows of it (`lorica.data.benchmarks`)

which takes of the keywords of `load_source` those it needs and raises a DataError with all that is wrong. A source
knows nothing of tasks: its class numbers are positions in `class_names`, and `lorica.data.stream` makes a stream of it.
"""

from __future__ import annotations

import ast
import difflib
import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorica.definitions import constant, defines, parsed
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
