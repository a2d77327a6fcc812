"""What reaches a terminal: names as they are, no control sequences, and nothing that its encoding lacks."""

from __future__ import annotations

import ast
import io
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rich.table import Table

import lorica
from lorica import cli
from lorica.progress import progress_bar
from lorica.results import Result
from lorica.terminal import Screen, printable, screenful, shown, visible

NAMES = ("[/]", "[red]", ":smile:", "$x_{", "_wren [old]", "Zaunkönig ε")
"""Classes that rich would read as markup and emoji, matplotlib as mathematics, and ASCII cannot say."""

OWN = '''
from lorica.methods.linear_head import LinearHeadMethod


class Odd(LinearHeadMethod):
    """[/] a method [red] of \\x1b[31mone's own."""

    name = "[/] $x_{ [red]"

    def trainable(self):
        return self.head_parameters()
'''

Said = tuple[int, str, str]
Run = Callable[..., Said]


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Run:
    """`said(*arguments, encoding)`: the exit code, and what the command wrote to strict streams of that encoding."""

    def run(*arguments: object, encoding: str = "utf-8", terminal: bool = False) -> Said:
        written = io.BytesIO(), io.BytesIO()
        streams = [io.TextIOWrapper(each, encoding=encoding, newline="\n", write_through=True) for each in written]
        for name, stream in zip(("stdout", "stderr"), streams, strict=True):
            monkeypatch.setattr(sys, name, stream)
        monkeypatch.setattr(sys, "argv", ["lorica", *map(str, arguments)])
        monkeypatch.setattr(cli, "console", Screen(width=200, force_terminal=terminal))
        monkeypatch.setenv("FORCE_COLOR", "1" if terminal else "")
        with pytest.raises(SystemExit) as leaving:
            cli.main()
        out, err = (each.getvalue().decode(encoding) for each in written)
        return int(leaving.value.code or 0), out, err

    return run


@pytest.fixture
def odd_recipe(small_recipe: dict[str, Any], six_classes_file: Path, tmp_path: Path) -> Path:
    """The six classes under odd names, for a method of the user's own with an odd name, in a folder with an odd
    name."""
    folder = tmp_path / "[old] wren [red]"
    folder.mkdir()
    data = dict(np.load(six_classes_file))
    np.savez(folder / "six.npz", **data | {"class_names": np.array(NAMES)})
    (folder / "odd.py").write_text(OWN)
    file = folder / "odd.yaml"
    values = small_recipe | {"method": {"name": str(folder / "odd.py")}, "data": {"source": "arrays"}}
    values["data"]["root"] = str(folder / "six.npz")
    file.write_text(yaml.safe_dump(values | {"fit": {"epochs": 1, "batch_size": 12}}))
    return file


# ---- characters


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("wren", "wren"),
        ("\x1b[31mred\x07", r"\x1b[31mred\x07"),
        ("a\rb\x9b2J\x85", r"a\rb\x9b2J\x85"),
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
        ("\u202egnp.exe", r"\u202egnp.exe"),  # would be read from the right
        (b"caf\xe9".decode("utf-8", "surrogateescape"), r"caf\udce9"),
        ("می\u200cخواهم 👩\u200d🔬", "می\u200cخواهم 👩\u200d🔬"),  # joiners are part of words
        ("no\xa0break", "no\xa0break"),
        (Path("[old]"), "[old]"),
    ],
)
def test_controls_are_shown_and_the_rest_is_left(text: object, expected: str) -> None:
    assert visible(text) == expected
    assert visible(visible(text)) == expected


def test_what_has_one_line_is_shown_in_one() -> None:
    assert shown("a\nb\tc") == r"a\nb\tc"


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        ("ascii", r"81.3 +- 0.4 at epsilon=1 ... x \u674e k\xf6nig"),
        ("cp1252", r"81.3 ± 0.4 at epsilon=1 … × \u674e könig"),
        ("utf-8", "81.3 ± 0.4 at ε=1 … × 李 könig"),
    ],
)
def test_what_an_encoding_lacks_has_other_words(encoding: str, expected: str) -> None:
    assert printable("81.3 ± 0.4 at ε=1 … × 李 könig", encoding) == expected
    assert expected.encode(encoding)


def test_every_character_of_loricas_own_has_words_in_ascii() -> None:
    texts = [
        node.value
        for file in Path(lorica.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    texts += [file.read_text(encoding="utf-8") for file in (Path(lorica.__file__).parent / "recipes").glob("*.yaml")]
    drawn = set("¼½¾")  # in figures alone
    characters = {each for text in texts for each in text if not each.isascii()} - drawn
    assert "±" in characters
    assert not [each for each in characters if printable(each, "ascii").startswith("\\") and each.isprintable()]


# ---- consoles


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "cp1252"])
def test_a_screen_takes_texts_literally(encoding: str) -> None:
    written = io.BytesIO()
    screen = Screen(
        file=io.TextIOWrapper(written, encoding=encoding, write_through=True), width=80, force_terminal=True
    )
    table = Table("[/]", "±", title="[red] :smile:")
    table.add_row("[/] \x1b[31m", "ε")
    screen.print(table)
    screen.print("in", screen.strong("[/] \x07"))
    with progress_bar(screen) as reporter:
        reporter.stage("[/] ±\x1b[31m", 2)
        reporter.step("[red] ε\n")
        reporter.say("[bold] …\x1b]0;title\x07")
    text = written.getvalue().decode(encoding)
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)
    assert "\x1b" not in plain
    assert "\x07" not in plain
    assert "[red] :smile:" in plain
    assert r"[/] \x1b[31m" in plain
    assert r"in [/] \x07" in plain
    assert r"[bold] " in plain
    assert r"\x1b]0;title\x07" in plain
    assert r"ε\n" in plain or r"epsilon\n" in plain
    assert "\x1b[31m" not in text


def test_only_the_terminal_makes_consoles() -> None:
    """And no text with data in it is read as markup."""
    for file in Path(lorica.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and file.name != "terminal.py":
                assert ast.unparse(node.func) not in ("Console", "Text.from_markup", "rich.print"), file
                if any(each.arg == "markup" and ast.unparse(each.value) == "True" for each in node.keywords):
                    assert not isinstance(node.args[0], ast.JoinedStr), file


# ---- errors


def test_a_long_error_keeps_its_beginning_and_its_remedy() -> None:
    (line,) = screenful([f"data.root: {'x' * 9000}; rename them"])
    assert len(line) <= 400
    assert line.startswith("data.root: xxx")
    assert " … " in line
    assert line.endswith("xxx; rename them")


def test_many_errors_are_a_screenful_and_a_number() -> None:
    lines = list(screenful([f"image {number}: {'y' * 100}" for number in range(5000)]))
    assert sum(-(-len(line) // 80) for line in lines) <= 24
    assert lines[0].startswith("image 0")
    assert lines[-1] == f"… and {5000 - len(lines) + 1} more; mend these, or see all of them with --debug"
    assert list(screenful(["a\n" * 3000]))[-1].startswith("… and 29")
    assert list(screenful(["one", "two"])) == ["one", "two"]


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "cp1252"])
def test_errors_are_shown_literally(encoding: str, said: Run, tmp_path: Path) -> None:
    for name in ("[/] ± wren", "[red]wren", "\x1b[31mwren", "wren\x07ε", "w" * 2000):
        code, out, err = said("run", tmp_path / name, encoding=encoding)
        assert (code, out) == (2, "")
        assert "\x1b" not in err
        assert "\x07" not in err
        assert f"{printable(name, encoding)}: no such recipe"[-40:] in err
        assert len(err) < 1000
        assert said("run", "digits", f"method.name={name}", encoding=encoding)[0] == 2
        assert said("run", "digits", f"{name}=1", encoding=encoding)[0] == 2
        assert said("table", tmp_path / name[:40], encoding=encoding)[0] == 2


def test_what_typer_says_of_arguments_is_shown_literally(said: Run) -> None:
    for arguments in (["list", "[/] \x1b[31mε"], ["[/] \x1b[31mε"], ["run", "digits", "--[/]\x1b[31mε"]):
        code, _, err = said(*arguments, encoding="ascii")
        assert code == 2
        assert "\x1b" not in err


# ---- commands


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "cp1252"])
def test_a_run_with_odd_names(encoding: str, said: Run, odd_recipe: Path, tmp_path: Path) -> None:
    folder = odd_recipe.parent / "run \x1b[31m [red]"
    named = ["--method-file", odd_recipe.with_name("odd.py")]
    code, out, err = said("check", odd_recipe, *named, encoding=encoding)
    assert (code, err) == (0, "")
    assert "[old] wren [red]" in out
    code, out, err = said("run", odd_recipe, *named, "--out", folder, encoding=encoding, terminal=True)
    assert code == 0, err
    assert r"run \x1b[31m [red]" in out
    assert "[/] $x_{ [red]" in out
    assert "\x1b[31m" not in out + err
    for arguments in (["evaluate", folder, *named], ["table", folder], ["analyze", folder, "--points", 2, *named]):
        code, out, err = said(*arguments, encoding=encoding)
        assert code == 0, err
        assert "\x1b" not in out + err
        if arguments[0] == "evaluate":
            assert all(printable(name, encoding) in out for name in NAMES)
    for form in ("markdown", "latex", "csv"):
        code, out, err = said("table", folder, "--format", form, encoding=encoding)
        assert (code, err) == (0, "")
        assert "\x1b" not in out


@pytest.mark.parametrize("what", ["methods", "backbones", "sources", "recipes"])
@pytest.mark.parametrize("plain", [[], ["--plain"]])
def test_lists_in_ascii(what: str, plain: list[str], said: Run) -> None:
    code, out, err = said("list", what, *plain, encoding="ascii")
    assert (code, err) == (0, "")
    assert "\\u" not in out
    assert out.splitlines()[1].strip()


def test_help_in_ascii(said: Run) -> None:
    for command in ("demo", "run", "check", "list", "table", "evaluate", "analyze", "theorem"):
        code, out, err = said(command, "--help", encoding="ascii")
        assert (code, err) == (0, "")
        assert "\\u" not in out


def test_a_table_keeps_its_columns_in_ascii(said: Run, finished_run: Result, tmp_path: Path) -> None:
    shutil.copytree(finished_run.path or "", tmp_path / "a")
    shutil.copytree(finished_run.path or "", tmp_path / "b")
    metrics = tmp_path / "b" / "metrics.json"
    metrics.write_text(metrics.read_text().replace('"seed": 0', '"seed": 1'))
    code, out, _ = said("table", tmp_path / "a", tmp_path / "b", encoding="ascii")
    assert code == 0
    row = next(line for line in out.splitlines() if line.startswith("sd_lora"))
    heading = next(line for line in out.splitlines() if line.startswith("Method"))
    assert "+- 0.0" in row
    assert heading.index("Acc") + 3 == row.index("+- 0.0") + 6


def test_the_command_itself_on_an_ascii_terminal(tmp_path: Path) -> None:
    """Python's own streams, with standard output sent to a file; and with a backend for figures that does not exist."""
    environment = os.environ | {
        "LC_ALL": "C",
        "PYTHONIOENCODING": "ascii",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "MPLBACKEND": "module://nowhere.backend",
        "PYTHONPATH": str(Path(lorica.__file__).parent.parent),
    }
    command = [sys.executable, "-m", "lorica"]
    with (tmp_path / "out").open("wb") as out:
        done = subprocess.run(
            [*command, "theorem", "--out", str(tmp_path / "theorem")],
            env=environment,
            stdout=out,
            stderr=subprocess.PIPE,
        )
    assert done.returncode == 0, done.stderr.decode()
    assert b"epsilon" in (tmp_path / "out").read_bytes()
    assert (tmp_path / "theorem" / "theorem.pdf").is_file()
