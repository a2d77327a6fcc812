"""CIFAR-100 through torchvision."""

from __future__ import annotations

from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
from torchvision.datasets import CIFAR100

from lorica.data.images import ImageArrays
from lorica.data.sources.base import Source, make_source, required
from lorica.errors import DataError

DESCRIPTION = "CIFAR-100 through torchvision, downloaded into data.root when it is not there"


def load(*, root: Path | None, **_: Any) -> Source:
    """See `lorica.data.sources`; it has a test set of its own."""
    return cifar100(required(root, "cifar100"))


def cifar100(root: str | Path) -> Source:
    """CIFAR-100 from `root`/cifar-100-python, downloaded into `root` when absent. DataError when that fails."""
    root = Path(root).expanduser()
    archive = root / CIFAR100.filename
    had_root, had_archive = root.exists(), archive.exists()
    try:
        halves = [CIFAR100(root, train=True, download=True), CIFAR100(root, train=False)]
    except (OSError, RuntimeError, HTTPException) as error:
        if not had_archive:
            archive.unlink(missing_ok=True)  # an interrupted download
        if not had_root and root.is_dir() and not any(root.iterdir()):
            root.rmdir()
        raise DataError(
            f"data.root: no intact CIFAR-100 in {root}, and it could not be downloaded ({error}); place in it "
            f"{CIFAR100.filename} (md5 {CIFAR100.tgz_md5}) from {CIFAR100.url}, or its folder {CIFAR100.base_folder}"
        ) from error
    train, test = (
        ImageArrays(half.data, np.asarray(half.targets), name)
        for half, name in zip(halves, ("train", "test"), strict=True)
    )
    return make_source("cifar100", halves[0].classes, train, test, {"root": str(root)})
