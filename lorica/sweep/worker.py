"""A process that takes one trial after the other, until nothing is left for anybody; and several of them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from tempfile import TemporaryFile
from typing import TYPE_CHECKING

from optuna.trial import TrialState

from lorica.errors import LoricaError, TrainingError
from lorica.interruption import Interruptions
from lorica.progress import Reporter
from lorica.results import Measured, Result
from lorica.sweep import page
from lorica.sweep.board import Board, Claim
from lorica.sweep.plan import Plan

if TYPE_CHECKING:  # torch comes with the data
    from lorica.data.sources import Source

POLL = 0.5  # seconds between looks at what others do


def work(board: Board, reporter: Callable[[Claim | None], Reporter]) -> None:
    """Takes trials until the sweep is done.

    Args:
        reporter: what a trial's run reports to; asked with None while this worker waits for others.

    Raises:
        LoricaError: what keeps a run from being learned, other than a loss that is not finite, or from being compared
            with earlier ones; its trial is left to whoever comes next.
    """
    while not board.is_done:
        claim = board.claim()
        if claim is None:
            reporter(None)
            time.sleep(POLL)
            continue
        try:
            _run(claim, reporter(claim))
        finally:
            claim.give_back()
        if claim.stage != "rows":
            page.write_search(board)


def require_runnable(plan: Plan) -> None:
    """What keeps a row of the table from being learned, said before there is a folder; images are not decoded for it.

    Raises:
        LoricaError: all of it.
    """
    from lorica.assembly import build_source
    from lorica.run import check

    sources: dict[str, Source] = {}
    problems: list[str] = []
    for method in plan.methods:
        recipe = plan.row(method, method.settings or {}, next(iter(plan.sweep.seeds), 0))
        read = recipe.data.model_dump_json()  # mostly the same for all
        try:
            if read not in sources:
                sources[read] = build_source(recipe)
            check(recipe, source=sources[read], progress=False)
        except LoricaError as error:
            problems += error.problems
    if problems:
        raise LoricaError(list(dict.fromkeys(problems)))


def start(arguments: Sequence[str], jobs: int, watch: Callable[[], None]) -> list[str]:
    """Starts workers, each on its share of the cores, waits for them, and returns what those said that failed, a line
    each.

    Args:
        arguments: of `lorica`, for each of them.
        watch: called now and then.
    """
    share = str(max(1, len(os.sched_getaffinity(0)) // jobs) if hasattr(os, "sched_getaffinity") else 1)
    # threads that wait in a loop take the cores from each other where several processes share them
    environment = {"OMP_NUM_THREADS": share, "GOMP_SPINCOUNT": "0"} | os.environ
    command = [sys.executable, "-m", "lorica", *arguments]
    with ExitStack() as stack:
        stack.enter_context(Interruptions())
        errors = [stack.enter_context(TemporaryFile("w+")) for _ in range(jobs)]
        workers: list[subprocess.Popen[bytes]] = []
        try:
            for error in errors:
                # in a session of its own: it hears of Ctrl-C here, once
                workers.append(
                    subprocess.Popen(
                        command, env=environment, stdout=subprocess.DEVNULL, stderr=error, start_new_session=True
                    )
                )
            while any(each.poll() is None for each in workers):
                watch()
                time.sleep(POLL)
        finally:
            for each in workers:
                each.terminate()  # those that are at work keep a snapshot
            for each in workers:
                each.wait()
        told = dict[str, None]()  # each line once: mostly it is the same error
        for each, error in zip(workers, errors, strict=True):
            if each.returncode:
                error.seek(0)
                said = error.read().strip() or f"a worker ended with exit code {each.returncode}"
                told |= dict.fromkeys(said.splitlines())
    return [*told]


def _run(claim: Claim, reporter: Reporter) -> None:
    from lorica.run import run

    searching = claim.stage != "rows"
    try:
        result = run(
            claim.recipe,
            out=claim.folder,
            resume=True,
            stop_after=claim.tasks,
            go_on=claim.goes_on if claim.stage == "search" else None,
            progress=reporter,
        )
    except TrainingError as error:  # what too high a rate does
        claim.end(0.0 if searching else None, TrialState.COMPLETE if searching else TrialState.FAIL, str(error))
        return
    if searching:
        claim.require_same(result.identity)
    learned = len(result.accuracy)
    if claim.tasks is not None and learned < claim.tasks and not result.complete:
        claim.end(None, TrialState.PRUNED, f"given up after task {learned}")
    else:
        measure = claim.method.search.measure if claim.method.search else "aaa"
        claim.end(score(result, claim.tasks, measure))


def score(result: Result, tasks: int | None, measure: str) -> float:
    """A measure of a run's first tasks."""
    rows = result.accuracy[:tasks]
    return getattr(Measured(rows, [task["test"] for task in result.tasks[: len(rows)]]), measure)
