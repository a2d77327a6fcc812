"""DomainNet: 345 classes in six domains (Peng et al., 2019), by the official list of training and test images of each.

No repository that we know has the lists of the published class-incremental rows, so these cannot be made again exactly.
Here it is the union of the six domains, the class numbers those of the lists.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lorica.data.benchmarks import Benchmark, Entry, Layout, Listing, Split, is_class_number
from lorica.data.sources.base import Source, listed
from lorica.errors import DataError

DESCRIPTION = "DomainNet, 345 classes in six domains; `lorica data show domainnet` says what to place where"
READS = ("root",)
NEEDS = ("root",)

DOMAINS = {
    "clipart": (33525, 14604),
    "infograph": (36023, 15582),
    "painting": (50416, 21850),
    "quickdraw": (120750, 51750),
    "real": (120906, 52041),
    "sketch": (48212, 20916),
}
"""Numbers of training and test images of the cleaned release."""


def load(*, root: Path | None, **options: Any) -> Source:
    """See `lorica.data.sources`; the class numbers are those of the lists."""
    return BENCHMARK.load(root, **options)


def _read(root: Path) -> Listing:
    """Two lists for each domain: a path (`clipart/axe/clipart_007_000001.jpg`) and a class number a line."""
    entries: list[Entry] = []
    problems: list[str] = []
    for domain in BENCHMARK.domains:
        for half in ("train", "test"):
            file = root / f"{domain}_{half}.txt"
            try:
                lines = file.read_text(encoding="utf-8").splitlines()
            except (OSError, ValueError) as error:
                problems.append(f"{file}: {error}; expected the official list of {domain}")
                continue
            wrong = []
            for place, line in enumerate(lines, 1):
                path, _, number = line.strip().rpartition(" ")
                if path.count("/") == 2 and path.startswith(f"{domain}/") and is_class_number(number):
                    entries.append(Entry(half, root / path, Path(path).parent.name, int(number), path))
                elif line.strip():
                    wrong.append(f"{file}, line {place}: {line!r:.80}")
            problems += listed(f"lines that are not {domain}/<class>/<file> <number>", wrong)
    if problems:
        raise DataError(problems)
    return Listing(entries, [root / domain for domain in BENCHMARK.domains])


LISTS = Layout(
    "the official lists",
    "<domain>/<class>/*.jpg, <domain>_train.txt and <domain>_test.txt for " + ", ".join(DOMAINS),
    ("*_train.txt", "*_test.txt"),
    _read,
)

BENCHMARK = Benchmark(
    name="domainnet",
    title="DomainNet",
    classes=345,
    splits=(
        Split(
            "the official one, of all six domains",
            sum(train for train, _ in DOMAINS.values()),
            sum(test for _, test in DOMAINS.values()),
            (LISTS.name,),
        ),
    ),
    layouts=(LISTS,),
    folders=("DomainNet", "domainnet"),
    origin="ai.bu.edu/M3SDA: the cleaned version of each domain, and its two lists",
    licence="for research, not for commerce; the images are other people's",
    place=("the six folders of domains as they are unpacked, and the twelve lists, into data/DomainNet",),
    protocols=(
        "69 classes a task (5 tasks, over all domains: SD-LoRA, CODA-Prompt, InfLoRA)",
        "a domain a task, each with all classes (6 tasks: RanPAC): stream.by=domain stream.tasks=6",
    ),
    traps=(
        "CODA-Prompt and InfLoRA name lists (domainnet_train.yaml, domainnet_test.yaml) that their repositories do not "
        "have: their rows cannot be made again exactly",
        "torchvision's ImageFolder would number the classes as texts, capitals like The_Eiffel_Tower first; here the "
        "lists decide",
        "an older release of clipart and painting has other images: the numbers of images tell",
        "586575 images: the first look takes minutes",
    ),
    domains=DOMAINS,
)
