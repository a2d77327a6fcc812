"""Lets a model learn, or be exported, in a process that is killed, round after round:

    python model_kill_driver.py learn MODEL DATA OUT KILLS SEED
    python model_kill_driver.py export MODEL DATA OUT KILLS SEED

Each round begins with OUT/N: a copy of MODEL, whose process learns DATA, or an export of MODEL's first version, whose
process exports its newest one over it. It is sent SIGKILL at a random moment of the time that this takes. A second
process tells what is there, a third one does the same again, a fourth tells. All are forked from this one, which
imports everything once and computes nothing. There are as many rounds as it takes. Prints, for each, whether it was
killed, and whether what was there then and after the second try was the old (0) or the new (1); anything else is an
error.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lorica.export import export
from lorica.learner import Learner, load

torch.set_num_threads(1)


def main(what: str, model: Path, data: Path, out: Path, kills: int, seed: int) -> None:
    stored = np.load(data)
    chance, found = random.Random(seed), []

    def learn(folder: Path) -> None:
        Learner(folder, keep=1).learn((stored["images"], stored["labels"]))

    def tell_model(folder: Path) -> None:
        there = load(folder)
        assert isinstance(there, Learner)
        logits = there.logits(stored["images"]).numpy().tobytes()
        said(len(there.history()), hashlib.sha256(logits).hexdigest())

    def export_first(folder: Path) -> None:
        export(load(model, version=1), folder, "timm")

    def export_newest(folder: Path) -> None:
        export(load(model), folder, "timm")

    def tell_export(folder: Path) -> None:
        record = json.loads((folder / "export.json").read_text())
        there = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        del there["export.json"]
        assert record["files"] == {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in there.items()}
        said(record["fingerprint"], record["files"])

    def said(*values: Any) -> None:
        out.joinpath("said.json").write_text(json.dumps(values))

    work, tell, old = learn, tell_model, model
    if what == "export":
        work, tell, old = export_newest, tell_export, out / "old"
        finish(begun(export_first, old))

    def said_of(folder: Path) -> Any:
        finish(begun(tell, folder))
        return json.loads(out.joinpath("said.json").read_text())

    whole = Path(shutil.copytree(old, out / "whole"))
    started = time.monotonic()
    finish(begun(work, whole))
    span = time.monotonic() - started
    expected = [said_of(old), said_of(whole)]
    while sum(each["killed"] for each in found) < kills:
        folder = Path(shutil.copytree(old, out / f"{len(found)}"))
        process = begun(work, folder)
        time.sleep(chance.uniform(0, span))
        os.kill(process, signal.SIGKILL)
        killed = os.WIFSIGNALED(os.waitpid(process, 0)[1])
        snapshot = bool(list(folder.glob("snapshot-*")))
        there = expected.index(said_of(folder))
        finish(begun(work, folder))
        found.append({"killed": killed, "snapshot": snapshot, "there": there, "again": expected.index(said_of(folder))})
    sys.stdout.write(json.dumps(found))


def begun(work: Callable[[Path], None], folder: Path) -> int:
    """The process that does it."""
    process = os.fork()
    if process == 0:
        try:
            work(folder)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return process


def finish(process: int) -> None:
    if code := os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]):
        raise SystemExit(code)


if __name__ == "__main__":
    main(sys.argv[1], *(Path(each) for each in sys.argv[2:5]), int(sys.argv[5]), int(sys.argv[6]))
