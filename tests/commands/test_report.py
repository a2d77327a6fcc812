"""`lorica report`: where it writes what, and whose files it leaves alone."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lorica import cli
from lorica.results import Result

Lorica = Callable[..., tuple[int, str, str]]


@pytest.fixture
def lorica(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Lorica:
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["lorica", "report", *map(str, arguments)])
        with pytest.raises(SystemExit) as leaving:
            cli.main()
        captured = capsys.readouterr()
        return int(leaving.value.code or 0), captured.out, captured.err

    return call


def test_a_page_by_default(lorica: Lorica, finished_run: Result) -> None:
    code, out, _ = lorica(finished_run.path, "--title", "Six colours")
    assert (code, out) == (0, "The report is in report.html\n")
    assert "<title>Six colours</title>" in Path("report.html").read_text()


def test_text_goes_to_standard_output(lorica: Lorica, finished_run: Result) -> None:
    for form, line in (
        ("markdown", "| Method | Seeds | Acc |"),
        ("latex", r"\begin{tabular}"),
        ("csv", "benchmark,label,against,measure,number,mean,std,error,low,high\n"),
    ):
        code, out, _ = lorica(finished_run.path, "--format", form)
        assert code == 0
        assert line in out
    assert not list(Path().iterdir())


def test_a_folder_gets_all_four_and_a_file_one(lorica: Lorica, finished_run: Result) -> None:
    assert lorica(finished_run.path, "--out", "paper")[0] == 0
    names = ["report.csv", "report.html", "report.md", "report.tex"]
    assert sorted(each.name for each in Path("paper").iterdir()) == names
    before = {name: (Path("paper") / name).read_bytes() for name in names}
    assert lorica(finished_run.path, "--out", "paper")[0] == 0  # its own are replaced, by the same
    assert {name: (Path("paper") / name).read_bytes() for name in names} == before
    assert lorica(finished_run.path, "--out", "tables/one.tex")[0] == 0
    assert lorica(finished_run.path, "--out", "two", "--format", "csv")[0] == 0
    assert [[each.name for each in Path(name).iterdir()] for name in ("tables", "two")] == [["one.tex"], ["report.csv"]]


@pytest.mark.parametrize("name", ["report.html", "report.md", "report.tex", "report.csv"])
def test_what_was_altered_is_the_users_and_stays(name: str, lorica: Lorica, finished_run: Result) -> None:
    assert lorica(finished_run.path, "--out", "paper")[0] == 0
    file = Path("paper") / name
    file.write_text("A word before. " + file.read_text())
    before = {each: each.read_bytes() for each in Path("paper").iterdir()}
    code, _, said = lorica(finished_run.path, "--out", "paper")
    assert code == 2
    assert f"{file}: is in the way and not lorica's, or damaged" in said
    assert {each: each.read_bytes() for each in Path("paper").iterdir()} == before


def test_what_is_asked_for_must_fit(lorica: Lorica, finished_run: Result) -> None:
    code, _, said = lorica(finished_run.path, "--out", "one.tex", "--format", "csv")
    assert (code, said) == (2, "--out: one.tex is for latex, and --format says csv; give one of them, or a folder\n")
    code, _, said = lorica(finished_run.path, "--out", "one.pdf")
    assert (code, said) == (2, "--out: one.pdf: expected a file that ends in .html, .md, .tex, .csv, or a folder\n")
    code, _, said = lorica(finished_run.path, "--against", "lora")
    assert (code, said) == (2, "--against: no row is called 'lora'; expected one of 'sd_lora'\n")
    assert not list(Path().iterdir())


def test_a_run_whose_files_are_no_good_is_named(lorica: Lorica, finished_run: Result, tmp_path: Path) -> None:
    assert finished_run.path is not None
    for name, text in (("good", (finished_run.path / "metrics.json").read_text()), ("bad", "{}")):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "metrics.json").write_text(text)
    code, out, said = lorica("runs", "--format", "markdown")
    assert code == 0
    assert "| sd_lora | 1 |" in out
    assert said.startswith("left out: runs/bad/metrics.json: lacks ")
    assert "\nLeft out: runs/bad/metrics.json: lacks " in out


def test_a_run_without_a_task_is_named_in_the_report(lorica: Lorica, finished_run: Result, tmp_path: Path) -> None:
    assert finished_run.path is not None
    for name in ("good", "begun"):
        shutil.copytree(finished_run.path, tmp_path / "runs" / name)
    (tmp_path / "runs" / "begun" / "metrics.json").unlink()
    code, _, said = lorica("runs", "--out", "paper")
    assert code == 0
    words = "runs/begun: it has begun, and there is no metrics.json: no task is learned"
    assert said.startswith(f"left out: {words}")
    for ending in ("html", "md", "tex"):
        assert f"Left out: {words}" in (tmp_path / "paper" / f"report.{ending}").read_text()
