"""The formula images and the training loop of tools/pretrain_tiny_vit.py, at tiny size."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer

CPU = torch.device("cpu")


def _load_tool(name: str) -> ModuleType:
    path = Path(__file__).parents[2] / "tools" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


tool = _load_tool("pretrain_tiny_vit")
FAMILIES = list(tool.FAMILIES)


@pytest.fixture
def recipe():
    small = {**tool.ARCHITECTURE, "embed_dim": 16, "depth": 1, "num_heads": 2}
    return tool.Recipe(classes=40, batch_size=16, architecture=small)


@pytest.fixture(scope="module")
def images():
    return tool.FormulaImages(dict.fromkeys(FAMILIES, 6), seed=3, device=CPU)


def _weights(trainer) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in trainer.names.items()}


def test_same_seed_same_images(images):
    again = tool.FormulaImages(dict.fromkeys(FAMILIES, 6), seed=3, device=CPU)
    first, first_labels = images.batch(24, tool.Dice(5, CPU))
    second, second_labels = again.batch(24, tool.Dice(5, CPU))
    assert torch.equal(first, second)
    assert torch.equal(first_labels, second_labels)
    other, _ = images.batch(24, tool.Dice(6, CPU))
    assert not torch.equal(first, other)


@pytest.mark.parametrize("family", FAMILIES)
def test_shape_and_range(images, family):
    labels = torch.arange(6) + images.offsets[family]
    drawn = images.render(labels, tool.Dice(0, CPU))
    assert drawn.shape == (6, 3, 32, 32)
    assert drawn.min() >= 0.0
    assert drawn.max() <= 1.0
    fields = images.families[family].draw(torch.arange(6), 32, tool.Dice(0, CPU))
    assert fields.shape == (6, 32, 32)
    assert torch.isfinite(fields).all()
    assert fields.min() >= 0.0
    assert fields.max() <= 1.0
    assert (fields.amax((1, 2)) - fields.amin((1, 2)) > 0.2).all()  # something is to be seen


@pytest.mark.parametrize("family", FAMILIES)
def test_instances_differ_but_less_than_classes(family):
    classes = tool.FAMILIES[family](8, tool.Dice(1, CPU))
    dice = tool.Dice(2, CPU)
    fields = torch.stack([classes.draw(torch.arange(8), 32, dice) for _ in range(16)])
    spread_within = fields.var(0).mean()
    assert spread_within > 1e-3
    if family != "textures":  # those differ by the pattern, not by where it is bright
        spread_between = fields.mean(0).var(0).mean() - spread_within / 16
        assert spread_between > 2e-3


def test_batch_covers_every_family(images):
    drawn, labels = images.batch(64, tool.Dice(0, CPU))
    assert drawn.shape[0] == labels.shape[0] == 64
    families = torch.div(labels, 6, rounding_mode="floor").bincount(minlength=4)
    assert (families > 0).all()
    assert families[0] > 32  # strokes come first and make up most of it
    assert labels.max() < images.num_classes


@pytest.mark.parametrize("progress", [0.0, 0.5, 0.99])
def test_step_has_finite_gradients_and_moves_the_weights(recipe, progress):
    trainer = tool.Trainer(recipe, CPU)
    before = _weights(trainer)
    trainer.step(progress)
    assert torch.isfinite(torch.tensor(trainer.loss))
    for name, value in trainer.names.items():
        assert torch.isfinite(value.grad).all(), name
    assert any(not torch.equal(before[name], value) for name, value in trainer.names.items())


def test_resumes_exactly(recipe, tmp_path):
    through = tool.Trainer(recipe, CPU)
    for step in range(4):
        through.step(step / 4)

    first = tool.Trainer(recipe, CPU)
    for step in range(2):
        first.step(step / 4)
    first.save(tmp_path / "run.safetensors")
    second = tool.Trainer(recipe, CPU)
    second.load(tmp_path / "run.safetensors")
    assert second.steps_done == 2
    for step in range(2, 4):
        second.step(step / 4)

    for name, value in _weights(through).items():
        assert torch.equal(value, second.names[name]), name
    assert second.loss == through.loss
    assert not list(tmp_path.glob("*.partial"))


def test_checkpoint_of_another_recipe_is_refused(recipe, tmp_path):
    trainer = tool.Trainer(recipe, CPU)
    trainer.step(0.0)
    trainer.save(tmp_path / "run.safetensors")
    other = tool.Trainer(tool.Recipe(classes=50, batch_size=16, architecture=recipe.architecture), CPU)
    with pytest.raises(ValueError, match="another recipe"):
        other.load(tmp_path / "run.safetensors")


def test_export_loads_into_timm(recipe, tmp_path):
    trainer = tool.Trainer(recipe, CPU)
    tool.export(trainer, tmp_path, novel=0.0)
    description = json.loads((tmp_path / "lorica_tiny.json").read_text(encoding="utf-8"))
    model = VisionTransformer(**description["architecture"]).eval()
    model.load_state_dict(load_file(tmp_path / "lorica_tiny.safetensors"))
    drawn, _ = trainer.images.batch(8, tool.Dice(0, CPU))
    trainer.model.eval()
    with torch.inference_mode():
        features = model.forward_head(model.forward_features((drawn - 0.5) / 0.5), pre_logits=True)
        assert torch.equal(features, trainer.features(drawn))


def test_novel_accuracy_is_a_share(recipe):
    accuracy = tool.Trainer(recipe, CPU).novel_accuracy(classes=4, shots=2, queries=1)
    assert 0.0 <= accuracy <= 1.0
