"""Which samples are in which task: classes that come back, domains, and both at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorica.data.division import Division, divide
from lorica.data.images import ImageReader
from lorica.data.sources.base import Domains, Source
from lorica.data.stream import Stream
from lorica.errors import DataError
from tests.data.test_stream import plain_source


def with_domains(train: Sequence[Sequence[int]], test: Sequence[Sequence[int]]) -> Source:
    """A source with so many samples of each class (column) in each domain (row), in a shuffled order."""
    halves = []
    for counts in (np.array(train), np.array(test)):
        cells = np.random.RandomState(7).permutation(np.repeat(np.arange(counts.size), counts.ravel()))
        halves.append((cells // counts.shape[1], cells % counts.shape[1]))
    source = plain_source(np.sum(train, axis=0).tolist(), np.sum(test, axis=0).tolist())
    for samples, (_, labels) in zip((source.train, source.test), halves, strict=True):
        samples.labels = labels.astype(np.int64)
    names = tuple(f"domain {number}" for number in range(len(train)))
    return replace(source, domains=Domains(names, halves[0][0], halves[1][0]))


def same(one: Division, other: Division) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("order", "train", "held", "test"))


@settings(max_examples=60)
@given(
    data=st.data(),
    recurring=st.floats(0.01, 1),
    recur_in=st.none() | st.integers(1, 5),
    share=st.floats(0.01, 0.99),
    seed=st.none() | st.integers(0, 2**32 - 1),
    fraction=st.sampled_from([0.0, 0.2]),
)
def test_what_comes_back_is_in_one_task_each_and_new_once(
    data: st.DataObject, recurring: float, recur_in: int | None, share: float, seed: int | None, fraction: float
) -> None:
    sizes = data.draw(st.lists(st.integers(1, 4), min_size=2, max_size=5), label="classes per task")
    per_class = st.lists(st.integers(2, 9), min_size=sum(sizes), max_size=sum(sizes))
    source = plain_source(data.draw(per_class, label="train"), data.draw(per_class, label="test"))
    plain: dict[str, Any] = {"classes_per_task": sizes, "seed": seed, "validation_fraction": fraction}
    options = plain | {"recurring": recurring, "recur_in": recur_in, "recur_share": share}
    stream = Stream(source, reader=ImageReader(4), **options)
    once, without = divide(source, **options), divide(source, **plain)
    assert same(once, divide(source, **options))

    # every training image in exactly one task, every class new exactly once, in the order without what comes back
    trained = [index for task in stream.tasks for index in stream.train(task).indices.tolist()]
    held = [index for task in stream.tasks for index in stream.validation(task).indices.tolist()]
    assert sorted(trained + held) == list(range(len(source.train)))
    assert [number for task in stream.tasks for number in task.new_classes] == list(range(sum(sizes)))
    assert [len(task.new_classes) for task in stream.tasks] == sizes
    assert np.array_equal(once.order, without.order)

    # what is tested and held out stays; of training images some move, to later tasks, not too far, and not too many
    assert np.array_equal(once.test, without.test)
    assert np.array_equal(once.held, without.held)
    assert (once.train[once.held] == without.train[once.held]).all()
    moved = once.train != without.train
    assert (once.train[moved] > without.train[moved]).all()
    if recur_in is not None:
        assert (once.train[moved] - without.train[moved] <= recur_in).all()
    for number in range(sum(sizes)):
        own = (source.train.labels == number) & ~once.held
        back = int((own & moved).sum())
        assert back in (0, min(round(share * own.sum()), own.sum() - 1))
        in_each = np.bincount(once.train[own & moved], minlength=1)
        assert back == 0 or in_each.max() <= -(-back // min(recur_in or 5, len(sizes) - 1 - without.train[own][0]))
    for task in range(len(sizes) - 1):
        classes = np.unique(source.train.labels[without.train == task])
        returning = np.unique(source.train.labels[moved & (without.train == task)])
        assert len(returning) <= max(1, round(recurring * len(classes)))
    assert not (without.train[moved] == len(sizes) - 1).any()


def test_half_of_the_classes_come_back_in_the_two_tasks_that_follow() -> None:
    source = plain_source([8] * 8, [2] * 8)
    made = divide(source, tasks=4, seed=3, recurring=0.5, recur_in=2, recur_share=0.5)
    counts = np.array([np.bincount(made.train[source.train.labels == number], minlength=4) for number in made.order])
    assert sorted(map(tuple, counts[:2].tolist())) == [(4, 2, 2, 0), (8, 0, 0, 0)]
    assert sorted(map(tuple, counts[2:4].tolist())) == [(0, 4, 2, 2), (0, 8, 0, 0)]
    assert sorted(map(tuple, counts[4:6].tolist())) == [(0, 0, 4, 4), (0, 0, 8, 0)]
    assert counts[6:].tolist() == [[0, 0, 0, 8]] * 2
    assert not same(made, divide(source, tasks=4, seed=4, recurring=0.5, recur_in=2, recur_share=0.5))


def test_tasks_know_which_of_their_classes_come_back() -> None:
    stream = Stream(plain_source([8] * 4, [2] * 4), tasks=2, seed=None, recurring=1.0, reader=ImageReader(4))
    first, second = stream.tasks
    assert (first.classes, first.new_classes) == ((0, 1), (0, 1))
    assert (second.classes, second.new_classes) == ((0, 1, 2, 3), (2, 3))
    assert [len(stream.train(task)) for task in stream.tasks] == [8, 24]
    assert [set(stream.test(task).labels.tolist()) for task in stream.tasks] == [{0, 1}, {2, 3}]


def test_a_stream_of_one_task_has_nothing_to_come_back_in() -> None:
    with pytest.raises(DataError, match=r"^stream\.recurring: a stream of one task has no later one"):
        divide(plain_source([4, 4], [1, 1]), tasks=1, recurring=0.5)


def test_classes_and_domains_arrive_together() -> None:
    """Task t has what is new in a world of t groups of classes and t domains: each sample where the later of the two
    is."""
    source = with_domains([[3, 4, 5, 6]] * 3, [[1, 2, 1, 2]] * 3)
    assert source.domains is not None
    made = divide(source, by="class_and_domain", tasks=3, seed=None)
    group = np.array([0, 0, 1, 2])  # four classes in three tasks
    for task, half, domain in ((made.train, "train", source.domains.train), (made.test, "test", source.domains.test)):
        labels = getattr(source, half).labels
        assert task.tolist() == [max(group[label], each) for label, each in zip(labels, domain, strict=True)]
    stream = Stream(source, by="class_and_domain", tasks=3, seed=None, reader=ImageReader(4))
    assert [task.classes for task in stream.tasks] == [(0, 1), (0, 1, 2), (0, 1, 2, 3)]
    assert [task.new_classes for task in stream.tasks] == [(0, 1), (2,), (3,)]
    assert [len(stream.train(task)) for task in stream.tasks] == [3 + 4, (3 + 4) + 2 * 5, (3 + 4 + 5) + 3 * 6]


@settings(max_examples=40)
@given(data=st.data(), seed=st.none() | st.integers(0, 999))
def test_in_a_world_that_grows_both_ways_every_task_has_new_classes_and_a_new_domain(
    data: st.DataObject, seed: int | None
) -> None:
    tasks = data.draw(st.integers(1, 4), label="domains")
    classes = data.draw(st.integers(tasks, 7), label="classes")
    cells = st.lists(st.lists(st.integers(1, 4), min_size=classes, max_size=classes), min_size=tasks, max_size=tasks)
    source = with_domains(data.draw(cells, label="train"), data.draw(cells, label="test"))
    assert source.domains is not None
    made = divide(source, by="class_and_domain", tasks=tasks, seed=seed)
    stream = Stream(source, by="class_and_domain", tasks=tasks, seed=seed, reader=ImageReader(4))
    assert [number for task in stream.tasks for number in task.new_classes] == list(range(classes))
    for task in stream.tasks:
        assert task.new_classes
        assert task.classes == tuple(range(task.new_classes[-1] + 1))  # of all classes so far
        assert set(source.domains.train[made.train == task.index]) == set(range(task.index + 1))
        assert (source.domains.train[made.train < task.index] < task.index).all()  # its domain is new, too


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": 2}, r"^stream\.tasks: plain has 3 domains, a task each, got 2; give stream\.tasks=3$"),
        ({"tasks": 5}, r"^stream\.tasks: plain has 3 domains, a task each, got 5; give stream\.tasks=3$"),
        (
            {"classes_per_task": 1},
            r"got 4; give stream\.tasks=3 in place of stream\.classes_per_task$",
        ),
        ({}, r"^stream\.tasks: expected either stream\.tasks or stream\.classes_per_task, neither given$"),
    ],
)
def test_as_many_groups_of_classes_as_domains(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        divide(with_domains([[2] * 4] * 3, [[1] * 4] * 3), by="class_and_domain", **options)


@pytest.mark.parametrize(
    "options", [{"tasks": 2}, {"tasks": 3}, {"tasks": 9}, {"classes_per_task": 1}, {"classes_per_task": [1, 1]}, {}]
)
def test_fewer_classes_than_domains(options: dict[str, Any]) -> None:
    source = with_domains([[2] * 2] * 3, [[1] * 2] * 3)
    remedy = r"has 3 domains, but only 2 classes; give stream\.by=domain and stream\.tasks=3, or 2 domains at most$"
    with pytest.raises(DataError, match=rf"^stream\.by: class_and_domain brings new classes .* plain {remedy}"):
        divide(source, by="class_and_domain", **options)
    assert divide(source, by="domain", tasks=3).tasks == 3


def test_a_class_that_its_group_has_not_yet_is_new_where_it_first_is() -> None:
    """The first class is only in the second domain, so that it cannot be new in the first task."""
    source = with_domains([[0, 2, 2], [3, 2, 2]], [[0, 1, 1], [1, 1, 1]])
    stream = Stream(source, by="class_and_domain", classes_per_task=[2, 1], seed=None, reader=ImageReader(4))
    assert stream.class_names == ("class 1", "class 0", "class 2")
    assert [task.new_classes for task in stream.tasks] == [(0,), (1, 2)]
