"""Which samples arrive in which task: by their classes, by their domains, or by both at once.

A sample is in exactly one task. What is tested of a task is its test samples: those of a class are in the task in which
the class is new, also where it comes back later, and those of a class in a domain where its training samples in that
domain are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int

from lorica.data.sources.base import Source, some, split_per_class
from lorica.errors import DataError

By = Literal["class", "domain", "class_and_domain"]
"""What a task brings: new classes, a new domain, or both."""


@dataclass(frozen=True)
class Division:
    """A source's samples, divided into tasks.

    Attributes:
        order: its class numbers, in the order in which their first tasks come.
        tasks: how many there are.
        train: the task of each training sample.
        held: which of these are held out for validation.
        test: the task of each test sample.
        by: what a task brings.
    """

    order: Int[np.ndarray, " classes"]
    tasks: int
    train: Int[np.ndarray, " n_train"]
    held: Bool[np.ndarray, " n_train"]
    test: Int[np.ndarray, " n_test"]
    by: By = "class"

    @classmethod
    def of(
        cls,
        source: Source,
        order: Int[np.ndarray, " classes"],
        tasks: int,
        train: Int[np.ndarray, " n_train"],
        held: Bool[np.ndarray, " n_train"],
        test: Int[np.ndarray, " n_test"],
        by: By = "class",
    ) -> Division:
        """Classes of earlier tasks come before those of later ones, else they stay in that order.

        Raises:
            DataError: test samples of a class that is learned in a later task only, or a task without samples.
        """
        first = np.full(len(source.class_names), tasks)
        np.minimum.at(first, source.train.labels, train)
        made = cls(order[np.argsort(first[order], kind="stable")], tasks, train, held, test, by)
        problems = []
        if early := [
            source.class_names[each] for each in np.unique(source.test.labels[test < first[source.test.labels]])
        ]:
            problems.append(
                f"stream: test samples of {some(early)} are in a task before the first that learns the class; move "
                "them, or leave them out"
            )
        for half, present in (("training", train[~held]), ("test", test), ("validation", train[held])):
            if half == "validation" and not held.any():
                continue
            for task in sorted(set(range(tasks)) - set(present.tolist())):
                names = [source.class_names[number] for number in np.unique(source.train.labels[train == task])]
                named = f" ({some(names)})" if names else ""
                problems.append(f"stream.tasks: task {task + 1}{named} has no {half} samples")
        if problems:
            raise DataError(problems)
        return made


def divide(
    source: Source,
    *,
    by: By = "class",
    tasks: int | None = None,
    classes_per_task: int | Sequence[int] | None = None,
    seed: int | None = 1993,
    recurring: float = 0.0,
    recur_in: int | None = None,
    recur_share: float = 0.5,
    validation_fraction: float = 0.0,
    validation_seed: int = 0,
) -> Division:
    """The samples of a source in tasks; give either `tasks` or `classes_per_task`.

    by="class": groups of classes. `tasks=T`: T groups as even as possible, the larger ones first. `classes_per_task`: a
    number (the last group may be smaller), or one number per task. by="domain": the source's domains one after another,
    each with its classes, of which those that an earlier one had are not new; `tasks` is their number.
    by="class_and_domain": as many groups of classes as there are domains, and task t has what is new in a world of the
    first t groups and the first t domains: domain t of all classes so far, and group t in all domains so far.

    Args:
        seed: orders the classes by RandomState(seed).permutation; None keeps the source's order, which some sources ask
            for (`Source.in_order`).
        recurring: share of the classes of each task but the last that come back, drawn by the seed (0 where there is
            none), at least one; 0 = none.
        recur_in: in how many of the tasks that follow; None = in all of them.
        recur_share: of such a class's training samples that come back, drawn by the seed and divided over these tasks
            evenly; at least one stays in the class's own task.
        validation_fraction: of the training samples of each class, and each domain where tasks bring these, that are
            held out, by a seed of their own. They come back in no later task, as test samples do not.

    Raises:
        DataError: a division that is impossible, or that leaves a task without training, test or validation samples.
    """
    number = len(source.class_names)
    if not 0 <= validation_fraction < 1:
        raise DataError(f"data.validation_fraction: expected at least 0 and less than 1, got {validation_fraction}")
    if source.in_order and seed is not None:
        raise DataError(
            f"stream.seed: the classes of {source.name} come in an order of their own, got {seed}; give "
            "stream.seed=null"
        )
    order = np.arange(number) if seed is None else np.random.RandomState(seed).permutation(number)
    domains = None if by == "class" else source.domains
    if by != "class" and domains is None:
        raise DataError(
            f"stream.by: {source.name} has no domains; domain_folders and domainnet have, and rows by "
            "data.domain_column; give one of these, or stream.by=class"
        )
    if by == "domain" and domains is not None:
        _require_a_task_each(source, domains.names, tasks)
        sizes, train, test = [0] * len(domains.names), domains.train, domains.test
    else:
        if domains is not None:
            _require_a_class_each(source, domains.names)
            if classes_per_task is None and tasks is not None:
                _require_a_task_each(source, domains.names, tasks)
        sizes = _task_sizes(number, tasks, classes_per_task)
        group = np.repeat(np.arange(len(sizes)), sizes)[np.argsort(order)]  # of each class
        train, test = group[source.train.labels], group[source.test.labels]
        if domains is not None:
            _require_a_task_each(source, domains.names, len(sizes), " in place of stream.classes_per_task")
            train, test = np.maximum(train, domains.train), np.maximum(test, domains.test)
    held = np.zeros(len(train), dtype=bool)
    if validation_fraction > 0:
        _, out = split_per_class(source.train.labels * len(sizes) + train, validation_fraction, validation_seed)
        held[out] = True
    if recurring:
        train = _with_returns(source, train, held, len(sizes), recurring, recur_in, recur_share, seed or 0)
    return Division.of(source, order, len(sizes), train, held, test, by)


def _with_returns(
    source: Source,
    train: Int[np.ndarray, " n"],
    held: Bool[np.ndarray, " n"],
    tasks: int,
    recurring: float,
    recur_in: int | None,
    recur_share: float,
    seed: int,
) -> Int[np.ndarray, " n"]:
    """The task of each training sample, once some classes of each task come back in later ones."""
    if tasks < 2:
        raise DataError("stream.recurring: a stream of one task has no later one in which classes could come back")
    own, labels, moved = train, source.train.labels, train.copy()
    draws = np.random.RandomState([seed, 1])  # other numbers than those of the class order
    for task in range(tasks - 1):
        classes = draws.permutation(np.unique(labels[own == task]))
        following = range(task + 1, tasks)[:recur_in]
        for number in classes[: max(1, round(recurring * len(classes)))]:
            members = draws.permutation(np.flatnonzero((labels == number) & ~held))
            back = members[: min(round(recur_share * len(members)), len(members) - 1)]
            for later, part in zip(following, np.array_split(back, len(following)), strict=True):
                moved[part] = later
    return moved


def _require_a_task_each(source: Source, domains: Sequence[str], tasks: int | None, besides: str = "") -> None:
    if tasks != len(domains):
        given = "" if tasks is None else f", got {tasks}"
        raise DataError(
            f"stream.tasks: {source.name} has {len(domains)} domains, a task each{given}; "
            f"give stream.tasks={len(domains)}{besides}"
        )


def _require_a_class_each(source: Source, domains: Sequence[str]) -> None:
    classes = len(source.class_names)
    if classes < len(domains):
        raise DataError(
            f"stream.by: class_and_domain brings new classes and a new domain in every task, and {source.name} has "
            f"{len(domains)} domains, but only {classes} classes; give stream.by=domain and stream.tasks="
            f"{len(domains)}, or {classes} domains at most"
        )


def _task_sizes(classes: int, tasks: int | None, classes_per_task: int | Sequence[int] | None) -> list[int]:
    """Classes in each task."""
    if (tasks is None) == (classes_per_task is None):
        given = "neither" if tasks is None else "both"
        raise DataError(f"stream.tasks: expected either stream.tasks or stream.classes_per_task, {given} given")
    if tasks is not None:
        if not 1 <= tasks <= classes:
            raise DataError(f"stream.tasks: expected 1 to {classes}, the number of classes; got {tasks}")
        return [classes // tasks + (index < classes % tasks) for index in range(tasks)]
    if isinstance(classes_per_task, int):
        if not 1 <= classes_per_task <= classes:
            raise DataError(
                f"stream.classes_per_task: expected 1 to {classes}, the number of classes; got {classes_per_task}"
            )
        return [min(classes_per_task, classes - start) for start in range(0, classes, classes_per_task)]
    sizes = list(classes_per_task or ())
    if any(size < 1 for size in sizes):
        raise DataError(f"stream.classes_per_task: expected at least 1 class in every task, got {sizes}")
    if sum(sizes) != classes:
        raise DataError(f"stream.classes_per_task: {sizes} sums to {sum(sizes)}, but there are {classes} classes")
    return sizes
