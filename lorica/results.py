"""What came out of a run, as its folder has it. Accuracies are fractions, never percent, and times are seconds.

    Metrics   the contents of metrics.json
    Result    a run's folder: its metrics, and what it cost
    Record    the account of a run under way, an `Entry` for each thing learned, from which both files follow
    Look      a line of history.jsonl, and `Confusion` the contents of confusion.json, both of which a run may lack

What a measure is, and how it is called, is in `lorica.metrics.MEASURES` alone. Nothing here, or in `lorica.report`,
imports torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, Literal, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    Field,
    TypeAdapter,
    ValidationError,
    model_serializer,
    model_validator,
)

from lorica.environment import package_version
from lorica.errors import LoricaError
from lorica.files import RunFolder, complete_lines
from lorica.metrics import MEASURES, Matrix, hter, summary, whole
from lorica.nested import flatten
from lorica.reading import WIDER, WRITTEN, Count, Plain, Seconds, misfits, read_json, shown

_SECTIONS = ("method", "backbone", "data", "stream", "fit", "evaluate")
DEFAULT_VARIANTS = (None, "paper", "default")
"""What `method.variant` is called where it is the usual one and goes without saying."""

COSTS = {
    "trainable": "Trained",
    "stored": "Stored",
    "flops_per_prediction": "GFLOPs",
    "forwards_per_prediction": "Passes",
}
"""The costs in a table (see `lorica.cost.measure`) and their headings."""

READ_OUTS = {
    "prototypes": "class means",
    "discriminant": "discriminant",
    "ridge": "ridge regression",
    "aligned": "aligned head",
}
"""The values of `evaluate.readout` but for the method's own predictions, as labels say them."""

By = Literal["class", "domain", "class_and_domain"]
"""What a task brings, see `lorica.data.division`."""

CrossEntropy = Literal["current_task", "all_seen"]
"""The classes that the cross-entropy of a method's loss is over."""

Fraction = Annotated[float, Field(ge=0, le=1)]

Rates = Annotated[list[Fraction | None], Field(min_length=2, max_length=2)]
"""Shares of the samples of two classes that were taken for the other one; None for a class without samples."""

_TOLERANCE = 1e-9
"""How far a measure in a file may be from what its matrix gives."""

_ALWAYS = ("method", "variant", "seed", "tasks", "accuracy", "diagnostics", "complete")
"""What every version has written. A measure is not among them: for a file from before it, the matrix gives it."""

_FOREIGN = "not a metrics.json of this version of lorica"


class _TaskFacts(BaseModel):
    """A task of metrics.json."""

    model_config = WIDER

    classes: Annotated[list[str], Field(min_length=1)]
    train: Count
    test: Count


class _Ledger(BaseModel):
    """What a task cost, see `lorica.cost.measure`; older runs lack some of it."""

    model_config = WIDER

    backbone: Count = 0
    trainable: Count = 0
    trainable_by_kind: dict[str, Count] = {}
    trainable_head: Count = 0
    stored: Count = 0
    stored_by_kind: dict[str, Count] = {}
    stored_features: Count = 0
    end_to_end: bool | None = None
    flops_per_prediction: Count = 0
    forwards_per_prediction: Annotated[float, Field(ge=0)] = 0.0
    tokens_per_prediction: Count | None = None


def _must_be(model: type[BaseModel]) -> AfterValidator:
    """That plain values, which stay plain, are as the model says."""

    def checked(values: dict[str, Any]) -> dict[str, Any]:
        try:
            model.model_validate(values)
        except ValidationError as error:
            raise ValueError("; ".join(misfits(error))) from error
        return values

    return AfterValidator(checked)


Ledger = Annotated[Plain, _must_be(_Ledger)]
"""Plain values, what a task cost."""


class _CostFile(BaseModel):
    """The contents of cost.json."""

    model_config = WIDER

    tasks: list[Ledger]
    train_seconds: list[Seconds] = []
    data_seconds: list[Seconds | None] = []


# what figures and analyses look for in a method's diagnostics: a list with something for each task
_Rows = TypeAdapter(list[list[float]])
_Kept = TypeAdapter(list[list[int]])
_Residuals = TypeAdapter(list[float | None])


@dataclass(frozen=True)
class Measured:
    """An accuracy matrix, and as attributes the measures of it: each name in `lorica.metrics.MEASURES` is one.

    Attributes:
        accuracy: the matrix a[t][i]; row t has t+1 entries, all but the last one None where only the newest task was
            tested.
        counts: the number of test samples of each of its tasks.
    """

    accuracy: Matrix
    counts: list[int]

    def __getattr__(self, name: str) -> float:
        if name in MEASURES:
            return MEASURES[name].of(self.accuracy, self.counts)
        raise AttributeError(f"{type(self).__name__!r} has no {name!r}", name=name, obj=self)

    @property
    def content(self) -> dict[str, Any]:
        """The matrix and every measure of it, by name."""
        return {"accuracy": self.accuracy, **summary(self.accuracy, self.counts)}


class Metrics(BaseModel):
    """The contents of metrics.json; `model_dump()` gives it as plain values.

        {"lorica": "0.1.0", "method": "sd_lora", "variant": "paper", "seed": 0,
         "tasks": [{"classes": ["wren", …], "train": 330, "test": 110}, …],
         "accuracy": [[0.97], [0.91, 0.95], …],      a[t][i], see lorica.metrics
         "acc": …, "aaa": …, "acc_samples": …, "aaa_samples": …,
         "forgetting": …, "forgetting_first_last": …, "bwt": …, "new_task": …,
         "head": {"accuracy": …, "acc": …, …},       the same by the method's own predictions, where `accuracy` is by
                                                     another read-out
         "averaged_over": {"acc": "domains", …},     what each measure is a mean over
         "error_rates": [[[0.1, 0.3]], …],           of a stream of two classes, see lorica.metrics.Errors
         "hter": …,                                  and the half total error rate that follows from them
         "cross_entropy": "current_task",            or "all_seen"; null where the method has none
         "diagnostics": {"magnitudes": [[1.0], [1.1, 0.8], …]},   what the method reports, plain values
         "train_seconds": [61.2, …],                 one for each thing learned: a task, or all of them at once
         "complete": true,
         "recipe": {"method": {…}, "fit": {…}, …},  every setting, as in recipe.yaml
         "stream_by": "domain"}                      what a task brings, see docs/streams.md

    The measures are no fields: they are computed from the matrix whenever they are asked for, as attributes (`acc`,
    `head.acc`), so that the two cannot disagree.

    Attributes:
        lorica: the version that made the run; None where it was not installed as a package, or did not say.
        method: the method's name, as in a recipe.
        variant: which reading of the method: "paper", "released_code", …; None for a method that has only one.
        seed: of the training.
        tasks: of the whole stream, in order: "classes" (names), "train" and "test" (numbers of samples). The ones
            beyond the rows of `accuracy` have not been learned yet.
        accuracy: a row for each task learned; see `lorica.metrics` for rows that are None but for the newest task.
        head_accuracy: the same by the method's own predictions, where `accuracy` is by another read-out.
        error_rates: of a stream of two classes, of the predictions of `accuracy`; see `lorica.metrics.Errors`.
        complete: whether every task has been learned; follows from the matrix where it is not given.
        stream_by: what a task brings, also where the recipe leaves that to a manifest; where it is not given, as the
            recipe says.

    Raises:
        ValueError: a malformed matrix, a task without test samples, or `complete`, the times and the matrix disagree.
    """

    model_config = WRITTEN

    lorica: str | None = Field(default_factory=lambda: package_version("lorica"))
    method: str
    variant: str | None
    seed: int
    tasks: list[Annotated[dict[str, Any], _must_be(_TaskFacts)]]
    accuracy: list[list[float | None]]
    head_accuracy: list[list[float | None]] | None = None
    error_rates: list[list[Rates | None]] | None = None
    cross_entropy: CrossEntropy | None = None
    diagnostics: Plain = {}
    train_seconds: list[Seconds] = []
    identity: Plain = {}
    complete: bool = Field(default_factory=lambda known: len(known["accuracy"]) == len(known["tasks"]))
    recipe: Plain = {}
    stream_by: By = Field(default_factory=lambda known: _by_recipe(known["recipe"]) or "class", validate_default=True)

    @model_validator(mode="after")
    def _agrees(self) -> Metrics:
        rows, number = len(self.accuracy), len(self.tasks)
        for name in _SECTIONS:
            if not isinstance(section := self.recipe.get(name) or {}, dict):
                raise ValueError(f"recipe.{name} is {section!r:.60}, expected a section with keys")
        for each in filter(None, (self._measured, self.head)):
            summary(each.accuracy, each.counts)
            if len(each.accuracy) != rows:
                raise ValueError(f"the head's accuracy matrix has {len(each.accuracy)} rows, the other one {rows}")
        if self.error_rates is not None and (wrong := _unlike(self.error_rates, self.accuracy)):
            raise ValueError(wrong)
        if len(self.train_seconds) not in (0, 1, rows):  # 1: all tasks were learned at once
            raise ValueError(f"train_seconds has {len(self.train_seconds)} times, the accuracy matrix {rows} rows")
        if self.complete != (rows == number):
            said = f"a complete run of {number} tasks" if self.complete else f"a run of {number} tasks, not complete,"
            raise ValueError(f"complete is {self.complete}: {said} whose accuracy matrix has {rows} rows")
        return self

    @model_serializer(mode="wrap")
    def _content(self, fields: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        content: dict[str, Any] = {}
        for name, value in fields(self).items():
            if name == "accuracy":
                content |= self._measured.content
                content["averaged_over"] = {each: self.averaged_over(each) for each in MEASURES}
            elif name == "error_rates":
                if value is not None:
                    content |= {"error_rates": value, "hter": self.hter}
                    content["averaged_over"]["hter"] = self.averaged_over("acc")
            elif name != "head_accuracy":
                content[name] = value
            elif self.head:
                content["head"] = self.head.content
        return content

    def __getattr__(self, name: str) -> float:
        if name in MEASURES:
            return getattr(self._measured, name)
        raise AttributeError(f"{type(self).__name__!r} has no {name!r}", name=name, obj=self)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *MEASURES]

    @property
    def _measured(self) -> Measured:
        return self._with_counts(self.accuracy)

    @property
    def head(self) -> Measured | None:
        """The matrix and the measures by the method's own predictions, where `accuracy` is by another read-out; else
        None."""
        return None if self.head_accuracy is None else self._with_counts(self.head_accuracy)

    @property
    def hter(self) -> float | None:
        """The half total error rate, mean over tasks after the last one (`lorica.metrics.hter`); None where the stream
        has not two classes, no task tests both, or the run is older than the measure."""
        return None if self.error_rates is None else hter(self.error_rates)

    def averaged_over(self, measure: str) -> str:
        """What one of `lorica.metrics.MEASURES` is a mean over in this run."""
        return MEASURES[measure].over.format(tasks="domains" if self.stream_by == "domain" else "tasks")

    def _with_counts(self, accuracy: Matrix) -> Measured:
        return Measured(accuracy, [task["test"] for task in self.tasks[: len(accuracy)]])

    @property
    def label(self) -> str:
        """The method for people: "sd_lora", or "sd_lora (released_code)" where the variant is not the default one, or
        "sd_lora (class means)", "sd_lora (discriminant of 5 layers, affine drift)" where these are read in place of its
        head."""
        extra = [self.variant if self.variant not in DEFAULT_VARIANTS else None, *self._read_out()]
        return f"{self.method} ({', '.join(filter(None, extra))})" if any(extra) else self.method

    def _read_out(self) -> Iterator[str]:
        """What reads the method, if not its head; runs older than these keys know class means alone."""
        if self.head is None:
            return
        recipe = dict(flatten(self.recipe))
        kind, layers = str(recipe.get("evaluate.readout", "prototypes")), recipe.get("evaluate.layers")
        yield READ_OUTS.get(kind, kind) + ("" if layers is None else f" of {layers} layer{'' if layers == 1 else 's'}")
        if (drift := str(recipe.get("evaluate.drift", "none"))) != "none":
            yield f"{drift} drift"

    @property
    def averages(self) -> dict[int, float]:
        """The mean accuracy over the tasks so far, by the number of these, wherever all of them were tested."""
        return {t + 1: fmean(cast(list[float], self.accuracy[t])) for t in whole(self.accuracy)}

    @property
    def magnitudes(self) -> list[list[float]] | None:
        """The magnitudes alpha_0 … after each task t, t+1 of them or fewer; None if the method has none."""
        rows = self._reported("magnitudes", _Rows.validate_python)
        return rows if rows and all(0 < len(row) <= t + 1 for t, row in enumerate(rows)) else None

    @property
    def kept(self) -> list[list[int]] | None:
        """The tasks (from 0) whose directions were kept after each task; None if the method does not say so."""
        rows = self._reported("kept", _Kept.validate_python)
        return rows if rows and all(set(row) <= set(range(t + 1)) for t, row in enumerate(rows)) else None

    @property
    def residuals(self) -> list[float | None]:
        """What was new in the direction of each task, None where nothing was measured; empty if the method does not say
        so."""
        return self._reported("residual", _Residuals.validate_python) or []

    def _reported(self, key: str, form: Callable[..., list[Any]]) -> list[Any] | None:
        """A diagnostic, if it is of that form, with something for each task: other methods may report other things
        so."""
        try:
            found = form(self.diagnostics.get(key), strict=True)
        except ValidationError:
            return None
        return found if len(found) == len(self.accuracy) else None

    @classmethod
    def of(cls, content: Any) -> Metrics:
        """From the contents of a metrics.json. Keys that this version does not know are passed over.

        Raises:
            LoricaError: whatever keeps it from being one, a line each; also a measure that its matrix does not give.
        """
        if not isinstance(content, dict):
            raise LoricaError(f"a {type(content).__name__}, expected an object with method, accuracy, …; {_FOREIGN}")
        if missing := [key for key in _ALWAYS if key not in content]:
            raise LoricaError(f"lacks {', '.join(missing)}; {_FOREIGN}")
        known = {"lorica": None, **{key: content[key] for key in content if key in cls.model_fields}}
        if (head := content.get("head")) is not None:
            if not isinstance(head, dict) or "accuracy" not in head:
                raise LoricaError(f"head is {shown(head)}, expected an object with accuracy; {_FOREIGN}")
            known["head_accuracy"] = head["accuracy"]
        try:
            read = cls(**known)
        except ValidationError as error:
            lines = (line.replace("head_accuracy", "head.accuracy") for line in misfits(error))
            raise LoricaError([f"{line}; {_FOREIGN}" for line in lines]) from error
        altered = [*_contradictions(content, read._measured), *_contradictions(head or {}, read.head, "head.")]
        if "hter" in content and not _is_close(content["hter"], read.hter):
            altered.append(f"hter is {shown(content['hter'])}, but error_rates give {read.hter!r}")
        if altered := altered + list(_unlike_the_recipe(read)):
            raise LoricaError([f"{line}; one of the two has been altered: restore the file" for line in altered])
        return read


def _unlike(error_rates: Sequence[Sequence[Rates | None]], accuracy: Matrix) -> str | None:
    """Where the errors of two classes cannot be those of an accuracy, which lies between what is right of each."""
    if [len(row) for row in error_rates] != [len(row) for row in accuracy]:
        return "error_rates: expected a pair for each entry of the accuracy matrix"
    for t, (pairs, row) in enumerate(zip(error_rates, accuracy, strict=True)):
        for i, (pair, value) in enumerate(zip(pairs, row, strict=True)):
            right = [1 - each for each in pair or () if each is not None]
            if (value is None) != (not right) or (
                value is not None and not min(right) - _TOLERANCE <= value <= max(right) + _TOLERANCE
            ):
                return f"error_rates[{t}][{i}] is {pair}, and the accuracy {value}; one of the two has been altered"
    return None


def _by_recipe(recipe: Mapping[str, Any]) -> Any:
    """What a task brings as a recipe says it; None where a manifest does."""
    values = dict(flatten(recipe))
    return None if values.get("stream.manifest") else values.get("stream.by", "class")


def _unlike_the_recipe(read: Metrics) -> Iterator[str]:
    """What metrics say of a run that its recipe, which they repeat, does not; runs older than a key do not have it."""
    recipe = dict(flatten(read.recipe))
    if (by := _by_recipe(read.recipe)) not in (None, read.stream_by):
        yield f"stream_by is {read.stream_by}, but the recipe has {shown(by)}"
    said = {
        "method.name": read.method,
        "method.variant": read.variant,
        "seed": read.seed,
        "stream.tasks": len(read.tasks),
    }
    of_its_own = str(recipe.get("method.name")).endswith(".py")  # the recipe has a method's file, and not its name
    for key, value in said.items():
        given = recipe.get(key)
        if given is not None and given != value and not (of_its_own and key == "method.name"):
            yield f"{key.replace('stream.', 'the number of ')} is {shown(value)}, but the recipe has {shown(given)}"
    if read.variant is not None and "method.name" in recipe and "method.variant" not in recipe:
        yield f"method.variant is {shown(read.variant)}, but the recipe has none"
    readout = recipe.get("evaluate.readout")
    if readout is not None and (readout != "head") != (read.head is not None):
        there = "there" if read.head else "missing"
        yield f"head is {there}, but the recipe has evaluate.readout={shown(readout)}"


@dataclass(frozen=True)
class Result:
    """A run's outcome. Whatever its metrics have is an attribute of it too: `result.acc`, `result.tasks`,
    `result.label`.

    Attributes:
        path: the folder it came from, if any.
        metrics: the contents of its metrics.json.
        cost: the last task's entry in its cost.json, see `lorica.cost.measure`, with what trained on the task that
            trained most; None where there is none, and older runs lack some keys.
    """

    path: Path | None
    metrics: Metrics = field(repr=False)
    cost: dict[str, Any] | None = field(default=None, repr=False)

    def __getattr__(self, name: str) -> Any:
        if name == "metrics" or name.startswith("_"):  # not there yet while it is being copied; or nobody's business
            raise AttributeError(f"{type(self).__name__!r} has no {name!r}", name=name, obj=self)
        return getattr(self.metrics, name)

    def __dir__(self) -> list[str]:
        facts = (name for name in dir(self.metrics) if not name.startswith(("_", "model_")))
        return sorted({*super().__dir__(), *facts})


class Entry(BaseModel):
    """What is known of one thing learned: a task, or all tasks by a method that learns them at once. The same after
    it has been to the disk and back, to the last bit.

    Attributes:
        rows: of the accuracy matrix, which its test filled: one; or one for each task, where all are learned at once. A
            model that goes on learning has none.
        head_rows: the same by the method's own predictions, where `rows` are by another read-out; else none.
        error_rows: of a stream of two classes, the errors of each beside `rows`.
        diagnostics: what the method reports then, plain values.
        train_seconds: how long learning took, without the test.
        data_seconds: of these, how long the main stage waited for batches; None where it was not looked at.
        cost: see `lorica.cost.measure`.
    """

    model_config = WRITTEN

    rows: list[list[Fraction | None]]
    head_rows: list[list[Fraction | None]] = []
    error_rows: list[list[Rates | None]] = Field(default=[], exclude_if=lambda value: not value)
    diagnostics: Plain = {}
    train_seconds: Seconds
    data_seconds: Seconds | None = None
    cost: Ledger = {}


@dataclass
class Record:
    """The account of a run, which grows by an entry with each thing learned; what its folder says follows from it."""

    entries: list[Entry] = field(default_factory=list)

    @property
    def rows(self) -> list[list[float | None]]:
        """The accuracy matrix so far."""
        return [row for entry in self.entries for row in entry.rows]

    @property
    def head_rows(self) -> list[list[float | None]] | None:
        """The same by the method's own predictions, where `rows` are by another read-out; else None."""
        return [row for entry in self.entries for row in entry.head_rows] or None

    @property
    def diagnostics(self) -> dict[str, list[Any]]:
        """What the method has reported, by key: a value for each entry that has it, in order."""
        collected: dict[str, list[Any]] = {}
        for entry in self.entries:
            for key, value in entry.diagnostics.items():
                collected.setdefault(key, []).append(value)
        return collected

    @property
    def train_seconds(self) -> list[float]:
        """How long learning each entry took, in seconds."""
        return [entry.train_seconds for entry in self.entries]

    @property
    def costs(self) -> list[dict[str, Any]]:
        """The ledger of each entry, see `lorica.cost.measure`."""
        return [entry.cost for entry in self.entries]

    def metrics(
        self,
        *,
        method: str,
        variant: str | None,
        seed: int,
        tasks: Sequence[Mapping[str, Any]],
        stream_by: By,
        cross_entropy: CrossEntropy | None,
        recipe: Mapping[str, Any],
        identity: Mapping[str, str],
    ) -> Metrics:
        """The contents of metrics.json, once there is an entry.

        Args:
            tasks, stream_by: of the whole stream; see `Metrics`.
            cross_entropy: of the recipe; it is left out where nothing has been trained.
            identity: digests of the backbone's weights and of the data; unlike ones are never averaged.
        """
        return Metrics(
            method=method,
            variant=variant,
            seed=seed,
            tasks=[dict(task) for task in tasks],
            stream_by=stream_by,
            accuracy=self.rows,
            head_accuracy=self.head_rows,
            error_rates=[row for entry in self.entries for row in entry.error_rows] or None,
            cross_entropy=cross_entropy if any(cost.get("trainable") for cost in self.costs) else None,
            diagnostics=self.diagnostics,
            train_seconds=self.train_seconds,
            recipe=dict(recipe),
            identity=dict(identity),
        )

    def cost(self) -> dict[str, Any]:
        """The contents of cost.json."""
        waited = [entry.data_seconds for entry in self.entries]
        return {"tasks": self.costs, "train_seconds": self.train_seconds, "data_seconds": waited}


def read_result(path: Path | str) -> Result:
    """The result of a run's folder: its metrics.json, and cost.json where there is one.

    Raises:
        LoricaError: metrics.json is missing, or one of them truncated or not one of lorica's; all that is wrong with
            it at once.
    """
    folder = RunFolder(path)
    content = read_json(folder.metrics)
    try:
        read = Metrics.of(content)
    except LoricaError as error:
        raise LoricaError([f"{folder.metrics}: {problem}" for problem in error.problems]) from error
    cost = _cost_in(folder.cost, read) if folder.cost.exists() else None
    return Result(folder.path, read, cost)


class Look(BaseModel):
    """A line of history.jsonl: one look at the training, see `lorica.descent.Descent.row`; all numbers from 0."""

    model_config = WIDER

    task: Count
    stage: Count = 0
    epoch: Count
    step: Count
    learning_rate: float
    terms: dict[str, float | None]
    diagnostics: dict[str, Any] = {}


def read_history(path: Path | str) -> list[Look]:
    """What was seen while the run in that folder was trained, in order; nothing where it trained nothing.

    Raises:
        LoricaError: a line that is not one of a history.
    """
    file = RunFolder(path).history
    looks = []
    for number, line in enumerate(complete_lines(file), start=1):
        try:
            looks.append(Look.model_validate_json(line))
        except ValidationError as error:
            why = "; ".join(misfits(error))
            raise LoricaError(f"{file}: line {number}: {why}; truncated or altered: restore the file") from error
    return looks


class Confusion(BaseModel):
    """The contents of confusion.json: what the test samples were taken for after the last task, among all classes.

    Attributes:
        classes: names, in the order of their numbers.
        counts: of samples, as [class, class it was taken for, samples], ascending; what never occurs is left out.
    """

    model_config = WRITTEN

    classes: list[str]
    counts: list[tuple[Count, Count, Count]]

    @model_validator(mode="after")
    def _of_its_classes(self) -> Confusion:
        if any(max(pair) >= len(self.classes) for *pair, _ in self.counts):
            raise ValueError(f"counts: expected numbers of {len(self.classes)} classes")
        return self


def read_confusion(run: Result) -> Confusion | None:
    """That of a complete run; None for one that is older than the file.

    Raises:
        LoricaError: damaged, or not of this run.
    """
    file = RunFolder(run.path).confusion if run.path else None
    if not (file and run.complete and file.exists()):
        return None
    try:
        read = Confusion.model_validate_json(file.read_bytes())
    except (OSError, ValidationError) as error:
        why = "; ".join(misfits(error)) if isinstance(error, ValidationError) else error.strerror
        raise LoricaError(f"{file}: cannot be read: {why}; restore the file, or delete it") from error
    samples = sum(number for *_, number in read.counts)
    right = sum(number for one, other, number in read.counts if one == other)
    tested = sum(task["test"] for task in run.tasks)
    if samples != tested or abs(right - run.acc_samples * tested) > 1e-6 * tested:
        raise LoricaError(
            f"{file}: {right} of {samples} samples are right, but metrics.json says {run.acc_samples:.4f} of {tested}; "
            "one of the two has been altered: restore it"
        )
    return read


def find_runs(paths: Sequence[Path | str], *, left_out: Callable[[str], None] | None = None) -> list[Result]:
    """Every run at or below the given folders, each once, sorted by path with numbers as numbers (run-2 before run-10).

    Args:
        left_out: called with each line about a run below one of the folders whose files are no good, which then does
            not keep the others from being read, absent = it is an error; and with one about each that has begun and has
            no metrics.json.

    Raises:
        LoricaError: a path is not a folder, holds no run, or the files of a run are bad; all of them at once.
    """
    folders: dict[Path, Path] = {}  # resolved, so that a run reached twice is read once -> as given
    given = {Path(path).resolve() for path in paths}
    results: list[Result] = []
    problems: list[str] = []
    skipped: list[str] = []
    for path in map(Path, paths):
        try:
            found = {file.parent.resolve(): file.parent for file in path.rglob("metrics.json")}
            what = "no metrics.json in it or below" if path.is_dir() else "not a folder"
        except OSError as error:
            found, what = {}, str(error.strerror)
        if not found:
            problems.append(f"{path}: {what}; expected the folder of a run, or one that holds such folders")
        folders = found | folders
    for resolved, folder in sorted(folders.items(), key=lambda item: _natural(item[1])):
        try:
            results.append(read_result(folder))
        except LoricaError as error:
            (problems if left_out is None or resolved in given else skipped).extend(error.problems)
    if problems or (skipped and not results):
        raise LoricaError(problems + skipped)
    if left_out:
        for line in (*skipped, *_begun(paths)):
            left_out(line)
    return results


def _begun(paths: Sequence[Path | str]) -> Iterator[str]:
    """A line for each run at or below the folders that was stopped, or is at work, before its first task was learned;
    or whose metrics.json is gone."""
    begun = {file.parent.resolve(): file.parent for path in paths for file in Path(path).rglob("stream.jsonl")}
    for folder in sorted(begun.values(), key=_natural):
        if RunFolder(folder).recipe.exists() and not RunFolder(folder).metrics.exists():
            yield f"{folder}: it has begun, and there is no metrics.json: no task is learned; --resume goes on with it"


def _cost_in(file: Path, metrics: Metrics) -> dict[str, Any] | None:
    """What the last task that is in the metrics cost. A process that is killed leaves a cost.json that is ahead of
    them.

    Raises:
        LoricaError: a file that is no cost.json, or of another run than the metrics.
    """
    try:
        read = _CostFile.model_validate(read_json(file))
    except ValidationError as error:
        raise LoricaError(
            [f"{file}: {line}; not a cost.json of this version of lorica" for line in misfits(error)]
        ) from error
    if not read.tasks:
        return None
    learned = len(metrics.train_seconds) or (1 if len(read.tasks) == 1 else len(metrics.accuracy))
    said = f"{learned} times" if metrics.train_seconds else f"a matrix of {learned} rows"
    problems = []
    if len(read.tasks) < learned or (metrics.complete and len(read.tasks) > learned):
        problems.append(f"tasks has {len(read.tasks)} entries, but metrics.json has {said}")
    if read.train_seconds and len(read.train_seconds) != len(read.tasks):
        problems.append(f"train_seconds has {len(read.train_seconds)} entries, but tasks has {len(read.tasks)}")
    pairs = zip(read.train_seconds, metrics.train_seconds, strict=False)
    problems += [
        f"train_seconds[{index}] is {own}, but metrics.json says {other}"
        for index, (own, other) in enumerate(pairs)
        if own != other
    ]
    if problems:
        raise LoricaError([f"{file}: {problem}; one of the two has been altered: restore it" for problem in problems])
    tasks = read.tasks[:learned]
    most = max((task["trainable"] for task in tasks if "trainable" in task), default=None)
    return tasks[-1] | ({} if most is None else {"trainable": most})  # some methods train on their first task alone


def _contradictions(content: Mapping[str, Any], measured: Measured | None, prefix: str = "") -> Iterator[str]:
    """The measures in `content` that its matrix does not give."""
    for name in MEASURES:
        if name in content and not _is_close(content[name], value := getattr(measured, name)):
            yield f"{prefix}{name} is {shown(content[name])}, but the accuracy matrix gives {value!r}"


def _is_close(stated: Any, value: float | None) -> bool:
    if value is None or type(stated) not in (int, float):
        return stated is value
    return value - _TOLERANCE <= stated <= value + _TOLERANCE


def _natural(path: Path) -> list[str | int]:
    """A sort key under which runs of digits compare as numbers."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", str(path)))]
