"""Prompts and prefixes in timm's ViTs, against attention computed by hand."""

from __future__ import annotations

import copy
import math
from inspect import signature

import pytest
import torch
from timm.layers.attention import Attention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from lorica.backbones import load_backbone
from lorica.backbones.encoder import Prefix
from lorica.backbones.timm_vit import TimmViT, load_timm_vit
from lorica.errors import BackboneError

IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def rows(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def attended_by_hand(encoder: TimmViT, block: int, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attention of one block on normalised tokens x, with the rows of a prefix, head by head and query by query."""
    own = encoder.vit.blocks[block].attn
    heads, inner = own.num_heads, own.head_dim
    outputs = torch.zeros_like(x)
    for n in range(len(x)):
        projected = x[n] @ own.qkv.weight.T + own.qkv.bias
        q, k, v = projected.split(x.shape[-1], dim=1)
        k, v = torch.cat([keys[n], k]), torch.cat([values[n], v])
        for head in range(heads):
            part = slice(head * inner, (head + 1) * inner)
            for i in range(x.shape[1]):
                scores = k[:, part] @ q[i, part] / math.sqrt(inner)
                weights = scores.exp() / scores.exp().sum()
                outputs[n, i, part] = weights @ v[:, part]
    return outputs @ own.proj.weight.T + own.proj.bias


def test_a_prefix_enters_attention_after_the_projections(tiny_encoder) -> None:
    encoder = tiny_encoder()
    keys, values = rows(3, 4, 32), rows(3, 4, 32, seed=2)
    tokens = encoder.embed(IMAGES)
    first, second = encoder.vit.blocks
    tokens = tokens + attended_by_hand(encoder, 0, first.norm1(tokens), keys, values)
    tokens = second(tokens + first.mlp(first.norm2(tokens)))
    expected = encoder.pool(tokens)
    torch.testing.assert_close(
        encoder.features(IMAGES, prefixes={0: Prefix(keys, values)}), expected, atol=1e-5, rtol=1e-4
    )
    swapped = encoder.features(IMAGES, prefixes={0: Prefix(values, keys)})
    assert not torch.allclose(swapped, expected, atol=1e-3)


def test_a_prefix_changes_no_length_and_its_rows_have_no_order(tiny_encoder) -> None:
    encoder = tiny_encoder()
    keys, values, order = rows(1, 5, 32), rows(1, 5, 32, seed=2), [3, 0, 4, 1, 2]
    straight = encoder.tokens(IMAGES, prefixes={1: Prefix(keys, values)})
    assert straight.shape == encoder.embed(IMAGES).shape
    turned = encoder.tokens(IMAGES, prefixes={1: Prefix(keys[:, order], values[:, order])})
    torch.testing.assert_close(turned, straight, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit3_small_patch16_224", "vit_small_patch14_reg4_dinov2"])
def test_without_rows_the_model_is_timms_own(name: str) -> None:
    torch.manual_seed(0)
    encoder = load_timm_vit(name, image_size=28 if "patch14" in name else 32, pretrained=False).eval()
    x = torch.rand(2, 3, encoder.image_size, encoder.image_size)
    nothing = Prefix(torch.zeros(1, 0, encoder.width), torch.zeros(1, 0, encoder.width))
    with torch.no_grad():
        expected = encoder.features(x)
        found = encoder.features(x, prefixes=dict.fromkeys(range(len(encoder.blocks)), nothing))
    torch.testing.assert_close(found, expected)


def test_query_and_key_norms_are_the_models_own() -> None:
    """A model that normalises queries and keys does so for its own; the prefix is taken as it is."""
    torch.manual_seed(0)
    vit = VisionTransformer(
        img_size=32, patch_size=8, embed_dim=32, depth=1, num_heads=2, num_classes=0, qk_norm=True
    ).eval()
    encoder = TimmViT(vit, name="qk", tag="qk", mean=(0.5,) * 3, std=(0.5,) * 3).requires_grad_(False)
    nothing = Prefix(torch.zeros(1, 0, 32), torch.zeros(1, 0, 32))
    torch.testing.assert_close(encoder.features(IMAGES, prefixes={0: nothing}), encoder.features(IMAGES))
    small, large = (encoder.features(IMAGES, prefixes={0: Prefix(f * rows(1, 3, 32), rows(1, 3, 32))}) for f in (1, 9))
    assert not torch.allclose(small, large, atol=1e-3)  # normalised keys would be the same


def test_each_input_has_its_own_prefix(tiny_encoder) -> None:
    encoder = tiny_encoder()
    prefix = Prefix(rows(3, 4, 32), rows(3, 4, 32, seed=2))
    together = encoder.features(IMAGES, prefixes={0: prefix, 1: prefix})
    for n in range(3):
        own = Prefix(prefix.keys[n : n + 1], prefix.values[n : n + 1])
        alone = encoder.features(IMAGES[n : n + 1], prefixes={0: own, 1: own})
        torch.testing.assert_close(alone[0], together[n], atol=1e-5, rtol=1e-4)


def test_gradients_reach_the_rows_and_the_model_is_left_as_it_was(tiny_encoder) -> None:
    encoder = tiny_encoder()
    before, names = encoder.features(IMAGES), [name for name, _ in encoder.named_modules()]
    keys, values = rows(1, 2, 32).requires_grad_(), rows(1, 2, 32).requires_grad_()
    encoder.features(IMAGES, prefixes={1: Prefix(keys, values)}).sum().backward()
    assert keys.grad is not None
    assert keys.grad.abs().sum() > 0
    assert values.grad is not None
    assert values.grad.abs().sum() > 0
    with pytest.raises(RuntimeError):
        encoder.features(IMAGES, prefixes={0: Prefix(rows(2, 2, 32), rows(2, 2, 32))})  # for 2 of 3 inputs
    assert [name for name, _ in encoder.named_modules()] == names
    assert torch.equal(encoder.features(IMAGES), before)


def test_a_prompt_enters_first_and_comes_out_first(tiny_encoder) -> None:
    encoder = tiny_encoder()
    prompt, tokens = rows(1, 4, 32), encoder.embed(IMAGES)
    expected = torch.cat([prompt.expand(3, -1, -1), tokens], dim=1)
    for block in encoder.blocks:
        expected = block(expected)
    found = encoder.tokens(IMAGES, prompt=prompt)
    assert found.shape[1] == 4 + tokens.shape[1]
    torch.testing.assert_close(found, expected)
    normalised = torch.nn.functional.layer_norm(found[:, :4], (32,), eps=1e-6)  # the norm's start is 1 and 0
    torch.testing.assert_close(encoder.average(found[:, :4]), normalised.mean(dim=1), atol=1e-5, rtol=1e-5)


def test_the_embedded_backbone_takes_prompts() -> None:
    """It pools patches and normalises after pooling; so does the average over its prompt."""
    encoder = load_backbone("lorica_tiny").eval()
    found = encoder.tokens(IMAGES, prompt=rows(3, 4, 128))
    assert torch.equal(encoder.average(found[:, 4:]), encoder.pool(found[:, 4:]))


def test_blocks_that_there_are_not(tiny_encoder) -> None:
    encoder = tiny_encoder()
    assert encoder.prefix_blocks((0, 1, 2, 3), key="method.blocks") == (0, 1)
    assert encoder.prefix_blocks((), key="method.blocks") == ()
    with pytest.raises(BackboneError, match=r"method\.blocks: tiny has blocks 0 to 1, asked for \[2, 3\]"):
        encoder.prefix_blocks((2, 3), key="method.blocks")
    for wrong in ((-1, 0), (0, 0)):
        with pytest.raises(BackboneError, match=r"asked for .*; give some of them, each once"):
            encoder.prefix_blocks(wrong, key="method.blocks")


def test_attention_of_another_kind_is_refused(tiny_encoder) -> None:
    encoder = copy.deepcopy(tiny_encoder())
    gated = [Attention(32, 2, gated=True)] if "gated" in signature(Attention).parameters else []  # not in older timm
    for other in (torch.nn.Identity(), *gated):
        encoder.vit.blocks[1].attn = other
        with pytest.raises(BackboneError, match=r"method\.blocks: the attention of tiny takes no prefix \(block 1\)"):
            encoder.prefix_blocks((0, 1), key="method.blocks")


def test_a_normalised_attention_output_stays_so() -> None:
    torch.manual_seed(0)
    vit = VisionTransformer(
        img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=0, scale_attn_norm=True
    ).eval()
    torch.nn.init.normal_(vit.blocks[0].attn.norm.weight)
    encoder = TimmViT(vit, name="scaled", tag="scaled", mean=(0.5,) * 3, std=(0.5,) * 3).requires_grad_(False)
    nothing = Prefix(torch.zeros(1, 0, 32), torch.zeros(1, 0, 32))
    torch.testing.assert_close(encoder.features(IMAGES, prefixes={0: nothing}), encoder.features(IMAGES))


def test_attention_is_torchs_own_kernel(tiny_encoder, monkeypatch) -> None:
    calls, own = [], torch.nn.functional.scaled_dot_product_attention

    def spy(q: Tensor, k: Tensor, v: Tensor, **options: float) -> Tensor:
        calls.append((q.shape[2], k.shape[2]))
        return own(q, k, v, **options)

    monkeypatch.setattr("lorica.backbones.timm_vit.F.scaled_dot_product_attention", spy)
    tiny_encoder().features(IMAGES, prefixes={1: Prefix(rows(1, 5, 32), rows(1, 5, 32))})
    assert (17, 22) in calls
