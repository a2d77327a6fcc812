"""Weights that are to be fetched, without a network: a host that never answers, and one that refuses."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from lorica import network
from lorica.backbones import hub, load_backbone
from lorica.config import read_recipe
from lorica.errors import BackboneError

NAME = "test_vit.r160_in1k"


@pytest.fixture(autouse=True)
def _nothing_is_cached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(network, "_SECONDS", 0.3)
    monkeypatch.delenv("HF_HUB_ETAG_TIMEOUT", raising=False)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "*")


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The hub at a socket that takes connections and never says anything."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", f"http://{address}")
        yield address


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> str:
    """The hub at a port at which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", f"http://{address}")
    return address


def cache(folder: Path) -> dict[str, torch.Tensor]:
    """Leaves weights of `NAME` where the hub's library does."""
    torch.manual_seed(0)
    state = timm.create_model("test_vit").state_dict()
    (folder / f"models--timm--{NAME}" / "refs").mkdir(parents=True)
    (folder / f"models--timm--{NAME}" / "refs" / "main").write_text("abc")
    (folder / f"models--timm--{NAME}" / "snapshots" / "abc").mkdir(parents=True)
    save_file(state, folder / f"models--timm--{NAME}" / "snapshots" / "abc" / "model.safetensors")
    return state


def test_the_default_is_answered_within_five_seconds() -> None:
    source = Path(network.__file__).read_text(encoding="utf-8")
    assert float(re.findall(r"^_SECONDS = (.*)$", source, re.MULTILINE)[0]) + 0.5 < 5


@pytest.mark.parametrize("host", ["silent", "refusing"])
def test_a_hub_out_of_reach_is_noticed_at_once_and_what_works_without_it_is_named(
    host: str, request: pytest.FixtureRequest
) -> None:
    address = request.getfixturevalue(host)
    name = read_recipe("own_images").backbone.name
    began = time.monotonic()
    with pytest.raises(BackboneError) as error:
        load_backbone(name)
    assert time.monotonic() - began < 2
    (line,) = error.value.problems
    assert line.startswith(f"backbone.name: cannot get the weights of {name} ({address} cannot be reached: ")
    assert "without a network, choose backbone.name=lorica_tiny, which is embedded" in line
    assert "backbone.weights=FILE" in line


def test_looking_up_the_hosts_name_is_bounded_too(monkeypatch: pytest.MonkeyPatch, silent: str) -> None:
    class Session:
        def head(self, *_: Any, **__: Any) -> None:
            threading.Event().wait(20)

    monkeypatch.setattr(network, "get_session", Session)
    began = time.monotonic()
    assert hub.out_of_reach(NAME) == f"{silent} cannot be reached: no answer within 0.3 s"
    assert time.monotonic() - began < 2


def test_the_time_can_be_set_as_for_the_hubs_library(monkeypatch: pytest.MonkeyPatch, silent: str) -> None:
    monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "1.5")
    began = time.monotonic()
    assert hub.out_of_reach(NAME)
    assert 1.4 < time.monotonic() - began < 4


@pytest.mark.parametrize("host", ["silent", "refusing"])
def test_weights_in_the_cache_are_loaded_without_the_hub(
    host: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    request.getfixturevalue(host)
    state = cache(tmp_path / "cache")
    began = time.monotonic()
    encoder = load_backbone(NAME)
    assert time.monotonic() - began < 2
    assert torch.equal(encoder.vit.blocks[0].attn.qkv.weight, state["blocks.0.attn.qkv.weight"])
    assert encoder.tag == NAME


def test_a_hub_that_may_not_be_asked_is_not(monkeypatch: pytest.MonkeyPatch, silent: str) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(network, "get_session", None)
    assert hub.out_of_reach(NAME) is None


def test_a_hub_that_answers_is_left_to_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    class NotFound(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_error(404)

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), NotFound) as server:
        threading.Thread(target=server.handle_request).start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr(network, "_SECONDS", 4.0)
        assert hub.out_of_reach(NAME) is None


def test_weights_that_are_not_on_the_hub(monkeypatch: pytest.MonkeyPatch, refusing: str, tmp_path: Path) -> None:
    """A few are files of their authors'; and some architectures have none."""
    assert hub.out_of_reach("vit_base_patch16_xp_224") is None
    known = timm.get_pretrained_cfg("vit_giant_patch16_gap_224")
    assert known is not None
    monkeypatch.setattr(known, "url", f"http://{refusing}/weights.pth.tar")
    monkeypatch.setattr(timm, "get_pretrained_cfg", lambda _: known)
    assert str(hub.out_of_reach("any")).startswith(f"{refusing} cannot be reached: ")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert hub.cached("any") is None
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "weights.pth.tar").write_bytes(b"x")
    assert hub.cached("any") == tmp_path / "checkpoints" / "weights.pth.tar"
