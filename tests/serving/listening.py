"""A model behind a real address, for as long as a test needs it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lorica.serving.server import make_server, opened


@contextmanager
def listening(model: Any, *, title: str = "colours", **settings: Any) -> Iterator[str]:
    """The address of a server in a thread of its own; settings of `lorica.serving.app.create_app`."""
    with opened("127.0.0.1", 0) as door:
        server = make_server(model, door, title=title, **settings)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [door.socket]})
        thread.start()
        try:
            while not server.started and thread.is_alive():
                time.sleep(0.01)
            yield door.url
        finally:
            server.should_exit = True
            thread.join()
