"""Runs a recipe in a process that is killed again and again, until it has finished: `python kill_driver.py RECIPE OUT
SPAN SEED`.

Everything is imported once; the processes that learn are forked from this one, which computes nothing. Each is sent
SIGKILL after a random time of at most SPAN seconds, and the next one resumes. Prints the number of kills, and for each
what was in the folder just after it.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import torch

from lorica.run import run

torch.set_num_threads(1)


def main(recipe: str, out: str, span: float, seed: int) -> None:
    chance, found = random.Random(seed), []
    while True:
        process = os.fork()
        if process == 0:
            try:
                run(recipe, out=out, resume=True, progress=False)
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        time.sleep(chance.uniform(0, span))
        os.kill(process, signal.SIGKILL)
        status = os.waitpid(process, 0)[1]
        if not os.WIFSIGNALED(status):
            break
        found.append(sorted(path.name for path in Path(out).rglob("*")))
    print(json.dumps({"code": os.waitstatus_to_exitcode(status), "kills": len(found), "found": found}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4]))
