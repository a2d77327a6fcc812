"""A server at a real address: where it listens, whom it lets in, and what it answers to those who send too much."""

from __future__ import annotations

import http.client
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from urllib.parse import urlsplit

import pytest
from colour_model import ColourModel, picture
from listening import listening

from lorica.errors import LoricaError
from lorica.serving.server import opened, require_extra


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with listening(ColourModel(), max_bytes=3_000_000, max_images=5) as url:
        yield url


def post(url: str, content: bytes, **headers: str) -> tuple[int, str]:
    form = b'--x\r\nContent-Disposition: form-data; name=images; filename="a.png"\r\n\r\n%b\r\n--x--\r\n' % content
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    with closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)) as connection:
        connection.request("POST", "/predict", form, kind | headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


def test_an_image_over_a_socket(url: str) -> None:
    status, said = post(url, picture())
    assert status == 200
    assert '"class":"red"' in said


def test_a_client_that_sends_too_much_learns_why(url: str) -> None:
    status, said = post(url, bytes(5_000_000))
    assert status == 413
    assert "too large: a request may hold 3 MB" in said
    assert post(url, picture())[0] == 200


def test_a_client_that_sends_far_too_much_is_cut_off(url: str) -> None:
    with pytest.raises((ConnectionError, http.client.HTTPException)):
        post(url, bytes(50_000_000))
    assert post(url, picture())[0] == 200


def test_a_client_that_goes_away_takes_no_place(url: str) -> None:
    address = urlsplit(url)
    for _ in range(10):
        with socket.create_connection((address.hostname, address.port)) as connection:
            connection.sendall(
                b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=x\r\n"
                b"Content-Length: 1000\r\n\r\n--x\r\n"
            )
    assert post(url, picture())[0] == 200


def test_another_name_for_this_machine_is_refused(url: str) -> None:
    assert post(url, picture(), Host="attacker.example")[0] == 421


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.0.0.5", "::1"])
def test_loopback_is_for_this_machine_only(host: str) -> None:
    try:
        with opened(host, 0) as door:
            assert not door.is_public
            assert door.hosts is not None
            assert {"localhost", urlsplit(door.url).netloc.rpartition(":")[0]} <= door.hosts
            assert urlsplit(door.url).port == door.socket.getsockname()[1]
    except LoricaError:
        if host in ("127.0.0.1", "localhost"):
            raise
        pytest.skip(f"this machine has no {host}")


def test_every_address_is_for_others_too() -> None:
    with opened("0.0.0.0", 0) as door:
        assert door.is_public
        assert door.hosts is None


def test_a_port_that_is_taken() -> None:
    with opened("127.0.0.1", 0) as door:
        port = urlsplit(door.url).port
        assert port
        with (
            pytest.raises(LoricaError, match=rf"127.0.0.1, port {port}: .*choose another --host or --port"),
            opened("127.0.0.1", port),
        ):
            pass


@pytest.mark.parametrize("host", ["192.0.2.1", "no such host", "x" * 300])
def test_an_address_that_is_not_here(host: str) -> None:
    with pytest.raises(LoricaError, match="cannot be listened at"), opened(host, 0):
        pass


def test_the_extra_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    require_extra()
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(LoricaError, match=r"not installed \(uvicorn\): pip install 'lorica\[serve\]'"):
        require_extra()


def test_threads_end_with_the_server() -> None:
    before = threading.active_count()
    with listening(ColourModel(), max_bytes=10**6, max_images=5) as url:
        assert post(url, picture())[0] == 200
    assert threading.active_count() <= before + 1
