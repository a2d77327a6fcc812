"""The command for reports: `lorica report`."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from lorica.commands import left_out
from lorica.errors import LoricaError
from lorica.terminal import Screen

reports = typer.Typer()
console = Screen()


class Form(StrEnum):
    """What `lorica report` can write."""

    html = "html"
    markdown = "markdown"
    latex = "latex"
    csv = "csv"


SUFFIXES = {".html": Form.html, ".md": Form.markdown, ".tex": Form.latex, ".csv": Form.csv}


@reports.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="folders of runs, or folders that hold such folders")],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER|FILE",
            help="where to write it: a file that ends in .html, .md, .tex or .csv, or a folder for all four",
        ),
    ] = None,
    form: Annotated[
        Form | None, typer.Option("--format", help="one alone; without --out to standard output, but report.html")
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(metavar="METHOD", help="compare the others with it alone, over the same seeds and orders"),
    ] = None,
    title: Annotated[str, typer.Option(help="of the page")] = "lorica report",
) -> None:
    """Report on runs: spreads and intervals over seeds, paired comparisons, and a page with everything about each
    run."""
    from lorica.files import refusals, without_empty, write_text
    from lorica.ownership import marked, require_ours
    from lorica.report.document import Report, to_text
    from lorica.report.html import to_html
    from lorica.results import find_runs

    targets = _targets(out, form)
    missing: list[str] = []
    results = find_runs(runs, left_out=missing.append)
    for line in missing:
        left_out(line)
    found = Report.of(results, against=against)
    found = replace(found, remarks=[*found.remarks, *(f"Left out: {line}." for line in missing)])
    if targets is None:
        assert form
        console.out(to_text(found, form.value), end="", highlight=False)
        return
    require_ours(targets)
    with refusals(out or Path()), without_empty(next(iter(targets)).parent):
        for file, kind in targets.items():
            file.parent.mkdir(parents=True, exist_ok=True)
            text = to_html(found, title=title) if kind is Form.html else to_text(found, kind.value)
            write_text(file, marked(file, text))
    console.print("The report is in", console.strong(", ".join(map(str, targets))), soft_wrap=True)


def _targets(out: Path | None, form: Form | None) -> dict[Path, Form] | None:
    """What is to be written, by file; None for standard output.

    Raises:
        LoricaError: a file of one format is asked for another.
    """
    if out is None:
        return {Path("report.html"): Form.html} if form in (None, Form.html) else None
    kind = None if out.is_dir() else SUFFIXES.get(out.suffix.lower())
    if kind:
        if form not in (None, kind):
            raise LoricaError(f"--out: {out} is for {kind}, and --format says {form}; give one of them, or a folder")
        return {out: kind}
    if out.suffix and not out.is_dir():
        raise LoricaError(f"--out: {out}: expected a file that ends in {', '.join(SUFFIXES)}, or a folder")
    return {out / f"report{suffix}": each for suffix, each in SUFFIXES.items() if form in (None, each)}
