"""Weights that are no numbers are refused where they are read, whatever form they have: training would be blamed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lorica.backbones import load_backbone, timm_vit, tiny
from lorica.errors import BackboneError

BROKEN = [float("nan"), float("inf"), -float("inf")]


def broken(state: dict[str, Tensor], name: str, value: float = float("nan")) -> dict[str, Tensor]:
    """One number of one tensor."""
    made = {key: each.clone() for key, each in state.items()}
    made[name].view(-1)[-1] = value
    return made


@pytest.mark.parametrize("value", BROKEN)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_file_and_a_tensor_are_named(prefix: str, value: float, tmp_path: Path) -> None:
    state = broken(timm.create_model("test_vit", img_size=32).state_dict(), "blocks.3.mlp.fc1.weight", value)
    path = tmp_path / "model.safetensors"
    save_file({prefix + key: each for key, each in state.items()}, path)
    with pytest.raises(BackboneError) as caught:
        load_backbone("test_vit", weights=path, image_size=32)
    assert str(caught.value) == (
        f"backbone.weights: {path}: {prefix}blocks.3.mlp.fc1.weight has numbers that are not finite (NaN or infinite), "
        "expected finite ones alone; get it again, or choose other weights"
    )


def test_a_classifier_that_is_not_read_may_be_anything(tmp_path: Path) -> None:
    state = timm.create_model("test_vit", img_size=32, num_classes=3).state_dict()
    save_file(broken(state, "head.weight"), tmp_path / "model.safetensors")
    load_backbone("test_vit", weights=tmp_path / "model.safetensors", image_size=32)


def test_a_finite_number_whose_sum_is_not_is_one(tmp_path: Path) -> None:
    state = timm.create_model("test_vit", img_size=32).state_dict()
    state["norm.weight"] = torch.full_like(state["norm.weight"], torch.finfo(torch.float32).max)
    save_file(state, tmp_path / "model.safetensors")
    load_backbone("test_vit", weights=tmp_path / "model.safetensors", image_size=32)


@pytest.mark.parametrize("value", BROKEN)
def test_a_folder_of_transformers(value: float, tiny_text_folder: Path) -> None:
    path = tiny_text_folder / "model.safetensors"
    name = next(key for key in load_file(path) if key.endswith("layer.1.output.dense.weight"))
    save_file(broken(load_file(path), name, value), path, metadata={"format": "pt"})
    with pytest.raises(BackboneError, match=rf"^backbone\.weights: {path}: {name} has numbers that are not finite"):
        load_backbone("hf:tiny", weights=tiny_text_folder)


def test_what_a_library_got(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever file it is from, .pth and .npz among them; and what ships with lorica."""

    def created(name: str, **options: Any) -> torch.nn.Module:
        options["pretrained"] = False
        vit = timm.models.create_model(name, **options)
        vit.load_state_dict(broken(vit.state_dict(), "norm.bias"))
        return vit

    monkeypatch.setattr(timm_vit.timm, "create_model", created)
    monkeypatch.setattr(timm_vit.hub, "out_of_reach", lambda name: None)
    with pytest.raises(BackboneError, match=r"^backbone\.name: test_vit: norm\.bias of its weights has .*; remove the"):
        load_backbone("test_vit", image_size=32)
    monkeypatch.setattr(tiny, "load_file", lambda file: broken(load_file(file), "blocks.0.norm1.bias"))
    with pytest.raises(BackboneError, match=r"^backbone\.name: lorica_tiny: blocks\.0\.norm1\.bias of its weights has"):
        load_backbone("lorica_tiny")
