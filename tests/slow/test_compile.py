"""Compiling the blocks of a backbone: once, however many tasks are learned, and to the same results."""

import subprocess
import sys

import pytest

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
