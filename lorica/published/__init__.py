"""What papers and released codes report, and the settings they report it for: one YAML file for each of them.

    recipe_names    `lorica run sd_lora_paper/sd_lora-imagenet_r`: a recipe for each method on each benchmark of a file
    recipe_text     such a recipe as text, with a header that says where it is from and what to expect
    beside          the numbers to show beside ours, and those that only seem to belong there

A number is shown beside a run where the protocol is the same: the benchmark with all its classes, the number of tasks,
the checkpoint and the size of its input. ImageNet-21k weights and those that were tuned on ImageNet-1k afterwards are
different backbones. What else differs, or cannot be known to be the same, `remarks` say: a file of weights that has
the name of a checkpoint, how inputs are normalised, the split of ImageNet-R.

Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from itertools import zip_longest
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

from lorica.nested import flatten
from lorica.results import DEFAULT_VARIANTS, Result

CLASSES = {
    "cifar100": 100,
    "cub200": 200,
    "domainnet": 345,
    "imagenet_a": 200,
    "imagenet_r": 200,
    "objectnet": 200,
    "omnibenchmark": 300,
    "stanford_cars": 196,
    "vtab": 50,
}
"""The benchmarks, by the names of their sources (`data.source`), and how many classes each has."""

_TESTED = {
    "cifar100": 10_000,
    "cub200": 2_358,
    "domainnet": 176_743,
    "imagenet_a": 1_519,
    "imagenet_r": 6_000,
    "objectnet": 6_628,
    "omnibenchmark": 5_985,
    "stanford_cars": 8_041,
    "vtab": 8_619,
}
"""Test samples of the splits that the numbers are of: of CUB's, the archive's, and not the official one's."""

_DIVIDED = ("imagenet_r",)
"""Benchmarks of which several splits with equally many images are in use, so that no count tells them apart."""

# what a method does where neither a number's source nor a run says otherwise; an ablation has no published number
_WHOLE = {"distillation": True, "block_weights": True, "tuning": "adapter", "normalised": True}

_STARTS = ("name", "variant", "head_scale", "head_start")
"""Keys of a method in which a run may differ from a number's source: where it starts, and what is compared
otherwise."""

_TITLES = {
    "cifar100": "CIFAR-100",
    "cub200": "CUB-200",
    "domainnet": "DomainNet",
    "imagenet_a": "ImageNet-A",
    "imagenet_r": "ImageNet-R",
    "objectnet": "ObjectNet",
    "omnibenchmark": "OmniBenchmark",
    "stanford_cars": "Stanford Cars",
    "vtab": "VTAB",
}

# what timm makes of the name without a tag, which the literature uses for two checkpoints
_WITHOUT_TAG = {"vit_base_patch16_224": "vit_base_patch16_224.augreg2_in21k_ft_in1k"}

Percent = Annotated[float, Field(ge=0, le=100)]
_Settings = dict[str, Any]
_Numbers = dict[str, dict[int, dict[str, Annotated[list[Percent], Field(min_length=1, max_length=2)]]]]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Tuned(_Section):
    """Sections of a recipe, and a remark."""

    method: _Settings = {}
    backbone: _Settings = {}
    data: _Settings = {}
    stream: _Settings = {}
    fit: _Settings = {}
    evaluate: _Settings = {}
    remark: str | None = None

    @property
    def sections(self) -> dict[str, _Settings]:
        return self.model_dump(include={"method", "backbone", "data", "stream", "fit", "evaluate"})


class _OnBenchmark(_Tuned):
    """`tasks`: the numbers of tasks that are reported, the recipe's own first; `others`: what is otherwise with other
    checkpoints."""

    tasks: Annotated[list[int], Field(min_length=1)]
    others: dict[str, _Tuned] = {}


class _OfMethod(_Tuned):
    """`only`: the benchmarks that a method was run on, where these are not all of the file; `differs`: what is
    otherwise on one of them."""

    only: list[str] | None = None
    differs: dict[str, _Tuned] = {}


class _Recipes(_Section):
    common: _Tuned
    benchmarks: dict[str, _OnBenchmark]
    methods: dict[str, _OfMethod]


class Source(_Section):
    """A file of this folder.

    Attributes:
        title: of a paper, or what else it is.
        venue: where that is.
        reading: whether the settings are what a paper states, or what a released code runs.
        backbone: the checkpoint of numbers and recipes; `backbones`: of single benchmarks.
        averaged_over: whether accuracies are means over tasks (Acc) or over samples; equal where tasks have as many
            samples.
        seeds: how many each number is a mean over; None where that is not stated.
        variants: which reading of a method a number is of, where the method has several.
        numbers: Acc and AAA, percent, by benchmark, number of tasks and method; `others`: the same with other
            checkpoints; `spreads`: of some of `numbers`, in the same form, their standard errors over the seeds.
        where: the table of a benchmark, or of a method.
        remarks: what to know of all of it.
    """

    title: str
    venue: str
    reading: Literal["paper", "code"]
    backbone: str
    backbones: dict[str, str] = {}
    averaged_over: Literal["tasks", "samples"]
    seeds: Annotated[int, Field(ge=1)] | None
    variants: dict[str, str]
    numbers: _Numbers
    others: dict[str, _Numbers] = {}
    spreads: _Numbers = {}
    where: dict[str, str]
    remarks: list[str]
    recipes: _Recipes | None = None

    def backbone_on(self, benchmark: str) -> str:
        """The checkpoint that the source used on a benchmark."""
        return self.backbones.get(benchmark, self.backbone)


@dataclass(frozen=True)
class Number:
    """What one source reports of a method: `acc` and `aaa` in percent, `aaa` None where only the end is reported;
    `errors`: their standard errors, where they are known."""

    method: str
    variant: str | None
    benchmark: str
    tasks: int
    backbone: str
    acc: float
    aaa: float | None
    where: str
    source: Source
    errors: tuple[float, ...] = ()

    @property
    def by(self) -> str:
        """What its tasks brought, `stream.by`."""
        return _by(self.source, self.benchmark)

    @property
    def shown(self) -> str:
        """As a cell of a table: "77.3 / 82.0", "16.3 ± 7.9 / 30.0 ± 13.2" where standard errors are known."""
        return " / ".join(self._written(".1f"))

    def _written(self, form: str) -> Iterator[str]:
        for value, error in zip_longest((self.acc, self.aaa), self.errors):
            if value is not None:
                yield f"{value:{form}}" + ("" if error is None else f" ± {error:{form}}")

    @property
    def stated(self) -> str:
        """As it is reported, by name: "Acc / AAA 77.34 / 82.04 %"."""
        return f"{'Acc' if self.aaa is None else 'Acc / AAA'} {' / '.join(self._written('g'))} %"


def _by(source: Source, benchmark: str) -> str:
    on = source.recipes and source.recipes.benchmarks.get(benchmark)
    return on.stream.get("by", "class") if on else "class"


def _kind_of_tasks(source: Source, benchmark: str) -> str:
    return "domains" if _by(source, benchmark) == "domain" else "tasks"


@cache
def sources() -> Mapping[str, Source]:
    """Every file of this folder by its name."""
    return {name: _read(name) for name in _names()}


@cache
def _names() -> list[str]:
    entries = (entry.name for entry in resources.files(__name__).iterdir())
    return sorted(name.removesuffix(".yaml") for name in entries if name.endswith(".yaml"))


@cache
def _read(name: str) -> Source:
    text = (resources.files(__name__) / f"{name}.yaml").read_text(encoding="utf-8")
    return Source.model_validate(yaml.safe_load(text))


@cache
def numbers() -> Sequence[Number]:
    """Every number of every source."""
    return [
        Number(
            method,
            source.variants.get(method),
            benchmark,
            tasks,
            backbone or source.backbone_on(benchmark),
            values[0],
            values[1] if len(values) > 1 else None,
            source.where.get(method, source.where[benchmark]),
            source,
            () if backbone else tuple(source.spreads.get(benchmark, {}).get(tasks, {}).get(method, ())),
        )
        for source in sources().values()
        for backbone, reported in {None: source.numbers, **source.others}.items()
        for benchmark, by_tasks in reported.items()
        for tasks, by_method in by_tasks.items()
        for method, values in by_method.items()
    ]


def beside(runs: Sequence[Result]) -> tuple[list[Number], list[Number]]:
    """The published numbers of the method of runs that make one row: those of the same protocol, and those of the same
    benchmark and number of tasks that are of another checkpoint or input, or whose own that of the runs is not known to
    be."""
    run = runs[0]
    recipe: Mapping[str, Any] = run.recipe
    data, backbone = recipe.get("data") or {}, recipe.get("backbone") or {}
    evaluate = recipe.get("evaluate") or {}
    benchmark = data.get("source")
    sizes = [len(task["classes"]) for task in run.tasks]
    classes = {name for task in run.tasks for name in task["classes"]}
    is_whole = len(classes) == CLASSES.get(str(benchmark)) and data.get("evaluate_on", "test") == "test"
    # Stanford Cars alone comes in parts that are not equal, 16 classes and then 20 at a time
    is_even = run.stream_by != "class" or max(sizes) - min(sizes) <= (4 if sum(sizes) % len(sizes) else 0)
    is_split = sum(task["test"] for task in run.tasks) == _TESTED.get(str(benchmark))
    if not (is_whole and is_even and is_split) or evaluate.get("readout", "head") != "head":
        return [], []
    name = str(backbone.get("name"))
    checkpoint = _WITHOUT_TAG.get(name, name) if backbone.get("image_size") in (None, 224) else None
    found = [
        number
        for number in numbers()
        if (number.method, number.benchmark) == (run.method, benchmark)
        and (number.tasks, number.by) == (len(run.tasks), run.stream_by)
        and (number.variant is None or number.variant == run.variant)
        and _is_of(number, recipe.get("method") or {})
    ]
    same = [number for number in found if number.backbone == checkpoint]
    return same, [number for number in found if number not in same]


def _is_of(number: Number, options: Mapping[str, Any]) -> bool:
    """Whether a run's method does what the number's did, but for where it starts: an ablation has no published
    number."""
    recipes, said = number.source.recipes, dict[str, Any]()
    if recipes and number.method in recipes.methods and number.benchmark in recipes.benchmarks:
        on, of = recipes.benchmarks[number.benchmark], recipes.methods[number.method]
        changed = (of.differs.get(number.benchmark, _Tuned()), on.others.get(number.backbone, _Tuned()))
        for layer in (recipes.common, on, of, *changed):
            said |= layer.method
    wanted = {key: value for key, value in (_WHOLE | said).items() if key not in _STARTS and key in options}
    return all(options[key] == value for key, value in wanted.items())


def remarks(rows: Sequence[Sequence[Result]]) -> list[str]:
    """Where the numbers beside rows come from, and which ones are not shown beside them."""
    lines: list[str] = []
    for runs in rows:
        shown, refused = beside(runs)
        for number in shown:
            seeds = _seeds(number.source)
            error = " with standard errors" if number.errors else ""
            lines.append(
                f"Published, {number.method}: {number.shown} ({number.source.venue}, {number.where}; {seeds}{error}; "
                f"mean over {number.source.averaged_over}).{''.join(_doubts(number, runs))}"
            )
        own = (runs[0].recipe.get("backbone") or {}).get("name")
        size = (runs[0].recipe.get("backbone") or {}).get("image_size")
        ours = f"{own} at {size} pixels" if size else str(own)
        lines += [
            f"Not shown beside {number.method}: what {number.source.venue} reports is of {number.backbone}, and this "
            f"is of {ours}."
            for number in refused
        ]
    return list(dict.fromkeys(lines))


def _doubts(number: Number, runs: Sequence[Result]) -> Iterator[str]:
    """Sentences on what a number and the runs beside it are not known to share, or do not."""
    backbones: list[Mapping[str, Any]] = [run.recipe.get("backbone") or {} for run in runs]
    if any(backbone.get("weights") for backbone in backbones):
        yield f" Ours has weights from a file; whether they are {number.backbone} is not known."
    recipes = number.source.recipes
    theirs = recipes.common.backbone.get("normalisation") if recipes else None
    ours = [backbone.get("normalisation") for backbone in backbones]
    if others := sorted({each for each in ours if theirs and each not in (None, theirs)}):
        yield f" Its inputs have backbone.normalisation={theirs}, ours {' and '.join(others)}."
    if number.benchmark in _DIVIDED:
        yield f" {_TITLES[number.benchmark]} is divided in several ways; whether it is ours there is not known."


def recipe_names() -> dict[str, str]:
    """Every recipe of the sources, "source/method-benchmark", with the first line of its header."""
    return {
        f"{name}/{method}-{benchmark}": _headline(source, method, benchmark)
        for name, source in sources().items()
        for method, benchmark in _pairs(source)
    }


def is_recipe(name: str) -> bool:
    """Whether that is one of `recipe_names`; other names cost nothing."""
    file, _, recipe = name.partition("/")
    method, _, benchmark = recipe.rpartition("-")
    return file in _names() and (method, benchmark) in _pairs(_read(file))


def recipe_text(name: str) -> str:
    """A recipe of `recipe_names` as a file that can be changed: its header, and only the keys that it sets."""
    file, _, recipe = name.partition("/")
    method, _, benchmark = recipe.rpartition("-")
    source = _read(file)
    assert source.recipes
    on, of = source.recipes.benchmarks[benchmark], source.recipes.methods[method]
    layers = [source.recipes.common, on, of, of.differs.get(benchmark, _Tuned())]
    values: dict[str, _Settings] = {
        "method": {"name": method},
        "backbone": {"name": source.backbone_on(benchmark)},
        "data": {"source": benchmark, "crop_pct": 0.875},
        "stream": {"tasks": on.tasks[0]},
        "fit": {},
        "evaluate": {},
    }
    for layer in layers:
        for section, settings in layer.sections.items():
            values[section] |= settings
    if "classes_per_task" in values["stream"]:
        del values["stream"]["tasks"]
    if benchmark == "vtab":
        values["stream"]["seed"] = None  # its five data sets come in their order, whatever the others' seed
    notes = [*(layer.remark for layer in layers if layer.remark), *source.remarks]
    lines = [
        f"{_headline(source, method, benchmark)} (give data.root)",
        f"From: {source.title} ({source.venue})",
        *_expected(source, method, benchmark, on.tasks),
        f"Backbone: {values['backbone']['name']}",
        "Hardware and time: not measured here, it wants a GPU",
        f"Command: lorica run {name} data.root=FOLDER",
        *(f"Note: {note}" for note in notes),
    ]
    sections = (
        f"{section}: {yaml.safe_dump(settings, default_flow_style=True, sort_keys=False, width=1000).strip()}"
        for section, settings in values.items()
        if settings
    )
    return "\n".join([*(f"# {line}" for line in lines), *sections]) + "\n"


def _seeds(source: Source) -> str:
    if source.seeds is None:
        return "seeds not stated"
    return f"{source.seeds} seed{'' if source.seeds == 1 else 's'}"


def _pairs(source: Source) -> Iterator[tuple[str, str]]:
    """The methods and benchmarks of a source that have a recipe."""
    if source.recipes:
        for benchmark in source.recipes.benchmarks:
            for method, of in source.recipes.methods.items():
                if of.only is None or benchmark in of.only:
                    yield method, benchmark


def _headline(source: Source, method: str, benchmark: str) -> str:
    assert source.recipes
    tasks = source.recipes.benchmarks[benchmark].tasks[0]
    reading = "as the paper states it" if source.reading == "paper" else "as the released code runs it"
    return f"{method} on {_TITLES[benchmark]} in {tasks} {_kind_of_tasks(source, benchmark)}, {reading}"


def _expected(source: Source, method: str, benchmark: str, lengths: Sequence[int]) -> Iterator[str]:
    """What the source reports, and how to get the other lengths."""
    variant = source.variants.get(method)
    found = [
        number
        for number in numbers()
        if number.source is source and (number.method, number.benchmark) == (method, benchmark)
    ]
    of = f", averaged over {source.averaged_over}, {_seeds(source)}"
    for number in sorted(found, key=lambda number: lengths.index(number.tasks) if number.tasks in lengths else 99):
        reading = "" if variant in DEFAULT_VARIANTS else f", {variant}"
        other = "" if number.backbone == source.backbone_on(benchmark) else f", with {number.backbone}"
        kind = _kind_of_tasks(source, benchmark)
        yield f"Expected in {number.tasks} {kind}: {number.stated} ({number.where}{of}{reading}{other})"
    if not found:
        yield "Expected: no number of it is in lorica/published"
    for tasks in lengths[1:]:
        yield f"In {tasks} tasks: stream.tasks={tasks}"
    assert source.recipes
    for backbone, tuned in source.recipes.benchmarks[benchmark].others.items():
        changes = {"backbone.name": backbone, **dict(flatten(tuned.sections))}
        yield f"With {backbone}: {' '.join(f'{key}={value}' for key, value in changes.items())}"
