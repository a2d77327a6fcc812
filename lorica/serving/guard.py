"""Who is answered, and what browsers are told beside the answer.

A server on this machine's own address can be reached by every page that its browser shows. Two checks keep them out: a
page of another site whose name has been made to point here still sends that name as Host, and what a page sends to
another site carries its own address as Origin.
"""

from __future__ import annotations

from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
"""Names of this machine for itself, as they stand in a URL."""

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""What every response carries: a browser runs what is here only, frames nothing of it, and keeps nothing."""


class Guard:
    """Refuses other hosts' names and other sites' pages; adds `HEADERS` to every response.

    Args:
        hosts: names that a request may have in its Host header, without ports; None = any.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str] | None) -> None:
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        headers = Headers(scope=scope)
        if self.hosts is not None and _name(headers.get("host", "")) not in self.hosts:
            refusal = JSONResponse(
                {"detail": f"this server answers to {', '.join(sorted(self.hosts))} only; open it by one of these"}, 421
            )
            await refusal(scope, receive, with_headers)
        elif "origin" in headers and urlsplit(headers["origin"]).netloc != headers.get("host"):
            refusal = JSONResponse({"detail": "pages of other sites are not answered; open the server's own page"}, 403)
            await refusal(scope, receive, with_headers)
        else:
            await self.app(scope, receive, with_headers)


def _name(host: str) -> str:
    """Without its port, in small letters."""
    name, colon, port = host.lower().rpartition(":")
    return name if colon and port.isdecimal() else host.lower()
