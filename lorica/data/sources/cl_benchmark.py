"""Data sets of texts one after another, each a task, in the orders of O-LoRA (Wang et al., EMNLP Findings 2023): three
of four data sets (Zhang et al., 2015), three of fifteen (Razdaibiedina et al., 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from lorica.data.folders import TABLES
from lorica.data.rows import Columns
from lorica.data.sources.base import Domains, Source, make_source, some
from lorica.data.sources.hf_dataset import hf_dataset
from lorica.data.sources.table import table
from lorica.data.texts import Texts
from lorica.errors import DataError

DESCRIPTION = (
    "data sets of texts, each a task: data.root, a folder with one for each, and data.dataset, order_1 to order_6 of "
    "O-LoRA, or names with commas; give stream.by=domain"
)
READS = ("root", "dataset", "unreadable", "text_column", "label_column")

ORDERS = {
    "order_1": "dbpedia,amazon,yahoo,ag",
    "order_2": "dbpedia,amazon,ag,yahoo",
    "order_3": "yahoo,amazon,ag,dbpedia",
    "order_4": "mnli,cb,wic,copa,qqp,boolqa,rte,imdb,yelp,amazon,sst-2,dbpedia,ag,multirc,yahoo",
    "order_5": "multirc,boolqa,wic,mnli,cb,copa,qqp,rte,imdb,sst-2,dbpedia,ag,yelp,amazon,yahoo",
    "order_6": "yelp,amazon,mnli,cb,copa,qqp,rte,imdb,sst-2,dbpedia,ag,yahoo,multirc,boolqa,wic",
}
"""The orders of the paper's Table 7; the first three are its standard benchmark."""

HUB = {
    "ag": ("fancyzhx/ag_news", Columns()),
    "dbpedia": ("fancyzhx/dbpedia_14", Columns(("title", "content"))),
    "imdb": ("stanfordnlp/imdb", Columns()),
    "yahoo": (
        "community-datasets/yahoo_answers_topics",
        Columns(("question_title", "question_content", "best_answer"), "topic"),
    ),
    "yelp": ("Yelp/yelp_review_full", Columns()),
}
"""Of data sets that are on Hugging Face's hub under these names with a test half: that name, and their columns."""

MOST = 1000
"""Training texts of each class; of more, some are drawn."""

_COLUMNS = (Columns(), Columns("sentence"))  # as most have them, and as the authors' CL_Benchmark does
_ALSO = {"ag": ("agnews",), "boolqa": ("boolq",)}  # names of folders, in small letters and without signs


def load(
    *,
    root: Path | None,
    dataset: str | None = None,
    split_seed: int = 0,
    text_column: str | Sequence[str] = "text",
    label_column: str = "label",
    class_order: Any = "natural",
    unreadable: Any = "refuse",
    **_: Any,
) -> Source:
    """See `lorica.data.sources`. Classes are called by data set and label ("amazon: 5"), so that none is in two tasks.

    A data set is read from the folder of its name in `root`, or in a folder of that, as `table` reads files or
    `hf_dataset` what `save_to_disk` wrote; or fetched from the hub, where it has no folder and is in `HUB`.

    Raises:
        DataError: data sets that are not known, not there or without a test half, and all that is wrong with them.
    """
    chosen = dataset or "order_1"
    names = [name.strip() for name in ORDERS.get(chosen, chosen).split(",")]
    if not all(names):
        raise DataError(
            f"data.dataset: expected names with single commas between, given {dataset!r:.80}; name them all"
        )
    given = Columns(text_column if isinstance(text_column, str) else tuple(text_column), label_column)
    folders = {name: _folder_of(name, root) for name in names}
    if missing := [name for name in names if folders[name] is None and name not in HUB]:
        lacking = f"{root} lacks" if root else "no folder is given, and there is none to fetch of"
        raise DataError(
            f"data.root: {lacking} {some(missing)}; place a folder of that name with train.* and test.* "
            f"{'there' if root else 'in one that you give'}. Of the hub only {', '.join(HUB)} are fetched"
        )
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"data.dataset: {some(twice)} is named twice; a data set is one task")
    options = {"class_order": class_order, "unreadable": unreadable, "split_seed": split_seed}
    sources = [_read(name, folder, given, options) for name, folder in folders.items()]
    if alone := [name for name, each in zip(names, sources, strict=True) if each.facts.get("split") == "per class"]:
        raise DataError(f"data.root: {some(alone)} has no test half; place train.* and test.* in its folder")

    class_names = [f"{name}: {label}" for name, each in zip(names, sources, strict=True) for label in each.class_names]
    kept = [_some_of_each(each.train.labels, split_seed) for each in sources]
    spare = [np.setdiff1d(np.arange(len(each.train)), rows) for each, rows in zip(sources, kept, strict=True)]
    train, left = (_together([each.train for each in sources], rows, sources, "train") for rows in (kept, spare))
    test = _together([each.test for each in sources], [np.arange(len(each.test)) for each in sources], sources, "test")
    facts: dict[str, object] = {"data_sets": names, "most_of_a_class": MOST}
    facts |= {} if root is None else {"root": str(root)}
    domains = Domains(
        tuple(names),
        np.repeat(np.arange(len(names)), [len(rows) for rows in kept]),
        np.repeat(np.arange(len(names)), [len(each.test) for each in sources]),
    )
    made = make_source("cl_benchmark", class_names, train, test, facts)
    return replace(made, domains=domains, spare=left if len(left) else None)


def _plain(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter.isalnum())


def _folder_of(name: str, root: Path | None) -> Path | None:
    """The folder of that name which has files of its own."""
    if root is None:
        return None
    if not root.is_dir():
        raise DataError(f"data.root: {root} is not a folder; give one with a folder for each data set")
    wanted = {_plain(name), *_ALSO.get(name, ())}
    for folder in (each for pattern in ("*", "*/*") for each in sorted(root.glob(pattern)) if each.is_dir()):
        if _plain(folder.name) in wanted and (_is_saved(folder) or _tables(folder)):
            return folder
    return None


def _is_saved(folder: Path) -> bool:
    return (folder / "dataset_dict.json").is_file()


def _tables(folder: Path) -> list[Path]:
    return [file for file in folder.iterdir() if file.suffix.lower() in TABLES]


def _read(name: str, folder: Path | None, given: Columns, options: dict[str, Any]) -> Source:
    hub, columns = HUB.get(name, ("", Columns()))
    if folder is None:
        return hf_dataset(hub, columns, **options)
    read = hf_dataset if _is_saved(folder) else table
    faults = []
    for way in dict.fromkeys([given, *_COLUMNS, columns]):
        try:
            return read(folder, way, **options)
        except DataError as error:
            if not all("_column: " in problem for problem in error.problems):
                raise
            faults.append(error)
    raise faults[0]


def _some_of_each(labels: np.ndarray, seed: int) -> np.ndarray:
    """Places of at most `MOST` of each class, ascending."""
    groups = [np.random.RandomState(seed).permutation(np.flatnonzero(labels == each))[:MOST] for each in set(labels)]
    return np.sort(np.concatenate(groups))


def _together(halves: Sequence[Any], kept: Sequence[np.ndarray], sources: Sequence[Source], name: str) -> Texts:
    """Some samples of each data set; their numbers count the rows of all of them, one after another."""
    first = np.cumsum([0, *(len(each.class_names) for each in sources)])
    before = np.cumsum([0, *(half.numbers.max(initial=-1) + 1 for half in halves)])
    texts = chain.from_iterable([half.texts[row] for row in rows] for half, rows in zip(halves, kept, strict=True))
    labels = [half.labels[rows] + start for half, rows, start in zip(halves, kept, first, strict=False)]
    made = Texts(list(texts), np.concatenate(labels), name)
    numbers = [half.numbers[rows] + start for half, rows, start in zip(halves, kept, before, strict=False)]
    made.numbers = np.concatenate(numbers)
    return made
