"""The application of a model of colours, and a client inside this process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from colour_model import ColourModel
from fastapi import FastAPI
from starlette.testclient import TestClient

from lorica.serving.app import create_app


@pytest.fixture
def model() -> ColourModel:
    return ColourModel()


@pytest.fixture
def app(model: ColourModel) -> FastAPI:
    return create_app(model, title="colours", max_bytes=3_000_000, max_images=5)


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app, base_url="http://127.0.0.1:8000") as client:
        yield client
