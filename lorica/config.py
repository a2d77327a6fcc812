"""The recipe of a run: typed, unknown keys rejected, every problem reported at once. The only home of defaults.

A recipe is YAML (a packaged name or a file), then `key.sub=value` overrides, then the defaults below; a method may have
better defaults for `fit` (`Method.fit_defaults`), which stand between the two.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lorica.errors import LoricaError, RecipeError
from lorica.methods import MethodConfig, find_method


class Section(BaseModel):
    """A part of a recipe; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class BackboneConfig(Section):
    """The pre-trained transformer."""

    name: str = Field("lorica_tiny", description="`lorica_tiny`, or any timm ViT")
    weights: Path | None = Field(None, description="local safetensors file; absent = timm's hub or its cache")
    image_size: int | None = Field(None, ge=8, description="input side in pixels; absent = the checkpoint's own")
    normalisation: Literal["backbone", "unit"] = Field(
        "backbone", description="the backbone's own mean and deviation, or none ([0, 1] images, as the references feed)"
    )


class DataConfig(Section):
    """Where samples come from."""

    source: str = Field("digits", description="digits, image_folder, cifar100 or arrays")
    root: Path | None = Field(None, description="folder or file of the source")
    test_fraction: float = Field(0.25, gt=0, lt=1, description="share tested where the source has no test set")
    split_seed: int = Field(0, description="seed of that split, and of the validation split")
    validation_fraction: float = Field(0.0, ge=0, lt=1, description="share of the training data held out")
    evaluate_on: Literal["test", "validation"] = Field("test", description="`validation` for tuning")
    crop_pct: float = Field(1.0, gt=0, le=1, description="share of the resized image's side that the input keeps")
    cache_gib: float = Field(2.0, ge=0, description="memory for decoded images, GiB")

    @model_validator(mode="after")
    def _validation_has_data(self) -> DataConfig:
        if self.evaluate_on == "validation" and not self.validation_fraction:
            raise ValueError("evaluate_on: validation needs a validation_fraction above 0")
        return self


class StreamConfig(Section):
    """How classes arrive."""

    tasks: int | None = Field(None, ge=1, description="number of tasks, as even as possible")
    classes_per_task: int | list[int] | None = Field(None, description="or their sizes; an uneven list is fine")
    seed: int | None = Field(1993, description="seed of the class order; null keeps the source's own")


class FitConfig(Section):
    """How each task is trained. Adam, 0.008, 128, 20: what the SD-LoRA paper states for all methods."""

    epochs: int = Field(20, ge=1)
    batch_size: int = Field(128, ge=1)
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    learning_rate: float = Field(0.008, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1, description="of sgd")
    weight_decay: float = Field(0.0, ge=0)
    schedule: Literal["constant", "cosine"] = Field("constant", description="learning rate over a task's steps")
    augment: Literal["none", "shift", "flip", "crop_flip"] = "none"


class Recipe(Section):
    """Everything that determines a run."""

    method: MethodConfig
    backbone: BackboneConfig = BackboneConfig()
    data: DataConfig = DataConfig()
    stream: StreamConfig = StreamConfig(tasks=5)
    fit: FitConfig = FitConfig()
    seed: int = Field(0, ge=0, description="of training: starts, shuffling, augmentation")
    precision: Literal["fp32", "bf16"] = "fp32"
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"

    def resolved(self) -> dict[str, Any]:
        """Plain values of every key, defaults included."""
        return self.model_dump(mode="json") | {"method": self.method.model_dump(mode="json")}


def packaged_recipes() -> dict[str, str]:
    """Packaged recipes by name, each with the first line of its header comment."""
    folder = resources.files("lorica") / "recipes"
    texts = {entry.name.removesuffix(".yaml"): entry.read_text() for entry in folder.iterdir() if ".yaml" in entry.name}
    return {name: texts[name].splitlines()[0].lstrip("# ") for name in sorted(texts)}


def read_recipe(
    recipe: Recipe | str | Path | Mapping[str, Any], overrides: Sequence[str] | Mapping[str, Any] = ()
) -> Recipe:
    """Reads and validates a recipe.

    Args:
        recipe: a packaged name, a YAML file, a mapping, or a recipe read already.
        overrides: `key.sub=value` strings (values are YAML), or a mapping of dotted keys or nested sections.

    Raises:
        RecipeError: every problem, one line each, with the dotted key and the nearest known one.
    """
    if isinstance(recipe, Recipe):
        if not overrides:
            return recipe
        recipe = recipe.resolved()
    origin, values = _load(recipe)
    pairs = _pairs(overrides) if not isinstance(overrides, Mapping) else list(_flatten(overrides))
    for key, value in pairs:
        _set(values, key, value)
    return _validate(values, origin)


def _load(recipe: str | Path | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    if isinstance(recipe, Mapping):
        values: dict[str, Any] = {}
        for key, value in _flatten(recipe):
            _set(values, key, value)
        return "recipe", values
    known = packaged_recipes()
    if str(recipe) in known:
        origin, text = str(recipe), (resources.files("lorica") / "recipes" / f"{recipe}.yaml").read_text()
    elif Path(recipe).is_file():
        origin, text = str(recipe), Path(recipe).read_text()
    else:
        near = difflib.get_close_matches(str(recipe), known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"packaged ones are {', '.join(known)}"
        raise RecipeError(f"{recipe}: no such recipe, and no such file; {hint}")
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"{origin}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise RecipeError(f"{origin}: expected sections (method, data, …), found {type(values).__name__}")
    return origin, values


def _pairs(overrides: Sequence[str]) -> list[tuple[str, Any]]:
    problems = [f"{text}: expected key.sub=value" for text in overrides if "=" not in text]
    if problems:
        raise RecipeError(problems)
    return [(key, yaml.safe_load(value)) for key, _, value in (text.partition("=") for text in overrides)]


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _set(values: dict[str, Any], dotted: str, value: Any) -> None:
    *sections, key = dotted.split(".")
    for section in sections:
        inner = values.setdefault(section, {})
        if not isinstance(inner, dict):
            raise RecipeError(f"{dotted}: {section} is a single value here, not a section")
        values = inner
    # tasks and classes_per_task say the same thing: naming one replaces the other
    twin = {"tasks": "classes_per_task", "classes_per_task": "tasks"}.get(key)
    if sections == ["stream"] and twin:
        values.pop(twin, None)
    values[key] = value


def _validate(values: dict[str, Any], origin: str) -> Recipe:
    problems: list[str] = []
    section = values.get("method")
    method_values = section if isinstance(section, dict) else {"name": section}
    fit = values.get("fit") or {}
    config: MethodConfig | None = None
    if not isinstance(method_values.get("name"), str):
        problems.append(f"{origin}: method.name: missing; `lorica list methods` names them")
    else:
        try:
            method = find_method(method_values["name"])
            if isinstance(fit, dict):
                fit = {**method.fit_defaults(method_values.get("variant")), **fit}
            config = method.Config.model_validate(method_values)
        except LoricaError as error:
            problems += [f"{origin}: {problem}" for problem in error.problems]
        except ValidationError as error:
            problems += _problems(error, find_method(method_values["name"]).Config, origin, ("method",))
    placeholder = config or MethodConfig(name="unknown")
    try:
        recipe = Recipe.model_validate({**values, "method": placeholder, "fit": fit})
    except ValidationError as error:
        problems += _problems(error, Recipe, origin, ())
    if problems:
        raise RecipeError(problems)
    return recipe


def _problems(error: ValidationError, model: type[BaseModel], origin: str, above: tuple[str, ...]) -> Iterator[str]:
    every_key = {f"{'.'.join(above)}.{key}".lstrip("."): None for key in _keys(model)}
    for item in error.errors():
        place = ".".join([*above, *(str(part) for part in item["loc"])])
        if item["type"] == "extra_forbidden":
            near = difflib.get_close_matches(place, every_key, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else "it has no such key"
            yield f"{origin}: {place}: unknown key; {hint}"
        else:
            given = "" if item["type"] == "missing" else f", given {item['input']!r}"
            yield f"{origin}: {place}: {item['msg'].removeprefix('Value error, ')}{given}"


def _keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}"
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from _keys(inner, f"{prefix}{name}.")
