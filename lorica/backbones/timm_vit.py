"""Any Vision Transformer of timm as an `Encoder`, running timm's own modules: nothing of the ViT is copied here."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

import timm
import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors import SafetensorError
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.nn.utils import skip_init

from lorica.backbones import hub
from lorica.backbones.encoder import Classifier, Encoder, Prefix, Site
from lorica.backbones.view import computing, view
from lorica.backbones.weights import Weights
from lorica.errors import BackboneError
from lorica.types import Inputs

UNIT = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))  # mean and standard deviation that leave [0, 1] as it is


def attend(
    own: Attention,
    prefix: Prefix,
    forward: Callable[..., Tensor],
    x: Float[Tensor, "n tokens dim"],
    attn_mask: None = None,
    is_causal: bool = False,
) -> Float[Tensor, "n tokens dim"]:
    """softmax(Q [P_K; K]' / sqrt(d)) [P_V; V] in each head, with the projections and norms of one of timm's attentions.

    It stands in for that attention's `forward`. Blocks pass no mask.
    """

    def heads(rows: Float[Tensor, "m rows dim"]) -> Float[Tensor, "m heads rows inner"]:
        return rows.unflatten(-1, (own.num_heads, own.head_dim)).transpose(1, 2)

    q, k, v = (heads(rows) for rows in own.qkv(x).chunk(3, dim=-1))
    q, k = own.q_norm(q), own.k_norm(k)
    before_k, before_v = (
        heads(rows.to(k.dtype)).expand(x.shape[0], -1, -1, -1) for rows in (prefix.keys, prefix.values)
    )
    dropout = own.attn_drop.p if own.training else 0.0
    mixed = F.scaled_dot_product_attention(
        q, torch.cat([before_k, k], dim=2), torch.cat([before_v, v], dim=2), dropout_p=dropout
    )
    return own.proj_drop(own.proj(own.norm(mixed.transpose(1, 2).flatten(2))))


class TimmViT(Encoder):
    """A timm `VisionTransformer` without its classifier.

    Args:
        vit: the model, created with `num_classes=0`.
        name, tag: see `Encoder`.
        mean, std: per-channel input normalisation, in units of [0, 1] images.
    """

    modality = "images"
    mean: Tensor
    std: Tensor

    def __init__(
        self, vit: VisionTransformer, *, name: str, tag: str, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__()
        self.vit = vit
        self.name = name
        self.tag = tag
        self.width = vit.num_features
        self.image_size = vit.patch_embed.img_size[0]
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def reading(self) -> dict[str, Any]:
        return {"image_size": self.image_size}

    def example(self, n: int) -> Float[Tensor, "n 3 s s"]:
        """Grey images."""
        return torch.full((n, 3, self.image_size, self.image_size), 0.5, device=self.mean.device)

    def probe(self, n: int) -> Float[Tensor, "n 3 s s"]:
        """Noise, uniform in [0, 1]."""
        noise = torch.rand(n, 3, self.image_size, self.image_size, generator=torch.Generator().manual_seed(0))
        return noise.to(self.mean)

    def normalised(self, inputs: Inputs) -> Float[Tensor, "n 3 s s"]:
        """Images less `mean`, over `std`."""
        return (cast(Tensor, inputs) - self.mean) / self.std

    def embed(self, inputs: Inputs) -> Float[Tensor, "n tokens dim"]:
        tokens = self.vit.patch_embed(self.normalised(inputs))
        return self.vit.norm_pre(self.vit.patch_drop(self.vit._pos_embed(tokens)))

    @property
    def inputs_per_token(self) -> int:
        projection = cast(nn.Conv2d, self.vit.patch_embed.proj)
        return projection.weight[0].numel()

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return list(cast(nn.Sequential, self.vit.blocks))

    def pool(self, tokens: Float[Tensor, "n tokens dim"]) -> Float[Tensor, "n features"]:
        return self.vit.forward_head(self.vit.norm(tokens), pre_logits=True)

    def second_half(self, block: int) -> nn.Module:
        module = self.blocks[block]
        if type(module) is not Block:
            raise BackboneError(
                f"backbone.name: the blocks of {self.name} are not attention followed by an MLP, each behind its own "
                "norm, so that adapters have no place there; choose a plain ViT"
            )
        return module.norm2

    def operations(self) -> dict[str, int]:
        found = {"vit.patch_embed": self.width}
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                found[name] = module.out_features
            elif isinstance(module, nn.LayerNorm) and name != "vit.fc_norm":  # that one normalises the pooled feature
                found[name] = module.normalized_shape[0]
        return found

    def average(self, tokens: Float[Tensor, "n tokens dim"]) -> Float[Tensor, "n features"]:
        return self.vit.fc_norm(self.vit.norm(tokens).mean(dim=1))

    def parts(self, tokens: Float[Tensor, "n tokens dim"]) -> Float[Tensor, "n parts features"]:
        averaged = [slice(0, 1)] if self.vit.has_class_token else []
        averaged += [slice(self.vit.num_prefix_tokens, None)]
        return torch.stack([self.average(tokens[:, which]) for which in averaged], dim=1)

    def takes_prefix(self, block: int) -> bool:
        attention = getattr(self.blocks[block], "attn", None)
        return type(attention) is Attention and getattr(attention, "gate", None) is None

    def prefixed(self, block: int, prefix: Prefix) -> nn.Module:
        module = self.blocks[block]
        attention = cast(Attention, module.get_submodule("attn"))
        return view(module, {attention: computing(partial(attend, attention, prefix))})

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        found: list[Site] = []
        for index, block in enumerate(self.blocks):
            for layer, kinds in {
                "attn.qkv": "qkv",
                "attn.proj": ["proj"],
                "mlp.fc1": ["fc1"],
                "mlp.fc2": ["fc2"],
            }.items():
                try:
                    linear = block.get_submodule(layer)
                except AttributeError:
                    continue  # parallel and gated blocks lack some of these; `select` lists what there is
                if isinstance(linear, nn.Linear):
                    rows = linear.out_features // len(kinds)
                    found += [
                        Site(index, kind, f"vit.blocks.{index}.{layer}", (n * rows, (n + 1) * rows), linear.in_features)
                        for n, kind in enumerate(kinds)
                    ]
        return tuple(found)

    def with_classifier(self, classifier: Classifier) -> nn.Module:
        weight, bias = classifier.weight, classifier.bias
        vit = copy.deepcopy(self.vit)
        head: Any = skip_init(  # nn.Linear itself would draw random numbers
            nn.Linear, weight.shape[1], len(weight), bias=bias is not None, device=weight.device, dtype=weight.dtype
        )
        with torch.no_grad():
            head.weight.copy_(weight)
            if bias is not None:
                head.bias.copy_(bias)
        if classifier.layers is not None:
            plain = TimmViT(vit, name=self.name, tag=self.tag, mean=UNIT[0], std=UNIT[1])
            return LayeredViT(plain, head, classifier.layers)
        vit.num_classes = len(weight)
        vit.head = head
        if hasattr(vit, "head_dist"):  # distilled models average two heads, each on its own token
            vit.head_dist = copy.deepcopy(vit.head)
        return vit


class LayeredViT(nn.Module):
    """A ViT whose classifier reads what leaves several of its blocks (`Encoder.layered_features`); it takes normalised
    images."""

    def __init__(self, encoder: TimmViT, head: nn.Linear, layers: int) -> None:
        super().__init__()
        self.encoder, self.head, self.layers = encoder, head, layers

    def forward(self, images: Float[Tensor, "n 3 s s"]) -> Float[Tensor, "n classes"]:
        return self.head(self.encoder.layered_features(images, self.layers).to(self.head.weight.dtype))


def _missing(name: str, reason: str) -> str:
    return (
        f"backbone.name: cannot get the weights of {name} ({reason}); without a network, choose "
        "backbone.name=lorica_tiny, which is embedded, or download its model.safetensors elsewhere and name the file "
        "as backbone.weights=FILE"
    )


def load_timm_vit(
    name: str,
    *,
    weights: Path | None = None,
    image_size: int | None = None,
    normalisation: str = "backbone",
    pretrained: bool = True,
) -> TimmViT:
    """Builds a timm ViT with pre-trained weights.

    Args:
        name: timm's `architecture` or `architecture.tag`.
        weights: a local safetensors file in timm's own layout, of which the header is read in any case; absent = timm's
            hub, or its local cache.
        image_size: input side in pixels; position embeddings are resampled to it. Absent = the checkpoint's own.
        normalisation: `backbone` for the mean and deviation the weights were trained with, `unit` for none.
        pretrained: False leaves random weights (timing and tests only).

    Raises:
        BackboneError: unknown name, not a ViT, missing or unsuitable weights, no network.
    """
    if not timm.is_model(name.split(".")[0]):
        near = timm.list_models(f"*{name.split('.')[0].split('_')[0]}*")[:6]
        near = f"near it: {', '.join(near)}" if near else f"a text encoder of the hub is named hf:{name}"
        raise BackboneError(f"backbone.name: timm has no model {name!r}; {near}")
    if weights is not None and not Path(weights).is_file():
        raise BackboneError(f"backbone.weights: {weights} is not a file; give a safetensors file in timm's layout")
    from_hub = pretrained and weights is None
    options: dict[str, Any] = {"pretrained": from_hub, "num_classes": 0}
    if from_hub and (reason := hub.out_of_reach(name)):
        file = hub.cached(name)
        if file is None:
            raise BackboneError(_missing(name, reason))
        options["pretrained_cfg_overlay"] = {"file": str(file), "custom_load": False}
    if image_size is not None:
        options["img_size"] = image_size
    try:
        vit = timm.create_model(name, **options)
    except (OSError, RuntimeError, ValueError, KeyError, AssertionError, TypeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BackboneError(
            _missing(name, reason)
            if from_hub
            else f"backbone.name: timm cannot build {name}, image size {image_size or 'its own'}: {reason}"
        ) from error
    if not isinstance(vit, VisionTransformer):
        raise BackboneError(f"backbone.name: {name} is a {type(vit).__name__}, not a VisionTransformer")
    found = None if weights is None else Weights.of(vit, Path(weights), name)
    if found and pretrained:
        found.load_into(vit)
    side, patch = vit.patch_embed.img_size[0], vit.patch_embed.patch_size[0]
    config = cast(dict[str, Any], vit.pretrained_cfg or {})
    trained_on = config.get("input_size", (3, side, side))[-1]  # whatever it is: some leave the last pixels out
    if side % patch and side != trained_on:
        raise BackboneError(f"backbone.image_size: {side} is not a multiple of the patch size of {name}, {patch}")
    mean, std = UNIT if normalisation == "unit" else (config["mean"], config["std"])
    tag = f"{config.get('architecture', name)}.{config.get('tag', '')}".rstrip(".") if pretrained else f"{name}.random"
    if found:
        without = f", names without {found.prefix}" if found.prefix else ""
        tag = f"{tag} ({found.path.name}{without})"
    return TimmViT(vit, name=name, tag=tag, mean=mean, std=std)
