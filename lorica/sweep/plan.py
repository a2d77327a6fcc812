"""The file of a sweep: YAML by the rules of a recipe, checked with all that follows from it before anything runs.

    recipe: omniglot                    a packaged recipe, or a YAML file
    overrides: {checkpoints: newest}    of every run
    methods:
      - prototypes
      - sd_lora_kd:absorbing            name[:variant][+option=value…]
      - {method: ran_pac, overrides: {…}, search: {…}}      its own, in place of the common keys; `search: false` for
                                                            none
    seeds: [0, 1, 2]
    search:
      space: {fit.learning_rate: {factors: [0.3, 1, 3], beyond: 3}}
      tasks: 4

How a search goes is described in docs/sweeps.md, and each key below.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from lorica.config import FREE, Recipe, Section, read_model, read_overrides, read_recipe
from lorica.errors import LoricaError, RecipeError
from lorica.nested import flatten

Scalar = bool | int | float | str | None
Settings = dict[str, Any]
"""Values by dotted key of a recipe."""

_TAKEN = {
    "method": "methods names them",
    "method.name": "methods names them",
    "seed": "seeds says them",
    "data.evaluate_on": "a search looks at held-out training data alone, and the rows of the table at test data",
    "data.validation_fraction": "search.held_out says it",
}


class Space(Section):
    """What is tried of one key: `values`; `factors` of what the recipe has; or what lies from `low` to `high`."""

    values: list[Scalar] | None = Field(default=None, min_length=1)
    factors: list[float] | None = Field(default=None, min_length=1)
    beyond: float | None = Field(
        default=None,
        gt=1,
        description="with factors: while the best value lies at an end, one so many times as far is tried",
    )
    low: int | float | None = Field(default=None, description="whole numbers alone are tried where both ends are whole")
    high: int | float | None = None
    log: bool = Field(default=False, description="with low and high: orders of magnitude are as likely as each other")

    @model_validator(mode="after")
    def _one_of_them(self) -> Space:
        ends = [each for each in (self.low, self.high) if each is not None]
        if sum((self.values is not None, self.factors is not None, bool(ends))) != 1 or len(ends) == 1:
            raise ValueError("give either values, or factors, or low and high")
        if self.beyond is not None and self.factors is None:
            raise ValueError("beyond goes on from factors; give these")
        if any(factor <= 0 for factor in self.factors or ()):
            raise ValueError("factors are above 0")
        if self.log and not ends:
            raise ValueError("log says how to draw between low and high; give these")
        if ends and not (ends[0] < ends[1] and (ends[0] > 0 or not self.log)):
            raise ValueError(
                f"low is below high{', and above 0 for log' if self.log else ''}; given {ends[0]} and {ends[1]}"
            )
        return self

    @property
    def is_range(self) -> bool:
        return self.low is not None

    @property
    def is_whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)


class Search(Section):
    """How settings are chosen: on a part of the training data that is held out, with a seed that no row has."""

    space: dict[str, Space] = Field(min_length=1, description="what is tried, by dotted key of the recipe")
    sampler: Literal["factors", "grid", "random", "tpe"] | None = Field(
        default=None, description="absent = factors or grid where the space has an end of its own, else tpe"
    )
    trials: int | None = Field(default=None, ge=1, description="of random and tpe")
    tasks: int = Field(default=4, ge=1, description="of the stream that each trial learns")
    final_tasks: int | None = Field(
        default=None, ge=1, description="that the best go on to; absent = the best one is chosen"
    )
    finalists: int = Field(default=2, ge=2, description="how many go on")
    held_out: float = Field(default=0.2, gt=0, lt=1, description="share of the training data that trials are scored on")
    seed: int = Field(default=1000, ge=0, description="of training, and of what is drawn")
    measure: Literal["aaa", "acc", "aaa_samples", "acc_samples"] = "aaa"
    prune: bool = Field(
        default=False, description="give a trial up whose accuracy after a task is below the median of those that ended"
    )

    @property
    def by(self) -> str:
        """The sampler."""
        kinds = [bool(each.factors) for each in self.space.values()]
        ranges = any(each.is_range for each in self.space.values())
        return self.sampler or ("tpe" if ranges else "factors" if any(kinds) else "grid")

    @property
    def draws(self) -> bool:
        """Whether trials are drawn, and not known beforehand."""
        return self.by in ("random", "tpe")

    @model_validator(mode="after")
    def _fits_together(self) -> Search:
        spaces = list(self.space.values())
        for key, each in self.space.items():
            if any(value in (each.values or [])[:place] for place, value in enumerate(each.values or [])):
                raise ValueError(f"space.{key}: a value is there twice; keep one of the two")
        if self.by == "factors" and (len(spaces) != 1 or not spaces[0].factors):
            raise ValueError("sampler factors searches one key, by factors; give values to each, for a grid")
        if self.by != "factors" and any(each.factors for each in spaces):
            raise ValueError(f"factors are for the sampler of that name; give {self.by} values")
        if self.by == "grid" and any(each.is_range for each in spaces):
            raise ValueError("a grid has values; low and high are for random and tpe")
        if self.draws != (self.trials is not None):
            raise ValueError(
                f"trials {'is missing: ' if self.draws else 'goes with random and tpe: '}the sampler is {self.by}"
            )
        if self.final_tasks is not None and self.final_tasks <= self.tasks:
            raise ValueError(f"final_tasks are more than the {self.tasks} tasks; leave it out for no second stage")
        return self


class Entry(Section):
    """A method of a sweep; a text is its `method`."""

    method: str = Field(description="name[:variant][+option=value…]")
    name: str | None = Field(default=None, min_length=1, description="what it is called here; absent = its method")
    overrides: dict[str, Any] = Field(default={}, description="keys of the recipe, dotted or in sections")
    search: Search | None = None

    @property
    def title(self) -> str:
        return self.name or self.method


class Sweep(Section):
    """The keys of a sweep's file."""

    recipe: str
    title: str | None = Field(
        default=None, pattern=r"^\S(.*\S)?$", description="of the table's page, on one line; absent = the page's name"
    )
    overrides: dict[str, Any] = Field(default={}, description="keys of the recipe, dotted or in sections")
    methods: list[Entry] = Field(min_length=1)
    seeds: list[int] = Field(default=[0], description="of the rows; [] for a search alone")
    search: Search | None = None
    settings: Path | None = Field(
        default=None, description="what an earlier sweep chose, for methods that are not searched"
    )
    folder: Path | None = Field(
        default=None, description="of the runs, on a disk that all workers see; absent = runs/<file>"
    )
    storage: str | None = Field(
        default=None, description="URL of a database for Optuna; absent = its journal in the folder"
    )
    out: Path | None = Field(default=None, description="where the table goes, without .md; absent = <folder>/table")
    times: Path | None = Field(default=None, description="adds the times that benchmarks/training_time.py measured")
    drawn: list[str] | None = Field(default=None, description="methods in the figures; absent = all")

    @model_validator(mode="before")
    @classmethod
    def _spelt_out(cls, values: Any) -> Any:
        """Each method as a mapping, with what it does not say of its search from the common one."""
        if not isinstance(values, dict) or not isinstance(values.get("methods"), list):
            return values
        common = values.get("search")
        methods = []
        for entry in values["methods"]:
            entry = {"method": entry} if isinstance(entry, str) else entry
            if isinstance(entry, dict) and entry.get("search") is False:
                entry = {**entry, "search": None}
            elif isinstance(entry, dict) and isinstance(own := entry.get("search"), dict) and isinstance(common, dict):
                entry = {**entry, "search": {**common, **own}}
            methods.append(entry)
        return {**values, "methods": methods}

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) < len(seeds) or any(seed < 0 for seed in seeds):
            raise ValueError("seeds are 0 or above, and each is there once")
        return seeds

    @model_validator(mode="after")
    def _names_differ(self) -> Sweep:
        names = [slug(entry.title) for entry in self.methods]
        if twice := {entry.title for entry in self.methods if names.count(slug(entry.title)) > 1}:
            raise ValueError(f"methods: {', '.join(sorted(twice))}: there more than once; give each a name")
        searches = [self.search, *(entry.search for entry in self.methods)]
        if twice := {each.seed for each in searches if each} & set(self.seeds):
            told = ", ".join(map(str, sorted(twice)))
            raise ValueError(
                f"seeds: {told}: a search trains with it, whose settings would suit that row; give another, or "
                "search.seed"
            )
        if unknown := set(self.drawn or ()) - {entry.title for entry in self.methods}:
            raise ValueError(f"drawn: {', '.join(sorted(unknown))}: not among the methods")
        return self


@dataclass(frozen=True)
class Method:
    """A method of a sweep, ready to be run.

    Attributes:
        name: what it is called in the sweep.
        base: its recipe before anything is searched, as overrides of the sweep's.
        search: how its settings are chosen; None where they are not.
        points: the settings that are tried first, where they are not drawn.
        settings: what it runs with where it is not searched.
        heir_of: the method of the sweep whose chosen settings it takes in place of these, but for `own`, the keys that
            are written with it.
    """

    name: str
    base: Settings
    search: Search | None = None
    points: tuple[Settings, ...] = ()
    settings: Settings | None = None
    heir_of: str | None = None
    own: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Plan:
    """A sweep that can begin.

    Attributes:
        name: of the file, without its ending.
        command: what was typed, without places on the machine.
    """

    name: str
    sweep: Sweep
    methods: tuple[Method, ...]
    folder: Path
    out: Path
    command: str

    def searched(self, method: Method, settings: Settings) -> Recipe:
        """The recipe of a trial: it never looks at test data, and tests all tasks after each, for it may stop there."""
        assert method.search is not None
        held = {"data.validation_fraction": method.search.held_out, "data.evaluate_on": "validation"}
        return self._read(method, settings | held | {"evaluate.every": 1, "seed": method.search.seed})

    def row(self, method: Method, settings: Settings, seed: int) -> Recipe:
        """The recipe of a run of the table."""
        return self._read(method, {**settings, "seed": seed})

    def search_folder(self, method: Method, settings: Settings, number: int) -> Path:
        """Where the trial of that number learns; of one key's factors no two are alike, nor long."""
        assert method.search is not None
        name = slug(said(settings, short=True))
        name = name if method.search.by == "factors" else f"{number:03}-{name}"[:120]
        return self.folder / "search" / slug(method.name) / name

    def row_folder(self, method: Method, seed: int) -> Path:
        """Where a run of the table learns."""
        return self.folder / "rows" / f"{slug(method.name)}-seed{seed}"

    def _read(self, method: Method, settings: Settings) -> Recipe:
        return read_recipe(self.sweep.recipe, method.base | settings)


def read_plan(file: Path, overrides: Sequence[str] = (), method_files: Sequence[Path] = ()) -> Plan:
    """Reads the file of a sweep.

    Args:
        overrides: `key.sub=value` texts, of every run; they come before those of the file.
        method_files: the `.py` files that the sweep may execute, see `read_recipe`.

    Raises:
        RecipeError: every problem, one line each, in the file and in the recipes that follow from it.
    """
    sweep = read_model(Sweep, file)
    given = read_overrides(overrides)
    problems = [f"{key}: is not for overrides: {why}" for key, why in _TAKEN.items() if key in given]
    earlier = chosen_settings(sweep.settings) if sweep.settings else {}
    problems += _misplaced(sweep, earlier, {str(each) for each in method_files})
    if problems:
        raise RecipeError([f"{file}: {problem}" for problem in problems])
    searches = {entry.title: _search_of(sweep, entry) for entry in sweep.methods}
    methods, found = [], dict[str, list[str]]()
    for entry in sweep.methods:
        try:
            methods.append(_method(sweep, entry, searches, given, earlier))
        except LoricaError as error:
            for problem in error.problems:
                found.setdefault(problem, []).append(entry.title)
    if found:
        everywhere = len(sweep.methods)
        raise RecipeError(
            [
                f"{file}: {problem}" + ("" if len(names) == everywhere else f" ({', '.join(names)})")
                for problem, names in found.items()
            ]
        )
    folder = sweep.folder or Path("runs") / file.stem
    named = "".join(f" --method-file {each.name}" for each in method_files)
    command = " ".join(
        [f"lorica sweep {file.name if file.is_absolute() else file}{named}", without_places(overrides)]
    ).strip()
    return Plan(file.stem, sweep, tuple(methods), folder, sweep.out or folder / "table", command)


def of_method(method: str) -> list[str]:
    """The overrides that `name[:variant][+option=value…]` stands for."""
    named, *options = method.split("+")
    name, _, variant = named.partition(":")
    return [
        f"method.name={name}",
        *([f"method.variant={variant}"] if variant else []),
        *(f"method.{option}" for option in options),
    ]


def said(settings: Settings, *, short: bool = False) -> str:
    """Settings as one writes them: `fit.learning_rate=0.01, method.rank=4`; or without the sections."""
    return ", ".join(
        f"{key.rpartition('.')[2] if short else key}={value if isinstance(value, str) else json.dumps(value)}"
        for key, value in settings.items()
    )


def slug(text: str) -> str:
    """A text as the name of a folder."""
    return re.sub(r"[^\w.=,-]+", "-", text.replace(", ", ","))


def without_places(overrides: Sequence[str]) -> str:
    """Overrides as a page repeats them: where somebody's data and weights are is nobody else's business."""
    places = {"data.root", "backbone.weights"}
    return " ".join(f"{key}=…" if key in places else text for text in overrides for key in [text.partition("=")[0]])


def chosen_settings(file: Path) -> dict[str, Settings]:
    """What a sweep chose, by method, from its file; or what `benchmarks/tune.py` did, which had learning rates alone.

    Raises:
        LoricaError: the file cannot be read, or has no such settings.
    """
    try:
        chosen = json.loads(file.read_text(encoding="utf-8"))["chosen"]
        return {
            name: dict(each) if isinstance(each, dict) else {"fit.learning_rate": float(each)}
            for name, each in chosen.items()
        }
    except OSError as error:
        raise LoricaError(f"{file}: cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LoricaError(f"{file}: not what a sweep has chosen ({error}); expected its search.json") from error


def facts(recipe: Recipe) -> Settings:
    """What a recipe says, by dotted key, but for keys in which runs may differ and the seed."""
    return {key: value for key, value in flatten(recipe.resolved()) if key not in (*FREE, "seed")}


def _misplaced(sweep: Sweep, earlier: Mapping[str, Settings], files: set[str]) -> list[str]:
    """What a file may not say, nor the `earlier` settings that it takes up: they are somebody's, and execute nothing;
    and there are keys of their own for some things."""
    problems = []
    for where, keys in [
        ("overrides", dict(flatten(sweep.overrides))),
        *((f"methods.{i}.overrides", dict(flatten(entry.overrides))) for i, entry in enumerate(sweep.methods)),
        ("search.space", sweep.search.space if sweep.search else {}),
        *((f"methods.{i}.search.space", each.search.space) for i, each in enumerate(sweep.methods) if each.search),
        *((f"methods.{i}", read_overrides(of_method(each.method)[1:])) for i, each in enumerate(sweep.methods)),
        *((f"{sweep.settings}: chosen.{name}", settings) for name, settings in earlier.items()),
    ]:
        problems += [f"{where}.{key}: is not for a sweep: {_TAKEN[key]}" for key in keys if key in _TAKEN]
    places = ("data.root", "data.dataset", "backbone.weights")
    problems += [
        f"{sweep.settings}: chosen.{name}.{key}: a search chooses settings, and no data or weights; take it out"
        for name, settings in earlier.items()
        for key in places
        if key in settings
    ]
    for i, entry in enumerate(sweep.methods):
        name = entry.method.partition("+")[0].partition(":")[0]
        if name.endswith(".py") and name not in files:
            problems.append(
                f"methods.{i}: {name} is a program; it is executed only if you name it yourself, after a look into it: "
                f"--method-file {name}"
            )
    return problems


def _search_of(sweep: Sweep, entry: Entry) -> Search | None:
    return entry.search if "search" in entry.model_fields_set else sweep.search


def _method(
    sweep: Sweep,
    entry: Entry,
    searches: Mapping[str, Search | None],
    given: Mapping[str, Any],
    earlier: Mapping[str, Settings],
) -> Method:
    """Raises RecipeError for what is wrong with its recipe, or with what is to be tried."""
    own = read_overrides(of_method(entry.method))
    base = {**dict(flatten(sweep.overrides)), **dict(flatten(entry.overrides)), **given, **own}
    recipe, search = read_recipe(sweep.recipe, base), searches[entry.title]
    if recipe.data.evaluate_on == "validation":
        raise RecipeError(
            f"recipe: data.evaluate_on is validation; {_TAKEN['data.evaluate_on']}: take it out of the recipe"
        )
    if search is None:
        # an ablation has the settings of its method, but for what it is an ablation of
        names = [entry.title, entry.method, entry.method.partition("+")[0]]
        searched = {each.method: each.title for each in reversed(sweep.methods) if searches[each.title]}
        heir_of = next((searched[name] for name in names if name in searched), None)
        settings = {} if heir_of else next((earlier[name] for name in names if name in earlier), {})
        settings = {key: value for key, value in settings.items() if key not in own}
        read_recipe(sweep.recipe, base | settings)
        return Method(entry.title, base, settings=settings, heir_of=heir_of, own=frozenset(own))
    if said := [key for key in search.space if key in own]:
        raise RecipeError(
            [
                f"search.space.{key}: {entry.method} has a value of its own; leave it out of one of the two"
                for key in said
            ]
        )
    points = () if search.draws else tuple(_points(search, dict(flatten(recipe.resolved()))))
    tried = [{key: value} for key, each in search.space.items() for value in each.values or (each.low, each.high)]
    problems = []
    for point in points or tried:
        try:
            read_recipe(sweep.recipe, base | point)
        except LoricaError as error:
            problems += [problem for problem in error.problems if problem not in problems]
    if problems:
        raise RecipeError([f"search.space: {problem}" for problem in problems])
    return Method(entry.title, base, search, points)


def _points(search: Search, own: Settings) -> list[Settings]:
    tried = []
    for key, space in search.space.items():
        if space.factors:
            default = own.get(key)
            if not isinstance(default, int | float) or isinstance(default, bool) or not math.isfinite(default):
                raise RecipeError(
                    f"search.space.{key}: factors are of a number, and the recipe has {default!r}; give values"
                )
            tried.append(list(dict.fromkeys(rounded(factor * default) for factor in space.factors)))
        else:
            tried.append(space.values)
    return [dict(zip(search.space, values, strict=True)) for values in product(*tried)]


def rounded(value: float) -> float:
    """To two digits, as settings are that follow from others."""
    return float(f"{value:.2g}")
