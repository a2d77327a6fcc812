"""Each target, loaded with its own library and compared with the method on the merged learner's inputs."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import peft
import pytest
import timm
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file

from lorica.backbones import load_backbone
from lorica.errors import LoricaError
from lorica.export import export
from lorica.methods import Readout, find_method
from lorica.predictor import Predictor

MakeLearner = Callable[..., Predictor]
Pictures = list[np.ndarray]


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Equal but for rounding in float32, of which the largest number says how much that is."""
    return bool((found - expected).abs().max() <= 1e-5 * expected.abs().max())


def prepared(transform: Any, pictures: Pictures) -> torch.Tensor:
    return torch.stack([transform(Image.fromarray(picture)) for picture in pictures])


@pytest.mark.parametrize(
    ("name", "options"),
    [("linear_probe", {}), ("sd_lora", {"rank": 2, "backbone": "lorica_tiny"}), ("full_finetune", {})],
)
def test_timm_loads_model_names_and_preparation(
    name: str, options: dict[str, Any], make_learner: MakeLearner, pictures: Pictures, tmp_path: Path
) -> None:
    learner = make_learner(name, **options)
    done = export(learner, tmp_path / "out", "timm", pictures)
    assert done.real
    assert done.images == len(pictures)
    assert done.share < 1e-5
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    known = timm.data.resolve_model_data_config(model)
    assert known["input_size"] == (3, 32, 32)
    assert list(known["mean"]) == learner.method.encoder.mean.flatten().tolist()
    with torch.no_grad():
        found = model(prepared(timm.data.create_transform(**known), pictures))
    assert close(found, learner.logits(pictures))
    assert model.pretrained_cfg["label_names"] == list(learner.class_names)


@pytest.mark.parametrize("target", ["timm", "hf", "peft", "onnx"])
def test_classes_that_were_forgotten_are_not_exported(
    target: str, make_learner: MakeLearner, pictures: Pictures, tmp_path: Path
) -> None:
    whole = make_learner("sd_lora", rank=2)
    learner = Predictor(whole.method, reader=whole.reader, forgotten=[1, 4])
    export(learner, tmp_path / "out", target, pictures)  # compares the logits of what it loads back
    assert json.loads((tmp_path / "out/export.json").read_text())["class_names"] == [
        f"class {number}" for number in (0, 2, 3, 5)
    ]
    if target == "timm":
        model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
        transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
        with torch.no_grad():
            found = model(prepared(transform, pictures))
        assert close(found, whole.logits(pictures)[:, [0, 2, 3, 5]])


def test_timm_crops_as_the_reader_does(make_learner: MakeLearner, pictures: Pictures, tmp_path: Path) -> None:
    learner = make_learner("linear_probe", crop_pct=0.8)
    done = export(learner, tmp_path / "out", "timm", pictures)
    assert done.pixels is not None
    assert done.pixels < 1
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    resize, crop = timm.data.create_transform(**timm.data.resolve_model_data_config(model)).transforms[:2]
    assert (resize.size, crop.size) == (40, (32, 32))


@pytest.mark.parametrize(
    ("backbone", "kind"),
    [("test_vit", "ViTForImageClassification"), ("lorica_tiny", "TimmWrapperForImageClassification")],
)
def test_transformers_load_model_names_and_preparation(
    backbone: str, kind: str, make_learner: MakeLearner, pictures: Pictures, tmp_path: Path
) -> None:
    learner = make_learner("sd_lora", rank=2, backbone=backbone, crop_pct=0.8)
    done = export(learner, tmp_path / "out", "hf", pictures)
    assert done.pixels is not None
    assert done.pixels < 1
    model = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "out").eval()
    assert type(model).__name__ == kind
    assert model.config.id2label == dict(enumerate(learner.class_names))
    assert model.config.label2id == {name: number for number, name in enumerate(learner.class_names)}
    squares = learner.reader.of(pictures)
    with torch.no_grad():
        found = model(pixel_values=(squares - learner.method.encoder.mean) / learner.method.encoder.std).logits
    assert close(found, learner.logits(pictures))
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "out")
    given = processor(Image.fromarray(pictures[0]), return_tensors="pt")["pixel_values"]
    assert given.shape == (1, 3, 32, 32)


def test_one_pixel_beside_the_centre_is_no_other_preparation(make_learner: MakeLearner, tmp_path: Path) -> None:
    """Of 43 pixels 32 are used, before which transformers leave 5 and lorica 6: each pixel of noise is then another
    one."""
    noise = np.random.RandomState(0).randint(0, 256, (32, 43, 3)).astype(np.uint8)
    done = export(make_learner("linear_probe"), tmp_path / "out", "hf", [noise])
    assert done.pixels is not None
    assert 0.5 < done.pixels < 8  # pixel by pixel it would be 85, the mean difference of two bytes


@pytest.mark.parametrize(
    ("name", "options", "ranks"),
    [
        ("sd_lora", {"rank": 2, "projections": ("q", "v")}, {"attn.qkv": 12}),
        ("sd_lora_rr", {"rank": 3, "reduced_from": (2, 3), "reduced_ranks": (2, 1), "projections": ("k", "fc1")},
         {"attn.qkv": 6, "mlp.fc1": 6}),
        ("sd_lora", {"rank": 1, "projections": ("q", "v", "proj")}, {"attn.qkv": 6, "attn.proj": 3}),
        ("inf_lora", {"rank": 2}, {"attn.qkv": 12}),
        ("gumbel_cl_lora", {"rank": 2}, {"attn.qkv": 12}),
    ],
)  # fmt: skip
def test_peft_loads_an_exact_adapter(
    name: str,
    options: dict[str, Any],
    ranks: dict[str, int],
    make_learner: MakeLearner,
    pictures: Pictures,
    tmp_path: Path,
) -> None:
    learner = make_learner(name, **options)
    if name == "inf_lora":
        with torch.no_grad():
            for _, adapter, _ in learner.method.parts():  # type: ignore[union-attr]
                adapter.down.normal_(std=0.1)
    export(learner, tmp_path / "out", "peft", pictures)
    base, squares = plain_base(), learner.reader.of(pictures)
    weights = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    model = peft.PeftModel.from_pretrained(base, tmp_path / "out").eval()
    encoder = learner.method.encoder
    with torch.no_grad():
        found = model((squares - encoder.mean) / encoder.std)
    assert close(found, learner.logits(pictures))
    for layer, rank in ranks.items():
        one = model.base_model.model.get_submodule(f"blocks.3.{layer}")
        assert one.lora_A["default"].weight.shape[0] == rank
        assert one.scaling["default"] == 1
    with warnings.catch_warnings(action="ignore"):
        merged = model.merge_and_unload()
    assert not torch.equal(merged.blocks[0].attn.qkv.weight, weights["blocks.0.attn.qkv.weight"])
    assert torch.equal(merged.blocks[0].mlp.fc2.weight, weights["blocks.0.mlp.fc2.weight"])


def plain_base() -> torch.nn.Module:
    """The ViT of `make_learner` before anything was attached, with another head."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vit = load_backbone("test_vit", image_size=32, pretrained=False).vit
        torch.manual_seed(9)
        base = timm.create_model("test_vit", num_classes=6, img_size=32)
    base.load_state_dict(vit.state_dict(), strict=False)
    return base.eval()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("rolda", {"rank": 2, "layers": 2}),
        ("ran_pac", {"width": 64}),
        pytest.param("l2p", {"pool_size": 5, "selected": 2, "length": 2}, marks=pytest.mark.slow),
    ],
)
def test_onnxruntime_reproduces_the_whole_at_any_batch_size(
    name: str, options: dict[str, Any], make_learner: MakeLearner, pictures: Pictures, tmp_path: Path
) -> None:
    learner = make_learner(name, backbone="tiny", crop_pct=0.8, **options)
    done = export(learner, tmp_path / "out", "onnx", pictures)
    assert done.share < 1e-5
    session = onnxruntime.InferenceSession(tmp_path / "out/model.onnx", providers=["CPUExecutionProvider"])
    (images,) = session.get_inputs()
    assert (images.name, images.type, images.shape[1:]) == ("images", "tensor(uint8)", [3, 32, 32])
    pixels = np.random.RandomState(1).randint(0, 256, (11, 3, 32, 32)).astype(np.uint8)
    with torch.no_grad():
        expected = learner.method.predict(torch.from_numpy(pixels).float() / 255)
    for number in (1, 3, 8, 11):
        (found,) = session.run(["logits"], {"images": pixels[:number]})
        assert close(torch.from_numpy(found), expected[:number])
    said = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    assert said["class_names"] == list(learner.class_names)
    assert (said["image_size"], said["resize_short_side"], said["method"]) == (32, 40, name)
    assert said["mean_in_graph"] == learner.method.encoder.mean.flatten().tolist()


@pytest.mark.parametrize("to", ["timm", "hf", "peft"])
def test_several_blocks_are_refused_with_a_word_on_onnx(to: str, make_learner: MakeLearner, tmp_path: Path) -> None:
    learner = make_learner("rolda", rank=2, layers=3)
    with pytest.raises(LoricaError, match=r"rolda reads what leaves 3 blocks, .*; export to onnx"):
        export(learner, tmp_path / "out", to)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "to", "words"),
    [
        ("prototypes", "timm", "prototypes does not classify by one linear layer .*; export to onnx"),
        ("prototypes", "hf", "does not classify by one linear layer"),
        ("linear_probe", "peft", "linear_probe adds no low-rank .*; export to timm, hf or onnx"),
        ("ease", "peft", "ease adds no low-rank updates .*; export to onnx"),
        ("full_finetune", "peft", "full_finetune trains the backbone's own weights"),
        ("cl_lora", "peft", "cl_lora does not classify by one linear layer"),
    ],
)
def test_what_a_target_cannot_express_is_refused(
    name: str, to: str, words: str, make_learner: MakeLearner, tmp_path: Path
) -> None:
    with pytest.raises(LoricaError, match=words):
        export(make_learner(name), tmp_path / "out", to)
    assert not list(tmp_path.iterdir())


def test_a_read_out_is_exported_in_place_of_the_head(
    make_learner: MakeLearner, pictures: Pictures, tmp_path: Path
) -> None:
    head = make_learner("sd_lora", rank=2)
    own = find_method("sd_lora")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = load_backbone("test_vit", image_size=32, pretrained=False).requires_grad_(False).eval()
        method = Readout(own(own.Config(name="sd_lora", rank=2), encoder), "discriminant")
        for task in head.method.tasks:
            method.grow(task)
            with torch.no_grad():
                for value in method.own_state().values():
                    if value.is_floating_point() and not value.any():
                        value.normal_()
    learner = Predictor(method.eval(), reader=head.reader)
    export(learner, tmp_path / "out", "timm", pictures)
    weight = load_file(tmp_path / "out/model.safetensors")["head.weight"]
    assert torch.equal(weight, method.statistics.weight)


def test_a_layer_whose_update_has_no_factors_is_refused(make_learner: MakeLearner, tmp_path: Path) -> None:
    learner = make_learner("sd_lora", rank=2)
    method = learner.method
    layer = method.encoder.get_submodule("vit.blocks.1.attn.qkv")
    rows, increment = next(iter(layer.increments.items()))  # type: ignore[union-attr]
    layer.increments[rows] = lambda: increment() + 1  # type: ignore[union-attr]
    with pytest.raises(LoricaError, match="computes the update of block1_q otherwise than as a sum of products"):
        export(learner, tmp_path / "out", "peft")


def test_the_words_for_peft_run_as_they_are_written(
    make_learner: MakeLearner, pictures: Pictures, tmp_path: Path
) -> None:
    learner = make_learner("sd_lora", rank=2)
    export(learner, tmp_path / "out", "peft", pictures)
    save_file(load_backbone_weights(), tmp_path / "base.safetensors")
    text = (tmp_path / "out/README.md").read_text()
    code = text.partition("```python\n")[2].partition("```")[0]
    code = code.replace("FOLDER", str(tmp_path / "out")).replace("BACKBONE", str(tmp_path / "base.safetensors"))
    names: dict[str, Any] = {}
    exec(code, names)
    encoder = learner.method.encoder
    with torch.no_grad():
        found = names["model"]((learner.reader.of(pictures) - encoder.mean) / encoder.std)
    assert close(found, learner.logits(pictures))


def load_backbone_weights() -> dict[str, torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return load_backbone("test_vit", image_size=32, pretrained=False).vit.state_dict()
