"""The stream: class order, division into tasks, splits, decoding once, and what batches hold."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Int, UInt8

from lorica.data.images import ImageReader, Images
from lorica.data.sources import Source, arrays
from lorica.data.stream import Split, Stream
from lorica.errors import DataError
from lorica.randomness import Draws
from lorica.types import Task

CPU = torch.device("cpu")


class Plain(Images):
    """Images of one colour, the sample's number; counts how often each is decoded."""

    def __init__(self, labels: Int[np.ndarray, " n"]) -> None:
        super().__init__(labels)
        self.decoded: Counter[int] = Counter()

    def decode(self, index: int, least: int | None = None) -> UInt8[np.ndarray, "h w 3"]:
        self.decoded[index] += 1
        return np.full((12, 10, 3), index, np.uint8)

    def describe(self, index: int) -> str:
        return f"plain {index}"

    def digest(self, index: int) -> bytes:
        return bytes([index])


def plain_source(train_per_class: Sequence[int], test_per_class: Sequence[int]) -> Source:
    names = tuple(f"class {number}" for number in range(len(train_per_class)))
    shuffled = np.random.RandomState(4).permutation
    train, test = (
        Plain(shuffled(np.repeat(np.arange(len(names)), counts))) for counts in (train_per_class, test_per_class)
    )
    return Source("plain", names, train, test, {})


def numbers(split: Split, augment: str = "none", draws: Draws | None = None) -> list[int]:
    """The samples of one pass, read off the pixels."""
    batches = split.batches(4, device=CPU, augment=augment, draws=draws)
    return [number for batch in batches for number in (batch.inputs[:, 0, 0, 0] * 255).round().int().tolist()]


def sizes(stream: Stream) -> list[int]:
    return [len(task.class_names) for task in stream.tasks]


# ---------------------------------------------------------------------------------------------------- classes


def test_class_order_is_the_permutation_of_random_state() -> None:
    stream = Stream(plain_source([2] * 7, [1] * 7), tasks=3, reader=ImageReader(8))
    expected = np.random.RandomState(1993).permutation(7)
    assert stream.class_order == tuple(expected)
    assert stream.class_names == tuple(f"class {number}" for number in expected)
    assert stream.tasks == (
        Task.of_new_classes(0, 0, stream.class_names[:3]),
        Task.of_new_classes(1, 3, stream.class_names[3:5]),
        Task.of_new_classes(2, 5, stream.class_names[5:]),
    )


def test_class_order_of_a_hundred_classes_as_in_the_literature() -> None:
    stream = Stream(plain_source([1] * 100, [1] * 100), tasks=10, reader=ImageReader(1))
    assert stream.class_order[:6] == (68, 56, 78, 8, 23, 84)  # the order that published logs show


def test_class_order_of_another_seed_and_of_none() -> None:
    source = plain_source([2] * 9, [1] * 9)
    assert Stream(source, tasks=2, seed=5, reader=ImageReader(8)).class_order == tuple(
        np.random.RandomState(5).permutation(9)
    )
    assert Stream(source, tasks=2, seed=None, reader=ImageReader(8)).class_order == tuple(range(9))


def test_labels_are_positions_in_the_class_order() -> None:
    source = plain_source([3] * 5, [2] * 5)
    stream = Stream(source, tasks=2, reader=ImageReader(8))
    for task in stream.tasks:
        for split, samples in ((stream.train(task), source.train), (stream.test(task), source.test)):
            original = samples.labels[split.indices]
            assert split.labels.dtype == torch.int64
            assert [stream.class_order[label] for label in split.labels] == original.tolist()


@pytest.mark.parametrize(
    ("division", "expected"),
    [
        ({"tasks": 1}, [10]),
        ({"tasks": 4}, [3, 3, 2, 2]),
        ({"tasks": 10}, [1] * 10),
        ({"classes_per_task": 4}, [4, 4, 2]),
        ({"classes_per_task": 5}, [5, 5]),
        ({"classes_per_task": 10}, [10]),
        ({"classes_per_task": [1, 7, 2]}, [1, 7, 2]),
        ({"classes_per_task": (6, 4)}, [6, 4]),
    ],
)
def test_division_into_tasks(division: dict, expected: list[int]) -> None:
    stream = Stream(plain_source([1] * 10, [1] * 10), reader=ImageReader(8), **division)
    assert sizes(stream) == expected
    assert stream.tasks[-1].classes[-1] == 9


@pytest.mark.parametrize(
    ("division", "message"),
    [
        ({}, r"stream\.tasks: expected either stream\.tasks or stream\.classes_per_task, neither given"),
        ({"tasks": 2, "classes_per_task": 2}, r"stream\.tasks: expected either .*, both given"),
        ({"tasks": 5}, r"stream\.tasks: expected 1 to 4, the number of classes; got 5"),
        ({"tasks": 0}, r"stream\.tasks: expected 1 to 4, the number of classes; got 0"),
        ({"classes_per_task": 0}, r"stream\.classes_per_task: expected 1 to 4, the number of classes; got 0"),
        ({"classes_per_task": 5}, r"stream\.classes_per_task: expected 1 to 4, the number of classes; got 5"),
        ({"classes_per_task": [2, 1]}, r"stream\.classes_per_task: \[2, 1\] sums to 3, but there are 4 classes"),
        ({"classes_per_task": [3, 2]}, r"stream\.classes_per_task: \[3, 2\] sums to 5, but there are 4 classes"),
        ({"classes_per_task": []}, r"stream\.classes_per_task: \[\] sums to 0, but there are 4 classes"),
        (
            {"classes_per_task": [4, 0]},
            r"stream\.classes_per_task: expected at least 1 class in every task, got \[4, 0\]",
        ),
        ({"tasks": 2, "validation_fraction": 1.0}, r"data\.validation_fraction: expected at least 0 and less than 1"),
    ],
)
def test_a_stream_that_is_impossible(division: dict, message: str) -> None:
    with pytest.raises(DataError, match=f"^{message}"):
        Stream(plain_source([2] * 4, [1] * 4), reader=ImageReader(8), **division)


def test_a_task_needs_images_to_be_tested_on() -> None:
    source = plain_source([2, 1, 1], [1, 0, 0])
    with pytest.raises(DataError) as caught:
        Stream(source, tasks=3, seed=None, reader=ImageReader(8))
    assert caught.value.problems == (
        "stream.tasks: task 2 (class 1) has no test samples",
        "stream.tasks: task 3 (class 2) has no test samples",
    )
    assert sizes(Stream(source, tasks=1, reader=ImageReader(8))) == [3]
    with pytest.raises(DataError, match=r"^stream\.tasks: task 2 \(class 1\) has no validation samples$"):
        Stream(plain_source([2, 1], [1, 1]), tasks=2, seed=None, reader=ImageReader(8), validation_fraction=0.5)


# ---------------------------------------------------------------------------------------------------- splits


@settings(max_examples=60)
@given(data=st.data(), fraction=st.sampled_from([0.0, 0.1, 0.5]), seed=st.none() | st.integers(0, 2**32 - 1))
def test_a_stream_partitions_the_classes_and_the_samples(
    data: st.DataObject, fraction: float, seed: int | None
) -> None:
    division = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=5), label="classes per task")
    classes = sum(division)
    per_class = st.lists(st.integers(2, 6), min_size=classes, max_size=classes)
    source = plain_source(data.draw(per_class, label="train"), data.draw(per_class, label="test"))
    stream = Stream(
        source,
        classes_per_task=division,
        seed=seed,
        reader=ImageReader(4),
        validation_fraction=fraction,
        validation_seed=3,
    )
    assert sizes(stream) == division
    assert sorted(stream.class_order) == list(range(classes))
    assert [name for task in stream.tasks for name in task.class_names] == list(stream.class_names)
    trained, held, tested = [], [], []
    for task in stream.tasks:
        for split, seen in (
            (stream.train(task), trained),
            (stream.validation(task), held),
            (stream.test(task), tested),
        ):
            seen += split.indices.tolist()
            assert torch.isin(split.labels, torch.tensor(task.classes)).all()
    assert sorted(trained + held) == list(range(len(source.train)))
    assert sorted(tested) == list(range(len(source.test)))
    assert sorted(stream.train_all().indices.tolist()) == sorted(trained)
    assert bool(held) == (fraction > 0)


def test_validation_comes_out_of_every_class_of_the_training_data_by_its_own_seed() -> None:
    source = plain_source([10] * 4, [3] * 4)

    def held(stream_seed: int, validation_seed: int) -> set[int]:
        stream = Stream(
            source,
            tasks=2,
            seed=stream_seed,
            reader=ImageReader(8),
            validation_fraction=0.2,
            validation_seed=validation_seed,
        )
        for task in stream.tasks:
            assert stream.validation(task).labels.bincount(minlength=4)[
                task.classes[0] : task.classes[-1] + 1
            ].tolist() == [
                2,
                2,
            ]
            assert len(stream.test(task)) == 6
        return {index for task in stream.tasks for index in stream.validation(task).indices.tolist()}

    assert held(1, 0) == held(2, 0)
    assert held(1, 0) != held(1, 1)


def test_a_pass_reads_only_the_samples_of_its_split() -> None:
    source = plain_source([6] * 4, [5] * 4)
    stream = Stream(source, tasks=2, reader=ImageReader(8), validation_fraction=0.3)
    task = stream.tasks[1]
    train, validation, test = stream.train(task), stream.validation(task), stream.test(task)
    assert numbers(train) == train.indices.tolist()
    assert numbers(validation) == validation.indices.tolist()
    assert set(numbers(train)).isdisjoint(numbers(validation))
    assert sum(source.test.decoded.values()) == 0  # test data is never touched in training
    assert numbers(test) == test.indices.tolist()
    assert set(source.test.decoded) == set(test.indices.tolist())


# ---------------------------------------------------------------------------------------------------- batches


def test_batches_in_order() -> None:
    stream = Stream(plain_source([5, 5], [1, 1]), tasks=1, reader=ImageReader(8))
    split = stream.train(stream.tasks[0])
    batches = list(split.batches(4, device=CPU))
    assert [len(batch.labels) for batch in batches] == [4, 4, 2]
    assert split.number_of_batches(4) == 3
    assert split.number_of_batches(5) == 2
    assert len(split) == 10
    for batch in batches:
        assert batch.inputs.shape == (len(batch.labels), 3, 8, 8)
        assert batch.inputs.dtype == torch.float32
    assert torch.equal(torch.cat([batch.labels for batch in batches]), split.labels)
    assert torch.equal(batches[1].inputs[0, 0], torch.full((8, 8), 4) / 255)


def test_batches_are_shuffled_and_augmented_by_the_draws() -> None:
    stream = Stream(plain_source([20, 20], [1, 1]), tasks=1, reader=ImageReader(8, crop_pct=0.8))
    split = stream.train(stream.tasks[0])
    first, second = (numbers(split, "none", Draws(0, epoch=epoch)) for epoch in range(2))
    assert sorted(first) == sorted(second) == split.indices.tolist()
    assert first != second
    assert numbers(split, "none", Draws(0, epoch=0)) == first
    labels = {int(number): int(label) for number, label in zip(split.indices, split.labels, strict=True)}
    for batch in split.batches(7, device=CPU, augment="shift", draws=Draws(1)):
        read = (batch.inputs[:, 0, 0, 0] * 255).round().int().tolist()
        assert [labels[number] for number in read] == batch.labels.tolist()


def test_a_pass_that_begins_in_the_middle_goes_on_as_the_whole_one() -> None:
    stream = Stream(plain_source([20, 20], [1, 1]), tasks=1, reader=ImageReader(8, crop_pct=0.8))
    split = stream.train(stream.tasks[0])
    whole = list(split.batches(6, device=CPU, augment="crop_flip", draws=Draws(2)))
    for first in (1, 5, 6, 7):
        rest = list(split.batches(6, device=CPU, augment="crop_flip", draws=Draws(2), first=first))
        assert len(rest) == len(whole) - first
        for one, other in zip(rest, whole[first:], strict=True):
            assert torch.equal(one.inputs, other.inputs)
            assert torch.equal(one.labels, other.labels)


def test_batches_made_ahead_are_those_that_are_asked_for_and_leave_no_trace() -> None:
    stream = Stream(plain_source([20, 20], [1, 1]), tasks=1, reader=ImageReader(8, crop_pct=0.8))
    split, before = stream.train(stream.tasks[0]), torch.get_rng_state()
    opened = ImageReader(8, crop_pct=0.8).open(plain_source([20, 20], [1, 1]).train, 0)
    order = torch.randperm(40, generator=Draws(2, epoch=1).generator("order"))
    passing = split.batches(6, device=CPU, augment="crop_flip", draws=Draws(2, epoch=1))
    for step, batch in zip(range(3), passing, strict=False):
        chosen, generator = order[6 * step : 6 * step + 6], Draws(2, epoch=1, step=step).generator("augmentation")
        expected = opened.augmented(split.indices[chosen], "crop_flip", generator, device=CPU)
        assert torch.equal(batch.inputs, expected)
        assert torch.equal(batch.labels, split.labels[chosen])
    del passing  # another batch has been made by now, or is being made
    assert torch.equal(torch.get_rng_state(), before)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]


def test_what_cannot_be_read_is_said_when_its_batch_is_asked_for() -> None:
    class Damaged(Plain):
        def decode(self, index: int, least: int | None = None) -> UInt8[np.ndarray, "h w 3"]:
            if index in (5, 6):
                raise DataError(f"{self.describe(index)}: damaged")
            return super().decode(index, least)

    opened = ImageReader(8).open(Damaged(np.zeros(12, np.int64)), 0)
    passing = Split(opened, torch.arange(12), torch.zeros(12, dtype=torch.long)).batches(4, device=CPU)
    assert len(next(passing).labels) == 4
    with pytest.raises(DataError) as caught:
        next(passing)
    assert caught.value.problems == ("plain 5: damaged", "plain 6: damaged")


def test_augmentation_without_draws() -> None:
    stream = Stream(plain_source([2, 2], [1, 1]), tasks=1, reader=ImageReader(8))
    with pytest.raises(ValueError, match="augment='flip' needs draws"):
        next(stream.train_all().batches(2, device=CPU, augment="flip"))


def test_an_empty_split_has_no_batches() -> None:
    stream = Stream(plain_source([2, 2], [1, 1]), tasks=1, reader=ImageReader(8))
    empty = stream.validation(stream.tasks[0])
    assert len(empty) == empty.number_of_batches(4) == len(list(empty.batches(4, device=CPU))) == 0


def test_the_centre_of_the_canvas_is_used_unless_an_augmentation_crops() -> None:
    images = np.random.RandomState(0).randint(0, 256, (4, 10, 10, 3)).astype(np.uint8)
    source = arrays((images, [0, 0, 1, 1]), (images[:2], [0, 1]))
    stream = Stream(source, tasks=1, reader=ImageReader(8, crop_pct=0.8))  # a canvas of 10: no resizing
    (batch,) = stream.train_all().batches(4, device=CPU)
    centre = torch.from_numpy(images[:, 1:9, 1:9]).permute(0, 3, 1, 2) / 255
    assert torch.equal(batch.inputs, centre)
    (cropped,) = stream.train_all().batches(4, device=CPU, augment="crop_flip", draws=Draws(0))
    assert cropped.inputs.shape == (4, 3, 8, 8)


# ---------------------------------------------------------------------------------------------------- decoding once


def passes(stream: Stream, count: int) -> None:
    for _ in range(count):
        for task in stream.tasks:
            for split in (stream.train(task), stream.validation(task), stream.test(task)):
                assert sorted(numbers(split, draws=Draws(0))) == split.indices.tolist()


def test_every_image_is_decoded_once() -> None:
    source = plain_source([7] * 4, [3] * 4)
    stream = Stream(source, tasks=2, reader=ImageReader(8), validation_fraction=0.2)
    passes(stream, 3)
    numbers(stream.train_all())
    assert source.train.decoded == Counter(range(28))
    assert source.test.decoded == Counter(range(12))


def test_beyond_its_budget_the_cache_decodes_again_but_keeps_what_it_has() -> None:
    source = plain_source([8] * 3, [2] * 3)
    image_bytes = 3 * 8 * 8
    stream = Stream(
        source, tasks=1, reader=ImageReader(8), cache_bytes=10 * image_bytes
    )  # 8 training and 2 test images
    passes(stream, 3)
    assert Counter(source.train.decoded.values()) == {1: 8, 3: 16}
    assert Counter(source.test.decoded.values()) == {1: 2, 3: 4}


def test_without_budget_every_use_decodes() -> None:
    source = plain_source([4, 4], [2, 2])
    passes(Stream(source, tasks=2, reader=ImageReader(8), cache_bytes=0), 2)
    assert set(source.train.decoded.values()) == {2}
