"""What is written in a recipe is what the key gets, or it is refused: nothing is read as something else."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lorica.config import read_recipe
from lorica.errors import RecipeError
from lorica.recipe_text import parse

TEXTS = st.text(st.characters(exclude_categories=["C", "Z"]) | st.just(" "))
MINIMAL = {"method.name": "sd_lora", "stream.tasks": 2}


def in_file(folder: Path, text: str) -> Path:
    file = folder / "mine.yaml"
    file.write_text(f"method: sd_lora\n{text}\n")
    return file


@pytest.mark.parametrize(
    "path", ["0123", "12:30", "/d/run #2", "1.10", "yes", "1e5", "2001-01-01", "a: b", "[x", "{y}", "*z", "0x10", " - "]
)
def test_a_path_is_what_is_written(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    expected = (tmp_path / path).absolute()
    assert read_recipe(MINIMAL, [f"data.root={path}"]).data.root == expected
    assert read_recipe(MINIMAL, {"backbone.weights": path}).backbone.weights == expected
    recipe = read_recipe(MINIMAL, {"data.root": path})
    saved = yaml.safe_dump(recipe.resolved())
    assert read_recipe(in_file(tmp_path, "").write_text(saved) and tmp_path / "mine.yaml") == recipe


@pytest.mark.parametrize("name", ["0123", "12:30", "1.10", "yes", "2001-01-01", "0x10"])
def test_a_path_in_a_file_needs_no_quotes(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_recipe(in_file(tmp_path, f"data.root: {name}")).data.root == tmp_path / name


@pytest.mark.parametrize("nothing", ["null", "~", ""])
def test_null_is_nothing_for_every_type(nothing: str, tmp_path: Path) -> None:
    assert read_recipe(MINIMAL, {"data.root": "x"}).data.root is not None
    assert read_recipe({**MINIMAL, "data.root": "x"}, [f"data.root={nothing}"]).data.root is None
    assert read_recipe(MINIMAL, [f"stream.seed={nothing}"]).stream.seed is None
    assert read_recipe(in_file(tmp_path, f"data.root: {nothing}")).data.root is None


@pytest.mark.parametrize(
    "written", ["12:30", "yes", "true", "on", "010", "0x10", "0o17", "1_000", "1.0", "2001-01-01", "'3'", "1e3", "⑤"]
)
def test_an_integer_is_decimal_and_nothing_else(written: str, tmp_path: Path) -> None:
    for recipe, overrides in (
        (MINIMAL, [f"fit.batch_size={written}"]),
        (in_file(tmp_path, f"fit.batch_size: {written}"), []),
    ):
        with pytest.raises(RecipeError, match=r"fit\.batch_size: Input should be a valid integer, given"):
            read_recipe(recipe, overrides)


@pytest.mark.parametrize("value", [True, False, "3", 3.0, "yes"])
def test_of_a_mapping_too(value: Any) -> None:
    with pytest.raises(RecipeError, match=r"fit\.epochs: Input should be a valid integer"):
        read_recipe(MINIMAL, {"fit.epochs": value})
    with pytest.raises(RecipeError, match=r"method\.rank: Input should be a valid integer"):
        read_recipe({"method": {"name": "sd_lora", "rank": value}})


@pytest.mark.parametrize("value", ["yes", "1", "on", "0", "no"])
def test_a_truth_value_is_true_or_false(value: str) -> None:
    assert read_recipe(MINIMAL, ["method.reset_magnitudes=true"]).method.reset_magnitudes is True
    with pytest.raises(RecipeError, match=r"method\.reset_magnitudes: Input should be a valid boolean"):
        read_recipe(MINIMAL, [f"method.reset_magnitudes={value}"])


@pytest.mark.parametrize("written", ["1e-4", "0.0001", "1.0e-04", ".0001"])
def test_a_number_may_have_an_exponent(written: str, tmp_path: Path) -> None:
    assert read_recipe(MINIMAL, [f"fit.learning_rate={written}"]).fit.learning_rate == 1e-4
    assert read_recipe(in_file(tmp_path, f"fit: {{learning_rate: {written}}}")).fit.learning_rate == 1e-4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fit: {epochs: 1}\nseed: 3\nfit: {batch_size: 4}", "line 4: fit stands here a second time"),
        ("fit: {epochs: 1, epochs: 2}", "line 2: epochs stands here a second time"),
        ("fit.epochs: 1\nfit: {epochs: 2}", "fit.epochs: is given twice"),
        ("method.name: lora", "method.name: is given twice"),
        ("data: &a {root: x}\nfit: *a", "line 2: anchors, references and tags are not read"),
        ("a: &a [*a]", "line 2: anchors"),
        ("seed: !!int '3'", "line 2: anchors, references and tags"),
        ("? [a, b]\n: 3", "line 2: expected a name as key"),
        ("data.root: ~nouser-of-this-name/x", "data.root: .*there is no such user"),
        ("seed: 2001-99-99", "seed: Input should be a valid integer, given '2001-99-99'"),
        ("fit: " + "[" * 5000, "sections within sections"),
        ("seed: " + "9" * 5000, "seed: Input should be a valid integer"),
    ],
)
def test_text_that_could_mean_two_things_is_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=message):
        read_recipe(in_file(tmp_path, text))


def test_the_same_key_twice_in_a_mapping() -> None:
    with pytest.raises(RecipeError, match=r"fit\.epochs: is given twice"):
        read_recipe({**MINIMAL, "fit.epochs": 1, "fit": {"epochs": 2}})


def test_references_that_grow_without_end_are_refused_at_once(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 40)]
    started = time.monotonic()
    with pytest.raises(RecipeError, match="anchors"):
        read_recipe(in_file(tmp_path, "\n".join(lines)))
    assert time.monotonic() - started < 5


def test_files_that_are_no_text(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_bytes("method: sd_lora # Größe\n".encode("latin-1"))
    with pytest.raises(RecipeError, match="not UTF-8 at byte 20; save the recipe as UTF-8"):
        read_recipe(file)
    file.write_bytes(b"#" * (1 << 20) + b"\nmethod: sd_lora")
    with pytest.raises(RecipeError, match="more than 1,048,576 bytes"):
        read_recipe(file)
    for name in ("x" * 300, "a\0b", str(tmp_path / ("y" * 5000))):
        with pytest.raises(RecipeError, match="no such recipe, and no such file"):
            read_recipe(name)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(10**20), 10**20) | TEXTS,
        lambda each: st.lists(each) | st.dictionaries(TEXTS, each),
        max_leaves=12,
    )
)
def test_what_pyyaml_writes_is_read_back(value: Any) -> None:
    def plain(content: Any) -> Any:
        if isinstance(content, dict):
            return {key: plain(each) for key, each in content.items()}
        if isinstance(content, list):
            return [plain(each) for each in content]
        return content.value if isinstance(content, tuple) else content

    class NoReferences(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    assert plain(parse(yaml.dump(value, Dumper=NoReferences, allow_unicode=True))) == value


@given(st.text() | st.binary().map(lambda content: content.decode("utf-8", "replace")))
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(ValueError):
        parse(text)
