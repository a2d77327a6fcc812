"""The address of a served model, and the server that listens there."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from lorica.errors import LoricaError
from lorica.serving.model import Model

if TYPE_CHECKING:
    import uvicorn

_CONNECTIONS = 64  # more are told to come back later
_FAREWELL = 5  # seconds for answers under way when the server is stopped


@dataclass(frozen=True)
class Door:
    """A socket that listens.

    Attributes:
        url: by which a browser on this machine finds it.
        is_public: other machines reach it.
        hosts: names by which requests may call it, see `lorica.serving.guard.Guard`; None = any.
    """

    socket: socket.socket
    url: str
    is_public: bool
    hosts: frozenset[str] | None


@contextmanager
def opened(host: str, port: int) -> Iterator[Door]:
    """Listens at an address of this machine for the length of a `with` block; port 0 is one that is free.

    Raises:
        LoricaError: no such address here, a port that is taken, or that needs permission.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listening = socket.create_server(address[:2], family=family)
    except (OSError, UnicodeError, OverflowError) as error:
        raise LoricaError(
            f"{host}, port {port}: cannot be listened at ({getattr(error, 'strerror', None) or error}); choose another "
            "--host or --port"
        ) from error
    with listening:
        yield _door(listening, host)


def require_extra() -> None:
    """LoricaError where the packages are missing that a server needs."""
    missing = [name for name in ("fastapi", "uvicorn", "python_multipart") if find_spec(name) is None]
    if missing:
        raise LoricaError(
            f"lorica serve needs packages that are not installed ({', '.join(missing)}): pip install 'lorica[serve]'"
        )


def make_server(model: Model, door: Door, **settings: Any) -> uvicorn.Server:
    """A server that is not yet running; settings as those of `lorica.serving.app.create_app`."""
    import uvicorn

    from lorica.serving.app import create_app

    app = create_app(model, hosts=door.hosts, **settings)
    return uvicorn.Server(
        uvicorn.Config(
            app,
            http="h11",
            ws="none",
            lifespan="off",
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=_CONNECTIONS,
            timeout_graceful_shutdown=_FAREWELL,
        )
    )


def run(server: uvicorn.Server, door: Door) -> None:
    """Answers until Ctrl-C."""
    with suppress(KeyboardInterrupt):
        server.run(sockets=[door.socket])


def _door(listening: socket.socket, host: str) -> Door:
    bound, port = listening.getsockname()[:2]
    here = ipaddress.ip_address(bound.partition("%")[0])
    spelled = f"[{here}]" if here.version == 6 else str(here)
    if here.is_loopback:
        return Door(listening, f"http://{spelled}:{port}", False, frozenset({"localhost", spelled, host.lower()}))
    name = socket.gethostname() if here.is_unspecified else spelled
    return Door(listening, f"http://{name}:{port}", True, None)
