"""The page's server by its requests: what comes back, what is refused and in which words. The
network is a fake here.
"""

import asyncio
import contextlib
import dataclasses
import io
import json
import re
import socket
import sys
import tempfile
import threading
import time
import zipfile
import zlib
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import numpy as np
import pytest
from PIL import Image, ImageCms
from starlette.datastructures import Headers
from starlette.routing import Route
from starlette.testclient import TestClient

from spn_jax.demo import __main__ as command
from spn_jax.demo import connections, intake
from spn_jax.demo.app import STATIC, Settings, create_app
from spn_jax.demo.guard import Guard
from spn_jax.demo.jobs import Job, Progress
from spn_jax.demo.limits import Limits
from spn_jax.demo.pictures import clean_name
from spn_jax.errors import InputError
from spn_jax.filling.photos import Photo, encode_photo, read_photo
from spn_jax.filling.windows import Strategy
from tests import photo_files

ADDRESS = "http://127.0.0.1:7860"
HEIGHT, WIDTH = 30, 40
PATIENCE = 30.0  # seconds
HOLE = np.zeros((HEIGHT, WIDTH, 1), np.uint8)
HOLE[5:20, 10:25] = 1
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


class Painter:
    """Fills the n-th completion with the value 10 n, when it may."""

    def __init__(self) -> None:
        self.started, self.go = threading.Event(), threading.Event()
        self.go.set()
        self.asked: tuple[Any, ...] = ()
        self.passes, self.made = 1, 0  # of the network

    def fill(
        self,
        photo: Photo,
        mask: np.ndarray,
        samples: int = 1,
        seed: int = 0,
        strategy: Strategy = "auto",
        progress: Progress | None = None,
    ) -> Iterator[Photo]:
        assert progress is not None
        self.asked = samples, seed, strategy, int(mask.sum())
        self.started.set()
        for done in range(self.passes):
            progress(done, self.passes)
            assert self.go.wait(PATIENCE)
            self.made += 1
        for number in range(1, samples + 1):
            yield photo.with_colours_in_hole(np.full((int(mask.sum()), 3), 10 * number, np.uint8), mask)

    def priors(self, image: np.ndarray, mask: np.ndarray) -> dict[int, np.ndarray]:
        return {level: np.random.default_rng(0).random((32 // 2**level, 32 // 2**level, 3)) for level in (1, 2, 3)}


@pytest.fixture
def painter() -> Painter:
    return Painter()


@contextlib.contextmanager
def served(painter: Painter, probabilistic: bool = True, host: str = "127.0.0.1", **limits: int) -> Iterator[TestClient]:
    app = create_app(painter, Settings("a fake", probabilistic, host, ("photos.example",), Limits(**limits)))
    with TestClient(app, base_url=ADDRESS, raise_server_exceptions=False) as client:
        try:
            yield client
        finally:
            painter.go.set()


@pytest.fixture
def client(painter: Painter) -> Iterator[TestClient]:
    with served(painter) as client:
        yield client


def deep_photo() -> Photo:
    """16 bits a channel, transparency and a colour profile."""
    channels = np.random.default_rng(0).integers(0, 2**16, (HEIGHT, WIDTH, 4), np.uint16)
    return Photo(channels[..., :3], channels[..., 3:], icc_profile=PROFILE)


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def mask_file(hole: np.ndarray = HOLE) -> bytes:
    return png(255 * hole[..., 0])


PHOTO = encode_photo(deep_photo(), ".png")
FILES = {"photo": ("photo.png", PHOTO), "mask": ("mask.png", mask_file())}


def sentence(response: Any, status: int) -> str:
    assert response.status_code == status, response.text
    assert list(response.json()) == ["error"]
    return response.json()["error"]


def upload(client: TestClient, data: bytes = PHOTO, name: str = "photo.png") -> dict[str, Any]:
    response = client.post("/api/photos", files={"photo": (name, data)})
    assert response.status_code == 201, response.text
    return response.json()


def finished(client: TestClient, job: dict[str, Any]) -> dict[str, Any]:
    until = time.monotonic() + PATIENCE
    while job["state"] in ("waiting", "running") and time.monotonic() < until:
        time.sleep(0.005)
        job = client.get(f"/api/jobs/{job['job']}").json()
    return job


def start(client: TestClient, photo: str, what: str = "fill", **fields: Any) -> dict[str, Any]:
    response = client.post(f"/api/photos/{photo}/{what}", files={"mask": mask_file()}, data=fields)
    assert response.status_code == 202, response.text
    return response.json()


def check_known(data: bytes, original: Photo, value: int) -> None:
    """The file is the original, bit for bit and with its profile, but for the hole, which holds a
    value.
    """
    filled, hole = read_photo(io.BytesIO(data), "the result"), HOLE[..., 0] > 0
    assert filled.pixels.dtype == original.pixels.dtype and filled.icc_profile == original.icc_profile
    np.testing.assert_array_equal(filled.pixels[~hole], original.pixels[~hole])
    assert (filled.alpha is None) == (original.alpha is None)
    if filled.alpha is not None and original.alpha is not None:
        np.testing.assert_array_equal(filled.alpha[~hole], original.alpha[~hole])
    assert (filled.pixels[hole] == (257 * value if original.deep else value)).all()


# --- one request for everything ---


def test_one_request_fills_a_photo_and_keeps_every_known_bit(client: TestClient, painter: Painter) -> None:
    response = client.post("/api/fill", files=FILES, data={"seed": "7", "strategy": "crop"})
    assert response.status_code == 200 and response.headers["content-type"] == "image/png"
    check_known(response.content, deep_photo(), 10)
    assert painter.asked == (1, 7, "crop", HOLE.sum())
    assert response.headers["content-disposition"].startswith('attachment; filename="photo_filled.png"')


def test_a_jpeg_comes_back_with_its_decoded_pixels_and_profile(client: TestClient) -> None:
    buffer = io.BytesIO()
    Image.fromarray(deep_photo().rgb()).save(buffer, "JPEG", icc_profile=PROFILE)
    response = client.post("/api/fill", files={**FILES, "photo": ("p.jpg", buffer.getvalue())})
    check_known(response.content, read_photo(buffer, "the JPEG"), 10)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_known_pixels_are_those_that_others_read_and_the_hole_is_where_it_is_seen(client: TestClient, orientation: int) -> None:
    random, size = np.random.default_rng(orientation), (23, 17)
    deep = random.integers(0, 2**16, (*size, 4), np.uint16)
    jpeg = photo_files.jpeg(deep[..., :3].astype(np.uint8), orientation)
    files = {
        "deep.png": (photo_files.png(deep, orientation), deep),
        "grey.tif": (photo_files.tiff(deep[..., :1], orientation, ">"), deep[..., :1]),
        "photo.jpg": (jpeg, photo_files.read_by_others(jpeg)),
        "palette.png": photo_files.png_with_palette(random, size, 4, transparent=True, orientation=orientation),
    }
    for number, (name, (data, stored)) in enumerate(files.items()):
        seen = photo_files.upright(stored, orientation)
        mask = (random.random((*seen.shape[:2], 1)) < 0.4).astype(np.uint8)
        tag = (orientation + number) % 8 + 1
        mask_data = (photo_files.tiff if number % 2 else photo_files.png)(photo_files.lying(255 * mask, tag), tag)
        photo = upload(client, data, name)["photo"]
        job = finished(client, client.post(f"/api/photos/{photo}/fill", files={"mask": mask_data}).json())
        answers = (
            client.post("/api/fill", files={"photo": (name, data), "mask": mask_data}),
            client.get(job["results"][0]["file"]),
        )
        known = mask[..., 0] == 0
        for answer in answers:
            filled = photo_files.read_by_others(answer.content)
            assert filled.dtype == seen.dtype
            np.testing.assert_array_equal(filled[known], seen[known])
            assert (filled[~known][:, :3] == (2570 if seen.dtype == np.uint16 else 10)).all()


def test_several_samples_come_as_an_archive(client: TestClient) -> None:
    response = client.post("/api/fill", files=FILES, data={"samples": "3"})
    assert response.headers["content-type"] == "application/zip"
    with zipfile.ZipFile(io.BytesIO(response.content)) as archive:
        assert archive.namelist() == [f"photo_filled_{i}.png" for i in (1, 2, 3)]
        check_known(archive.read("photo_filled_3.png"), deep_photo(), 30)


def test_masks_may_be_inverted_and_grown(client: TestClient, painter: Painter) -> None:
    inverted = {**FILES, "mask": ("mask.png", mask_file(1 - HOLE))}
    assert client.post("/api/fill", files=inverted, data={"invert": "true"}).status_code == 200
    assert painter.asked[3] == HOLE.sum()
    client.post("/api/fill", files=FILES, data={"dilate": "2"})
    assert painter.asked[3] > HOLE.sum()


def test_without_a_hole_a_program_gets_its_photo_and_a_person_a_sentence(client: TestClient) -> None:
    empty = mask_file(0 * HOLE)
    unchanged = client.post("/api/fill", files={**FILES, "mask": empty})
    np.testing.assert_array_equal(read_photo(io.BytesIO(unchanged.content), "it").pixels, deep_photo().pixels)
    hint = "the photo is unchanged: the mask has no white pixels; pass invert=true if black is the hole"
    assert unchanged.headers["x-hint"] == hint
    assert "x-hint" not in client.post("/api/fill", files=FILES).headers
    response = client.post(f"/api/photos/{upload(client)['photo']}/fill", files={"mask": empty})
    assert sentence(response, 400) == "nothing to fill: the mask has no white pixels; pass invert=true if black is the hole"


def test_a_hole_that_is_most_of_the_photo_is_hinted_at(client: TestClient) -> None:
    mostly = {**FILES, "mask": ("mask.png", mask_file(1 - HOLE))}  # 225 of 1,200 pixels are known
    assert client.post("/api/fill", files=mostly).headers["x-hint"] == "the hole is 81% of the photo; pass invert=true if black is the hole"
    response = client.post("/api/fill", files={**FILES, "mask": mask_file()}, data={"invert": "true"})
    assert response.headers["x-hint"] == "the hole is 81% of the photo; leave out invert=true if white is the hole"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"samples": "9"}, "samples '9' must be a whole number from 1 to 8"),
        ({"samples": "two"}, "samples 'two' must be"),
        ({"seed": "-1"}, "seed '-1' must be a whole number from 0 to 4294967295"),
        ({"seed": "9" * 5000}, "seed '99999999999999999999' must be"),
        ({"strategy": "../x"}, "strategy '../x' must be one of auto, original, resize, crop"),
        ({"dilate": "501"}, "dilate '501' must be a whole number from 0 to 500"),
        ({"invert": "1"}, "invert '1' must be true or false"),
    ],
)
def test_wrong_fields_are_one_sentence(client: TestClient, fields: dict[str, str], message: str) -> None:
    assert sentence(client.post("/api/fill", files=FILES, data=fields), 400).startswith(message)


def test_a_deterministic_model_makes_one_completion(painter: Painter) -> None:
    with served(painter, probabilistic=False) as client:
        assert client.get("/api/model").json()["samples"] == 1
        response = client.post("/api/fill", files=FILES, data={"samples": "2"})
        assert sentence(response, 400) == "samples '2' must be 1, as this model is deterministic"


@pytest.mark.parametrize(
    ("path", "fields", "message"),
    [
        (
            "fill",
            {"dilation": "5"},
            "there is no field 'dilation'; this request takes photo, mask, invert, dilate, strategy, samples, seed",
        ),
        ("fill", {"prompt": "hello"}, "there is no field 'prompt'; this request takes"),
        ("fill", {"seed": ["1", "2"]}, "the field 'seed' came twice; send it once"),
        ("photos", {}, "there is no field 'mask'; this request takes photo"),
    ],
)
def test_fields_that_a_request_does_not_take_are_named(client: TestClient, path: str, fields: dict[str, Any], message: str) -> None:
    assert sentence(client.post(f"/api/{path}", files=FILES, data=fields), 400).startswith(message)


@pytest.mark.parametrize("what", ["fill", "prior", "mask"])
def test_steps_name_a_field_that_they_do_not_take(client: TestClient, what: str) -> None:
    response = client.post(f"/api/photos/{upload(client)['photo']}/{what}", files={"mask": mask_file()}, data={"colour": "red"})
    assert sentence(response, 400).startswith("there is no field 'colour'; this request takes mask, invert, dilate")


def test_a_large_photo_is_not_shown_as_it_is_because_its_size_would_be_compiled(client: TestClient, painter: Painter) -> None:
    large = png(np.zeros((4, 513), np.uint8))
    files = {"photo": ("large.png", large), "mask": ("mask.png", png(np.full((4, 513), 255, np.uint8)))}
    message = "strategy original is for photos of up to 512 pixels a side, and this one has 513 x 4; take auto, crop or resize"
    assert sentence(client.post("/api/fill", files=files, data={"strategy": "original"}), 400) == message
    response = client.post(
        f"/api/photos/{upload(client, large)['photo']}/fill", files={"mask": files["mask"]}, data={"strategy": "original"}
    )
    assert sentence(response, 400) == message and not painter.started.is_set()
    assert client.get("/api/model").json()["original"] == 512


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"photo": ("notes.txt", b"no image")}, "notes.txt cannot be read as an image"),
        ({"photo": ("empty.png", b"")}, "empty.png cannot be read as an image"),
        ({"photo": ("half.png", PHOTO[: len(PHOTO) // 2])}, "half.png cannot be decoded"),
        ({"mask": ("notes.txt", b"no image")}, "notes.txt cannot be read as an image"),
        ({"mask": ("m.png", mask_file(HOLE[:, :-1]))}, "m.png is 39 x 30 pixels, the photo, upright, is 40 x 30"),
    ],
)
def test_files_that_do_not_serve_are_one_sentence(client: TestClient, files: dict[str, Any], message: str) -> None:
    assert sentence(client.post("/api/fill", files=FILES | files), 400).startswith(message)


def test_a_form_without_its_file_is_one_sentence(client: TestClient) -> None:
    assert sentence(client.post("/api/fill", files={"photo": PHOTO}), 400).startswith("the form has no file mask")
    assert sentence(client.post("/api/photos", content=b"x"), 400).startswith("the form has no file photo")
    assert sentence(client.post("/api/photos", content=b"x", headers={"content-type": "multipart/form-data; boundary=b"}), 400)


# --- step by step ---


def test_a_photo_is_sent_once_and_filled_as_often_as_wanted(client: TestClient) -> None:
    photo = upload(client)
    assert (photo["name"], photo["width"], photo["height"]) == ("photo.png", WIDTH, HEIGHT)
    view = client.get(f"/api/photos/{photo['photo']}/view")
    with Image.open(io.BytesIO(view.content)) as image:
        np.testing.assert_array_equal(np.asarray(image), deep_photo().rgb())
        assert image.info["icc_profile"] == PROFILE
    for _ in range(2):
        job = finished(client, start(client, photo["photo"], samples=2))
        assert (job["state"], job["error"], len(job["results"])) == ("done", "", 2)
    check_known(client.get(job["results"][1]["file"]).content, deep_photo(), 20)
    assert client.get(job["results"][1]["view"]).headers["content-type"] == "image/png"


def test_the_prior_is_three_maps(client: TestClient) -> None:
    job = finished(client, start(client, upload(client)["photo"], "prior"))
    for level, result in enumerate(job["results"], 1):
        with Image.open(io.BytesIO(client.get(result["file"]).content)) as image:
            assert image.size == (32 // 2**level, 32 // 2**level)
    assert level == 3


def test_a_mask_is_shown_as_it_would_be_filled(client: TestClient) -> None:
    photo = upload(client)["photo"]
    response = client.post(f"/api/photos/{photo}/mask", files={"mask": mask_file(1 - HOLE)}, data={"invert": "true"})
    with Image.open(io.BytesIO(response.content)) as image:
        np.testing.assert_array_equal(np.asarray(image), 255 * HOLE.repeat(2, 2))
    response = client.post(f"/api/photos/{photo}/mask", files={"mask": mask_file(HOLE[1:])})
    assert "make a mask of the photo's size" in sentence(response, 400)


def test_a_view_of_a_large_photo_is_smaller(client: TestClient) -> None:
    photo = upload(client, png(np.zeros((2, 4096), np.uint8)))
    with Image.open(io.BytesIO(client.get(f"/api/photos/{photo['photo']}/view").content)) as image:
        assert image.size == (2048, 1)


def test_a_job_says_how_many_come_before_it_and_can_be_given_up(client: TestClient, painter: Painter) -> None:
    painter.go.clear()
    photo = upload(client)["photo"]
    first, second, third = (start(client, photo) for _ in range(3))
    assert (third["state"], third["before"]) == ("waiting", 2)
    assert client.delete(f"/api/jobs/{second['job']}").status_code == 204
    assert client.get(f"/api/jobs/{third['job']}").json()["before"] == 1
    painter.go.set()
    assert finished(client, third)["state"] == "done"
    assert [client.get(f"/api/jobs/{job['job']}").json()["state"] for job in (first, second)] == ["done", "cancelled"]


def test_a_full_line_is_told(painter: Painter) -> None:
    painter.go.clear()
    with served(painter, waiting=1) as client:
        photo = upload(client)["photo"]
        start(client, photo)
        assert painter.started.wait(PATIENCE)
        start(client, photo)
        response = client.post(f"/api/photos/{photo}/fill", files={"mask": mask_file()})
        assert sentence(response, 503) == "the queue is full (1 waiting); try again in a minute"
        assert response.headers["retry-after"] == "60"
        assert sentence(client.post("/api/fill", files=FILES), 503)


def test_what_fails_in_the_network_is_the_jobs_sentence(client: TestClient, painter: Painter, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*inputs: Any, **options: Any) -> Iterator[Photo]:
        raise InputError("a photo of 40 x 30 pixels did not fit into the memory; make it smaller")

    monkeypatch.setattr(painter, "fill", fail)
    job = finished(client, start(client, upload(client)["photo"]))
    assert job["state"] == "failed" and job["error"].startswith("a photo of 40 x 30 pixels did not fit")
    assert sentence(client.post("/api/fill", files=FILES), 400) == job["error"]
    monkeypatch.setattr(painter, "fill", lambda *inputs, **options: 1 / 0)
    assert sentence(client.post("/api/fill", files=FILES), 500) == "internal error; the server's log says more"


def test_what_is_not_kept_any_more_is_told(client: TestClient) -> None:
    photo = upload(client)["photo"]
    store = client.app.state.server.store  # type: ignore[attr-defined]
    job = finished(client, start(client, photo))
    for number in ("2", "0", "-1", "1.0", "one", "9" * 5000, "\u0661"):  # the last is a digit, too
        assert sentence(client.get(f"/api/jobs/{job['job']}/{number}"), 404).startswith(f"there is no result {number[:20]}, only 1 so far")
    store.clock = lambda: time.monotonic() + 60 * 31
    assert sentence(client.get(f"/api/photos/{photo}/view"), 404).startswith(
        "this photo is no longer on the server (expired, or removed to free memory); load the photo again"
    )
    assert sentence(client.get(job["results"][0]["file"]), 404).startswith("this result is no longer on the server")


def test_a_photo_can_be_forgotten(client: TestClient) -> None:
    photo = upload(client)["photo"]
    assert client.delete(f"/api/photos/{photo}").status_code == 204
    assert sentence(client.get(f"/api/photos/{photo}/view"), 404)
    assert sentence(client.delete(f"/api/photos/{photo}"), 404)


# --- limits ---


def test_too_many_bytes_are_refused_declared_or_not(painter: Painter) -> None:
    with served(painter, megabytes=1) as client:
        body = b"--b\r\nContent-Disposition: form-data; name=photo; filename=p\r\n\r\n" + bytes(2**20) + b"\r\n--b--\r\n"
        headers = {"content-type": "multipart/form-data; boundary=b"}
        for content in (body, iter([body[: 2**19], body[2**19 :]])):
            assert sentence(client.post("/api/photos", content=content, headers=headers), 413).startswith("a request may have 1 MB at most")
        upload(client)


def test_too_many_pixels_are_refused_before_they_are_decoded(painter: Painter, monkeypatch: pytest.MonkeyPatch) -> None:
    large = png(np.zeros((1001, 1000), np.uint8))
    monkeypatch.setattr("spn_jax.demo.pictures.read_photo", lambda *inputs: pytest.fail("it was decoded"))
    with served(painter, megapixels=1) as client:
        for data in (large, bomb()):
            response = client.post("/api/photos", files={"photo": ("large.png", data)})
            assert sentence(response, 400).startswith("large.png is larger than 1 megapixels, the limit")


def noise(seed: int) -> bytes:
    """A PNG of 1.4 MB."""
    return png(np.random.default_rng(seed).integers(0, 256, (700, 700, 3), np.uint8))


def test_uploads_are_written_to_no_disk(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", lambda self: pytest.fail("a photo was written to a disk"))
    upload(client, noise(0))
    mask = io.BytesIO()
    Image.new("RGB", (700, 700), "white").save(mask, "BMP")  # 1.5 MB
    assert client.post("/api/fill", files={"photo": noise(0), "mask": mask.getvalue()}).status_code == 200


def test_what_is_kept_has_a_size_and_a_number(painter: Painter) -> None:
    with served(painter, keep_megabytes=4) as client:  # a file of 1.4 MB and a view of that size
        first, second = upload(client, noise(0))["photo"], upload(client, noise(1))["photo"]
        assert sentence(client.get(f"/api/photos/{first}/view"), 404)
        assert client.get(f"/api/photos/{second}/view").status_code == 200
    with served(painter, keep_items=2) as client:
        keys = [upload(client)["photo"] for _ in range(3)]
        assert [client.get(f"/api/photos/{key}/view").status_code for key in keys] == [404, 200, 200]


def test_a_mask_that_waits_counts_and_goes_when_its_job_is_given_up(client: TestClient, painter: Painter) -> None:
    painter.go.clear()
    photo, store = upload(client)["photo"], client.app.state.server.store  # type: ignore[attr-defined]
    before = [item.size for item, _ in store._kept.values()]
    start(client, photo)
    job = start(client, photo)
    assert sum(item.size for item, _ in store._kept.values()) == sum(before) + 2 * HOLE.nbytes
    client.delete(f"/api/jobs/{job['job']}")
    assert sum(item.size for item, _ in store._kept.values()) == sum(before) + HOLE.nbytes


def test_a_running_job_tells_its_passes_and_is_given_up_between_them(client: TestClient, painter: Painter) -> None:
    painter.passes = 1000
    painter.go.clear()
    job = start(client, upload(client)["photo"])
    assert painter.started.wait(PATIENCE)
    told = client.get(f"/api/jobs/{job['job']}").json()
    assert (told["state"], told["done"], told["total"]) == ("running", 0, 1000)
    client.delete(f"/api/jobs/{job['job']}")
    painter.go.set()
    told = finished(client, told)
    assert told["state"] == "cancelled" and told["done"] < 1000


def test_a_hole_of_too_many_passes_is_refused(painter: Painter) -> None:
    painter.passes = 11
    with served(painter, windows=10) as client:
        assert "this hole takes 11 passes of the network" in sentence(client.post("/api/fill", files=FILES), 400)


def test_a_request_has_the_minutes_that_the_command_gives_it(painter: Painter) -> None:
    with served(painter, minutes=3) as client:
        key = start(client, upload(client)["photo"])["job"]
        assert client.app.state.server.store.get(key, Job).most_seconds == 180  # type: ignore[attr-defined]


# --- uploads that do not come to an end ---


class Client:
    """Sends a request to an application piece by piece, as a connection would, and keeps what it
    answers.
    """

    def __init__(self, app: Any, path: str, headers: dict[str, str] | None = None):
        sent = {"host": "127.0.0.1:7860", "content-type": "multipart/form-data; boundary=b"} | (headers or {})
        self.app, self.arriving = app, asyncio.Queue[Any]()
        self.answers: list[Any] = []
        self.scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "root_path": "",
            "query_string": b"",
            "headers": [(key.encode(), value.encode()) for key, value in sent.items()],
        }
        self.send(b'--b\r\nContent-Disposition: form-data; name="photo"; filename="p.png"\r\n\r\n')

    def send(self, body: bytes, more: bool = True) -> None:
        self.arriving.put_nowait({"type": "http.request", "body": body, "more_body": more})

    def leave(self) -> None:
        self.arriving.put_nowait({"type": "http.disconnect"})

    async def run(self) -> None:
        async def keep(message: Any) -> None:
            self.answers.append(message)

        await self.app(self.scope, self.arriving.get, keep)

    @property
    def refusal(self) -> tuple[int, str]:
        return self.answers[0]["status"], json.loads(self.answers[1]["body"])["error"]


def conversation(painter: Painter, talk: Callable[[Any], Coroutine[Any, Any, None]], **limits: int) -> None:
    """Runs a coroutine function of the application."""
    app = create_app(painter, Settings("a fake", True, limits=Limits(**limits)))

    async def with_lifespan() -> None:
        async with app.router.lifespan_context(app):
            await asyncio.wait_for(talk(app), PATIENCE)

    asyncio.run(with_lifespan())


def whole_form(app: Any) -> Client:
    """A client that has sent a photo and its mask to be filled at once."""
    client = Client(app, "/api/fill")
    client.arriving = asyncio.Queue()
    body = b"".join(
        b'--b\r\nContent-Disposition: form-data; name="%s"; filename="%s"\r\n\r\n%s\r\n' % (name.encode(), name.encode(), data)
        for name, (_, data) in FILES.items()
    )
    client.send(body + b"--b--\r\n", more=False)
    return client


def test_a_client_that_leaves_ends_its_own_work(painter: Painter) -> None:
    painter.passes = 900
    painter.go.clear()

    async def talk(app: Any) -> None:
        client = whole_form(app)
        running = asyncio.create_task(client.run())
        assert await asyncio.to_thread(painter.started.wait, PATIENCE)
        client.leave()
        await running  # though the network has not been let go on
        painter.go.set()
        assert not app.state.server.store._kept
        until = time.monotonic() + PATIENCE
        while app.state.server.worker._line and time.monotonic() < until:
            await asyncio.sleep(0.005)
        assert painter.made <= 1  # and the network goes no further

    conversation(painter, talk)


def test_who_waits_for_a_server_that_stops_is_told(painter: Painter) -> None:
    painter.passes = 900
    painter.go.clear()

    async def talk(app: Any) -> None:
        client, worker = whole_form(app), app.state.server.worker
        running = asyncio.create_task(client.run())
        assert await asyncio.to_thread(painter.started.wait, PATIENCE)
        (job,) = worker._line
        stopping = asyncio.create_task(asyncio.to_thread(worker.stop))
        assert await asyncio.to_thread(job.given_up.wait, PATIENCE)
        painter.go.set()
        await stopping
        await running
        assert client.refusal == (503, "cancelled: the server is shutting down, or the request was withdrawn")

    conversation(painter, talk)


def test_an_upload_that_is_broken_off_says_nothing(painter: Painter, capfd: pytest.CaptureFixture[str]) -> None:
    async def talk(app: Any) -> None:
        client = Client(app, "/api/photos")
        client.leave()
        await client.run()
        assert client.refusal == (400, "the upload was broken off")
        assert (app.state.server.intake.open, app.state.server.intake.held) == (0, 0)

    conversation(painter, talk)
    assert capfd.readouterr() == ("", "")


def test_an_upload_that_stops_is_ended(painter: Painter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "UPLOAD_SECONDS", 0.2)

    async def talk(app: Any) -> None:
        client = Client(app, "/api/photos")
        client.send(bytes(1000))
        await client.run()
        assert client.refusal[0] == 408 and client.refusal[1].startswith("the upload arrives too slowly")
        assert (b"connection", b"close") in client.answers[0]["headers"]
        assert (app.state.server.intake.open, app.state.server.intake.held) == (0, 0)

    conversation(painter, talk)


def test_uploads_at_a_time_have_a_number(painter: Painter) -> None:
    async def talk(app: Any) -> None:
        clients = [Client(app, "/api/photos") for _ in range(3)]
        running = [asyncio.create_task(client.run()) for client in clients]
        await running[2]
        assert clients[2].refusal == (503, "2 uploads are being received, and no more may be; try again in a few seconds")
        assert (b"retry-after", b"10") in clients[2].answers[0]["headers"]
        clients[0].leave()
        await running[0]
        fourth = Client(app, "/api/photos")
        fourth.send(b"no image\r\n--b--\r\n", more=False)
        await fourth.run()
        assert fourth.refusal[0] == 400  # it was looked at
        clients[1].leave()
        await running[1]

    conversation(painter, talk, uploads=2)


def test_uploads_at_a_time_have_a_size(painter: Painter) -> None:
    async def talk(app: Any) -> None:
        clients = [Client(app, "/api/photos") for _ in range(3)]
        running = []
        for client in clients:
            client.send(bytes(400_000))
            running.append(asyncio.create_task(client.run()))
            await asyncio.sleep(0.05)
        await running[2]
        assert clients[2].refusal == (503, "too many large uploads are being received; try again in a few seconds")
        assert 800_000 < app.state.server.intake.held < 2**20
        for client, task in zip(clients[:2], running[:2], strict=True):
            client.leave()
            await task
        assert app.state.server.intake.held == 0

    conversation(painter, talk, upload_megabytes=1)


@pytest.fixture
def address(painter: Painter, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, int]]:
    """Of a server that listens, with room for three connections and little patience."""
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.3)
    app = create_app(painter, Settings("a fake", True))
    with command.listen("127.0.0.1", 0) as open_socket:
        server = connections.server(app, 3)
        thread = threading.Thread(target=lambda: server.run(sockets=[open_socket]))
        thread.start()
        yield open_socket.getsockname()
        server.should_exit = True
        thread.join(PATIENCE)
        assert not thread.is_alive()


def answered(connection: socket.socket) -> bytes:
    """Everything until the server closes the connection."""
    connection.settimeout(PATIENCE)
    return b"".join(iter(lambda: connection.recv(2**16), b""))


def test_a_connection_whose_request_does_not_come_is_closed(address: tuple[str, int]) -> None:
    for whole, beginning in ((b"", b""), (b"", b"GET /api/model HTT"), (b"GET /api/model HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", b"GET /")):
        with socket.create_connection(address) as connection:
            connection.sendall(whole)
            if whole:
                assert connection.recv(2**16).startswith(b"HTTP/1.1 200 OK")
            connection.sendall(beginning)
            began = time.monotonic()
            answered(connection)
            # five seconds is uvicorn's own patience, after a request
            assert time.monotonic() - began < 4


def test_what_is_no_http_is_refused_in_plain_text(address: tuple[str, int]) -> None:
    with socket.create_connection(address) as connection:
        connection.sendall(b"what is this?\r\n\r\n")
        head, _, body = answered(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ") and b"content-type: text/plain" in head.lower() and body


def test_open_connections_have_a_number(address: tuple[str, int]) -> None:
    with contextlib.ExitStack() as stack:
        waiting = [stack.enter_context(socket.create_connection(address)) for _ in range(3)]
        for connection in waiting:
            connection.sendall(b"GET /")
        with socket.create_connection(address) as one_more:
            one_more.sendall(b"GET /api/model HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
            head, _, body = answered(one_more).partition(b"\r\n\r\n")
            # as /docs says, and not JSON
            assert head.startswith(b"HTTP/1.1 503 ") and b"content-type: text/plain" in head.lower()
            assert body == b"Service Unavailable"
    with socket.create_connection(address) as later:
        later.sendall(b"GET /api/model HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        assert answered(later).startswith(b"HTTP/1.1 200 OK")


@pytest.mark.parametrize("method", ["GET", "CONNECT", "DELETE", "HEAD", "POST", "PUT"])
def test_only_a_link_that_somebody_follows_may_come_from_another_site(method: str) -> None:
    headers = Headers({"host": "127.0.0.1", "sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"})
    refusal = Guard(lambda *_: None, "127.0.0.1", (), 1).foreign(method, headers)
    assert refusal == ("" if method == "GET" else "cross-site requests are refused")


def test_a_limit_is_named_to_the_digit() -> None:
    for number, named in ((2**20, "1 MB"), (3 * 2**19, "1.5 MB"), (2**20 // 4, "0.25 MB")):
        assert Guard(lambda *_: None, "127.0.0.1", (), number).too_large == f"a request may have {named} at most; make the photo smaller"


# --- below a prefix ---


@pytest.mark.parametrize("prefix", ["/spn", ""])
def test_behind_a_proxy_paths_have_its_prefix_whether_it_takes_that_away_or_not(painter: Painter, prefix: str) -> None:
    app = create_app(painter, Settings("a fake", True, root_path="/spn"))
    with TestClient(app, base_url=ADDRESS) as client:
        page = client.get(f"{prefix}/")
        assert page.status_code == 200 and client.get(f"{prefix}/static/page.js").status_code == 200
        assert client.get("/spn", follow_redirects=False).headers["location"] == "/spn/"
        photo = client.post(f"{prefix}/api/photos", files={"photo": PHOTO}).json()["photo"]
        job = client.post(f"{prefix}/api/photos/{photo}/fill", files={"mask": mask_file()}).json()
        while job["state"] in ("waiting", "running"):
            job = client.get(f"{prefix}/api/jobs/{job['job']}").json()
        assert job["results"][0]["file"] == f"/spn/api/jobs/{job['job']}/1"
        assert client.get(job["results"][0]["file"]).status_code == 200


@pytest.mark.parametrize(("given", "kept"), [("", ""), ("/spn", "/spn"), ("/a/b/", "/a/b"), ("/", "")])
def test_a_prefix_has_no_slash_at_its_end(given: str, kept: str) -> None:
    assert command.root_path(given) == kept


def test_a_prefix_begins_with_a_slash() -> None:
    with pytest.raises(InputError, match="--root-path spn must begin with a slash, as in /spn"):
        command.root_path("spn")


def bomb() -> bytes:
    """A few bytes that claim to be a picture of ten thousand million pixels."""
    data = bytearray(png(np.zeros((1, 1), np.uint8)))
    data[16:24] = (100_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Limits)])
def test_limits_are_at_least_one(field: str) -> None:
    with pytest.raises(InputError, match=f"--{field.replace('_', '-')} 0 must be at least 1"):
        Limits(**{field: 0})


# --- requests of others ---


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:7860", "", "[::1", "10.0.0.1:7860", "photos.example.evil:80"])
def test_foreign_hosts_are_refused(client: TestClient, host: str) -> None:
    assert sentence(client.get("/", headers={"host": host}), 403).startswith("unknown Host header; start the server with --allow-host NAME")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:7860", "127.0.0.1:9", "[::1]:7860", "photos.example"])
def test_its_own_names_are_answered(client: TestClient, host: str) -> None:
    assert client.get("/", headers={"host": host, "origin": f"http://{host}"}).status_code == 200


def test_a_server_for_all_addresses_answers_to_addresses_and_no_foreign_name(painter: Painter) -> None:
    with served(painter, host="0.0.0.0") as client:
        assert client.get("/", headers={"host": "10.0.0.1:7860"}).status_code == 200
        assert sentence(client.get("/", headers={"host": "evil.example"}), 403)


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:8000"},
        {"origin": "http://["},
        {"origin": "http://[::1"},
        {"origin": ""},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site", "sec-fetch-mode": "navigate"},
    ],
)
def test_requests_that_foreign_pages_send_are_refused(client: TestClient, painter: Painter, headers: dict[str, str]) -> None:
    assert "refused" in sentence(client.post("/api/fill", files=FILES, headers=headers), 403)
    assert not painter.started.is_set()


def test_a_proxy_may_ask_under_another_name_than_its_page_has(client: TestClient) -> None:
    """As nginx does unless it is told otherwise; the name has to be allowed."""
    upload_of = {"files": {"photo": PHOTO}}
    for origin, status in (("https://photos.example", 201), ("https://PHOTOS.example:8443", 201), ("https://photos.example.evil", 403)):
        assert client.post("/api/photos", **upload_of, headers={"origin": origin}).status_code == status
    other_port = {"origin": "https://photos.example:8443", "sec-fetch-site": "same-site"}
    assert "refused" in sentence(client.post("/api/photos", **upload_of, headers=other_port), 403)


def test_a_link_from_elsewhere_may_lead_to_the_page(client: TestClient) -> None:
    headers = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    assert client.get("/", headers=headers).status_code == 200
    assert sentence(client.get("/api/model", headers={"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}), 403)


# --- names ---


@pytest.mark.parametrize(
    ("name", "cleaned"),
    [
        ("../../etc/passwd.png", "passwd.png"),
        ("C:\\Users\\me\\cat.jpg", "cat.jpg"),
        ("..", "photo"),
        ("/", "photo"),
        (None, "photo"),
        ('a"b\r\nSet-Cookie: x.png', "abSet-Cookie x.png"),
        ("\x00<script>.png", "script.png"),
        ("Köln 1.tif", "Köln 1.tif"),
        ("x" * 300 + ".jpeg", "x" * 75 + ".jpeg"),
    ],
)
def test_names_of_files_lose_what_could_do_harm(name: str | None, cleaned: str) -> None:
    assert clean_name(name) == cleaned


def test_a_name_with_a_path_writes_nothing_and_is_given_back_without_it(
    client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    response = client.post("/api/fill", files={**FILES, "photo": ("../../outside/Köln.png", PHOTO)})
    disposition = response.headers["content-disposition"]
    assert disposition == "attachment; filename=\"K_ln_filled.png\"; filename*=UTF-8''K%C3%B6ln_filled.png"
    assert not list(tmp_path.parent.rglob("*Köln*"))


@pytest.mark.parametrize(
    "path", ["/static/../app.py", "/static/%2e%2e/app.py", "/static/..%2fapp.py", "/api/photos/..%2f..%2fetc/view", "/x"]
)
def test_paths_lead_nowhere_else(client: TestClient, path: str) -> None:
    assert sentence(client.get(path), 404).endswith("/docs lists what there is")


# --- pages ---


def test_the_documentation_lists_every_request_that_there_is(client: TestClient) -> None:
    text = client.get("/docs").text
    listed = set(re.findall(r"<tr><td><code>((?:GET|POST|DELETE) [^<]+)</code>", text))
    routes = [route for route in client.app.routes if isinstance(route, Route)]  # type: ignore[attr-defined]
    there = {f"{method} {route.path}" for route in routes for method in (route.methods or set()) - {"HEAD"}}
    assert listed == there


def test_every_curl_that_is_documented_fails_where_the_server_refuses() -> None:
    """Otherwise the sentence is saved under the name of the filled photo."""
    root = STATIC.parents[2]
    texts = [file.read_text() for file in (*root.glob("*.md"), *root.glob("docs/*.md"), STATIC / "docs.html")]
    calls = [call for text in texts for call in re.findall(r"^.*curl .*api/fill.*$|^.*curl .*\\\n.*api/fill.*$", text, re.MULTILINE)]
    assert calls and all("--fail-with-body" in call for call in calls), calls


def test_pages_load_nothing_from_elsewhere_and_all_that_they_name(client: TestClient) -> None:
    for path in STATIC.iterdir():
        names = re.findall(r"""(?:src|href|from)\s*=?\s*"([^"#\s]+)\"""", path.read_text())
        root = f"{ADDRESS}/static/" if path.suffix == ".js" else f"{ADDRESS}/"
        assert all(client.get(urljoin(root, name)).status_code == 200 for name in names), path
        assert not re.search(r"""["'`]/[a-z]""", path.read_text()), f"{path} does not work below a prefix"
        assert not re.search(r"""(?:src|href|from|url)\s*[=(]?\s*["']?(?:https?:)?//""", path.read_text()), path
    policy = client.get("/").headers["content-security-policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy


@pytest.mark.parametrize("path", ["/", "/docs", "/static/page.js", "/api/model", "/nothing"])
@pytest.mark.parametrize(
    ("header", "value"),
    [("cross-origin-resource-policy", "same-origin"), ("referrer-policy", "no-referrer"), ("x-content-type-options", "nosniff")],
)
def test_every_answer_carries_the_rules_for_browsers(client: TestClient, path: str, header: str, value: str) -> None:
    assert client.get(path).headers[header] == value
    assert client.get(path, headers={"host": "evil.example"}).headers[header] == value


def test_a_method_that_a_path_does_not_take_is_one_sentence(client: TestClient) -> None:
    assert sentence(client.get("/api/fill"), 405) == "/api/fill does not take GET; /docs lists what there is"


# --- the command ---


def test_a_port_that_is_taken_is_one_sentence() -> None:
    with command.listen("127.0.0.1", 0) as open_socket, pytest.raises(InputError, match=r"cannot listen on 127.0.0.1:\d+ \(.*\); stop"):
        command.listen("127.0.0.1", open_socket.getsockname()[1])
    with pytest.raises(InputError, match="--port 70000 must lie between 0 and 65535"):
        command.listen("127.0.0.1", 70000)


@pytest.mark.parametrize(("host", "shown"), [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("localhost", "localhost")])
def test_the_address_that_is_told_can_be_opened(host: str, shown: str) -> None:
    with command.listen(host, 0) as open_socket:
        assert command.address(host, open_socket) == f"http://{shown}:{open_socket.getsockname()[1]}/"


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Limits)])
def test_every_limit_is_an_option(field: str) -> None:
    options = command.parse(["--checkpoint", "a", f"--{field.replace('_', '-')}", "7"])
    assert command.limits_of(options) == dataclasses.replace(Limits(), **{field: 7})


def test_without_the_extra_the_command_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "spn_jax.demo.app")
    monkeypatch.setitem(sys.modules, "starlette.applications", None)
    with pytest.raises(InputError, match=r"the page needs starlette.applications, .*pip install -e '\.\[web\]'"):
        command.create(command.parse(["--checkpoint", "nowhere"]), Limits())
