"""What stands before the page's server: requests of foreign pages and oversized ones do not reach
it, and what leaves it carries rules.

A server on a loopback address is open to every page in the browser of whoever runs it. Such a page
can send requests (a forged origin), and by letting its own name point to the loopback address (DNS
rebinding) read the answers too. The first gives itself away by the headers Origin and
Sec-Fetch-Site, the second by the header Host, which no page can choose.
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
    # Scripts, styles and pictures from this server and nowhere else: what a file name or a photo
    # says can start nothing.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Guard:
    """The outermost layer of the application.

    Args:
        host: the address that the server listens at.
        names: further names by which it is reached, of a proxy for instance, which may ask for it
            under a name of its own.
        max_bytes: of a request's body.
        root_path: what a proxy puts before every path, "/spn" for instance; whether it takes that
            away again does not matter.
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
            # the page's own addresses count from there
            await RedirectResponse(f"{self.root_path}/")(scope, receive, send)
        else:
            await self.app(self.rooted(scope), self.limited(receive), send)

    def foreign(self, method: str, headers: Headers) -> str:
        """Why a request is refused; empty if it is not."""
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self.knows(host):
            return "unknown Host header; start the server with --allow-host NAME to have it answer under that name"
        if origin is not None and not self.is_own(origin, host):
            return "cross-origin requests are refused"
        # somebody followed a link to the page
        navigation = method == "GET" and headers.get("sec-fetch-mode") == "navigate"
        if headers.get("sec-fetch-site") in ("cross-site", "same-site") and not navigation:
            return "cross-site requests are refused"
        return ""

    def is_own(self, origin: str, host: str) -> bool:
        """Whether a header Origin names this server's page. A proxy may add encryption, so that its
        scheme tells nothing.
        """
        try:
            place = urlsplit(origin)
            return bool(place.netloc) and (place.netloc.lower() == host.lower() or place.hostname in self.proxies)
        except ValueError:
            return False

    def knows(self, host: str) -> bool:
        """Whether a header Host names this server. An address is nobody's to redirect, so that it
        needs no list.
        """
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        return name in self.names or (self.any_address and is_address(name))

    def rooted(self, scope: Scope) -> Scope:
        """The same request with the whole path, as Starlette expects it, whether or not a proxy
        took the beginning away.
        """
        path = scope["path"]
        whole = path if path.startswith(f"{self.root_path}/") else self.root_path + path
        return {**scope, "path": whole, "root_path": self.root_path}

    @property
    def too_large(self) -> str:
        return f"a request may have {self.max_bytes / 2**20:.3g} MB at most; make the photo smaller"

    def limited(self, receive: Receive) -> Receive:
        """Counts what arrives, because the length of a body need not be declared."""
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
    """Bytes that a request says it has; 0 where it does not."""
    length = headers.get("content-length", "")
    return int(length) if length.isdecimal() else 0


def with_headers(send: Send) -> Send:
    """Adds the rules for browsers to every response."""

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(HEADERS)
        await send(message)

    return send_with_headers
