"""Recipes: where a value comes from, and what is said of one that is not valid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from lorica.config import Recipe, packaged_recipes, read_recipe
from lorica.errors import RecipeError

MINIMAL = {"method.name": "sd_lora", "stream.tasks": 2}


def problems_of(recipe: Any, overrides: Sequence[str] | Mapping[str, Any] = ()) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        read_recipe(recipe, overrides)
    return list(caught.value.problems)


# ---- where a value comes from


@pytest.mark.parametrize("name", list(packaged_recipes()))
def test_every_packaged_recipe_is_valid_and_described(name: str) -> None:
    assert isinstance(read_recipe(name), Recipe)
    assert len(packaged_recipes()[name]) > 20


def test_a_method_and_nothing_else_is_a_recipe() -> None:
    recipe = read_recipe({"method": "sd_lora"})
    assert (recipe.stream.tasks, recipe.data.source, recipe.backbone.name) == (5, "digits", "lorica_tiny")


def test_texts_have_an_encoder_of_their_own_unless_another_is_named() -> None:
    rows = {"method": "rolda", "data": {"source": "table", "root": "rows.csv"}}
    recipe = read_recipe(rows)
    assert recipe.backbone.name == "lorica_tiny_text"
    assert read_recipe(rows, ["backbone.pooling=cls"]).backbone.name == "lorica_tiny_text"
    assert read_recipe(rows, ["backbone.name=hf:mine"]).backbone.name == "hf:mine"
    assert read_recipe(rows, ["data.image_column=picture"]).backbone.name == "lorica_tiny"
    assert read_recipe(recipe, {"data.source": "digits"}).backbone.name == "lorica_tiny"  # nobody chose it
    assert read_recipe(read_recipe("requests"), {"data.source": "digits"}).backbone.name == "lorica_tiny_text"


def test_library_then_method_then_recipe_then_override(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("method: full_finetune\n")
    assert read_recipe({"method": "sd_lora"}).fit.learning_rate == 0.008
    assert read_recipe(file).fit.learning_rate == 1e-4
    file.write_text("method: full_finetune\nfit: {learning_rate: 0.01}\n")
    assert read_recipe(file).fit.learning_rate == 0.01
    assert read_recipe(file, ["fit.learning_rate=0.02"]).fit.learning_rate == 0.02


def test_defaults_of_a_method_may_depend_on_its_variant() -> None:
    assert read_recipe(MINIMAL).fit.optimizer == "adam"
    assert read_recipe(MINIMAL, ["method.variant=released_code"]).fit.optimizer == "sgd"


def test_another_method_brings_its_own_defaults_but_keeps_what_the_user_set() -> None:
    recipe = read_recipe(MINIMAL, ["method.name=full_finetune", "fit.epochs=3"])
    assert recipe.fit.learning_rate == 1e-4
    other = read_recipe(recipe, {"method.name": "sd_lora"})
    assert (other.fit.learning_rate, other.fit.epochs) == (0.008, 3)


def test_sections_dotted_keys_and_strings_mean_the_same(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("method.name: sd_lora\nmethod.rank: 4\nstream: {tasks: 2}\nfit:\n")
    expected = read_recipe({"method": {"name": "sd_lora", "rank": 4}, "stream": {"tasks": 2}})
    assert read_recipe(file) == expected
    assert read_recipe({"method": "sd_lora", "stream.tasks": 2}, {"method": {"name": "sd_lora", "rank": 4}}) == expected
    assert read_recipe(MINIMAL, ["method.rank=4"]) == expected


@pytest.mark.parametrize(
    ("override", "tasks", "sizes"),
    [
        ("stream.classes_per_task=[4, 6]", None, [4, 6]),
        ("stream.classes_per_task=5", None, 5),
        ("stream.tasks=3", 3, None),
    ],
)
def test_one_way_to_divide_the_classes_replaces_the_other(override: str, tasks: int | None, sizes: Any) -> None:
    for recipe in ({"method": "lora", "stream.tasks": 2}, {"method": "lora", "stream.classes_per_task": 2}):
        stream = read_recipe(recipe, [override]).stream
        assert (stream.tasks, stream.classes_per_task) == (tasks, sizes)


@pytest.mark.parametrize("override", ["stream.tasks=3", "stream.classes_per_task=[4, 6]"])
def test_a_resolved_recipe_is_a_recipe(override: str) -> None:
    recipe = read_recipe("digits", [override, "seed=3", "method.rank=2"])
    saved = yaml.safe_load(yaml.safe_dump(recipe.resolved()))
    assert read_recipe(saved) == recipe
    assert saved["fit"]["weight_decay"] == 0.0  # defaults included
    assert saved["method"]["projections"] == ["q", "v"]


def test_paths_are_made_absolute_so_that_a_saved_recipe_holds_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(
        "from lorica.methods.linear_head import LinearHeadMethod\nclass M(LinearHeadMethod):\n  name = 'm'\n"
    )
    recipe = read_recipe({"method": "mine.py", "data.root": "birds", "backbone.weights": "~/x.safetensors"})
    assert recipe.data.root == tmp_path / "birds"
    assert recipe.backbone.weights == Path.home() / "x.safetensors"
    assert recipe.method.name == str(tmp_path / "mine.py")


# ---- what is wrong with one


def test_everything_wrong_is_reported_at_once_with_the_nearest_key() -> None:
    overrides = ["method.rnak=4", "fit.epochs=0", "data.sorce=digits", "sed=1", "stream.classes_per_task=none"]
    problems = problems_of("digits", overrides)
    assert "digits: method.rnak: unknown key; did you mean method.rank?" in problems
    assert "digits: fit.epochs: Input should be greater than or equal to 1, given 0" in problems
    assert "digits: data.sorce: unknown key; did you mean data.source?" in problems
    assert "digits: sed: unknown key; did you mean seed?" in problems
    assert any(problem.startswith("digits: stream.classes_per_task") for problem in problems)


def test_a_key_without_a_near_one_in_its_section() -> None:
    [problem] = problems_of(MINIMAL, ["fit.lr=1"])
    assert problem.startswith("recipe: fit.lr: unknown key; fit has epochs, batch_size, optimizer, learning_rate")
    assert problems_of(MINIMAL, ["epochs=1"]) == ["recipe: epochs: unknown key; did you mean fit.epochs?"]
    assert problems_of(MINIMAL, ["rank=1"]) == ["recipe: rank: unknown key; did you mean method.rank?"]


def test_options_of_another_method_are_unknown() -> None:
    [problem] = problems_of({"method": {"name": "full_finetune", "rank": 4}})
    assert problem == "recipe: method.rank: unknown key; method has name, cross_entropy, head_start, trunk_rate"


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({}, "recipe: method.name: missing; `lorica list methods` names them"),
        ({"method": "sd_lra"}, "recipe: method.name: no method 'sd_lra'; did you mean sd_lora?"),
        ({"method": "nowhere.py"}, "recipe: method.name: there is no file nowhere.py"),
        ({"method": "lora", "fit": 3}, "recipe: fit: Input should be an object, given 3"),
        ({"method": "lora", "fit.learning_rate": 1e38},
         "fit.learning_rate: Input should be less than or equal to 1e+30, given 1e+38"),
        ({"method": "lora", "fit.weight_decay": 1e300},
         "fit.weight_decay: Input should be less than or equal to 1e+30, given 1e+300"),
        ({"method": "lora", "fit.learning_rate": float("inf")},
         "fit.learning_rate: Input should be a finite number, given inf"),
        ({"method": "lora", "stream": {"tasks": 2, "classes_per_task": 3}},
         "stream: give either tasks or classes_per_task, or a manifest in place of both"),
        ({"method": "lora", "stream": {"seed": 1}},
         "stream: give either tasks or classes_per_task, or a manifest in place of both"),
        ({"method": "lora", "data.evaluate_on": "validation"},
         "data: evaluate_on: validation needs a validation_fraction"),
        ({"method": {"name": "sd_lora_rr", "reduced_ranks": [8]}, "stream.tasks": 2},
         "recipe: method: reduced_from [4, 8] and reduced_ranks [8]: give ascending tasks, each once, "
         "and as many ranks"),
        ({"method": "lora", "precision": "fp16"}, "precision: Input should be 'fp32' or 'bf16', given 'fp16'"),
    ],
)  # fmt: skip
def test_message(recipe: dict[str, Any], message: str) -> None:
    [problem] = problems_of(recipe)
    assert message in problem


def test_overrides_that_cannot_be_read_are_reported_together() -> None:
    assert problems_of(MINIMAL, ["fit.epochs", "seed"]) == [
        "fit.epochs: expected key.sub=value",
        "seed: expected key.sub=value",
    ]
    assert problems_of(MINIMAL, ["seed=1", "seed.of=2"]) == ["seed.of: seed is a single value here, not a section"]


def test_recipe_files_that_are_none(tmp_path: Path) -> None:
    assert problems_of("digts") == ["digts: no such recipe, and no such file; did you mean digits?"]
    [problem] = problems_of("birds")
    assert problem == "birds: no such recipe, and no such file; `lorica list recipes` has the packaged ones"
    file = tmp_path / "bad.yaml"
    file.write_text("method: [")
    assert problems_of(file)[0].startswith(f"{file}: not valid YAML: while parsing")
    file.write_text("- method")
    assert problems_of(file) == [f"{file}: expected sections (method, data, …), found list"]


def test_what_comes_back_needs_classes_that_do() -> None:
    stream = read_recipe({"method": "sd_lora", "stream": {"tasks": 2, "recurring": 0.5, "recur_in": 1}}).stream
    assert (stream.recurring, stream.recur_in, stream.recur_share) == (0.5, 1, 0.5)
    for given, expected in (
        ({"recur_in": 1, "recur_share": 0.2}, "recur_in and recur_share: no effect without classes that come back"),
        ({"recurring": 0.5, "by": "domain"}, "recurring: classes of new domains come back anyway"),
    ):
        with pytest.raises(RecipeError, match=f"stream: {expected}"):
            read_recipe({"method": "sd_lora", "stream": {"tasks": 2, **given}})


def test_a_manifest_takes_the_place_of_other_divisions(tmp_path: Path) -> None:
    base = {"method": "sd_lora", "stream": {"tasks": 2, "recurring": 0.5, "seed": 4}}
    stream = read_recipe(base, [f"stream.manifest={tmp_path / 'stream.jsonl'}"]).stream
    assert (stream.tasks, stream.recurring, stream.seed) == (None, 0.0, 4)
    assert stream.manifest == tmp_path / "stream.jsonl"
    assert read_recipe({"method": "sd_lora", "stream": {"manifest": "own.jsonl"}}, ["stream.tasks=3"]).stream.tasks == 3
    for other in ("stream.tasks=4", "stream.by=domain"):  # both in one breath are no change of mind, in any order
        for given in ([other, "stream.manifest=own.jsonl"], ["stream.manifest=own.jsonl", other]):
            with pytest.raises(RecipeError, match=r"stream: .* a manifest"):
                read_recipe({"method": "sd_lora", "stream": {"tasks": 2}}, given)
    with pytest.raises(RecipeError, match="stream: by and recurring: no effect on a manifest"):
        read_recipe({"method": "sd_lora", "stream": {"manifest": "own.jsonl", "by": "domain"}})
