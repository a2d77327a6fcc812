"""Changed files of a run whose seals and hashes are right again: what then still refuses them looks at what they say.

Written from the format, not with the code under test.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

Edit = Callable[[list[dict[str, Any]]], Any]


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def journal_lines(journal: Path) -> list[dict[str, Any]]:
    """What its lines say, without their seals."""
    lines = [json.loads(line) for line in journal.read_bytes().splitlines()]
    return [{key: value for key, value in line.items() if key != "seal"} for line in lines]


def seal_journal(journal: Path, lines: list[Any]) -> None:
    """Writes these lines; each has the hashes of its files as they are, and is sealed with those before it."""
    seal, written = "", []
    for line in lines:
        for key in ("saved", "sums", "images", "parts"):
            saved = line.get(key) if isinstance(line, dict) else None
            if isinstance(saved, dict) and isinstance(saved.get("file"), str) and "sha256" in saved:
                file = journal.with_name(saved["file"].replace("/", "_").replace("\0", "_")[:200] or "none")
                if file.is_file():
                    saved["sha256"] = digest(file.read_bytes())
        seal = digest((seal + json.dumps(line, sort_keys=True)).encode())
        written.append(json.dumps({"seal": seal} | line if isinstance(line, dict) else line))
    journal.write_text("".join(f"{line}\n" for line in written))


def edit_journal(journal: Path, edit: Edit) -> None:
    lines = journal_lines(journal)
    edit(lines)
    seal_journal(journal, lines)


def seal_manifest(manifest: Path) -> None:
    """Puts the hash of all lines after the first into the first, which goes before them if it is another line."""
    lines = manifest.read_bytes().splitlines(keepends=True)
    rest = b"".join(lines[1:] if b"sha256" in b"".join(lines[:1]) else lines)
    manifest.write_bytes(json.dumps({"stream": 1, "sha256": digest(rest)}).encode() + b"\n" + rest)


def seal_state(folder: Path, head: dict[str, Any]) -> None:
    """Writes the state.json of a checkpoint of format 2."""
    if "sha256" in head and (folder / "state.safetensors").is_file():
        head["sha256"] = digest((folder / "state.safetensors").read_bytes())
    seal = digest(json.dumps(head, sort_keys=True).encode())
    (folder / "state.json").write_text(json.dumps(head | {"seal": seal}))


def read_tensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a file."""
    with safe_open(file, framework="pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata() or {}  # noqa: SIM118


def write_tensors(file: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    file.write_bytes(save({name: value.contiguous() for name, value in tensors.items()}, metadata))


def seal_snapshot(file: Path, facts: Any, tensors: dict[str, Tensor]) -> None:
    said = json.dumps(facts)
    found = hashlib.sha256(said.encode())
    for name in sorted(tensors):
        found.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        found.update(tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().data)
    write_tensors(file, tensors, {"lorica": said, "sha256": found.hexdigest()})
