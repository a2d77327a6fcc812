"""The endpoints, in process: answers, limits, and what is refused."""

from __future__ import annotations

import asyncio
import io
import json
import struct
import sys
import tempfile
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from colour_model import COLOURS, ColourModel, noise, picture
from fastapi import FastAPI
from PIL import Image
from starlette.testclient import TestClient

import lorica
from lorica.errors import DataError, LoricaError
from lorica.predictor import Answer
from lorica.results import Result
from lorica.serving.app import AT_ONCE, create_app
from lorica.serving.model import Model


def sent(*contents: bytes, name: str = "{}.png") -> list[tuple[str, tuple[str, bytes]]]:
    return [("images", (name.format(number), content)) for number, content in enumerate(contents)]


# ---- answers


def test_each_image_has_its_class_in_the_order_sent(client: TestClient) -> None:
    said = client.post("/predict", files=sent(*map(picture, COLOURS.values())))
    assert said.status_code == 200
    images = said.json()["images"]
    assert [image["class"] for image in images] == list(COLOURS)
    assert [image["name"] for image in images] == ["0.png", "1.png", "2.png"]
    assert all(0.9 < image["probability"] <= 1 and image["unknown"] is False for image in images)
    assert set(images[0]) == {"name", "class", "probability", "unknown"}


def test_an_image_of_none_of_the_classes_is_unknown(client: TestClient) -> None:
    image = client.post("/predict", files=sent(picture((120, 120, 120)))).json()["images"][0]
    assert image["unknown"] is True
    assert image["class"] in COLOURS
    assert 1 / 3 <= image["probability"] < 0.5


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "JPEG2000"])
def test_formats(client: TestClient, form: str) -> None:
    image = client.post("/predict", files=sent(picture(form=form))).json()["images"][0]
    assert image["class"] == "red"


def test_any_field_may_hold_images_and_other_fields_are_passed_over(client: TestClient) -> None:
    said = client.post("/predict", data={"comment": "hello"}, files={"anything": ("a.png", picture())})
    assert [image["class"] for image in said.json()["images"]] == ["red"]


def test_an_unreadable_image_has_an_error_of_its_own(client: TestClient, model: ColourModel) -> None:
    png = picture()
    said = client.post("/predict", files=sent(b"hello", png, png[: len(png) // 2], b"", png))
    assert said.status_code == 200
    images = said.json()["images"]
    assert [image.get("class") for image in images] == [None, "red", None, None, "red"]
    assert images[0] == {"name": "0.png", "error": "not an image"}
    assert images[3] == {"name": "3.png", "error": "zero bytes"}
    assert "error" in images[2]
    assert model.calls == [5, 1, 1, 1, 1, 1]


def test_a_small_file_of_many_pixels_is_refused_without_decoding_it(client: TestClient) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    image = client.post("/predict", files=sent(bomb)).json()["images"][0]
    assert "60000 x 60000 pixels" in image["error"] or "megapixels" in image["error"]


def test_a_fault_of_the_model_is_told(client: TestClient, model: ColourModel) -> None:
    def fail() -> None:
        raise LoricaError("logits that are not numbers")

    model.before = fail
    said = client.post("/predict", files=sent(picture()))
    assert said.status_code == 500
    assert said.json() == {"detail": "logits that are not numbers"}


def test_what_the_model_is(client: TestClient) -> None:
    assert client.get("/classes").json() == {"classes": list(COLOURS)}
    versions = client.get("/history").json()["versions"]
    assert [version["kind"] for version in versions] == ["learned", "learned", "rolled back"]
    assert versions[0] == {
        "number": 1,
        "date": "2026-03-02T09:30:00+01:00",
        "kind": "learned",
        "classes": ["red", "green"],
        "images": 120,
        "accuracy": 0.975,
        "accuracy_now": 0.95,
    }
    assert versions[2]["accuracy"] is None
    health = client.get("/health").json()
    assert health["status"] == "ok"
    assert (health["title"], health["classes"]) == ("colours", 3)
    assert (health["max_bytes"], health["max_images"]) == (3_000_000, 5)


def test_the_description_of_the_interface_names_the_form(client: TestClient) -> None:
    described = client.get("/openapi.json").json()
    assert set(described["paths"]) == {"/predict", "/classes", "/history", "/health"}
    assert "multipart/form-data" in described["paths"]["/predict"]["post"]["requestBody"]["content"]
    assert client.get("/docs").status_code == 404  # its page would come from another host


# ---- limits


def test_too_many_images(client: TestClient, model: ColourModel) -> None:
    said = client.post("/predict", files=sent(*[picture()] * 6))
    assert said.status_code == 413
    assert said.json()["detail"].startswith("too many: a request may hold 5 images")
    assert model.calls == []
    assert client.post("/predict", files=sent(*[picture()] * 5)).status_code == 200


def test_too_large(client: TestClient, model: ColourModel) -> None:
    said = client.post("/predict", files=sent(noise(1600), noise(1600)))
    assert said.status_code == 413
    assert said.json()["detail"].startswith("too large: a request may hold 3 MB in all")
    assert model.calls == []


def streamed(client: TestClient, *, megabytes: int, headers: dict[str, str]) -> tuple[Any, int]:
    """A form of one file in pieces of 100 kB, and how many of them were taken."""
    taken = 0

    def body():
        nonlocal taken
        yield b'--x\r\nContent-Disposition: form-data; name="images"; filename="a.png"\r\n\r\n'
        for _ in range(10 * megabytes):
            taken += 1
            yield bytes(100_000)
        yield b"\r\n--x--\r\n"

    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    return client.post("/predict", content=body(), headers=kind | headers), taken


def test_a_body_without_a_length_is_measured_as_it_arrives(client: TestClient, model: ColourModel) -> None:
    said, _ = streamed(client, megabytes=5, headers={})
    assert said.status_code == 413
    assert "too large" in said.json()["detail"]
    assert model.calls == []
    said, _ = streamed(client, megabytes=2, headers={})
    assert said.json()["images"] == [{"name": "a.png", "error": "not an image"}]


def test_the_length_that_is_said_is_not_believed(client: TestClient) -> None:
    said, _ = streamed(client, megabytes=5, headers={"Content-Length": "10"})
    assert said.status_code == 413


@pytest.mark.parametrize(
    ("kind", "body", "status", "words"),
    [
        ("image/png", picture(), 415, "expected a form with files, got image/png"),
        ("multipart/form-data", b"", 400, "no boundary"),
        ("multipart/form-data; boundary=x", b"nonsense", 400, "damaged"),
        ("multipart/form-data; boundary=x", b"", 400, "cut off"),
        ("multipart/form-data; boundary=" + "x" * 500, b"", 400, "damaged"),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\nContent-Disposition: form-data; name="images"; filename="a.png"\r\n\r\nabc',
            400,
            "cut off",
        ),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\nContent-Disposition: form-data; name="images"; filename=""\r\n\r\n\r\n--x--\r\n',
            400,
            "no images in the form",
        ),
        ("multipart/form-data; boundary=x", b"--x\r\nX: " + b"y" * 100_000 + b"\r\n\r\n\r\n--x--\r\n", 400, "damaged"),
    ],
)
def test_what_is_no_form_of_images(client: TestClient, kind: str, body: bytes, status: int, words: str) -> None:
    said = client.post("/predict", content=body, headers={"Content-Type": kind})
    assert said.status_code == status
    assert words in said.json()["detail"]


def test_a_client_that_goes_away_is_no_fault(app: FastAPI, model: ColourModel) -> None:
    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        pass

    headers = [(b"host", b"localhost"), (b"content-type", b"multipart/form-data; boundary=x")]
    scope = {"type": "http", "method": "POST", "path": "/predict", "headers": headers, "query_string": b""}
    asyncio.run(app(scope, receive, send))
    assert model.calls == []


# ---- names


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("<img src=x onerror=alert(1)>.png", "<img src=x onerror=alert(1)>.png"),
        ("Käfer 𝛼.png", "Käfer 𝛼.png"),
        ("abc\u202egnp.exe", "abc\\u202egnp.exe"),
        ("a\x1b[31m.png", "a\\x1b[31m.png"),
        ("x" * 300 + ".png", "x" * 255),
    ],
)
def test_names_come_back_as_text_without_controls(client: TestClient, given: str, shown: str) -> None:
    form = b'--x\r\nContent-Disposition: form-data; name=images; filename="%b"\r\n\r\n%b\r\n--x--\r\n'
    said = client.post(
        "/predict",
        content=form % (given.encode(), picture()),
        headers={"Content-Type": "multipart/form-data; boundary=x"},
    )
    assert said.headers["content-type"] == "application/json"
    assert said.json()["images"][0]["name"] == shown


# ---- several at once, and nothing on the disk


def test_requests_run_in_threads_no_more_than_some_at_a_time(client: TestClient, model: ColourModel) -> None:
    inside, most, lock = 0, 0, threading.Lock()
    full = threading.Barrier(AT_ONCE)

    def before() -> None:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        full.wait(timeout=30)
        assert client.get("/health").status_code == 200  # the loop is free meanwhile
        with lock:
            inside -= 1

    model.before = before
    with ThreadPoolExecutor(3 * AT_ONCE) as pool:
        codes = list(pool.map(lambda _: client.post("/predict", files=sent(picture())).status_code, range(3 * AT_ONCE)))
    assert codes == [200] * (3 * AT_ONCE)
    assert most == AT_ONCE
    assert threading.get_ident() not in model.threads


opened_to_write: list[str] | None = None


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    if opened_to_write is not None and event == "open" and arguments[2] & 0b11:
        opened_to_write.append(str(arguments[0]))


def test_nothing_is_written(client: TestClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    sys.addaudithook(watch)  # for the rest of the process, as no hook can be taken away
    monkeypatch.setattr(sys.modules[__name__], "opened_to_write", [])
    with tempfile.NamedTemporaryFile():
        assert opened_to_write, "the watch does not see files"
        opened_to_write.clear()
    assert client.post("/predict", files=sent(noise(2500), picture(), b"hello")).status_code == 200
    assert client.post("/predict", files=sent(noise(2900), noise(2900))).status_code == 413
    assert opened_to_write == []
    assert list(tmp_path.iterdir()) == []


# ---- a real model


def test_a_run_of_lorica_reads_what_is_sent(finished_run: Result, six_classes) -> None:
    class Served:
        """What `lorica.load` gives, with the questions that serving asks."""

        def __init__(self, learner: lorica.Learner) -> None:
            self.learner, self.class_names = learner, learner.class_names

        def classify(self, images, *, batch_size=256):
            best = self.learner.logits(images, batch_size=batch_size).softmax(dim=1).max(dim=1)
            return [
                type("Answer", (), {"class_name": self.class_names[index], "probability": share, "unknown": False})()
                for index, share in zip(best.indices.tolist(), best.values.tolist(), strict=True)
            ]

        def history(self):
            return []

    assert finished_run.path is not None
    learner = lorica.load(finished_run.path)
    served = Served(learner)
    assert isinstance(served, Model)
    arrays = [six_classes.test.images[index] for index in (0, 7, 14)]
    files = []
    for array in arrays:
        file = io.BytesIO()
        Image.fromarray(array).save(file, "PNG")
        files.append(file.getvalue())
    with TestClient(
        create_app(served, title="six", max_bytes=10**6, max_images=8), base_url="http://localhost"
    ) as client:
        images = client.post("/predict", files=sent(*files, b"no image")).json()["images"]
        assert client.get("/history").json() == {"versions": []}
    assert [image.get("class") for image in images] == [*learner.predict(arrays), None]
    assert images[3]["error"] == "not an image"
    json.dumps(images, allow_nan=False)


# ---- texts


class WordModel:
    """It knows texts by their first letter, and none that begins with z."""

    class_names = ("a", "b")

    def classify(self, images: list[Any], *, batch_size: int = 256) -> list[Any]:
        if wrong := [each for each in images if not isinstance(each, str)]:
            raise DataError(f"expected a text, got {wrong[0]}")
        return [Answer(text[0], 0.75, text[0] == "z") for text in images]

    def history(self) -> list[Any]:
        return []


@pytest.fixture
def of_texts() -> TestClient:
    app = create_app(WordModel(), title="words", max_bytes=2000, max_images=3, reads="texts")
    return TestClient(app, base_url="http://localhost")


def test_each_text_has_its_class_or_an_error_of_its_own(of_texts: TestClient) -> None:
    said = of_texts.post("/predict", json={"texts": ["alpha", 3, "zeta"]})
    assert said.json() == {
        "texts": [
            {"class": "a", "probability": 0.75, "unknown": False},
            {"error": "expected a text, got 3"},
            {"class": "z", "probability": 0.75, "unknown": True},
        ]
    }
    assert of_texts.get("/health").json()["reads"] == "texts"


@pytest.mark.parametrize(
    ("sent", "status", "reason"),
    [
        ({"files": {"images": ("a.png", b"x")}}, 415, "expected JSON, got multipart/form-data"),
        ({"content": b"{", "headers": {"Content-Type": "application/json"}}, 400, "this is no JSON"),
        ({"json": ["alpha"]}, 400, "no texts in the request"),
        ({"json": {"texts": []}}, 400, "no texts in the request"),
        ({"json": {"texts": ["a"] * 4}}, 413, "a request may hold 3 texts"),
        ({"json": {"texts": ["a" * 2000]}}, 413, "a request may hold 0.002 MB"),
    ],
)
def test_what_is_no_request_of_texts(of_texts: TestClient, sent: dict[str, Any], status: int, reason: str) -> None:
    said = of_texts.post("/predict", **sent)
    assert said.status_code == status
    assert reason in said.json()["detail"]
