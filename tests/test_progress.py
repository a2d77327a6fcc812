"""What a long job shows while it works."""

from __future__ import annotations

import io

from rich.console import Console

from lorica.progress import Bar, Reporter, Silent, progress_bar
from lorica.terminal import Screen


def test_the_bar_shows_stage_steps_and_note() -> None:
    written = io.StringIO()
    with progress_bar(Console(file=written, force_terminal=True, width=120)) as reporter:
        assert isinstance(reporter, Bar)
        reporter.stage("sd_lora: task 1", 4)
        for step in range(4):
            reporter.step(f"loss {step}.5")
        reporter._progress.refresh()
    shown = written.getvalue()
    assert "sd_lora: task 1" in shown
    assert "4/4" in shown
    assert "loss 3.5" in shown


def test_a_stage_starts_at_nought() -> None:
    with progress_bar(Console(file=io.StringIO())) as reporter:
        assert isinstance(reporter, Bar)
        reporter.stage("one", 2)
        reporter.step("note")
        reporter.stage("two", 7)
        task = reporter._progress.tasks[0]
        assert (task.description, task.completed, task.total, task.fields["note"]) == ("two", 0, 7, "")


def test_silence_is_a_reporter() -> None:
    silent: Reporter = Silent()
    silent.stage("anything", 1)
    silent.step()
    assert isinstance(silent, Reporter)


def test_nothing_is_written_where_nobody_looks() -> None:
    """An error in a file does not begin with an empty line; what is said is there."""
    written = io.StringIO()
    with progress_bar(Screen(file=written)) as reporter:
        reporter.stage("one", 2)
        reporter.step("note")
    assert written.getvalue() == ""
    with progress_bar(Screen(file=written)) as reporter:
        reporter.say("[a] remark")
    assert written.getvalue() == "[a] remark\n"
