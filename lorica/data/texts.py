"""Texts: samples in memory, and the reader that makes tokens of them. Each is tokenised once, and kept as numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from lorica.data.ahead import sent
from lorica.data.samples import Samples
from lorica.errors import DataError
from lorica.types import Tokens

_TOGETHER = 10_000
"""Texts that the tokeniser is given at once."""


class Texts(Samples):
    """Texts with their class numbers; `of` ("train") is what messages call them."""

    each = ("texts",)

    def __init__(self, texts: Sequence[str], labels: Int[np.ndarray, " n"], of: str) -> None:
        super().__init__(labels)
        self.texts, self.of = texts, of

    def describe(self, index: int) -> str:
        return f"{self.of}[{self.name(index)}]: {self.texts[index][:60]!a}"

    def digest(self, index: int) -> bytes:
        return hashlib.sha256(self.texts[index].encode()).digest()


class Tokeniser:
    """What makes token ids of texts: one of the `tokenizers` library, from its JSON. It equals another one that was
    made alike.

    Args:
        longest: tokens after which a text is cut, those that the tokeniser adds included.
    """

    def __init__(self, written: str, longest: int) -> None:
        from tokenizers import Tokenizer  # comes with transformers, which only texts need

        self.made_of = written, longest
        self._tokenizer = Tokenizer.from_str(written)
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(longest)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tokeniser) and other.made_of == self.made_of

    def __hash__(self) -> int:
        return hash(self.made_of)

    def __call__(self, texts: Sequence[str]) -> tuple[list[list[int]], int]:
        """Ids of each text, and how many texts were cut. DataError for one without a token."""
        encoded = self._tokenizer.encode_batch_fast(list(texts))
        if empty := [text for text, each in zip(texts, encoded, strict=True) if not each.ids]:
            raise DataError(f"a text without a token: {empty[0][:60]!a}; leave it out")
        return [each.ids for each in encoded], sum(bool(each.overflowing) for each in encoded)

    def cut(self, texts: Sequence[str]) -> int:
        """How many of these texts are longer than what is read of them."""
        return sum(bool(each.overflowing) for each in self._tokenizer.encode_batch_fast(list(texts)))

    def words(self, ids: Sequence[int]) -> str:
        """The text of some ids, without the tokens that it adds itself."""
        return self._tokenizer.decode(list(ids))


class OpenedTexts:
    """See `lorica.data.reader.Opened`: tokens, padded to the longest text that is asked for."""

    def __init__(self, texts: Sequence[str], tokeniser: Tokeniser, padding: int) -> None:
        lengths, flat, cut = [], [np.empty(0, np.int32)], 0
        for first in range(0, len(texts), _TOGETHER):
            ids, of_these = tokeniser(texts[first : first + _TOGETHER])
            lengths += [len(each) for each in ids]
            flat.append(np.concatenate(ids).astype(np.int32))
            cut += of_these
        self.lengths: Int[Tensor, " n"] = torch.tensor(lengths, dtype=torch.long)
        self.facts: dict[str, int] = {"tokens": sum(lengths), "cut": cut}
        self._flat, self._padding = torch.from_numpy(np.concatenate(flat)), padding
        self._first = self.lengths.cumsum(0) - self.lengths

    def fetch(self, indices: Int[Tensor, " n"], *, device: torch.device) -> Tokens:
        lengths = self.lengths[indices][:, None]
        places = torch.arange(int(lengths.max()) if len(lengths) else 0)
        mask = places < lengths
        ids = self._flat[(self._first[indices][:, None] + places).clamp_max(len(self._flat) - 1)].long()
        return Tokens(sent(ids.masked_fill(~mask, self._padding), device), sent(mask, device))

    def augmented(
        self, indices: Int[Tensor, " n"], kind: str, generator: torch.Generator, *, device: torch.device
    ) -> Tokens:
        if kind not in TextReader.augmentations:
            raise DataError(f"fit.augment: texts cannot be augmented by {kind}; use none")
        return self.fetch(indices, device=device)


class TextReader:
    """Texts for an encoder.

    Args:
        tokenizer, padding, longest: what the encoder reads, see `lorica.backbones.hf_text.HFText`.
        max_tokens: after which texts are cut; absent = the longest that the encoder reads.

    Raises:
        DataError: `max_tokens` is more than the encoder reads.
    """

    options: ClassVar[tuple[str, ...]] = ("max_tokens",)
    augmentations: ClassVar[tuple[str, ...]] = ("none",)

    def __init__(self, tokenizer: str, padding: int, longest: int, *, max_tokens: int | None = None) -> None:
        if max_tokens is not None and max_tokens > longest:
            raise DataError(
                f"data.max_tokens: {max_tokens} is more than the backbone reads, {longest}; give at most that"
            )
        self.padding = padding
        self.tokeniser = Tokeniser(tokenizer, max_tokens or longest)

    def open(self, samples: Samples, budget: int) -> OpenedTexts:
        """See `lorica.data.reader.Reader`; tokens take less than the texts, and are all kept. DataError for samples
        that are no texts."""
        if not isinstance(samples, Texts):
            raise DataError(
                "data.source: its samples are no texts, and the backbone reads texts; choose another of the two"
            )
        return OpenedTexts(samples.texts, self.tokeniser, self.padding)

    def of(self, given: Sequence[Any]) -> Tokens:
        """From texts. DataError naming all that are none."""
        if problems := [f"a text to predict: {fault}" for each in given if (fault := text_fault(each))]:
            raise DataError(problems)
        opened = OpenedTexts(given, self.tokeniser, self.padding)
        return opened.fetch(torch.arange(len(given)), device=torch.device("cpu"))

    def cut(self, given: Sequence[Any]) -> int:
        """How many of these are texts that are longer than what is read of them."""
        texts = [each for each in given if text_fault(each) is None]
        return sum(self.tokeniser.cut(texts[first : first + _TOGETHER]) for first in range(0, len(texts), _TOGETHER))

    def words(self, tokens: Tokens) -> list[str]:
        """Texts of tokens, as far as these tell; not of those that tell nothing."""
        pairs = zip(tokens.ids, tokens.mask, strict=True)
        found = [self.tokeniser.words(ids[there].tolist()) for ids, there in pairs]
        return [text for text in found if text.strip()]


def text_fault(given: Any) -> str | None:
    """Why this is no text that can be read; None where it is one."""
    if not isinstance(given, str):
        return f"expected a text, got {given!r:.60}"
    try:
        given.encode()
    except UnicodeEncodeError:
        return f"{given[:60]!a} is not Unicode"
    return None if given.strip() else "nothing is in it"


READER = TextReader
