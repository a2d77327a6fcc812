"""Text encoders of Hugging Face's transformers as an `Encoder`, running their own layers: BERT, RoBERTa, ModernBERT,
T5's encoder.

**Padding.** Texts of a batch differ in length. A token that is padding is *not a number*, in all its channels: so the
tokens themselves say what is padding, to whoever calls a block, from whatever thread, and stay so when something is
added to them or prompts are put before them. A block computes with zeros there, lets nobody attend to them, and gives
them back as they were; `pool`, `average` and `parts` leave them out. Nothing that a text gets depends on how far its
batch was padded, but for rounding. A token that is not padding is never without a number: where its features overflow,
what is no number in them is infinite from then on (`of_tokens`), so that it is not taken for padding, and whoever uses
the features finds out.

Dropout is off, as in the ViTs: what a run draws at random is drawn by lorica.
"""

from __future__ import annotations

import copy
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.utils import skip_init

from lorica.backbones import hub
from lorica.backbones.encoder import Classifier, Encoder, Prefix, Site
from lorica.backbones.view import computing, view
from lorica.backbones.weights import header
from lorica.errors import BackboneError
from lorica.types import Inputs, Tokens

Pooling = Literal["cls", "mean"]
NAN, INFINITE = float("nan"), float("inf")

_EXAMPLE = 64
"""Tokens of the text that costs are measured with."""
_COMPUTED_WITH = (
    "hidden_act", "hidden_activation", "feed_forward_proj", "layer_norm_eps", "layer_norm_epsilon", "norm_eps",
    "num_hidden_layers", "num_attention_heads", "position_embedding_type", "relative_attention_num_buckets",
    "relative_attention_max_distance", "rope_theta", "rope_parameters", "global_rope_theta", "local_rope_theta",
    "local_attention", "global_attn_every_n_layers", "layer_types", "pad_token_id",
)  # fmt: skip
"""Keys of a config.json on which results depend and tensors do not."""
_UNKNOWN = 10**6  # from which on a length stands for none
_UNBOUNDED = 512
"""Tokens that an encoder reads which has no positions to run out of, where its files do not say."""


def present(tokens: Float[Tensor, "n tokens dim"]) -> Bool[Tensor, "n tokens"]:
    """Where there is a token and not padding."""
    return ~tokens[..., 0].isnan()


def of_tokens(tokens: Float[Tensor, "*n dim"]) -> Float[Tensor, "*n dim"]:
    """Tokens none of which is padding: the same, but infinite where they are not a number."""
    return tokens.nan_to_num(nan=INFINITE, posinf=INFINITE, neginf=-INFINITE)


class _Numbers(torch.autograd.Function):
    """Tokens with zeros for padding. Broadcast masks are slow on a CPU, where a number for each token is not."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, there: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(there)
        return tokens.nan_to_num(nan=0.0, posinf=INFINITE, neginf=-INFINITE)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (there,) = ctx.saved_tensors
        return grad * there[..., None].to(grad), None


class _Marked(torch.autograd.Function):
    """Tokens as `of_tokens` has them, and padding in its places."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, there: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(there)
        return of_tokens(tokens).add_(torch.zeros_like(tokens[..., :1]).masked_fill_(~there[..., None], NAN))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (there,) = ctx.saved_tensors
        return grad.masked_fill(~there[..., None], 0.0), None


class TextBlock(nn.Module, ABC):
    """One layer of an encoder, from tokens to tokens; padding stays padding.

    Args:
        layer: the layer itself.
        shared: what all layers of its encoder read, and another part of the encoder owns.
    """

    def __init__(self, layer: nn.Module, shared: nn.Module | None) -> None:
        super().__init__()
        self.layer = layer
        self._shared = (shared,)  # in a tuple it is no submodule, which it is elsewhere

    def forward(self, tokens: Float[Tensor, "n tokens dim"]) -> Float[Tensor, "n tokens dim"]:
        there = present(tokens)
        return _Marked.apply(self.passed(_Numbers.apply(tokens, there), there), there)

    @abstractmethod
    def passed(
        self, tokens: Float[Tensor, "n tokens dim"], there: Bool[Tensor, "n tokens"]
    ) -> Float[Tensor, "n tokens dim"]:
        """What leaves the layer, where all tokens are numbers, and only those that are `there` are attended to."""


class BertBlock(TextBlock):
    """A layer of BERT and what is built like it, which normalises after attention and after the MLP."""

    def passed(self, tokens: Tensor, there: Tensor) -> Tensor:
        return self.layer(tokens, there[:, None, None])


class ModernBertBlock(TextBlock):
    """A layer of ModernBERT: rotary positions, and in most layers a window around each token. `shared`: what gives the
    angles."""

    def passed(self, tokens: Tensor, there: Tensor) -> Tensor:
        layer = cast(Any, self.layer)
        places = torch.arange(tokens.shape[1], device=tokens.device)
        mask = there[:, None, None]
        if layer.attn.sliding_window is not None:
            near = (places[:, None] - places).abs() < layer.attn.sliding_window
            mask = (mask & near) | ~there[:, None, :, None]  # padding attends to all, and is not left without a number
        angles = cast(Any, self._shared[0])(tokens, places[None], layer.attention_type)
        return layer(tokens, attention_mask=mask, position_embeddings=angles)


class T5Block(TextBlock):
    """A layer of T5's encoder. `shared`: the attention of the first layer, whose biases by distance are those of
    all."""

    def passed(self, tokens: Tensor, there: Tensor) -> Tensor:
        length = tokens.shape[1]
        bias = cast(Any, self._shared[0]).compute_bias(length, length, device=tokens.device)
        return self.layer(tokens, there[:, None, None], bias)[0]


@dataclass(frozen=True)
class Family:
    """Where an architecture has what. Dotted paths are below its model, those of `sites` and `entered` below a layer.

    Attributes:
        model: name of the class in transformers.
        layers, embeddings: paths.
        norm: path of what normalises the tokens that leave the last layer; empty where there is nothing.
        shared: see `TextBlock`.
        sites: of each linear layer, the kinds of equal parts of its rows; a layer may lack some.
        entered: what the sum of a layer's input and its attention enters.
        class_token: its first token stands for the whole text.
        options: arguments of the class.
    """

    model: str
    block: type[TextBlock]
    layers: str
    embeddings: str
    entered: str
    sites: Mapping[str, tuple[str, ...]]
    norm: str = ""
    shared: str = ""
    class_token: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)


def _bert(model: str) -> Family:
    return Family(
        model=model,
        block=BertBlock,
        layers="encoder.layer",
        embeddings="embeddings",
        entered="intermediate",
        sites={
            "attention.self.query": ("q",),
            "attention.self.key": ("k",),
            "attention.self.value": ("v",),
            "attention.output.dense": ("proj",),
            "intermediate.dense": ("fc1",),
            "output.dense": ("fc2",),
        },
        options={"add_pooling_layer": False},
    )


FAMILIES: Mapping[str, Family] = {
    "bert": _bert("BertModel"),
    "roberta": _bert("RobertaModel"),
    "xlm-roberta": _bert("XLMRobertaModel"),
    "camembert": _bert("CamembertModel"),
    "modernbert": Family(
        model="ModernBertModel",
        block=ModernBertBlock,
        layers="layers",
        embeddings="embeddings",
        entered="mlp_norm",
        sites={
            "attn.Wqkv": ("q", "k", "v"),
            "attn.Wo": ("proj",),
            "mlp.Wi": ("fc1", "gate"),
            "mlp.Wo": ("fc2",),
        },
        norm="final_norm",
        shared="rotary_emb",
    ),
    "t5": Family(
        model="T5EncoderModel",
        block=T5Block,
        layers="encoder.block",
        embeddings="shared",
        entered="layer.1.layer_norm",
        sites={
            "layer.0.SelfAttention.q": ("q",),
            "layer.0.SelfAttention.k": ("k",),
            "layer.0.SelfAttention.v": ("v",),
            "layer.0.SelfAttention.o": ("proj",),
            "layer.1.DenseReluDense.wi": ("fc1",),
            "layer.1.DenseReluDense.wi_0": ("fc1",),
            "layer.1.DenseReluDense.wi_1": ("gate",),
            "layer.1.DenseReluDense.wo": ("fc2",),
        },
        norm="encoder.final_layer_norm",
        shared="encoder.block.0.layer.0.SelfAttention",
        class_token=False,
    ),
}
"""By the `model_type` of their configuration."""


def attend(
    own: Any, prefix: Prefix, forward: Callable[..., Any], x: Tensor, attention_mask: Tensor, **_: Any
) -> tuple[Tensor, None]:
    """softmax(Q [P_K; K]' / sqrt(d)) [P_V; V] in each head, with the projections of one of BERT's attentions.

    It stands in for that attention's `forward`; everybody attends to the prefix.
    """

    def heads(rows: Tensor) -> Tensor:
        return rows.unflatten(-1, (own.num_attention_heads, -1)).transpose(1, 2)

    q, k, v = heads(own.query(x)), heads(own.key(x)), heads(own.value(x))
    before = [heads(rows.to(k.dtype)).expand(len(x), -1, -1, -1) for rows in (prefix.keys, prefix.values)]
    mask = F.pad(attention_mask, (before[0].shape[2], 0), value=True)
    mixed = F.scaled_dot_product_attention(q, torch.cat([before[0], k], 2), torch.cat([before[1], v], 2), mask)
    return mixed.transpose(1, 2).flatten(2), None


class HFText(Encoder):
    """An encoder of transformers.

    Args:
        model: of one of `FAMILIES`, without dropout; its layers are put into blocks in place.
        name, tag: see `Encoder`.
        pooling: what the features are, the first token or the mean of all.
        tokenizer: what makes tokens of texts, as JSON of the `tokenizers` library.
        padding: the token that stands where there is none.
        longest: tokens that it reads at most.

    Raises:
        BackboneError: a pooling that it cannot have.
    """

    modality = "texts"

    def __init__(
        self, model: nn.Module, *, name: str, tag: str, pooling: Pooling, tokenizer: str, padding: int, longest: int
    ) -> None:
        super().__init__()
        self._family = FAMILIES[cast(Any, model.config).model_type]
        if pooling == "cls" and not self._family.class_token:
            raise BackboneError(
                f"backbone.pooling: {name} has no token that stands for the whole text; use backbone.pooling=mean"
            )
        self.model, self.name, self.tag, self.longest = model, name, tag, longest
        self.pooling: Pooling = pooling
        self.width = cast(Any, model.config).hidden_size
        self._tokenizer, self._padding = tokenizer, padding
        shared = model.get_submodule(self._family.shared) if self._family.shared else None
        layers = [self._family.block(layer, shared) for layer in cast(nn.ModuleList, self._part(self._family.layers))]
        self._set_layers(model, layers)

    def _part(self, path: str) -> nn.Module:
        return self.model.get_submodule(path)

    def _set_layers(self, model: nn.Module, layers: Sequence[nn.Module]) -> None:
        parent, _, name = self._family.layers.rpartition(".")
        setattr(model.get_submodule(parent), name, nn.ModuleList(layers))

    def reading(self) -> dict[str, Any]:
        return {"tokenizer": self._tokenizer, "padding": self._padding, "longest": self.longest}

    def besides_weights(self) -> str:
        """The tokeniser, how texts are cut and pooled, and what equal weights can be computed with."""
        config = cast(Any, self.model).config
        computed = {key: getattr(config, key) for key in _COMPUTED_WITH if hasattr(config, key)}
        told = self.reading() | {"tokenizer": json.loads(self._tokenizer), "pooling": self.pooling, "config": computed}
        return json.dumps(told, sort_keys=True, default=str)

    @property
    def _vocabulary(self) -> nn.Embedding:
        return cast(Any, self.model).get_input_embeddings()

    def example(self, n: int) -> Tokens:
        """Texts of 64 tokens, or as many as it reads."""
        length = min(_EXAMPLE, self.longest)
        ids = (torch.arange(length) % self._vocabulary.num_embeddings).expand(n, -1)
        return Tokens(ids, torch.ones(n, length, dtype=torch.bool)).to(self._vocabulary.weight.device)

    def probe(self, n: int) -> Tokens:
        """Tokens drawn uniformly, in texts of several lengths."""
        length = min(16, self.longest)
        ids = torch.randint(self._vocabulary.num_embeddings, (n, length), generator=torch.Generator().manual_seed(0))
        lengths = length - torch.arange(n)[:, None] % (length // 2)
        return Tokens(ids, torch.arange(length) < lengths).to(self._vocabulary.weight.device)

    def normalised(self, inputs: Inputs) -> Tokens:
        """The tokens as they are."""
        return Tokens(cast(Tokens, inputs).ids, cast(Tokens, inputs).mask)

    def embed(self, inputs: Inputs) -> Float[Tensor, "n tokens dim"]:
        tokens = cast(Tokens, inputs)
        embedded = self._part(self._family.embeddings)(tokens.ids.masked_fill(~tokens.mask, self._padding))
        return of_tokens(embedded).masked_fill(~tokens.mask[..., None], NAN)

    def addend(self, term: Float[Tensor, "n tokens dim"]) -> Float[Tensor, "n tokens dim"]:
        return of_tokens(term)

    @property
    def inputs_per_token(self) -> int:
        return 1

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return list(cast(nn.ModuleList, self._part(self._family.layers)))

    def _normalise(self, tokens: Float[Tensor, "*n dim"]) -> Float[Tensor, "*n dim"]:
        return self._part(self._family.norm)(tokens) if self._family.norm else tokens

    def pool(self, tokens: Float[Tensor, "n tokens dim"]) -> Float[Tensor, "n features"]:
        return self._normalise(tokens[:, 0]) if self.pooling == "cls" else self.average(tokens)

    def average(self, tokens: Float[Tensor, "n tokens dim"]) -> Float[Tensor, "n features"]:
        out = ~present(tokens)[..., None]
        normalised = self._normalise(tokens.masked_fill(out, 0.0)).masked_fill(out, 0.0)
        return normalised.sum(dim=1) / (~out).sum(dim=1)

    def parts(self, tokens: Float[Tensor, "n tokens dim"]) -> Float[Tensor, "n parts features"]:
        if not self._family.class_token:
            return self.average(tokens)[:, None]
        return torch.stack([self._normalise(tokens[:, 0]), self.average(tokens[:, 1:])], dim=1)

    def second_half(self, block: int) -> nn.Module:
        return cast(TextBlock, self.blocks[block]).layer.get_submodule(self._family.entered)

    def operations(self) -> dict[str, int]:
        found = {f"model.{self._family.embeddings}": self.width}
        inside = tuple(f"model.{path}" for path in (self._family.layers, self._family.norm) if path)
        for name, module in self.named_modules():
            if name.startswith(inside) and isinstance(module, nn.Linear):
                found[name] = module.out_features
            elif name.startswith(inside) and type(module).__name__.endswith("LayerNorm"):  # T5 has one of its own
                found[name] = self.width
        return found

    def takes_prefix(self, block: int) -> bool:
        return isinstance(self.blocks[block], BertBlock)

    def prefixed(self, block: int, prefix: Prefix) -> nn.Module:
        module = self.blocks[block]
        attention = module.get_submodule("layer.attention.self")
        return view(module, {attention: computing(partial(attend, attention, prefix))})

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        found: list[Site] = []
        for index, block in enumerate(self.blocks):
            linears = {name: module for name, module in block.named_modules() if isinstance(module, nn.Linear)}
            for path, kinds in self._family.sites.items():
                linear = linears.get(f"layer.{path}")
                rows = 0 if linear is None else linear.out_features // len(kinds)
                found += [
                    Site(
                        index,
                        kind,
                        f"model.{self._family.layers}.{index}.layer.{path}",
                        (n * rows, (n + 1) * rows),
                        linear.in_features,
                    )
                    for n, kind in enumerate(kinds)
                    if linear is not None
                ]
        return tuple(found)

    def plain_name(self, linear: str) -> str:
        """What a layer is called in the model as transformers builds it (`plain_model`)."""
        layers = re.escape(self._family.layers)
        return re.sub(rf"^model\.({layers}\.\d+)\.layer\.", r"\1.", linear)

    def plain_model(self) -> nn.Module:
        """A copy of the model as transformers builds it."""
        model = copy.deepcopy(self.model)
        layers = cast(nn.ModuleList, model.get_submodule(self._family.layers))
        self._set_layers(model, [cast(TextBlock, block).layer for block in layers])
        return model

    def with_classifier(self, classifier: Classifier) -> nn.Module:
        weight, bias = classifier.weight, classifier.bias
        head: Any = skip_init(  # nn.Linear itself would draw random numbers
            nn.Linear, weight.shape[1], len(weight), bias=bias is not None, device=weight.device, dtype=weight.dtype
        )
        with torch.no_grad():
            head.weight.copy_(weight)
            if bias is not None:
                head.bias.copy_(bias)
        if classifier.layers is not None:
            return LayeredText(copy.deepcopy(self), head, classifier.layers)
        return TextClassifier(self.plain_model(), self.pooling, head)


class TextClassifier(nn.Module):
    """A model of transformers, what is pooled of its last hidden state, and a linear classifier of that."""

    def __init__(self, model: nn.Module, pooling: Pooling, head: nn.Linear) -> None:
        super().__init__()
        self.model, self.pooling, self.head = model, pooling, head

    def forward(self, tokens: Tokens) -> Float[Tensor, "n classes"]:
        hidden = self.model(input_ids=tokens.ids, attention_mask=tokens.mask.long()).last_hidden_state
        if self.pooling == "cls":
            return self.head(hidden[:, 0])
        mask = tokens.mask[..., None]
        return self.head((hidden * mask).sum(dim=1) / mask.sum(dim=1))


class LayeredText(nn.Module):
    """An encoder whose classifier reads what leaves several of its blocks (`Encoder.layered_features`)."""

    def __init__(self, encoder: HFText, head: nn.Linear, layers: int) -> None:
        super().__init__()
        self.encoder, self.head, self.layers = encoder, head, layers

    def forward(self, tokens: Tokens) -> Float[Tensor, "n classes"]:
        return self.head(self.encoder.layered_features(tokens, self.layers).to(self.head.weight.dtype))


def load_hf_text(
    name: str,
    *,
    weights: Path | None = None,
    pooling: Pooling | None = None,
    pretrained: bool = True,
) -> HFText:
    """Builds an encoder from a folder as transformers saves it.

    Args:
        name: of the model on Hugging Face's hub, or whatever the recipe calls that of the folder.
        weights: the folder: config.json, model.safetensors and tokenizer.json, and what sentence-transformers puts
            beside them. Absent = the hub's, or what an earlier download left.
        pooling: absent = as the files of sentence-transformers say, else the first token, or the mean where none stands
            for all.
        pretrained: False leaves random weights (for its shape alone, timing and tests).

    Raises:
        BackboneError: transformers is not installed, an architecture that is not one of `FAMILIES`, missing or
            unsuitable files, no network.
    """
    try:
        import transformers
    except ImportError as error:
        raise BackboneError(
            "backbone.name: text encoders need transformers; install it with lorica: pip install lorica[text]"
        ) from error
    folder = _folder_of(name, weights)
    config = _read_json(folder / "config.json", needed=True)
    family = FAMILIES.get(config.get("model_type", ""))
    if family is None:
        raise BackboneError(
            f"backbone.name: {name} is of type {config.get('model_type')!r}; lorica knows {', '.join(FAMILIES)}"
        )
    off = {key: 0.0 for key, value in config.items() if "dropout" in key and isinstance(value, float | int)}
    kind: Any = getattr(transformers, family.model)
    settings = kind.config_class.from_dict(config | off)
    for file in folder.glob("model*.safetensors"):
        header(file)  # of a pointer, or of what is no file of tensors, it says so
    if pretrained:
        model = _with_weights(kind, folder, settings, family)
    else:
        model = kind._from_config(settings, attn_implementation="sdpa", **family.options)
    tokenizer, padding, longest = _tokeniser(folder, settings)
    usual: Pooling = "cls" if family.class_token else "mean"
    chosen = cast(Pooling, pooling or _pooling_of(folder) or usual)
    tag = (f"{name} ({folder.name})" if weights else f"{name}@{folder.name[:12]}") if pretrained else f"{name}.random"
    return HFText(model, name=name, tag=tag, pooling=chosen, tokenizer=tokenizer, padding=padding, longest=longest)


def _folder_of(name: str, weights: Path | None) -> Path:
    if weights is not None:
        if not weights.is_dir():
            raise BackboneError(
                f"backbone.weights: {weights} is not a folder; give one with config.json, model.safetensors and "
                "tokenizer.json"
            )
        return weights
    return hub.snapshot(
        name,
        [
            "config.json",
            "model*.safetensors*",
            "tokenizer*",
            "sentence_*.json",
            "modules.json",
            "1_Pooling/config.json",
        ],
        remedy="download its files elsewhere and name their folder as backbone.weights=FOLDER, or choose "
        "backbone.name=lorica_tiny_text, which is embedded",
    )


def _read_json(file: Path, *, needed: bool = False) -> dict[str, Any]:
    """What a file of the checkpoint says; nothing where there is none, and none is needed."""
    if not file.is_file() and not needed:
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BackboneError(
            f"backbone.weights: {file} cannot be read ({error}); give a folder as transformers saves it"
        ) from error
    if not isinstance(found, dict):
        raise BackboneError(f"backbone.weights: {file} holds no settings; give a folder as transformers saves it")
    return found


@contextmanager
def quietly() -> Iterator[None]:
    """Without what transformers would write to the terminal meanwhile."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


def _with_weights(kind: Any, folder: Path, settings: Any, family: Family) -> nn.Module:
    if not list(folder.glob("model*.safetensors")):
        raise BackboneError(
            f"backbone.weights: {folder} has no model.safetensors, and no other weights are read, as unpickling can "
            "run what is in them; convert them once: model.save_pretrained(FOLDER)"
        )
    try:
        with quietly():
            model, found = kind.from_pretrained(
                folder,
                config=settings,
                use_safetensors=True,
                dtype=torch.float32,
                attn_implementation="sdpa",
                output_loading_info=True,
                **family.options,
            )
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BackboneError(f"backbone.weights: {folder} cannot be loaded: {reason}") from error
    layers = f".{family.layers}."
    if surplus := sorted(key for key in found["unexpected_keys"] if layers in f".{key}"):
        raise BackboneError(
            f"backbone.weights: {folder} has {len(surplus)} tensors more than its config.json has layers for: "
            f"{', '.join(surplus[:4])}; give the config.json that belongs to the weights"
        )
    if missing := sorted(found["missing_keys"]):
        raise BackboneError(
            f"backbone.weights: {folder} lacks {len(missing)} tensors of a {family.model}: {', '.join(missing[:4])}"
        )
    return model.eval()


def _tokeniser(folder: Path, settings: Any) -> tuple[str, int, int]:
    """What makes tokens of texts, the token for padding, and how many tokens a text has at most."""
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        written = tokenizer.backend_tokenizer.to_str()
        if not _has_vocabulary(folder, tokenizer):  # of config.json alone transformers makes one that knows no word
            raise ValueError(f"none of {', '.join(sorted(tokenizer.vocab_files_names.values()))} is there")
    except (OSError, ValueError, AttributeError, KeyError) as error:
        raise BackboneError(
            f"backbone.weights: {folder} has no tokeniser that the tokenizers library reads ({str(error)[:120]}); give "
            "a folder with its tokenizer.json"
        ) from error
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if largest >= settings.vocab_size:
        raise BackboneError(
            f"backbone.weights: the tokeniser in {folder} gives tokens up to number {largest}, and its config.json has "
            f"{settings.vocab_size}, from 0 on; give the tokenizer.json that belongs to the weights"
        )
    bounds = [
        tokenizer.model_max_length,
        _read_json(folder / "sentence_bert_config.json").get("max_seq_length") or _UNKNOWN,
        getattr(settings, "max_position_embeddings", _UNKNOWN),
    ]
    if settings.model_type in ("roberta", "xlm-roberta", "camembert"):  # their first position is one past the padding
        bounds[-1] -= settings.pad_token_id + 1
    longest = min(bounds)
    padding = settings.pad_token_id if settings.pad_token_id is not None else tokenizer.pad_token_id
    return written, padding or 0, int(longest if longest < _UNKNOWN else _UNBOUNDED)


def _has_vocabulary(folder: Path, tokenizer: Any) -> bool:
    """Whether the tokeniser was made of files of its own."""
    names = set(tokenizer.vocab_files_names.values())
    return any(file.name in names or file.match("tokenizer.*json") for file in folder.iterdir())


def _pooling_of(folder: Path) -> Pooling | None:
    """What the files of sentence-transformers say of it; None where there are none."""
    told = _read_json(folder / "1_Pooling" / "config.json")
    ways = [way for way, asked in told.items() if way.startswith("pooling_mode_") and asked is True]
    known: dict[str, Pooling] = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean"}
    if ways and (len(ways) > 1 or ways[0] not in known):
        raise BackboneError(
            f"backbone.pooling: its own files ask for {', '.join(ways)}, which lorica has not; choose cls or mean"
        )
    return known[ways[0]] if ways else None
