"""On an accelerator: the same start, nearly the same run, checkpoints that load on a CPU."""

import numpy as np
import pytest
import torch

import lorica
from lorica.data.images import ImageArrays, ImageReader
from lorica.data.stream import Split
from lorica.methods import method_names
from lorica.randomness import Draws

SMALL = {"ran_pac": {"width": 64}, "hide_prompt": {"alignment_epochs": 2}}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
@pytest.mark.parametrize("name", method_names())
def test_a_run_on_cuda_agrees_with_the_cpu(name, six_classes, tmp_path) -> None:
    recipe = {
        "method": {"name": name, **SMALL.get(name, {})},
        "fit": {"epochs": 2, "batch_size": 8, "augment": "shift"},
        "stream": {"tasks": 3},
    }
    runs = {
        device: lorica.run(recipe, source=six_classes, out=tmp_path / device, progress=False, device=device)
        for device in ("cpu", "cuda")
    }
    assert runs["cuda"].acc == pytest.approx(runs["cpu"].acc, abs=0.1)
    learner = lorica.load(tmp_path / "cuda")
    assert learner.method.device.type == "cpu"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_batches_on_cuda_have_the_bits_of_those_on_the_cpu() -> None:
    random = np.random.RandomState(0)
    for side in (12, 60):  # enlarged there, and not
        images = random.randint(0, 256, (50, side, side, 3)).astype(np.uint8)
        opened = ImageReader(48).open(ImageArrays(images, np.zeros(50, np.int64), "train"), 10**6)
        split = Split(opened, torch.arange(50), torch.arange(50))
        for kind in ("none", "shift", "flip"):
            passes = [
                split.batches(16, device=torch.device(device), augment=kind, draws=Draws(0, epoch=0))
                for device in ("cpu", "cuda")
            ]
            for expected, found in zip(*passes, strict=True):
                assert torch.equal(found.labels.cpu(), expected.labels)
                assert (found.inputs.cpu() - expected.inputs).abs().max() < 1e-7  # a GPU may divide by 255 otherwise
