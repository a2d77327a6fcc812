"""Serves the model that own_images.py makes, and asks it over HTTP: `python examples/serve.py [FOLDER]` (needs
lorica[serve])."""

from __future__ import annotations

import json
import sys
import tempfile
import threading
import urllib.request
from pathlib import Path

import own_images

from lorica import Learner
from lorica.serving import server as serving


def ask(url: str, picture: Path) -> dict[str, object]:
    """What the server says of a picture, sent as a form."""
    edge = "edge-of-a-part"
    head = (
        f'--{edge}\r\nContent-Disposition: form-data; name="images"; filename="{picture.name}"\r\n'
        "Content-Type: image/png\r\n\r\n"
    )
    body = head.encode() + picture.read_bytes() + f"\r\n--{edge}--\r\n".encode()
    request = urllib.request.Request(f"{url}/predict", body, {"Content-Type": f"multipart/form-data; boundary={edge}"})
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def main(folder: Path) -> None:
    """Make the model, serve it at a free port of this machine, ask, stop."""
    own_images.main(folder)
    model = Learner(folder / "model")
    with serving.opened("127.0.0.1", 0) as door:
        server = serving.make_server(model, door, title="shapes", max_bytes=10_000_000, max_images=8)
        thread = threading.Thread(target=serving.run, args=(server, door))
        thread.start()
        try:
            print(ask(door.url, folder / "new-ring.png"))
        finally:
            server.should_exit = True
            thread.join()


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()))
