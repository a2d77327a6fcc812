"""ObjectNet-200: 200 classes of ObjectNet (Barbu et al., 2019), as RevisitingCIL chose and divided them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lorica.data.benchmarks import Benchmark, Split
from lorica.data.sources.base import Source

DESCRIPTION = "ObjectNet-200, 200 classes of household objects; `lorica data show objectnet` says what to place where"
READS = ("root",)
NEEDS = ("root",)


def load(*, root: Path | None, **options: Any) -> Source:
    """See `lorica.data.sources`; the class numbers are those of the text order of their names."""
    return BENCHMARK.load(root, **options)


BENCHMARK = Benchmark(
    name="objectnet",
    title="ObjectNet-200",
    classes=200,
    splits=(Split("the archive of RevisitingCIL", 26509, 6628),),
    folders=("objectnet",),
    origin="objectnet.dev; the divided archive: the links in the READMEs of RevisitingCIL and LAMDA-PILOT",
    licence=(
        "ObjectNet's own, which allows tests and forbids to tune the parameters of any model with it: read it before "
        "you train"
    ),
    place=("the archive of RevisitingCIL: its train and test into data/objectnet",),
    protocols=("10 classes a task (20 tasks: APER)",),
    traps=(
        "published rows train on it, which its licence forbids",
        "images as they are published have a red border of one pixel",
    ),
)
