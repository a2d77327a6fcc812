"""Files that are not the weights of the model, judged by their header: in a check, and before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from lorica.backbones import hub, load_backbone
from lorica.config import read_recipe
from lorica.errors import BackboneError
from lorica.run import check

NAME, SIDE, WIDTH, BLOCKS = "test_vit", 32, 64, 6  # patches of 16 pixels: a class token and 4 of them
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def state() -> State:
    """With a classifier, as on a hub."""
    torch.manual_seed(0)
    return timm.create_model(NAME, img_size=SIDE, num_classes=7).state_dict()


def renamed(prefix: str) -> Callable[[State], State]:
    return lambda state: {prefix + key: value for key, value in state.items()}


def with_heads_outside(state: State) -> State:
    """As self-supervised training leaves it: the backbone by that name, the classifier beside it."""
    return {key if key.startswith("head.") else f"backbone.{key}": value for key, value in state.items()}


def deeper(state: State) -> State:
    """Three times as many blocks, the first of which would fit."""
    more = {key: value for key, value in state.items() if key.startswith("blocks.")}
    for times in (1, 2):
        for key, value in more.items():
            _, number, rest = key.split(".", 2)
            state = state | {f"blocks.{int(number) + times * BLOCKS}.{rest}": value.clone()}
    return state


def of(**options: object) -> Callable[[State], State]:
    """timm's model with other options."""
    return lambda _: timm.create_model(NAME, **({"img_size": SIDE} | options)).state_dict()


def extra(name: str) -> Callable[[State], State]:
    return lambda state: state | {name: torch.ones(WIDTH)}


def without(start: str) -> Callable[[State], State]:
    return lambda state: {key: value for key, value in state.items() if not key.startswith(start)}


def cut(name: str) -> Callable[[State], State]:
    return lambda state: state | {name: state[name][:, :-1].contiguous()}


def as_integers(state: State) -> State:
    return state | {"norm.bias": state["norm.bias"].to(torch.int8)}


def twice(state: State) -> State:
    return renamed("student.")(state) | renamed("teacher.")({key: value.clone() for key, value in state.items()})


def saved(path: Path, state: State) -> Path:
    save_file({key: value.contiguous() for key, value in state.items()}, path)
    return path


OTHERS = {
    "more blocks": (deeper, "18 blocks, not 6; it also has blocks.10.attn"),
    "fewer blocks": (of(depth=4), "4 blocks, not 6; it lacks blocks.4"),
    "wider": (of(embed_dim=128), "128 dimensions, not 64; other shapes: "),
    "other patches": (of(patch_size=8),
        "8x8 pixels in a patch, not 16x16; other shapes: patch_embed.proj.weight 64x3x8x8"),
    "grey images": (of(in_chans=1),
        "1 channels, not 3; other shapes: patch_embed.proj.weight 64x1x16x16, not 64x3x16x16"),
    "a wider MLP": (of(mlp_ratio=4), "other shapes: blocks.0.mlp.fc1.bias 256, not "),
    "layer scale": (extra("blocks.0.ls1.gamma"), "it also has blocks.0.ls1.gamma, which are no part"),
    "a norm before the blocks": (extra("norm_pre.weight"), "it also has norm_pre.weight"),
    "a decoder beside it": (extra("decoder_pred.bias"), "it also has decoder_pred.bias"),
    "something outside its prefix": (
        lambda state: renamed("model.")(state) | {"projector.bias": torch.ones(3)},
        "it also has projector.bias, which are no part of that backbone (names without model.)",
    ),
    "no last norm": (without("norm."), "it lacks norm.bias, norm.weight"),
    "a grid that is no square": (cut("pos_embed"), "other shapes: pos_embed 1x4x64, not 1x5x64"),
    "two networks": (twice, "it holds 2 networks, whose names begin with student., teacher."),
    "another layout": (renamed("vit_"), "it has no blocks.0.norm1.weight, but vit_"),
    "nothing": (lambda _: {}, "it has no blocks.0.norm1.weight, but nothing"),
    "integers": (as_integers, "norm.bias is of type I8, not a float"),
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHERS)
def test_weights_of_another_architecture_are_refused(kind: str, state: State, tmp_path: Path) -> None:
    """With and without loading; the message says by which counts it is another one, and is no longer than a screen."""
    make, message = OTHERS[kind]
    path = saved(tmp_path / "model.safetensors", make(state))
    for pretrained in (False, True):
        with torch.device("cpu" if pretrained else "meta"), pytest.raises(BackboneError) as caught:
            load_backbone(NAME, weights=path, image_size=SIDE, pretrained=pretrained)
        assert str(caught.value).startswith(f"backbone.weights: {path} does not fit {NAME}: ")
        assert message in str(caught.value)
        assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("make", [renamed("module."), renamed("model.backbone."), with_heads_outside])
def test_a_prefix_that_is_unambiguous_is_left_out_and_recorded(make, state: State, tmp_path: Path) -> None:
    beside = state | {"mask_token": torch.ones(1, WIDTH)}
    plain = load_backbone(NAME, weights=saved(tmp_path / "plain.safetensors", beside), image_size=SIDE)
    path = saved(tmp_path / "model.safetensors", make(state))
    for side in (SIDE, 2 * SIDE):
        encoder = load_backbone(NAME, weights=path, image_size=side)
        assert encoder.vit.pos_embed.shape[1] == 1 + (side // 16) ** 2
        own = encoder.vit.state_dict()
        for key, value in plain.vit.state_dict().items():
            assert key == "pos_embed" or torch.equal(own[key], value), key
        assert torch.equal(own["cls_token"], state["cls_token"])
    prefix = next(key for key in make(state) if key.endswith("cls_token")).removesuffix("cls_token")
    assert encoder.tag.endswith(f"(model.safetensors, names without {prefix})")
    assert plain.tag.endswith("(plain.safetensors)")
    assert encoder.fingerprint != plain.fingerprint == load_backbone(NAME, weights=path, image_size=SIDE).fingerprint


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def cut_in_its_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:500])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def pickled(path: Path) -> None:
    torch.save({"blocks.0.norm1.weight": torch.ones(2)}, path)


def pointer(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935\nsize 22882312\n")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncated, "is not a whole safetensors file .*: it is cut off, or another kind of file under that name"),
        (cut_in_its_header, "is not a whole safetensors file"),
        (emptied, "is not a whole safetensors file"),
        (pickled, "is not a .safetensors file but one of torch.save, .* convert it once"),
        (pointer, "is a Git LFS pointer in place of the weights; fetch them with `git lfs pull`"),
    ],
)
def test_files_that_are_no_weights_are_refused_by_a_check(
    damage: Callable[[Path], None], message: str, small_recipe, state: State, tmp_path: Path
) -> None:
    path = saved(tmp_path / "model.safetensors", state)
    recipe = read_recipe(small_recipe, {"backbone.weights": str(path)})
    check(recipe)
    damage(path)
    with pytest.raises(BackboneError, match=rf"backbone\.weights: .*model\.safetensors {message}"):
        check(recipe)
    with pytest.raises(BackboneError, match=message):
        load_backbone(NAME, weights=path, image_size=SIDE)


def test_weights_that_cannot_be_read(state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    path = saved(tmp_path / "model.safetensors", state)
    monkeypatch.setattr(Path, "open", refused)  # root may read everything
    with pytest.raises(BackboneError, match=r"model\.safetensors cannot be read \(Permission denied\)"):
        load_backbone(NAME, weights=path, image_size=SIDE)


def test_damaged_weights_in_the_cache_of_a_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """timm reads them itself; what safetensors says of them is the reason given."""
    (tmp_path / "model.safetensors").write_bytes(b"\0" * 20)
    build = timm.create_model
    monkeypatch.setattr(hub, "out_of_reach", lambda _: None)
    overlay = {"file": str(tmp_path / "model.safetensors")}
    monkeypatch.setattr(timm, "create_model", lambda name, **kw: build(name, **kw, pretrained_cfg_overlay=overlay))
    with pytest.raises(BackboneError, match=rf"cannot get the weights of {NAME} \(.*eader.*\)"):
        load_backbone(NAME)
