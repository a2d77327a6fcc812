"""Which files lorica wrote, told by what is in them: no other file is ever replaced or removed.

A name alone says nothing: `metrics.json`, `recipe.yaml` or `figures/accuracy_curves.pdf` may well be the user's own. So
each kind of file has its marks: the keys of a JSON object, the seal of a journal, metadata in the header of tensors and
in figures, a hash in the last line of a report.
A damaged file whose marks are gone counts as the user's; it is named, and stays.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml

from lorica.errors import LoricaError

_KEYS = {
    "metrics.json": {"method", "variant", "seed", "tasks", "accuracy", "complete"},
    "cost.json": {"tasks", "train_seconds"},
    "environment.json": {"python", "lorica", "torch", "timm", "device", "backbone"},
    "analysis.json": {"runs", "residuals", "straight_lines", "distances", "skipped"},
    "merging.json": {"run", "method", "readout", "scale", "rules", "own"},
    "model.json": {"format", "labels"},
    "export.json": {"lorica", "target", "fingerprint", "files"},
    "theorem.json": {"setting", "exponents", "descents", "sd_lora"},
    "state.json": {"format", "method", "backbone", "seal"},
    "history.jsonl": {"task", "epoch", "step", "learning_rate", "terms"},
    "confusion.json": {"classes", "counts"},
    "tracking.json": {"tracker", "id"},
    "stream.jsonl": {"stream", "sha256"},
    "journal.jsonl": {"seal"},
}
_SECTIONS = {"method", "backbone", "data", "stream", "fit", "seed"}
_MARK = "lorica"
_COMMENTS = {".html": "<!-- {} -->", ".md": "<!-- {} -->", ".tex": "% {}"}
TIDY = "benchmark,label,against,measure,number,mean,std,error,low,high"
"""The first line of a report in CSV, which has no comments."""
_SHOWN = 20


def tensor_metadata(content: str) -> dict[str, str]:
    """What a file of tensors says of itself in its header, so that `wrote` knows it."""
    return {_MARK: content}


def figure_mark(name: str) -> str:
    """What a figure that is saved under that name, without its ending, says of its maker, so that `wrote` knows it.

    A copy under another name is the user's.
    """
    return f"{_MARK} <{quote(name, safe='')}>"


def marked(path: Path, text: str) -> str:
    """A report's text with what it says of its maker, for a file of that name, so that `wrote` knows it as long as it
    is not altered."""
    if path.suffix not in _COMMENTS:
        return text
    return text + _COMMENTS[path.suffix].format(f"{_MARK} report {hashlib.sha256(text.encode()).hexdigest()}") + "\n"


def recipe_text(resolved: dict[str, Any]) -> str:
    """A resolved recipe as the text of a recipe.yaml."""
    return yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True, width=120)


def wrote(path: Path) -> bool:
    """Whether lorica wrote a file; False for one that cannot be read."""
    try:
        if path.name in _KEYS:
            return _has_keys(path, _KEYS[path.name])
        if path.suffix == ".yaml":
            return _is_resolved_recipe(path)
        if path.suffix == ".safetensors":
            return _MARK in _header(path).get("__metadata__", {}) or _is_named_beside(path)
        if path.suffix in (".pdf", ".png"):
            return figure_mark(path.stem).encode() in path.read_bytes()
        if path.suffix in _COMMENTS:
            *lines, _ = path.read_text(encoding="utf-8").splitlines(keepends=True)
            return marked(path, "".join(lines)).encode() == path.read_bytes()
        if path.suffix == ".csv":
            return path.read_text(encoding="utf-8").startswith(f"{TIDY}\n")
    except (OSError, ValueError, AttributeError, TypeError, RecursionError, yaml.YAMLError):
        pass
    return False


def require_ours(paths: Iterable[Path]) -> None:
    """LoricaError that names each of the files which is there and which lorica did not write."""
    foreign = [path for path in paths if os.path.lexists(path) and not wrote(path)]
    if foreign:
        more = [f"… and {len(foreign) - _SHOWN} more"] if len(foreign) > _SHOWN else []
        raise LoricaError(
            [
                f"{path}: is in the way and not lorica's, or damaged; move it away, or choose another folder"
                for path in foreign[:_SHOWN]
            ]
            + more
        )


def require_export(folder: Path) -> None:
    """LoricaError that names what a folder holds beside an export of lorica's; it may be empty, or not be there.

    The export's own record, export.json, has a hash of each file: one that was altered since is the user's.
    """
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise LoricaError(f"{folder}: is in the way and no folder; move it away, or choose another one")
    record, ours = folder / "export.json", {}
    if wrote(record):
        ours = {record: None} | {
            folder / name: digest for name, digest in json.loads(record.read_bytes())["files"].items()
        }
    foreign = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or not (path.is_dir() or (path in ours and ours[path] in (None, sha256(path))))
    ]
    if foreign:
        more = [f"… and {len(foreign) - _SHOWN} more"] if len(foreign) > _SHOWN else []
        raise LoricaError(
            [
                f"{path}: is in the way and not of an export of lorica's, or was altered since; move it away, or "
                "choose another folder"
                for path in foreign[:_SHOWN]
            ]
            + more
        )


def sha256(path: Path) -> str:
    """The hash of a file's contents, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _has_keys(path: Path, keys: set[str]) -> bool:
    if path.suffix == ".json":
        return keys <= json.loads(path.read_bytes()).keys()
    with path.open(
        "rb"
    ) as file:  # the first line may be long, and the only one; a damaged one does not hide the others
        return any(keys <= values.keys() for line in file if (values := _object(line)))


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) else None


def _is_resolved_recipe(path: Path) -> bool:
    """Every section is there, and nothing that only a hand can have written, as a comment."""
    text = path.read_text(encoding="utf-8")
    values = yaml.safe_load(text)
    return values.keys() >= _SECTIONS and recipe_text(values) == text


def _header(path: Path) -> dict[str, Any]:
    """The header of a safetensors file; it is whole even where the tensors are truncated."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        return json.loads(file.read(size)) if size <= min(path.stat().st_size, 10**8) else {}


def _is_named_beside(path: Path) -> bool:
    """Whether lorica's own record in the same folder names a file of tensors: those of earlier versions say nothing
    themselves."""
    journal, state = path.with_name("journal.jsonl"), path.with_name("state.json")
    if path.name == "state.safetensors":
        return wrote(state)
    return wrote(journal) and f'"file": "{path.name}"'.encode() in journal.read_bytes()
