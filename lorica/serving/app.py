"""The endpoints of a served model.

GET /          a page for people
POST /predict  images of a form, or texts in JSON; the class of each, or why it has none
GET /classes   what the model knows
GET /history   what has become of it
GET /health    that it is there, and its limits
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from importlib.resources import files
from typing import Any, Literal

import anyio
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.requests import ClientDisconnect

from lorica.data.decoding import IN_MEMORY
from lorica.environment import package_version
from lorica.errors import DataError, LoricaError
from lorica.serving.guard import LOOPBACK, Guard
from lorica.serving.model import Model
from lorica.serving.uploads import Limits, Refused, Upload, read_texts, read_uploads

AT_ONCE = 4
"""Requests whose images are in memory, read and classified at a time; others wait."""

_PATIENCE = 120.0  # seconds for the images of a request to arrive
_COURTESY = 10.0  # seconds for a refused client to send the rest
_BATCH = 16  # images at a time through the model

_PAGE = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
_FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"images": {"type": "array", "items": {"type": "string", "format": "binary"}}},
                }
            }
        },
    }
}


_JSON = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"type": "object", "properties": {"texts": {"type": "array", "items": {"type": "string"}}}}
            }
        },
    }
}


class Predicted(BaseModel):
    """The answer for an image."""

    name: str
    class_name: str = Field(serialization_alias="class")
    probability: float
    unknown: bool


class Unreadable(BaseModel):
    """Why an image has no answer."""

    name: str
    error: str


class Predictions(BaseModel):
    """In the order in which the images were sent."""

    images: list[Predicted | Unreadable]


class PredictedText(BaseModel):
    """The answer for a text."""

    class_name: str = Field(serialization_alias="class")
    probability: float
    unknown: bool


class Unread(BaseModel):
    """Why a text has no answer."""

    error: str


class PredictionsOfTexts(BaseModel):
    """In the order in which the texts were sent."""

    texts: list[PredictedText | Unread]


class Classes(BaseModel):
    """What the model can answer."""

    classes: list[str]


class Change(BaseModel):
    """One version of the model, see `lorica.serving.model.Version`."""

    number: int
    date: str
    kind: str
    classes: list[str]
    images: int
    accuracy: float | None
    accuracy_now: float | None


class History(BaseModel):
    """Oldest first."""

    versions: list[Change]


class Health(BaseModel):
    """That the server is there, and what a request to it may hold."""

    status: str
    title: str
    reads: Literal["images", "texts"]
    lorica: str
    classes: int
    max_bytes: int
    max_images: int


def create_app(
    model: Model,
    *,
    title: str,
    max_bytes: int,
    max_images: int,
    hosts: Collection[str] | None = LOOPBACK,
    reads: Literal["images", "texts"] = "images",
) -> FastAPI:
    """The application of one model, for any ASGI server. It writes nothing.

    Args:
        title: what the page calls the model.
        max_bytes: of the body of one request, all images together.
        max_images: in one request.
        hosts: names in the Host header that are answered, without ports; None = any, for a server that others reach.
        reads: what the model is given.
    """
    limits = Limits(max_bytes, max_images)
    places = anyio.Semaphore(AT_ONCE)
    app = FastAPI(title=title, version=package_version("lorica") or "unknown", docs_url=None, redoc_url=None)
    app.add_middleware(Guard, hosts=hosts)

    @app.exception_handler(LoricaError)
    def tell(request: Request, error: LoricaError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 500)

    read, classify = (read_texts, _classify_texts) if reads == "texts" else (read_uploads, _classify)

    @app.post(
        "/predict",
        openapi_extra=_JSON if reads == "texts" else _FORM,
        response_model=PredictionsOfTexts if reads == "texts" else Predictions,
    )
    async def predict(request: Request) -> Any:
        """The class of each image or text, its probability, and whether it is of none of the classes."""
        async with places:
            body = request.stream()
            try:
                with anyio.fail_after(_PATIENCE):
                    given: Any = await read(
                        request.headers.get("content-type"), request.headers.get("content-length"), body, limits
                    )
            except Refused as refusal:
                with anyio.move_on_after(_COURTESY):
                    await _pass_over(body, 2 * max_bytes)
                return JSONResponse({"detail": refusal.reason}, refusal.status, {"Connection": "close"})
            except TimeoutError:
                return JSONResponse({"detail": f"the {reads} did not arrive within {_PATIENCE:g} s"}, 408)
            except ClientDisconnect:
                return Response(status_code=400)  # to nobody
            return {reads: await anyio.to_thread.run_sync(classify, model, given)}

    @app.get("/classes")
    def classes() -> Classes:
        """The classes that the model can answer."""
        return Classes(classes=list(model.class_names))

    @app.get("/history")
    def history() -> History:
        """What the model has learned, when, and how well it knows it."""
        return History(versions=[Change.model_validate(each, from_attributes=True) for each in model.history()])

    @app.get("/health")
    def health() -> Health:
        """That the server is there, and its limits."""
        return Health(
            status="ok",
            title=title,
            reads=reads,
            lorica=app.version,
            classes=len(model.class_names),
            max_bytes=max_bytes,
            max_images=max_images,
        )

    for path, (name, kind) in _PAGE.items():
        _serve_file(app, path, name, kind)
    return app


def _serve_file(app: FastAPI, path: str, name: str, kind: str) -> None:
    """With the type said here: some systems call JavaScript plain text, and browsers then refuse it."""
    content = files("lorica.serving").joinpath("page", name).read_bytes()

    @app.get(path, include_in_schema=False)
    def page() -> Response:
        return Response(content, headers={"Content-Type": kind})


def _classify(model: Model, uploads: Sequence[Upload]) -> list[Predicted | Unreadable]:
    """All of them at once; or, where one cannot be read, each for itself, so that the others have their answers."""
    for upload in uploads:
        upload.content.seek(0)
    try:
        answers = model.classify([upload.content for upload in uploads], batch_size=_BATCH)
    except DataError as error:
        if len(uploads) > 1:
            return [one for upload in uploads for one in _classify(model, [upload])]
        words = "; ".join(problem.removeprefix(f"{IN_MEMORY}: ") for problem in error.problems)
        return [Unreadable(name=uploads[0].name, error=words)]
    return [
        Predicted(
            name=upload.name, class_name=answer.class_name, probability=answer.probability, unknown=answer.unknown
        )
        for upload, answer in zip(uploads, answers, strict=True)
    ]


def _classify_texts(model: Model, texts: Sequence[Any]) -> list[PredictedText | Unread]:
    """The same for texts."""
    try:
        answers = model.classify(texts, batch_size=_BATCH)
    except DataError as error:
        if len(texts) > 1:
            return [one for text in texts for one in _classify_texts(model, [text])]
        return [Unread(error="; ".join(error.problems))]
    return [
        PredictedText(class_name=each.class_name, probability=each.probability, unknown=each.unknown)
        for each in answers
    ]


async def _pass_over(body: AsyncIterator[bytes], size: int) -> None:
    """Takes up to that many more bytes of a refused request: most clients read an answer only when they have sent
    all."""
    try:
        async for chunk in body:
            size -= len(chunk)
            if size < 0:
                return
    except ClientDisconnect:
        return
