"""Small modules that adapt a frozen encoder, whose weights they leave alone: bottlenecks, scale and shift, prompts.

Each is applied through a view of the encoder (`lorica.backbones.view`), so that one encoder serves the plain features
and those of any number of modules, also at once. At their start bottlenecks change nothing, scale and shift next to
nothing.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lorica.backbones.encoder import Encoder, trains
from lorica.backbones.view import Change, computing, view
from lorica.sharing import dropout
from lorica.types import Inputs
from lorica.unread import Unread, content

Forward = Callable[..., Tensor]


class Tuning(nn.Module, ABC):
    """Something to train that changes an encoder's features."""

    def features(self, encoder: Encoder, inputs: Inputs, *, layers: int | None = None) -> Float[Tensor, "n features"]:
        """The encoder's features with this module applied; `layers` as in `Encoder.features`."""
        if isinstance(inputs, Unread):
            pass_ = inputs.pass_
            key = pass_.key_of(self, encoder, find=partial(self._key, encoder)) if pass_.ordered else None
            if key is not None and not trains(self) and not trains(encoder):
                return inputs.features((key, layers), partial(self.changed, encoder, layers=layers))
            inputs = inputs.read()
        return self.changed(encoder, inputs, layers=layers)

    @abstractmethod
    def changed(self, encoder: Encoder, inputs: Inputs, *, layers: int | None) -> Float[Tensor, "n features"]:
        """What `features` gives, of inputs that have been read."""

    def _key(self, encoder: Encoder) -> tuple[Any, ...] | None:
        """What its features follow from, see `Encoder.features`."""
        if not encoder.is_as_loaded:
            return None
        settings = {name: value for name, value in vars(self).items() if isinstance(value, int | float | str)}
        return type(self), str(settings), content(self), content(encoder)


class Bottlenecks(Tuning):
    """An adapter beside the MLP of every block: with u what enters the block's second half (input plus attention),

        output = u + MLP(norm(u)) + scale * (relu(u D' + d) U' + b)

    or, where blocks normalise afterwards (BERT), u having been normalised, norm(u + MLP(u)) + scale * (…).

    D starts uniform as torch's linear layers do, d, U and b at zero (AdaptFormer, Chen et al., 2022, as APER, EASE and
    RanPAC use it). In training, a share of the hidden units is dropped.

    Attributes:
        down, up: [blocks, r, width] and [blocks, width, r]; their biases [blocks, r] and [blocks, width].
    """

    def __init__(self, encoder: Encoder, rank: int, *, scale: float = 0.1, dropout: float = 0.1) -> None:
        super().__init__()
        blocks, width = len(encoder.blocks), encoder.width
        device = next(encoder.parameters()).device
        self.scale, self.dropout = scale, dropout
        self.down = nn.Parameter(torch.empty(blocks, rank, width).uniform_(-1, 1).div(width**0.5).to(device))
        self.down_bias = nn.Parameter(torch.zeros(blocks, rank, device=device))
        self.up = nn.Parameter(torch.zeros(blocks, width, rank, device=device))
        self.up_bias = nn.Parameter(torch.zeros(blocks, width, device=device))
        self.eval()  # methods make it while they evaluate; it drops from when they are told to train

    @staticmethod
    def require_place(encoder: Encoder) -> None:
        """Whether every block has a place for it, to be asked before anything is learned.

        Raises:
            BackboneError: blocks that are built otherwise.
        """
        for number in range(len(encoder.blocks)):
            encoder.second_half(number)

    def changed(self, encoder: Encoder, inputs: Inputs, *, layers: int | None) -> Float[Tensor, "n features"]:
        changes: dict[nn.Module, Change] = {}
        for number, block in enumerate(encoder.blocks):
            entering: list[Tensor] = []
            changes[encoder.second_half(number)] = computing(partial(_keep, entering))
            changes[block] = computing(partial(self._add, number, entering, encoder.addend))
        return view(encoder, changes).features(inputs, layers=layers)

    def _add(self, number: int, entering: list[Tensor], addend: Forward, own: Forward, tokens: Tensor) -> Tensor:
        output = own(tokens)
        hidden = F.relu(F.linear(entering.pop(), self.down[number], self.down_bias[number]))
        hidden = dropout(hidden, self.dropout, training=self.training)
        return output + addend(self.scale * F.linear(hidden, self.up[number], self.up_bias[number]))


class ScaleAndShift(Tuning):
    """A scale and a shift, by channel, of what leaves the patch embedding, each linear layer and each LayerNorm (SSF,
    Lian et al., 2022): scales start at 1 and shifts at 0, both with noise of deviation 0.02."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        device = next(encoder.parameters()).device
        self.scales, self.shifts = nn.ParameterDict(), nn.ParameterDict()
        for name, width in encoder.operations().items():
            self.scales[_key(name)] = nn.Parameter((1 + 0.02 * torch.randn(width)).to(device))
            self.shifts[_key(name)] = nn.Parameter((0.02 * torch.randn(width)).to(device))

    def changed(self, encoder: Encoder, inputs: Inputs, *, layers: int | None) -> Float[Tensor, "n features"]:
        changes = {
            encoder.get_submodule(name): computing(
                partial(_scale_and_shift, self.scales[_key(name)], self.shifts[_key(name)])
            )
            for name in encoder.operations()
        }
        return view(encoder, changes).features(inputs, layers=layers)


class Prompts(Tuning):
    """Tokens that enter beside the others (VPT, Jia et al., 2022): before block 0, and if `deep`, new ones before every
    block in place of what became of the last. They start uniform in +-sqrt(6 / (3 patch^2 + width)), as VPT's do."""

    def __init__(self, encoder: Encoder, length: int, *, deep: bool) -> None:
        super().__init__()
        device = next(encoder.parameters()).device
        bound = (6 / (encoder.inputs_per_token + encoder.width)) ** 0.5
        start = torch.empty(len(encoder.blocks) if deep else 1, length, encoder.width).uniform_(-bound, bound)
        self.tokens = nn.Parameter(start.to(device))

    def changed(self, encoder: Encoder, inputs: Inputs, *, layers: int | None) -> Float[Tensor, "n features"]:
        deeper = zip(encoder.blocks[1:], self.tokens[1:], strict=False)
        changes = {block: computing(partial(_replace_first, prompt)) for block, prompt in deeper}
        return view(encoder, changes).features(inputs, prompt=self.tokens[:1], layers=layers)


class Copy(Tuning):
    """A copy of the whole encoder to train in its place."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(encoder)

    def changed(self, encoder: Encoder, inputs: Inputs, *, layers: int | None) -> Float[Tensor, "n features"]:
        return self.encoder.features(inputs, layers=layers)


def start_tuning(kind: str, encoder: Encoder, *, rank: int, length: int) -> Tuning | None:
    """The module that a recipe calls adapter, scale_and_shift, deep_prompts, shallow_prompts, full or none, at its
    start."""
    match kind:
        case "adapter":
            return Bottlenecks(encoder, rank)
        case "scale_and_shift":
            return ScaleAndShift(encoder)
        case "deep_prompts" | "shallow_prompts":
            return Prompts(encoder, length, deep=kind == "deep_prompts")
        case "full":
            return Copy(encoder)
    return None


def _key(name: str) -> str:
    return name.replace(".", "_")


def _keep(entering: list[Tensor], own: Forward, x: Tensor) -> Tensor:
    entering.append(x)
    return own(x)


def _scale_and_shift(scale: Tensor, shift: Tensor, own: Forward, x: Tensor) -> Tensor:
    return own(x) * scale + shift


def _replace_first(prompt: Tensor, own: Forward, tokens: Tensor) -> Tensor:
    return own(torch.cat([prompt.to(tokens).expand(tokens.shape[0], -1, -1), tokens[:, len(prompt) :]], dim=1))
