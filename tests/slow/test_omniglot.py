"""The point of it all, on real characters: three tasks of 22 classes each, SD-LoRA against LoRA trained on and on."""

import os
import tarfile
from pathlib import Path

import pytest

import lorica


@pytest.mark.slow
def test_sd_lora_forgets_less_than_lora(tmp_path: Path) -> None:
    if "LORICA_DATA" not in os.environ:
        pytest.skip("LORICA_DATA does not name the folder with omniglot-small.tar and DeiT-Ti's weights")
    folder = Path(os.environ["LORICA_DATA"])
    with tarfile.open(folder / "omniglot-small.tar") as archive:
        archive.extractall(tmp_path, filter="data")
    root = tmp_path / "three-tasks"
    for part in ("train", "test"):  # the first 66 classes are enough to see it
        (root / part).mkdir(parents=True)
        for name in sorted(path.name for path in (tmp_path / "omniglot-small" / part).iterdir())[:66]:
            (tmp_path / "omniglot-small" / part / name).rename(root / part / name)
    acc = {
        name: lorica.run(
            "omniglot",
            out=tmp_path / name,
            progress=False,
            method={"name": name},
            data={"root": root},
            backbone={"weights": folder / "deit_tiny_patch16_224.safetensors"},
        ).acc
        for name in ("sd_lora", "lora")
    }
    assert acc["sd_lora"] > acc["lora"] + 0.05, acc
