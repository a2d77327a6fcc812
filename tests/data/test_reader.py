"""A modality that lorica does not have: letters pass through the stream with a source and a reader of their own, and
nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import pytest
import torch

from lorica.data.reader import Opened, Reader, find_reader
from lorica.data.samples import Samples
from lorica.data.sources import Source
from lorica.data.stream import Stream
from lorica.errors import DataError
from lorica.randomness import Draws
from lorica.types import Tokens

CPU = torch.device("cpu")


class Texts(Samples):
    """Words, and the class of each text."""

    def __init__(self, texts: Sequence[str], labels: Sequence[int]) -> None:
        super().__init__(np.array(labels))
        self.texts = texts

    def describe(self, index: int) -> str:
        return repr(self.texts[index])

    def digest(self, index: int) -> bytes:
        return self.texts[index].encode()


class Letters:
    """A letter a token, padded with 0 to the longest text of the batch; `drop` loses each letter at random."""

    options: ClassVar[tuple[str, ...]] = ()
    augmentations: ClassVar[tuple[str, ...]] = ("none", "drop")

    def open(self, samples: Samples, budget: int) -> OpenedLetters:
        assert isinstance(samples, Texts)
        return OpenedLetters(samples.texts, self)

    def of(self, given: Sequence[str]) -> Tokens:
        length = max(map(len, given))
        ids = torch.tensor([[ord(letter) for letter in text.ljust(length, "\0")] for text in given])
        return Tokens(ids, ids > 0)


class OpenedLetters:
    lengths = None
    facts: ClassVar[dict[str, int]] = {}

    def __init__(self, texts: Sequence[str], reader: Letters) -> None:
        self.texts, self.reader = texts, reader

    def fetch(self, indices: torch.Tensor, *, device: torch.device) -> Tokens:
        return self.reader.of([self.texts[index] for index in indices.tolist()]).to(device)

    def augmented(
        self, indices: torch.Tensor, kind: str, generator: torch.Generator, *, device: torch.device
    ) -> Tokens:
        tokens = self.fetch(indices, device=device)
        kept = torch.rand(tokens.ids.shape, generator=generator) < 0.7 if kind == "drop" else tokens.mask
        return Tokens(tokens.ids, tokens.mask & kept)


@pytest.fixture
def stream() -> Stream:
    words = [
        "one",
        "three",
        "seventeen",
        "red",
        "turquoise",
        "blue",
        "cat",
        "elephant",
        "mouse",
        "june",
        "may",
        "october",
    ]
    train = Texts(words, [number // 3 for number in range(12)])
    source = Source("words", ("number", "colour", "animal", "month"), train, train, {})
    return Stream(source, reader=Letters(), tasks=2, seed=None)


def read(tokens: Tokens) -> list[str]:
    return ["".join(map(chr, row[mask].tolist())) for row, mask in zip(tokens.ids, tokens.mask, strict=True)]


def test_it_is_a_reader() -> None:
    assert isinstance(Letters(), Reader)
    assert isinstance(OpenedLetters([], Letters()), Opened)


def test_texts_arrive_in_tasks_padded_to_the_longest_of_their_batch(stream: Stream) -> None:
    batches = list(stream.train(stream.tasks[0]).batches(4, device=CPU))
    assert [read(batch.inputs) for batch in batches] == [["one", "three", "seventeen", "red"], ["turquoise", "blue"]]
    assert [tuple(batch.inputs.ids.shape) for batch in batches] == [(4, 9), (2, 9)]
    assert [batch.labels.tolist() for batch in batches] == [[0, 0, 0, 1], [1, 1]]
    assert read(batches[0].inputs[1:3]) == ["three", "seventeen"]
    assert len(batches[0].inputs[torch.tensor([0, 2])]) == 2


def test_texts_are_shuffled_augmented_and_taken_up_in_the_middle(stream: Stream) -> None:
    split = stream.train(stream.tasks[1])
    whole = list(split.batches(2, device=CPU, augment="drop", draws=Draws(0)))
    plain = [word for batch in split.batches(2, device=CPU, draws=Draws(0)) for word in read(batch.inputs)]
    assert sorted(plain) == sorted(["cat", "elephant", "mouse", "june", "may", "october"])
    assert plain != ["cat", "elephant", "mouse", "june", "may", "october"]
    assert [word for batch in whole for word in read(batch.inputs)] != plain
    rest = list(split.batches(2, device=CPU, augment="drop", draws=Draws(0), first=1))
    assert [read(batch.inputs) for batch in rest] == [read(batch.inputs) for batch in whole[1:]]


def test_a_modality_without_a_reader() -> None:
    assert find_reader("images").options[0] == "crop_pct"
    with pytest.raises(DataError, match=r"^backbone\.name: it reads smells, which no reader of lorica makes"):
        find_reader("smells")
