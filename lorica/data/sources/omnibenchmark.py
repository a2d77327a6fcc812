"""OmniBenchmark-300: 300 classes of OmniBenchmark (Zhang et al., 2022), as RevisitingCIL chose them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lorica.data.benchmarks import Benchmark, Split
from lorica.data.sources.base import Source

DESCRIPTION = "OmniBenchmark-300, 300 classes of many realms; `lorica data show omnibenchmark` says what to place where"
READS = ("root",)
NEEDS = ("root",)


def load(*, root: Path | None, **options: Any) -> Source:
    """See `lorica.data.sources`; the class numbers are those of the text order of their names."""
    return BENCHMARK.load(root, **options)


BENCHMARK = Benchmark(
    name="omnibenchmark",
    title="OmniBenchmark-300",
    classes=300,
    splits=(Split("the archive of RevisitingCIL", 89697, 5985),),
    folders=("omnibenchmark", "omni"),
    origin=(
        "zhangyuanhan-ai.github.io/OmniBenchmark; the divided archive: the links in the READMEs of RevisitingCIL and "
        "LAMDA-PILOT"
    ),
    licence="see the page of OmniBenchmark; the images are other people's, for research",
    place=("the archive of RevisitingCIL: its train and test into data/omnibenchmark, or data/omni (CL-LoRA)",),
    protocols=("30 classes a task (10 tasks: APER, EASE, RanPAC)",),
    traps=(
        "users report classes that are there twice (RevisitingCIL, issue 8): a check may name images that are in both "
        "halves",
    ),
)
