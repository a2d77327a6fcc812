"""`lorica sweep`: settings chosen on held-out training data, and a table over seeds, by any number of workers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from lorica import launch
from lorica.commands import drawing
from lorica.errors import LoricaError
from lorica.terminal import Screen, printable, shown

if TYPE_CHECKING:  # Optuna and torch take seconds, and help does without
    from lorica.sweep.board import Board, Claim

sweeps = typer.Typer()
console = Screen()


@sweeps.command()
def sweep(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="what is to be compared: docs/sweeps.md has every key")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[key.sub=value]…", help="replace keys of every run's recipe")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="workers to start, each on its share of the cores")] = 1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="say what would run and what is done, and change nothing")
    ] = False,
    worker: Annotated[bool, typer.Option("--worker", help="take trials, and write no table")] = False,
    method_file: Annotated[
        list[Path] | None, typer.Option(help="a .py file that defines a method; no file is executed that is not named")
    ] = None,
) -> None:
    """Choose settings on held-out data, and compare methods over seeds; started again, or elsewhere too, it goes on."""
    launch.require_alone("each worker of a sweep is one")
    if find_spec("optuna") is None:
        raise LoricaError("lorica sweep needs a package that is not installed (optuna): pip install 'lorica[sweep]'")
    from lorica.sweep.plan import read_plan

    plan = read_plan(file, overrides or [], method_file or [])
    from lorica.sweep import page
    from lorica.sweep.board import Board

    if dry_run:
        console.print(_overview(Board(plan, look=True)))
        return
    if not worker:
        page.require_place(plan)
        drawing()
    if not plan.folder.exists():
        from lorica.sweep.worker import require_runnable

        require_runnable(plan)
    board = Board(plan)
    failed: list[str] = []
    with _Watch.over(board) as watch:
        from lorica.sweep.worker import start, work

        if jobs > 1:
            named = [f"--method-file={each}" for each in method_file or []]
            failed = start(["sweep", "--worker", *named, "--", str(file), *(overrides or [])], jobs, watch.look)
        else:
            work(board, watch.run_of)
    if failed and not board.is_done:
        raise LoricaError([*failed, "what is done is kept; the same command goes on"])
    for line in failed:
        Screen(stderr=True).print(f"a worker failed, others did its part: {line}", style="yellow", soft_wrap=True)
    if worker:
        return
    rows, remarks = page.write(board)
    if (table := page.search_table(board)) is not None:
        console.print(table)
    if rows:
        from lorica.report import tables

        console.print(tables.to_rich(rows, remarks, width=console.width, encoding=console.encoding))
    else:
        console.print(*remarks, sep="\n", soft_wrap=True)
    console.print("The table, and what it was made from, are in", console.strong(plan.out.parent))


def _overview(board: Board) -> Table:
    """A line for each trial that is known: what it is, and how far it is."""
    from lorica.sweep.plan import said

    table = Table("method", "stage", "settings", "state", box=None)
    for method in board.plan.methods:
        lines: list[tuple[str, str, str]] = []
        for stage in ("search", "final", "rows"):
            trials = board.trials(method, stage)
            for trial in trials:
                state = "waiting" if trial.state.name == "WAITING" else "begun"
                if trial.state.is_finished():
                    score = "" if trial.value is None else f", {100 * trial.value:.1f} %"
                    state = trial.user_attrs.get("why") or f"done{score}"
                lines.append((stage, said(trial.params, short=True), state))
            if stage == "search" and method.search:
                lines += [(stage, said(point, short=True), "to do") for point in method.points[len(trials) :]]
                if left := (method.search.trials or 0) - len(trials):
                    lines.append((stage, f"{left} to be drawn", "to do")) if left > 0 else None
            if stage == "final" and method.search and method.search.final_tasks and not trials:
                lines.append(
                    (stage, f"the best {method.search.finalists} on {method.search.final_tasks} tasks", "to do")
                )
            if stage == "rows":
                seeds = {trial.params.get("seed") for trial in trials}
                lines += [(stage, f"seed={seed}", "to do") for seed in board.plan.sweep.seeds if seed not in seeds]
        for line in lines:
            table.add_row(*(Text(printable(each, console.encoding)) for each in (method.name, *line)))
    return table


class _Watch:
    """One bar: trials that have ended, of those there are to be, with the time left and what this process is at.

    It is what a run reports to as well.
    """

    def __init__(self, board: Board, progress: Progress) -> None:
        done, total = board.count()
        self._board, self._progress, self._title = board, progress, ""
        self._task = progress.add_task("sweep", total=total, completed=done, note="")

    @classmethod
    @contextmanager
    def over(cls, board: Board) -> Iterator[_Watch]:
        """It for the length of a `with` block; cleared at its end."""
        screen = Screen(stderr=True)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", style="dim", markup=False),
        )
        # a trial may take hours, and its time counts as long as the sweep goes on
        with Progress(
            *columns, console=screen, transient=True, disable=not screen.is_terminal, speed_estimate_period=float("inf")
        ) as progress:
            yield cls(board, progress)

    def look(self) -> None:
        """Counts again."""
        done, total = self._board.count()
        self._progress.update(self._task, completed=done, total=total)

    def run_of(self, claim: Claim | None) -> _Watch:
        """What a trial's run reports to."""
        self._title = claim.title if claim else "other workers are at the rest"
        self.look()
        self._note("")
        return self

    def stage(self, description: str, steps: int) -> None:
        self._note(description)

    def step(self, note: str = "") -> None:
        pass

    def say(self, remark: str) -> None:
        encoding = self._progress.console.encoding
        self._progress.console.print(Text(printable(f"{self._title}: {remark}", encoding)), soft_wrap=True)

    def _note(self, description: str) -> None:
        note = f"{self._title}: {description}" if description else self._title
        self._progress.update(self._task, note=printable(shown(note), self._progress.console.encoding))
