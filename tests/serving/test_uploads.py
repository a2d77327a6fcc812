"""Forms in pieces of any size, and how much of a body is read before it is refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from lorica.serving.uploads import Limits, Refused, Upload, read_uploads

KIND = 'multipart/form-data; boundary="a b"'
FORM = (
    b'--a b\r\nContent-Disposition: form-data; name="note"\r\n\r\nfirst\r\n'
    b'--a b\r\ncontent-disposition: form-data; name="images"; filename="one.png"\r\nContent-Type: image/png\r\n\r\n'
    b"\x00\r\n--a \r\n--a\r\n"
    b'\r\n--a b\r\nContent-Disposition: form-data; name="images"; filename="t\xc3\xb6.png"\r\n\r\n\r\n--a b--\r\n'
)


class Body:
    """A body in pieces; `taken` is how many bytes of it were asked for."""

    def __init__(self, content: bytes, size: int) -> None:
        self.content, self.size, self.taken = content, size, 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for start in range(0, len(self.content), self.size):
            piece = self.content[start : start + self.size]
            self.taken += len(piece)
            yield piece


def read(body: Body, limits: Limits, length: str | None = None) -> list[Upload]:
    return asyncio.run(read_uploads(KIND, length, body, limits))


@pytest.mark.parametrize("size", [1, 2, 7, 64, 1000])
def test_files_of_a_form_whatever_its_pieces(size: int) -> None:
    uploads = read(Body(FORM, size), Limits(max_bytes=len(FORM), max_images=3))
    assert [upload.name for upload in uploads] == ["one.png", "tö.png"]
    assert [upload.content.getvalue() for upload in uploads] == [b"\x00\r\n--a \r\n--a\r\n", b""]


def test_every_byte_counts() -> None:
    with pytest.raises(Refused, match="too large") as refusal:
        read(Body(FORM, 7), Limits(max_bytes=len(FORM) - 1, max_images=3))
    assert refusal.value.status == 413


def test_no_more_is_read_than_the_limits_allow() -> None:
    part = b'--a b\r\nContent-Disposition: form-data; name="images"; filename="one.png"\r\n\r\n\r\n'
    large = Body(part + bytes(10**6), 1000)
    with pytest.raises(Refused, match=r"too large: a request may hold 0\.02 MB in all"):
        read(large, Limits(max_bytes=20_000, max_images=3))
    assert large.taken <= 21_000
    many = Body(part * 1000, 1000)
    with pytest.raises(Refused, match="too many: a request may hold 3 images"):
        read(many, Limits(max_bytes=10**9, max_images=3))
    assert many.taken <= 1000


def test_a_length_above_the_limit_is_refused_unread() -> None:
    body = Body(FORM, 10)
    with pytest.raises(Refused, match="too large"):
        read(body, Limits(max_bytes=10**6, max_images=3), length="1000001")
    assert body.taken == 0
