"""Whether a folder holds a benchmark: its layout, classes, numbers of images, and which of the splits in use it is.

The hash of a split is the sha256 of its files, one line each and sorted: `train/<class>/<file>`, and behind it the
class number where lists give classes other numbers than the order of their names as text. So it says which images are
for what, wherever and in whatever layout they lie; and two splits with equally many images have two.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from lorica.data.ahead import by_threads
from lorica.data.benchmarks import FOLDERS, Benchmark, Layout, Split
from lorica.data.decoding import DEFAULT, Decoding
from lorica.data.folders import Walk
from lorica.data.images import ImageFiles, faults
from lorica.data.samples import Samples
from lorica.data.sources import Source, labelled_images, load_source
from lorica.data.sources.base import Domains, listed, make_source, name_faults, some
from lorica.errors import DataError
from lorica.progress import Reporter, Silent

_HALVES = ("train", "test")
_IN_WORDS = {"train": "training", "test": "test"}


@dataclass(frozen=True)
class Inspection:
    """What a folder has of a benchmark.

    Attributes:
        problems: all in which it is not the benchmark.
        layout: the one in which it is; None where there is none of them.
        class_names: by number.
        halves: training and test samples.
        split: the name of the one that it is, or the names of those that it may be; None for none of them.
        sha256: the hash of that.
        facts: for the record of a run.
        domains: of the samples, where it has several.
    """

    benchmark: Benchmark
    problems: Sequence[str]
    layout: Layout | None = None
    class_names: Sequence[str] = ()
    halves: Sequence[Samples] = ()
    split: str | None = None
    sha256: str | None = None
    facts: Mapping[str, object] = field(default_factory=dict)
    domains: Domains | None = None

    @property
    def counts(self) -> tuple[int, ...]:
        """Numbers of training and test images."""
        return tuple(map(len, self.halves))

    def require(self) -> None:
        """DataError with all problems, where there are any."""
        if self.problems:
            known = (
                f"not {self.benchmark.title} as it is known: `lorica data show {self.benchmark.name}` says what "
                "belongs where"
            )
            reader = "domain_folders" if self.benchmark.domains else "image_folder"
            as_it_is = f", and data.source={reader} data.class_order=text takes a folder as it is"
            remedy = known + (as_it_is if self.benchmark.layouts else "")
            raise DataError([f"data.root: {line}" for line in (remedy, *self.problems)])

    def source(self) -> Source:
        """Its images, to make a stream of."""
        train, test = self.halves
        made = make_source(self.benchmark.name, self.class_names, train, test, dict(self.facts))
        return replace(made, in_order=self.benchmark.in_order, domains=self.domains)


def inspect(
    benchmark: Benchmark,
    root: str | Path,
    *,
    decoding: Decoding = DEFAULT,
    decode_all: bool = False,
    duplicates: bool = False,
    split: str | None = None,
    reporter: Reporter | None = None,
) -> Inspection:
    """Looks at a folder, its own or the one that holds it beside other data; it raises nothing, and says all that is
    wrong.

    Args:
        decode_all: decode every image, which alone finds a JPEG that was cut short; else headers are read.
        duplicates: look for images that are in both halves, by their contents.
        split: the hash that its split must have, or the beginning of it.
    """
    root = Path(root).expanduser()
    if not benchmark.layouts:
        if split:
            raise DataError(f"{benchmark.name}: what downloads itself is held to its own digest; leave --split out")
        return _fetched(benchmark, root)
    found = _place(benchmark, root)
    if found is None:
        there = "has none of its layouts" if root.is_dir() else "is not a folder"
        expected = "; or ".join(f"{layout.shown} ({layout.name})" for layout in benchmark.layouts)
        problem = f"{root} {there}; expected in it, or in its folder {' or '.join(benchmark.folders)}: {expected}"
        return Inspection(benchmark, [problem])
    root, layout = found
    problems: list[str] = []
    looking: dict[str, Any] = {"decoding": decoding, "decode_all": decode_all, "reporter": reporter}
    try:
        if layout.read is None:
            class_names, halves, keys, facts = _of_folders(root, problems, **looking)
        else:
            class_names, halves, keys, facts = _of_lists(root, layout, problems, **looking)
    except DataError as error:
        return Inspection(benchmark, _of_root(error), layout)
    numbers = {name: number for number, name in enumerate(class_names)}
    digest = _hash(halves, keys, numbered=list(class_names) != sorted(class_names))
    problems += _class_problems(benchmark, class_names)
    problems += _domain_problems(benchmark, keys)
    counts = (len(halves[0]), len(halves[1]))
    fitting, wrong = _told_apart(benchmark, layout, numbers, counts, digest)
    problems += wrong
    if split and not digest.startswith(split):
        problems.append(f"its split is {digest}, expected {split}: other images, or divided otherwise")
    if duplicates and (shared := list(_in_both(halves, reporter))):
        problems += listed(f"{len(shared)} test images are training images, too", shared)
    name = " or ".join(each.name for each in fitting) or None
    facts = {"layout": layout.name, "split": name, "split_sha256": digest} | facts
    domains = _domains(benchmark, keys)
    return Inspection(benchmark, problems, layout, class_names, halves, name, digest, facts, domains)


def _of_root(error: DataError) -> list[str]:
    """Its problems, of which all are of the root."""
    return [problem.removeprefix("data.root: ") for problem in error.problems]


def _place(benchmark: Benchmark, root: Path) -> tuple[Path, Layout] | None:
    """Where the benchmark lies, and how."""
    for place in (*(root / name for name in benchmark.folders), root):
        for layout in benchmark.layouts:
            if layout.is_there(place):
                return place, layout
    return None


def _fetched(benchmark: Benchmark, root: Path) -> Inspection:
    """Of one whose source verifies the files themselves, as it finds them."""
    try:
        source = load_source(benchmark.name, root=root, download=False)
    except DataError as error:
        return Inspection(benchmark, _of_root(error))
    layout = Layout("archive", "", ())
    fitting, wrong = _told_apart(benchmark, layout, {}, (len(source.train), len(source.test)), None)
    problems = [*_class_problems(benchmark, source.class_names), *wrong]
    split = " or ".join(each.name for each in fitting) or None
    halves = (source.train, source.test)
    return Inspection(benchmark, problems, layout, source.class_names, halves, split, facts=source.facts)


_Read = tuple[Sequence[str], Sequence[ImageFiles], Sequence[Sequence[str]], dict[str, object]]
"""Class names by number; training and test images; a key for each of either, see `Entry`; facts."""


def _of_folders(root: Path, problems: list[str], **looking: Any) -> _Read:
    class_names, halves, facts = labelled_images(root, class_order="text", problems=problems, **looking)
    if len(halves) == 1:
        raise DataError(f"{root} has no halves; expected {FOLDERS.shown}")
    folders = cast(Sequence[str], facts.pop("folders"))
    keys = [
        [path.relative_to(root / folder).as_posix() for path in half.paths]
        for folder, half in zip(folders, halves, strict=True)
    ]
    del facts["split"]
    return class_names, halves, keys, facts


def _of_lists(
    root: Path, layout: Layout, problems: list[str], *, decoding: Decoding, decode_all: bool, reporter: Reporter | None
) -> _Read:
    assert layout.read is not None  # by the caller
    listing = layout.read(root)
    shown = reporter or Silent()
    shown.stage("looking into folders", len(listing.folders))
    walk, there = Walk(), set[Path]()
    for folder in listing.folders:
        there.update(walk.images(folder))
        shown.step()
    named = Counter(entry.path for entry in listing.entries)
    problems += listed(f"{len(walk.problems)} links or folders cannot be followed", walk.problems)
    problems += _by_folder("that the lists name are missing", named.keys() - there, root)
    problems += _by_folder("are in no list", there - named.keys(), root)
    problems += _by_folder("are named more than once", {path for path, times in named.items() if times > 1}, root)
    class_names = _class_names({(entry.number, entry.class_name) for entry in listing.entries}, problems)
    entries = sorted(
        (entry for entry in listing.entries if entry.path in there), key=lambda entry: (entry.number, entry.key)
    )
    present = {entry.class_name for entry in entries}
    if absent := [name for name in class_names if name not in present]:
        problems.append(f"classes without an image: {some(absent)}")
    paths = [entry.path for entry in entries]
    seen = faults(paths, decoding, decode=decode_all, reporter=reporter)
    damaged = [fault for fault in seen if fault]
    problems += listed(f"{len(damaged)} of {len(paths)} images cannot be read", damaged)
    number_of = {name: number for number, name in enumerate(class_names)}
    halves, keys = [], []
    for half in _HALVES:
        own = [entry for entry in entries if entry.half == half]
        labels = np.array([number_of[entry.class_name] for entry in own], np.int64)
        halves.append(ImageFiles([entry.path for entry in own], labels, decoding))
        keys.append([entry.key for entry in own])
    facts: dict[str, object] = {"root": str(root)}
    if passed_over := dict(walk.passed_over.most_common()):
        facts["passed_over"] = passed_over
    return class_names, halves, keys, facts


def _class_names(pairs: Iterable[tuple[int, str]], problems: list[str]) -> list[str]:
    """Names by number; where these are not 0 … K-1, one for each, in the order of the names."""
    ordered = sorted(pairs)
    names = [name for _, name in ordered]
    if [number for number, _ in ordered] == list(range(len(ordered))) and len(set(names)) == len(names):
        problems += name_faults(names)
        return names
    wrong = [
        f"{name} = {number}"
        for place, (number, name) in enumerate(ordered)
        if number != place or names.count(name) > 1 or sum(each == number for each, _ in ordered) > 1
    ]
    problems.append(f"the lists do not number the classes 0 … {len(set(names)) - 1}, each once: {some(wrong)}")
    return sorted(set(names))


def _by_folder(what: str, paths: Iterable[Path], root: Path) -> list[str]:
    """A line that says how many images in which folders are this."""
    folders = Counter(
        (path.relative_to(root) if path.is_relative_to(root) else path).parent.as_posix() for path in paths
    )
    if not folders:
        return []
    where = some([f"{times} in {folder}" for folder, times in sorted(folders.items())])
    return [f"{folders.total()} images {what}: {where}"]


def _hash(halves: Sequence[ImageFiles], keys: Sequence[Sequence[str]], *, numbered: bool) -> str:
    lines = sorted(
        f"{half}/{key} {label}" if numbered else f"{half}/{key}"
        for half, files, own in zip(_HALVES, halves, keys, strict=True)
        for key, label in zip(own, files.labels.tolist(), strict=True)
    )
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape")).hexdigest()


def _class_problems(benchmark: Benchmark, class_names: Sequence[str]) -> Iterator[str]:
    if len(class_names) != benchmark.classes:
        yield f"{len(class_names)} classes, expected {benchmark.classes}"
    if not benchmark.known:
        return
    known = set(benchmark.known.split())
    beginnings = {name: name if name in known else name.partition(".")[0] for name in class_names}
    if missing := sorted(known - set(beginnings.values())):
        yield f"missing classes: {some(missing)}"
    if foreign := sorted(name for name, beginning in beginnings.items() if beginning not in known):
        yield f"classes that it does not have: {some(foreign)}"


def _domain_problems(benchmark: Benchmark, keys: Sequence[Sequence[str]]) -> Iterator[str]:
    if not benchmark.domains:
        return
    found = [Counter(key.partition("/")[0] for key in half) for half in keys]
    for domain, expected in benchmark.domains.items():
        counts = tuple(half[domain] for half in found)
        if counts != expected:
            yield f"{domain}: {_in_numbers(counts)}, expected {_in_numbers(expected)}"


def _domains(benchmark: Benchmark, keys: Sequence[Sequence[str]]) -> Domains | None:
    if not benchmark.domains:
        return None
    number_of = {name: number for number, name in enumerate(benchmark.domains)}
    train, test = (np.array([number_of[key.partition("/")[0]] for key in half], np.int64) for half in keys)
    return Domains(tuple(benchmark.domains), train, test)


def _told_apart(
    benchmark: Benchmark, layout: Layout, numbers: Mapping[str, int], counts: tuple[int, int], digest: str | None
) -> tuple[list[Split], list[str]]:
    """The splits that this may be, and what is wrong if it is none."""
    possible = [split for split in benchmark.splits if layout.name in split.layouts]
    fitting = [split for split in possible if (split.train, split.test) == counts]
    if not fitting:
        sizes = {f"{split.train} and {split.test} ({split.name})": split.train + split.test for split in possible}
        elsewhere = ": all are there, divided otherwise" if sum(counts) in sizes.values() else ""
        return [], [f"{_in_numbers(counts)}, expected {' or '.join(sizes)}{elsewhere}"]
    wrong = [
        f"{name} has number {numbers[name]}, and {number} in {split.name}"
        for split in fitting
        for name, number in split.numbers.items()
        if name in numbers and numbers[name] != number
    ]
    if wrong:
        return [], [f"the lists are of another split: {some(wrong)}"]
    same = [split for split in fitting if split.sha256 == digest]
    unknown = [split for split in fitting if split.sha256 is None]
    if same or unknown:
        return same or unknown, []
    names = " or ".join(f"{split.name} ({str(split.sha256)[:16]} …)" for split in fitting)
    return [], [f"split {str(digest)[:16]} …, expected {names}: as many images, divided otherwise"]


def _in_numbers(counts: Sequence[int]) -> str:
    return " and ".join(f"{count} {_IN_WORDS[half]}" for half, count in zip(_HALVES, counts, strict=True)) + " images"


def _in_both(halves: Sequence[ImageFiles], reporter: Reporter | None) -> Iterator[str]:
    """Test images whose contents a training image has; only those of equal size are read."""
    by_size: list[dict[int, list[Path]]] = [{}, {}]
    for half, sizes in zip(halves, by_size, strict=True):
        for path in half.paths:
            if path.exists():
                sizes.setdefault(path.stat().st_size, []).append(path)
    common = by_size[0].keys() & by_size[1].keys()
    train, test = ([path for size in common for path in sizes[size]] for sizes in by_size)
    shown = reporter or Silent()
    shown.stage("looking for images in both halves", len(train) + len(test))

    def digest(path: Path) -> bytes | None:
        with suppress(OSError), path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
        return None  # it is named as one that cannot be read

    first: dict[bytes | None, Path] = {}
    for path, content in zip(train, by_threads(digest, train, after_each=shown.step), strict=True):
        first.setdefault(content, path)
    for path, content in zip(test, by_threads(digest, test, after_each=shown.step), strict=True):
        if content and content in first:
            yield f"{path} is {first[content]}"
