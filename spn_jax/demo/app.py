"""Builds the page's server as a Starlette application: paths, what they take, what they answer.

    app = create_app(inpainter, Settings(...))

Answers other than pictures and pages are JSON; refused requests get {"error": one sentence}. /docs
describes them for people.
"""

import asyncio
import contextlib
import dataclasses
import functools
import io
import zipfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import anyio
import numpy as np
from starlette.applications import Starlette
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartParser
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from spn_jax.demo.guard import Guard
from spn_jax.demo.intake import Intake
from spn_jax.demo.jobs import FAILURE, Job, LineFull, Progress, Result, Worker
from spn_jax.demo.limits import Limits
from spn_jax.demo.pictures import Filler, Order, Upload, fill, hole_picture, prior_maps, receive_mask, receive_photo
from spn_jax.demo.store import Store
from spn_jax.errors import InputError
from spn_jax.filling.holes import MOSTLY_HOLE
from spn_jax.filling.photos import READ
from spn_jax.filling.windows import STRATEGIES

STATIC = Path(__file__).parent / "static"
LARGEST_SEED = 2**32 - 1
LARGEST_DILATION = 500  # pixels
SWEEP = 60.0  # seconds between two checks for expired items
LOOK = 0.05  # seconds between two checks whether a job has ended
GONE = "is no longer on the server (expired, or removed to free memory); load the photo again"
MASK_FIELDS = ("invert", "dilate")
FILL_FIELDS = (*MASK_FIELDS, "strategy", "samples", "seed")
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings of a server.

    model: the description of the model.
    probabilistic: whether a hole can have several completions.
    host: the address to listen at.
    names: further host names of the server.
    root_path: the prefix of all paths behind a proxy, "/spn" for instance.
    longest_original: longest side in pixels for which the strategy "original" is offered, since
        every size has to be compiled.
    """

    model: str
    probabilistic: bool
    host: str = "127.0.0.1"
    names: tuple[str, ...] = ()
    limits: Limits = Limits()
    root_path: str = ""
    longest_original: int = 512


@dataclasses.dataclass
class Server:
    """The state that requests share. Everything but the worker's thread runs in the event loop."""

    filler: Filler
    settings: Settings
    worker: Worker
    store: Store
    intake: Intake
    # lets one photo be decoded at a time
    decoders: anyio.CapacityLimiter = dataclasses.field(default_factory=lambda: anyio.CapacityLimiter(1))

    async def decoded(self, function: Callable[..., T], *arguments: Any) -> T:
        """Calls a function that needs much time and memory outside the event loop, one at a
        time.
        """
        return await anyio.to_thread.run_sync(functools.partial(function, *arguments), limiter=self.decoders)

    def submit(self, work: Callable[[Progress], Iterator[Result]], held: int) -> Job:
        """Queues a job, which holds so many bytes until it ends. Raises HTTPException if the queue
        is full.
        """
        limits = self.settings.limits
        job = Job(work, held, limits.windows, 60 * limits.minutes)
        try:
            self.worker.submit(job)
        except LineFull:
            raise HTTPException(
                503, f"the queue is full ({self.worker.waiting} waiting); try again in a minute", {"Retry-After": "60"}
            ) from None
        self.store.put(job)
        return job

    def upload(self, request: Request) -> Upload:
        return self._kept(request.path_params["photo"], Upload, "this photo")

    def job(self, request: Request) -> Job:
        return self._kept(request.path_params["job"], Job, "this result")

    def result(self, request: Request) -> Result:
        job, number = self.job(request), request.path_params["number"]
        if not (number.isascii() and number.isdecimal() and len(number) < 10 and 1 <= int(number) <= len(job.results)):
            raise HTTPException(404, f"there is no result {number[:20]}, only {len(job.results)} so far")
        return job.results[int(number) - 1]

    def _kept(self, key: str, kind: Any, what: str) -> Any:
        item = self.store.get(key, kind)
        if item is None:
            raise HTTPException(404, f"{what} {GONE}")
        return item


def create_app(filler: Filler, settings: Settings) -> Starlette:
    limits = settings.limits
    # uploads stay in memory: people's photos are never written to a disk
    MultiPartParser.spool_max_size = limits.bytes
    server = Server(
        filler,
        settings,
        Worker(limits.waiting),
        Store(60 * limits.keep_minutes, limits.keep_megabytes * 2**20, limits.keep_items),
        Intake(limits.uploads, limits.upload_megabytes * 2**20),
    )

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        sweeping = asyncio.create_task(sweep(server.store))
        yield
        sweeping.cancel()
        await anyio.to_thread.run_sync(server.worker.stop)

    app = Starlette(
        routes=[
            Route("/", page("index.html")),
            Route("/docs", page("docs.html")),
            Mount("/static", StaticFiles(directory=STATIC)),
            Route("/api/model", describe_model),
            Route("/api/fill", fill_at_once, methods=["POST"]),
            Route("/api/photos", upload_photo, methods=["POST"]),
            Route("/api/photos/{photo}", forget_photo, methods=["DELETE"]),
            Route("/api/photos/{photo}/view", view_photo),
            Route("/api/photos/{photo}/mask", convert_mask, methods=["POST"]),
            Route("/api/photos/{photo}/fill", start_fill, methods=["POST"]),
            Route("/api/photos/{photo}/prior", start_prior, methods=["POST"]),
            Route("/api/jobs/{job}", describe_job),
            Route("/api/jobs/{job}", cancel_job, methods=["DELETE"]),
            Route("/api/jobs/{job}/{number}", download),
            Route("/api/jobs/{job}/{number}/view", view_result),
        ],
        middleware=[Middleware(Guard, host=settings.host, names=settings.names, max_bytes=limits.bytes, root_path=settings.root_path)],
        exception_handlers={HTTPException: refused, InputError: wrong_input, Exception: failed},
        lifespan=lifespan,
    )
    app.state.server = server
    return app


async def sweep(store: Store) -> None:
    while True:
        await asyncio.sleep(SWEEP)
        store.sweep()


# --- pages ---


def page(name: str) -> Callable[[Request], Any]:
    async def send(request: Request) -> Response:
        return FileResponse(STATIC / name, headers={"Cache-Control": "no-cache"})

    return send


# --- what the page asks for ---


async def describe_model(request: Request) -> Response:
    settings = server_of(request).settings
    limits = settings.limits
    return answer(
        {
            "model": settings.model,
            "samples": limits.samples if settings.probabilistic else 1,
            "strategies": STRATEGIES,
            "bytes": limits.bytes,
            "pixels": limits.pixels,
            "original": settings.longest_original,
            "formats": READ,
        }
    )


async def upload_photo(request: Request) -> Response:
    server = server_of(request)
    async with server.intake.form(request, ["photo"]) as form:
        upload = await read_upload(server, form)
    server.store.put(upload)
    height, width = upload.shape
    return answer({"photo": upload.key, "name": upload.name, "width": width, "height": height}, 201)


async def forget_photo(request: Request) -> Response:
    server = server_of(request)
    server.store.drop(server.upload(request).key)
    return Response(status_code=204)


async def view_photo(request: Request) -> Response:
    return picture(server_of(request).upload(request).view)


async def convert_mask(request: Request) -> Response:
    """Returns an uploaded mask as the network would see it, for the page to paint on."""
    server = server_of(request)
    upload = server.upload(request)
    async with server.intake.form(request, ["mask"], MASK_FIELDS) as form:
        mask = await read_hole(server, form, upload.shape)
    return picture(await server.decoded(hole_picture, mask))


async def start_fill(request: Request) -> Response:
    server = server_of(request)
    upload = server.upload(request)
    async with server.intake.form(request, ["mask"], FILL_FIELDS) as form:
        order = read_order(form, server.settings)
        check_strategy(order, upload.shape, server.settings)
        mask = await read_hole(server, form, upload.shape)
    job = server.submit(lambda progress: fill(server.filler, upload, mask, order, progress), mask.nbytes)
    return answer(described(request, job), 202)


async def start_prior(request: Request) -> Response:
    server = server_of(request)
    upload = server.upload(request)
    async with server.intake.form(request, ["mask"], MASK_FIELDS) as form:
        mask = await read_hole(server, form, upload.shape)
    return answer(described(request, server.submit(lambda _: prior_maps(server.filler, upload, mask), mask.nbytes)), 202)


async def describe_job(request: Request) -> Response:
    server = server_of(request)
    return answer(described(request, server.job(request)))


async def cancel_job(request: Request) -> Response:
    server = server_of(request)
    server.worker.cancel(server.job(request))
    return Response(status_code=204)


async def download(request: Request) -> Response:
    result = server_of(request).result(request)
    return picture(result.file, attachment(result.name))


async def view_result(request: Request) -> Response:
    return picture(server_of(request).result(request).view)


# --- one request for everything, for programs ---


async def fill_at_once(request: Request) -> Response:
    """Takes a photo and a mask and returns the filled photo; several as a ZIP archive."""
    server = server_of(request)
    async with server.intake.form(request, ["photo", "mask"], FILL_FIELDS) as form:
        order = read_order(form, server.settings)
        upload = await read_upload(server, form)
        check_strategy(order, upload.shape, server.settings)
        mask = await read_mask_of(server, form, upload.shape)
        hint = hint_of(mask, form)
    job = server.submit(lambda progress: fill(server.filler, upload, mask, order, progress), mask.nbytes + upload.size)
    await ended(server, job, request)
    if len(job.results) == 1:
        return picture(job.results[0].file, attachment(job.results[0].name) | hint)
    name = f"{Path(upload.name).stem}_filled.zip"
    return Response(archive(job.results), media_type="application/zip", headers=attachment(name) | hint)


async def ended(server: Server, job: Job, request: Request) -> None:
    """Waits for a job and then drops it. Raises HTTPException if it failed, or its client left
    meanwhile.
    """
    try:
        while job.busy:
            if await request.is_disconnected():
                break
            await asyncio.sleep(LOOK)
    finally:  # also if the server stops meanwhile
        server.worker.cancel(job)
        server.store.drop(job.key)
    if job.state == "failed":
        raise HTTPException(400 if job.wrong_input else 500, job.error)
    if job.state != "done":
        raise HTTPException(503, "cancelled: the server is shutting down, or the request was withdrawn")


def archive(results: list[Result]) -> bytes:
    """Packs files that are already compressed into a ZIP."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as file:
        for result in results:
            file.writestr(result.name, result.file)
    return buffer.getvalue()


# --- reading a form ---


async def read_upload(server: Server, form: FormData) -> Upload:
    data, name = await read_file(form, "photo")
    return await server.decoded(receive_photo, data, name, server.settings.limits.pixels)


async def read_mask_of(server: Server, form: FormData, shape: tuple[int, int]) -> np.ndarray:
    """Returns the form's mask, uint8 (h, w, 1)."""
    data, name = await read_file(form, "mask")
    invert, dilate = read_flag(form, "invert"), read_number(form, "dilate", 0, LARGEST_DILATION)
    return await server.decoded(receive_mask, data, name, shape, server.settings.limits.pixels, invert, dilate)


async def read_hole(server: Server, form: FormData, shape: tuple[int, int]) -> np.ndarray:
    """Returns the form's mask as `read_mask_of` does. Raises InputError if it has no hole, which is
    surely a mistake.
    """
    mask = await read_mask_of(server, form, shape)
    if not mask.any():
        raise InputError(f"nothing to fill: {no_hole(form)}")
    return mask


def hint_of(mask: np.ndarray, form: FormData) -> dict[str, str]:
    """Returns a header with what looks mistaken about a mask, uint8 (h, w, 1); none for most
    masks.
    """
    if not mask.any():
        return {"X-Hint": f"the photo is unchanged: {no_hole(form)}"}
    if (share := float(mask.mean())) > MOSTLY_HOLE:
        other = "leave out invert=true if white is the hole" if read_flag(form, "invert") else "pass invert=true if black is the hole"
        return {"X-Hint": f"the hole is {share:.0%} of the photo; {other}"}
    return {}


def no_hole(form: FormData) -> str:
    """Explains why a mask marks nothing, and what may have been meant."""
    if read_flag(form, "invert"):
        return "the mask has no black pixels; leave out invert=true if white is the hole"
    return "the mask has no white pixels; pass invert=true if black is the hole"


async def read_file(form: FormData, field: str) -> tuple[bytes, str | None]:
    file = form.get(field)
    if not isinstance(file, UploadFile):
        raise InputError(f"the form has no file {field}; send an image in the field of that name")
    data = await file.read()
    await file.close()  # frees the second copy
    return data, file.filename


def read_order(form: FormData, settings: Settings) -> Order:
    samples = read_number(form, "samples", 1, settings.limits.samples if settings.probabilistic else 1)
    name = str(form.get("strategy", "auto"))
    strategy = next((known for known in STRATEGIES if known == name), None)
    if strategy is None:
        raise InputError(f"strategy {name[:20]!r} must be one of {', '.join(STRATEGIES)}")
    return Order(samples, read_number(form, "seed", 0, LARGEST_SEED), strategy)


def check_strategy(order: Order, shape: tuple[int, int], settings: Settings) -> None:
    """Raises InputError if a large photo is to be shown to the network at full size, which would be
    compiled for it alone.
    """
    if order.strategy == "original" and max(shape) > settings.longest_original:
        raise InputError(
            f"strategy original is for photos of up to {settings.longest_original} pixels a side, and this one has "
            f"{shape[1]} x {shape[0]}; take auto, crop or resize"
        )


def read_number(form: FormData, field: str, least: int, most: int) -> int:
    """Reads a field's whole number between two limits; the lower one if the form has none."""
    text = str(form.get(field, least)).strip()
    if not (text.isascii() and text.isdecimal() and len(text) < 20 and least <= int(text) <= most):
        wanted = f"a whole number from {least} to {most}" if most > least else f"{least}, as this model is deterministic"
        raise InputError(f"{field} {text[:20]!r} must be {wanted}")
    return int(text)


def read_flag(form: FormData, field: str) -> bool:
    text = str(form.get(field, "false"))
    if text not in ("true", "false"):
        raise InputError(f"{field} {text[:20]!r} must be true or false")
    return text == "true"


# --- answers ---


def server_of(request: Request) -> Server:
    return request.app.state.server


def described(request: Request, job: Job) -> dict[str, Any]:
    """Describes a job for the page: `before` jobs come before it, and `done` of `total` passes of
    the network are made.
    """
    path = f"{request.scope.get('root_path', '')}/api/jobs/{job.key}"
    results = [{"name": r.name, "file": f"{path}/{i}", "view": f"{path}/{i}/view"} for i, r in enumerate(list(job.results), 1)]
    return {
        "job": job.key,
        "state": job.state,
        "before": server_of(request).worker.before(job),
        "done": job.done,
        "total": job.total,
        "error": job.error,
        "results": results,
    }


def answer(content: Any, status: int = 200) -> Response:
    return JSONResponse(content, status, headers={"Cache-Control": "no-store"})


def picture(data: bytes, headers: dict[str, str] | None = None) -> Response:
    return Response(data, media_type="image/png", headers={"Cache-Control": "no-store", **(headers or {})})


def attachment(name: str) -> dict[str, str]:
    """Returns the header that makes a browser save the answer under a name, which must be ASCII in
    headers (RFC 6266).
    """
    ascii_name = name.encode("ascii", "replace").decode().replace("?", "_").replace("%", "_")
    return {"Content-Disposition": f"attachment; filename=\"{ascii_name}\"; filename*=UTF-8''{quote(name, safe='')}"}


async def refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    words = {
        "Not Found": f"there is nothing at {request.url.path[:100]}; /docs lists what there is",
        "Method Not Allowed": f"{request.url.path[:100]} does not take {request.method}; /docs lists what there is",
    }
    return JSONResponse({"error": words.get(error.detail, error.detail)}, error.status_code, headers=dict(error.headers or {}))


async def wrong_input(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, 400)


async def failed(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": FAILURE}, 500)
