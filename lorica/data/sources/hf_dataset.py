"""Datasets of Hugging Face, of texts or of images: by name, or from a folder."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from lorica.data.folders import TABLES, use_of
from lorica.data.rows import BY_DEFAULT, Columns, Half, source_of_rows
from lorica.data.sources.base import Source, some
from lorica.data.sources.table import halves_of
from lorica.errors import DataError
from lorica.network import unreachable

DESCRIPTION = (
    "a dataset of Hugging Face: data.root, a folder, or data.dataset, its name; data.text_column (or image_column) and "
    "data.label_column"
)
READS = (
    "root",
    "dataset",
    "test_fraction",
    "unreadable",
    "text_column",
    "label_column",
    "image_column",
    "domain_column",
)


def load(
    *,
    root: Path | None,
    dataset: str | None = None,
    text_column: str | Sequence[str] = "text",
    label_column: str = "label",
    image_column: str | None = None,
    domain_column: str | None = None,
    **options: Any,
) -> Source:
    """See `lorica.data.sources`."""
    if (root is None) == (dataset is None):
        raise DataError("data.dataset: the source hf_dataset needs a name, or a folder as data.root, and not both")
    return hf_dataset(
        dataset or Path(root or ""), Columns(text_column, label_column, image_column, domain_column), **options
    )


def hf_dataset(given: str | Path, columns: Columns = BY_DEFAULT, **options: Any) -> Source:
    """A dataset of Hugging Face, with splits to train on and to test on, or a single one that is split class by class.

    Args:
        given: its name on the hub, with a configuration as "name:configuration"; or as a `Path` a folder, of
            `save_to_disk` or of files that the library reads.
        options: those of `lorica.data.rows.source_of_rows`.

    Raises:
        DataError: the library is not installed, a dataset that cannot be read or fetched, and all that is wrong with
            its rows.
    """
    facts: dict[str, object] = {"root" if isinstance(given, Path) else "dataset": str(given)}
    splits = _splits(given, facts)
    if len(splits) == 1 and use_of(next(iter(splits))) in ("test", "validation"):
        raise DataError(_no_half_to_train_on(given, next(iter(splits))))
    named = splits if len(splits) == 1 else halves_of(str(given), splits, facts)
    return source_of_rows(
        "hf_dataset", [_half(name, split, columns) for name, split in named.items()], columns, facts=facts, **options
    )


def _no_half_to_train_on(given: str | Path, name: str) -> str:
    told = f"{given} has {name} to test on, and no split to train on; "
    if not isinstance(given, Path):
        return f"data.dataset: {told}to split that one, store it with save_to_disk, and give its folder as data.root"
    if (given / name / "state.json").is_file():
        return f"data.root: {told}add one, or, to split that one, give its folder: {given / name}"
    return f"data.root: {told}add train.*, or, to split that one, give data.source=table and its file as data.root"


def _splits(given: str | Path, facts: dict[str, object]) -> Mapping[str, Any]:
    """The splits by name; files of a folder that are passed over are noted in `facts`."""
    try:
        import datasets
        from datasets import config
    except ImportError as error:
        raise DataError("data.source: hf_dataset needs the library datasets: pip install lorica[datasets]") from error
    name, _, configuration = str(given).partition(":")
    reason = None
    if isinstance(given, Path):
        if not given.is_dir():
            raise DataError(
                f"data.root: {given} is not a folder; for a dataset of the hub give its name as data.dataset"
            )
    elif not config.HF_HUB_OFFLINE:
        reason = unreachable(config.HF_ENDPOINT)
    if reason:
        raise DataError(
            f"data.dataset: {given} cannot be fetched ({reason}); save a copy elsewhere with save_to_disk, and give "
            "its folder as data.root"
        )
    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bar()
    try:
        if isinstance(given, Path) and any((given / each).is_file() for each in ("dataset_dict.json", "state.json")):
            found: Any = datasets.load_from_disk(given)
        else:
            if isinstance(given, Path):
                _require_every_half(given, datasets.load_dataset_builder(str(given)).config.data_files or {}, facts)
            found = datasets.load_dataset(str(given) if isinstance(given, Path) else name, configuration or None)
    except DataError:
        raise
    except Exception as error:  # of whatever the library reads it with
        raise DataError(
            f"data.dataset: {given} cannot be read: {str(error).strip()[:300] or type(error).__name__}"
        ) from error
    finally:
        if shown:
            datasets.enable_progress_bar()
    return found if isinstance(found, Mapping) else {"all": found}


def _require_every_half(folder: Path, chosen: Mapping[Any, Sequence[str]], facts: dict[str, object]) -> None:
    """DataError where the library, which reads files of one format alone, leaves out halves in others; what else it
    leaves out is noted in `facts`.

    Args:
        chosen: the files that it reads, by split.
    """
    read = {Path(file).resolve() for files in chosen.values() for file in files}
    there = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    there = [file for file in there if not any(part.startswith(".") for part in file.relative_to(folder).parts)]
    left = [file for file in there if file.resolve() not in read]
    endings = {file.suffix.lower() for file in read}
    if halves := [
        str(file.relative_to(folder))
        for file in left
        if file.suffix.lower() in TABLES and file.suffix.lower() not in endings and _is_half(file.relative_to(folder))
    ]:
        known = [str(file.relative_to(folder)) for file in there if file.resolve() in read]
        raise DataError(
            f"data.root: {folder} has {some(halves)} beside {some(known)}, and the library datasets reads files of "
            "one format; keep one of them for each half, or put their rows into one file"
        )
    if left:
        facts["passed_over"] = {"beside the files that the library datasets reads": len(left)}


def _is_half(file: Path) -> bool:
    """Whether a file, or a folder that it is in, is called like a half; a half may be in parts."""
    return any(use_of(re.sub(r"-\d+-of-\d+$", "", name)) for name in (*file.parent.parts, file.stem))


def _half(name: str, split: Any, columns: Columns) -> Half:
    from datasets import ClassLabel, Image

    def read(column: str) -> Sequence[Any]:
        kind = split.features[column]
        if isinstance(kind, ClassLabel):
            return [None if value is None or value < 0 else kind.names[value] for value in split[column]]
        if column == columns.image:
            if not isinstance(kind, Image):
                raise DataError(
                    f"data.image_column: {column} holds {type(kind).__name__}, not images; it has "
                    f"{some(split.features)}"
                )
            return _Encoded(split.select_columns([column]).cast_column(column, Image(decode=False)), column)
        try:
            return list(split[column])
        except Exception as error:  # of whatever the library reads it with, as of a time that Python lacks
            raise DataError(
                f"data.root: {name}: the column {column} cannot be read: {str(error)[:300] or type(error).__name__}"
            ) from error

    return Half(name, split.column_names, read)


class _Encoded(Sequence[Any]):
    """The images of a column as files, or as what is in one; each is decoded when it is read."""

    def __init__(self, split: Any, column: str) -> None:
        self.split, self.column = split, column

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, which: Any) -> Any:
        if isinstance(which, slice):
            return [self[place] for place in range(*which.indices(len(self)))]
        held = self.split[int(which)][self.column]
        if held is None:
            return None
        return BytesIO(held["bytes"]) if held["bytes"] is not None else Path(held["path"])
