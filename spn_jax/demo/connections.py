"""Closes connections of the page's server whose clients never finish their request."""

import asyncio
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from spn_jax.demo.limits import HEAD_SECONDS, STOP_SECONDS


class Connection(H11Protocol):
    """Closes a connection on which the head of a request does not arrive in time. uvicorn itself
    closes those that are idle after one.
    """

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        super().connection_lost(exc)

    def _watch(self) -> None:
        if self.conn.their_state is not h11.IDLE:  # the head has arrived
            self._unwatch()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _unwatch(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def server(app: Any, connections: int) -> uvicorn.Server:
    """Makes the server of an application. `connections` may be open at a time; further ones are
    refused with status 503.
    """
    config = uvicorn.Config(
        app,
        loop="asyncio",
        http=Connection,
        ws="none",
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=STOP_SECONDS,
        # uvicorn counts the new connection too, and refuses from this number on
        limit_concurrency=connections + 1,
    )
    return uvicorn.Server(config)
