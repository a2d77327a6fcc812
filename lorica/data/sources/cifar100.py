"""CIFAR-100 through torchvision."""

from __future__ import annotations

from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np

from lorica.data.benchmarks import Benchmark, Split
from lorica.data.sources.base import Source, make_source, required
from lorica.errors import DataError

DESCRIPTION = "CIFAR-100 through torchvision, downloaded into data.root when it is not there"
READS = ("root",)
NEEDS = ("root",)


def load(*, root: Path | None, download: bool = True, **_: Any) -> Source:
    """See `lorica.data.sources`; it has a test set of its own."""
    return cifar100(required(root, "cifar100"), download=download)


def cifar100(root: str | Path, *, download: bool = True) -> Source:
    """CIFAR-100 from `root`/cifar-100-python, downloaded into `root` when absent. DataError when that fails."""
    from torchvision.datasets import CIFAR100  # torch; what is known of a benchmark is shown without

    from lorica.data.images import ImageArrays

    root = Path(root).expanduser()
    archive = root / CIFAR100.filename
    had_root, had_archive = root.exists(), archive.exists()
    try:
        halves = [CIFAR100(root, train=True, download=download), CIFAR100(root, train=False)]
    except (OSError, RuntimeError, HTTPException) as error:
        if not had_archive:
            archive.unlink(missing_ok=True)  # an interrupted download
        if not had_root and root.is_dir() and not any(root.iterdir()):
            root.rmdir()
        why = f", and it could not be downloaded ({error})" if download else ""
        raise DataError(
            f"data.root: no intact CIFAR-100 in {root}{why}; place in it "
            f"{CIFAR100.filename} (md5 {CIFAR100.tgz_md5}) from {CIFAR100.url}, or its folder {CIFAR100.base_folder}"
        ) from error
    train, test = (
        ImageArrays(half.data, np.asarray(half.targets), name)
        for half, name in zip(halves, ("train", "test"), strict=True)
    )
    return make_source("cifar100", halves[0].classes, train, test, {"root": str(root)})


BENCHMARK = Benchmark(
    name="cifar100",
    title="CIFAR-100",
    classes=100,
    splits=(Split("the official one", 50000, 10000, ("archive",)),),
    layouts=(),
    origin="www.cs.toronto.edu/~kriz/cifar.html; a run downloads it",
    licence="none is stated; for research, by custom",
    place=(
        "nothing: it is downloaded into data.root; or cifar-100-python.tar.gz, or its folder cifar-100-python, into "
        "data",
    ),
    protocols=(
        "10 classes a task (10 tasks: L2P, DualPrompt, CODA-Prompt, InfLoRA, SD-LoRA, RanPAC); 5 (20 tasks: APER, "
        "EASE, CL-LoRA)",
    ),
    traps=(
        "images of 32 x 32 pixels are enlarged to the backbone's size, before or after they are cropped; it matters",
    ),
)
