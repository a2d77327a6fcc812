"""On an accelerator: the same start, nearly the same run, checkpoints that load on a CPU."""

import pytest
import torch

import lorica
from lorica.methods import method_names

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
