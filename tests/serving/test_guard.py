"""Who is answered, and the headers of every response."""

from __future__ import annotations

import pytest
from colour_model import ColourModel, picture
from fastapi import FastAPI
from starlette.testclient import TestClient

from lorica.serving.app import create_app

PATHS = (
    "/",
    "/page.js",
    "/style.css",
    "/icon.svg",
    "/classes",
    "/history",
    "/health",
    "/no-such-page",
    "/openapi.json",
)


@pytest.mark.parametrize("path", PATHS)
def test_every_response_forbids_scripts_from_elsewhere_and_frames(client: TestClient, path: str) -> None:
    headers = client.get(path).headers
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["cache-control"] == "no-store"
    assert not [name for name in headers if name.startswith("access-control")]
    assert "server" not in headers


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/", "text/html"), ("/page.js", "text/javascript"), ("/style.css", "text/css"), ("/icon.svg", "image/svg+xml")],
)
def test_files_of_the_page_have_their_types(client: TestClient, path: str, kind: str) -> None:
    said = client.get(path)
    assert said.status_code == 200
    assert said.headers["content-type"].split(";")[0] == kind
    assert said.text.strip()


def test_the_page_names_no_other_host(client: TestClient) -> None:
    for path in ("/", "/page.js", "/style.css"):
        text = client.get(path).text
        assert "://" not in text
        assert "//" not in text.replace("// ", "")
        assert "innerHTML" not in text
    html = client.get("/").text
    assert " style=" not in html
    assert " onclick" not in html


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost:8000", "LOCALHOST", "[::1]:8000", "[::1]"])
def test_names_of_this_machine_are_answered(client: TestClient, host: str) -> None:
    assert client.get("/health", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["attacker.example:8000", "127.0.0.1.attacker.example", "localhost.", "", "192.168.0.7:8000", "[::1", "::1"]
)
def test_other_names_are_not(client: TestClient, host: str) -> None:
    for said in (
        client.get("/classes", headers={"Host": host}),
        client.post("/predict", headers={"Host": host}, files={"images": ("a.png", picture())}),
    ):
        assert said.status_code == 421
        assert "localhost" in said.json()["detail"]
        assert said.headers["x-frame-options"] == "DENY"


def test_any_name_where_others_may_come() -> None:
    app: FastAPI = create_app(ColourModel(), title="colours", max_bytes=10**6, max_images=5, hosts=None)
    with TestClient(app, base_url="http://photos.example") as client:
        assert client.get("/health").status_code == 200


@pytest.mark.parametrize(
    "origin", ["http://attacker.example", "http://127.0.0.1:9000", "null", "http://localhost:8000"]
)
def test_pages_of_other_sites_cannot_send_images(client: TestClient, model: ColourModel, origin: str) -> None:
    said = client.post("/predict", headers={"Origin": origin}, files={"images": ("a.png", picture())})
    assert said.status_code == 403
    assert model.calls == []


def test_the_servers_own_page_can(client: TestClient) -> None:
    headers = {"Origin": "http://127.0.0.1:8000"}
    assert client.post("/predict", headers=headers, files={"images": ("a.png", picture())}).status_code == 200
