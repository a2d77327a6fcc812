"""Compiling the blocks of a backbone: once, however many tasks are learned, and to the same results."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from lorica.assembly import build_model
from lorica.config import read_recipe
from lorica.errors import RecipeError
from lorica.methods import method_names

# in a process of its own, where nothing checks types: what checks them cannot be traced
PROGRAM = """
import copy, timm, torch
from accelerate import Accelerator
from timm.models.vision_transformer import VisionTransformer
from torch._dynamo.utils import counters
from lorica.backbones.timm_vit import TimmViT
from lorica.descent import Descent, Fit
from lorica.methods.sd_lora import SDLoRA, SDLoRAConfig
from lorica.randomness import Draws
from lorica.types import Batch, Task

class OneBatch:
    def number_of_batches(self, batch_size): return 1
    def batches(self, batch_size, **_): raise NotImplementedError

torch.manual_seed(0)
vit = VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=2, num_classes=0)
encoder = TimmViT(vit, name="tiny", tag="tiny", mean=(0.5,) * 3, std=(0.5,) * 3).requires_grad_(False)
plain = SDLoRA(SDLoRAConfig(name="sd_lora", rank=2), encoder)
compiled = copy.deepcopy(plain)
for block in compiled.encoder.blocks:
    block.compile(backend="eager")
fit = Fit(epochs=1, batch_size=4, optimizer="adam", learning_rate=0.01, momentum=0.0, weight_decay=0.0,
          schedule="constant", augment="none")
images = torch.rand(4, 3, 32, 32)
for index in range(4):
    for method in (plain, compiled):
        torch.manual_seed(index)
        method.grow(Task.of_new_classes(index, 2 * index, ("a", "b")))
        descent = Descent(method.train(), method.trainable(), fit, losses=method.losses, data=OneBatch(),
                          draws=Draws(0, task=index, stage=0), accelerator=Accelerator(cpu=True))
        descent.take(Batch(images, torch.tensor([0, 1, 0, 1]) + 2 * index))
    print(counters["stats"]["unique_graphs"])
print(float((compiled.predict(images) - plain.predict(images)).abs().max() / plain.predict(images).abs().max()))
"""


@pytest.mark.slow
def test_blocks_are_compiled_for_the_first_task_alone() -> None:
    """`torch.compile` traces, and its eager backend runs what was traced: that needs no compiler."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *graphs, apart = done.stdout.split()
    assert len(set(graphs)) == 1
    assert 0 < int(graphs[0]) < 9  # three blocks, of which one is compiled, in a few pieces
    assert float(apart) < 1e-4


METHODS = """
import sys, torch
from pathlib import Path
sys.path.insert(0, str(Path.cwd() / "tests"))
import in_processes
from accelerate import Accelerator
from lorica.methods import method_names

made = in_processes.TimmViT
def compiled(*given, **named):
    encoder = made(*given, **named)
    for block in encoder.blocks:
        block.compile(backend="eager")
    return encoder

torch.set_num_threads(1)
for case in (*method_names(), "sd_lora:released_code"):
    torch.compiler.reset()
    states = []
    for in_processes.TimmViT in (made, compiled):
        states.append(in_processes.learned(case, Accelerator(cpu=True)))
    for name, value in states[0].items():
        if value.numel():
            apart = (states[1][name].double() - value.double()).abs().max() / value.double().abs().max().clamp_min(1e-3)
            assert apart < 1e-3, (name, apart)
    print(case)
"""


@pytest.mark.slow
def test_every_method_learns_the_same_with_compiled_blocks() -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", METHODS], capture_output=True, text=True, check=False, cwd=root)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == len(method_names()) + 1


def test_the_key_compiles_each_block_and_says_where_that_cannot_be(
    monkeypatch: pytest.MonkeyPatch, small_recipe: dict[str, Any]
) -> None:
    seen: list[nn.Module] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self: seen.append(self))
    plain, asked = (read_recipe(small_recipe | {"compile": each}) for each in (False, True))
    assert "compile" not in plain.resolved()
    _, method = build_model(asked)
    assert seen == list(method.encoder.blocks)

    def fails(self: nn.Module) -> None:
        self.forward = lambda *_: 1 / 0

    monkeypatch.setattr(nn.Module, "compile", fails)
    with pytest.raises(RecipeError, match=r"compile: .* of test_vit here \(division by zero\); leave the key out"):
        build_model(asked)
