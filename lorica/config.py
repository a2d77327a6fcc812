"""The recipe of a run: typed, unknown keys rejected, every problem reported at once. The only home of defaults.

A recipe is YAML (a packaged name or a file), then `key.sub=value` overrides, then the defaults below; a method may have
better defaults for `fit` (`Method.fit_defaults`), which stand between the two.
"""

from __future__ import annotations

import difflib
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path, PurePath
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from lorica import published
from lorica.errors import LoricaError, RecipeError
from lorica.methods import config_of, find_method, method_file_sha256
from lorica.methods.config import Drift, Kind, MethodConfig
from lorica.nested import flatten
from lorica.recipe_text import Written, override, parse

IN_MEMORY = "in_memory"
"""What `data.source` is in the saved recipe of a run whose data was given as an object."""

KEEP = 5
"""Images of a class that a model sets aside, unless somebody asks for another number; never more than a fifth of
them."""

_Model = TypeVar("_Model", bound=BaseModel)

_LARGEST = 1 << 20  # bytes of a recipe

_OF_TEXTS = ("requests", "table", "hf_dataset")
"""Sources of texts, unless a column of images is named."""

# what a run had that is older than the key
_BEFORE = {"data.class_order": "text", "method.head_start": "kaiming", "method.head_scale": 1.0}

PLACES = ("data.root", "backbone.weights", "stream.manifest")
"""Keys that say where things are and not what they are, which their contents decide."""

FREE = ("device", "fit.accumulate", "checkpoints", "snapshot_seconds", "track", *PLACES)
"""Keys in which a run may go on otherwise than it began."""

_GIVEN = (*PLACES, "device", "method.name")  # what may be given with a saved recipe

# they say the same thing: an override of one takes the place of the other
_TWINS = {
    "stream.tasks": ("classes_per_task", "manifest"),
    "stream.classes_per_task": ("tasks", "manifest"),
    "stream.manifest": ("tasks", "classes_per_task", "by", "recurring", "recur_in", "recur_share"),
}


def _absolute(path: Path) -> Path:
    try:
        return path.expanduser().absolute()
    except RuntimeError as error:
        raise ValueError(f"{path}: there is no such user; write the folder out") from error


# absolute, so that the recipe saved with a run still holds when the run is loaded from another folder
LocalPath = Annotated[Path, AfterValidator(_absolute)]


class Section(BaseModel):
    """A part of a recipe; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class BackboneConfig(Section):
    """The pre-trained transformer."""

    name: str = Field(
        default="lorica_tiny",
        description="`lorica_tiny`, any timm ViT, or of texts `lorica_tiny_text`, their default, or `hf:NAME`",
    )
    weights: LocalPath | None = Field(
        default=None, description="local safetensors file, of a text encoder its folder; absent = the hub or its cache"
    )
    image_size: int | None = Field(
        default=None, ge=8, description="input side in pixels; absent = the checkpoint's own"
    )
    normalisation: Literal["backbone", "unit"] = Field(
        default="backbone",
        description="the backbone's own mean and deviation, or none ([0, 1] images, as the references feed)",
    )
    pooling: Literal["cls", "mean"] | None = Field(
        default=None,
        exclude_if=lambda value: value is None,  # as in recipes of images
        description=(
            "of a text encoder: its first token or the mean of all; absent = as its files say, else its family's"
        ),
    )


class DataConfig(Section):
    """Where samples come from."""

    source: str = Field(default="digits", description="name of the source, see `lorica list sources`")
    root: LocalPath | None = Field(default=None, description="folder or file of the source")
    dataset: str | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description=(
            "of the source hf_dataset: its name on Hugging Face's hub, with a configuration as NAME:CONFIGURATION; of "
            "cl_benchmark: which data sets, in which order"
        ),
    )
    text_column: str | list[str] = Field(
        default="text",
        exclude_if=lambda value: value == "text",
        description="of rows: the column of texts, or several that are put together",
    )
    label_column: str = Field(
        default="label", exclude_if=lambda value: value == "label", description="of rows: the column of classes"
    )
    image_column: str | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="of rows: the column of images, which are then read in place of texts",
    )
    domain_column: str | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="of rows: the column of domains, for stream.by=domain and class_and_domain",
    )
    test_fraction: float = Field(default=0.25, gt=0, lt=1, description="share tested where the source has no test set")
    split_seed: int = Field(default=0, ge=0, lt=2**32, description="seed of that split, and of the validation split")
    validation_fraction: float = Field(default=0.0, ge=0, lt=1, description="share of the training data held out")
    evaluate_on: Literal["test", "validation"] = Field(default="test", description="`validation` for tuning")
    crop_pct: float = Field(
        default=1.0, gt=0, le=1, description="share of the resized image's side that the input keeps"
    )
    class_order: Literal["natural", "text"] = Field(
        default="natural", description="of the source's classes: 2 before 10, or sorted as texts"
    )
    unreadable: Literal["refuse", "skip"] = Field(default="refuse", description="image files that cannot be decoded")
    background: str = Field(default="white", description="colour under transparent pixels, a name or '#rrggbb'")
    bits: int | None = Field(
        default=None, ge=9, le=16, description="used bits of 16-bit images; absent = 16, fewer are refused"
    )
    max_megapixels: float = Field(
        default=36.0,
        gt=0,
        le=178,
        description="larger images are refused; JPEGs are decoded at a fraction of their size",
    )
    jpeg_draft: bool = Field(
        default=False,
        description=(
            "decode JPEGs at a half, a quarter or an eighth of their size where that is large enough; faster, other "
            "pixels"
        ),
    )
    max_tokens: int | None = Field(
        default=None,
        ge=4,
        exclude_if=lambda value: value is None,
        description="after which texts are cut; absent = as many as the backbone reads",
    )
    cache_gib: float = Field(
        default=2.0, ge=0, description="memory for decoded images, GiB, and a quarter as much for features that stay"
    )

    def chosen(self, keys: Sequence[str]) -> dict[str, Any]:
        """Those of the keys whose values are not their defaults, with these values."""
        values = {key: getattr(self, key) for key in keys}
        return {key: value for key, value in values.items() if value != type(self).model_fields[key].default}

    @model_validator(mode="after")
    def _validation_has_data(self) -> DataConfig:
        if self.evaluate_on == "validation" and not self.validation_fraction:
            raise ValueError("evaluate_on: validation needs a validation_fraction above 0")
        return self


RequireData = Callable[[DataConfig], None]


class StreamConfig(Section):
    """How classes arrive."""

    by: Literal["class", "domain", "class_and_domain"] = Field(
        default="class",
        exclude_if=lambda value: value == "class",  # as in recipes from before there was this key
        description=(
            "`domain`: a task is a domain of the source, with classes of earlier ones; `class_and_domain`: each brings "
            "new classes and a new domain; `tasks` is how many domains there are"
        ),
    )
    tasks: int | None = Field(default=None, ge=1, description="number of tasks, as even as possible")
    classes_per_task: int | list[int] | None = Field(default=None, description="or their sizes; an uneven list is fine")
    seed: int | None = Field(
        default=1993, ge=0, lt=2**32, description="seed of the class order; null keeps the source's own"
    )
    recurring: float = Field(
        default=0.0,
        ge=0,
        le=1,
        exclude_if=lambda value: value == 0,
        description="share of the classes of each task but the last that come back in later ones, with other images",
    )
    recur_in: int | None = Field(
        default=None,
        ge=1,
        exclude_if=lambda value: value is None,
        description="in how many of the tasks that follow such a class comes back; absent = in all of them",
    )
    recur_share: float = Field(
        default=0.5,
        gt=0,
        lt=1,
        exclude_if=lambda value: value == 0.5,
        description="of its training images that come back, divided evenly over these tasks",
    )

    manifest: LocalPath | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="a run's stream.jsonl, or one written by hand: exactly that stream, whatever the seeds",
    )

    @property
    def division(self) -> dict[str, Any]:
        """The keywords of `lorica.data.division.divide` that it gives."""
        return {name: getattr(self, name) for name in type(self).model_fields if name != "manifest"}

    @model_validator(mode="after")
    def _one_division(self) -> StreamConfig:
        if sum(each is not None for each in (self.tasks, self.classes_per_task, self.manifest)) != 1:
            raise ValueError("give either tasks or classes_per_task, or a manifest in place of both")
        if self.manifest and (self.by != "class" or self.recurring):
            raise ValueError("by and recurring: no effect on a manifest, which has the tasks; leave them out")
        return self

    @model_validator(mode="after")
    def _recurs_by_class(self) -> StreamConfig:
        if self.recurring and self.by != "class":
            raise ValueError("recurring: classes of new domains come back anyway; leave it out, or give by: class")
        idle = [key for key in ("recur_in", "recur_share") if key in self.model_fields_set]
        if idle and not self.recurring:
            raise ValueError(f"{' and '.join(idle)}: no effect without classes that come back; give recurring, too")
        return self


class FitConfig(Section):
    """How each task is trained. Adam, 0.008, 128, 20: what the SD-LoRA paper states for all methods."""

    epochs: int = Field(default=20, ge=1)
    batch_size: int = Field(default=128, ge=1)
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    learning_rate: float = Field(default=0.008, gt=0, le=1e30)  # optimisers cannot hold more in float32
    momentum: float = Field(default=0.9, ge=0, lt=1, description="of sgd")
    weight_decay: float = Field(default=0.0, ge=0, le=1e30)
    schedule: Literal["constant", "cosine"] = Field(default="constant", description="learning rate over a task's steps")
    augment: Literal["none", "shift", "flip", "crop_flip"] = Field(
        default="none", description="`crop_flip` crops the resized centre square, not the original"
    )
    clip_norm: float = Field(default=0.0, ge=0, description="largest norm of a step's gradient, 0 for any")
    accumulate: int = Field(
        default=1,
        ge=1,
        exclude_if=lambda value: value == 1,  # as in recipes from before there was this key
        description=(
            "parts in which each process computes its batch, one after another, for less memory; the step is that of "
            "the whole"
        ),
    )


class EvaluateConfig(Section):
    """How accuracy is measured."""

    readout: Literal["head", Kind] = Field(
        default="head",
        description="the method's own predictions; or class means, a discriminant, ridge regression or an aligned "
        "head of its features, and then the result has both",
    )
    layers: int | None = Field(
        default=None,
        ge=1,
        description=(
            "of a read-out: last blocks whose features it reads; absent = the vector that the method's classifier reads"
        ),
    )
    drift: Drift = Field(
        default="none",
        description="of a read-out: what becomes of earlier classes' statistics; `affine` moves them as a map fitted "
        "on the new task's images moves their features",
    )

    every: int = Field(
        default=1,
        ge=1,
        description="earlier tasks are tested after every that many tasks, and at the end; the newest one always",
    )

    @property
    def reading(self) -> dict[str, Any]:
        """The keys that say what reads the method, see `lorica.methods.build_method`."""
        return self.model_dump(exclude={"every"})

    @model_validator(mode="after")
    def _every_key_has_an_effect(self) -> EvaluateConfig:
        idle = [key for key, given in (("layers", self.layers is not None), ("drift", self.drift != "none")) if given]
        if self.readout == "head" and idle:
            raise ValueError(
                f"{' and '.join(idle)}: no effect on a method's own predictions; give evaluate.readout=prototypes, "
                "discriminant, ridge or aligned, too"
            )
        return self


class Recipe(Section):
    """Everything that determines a run."""

    method: MethodConfig
    backbone: BackboneConfig = BackboneConfig()
    data: DataConfig = DataConfig()
    stream: StreamConfig = StreamConfig(tasks=5)
    fit: FitConfig = FitConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    seed: int = Field(default=0, ge=0, description="of training: starts, shuffling, augmentation")
    checkpoints: Literal["all", "newest", "everything"] = Field(
        default="all",
        description=(
            "those of all tasks; of the newest alone; or all, each with what learning on from it needs (RanPAC's sums)"
        ),
    )
    snapshot_seconds: float = Field(
        default=60.0, ge=0, description="time between snapshots of the task under way, for --resume; 0 = never"
    )
    precision: Literal["fp32", "bf16"] = Field(
        default="fp32",
        description="of what the backbone computes; bf16 is slower than fp32 on a CPU without instructions for it",
    )
    compile: bool = Field(
        default=False,
        exclude_if=lambda value: not value,  # as in recipes from before there was this key
        description="compile the backbone's blocks by torch.compile, which takes a minute; to be tried on a GPU",
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    track: Literal["none", "tensorboard", "wandb", "mlflow"] = Field(
        default="none",
        exclude_if=lambda value: value == "none",  # as in recipes from before there was this key
        description="where a run's losses and accuracies go while it learns, beside its own folder",
    )

    def resolved(self) -> dict[str, Any]:
        """Plain values of every key, defaults included."""
        return self.model_dump(mode="json") | {"method": self.method.model_dump(mode="json")}


def packaged_recipes() -> dict[str, str]:
    """Packaged recipes by name, each with the first line of its header comment: lorica's own, then those of
    `lorica.published`."""
    folder = resources.files("lorica") / "recipes"
    texts = {
        entry.name.removesuffix(".yaml"): entry.read_text(encoding="utf-8")
        for entry in folder.iterdir()
        if ".yaml" in entry.name
    }
    own = {name: texts[name].splitlines()[0].lstrip("# ") for name in sorted(texts)}
    return own | published.recipe_names()


def packaged_text(name: str) -> str | None:
    """A packaged recipe as a file that can be changed; None where there is none of that name."""
    if published.is_recipe(name):
        return published.recipe_text(name)
    entries = {entry.name: entry for entry in (resources.files("lorica") / "recipes").iterdir()}
    file = entries.get(f"{name}.yaml")
    return file.read_text(encoding="utf-8") if file else None


def read_recipe(
    recipe: Recipe | str | Path | Mapping[str, Any],
    overrides: Sequence[str] | Mapping[str, Any] = (),
    *,
    require_data: RequireData | None = None,
) -> Recipe:
    """Reads and validates a recipe.

    Args:
        recipe: a packaged name, a YAML file, a mapping, or a recipe read already.
        overrides: `key.sub=value` strings (see `lorica.recipe_text`), or a mapping of dotted keys or nested sections.
        require_data: raises a LoricaError for a data section that cannot be used; its problems come with the others.

    A method in a `.py` file is executed, and so must be named in the call: in the overrides, or in a mapping; a YAML
    file may be somebody else's.

    Raises:
        RecipeError: every problem, one line each, with the dotted key and the nearest known one.
    """
    return _read_from(recipe, overrides, trusted=not isinstance(recipe, str | Path), require_data=require_data)


def _read_from(
    recipe: Recipe | str | Path | Mapping[str, Any],
    overrides: Sequence[str] | Mapping[str, Any],
    *,
    trusted: bool,
    saved: bool = False,
    require_data: RequireData | None = None,
) -> Recipe:
    """`read_recipe`; what is not `trusted` names no file that is executed, what is `saved` no place relative to this
    process's."""
    if isinstance(recipe, Recipe):
        if not overrides:
            return recipe
        recipe = recipe.model_dump(mode="json", exclude_unset=True, serialize_as_any=True)
    origin, values = _load(recipe)
    pairs = _pairs(overrides)
    if saved and (problems := list(_misplaced(dict(flatten(values)), dict(pairs)))):
        raise RecipeError([f"{origin}: {problem}" for problem in problems])
    trusted |= any(key in ("method", "method.name") for key, _ in pairs)
    given = {key for key, value in pairs if _value(value) is not None}
    # a manifest and another division in one breath are no change of mind
    clash = "stream.manifest" in given and any(f"stream.{twin}" in given for twin in _TWINS["stream.manifest"])
    for key, value in pairs:
        if key in given & _TWINS.keys() and not clash and isinstance(stream := values.get("stream"), dict):
            for twin in _TWINS[key]:
                stream.pop(twin, None)
        if key == "method":
            values["method"] = {"name": value}
        else:
            _set(values, key, value)
    return _validate(values, origin, trusted=trusted, require_data=require_data)


def read_saved(
    recipe: str | Path | Mapping[str, Any], given: Sequence[str] | Mapping[str, Any] = (), *, method_file: Any = None
) -> Recipe:
    """The recipe that a run left; a run older than a key of `_BEFORE` goes on as it began.

    Args:
        given: where its data and its weights are now, and a device: `data.root`, `backbone.weights` and `device`, as
            overrides.
        method_file: of a run whose method is a `.py` file: that file. None other is executed.

    Raises:
        RecipeError: as in `read_recipe`; other keys are given; or a method file that is not the one that the run began
            with.
    """
    pairs = _pairs(given) + ([("method.name", str(method_file))] if method_file else [])
    if fixed := [key for key, _ in pairs if key not in _GIVEN]:
        raise RecipeError([f"{key}: a run keeps its own; {', '.join(_GIVEN[:-1])} may be given" for key in fixed])
    saved = _read_from(recipe, dict(pairs), trusted=False, saved=True)
    return read_recipe(saved, {key: value for key, value in _BEFORE.items() if _is_left_out(saved, key)})


def as_saved(recipe: Recipe, saved: Recipe) -> Recipe:
    """A recipe that is to continue a run: where it leaves out a key of `_BEFORE`, the run's own value."""
    kept = dict(flatten(saved.resolved()))
    return read_recipe(recipe, {key: kept[key] for key in _BEFORE if key in kept and _is_left_out(recipe, key)})


def read_model(model: type[_Model], file: Path) -> _Model:
    """A YAML file of another kind, read by the rules of a recipe.

    Raises:
        RecipeError: every problem, one line each, with the nearest known key.
    """
    try:
        values = parse(text_of(file))
    except ValueError as error:
        raise RecipeError(f"{file}: {error}") from error
    if not isinstance(values, dict):
        raise RecipeError(f"{file}: expected the keys {', '.join(model.model_fields)}")
    values = _plain(values, model, "")
    try:
        return _read(model, values)
    except ValidationError as error:
        known = list(_keys_at(model, values))
        raise RecipeError([f"{file}: {problem}" for problem in _problems(error, known)]) from error


def _is_left_out(recipe: Recipe, key: str) -> bool:
    section, _, name = key.partition(".")
    values: BaseModel = getattr(recipe, section)
    return name in type(values).model_fields and name not in values.model_fields_set


def _load(recipe: str | Path | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    if isinstance(recipe, Mapping):
        return "recipe", _nested(recipe)
    origin, text = str(recipe), packaged_text(str(recipe))
    if text is None and _is_file(Path(recipe)):
        text = text_of(Path(recipe))
    if text is None:
        known = packaged_recipes()
        near = difflib.get_close_matches(str(recipe), known, n=1)
        hint = f"did you mean {near[0]}?" if near else "`lorica list recipes` has the packaged ones"
        raise RecipeError(f"{recipe}: no such recipe, and no such file; {hint}")
    try:
        values = parse(text)
    except ValueError as error:
        raise RecipeError(f"{origin}: {error}") from error
    if not isinstance(values, dict):
        found = "nothing" if _value(values) is None else type(_value(values)).__name__
        raise RecipeError(f"{origin}: expected sections (method, data, …), found {found}")
    return origin, _nested(values)


def _misplaced(saved: Mapping[str, Any], given: Mapping[str, Any]) -> Iterator[str]:
    """What a run's recipe cannot say of where things are, or what is given of them that it has not."""
    for key in PLACES:
        text = _plain(saved.get(key), str, key)
        if text is not None and not Path(str(text)).is_absolute():
            yield f"{key}: a run names absolute paths, and this is {str(text)!r:.200}; learn it again"
    name = str(_plain(saved.get("method.name"), str, "method.name"))
    if "method.name" in given and not name.endswith(".py"):
        yield f"method.name: the method of this run is {name}, and not in a file; leave out the method file"


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False


def text_of(file: Path) -> str:
    """A recipe, or another configuration, as text. RecipeError for a file that cannot be read, is too large or not
    UTF-8."""
    try:
        with file.open("rb") as stream:
            content = stream.read(_LARGEST + 1)
        if len(content) > _LARGEST:
            raise RecipeError(f"{file}: more than {_LARGEST:,} bytes, expected a recipe")
        return content.decode()
    except OSError as error:
        raise RecipeError(f"{file}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{file}: not UTF-8 at byte {error.start}; save the recipe as UTF-8") from error


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Sections as dictionaries, from dotted keys, `method: sd_lora` and sections without a key alike."""
    nested: dict[str, Any] = {}
    seen, twice = set[str](), list[str]()
    for key, value in flatten(values):
        if _value(value) is None and key in Recipe.model_fields:
            continue
        key = "method.name" if key == "method" else key
        twice += [key] if key in seen else []
        seen.add(key)
        _set(nested, key, value)
    if twice:
        raise RecipeError([f"{key}: is given twice; keep one of the two" for key in twice])
    return nested


def read_overrides(texts: Sequence[str]) -> dict[str, Any]:
    """`key.sub=value` of a command line as a mapping for `read_recipe`; RecipeError for what has no `=`."""
    return dict(_pairs(texts))


def _pairs(overrides: Sequence[str] | Mapping[str, Any]) -> list[tuple[str, Any]]:
    if isinstance(overrides, Mapping):
        return list(flatten(overrides))
    parted = [text.partition("=") for text in overrides]
    if wrong := [key for key, equals, _ in parted if not equals]:
        raise RecipeError([f"{text}: expected key.sub=value" for text in wrong])
    return [(key, override(value)) for key, _, value in parted]


def _value(given: Any) -> Any:
    return given.value if isinstance(given, Written) else given


def _plain(given: Any, annotation: Any, key: str) -> Any:
    """What JSON can say of a value, where what is written is read as its key wants it.

    Raises:
        RecipeError: an object that JSON does not have.
    """
    if isinstance(given, Mapping):
        fields = annotation.model_fields if isinstance(annotation, type) and issubclass(annotation, BaseModel) else {}
        return {
            name: _plain(each, fields[name].annotation if name in fields else None, f"{key}.{name}".lstrip("."))
            for name, each in given.items()
        }
    if isinstance(given, Written):
        given = given.as_text if _is_text(annotation) else given.value
    if isinstance(given, list | tuple):
        return [_plain(each, None, key) for each in given]
    if isinstance(given, PurePath):
        return str(given)
    numpy = sys.modules.get("numpy")  # whoever gives a number of its has imported it
    if numpy and isinstance(given, numpy.generic):
        return given.item()
    if given is None or isinstance(given, str | bool | int | float):
        return given
    raise RecipeError(f"{key}: expected a plain value, given a {type(given).__name__}")


def _is_text(annotation: Any) -> bool:
    """Whether a key takes texts or paths, and nothing else but null."""
    if get_origin(annotation) is Annotated:
        return _is_text(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return all(each is type(None) or _is_text(each) for each in get_args(annotation))
    return annotation in (str, Path)


def _read(model: type[_Model], values: Mapping[str, Any]) -> _Model:
    """Numbers are numbers and truth values truth values; JSON, so that a list may be a tuple and a text a path."""
    return model.model_validate_json(json.dumps(values), strict=True)


def _set(values: dict[str, Any], dotted: str, value: Any) -> None:
    *sections, key = dotted.split(".")
    for section in sections:
        inner = values.setdefault(section, {})
        if not isinstance(inner, dict):
            raise RecipeError(f"{dotted}: {section} is a single value here, not a section")
        values = inner
    values[key] = value


def _validate(values: dict[str, Any], origin: str, *, trusted: bool, require_data: RequireData | None = None) -> Recipe:
    # what is wrong is said before torch is imported
    _checked(values, origin, trusted=trusted, require_data=require_data, completed=False)
    return _checked(values, origin, trusted=trusted, require_data=None, completed=True)


def _checked(
    values: dict[str, Any], origin: str, *, trusted: bool, require_data: RequireData | None, completed: bool
) -> Recipe:
    """The recipe; only where it is to be `completed` by what the method chooses is a packaged method imported."""
    problems: list[str] = []
    section = values.get("method")
    method_values = section if isinstance(section, dict) else {"name": section}
    fit = values.get("fit", {})
    config, known = MethodConfig(name="unknown"), list(_keys(Recipe))  # stands in while the other sections are checked
    name = _plain(method_values.get("name"), str, "method.name")
    if not isinstance(name, str):
        problems.append("method.name: missing; `lorica list methods` names them")
    else:
        try:
            if name.endswith(".py"):
                method_values = _of_file(name, method_values, trusted=trusted)
                name = method_values["name"]
            elif _value(method_values.get("sha256")) is not None:
                raise RecipeError(f"method.sha256: belongs to a method in a .py file, not to {name}")
            if completed and isinstance(fit, dict):
                fit = {**find_method(name).fit_defaults(_value(method_values.get("variant"))), **fit}
            options = config_of(name)
            known += [f"method.{key}" for key in _keys(options)]
            config = _read(options, _plain(method_values, options, "method"))
        except LoricaError as error:
            problems += error.problems
        except ValidationError as error:
            problems += _problems(error, known, "method.")
    try:
        others = _plain({**values, "method": {"name": "unknown"}, "fit": fit}, Recipe, "")
        if _are_texts(others.get("data")) and isinstance(backbone := others.setdefault("backbone", {}), dict):
            backbone.setdefault("name", "lorica_tiny_text")
        recipe = _read(Recipe, others).model_copy(update={"method": config})
    except ValidationError as error:
        problems += _problems(error, known)
    if require_data:
        problems += _of_data(values.get("data"), require_data)
    if problems:
        raise RecipeError([f"{origin}: {problem}" for problem in problems])
    # what the method chose for `fit`, and the data as a backbone, is not the user's choice: it goes when another takes
    # this one's place
    recipe.fit.model_fields_set.intersection_update(values.get("fit", {}))
    recipe.backbone.model_fields_set.intersection_update(values.get("backbone", {}))
    return recipe


def _of_data(section: Any, require_data: RequireData) -> Sequence[str]:
    """Why a data section cannot be used; nothing where it is not valid by itself, which is said elsewhere."""
    try:
        require_data(_read(DataConfig, _plain(section or {}, DataConfig, "data")))
    except ValidationError:
        return ()
    except LoricaError as error:
        return error.problems
    return ()


def _are_texts(data: Any) -> bool:
    return isinstance(data, dict) and data.get("source") in _OF_TEXTS and not data.get("image_column")


def _of_file(name: str, values: Mapping[str, Any], *, trusted: bool) -> dict[str, Any]:
    """A method section that names a file: where it is, and its contents."""
    if not trusted:
        raise RecipeError(
            f"method.name: {name} is a program; it is executed only if you name it yourself, after a look into it: "
            f"--method-file FILE, or in Python method_file=FILE (for lorica.run: method={{'name': FILE}})"
        )
    noted, found = _plain(values.get("sha256"), str, "method.sha256"), method_file_sha256(name)
    if noted is not None and noted != found:
        raise RecipeError(
            f"method.sha256: {name} has other contents than the file that this recipe was run with (sha256 "
            f"{found[:12]} …, then {str(noted)[:12]} …); restore that file, or start a new run"
        )
    return {**values, "name": str(_absolute(Path(name))), "sha256": found}


def _problems(error: ValidationError, known: Sequence[str], above: str = "") -> Iterator[str]:
    for item in error.errors():
        place = (above + ".".join(str(part) for part in item["loc"])).rstrip(".")
        if item["type"] == "extra_forbidden":
            yield f"{place}: unknown key; {_hint(place, known)}"
        else:
            # a check of a whole section says itself what it was given
            given = "" if item["type"] == "missing" or not item["loc"] else f", given {item['input']!r}"
            said = re.sub(r"\b10{9,}\b", lambda bound: f"{float(bound[0]):g}", item["msg"])  # nobody counts zeros
            yield f"{place}: {said.removeprefix('Value error, ')}{given}"


def _hint(place: str, known: Sequence[str]) -> str:
    """A key of that name elsewhere, or the nearest one of the same section, or the keys that the section has."""
    section, _, last = place.rpartition(".")
    siblings = {key.rpartition(".")[2]: key for key in known if key.rpartition(".")[0] == section}
    near = [key for key in known if key.rpartition(".")[2] == last]
    near += [siblings[key] for key in difflib.get_close_matches(last, siblings, n=1)]
    return f"did you mean {near[0]}?" if near else f"{section or 'a recipe'} has {', '.join(siblings)}"


def _keys_at(annotation: Any, values: Any, prefix: str = "") -> Iterator[str]:
    """The dotted keys that there may be in values: in models, and in those within the lists and mappings that are
    there."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        for name, field in annotation.model_fields.items():
            yield f"{prefix}{name}"
            yield from _keys_at(
                field.annotation, values.get(name) if isinstance(values, dict) else None, f"{prefix}{name}."
            )
    elif get_origin(annotation) in (list, dict):
        inside = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
        for key, value in inside:
            yield from _keys_at(get_args(annotation)[-1], value, f"{prefix}{key}.")
    else:
        for each in get_args(annotation):
            yield from _keys_at(each, values, prefix)


def _keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        if name != "sha256":  # which a run notes
            yield f"{prefix}{name}"
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from _keys(inner, f"{prefix}{name}.")
