"""Shares are every sample once, and each sample is drawn what it is drawn in the whole."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from lorica.data.images import ImageReader
from lorica.data.stream import Stream
from lorica.randomness import Draws
from lorica.sharing import Part, Share, drawing_for, dropout, per_sample

CPU = torch.device("cpu")


@given(st.integers(0, 40), st.integers(1, 9))
def test_shares_are_all_samples_once_in_order_and_of_one_size_or_the_next(samples: int, of: int) -> None:
    parts = [Share(number, of).of_samples(samples) for number in range(of)]
    assert [row for part in parts for row in range(part.first, part.stop)] == list(range(samples))
    sizes = {len(part) for part in parts}
    assert max(sizes) - min(sizes) <= 1
    assert {part.whole for part in parts} == {samples}


@given(st.integers(1, 40), st.integers(1, 9))
def test_a_batch_that_cannot_give_everyone_a_sample_is_everyones(samples: int, of: int) -> None:
    parts = [Share(number, of).of_batch(samples) for number in range(of)]
    whole = Part(0, samples, samples)
    assert parts == [whole] * of if samples < of else sum(map(len, parts)) == samples
    assert all(map(len, parts))


@given(st.integers(0, 9), st.integers(1, 20), st.integers(1, 9))
def test_a_part_divides_into_parts_of_the_same_batch(first: int, samples: int, number: int) -> None:
    part = Part(first, first + samples, 40)
    parts = part.divided(number)
    assert len(parts) == min(number, samples)
    assert [row for each in parts for row in range(each.first, each.stop)] == list(range(first, first + samples))
    assert all(each.whole == 40 and len(each) for each in parts)


def test_what_is_drawn_for_a_part_is_what_the_whole_draws() -> None:
    torch.manual_seed(0)
    whole = torch.rand(7, 2)
    torch.manual_seed(0)
    with drawing_for(Part(3, 5, 7)):
        part = per_sample(2, lambda n: torch.rand(n, 2))
    assert torch.equal(part, whole[3:5])
    assert len(per_sample(2, lambda n: torch.rand(n, 2))) == 2


def test_dropped_units_of_a_part_are_those_of_the_whole() -> None:
    x = torch.randn(7, 3, 4)
    torch.manual_seed(0)
    whole = F.dropout(x, 0.3)
    torch.manual_seed(0)
    with drawing_for(Part(3, 5, 7)):
        assert torch.equal(dropout(x[3:5], 0.3, training=True), whole[3:5])
        assert torch.equal(dropout(x[3:5], 0.3, training=False), x[3:5])
    torch.manual_seed(0)
    assert torch.equal(dropout(x, 0.3, training=True), whole)


def test_dropped_units_are_those_of_a_batch_with_longer_texts() -> None:
    x = torch.randn(7, 5, 4)
    torch.manual_seed(0)
    whole = F.dropout(x, 0.3)
    torch.manual_seed(0)
    with drawing_for(Part(3, 5, 7, shorter=2)):
        assert torch.equal(dropout(x[3:5, :3], 0.3, training=True), whole[3:5, :3])


@pytest.mark.parametrize("augment", ["none", "shift", "flip", "crop_flip"])
def test_shares_of_batches_are_the_batches(six_classes, augment: str) -> None:
    """Order and augmentation included; the last of 24 images in batches of 11 has two, too few for three."""
    data = Stream(six_classes, tasks=3, reader=ImageReader(32))
    split = data.train(data.tasks[0])
    settings = {"device": CPU, "augment": augment, "draws": Draws(5, task=0, stage=0, epoch=1)}
    whole = list(split.batches(11, **settings))
    shares = [list(split.batches(11, share=Share(number, 3), **settings)) for number in range(3)]
    for step, batch in enumerate(whole):
        parts = [share[step] for share in shares]
        for part in parts:
            assert part.part is not None
            assert torch.equal(part.inputs, batch.inputs[part.part.rows])
            assert torch.equal(part.labels, batch.labels[part.part.rows])
        assert [len(part.labels) for part in parts] == ([2, 2, 2] if step == 2 else [3, 4, 4])


def test_shares_of_a_pass_are_the_pass(six_classes) -> None:
    data = Stream(six_classes, tasks=3, reader=ImageReader(32))
    split = data.train(data.tasks[0])
    whole = next(split.batches(24, device=CPU))
    found = [batch for number in range(5) for batch in split.batches(3, device=CPU, share=Share(number, 5))]
    assert torch.equal(torch.cat([batch.inputs for batch in found]), whole.inputs)
    assert torch.equal(torch.cat([batch.labels for batch in found]), whole.labels)
    assert max(len(batch.labels) for batch in found) == 3
    assert not list(split.batches(3, device=CPU, share=Share(0, 30)))
