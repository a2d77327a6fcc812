"""The commands for benchmarks: `lorica data show | check`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from lorica.data.benchmarks import Benchmark, find_benchmark
from lorica.data.sources import benchmark_names
from lorica.progress import progress_bar
from lorica.terminal import Screen

if TYPE_CHECKING:  # torch
    from lorica.data.inspection import Inspection

data = typer.Typer(no_args_is_help=True, help="Benchmarks by name: what belongs where, and whether it is there.")
console = Screen()

_DIGITS = 16  # of a hash


@data.command()
def show(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="a benchmark; absent = all of them")] = None,
) -> None:
    """Say what a benchmark is, where its licence lets one get it, what to place where, and what misleads."""
    if name is None:
        listed = Table(
            "name", "", "classes", "training + test images", title="benchmarks", title_justify="left", box=None
        )
        for each in map(find_benchmark, benchmark_names()):
            sizes = dict.fromkeys(_size(split.train, split.test) for split in each.splits)
            listed.add_row(each.name, each.title, str(each.classes), ", or ".join(sizes))
        console.print(listed)
        return
    benchmark = find_benchmark(name)
    console.print(f"{benchmark.title}: {benchmark.classes} classes; data.source={benchmark.name}", soft_wrap=True)
    for title, lines in _sections(benchmark):
        console.print(f"\n{title}", style="bold")
        for line in lines:
            console.print(f"  {line}", soft_wrap=True)


@data.command()
def check(
    name: Annotated[str, typer.Argument(metavar="NAME", help="a benchmark, see `lorica data show`")],
    root: Annotated[
        Path, typer.Option(metavar="DIR", help="its folder, or the one that holds it beside other data")
    ] = ...,  # type: ignore[assignment]
    fast: Annotated[
        bool, typer.Option("--fast", help="read the headers of images only, and look for none that is in both halves")
    ] = False,
    split: Annotated[
        str | None, typer.Option(metavar="HASH", help="the hash that its split must have, or the beginning of it")
    ] = None,
) -> None:
    """Hold a folder to what is known of a benchmark: classes, images of each half, which split, damage, images in both
    halves."""
    benchmark = find_benchmark(name)
    from lorica.data.inspection import inspect
    from lorica.data.sources import remarks

    with progress_bar() as reporter:
        found = inspect(benchmark, root, decode_all=not fast, duplicates=not fast, split=split, reporter=reporter)
    console.print(_compared(found))
    for remark in remarks(found.facts):
        console.print(remark, soft_wrap=True)
    found.require()


def _sections(benchmark: Benchmark) -> list[tuple[str, Sequence[str]]]:
    splits = [
        f"{_size(split.train, split.test)}: {split.name}"
        + (f"; its hash is {split.sha256 or 'not known to us'}" if benchmark.layouts else "")
        for split in benchmark.splits
    ]
    layouts = [f"{layout.shown} ({layout.name})" for layout in benchmark.layouts]
    return [
        (title, lines)
        for title, lines in (
            ("Splits in use, training + test images", splits),
            ("Licence", [benchmark.licence]),
            ("Where to get it", [benchmark.origin]),
            ("What to place where", benchmark.place),
            ("Layouts that are read", layouts),
            ("How papers divide it", benchmark.protocols),
            ("Traps", benchmark.traps),
        )
        if lines
    ]


def _compared(found: Inspection) -> Table:
    """What a folder should have, and what it has."""
    benchmark = found.benchmark
    layout = found.layout
    possible = [split for split in benchmark.splits if layout is None or layout.name in split.layouts]
    shown = Table("", "expected", "found", title=benchmark.title, title_justify="left")
    train, test = found.counts or ("", "")
    rows = [
        ("layout", _or(each.name for each in benchmark.layouts) or "archive", layout.name if layout else "none"),
        ("classes", str(benchmark.classes), str(len(found.class_names))),
        ("training images", _or(split.train for split in possible), str(train)),
        ("test images", _or(split.test for split in possible), str(test)),
        ("split", _or(split.name for split in possible), found.split or "none of these"),
    ]
    if benchmark.layouts:
        known = _or((split.sha256 or "unknown")[:_DIGITS] for split in possible)
        rows.append(("hash", known, (found.sha256 or "")[:_DIGITS]))
    for row in rows:
        shown.add_row(*row)
    return shown


def _size(train: int, test: int) -> str:
    return f"{train} + {test}"


def _or(values: Iterable[object]) -> str:
    return " or ".join(dict.fromkeys(map(str, values)))
