"""The pages of docs/ and the README: their links lead somewhere, their commands exist with the options they are given,
scripts are there, and the site is built of them without a warning."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import typer

from lorica.cli import app
from lorica.config import packaged_text
from tests.browser import browsing, find_browser

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
OF_OLD = ROOT / "docs" / "results"
"""Pages that keep the commands which made them, of scripts that `lorica sweep` has replaced since."""


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def code(page: Path) -> list[str]:
    """The lines of fenced and of indented code."""
    text = page.read_text()
    fenced = re.findall(r"^```[a-z]*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [line for block in fenced for line in block.splitlines()] + re.findall(
        r"^    (?! )(.*)$", text, re.MULTILINE
    )


def commands(page: Path) -> list[list[str]]:
    """What stands behind `lorica` on lines of code."""
    found = []
    for line in code(page):
        called = re.match(r"(?:\.venv/bin/)?lorica +([a-z].*)", line)
        if called:
            found.append(shlex.split(called[1].rstrip("\\"), comments=True))
    return found


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
    assert [each for each in targets if "://" not in each and not (page.parent / each).exists()] == []


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=name)
def test_commands_exist_with_their_options(page: Path) -> None:
    top: Any = typer.main.get_command(app)
    for arguments in commands(page):
        command, rest = top, list(arguments)
        while hasattr(command, "commands"):
            assert rest, arguments
            assert rest[0] in command.commands, arguments
            command = command.commands[rest.pop(0)]
        known = {option for each in command.params for option in (*each.opts, *each.secondary_opts)} | {
            "--debug",
            "--help",
        }
        assert [each for each in rest if each.startswith("--") and each.partition("=")[0] not in known] == [], arguments


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=name)
def test_recipes_that_are_named_are_there(page: Path) -> None:
    for command, *rest in commands(page):
        if command in ("run", "check", "recipe") and rest and re.fullmatch(r"[a-z0-9_]+(/[a-z0-9_-]+)?", rest[0]):
            assert packaged_text(rest[0]), rest


@pytest.mark.parametrize("page", [page for page in PAGES if OF_OLD not in page.parents], ids=name)
def test_scripts_are_there(page: Path) -> None:
    for line in code(page):
        for script in re.findall(r"python ((?:benchmarks|tools|examples)/\S+\.py)", line):
            assert (ROOT / script).is_file(), line


def prose(page: Path) -> list[str]:
    """The lines that are neither code nor tables; what stands in backquotes is blank, and full stops that end nothing
    are gone."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    lines, listed = [], False
    for line in text.splitlines():
        begins = re.match(r" *([*-]|\d+\.) ", line) and (listed or not line.startswith("    "))
        listed = bool(begins) or (listed and line.startswith("  "))
        if not line.startswith("|") and (listed or not line.startswith("    ")):
            lines.append(line)
    return lines


def ends_within(line: str) -> list[str]:
    """The ends of sentences after which another one begins in the same line."""
    plain = re.sub(r"`[^`]*`", lambda code: "x" * len(code[0]), line)
    plain = re.sub(r"\b(al|e\.g|i\.e|cf|Figs?|Eq|St|vs)\.", lambda short: "x" * len(short[0]), plain)
    plain = re.sub(r"^( *([*-]|\d+\.) )?(\*\*[^*]+[.?]\*\* )?", lambda head: "x" * len(head[0]), plain)
    return re.findall(r"[.!?][)*\"”]* +(?=\S)", plain)


@pytest.mark.parametrize("page", [page for page in PAGES if OF_OLD not in page.parents], ids=name)
def test_a_sentence_has_a_line_of_its_own(page: Path) -> None:
    """So that a change of a sentence is a change of a line; one of more than 160 characters goes on in the next."""
    lines = prose(page)
    assert [line for line in lines if ends_within(line)] == []
    assert [line for line in lines if len(line) > 160] == []


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [Path(sys.executable).with_name("mkdocs"), "build", "--quiet", "--strict", "--site-dir", folder],
        cwd=ROOT,
        env={"NO_MKDOCS_2_WARNING": "1", "PATH": "", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return folder


def test_the_site_is_built_without_a_warning(site: Path) -> None:
    methods, keys, api = (site / "reference" / f"{each}.html" for each in ("methods", "keys", "api"))
    assert "W = W0 + sum_{k<=t} alpha_k" in unescape(
        methods.read_text()
    )  # for whoever copies the formula that is drawn
    assert "fit.learning_rate" in keys.read_text()
    assert "Learner" in api.read_text()
    results = [page.read_text() for page in (site / "results").glob("*.html")]
    assert len(results) > 25
    assert [page for page in results if re.search(r"<h1[^>]*>[a-z0-9_-]+<", page)] == []  # the name of a file
    assert "fonts.googleapis" not in (site / "index.html").read_text()  # nothing is fetched


WIDER_THAN_THE_WINDOW = """
    [...document.querySelectorAll('.md-content *')].filter(each => {
        if (each.getBoundingClientRect().right <= innerWidth + 1) return false;
        for (let box = each; !box.classList.contains('md-content'); box = box.parentElement)
            if (getComputedStyle(box).overflowX !== 'visible') return false;
        return true;
    }).map(each => each.outerHTML.slice(0, 200))
"""


@pytest.mark.skipif(find_browser() is None, reason="no browser is installed")
def test_what_is_wide_moves_within_its_own_box(site: Path, tmp_path: Path) -> None:
    with browsing(tmp_path) as tab:
        for page in ("index", "results/index", "reference/keys", "reference/commands", "reference/methods"):
            tab.open((site / f"{page}.html").as_uri(), width=400, height=800)
            assert tab.evaluate(WIDER_THAN_THE_WINDOW) == [], page
            assert tab.evaluate("document.documentElement.scrollWidth") == 400, page
            assert tab.evaluate("document.querySelectorAll('math').length > 150") == (page == "reference/methods")
            assert tab.complaints == []
