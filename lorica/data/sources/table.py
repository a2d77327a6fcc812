"""Texts, or images, and their labels in files of rows: JSON, JSON lines, CSV, TSV and Parquet; or texts in a file for
each class, one a line."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from torch import Tensor

from lorica.data.folders import LINES, TABLES, Walk, use_of
from lorica.data.rows import BY_DEFAULT, Columns, Half, labelled_rows, source_of_rows
from lorica.data.sources.base import Source, required, some
from lorica.data.texts import Texts
from lorica.errors import DataError

DESCRIPTION = (
    "rows of a .json, .jsonl, .csv, .tsv or .parquet file with data.text_column and data.label_column, or train.* and "
    "test.* in a folder; or a folder with a .txt file for each class, a text a line"
)
READS = ("root", "test_fraction", "unreadable", "text_column", "label_column", "image_column", "domain_column")
NEEDS = ("root",)

_LARGEST_FIELD = 2**24
_SEPARATORS = {",": "a comma", "\t": "a tab", ";": "a semicolon", "|": "a bar"}


def load(
    *,
    root: Path | None,
    text_column: str | Sequence[str] = "text",
    label_column: str = "label",
    image_column: str | None = None,
    domain_column: str | None = None,
    dataset: str | None = None,
    **options: Any,
) -> Source:
    """See `lorica.data.sources`."""
    if dataset is not None:
        raise DataError("data.dataset: the source table reads files; give data.source=hf_dataset, or leave the key out")
    return table(required(root, "table"), Columns(text_column, label_column, image_column, domain_column), **options)


def table(root: str | Path, columns: Columns = BY_DEFAULT, **options: Any) -> Source:
    """Rows of a file, or of two in a folder, one to train on and one to test on by their names, as `image_folder` knows
    them.

    A file of JSON has a list of rows, or an object of such lists by what they are for ("train", "test"; others are
    passed over). A row is an object, or a pair of text and label. Images are named by paths, from the folder of the
    file. A .txt file has texts of one class, whose name it bears, one a line; so has each in a folder of them.

    Args:
        options: those of `lorica.data.rows.source_of_rows`.

    Raises:
        DataError: all that is wrong with the files.
    """
    halves, facts = _halves_in(Path(root).expanduser(), columns)
    return source_of_rows("table", halves, columns, facts=facts, **options)


def labelled_texts(
    root: str | Path, columns: Columns = BY_DEFAULT, **options: Any
) -> tuple[list[str], list[Texts], dict[str, object]]:
    """The names of the classes in files as `table` reads them, the texts of each half, training first, and what there
    is to say of them; what is one half is not split.

    Args:
        options: those of `lorica.data.rows.labelled_rows`.

    Raises:
        DataError: all that is wrong with the files.
    """
    halves, facts = _halves_in(Path(root).expanduser(), columns)
    names, samples, told = labelled_rows(halves, columns, **options)
    return names, samples, facts | told


def texts_with_labels(
    given: Sequence[str], labels: Sequence[Any] | np.ndarray | Tensor
) -> tuple[list[str], Texts, bool]:
    """The names of the classes of texts in memory, the samples, and whether the labels are numbers. DataError."""
    half = _in_memory("x", given, labels)
    names, (samples,), _ = labelled_rows([half])
    return names, samples, np.asarray(half.read("label")).dtype.kind in "iu"


def texts_alone(file: Path, columns: Columns = BY_DEFAULT) -> list[Any]:
    """The texts of a file as `table` reads it, whatever their labels are, or that there are none; a row may be a text
    itself. One that is none is given as it is.

    Raises:
        DataError: a file that cannot be read, or that has no column of texts.
    """
    held = _rows(file, columns)
    rows = held if isinstance(held, list) else [row for each in held.values() for row in each]
    if any(isinstance(row, str) for row in rows):
        rows = [{columns.texts[0]: row} if isinstance(row, str) else row for row in rows]
    if not rows:
        raise DataError(f"data.root: {file} has no rows; give some")
    half = _half(file.name, rows, columns, file.parent)
    if missing := [each for each in columns.texts if each not in half.columns]:
        raise DataError(f"data.text_column: {file} has no column {some(missing)}; it has {some(half.columns)}")
    return half.texts(columns)


def _halves_in(root: Path, columns: Columns) -> tuple[list[Half], dict[str, object]]:
    """What is in a file or a folder: one half, or one to train on and one to test on; and facts for the record."""
    facts: dict[str, object] = {"root": str(root)}
    expected = f"give a file of rows ({', '.join(TABLES)}), a folder with train.* and test.*, or {LINES} files"
    if root.is_dir():
        held = _held_in(root, columns, facts, expected)
    elif root.is_file():
        held = _rows(root, columns)
    else:
        raise DataError(f"data.root: {root} is not there; {expected}")
    folder = root if root.is_dir() else root.parent
    named = {root.name: held} if isinstance(held, list) else halves_of(root, held, facts)
    return [_half(name, rows, columns, folder) for name, rows in named.items()], facts


def _held_in(folder: Path, columns: Columns, facts: dict[str, object], expected: str) -> Any:
    """The rows of a folder's files; what is passed over is noted in `facts`."""
    walk = Walk()
    there = list(walk.entries(folder))
    if walk.problems:
        raise DataError([f"data.root: {problem}" for problem in walk.problems])
    files, lines = (
        [file for file in there if file.suffix.lower() in suffixes and not file.is_dir()]
        for suffixes in (TABLES, (LINES,))
    )
    if not files and not lines:
        raise DataError(f"data.root: {folder} has no texts; {expected}")
    held: Any
    if not files:
        uses = {use_of(file.stem) for file in lines}
        if "train" in uses and len(uses - {None}) > 1:
            raise DataError(
                f"data.root: {folder} has {some(file.name for file in lines)}: a {LINES} file is a class, and these "
                "are called like halves; name files by their classes, or give train.* and test.* with texts and labels"
            )
        by_class = {file: _rows(file, columns) for file in lines}
        if empty := [file for file, rows in by_class.items() if not rows]:
            raise DataError(
                [f"data.root: {file} has no texts, a line each; add some, or move it away" for file in empty]
            )
        used, held = lines, [row for rows in by_class.values() for row in rows]
        beside = f"the {LINES} files"
    elif len(files) == 1:
        used, held, beside = files, _rows(files[0], columns), files[0].name
        if isinstance(held, list) and use_of(files[0].stem) in ("test", "validation"):
            raise DataError(
                f"data.root: {folder} has {files[0].name} to test on, and no file to train on; add train.*, or, to "
                f"split that one, give it itself: {files[0]}"
            )
    else:
        if shards := [file.name for file in files if re.search(r"-\d+-of-\d+$", file.stem)]:
            raise DataError(
                f"data.root: {folder} has halves in parts, {some(shards)}; give data.source=hf_dataset, which puts "
                "them together, or one file to train on and one to test on"
            )
        _require_one_of_each(folder, files)
        chosen: dict[str, Path] = halves_of(folder, {file.stem: file for file in files}, {})
        used, held = list(chosen.values()), {name: _rows(file, columns) for name, file in chosen.items()}
        beside = " and ".join(chosen)
    walk.passed_over[f"beside {beside}"] += len(there) - len(used)
    if passed_over := +walk.passed_over:
        facts["passed_over"] = dict(passed_over.most_common())
    return held


def _require_one_of_each(folder: Path, files: Sequence[Path]) -> None:
    """DataError where several files are for the same."""
    by_use = {use: [file.name for file in files if use_of(file.stem) == use] for use in ("train", "test", "validation")}
    if by_use["test"]:
        del by_use["validation"]  # which is passed over
    if problems := [
        f"data.root: {folder} has {some(names)}, all of them to {'train' if use == 'train' else 'test'} on; keep "
        "one of them, or put their rows into one file"
        for use, names in by_use.items()
        if len(names) > 1
    ]:
        raise DataError(problems)


def texts(
    train: tuple[Sequence[str], Sequence[Any]], test: tuple[Sequence[str], Sequence[Any]], **options: Any
) -> Source:
    """Texts and their labels in memory, to train on and to test on; `options` of `lorica.data.rows.source_of_rows`.
    DataError."""
    return source_of_rows("texts", [_in_memory("train", *train), _in_memory("test", *test)], **options)


def _in_memory(name: str, given: Sequence[str], labels: Sequence[Any] | np.ndarray | Tensor) -> Half:
    labels = labels.tolist() if isinstance(labels, Tensor) else labels
    if isinstance(given, str) or len(given) != len(labels):
        raise DataError(f"{name}: expected a list of texts and as many labels, got {len(given)} and {len(labels)}")
    held = {"text": list(given), "label": list(labels)}
    return Half(name, list(held), held.__getitem__)


def halves_of(root: str | Path, held: Mapping[str, Any], facts: dict[str, object]) -> dict[str, Any]:
    """What is for training and what for testing, of several lists of rows by name; what is passed over is noted in
    `facts`."""
    uses = {name: use_of(name) for name in held}
    train = [name for name, use in uses.items() if use == "train"]
    test = [name for name, use in uses.items() if use == "test"]
    test = test or [name for name, use in uses.items() if use == "validation"]
    if len(train) != 1 or len(test) != 1:
        raise DataError(
            f"data.root: {root} has {some(held) or 'nothing'}; expected one to train on and one to test on, by names "
            "such as train and test"
        )
    if beside := len(held) - 2:
        passed_over = cast(dict[str, int], facts.get("passed_over", {}))
        facts["passed_over"] = passed_over | {f"beside {train[0]} and {test[0]}": beside}
    facts["split"] = "names"
    return {name: held[name] for name in (train[0], test[0])}


def _half(name: str, rows: list[Any], columns: Columns, folder: Path) -> Half:
    pair = (columns.texts[0], columns.label)
    found: list[dict[str, Any]] = []

    def read(column: str) -> list[Any]:
        values = [row.get(column) for row in found]
        if column != columns.image:
            return values
        named = [isinstance(value, str) and value.strip() and "\0" not in value for value in values]
        return [folder / str(value) if is_named else None for value, is_named in zip(values, named, strict=True)]

    half = Half(name, [], read, rows.lines if isinstance(rows, _Table) else ())
    for number, row in enumerate(rows):
        if not isinstance(row, dict) and not (isinstance(row, list) and len(row) == 2):
            raise DataError(
                f"data.root: {half.place(number)}: expected rows that are objects, or pairs of text and label, got "
                f"{row!r:.80}"
            )
        found.append(dict(zip(pair, row, strict=True)) if isinstance(row, list) else row)
    if any(isinstance(row, list) for row in rows):
        return replace(half, columns=pair)
    named = rows.columns if isinstance(rows, _Table) and found else ()
    return replace(half, columns=named or list(dict.fromkeys(key for row in found for key in row)))


class _Table(list[Any]):
    """Rows of a file, and what it tells beside them.

    Attributes:
        columns: all that the file names, of which rows may have some only; none where it names none.
        lines: in which each row begins; none where rows are not lines.
    """

    def __init__(self, rows: Iterable[Any], columns: Sequence[str] = (), lines: Sequence[int] = ()) -> None:
        super().__init__(rows)
        self.columns, self.lines = columns, lines


def _rows(file: Path, columns: Columns) -> Any:
    """The rows of a file, or several lists of them by name; of Parquet with the columns that are asked for."""
    reader = _READERS.get(file.suffix.lower())
    if reader is None:
        raise DataError(f"data.root: {file} is none of {', '.join(_READERS)}; save it as one of them")
    if file.exists() and not file.is_file():
        raise DataError(f"data.root: {file} is no file, but a pipe, a device or a folder; give a file of rows")
    try:
        rows = reader(file, columns)
    except RecursionError as error:
        raise DataError(f"data.root: {file} cannot be read (lists within lists within lists)") from error
    except UnicodeDecodeError as error:
        raise DataError(f"data.root: {file} is not UTF-8 ({_no_utf8(file)}); save it as UTF-8") from error
    except (OSError, ValueError) as error:
        raise DataError(f"data.root: {file} cannot be read ({' '.join(str(error).split())[:200]})") from error
    lists = rows.values() if isinstance(rows, dict) else [rows]
    if not all(isinstance(each, list) for each in lists):
        raise DataError(
            f"data.root: {file} holds {type(rows).__name__}; expected a list of rows, or an object of such lists"
        )
    return rows


def _no_utf8(file: Path) -> str:
    """Where it is not."""
    held = file.read_bytes()
    if held.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "it begins as UTF-16 does"
    try:
        held.decode()
    except UnicodeDecodeError as error:
        return f"line {held.count(10, 0, error.start) + 1} has the byte 0x{held[error.start]:02x}"
    return "it changes"


def _lines(file: Path) -> list[Any]:
    rows, numbers = [], []
    for number, line in enumerate(file.read_text(encoding="utf-8-sig").split("\n"), 1):
        if line.strip():
            try:
                rows.append(_json(line))
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from error
            numbers.append(number)
    return _Table(rows, lines=numbers)


def _json(text: str) -> Any:
    """ValueError also for an object that has a key twice, of which JSON's readers keep the last."""
    return json.loads(text, object_pairs_hook=_each_once)


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if twice := [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]:
        raise ValueError(f"the key {twice[0]!r} is there more than once")
    return dict(pairs)


def _of_one_class(file: Path) -> list[Any]:
    return [[line, file.stem] for line in file.read_text(encoding="utf-8-sig").split("\n") if line.strip()]


def _separated(file: Path, delimiter: str, columns: Columns) -> list[Any]:
    """Rows of CSV or TSV. Where quotation marks of TSV do not quote, they are part of its texts, as in TSV that knows
    no quoting; ValueError where the file fits neither."""
    before = csv.field_size_limit(_LARGEST_FIELD)
    try:
        try:
            return _fields(file, delimiter, columns, csv.QUOTE_MINIMAL)
        except UnicodeDecodeError:
            raise
        except ValueError:
            if delimiter != "\t":
                raise
            try:
                return _fields(file, delimiter, columns, csv.QUOTE_NONE)
            except ValueError:
                pass
            raise
    finally:
        csv.field_size_limit(before)


def _fields(file: Path, delimiter: str, columns: Columns, quoting: Literal[0, 3]) -> list[Any]:
    rows, lines, names, last = [], [], None, 0
    with file.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream, delimiter=delimiter, strict=True, quoting=quoting)
        while True:
            try:
                fields = next(reader, None)
            except csv.Error as error:
                raise ValueError(_unquoted(str(error), last + 1, reader.line_num, delimiter)) from error
            line, last = last + 1, reader.line_num
            if fields is None:
                return _Table(rows, names or (), lines)
            if names is None and fields:
                _require_once(fields)
                _require_separated(fields, delimiter, columns)
                names = fields
            elif fields and names is not None:
                if len(fields) != len(names):
                    raise ValueError(
                        f"line {line} has {len(fields)} fields, and the first line names {len(names)} columns"
                    )
                rows.append(dict(zip(names, fields, strict=True)))
                lines.append(line)


def _unquoted(told: str, first: int, last: int, delimiter: str) -> str:
    """What is wrong with quotation marks in a row from one line to another, of which `csv` told something."""
    where = f"line {first}" if first == last else f"lines {first} to {last}"
    if "expected after" in told:
        told = (
            f"a quotation mark ends a field, and {_SEPARATORS[delimiter]} or the end of the line has to follow; "
            "double quotation marks within quotes"
        )
    elif "unexpected end" in told:
        told = "a quotation mark begins a field, and none ends it; double quotation marks within quotes"
    return f"{where}: {told}"


def _require_separated(names: Sequence[str], delimiter: str, columns: Columns) -> None:
    """ValueError where the first line looks as if something else separates its columns."""
    if any("\0" in name for name in names):
        raise ValueError("its first line has NULs, as UTF-16 has; save it as UTF-8")
    if len(names) > 1 or names[0] in columns.every:
        return
    for other, called in _SEPARATORS.items():
        if other in names[0]:
            wanted = _SEPARATORS[delimiter]
            remedy = {",": "call it .csv", "\t": "call it .tsv"}.get(other, f"use {wanted} instead")
            raise ValueError(f"{called}, not {wanted}, separates the columns in its first line; {remedy}")


def _parquet(file: Path, columns: Columns) -> list[Any]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise DataError(
            f"data.root: {file} needs pyarrow; install it with lorica: pip install lorica[datasets]"
        ) from error
    try:
        names = parquet.read_schema(file).names
        _require_once(names)
        wanted = [name for name in names if name in columns.every]
        table = parquet.read_table(file, columns=wanted).select(wanted)
    except (ArrowException, UnicodeDecodeError) as error:
        raise ValueError(str(error)) from error
    values = []
    for name in wanted:
        try:
            values.append(table.column(name).to_pylist())
        except (ArrowException, ArithmeticError, LookupError, ValueError) as error:  # as of a time that Python lacks
            raise ValueError(f"the column {name!r}: {error}") from error
    rows = zip(*values, strict=True) if wanted else [()] * table.num_rows
    return _Table((dict(zip(wanted, row, strict=True)) for row in rows), names)


def _require_once(columns: Sequence[str]) -> None:
    """ValueError that names a column which is there more than once."""
    if twice := [name for name, count in Counter(columns).items() if count > 1]:
        raise ValueError(f"the column {twice[0]!r} is there more than once")


_READERS: Mapping[str, Callable[[Path, Columns], Any]] = {
    ".json": lambda file, columns: _json(file.read_text(encoding="utf-8-sig")),
    ".jsonl": lambda file, columns: _lines(file),
    ".csv": lambda file, columns: _separated(file, ",", columns),
    ".tsv": lambda file, columns: _separated(file, "\t", columns),
    ".parquet": _parquet,
    LINES: lambda file, columns: _of_one_class(file),
}
