"""Texts become tokens once, are cut where they are too long, and are padded to the longest of their batch, in batches
of like length."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from lorica.assembly import assemble
from lorica.config import read_recipe
from lorica.data.images import ImageReader
from lorica.data.reader import Opened, Reader, find_reader
from lorica.data.sources import Source, texts
from lorica.data.sources.base import remarks
from lorica.data.stream import Stream, of_like_length
from lorica.data.texts import TextReader, Texts
from lorica.errors import DataError, RecipeError
from lorica.randomness import Draws
from lorica.types import Tokens

CPU = torch.device("cpu")


@pytest.fixture
def reader(tiny_tokenizer: str) -> TextReader:
    return TextReader(tiny_tokenizer, 0, 32)


def test_it_is_a_reader(reader: TextReader, six_topics: Source) -> None:
    assert isinstance(reader, Reader)
    assert isinstance(reader.open(six_topics.train, 0), Opened)
    assert find_reader("texts") is TextReader


def test_words_become_numbers_between_those_of_the_ends(reader: TextReader) -> None:
    # [PAD] [UNK] [CLS] [SEP] a the of is not and red0 …
    found = reader.of(["the red0", "of", "nowhere is a red1"])
    assert found.ids.tolist() == [[2, 5, 10, 3, 0, 0], [2, 6, 3, 0, 0, 0], [2, 1, 7, 4, 11, 3]]
    assert found.mask.tolist() == [[True] * 4 + [False] * 2, [True] * 3 + [False] * 3, [True] * 6]


def test_samples_give_what_they_give_alone(reader: TextReader, six_topics: Source) -> None:
    opened, given = reader.open(six_topics.train, 0), six_topics.train
    assert isinstance(given, Texts)
    found = opened.fetch(torch.tensor([5, 0, 17]), device=CPU)
    expected = reader.of([given.texts[number] for number in (5, 0, 17)])
    assert torch.equal(found.ids, expected.ids)
    assert torch.equal(found.mask, expected.mask)
    assert opened.lengths.tolist() == [len(text.split()) + 2 for text in given.texts]
    assert opened.facts == {"tokens": sum(len(text.split()) + 2 for text in given.texts), "cut": 0}
    again = opened.augmented(torch.tensor([5]), "none", torch.Generator(), device=CPU)
    assert torch.equal(again.ids, opened.fetch(torch.tensor([5]), device=CPU).ids)
    with pytest.raises(DataError, match=r"^fit\.augment: texts cannot be augmented by shift; use none"):
        opened.augmented(torch.tensor([5]), "shift", torch.Generator(), device=CPU)


def test_what_is_cut_is_counted_and_told(tiny_tokenizer: str) -> None:
    source = texts((["a a a a", "the the"], ["one", "two"]), (["is is is", "of"], ["one", "two"]))
    stream = Stream(source, tasks=1, reader=TextReader(tiny_tokenizer, 0, 32, max_tokens=4))
    assert remarks(stream.source.facts) == ["data.max_tokens: cut 2 texts, which are longer"]
    assert source.facts == {"classes": 2, "train": 2, "test": 2}  # which others may read otherwise
    (batch,) = stream.train(stream.tasks[0]).batches(8, device=CPU)
    assert sorted(batch.inputs.ids.tolist()) == [[2, 4, 4, 3], [2, 5, 5, 3]]
    cutting = TextReader(tiny_tokenizer, 0, 32, max_tokens=4)
    assert cutting.cut(["a a a a", "the the", "is is is", " ", None]) == 2
    with pytest.raises(DataError, match=r"^data\.max_tokens: 40 is more than the backbone reads, 32"):
        TextReader(tiny_tokenizer, 0, 32, max_tokens=40)


@pytest.mark.parametrize("given", [3, None, "", "  ", "\ud800"])
def test_what_is_no_text(given: Any, reader: TextReader) -> None:
    with pytest.raises(
        DataError, match=r"^a text to predict: (expected a text, got|nothing is in it|.* is not Unicode)"
    ):
        reader.of(["a", given])


def test_images_are_no_texts_nor_texts_images(reader: TextReader, six_classes: Source, six_topics: Source) -> None:
    with pytest.raises(DataError, match=r"^data\.source: its samples are no texts, and the backbone reads texts"):
        reader.open(six_classes.train, 0)
    with pytest.raises(DataError, match=r"^data\.source: its samples are no images, and the backbone reads images"):
        ImageReader(32).open(six_topics.train, 0)


def test_readers_that_were_made_alike_are_alike(tiny_tokenizer: str) -> None:
    """By which two models are told to read alike."""
    assert vars(TextReader(tiny_tokenizer, 0, 32)) == vars(TextReader(tiny_tokenizer, 0, 32))
    assert vars(TextReader(tiny_tokenizer, 0, 32)) != vars(TextReader(tiny_tokenizer, 0, 32, max_tokens=8))


def test_samples_are_told_apart_and_called() -> None:
    samples = Texts(["kite", "wren"], np.array([0, 1]), "train")
    assert samples.describe(1) == "train[1]: 'wren'"
    assert samples.digest(0) != samples.digest(1)
    assert samples.digest(0) == Texts(["kite"], np.array([3]), "test").digest(0)


def test_passes_in_order_are_by_length_and_random_ones_by_batches(reader: TextReader, six_topics: Source) -> None:
    stream = Stream(six_topics, tasks=1, reader=reader)
    split = stream.train(stream.tasks[0])
    in_order = [batch.inputs for batch in split.batches(8, device=CPU)]
    assert all(isinstance(each, Tokens) for each in in_order)
    lengths = torch.cat([each.mask.sum(dim=1) for each in in_order])
    assert lengths.tolist() == sorted(lengths.tolist())
    random = list(split.batches(8, device=CPU, draws=Draws(0)))
    spread = [int(batch.inputs.mask.sum(dim=1).max() - batch.inputs.mask.sum(dim=1).min()) for batch in random]
    assert max(spread) <= 2
    of_batches = [int(batch.inputs.mask.sum(dim=1).max()) for batch in random]
    assert of_batches != sorted(of_batches)
    rest = list(split.batches(8, device=CPU, draws=Draws(0), first=5))
    assert [batch.inputs.ids.tolist() for batch in rest] == [batch.inputs.ids.tolist() for batch in random[5:]]


def test_each_sample_comes_once_and_the_smaller_batch_last() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(3, 60, (1000,), generator=generator)
    order = of_like_length(torch.randperm(1000, generator=generator), lengths, 16, generator)
    assert sorted(order.tolist()) == list(range(1000))
    batches = [lengths[part] for part in order.split(16)]
    assert [len(batch) for batch in batches] == [16] * 62 + [8]
    padding = sum(int((batch.max() - batch).sum()) for batch in batches) / int(lengths.sum())
    assert padding < 0.06  # in a random order nearly as much as there are tokens
    means = torch.stack([batch.float().mean() for batch in batches])
    assert (means[1:] - means[:-1]).abs().mean() > 10  # and short ones are not all together


def test_it_is_said_before_anything_is_learned() -> None:
    with pytest.raises(RecipeError, match=r"^data\.max_tokens: the backbone reads no texts; leave the key out"):
        assemble(read_recipe("digits", {"data.max_tokens": 8, "method.name": "prototypes"}))
