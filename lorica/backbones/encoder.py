"""The contract between a pre-trained transformer and everything that learns with it.

An `Encoder` turns inputs into one feature vector each, and names the linear projections that low-rank updates can
attach to (`Site`). It knows nothing of methods, tasks or classes.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lorica.errors import BackboneError
from lorica.types import Inputs
from lorica.unread import Pass, Unread, content


@dataclass(frozen=True)
class Site:
    """One projection of one block: some rows of one linear layer (a fused qkv holds three sites)."""

    block: int
    kind: str  # q, k, v, proj, fc1, fc2, or gate where the MLP has one
    linear: str  # dotted path of the linear layer below the encoder
    rows: tuple[int, int]  # first row and one past the last row of that layer's weight
    in_features: int

    @property
    def name(self) -> str:
        """Its name in checkpoints and messages; it has no dots, so that it can name a submodule."""
        return f"block{self.block}_{self.kind}"

    @property
    def out_features(self) -> int:
        """Number of rows of the projection."""
        return self.rows[1] - self.rows[0]


@dataclass(frozen=True)
class Prefix:
    """Rows that a block's attention finds before its own keys and values, after its projections: they are not
    projected, normalised or given a position, and queries stay as they are (prefix tuning).

    Attributes:
        keys, values: a prefix for each input, [n, length, width], or one for all, [1, length, width].
    """

    keys: Float[Tensor, "n length dim"]
    values: Float[Tensor, "n length dim"]


class Classifier(NamedTuple):
    """A linear map from features to logits.

    Attributes:
        weight, bias: the map.
        layers: what it reads: `Encoder.features`, or `layered_features` of that many blocks.
    """

    weight: Float[Tensor, "classes features"]
    bias: Float[Tensor, " classes"] | None = None
    layers: int | None = None


class Encoder(nn.Module, ABC):
    """A pre-trained transformer as a feature extractor.

    Attributes:
        name: the name a recipe gives it.
        tag: identity of the checkpoint that its weights came from, recorded with every result.
        width: size of a feature vector.
        modality: what it reads, "images" or "texts": the name of the reader that makes its inputs from samples.
        fingerprint: hash of names, shapes and values of its weights as loaded; checkpoints are tied to it.
    """

    name: str
    tag: str
    width: int
    modality: ClassVar[str]

    @abstractmethod
    def reading(self) -> dict[str, Any]:
        """What the reader of its modality must know of it: the side of an image in pixels, say."""

    @abstractmethod
    def example(self, n: int) -> Inputs:
        """That many valid inputs on its device, all alike, to measure with."""

    @abstractmethod
    def probe(self, n: int) -> Inputs:
        """That many random inputs on its device, always the same, to compare two networks with."""

    @abstractmethod
    def embed(self, inputs: Inputs) -> Float[Tensor, "n tokens dim"]:
        """Tokens that enter the first block. Images are in [0, 1]; the encoder normalises them itself.

        A token that is padding is not a number, in all its channels. It stays so in every block, and is in nothing that
        is pooled.
        """

    def addend(self, term: Float[Tensor, "n tokens dim"]) -> Float[Tensor, "n tokens dim"]:
        """What is to be added to the tokens that leave a block, made so that no sum is taken for padding."""
        return term

    @property
    @abstractmethod
    def inputs_per_token(self) -> int:
        """Numbers of an input that one token is made from: 3 patch^2 for images, 1 for texts."""

    @property
    @abstractmethod
    def blocks(self) -> Sequence[nn.Module]:
        """The transformer blocks in order; each maps tokens to tokens, so that a shared trunk can be run once."""

    @abstractmethod
    def pool(self, tokens: Float[Tensor, "n tokens dim"]) -> Float[Tensor, "n features"]:
        """Features from the tokens that leave the last block."""

    @abstractmethod
    def second_half(self, block: int) -> nn.Module:
        """What the sum of that block's input and its attention enters: the norm before the MLP, or, where the sum has
        been normalised already, the MLP.

        Raises:
            BackboneError: blocks that are built otherwise.
        """

    @abstractmethod
    def operations(self) -> dict[str, int]:
        """Dotted paths of what makes tokens from tokens by channel, and the channels that leave it: the patch
        embedding, all linear layers, all norms of tokens."""

    @abstractmethod
    def average(self, tokens: Float[Tensor, "n tokens dim"]) -> Float[Tensor, "n features"]:
        """Features from some of them alone: their mean, normalised as the backbone normalises what it pools."""

    @abstractmethod
    def parts(self, tokens: Float[Tensor, "n tokens dim"]) -> Float[Tensor, "n parts features"]:
        """What the tokens that leave any block have to say of the input as a whole: the class token, if there is one,
        and the mean of the tokens made from parts of the input; each as `average` makes it."""

    @abstractmethod
    def takes_prefix(self, block: int) -> bool:
        """Whether that block's attention is of the kind that `prefixed` knows."""

    @abstractmethod
    def prefixed(self, block: int, prefix: Prefix) -> nn.Module:
        """That block as one that attends to the prefix as well; its own stays as it is (`lorica.backbones.view`)."""

    @cached_property
    @abstractmethod
    def sites(self) -> tuple[Site, ...]:
        """Every adaptable projection, in block order."""

    @abstractmethod
    def with_classifier(self, classifier: Classifier) -> nn.Module:
        """A stand-alone copy of the plain backbone with this classifier as its own head, or inside a module that gives
        it what several blocks have to say. It takes `normalised` inputs."""

    @abstractmethod
    def normalised(self, inputs: Inputs) -> Any:
        """The inputs as the plain backbone takes them."""

    def tokens(
        self,
        inputs: Inputs,
        *,
        prompt: Float[Tensor, "m length dim"] | None = None,
        prefixes: Mapping[int, Prefix] | None = None,
    ) -> Float[Tensor, "n tokens dim"]:
        """Tokens that leave the last block.

        Args:
            prompt: extra tokens that enter the first block before the others, without a position; for each input or one
                for all. They are the first that come out.
            prefixes: what each of some blocks attends to as well, by the number of the block.
        """
        return deque(self._leaving_blocks(inputs, prompt, prefixes), maxlen=1).pop()

    def _leaving_blocks(
        self,
        inputs: Inputs,
        prompt: Float[Tensor, "m length dim"] | None,
        prefixes: Mapping[int, Prefix] | None,
    ) -> Iterator[Float[Tensor, "n tokens dim"]]:
        tokens = self.embed(inputs.read() if isinstance(inputs, Unread) else inputs)
        if prompt is not None:
            tokens = torch.cat([prompt.to(tokens).expand(tokens.shape[0], -1, -1), tokens], dim=1)
        blocks = list(self.blocks)
        for number, prefix in (prefixes or {}).items():
            blocks[number] = self.prefixed(number, prefix)
        for block in blocks:
            tokens = block(tokens)
            yield tokens

    def features(
        self,
        inputs: Inputs,
        *,
        prompt: Float[Tensor, "m length dim"] | None = None,
        prefixes: Mapping[int, Prefix] | None = None,
        layers: int | None = None,
    ) -> Float[Tensor, "n features"]:
        """One feature vector for each input: what `pool` makes of the tokens that leave the last block, or
        `layered_features`.

        Args:
            prompt, prefixes: see `tokens`; what comes out where a prompt went in is in no feature.
            layers: that many last blocks in place of what `pool` reads.
        """
        if isinstance(inputs, Unread) and prompt is None and prefixes is None:
            key = inputs.pass_.key_of(self, find=partial(self._key, inputs.pass_))
            if key is not None and not trains(self):
                return inputs.features((key, layers), partial(self.features, layers=layers))
        if layers is not None:
            return self.layered_features(inputs, layers, prompt=prompt, prefixes=prefixes)
        return self.pool(_without(prompt, self.tokens(inputs, prompt=prompt, prefixes=prefixes)))

    def layered_features(
        self,
        inputs: Inputs,
        layers: int,
        *,
        prompt: Float[Tensor, "m length dim"] | None = None,
        prefixes: Mapping[int, Prefix] | None = None,
    ) -> Float[Tensor, "n features"]:
        """`parts` of what leaves each of the last blocks (all of them, where there are fewer), each with the length
        sqrt(width), one after another, in float32; arguments as for `features`."""
        found, first = [], len(self.blocks) - layers
        for number, tokens in enumerate(self._leaving_blocks(inputs, prompt, prefixes)):
            if number >= first:
                found.append(self.parts(_without(prompt, tokens)).float())
        return (F.normalize(torch.cat(found, dim=1), dim=2) * self.width**0.5).flatten(1)

    @cached_property
    def number_of_parts(self) -> int:
        """How many vectors `parts` gives of an input."""
        with torch.no_grad():
            return self.parts(self.embed(self.example(1))).shape[1]

    def prefix_blocks(self, wanted: Sequence[int], *, key: str) -> tuple[int, ...]:
        """Those of the wanted blocks that this backbone has, counted from 0: a method's usual ones may lie deeper.

        Raises:
            BackboneError: it has none of them, one is negative or named twice, or the attention takes no prefix; `key`
                is what the recipe calls them.
        """
        existing = tuple(block for block in wanted if block < len(self.blocks))
        if (wanted and not existing) or any(block < 0 for block in wanted) or len(set(wanted)) < len(wanted):
            some = ",".join(str(block) for block in range(len(self.blocks))[: len(wanted)])
            raise BackboneError(
                f"{key}: {self.name} has blocks 0 to {len(self.blocks) - 1}, asked for {list(wanted)}; give some of "
                f"them, each once, such as {key}=[{some}]"
            )
        unable = [block for block in existing if not self.takes_prefix(block)]
        if unable:
            raise BackboneError(
                f"{key}: the attention of {self.name} takes no prefix (block {unable[0]}); choose a "
                f"{'plain ViT' if self.modality == 'images' else 'BERT'} as backbone.name"
            )
        return existing

    def select(self, kinds: Sequence[str]) -> tuple[Site, ...]:
        """The sites of the given kinds in all blocks.

        Raises:
            BackboneError: a kind that this backbone does not have; the message lists those it has.
        """
        existing = sorted({site.kind for site in self.sites})
        missing = [kind for kind in kinds if kind not in existing]
        if missing or not kinds:
            raise BackboneError(
                f"method.projections: {self.name} has no projection {', '.join(missing) or '(none named)'}; "
                f"it has {', '.join(existing) or 'none of its own; choose a plain ViT as backbone.name'}"
            )
        return tuple(site for site in self.sites if site.kind in kinds)

    @property
    def is_as_loaded(self) -> bool:
        """Whether it is made of the modules that it had when its fingerprint was taken: nothing is attached to it now,
        or all that was has been merged into weights."""
        return self.__dict__.get("_form") == self._current_form()

    def _current_form(self) -> list[tuple[Any, ...]]:
        """What it is made of, but for tensors: all that can make features of the same tensors differ."""
        return [
            (
                name,
                type(module),
                _functions(module),
                sorted(each for each, value in vars(module).items() if isinstance(value, Tensor)),
                len(module._forward_hooks),
                len(module._forward_pre_hooks),
            )
            for name, module in self.named_modules()
        ]

    def _key(self, pass_: Pass) -> str | None:
        """What its features follow from; None: there is more to it than its own tensors, or it may change while the
        pass lasts.

        In a pass that trains something, only the encoder that was loaded is trusted to stay what it is, not a copy of
        it.
        """
        if not self.is_as_loaded or (not pass_.ordered and vars(self)["_loaded"] != id(self)):
            return None
        return content(self)

    def besides_weights(self) -> str:
        """What else features follow from, in words that stay the same from one loading to the next."""
        return ""

    @cached_property
    def fingerprint(self) -> str:
        """Short hash of all weights, and of what else features follow from. Read it before adapters are attached or the
        weights are trained."""
        self._form, self._loaded = self._current_form(), id(self)
        digest = hashlib.sha256(self.besides_weights().encode())
        for key, value in self.state_dict().items():
            digest.update(f"{key} {tuple(value.shape)}".encode())
            if not value.is_meta:  # a backbone without weights, as `lorica check` makes it
                digest.update(value.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]


def _functions(module: nn.Module) -> dict[str, Any]:
    """Functions that a module has as attributes: what it calls by its settings, and what stands in for its methods."""
    return {
        name: value
        for name, value in vars(module).items()
        if callable(value)
        and not isinstance(value, Tensor | type)
        and not isinstance(getattr(type(module), name, None), cached_property)
    }


def trains(module: nn.Module) -> bool:
    """Whether features that it makes now have gradients, or are drawn at random."""
    if torch.is_grad_enabled() and any(parameter.requires_grad for parameter in module.parameters()):
        return True
    drops = (getattr(each, "p", 0) or getattr(each, "drop_prob", 0) for each in module.modules() if each.training)
    return any(isinstance(share, float) and share > 0 for share in drops)


def _without(prompt: Tensor | None, tokens: Float[Tensor, "n tokens dim"]) -> Float[Tensor, "n others dim"]:
    """The tokens without those of a prompt, which come first."""
    return tokens if prompt is None else tokens[:, prompt.shape[1] :]
