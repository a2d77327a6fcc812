"""A signal may come between any two lines of the main thread: whatever threads work for it, nobody waits for ever."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

# Runs as often as there are times at which the main thread takes a lock of the standard library's, and stops it with a
# signal just behind the k-th, which is where a lock stays locked if nothing holds the signal back.
SCRIPT = """
import signal, sys, threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from lorica.data.ahead import ahead, by_threads

enter, main = threading.Condition.__enter__, threading.get_ident()
countdown = 0

def interrupted(self):
    global countdown
    entered = enter(self)
    if threading.get_ident() == main:
        countdown -= 1
        if countdown == 0:
            signal.raise_signal(signal.SIGINT)
    return entered

def own_threads():
    assert by_threads(str, range(5)) == list("01234")

def shared_threads():
    assert by_threads(str, range(5), SHARED) == list("01234")

def one_ahead():
    assert list(ahead(iter(range(5)))) == [0, 1, 2, 3, 4]

def left_early():
    with closing(ahead(iter(range(5)))) as items:  # where Python closes it by itself, it swallows what is raised
        next(items)

SHARED = ThreadPoolExecutor(2)
work = globals()[sys.argv[1]]
signal.signal(signal.SIGINT, signal.default_int_handler)
threading.Condition.__enter__ = interrupted
times = 0
while True:
    countdown = times + 1
    try:
        work()
    except KeyboardInterrupt:
        times += 1
    else:
        break
assert countdown > 0, "a signal was lost"
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
countdown = 0  # no more of them
shared_threads()
print(times)
"""


@pytest.mark.parametrize("work", ["own_threads", "shared_threads", "one_ahead", "left_early"])
def test_a_signal_behind_any_lock_ends_the_work_and_nothing_hangs(work: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    found = subprocess.run([sys.executable, script, work], capture_output=True, text=True, timeout=120, check=False)
    assert found.returncode == 0, found.stderr
    assert int(found.stdout) > 3
