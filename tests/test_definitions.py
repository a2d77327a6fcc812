"""What is taken from a module's text is what the module would have; and it is taken without torch."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lorica import definitions
from lorica.config import read_recipe
from lorica.definitions import class_attribute, constant, defines, literal, parsed
from lorica.errors import RecipeError
from lorica.methods import config_of, find_method, method_names

# for every method keys of wrong values; and what only a check of the whole section finds
SECTIONS: list[dict[str, Any]] = [
    *({"name": name, "rank": -1, "head_scale": 0, "variant": "none", "rnk": 2} for name in method_names()),
    {"name": "sd_lora_rr", "reduced_ranks": [20, 30]},
    {"name": "sd_lora_kd", "reset_magnitudes": True},
    {"name": "cl_lora", "distillation": False, "reassignment": "rows"},
    {"name": "coda_prompt", "pool": 10},
    {"name": "dual_prompt", "blocks": [0, 1]},
    {"name": "inf_lora", "variant": "paper"},
    {"name": "l2p", "selected": 40},
    {"name": "rolda", "passes": 0, "rank": 3},
]
PROGRAM = """
import json, sys
from lorica.config import read_recipe
from lorica.errors import RecipeError
from lorica.methods import config_of, method_names
problems = []
for section in json.loads(sys.argv[1]):
    try:
        read_recipe({"method": section, "data": {"rot": "x"}, "fit": {"epochs": 0}})
    except RecipeError as error:
        problems.append(error.problems)
schemas = {name: config_of(name).model_json_schema() for name in method_names()}
print(json.dumps([problems, schemas, sorted({"torch", "timm", "numpy"} & set(sys.modules))]))
"""


def problems_of(section: dict[str, Any]) -> list[str]:
    with pytest.raises(RecipeError) as raised:
        read_recipe({"method": section, "data": {"rot": "x"}, "fit": {"epochs": 0}})
    return list(raised.value.problems)


def test_recipes_of_every_method_are_judged_without_torch_as_with_it() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(SECTIONS)], capture_output=True, text=True, check=True
    )
    problems, schemas, heavy = json.loads(done.stdout)
    assert heavy == []
    for name in method_names():
        find_method(name)  # its own Config is what judges from now on
        assert config_of(name) is find_method(name).Config
        assert schemas[name] == json.loads(json.dumps(config_of(name).model_json_schema())), name
    assert problems == [problems_of(section) for section in SECTIONS]
    assert all(len(each) > 2 for each in problems)  # that of the method beside the two others


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of another lorica, of which nothing is imported."""
    monkeypatch.setattr(definitions, "_ABOVE", tmp_path)
    folder = tmp_path / "lorica"
    (folder / "new").mkdir(parents=True)
    (folder / "new/__init__.py").write_text("DEPTH = 3\n")
    (folder / "new/low.py").write_text(
        "from __future__ import annotations\n"
        "import nowhere\n"
        "from typing import Literal\n"
        "Start = Literal['a', 'b']\n"
        "class Low(nowhere.Module):\n"
        "    Config = dict\n"
    )
    (folder / "new/high.py").write_text(
        "from __future__ import annotations\n"
        "import nowhere\n"
        "from collections import OrderedDict\n"
        "from nowhere import length, Tensor\n"
        "from pydantic import BaseModel\n"
        "from lorica.new import DEPTH as HOW_DEEP\n"
        "from lorica.new.low import Low as Base, Start\n"
        "FACTOR = 2\n"
        "FACTOR += 1\n"
        "SHARED = {'depth': HOW_DEEP * FACTOR}\n"
        "raise AssertionError('is never executed')\n"
        "class Options(BaseModel):\n"
        "    length: int = SHARED['depth']\n"
        "    start: Start = 'a'\n"
        "class High(Base):\n"
        "    name = 'high'\n"
        "    Config = Options\n"
        "    def forward(self) -> Tensor: ...\n"
        "class Higher(nowhere.Mixin, High):\n"
        "    name: str = 'higher'\n"
        "class Other(Base): ...\n"
        "class Lost(nowhere.Mixin): ...\n"
    )
    return folder


def test_a_definition_comes_with_what_it_mentions_and_nothing_else(package: Path) -> None:
    options = class_attribute("lorica.new.high", "High", "Config")
    assert options().model_dump() == {"length": 9, "start": "a"}
    with pytest.raises(ValueError, match="Input should be 'a' or 'b'"):
        options(start="c")
    assert class_attribute("lorica.new.high", "Higher", "Config")().length == 9
    assert class_attribute("lorica.new.high", "Other", "Config") is dict


def test_an_attribute_that_no_base_in_lorica_has(package: Path) -> None:
    with pytest.raises(AttributeError, match=r"Lost of lorica\.new\.high has no Config"):
        class_attribute("lorica.new.high", "Lost", "Config")
    with pytest.raises(AttributeError, match=r"lorica\.new\.high has no Absent"):
        class_attribute("lorica.new.high", "Absent", "Config")


def test_constants_are_read(package: Path) -> None:
    classes = {each.name: each for each in parsed(package / "new/high.py").body if isinstance(each, ast.ClassDef)}
    assert constant(classes["High"].body, "name") == "high"
    assert constant(classes["Higher"].body, "name") == "higher"
    assert constant(classes["High"].body, "Config") is None
    assert constant(classes["Other"].body, "name") is None


def test_what_is_imported_already_is_used_as_it_is() -> None:
    from lorica.methods.rolda import RoLDA

    assert class_attribute("lorica.methods.rolda", "RoLDA", "Config") is RoLDA.Config
    assert class_attribute("lorica.methods.rolda", "RoLDA", "fit_defaults")(None) == RoLDA.fit_defaults(None)


def test_what_statements_define() -> None:
    statements = ast.parse(
        "from a import b as c\nONE = 1\nTWO: int = 2\ndef three(): FIVE = 5\nclass Four: SIX = 6"
    ).body
    assert [name for name in ("c", "ONE", "TWO", "three", "Four") if not defines(statements, name)] == []
    assert [name for name in ("a", "b", "FIVE", "int") if defines(statements, name)] == []


def test_what_is_written_out_is_taken_from_the_text() -> None:
    statements = ast.parse('NAMES: tuple[str, ...] = ("root", "dataset")\nNONE = ()\n').body
    assert literal(statements, "NAMES") == ("root", "dataset")
    assert literal(statements, "NONE", ("root",)) == ()
    assert literal(statements, "OTHERS", ("root",)) == ("root",)
