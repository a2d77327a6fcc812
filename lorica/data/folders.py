"""What lies in a folder of images: every real file once, whatever links lead to it, and the rest counted by reason."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from lorica.data.decoding import image_suffixes
from lorica.terminal import shown

TABLES = (".json", ".jsonl", ".csv", ".tsv", ".parquet")
"""How the names of files of rows end."""
LINES = ".txt"
"""How those of files of lines do, of texts of one class."""

_SYSTEM = {"@eadir", "@tmp", "#recycle", "#snapshot", "$recycle.bin", "__macosx", "__pycache__", "lost+found"} | {
    "system volume information"
}
_USES = {
    "train": "tr(?:ai)?n(?:ing)?",
    "test": "te?st(?:ing)?|eval(?:uation)?",
    "validation": "val(?:id(?:ation)?)?|dev",
}
_AND = "(?:set|data|images|split)?"  # trainset, Test_Images


class Walk:
    """One walk through a data set, over several folders.

    Attributes:
        passed_over: how many files and folders were not read, by reason.
        problems: what cannot be read, or is reached twice: one file can be one sample.
    """

    def __init__(self) -> None:
        self.passed_over: Counter[str] = Counter()
        self.problems: list[str] = []
        self._seen: dict[tuple[int, int], Path] = {}

    def entries(self, folder: Path) -> Iterator[Path]:
        """What is in a folder, without what is hidden or the system's own."""
        try:
            entries = sorted(folder.iterdir())
        except OSError as error:
            self.problems.append(
                f"{shown(folder)}: cannot be opened ({error.strerror}); make it readable, or move it away"
            )
            return
        for entry in entries:
            if entry.name.startswith("."):
                self.passed_over["hidden"] += 1
            elif entry.name.casefold() in _SYSTEM:
                self.passed_over[f"system folder ({entry.name})"] += 1
            else:
                yield entry

    def folders(self, folder: Path) -> list[Path]:
        """The folders in a folder, sorted; files beside them are passed over."""
        self._is_new(folder)
        found = []
        for entry in self.entries(folder):
            if entry.is_dir():
                found.append(entry)
            else:
                self.passed_over["beside the class folders"] += 1
        return found

    def images(self, folder: Path) -> list[Path]:
        """Image files in a folder and in those within, sorted."""
        found, waiting = [], [folder]
        while waiting:
            place = waiting.pop()
            if not self._is_new(place):
                continue
            for entry in self.entries(place):
                if entry.is_dir():
                    waiting.append(entry)
                elif entry.suffix.lower() not in image_suffixes():
                    ending = f"*{shown(entry.suffix)}" if entry.suffix else "without an ending"
                    self.passed_over[f"{ending} (no image format)"] += 1
                elif self._is_new(entry):
                    found.append(entry)
        return sorted(found)

    def _is_new(self, path: Path) -> bool:
        """A problem where the file or folder has been read already, through a link or under another name."""
        try:
            status = path.stat()
        except OSError:  # a link to nothing is an image that cannot be read, and reported as one
            return True
        earlier = self._seen.setdefault((status.st_dev, status.st_ino), path)
        if earlier is not path:
            self.problems.append(
                f"{shown(path)} leads to {shown(earlier)}, which is read already; remove one of the two"
            )
        return earlier is path


def use_of(name: str) -> str | None:
    """What the name of a folder says that its images are for: "train", "test", "validation", or None for any other
    name."""
    letters = re.sub("[^a-z]", "", name.casefold())
    return next((use for use, pattern in _USES.items() if re.fullmatch(f"(?:{pattern}){_AND}", letters)), None)


def holds_texts(path: Path) -> bool:
    """Whether this is a file of texts, or a folder of such files without folders in it."""
    if os.path.isdir(path):
        try:
            return not has_folders(path) and any(holds_texts(each) for each in path.iterdir() if each.is_file())
        except OSError:  # said when it is read
            return False
    return path.suffix.lower() in (*TABLES, LINES)


def has_folders(folder: Path) -> bool:
    """Whether there are folders in a folder, beside hidden ones and the system's."""
    return any(
        entry.is_dir() and not entry.name.startswith(".") and entry.name.casefold() not in _SYSTEM
        for entry in folder.iterdir()
    )


def common_folders(classes: Mapping[Path, list[Path]]) -> list[str]:
    """Names of folders that all of several class folders have, if they make most of these: then they are no class
    folders."""
    within = [{image.relative_to(folder).parts for image in images} for folder, images in classes.items() if images]
    if len(within) < 2 or any(len(parts) == 1 for paths in within for parts in paths):
        return []
    names = [{parts[0] for parts in paths} for paths in within]
    common, every = set.intersection(*names), set.union(*names)
    return sorted(common) if len(common) > 1 and 2 * len(common) >= len(every) else []
