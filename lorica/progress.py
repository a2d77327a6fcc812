"""What a long job says while it works. The library reports; the command line (or nobody) shows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from lorica.terminal import Screen, printable, shown


@runtime_checkable
class Reporter(Protocol):
    """Receives the stages of a job: `stage` names what begins and how many steps it has, `step` counts one; `say`: a
    remark."""

    def stage(self, description: str, steps: int) -> None: ...

    def step(self, note: str = "") -> None: ...

    def say(self, remark: str) -> None: ...


class Silent:
    """Shows nothing."""

    def stage(self, description: str, steps: int) -> None:
        pass

    def step(self, note: str = "") -> None:
        pass

    def say(self, remark: str) -> None:
        pass


class Bar:
    """One rich progress bar, re-used for each stage: description, bar, steps, speed, time taken and left, last note."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=None, note="", speed="")

    def stage(self, description: str, steps: int) -> None:
        description = printable(shown(description), self._progress.console.encoding)
        self._progress.reset(self._task, description=description, total=steps, note="", speed="")

    def step(self, note: str = "") -> None:
        note = printable(shown(note), self._progress.console.encoding)
        speed = self._progress.tasks[0].speed
        self._progress.update(self._task, advance=1, note=note, speed=f"{speed:.1f}/s" if speed else "")

    def say(self, remark: str) -> None:
        console = self._progress.console
        console.print(Text(printable(remark, console.encoding)), soft_wrap=True)


@contextmanager
def progress_bar(console: Console | None = None) -> Iterator[Reporter]:
    """A `Bar` on the console for the length of a `with` block; cleared at its end."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", style="dim", markup=False),
    )
    console = console or Screen(stderr=True)
    unseen = not (console.is_terminal or console.is_jupyter)  # in a file there would be an empty line of it
    with Progress(*columns, console=console, transient=True, disable=unseen) as progress:
        yield Bar(progress)
