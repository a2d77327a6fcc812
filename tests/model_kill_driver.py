"""Lets a model learn in a process that is killed, round after round: `python model_kill_driver.py MODEL DATA OUT KILLS SEED`.

Each round begins with a copy of MODEL, OUT/N; its process learns DATA, and is sent SIGKILL at a random moment of the time that a
learning takes. A second process tells what model is there, a third one learns the data again. All are forked from this one, which
imports everything once and computes nothing. There are as many rounds as it takes. Prints, for each, whether it was killed and
what was there.
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

from lorica.learner import Learner, load

torch.set_num_threads(1)


def main(model: Path, data: Path, out: Path, kills: int, seed: int) -> None:
    stored = np.load(data)
    chance, found = random.Random(seed), []

    def learn(folder: Path) -> None:
        Learner(folder, keep=1).learn((stored["images"], stored["labels"]))

    def tell(folder: Path) -> None:
        there = load(folder)
        assert isinstance(there, Learner)
        logits = there.logits(stored["images"]).numpy().tobytes()
        said = {"versions": len(there.history()), "logits": hashlib.sha256(logits).hexdigest()}
        out.joinpath("said.json").write_text(json.dumps(said))

    def said_of(folder: Path) -> dict[str, Any]:
        finish(begun(tell, folder))
        return json.loads(out.joinpath("said.json").read_text())

    whole = Path(shutil.copytree(model, out / "whole"))
    started = time.monotonic()
    finish(begun(learn, whole))
    span = time.monotonic() - started
    expected = [said_of(model), said_of(whole)]
    while sum(each["killed"] for each in found) < kills:
        folder = Path(shutil.copytree(model, out / f"{len(found)}"))
        process = begun(learn, folder)
        time.sleep(chance.uniform(0, span))
        os.kill(process, signal.SIGKILL)
        killed = os.WIFSIGNALED(os.waitpid(process, 0)[1])
        snapshot = bool(list(folder.glob("snapshot-*")))
        found.append({"killed": killed, "snapshot": snapshot, "there": expected.index(said_of(folder))})
        finish(begun(learn, folder))
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
    main(*(Path(each) for each in sys.argv[1:4]), int(sys.argv[4]), int(sys.argv[5]))
