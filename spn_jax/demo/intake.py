"""Receives uploads, and limits their number, memory, slowness and field names."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Collection

from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message, Receive

from spn_jax.demo.limits import SLOWEST_UPLOAD, UPLOAD_SECONDS
from spn_jax.errors import InputError

# most parts of a form; above what any request takes, so that surplus ones can be named in errors
MOST_FILES, MOST_FIELDS = 8, 32
BUSY = {"Retry-After": "10", "Connection": "close"}  # the rest of the request is not read


class Intake:
    """Reads forms. Use it in the event loop alone.

    Args:
        requests: most requests whose forms are received or decoded at a time.
        max_bytes: most bytes of all of them together.
        clock: returns seconds.
    """

    def __init__(self, requests: int, max_bytes: int, clock: Callable[[], float] = time.monotonic):
        self.requests, self.max_bytes, self.clock = requests, max_bytes, clock
        self.open = 0  # number of requests
        self.held = 0  # bytes

    @contextlib.asynccontextmanager
    async def form(self, request: Request, files: Collection[str], fields: Collection[str] = ()) -> AsyncIterator[FormData]:
        """Opens a context that yields the form of a request, which counts against the limits until
        it is left.

        Args:
            files, fields: the allowed names.

        Raises:
            HTTPException: 503 if too many requests or bytes are being received, 408 if this one
                arrives too slowly, 400 if it is broken off or is no form.
            InputError: a field has another name, or comes twice.
        """
        if self.open >= self.requests:
            raise HTTPException(503, f"{self.open} uploads are being received, and no more may be; try again in a few seconds", BUSY)
        self.open += 1
        counted = _Counted(self, request.receive)
        try:
            async with Request(request.scope, counted.receive).form(max_files=MOST_FILES, max_fields=MOST_FIELDS) as form:
                check_names(form, files, fields)
                yield form
        except ClientDisconnect:
            # the client has left, so nobody reads this
            raise HTTPException(400, "the upload was broken off") from None
        finally:
            self.open -= 1
            self.held -= counted.received


class _Counted:
    """Counts the messages of a request as they arrive."""

    def __init__(self, intake: Intake, receive: Receive):
        self.intake, self._receive = intake, receive
        self.received, self.began = 0, intake.clock()

    async def receive(self) -> Message:
        elapsed = self.intake.clock() - self.began
        try:
            async with asyncio.timeout(max(0.0, UPLOAD_SECONDS + self.received / SLOWEST_UPLOAD - elapsed)):
                message = await self._receive()
        except TimeoutError:
            raise HTTPException(
                408, "the upload arrives too slowly; try again over a faster connection or with a smaller file", {"Connection": "close"}
            ) from None
        size = len(message.get("body", b""))
        if self.intake.held + size > self.intake.max_bytes:
            raise HTTPException(503, "too many large uploads are being received; try again in a few seconds", BUSY)
        self.received += size
        self.intake.held += size
        return message


def check_names(form: FormData, files: Collection[str], fields: Collection[str]) -> None:
    """Raises InputError for an unknown name, whose value would be ignored unnoticed."""
    seen: set[str] = set()
    for name, _ in form.multi_items():
        if name not in files and name not in fields:
            raise InputError(f"there is no field {name[:40]!r}; this request takes {', '.join((*files, *fields))}")
        if name in seen:
            raise InputError(f"the field {name!r} came twice; send it once")
        seen.add(name)
