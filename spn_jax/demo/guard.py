"""Refuses foreign and oversized requests before they reach the page's server, and adds headers.

Every page in the browser of whoever runs a server can reach its loopback address. Such a page can
send requests with a forged origin, which the headers Origin and Sec-Fetch-Site reveal. If it lets
its own name point to the loopback address (DNS rebinding), it can read the answers too; the header
Host, which no page can choose, reveals that.
"""

import ipaddress
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = ("localhost", "127.0.0.1", "::1")
EVERY_ADDRESS = ("0.0.0.0", "::", "")
HEADERS = {
    # Scripts, styles and pictures may come from this server alone, so that the text of a file name
    # or a photo cannot start anything.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Guard:
    """The outermost layer of the application.

    Args:
        host: the address to listen at.
        names: further host names of the server, for instance the name that a proxy uses for it.
        max_bytes: most bytes of a request's body.
        root_path: the prefix of all paths behind a proxy, "/spn" for instance, whether or not the
            proxy strips it.
    """

    def __init__(self, app: ASGIApp, host: str, names: Iterable[str], max_bytes: int, root_path: str = ""):
        self.app, self.max_bytes, self.root_path = app, max_bytes, root_path
        self.proxies = {name.lower() for name in names}
        self.names = {*LOOPBACK, host.lower(), *self.proxies}
        self.any_address = host in EVERY_ADDRESS

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        send = with_headers(send)
        if refusal := self.foreign(scope["method"], headers):
            await JSONResponse({"error": refusal}, 403)(scope, receive, send)
        elif declared_length(headers) > self.max_bytes:
            await JSONResponse({"error": self.too_large}, 413, {"Connection": "close"})(scope, receive, send)
        elif self.root_path and scope["path"] == self.root_path:
            # the page's relative addresses start there
            await RedirectResponse(f"{self.root_path}/")(scope, receive, send)
        else:
            await self.app(self.rooted(scope), self.limited(receive), send)

    def foreign(self, method: str, headers: Headers) -> str:
        """Returns why a request is refused; empty if it is not."""
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self.knows(host):
            return "unknown Host header; start the server with --allow-host NAME to have it answer under that name"
        if origin is not None and not self.is_own(origin, host):
            return "cross-origin requests are refused"
        # a link to the page was followed
        navigation = method == "GET" and headers.get("sec-fetch-mode") == "navigate"
        if headers.get("sec-fetch-site") in ("cross-site", "same-site") and not navigation:
            return "cross-site requests are refused"
        return ""

    def is_own(self, origin: str, host: str) -> bool:
        """Returns whether a header Origin names this server's page. Its scheme is ignored, as a
        proxy may add encryption.
        """
        try:
            place = urlsplit(origin)
            return bool(place.netloc) and (place.netloc.lower() == host.lower() or place.hostname in self.proxies)
        except ValueError:
            return False

    def knows(self, host: str) -> bool:
        """Returns whether a header Host names this server. A numeric address cannot be rebound, so
        it needs no list.
        """
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        return name in self.names or (self.any_address and is_address(name))

    def rooted(self, scope: Scope) -> Scope:
        """Returns the request with its whole path, as Starlette expects it, whether or not a proxy
        stripped the prefix.
        """
        path = scope["path"]
        whole = path if path.startswith(f"{self.root_path}/") else self.root_path + path
        return {**scope, "path": whole, "root_path": self.root_path}

    @property
    def too_large(self) -> str:
        return f"a request may have {self.max_bytes / 2**20:.3g} MB at most; make the photo smaller"

    def limited(self, receive: Receive) -> Receive:
        """Counts received bytes, because the length of a body need not be declared."""
        received = 0

        async def receive_limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.max_bytes:
                raise HTTPException(413, self.too_large, {"Connection": "close"})
            return message

        return receive_limited


def is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def declared_length(headers: Headers) -> int:
    """Returns the declared length of a request in bytes; 0 if there is none."""
    length = headers.get("content-length", "")
    return int(length) if length.isdecimal() else 0


def with_headers(send: Send) -> Send:
    """Adds the security headers for browsers to every response."""

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(HEADERS)
        await send(message)

    return send_with_headers
