"""Images or texts out of a request: read as they arrive, kept in memory, and no further than the limits.

Starlette's own reading of forms is not used: it moves a large file to the disk, and it knows no limit on a file's size.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterable
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from lorica.terminal import shown

MEGABYTE = 10**6

_LONGEST_NAME = 255  # characters of a file's name that are kept, as many as file systems allow
_HELP = "send images as files of a form (multipart/form-data): curl -F images=@one.jpg -F images=@two.jpg …/predict"
_HELP_WITH_TEXTS = (
    """send texts as JSON: curl --json '{"texts": ["what is my balance"]}' …/predict, which is application/json"""
)


class Refused(Exception):
    """A request that is not read, or not to its end.

    Attributes:
        status: of HTTP: 400, 413 or 415.
        reason: what was expected, what came, and what to do.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


@dataclass(frozen=True)
class Limits:
    """How much one request may hold.

    Attributes:
        max_bytes: of its body, all images together.
        max_images: files or texts in it.
    """

    max_bytes: int
    max_images: int

    def require_bytes(self, size: int) -> None:
        """Refused, 413, where a body has more."""
        if size > self.max_bytes:
            raise Refused(
                413,
                f"too large: a request may hold {self.max_bytes / MEGABYTE:g} MB in all; send fewer at a time, or "
                "smaller ones, or start the server with a larger --max-megabytes",
            )

    def require_images(self, number: int, things: str = "images") -> None:
        """Refused, 413, where there are more."""
        if number > self.max_images:
            raise Refused(
                413,
                f"too many: a request may hold {self.max_images} {things}; send them in several, or start the server "
                "with a larger --max-images",
            )


@dataclass
class Upload:
    """One file of a request; what controls a terminal or a text's direction is written out in its name."""

    name: str
    content: BytesIO = field(default_factory=BytesIO)


async def read_uploads(
    kind: str | None, length: str | None, body: AsyncIterable[bytes], limits: Limits
) -> list[Upload]:
    """The files of a form as a browser or curl sends it; its other fields are passed over.

    Args:
        kind, length: the headers Content-Type and Content-Length. What the second says is checked first, and not
            believed.

    Raises:
        Refused: no form, no file in it, or more than the limits allow; then no more of the body has been read than they
            do.
    """
    media, options = parse_options_header(kind)
    if media != b"multipart/form-data":
        raise Refused(415, f"expected a form with files, got {shown(kind or 'no Content-Type')[:100]}; {_HELP}")
    if length and length.isdecimal():
        limits.require_bytes(int(length))
    form = _Form(limits)
    try:
        parser = MultipartParser(options[b"boundary"], form.callbacks())
        read = 0
        async for chunk in body:
            read += len(chunk)
            limits.require_bytes(read)
            parser.write(chunk)
        parser.finalize()
    except KeyError:
        raise Refused(400, f"the form's Content-Type has no boundary; {_HELP}") from None
    except FormParserError as error:
        raise Refused(400, f"the form is damaged ({shown(error)[:100]}); {_HELP}") from error
    if not form.is_complete:
        raise Refused(400, f"the form is cut off; {_HELP}")
    if not form.uploads:
        raise Refused(400, f"no images in the form; {_HELP}")
    return form.uploads


async def read_texts(kind: str | None, length: str | None, body: AsyncIterable[bytes], limits: Limits) -> list[Any]:
    """The texts of a request whose body is JSON; which of them are none is for the model to say.

    Args:
        kind, length: as of `read_uploads`.

    Raises:
        Refused: something else, or more than the limits allow.
    """
    if parse_options_header(kind)[0] != b"application/json":
        raise Refused(415, f"expected JSON, got {shown(kind or 'no Content-Type')[:100]}; {_HELP_WITH_TEXTS}")
    if length and length.isdecimal():
        limits.require_bytes(int(length))
    read = bytearray()
    async for chunk in body:
        limits.require_bytes(len(read) + len(chunk))
        read += chunk
    try:
        held = json.loads(read)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"this is no JSON ({shown(str(error))[:100]}); {_HELP_WITH_TEXTS}") from error
    texts = held.get("texts") if isinstance(held, dict) else None
    if not isinstance(texts, list) or not texts:
        raise Refused(400, f"no texts in the request; {_HELP_WITH_TEXTS}")
    limits.require_images(len(texts), "texts")
    return texts


class _Form:
    """What the parser finds, piece by piece."""

    def __init__(self, limits: Limits) -> None:
        self.uploads: list[Upload] = []
        self.is_complete = False
        self._limits, self._parts = limits, 0
        self._header, self._value, self._disposition = bytearray(), bytearray(), b""
        self._into: BytesIO | None = None

    def callbacks(self) -> Any:
        """As `python_multipart.MultipartParser` wants them."""
        return {
            "on_part_begin": self._part_begins,
            "on_header_field": self._header_goes_on,
            "on_header_value": self._value_goes_on,
            "on_header_end": self._header_ends,
            "on_headers_finished": self._content_begins,
            "on_part_data": self._content_goes_on,
            "on_end": self._ends,
        }

    def _part_begins(self) -> None:
        self._parts += 1
        self._limits.require_images(self._parts)
        self._disposition, self._into = b"", None

    def _header_goes_on(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _value_goes_on(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_ends(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._header.clear()
        self._value.clear()

    def _content_begins(self) -> None:
        name = parse_options_header(self._disposition)[1].get(b"filename")
        if name:  # a form whose field was left empty has a file without a name
            upload = Upload(shown(name.decode(errors="replace"))[:_LONGEST_NAME])
            self.uploads.append(upload)
            self._into = upload.content

    def _content_goes_on(self, data: bytes, start: int, end: int) -> None:
        if self._into is not None:
            self._into.write(data[start:end])

    def _ends(self) -> None:
        self.is_complete = True
