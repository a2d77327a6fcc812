"""`lorica data`: what belongs where, and whether it is there; and the commands of docs/benchmarks.md."""

from __future__ import annotations

import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lorica.commands import data
from lorica.data.benchmarks import find_benchmark
from lorica.data.sources import benchmark_names
from lorica.results import read_result
from lorica.run import run
from tests.data.miniatures import LAYOUTS, build, draw, expecting, hash_of, pictures, remove_class
from tests.test_cli import Lorica

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks.md"


@pytest.fixture
def lorica(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Lorica:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(data, "console", data.Screen(width=200))
    return Lorica(monkeypatch, capsys)


def row(out: str, name: str) -> list[str]:
    """The cells of a row of the table."""
    (line,) = (line for line in out.splitlines() if line.startswith(f"│ {name} "))
    return [cell.strip() for cell in line.strip("│").split("│")]


# ---- show


def test_show_lists_all_of_them(lorica: Lorica) -> None:
    code, out, _ = lorica("data", "show")
    assert code == 0
    for name in benchmark_names():
        assert re.search(rf"^ {name} .* {find_benchmark(name).classes} ", out, re.MULTILINE)
    assert re.search(r"cub200 .* 9430 \+ 2358, or 5994 \+ 5794", out)


@pytest.mark.parametrize("name", benchmark_names())
def test_show_says_what_is_known_of_one(name: str, lorica: Lorica) -> None:
    code, out, _ = lorica("data", "show", name)
    benchmark = find_benchmark(name)
    assert code == 0
    for said in (benchmark.licence, benchmark.origin, *benchmark.place, *benchmark.protocols, *benchmark.traps):
        assert f"\n  {said}\n" in out
    for split in benchmark.splits:
        unknown = "; its hash is not known to us" if benchmark.layouts else ""
        assert f"\n  {split.train} + {split.test}: {split.name}{unknown}\n" in out


def test_an_unknown_one(lorica: Lorica) -> None:
    for command in (("show",), ("check", "--root", ".")):
        code, _, err = lorica("data", command[0], "imagenet-a", *command[1:])
        assert (code, err) == (2, "unknown benchmark 'imagenet-a'; did you mean imagenet_a?\n")


# ---- check


@pytest.mark.parametrize(("name", "layout"), LAYOUTS)
def test_check_of_a_whole_one_and_of_others(
    name: str, layout: str, lorica: Lorica, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = pictures(name)
    expecting(name, layout, wanted, monkeypatch)
    folder = tmp_path / "whole"
    paths = build(layout, folder, wanted)
    training, test = ("18", "12") if name == "domainnet" else ("9", "6")

    code, out, err = lorica("data", "check", name, "--root", folder)
    assert (code, err) == (0, "")
    assert row(out, "layout")[2] == layout
    assert row(out, "classes") == ["classes", "3", "3"]
    assert row(out, "training images") == ["training images", training, training]
    assert row(out, "test images") == ["test images", test, test]
    assert row(out, "split") == ["split", "the small one", "the small one"]
    assert row(out, "hash") == ["hash", "unknown", hash_of(folder, layout, paths)[:16]]

    paths[wanted[4]].write_bytes(b"no image")
    code, _, err = lorica("data", "check", name, "--root", folder, "--fast")
    assert code == 2
    assert f"{paths[wanted[4]]}: not an image" in err

    remove_class(paths, wanted[-1].class_name)
    code, out, err = lorica("data", "check", name, "--root", folder)
    assert code == 2
    assert "images cannot be read" in err
    assert ("2 classes, expected 3" if layout == "folders" else "that the lists name are missing: ") in err

    build(layout, tmp_path / "more", pictures(name, 4))
    code, out, err = lorica("data", "check", name, "--root", tmp_path / "more")
    assert code == 2
    assert row(out, "classes") == ["classes", "3", "4"]
    assert "data.root: 4 classes, expected 3\n" in err

    build(layout, tmp_path / "other", [replace(wanted[0], half="test"), *wanted[1:]])
    code, out, err = lorica("data", "check", name, "--root", tmp_path / "other")
    assert code == 2
    assert row(out, "split")[2] == "none of these"
    assert "all are there, divided otherwise\n" in err


def test_check_against_a_hash(lorica: Lorica, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = pictures("imagenet_r")
    expecting("imagenet_r", "folders", wanted, monkeypatch)
    sha256 = hash_of(tmp_path, "folders", build("folders", tmp_path, wanted))
    assert lorica("data", "check", "imagenet_r", "--root", tmp_path, "--split", sha256[:12])[0] == 0
    code, _, err = lorica("data", "check", "imagenet_r", "--root", tmp_path, "--split", "0123")
    assert code == 2
    assert f"data.root: its split is {sha256}, expected 0123: other images, or divided otherwise\n" in err


def test_only_the_whole_check_looks_for_images_in_both_halves(
    lorica: Lorica, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = pictures("objectnet")
    expecting("objectnet", "folders", wanted, monkeypatch)
    paths = build("folders", tmp_path, wanted)
    shutil.copy(paths[wanted[0]], paths[wanted[3]])
    draw(tmp_path / "beside" / "1.png")
    code, out, _ = lorica("data", "check", "objectnet", "--root", tmp_path, "--fast")
    assert code == 0
    assert "data.root: passed over 1 files or folders: 1 beside train and test\n" in out
    code, _, err = lorica("data", "check", "objectnet", "--root", tmp_path)
    assert code == 2
    assert f"data.root: {paths[wanted[3]]} is {paths[wanted[0]]}\n" in err


# ---- in runs


def test_a_run_records_its_split_and_another_is_another_row(
    small_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two lists that divide the same images in the same way and number their classes otherwise, which is another order
    of classes."""
    found = {}
    for turn in (1, 2):
        wanted = [replace(each, number=(each.number + turn) % 3) for each in pictures("imagenet_r")]
        benchmark = expecting("imagenet_r", "CODA-Prompt's lists", wanted, monkeypatch)
        (split,) = benchmark.splits
        monkeypatch.setattr(
            "lorica.data.sources.imagenet_r.BENCHMARK", replace(benchmark, splits=(replace(split, numbers={}),))
        )
        root = tmp_path / "data"
        if turn == 1:
            build("CODA-Prompt's lists", root, wanted)
        else:
            for half in ("train", "test"):
                text = (root / f"imagenet-r_{half}.yaml").read_text()
                data, targets = text.split("targets:")
                targets = re.sub(r"\d", lambda number: str((int(number[0]) + 1) % 3), targets)
                (root / f"imagenet-r_{half}.yaml").write_text(f"{data}targets:{targets}")
        recipe = small_recipe | {"data": {"source": "imagenet_r", "root": str(root)}, "stream": {"tasks": 1}}
        result = run(recipe | {"fit": {"epochs": 1}}, out=tmp_path / str(turn), progress=False)
        assert read_result(tmp_path / str(turn)).identity == result.identity
        found[turn] = result
    one, two = found[1].identity, found[2].identity
    assert one["data"] == two["data"]
    assert one["split"] != two["split"]


# ---- docs/benchmarks.md


def test_the_page_has_every_benchmark_and_its_commands_work(
    lorica: Lorica, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = PAGE.read_text(encoding="utf-8")
    for name in benchmark_names():
        benchmark = find_benchmark(name)
        (line,) = (line for line in text.splitlines() if line.startswith(f"| `{name}` "))
        assert str(benchmark.classes) in line
        for split in benchmark.splits:
            assert f"{split.train} + {split.test}" in line
    wanted = pictures("imagenet_r")
    expecting("imagenet_r", "folders", wanted, monkeypatch)
    build("folders", tmp_path / "data" / "imagenet-r", wanted)
    monkeypatch.chdir(tmp_path)
    commands = [
        line
        for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
        for line in block.splitlines()
        if line.startswith("lorica data ")
    ]
    assert len(commands) >= 3
    for command in commands:
        code, _, err = lorica(*shlex.split(command, comments=True)[1:])
        assert (code, err) == (0, ""), command
