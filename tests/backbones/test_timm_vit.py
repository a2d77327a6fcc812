"""The encoder contract on timm's own models: same features, right sites, weights from local files, clear errors."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from lorica.backbones import TINY, backbone_names, hub, load_backbone
from lorica.backbones.encoder import Classifier
from lorica.backbones.timm_vit import load_timm_vit
from lorica.errors import BackboneError
from lorica.terminal import screenful

SMALL = "vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory):
    """A safetensors file in timm's layout, as a hub download would be (random values), made for 32x32 inputs."""
    torch.manual_seed(0)
    model = timm.create_model(SMALL, img_size=32)
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_file(model.state_dict(), path)
    return model.eval(), path


@pytest.mark.parametrize(
    "name", [SMALL, "vit_base_patch16_clip_224", "deit3_small_patch16_224", "vit_small_patch14_reg4_dinov2"]
)
def test_features_are_timms_own(name: str) -> None:
    torch.manual_seed(0)
    encoder = load_timm_vit(name, image_size=28 if "patch14" in name else 32, pretrained=False).eval()
    x = torch.rand(2, 3, encoder.image_size, encoder.image_size)
    with torch.no_grad():
        normalised = (x - encoder.mean) / encoder.std
        expected = encoder.vit.forward_head(encoder.vit.forward_features(normalised), pre_logits=True)
        torch.testing.assert_close(encoder.features(x), expected)
    assert expected.shape == (2, encoder.width)


def test_local_weights_are_loaded_and_position_embeddings_resampled(weights) -> None:
    model, path = weights
    same = load_backbone(SMALL, weights=path, image_size=32).eval()
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = model.forward_head(model.forward_features((x - same.mean) / same.std), pre_logits=True)
        torch.testing.assert_close(same.features(x), expected)
    larger = load_backbone(SMALL, weights=path, image_size=64).eval()
    assert larger.vit.pos_embed.shape[1] == 1 + 16
    assert torch.equal(larger.vit.blocks[0].attn.qkv.weight, same.vit.blocks[0].attn.qkv.weight)
    assert path.name in same.tag


def test_sites_are_row_ranges_of_the_fused_projection(tiny_encoder) -> None:
    encoder = tiny_encoder()
    width, sites = encoder.width, {site.name: site for site in encoder.sites}
    assert len(sites) == 6 * len(encoder.blocks)
    assert sites["block1_q"].rows == (0, width)
    assert sites["block1_k"].rows == (width, 2 * width)
    assert sites["block1_v"].rows == (2 * width, 3 * width)
    assert sites["block1_v"].linear == "vit.blocks.1.attn.qkv"
    assert sites["block0_fc1"].out_features == encoder.vit.blocks[0].mlp.fc1.out_features
    for site in sites.values():
        assert isinstance(encoder.get_submodule(site.linear), nn.Linear)


def test_unit_normalisation_feeds_images_as_they_are() -> None:
    encoder = load_timm_vit(SMALL, image_size=32, normalisation="unit", pretrained=False)
    assert encoder.mean.flatten().tolist() == [0, 0, 0]
    assert encoder.std.flatten().tolist() == [1, 1, 1]


def test_classifier_copy_is_a_plain_timm_model(tiny_encoder) -> None:
    encoder = tiny_encoder()
    weight, bias = torch.randn(4, encoder.width), torch.randn(4)
    model = encoder.with_classifier(Classifier(weight, bias))
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model((x - encoder.mean) / encoder.std), encoder.features(x) @ weight.T + bias)
    assert isinstance(encoder.vit.head, nn.Identity)


def test_a_distilled_model_keeps_its_two_tokens_in_the_classifier_copy() -> None:
    encoder = load_timm_vit("deit_tiny_distilled_patch16_224", image_size=32, pretrained=False).eval()
    weight, bias = torch.randn(4, encoder.width), torch.randn(4)
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        logits = encoder.with_classifier(Classifier(weight, bias)).eval()((x - encoder.mean) / encoder.std)
        torch.testing.assert_close(logits, encoder.features(x) @ weight.T + bias, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("deit_tiny_patch16_224", 2),
        ("deit_tiny_distilled_patch16_224", 2),  # class, distillation and 4 patch tokens
        ("vit_wee_patch16_reg1_gap_256", 1),  # a register, and no class token
    ],
)
def test_parts_are_the_class_token_and_the_mean_of_the_patches(name: str, number: int) -> None:
    encoder = load_timm_vit(name, image_size=32, pretrained=False).eval()
    with torch.no_grad():
        tokens = encoder.embed(torch.rand(2, 3, 32, 32))
        found = encoder.parts(tokens)
        patches = tokens[:, -4:]
        expected = [encoder.average(patches)]
        expected = [encoder.average(tokens[:, :1]), *expected] if number == 2 else expected
    assert encoder.number_of_parts == number
    torch.testing.assert_close(found, torch.stack(expected, dim=1))


def test_a_classifier_of_several_blocks_can_be_cast() -> None:
    encoder = load_timm_vit("deit_tiny_patch16_224", image_size=32, pretrained=False).eval()
    model = encoder.with_classifier(Classifier(torch.randn(3, 2 * 2 * encoder.width), torch.randn(3), layers=2)).eval()
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = model(x)
        found = model.double()(x.double())
        assert model.bfloat16()(x.bfloat16()).dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, atol=1e-3, rtol=1e-3)


def test_fingerprint_follows_the_weights(tiny_encoder) -> None:
    one, same, other = tiny_encoder(), tiny_encoder(), tiny_encoder()
    with torch.no_grad():
        other.vit.blocks[0].attn.qkv.weight[0, 0] += 1e-3
    assert one.fingerprint == same.fingerprint != other.fingerprint


def test_embedded_backbone_loads_offline_and_is_small() -> None:
    encoder = load_backbone(TINY)
    assert encoder.features(torch.rand(2, 3, 32, 32)).shape == (2, encoder.width)
    assert sum(p.numel() for p in encoder.parameters()) * 4 <= 8 * 2**20
    assert TINY in encoder.tag
    assert {TINY, SMALL, "deit_tiny_patch16_224"} <= backbone_names().keys()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"name": "vit_tinny_patch16_224"},
            r"backbone\.name: timm has no model 'vit_tinny_patch16_224'; near it: .*vit_",
        ),
        ({"name": "resnet18"}, r"backbone\.name: resnet18 is a ResNet, not a VisionTransformer"),
        (
            {"name": SMALL, "weights": Path("nowhere.safetensors")},
            r"backbone\.weights: nowhere\.safetensors is not a file",
        ),
        ({"name": TINY, "image_size": 64}, r"backbone\.image_size: lorica_tiny takes 32x32 images, not 64"),
        ({"name": TINY, "weights": Path("x.safetensors")}, r"backbone\.weights: lorica_tiny ships with its weights"),
    ],
)
def test_errors(arguments: dict, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    build = timm.create_model  # a ResNet without pre-trained weights: there is no network here
    monkeypatch.setattr(hub, "out_of_reach", lambda _: None)
    monkeypatch.setattr(
        timm,
        "create_model",
        lambda name, **kw: build(name, **(kw | {"pretrained": name != "resnet18" and kw["pretrained"]})),
    )
    with pytest.raises(BackboneError, match=message):
        load_backbone(**arguments)


def test_image_size_must_fit_the_patches() -> None:
    with pytest.raises(
        BackboneError, match=rf"backbone\.image_size: 40 is not a multiple of the patch size of {SMALL}, 16"
    ):
        load_timm_vit(SMALL, image_size=40, pretrained=False)


def test_every_listed_backbone_of_an_odd_size_builds_at_that_size() -> None:
    """27 patches of 14 pixels leave 6 of 384 out, as when its weights were trained."""
    with torch.device("meta"):
        encoder = load_backbone("vit_so400m_patch14_siglip_384", pretrained=False)
        assert encoder.features(encoder.example(1)).shape == (1, encoder.width)
        with pytest.raises(BackboneError, match=r"400 is not a multiple of the patch size"):
            load_backbone("vit_so400m_patch14_siglip_384", image_size=400, pretrained=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", backbone_names())
def test_every_listed_backbone_builds_at_its_own_size(name: str) -> None:
    with torch.device("meta"):
        encoder = load_backbone(name, pretrained=False)
        assert encoder.example(1).shape[-1] == encoder.image_size


@pytest.mark.parametrize("inner", [None, "model", "state_dict"])
def test_pickled_weights_are_refused_and_can_be_converted(inner: str | None, weights, tmp_path: Path) -> None:
    model, _ = weights
    state = model.state_dict()
    file = tmp_path / "my model.pth"
    torch.save({inner: state, "epoch": 3} if inner else state, file)
    with pytest.raises(BackboneError, match=r"my model\.pth is not a \.safetensors file .* convert it once") as error:
        load_backbone(SMALL, weights=file)
    _, command = error.value.problems
    assert "weights_only=True" in command
    assert list(screenful(error.value.problems)) == list(error.value.problems)  # nothing left out of it
    program, *arguments = shlex.split(command)
    assert program == "python"
    subprocess.run([sys.executable, *arguments], check=True, cwd=tmp_path)
    by_any_name = (tmp_path / "weights.safetensors").rename(tmp_path / "my model")
    encoder = load_backbone(SMALL, weights=by_any_name, image_size=32)
    assert torch.equal(encoder.vit.blocks[0].attn.qkv.weight, state["blocks.0.attn.qkv.weight"])


def test_weights_that_lack_layers_are_refused(weights, tmp_path) -> None:
    """timm loads what it finds and leaves the rest random when the classifier is dropped; that must not pass unseen."""
    state = {k: v for k, v in weights[0].state_dict().items() if not k.startswith("blocks.11.")}
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(
        BackboneError,
        match=rf"backbone\.weights: .*model\.safetensors does not fit {SMALL}: 11 blocks, not 12; it lacks blocks\.11",
    ):
        load_backbone(SMALL, weights=tmp_path / "model.safetensors", image_size=32)


def test_weights_of_another_width_are_refused(tmp_path) -> None:
    save_file(timm.create_model("vit_small_patch16_224", img_size=32).state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(BackboneError, match=rf"backbone\.weights: .*model\.safetensors does not fit {SMALL}"):
        load_backbone(SMALL, weights=tmp_path / "model.safetensors", image_size=32)


def test_what_timm_says_of_weights_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: object, **kwargs: object) -> None:
        raise OSError("connection lost")

    monkeypatch.setattr(hub, "out_of_reach", lambda _: None)
    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(
        BackboneError, match=r"cannot get the weights of .*connection lost.*name the file as backbone\.weights=FILE"
    ):
        load_backbone(SMALL)


def test_unknown_projection_lists_those_there_are(tiny_encoder) -> None:
    with pytest.raises(
        BackboneError, match=r"method\.projections: tiny has no projection query; it has fc1, fc2, k, proj, q, v"
    ):
        tiny_encoder().select(("query", "v"))
