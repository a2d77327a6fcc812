"""VTAB-50 of RevisitingCIL: five data sets of VTAB (Zhai et al., 2019) of ten classes each, in the order of their
folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lorica.data.benchmarks import Benchmark, Split
from lorica.data.sources.base import Source

DESCRIPTION = "VTAB-50, five data sets of ten classes, never shuffled; `lorica data show vtab` says what to place where"
READS = ("root",)
NEEDS = ("root",)


def load(*, root: Path | None, **options: Any) -> Source:
    """See `lorica.data.sources`; the class numbers are those of the text order of their names, and the order of the
    stream."""
    return BENCHMARK.load(root, **options)


BENCHMARK = Benchmark(
    name="vtab",
    title="VTAB-50",
    classes=50,
    splits=(Split("the archive of RevisitingCIL", 1796, 8619),),
    folders=("vtab-cil/vtab", "vtab"),
    origin="the links in the READMEs of RevisitingCIL and LAMDA-PILOT",
    licence="that of each of its five data sets",
    place=(
        "the archive of RevisitingCIL: its train and test into data/vtab-cil/vtab (LAMDA-PILOT) or data/vtab (RanPAC, "
        "EASE, CL-LoRA)",
    ),
    protocols=("10 classes a task, one of the data sets (5 tasks): stream.classes_per_task=10 stream.seed=null",),
    traps=(
        "the order of the classes is part of it: a stream.seed other than null would mix the data sets, and is refused",
        "four times as many test images as training images, and the test sets of tasks differ: mean over tasks and "
        "over images are two accuracies",
    ),
    in_order=True,
)
